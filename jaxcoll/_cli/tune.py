"""``jaxcoll tune``: measures this machine and writes the table by which "auto" picks."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import jaxcoll
from jaxcoll import _environment, _files
from jaxcoll._errors import FileError, TuningError
from jaxcoll.sim import topology
from jaxcoll.tune import table as tables
from jaxcoll.tune import tuner
from jaxcoll.tune.costs import NodeCosts
from jaxcoll.tune.tuner import Check, Choice, Effort, Transport

_DESCRIPTION = """\
Measures this machine and writes the table by which algorithm="auto" picks.

Every process of a job must have the same table: tune one machine and copy the file to the others.
The command can measure tcp only over this machine's loopback. So the table has picks for several
hosts only if you describe their network (--bandwidth 25Gb/s --latency 20us). Otherwise the shipped
rules apply there, as they do for groups with several devices per process.
"""


class Progress:
    """A progress line on stderr; on a terminal, each line replaces the last."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._live = sys.stderr.isatty()
        self._last = ""

    def tell(self, what: str) -> None:
        """Prints the current step."""
        line = f"[{time.monotonic() - self._began:4.0f} s] {what}"
        if self._live:
            print(f"\r{line[:100]:100}", end="", file=sys.stderr, flush=True)
        elif (stage := what.partition(":")[0]) != self._last:
            self._last = stage
            print(line, file=sys.stderr, flush=True)

    def done(self) -> None:
        """Ends the progress line."""
        if self._live:
            print(file=sys.stderr, flush=True)


def size_text(nbytes: float | None) -> str:
    """16384 -> "16K"; None -> "above"."""
    if nbytes is None:
        return "above"
    for unit, shift in (("M", 20), ("K", 10)):
        if nbytes >= 1 << shift:
            return f"{nbytes / (1 << shift):.3g}{unit}"
    return f"{nbytes:.0f}"


def picks_text(picks: Sequence[tables.Picks]) -> list[str]:
    """Lines for people: per collective and number of ranks, up to which bytes which algorithm."""
    lines = [f"{'ranks':22}{'collective':16}algorithm up to this many bytes of a rank's operand"]
    for p in sorted(picks, key=lambda p: (tables.LAYOUTS.index(p.layout), p.ranks_per_node)):
        where = {"process": "in one process", "host": "on one host", "hosts": "hosts"}[p.layout]
        ranks = f"{p.world_size} {where}"
        if p.ranks_per_node > 1:
            ranks = f"{p.world_size // p.ranks_per_node} hosts x {p.ranks_per_node}"
        steps = ", ".join(f"{name} {size_text(most)}" for most, name in p.steps)
        lines.append(f"{ranks:22}{p.collective:16}{steps.removesuffix(' above')}")
    return lines


def transport_text(transport: Transport) -> str:
    """One line: the costs of a transport, and how well they explain the measurements."""
    if transport.costs is None:
        return f"{transport.name:8} not measured: {transport.absent}"
    names = {
        "latency_s": "alpha: l",
        "overhead_s": "o",
        "call_s": "alpha: call",
        "level_s": "level",
        "byte_s": "beta",
        "reduce_byte_s": "gamma",
    }
    figures = []
    for name, value in asdict(transport.costs).items():
        unit = f"{value * 1e9:.3g} ns/B" if "byte" in name else f"{value * 1e6:.3g} us"
        figures.append(f"{names[name]} {unit}")
    return (
        f"{transport.name:8} {', '.join(figures)}; explains {len(transport.samples)} measurements "
        f"within a factor of {2.718281828**transport.misfit:.2f} in the mean"
    )


def check_text(check: Check) -> str:
    """One line: predicted and measured time, the best algorithm, and the verdict."""
    c = check.choice
    spec = c.spec
    verdict = "ok"
    if check.loses:
        verdict = f"OFF: the shipped {c.shipped.algorithm} is faster and stays"
    elif check.is_off:
        verdict = "OFF: much slower than the fastest"
    best = "" if check.best == spec.algorithm else f" ({check.best})"
    return (
        f"{spec.world_size:2} {c.layout:8}{spec.collective:16}{size_text(c.nbytes):>6} "
        f"{spec.algorithm:20}{c.predicted_s * 1e6:10.1f}{check.picked_s * 1e6:10.1f}"
        f"{check.measured_s[check.best] * 1e6:10.1f} {check.regret:+7.0%}  {verdict}{best}"
    )


