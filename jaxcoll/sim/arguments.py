"""The values that the options of ``jaxcoll simulate`` take, with their ranges.

Each type refuses what is out of range while the command line is read, in one line that argparse
begins with the option's name. tests/sim/test_arguments.py tries all options.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jaxcoll import _files
from jaxcoll._errors import FileError
from jaxcoll.schedule import Schedule, parse_algorithm
from jaxcoll.schedule.interop import msccl
from jaxcoll.schedule.verifier import verify
from jaxcoll.sim.network import MOST_SECONDS
from jaxcoll.sim.options import nearest, number_of, parse_bytes, parse_seconds, shown, whole_of
from jaxcoll.sim.simulate import MOST_BYTES
from jaxcoll.sim.timeline import Change

# Longer than any name or list that is meant.
_MOST_TEXT: Final = 4096
_MOST_ITEMS: Final = 1 << 20


def _refuse(text: str, what: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"{shown(text)}: {what}")


class Argument:
    """A type of argparse: makes a value of a text, or raises `argparse.ArgumentTypeError`."""

    def __call__(self, text: str) -> Any:
        raise NotImplementedError


@dataclass(frozen=True)
class Number(Argument):
    """A number in a range.

    Attributes:
      low: the lowest value.
      high: the highest.
      parse: makes the number of a text.
      above: whether it must be above `low`.
    """

    low: float
    high: float = math.inf
    parse: Callable[[str], float] = number_of
    above: bool = False

    def __call__(self, text: str) -> float:
        try:
            value = self.parse(text)
        except ValueError as error:  # TopologyError, too
            raise argparse.ArgumentTypeError(str(error)) from None
        if not (self.low <= value <= self.high) or (self.above and value == self.low):
            least = "above" if self.above else "at least"
            most = f" and at most {self.high:.15g}" if self.high < math.inf else ""
            raise _refuse(text, f"must be {least} {self.low:.15g}{most}")
        return value


def whole(low: float, high: float) -> Number:
    """A whole number in a range."""
    return Number(low, high, whole_of)


def seconds() -> Number:
    """A time, from 0 to the longest that can be simulated."""
    return Number(0, MOST_SECONDS, parse_seconds)


@dataclass(frozen=True)
class Text(Argument):
    """A text that is not empty and not longer than any that is meant."""

    def __call__(self, text: str) -> str:
        if not text or len(text) > _MOST_TEXT:
            raise _refuse(text, f"write from 1 to {_MOST_TEXT} characters")
        return text


@dataclass(frozen=True)
class Choice(Argument):
    """One of some names."""

    name: str
    choices: Sequence[str]

    def __call__(self, text: str) -> str:
        if text not in self.choices:
            raise argparse.ArgumentTypeError(
                f"there is no {self.name} {shown(text)}; choose from {', '.join(self.choices)}"
                f"{nearest(text, self.choices)}"
            )
        return text


@dataclass(frozen=True)
class ListOf(Argument):
    """Values with commas between them, at least one, none of them twice."""

    item: Argument

    def __call__(self, text: str) -> list[Any]:
        values = [self.item(part) for part in _parts(text)]
        _once(values)
        return values


@dataclass(frozen=True)
class Pairs(Argument):
    """NAME=NUMBER,...: numbers by name, no name twice.

    Attributes:
      name: the type of a name.
      number: the type of a number.
      form: how a pair is written.
    """

    name: Argument
    number: Number
    form: str

    def __call__(self, text: str) -> dict[Any, float]:
        names, numbers = [], []
        for part in _parts(text):
            name, equals, number = part.partition("=")
            if not equals:
                raise _refuse(part, f"write {self.form}")
            try:
                names.append(self.name(name))
                numbers.append(self.number(number))
            except argparse.ArgumentTypeError as error:
                raise argparse.ArgumentTypeError(f"write {self.form}: {error}") from None
        _once(names)
        return dict(zip(names, numbers, strict=True))


def _parts(text: str) -> list[str]:
    parts = text.split(",")
    if len(parts) > _MOST_ITEMS or not all(parts):
        raise _refuse(text, f"write from 1 to {_MOST_ITEMS} values with a comma between them")
    return parts


def _once(values: Sequence[Any]) -> None:
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        raise argparse.ArgumentTypeError(f"{shown(str(twice[0]))} is given twice")


@dataclass(frozen=True)
class Sizes(Argument):
    """FROM:TO[:FACTOR],...: sizes in bytes, each once, in the order in which they come."""

    def __call__(self, text: str) -> list[int]:
        sizes: dict[int, None] = {}
        size = Number(1, MOST_BYTES, parse_bytes)
        for part in _parts(text):
            first, *rest = part.split(":")
            low = int(size(first))
            high = int(size(rest[0])) if rest else low
            factor = int(whole(2, MOST_BYTES)(rest[1])) if len(rest) > 1 else 4
            if high < low or len(rest) > 2:
                raise _refuse(
                    part, "write FROM:TO or FROM:TO:FACTOR, with FROM <= TO and FACTOR >= 2"
                )
            while low < high:
                sizes[low] = None
                low *= factor
            sizes[high] = None
            if len(sizes) > _MOST_ITEMS:
                raise _refuse(text, f"more than {_MOST_ITEMS} sizes")
        return list(sizes)


@dataclass(frozen=True)
class Algorithm(Argument):
    """An algorithm's name, with or without dims."""

    def __call__(self, text: str) -> str:
        Text()(text)
        try:
            parse_algorithm(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return text


@dataclass(frozen=True)
class Placement(Argument):
    """linear, random:SEED, strided:K, or endpoints by rank; see `Topology.place`."""

    def __call__(self, text: str) -> str | tuple[str, ...]:
        return tuple(_parts(text)) if "," in text else str(Text()(text))


@dataclass(frozen=True)
class TimedChange(Argument):
    """TIME:NAME[=FACTOR]."""

    def __call__(self, text: str) -> Change:
        when, _, what = text.partition(":")
        component, equals, factor = what.partition("=")
        try:
            Text()(component)
            return Change(seconds()(when), component, Number(0)(factor) if equals else 0.0)
        except argparse.ArgumentTypeError as error:
            raise _refuse(
                text,
                "write TIME:NAME to fail a node or link, TIME:NAME=FACTOR for its capacity from "
                f"then on, e.g. 50us:core0.1 or 0s:tor0.0--agg0.1=0.5 ({error})",
            ) from None


@dataclass(frozen=True)
class ScheduleFile(Argument):
    """An MSCCL XML algorithm: the file's name, and the schedule, verified."""

    def __call__(self, text: str) -> tuple[str, Schedule]:
        file = Text()(text)
        try:
            schedule = msccl.parse(_files.read_bytes(Path(file), msccl.MAX_TEXT_BYTES))
            verify(schedule)
            return file, schedule
        except FileNotFoundError as error:
            raise argparse.ArgumentTypeError(f"{file}: {error.strerror}") from None
        except FileError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        except ValueError as error:  # ScheduleError, too
            raise argparse.ArgumentTypeError(f"{file}: {error}") from None


class Collect(argparse.Action):
    """The action of an option that may be repeated, with another value each time."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        given = getattr(namespace, self.dest) or []
        if values in given:
            text = values[0] if isinstance(values, tuple) else str(values)
            raise argparse.ArgumentError(self, f"{shown(text)} is given twice")
        setattr(namespace, self.dest, [*given, values])
