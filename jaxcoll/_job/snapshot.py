"""The state of one process of a job at one time, as `jaxcoll inspect` and dump files carry it.

A snapshot is JSON. It has a format number, since the process that reads it may be of another
version than the one that wrote it. Anybody may have written the text: `parse` checks every field,
so that what it returns can be counted, compared and printed without further checks.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from jaxcoll._errors import SnapshotError
from jaxcoll._text import printable

FORMAT = 1
BYTES_MAX = 64 << 20
PROCESSES_MAX = 1 << 17  # of a job; the verdict has a row for each
_INTEGER_MAX = 1 << 64
_SECONDS_MAX = 1e12

_T = TypeVar("_T")


def _name(description: str, line: str) -> str:
    return description.partition(", algorithm ")[0] + (f" at {line}" if line else "")


@dataclass(frozen=True)
class Thread:
    """A thread of Python's.

    Attributes:
      place: the innermost frame outside JAX and jaxcoll, "train.py:31 (load)"; "" if there is none.
      doing: "compile" or "wait", of JAX's, below that frame; "" for Python itself.
      frames: all, the innermost first.
    """

    name: str
    main: bool
    place: str
    doing: str = ""
    frames: tuple[str, ...] = ()


@dataclass(frozen=True)
class Call:
    """A call that the process has made and that waits for other processes.

    `communicator`, `key` and `number` are equal on all processes that make the call; the lists go
    by rank.

    Attributes:
      line: the places in the source that the call may come from; "" if unknown.
      moved_s: seconds since its last message; None before the first.
    """

    communicator: str
    key: str
    number: int
    description: str
    processes: tuple[int, ...]
    waits_for: tuple[int, ...]
    since_s: float
    moved_s: float | None = None
    parts: dict[str, str] = field(default_factory=dict)
    program: str = ""
    line: str = ""
    bytes: int = 0
    devices: tuple[int, ...] = ()
    mismatch: str = ""

    @property
    def id(self) -> tuple[str, int]:
        """Equal on every process that makes this call."""
        return self.key, self.number

    @property
    def name(self) -> str:
        """The call and where it is made, for people."""
        return _name(self.description, self.line)

    @property
    def brief(self) -> str:
        """The same, for a table."""
        return _name(self.description.partition(" over ")[0], self.line)

    def waited_s(self) -> float:
        """How long it has waited since its last message."""
        return self.since_s if self.moved_s is None else min(self.moved_s, self.since_s)


@dataclass(frozen=True)
class HalfMade:
    """A call that some devices of the process have made and others have not."""

    description: str
    since_s: float
    arrived: tuple[str, ...]
    missing: tuple[str, ...]
    program: str = ""

    @property
    def name(self) -> str:
        """The call, for people."""
        return _name(self.description, "")


@dataclass(frozen=True)
class Ended:
    """A call that has ended."""

    description: str
    ended_s: float
    took_s: float = 0.0
    number: int | None = None
    error: str = ""


@dataclass(frozen=True)
class Failed:
    """A communicator that has failed, and the calls that were pending on it then."""

    communicator: str
    cause: str
    failed_s: float
    pending: tuple[Call, ...] = ()


@dataclass(frozen=True)
class Peer:
    """Another process, as this one knows it.

    Attributes:
      state: "new": not linked yet; "up"; "left": it has ended normally; "down": it is lost.
      silent_s: seconds since it was asked and has not answered.
      told: the last answer to "what are you doing?".
      queued: messages for it that have not left this process.
    """

    process: int
    state: str
    transport: str = ""
    description: str = ""
    silent_s: float = 0.0
    told: str = ""
    told_s: float = 0.0
    queued: int = 0


@dataclass(frozen=True)
class Snapshot:
    """One process.

    Attributes:
      job: equal on all processes of a job, and on no others.
      version: jaxcoll's.
      exception: the error that ended its main program; "" if there was none.
      left: how it has ended; "" while it runs.
      next_numbers: by `Call.key`, the number of the next such call.
    """

    job: str
    process: int
    processes: int
    pid: int
    host: str
    version: str = ""
    jax: str = ""
    python: str = ""
    command: str = ""
    taken_at: float = 0.0
    exception: str = ""
    left: str = ""
    ended: int = 0
    pending: tuple[Call, ...] = ()
    half_made: tuple[HalfMade, ...] = ()
    last: tuple[Ended, ...] = ()
    next_numbers: dict[str, int] = field(default_factory=dict)
    failed: tuple[Failed, ...] = ()
    peers: tuple[Peer, ...] = ()
    threads: tuple[Thread, ...] = ()
    format: int = FORMAT

    def to_json(self) -> str:
        """One line."""
        return json.dumps(dataclasses.asdict(self))


@dataclass(frozen=True)
class Absent:
    """A process that has given no snapshot.

    Attributes:
      state: "dead", "stopped" or "silent".
      words: more about it, for people, such as what /proc says.
    """

    process: int
    state: str
    pid: int = 0
    host: str = ""
    words: str = ""


def parse(text: str | bytes) -> Snapshot:
    """The reverse of `Snapshot.to_json`.

    Raises: SnapshotError saying what is wrong with the text.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):  # ValueError: also text that is not UTF-8
        raise SnapshotError("it is cut off, or no snapshot") from None
    if not isinstance(data, dict) or type(data.get("format")) is not int:
        raise SnapshotError("it is not a snapshot")
    if data["format"] != FORMAT:
        version = data.get("version")
        of = f" (jaxcoll {printable(version)[:40]})" if isinstance(version, str) else ""
        raise SnapshotError(
            f"its format is {data['format']}{of}, and this jaxcoll reads {FORMAT}: use the "
            "jaxcoll that the job runs with"
        )
    snapshot = read(Snapshot, data)
    _check_processes(snapshot)
    return snapshot


