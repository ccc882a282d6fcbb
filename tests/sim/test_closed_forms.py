"""Simulated times equal the published closed forms, to a picosecond per event."""

from __future__ import annotations

import math
from functools import cache

import pytest

from jaxcoll.schedule import ScheduleSpec
from jaxcoll.simulate import Model, Timeline, run
from jaxcoll.topology import Topology, rail_optimised, switch

SIZES = [2, 3, 4, 7, 8, 16, 64]
POWERS = [2, 4, 8, 16, 64]
# Multiples of all rank counts and of the element size, so that all chunks are equal.
UNIT = 4 * 64 * 3 * 7
BYTES = [UNIT, 16 * UNIT, 250 * UNIT, 6000 * UNIT, 100_000 * UNIT]

OVERHEAD_S, LATENCY_S, PATH_S = 1.5e-6, 0.7e-6, 0.8e-6
MODEL = Model(overhead_s=OVERHEAD_S, latency_s=LATENCY_S, reduce_s_per_byte=2e-11)
BANDWIDTH_BPS = 12.5e9
A = OVERHEAD_S + LATENCY_S + PATH_S  # of a message that waits for the one before
B = 1 / BANDWIDTH_BPS
G = MODEL.reduce_s_per_byte


@cache
def network(ranks: int) -> Topology:
    return switch(ranks, bandwidth_Bps=BANDWIDTH_BPS, latency_s=PATH_S / 2)


def simulated(collective: str, algorithm: str, p: int, n: int, model: Model = MODEL) -> Timeline:
    spec = ScheduleSpec(collective, p, algorithm)  # type: ignore[arg-type]
    return run(spec, network(p), n, model=model, bounds="quick")


def check(timeline: Timeline, expected_s: float, rounds: int) -> None:
    """Each round is an overhead, a flow, an arrival and a reduction, each rounded on its own."""
    assert timeline.nbytes % UNIT == 0
    assert abs(timeline.time_ps - expected_s * 1e12) <= 4 * rounds + expected_s * 1e12 * 1e-11


@pytest.mark.parametrize("n", BYTES)
@pytest.mark.parametrize("p", SIZES)
class TestAnyNumberOfRanks:
    def test_ring(self, p: int, n: int) -> None:
        s = (p - 1) / p
        all_reduce = 2 * (p - 1) * A + 2 * s * n * B + s * n * G
        check(simulated("all_reduce", "ring", p, n), all_reduce, 2 * p)
        check(simulated("all_gather", "ring", p, n), (p - 1) * A + s * n * B, p)
        reduce_scatter = (p - 1) * A + s * n * B + s * n * G
        check(simulated("reduce_scatter", "ring", p, n), reduce_scatter, p)

    def test_bruck_all_gather(self, p: int, n: int) -> None:
        rounds = math.ceil(math.log2(p))
        expected = rounds * A + (p - 1) / p * n * B
        if p == 3:  # the second round sends a rank's own block, which need not wait for the first
            expected -= LATENCY_S + PATH_S
        check(simulated("all_gather", "bruck", p, n), expected, rounds)

    def test_direct_all_to_all(self, p: int, n: int) -> None:
        """Pairwise. Messages follow each other through the port, latencies overlap but the last."""
        expected = (p - 1) * OVERHEAD_S + (p - 1) / p * n * B + LATENCY_S + PATH_S
        check(simulated("all_to_all", "direct", p, n), expected, p)

    def test_direct_all_reduce_with_latency_alone_takes_one(self, p: int, n: int) -> None:
        """p - 1 messages through one port, but only one latency; then one p-ary reduction."""
        model = Model(latency_s=LATENCY_S)
        expected = (p - 1) * n * B + LATENCY_S + PATH_S
        check(simulated("all_reduce", "direct", p, n, model), expected, p)

    def test_direct_all_reduce_in_two_shots(self, p: int, n: int) -> None:
        s = (p - 1) / p
        shot = (p - 1) * OVERHEAD_S + s * n * B + LATENCY_S + PATH_S
        check(simulated("all_reduce", "direct2", p, n), 2 * shot + s * n * G, 2 * p)

    def test_binomial(self, p: int, n: int) -> None:
        rounds = math.ceil(math.log2(p))
        if p in POWERS:
            # The root's messages leave one after the other; the first child's subtree is deepest.
            check(simulated("broadcast", "binomial", p, n), rounds * (A + n * B), rounds)
            check(simulated("reduce", "binomial", p, n), rounds * (A + n * B + n * G), rounds)
        else:
            assert simulated("broadcast", "binomial", p, n).time_s <= rounds * (A + n * B) * 1.001


