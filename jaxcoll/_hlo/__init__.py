"""Reads and rewrites HLO modules that XLA's compiler passes to its hook.

`proto` is the format, `module` the accessors that the other files need, `groups` the devices of a
collective, `serve` its replacement. Nothing here depends on JAX.
"""
