"""Properties that must hold for every simulation: conservation, symmetry, determinism, bounds."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from jaxcoll import simulate
from jaxcoll.schedule import INPUT, OUTPUT, Schedule, ScheduleSpec, algorithms, build, copy, put
from jaxcoll.sim.bounds import Bounds
from jaxcoll.simulate import Change, Model, SimulationError, Stragglers, Timeline, Traffic, run
from jaxcoll.topology import (
    Topology,
    dragonfly,
    fat_tree,
    leaf_spine,
    multi_plane,
    rail_only,
    rail_optimised,
    ring,
    switch,
    torus,
)

MODEL = Model(overhead_s=1e-6, latency_s=1e-6, reduce_s_per_byte=1e-11)
NETWORKS = {
    "ring": ring(16),
    "torus": torus([4, 2, 2]),
    "switch": switch(16),
    "leaf_spine": leaf_spine(16, hosts_per_leaf=4, oversubscription=2),
    "fat_tree": fat_tree(16, radix=4),
    "rail_optimised": rail_optimised(4, gpus_per_node=4),
    "rail_only": rail_only(4, gpus_per_node=4),
    "dragonfly": dragonfly(4, routers_per_group=2, hosts_per_router=2),
    "multi_plane": multi_plane(16, planes=2, radix=8),
}
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "reduce")


def spec(collective: str, algorithm: str, ranks: int = 16) -> ScheduleSpec:
    return ScheduleSpec(collective, ranks, algorithm)  # type: ignore[arg-type]


@pytest.mark.parametrize("routing", simulate.ROUTINGS)
@pytest.mark.parametrize("name", NETWORKS)
def test_links_carry_what_the_schedule_sends_and_no_bound_is_beaten(
    name: str, routing: simulate.Routing
) -> None:
    """The engine checks every node's and link's books; here hosts' totals, from the programs."""
    topology = NETWORKS[name]
    links = topology.links
    for collective in COLLECTIVES:
        for algorithm in algorithms(collective):
            schedule = build(spec(collective, algorithm))
            timeline = run(schedule, topology, 48_000, model=MODEL, routing=routing, seed=3)
            assert timeline.gap >= 1 - 1e-6
            sent = [float(part) * timeline.nbytes for part in schedule.cost().sent]
            balance = Counter[str]()
            for link, carried in zip(links, timeline.link_bytes.tolist(), strict=True):
                balance[link.source] += carried
                balance[link.destination] -= carried
            received = Counter[int]()
            for program in schedule.programs:
                for op in program.ops:
                    if op.kind == "send":
                        layout = program.chunks_per_block
                        blocks = max(program.input_blocks, program.output_blocks)
                        received[op.peer] += len(op.destination) / layout / blocks * timeline.nbytes
            for rank, host in enumerate(timeline.hosts):
                assert balance[host] == pytest.approx(sent[rank] - received[rank], abs=1e-6)
            for node in topology.switches:
                assert balance[node] == 0


@pytest.mark.parametrize("collective", COLLECTIVES)
def test_relabelling_hosts_changes_nothing(collective: str) -> None:
    """On a symmetric network it does not matter who is who."""
    topology = switch(12)
    rng = random.Random(0)
    for algorithm in algorithms(collective):
        times = set()
        for _ in range(4):
            placement = rng.sample(topology.hosts, 12)
            timeline = run(
                spec(collective, algorithm, 12),
                topology,
                12_000,
                model=MODEL,
                placement=placement,
                bounds="none",
            )
            times.add((timeline.time_ps, tuple(timeline.rank_time_ps.tolist())))
        assert len(times) == 1, algorithm


def test_turning_a_torus_changes_nothing() -> None:
    topology = torus([4, 4])
    shifted = [f"h{(i // 4 + 1) % 4}.{(i % 4 + 2) % 4}" for i in range(16)]
    for algorithm in ("ring", "direct2", "halving_doubling"):
        # Spraying has no hash that would tell the nodes apart.
        plain = run(spec("all_reduce", algorithm), topology, 64_000, routing="spray")
        turned = run(
            spec("all_reduce", algorithm), topology, 64_000, routing="spray", placement=shifted
        )
        assert plain.time_ps == turned.time_ps


