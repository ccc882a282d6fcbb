"""Simulates the schedules that jaxcoll runs, on modelled networks.

    network = topology.fat_tree(1024, radix=16)
    spec = ScheduleSpec("all_reduce", 1024, "ring")
    timeline = run(spec, network, 64 << 20, model=Model(overhead_s=1e-6))
    timeline.time_s, timeline.busbw_GBps, timeline.gap, timeline.bottlenecks()

The model is as follows. A message starts when its send and its receive have started. The sender's
port sends a channel's messages one after the other, in program order. Each occupies the port for
the overhead and then flows at a max-min fair rate (or less fairly: `Model.unfairness`). It arrives
when its last byte has been sent, plus the latencies. Time is in whole picoseconds, and equal seeds
give equal results. There are no packets and no queues.

All times are simulated, and come with lower bounds, which no schedule can beat. This module does
not import JAX.
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
