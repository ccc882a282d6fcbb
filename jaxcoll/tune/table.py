"""The table of `jaxcoll tune`: which algorithm "auto" picks, by collective, place, ranks and bytes.

A process reads its table once. Where a program reaches into other processes they compare digests
before they trace (`membership.agree_on_tuning`), so what is decided here is decided everywhere.
The digest covers what decides, the picks: two measurements with the same picks are one table.
This module does not import JAX.
"""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import reprlib
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, cast, get_args

from jaxcoll import _environment, _files
from jaxcoll import schedule as _schedule
from jaxcoll._errors import FileError, TuningError

FORMAT: Final = 1
# The layout of a group's ranks: devices of one process, processes of one host, several hosts.
Layout: TypeAlias = Literal["process", "host", "hosts"]
LAYOUTS: Final[tuple[Layout, ...]] = get_args(Layout)
_FILE_BYTES_MOST: Final = 4 << 20  # of a table; `jaxcoll tune` writes less than one MiB
_DEPTH_MOST: Final = 16
_NUMBER_MOST: Final = 2**62  # of ranks and bytes
# The digest in the HLO where no table was asked.
SHIPPED: Final = "shipped"
OFF: Final = "off"


@dataclass(frozen=True)
class Picks:
    """The algorithms of one collective for one number of ranks.

    Attributes:
      layout: where the ranks are.
      collective: the engine's name.
      world_size: ranks.
      ranks_per_node: ranks that are near each other; 1: all are alike.
      steps: (bytes of one rank's operand, algorithm): up to that many bytes, that algorithm; in
        ascending order, None in the last one.
    """

    layout: Layout
    collective: str
    world_size: int
    ranks_per_node: int
    steps: tuple[tuple[int | None, str], ...]

    def algorithm(self, nbytes: int) -> str:
        """The algorithm picked for so many bytes."""
        for most, name in self.steps:
            if most is None or nbytes <= most:
                return name
        raise AssertionError("the last step has no limit")


@dataclass(frozen=True, eq=False)
class Table:
    """The contents of a file.

    Attributes:
      picks: for "auto".
      path: the file.
      about: the rest of it: machine, date, versions, measurements; for people.
    """

    picks: tuple[Picks, ...]
    path: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """The digest of the picks; equal on processes that pick alike."""
        rows = sorted(json.dumps(_row(picks), sort_keys=True) for picks in self.picks)
        return hashlib.sha256(f"{FORMAT} {rows}".encode()).hexdigest()[:16]

    @cached_property
    def _by_kind(self) -> dict[tuple[str, str, bool], list[Picks]]:
        kinds: dict[tuple[str, str, bool], list[Picks]] = {}
        for picks in sorted(self.picks, key=lambda p: (p.world_size, p.ranks_per_node)):
            key = (picks.layout, picks.collective, picks.ranks_per_node > 1)
            kinds.setdefault(key, []).append(picks)
        return kinds

    def find(
        self, layout: Layout, collective: str, world_size: int, ranks_per_node: int, nbytes: int
    ) -> str | None:
        """The algorithm for a call; None if the table says nothing of such calls.

        For a number of ranks that the table lacks, the next smaller one counts, or the smallest.
        """
        nodes = 1 < ranks_per_node < world_size
        found = self._by_kind.get((layout, collective, nodes))
        if not found:
            return None
        smaller = [picks for picks in found if picks.world_size <= world_size]
        return (smaller[-1] if smaller else found[0]).algorithm(nbytes)


def _row(picks: Picks) -> dict[str, Any]:
    return {
        "layout": picks.layout,
        "collective": picks.collective,
        "world_size": picks.world_size,
        "ranks_per_node": picks.ranks_per_node,
        "algorithms": [list(step) for step in picks.steps],
    }


def to_json(table: Table) -> str:
    """The text of a file."""
    about = {key: value for key, value in table.about.items() if key not in ("format", "picks")}
    content = {"format": FORMAT, **about, "picks": [_row(picks) for picks in table.picks]}
    return json.dumps(content, indent=1) + "\n"


