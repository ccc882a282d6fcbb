"""HLO modules, as XLA's compiler hands them out and takes them back: read, and rewritten.

`proto` is the format, `module` what the other files need of it, `groups` who takes part in a
collective, `serve` what becomes of it. Nothing here knows JAX.
"""
