"""The simulator: runs jaxcoll's schedules on modelled networks, and computes lower bounds.

`topology` has the networks, `timeline` the settings and results of a simulation, `simulate` runs
one, `sweep` many; `bounds` are times that no schedule can beat; `page`, `perfetto` and `crossovers`
show results. The entry points are `jaxcoll.topology` and `jaxcoll.simulate.run`. Nothing here
imports JAX.
"""