def _check_processes(snapshot: Snapshot) -> None:
    """Whether every process and every rank that a snapshot names can exist."""
    if not 0 < snapshot.processes <= PROCESSES_MAX:
        raise SnapshotError("its field processes is wrong")
    processes = range(snapshot.processes)
    named = [snapshot.process, *(peer.process for peer in snapshot.peers)]
    calls = [*snapshot.pending, *(call for failed in snapshot.failed for call in failed.pending)]
    for call in calls:
        named += call.processes
        if not all(0 <= rank < len(call.processes) for rank in call.waits_for):
            raise SnapshotError("a call in it waits for a rank that does not exist")
    if not all(process in processes for process in named):
        raise SnapshotError("it names a process that its job does not have")


def read(kind: type[_T], data: Any) -> _T:
    """An object of a dataclass of this module from what JSON has made of it.

    Raises: SnapshotError.
    """
    if not isinstance(data, dict):
        raise SnapshotError(f"a {kind.__name__.lower()} in it is none")
    hints = typing.get_type_hints(kind)
    found = {}
    for item in dataclasses.fields(typing.cast(Any, kind)):
        if item.name in data:
            found[item.name] = _value(hints[item.name], data[item.name], item.name)
    try:
        return kind(**found)
    except TypeError:
        raise SnapshotError(f"a {kind.__name__.lower()} in it lacks a field") from None


def _value(hint: Any, data: Any, name: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and isinstance(data, list | tuple):
        return tuple(_value(arguments[0], item, name) for item in data)
    if origin is dict and isinstance(data, dict):
        return {
            _value(arguments[0], key, name): _value(arguments[1], item, name)
            for key, item in data.items()
        }
    if origin is types.UnionType and data is None:
        return None
    if origin is types.UnionType:
        return _value(arguments[0], data, name)
    if dataclasses.is_dataclass(hint):
        return read(typing.cast(Any, hint), data)
    if hint is str and type(data) is str:
        return printable(data)
    if hint is int and type(data) is int and 0 <= data <= _INTEGER_MAX:
        return data
    if hint is float and type(data) in (int, float) and abs(data) <= _SECONDS_MAX:
        return float(data)  # no NaN passes the comparison
    if hint is bool and type(data) is bool:
        return data
    raise SnapshotError(f"its field {name} is wrong")
