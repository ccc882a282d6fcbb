"""The command line, one file per command.

Each has `parser()`, which says what the command takes, and `main(argv)`, which returns its exit
code. Among these, only `info` may import JAX. The entry point is `main.main`, which ``jaxcoll
COMMAND`` and ``python -m jaxcoll COMMAND`` call, and which imports a command once it is called.
"""
