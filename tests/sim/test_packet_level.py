"""Against a packet-level simulator: published uet-htsim results (NSCC congestion control, 100 Gb/s,
1 us per link, 2 MB per flow), which took it 13 s a run.

The model here is fluid. What packets add, as constants: a flow counts as complete when the last
acknowledgement is back, one more path latency, and every switch stores a packet of 4160 B before it
forwards it. And one efficiency factor per routing mode, fitted on means by the smallest largest
error:

  spray   about 0.94: headers (1.5 %), and packets that meet at random
  ecmp    about 1.05: where paths collide, congestion control is not max-min fair; some flows end
          sooner than their share says, which lowers the mean. Above 1, so no efficiency in the
          strict sense: the fluid model is pessimistic here

Tails (p99, max) are too low by more where packets are sprayed, since no queues are modelled.
Factors for them are fitted on the sprayed rows and tested on the others, where they turn out not to
hold.
"""

from __future__ import annotations

import random
from functools import cache
from statistics import fmean

import numpy as np
import pytest
from numpy.typing import NDArray

from jaxcoll.schedule import ScheduleSpec
from jaxcoll.simulate import Model, Routing, run
from jaxcoll.topology import Topology, fat_tree, leaf_spine

HOSTS, NBYTES, LINK_S = 1024, 2_000_000, 1e-6
PACKET_S = 4160 / 12.5e9
# median, mean, p99, max in us.
PUBLISHED = {
    "tree, sprayed": (200, 200, 210, 213),
    "tree, sprayed, 8 core links failed": (201, 202, 261, 281),
    "leaf-spine 4:1, sprayed": (622, 607, 758, 786),
    "tree, one path": (385, 403, 756, 890),
}
ONE_FLOW_US = 176.2
INCAST_MAX_US = 21029
SEEDS = {"spray": 3, "ecmp": 20}


@cache
def tree() -> Topology:
    network = fat_tree(HOSTS, radix=16)
    assert network.components()["switches.core"] == 64
    return network


@cache
def oversubscribed() -> Topology:
    return leaf_spine(HOSTS, hosts_per_leaf=32, oversubscription=4)


def permutation(seed: int) -> tuple[tuple[int, int], ...]:
    """Everybody sends to somebody else."""
    rng = random.Random(seed)
    while True:
        order = rng.sample(range(HOSTS), HOSTS)
        if all(a != b for a, b in enumerate(order)):
            return tuple(enumerate(order))


def flow_times_us(
    network: Topology, routing: Routing, seed: int, failures: list[str], links: int
) -> NDArray[np.float64]:
    timeline = run(
        ScheduleSpec("permute", HOSTS, permutation=permutation(seed)),
        network,
        NBYTES,
        model=Model(latency_s=extra_s(links)),
        routing=routing,
        seed=seed,
        failures=failures,
        record=True,
        bounds="none",
    )
    return timeline.messages[:, 8] / 1e6


def extra_s(links: int) -> float:
    """The acknowledgement's way back, and a packet stored by every switch."""
    return links * LINK_S + (links - 1) * PACKET_S


@cache
def fluid(row: str) -> tuple[tuple[float, ...], float]:
    """(median, mean, p99, max) in us without any factor, and how much of it is latency."""
    links = 4 if "leaf" in row else 6
    network = oversubscribed() if "leaf" in row else tree()
    routing: Routing = "spray" if "sprayed" in row else "ecmp"
    rows = []
    for seed in range(SEEDS[routing]):
        failures = network.draw_failures(8, seed, tier="core") if "failed" in row else []
        times = flow_times_us(network, routing, seed, failures, links)
        rows.append([np.median(times), times.mean(), np.percentile(times, 99), times.max()])
    latency_us = (links * LINK_S + extra_s(links)) * 1e6
    return tuple(float(x) for x in np.mean(rows, axis=0)), latency_us


