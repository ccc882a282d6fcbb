"""How fast the simulator is: rows with the floors set for them, and how its cost grows.

    python -m benchmarks.simulate            # about 20 minutes on two idle cores
    python -m benchmarks.simulate --quick    # about 10 seconds: smaller worlds, no growth

Every row has a process of its own, so that its peak memory is its own, and includes all that a user
waits for: the network, every rank's program packed into one dependency graph, and the run. One
channel, ECMP. `ROWS` says what the rows simulate; the simulated times are no measurements of any
network.

Growth is fitted as a power of the number of ranks, and of messages: least squares on logarithms. It
is that of CPU time, all threads together, which other programs on the machine disturb less than
wall time. A row slower than its floor is BELOW; the exit code is 1 only if a simulation fails.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks import measure
from benchmarks.compare import default_json
from jaxcoll import _files
from jaxcoll.schedule import ScheduleSpec
from jaxcoll.simulate import Model, Stragglers, pack, run
from jaxcoll.topology import Topology, fat_tree, multi_plane, rail_optimised, switch

GIB = 1 << 30
# A message: 1 us of its sender's port, 1 us on its way; a rank reduces 200 GB/s.
MODEL: Final = Model(overhead_s=1e-6, latency_s=1e-6, reduce_s_per_byte=1 / 200e9)
PERMUTED_BYTES: Final = 2_000_000
PER_NODE: Final = 8


@dataclass(frozen=True)
class Work:
    """The subject of one measurement.

    kind: of `KINDS`.
    ranks: how many.
    channels: copies of the schedule that run side by side.
    jitter: standard deviation of every overhead and reduction, and of every rank's own speed.
    placement: as `Topology.place` takes it.
    """

    kind: str
    ranks: int
    channels: int = 1
    jitter: float = 0.0
    placement: str = "linear"


@dataclass(frozen=True)
class Row:
    """One line of the table: `floor_s` of wall time, `floor_bytes` of peak memory."""

    name: str
    floor_s: float
    work: Work
    floor_bytes: int | None = None


ROWS: Final = (
    Row("permutation, 1024 flows, 3-tier fat-tree", 0.1, Work("permutation", 1024)),
    Row("ring all_reduce, 1024 ranks", 5, Work("ring", 1024)),
    Row("hierarchical all_reduce, 2048 nodes of 8 ranks", 30, Work("hierarchical", 16384), 4 * GIB),
    Row("the same ring, 1 % compute jitter", 60, Work("ring", 1024, jitter=0.01)),
    Row("hierarchical all_reduce, 8192 nodes of 8 ranks", 40, Work("hierarchical", 65536), 2 * GIB),
    Row("the same, 131072 ranks, 8 planes", 90, Work("planes", 131072), 4 * GIB),
    Row("the same, 131072 ranks on one switch", 90, Work("one switch", 131072), 4 * GIB),
    Row("all_to_all, direct, 512 ranks on rails", 3, Work("all_to_all", 512)),
    Row("all_to_all, by nodes, 4096 ranks on rails", 20, Work("all_to_all by nodes", 4096)),
    Row("8 planes of 65536 hosts, built; one message", 3, Work("one message", 65536)),
)


@dataclass(frozen=True)
class Series:
    """Sizes over which cost grows; the largest are the costly ones."""

    name: str
    works: tuple[Work, ...]


SERIES: Final = (
    Series("ring, ranks in order", tuple(Work("ring", p) for p in (64, 128, 256, 512, 1024))),
    Series(
        "ring, ranks placed at random",
        tuple(Work("ring", p, placement="random:1") for p in (64, 128, 256, 512, 1024)),
    ),
    Series(
        "ring, 256 ranks, 1 to 16 channels",
        tuple(Work("ring", 256, channels=c) for c in (1, 2, 4, 8, 16)),
    ),
    Series(
        "hierarchical, 8 per node",
        tuple(Work("hierarchical", p) for p in (1024, 2048, 4096, 8192, 16384)),
    ),
)


def three_tiers(hosts: int) -> Topology:
    """The smallest full fat-tree of 16-port switches, or of 32 ports above 1024 hosts."""
    return fat_tree(hosts, radix=16 if hosts <= 1024 else 32, bandwidth_Bps=12.5e9)


def rails(ranks: int) -> Topology:
    """Nodes of 8 GPUs; each rail has a leaf per 32 nodes, and 32 spines join all leaves."""
    return rail_optimised(ranks // PER_NODE, gpus_per_node=PER_NODE, nodes_per_leaf=32)


def permutation(ranks: int, seed: int) -> ScheduleSpec:
    """Everybody sends to somebody, and nobody to himself: a random circle."""
    order = random.Random(seed).sample(range(ranks), ranks)
    pairs = zip(order, [*order[1:], order[0]], strict=True)
    return ScheduleSpec("permute", ranks, permutation=tuple(sorted(pairs)))


def ring(ranks: int, channels: int) -> ScheduleSpec:
    """One ring through all ranks."""
    return ScheduleSpec("all_reduce", ranks, "ring", channels=channels)


def hierarchical(ranks: int, channels: int) -> ScheduleSpec:
    """Rings inside nodes, halving-doubling between them."""
    dims = (ranks // PER_NODE, PER_NODE)
    return ScheduleSpec("all_reduce", ranks, "hierarchical_halving", channels=channels, dims=dims)


def planes(ranks: int) -> Topology:
    """Eight planes of two tiers, of the smallest radix that is a power of two and reaches all."""
    radix = 16
    while radix * radix // 2 < ranks:
        radix *= 2
    return multi_plane(ranks, planes=8, radix=radix)


def all_to_all(ranks: int, algorithm: str) -> ScheduleSpec:
    """Everybody to everybody, straight or by way of the nodes' other GPUs."""
    dims = (ranks // PER_NODE, PER_NODE) if algorithm == "hierarchical" else ()
    return ScheduleSpec("all_to_all", ranks, algorithm, dims=dims)


# kind -> network, spec and bytes
KINDS: Final[dict[str, tuple[Callable[[int], Topology], Callable[[Work], ScheduleSpec], int]]] = {
    "permutation": (three_tiers, lambda w: permutation(w.ranks, 0), PERMUTED_BYTES),
    "ring": (three_tiers, lambda w: ring(w.ranks, w.channels), GIB),
    "hierarchical": (rails, lambda w: hierarchical(w.ranks, w.channels), GIB),
    "planes": (planes, lambda w: hierarchical(w.ranks, w.channels), GIB),
    "one switch": (switch, lambda w: hierarchical(w.ranks, w.channels), GIB),
    "all_to_all": (rails, lambda w: all_to_all(w.ranks, "direct"), GIB),
    "all_to_all by nodes": (rails, lambda w: all_to_all(w.ranks, "hierarchical"), GIB),
    "one message": (planes, lambda w: ScheduleSpec("permute", 2, permutation=((0, 1),)), GIB),
}


def simulate(work: Work) -> dict[str, Any]:
    """Simulates once, in this process, which has not simulated it before."""
    make, spec_of, nbytes = KINDS[work.kind]
    slow = Stragglers()
    if work.jitter:
        slow = Stragglers.draw(work.ranks, slowdown=work.jitter, jitter=work.jitter)
    gc.collect()  # what imports left behind is not the simulator's to clear away
    gc.disable()
    marks = [(time.perf_counter(), time.process_time())]

    def mark() -> None:
        marks.append((time.perf_counter(), time.process_time()))

    network = make(work.ranks)
    network.native  # noqa: B018 - made when first asked for
    mark()
    spec = spec_of(work)
    graph = pack(spec)
    mark()
    timeline = run(
        spec,
        network,
        nbytes,
        model=MODEL,
        placement=work.placement,
        stragglers=slow,
        bounds="none",
    )
    mark()
    gc.enable()
    wall_s, cpu_s = (np.diff([m[i] for m in marks]).tolist() for i in (0, 1))
    return {
        "ranks": work.ranks,
        "messages": timeline.message_count,
        "events": timeline.event_count,
        "ops": graph.ops,
        "graph_bytes": graph.nbytes,
        "wall_s": sum(wall_s),
        "cpu_s": sum(cpu_s),
        "phases_wall_s": dict(zip(("network", "pack", "run"), wall_s, strict=True)),
        "phases_cpu_s": dict(zip(("network", "pack", "run"), cpu_s, strict=True)),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "simulated_time_ps": int(timeline.time_ps),
    }


def simulate_apart(works: Sequence[Work]) -> list[dict[str, Any]]:
    """Simulates each once, one after the other in one new process."""
    asked = json.dumps([vars(work) for work in works])
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.simulate", "--works", asked],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=1200,
    )
    results: list[dict[str, Any]] = json.loads(child.stdout)
    return results


