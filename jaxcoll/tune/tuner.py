"""The steps of `jaxcoll tune`: measure, fit, pick, check. `jaxcoll.tune` is the command.

Child processes (`ranks`) measure a few sizes. The costs that fit these times best (`costs`) predict
every other algorithm, number of ranks and size, and so determine the picks. Then the picks are
compared with measured times at sizes in between. If one is slower than the shipped rules' choice,
that choice goes into the table instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, cast

from jaxcoll import schedule as _schedule
from jaxcoll._native import native
from jaxcoll.schedule import Collective, ScheduleSpec
from jaxcoll.tune import select, table
from jaxcoll.tune.costs import LinkCosts, MemoryCosts, NodeCosts, Sample, fit, misfit
from jaxcoll.tune.ranks import Ranks, RanksError, Times

KIB, MIB = 1 << 10, 1 << 20
COLLECTIVES: Final[tuple[Collective, ...]] = (
    "all_reduce",
    "reduce_scatter",
    "all_gather",
    "all_to_all",
    "broadcast",
)
# The shipped choice stands unless another one is predicted to be this much faster.
_CLEARLY = 1.1
# A pick that takes this much longer than the fastest that was measured is called off.
OFF_BY: Final = 1.25
_RIVALS = 3  # that a pick is measured beside, those predicted to be fastest
_ROUND_S = 3e-3  # a round of a measurement takes this long, or one call
_CALLS_MOST = 50
_TIMEOUT_S = 30.0

Costs = LinkCosts | MemoryCosts | NodeCosts
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
      worlds: by layout, the numbers of ranks that are measured.
      fitted: sizes that the costs are fitted to.
      checked: sizes at which picks are held against measured times.
      rounds: of each measurement.
      checks_s: seconds after which no further check begins.
    """

    worlds: dict[table.Layout, tuple[int, ...]]
    fitted: tuple[int, ...]
    checked: tuple[int, ...]
    rounds: int
    checks_s: float


QUICK: Final = Effort(
    {"process": (2, 4), "host": (2, 4), "hosts": (2,)}, (KIB, MIB), (16 * KIB,), 3, 10.0
)
FULL: Final = Effort(
    {"process": (2, 4, 8), "host": (2, 4), "hosts": (2, 4)},
    (KIB, 64 * KIB, 4 * MIB),
    (8 * KIB, 256 * KIB, 2 * MIB),
    7,
    60.0,
)
# The cases that picks are made for: numbers of ranks, ranks per node, and bytes of the larger
# buffer.
_PICKED: Final[dict[table.Layout, tuple[tuple[int, int], ...]]] = {
    "process": ((2, 1), (4, 1), (8, 1), (16, 1)),
    "host": ((2, 1), (4, 1), (8, 1)),
    "hosts": ((2, 1), (4, 1), (8, 1), (16, 1), (4, 2), (8, 4), (16, 4)),
}
SIZES: Final = tuple(KIB << shift for shift in range(0, 17, 2))  # 1 KiB to 64 MiB
# One algorithm of each kind: many small messages, few, a pipeline, no sums.
_FITTED: Final[tuple[tuple[Collective, str], ...]] = (
    ("all_reduce", "direct"),
    ("all_reduce", "ring"),
    ("all_gather", "ring"),
    ("all_to_all", "direct"),
)


@dataclass(frozen=True)
class Transport:
    """The measurements of one way between ranks.

    Attributes:
      name: "process", "shm", "tcp" or "rdma".
      costs: fitted; None if it is not available.
      misfit: the mean of |log(predicted / measured)| over the samples.
      samples: what was measured.
      absent: why it is not available.
    """

    name: str
    costs: Costs | None
    misfit: float = 0.0
    samples: tuple[Sample, ...] = ()
    absent: str = ""


@dataclass(frozen=True)
class Choice:
    """The algorithm picked for a collective of some size, and the one without a table."""

    layout: table.Layout
    spec: ScheduleSpec
    ranks_per_node: int
    nbytes: int
    predicted_s: float
    shipped: ScheduleSpec
    shipped_s: float


@dataclass(frozen=True)
class Check:
    """A pick beside measured times, in seconds by algorithm."""

    choice: Choice
    measured_s: dict[str, float]

    @property
    def best(self) -> str:
        return min(self.measured_s, key=self.measured_s.__getitem__)

    @property
    def picked_s(self) -> float:
        return self.measured_s[self.choice.spec.algorithm]

    @property
    def regret(self) -> float:
        """How much longer the pick takes than the fastest that was measured; 0.1: by 10 %."""
        return self.picked_s / self.measured_s[self.best] - 1

    @property
    def is_off(self) -> bool:
        return self.regret > OFF_BY - 1

    @property
    def loses(self) -> bool:
        """Whether the shipped rules do better."""
        return self.picked_s > _CLEARLY * self.measured_s[self.choice.shipped.algorithm]


