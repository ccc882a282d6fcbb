"""``jaxcoll simulate``: collectives on networks that need not exist. All times are simulated."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, get_args

import jaxcoll
from jaxcoll import _files
from jaxcoll._errors import FileError
from jaxcoll.schedule import COLLECTIVES, Collective, algorithms, parse_algorithm
from jaxcoll.sim.arguments import (
    Algorithm,
    Choice,
    Collect,
    ListOf,
    Number,
    Pairs,
    Placement,
    ScheduleFile,
    Sizes,
    Text,
    TimedChange,
    seconds,
    whole,
)
from jaxcoll.sim.crossovers import label, rankings
from jaxcoll.sim.help_text import algorithms_text, kinds_text
from jaxcoll.sim.links import MOST_LINKS
from jaxcoll.sim.network import MOST_NODES
from jaxcoll.sim.options import nearest, shown
from jaxcoll.sim.perfetto import trace
from jaxcoll.sim.simulate import RANGES
from jaxcoll.sim.sweep import MOST_RUNS, Outcome, Setting, Sweep, tail_text
from jaxcoll.sim.timeline import ROUTINGS, Distribution, Model, SimulationError
from jaxcoll.sim.topology import Topology, TopologyError, apart, parse_all, parse_rate

# More than any machine has cores, and fewer threads than a process may have.
_MOST_JOBS = 1 << 12
_MOST_CHANNELS = 1 << 10  # of any schedule

_EXAMPLES = """\
topologies:
  KIND:SIZE,OPTION=VALUE,... or a YAML file, e.g.
    fat_tree:1024,radix=16,oversubscription=2     leaf_spine:512,hosts_per_leaf=32
    torus:16x16,bandwidth=400Gb/s                 rail_optimised:32,gpus_per_node=8
    dragonfly:9,routers_per_group=4               multi_plane:2048,planes=8,radix=64
  kinds, with their options and defaults:
{kinds}

algorithms:
{algorithms}

