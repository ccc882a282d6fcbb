"""How much of the traffic Bine trees keep off the links between groups: bytes counted, not timed.

De Sensi et al., "Bine Trees: Enhancing Collective Operations by Optimizing Communication Locality",
2025: up to a third less than with distances 1, 2, 4, 8, ..., since 1, 1, 3, 5, 11, ... are two
thirds of those. `tests/schedule` counts it in the schedules; here, on the cables of a modelled
dragonfly, whose minimal routes cross between groups once.
"""

from __future__ import annotations

from fractions import Fraction
from functools import cache

import pytest

from jaxcoll.schedule import ScheduleSpec
from jaxcoll.simulate import run
from jaxcoll.topology import Topology, dragonfly

RANKS, PAIRS = 64, [("bine", "halving_doubling"), ("bine_latency", "recursive_doubling")]


@cache
def network(groups: int) -> Topology:
    """64 hosts, in groups of one router."""
    result = dragonfly(
        groups,
        routers_per_group=1,
        hosts_per_router=RANKS // groups,
        global_links_per_router=groups - 1,
    )
    assert len(result.hosts) == RANKS
    return result


def crossing_bytes(algorithm: str, groups: int) -> Fraction:
    """On cables between groups, averaged over where in a group rank 0 is."""
    topology = network(groups)
    total, size = 0, RANKS // groups
    for shift in range(size):
        placement = topology.hosts[shift:] + topology.hosts[:shift]
        timeline = run(
            ScheduleSpec("all_reduce", RANKS, algorithm),
            topology,
            4 * RANKS,
            placement=placement,
            bounds="none",
        )
        for link, carried in zip(topology.links, timeline.link_bytes.tolist(), strict=True):
            if link.source.startswith("r") and link.destination.startswith("r"):
                total += carried
    return Fraction(total, size)


def distances(algorithm: str) -> list[int]:
    rounds = range(RANKS.bit_length() - 1)
    if algorithm.startswith("bine"):
        return [abs(sum((-2) ** i for i in range(s + 1))) for s in rounds]
    return [1 << s for s in rounds]


def expected_bytes(algorithm: str, groups: int) -> Fraction:
    """A message d far leaves a group of g ranks for d of g beginnings."""
    size, n = RANKS // groups, 4 * RANKS
    total = Fraction()
    for s, d in enumerate(distances(algorithm)):
        halving = algorithm in ("bine", "halving_doubling")
        sent = 2 * Fraction(n, 2 << s) if halving else Fraction(n)  # by every rank
        total += RANKS * sent * min(Fraction(d, size), 1)
    return total


@pytest.mark.parametrize("groups", [2, 4, 8])
@pytest.mark.parametrize("pair", PAIRS)
def test_cables_between_groups_carry_what_the_distances_say(
    pair: tuple[str, str], groups: int
) -> None:
    ours, theirs = (crossing_bytes(algorithm, groups) for algorithm in pair)
    assert (ours, theirs) == tuple(expected_bytes(algorithm, groups) for algorithm in pair)
    assert 0 < 1 - ours / theirs <= Fraction(1, 3)


def test_the_saving_is_a_third_where_no_message_is_longer_than_a_group() -> None:
    """The published 33 %: groups of half of the ranks, an even number of equal messages."""
    saved = 1 - crossing_bytes("bine_latency", 2) / crossing_bytes("recursive_doubling", 2)
    assert saved == 1 - Fraction(1 + 1 + 3 + 5 + 11 + 21, 63) == Fraction(1, 3)
