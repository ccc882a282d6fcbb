"""``jaxcoll schedule``: prints, exports and imports schedules."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxcoll import _files
from jaxcoll._cli.arguments import whole
from jaxcoll._errors import FileError, ScheduleError
from jaxcoll.schedule import (
    COLLECTIVES,
    MAX_CHANNELS,
    MAX_WORLD_SIZE,
    Schedule,
    ScheduleSpec,
    build,
)
from jaxcoll.schedule.interop import goal, msccl, mscclpp
from jaxcoll.schedule.verifier import verify

_EXAMPLES = """examples:
  jaxcoll schedule show --collective all_gather --world-size 4 --algorithm ring
  jaxcoll schedule export --format goal --bytes 1M --collective all_reduce --world-size 16 \\
      --algorithm 'swing[4x4]' --output swing.goal
  jaxcoll schedule export --format mscclpp --collective all_reduce --world-size 8 -o plan.json
  jaxcoll schedule import allreduce.xml --output allreduce.txt
  jaxcoll schedule export --format goal --bytes 64K --msccl allreduce.xml
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(
        prog="jaxcoll schedule",
        description="Prints schedules and translates them from and to other projects' formats.\n"
        "Every schedule is verified first.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = command.add_subparsers(dest="action", required=True)

    show = actions.add_parser("show", help="print every rank's ops, step by step")
    _add_source(show)

    export = actions.add_parser("export", help="write a schedule in another project's format")
    export.add_argument(
        "--format",
        required=True,
        choices=("mscclpp", "goal", "text"),
        help="mscclpp: JSON execution plan of MSCCL++; goal: input of LogGOPSim; text: jaxcoll's "
        "own, read by jaxcoll.schedule.Schedule.parse",
    )
    export.add_argument(
        "--bytes",
        type=_bytes,
        metavar="N",
        help="goal: size of the collective, e.g. 64K; n of jaxcoll.schedule.Cost",
    )
    export.add_argument(
        "--reduce-ns-per-byte",
        type=float,
        default=0.0,
        metavar="NS",
        help="goal: nanoseconds to reduce a byte; default: 0",
    )
    export.add_argument("--reduce-op", default="sum", help="mscclpp: sum (default) or min")
    _add_source(export)
    _add_output(export)

    load = actions.add_parser(
        "import", help="read an MSCCL XML algorithm, verify it, print its cost"
    )
    load.add_argument("file", type=Path, help="an XML file written by msccl-tools")
    _add_output(load)
    return command


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the process's exit status.

    Args:
      argv: arguments after the command's name; None takes the process's.
    """
    arguments = parser().parse_args(argv)
    try:
        if arguments.action == "import":
            return _import(arguments)
        schedule = _source(arguments)
        verify(schedule)
        text = f"{schedule}\n" if arguments.action == "show" else _exported(schedule, arguments)
        _write(text, getattr(arguments, "output", None))
    except (ValueError, FileError, FileNotFoundError) as error:  # ScheduleError is a ValueError
        print(f"jaxcoll schedule: {error}", file=sys.stderr)
        return 1
    return 0


def add_channels_and_root(parser: argparse.ArgumentParser) -> None:
    """Adds the numbers of a built-in schedule that both commands of schedules take."""
    parser.add_argument(
        "--channels",
        type=whole(1, MAX_CHANNELS),
        default=1,
        help="independent copies of the pattern",
    )
    parser.add_argument(
        "--root", type=whole(0, MAX_WORLD_SIZE - 1), default=0, help="root of broadcast and reduce"
    )


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--collective", choices=COLLECTIVES)
    parser.add_argument("--world-size", type=whole(1, MAX_WORLD_SIZE), metavar="P", help="ranks")
    parser.add_argument(
        "--algorithm", default="direct", help="default: direct; with dims: 'swing[4x4]'"
    )
    add_channels_and_root(parser)
    parser.add_argument(
        "--msccl",
        type=Path,
        metavar="FILE",
        help="an MSCCL XML algorithm instead of a built-in one",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", type=_files.output(), metavar="FILE", help="default: stdout"
    )


def _source(arguments: argparse.Namespace) -> Schedule:
    if arguments.msccl is not None:
        return msccl.parse(_files.read_bytes(arguments.msccl, msccl.MAX_TEXT_BYTES))
    if arguments.collective is None or arguments.world_size is None:
        raise ValueError("give --collective and --world-size, or --msccl FILE")
    size = arguments.world_size
    return build(
        ScheduleSpec(
            arguments.collective,
            size,
            arguments.algorithm,
            arguments.channels,
            arguments.root,
            # Permutations need one to be given: a shift by one rank stands for all.
            tuple((rank, (rank + 1) % size) for rank in range(max(size, 0)))
            if arguments.collective == "permute"
            else (),
        )
    )


def _exported(schedule: Schedule, arguments: argparse.Namespace) -> str:
    if arguments.format == "mscclpp":
        return mscclpp.export(schedule, reduce_op=arguments.reduce_op)
    if arguments.format == "text":
        return schedule.serialize()
    if arguments.bytes is None:
        raise ValueError("GOAL files contain sizes: give --bytes")
    return goal.export(schedule, arguments.bytes, reduce_ns_per_byte=arguments.reduce_ns_per_byte)


def _import(arguments: argparse.Namespace) -> int:
    schedule = msccl.parse(_files.read_bytes(arguments.file, msccl.MAX_TEXT_BYTES))
    cost = schedule.cost()
    print(f"{schedule!r}", file=sys.stderr)
    print(f"sent by a rank, at most: {float(max(cost.sent)):.3f} n", file=sys.stderr)
    try:
        verification = verify(schedule)
    except ScheduleError as error:
        print(f"wrong: {error}", file=sys.stderr)
        return 1
    same = "bitwise equal on all ranks" if verification.reproducible else "rounding may differ"
    print(f"correct, {same}", file=sys.stderr)
    if arguments.output is not None:
        _write(schedule.serialize(), arguments.output)
    return 0


def _write(text: str, output: Path | None) -> None:
    if output is None:
        sys.stdout.write(text)
    else:
        _files.write(output, text)


def _bytes(text: str) -> int:
    units = {"K": 10, "M": 20, "G": 30}
    unit = units.get(text[-1:].upper(), 0)
    digits = text[:-1] if unit else text
    if not (digits.isascii() and digits.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: write 4096, 64K, 1M or 2G")
    return int(digits) << unit
