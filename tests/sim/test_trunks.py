"""Parallel links that always carry the same are simulated as one: that changes nothing."""

from __future__ import annotations

import random

import numpy as np
import pytest

from jaxcoll.schedule import ScheduleSpec
from jaxcoll.simulate import Change, Model, Timeline, Traffic, run
from jaxcoll.topology import Topology, TopologyError, fat_tree, multi_plane

MODEL = Model(overhead_s=1e-6, latency_s=1e-6, reduce_s_per_byte=1e-11)
NETWORKS = {
    "one plane": fat_tree(32, radix=8, cores=4),
    "two planes": multi_plane(32, planes=2, radix=16, spines=2),
}
# Long after the end; but a link that will change is simulated on its own.
NEVER_S = 1e5


def simulate(topology: Topology, algorithm: str, seed: int, *, apart: bool) -> Timeline:
    rng = random.Random(seed)
    failures = topology.draw_failures(rng.choice((0, 3)), seed=seed)
    down = set().union(*[topology.find_links(name) for name in failures])
    alone = [
        Change(NEVER_S, f"{link.source}->{link.destination}#{link.number}", 0.5)
        for i, link in enumerate(topology.links)
        if i not in down
    ]
    hosts = rng.sample(topology.hosts, 2)
    return run(
        ScheduleSpec("all_reduce", 32, algorithm),
        topology,
        rng.randrange(1, 10**6),
        model=MODEL,
        placement=f"random:{seed}",
        routing="spray",
        failures=failures,
        changes=alone if apart else (),
        background=[Traffic(*hosts, 5e9)] if seed % 2 else (),
        record=True,
        bounds="none",
    )


@pytest.mark.seeds(4, exhaustive=40)
@pytest.mark.parametrize("name", NETWORKS)
def test_trunks_take_the_time_of_their_links(name: str, seed: int) -> None:
    topology = NETWORKS[name]
    for algorithm in ("ring", "direct2", "halving_doubling"):
        merged = simulate(topology, algorithm, seed, apart=False)
        apart = simulate(topology, algorithm, seed, apart=True)
        np.testing.assert_array_equal(merged.messages, apart.messages)
        assert merged.time_ps == apart.time_ps
        # Which of parallel links got a message's odd byte is all that may differ.
        difference = np.abs(merged.link_bytes - apart.link_bytes).max()
        assert difference <= merged.message_count
        assert merged.link_bytes.sum() == apart.link_bytes.sum()


def test_a_link_that_changes_on_the_way_leaves_its_trunk() -> None:
    """Half of two cables fails half way: what is left takes twice as long."""
    topology = Topology("two cables")
    a, b = topology.add_host("a"), topology.add_host("b")
    for _ in range(2):
        topology.connect(a, b, 1e9)
    one = ScheduleSpec("permute", 2, permutation=((0, 1),))
    n = 2_000_000
    assert run(one, topology, n, routing="spray").time_ps == 10**9
    cut = run(one, topology, n, routing="spray", changes=[Change(0.5e-3, "a->b#1")])
    assert cut.time_ps == 1_500_000_000
    assert cut.link_bytes.tolist() == [1_500_000, 0, 500_000, 0]
    assert run(one, topology, n, routing="spray", failures=["a->b#1"]).time_ps == 2 * 10**9


def test_switches_that_parallel_links_share_are_counted_and_checked() -> None:
    tree = fat_tree(4096, radix=64, cores=64).components()
    assert (tree["switches.tor"], tree["switches.agg"], tree["switches.core"]) == (128, 128, 64)
    assert tree["links"] == 3 * 4096
    planes = multi_plane(4096, planes=8, radix=512, spines=8).components()
    assert (planes["switches.leaf"], planes["switches.spine"]) == (8 * 16, 8 * 8)
    assert planes["links"] == 8 * 2 * 4096
    with pytest.raises(TopologyError, match="32 cores of 64 ports are too few: 4096 links lead up"):
        fat_tree(4096, radix=64, cores=32)
    with pytest.raises(TopologyError, match="48 cores in 32 equal parts cannot share 32 links"):
        fat_tree(4096, radix=64, cores=48)
    with pytest.raises(TopologyError, match="3 spines in 1 equal parts cannot share 8 links"):
        multi_plane(64, radix=16, spines=3)