@pytest.mark.parametrize("routing", simulate.ROUTINGS)
def test_the_same_seed_gives_the_same_result_and_another_another(
    routing: simulate.Routing,
) -> None:
    topology = NETWORKS["fat_tree"]

    def one(seed: int) -> Timeline:
        return run(
            spec("all_to_all", "direct"),
            topology,
            160_000,
            model=MODEL,
            routing=routing,
            seed=seed,
            stragglers=Stragglers(jitter=0.05),
            record=True,
        )

    first, again, other = one(1), one(1), one(2)
    assert first.time_ps == again.time_ps
    np.testing.assert_array_equal(first.messages, again.messages)
    np.testing.assert_array_equal(first.link_bytes, again.link_bytes)
    assert first.time_ps != other.time_ps


def test_messages_are_recorded_in_order_of_cause() -> None:
    timeline = run(
        spec("all_reduce", "halving_doubling"),
        NETWORKS["leaf_spine"],
        10**6,
        model=MODEL,
        record=True,
    )
    assert len(timeline.messages) == timeline.message_count == 16 * 8
    ready, sent, left, arrived, done = timeline.messages[:, 5:].T
    assert (ready <= sent).all()
    assert (sent < left).all()
    assert (left + 1_000_000 <= arrived).all()  # l is 1 us
    assert (arrived <= done).all()
    assert done.max() == timeline.time_ps == timeline.rank_time_ps.max()


def test_a_port_takes_one_message_of_a_channel_at_a_time_unless_told() -> None:
    topology = switch(4, bandwidth_Bps=1e9, latency_s=0)
    n = 4_000_000
    one = run(spec("broadcast", "direct", 4), topology, n, record=True)
    assert sorted(one.messages[:, 7].tolist()) == [4 * 10**9, 8 * 10**9, 12 * 10**9]
    at_once = run(
        spec("broadcast", "direct", 4), topology, n, model=Model(in_flight=0), record=True
    )
    assert at_once.messages[:, 7].tolist() == [12 * 10**9] * 3


# --- what slows down -----------------------------------------------------------------------------


def test_a_late_rank_delays_a_ring_by_as_much() -> None:
    topology = switch(4)
    plain = run(spec("all_reduce", "ring", 4), topology, 10**6, model=MODEL)
    late = run(
        spec("all_reduce", "ring", 4),
        topology,
        10**6,
        model=MODEL,
        stragglers=Stragglers(start_s=(0, 0, 5e-3, 0)),
    )
    assert late.time_ps == plain.time_ps + 5_000_000_000


def test_slow_ranks_scale_what_they_compute() -> None:
    topology = switch(2, latency_s=0)
    model = Model(overhead_s=1e-6, reduce_s_per_byte=1e-9)
    plain = run(spec("all_reduce", "recursive_doubling", 2), topology, 1000, model=model)
    slow = run(
        spec("all_reduce", "recursive_doubling", 2),
        topology,
        1000,
        model=model,
        stragglers=Stragglers(slowdown=(3.0, 3.0)),
    )
    assert slow.time_ps - plain.time_ps == 2 * (1_000_000 + 1_000_000)


def test_jitter_slows_a_ring_a_little() -> None:
    topology = switch(8)
    plain = run(spec("all_reduce", "ring", 8), topology, 8000, model=MODEL)
    times = [
        run(
            spec("all_reduce", "ring", 8),
            topology,
            8000,
            model=MODEL,
            stragglers=Stragglers(jitter=0.01),
            seed=seed,
        ).time_ps
        for seed in range(5)
    ]
    assert len(set(times)) == 5
    assert all(plain.time_ps < time < 1.05 * plain.time_ps for time in times)


def test_background_traffic_takes_its_fair_share() -> None:
    topology = switch(3, bandwidth_Bps=1e9, latency_s=0)
    pairs = ((0, 1),)
    one = ScheduleSpec("permute", 2, permutation=pairs)
    n = 1_000_000
    assert run(one, topology, n).time_ps == 10**9
    # A third host's endless traffic to the same receiver: half each.
    half = run(one, topology, n, background=[Traffic("h2", "h1", 1e9)])
    assert half.time_ps == 2 * 10**9
    # One that asks for a fifth gets it.
    fifth = run(one, topology, n, background=[Traffic("h2", "h1", 2e8)])
    assert fifth.time_ps == pytest.approx(10**9 / 0.8, abs=2)
    # One that ends half way.
    ends = run(one, topology, n, background=[Traffic("h2", "h1", 1e9, nbytes=250_000)])
    assert ends.time_ps == pytest.approx(1.25e9, abs=2)


