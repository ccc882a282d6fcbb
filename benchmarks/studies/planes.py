"""One plane of three tiers against eight planes of two, for 4096 GPUs.

    python -m benchmarks.studies.planes            # at most 15 minutes on two idle cores
    python -m benchmarks.studies.planes --quick    # 256 GPUs, seconds

Both networks give a GPU 800 Gb/s and are built from switches of 51.2 Tb/s: 64 ports of 800 Gb/s,
or 512 of 100 Gb/s. Simulated are all_reduce and all_to_all, on one path per message (ecmp), eight
(split) and all paths (spray), with up to 1 % of the cables between switches failed. Everything it
prints and writes is simulated, nothing measured; `planes.md` beside this file says what came out.

all_reduce is complete: rings inside hosts, halving-doubling on each rail. all_to_all over P GPUs
is P - 1 rounds; in round k GPU r sends to GPU r + k, and the next round begins when all have ended.
A round is a permutation of P messages, and the exchange the sum of its rounds: so a random sample
of rounds gives an unbiased estimate of the whole, from thousands of flows where there are 16.7
million. The full run checks that with 256 GPUs: there it also simulates all rounds, and the
exchange without rounds, in which nobody waits and collisions average out.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from benchmarks import measure
from jaxcoll import _files
from jaxcoll.schedule import ScheduleSpec
from jaxcoll.simulate import Model, Routing, Timeline, run
from jaxcoll.topology import Topology, fat_tree, multi_plane

GPUS_PER_HOST: Final = 8
PLANES: Final = 8
PORT_BPS: Final = 100e9  # 800 Gb/s for each GPU, in one port or in eight
NVLINK_BPS: Final = 450e9
LINK_LATENCY_S: Final = 0.5e-6  # with the switch behind it
MESSAGE_LATENCY_S: Final = 1e-6
REDUCE_S_PER_BYTE: Final = 1e-12  # 1 TB/s
ALL_REDUCE_BYTES: Final = 1 << 30
ROUND_BYTES: Final = 4 << 20  # a message of all_to_all: 1/4096 of 16 GiB per GPU
SPLIT: Final = 8
ROUTINGS: Final[tuple[Routing, ...]] = ("ecmp", "split", "spray")
# Flows end at multiples of this share of the time that a message takes alone on its path: results
# come out up to that much too long.
QUANTUM: Final = 0.01


@dataclass(frozen=True)
class Size:
    """How large the two networks are: GPUs, switch ports, and switches of the top tier."""

    gpus: int
    radix: int  # of the single plane; its ToRs have half of them down
    cores: int
    plane_radix: int
    spines: int  # of each plane
    seeds: int
    rounds: int  # sampled for each seed
    failed: tuple[float, ...]  # shares of the cables between switches


FULL: Final = Size(4096, 64, 64, 512, 8, seeds=3, rounds=4, failed=(0, 0.005, 0.01))
QUICK: Final = Size(256, 16, 16, 64, 4, seeds=1, rounds=2, failed=(0, 0.01))
VALIDATED_ROUNDS: Final = 8
NETWORKS: Final = ("one plane", "eight planes")


@dataclass(frozen=True)
class Task:
    """One simulation: of all_reduce, of some rounds of all_to_all, or, without `shifts`, of
    all_to_all in which nobody waits for a round."""

    size: Size
    network: str
    collective: str
    routing: Routing
    failed: float
    seed: int
    shifts: tuple[int, ...] = ()


@cache
def build(size: Size, name: str) -> tuple[Topology, list[str]]:
    """The network and the endpoints in rank order, host after host.

    The GPUs of a host are on different rails: a switch of the lowest tier has one GPU of each of
    its hosts, so that within a host NVLink is the shortest way.
    """
    hosts = size.gpus // GPUS_PER_HOST
    if name == "one plane":
        network = fat_tree(
            size.gpus,
            radix=size.radix,
            cores=size.cores,
            bandwidth_Bps=PORT_BPS,
            latency_s=LINK_LATENCY_S,
        )
        together = (size.radix // 2) ** 2 // GPUS_PER_HOST  # hosts of a pod
    else:
        network = multi_plane(
            size.gpus,
            planes=PLANES,
            radix=size.plane_radix,
            spines=size.spines,
            bandwidth_Bps=PORT_BPS / PLANES,
            latency_s=LINK_LATENCY_S,
        )
        together = hosts
    gpus = []
    for host in range(hosts):
        inside = network.add_switch(f"nvs{host}", "nvswitch")
        pod, place = divmod(host, together)
        for g in range(GPUS_PER_HOST):
            gpus.append(f"h{(pod * GPUS_PER_HOST + g) * together + place}")
            network.connect(gpus[-1], inside, NVLINK_BPS, LINK_LATENCY_S, medium="nvlink")
    return network, gpus


def components(size: Size, name: str) -> dict[str, int]:
    """The components of the network, without what is inside of hosts."""
    parts = build(size, name)[0].components()
    # A module of 800 Gb/s ends one cable of 800 Gb/s or eight of 100 Gb/s.
    lanes = 1 if name == "one plane" else PLANES
    return {
        "GPUs": parts["hosts"],
        "switches": parts["switches"] - parts["switches.nvswitch"],
        **{
            part: count
            for part, count in parts.items()
            if part.startswith("switches.") and part != "switches.nvswitch"
        },
        "cables": parts["links.optical"],
        "optical modules": parts["optics"] // lanes,
    }


@cache
def cables_between_switches(size: Size, name: str) -> int:
    """Those that may fail: not to GPUs."""
    network, _ = build(size, name)
    switches = set(network.switches)
    ends = [(link.source, link.destination) for link in network.links]
    return sum(a in switches and b in switches for a, b in ends) // 2


def simulate(task: Task) -> dict[str, Any]:
    """The task's time and bus bandwidth."""
    network, gpus = build(task.size, task.network)
    count = round(task.failed * cables_between_switches(task.size, task.network))
    failures = network.draw_failures(count, task.seed)

    path_Bps = PORT_BPS
    if task.network == "eight planes" and task.routing == "ecmp":
        path_Bps /= PLANES

    def once(spec: ScheduleSpec, nbytes: int, message_bytes: float) -> Timeline:
        return run(
            spec,
            network,
            nbytes,
            model=Model(
                latency_s=MESSAGE_LATENCY_S,
                reduce_s_per_byte=REDUCE_S_PER_BYTE,
                split=SPLIT,
                quantum_s=QUANTUM * message_bytes / path_Bps,
            ),
            placement=gpus,
            routing=task.routing,
            seed=task.seed,
            failures=failures,
            bounds="none",
        )

    p = task.size.gpus
    if task.collective == "all_reduce":
        spec = ScheduleSpec(
            "all_reduce", p, "hierarchical_halving", dims=(p // GPUS_PER_HOST, GPUS_PER_HOST)
        )
        # The largest few of the rails' messages count: half of a GPU's share, a quarter, ...
        timeline = once(spec, ALL_REDUCE_BYTES, ALL_REDUCE_BYTES / GPUS_PER_HOST / 8)
        times_s, factor = [timeline.time_s], 2 * (p - 1) / p
        nbytes = float(timeline.nbytes)
    elif not task.shifts:
        timeline = once(ScheduleSpec("all_to_all", p, "direct"), p * ROUND_BYTES, ROUND_BYTES)
        times_s, factor, nbytes = [timeline.time_s], (p - 1) / p, float(timeline.nbytes)
    else:
        times_s = [once(shift(p, k), ROUND_BYTES, ROUND_BYTES).time_s for k in task.shifts]
        factor, nbytes = 1.0, float(ROUND_BYTES)
    return {
        **{key: getattr(task, key) for key in ("network", "collective", "routing", "failed")},
        "seed": task.seed,
        "failed_cables": count,
        "times_s": times_s,
        "busbw_GBps": nbytes * factor * len(times_s) / sum(times_s) / 1e9,
    }


def shift(p: int, k: int) -> ScheduleSpec:
    """Round k of all_to_all."""
    return ScheduleSpec("permute", p, permutation=tuple((r, (r + k) % p) for r in range(p)))


def tasks(size: Size) -> Iterator[Task]:
    """All simulations; the seed draws routes, failures and rounds."""
    for seed in range(size.seeds):
        shifts = tuple(random.Random(seed).sample(range(1, size.gpus), size.rounds))
        for failed in size.failed:
            for routing in ROUTINGS:
                for name in NETWORKS:
                    yield Task(size, name, "all_reduce", routing, failed, seed)
                    yield Task(size, name, "all_to_all", routing, failed, seed, shifts)


def run_all(todo: list[Task]) -> list[dict[str, Any]]:
    """Every task, on all cores, in order, with progress on standard error."""
    # Not forked: JAX has threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(measure.cores(), mp_context=context) as pool:
        futures = [pool.submit(simulate, task) for task in todo]
        start, told = time.monotonic(), 0
        for count, _ in enumerate(as_completed(futures), 1):
            if count * 20 // len(todo) > told or count == len(todo):
                told = count * 20 // len(todo)
                seconds = time.monotonic() - start
                print(f"{count} of {len(todo)} simulated, {seconds:.0f} s", file=sys.stderr)
        return [future.result() for future in futures]


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean, lowest and highest bus bandwidth over seeds."""
    groups = defaultdict(list)
    for row in rows:
        key = tuple(row[name] for name in ("collective", "routing", "failed", "network"))
        groups[key].append(row["busbw_GBps"])
    return [
        {
            "collective": collective,
            "routing": routing,
            "failed": failed,
            "network": network,
            "busbw_GBps": statistics.fmean(values),
            "lowest_GBps": min(values),
            "highest_GBps": max(values),
            "seeds": len(values),
        }
        for (collective, routing, failed, network), values in sorted(groups.items())
    ]


def validate(size: Size) -> list[dict[str, Any]]:
    """How well sampled rounds stand for all of them, and these for an exchange without rounds."""
    p = size.gpus
    sampled = tuple(random.Random(0).sample(range(1, p), VALIDATED_ROUNDS))
    routings: tuple[Routing, ...] = ("ecmp", "spray")
    cases = [(name, routing) for name in NETWORKS for routing in routings]
    todo = [
        Task(size, name, "all_to_all", routing, 0, 0, shifts)
        for name, routing in cases
        for shifts in (sampled, tuple(range(1, p)), ())
    ]
    rows = iter(run_all(todo))
    found = []
    for name, routing in cases:
        part, whole, free = next(rows), next(rows), next(rows)
        error_s = statistics.stdev(part["times_s"]) / math.sqrt(VALIDATED_ROUNDS)
        found.append(
            {
                "network": name,
                "routing": routing,
                "gpus": p,
                "rounds": VALIDATED_ROUNDS,
                "estimated_s": statistics.fmean(part["times_s"]) * (p - 1),
                "standard_error_s": error_s * (p - 1),
                "all_rounds_s": sum(whole["times_s"]),
                "without_rounds_s": free["times_s"][0],
            }
        )
    return found


def draw(path: Path, size: Size, summary: list[dict[str, Any]]) -> None:
    """Bus bandwidth against failed cables, a panel for each collective."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    styles = dict(zip(ROUTINGS, (":", "--", "-"), strict=True))
    colours = dict(zip(NETWORKS, ("tab:orange", "tab:blue"), strict=True))
    for axis, collective in zip(axes, ("all_reduce", "all_to_all"), strict=True):
        for name in NETWORKS:
            for routing in ROUTINGS:
                points = [
                    row
                    for row in summary
                    if (row["collective"], row["network"], row["routing"])
                    == (collective, name, routing)
                ]
                middle = [row["busbw_GBps"] for row in points]
                spread = [
                    [m - row["lowest_GBps"] for m, row in zip(middle, points, strict=True)],
                    [row["highest_GBps"] - m for m, row in zip(middle, points, strict=True)],
                ]
                axis.errorbar(
                    [100 * row["failed"] for row in points],
                    middle,
                    spread,
                    label=f"{name}, {routing}",
                    linestyle=styles[routing],
                    color=colours[name],
                    marker="o",
                    capsize=3,
                )
        axis.set_title(f"{collective}, {size.gpus} GPUs (simulated)")
        axis.set_xlabel("failed cables between switches, %")
        axis.set_ylabel("bus bandwidth, GB/s")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> int:
    """Simulates, prints the table, writes JSON and figure; returns the exit code."""
    command = argparse.ArgumentParser(
        prog="python -m benchmarks.studies.planes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--quick", action="store_true", help="256 GPUs, seconds")
    results = Path(__file__).parent.parent / "results"
    command.add_argument(
        "--json",
        type=_files.output(make_folders=True),
        help="default: benchmarks/results/planes.json, or planes-quick.json",
    )
    command.add_argument(
        "--figure",
        type=_files.output(make_folders=True),
        help="default: beside the JSON, as .png",
    )
    options = command.parse_args(argv)
    size = QUICK if options.quick else FULL
    path = options.json or results / ("planes-quick.json" if options.quick else "planes.json")
    figure = options.figure or path.with_suffix(".png")
    for result_file in (path, figure):
        _files.check_can_write(result_file, make_folders=True)

    counts = {name: components(size, name) for name in NETWORKS}
    for name, parts in counts.items():
        print(f"# {name}: " + ", ".join(f"{count} {part}" for part, count in parts.items()))
    rows = run_all(list(tasks(size)))
    summary = summarise(rows)
    print(f"{'collective':11} {'routing':8} {'failed':>7} {'one plane':>21} {'eight planes':>21}")
    print(f"{'':28} {'simulated busbw, GB/s, mean (lowest to highest over seeds)':>43}")
    for one, eight in pairs(summary):
        cells = [
            f"{r['busbw_GBps']:7.1f} ({r['lowest_GBps']:.1f} to {r['highest_GBps']:.1f})"
            for r in (one, eight)
        ]
        print(
            f"{one['collective']:11} {one['routing']:8} {one['failed']:7.1%} "
            f"{cells[0]:>21} {cells[1]:>21}"
        )
    about = measure.provenance({}) | {
        "simulated": True,
        "size": vars(size),
        "components": counts,
        "parameters": {
            "gpus_per_host": GPUS_PER_HOST,
            "port_Bps": PORT_BPS,
            "nvlink_Bps": NVLINK_BPS,
            "link_latency_s": LINK_LATENCY_S,
            "message_latency_s": MESSAGE_LATENCY_S,
            "reduce_s_per_byte": REDUCE_S_PER_BYTE,
            "all_reduce_bytes": ALL_REDUCE_BYTES,
            "round_bytes": ROUND_BYTES,
            "split": SPLIT,
            "quantum": QUANTUM,
        },
        "summary": summary,
        "rows": rows,
    }
    if not options.quick:
        about["validation"] = validate(QUICK)
        for row in about["validation"]:
            print(
                f"# {row['network']}, {row['routing']}: all_to_all of {row['gpus']} GPUs estimated "
                f"from {row['rounds']} rounds {row['estimated_s'] * 1e3:.2f} ms "
                f"(+- {row['standard_error_s'] * 1e3:.2f}), all rounds "
                f"{row['all_rounds_s'] * 1e3:.2f}, without rounds "
                f"{row['without_rounds_s'] * 1e3:.2f}"
            )
    _files.write(path, json.dumps(about, indent=1) + "\n", make_folders=True)
    draw(figure, size, summary)
    print(f"# {path}\n# {figure}")
    return 0


def pairs(summary: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The two networks' entries of every case."""
    by_name = {name: [r for r in summary if r["network"] == name] for name in NETWORKS}
    yield from zip(by_name["one plane"], by_name["eight planes"], strict=True)


if __name__ == "__main__":
    sys.exit(main())
