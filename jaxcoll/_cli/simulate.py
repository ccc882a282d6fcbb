"""``jaxcoll simulate``: collectives on networks that need not exist. All times are simulated."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import jaxcoll
from jaxcoll import _files
from jaxcoll._errors import FileError
from jaxcoll.schedule import (
    COLLECTIVES,
    Collective,
    Schedule,
    algorithms,
    parse_algorithm,
)
from jaxcoll.schedule.interop import msccl
from jaxcoll.schedule.verifier import verify
from jaxcoll.sim import topology as topologies
from jaxcoll.sim.crossovers import label, rankings
from jaxcoll.sim.help_text import algorithms_text, kinds_text
from jaxcoll.sim.perfetto import trace
from jaxcoll.sim.sweep import Outcome, Setting, Sweep, tail_text
from jaxcoll.sim.timeline import ROUTINGS, Change, Distribution, Model, SimulationError
from jaxcoll.sim.topology import (
    Topology,
    TopologyError,
    parse_bytes,
    parse_rate,
    parse_seconds,
)

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


def _list_of(parse: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    def parse_list(text: str) -> list[Any]:
        try:
            return [parse(part) for part in text.split(",") if part]
        except (TopologyError, ValueError) as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse_list


def _one(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    def parse_one(text: str) -> Any:
        try:
            return parse(text)
        except TopologyError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse_one


def _choice(name: str, choices: tuple[str, ...]) -> Callable[[str], str]:
    def choose(text: str) -> str:
        if text not in choices:
            raise ValueError(f"there is no {name} {text!r}; choose from {', '.join(choices)}")
        return text

    return choose


def _count(text: str) -> int:
    if not text.isdecimal() or len(text) > 18:
        raise ValueError(f"{text!r} is no number")
    return int(text)


def _sizes(text: str) -> list[int]:
    sizes: list[int] = []
    for part in text.split(","):
        first, *rest = part.split(":")
        try:
            low = parse_bytes(first)
            high = parse_bytes(rest[0]) if rest else low
            factor = int(rest[1]) if len(rest) > 1 else 4
        except (TopologyError, ValueError) as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        if high < low or factor < 2 or len(rest) > 2:
            raise argparse.ArgumentTypeError(
                f"{part!r}: write FROM:TO or FROM:TO:FACTOR, with FROM <= TO and FACTOR >= 2"
            )
        while low < high:
            sizes.append(low)
            low *= factor
        sizes.append(high)
    return sizes


def _pairs(text: str) -> dict[str, float]:
    pairs = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        try:
            pairs[name] = float(value)
        except ValueError:
            equals = ""
        if not equals:
            raise argparse.ArgumentTypeError(f"{part!r}: write NAME=NUMBER")
    return pairs


def _placement(text: str) -> str | tuple[str, ...]:
    return tuple(text.split(",")) if "," in text else text


def _change(text: str) -> Change:
    when, colon, what = text.partition(":")
    component, equals, factor = what.partition("=")
    try:
        if not colon or not component:
            raise ValueError(text)
        return Change(parse_seconds(when), component, float(factor) if equals else 0.0)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: write TIME:NAME to fail a node or link, TIME:NAME=FACTOR for its capacity "
            "from then on, e.g. 50us:core0.1 or 0s:tor0.0--agg0.1=0.5"
        ) from None


def _schedule(file: str) -> Schedule:
    try:
        schedule = msccl.parse(_files.read_bytes(Path(file), msccl.MAX_TEXT_BYTES))
        verify(schedule)
        return schedule
    except FileNotFoundError as error:
        raise argparse.ArgumentTypeError(f"{file}: {error.strerror}") from None
    except FileError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    except ValueError as error:  # ScheduleError, too
        raise argparse.ArgumentTypeError(f"{file}: {error}") from None


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(
        prog="jaxcoll simulate",
        description="Simulates collectives on modelled networks: the same schedules that run.\n"
        "Every time it prints is simulated, and stands beside a bound that no schedule can beat.",
        epilog=_EXAMPLES.format(kinds=kinds_text(), algorithms=algorithms_text()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = command.add_argument_group("what")
    what.add_argument(
        "--topology",
        action="append",
        required=True,
        metavar="NETWORK",
        help="see below; repeatable",
    )
    what.add_argument(
        "--collective",
        type=_list_of(_choice("collective", get_args(Collective))),
        metavar="NAMES",
        help=f"of {', '.join(COLLECTIVES)} (default all_reduce)",
    )
    what.add_argument(
        "--bytes",
        type=_sizes,
        default=_sizes("1M:1G"),
        metavar="FROM:TO[:FACTOR]",
        help="sizes as nccl-tests count them, or a list of them (default 1M:1G:4)",
    )
    what.add_argument(
        "--algorithm",
        metavar="NAMES",
        help="comma separated, with dims as in 'swing[4x4]'; or all (default)",
    )
    what.add_argument(
        "--schedule",
        action="append",
        default=[],
        type=_schedule,
        metavar="FILE",
        help="an MSCCL XML algorithm, as many ranks as it has; repeatable. Built-in ones stand "
        "beside it where --algorithm or --collective is given, too",
    )
    what.add_argument("--ranks", type=int, default=0, help="default: one per endpoint")
    what.add_argument("--channels", type=int, default=1, help="see ScheduleSpec (default 1)")
    what.add_argument("--root", type=int, default=0, help="of broadcast and reduce")
    what.add_argument(
        "--placement",
        type=_placement,
        default="linear",
        help="linear (default), random:SEED, strided:K, or endpoints by rank, e.g. h3,h0,h1,h2",
    )

    network = command.add_argument_group("network")
    network.add_argument(
        "--routing",
        type=_list_of(_choice("routing", ROUTINGS)),
        default=["ecmp"],
        metavar="NAMES",
        help="ecmp (one hashed path), split (--split hashed paths), spray (all); default ecmp",
    )
    network.add_argument("--split", type=int, default=4, help="paths per message (default 4)")
    network.add_argument(
        "--fail",
        type=_list_of(_count),
        default=[0],
        metavar="COUNTS",
        help="cables that are down, drawn anew for each seed; e.g. 0,8",
    )
    network.add_argument(
        "--down",
        action="append",
        default=[],
        metavar="NAME",
        help="a node or link a--b that is down",
    )
    network.add_argument(
        "--fail-at", type=_one(parse_seconds), metavar="TIME", help="when --fail happens, e.g. 50us"
    )
    network.add_argument(
        "--change",
        action="append",
        default=[],
        type=_change,
        metavar="TIME:NAME[=FACTOR]",
        help="a node or link that fails, or has FACTOR of its capacity from then on; repeatable",
    )
    network.add_argument(
        "--background",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="other traffic, 0 to 1 of a port",
    )
    network.add_argument(
        "--prices", type=_pairs, metavar="NAME=PRICE,...", help="e.g. switches=30000,optics=500"
    )

    cost = command.add_argument_group("costs")
    cost.add_argument(
        "--overhead",
        type=_one(parse_seconds),
        default=0.0,
        metavar="TIME",
        help="o: per message, occupies the port",
    )
    cost.add_argument(
        "--latency", type=_one(parse_seconds), default=0.0, metavar="TIME", help="l: per message"
    )
    cost.add_argument(
        "--reduce-rate", type=_one(parse_rate), metavar="RATE", help="of a rank, e.g. 100GB/s"
    )
    cost.add_argument(
        "--efficiency", type=float, default=1.0, help="share of the links that is payload"
    )
    cost.add_argument(
        "--in-flight",
        type=int,
        help="messages of a channel that a port sends at once; 0: all that are ready (default: 0 "
        "for all_to_all, whose messages wait for nothing, else 1)",
    )
    cost.add_argument("--jitter", type=float, default=0.0, help="relative, of every computation")
    cost.add_argument(
        "--unfairness",
        type=float,
        default=0.0,
        help="of messages that share a link, see Model; 0: max-min fair",
    )
    cost.add_argument(
        "--slow",
        type=_pairs,
        default={},
        metavar="RANK=FACTOR,...",
        help="ranks that compute slower",
    )
    cost.add_argument(
        "--spread",
        type=float,
        default=0.0,
        metavar="X",
        help="ranks compute slower by the factor 1 + X times a draw for each",
    )
    cost.add_argument(
        "--late",
        type=_one(parse_seconds),
        default=0.0,
        metavar="TIME",
        help="ranks begin late by TIME times a draw for each",
    )
    cost.add_argument(
        "--distribution",
        choices=get_args(Distribution),
        default="normal",
        help="of these draws: |normal| (default), exponential of mean 1, uniform in [0, 1)",
    )
    cost.add_argument(
        "--quantum",
        type=_one(parse_seconds),
        default=0.0,
        metavar="TIME",
        help="flows end at multiples of it: coarser and faster",
    )

    run = command.add_argument_group("run and report")
    run.add_argument("--seeds", type=int, default=1, help="runs of what chance has a part in")
    run.add_argument("--bounds", choices=("all", "quick", "none"), default="all")
    run.add_argument("--jobs", type=int, default=0, help="at a time (default: all cores)")
    run.add_argument(
        "--json",
        type=_files.output(stdout=True),
        metavar="FILE",
        help="all results; - for standard output",
    )
    run.add_argument(
        "--html", type=_files.output(), metavar="FILE", help="one page that needs no network"
    )
    run.add_argument(
        "--trace",
        type=_files.output(),
        metavar="FILE",
        help="the first line's messages, for Perfetto",
    )
    run.add_argument("--quiet", action="store_true", help="no progress")
    return command


def main(argv: list[str] | None = None) -> int:
    """Simulates and prints; returns the exit code: 1 where something could not be simulated."""
    command = parser()
    options = command.parse_args(argv)
    for name in ("ranks", "seeds", "split", "channels", "jobs", "in_flight"):
        low = 0 if name in ("ranks", "jobs", "in_flight") else 1
        if (value := getattr(options, name)) is not None and value < low:
            command.error(f"--{name.replace('_', '-')} must be at least {low}")
    if not 0 <= options.background <= 1:
        command.error("--background is a share, from 0 to 1")
    if not 0 < options.efficiency <= 1:
        command.error("--efficiency is a share, above 0 and up to 1")
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
        os._exit(130)  # simulations that are under way would be waited for


def _simulate(
    parser: argparse.ArgumentParser, options: argparse.Namespace, arguments: list[str]
) -> int:
    networks = [topologies.parse(text) for text in options.topology]
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
    report = _report(sweep, outcomes, networks, options, arguments)
    if to_stdout:
        print(json.dumps(report, indent=1))
    else:
        print("\n".join([*_remarks(sweep, outcomes), "", _components(networks, options.prices)]))
        if options.json:
            _files.write(options.json, json.dumps(report, indent=1) + "\n")
    if options.trace and outcomes:
        first = outcomes[0]
        recorded = sweep.run_one(first.case, first.median.seed, record=True)
        _files.write(options.trace, json.dumps(trace(recorded)))
        _say(f"{options.trace}: {len(recorded.messages)} messages of {recorded!r}")
    if options.html and outcomes:
        from jaxcoll.sim.page import page

        _files.write(options.html, page(sweep, outcomes, report))
        _say(f"{options.html}: open it in a browser; it needs no network")
    asked_for = options.schedule or options.algorithm not in (None, "all")
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
        slowdown=tuple((int(rank), factor) for rank, factor in options.slow.items()),
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
    named = options.algorithm not in (None, "all")
    wanted = options.algorithm.split(",") if named else []
    collectives = (options.collective or ["all_reduce"]) if built_in else []
    for network in networks:
        network.check()
        for schedule in options.schedule:
            sweep.add_schedule(network, schedule, *what)
        for collective in collectives:
            known = algorithms(collective)
            unknown = [name for name in wanted if parse_algorithm(name)[0] not in known]
            if unknown and len(collectives) == 1:
                parser.error(
                    f"{collective} has no algorithm {unknown[0]}; choose from {', '.join(known)}"
                )
            sweep.add(
                network,
                collective,
                [n for n in wanted if parse_algorithm(n)[0] in known] if named else known,
                *what,
                channels=options.channels,
                root=options.root,
            )
    if not sweep.groups:
        parser.error(f"no collective has an algorithm {options.algorithm}")
    return sweep


def _report(
    sweep: Sweep,
    outcomes: list[Outcome],
    networks: list[Topology],
    options: argparse.Namespace,
    arguments: list[str],
) -> dict[str, Any]:
    return {
        "simulated": True,
        "command": ["jaxcoll", "simulate", *arguments],
        "version": jaxcoll.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": vars(sweep.setting.model),
        "all_at_once": list(sweep.setting.all_at_once),
        "seeds": options.seeds,
        "topologies": [
            {
                "name": network.name,
                "components": network.components(),
                **({"cost": network.cost(options.prices)} if options.prices else {}),
            }
            for network in networks
        ],
        "results": [outcome.row() for outcome in outcomes],
        "fastest": [ranking.row() for ranking in rankings(outcomes)],
        "refused": [
            {
                "topology": refusal.topology.name,
                "collective": refusal.spec.collective,
                "algorithm": refusal.spec.algorithm,
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
        f"{case.topology.name:36} {case.spec.collective:14} {case.spec.algorithm:18} "
        f"{median.nbytes:12d} {case.routing:7} {case.fail:4d} "
        f"{outcome.p50_s * 1e6:12.2f} {outcome.p99_s * 1e6:12.2f} "
        f"{median.algbw_GBps:11.3f} {median.busbw_GBps:11.3f} {bound}  {busiest}"
    )


def _components(networks: list[Topology], prices: dict[str, float] | None) -> str:
    lines = []
    for network in networks:
        counts = ", ".join(f"{count} {name}" for name, count in network.components().items())
        cost = f"; cost {network.cost(prices):,.0f}" if prices else ""
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
