"""Against a packet-level simulator: published uet-htsim results (NSCC congestion control, 100 Gb/s,
1 us per link, 2 MB per flow), which took it 13 s a run.

The model here is fluid. The time that packets add, as constants: a flow counts as complete when the
last acknowledgement is back, one more path latency, and every switch stores a packet of 4160 B
before it forwards it. Beyond that, one efficiency factor per routing mode, and one number for
congestion control:

  ecmp         0.985: headers, 4096 of 4160 bytes are payload; not fitted
  spray        about 0.88: headers, and packets that meet at random; fitted on means by the smallest
               largest error
  unfairness   0.3: flows that meet do not get equal shares within 200 us. Fitted on the tails (p99,
               max) of sprayed rows only; the single paths, which had no part in it, confirm it

Without unfairness no factor helps. Flows that share a link max-min fairly end together, late: the
mean of single paths comes out 12 % too high and their median 26 %, as if it were the network that
gained 5 % over its cables; and the tails of sprayed rows, where the unlucky flows end last, come
out 10 to 27 % too low, whatever is done for the means.
"""

from __future__ import annotations

import random
from functools import cache

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
SPRAYED = [row for row in PUBLISHED if "sprayed" in row]
SINGLE = "tree, one path"
ONE_FLOW_US = 176.2
INCAST_MAX_US = 21029
SEEDS = {"spray": 3, "ecmp": 20}
HEADERS, UNFAIRNESS = 4096 / 4160, 0.3


@cache
def tree() -> Topology:
    network = fat_tree(HOSTS, radix=16, bandwidth_Bps=12.5e9)
    assert network.components()["switches.core"] == 64
    return network


@cache
def oversubscribed() -> Topology:
    return leaf_spine(HOSTS, hosts_per_leaf=32, oversubscription=4, bandwidth_Bps=12.5e9)


def permutation(seed: int) -> tuple[tuple[int, int], ...]:
    """Everybody sends to somebody else."""
    rng = random.Random(seed)
    while True:
        order = rng.sample(range(HOSTS), HOSTS)
        if all(a != b for a, b in enumerate(order)):
            return tuple(enumerate(order))


def flow_times_us(
    network: Topology,
    routing: Routing,
    seed: int,
    failures: list[str],
    links: int,
    unfairness: float,
) -> NDArray[np.float64]:
    timeline = run(
        ScheduleSpec("permute", HOSTS, permutation=permutation(seed)),
        network,
        NBYTES,
        model=Model(latency_s=extra_s(links), unfairness=unfairness),
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
def fluid(row: str, unfairness: float) -> tuple[tuple[float, ...], float]:
    """(median, mean, p99, max) in us at full capacity, and how much of it is latency."""
    links = 4 if "leaf" in row else 6
    network = oversubscribed() if "leaf" in row else tree()
    routing: Routing = "spray" if "sprayed" in row else "ecmp"
    rows = []
    for seed in range(SEEDS[routing]):
        failures = network.draw_failures(8, seed, tier="core") if "failed" in row else []
        times = flow_times_us(network, routing, seed, failures, links, unfairness)
        rows.append([np.median(times), times.mean(), np.percentile(times, 99), times.max()])
    latency_us = (links * LINK_S + extra_s(links)) * 1e6
    return tuple(float(x) for x in np.mean(rows, axis=0)), latency_us


def errors(row: str, factor: float, unfairness: float) -> NDArray[np.float64]:
    """The errors of median, mean, p99 and max, with capacities times `factor`; latencies stay."""
    values, latency_us = fluid(row, unfairness)
    predicted = (np.array(values) - latency_us) / factor + latency_us
    return predicted / PUBLISHED[row] - 1


def one_flow_us(factor: float) -> float:
    return NBYTES / 12.5e9 / factor * 1e6 + 6 * LINK_S * 1e6 + extra_s(6) * 1e6


@cache
def spray_factor(unfairness: float) -> float:
    """The one that makes the largest error of the sprayed rows' means the smallest."""
    candidates = np.arange(0.8, 1.0, 0.001)
    return float(
        min(
            candidates,
            key=lambda f: max(abs(errors(row, float(f), unfairness)[1]) for row in SPRAYED),
        )
    )


def tail_error(unfairness: float) -> float:
    """The largest one of p99 and max in sprayed rows."""
    factor = spray_factor(unfairness)
    return max(float(np.abs(errors(row, factor, unfairness)[2:]).max()) for row in SPRAYED)


def test_one_flow_is_headers_and_latency() -> None:
    assert one_flow_us(HEADERS) == pytest.approx(ONE_FLOW_US, rel=0.001)


def test_unfairness_is_what_sprayed_tails_say() -> None:
    assert min((0.2, 0.3, 0.4), key=tail_error) == UNFAIRNESS
    assert spray_factor(UNFAIRNESS) == pytest.approx(0.88, abs=0.01)


@pytest.mark.parametrize("row", PUBLISHED)
def test_all_statistics_are_within_ten_percent(row: str) -> None:
    """Medians, means and tails; of single paths with nothing that was fitted to them."""
    factor = spray_factor(UNFAIRNESS) if row in SPRAYED else HEADERS
    assert np.abs(errors(row, factor, UNFAIRNESS)).max() < 0.10


def test_max_min_fairness_alone_is_off_in_both_directions() -> None:
    """The docstring's claim; the reason for `Model.unfairness`."""
    median, mean, p99, most = errors(SINGLE, HEADERS, 0.0)
    assert median > 0.20
    assert mean > 0.10
    assert p99 > 0.10
    assert abs(most) < 0.03
    assert tail_error(0.0) > 0.15
    for row in SPRAYED:
        assert (errors(row, spray_factor(0.0), 0.0)[2:] < -0.05).all()


def test_the_tail_of_an_incast() -> None:
    """128 senders to one: the last ends when all bytes have arrived, whatever their shares."""
    timeline = run(
        ScheduleSpec("reduce", 129, "direct"),
        tree(),
        NBYTES,
        model=Model(latency_s=extra_s(6), efficiency=HEADERS, unfairness=UNFAIRNESS),
        record=True,
        bounds="none",
    )
    assert len(timeline.messages) == 128
    assert timeline.messages[:, 8].max() / 1e6 == pytest.approx(INCAST_MAX_US, rel=0.015)


def test_seeds_of_ecmp_differ_as_hashes_do() -> None:
    means = [
        flow_times_us(tree(), "ecmp", seed, [], 6, UNFAIRNESS).mean()
        for seed in range(SEEDS["ecmp"])
    ]
    assert 0.003 < np.std(means) / np.mean(means) < 0.05
