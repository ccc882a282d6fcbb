"""The simulator: the schedules that run, on modelled networks, beside bounds that none can beat.

`topology` has the networks, `timeline` what a simulation runs under and what comes out, `simulate`
runs one, `sweep` many; `bounds` are times below which no schedule can be; `page`, `perfetto` and
`crossovers` show results. The entry points are `jaxcoll.topology` and `jaxcoll.simulate.run`.
Nothing here imports JAX.
"""