def test_unfair_shares_let_one_message_end_early_and_the_last_no_later() -> None:
    """Two senders, one receiver: together they fill its link in any case."""
    topology = switch(3, bandwidth_Bps=1e9, latency_s=0)
    ends = set()
    for seed in range(4):
        model = Model(unfairness=0.5)
        timeline = run(
            spec("reduce", "direct", 3), topology, 10**6, model=model, seed=seed, record=True
        )
        first, last = sorted(timeline.messages[:, 7].tolist())
        assert 10**9 < first < 2 * 10**9
        assert last == pytest.approx(2 * 10**9, abs=3)
        ends.add(first)
    assert len(ends) == 4
    with pytest.raises(ValueError, match=r"model\.unfairness is -1, but must be at least 0"):
        run(spec("reduce", "direct", 3), topology, 10**6, model=Model(unfairness=-1))


# --- what breaks ---------------------------------------------------------------------------------


def test_a_link_that_fails_on_the_way_is_routed_around() -> None:
    topology = Topology("two ways")
    a, b = topology.add_host("a"), topology.add_host("b")
    for s in ("s", "t"):
        topology.add_switch(s)
        topology.connect(a, s, 1e9)
        topology.connect(s, b, 1e9)
    pairs = ((0, 1),)
    one = ScheduleSpec("permute", 2, permutation=pairs)
    n = 1_000_000
    plain = run(one, topology, n)
    used = next(name for name, load in plain.bottlenecks(1))
    broken = used.split("->")[1]
    other = {"s": "t", "t": "s"}[broken]
    cut = run(one, topology, n, changes=[Change(0.25e-3, broken)])
    assert cut.time_ps == plain.time_ps == 10**9  # the rest goes the other way as fast
    carried = dict(zip([x.name for x in topology.links], cut.link_bytes.tolist(), strict=True))
    assert carried[f"a->{broken}"] == 250_000
    assert carried[f"a->{other}"] == carried[f"{other}->b"] == 750_000
    # Degraded, it is kept.
    slow = run(one, topology, n, changes=[Change(0.5e-3, f"a--{broken}", factor=0.5)])
    assert slow.time_ps == pytest.approx(1.5e9, abs=2)
    with pytest.raises(ValueError, match=r"no path of working links leads from a to b; down: s, t"):
        run(one, topology, n, failures=["s"], changes=[Change(0.1e-3, "t")])


@pytest.mark.parametrize("routing", simulate.ROUTINGS)
def test_failures_never_lose_a_byte(routing: simulate.Routing) -> None:
    topology = fat_tree(64, radix=8)
    rng = random.Random(7)
    for _ in range(3):
        down = topology.draw_failures(6, seed=rng.randrange(100))
        changes = [Change(rng.random() * 1e-4, name) for name in down[2:]]
        for algorithm in ("ring", "halving_doubling", "direct2"):
            timeline = run(
                spec("all_reduce", algorithm, 64),
                topology,
                64_000,
                model=MODEL,
                routing=routing,
                failures=down[:2],
                changes=changes,
                bounds="quick",
            )
            assert timeline.gap >= 1 - 1e-6


def test_a_mended_link_is_used_again() -> None:
    topology = ring(4, latency_s=0)
    pairs = ((0, 1),)
    one = ScheduleSpec("permute", 2, permutation=pairs)
    down = ["h0--h1"]
    # Around the other way; a message that has started stays there.
    there = run(one, topology, 10**6, failures=down, changes=[Change(1e-6, "h0--h1", 1.0)])
    assert dict(there.bottlenecks(1)).keys() <= {"h0->h3", "h3->h2", "h2->h1"}


# --- bounds --------------------------------------------------------------------------------------


def test_a_time_below_a_bound_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Bounds._ports
    monkeypatch.setattr(Bounds, "_ports", lambda *a: 100 * wrong(*a))  # type: ignore[arg-type]
    with pytest.raises(SimulationError, match=r"is below its ports bound of .* us"):
        run(spec("all_reduce", "ring", 4), switch(4), 10**6)


