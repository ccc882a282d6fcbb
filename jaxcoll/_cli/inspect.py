"""``jaxcoll inspect``: what a job waits for, and which process is at fault."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pwd
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxcoll._errors import SnapshotError
from jaxcoll._job import dumps, sockets
from jaxcoll._job.facts import seconds
from jaxcoll._job.snapshot import Snapshot
from jaxcoll._job.verdict import Row, Verdict, judge
from jaxcoll._text import is_number, printable

_WATCH_S = 2.0
_STACKS_SHOWN = 4  # of processes at fault
_FRAMES_SHOWN = 6
_WIDTH_MAX = 60  # of a column
_REASONS_SHOWN = 3
_PID_MAX = 1 << 31
_WELL = ("idle", "moving")
_NOTHING = (
    "no jaxcoll job of this user runs on this host. Run this where the job runs, as its user and "
    "with its XDG_RUNTIME_DIR; for a job that has ended, give the folder of JAXCOLL_DUMP_DIR"
)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(
        prog="jaxcoll inspect",
        description="Reports what the processes of a job wait for, names the one at fault, and "
        "prints a table of all. It changes nothing. Without a target it inspects all jobs of this "
        "user on this host.",
        epilog="Exit code: 0 if nothing is wrong, 1 if a process is at fault, 2 if there is "
        "nothing to inspect, or if the command line is wrong.",
    )
    command.add_argument(
        "target",
        nargs="?",
        metavar="PID or DIR",
        help="a process of the job, or the folder that JAXCOLL_DUMP_DIR named for a dead job",
    )
    command.add_argument("--watch", action="store_true", help="repeat until Ctrl-C")
    command.add_argument(
        "--every",
        type=_seconds,
        metavar="SECONDS",
        help=f"time between two inspections of --watch (default: {_WATCH_S:g})",
    )
    command.add_argument("--json", action="store_true", help="print JSON, one line per inspection")
    return command


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the verdict and the table of each job.

    Args:
      argv: arguments after the command's name; None takes the process's.

    Returns:
      The process's exit status; see the parser's epilog.
    """
    command = parser()
    options = command.parse_args(argv)
    if options.every is not None and not options.watch:
        command.error("--every needs --watch")
    try:
        while True:
            looks, troubles = _look(options.target)
            if options.watch and not options.json and sys.stdout.isatty():
                print("\033[H\033[2J", end="")
            if looks or options.watch:
                print(_json(looks) if options.json else _text(looks), flush=True)
            for trouble in troubles:
                print(f"{command.prog}: {printable(trouble)}", file=sys.stderr, flush=True)
            if not options.watch:
                return _exit_code(looks)
            time.sleep(options.every or _WATCH_S)
    except SnapshotError as error:
        command.exit(2, f"{command.prog}: error: {printable(str(error))}\n")
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


@dataclasses.dataclass
class _Look:
    """One job at one time."""

    heading: str
    snapshots: list[Snapshot]
    verdict: Verdict


def _exit_code(looks: Sequence[_Look]) -> int:
    return int(any(look.verdict.kind not in _WELL for look in looks)) if looks else 2


def _look(target: str | None) -> tuple[list[_Look], list[str]]:
    """The jobs that a target means, and why others cannot be inspected.

    Raises: SnapshotError if the target cannot be inspected.
    """
    if target is None:
        return _look_at_all()
    if is_number(target, 0, _PID_MAX) and not os.path.isdir(target):
        return [_look_at_process(int(target))], []
    if os.path.isdir(target):
        return [_look_at_dumps(target)], []
    raise SnapshotError(f"{target!r} is neither a process id nor a folder")


def _look_at_all() -> tuple[list[_Look], list[str]]:
    looks, troubles = [], []
    for job, found in sorted(sockets.jobs().items()):
        try:
            looks.append(_ask(job, found))
        except SnapshotError as error:
            troubles.append(f"job {job} cannot be inspected: {error}")
    return looks, troubles or ([] if looks else [_NOTHING])


def _look_at_dumps(folder: str) -> _Look:
    try:
        snapshots, wrong = dumps.read(Path(folder))
    except OSError as error:
        raise SnapshotError(f"{folder} cannot be read: {error.strerror}") from None
    if not snapshots:
        raise SnapshotError(f"{folder} holds no dump that can be used: {_some(wrong)}")
    return _judged(f"dumps in {folder}", snapshots, judge(snapshots), wrong)


