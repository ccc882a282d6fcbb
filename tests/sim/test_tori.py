"""Bucket and Swing on tori: what links carry, closed forms, and where one overtakes the other.

De Sensi et al., "Swing: Short-cutting Rings for Higher Bandwidth Allreduce", 2024. Swing takes
log2(d) steps per dimension where bucket takes d - 1, but its messages go 1, 1, 3, 5, 11, ... links
far and meet on them. Its bytes take Xi times as long as those of an algorithm that keeps all links
full.
"""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction
from functools import cache
from itertools import product
from math import log2, prod

import numpy as np
import pytest

from jaxcoll.schedule import ScheduleSpec, build_rank
from jaxcoll.simulate import Model, run
from jaxcoll.topology import Topology, torus

# As published, for the bandwidth-optimal variant.
CONGESTION = {(64, 64): 1.185, (16, 16, 16): 1.034, (8, 8, 8, 8): 1.007}
MODEL = Model(overhead_s=0.6e-6, latency_s=0.4e-6)
A0 = MODEL.overhead_s + MODEL.latency_s
HOP_S, BANDWIDTH_BPS = 0.1e-6, 50e9


def delta(step: int) -> int:
    """How far the messages of a step go."""
    return (2 ** (step + 1) + (-1) ** step) // 3


