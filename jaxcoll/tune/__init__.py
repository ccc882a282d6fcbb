"""The algorithm that "auto" picks: by rules that ship, or by a table that was measured on a
machine.

`select` resolves "auto" while a program is traced, by `table`; `tuner` makes a table, from what
`ranks` measure and what `costs` explain of it. The entry points are `select.choose` and
``jaxcoll tune``. Nothing here imports JAX.
"""
