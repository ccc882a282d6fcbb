"""A simulation's settings and results. `jaxcoll.simulate` is the public face."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from jaxcoll._errors import SimulationError as SimulationError
from jaxcoll.sim.links import MOST_BPS
from jaxcoll.sim.network import Topology, TopologyError

Routing: TypeAlias = Literal["ecmp", "split", "spray"]
ROUTINGS: Final[tuple[Routing, ...]] = ("ecmp", "split", "spray")
Distribution: TypeAlias = Literal["normal", "exponential", "uniform"]

# busbw = algbw * factor(n), as nccl-tests define it.
_BUS_FACTORS: Final = {
    "all_reduce": lambda n: 2 * (n - 1) / n,
    "all_gather": lambda n: (n - 1) / n,
    "reduce_scatter": lambda n: (n - 1) / n,
    "all_to_all": lambda n: (n - 1) / n,
}


@dataclass(frozen=True)
class Model:
    """The costs of messages and computation, in addition to those of the links.

    One message of m bytes, alone: overhead + m / bandwidth + latency + the links' latencies, and,
    where it is reduced, m * reduce.

    Attributes:
      overhead_s: o: per message, occupies the sender's port.
      latency_s: l: per message, occupies nothing.
      reduce_s_per_byte: gamma: the time in which a rank reduces a byte, one message at a time.
      copy_s_per_byte: the same for copies within a rank.
      in_flight: messages of one channel that a port sends at a time; 0: all that are ready.
      efficiency: share of every capacity that carries payload (headers, acknowledgements, ...).
      split: parts that routing "split" cuts a message into.
      quantum_s: flows end only at multiples of it; 0 is exact, but slow with many flows.
      unfairness: 0: messages share a link max-min fairly. Otherwise each gets a random share, and
        this is the standard deviation of the share's logarithm. Congestion control is not fair
        within the time of a message: 0.3 fits packet-level runs (tests/sim).
    """

    overhead_s: float = 0.0
    latency_s: float = 0.0
    reduce_s_per_byte: float = 0.0
    copy_s_per_byte: float = 0.0
    in_flight: int = 1
    efficiency: float = 1.0
    split: int = 4
    quantum_s: float = 0.0
    unfairness: float = 0.0


@dataclass(frozen=True)
class Stragglers:
    """Ranks that compute more slowly or start late.

    Attributes:
      slowdown: by rank: factor on overheads, reductions and copies; empty: 1.
      start_s: by rank: when it calls the collective; empty: 0.
      jitter: standard deviation of every single overhead, reduction and copy, relative to it.
    """

    slowdown: tuple[float, ...] = ()
    start_s: tuple[float, ...] = ()
    jitter: float = 0.0

    @staticmethod
    def draw(
        world_size: int,
        *,
        seed: int = 0,
        slowdown: float = 0.0,
        start_s: float = 0.0,
        distribution: Distribution = "normal",
        jitter: float = 0.0,
    ) -> Stragglers:
        """Draws slowdowns 1 + x * `slowdown` and starts x * `start_s`, with x >= 0 for each rank.

        Args:
          world_size: ranks.
          seed: of the draw.
          slowdown: scale of the slowdowns.
          start_s: scale of the late starts.
          distribution: of x: |standard normal|, exponential of mean 1, or uniform in [0, 1).
          jitter: see the class.

        Raises:
          ValueError: a scale that is negative or not finite, or an unknown distribution.
        """
        for name, scale in (("slowdown", slowdown), ("start_s", start_s), ("jitter", jitter)):
            if not 0 <= scale < math.inf:
                raise ValueError(f"{name} is {scale}, but must be at least 0")
        if distribution not in get_args(Distribution):
            known = ", ".join(get_args(Distribution))
            raise ValueError(f"unknown distribution {distribution!r}; there are {known}")
        rng = random.Random(seed)
        draws = {
            "normal": lambda: abs(rng.gauss(0, 1)),
            "exponential": lambda: rng.expovariate(1),
            "uniform": rng.random,
        }
        draw = draws[distribution]
        return Stragglers(
            tuple(1 + slowdown * draw() for _ in range(world_size)) if slowdown else (),
            tuple(start_s * draw() for _ in range(world_size)) if start_s else (),
            jitter,
        )


@dataclass(frozen=True)
class Change:
    """A link or switch that changes while the collective runs.

    Messages on a link that works keep their path and run at what it allows from then on. Those on a
    link that fails take another path, and stay on that one when the link is mended.

    Attributes:
      time_s: when.
      component: see `Topology.find_links`.
      factor: of its capacity from then on; 0 fails it, 0.5 halves it, 1 mends it. A link has at
        most 1e18 bytes per second.
    """

    time_s: float
    component: str
    factor: float = 0.0


@dataclass(frozen=True)
class Traffic:
    """Background traffic between two endpoints, which competes fairly.

    Attributes:
      source: name of a node.
      destination: name of another.
      bandwidth_Bps: its rate without competing traffic.
      nbytes: how much; None: unlimited.
      start_s: when it begins.
      share: instead of `bandwidth_Bps`, if above 0: it leaves by every link of the source that
        begins a shortest path, with `nbytes` and at most this share of the link on each.
    """

    source: str
    destination: str
    bandwidth_Bps: float = 0.0
    nbytes: int | None = None
    start_s: float = 0.0
    share: float = 0.0


@dataclass(frozen=True)
class Bound:
    """A time that no schedule can beat, and why."""

    name: str
    time_s: float


@dataclass(frozen=True, repr=False)
class Timeline:
    """One simulated collective. All its times are simulated.

    Attributes:
      collective: its name.
      algorithm: its name.
      topology: the network.
      routing: how messages were routed.
      seed: of routes and jitter.
      nbytes: the size, counted as in nccl-tests: a rank's buffer for all_reduce, broadcast, reduce
        and permute; all ranks' together for all_gather; a rank's whole input for reduce_scatter and
        all_to_all.
      hosts: by rank, its endpoint.
      time_ps: from 0 until the last rank is done.
      rank_time_ps: by rank.
      link_bytes: by link, what it carried.
      messages: with `record=True`, one row per message: step, channel, source and destination rank,
        bytes, and in picoseconds: ready, sent, left, arrived, done. Else empty.
      message_count: messages.
      event_count: events; the cost of the simulation is proportional to them.
      bounds: lower bounds of the time, the highest first.
      missing_bound: why the bound "flow" is missing from them if it was requested; else "".
      capacities_Bps: by link, averaged over the run.
    """

    collective: str
    algorithm: str
    topology: Topology
    routing: str
    seed: int
    nbytes: int
    hosts: tuple[str, ...]
    time_ps: int
    rank_time_ps: NDArray[np.int64]
    link_bytes: NDArray[np.int64]
    messages: NDArray[np.int64]
    message_count: int
    event_count: int
    bounds: tuple[Bound, ...] = ()
    missing_bound: str = ""
    capacities_Bps: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    @property
    def world_size(self) -> int:
        return len(self.hosts)

    @property
    def time_s(self) -> float:
        """The time it took."""
        return self.time_ps * 1e-12

    @property
    def algbw_GBps(self) -> float:
        """Size over time, 1 GB = 1e9 B."""
        return self.nbytes / max(1, self.time_ps) * 1e3

    @property
    def busbw_GBps(self) -> float:
        """algbw times nccl-tests' factor: comparable with the links' bandwidth."""
        factor = _BUS_FACTORS.get(self.collective, lambda n: 1.0)
        return self.algbw_GBps * factor(self.world_size)

    @property
    def bound_s(self) -> float:
        """The highest lower bound; 0 where none was asked for."""
        return max((bound.time_s for bound in self.bounds), default=0.0)

    @property
    def gap(self) -> float:
        """Time over bound: 1 is optimal."""
        return self.time_s / self.bound_s if self.bound_s > 0 else float("nan")

    @cached_property
    def utilisation(self) -> NDArray[np.float64]:
        """By link: what it carried over what it could have carried in the time."""
        room = self.capacities_Bps * max(self.time_s, 1e-12)
        return np.divide(self.link_bytes, room, out=np.zeros(len(room)), where=room > 0)

    def bottlenecks(self, count: int = 3) -> list[tuple[str, float]]:
        """The most used links, with their utilisation."""
        order = np.argsort(-self.utilisation, kind="stable")[:count]
        links = self.topology.links
        return [(links[i].name, float(self.utilisation[i])) for i in order]

    def __repr__(self) -> str:
        return (
            f"<simulated {self.algorithm} {self.collective} of {self.nbytes} bytes over "
            f"{self.world_size} ranks on {self.topology.name}: {self.time_s * 1e6:.3f} us>"
        )


def picoseconds(seconds: float) -> int:
    """Whole picoseconds, the engine's unit of time."""
    return round(seconds * 1e12)