def predicted(row: str, factor: float) -> list[float]:
    """With capacities times `factor`; latencies stay."""
    values, latency_us = fluid(row)
    return [(value - latency_us) / factor + latency_us for value in values]


def one_flow_us(factor: float) -> float:
    return NBYTES / 12.5e9 / factor * 1e6 + 6 * LINK_S * 1e6 + extra_s(6) * 1e6


def mean_errors(mode: str, factor: float) -> list[float]:
    errors = [
        predicted(row, factor)[1] / published[1] - 1
        for row, published in PUBLISHED.items()
        if ("sprayed" in row) == (mode == "spray")
    ]
    if mode == "ecmp":
        errors.append(one_flow_us(factor) / ONE_FLOW_US - 1)
    return errors


@cache
def factor(mode: str) -> float:
    candidates = np.arange(0.85, 1.1, 0.001)
    return float(min(candidates, key=lambda f: max(map(abs, mean_errors(mode, float(f))))))


def test_one_flow_is_headers_and_latency() -> None:
    """Not fitted: 4096 of 4160 bytes are payload."""
    assert one_flow_us(4096 / 4160) == pytest.approx(ONE_FLOW_US, rel=0.001)


@pytest.mark.parametrize(("mode", "expected"), [("spray", 0.943), ("ecmp", 1.047)])
def test_means_are_within_ten_percent_after_one_factor(mode: str, expected: float) -> None:
    assert factor(mode) == pytest.approx(expected, abs=0.01)
    assert max(map(abs, mean_errors(mode, factor(mode)))) < 0.10


def test_medians_follow_where_paths_do_not_collide() -> None:
    for row, published in PUBLISHED.items():
        error = (
            predicted(row, factor("spray" if "sprayed" in row else "ecmp"))[0] / published[0] - 1
        )
        # One path per flow: unfairness lets half of the flows end early, which fluid does not see.
        assert abs(error) < (0.11 if "sprayed" in row else 0.25), row


def test_the_tail_of_an_incast() -> None:
    """128 senders to one: the last ends when all bytes are through. No factor of its own."""
    senders = range(1, 129)
    timeline = run(
        ScheduleSpec("reduce", 129, "direct"),
        tree(),
        NBYTES,
        model=Model(latency_s=extra_s(6)),
        record=True,
        bounds="none",
    )
    last_us = timeline.messages[:, 8].max() / 1e6
    assert len(timeline.messages) == len(senders)
    for scale in (4096 / 4160, factor("ecmp")):
        assert last_us / scale == pytest.approx(INCAST_MAX_US, rel=0.10)


def test_tail_factors_fitted_on_sprayed_rows_do_not_hold_for_single_paths() -> None:
    """What the fluid model cannot say; written down so that nobody relies on it."""
    sprayed = [row for row in PUBLISHED if "sprayed" in row]
    tails = {}
    for column, name in ((2, "p99"), (3, "max")):
        ratios = [
            PUBLISHED[row][column] / predicted(row, factor("spray"))[column] for row in sprayed
        ]
        assert all(ratio > 1.05 for ratio in ratios)  # too low everywhere
        tails[name] = fmean(ratios)
        fitted_errors = [tails[name] / ratio - 1 for ratio in ratios]
        assert max(map(abs, fitted_errors)) < 0.20
    row = "tree, one path"
    for column, name in ((2, "p99"), (3, "max")):
        plain = predicted(row, factor("ecmp"))[column] / PUBLISHED[row][column] - 1
        with_tail = (1 + plain) * tails[name] - 1
        assert abs(plain) < 0.15  # as it is: collisions make this tail, and those are modelled
        assert 0.10 < with_tail < 0.40  # with the factor: too high


def test_seeds_of_ecmp_differ_as_hashes_do() -> None:
    means = [flow_times_us(tree(), "ecmp", seed, [], 6).mean() for seed in range(SEEDS["ecmp"])]
    assert 0.005 < np.std(means) / np.mean(means) < 0.05