def _look_at_process(pid: int) -> _Look:
    for job, found in sockets.jobs().items():
        if any(address.pid == pid for address in found):
            return _ask(job, found)
    try:
        uid = os.stat(f"/proc/{pid}").st_uid
    except OSError:
        raise SnapshotError(f"there is no process {pid}") from None
    if uid != os.getuid():
        raise SnapshotError(
            f"process {pid} belongs to {_user(uid)}, and only its own user can inspect it"
        )
    raise SnapshotError(
        f"process {pid} is not a process of a jaxcoll job: it has run no collective yet, it has "
        "another XDG_RUNTIME_DIR, or its jaxcoll is too old to be inspected"
    )


def _user(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user {uid}"


def _ask(job: str, found: list[sockets.Address]) -> _Look:
    snapshots, absent, wrong = sockets.ask(found)
    if not snapshots and not absent:
        raise SnapshotError(_some(wrong))
    return _judged(f"job {job}", snapshots, judge(snapshots, absent), wrong)


def _some(wrong: Sequence[str]) -> str:
    """The reasons; normally they are alike, and there is one for each process."""
    more = len(wrong) - _REASONS_SHOWN
    return "; ".join(wrong[:_REASONS_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _judged(heading: str, snapshots: list[Snapshot], verdict: Verdict, wrong: list[str]) -> _Look:
    verdict = dataclasses.replace(verdict, remarks=(*verdict.remarks, *wrong))
    count = max((s.processes for s in snapshots), default=0)
    heading += f", {count} process{'' if count == 1 else 'es'}"
    commands = sorted({s.command for s in snapshots if s.command})
    return _Look(f"{heading}: {commands[0]}" if commands else heading, snapshots, verdict)


# --- output -------------------------------------------------------------------------------------


def _json(looks: Sequence[_Look]) -> str:
    def fields(look: _Look) -> dict[str, Any]:
        verdict = dataclasses.asdict(look.verdict)
        for finding in verdict["findings"]:
            finding["waiters"] = sorted(finding["waiters"])
        return verdict | {"snapshots": [dataclasses.asdict(s) for s in look.snapshots]}

    return json.dumps([fields(look) for look in looks])


def _text(looks: Sequence[_Look]) -> str:
    return "\n\n".join("\n".join(map(printable, _lines(look))) for look in looks)


def _lines(look: _Look) -> Iterator[str]:
    yield look.heading
    yield f"  {look.verdict.sentence}"
    for remark in look.verdict.remarks:
        yield f"  note: {remark}"
    yield ""
    yield from _table(look.verdict.rows)
    by_process = {s.process: s for s in look.snapshots}
    shown = [p for p in look.verdict.culprits if p in by_process][:_STACKS_SHOWN]
    for process in shown:
        # The main one is missing where it has written the dump itself, at its end.
        threads = [t for t in by_process[process].threads if t.main or t.place]
        for thread in threads[:1]:
            yield ""
            yield f"process {process}, Python thread {thread.name}, the innermost frame first:"
            yield from (f"  {frame}" for frame in thread.frames[:_FRAMES_SHOWN])


def _table(rows: Sequence[Row]) -> Iterator[str]:
    heads = ("process", "host", "pid", "state", "for", "call", "waits for", "bytes", "by", "Python")
    cells = [heads, *(_cells(row) for row in rows)]
    widths = [min(_WIDTH_MAX, max(map(len, column))) for column in zip(*cells, strict=True)]
    for row in cells:
        texts = [
            text if len(text) <= _WIDTH_MAX else text[: _WIDTH_MAX - 3] + "..." for text in row
        ]
        yield "  ".join(f"{t:{w}}" for t, w in zip(texts, widths, strict=True)).rstrip()


def _cells(row: Row) -> tuple[str, ...]:
    call = row.call or (f"last: {row.last}" if row.last else "")
    return (
        str(row.process),
        row.host,
        str(row.pid or ""),
        row.state,
        "" if row.for_s is None else seconds(row.for_s),
        call,
        ", ".join(map(str, row.waits_for)),
        str(row.bytes or ""),
        row.transport,
        row.place,
    )


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.1 <= value <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0.1 to 86400")
    return value
