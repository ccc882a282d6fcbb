"""The links of a network, in columns: millions of them, made and read as arrays."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

# More than any network that has been built, and about a gigabyte.
MOST_LINKS: Final = 1 << 25
# Bytes per second of one link: far more than any, and sums over all links are exact enough.
MOST_BPS: Final = 1e18

Ints = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Link:
    """One direction of a cable.

    Attributes:
      source: name of a node.
      destination: name of a node.
      bandwidth_Bps: bytes per second.
      latency_s: seconds from end to end, with the switch behind it.
      number: tells parallel links apart, from 0.
      cable: index of the cable; both its directions have the same.
    """

    source: str
    destination: str
    bandwidth_Bps: float
    latency_s: float
    number: int = 0
    cable: int = 0

    @property
    def name(self) -> str:
        parallel = f"#{self.number}" if self.number else ""
        return f"{self.source}->{self.destination}{parallel}"


class Links(Sequence[Link]):
    """All links in the order in which they were added; each is made when it is looked at.

    Attributes:
      media: kinds of cables, by their number in `medium`.
    """

    def __init__(self, nodes: Sequence[str]) -> None:
        """Takes the names of the nodes, to which more may be added."""
        self._nodes = nodes
        self._columns: dict[str, array[Any]] = {
            "source": array("i"),
            "destination": array("i"),
            "bandwidth_Bps": array("d"),
            "latency_s": array("d"),
            "cable": array("i"),
        }
        self._medium: array[int] = array("i")  # by cable
        self.media: list[str] = []
        self._arrays: dict[str, NDArray[Any]] = {}  # of the columns as they are

    def add(
        self,
        a: ArrayLike,
        b: ArrayLike,
        bandwidth_Bps: ArrayLike,
        latency_s: ArrayLike,
        medium: str | Sequence[str],
        both_ways: bool,
    ) -> None:
        """Adds a cable for each of a and b, which are numbers of nodes."""
        ends = np.broadcast_arrays(np.asarray(a, np.int32), np.asarray(b, np.int32))
        count, ways = ends[0].size, 2 if both_ways else 1
        if count == 0:
            return
        first = len(self._medium)
        for name, value in (
            ("source", np.stack(ends[:ways], axis=-1)),
            ("destination", np.stack(ends[::-1][:ways], axis=-1)),
            ("cable", np.repeat(np.arange(first, first + count, dtype=np.int32), ways)),
            ("bandwidth_Bps", _each(bandwidth_Bps, count, ways)),
            ("latency_s", _each(latency_s, count, ways)),
        ):
            self._columns[name].frombytes(value.tobytes())
        kinds = [medium] if isinstance(medium, str) else list(medium)
        numbers = np.array([self._medium_number(kind) for kind in kinds], np.int32)
        self._medium.frombytes(np.resize(numbers, count).tobytes())
        self._arrays.clear()

    def _medium_number(self, medium: str) -> int:
        if medium not in self.media:
            self.media.append(medium)
        return self.media.index(medium)

    def _array(self, name: str) -> NDArray[Any]:
        if name not in self._arrays:
            column = self._medium if name == "medium" else self._columns[name]
            self._arrays[name] = np.array(column)
        return self._arrays[name]

    @property
    def source(self) -> Ints:
        """By link: the number of the node where it begins."""
        return self._array("source")

    @property
    def destination(self) -> Ints:
        """By link: the number of the node where it ends."""
        return self._array("destination")

    @property
    def latency_ps(self) -> NDArray[np.float64]:
        """By link: in whole picoseconds, as the engine has it."""
        return np.rint(self.latency_s * 1e12)

    @property
    def bandwidth_Bps(self) -> NDArray[np.float64]:
        """By link."""
        return self._array("bandwidth_Bps")

    @property
    def latency_s(self) -> NDArray[np.float64]:
        """By link."""
        return self._array("latency_s")

    @property
    def cable(self) -> Ints:
        """By link: its cable."""
        return self._array("cable")

    @property
    def medium(self) -> Ints:
        """By cable: the number of its medium."""
        return self._array("medium")

    @property
    def cables(self) -> int:
        """How many."""
        return len(self._medium)

    @property
    def number(self) -> Ints:
        """By link: which of those between the same two nodes it is."""
        if "number" not in self._arrays:
            key = self.source.astype(np.int64) * len(self._nodes) + self.destination
            order = np.argsort(key, kind="stable")
            ordered = key[order]
            place = np.arange(len(key))
            begins = np.ones(len(key), bool)
            begins[1:] = ordered[1:] != ordered[:-1]
            number = np.empty(len(key), np.int32)
            number[order] = place - np.maximum.accumulate(np.where(begins, place, 0))
            self._arrays["number"] = number
        return self._arrays["number"]

    def between(self, a: int, b: int, number: int | None, both_ways: bool) -> list[int]:
        """Indices of the links from node a to node b, and back; all, or those of one number."""
        found = (self.source == a) & (self.destination == b)
        if both_ways:
            found |= (self.source == b) & (self.destination == a)
        indices = np.nonzero(found)[0]
        if number is not None:
            indices = indices[self.number[indices] == number]
        return [int(i) for i in indices]

    def at(self, node: int) -> list[int]:
        """Indices of the links that begin or end at a node."""
        return [int(i) for i in np.nonzero((self.source == node) | (self.destination == node))[0]]

    def __len__(self) -> int:
        return len(self._columns["source"])

    @overload
    def __getitem__(self, index: int) -> Link: ...

    @overload
    def __getitem__(self, index: slice) -> list[Link]: ...

    def __getitem__(self, index: int | slice) -> Link | list[Link]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        columns = self._columns
        return Link(
            self._nodes[columns["source"][index]],
            self._nodes[columns["destination"][index]],
            columns["bandwidth_Bps"][index],
            columns["latency_s"][index],
            int(self.number[index]),
            columns["cable"][index],
        )

    def __iter__(self) -> Iterator[Link]:
        return (self[i] for i in range(len(self)))


def _each(value: ArrayLike, count: int, ways: int) -> NDArray[np.float64]:
    return np.repeat(np.broadcast_to(np.asarray(value, np.float64), count), ways)
