"""One simulation of a schedule on a network. `jaxcoll.simulate` is the public face."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from jaxcoll._native import native
from jaxcoll.schedule import Schedule, ScheduleSpec, input_blocks, output_blocks
from jaxcoll.schedule.ir import to_tuple
from jaxcoll.schedule.spec import spec_to_tuple
from jaxcoll.sim.bounds import Bounds
from jaxcoll.sim.links import MOST_BPS
from jaxcoll.sim.memory import available_bytes
from jaxcoll.sim.network import MOST_SECONDS, CutError, Placement, Topology, TopologyError
from jaxcoll.sim.timeline import (
    ROUTINGS,
    Change,
    Model,
    Routing,
    SimulationError,
    Stragglers,
    Timeline,
    Traffic,
    capacities_over,
    changes_of,
    picoseconds,
)

# The engine's ranges; ffi/sim/limits.h tells why. Sums are checked there.
MOST_BYTES: Final = int(native.SIM_MOST_BYTES)

# The ranges of a model's parameters that are not simply from 0 on.
RANGES: Final[dict[str, tuple[float, float]]] = {
    "efficiency": (1e-6, 1.0),
    "split": (1, 256),
    "in_flight": (0, (1 << 31) - 1),
    "unfairness": (0, native.SIM_MOST_UNFAIRNESS),
    "overhead_s": (0, MOST_SECONDS),
    "latency_s": (0, MOST_SECONDS),
    "quantum_s": (0, MOST_SECONDS),
}

# Packed schedules that are remembered.
KEPT_SCHEDULES: Final = 8


def run(
    schedule: Schedule | ScheduleSpec,
    topology: Topology,
    nbytes: int,
    *,
    model: Model = Model(),  # noqa: B008 - frozen
    placement: Placement | str | None = None,
    routing: Routing = "ecmp",
    seed: int = 0,
    failures: Sequence[str] = (),
    changes: Sequence[Change] = (),
    stragglers: Stragglers = Stragglers(),  # noqa: B008 - frozen
    background: Sequence[Traffic] = (),
    itemsize: int = 4,
    record: bool = False,
    bounds: Literal["all", "quick", "none"] = "all",
) -> Timeline:
    """Simulates one collective.

    Args:
      schedule: the spec of a built-in schedule (memory limits the ranks), or a schedule.
      topology: the network.
      nbytes: size, as defined by `Timeline.nbytes`; rounded down to whole elements per block, as in
        nccl-tests, but at least one.
      model: the costs of messages and computation.
      placement: see `Topology.place`.
      routing: "ecmp", "split" or "spray".
      seed: of routes, jitter and unfairness.
      failures: nodes and links that are down from the start; see `Topology.find_links`.
      changes: links and switches that fail, slow down or recover during the run.
      stragglers: slow and late ranks.
      background: other traffic than the collective's.
      itemsize: bytes per element; chunks are cut at elements.
      record: keep every message.
      bounds: which lower bounds to compute: "quick" leaves out those by maximal flows to every
        rank and by linear programs, which take seconds near 100 ranks (once per network).

    Returns:
      Times, the bytes of every link, messages.

    Raises:
      TopologyError: a placement, component or network that is not valid.
      CutError: ranks that must communicate have no path left; a TopologyError.
      ValueError: a schedule that cannot be built, or that deadlocks; a parameter out of range.
      SimulationError: a defect of the simulator, found by its own checks: bytes were lost, a link
        was overfull, or the time is below a bound.
    """
    if bounds not in ("all", "quick", "none"):
        raise ValueError(f"bounds is {bounds!r}; there are all, quick and none")
    if routing not in ROUTINGS:
        raise ValueError(f"unknown routing {routing!r}; there are {', '.join(ROUTINGS)}")
    _in_range("nbytes", nbytes, 1, MOST_BYTES)
    _in_range("itemsize", itemsize, 1, MOST_BYTES)
    _in_range("seed", seed, 0, (1 << 64) - 1)
    world_size = schedule.world_size
    hosts = topology.place(world_size, placement)
    packed = pack(schedule)
    blocks = max(
        input_blocks(schedule.collective, world_size),
        output_blocks(schedule.collective, world_size),
    )
    block_elements = max(1, nbytes // (blocks * itemsize))
    index = topology.index
    for name, values in (("slowdown", stragglers.slowdown), ("start_s", stragglers.start_s)):
        if values and len(values) != world_size:
            raise ValueError(f"stragglers.{name} has {len(values)} entries for {world_size} ranks")
        for rank, value in enumerate(values):
            most = MOST_SECONDS if name == "start_s" else math.inf
            _in_range(f"stragglers.{name} of rank {rank}", value, 0, most)
    _in_range("stragglers.jitter", stragglers.jitter, 0, math.inf)
    for parameter, value in vars(model).items():
        _in_range(f"model.{parameter}", value, *RANGES.get(parameter, (0, math.inf)))
    for traffic in background:
        for end in (traffic.source, traffic.destination):
            if end not in index:
                raise TopologyError(f"background traffic names unknown node {end!r}")
        _in_range("background traffic's nbytes", traffic.nbytes or 0, 0, MOST_BYTES)
        _in_range("background traffic's bandwidth_Bps", traffic.bandwidth_Bps, 0, MOST_BPS)
        _in_range("background traffic's share", traffic.share, 0, 1)
        _in_range("background traffic's start_s", traffic.start_s, 0, MOST_SECONDS)
    for change in changes:
        _in_range("a change's time_s", change.time_s, 0, MOST_SECONDS)
        _in_range("a change's factor", change.factor, 0, math.inf)
    link_changes = changes_of(topology, failures, changes)
    try:
        out = native.simulate(
            packed,
            topology.native,
            [index[host] for host in hosts],
            block_elements,
            itemsize,
            overhead_ps=picoseconds(model.overhead_s),
            latency_ps=picoseconds(model.latency_s),
            reduce_ps_per_byte=model.reduce_s_per_byte * 1e12,
            copy_ps_per_byte=model.copy_s_per_byte * 1e12,
            routing=routing,
            split=model.split,
            seed=seed,
            in_flight=model.in_flight,
            efficiency=model.efficiency,
            quantum_ps=picoseconds(model.quantum_s),
            jitter=stragglers.jitter,
            unfairness=model.unfairness,
            slowdown=list(stragglers.slowdown),
            start_ps=[picoseconds(start) for start in stragglers.start_s],
            changes=link_changes,
            background=[
                (
                    index[x.source],
                    index[x.destination],
                    picoseconds(x.start_s),
                    x.nbytes,
                    x.bandwidth_Bps,
                    x.share,
                )
                for x in background
            ],
            record=record,
        )
    except RuntimeError as error:
        raise SimulationError(str(error)) from None
    except ValueError as error:
        if "no path of working links" in str(error):
            down = [*failures, *(c.component for c in changes if c.factor == 0)]
            lost = f"; down: {', '.join(down[:8])}{', ...' if len(down) > 8 else ''}"
            raise CutError(f"{topology.name}: {error}{lost if down else ''}") from None
        raise
    mean_Bps, best_Bps = capacities_over(topology.capacities_Bps, link_changes, out["time_ps"])
    timeline = Timeline(
        collective=schedule.collective,
        algorithm=schedule.algorithm,
        topology=topology,
        routing=routing,
        seed=seed,
        nbytes=block_elements * itemsize * blocks,
        hosts=tuple(hosts),
        time_ps=out["time_ps"],
        rank_time_ps=out["rank_time_ps"],
        link_bytes=out["link_bytes"],
        messages=out["messages"],
        message_count=out["message_count"],
        event_count=out["event_count"],
        capacities_Bps=mean_Bps * model.efficiency,
    )
    if bounds == "none":
        return timeline
    best_Bps *= model.efficiency  # a link may be mended during the run
    limits = _bounds_of(topology, timeline.hosts, best_Bps, flow=bounds == "all")
    found = limits.of(
        schedule.collective,
        timeline.nbytes,
        model,
        stragglers,
        root=schedule.root,
        permutation=schedule.permutation,
    )
    timeline = replace(timeline, bounds=found, missing_bound=limits.missing(schedule.collective))
    # Every event is rounded to a picosecond; bounds are floating point.
    slack_ps = 1e-6 * timeline.time_ps + packed.ops / world_size + 2
    if found and timeline.time_ps + slack_ps < found[0].time_s * 1e12:
        raise SimulationError(
            f"{timeline!r} is below its {found[0].name} bound of {found[0].time_s * 1e6:.3f} us; "
            "this is a defect of the simulator or of the bound"
        )
    return timeline


def _bounds_of(
    topology: Topology, hosts: tuple[str, ...], capacities: NDArray[np.float64], *, flow: bool
) -> Bounds:
    """Kept with the network: sweeps ask for the same again and again."""
    key = (hosts, capacities.tobytes(), flow)
    if key not in topology.memo:
        topology.memo[key] = Bounds(topology, hosts, capacities, flow=flow)
    return topology.memo[key]


@lru_cache(maxsize=KEPT_SCHEDULES)
def pack(schedule: Schedule | ScheduleSpec) -> Any:
    """The schedule as the engine runs it: about 30 bytes per op. The last few are kept.

    Raises:
      ValueError: the spec cannot be built, a message has one end only, or there is not enough
        memory for it.
    """
    if isinstance(schedule, Schedule):
        return native.sim_graph_of_op_lists([to_tuple(program) for program in schedule.programs])
    return native.sim_graph(spec_to_tuple(schedule), available_bytes())


def _in_range(name: str, value: float, low: float, high: float) -> None:
    if not (low <= value <= high and math.isfinite(value)):
        most = f" and at most {high:.15g}" if high < math.inf else " and finite"
        by = f", {value / high:.3g} times that" if high < value < math.inf else ""
        shown = value if abs(value) < 1e15 else f"{float(value):.3g}"
        raise ValueError(f"{name} is {shown}, but must be at least {low:g}{most}{by}")
