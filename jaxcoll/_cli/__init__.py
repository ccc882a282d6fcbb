"""The command line, one file per command: `parser` says what it takes, `main` runs it.

The entry point is `main.main`, which ``jaxcoll COMMAND`` and ``python -m jaxcoll COMMAND`` call.
"""