def operand_bytes(collective: str, world_size: int, nbytes: int) -> int:
    """Bytes of one rank's operand, by which "auto" picks, of a collective of `nbytes`."""
    return max(1, nbytes // world_size) if collective == "all_gather" else nbytes


def candidates(
    layout: table.Layout, collective: Collective, world_size: int, ranks_per_node: int
) -> list[ScheduleSpec]:
    """The algorithms that can run such a call and know no more of the ranks than is known."""
    found = []
    for name in _schedule.algorithms(collective):
        kind = _schedule.dims_kind(collective, name)
        if kind == "torus" or (kind == "nodes" and ranks_per_node == 1):
            continue
        dims = (world_size // ranks_per_node, ranks_per_node) if kind == "nodes" else ()
        spec = ScheduleSpec(collective, world_size, name, dims=dims)
        if select.serves(spec, 1 if layout == "process" else world_size):
            found.append(spec)
    return found


# --- measuring ----------------------------------------------------------------------------------


def start(name: str, world_size: int) -> Ranks:
    """Ranks that talk by "process" (one process), "shm", "tcp" or "rdma"."""
    if name == "process":
        return Ranks(1, world_size, timeout_s=_TIMEOUT_S)
    return Ranks(world_size, transports=[name], apart=name != "shm", timeout_s=_TIMEOUT_S)


def seconds(
    ranks: Ranks, specs: Sequence[ScheduleSpec], nbytes: int, rounds: int
) -> dict[str, float]:
    """Each algorithm's time per call; they take turns, so that a busy machine hits all alike."""

    def times(spec: ScheduleSpec, calls: int) -> Times:
        return ranks.time(
            spec.collective, spec.algorithm, nbytes, dims=spec.dims, rounds=1, calls=calls
        )

    once_s = min(times(spec, 1).median_s for spec in specs)
    calls = int(min(max(_ROUND_S / once_s, 1), _CALLS_MOST))
    rounds_s: dict[str, list[float]] = {spec.algorithm: [] for spec in specs}
    for turn in range(rounds):
        for spec in specs if turn % 2 == 0 else reversed(specs):
            rounds_s[spec.algorithm] += times(spec, calls).rounds_s
    return {name: Times(tuple(taken), 0.0).quiet_s for name, taken in rounds_s.items()}


def measure(name: str, worlds: Sequence[int], effort: Effort, tell: Tell) -> Transport:
    """Measures one transport and fits its costs."""
    if name == "rdma":
        try:
            native.comm_rdma_fabrics()
        except ValueError as error:
            return Transport(name, None, absent=str(error))
    samples = []
    try:
        for world_size in worlds:
            with start(name, world_size) as ranks:
                for collective, algorithm in _FITTED:
                    for nbytes in effort.fitted:
                        spec = ScheduleSpec(collective, world_size, algorithm)
                        tell(f"{name}, {world_size} ranks: {collective} by {algorithm}, {nbytes} B")
                        taken_s = seconds(ranks, [spec], nbytes, effort.rounds)
                        samples.append(Sample(spec, nbytes, taken_s[algorithm]))
    except RanksError as error:
        return Transport(name, None, absent=str(error))
    tell(f"{name}: fitting")
    cores = table.cores()
    costs: Costs
    if name == "process":
        costs = fit(MemoryCosts(1e-5, 1e-6, 1e-10), samples, cores)
    else:
        costs = fit(LinkCosts(5e-6, 2e-6, 5e-10, 1e-10), samples, cores)
    return Transport(name, costs, misfit(costs, samples, cores), tuple(samples))


# --- picking ------------------------------------------------------------------------------------


def choose(
    layout: table.Layout,
    collective: Collective,
    world_size: int,
    ranks_per_node: int,
    nbytes: int,
    costs: Costs,
    cores: int,
) -> tuple[Choice, dict[str, float]]:
    """The pick, and the predicted seconds of all candidates."""
    specs = {s.algorithm: s for s in candidates(layout, collective, world_size, ranks_per_node)}
    predicted = {name: costs.of(spec, nbytes, cores) for name, spec in specs.items()}
    shipped = select.shipped(
        collective,
        world_size,
        operand_bytes(collective, world_size, nbytes),
        ranks_per_node,
        1 if layout == "process" else world_size,
    )
    best = min(predicted, key=predicted.__getitem__)
    if predicted[best] * _CLEARLY > predicted[shipped]:
        best = shipped
    choice = Choice(
        layout,
        specs[best],
        ranks_per_node,
        nbytes,
        predicted[best],
        specs[shipped],
        predicted[shipped],
    )
    return choice, predicted


def choose_all(layout: table.Layout, costs: Costs, cores: int | None, tell: Tell) -> list[Choice]:
    """Picks for every collective, number of ranks and size of a layout.

    Args:
      layout: where the ranks are.
      costs: of what is between them.
      cores: that they share; None: each rank has one.
      tell: called before each number of ranks.
    """
    chosen = []
    for world_size, ranks_per_node in _PICKED[layout]:
        if ranks_per_node > 1 and not isinstance(costs, NodeCosts):
            continue
        tell(f"{layout}: picking for {world_size} ranks")
        here: Costs = costs
        if isinstance(costs, NodeCosts):
            here = replace(costs, ranks_per_node=ranks_per_node)
        for collective in COLLECTIVES:
            for nbytes in SIZES:
                choice, _ = choose(
                    *(layout, collective, world_size, ranks_per_node, nbytes, here),
                    cores or world_size,
                )
                chosen.append(choice)
    return chosen


def _is_same(one: ScheduleSpec, other: ScheduleSpec) -> bool:
    """Whether two algorithms are one for this number of ranks: many are, of two."""
    return _schedule.build(one).programs == _schedule.build(other).programs


def check(
    transport: Transport, layout: table.Layout, effort: Effort, until: float, tell: Tell
) -> list[Check]:
    """Measures picks, what the shipped rules take and the next best, at sizes that were not fitted,
    as long as the clock is not past `until`."""
    assert transport.costs is not None
    found: list[Check] = []
    for world_size in effort.worlds[layout]:
        with start(transport.name, world_size) as ranks:
            for collective in COLLECTIVES:
                for nbytes in effort.checked:
                    if time.monotonic() > until:
                        return found
                    choice, predicted = choose(
                        *(layout, collective, world_size, 1, nbytes, transport.costs),
                        table.cores(),
                    )
                    tell(f"{transport.name}, {world_size} ranks: checking {collective}, {nbytes} B")
                    specs = [choice.spec]
                    for name in [
                        choice.shipped.algorithm,
                        *sorted(predicted, key=predicted.__getitem__)[:_RIVALS],
                    ]:
                        rival = ScheduleSpec(collective, world_size, name)
                        if not any(_is_same(rival, spec) for spec in specs):
                            specs.append(rival)
                    measured_s = seconds(ranks, specs, nbytes, effort.rounds)
                    measured_s.setdefault(
                        choice.shipped.algorithm, measured_s[choice.spec.algorithm]
                    )
                    found.append(Check(choice, measured_s))
    return found


def table_of(choices: Iterable[Choice], checks: Sequence[Check]) -> tuple[table.Picks, ...]:
    """The picks as a table; the shipped rules' where a check says that they do better."""
    lost = {
        (c.choice.layout, c.choice.spec.collective, c.choice.spec.world_size, c.choice.spec)
        for c in checks
        if c.loses
    }
    groups: dict[tuple[table.Layout, str, int, int], list[Choice]] = {}
    for choice in choices:
        spec = choice.spec
        if (choice.layout, spec.collective, spec.world_size, spec) in lost:
            choice = replace(choice, spec=choice.shipped, predicted_s=choice.shipped_s)
        key = (choice.layout, spec.collective, spec.world_size, choice.ranks_per_node)
        groups.setdefault(key, []).append(choice)
    return tuple(
        table.Picks(
            *key,
            table.steps_of(
                [operand_bytes(key[1], key[2], choice.nbytes) for choice in group],
                [choice.spec.algorithm for choice in group],
            ),
        )
        for key, group in groups.items()
    )


def tcp_over(
    measured: LinkCosts, bandwidth_Bps: float | None, latency_s: float | None
) -> LinkCosts:
    """The costs of tcp over a network: this machine's part, and the network's where it is
    slower."""
    return replace(
        measured,
        byte_s=max(measured.byte_s, 1 / bandwidth_Bps) if bandwidth_Bps else measured.byte_s,
        latency_s=measured.latency_s + (latency_s or 0.0),
    )


def costs_of(transport: Transport) -> LinkCosts:
    """The costs of a transport between processes."""
    return cast(LinkCosts, transport.costs)
