"""Simulates schedules on modelled networks: the same schedules that run.

    network = topology.fat_tree(1024, radix=16)
    spec = ScheduleSpec("all_reduce", 1024, "ring")
    timeline = run(spec, network, 64 << 20, model=Model(overhead_s=1e-6))
    timeline.time_s, timeline.busbw_GBps, timeline.gap, timeline.bottlenecks()

The model is as follows. A message starts when both its ends have; its sender's port takes a
channel's messages one after the other, in program order; each occupies the port for the overhead
and then flows at a max-min fair rate (or less fairly: `Model.unfairness`); it arrives when its last
byte has left, plus latencies. Time is in whole picoseconds, and equal seeds give equal results.
There are no packets and no queues.

Every time that comes out is simulated, and stands beside bounds that no schedule can beat.
This module does not import JAX.
"""

from jaxcoll._errors import (
    SimulationError,
)
from jaxcoll.sim.simulate import (
    KEPT_SCHEDULES,
    pack,
    run,
)
from jaxcoll.sim.timeline import (
    ROUTINGS,
    Bound,
    Change,
    Model,
    Routing,
    Stragglers,
    Timeline,
    Traffic,
)

__all__ = [
    "KEPT_SCHEDULES",
    "ROUTINGS",
    "Bound",
    "Change",
    "Model",
    "Routing",
    "SimulationError",
    "Stragglers",
    "Timeline",
    "Traffic",
    "pack",
    "run",
]
