"""The costs of collectives on this machine: the model that `jaxcoll tune` calibrates and picks by.

Between processes a cost is a simulated time: the schedule as the engine cuts it, on a switch, with

- alpha: l, which a message takes to arrive, and o, which it keeps its sender busy
- beta: seconds per byte that a rank sends or receives
- gamma: seconds per byte that it reduces

Cores do the work of messages and additions, so with more ranks than cores each cost is multiplied
by the ranks per core. Within a process there are no messages: the cost follows from the levels of
memory actions that the engine compiles a schedule to, and the bytes that they move.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields, replace
from functools import lru_cache
from typing import Any, TypeVar

from jaxcoll import schedule as _schedule
from jaxcoll._native import native
from jaxcoll.schedule import ScheduleSpec
from jaxcoll.sim import network_kinds as kinds
from jaxcoll.sim.network import Topology
from jaxcoll.sim.timeline import Model
from jaxcoll.tune.engine_model import ITEM_BYTES, predict_s

_STEPS = (4.0, 2.0, 1.4, 1.15)  # factors that a parameter is tried with
_SWEEPS = 3


@dataclass(frozen=True)
class LinkCosts:
    """Between processes.

    Attributes:
      latency_s: l.
      overhead_s: o.
      byte_s: beta.
      reduce_byte_s: gamma.
    """

    latency_s: float
    overhead_s: float
    byte_s: float
    reduce_byte_s: float

    def of(self, spec: ScheduleSpec, nbytes: int, cores: int) -> float:
        """Seconds of a collective whose ranks are processes of one machine, or, with a core for
        each rank, of as many machines."""
        busy = max(1.0, spec.world_size / cores)
        model = Model(
            overhead_s=self.overhead_s * busy,
            latency_s=self.latency_s * busy,
            reduce_s_per_byte=self.reduce_byte_s * busy,
            in_flight=0,
        )
        return predict_s(spec, nbytes, _switch(spec.world_size, 1 / (self.byte_s * busy)), model)


@dataclass(frozen=True)
class NodeCosts:
    """Between hosts that have one core and more for each of their ranks.

    Attributes:
      near: between ranks of one host.
      far: between hosts, whose ranks share one cable.
      ranks_per_node: of a host.
    """

    near: LinkCosts
    far: LinkCosts
    ranks_per_node: int = 1

    def of(self, spec: ScheduleSpec, nbytes: int, cores: int) -> float:
        """Seconds of a collective; `cores` do not count."""
        if self.ranks_per_node == 1:
            return self.far.of(spec, nbytes, spec.world_size)
        model = Model(
            overhead_s=self.far.overhead_s,
            latency_s=self.near.latency_s,
            reduce_s_per_byte=self.near.reduce_byte_s,
            in_flight=0,
        )
        network = _hosts(
            spec.world_size // self.ranks_per_node,
            self.ranks_per_node,
            1 / self.near.byte_s,
            1 / self.far.byte_s,
            max(0.0, self.far.latency_s - self.near.latency_s) / 2,
        )
        return predict_s(spec, nbytes, network, model)


@dataclass(frozen=True)
class MemoryCosts:
    """Within a process.

    Attributes:
      call_s: of each call.
      level_s: of each further level of memory actions.
      byte_s: per byte read or written, by all cores together.
    """

    call_s: float
    level_s: float
    byte_s: float

    def of(self, spec: ScheduleSpec, nbytes: int, cores: int) -> float:
        """Seconds of a collective."""
        levels, moved = _memory(spec, nbytes)
        return self.call_s + max(0, levels - 1) * self.level_s + moved * self.byte_s


@lru_cache(maxsize=64)
def _switch(world_size: int, bandwidth_Bps: float) -> Topology:
    return kinds.switch(world_size, bandwidth_Bps=bandwidth_Bps, latency_s=0.0)


@lru_cache(maxsize=64)
def _hosts(
    count: int, each: int, near_Bps: float, far_Bps: float, far_latency_s: float
) -> Topology:
    """Hosts of a few ranks on a switch."""
    network = Topology(f"{count} hosts of {each} ranks")
    core = network.add_switch("network")
    for host in range(count):
        inside = network.add_switch(f"host{host}", "host switch")
        network.connect(inside, core, far_Bps, far_latency_s)
        for rank in range(host * each, (host + 1) * each):
            network.connect(network.add_host(f"rank{rank}"), inside, near_Bps)
    return network


@lru_cache(maxsize=4096)
def _memory(spec: ScheduleSpec, nbytes: int) -> tuple[int, int]:
    elements = _schedule.block_elements(spec.collective, spec.world_size, nbytes, ITEM_BYTES)
    levels, moved = native.engine_memory(
        spec.collective, spec.algorithm, spec.world_size, list(spec.dims), "float32", elements
    )
    return levels, moved


Costs = TypeVar("Costs", LinkCosts, MemoryCosts)


@dataclass(frozen=True)
class Sample:
    """A collective that was measured."""

    spec: ScheduleSpec
    nbytes: int
    seconds: float


def misfit(costs: LinkCosts | MemoryCosts, samples: Sequence[Sample], cores: int) -> float:
    """The mean of |log(predicted / measured)|: 0.1 is a factor of 1.1."""
    return sum(abs(math.log(costs.of(s.spec, s.nbytes, cores) / s.seconds)) for s in samples) / len(
        samples
    )


def fit(
    guess: Costs,
    samples: Sequence[Sample],
    cores: int,
    tell: Callable[[float], Any] = lambda error: None,
) -> Costs:
    """The costs near `guess` that explain the samples best: one after the other is multiplied and
    divided by ever smaller factors as long as that helps.

    Args:
      guess: where to start, all above 0.
      samples: what was measured.
      cores: of this machine.
      tell: called with the misfit after each sweep.
    """
    best = misfit(guess, samples, cores)
    names = [field.name for field in fields(guess)]
    for step in _STEPS:
        for _ in range(_SWEEPS):
            before = best
            for name, value in zip(names, astuple(guess), strict=True):
                for factor in (step, 1 / step):
                    tried = replace(guess, **{name: value * factor})
                    if (error := misfit(tried, samples, cores)) < best:
                        guess, best = tried, error
                        break
            if best == before:
                break
        tell(best)
    return guess
