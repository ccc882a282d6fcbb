"""``jaxcoll verify``: proves that schedules are right."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from jaxcoll._cli.arguments import whole
from jaxcoll._cli.schedule import add_channels_and_root
from jaxcoll._errors import ScheduleError
from jaxcoll.schedule import (
    COLLECTIVES,
    MAX_WORLD_SIZE,
    Collective,
    ScheduleSpec,
    Verification,
    algorithms,
    build,
    parse_algorithm,
    verify,
)
from jaxcoll.schedule import (
    Schedule as Schedule,
)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(
        prog="jaxcoll verify",
        description="Proves built-in schedules correct and prints their steps and bytes.",
    )
    command.add_argument(
        "--collective", choices=COLLECTIVES, action="append", help="repeatable; default: all"
    )
    command.add_argument(
        "--algorithm",
        type=_algorithm,
        action="append",
        metavar="NAME or NAME[4x4]",
        help="repeatable; default: all. Brackets give the dims",
    )
    command.add_argument(
        "--world-size",
        type=_world_sizes,
        default=_world_sizes("1:17"),
        metavar="P,P:P,...",
        help="ranks; ranges include their ends; default: 1:17",
    )
    add_channels_and_root(command)
    return command


def main(argv: Sequence[str] | None = None) -> int:
    """Verifies built-in schedules and prints their costs.

    Args:
      argv: arguments after the command's name; None takes the process's.

    Returns:
      The process's exit status: 0 if all schedules are correct.
    """
    command = parser()
    arguments = command.parse_args(argv)

    collectives: Sequence[Collective] = arguments.collective or COLLECTIVES
    chosen = [
        (collective, algorithm, dims)
        for collective in collectives
        for algorithm in algorithms(collective)
        for name, dims in arguments.algorithm or [(algorithm, ())]
        if name == algorithm
    ]
    unknown = {name for name, _ in arguments.algorithm or ()} - {name for _, name, _ in chosen}
    if unknown:
        names = sorted({name for collective in collectives for name in algorithms(collective)})
        command.error(f"no algorithm {', '.join(sorted(unknown))}; choose from {', '.join(names)}")

    print(
        f"{'collective':<15} {'algorithm':<19} {'ranks':>5} {'steps':>5} {'max sent':>9}  verdict"
    )
    count = failures = 0
    began_s = time.perf_counter()
    for collective, algorithm, dims in chosen:
        for world_size in arguments.world_size:
            count += 1
            spec = ScheduleSpec(
                collective,
                world_size,
                algorithm,
                arguments.channels,
                arguments.root,
                # Permutations need one to be given: a shift by one rank stands for all.
                tuple((rank, (rank + 1) % world_size) for rank in range(world_size)),
                dims,
            )
            line = f"{collective:<15} {algorithm:<19} {world_size:>5}"
            try:
                schedule = build(spec)
            except ValueError as error:
                print(f"{line} refused: {error}")
                failures += 1
                continue
            cost = schedule.cost()
            begin_s = time.perf_counter()
            try:
                verdict = _verdict(verify(schedule))
            except ScheduleError as error:
                verdict = str(error)
                failures += 1
            print(
                f"{line} {cost.steps:>5} {float(max(cost.sent)):>7.3f} n  {verdict} "
                f"({time.perf_counter() - begin_s:.2f} s)",
                flush=True,
            )
    print(
        f"verified {count - failures} of {count} schedules in "
        f"{time.perf_counter() - began_s:.2f} s; failures: {failures}"
    )
    if failures:
        print(f"{failures} schedules were refused", file=sys.stderr)
    return 1 if failures else 0


def _verdict(verification: Verification) -> str:
    facts = ["correct"]
    if not verification.reproducible:
        facts.append("ranks can differ in rounding")
    if verification.in_place_safe:
        facts.append("safe in place")
    return ", ".join(facts)


def _algorithm(text: str) -> tuple[str, tuple[int, ...]]:
    try:
        return parse_algorithm(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _world_sizes(text: str) -> list[int]:
    size = whole(1, MAX_WORLD_SIZE)
    sizes: list[int] = []
    for item in text.split(","):
        begin, colon, end = item.partition(":")
        first = size(begin)
        last = size(end) if colon else first
        if last < first:
            raise argparse.ArgumentTypeError(f"{item!r} is empty: write 8, 1:17 or 1:17,32")
        sizes += range(first, last + 1)
    return sizes