def parse(text: str, path: str = "") -> Table:
    """The inverse of `to_json`.

    Raises: TuningError naming the file and what is wrong with it.
    """

    def refuse(why: str) -> TuningError:
        return TuningError(
            f"the tuning table {path or 'given'} cannot be used: {why}; make it again with "
            "`jaxcoll tune`, or do without it: JAXCOLL_TUNING=off"
        )

    try:
        content = json.loads(text, object_pairs_hook=_without_repetition, parse_constant=_no_number)
        too_deep = _is_deeper(content, _DEPTH_MOST)
    except RecursionError:
        too_deep = True
    except ValueError as error:
        raise refuse(f"it is not JSON ({error})") from None
    if too_deep:
        raise refuse(f"its values are nested more than {_DEPTH_MOST} deep")
    if not isinstance(content, dict) or "format" not in content:
        raise refuse("it is no table of `jaxcoll tune`")
    if not _is_whole(content["format"]) or content["format"] != FORMAT:
        raise refuse(f"its format is {_brief(content['format'])}, this version reads {FORMAT}")
    rows = content.get("picks")
    if not isinstance(rows, list):
        raise refuse("it has no picks")
    picks = []
    for number, row in enumerate(rows):
        try:
            picks.append(_picks_of(row))
        except (KeyError, TypeError, ValueError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise refuse(f"entry {number} of its picks: {reason}") from None
    keys = Counter((p.layout, p.collective, p.world_size, p.ranks_per_node) for p in picks)
    if twice := next((key for key, count in keys.items() if count > 1), None):
        raise refuse(f"it has two entries for {twice}")
    return Table(tuple(picks), path, {k: v for k, v in content.items() if k != "picks"})


def _picks_of(row: Any) -> Picks:
    """Raises: KeyError, TypeError or ValueError."""
    if not isinstance(row, dict):
        raise TypeError("it is no object")
    layout, collective = row["layout"], row["collective"]
    if layout not in LAYOUTS:
        raise ValueError(f"layout {_brief(layout)}; there are {', '.join(LAYOUTS)}")
    if collective not in _schedule.COLLECTIVES:
        there = ", ".join(_schedule.COLLECTIVES)
        raise ValueError(f"collective {_brief(collective)}; there are {there}")
    names = _algorithms(collective)
    numbers = row["world_size"], row["ranks_per_node"]
    if not all(_is_whole(number) and 1 <= number <= _NUMBER_MOST for number in numbers):
        raise ValueError(f"world_size and ranks_per_node are {_brief(numbers)}")
    steps = row["algorithms"]
    if not isinstance(steps, list) or not steps:
        raise ValueError("it has no algorithms")
    before = -1
    for index, step in enumerate(steps):
        if not isinstance(step, list) or len(step) != 2:
            raise ValueError(f"{_brief(step)} is no pair of bytes and algorithm")
        most, name = step
        if name not in names:
            raise ValueError(
                f"{collective} has no algorithm {_brief(name)}; there are {', '.join(names)}"
            )
        if (most is None) != (index == len(steps) - 1):
            raise ValueError("the last algorithm, and only that, has null for its bytes")
        if most is not None and (not _is_whole(most) or not before < most <= _NUMBER_MOST):
            raise ValueError("its bytes do not ascend, or are no whole numbers")
        before = most if most is not None else before
    return Picks(
        cast(Layout, layout), collective, *numbers, tuple((most, name) for most, name in steps)
    )


_algorithms = lru_cache(maxsize=None)(_schedule.algorithms)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes the dict of a JSON object whose names are distinct. JSON leaves open which of two
    values counts, so that readers may differ."""
    if len(content := dict(pairs)) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"an object has {_brief(twice)} twice")
    return content


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _is_deeper(content: Any, most: int) -> bool:
    """Whether lists and objects are nested more than so deep. Without recursion."""
    level = [content]
    for _ in range(most):
        lists = [v.values() if isinstance(v, dict) else v for v in level if _holds_others(v)]
        level = [value for values in lists for value in values]
    return any(map(_holds_others, level))


def _holds_others(value: Any) -> bool:
    return isinstance(value, dict | list)


def _brief(value: Any) -> str:
    """One short line, whatever stands in a file."""
    return ascii(value) if isinstance(value, str) and len(value) < 40 else _REPR.repr(value)


_REPR: Final = reprlib.Repr()


# --- the one that counts ------------------------------------------------------------------------


def cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0))


def default_path(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The path where `jaxcoll tune` writes its table by default, and "auto" looks for one.

    None where the user has no home: HOME is not set, and the system knows no user of this number.
    """
    cache = environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(cache):  # others are to be ignored, says the specification
        return Path(cache) / "jaxcoll" / "tuning.json"
    home = environ.get("HOME", "")
    if not home:
        try:
            home = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            return None
    return Path(home) / ".cache" / "jaxcoll" / "tuning.json" if os.path.isabs(home) else None


def _trouble(table: Table) -> str:
    """Why a table is not of this machine; empty if it may be."""
    machine = table.about.get("machine")
    measured = machine.get("cores") if isinstance(machine, dict) else None
    if isinstance(measured, int) and measured > cores():
        return f"it was measured on {_brief(measured)} cores, and this process may run on {cores()}"
    return ""


def load(environ: Mapping[str, str] | None = None) -> Table | None:
    """The table that "auto" picks by; None: the shipped rules.

    One that JAXCOLL_TUNING names must be there and be good; one of another machine is used, with a
    warning. One in the default place that is not as it should be is left alone, with a warning.

    Raises: TuningError naming the file.
    """
    named = _environment.values(environ)["JAXCOLL_TUNING"]
    if named == OFF:
        return None
    environ = os.environ if environ is None else environ
    path = Path(named) if named else default_path(environ)
    if path is None:
        return None
    try:
        table = parse(_files.read_text(path, _FILE_BYTES_MOST, regular=True), str(path))
    except FileNotFoundError:
        if not named:
            return None
        raise TuningError(
            f"JAXCOLL_TUNING={named}: there is no such file; `jaxcoll tune --output {named}` makes "
            "it, and JAXCOLL_TUNING=off does without"
        ) from None
    except FileError as error:
        why = f"the tuning table {error}"
        if named:
            raise TuningError(f"{why}; JAXCOLL_TUNING=off does without") from None
        warnings.warn(f"{why}; the shipped rules are used", stacklevel=2)
        return None
    except TuningError as error:
        if named:
            raise
        warnings.warn(f"{error}; the shipped rules are used", stacklevel=2)
        return None
    if trouble := _trouble(table):
        what = "it is used all the same" if named else "the shipped rules are used"
        warnings.warn(f"the tuning table {path}: {trouble}; {what}", stacklevel=2)
        if not named:
            return None
    return table


@lru_cache(maxsize=1)
def active() -> Table | None:
    """The table of this process, read when it is first asked for."""
    return load()


def digest() -> str:
    """The HLO's digest of the table by which "auto" was resolved."""
    table = active()
    return SHIPPED if table is None else table.digest


def describe() -> str:
    """For people: the digest and where it is from."""
    table = active()
    if table is None:
        return f"{SHIPPED} (the rules that ship)"
    return f"{table.digest} ({table.path})"


def steps_of(sizes: Sequence[int], names: Sequence[str]) -> tuple[tuple[int | None, str], ...]:
    """Steps that give each of the ascending sizes its algorithm, and what lies between two of
    them the one nearer by ratio."""
    steps: list[tuple[int | None, str]] = []
    for index, name in enumerate(names):
        last = index == len(names) - 1
        if not last and names[index + 1] == name:
            continue
        limit = None if last else round((sizes[index] * sizes[index + 1]) ** 0.5)
        steps.append((limit, name))
    return tuple(steps)
