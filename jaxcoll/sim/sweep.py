"""Many simulations at once: what ``jaxcoll simulate`` runs."""

from __future__ import annotations

import itertools
import math
import os
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from jaxcoll.schedule import Collective, Schedule, ScheduleSpec, dims_kind, parse_algorithm
from jaxcoll.sim.memory import available_bytes
from jaxcoll.sim.network import CutError, Topology, TopologyError
from jaxcoll.sim.simulate import KEPT_SCHEDULES, pack, run
from jaxcoll.sim.timeline import (
    Change,
    Distribution,
    Model,
    Routing,
    Stragglers,
    Timeline,
    Traffic,
)

# Simulations of one sweep: more than a day's, and few enough to list.
MOST_RUNS: Final = 1 << 20
# A result takes this, 8 bytes for each rank and 16 for each link: measured on a switch of 8 hosts.
_RESULT_BYTES: Final = 5000


def median_text(seed: int, seeds: int) -> str:
    """A sentence about the run that a row describes."""
    return f"the run of seed {seed}, the (lower) median of {seeds}"


def tail_text(seeds: int) -> str:
    """A sentence about the meaning of p99 with this many draws.

    Up to 100 it is the slowest. The slowest of n draws is above the true 99th percentile with the
    probability 1 - 0.99**n.
    """
    if seeds == 1:
        return "p99 is the only seed"
    if seeds > 100:
        return f"p99 is the 99th percentile of {seeds} seeds, by nearest rank"
    sure = 1 - 0.99**seeds
    return (
        f"p99 is the slowest of {seeds} seeds, which reaches the true 99th percentile with a "
        f"probability of {sure:.0%}"
    )


@dataclass(frozen=True)
class Setting:
    """The settings that all cases of a sweep share.

    Attributes:
      model: costs of messages and computing.
      ranks: how many; 0: one per endpoint.
      placement: see `Topology.place`.
      seeds: simulations of every case that chance has a part in.
      failed: components that are down in every case.
      fail_at_s: when the drawn failures happen; None: before the start.
      changes: what else fails, slows down or comes back, in every case.
      jitter: see `Stragglers`.
      slowdown: rank -> factor, on top of what is drawn.
      spread: scale of slowdowns, drawn per rank; see `Stragglers.draw`.
      late_s: scale of late starts, drawn per rank.
      distribution: of both.
      all_at_once: collectives of which a port sends all messages that are ready, whatever the
        model's `in_flight`.
      background: share of its port that every endpoint sends to another, drawn per seed.
      itemsize: bytes per element.
      bounds: which bounds to compute.
    """

    model: Model = Model()  # noqa: RUF009 - frozen
    ranks: int = 0
    placement: str | tuple[str, ...] | None = None
    seeds: int = 1
    failed: tuple[str, ...] = ()
    fail_at_s: float | None = None
    changes: tuple[Change, ...] = ()
    jitter: float = 0.0
    slowdown: tuple[tuple[int, float], ...] = ()
    spread: float = 0.0
    late_s: float = 0.0
    distribution: Distribution = "normal"
    all_at_once: tuple[str, ...] = ()
    background: float = 0.0
    itemsize: int = 4
    bounds: Literal["all", "quick", "none"] = "all"

    def model_of(self, collective: str) -> Model:
        """The model for one collective."""
        if collective not in self.all_at_once:
            return self.model
        return replace(self.model, in_flight=0)


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes:
      topology: the network; no other of the sweep has its name.
      where: its name, and how many ranks there are if fewer than endpoints.
      spec: the schedule.
      algorithm: its name in the table, with the dims that were asked for.
      nbytes: the size that was asked for.
      routing: how messages are routed.
      fail: cables that fail.
    """

    topology: Topology
    where: str
    spec: ScheduleSpec | Schedule
    algorithm: str
    nbytes: int
    routing: Routing
    fail: int


@dataclass(frozen=True)
class Outcome:
    """A case, and what came out for each seed.

    Attributes:
      case: the case.
      timelines: one at least.
      cut: of the other seeds, whose drawn failures cut ranks off: what was said.
    """

    case: Case
    timelines: tuple[Timeline, ...]
    cut: tuple[str, ...] = ()

    @property
    def median(self) -> Timeline:
        """The run whose time is the (lower) median."""
        return sorted(self.timelines, key=lambda t: t.time_ps)[(len(self.timelines) - 1) // 2]

    @property
    def p50_s(self) -> float:
        """The time of that run, so that all figures of a row are of one run."""
        return self.median.time_s

    @property
    def p99_s(self) -> float:
        """The 99th percentile, by nearest rank; see `tail_text`."""
        times = sorted(t.time_s for t in self.timelines)
        return times[min(len(times) - 1, -(-99 * len(times) // 100) - 1)]

    def row(self) -> dict[str, Any]:
        """For JSON."""
        median, spec = self.median, self.case.spec
        return {
            "topology": self.case.topology.name,
            "collective": spec.collective,
            "algorithm": self.case.algorithm,
            "ranks": spec.world_size,
            "channels": spec.channels if isinstance(spec, ScheduleSpec) else None,
            "bytes": median.nbytes,
            "routing": self.case.routing,
            "failed_links": self.case.fail,
            "time_s": self.p50_s,
            "time_is": median_text(median.seed, len(self.timelines)),
            "seed": median.seed,
            "time_p99_s": self.p99_s,
            "time_p99_is": tail_text(len(self.timelines)),
            "times_s": [t.time_s for t in self.timelines],
            "cut_seeds": len(self.cut),
            "algbw_GBps": median.algbw_GBps,
            "busbw_GBps": median.busbw_GBps,
            "bounds_s": {bound.name: bound.time_s for bound in median.bounds},
            "gap": median.gap if median.bound_s else None,
            "missing_bound": median.missing_bound or None,
            "bottlenecks": [
                {"link": name, "utilisation": round(load, 6)} for name, load in median.bottlenecks()
            ],
            "messages": median.message_count,
            "events": median.event_count,
        }


@dataclass
class Refusal:
    """A schedule that cannot be built for this many ranks, or that every seed cuts off."""

    case: Case
    reason: str

    def __str__(self) -> str:
        case = self.case
        return f"{case.algorithm} {case.spec.collective} on {case.topology.name}: {self.reason}"


def _dims(
    topology: Topology, collective: Collective, algorithm: str, ranks: int
) -> tuple[int, ...]:
    """The ranks' places in the network, if the algorithm wants to know it."""
    kind, inside = dims_kind(collective, algorithm), topology.node_size
    if kind == "nodes" and inside and ranks % inside == 0:
        return ranks // inside, inside
    if kind == "torus" and ranks == math.prod(topology.extents):
        return topology.extents
    return ()


