"""The fastest algorithm by size: the result of a sweep, one line per network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from jaxcoll.sim.sweep import Outcome


def label(outcome: Outcome) -> str:
    """Network, ranks if fewer than endpoints, routing and failures: what algorithms compete on."""
    case = outcome.case
    down = f", {case.fail} links down" if case.fail else ""
    return f"{case.where}, {case.routing}{down}"


def size_text(nbytes: float) -> str:
    """1048576 -> 1 MiB."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while nbytes >= 1024 and len(units) > 1:
        nbytes /= 1024
        del units[0]
    return f"{nbytes:.3g} {units[0]}"


@dataclass(frozen=True)
class Ranking:
    """The fastest algorithm of one collective on one network.

    Attributes:
      collective: its name.
      label: see `label`.
      fastest: by size, in ascending order: (bytes, all outcomes of that size, fastest first).
    """

    collective: str
    label: str
    fastest: tuple[tuple[int, tuple[Outcome, ...]], ...]

    @property
    def ranges(self) -> list[tuple[str, int, int]]:
        """(algorithm, from this size, to this one), by simulated medians."""
        found = []
        for algorithm, group in groupby(self.fastest, lambda x: x[1][0].case.algorithm):
            sizes = [size for size, _ in group]
            found.append((algorithm, sizes[0], sizes[-1]))
        return found

    def __str__(self) -> str:
        parts = [
            f"{algorithm} at {size_text(low)}"
            if low == high
            else f"{algorithm} from {size_text(low)} to {size_text(high)}"
            for algorithm, low, high in self.ranges
        ]
        return f"fastest {self.collective} on {self.label}: {', '.join(parts)}"

    def row(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "collective": self.collective,
            "on": self.label,
            "ranges": [
                {"algorithm": algorithm, "from_bytes": low, "to_bytes": high}
                for algorithm, low, high in self.ranges
            ],
        }


def rankings(outcomes: Sequence[Outcome]) -> list[Ranking]:
    """One for each collective and network, routing and number of failures."""
    groups: dict[tuple[str, str], dict[int, list[Outcome]]] = {}
    for outcome in outcomes:
        sizes = groups.setdefault((outcome.case.spec.collective, label(outcome)), {})
        sizes.setdefault(outcome.case.nbytes, []).append(outcome)
    return [
        Ranking(
            collective,
            where,
            tuple(
                (size, tuple(sorted(sizes[size], key=lambda o: o.p50_s))) for size in sorted(sizes)
            ),
        )
        for (collective, where), sizes in groups.items()
    ]