CHECK_HEAD = (
    f"{'P':>2} {'ranks':8}{'collective':16}{'bytes':>6} {'pick':20}{'predicted':>10}"
    f"{'measured':>10}{'best, us':>10} {'regret':>7}"
)


def about(transports: Sequence[Transport], checks: Sequence[Check]) -> dict[str, Any]:
    """The fields that go into the file beside the picks."""
    return {
        "jaxcoll": jaxcoll.__version__,
        "jax": metadata.version("jax"),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {
            "cores": tables.cores(),
            "cpu": platform.processor() or platform.machine(),
            "kernel": platform.release(),
            "load_1min": os.getloadavg()[0],
        },
        "measured": {
            t.name: {
                "costs": asdict(t.costs) if t.costs is not None else None,
                "absent": t.absent,
                "misfit": t.misfit,
                "samples": [
                    {
                        "collective": s.spec.collective,
                        "algorithm": s.spec.algorithm,
                        "world_size": s.spec.world_size,
                        "bytes": s.nbytes,
                        "seconds": s.seconds,
                    }
                    for s in t.samples
                ],
            }
            for t in transports
        },
        "checks": [
            {
                "layout": c.choice.layout,
                "collective": c.choice.spec.collective,
                "world_size": c.choice.spec.world_size,
                "bytes": c.choice.nbytes,
                "pick": c.choice.spec.algorithm,
                "predicted_s": c.choice.predicted_s,
                "measured_s": c.measured_s,
                "regret": c.regret,
                "off": c.is_off or c.loses,
            }
            for c in checks
        ],
    }


def tune(
    effort: Effort, bandwidth_Bps: float | None, latency_s: float | None, progress: Progress
) -> tuple[tables.Table, list[Transport], list[Check]]:
    """Measures, picks and checks.

    Args:
      effort: how much.
      bandwidth_Bps: of the network between hosts; None: not known.
      latency_s: the same.
      progress: called with the current step.
    """
    layouts: tuple[tuple[str, tables.Layout], ...] = (
        ("process", "process"),
        ("shm", "host"),
        ("tcp", "hosts"),
        ("rdma", "hosts"),
    )
    transports = {
        name: tuner.measure(name, effort.worlds[layout], effort, progress.tell)
        for name, layout in layouts
    }
    choices: list[Choice] = []
    checks: list[Check] = []
    for name, layout in layouts[:2]:
        costs = transports[name].costs
        if costs is not None:
            choices += tuner.choose_all(layout, costs, tables.cores(), progress.tell)
    if bandwidth_Bps and all(transports[name].costs for name in ("shm", "tcp")):
        near, far = (tuner.costs_of(transports[name]) for name in ("shm", "tcp"))
        network = NodeCosts(near, tuner.tcp_over(far, bandwidth_Bps, latency_s))
        choices += tuner.choose_all("hosts", network, None, progress.tell)
    until = time.monotonic() + effort.checks_s
    for left, (name, layout) in zip((3, 2, 1), layouts[:3], strict=True):
        if transports[name].costs is not None:
            now = time.monotonic()
            share = now + max(0.0, until - now) / left
            checks += tuner.check(transports[name], layout, effort, share, progress.tell)
    progress.done()
    measured = list(transports.values())
    table = tables.Table(tuner.table_of(choices, checks), about=about(measured, checks))
    return table, measured, checks