def congestion(dims: tuple[int, ...]) -> Fraction:
    """Xi, by counting: d messages of equal size cross a link when all go d far.

    In step s, 2D messages of n/2D / 2^(s+1) leave each rank, one by each port, delta(s / D) far.
    """
    d, p = len(dims), prod(dims)
    steps = int(log2(p))
    times = sum(Fraction(delta(s // d), 2 ** (s + 1)) for s in range(steps))
    return times / (1 - Fraction(1, p))


def link_loads(spec: ScheduleSpec) -> list[Fraction]:
    """By step: the share of n that its fullest link carries, from the ranks' programs.

    Whether a rank goes one way or the other depends on the parity of its coordinates, so one
    program of each parity tells all the others of its kind.
    """
    dims = spec.dims
    sent: dict[int, dict[tuple[int, int, int], np.ndarray]] = defaultdict(dict)
    for corner in product((0, 1), repeat=len(dims)):
        program = build_rank(spec, int(np.ravel_multi_index(corner, dims)))
        for op in program.ops:
            if op.kind != "send":
                continue
            peer = np.unravel_index(op.peer, dims)
            ((axis, far),) = (
                (axis, int(there - here))
                for axis, (here, there) in enumerate(zip(corner, peer, strict=True))
                if here != there
            )
            far = (far + dims[axis] // 2) % dims[axis] - dims[axis] // 2
            key = (axis, 1 if far > 0 else -1, abs(far))
            chunks = sent[op.step].setdefault(key, np.zeros(dims, np.int64))
            chunks[tuple(slice(first, None, 2) for first in corner)] += len(op.destination)
    chunks_in_all = spec.world_size * 2 * len(dims)
    loads = []
    for step in sorted(sent):
        links: dict[tuple[int, int], np.ndarray] = {}
        for (axis, way, far), chunks in sent[step].items():
            carried = sum(np.roll(chunks, way * hop, axis) for hop in range(far))
            links[axis, way] = links.get((axis, way), 0) + carried
        assert len(links) == 2 * len(dims)  # all ports
        loads.append(Fraction(int(max(link.max() for link in links.values())), chunks_in_all))
    return loads


@pytest.mark.parametrize("dims", CONGESTION)
def test_swing_crowds_links_as_published(dims: tuple[int, ...]) -> None:
    p = prod(dims)
    loads = link_loads(ScheduleSpec("all_reduce", p, "swing", dims=dims))
    measured = sum(loads) * len(dims) / (1 - Fraction(1, p))
    assert measured == congestion(dims)
    assert round(float(measured), 3) == CONGESTION[dims]


@cache
def network(dims: tuple[int, ...]) -> Topology:
    return torus(dims, bandwidth_Bps=BANDWIDTH_BPS, latency_s=HOP_S)


def expected_s(algorithm: str, dims: tuple[int, ...], n: int) -> float:
    """The closed forms for equal extents."""
    d, p, extent = len(dims), prod(dims), dims[0]
    bytes_s = (p - 1) / p * n / BANDWIDTH_BPS / d
    if algorithm == "bucket":
        return 2 * d * (extent - 1) * (A0 + HOP_S) + bytes_s
    steps = int(log2(extent))
    latencies = steps * A0 + sum(delta(s) for s in range(steps)) * HOP_S
    return 2 * d * latencies + float(congestion(dims)) * bytes_s


def simulated_s(algorithm: str, dims: tuple[int, ...], n: int) -> float:
    spec = ScheduleSpec("all_reduce", prod(dims), algorithm, dims=dims)
    timeline = run(spec, network(dims), n, model=MODEL, bounds="none")
    assert timeline.nbytes == n
    return timeline.time_s


@pytest.mark.parametrize("dims", [(8,), (8, 8), (16, 16), (4, 4, 4), (8, 8, 8)])
@pytest.mark.parametrize("algorithm", ["bucket", "swing"])
def test_simulated_times_equal_the_closed_forms(algorithm: str, dims: tuple[int, ...]) -> None:
    chunks = 4 * 2 * len(dims) * prod(dims)
    for n in (chunks, 100 * chunks):
        events = 4 * 2 * sum(dims)
        expected = expected_s(algorithm, dims, n)
        assert abs(simulated_s(algorithm, dims, n) - expected) <= events * 1e-12 + 1e-11 * expected


@pytest.mark.exhaustive
@pytest.mark.parametrize("dims", CONGESTION)
def test_whole_simulations_of_the_published_tori(dims: tuple[int, ...]) -> None:
    chunks = 4 * 2 * len(dims) * prod(dims)
    assert simulated_s("swing", dims, 8 * chunks) == pytest.approx(
        expected_s("swing", dims, 8 * chunks), rel=1e-6
    )


def crossover_bytes(dims: tuple[int, ...]) -> float:
    """The size at which the closed forms meet."""
    n = 1 << 30
    latency_s = {a: expected_s(a, dims, 0) for a in ("bucket", "swing")}
    per_byte = (expected_s("swing", dims, n) - latency_s["swing"]) / n - (
        expected_s("bucket", dims, n) - latency_s["bucket"]
    ) / n
    return (latency_s["bucket"] - latency_s["swing"]) / per_byte


# With 400 Gb/s and 0.1 us per link, o = 0.6 us and l = 0.4 us.
CROSSOVER_MB = {(8, 8): 17.9, (16, 16): 32.7, (8, 8, 8): 138.2, (64, 64): 128.1}


def test_crossovers_of_the_closed_forms() -> None:
    for dims, megabytes in CROSSOVER_MB.items():
        assert crossover_bytes(dims) / 1e6 == pytest.approx(megabytes, abs=0.05)


@pytest.mark.parametrize("dims", [(8, 8), (16, 16), (8, 8, 8)])
def test_swing_is_ahead_up_to_where_the_closed_forms_say(dims: tuple[int, ...]) -> None:
    chunks = 4 * 2 * len(dims) * prod(dims)
    meet = crossover_bytes(dims)
    below, above = (int(meet * factor) // chunks * chunks for factor in (0.9, 1.1))
    assert simulated_s("swing", dims, below) < simulated_s("bucket", dims, below)
    assert simulated_s("swing", dims, above) > simulated_s("bucket", dims, above)


def test_the_crossover_grows_with_the_extents_and_with_the_dimensions() -> None:
    """Longer rings cost bucket more steps; more dimensions crowd Swing's links less."""
    wider = [crossover_bytes((d, d)) for d in (8, 16, 32, 64)]
    assert wider == sorted(wider)
    deeper = [crossover_bytes((8,) * d) for d in (1, 2, 3, 4)]
    assert deeper == sorted(deeper)