def measure_apart(work: Work, repeats: int) -> dict[str, Any]:
    """Medians of `repeats` processes; counts and simulated times must be equal in all."""
    runs = [simulate_apart([work])[0] for _ in range(repeats)]
    result: dict[str, Any] = runs[0]
    for key in ("messages", "events", "simulated_time_ps"):
        assert all(other[key] == result[key] for other in runs), f"{key} of {work} differs"
    for key in ("wall_s", "cpu_s"):
        result[key] = statistics.median(other[key] for other in runs)
        result[f"runs_{key}"] = [other[key] for other in runs]
    result["peak_bytes"] = max(other["peak_bytes"] for other in runs)
    return result


def growth(x: Sequence[float], y: Sequence[float]) -> float:
    """The exponent of a power law through the points."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def verdict(row: Row, result: dict[str, Any]) -> str:
    """The text of the last column."""
    slow = result["wall_s"] > row.floor_s
    large = row.floor_bytes is not None and result["peak_bytes"] > row.floor_bytes
    return "BELOW" if slow or large else "PASS"


def smaller(work: Work) -> Work:
    """For `--quick`; the permutation stays as it is."""
    ranks = work.ranks if work.kind == "permutation" else work.ranks // 8
    return Work(work.kind, ranks, work.channels, work.jitter, work.placement)


def draw(path: Path, series: list[dict[str, Any]]) -> None:
    """Cost against ranks and messages, on logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout="constrained")
    for axis, x in zip(axes, ("ranks", "messages"), strict=True):
        for number, one in enumerate(series):
            values = [point[x] for point in one["points"]]
            if len(set(values)) == 1:
                continue
            label = f"{one['name']}: exponent {one[f'exponent_{x}']:.2f}"
            cpu_s = [point["cpu_s"] for point in one["points"]]
            axis.loglog(values, cpu_s, "o-", color=f"C{number}", label=label)
        axis.set_xlabel(x)
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    axes[0].set_ylabel("CPU time of a simulation, s")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> int:
    """Prints the table, writes JSON and figure; returns the exit code."""
    command = measure.command_of_rows(
        "simulate", __doc__, quick="an eighth of the ranks, no growth"
    )
    command.add_argument(
        "--figure",
        type=_files.output(make_folders=True),
        help="default: beside the JSON, as .png",
    )
    command.add_argument("--works", type=json.loads, help=argparse.SUPPRESS)  # simulate_apart's
    options = command.parse_args(argv)
    if options.repeats < 1:
        command.error("--repeats: at least 1")
    if options.works is not None:
        print(json.dumps([simulate(Work(**work)) for work in options.works]))
        return 0

    about = measure.provenance({})
    path = options.json or default_json(about, "simulate")
    figure = options.figure or path.with_suffix(".png")
    for result_file in (path, figure):
        _files.check_can_write(result_file, make_folders=True)
    measure.print_heading(about)
    heads = f"{'wall s':>8} {'CPU s':>8} {'floor s':>8} {'':6} {'peak MB':>8} {'events':>9}"
    print(f"{'work':48} {heads} {'messages':>9}")
    rows = []
    for row in ROWS:
        work = smaller(row.work) if options.quick else row.work
        result = measure_apart(work, 1 if options.quick else options.repeats)
        as_set = work == row.work
        name = row.name if as_set else f"{row.work.kind}, {work.ranks} ranks, jitter {work.jitter}"
        result |= {"work": name, "floor_s": row.floor_s if as_set else None}
        result["verdict"] = verdict(row, result) if as_set else "-"
        rows.append(result)
        print(
            f"{name:48} {result['wall_s']:8.3f} {result['cpu_s']:8.3f} "
            f"{f'{row.floor_s:g}' if as_set else '-':>8} {result['verdict']:6} "
            f"{result['peak_bytes'] / 1e6:8.0f} {result['events']:9d} {result['messages']:9d}",
            flush=True,
        )
    series = [] if options.quick else measure_series()
    about |= {"model": vars(MODEL), "rows": rows, "series": series}
    about["machine"]["load_1min_after"] = measure.provenance({})["machine"]["load_1min"]
    _files.write(path, json.dumps(about, indent=1) + "\n", make_folders=True)
    print(f"# {path}")
    if series:
        draw(figure, series)
        print(f"# {figure}")
    return 0


def measure_series() -> list[dict[str, Any]]:
    """Every series, with its exponents, as they go into the JSON."""
    found = []
    for series in SERIES:
        points = simulate_apart(series.works)
        cpu_s = [point["cpu_s"] for point in points]
        one: dict[str, Any] = {"name": series.name, "points": points}
        told = []
        for x in ("ranks", "messages"):
            values = [point[x] for point in points]
            one[f"exponent_{x}"] = growth(values, cpu_s) if len(set(values)) > 1 else None
            if one[f"exponent_{x}"] is not None:
                told.append(f"{x}^{one[f'exponent_{x}']:.2f}")
        last = points[-1]
        one["cpu_us_per_message"] = 1e6 * cpu_s[-1] / last["messages"]
        print(
            f"# {series.name}: CPU time grows as {' or '.join(told)}; at {last['ranks']} ranks "
            f"{last['messages']} messages cost {cpu_s[-1]:.2f} s, "
            f"{one['cpu_us_per_message']:.2f} us each",
            flush=True,
        )
        found.append(one)
    return found


if __name__ == "__main__":
    sys.exit(main())