def _of_topology(parse: Callable[[str], float]) -> Callable[[str], float]:
    def parsed(text: str) -> float:
        try:
            if (value := parse(text)) > 0:
                return value
        except topology.TopologyError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        raise argparse.ArgumentTypeError(f"{text!r} must be above 0")

    return parsed


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(
        prog="jaxcoll tune",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "--output",
        type=_files.output(make_folders=True),
        metavar="FILE",
        help="where to write the table [$JAXCOLL_TUNING, or else jaxcoll/tuning.json in "
        "$XDG_CACHE_HOME or ~/.cache, where auto looks for it]",
    )
    command.add_argument(
        "--quick", action="store_true", help="take half a minute instead of two or three"
    )
    command.add_argument(
        "--bandwidth",
        type=_of_topology(topology.parse_rate),
        metavar="RATE",
        help="bandwidth of the network between hosts, e.g. 25Gb/s or 3GB/s; adds picks for "
        "several hosts",
    )
    command.add_argument(
        "--latency",
        type=_of_topology(topology.parse_seconds),
        metavar="TIME",
        help="one-way latency of that network, e.g. 20us [that of loopback]",
    )
    command.add_argument(
        "--show", action="store_true", help="print what auto picks now, without measuring"
    )
    command.add_argument("--json", action="store_true", help="print the table as JSON")
    return command


def show(as_json: bool) -> int:
    """Prints the table in use; the exit code."""
    try:
        table = tables.load()
    except TuningError as error:
        print(f"jaxcoll tune: {error}", file=sys.stderr)
        return 1
    if table is None:
        print("# no table: auto picks by the shipped rules; `jaxcoll tune` makes one")
        return 0
    if as_json:
        print(tables.to_json(table), end="")
        return 0
    date = table.about.get("date")
    date = date if isinstance(date, str) and date.isprintable() else "unknown date"
    print(f"# {table.path}, digest {table.digest}, of {date}")
    print("\n".join(picks_text(table.picks)))
    return 0


def _place(command: argparse.ArgumentParser) -> Path:
    """The table's path without --output; ends the command if it cannot be written there."""
    named = _environment.values()["JAXCOLL_TUNING"]
    path = Path(named) if named not in (None, tables.OFF) else tables.default_path()
    if path is None:
        command.error(
            "there is no place for the table: neither XDG_CACHE_HOME nor HOME is set, and the "
            "system has no user with this uid. Name a file with --output"
        )
    try:
        _files.check_can_write(path, make_folders=True)
    except FileError as error:
        command.error(f"the table {error}. Name another file with --output")
    return path


def main(argv: list[str] | None = None) -> int:
    """Runs the command; the exit code."""
    command = parser()
    options = command.parse_args(argv)
    if options.show:
        return show(options.json)
    if options.latency is not None and options.bandwidth is None:
        command.error("--latency needs --bandwidth")
    path = options.output or _place(command)
    effort = tuner.QUICK if options.quick else tuner.FULL
    load = os.getloadavg()[0]
    table, transports, checks = tune(effort, options.bandwidth, options.latency, Progress())
    if all(transport.costs is None for transport in transports):
        reasons = "; ".join(f"{t.name}: {t.absent.splitlines()[0]}" for t in transports)
        print(f"jaxcoll tune: nothing could be measured: {reasons}", file=sys.stderr)
        return 1
    _files.write(path, tables.to_json(table), make_folders=True)
    if options.json:
        print(tables.to_json(table), end="")
        return 0
    cores = tables.cores()
    print(f"# {cores} cores, load {load:.1f} before it began")
    if load > cores / 2:
        print("# this machine is busy with other work: measure again when it is idle")
    print("\n".join(map(transport_text, transports)))
    if not options.bandwidth:
        print(
            "# tcp was measured over loopback: without --bandwidth the shipped rules apply to hosts"
        )
    print("\n# what auto picks with this table (predicted; the shipped choice unless another one")
    print("# is clearly faster)")
    print("\n".join(picks_text(table.picks)))
    print("\n# picks at sizes that were not fitted; hosts: over loopback")
    print(CHECK_HEAD)
    print("\n".join(map(check_text, checks)))
    off = [check for check in checks if check.is_off]
    most = max((check.regret for check in checks), default=0.0)
    print(
        f"# {len(checks)} checks: {len(off)} picks are off by more than "
        f"{tuner.OFF_BY - 1:.0%}, regret at most {most:.0%}; at "
        f"{sum(check.loses for check in checks)} the shipped rules are faster and stay"
    )
    print(f"# {path}, digest {table.digest}")
    return 0