examples:
  jaxcoll simulate --topology fat_tree:64,radix=8 --bytes 64K:64M --overhead 1us
  jaxcoll simulate --topology fat_tree:128,radix=8 --topology torus:8x16 --bytes 1M:1G \\
      --algorithm ring,double_tree --routing ecmp,spray --fail 0,4 --seeds 20 --html report.html
  jaxcoll simulate --topology torus:16x16,bandwidth=400Gb/s,latency=100ns --overhead 600ns \\
      --latency 400ns --algorithm bucket,swing --bytes 1M:256M:2     # where bucket overtakes Swing
  jaxcoll simulate --topology fat_tree:16,radix=4 --schedule synthesized.xml --bytes 1M
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(
        prog="jaxcoll simulate",
        description="Simulates the schedules that jaxcoll runs, on modelled networks.\n"
        "Every time is simulated. Next to it is a lower bound, which no schedule can beat.",
        epilog=_EXAMPLES.format(kinds=kinds_text(), algorithms=algorithms_text()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = command.add_argument_group("collectives and sizes")
    what.add_argument(
        "--topology",
        action=Collect,
        required=True,
        type=Text(),
        metavar="NETWORK",
        help="see topologies below; repeatable. Networks of one name are shown by these texts",
    )
    what.add_argument(
        "--collective",
        type=ListOf(Choice("collective", get_args(Collective))),
        metavar="NAMES",
        help=f"comma separated, from {', '.join(COLLECTIVES)} (default all_reduce)",
    )
    what.add_argument(
        "--bytes",
        type=Sizes(),
        default=Sizes()("1M:1G"),
        metavar="FROM:TO[:FACTOR]",
        help="a range of sizes, counted as in nccl-tests, or a list (default 1M:1G:4)",
    )
    what.add_argument(
        "--algorithm",
        type=ListOf(Algorithm()),
        metavar="NAMES",
        help="comma separated, with dims as in 'swing[4x4]'; or all (default)",
    )
    what.add_argument(
        "--schedule",
        action=Collect,
        default=[],
        type=ScheduleFile(),
        metavar="FILE",
        help="an MSCCL XML algorithm, run on its own number of ranks; repeatable. Built-in ones "
        "are simulated as well if --algorithm or --collective is given",
    )
    what.add_argument(
        "--ranks",
        type=whole(0, MOST_NODES),
        default=0,
        help="number of ranks (default, 0: one per endpoint)",
    )
    what.add_argument(
        "--channels",
        type=whole(1, _MOST_CHANNELS),
        default=1,
        help="independent copies of the pattern (default 1)",
    )
    what.add_argument(
        "--root",
        type=whole(0, MOST_NODES),
        default=0,
        help="root of broadcast and reduce (default 0)",
    )
    what.add_argument(
        "--placement",
        type=Placement(),
        default="linear",
        help="linear (default), random:SEED, strided:K, or each rank's endpoint, e.g. h3,h0,h1,h2",
    )

    network = command.add_argument_group("network")
    network.add_argument(
        "--routing",
        type=ListOf(Choice("routing", ROUTINGS)),
        default=["ecmp"],
        metavar="NAMES",
        help="ecmp (one hashed path), split (--split hashed paths), spray (all); default ecmp",
    )
    network.add_argument(
        "--split",
        type=whole(*RANGES["split"]),
        default=4,
        help="paths per message (default 4)",
    )
    network.add_argument(
        "--fail",
        type=ListOf(whole(0, MOST_LINKS)),
        default=[0],
        metavar="COUNTS",
        help="numbers of failed cables, e.g. 0,8; each seed draws other cables",
    )
    network.add_argument(
        "--down",
        action=Collect,
        default=[],
        type=Text(),
        metavar="NAME",
        help="a failed node, or link a--b",
    )
    network.add_argument(
        "--fail-at", type=seconds(), metavar="TIME", help="when --fail happens, e.g. 50us"
    )
    network.add_argument(
        "--change",
        action=Collect,
        default=[],
        type=TimedChange(),
        metavar="TIME:NAME[=FACTOR]",
        help="a node or link that fails at TIME, or then keeps FACTOR of its capacity; repeatable",
    )
    network.add_argument(
        "--background",
        type=Number(0, 1),
        default=0.0,
        metavar="SHARE",
        help="share of each port that other traffic takes, 0 to 1",
    )
    network.add_argument(
        "--prices",
        type=Pairs(Text(), Number(0), "NAME=NUMBER"),
        metavar="NAME=PRICE,...",
        help="e.g. switches=30000,optics=500",
    )

    cost = command.add_argument_group("costs")
    cost.add_argument(
        "--overhead",
        type=seconds(),
        default=0.0,
        metavar="TIME",
        help="overhead per message, which occupies the port",
    )
    cost.add_argument(
        "--latency",
        type=seconds(),
        default=0.0,
        metavar="TIME",
        help="latency per message",
    )
    cost.add_argument(
        "--reduce-rate",
        type=Number(0, parse=parse_rate, above=True),
        metavar="RATE",
        help="rate at which a rank reduces, e.g. 100GB/s (default: reducing takes no time)",
    )
    cost.add_argument(
        "--efficiency",
        type=Number(*RANGES["efficiency"]),
        default=1.0,
        help="share of link bandwidth that carries payload",
    )
    cost.add_argument(
        "--in-flight",
        type=whole(*RANGES["in_flight"]),
        help="messages of a channel that a port sends at a time; 0: all that are ready (default: 0 "
        "for all_to_all, whose messages wait for nothing, else 1)",
    )
    cost.add_argument(
        "--jitter", type=Number(0), default=0.0, help="relative deviation of every computation"
    )
    cost.add_argument(
        "--unfairness",
        type=Number(*RANGES["unfairness"]),
        default=0.0,
        help="how unequally messages share a link, see Model; 0: max-min fair",
    )
    cost.add_argument(
        "--slow",
        type=Pairs(whole(0, MOST_NODES), Number(0, above=True), "RANK=FACTOR"),
        default={},
        metavar="RANK=FACTOR,...",
        help="ranks that compute slower, by these factors",
    )
    cost.add_argument(
        "--spread",
        type=Number(0),
        default=0.0,
        metavar="X",
        help="slows each rank by the factor 1 + X times a random draw",
    )
    cost.add_argument(
        "--late",
        type=seconds(),
        default=0.0,
        metavar="TIME",
        help="delays each rank's start by TIME times a random draw",
    )
    cost.add_argument(
        "--distribution",
        type=Choice("distribution", get_args(Distribution)),
        metavar="NAME",
        default="normal",
        help="of these two draws: |normal| (default), exponential of mean 1, uniform in [0, 1)",
    )
    cost.add_argument(
        "--quantum",
        type=seconds(),
        default=0.0,
        metavar="TIME",
        help="let flows end only at multiples of TIME: coarser and faster",
    )

    run = command.add_argument_group("run and report")
    run.add_argument(
        "--seeds",
        type=whole(1, MOST_RUNS),
        default=1,
        help="number of runs of each case that has a random part; its row shows the (lower) median "
        "run",
    )
    run.add_argument(
        "--bounds",
        type=Choice("kind of bounds", ("all", "quick", "none")),
        metavar="KIND",
        default="all",
        help="lower bounds to compute: all (default), quick or none",
    )
    run.add_argument(
        "--jobs",
        type=whole(0, _MOST_JOBS),
        default=0,
        help="simulations at a time (default, 0: all cores)",
    )
    run.add_argument(
        "--json",
        type=_files.output(stdout=True),
        metavar="FILE",
        help="write all results; - for standard output",
    )
    run.add_argument(
        "--html",
        type=_files.output(),
        metavar="FILE",
        help="write a report as one self-contained page",
    )
    run.add_argument(
        "--trace",
        type=_files.output(),
        metavar="FILE",
        help="write the messages of the first result, for Perfetto",
    )
    run.add_argument("--quiet", action="store_true", help="show no progress")
    return command


def main(argv: list[str] | None = None) -> int:
    """Simulates and prints; returns the exit code: 1 where something could not be simulated."""
    command = parser()
    options = command.parse_args(argv)
    if options.fail_at is not None and not any(options.fail):
        command.error("--fail-at needs --fail: it is when those cables fail")
    outputs = [file for file in (options.json, options.html, options.trace) if file]
    if len({file.resolve() for file in outputs}) < len(outputs):
        command.error("--json, --html and --trace name the same file")
    try:
        return _simulate(command, options, sys.argv[2:] if argv is None else argv)
    except (TopologyError, ValueError, FileError) as error:
        print(f"jaxcoll simulate: {error}", file=sys.stderr)
        return 1
    except SimulationError as error:
        print(f"jaxcoll simulate: defect of the simulator: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("jaxcoll simulate: interrupted", file=sys.stderr)
        sys.stderr.flush()
        os._exit(130)  # a normal exit would wait for running simulations


def _simulate(
    parser: argparse.ArgumentParser, options: argparse.Namespace, arguments: list[str]
) -> int:
    networks = parse_all(options.topology)
    prices = _prices(networks, options.prices)
    sweep = _sweep(parser, options, networks)
    to_stdout = options.json == _files.STDOUT
    outcomes: list[Outcome] = []
    if not to_stdout:
        print("# all times are simulated")
        print(_HEAD)
    with _progress(sweep.runs, options.quiet) as step:
        for outcome in sweep.outcomes(options.jobs, step):
            outcomes.append(outcome)
            if not to_stdout:
                print(_line(outcome), flush=True)
    report = _report(sweep, outcomes, networks, prices, arguments)
    if to_stdout:
        print(json.dumps(report, indent=1, allow_nan=False))
    else:
        print("\n".join([*_remarks(sweep, outcomes), "", _components(networks, prices)]))
        if options.json:
            _files.write(options.json, json.dumps(report, indent=1, allow_nan=False) + "\n")
    if options.trace and outcomes:
        first = outcomes[0]
        recorded = sweep.run_one(first.case, first.median.seed, record=True)
        _files.write(options.trace, json.dumps(trace(recorded)))
        _say(f"{options.trace}: {len(recorded.messages)} messages of {recorded!r}")
    if options.html and outcomes:
        from jaxcoll.sim.page import page

        _files.write(options.html, page(sweep, outcomes, report))
        _say(f"{options.html}: open it in a browser; it needs no network")
    asked_for = options.schedule or options.algorithm not in (None, ["all"])
    cut = any(outcome.cut for outcome in outcomes)
    return 1 if cut or (sweep.refused and (asked_for or not outcomes)) else 0


def _sweep(
    parser: argparse.ArgumentParser, options: argparse.Namespace, networks: list[Topology]
) -> Sweep:
    """All cases that the options ask for."""
    setting = Setting(
        model=Model(
            overhead_s=options.overhead,
            latency_s=options.latency,
            reduce_s_per_byte=1 / options.reduce_rate if options.reduce_rate else 0.0,
            in_flight=1 if options.in_flight is None else options.in_flight,
            efficiency=options.efficiency,
            split=options.split,
            quantum_s=options.quantum,
            unfairness=options.unfairness,
        ),
        ranks=options.ranks,
        placement=options.placement,
        seeds=options.seeds,
        failed=tuple(options.down),
        fail_at_s=options.fail_at,
        changes=tuple(options.change),
        jitter=options.jitter,
        slowdown=tuple(options.slow.items()),
        spread=options.spread,
        all_at_once=("all_to_all",) if options.in_flight is None else (),
        late_s=options.late,
        distribution=options.distribution,
        background=options.background,
        bounds=options.bounds,
    )
    sweep = Sweep(setting)
    what = (options.bytes, options.routing, options.fail)
    built_in = not options.schedule or options.algorithm or options.collective
    named = options.algorithm not in (None, ["all"])
    wanted = options.algorithm if named else []
    collectives = (options.collective or ["all_reduce"]) if built_in else []
    built_ins = [name for collective in collectives for name in algorithms(collective)]
    for name in wanted:
        if parse_algorithm(name)[0] not in built_ins:
            have = "has" if len(collectives) == 1 else "have"
            parser.error(
                f"{' and '.join(collectives)} {have} no algorithm {name[:40]}; choose from "
                f"{', '.join(dict.fromkeys(built_ins))}{nearest(name, built_ins)}"
            )
    # A schedule that is named as a built-in one, or as another, has the name of its file.
    files, schedules = ([given[i] for given in options.schedule] for i in (0, 1))
    names = apart([schedule.algorithm for schedule in schedules], files, built_ins)
    for network in networks:
        network.check()
        for name, schedule in zip(names, schedules, strict=True):
            sweep.add_schedule(network, schedule, *what, name=name)
        for collective in collectives:
            known = algorithms(collective)
            sweep.add(
                network,
                collective,
                [name for name in wanted or known if parse_algorithm(name)[0] in known],
                *what,
                channels=options.channels,
                root=options.root,
            )
    return sweep


def _report(
    sweep: Sweep,
    outcomes: list[Outcome],
    networks: list[Topology],
    prices: dict[str, dict[str, float]],
    arguments: list[str],
) -> dict[str, Any]:
    return {
        "simulated": True,
        "command": ["jaxcoll", "simulate", *arguments],
        "version": jaxcoll.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": vars(sweep.setting.model),
        "all_at_once": list(sweep.setting.all_at_once),
        "seeds": sweep.setting.seeds,
        "topologies": [
            {
                "name": network.name,
                "components": network.components(),
                **({"cost": network.cost(prices[network.name])} if prices else {}),
            }
            for network in networks
        ],
        "results": [outcome.row() for outcome in outcomes],
        "fastest": [ranking.row() for ranking in rankings(outcomes)],
        "refused": [
            {
                "topology": refusal.case.topology.name,
                "collective": refusal.case.spec.collective,
                "algorithm": refusal.case.algorithm,
                "reason": refusal.reason,
            }
            for refusal in sweep.refused
        ],
    }


def _remarks(sweep: Sweep, outcomes: list[Outcome]) -> list[str]:
    """Notes that the table has no room for: crossovers, bounds and schedules that are missing."""
    lines = [
        f"# {ranking}"
        for ranking in rankings(outcomes)
        if any(len(candidates) > 1 for _, candidates in ranking.fastest)
    ]
    missing = {
        f"# no flow bound: {t.collective} on {t.topology.name}: {t.missing_bound}"
        for outcome in outcomes
        for t in outcome.timelines
        if t.missing_bound
    }
    cut = {}
    for outcome in outcomes:
        if outcome.cut:
            seeds = len(outcome.cut) + len(outcome.timelines)
            about = f"{outcome.case.spec.collective}, {label(outcome)}"
            cut[about] = (
                f"# left out: {about}: {len(outcome.cut)} of {seeds} seeds, whose failures cut "
                f"ranks off; first: {outcome.cut[0]}"
            )
    tails = sorted({len(o.timelines) for o in outcomes} - {1})
    lines += [f"# {tail_text(seeds)}" for seeds in tails]
    refused = [f"# not simulated: {refusal}" for refusal in dict.fromkeys(map(str, sweep.refused))]
    return [*lines, *sorted(missing), *cut.values(), *refused]


def _say(text: str) -> None:
    print(text, file=sys.stderr)


_HEAD = (
    f"{'topology':36} {'collective':14} {'algorithm':18} {'size(B)':>12} {'routing':7} {'down':>4} "
    f"{'time(us)':>12} {'p99(us)':>12} {'algbw(GB/s)':>11} {'busbw(GB/s)':>11} "
    f"{'bound(us)':>12} {'gap':>7}  bottlenecks"
)


def _line(outcome: Outcome) -> str:
    case, median = outcome.case, outcome.median
    busiest = ", ".join(f"{name} {load:.0%}" for name, load in median.bottlenecks(2))
    bound = (
        f"{median.bound_s * 1e6:12.2f} {outcome.p50_s / median.bound_s:7.2f}"
        if (median.bound_s)
        else f"{'-':>12} {'-':>7}"
    )
    return (
        f"{case.topology.name:36} {case.spec.collective:14} {case.algorithm:18} "
        f"{median.nbytes:12d} {case.routing:7} {case.fail:4d} "
        f"{outcome.p50_s * 1e6:12.2f} {outcome.p99_s * 1e6:12.2f} "
        f"{median.algbw_GBps:11.3f} {median.busbw_GBps:11.3f} {bound}  {busiest}"
    )


def _prices(
    networks: list[Topology], prices: dict[str, float] | None
) -> dict[str, dict[str, float]]:
    """By network: the prices of components that it has. Each price is of one network at least."""
    counts = {network.name: network.components() for network in networks}
    known = list(dict.fromkeys(name for count in counts.values() for name in count))
    for name in prices or {}:
        if name not in known:
            raise TopologyError(
                f"there is a price for {shown(name)}; priced are {', '.join(known)}"
                f"{nearest(name, known)}"
            )
    if not prices:
        return {}
    return {
        network: {name: price for name, price in prices.items() if name in count}
        for network, count in counts.items()
    }


def _components(networks: list[Topology], prices: dict[str, dict[str, float]]) -> str:
    lines = []
    for network in networks:
        counts = ", ".join(f"{count} {name}" for name, count in network.components().items())
        cost = f"; cost {network.cost(prices[network.name]):,.0f}" if prices else ""
        lines.append(f"{network.name}: {counts}{cost}")
    return "\n".join(lines)


@contextlib.contextmanager
def _progress(runs: int, quiet: bool) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal where rich is installed; else a line on standard error now and then."""
    if quiet or runs < 2:
        yield lambda what: None
        return
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        Console = None  # type: ignore[assignment,misc]
    console = Console(stderr=True) if Console is not None else None
    if console is not None and console.is_terminal and sys.stdout.isatty():
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("simulating", total=runs)
            yield lambda what: progress.update(task, advance=1, description=what)
        return
    done = 0
    told = 0

    def step(what: str) -> None:
        nonlocal done, told
        done += 1
        if done * 10 // runs > told:
            told = done * 10 // runs
            print(f"{done} of {runs} simulations: {what}", file=sys.stderr, flush=True)

    yield step