@pytest.mark.parametrize("n", BYTES)
@pytest.mark.parametrize("p", POWERS)
class TestPowersOfTwo:
    def test_recursive_doubling(self, p: int, n: int) -> None:
        k = int(math.log2(p))
        # A rank below its partner receives first and reduces then: the same work.
        check(simulated("all_reduce", "recursive_doubling", p, n), k * (A + n * B + n * G), k)
        all_gather = k * A + (p - 1) / p * n * B
        check(simulated("all_gather", "recursive_doubling", p, n), all_gather, k)

    def test_recursive_halving(self, p: int, n: int) -> None:
        k, s = int(math.log2(p)), (p - 1) / p
        all_reduce = 2 * k * A + 2 * s * n * B + s * n * G
        check(simulated("all_reduce", "halving_doubling", p, n), all_reduce, 2 * k)
        reduce_scatter = k * A + s * n * B + s * n * G
        check(simulated("reduce_scatter", "recursive_halving", p, n), reduce_scatter, k)

    def test_bruck_all_to_all(self, p: int, n: int) -> None:
        k = int(math.log2(p))
        check(simulated("all_to_all", "bruck", p, n), k * (A + n / 2 * B), k)


@pytest.mark.parametrize("n", BYTES)
@pytest.mark.parametrize(("nodes", "gpus"), [(2, 2), (4, 2), (2, 8), (8, 8), (3, 4), (7, 3)])
def test_hierarchical(nodes: int, gpus: int, n: int) -> None:
    """Rings inside a node, then along the rails, then inside again, each at its own speed."""
    inside_s, across_s = 0.4e-6, 1e-6
    topology = rail_optimised(
        nodes,
        gpus_per_node=gpus,
        nvlink_Bps=100e9,
        nvlink_latency_s=inside_s / 2,
        bandwidth_Bps=12.5e9,
        latency_s=across_s / 2,
    )
    spec = ScheduleSpec("all_reduce", nodes * gpus, "hierarchical", dims=(nodes, gpus))
    unit = 4 * nodes * gpus
    n = n // unit * unit
    timeline = run(spec, topology, n, model=MODEL, bounds="quick")
    message = OVERHEAD_S + LATENCY_S
    g, m = (gpus - 1) / gpus, (nodes - 1) / nodes
    expected = (
        2 * (gpus - 1) * (message + inside_s)
        + 2 * g * n / 100e9
        + 2 * (nodes - 1) * (message + across_s)
        + 2 * m * n / gpus / 12.5e9
        + (g * n + m * n / gpus) * G
    )
    rounds = 2 * (gpus + nodes)
    assert abs(timeline.time_ps - expected * 1e12) <= 4 * rounds + expected * 1e12 * 1e-11


def test_every_combination_of_costs() -> None:
    """Each cost alone, and none: nothing is counted where it is zero."""
    p, n = 8, 16 * UNIT
    s = (p - 1) / p
    for overhead_s in (0.0, 2e-6):
        for latency_s in (0.0, 3e-6):
            for gamma in (0.0, 5e-11):
                model = Model(overhead_s, latency_s, gamma)
                a = overhead_s + latency_s + PATH_S
                expected = 2 * (p - 1) * a + 2 * s * n * B + s * n * gamma
                check(simulated("all_reduce", "ring", p, n, model), expected, 2 * p)


def test_efficiency_scales_the_links_only() -> None:
    p, n = 4, 250 * UNIT
    model = Model(OVERHEAD_S, LATENCY_S, efficiency=0.8)
    expected = 2 * (p - 1) * A + 2 * (p - 1) / p * n * B / 0.8
    check(simulated("all_reduce", "ring", p, n, model), expected, 2 * p)