def changes_of(
    topology: Topology, failures: Sequence[str], changes: Sequence[Change]
) -> list[tuple[int, int, float]]:
    """(picoseconds, link, bytes per second) for the engine, failures at time 0 first."""
    result = []
    for component in failures:
        result += [(0, link, 0.0) for link in topology.find_links(component)]
    for change in changes:
        for link in topology.find_links(change.component):
            bandwidth_Bps = change.factor * float(topology.capacities_Bps[link])
            if bandwidth_Bps > MOST_BPS:
                raise TopologyError(
                    f"{change} gives {topology.links[link].name} {bandwidth_Bps:g} B/s; at most "
                    f"{MOST_BPS:g}"
                )
            result.append((picoseconds(change.time_s), link, bandwidth_Bps))
    return result


def capacities_over(
    capacities_Bps: NDArray[np.float64], changes: Sequence[tuple[int, int, float]], time_ps: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The mean and the greatest capacity of every link from 0 to `time_ps`.

    Args:
      capacities_Bps: by link, before all changes.
      changes: see `changes_of`.
      time_ps: changes from then on do not count, unless it is 0.
    """
    end = max(1, time_ps)
    now = capacities_Bps.copy()
    since = np.zeros(len(now))
    room, greatest = np.zeros(len(now)), np.zeros(len(now))
    for when, link, bandwidth_Bps in sorted(changes, key=lambda change: change[0]):
        if when >= end:
            break
        if when > since[link]:
            room[link] += now[link] * (when - since[link])
            greatest[link] = max(greatest[link], now[link])
        now[link], since[link] = bandwidth_Bps, when
    return (room + now * (end - since)) / end, np.maximum(greatest, now)
