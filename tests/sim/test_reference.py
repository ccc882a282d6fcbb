"""Every algorithm against an independent evaluator of its dependency graph."""

from __future__ import annotations

from fractions import Fraction

import pytest
from reference import Network, evaluate

from jaxcoll._native import native
from jaxcoll.schedule import COLLECTIVES, Schedule, ScheduleSpec, algorithms, build
from jaxcoll.simulate import Model, Stragglers, run
from jaxcoll.topology import Topology, leaf_spine, rail_optimised, ring, switch

ALL = [(c, a) for c in COLLECTIVES for a in algorithms(c) if c != "permute"]


def modelled(topology: Topology, ranks: int, seed: int) -> Network:
    """The network as the evaluator takes it; paths are asked from the router."""
    index = topology.index
    hosts = [index[host] for host in topology.hosts[:ranks]]

    def path(source: int, destination: int, channel: int) -> tuple[int, ...]:
        hops = native.sim_route(
            topology.native, "ecmp", seed, hosts[source], hosts[destination], channel, 0
        )
        return tuple(link for link, _ in hops)

    return Network(
        path,
        {i: Fraction(round(link.bandwidth_Bps)) for i, link in enumerate(topology.links)},
        lambda s, d, c: sum(
            (Fraction(round(topology.links[i].latency_s * 1e12), 10**12) for i in path(s, d, c)),
            Fraction(0),
        ),
    )


def both(schedule: Schedule, topology: Topology, nbytes: int, seed: int = 0) -> tuple[float, float]:
    """Simulated and evaluated, in picoseconds."""
    timeline = run(
        schedule,
        topology,
        nbytes,
        model=Model(overhead_s=1e-6, latency_s=2e-6, reduce_s_per_byte=3e-11),
        seed=seed,
        bounds="quick",
    )
    expected = evaluate(
        schedule,
        nbytes,
        modelled(topology, schedule.world_size, seed),
        itemsize=4,
        overhead=Fraction(1, 10**6),
        latency=Fraction(2, 10**6),
        reduce=Fraction(3, 10**11),
    )
    return timeline.time_ps, float(expected * 10**12)


def check(schedule: Schedule, topology: Topology, nbytes: int, seed: int = 0) -> None:
    simulated, expected = both(schedule, topology, nbytes, seed)
    events = 4 * sum(len(program.ops) for program in schedule.programs)
    assert abs(simulated - expected) <= events


@pytest.mark.parametrize(("collective", "algorithm"), ALL)
@pytest.mark.parametrize("p", [2, 3, 5, 8])
def test_on_one_switch(collective: str, algorithm: str, p: int) -> None:
    schedule = build(ScheduleSpec(collective, p, algorithm))  # type: ignore[arg-type]
    for nbytes in (4 * p, 10_000):  # chunks of unequal length, too
        check(schedule, switch(p, bandwidth_Bps=1e9), nbytes)


@pytest.mark.parametrize(("collective", "algorithm"), ALL)
def test_where_flows_collide(collective: str, algorithm: str) -> None:
    schedule = build(ScheduleSpec(collective, 6, algorithm))  # type: ignore[arg-type]
    for topology in (
        leaf_spine(6, hosts_per_leaf=2, oversubscription=2, bandwidth_Bps=1e9),
        ring(6, bandwidth_Bps=1e9),
        rail_optimised(3, gpus_per_node=2, nvlink_Bps=3e9, bandwidth_Bps=1e9),
    ):
        check(schedule, topology, 30_000, seed=5)


def test_messages_that_arrive_together_are_reduced_in_order_of_channels() -> None:
    """By hand. Two ways round a ring of 5, 1000 B a message and step, both through one port.

    Both leave in 2 us, half the rate each, and arrive together at 3 us. Reducing takes 30 ns: the
    first channel's goes on at 3.03 us, the second's at 3.06 us. So the first has the port to itself
    for 30 ns, the second at the end: left at 5.00 and 5.03, arrived at 6.00 and 6.03, reduced at
    6.03 and 6.06 us; and so on. Were the order another on each rank, both would drift apart.
    """
    timeline = run(
        ScheduleSpec("reduce_scatter", 5, "bucket"),
        switch(5, bandwidth_Bps=1e9, latency_s=0.5e-6),
        10_000,
        model=Model(reduce_s_per_byte=3e-11),
        record=True,
    )
    done_ps = timeline.messages[:, [0, 1, 9]]
    for step in range(4):
        for channel in range(2):
            mine = done_ps[(done_ps[:, 0] == step) & (done_ps[:, 1] == channel)]
            assert mine[:, 2].tolist() == [3_000_000 * (step + 1) + 30_000 * (channel + 1)] * 5


@pytest.mark.parametrize(("apart_ps", "first"), [(0, 1), (1, 1), (2, 1), (3, 2), (1000, 2)])
def test_messages_ready_within_a_rounding_of_each_other_go_in_program_order(
    apart_ps: int, first: int
) -> None:
    """Rank 0 sends to 1 and then to 2, by its program; rank 1 is ready that much later than 2."""
    timeline = run(
        ScheduleSpec("all_gather", 3, "direct"),
        switch(3, bandwidth_Bps=1e9),
        30_000,
        model=Model(),
        stragglers=Stragglers(start_s=(0.0, 1e-6 + apart_ps * 1e-12, 1e-6)),
        record=True,
        bounds="none",
    )
    mine = timeline.messages[timeline.messages[:, 2] == 0]
    assert mine[mine[:, 6].argmin(), 3] == first


@pytest.mark.parametrize("channels", [2, 3])
@pytest.mark.parametrize("algorithm", ["ring", "double_tree", "halving_doubling"])
def test_channels_share_the_port(algorithm: str, channels: int) -> None:
    schedule = build(ScheduleSpec("all_reduce", 4, algorithm, channels=channels))
    check(schedule, switch(4, bandwidth_Bps=1e9), 40_000)


def test_permute() -> None:
    pairs = ((0, 1), (1, 2), (2, 0), (3, 3), (4, 5))
    schedule = build(ScheduleSpec("permute", 6, permutation=pairs))
    check(schedule, leaf_spine(6, hosts_per_leaf=3, oversubscription=3), 4096)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("collective", "algorithm"), ALL)
@pytest.mark.parametrize("p", [4, 6, 7, 9, 12])
def test_more_worlds(collective: str, algorithm: str, p: int) -> None:
    schedule = build(ScheduleSpec(collective, p, algorithm))  # type: ignore[arg-type]
    for seed in range(2):
        check(schedule, switch(p), 100_000, seed)
        check(schedule, leaf_spine(p, hosts_per_leaf=3, oversubscription=1.5), 50_000, seed)