@dataclass(frozen=True)
class _Group:
    """Running simulations of one schedule: by case, a future for each seed."""

    runs: list[tuple[Case, list[Future[Timeline]]]]

    @property
    def left(self) -> int:
        return sum(not future.done() for _, futures in self.runs for future in futures)


@dataclass
class Sweep:
    """Cases in the order of the table, grouped by the schedule they share."""

    setting: Setting
    groups: list[list[Case]] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    runs: int = 0  # simulations in all
    _kept_bytes: int = 0
    _named: dict[str, Topology] = field(default_factory=dict)

    def add(
        self,
        topology: Topology,
        collective: Collective,
        algorithms: Iterable[str],
        sizes: Sequence[int],
        routings: Sequence[Routing],
        fails: Sequence[int],
        *,
        channels: int = 1,
        root: int = 0,
    ) -> None:
        """Adds all combinations.

        Raises:
          TopologyError: see `add_schedule`.
        """
        ranks = self.setting.ranks or len(topology.hosts)
        self._check_ranks(topology, ranks)
        permutation: tuple[tuple[int, int], ...] = ()
        if collective == "permute":  # half way around: as far as it gets
            permutation = tuple((r, (r + ranks // 2) % ranks) for r in range(ranks))
        for algorithm in algorithms:
            name, dims = parse_algorithm(algorithm)
            spec = ScheduleSpec(
                collective,
                ranks,
                name,
                channels=channels,
                dims=dims or _dims(topology, collective, name, ranks),
                root=root,
                permutation=permutation,
            )
            self.add_schedule(topology, spec, sizes, routings, fails, name=algorithm)

    def add_schedule(
        self,
        topology: Topology,
        schedule: ScheduleSpec | Schedule,
        sizes: Sequence[int],
        routings: Sequence[Routing],
        fails: Sequence[int],
        *,
        name: str,
    ) -> None:
        """Adds all combinations for one schedule, which has this name in the table.

        Raises:
          TopologyError: another network has the same name, the ranks cannot be placed, or there
            are too many simulations.
        """
        if self._named.setdefault(topology.name, topology) is not topology:
            raise TopologyError(f"two networks have the name {topology.name!r}")
        ranks = schedule.world_size
        self._check_ranks(topology, ranks)
        runs = sum(self._seeds(routing, fail) for routing in routings for fail in fails)
        self._add_runs(topology, ranks, len(sizes) * runs)
        some = f", {ranks} ranks" if ranks != len(topology.hosts) else ""
        self.groups.append(
            [
                Case(topology, f"{topology.name}{some}", schedule, name, size, routing, fail)
                for size, routing, fail in itertools.product(sizes, routings, fails)
            ]
        )

    def _check_ranks(self, topology: Topology, ranks: int) -> None:
        """Refuses ranks that cannot be placed, before a schedule of them is built."""
        topology.place(ranks, self.setting.placement)
        for rank, _ in self.setting.slowdown:
            if not 0 <= rank < ranks:
                raise TopologyError(f"rank {rank} is slow, but there are {ranks} ranks")

    def _add_runs(self, topology: Topology, ranks: int, runs: int) -> None:
        """Refuses more simulations than are possible, before their cases are made."""
        self.runs += runs
        if self.runs > MOST_RUNS:
            raise TopologyError(f"that is {self.runs} simulations or more; at most {MOST_RUNS}")
        self._kept_bytes += runs * (_RESULT_BYTES + 8 * ranks + 16 * len(topology.links))
        available = available_bytes()
        if self._kept_bytes > available:
            raise TopologyError(
                f"the results of {self.runs} simulations take {self._kept_bytes / 1e9:.3g} GB; "
                f"{available / 1e9:.3g} GB are available"
            )

    def _seeds(self, routing: Routing, fail: int) -> int:
        setting = self.setting
        chance = (
            routing != "spray"
            or fail > 0
            or setting.jitter
            or setting.model.unfairness
            or setting.spread
            or setting.late_s
            or setting.background
        )
        return setting.seeds if chance else 1

    def outcomes(
        self, jobs: int = 0, step: Callable[[str], None] = lambda what: None
    ) -> Iterator[Outcome]:
        """Runs everything, on `jobs` cores (0: all), and yields cases in order.

        Args:
          jobs: simulations at a time.
          step: called after each of them, with what it was.

        Raises:
          TopologyError, ValueError, SimulationError: of the first simulation that failed, but
            for random failures that cut ranks off: those seeds are skipped and reported.
        """
        jobs = jobs or os.cpu_count() or 1
        with ThreadPoolExecutor(jobs) as pool:
            waiting: deque[_Group] = deque()  # in the order of the table
            try:
                for cases in self.groups:
                    try:
                        pack(cases[0].spec)
                    except ValueError as error:
                        self.refused.append(Refusal(cases[0], str(error)))
                        continue
                    waiting.append(self._start(pool, cases))
                    # Enough for all cores while the next schedule is packed, but none whose packed
                    # form is forgotten before it has run.
                    while (
                        sum(group.left for group in waiting) > 2 * jobs
                        or len(waiting) == KEPT_SCHEDULES
                    ):
                        yield from self._finish(waiting.popleft(), step)
                while waiting:
                    yield from self._finish(waiting.popleft(), step)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _start(self, pool: ThreadPoolExecutor, cases: list[Case]) -> _Group:
        return _Group([(case, self._submit(pool, case)) for case in cases])

    def _submit(self, pool: ThreadPoolExecutor, case: Case) -> list[Future[Timeline]]:
        seeds = range(self._seeds(case.routing, case.fail))
        return [pool.submit(self.run_one, case, seed) for seed in seeds]

    def _finish(self, group: _Group, step: Callable[[str], None]) -> Iterator[Outcome]:
        for case, futures in group.runs:
            timelines, cut = [], []
            for future in futures:
                try:
                    timelines.append(future.result())
                except CutError as error:
                    if not case.fail:
                        raise
                    cut.append(str(error))
                step(f"{case.algorithm} {case.spec.collective} on {case.topology.name}")
            if timelines:
                yield Outcome(case, tuple(timelines), tuple(cut))
            else:
                reason = f"{case.fail} links down cut it with every seed; first: {cut[0]}"
                self.refused.append(Refusal(case, reason))

    def run_one(self, case: Case, seed: int, record: bool = False) -> Timeline:
        """One simulation of a case."""
        setting, topology = self.setting, case.topology
        ranks = case.spec.world_size
        stragglers = Stragglers.draw(
            ranks,
            seed=seed,
            slowdown=setting.spread,
            start_s=setting.late_s,
            distribution=setting.distribution,
            jitter=setting.jitter,
        )
        if setting.slowdown:
            factors = list(stragglers.slowdown or (1.0,) * ranks)
            for rank, factor in setting.slowdown:
                factors[rank] *= factor
            stragglers = replace(stragglers, slowdown=tuple(factors))
        down = topology.draw_failures(case.fail, seed) if case.fail else []
        changes = list(setting.changes)
        if setting.fail_at_s is not None:
            changes += [Change(setting.fail_at_s, component) for component in down]
            down = []
        timeline = run(
            case.spec,
            topology,
            case.nbytes,
            model=setting.model_of(case.spec.collective),
            placement=setting.placement,
            routing=case.routing,
            seed=seed,
            failures=[*setting.failed, *down],
            changes=changes,
            stragglers=stragglers,
            background=_background(topology, setting.background, seed),
            itemsize=setting.itemsize,
            record=record,
            bounds=setting.bounds,
        )
        return replace(timeline, algorithm=case.algorithm)


def _background(topology: Topology, share: float, seed: int) -> list[Traffic]:
    """Every endpoint sends to one other and receives from one other, forever.

    It takes `share` of each link by which its shortest paths begin: of all planes of a host, say.
    """
    if share <= 0:
        return []
    hosts = topology.hosts
    order = random.Random(seed).sample(hosts, len(hosts))
    return [
        Traffic(a, b, share=share)
        for a, b in zip(order, [*order[1:], order[0]], strict=True)
        if a != b
    ]