def test_bounds_are_met_where_a_schedule_is_optimal() -> None:
    topology = switch(8, bandwidth_Bps=1e9, latency_s=0)
    for collective, algorithm in (
        ("all_gather", "ring"),
        ("reduce_scatter", "ring"),
        ("all_to_all", "direct"),
        ("all_reduce", "ring"),
    ):
        assert run(spec(collective, algorithm, 8), topology, 8000).gap == pytest.approx(1, abs=1e-4)


def test_flow_bounds_equal_known_optima() -> None:
    """Even-d ring all_to_all: n b d / 8; all_gather: into a rank by both its ports."""
    d, n = 8, 8 * 1000
    around = ring(d, bandwidth_Bps=1e9, latency_s=0)
    bounds = {b.name: b.time_s for b in run(spec("all_to_all", "direct", d), around, n).bounds}
    assert bounds["flow"] == pytest.approx(n / 1e9 * d / 8, rel=1e-4)
    bounds = {b.name: b.time_s for b in run(spec("all_gather", "ring", d), around, n).bounds}
    assert bounds["flow"] == pytest.approx((d - 1) / d * n / 2e9, rel=1e-4)
    # A cable at half speed: what its rank can be given, and give.
    slow = Topology("slow")
    slow.add_switch("s")
    for h in range(4):
        slow.connect(slow.add_host(f"h{h}"), "s", 1e9 if h else 5e8)
    bounds = {b.name: b.time_s for b in run(spec("all_gather", "ring", 4), slow, 4000).bounds}
    assert bounds["flow"] == pytest.approx(3000 / 5e8, rel=1e-4)


def test_latency_bound_counts_turns_only_where_messages_occupy_the_port() -> None:
    def latency_bound(model: Model, p: int) -> float:
        topology = switch(p, latency_s=0.5e-6)
        timeline = run(spec("all_reduce", "direct", p), topology, 4, model=model)
        return {b.name: b.time_s for b in timeline.bounds}["latency"]

    assert latency_bound(Model(latency_s=1e-6), 16) == pytest.approx(2e-6)
    # With l = 0 and instant links: ceil(log2 p) turns.
    for p in (2, 5, 16):
        topology = switch(p, latency_s=0)
        timeline = run(
            spec("all_gather", "bruck", p), topology, 4 * p, model=Model(overhead_s=1e-6)
        )
        bounds = {b.name: b.time_s for b in timeline.bounds}
        assert bounds["latency"] == pytest.approx((p - 1).bit_length() * 1e-6)


# --- schedules written in Python ------------------------------------------------------------------


def test_a_schedule_written_in_python_is_simulated_as_the_built_in_one() -> None:
    p = 5
    ops = [copy(r, INPUT[0], OUTPUT[r]) for r in range(p)]
    for step in range(p - 1):
        for r in range(p):
            block = OUTPUT[(r - step) % p]
            ops += put(r, (r + 1) % p, block, block, step=step)
    mine = Schedule.from_ops("all_gather", p, ops)
    topology = switch(p)
    ours = run(spec("all_gather", "ring", p), topology, 10_000, model=MODEL)
    assert run(mine, topology, 10_000, model=MODEL).time_ps == ours.time_ps


def test_a_schedule_that_deadlocks_is_refused() -> None:
    from jaxcoll.schedule import recv, send

    ops = []
    for r in range(2):
        ops.append(recv(r, 1 - r, INPUT[0], OUTPUT[0]))
        first = ops[-1]
        ops.append(send(r, 1 - r, INPUT[0], OUTPUT[0], after=[first]))
    stuck = Schedule.from_ops("all_reduce", 2, ops)
    with pytest.raises(ValueError, match=r"deadlocks: rank 0 never starts its op of step 0"):
        run(stuck, switch(2), 100)


def test_a_message_without_a_receiver_is_refused() -> None:
    from jaxcoll.schedule import send

    lost = Schedule.from_ops("all_reduce", 2, [send(0, 1, INPUT[0], OUTPUT[0])])
    with pytest.raises(ValueError, match=r"from rank 0 to rank 1 .* is never received"):
        run(lost, switch(2), 100)
