"""The engine's binding refuses each number that it cannot use, with the range; none is trusted."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import numpy as np
import pytest

from jaxcoll._native import native
from jaxcoll.schedule import ScheduleSpec
from jaxcoll.schedule.spec import spec_to_tuple
from jaxcoll.simulate import Model, Stragglers, Traffic, run
from jaxcoll.topology import Topology, TopologyError, parse, ring, switch

ENDLESS = None


def network(
    source: int = 0, destination: int = 1, bandwidth_Bps: float = 1e9, latency_ps: float = 0.0
) -> Any:
    """Two nodes that forward, and links from one to the other and back."""
    return native.sim_network(
        ["0", "1"],
        np.ones(2, np.uint8),
        np.array([source, 1], np.int32),
        np.array([destination, 0], np.int32),
        np.array([bandwidth_Bps, 1e9]),
        np.array([latency_ps, 0.0]),
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": 7}, "a link's source is 7, but must be from 0 to 1"),
        ({"source": -1}, "a link's source is -1, but must be from 0 to 1"),
        ({"destination": 2}, "a link's destination is 2, but must be from 0 to 1"),
        ({"destination": (1 << 31) - 1}, "a link's destination is 2147483647, but must be from 0"),
        (
            {"bandwidth_Bps": -1e12},
            "a link's capacity in .* is -1, but must be finite, and 0 or mo",
        ),
        ({"bandwidth_Bps": math.nan}, "a link's capacity in .* is nan, but must be finite"),
        ({"bandwidth_Bps": math.inf}, "a link's capacity in .* is inf, but must be finite"),
        ({"latency_ps": -1e12}, "a link's latency is -1 s, but must be 0 or more"),
        ({"latency_ps": math.nan}, "a link's latency is nan s, but must be 0 or more"),
        ({"latency_ps": math.inf}, "a link's latency is inf s, inf times the most"),
        ({"latency_ps": 5e18}, r"a link's latency is 5e\+06 s, 1.08 times the most"),
    ],
)
def test_links_have_ends_that_exist(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network(**arguments)


def test_numbers_of_64_bits_are_not_wrapped_into_nodes() -> None:
    with pytest.raises(TypeError, match="incompatible function arguments"):
        native.sim_network(
            ["0", "1"],
            np.ones(2, np.uint8),
            np.array([1 << 32]),  # type: ignore[arg-type]
            np.array([1]),  # type: ignore[arg-type]
            np.array([1e9]),
            np.array([0.0]),
        )
    far = Topology("far")
    far.add_hosts(["a", "b"])
    cases: list[tuple[Any, Any, str]] = [
        ([0], [2], "far: a link ends at node 2, but nodes are from 0 to 1"),
        ([-1], [1], "far: a link ends at node -1, but nodes are from 0 to 1"),
        ([1 << 32], [1], "far: a link ends at node 4294967296, but nodes are from 0 to 1"),
        ([0, 0, 9], 1, "far: a link ends at node 9, but nodes are from 0 to 1"),
        ([0.5], [1], "far: a link's ends are float64, not node numbers"),
        ([True], [0], "far: a link's ends are bool, not node numbers"),
    ]
    for a, b, message in cases:
        with pytest.raises(TopologyError, match=re.escape(message)):
            far.connect_all(a, b, 1e9)
    assert len(far.links) == 0
    far.connect_all(np.array([0], np.uint8), 1, 1e9)
    far.connect_all([], [], 1e9)
    assert len(far.links) == 2


@pytest.mark.parametrize("start", [-1, 2, 1 << 31, 1 << 40])
def test_reachable_begins_at_a_node(start: int) -> None:
    with pytest.raises(ValueError, match=f"the start is {start}, but must be from 0 to 1"):
        native.sim_reachable(network(), start, False)


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ((5, 1, 0, 0), "the source is 5, but must be from 0 to 1"),
        ((0, -1, 0, 0), "the destination is -1, but must be from 0 to 1"),
        ((1, 1, 0, 0), "a route leads from a node to another"),
        ((0, 1, -1, 0), "the channel is -1, but must be from 0 to 4095"),
        ((0, 1, 4096, 0), "the channel is 4096, but must be from 0 to 4095"),
        ((0, 1, 0, 256), "the part is 256, but must be from 0 to 255"),
        ((0, 1, 0, 1 << 40), "the part is 1099511627776, but must be from 0 to 255"),
    ],
)
def test_a_route_is_asked_for_by_numbers_that_exist(ends: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        native.sim_route(network(), "ecmp", 0, *ends)
    assert native.sim_route(network(), "ecmp", 0, 0, 1, 4095, 255) == [(0, 1.0)]


def simulated(**changed: Any) -> int:
    arguments: dict[str, Any] = {
        "graph": native.sim_graph(spec_to_tuple(ScheduleSpec("all_reduce", 2, "ring")), 1 << 40),
        "network": network(),
        "node_of": [0, 1],
        "block_elements": 8,
        "element_bytes": 4,
        "overhead_ps": 0,
        "latency_ps": 0,
        "reduce_ps_per_byte": 0.0,
        "copy_ps_per_byte": 0.0,
        "routing": "ecmp",
        "split": 1,
        "seed": 0,
        "in_flight": 1,
        "efficiency": 1.0,
        "quantum_ps": 0,
        "jitter": 0.0,
        "unfairness": 0.0,
        "slowdown": [],
        "start_ps": [],
        "changes": [],
        "background": [],
        "record": False,
    }
    return int(native.simulate(**{**arguments, **changed})["time_ps"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"node_of": [0, 2]}, "the node of a rank is 2, but must be from 0 to 1"),
        ({"node_of": [0, 1 << 40]}, "the node of a rank is 1099511627776, but must be from 0 to"),
        ({"node_of": [0]}, "the schedule is for 2 ranks, the placement for 1"),
        ({"block_elements": -1}, "the number of elements of a block is -1, but must be from 0"),
        ({"element_bytes": -1}, "the size of an element is -1, but must be from 0 to"),
        ({"overhead_ps": -1}, "an overhead takes -1e-12 s, but must be 0 or more"),
        ({"latency_ps": -1}, "a message's latency is -1e-12 s, but must be 0 or more"),
        ({"quantum_ps": -1}, "the quantum is -1e-12 s, but must be 0 or more"),
        ({"split": 0}, "the number of parts of a message is 0, but must be from 1 to 256"),
        ({"split": 257}, "the number of parts of a message is 257, but must be from 1 to 256"),
        ({"in_flight": -1}, "the number of messages in flight is -1, but must be from 0 to"),
        ({"in_flight": 1 << 40}, "the number of messages in flight is 1099511627776, but"),
        ({"efficiency": 2.0}, "the efficiency is 2, but must be from 0 to 1"),
        ({"efficiency": 0.0}, "the efficiency is 0"),
        ({"jitter": math.nan}, "the jitter is nan, but must be finite, and 0 or more"),
        ({"unfairness": 101.0}, "the unfairness is 101, but must be from 0 to 100"),
        ({"reduce_ps_per_byte": math.nan}, "the time of a reduction per byte is nan"),
        ({"copy_ps_per_byte": -1.0}, "the time of a copy per byte is -1"),
        ({"slowdown": [1.0, math.nan]}, "a slowdown is nan"),
        ({"slowdown": [1.0]}, "slowdowns and starts are for 1 and 0 of 2 ranks"),
        ({"start_ps": [0, -1]}, "a rank starts at -1e-12 s, but must be 0 or more"),
        ({"changes": [(0, 2, 1.0)]}, "a change's link is 2, but must be from 0 to 1"),
        ({"changes": [(0, 1 << 40, 1.0)]}, "a change's link is 1099511627776, but must be from"),
        ({"changes": [(-1, 0, 1.0)]}, "a link changes at -1e-12 s, but must be 0 or more"),
        ({"changes": [(1, 0, math.inf)]}, "a changed capacity in .* is inf, but must be finite"),
        ({"background": [(0, 2, 0, 1, 1e9, 0.0)]}, "an end of background traffic is 2, but must"),
        ({"background": [(-1, 1, 0, 1, 1e9, 0.0)]}, "an end of background traffic is -1, but"),
        ({"background": [(0, 1, 0, -1, 1e9, 0.0)]}, "background traffic has -1 bytes"),
        ({"background": [(0, 1, -1, 1, 1e9, 0.0)]}, "traffic begins at -1e-12 s, but must be 0"),
    ],
)
def test_a_simulation_has_parameters_in_range(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        simulated(**changed)


def op(**changed: Any) -> tuple[Any, ...]:
    chunks = changed.pop("chunks", [(0, 1)])
    fields = {"kind": 3, "channel": 0, "peer": 0, "sequence": 0, "step": 0, **changed}
    return (*fields.values(), [(0, [(0, 1)])], (1, chunks), [])


@pytest.mark.parametrize(
    ("op_lists", "message"),
    [
        ([], "world_size is 0"),
        ([(0, 0, 1, 1, 0, [])], "the number of chunks per block of rank 0 is 0, but must be from"),
        ([(0, 1, -1, 1, 0, [])], "the number of input blocks of rank 0 is -1, but must be from 0"),
        ([(0, 1, 1, 1, -1, [])], "the number of scratch blocks of rank 0 is -1, but must be from"),
        ([(0, 2, 1, 1, 0, [op(chunks=[(-5, 1)])])], "on chunks -5 to -5 .*, which has 2 chunks"),
        ([(0, 2, 1, 1, 0, [op(chunks=[(0, 3)])])], "on chunks 0 to 2 .*, which has 2 chunks"),
        ([(0, 2, 1, 1, 0, [op(chunks=[(1, -1)])])], "on chunks 1 to -1 .*, which has 2 chunks"),
        ([(0, 2, 1, 1, 0, [op(chunks=[(0, 2)] * 2)])], "on chunks 0 to 1 .*, which has 2 chunks"),
        (
            [(0, 1, 1, 1, 0, [op(chunks=[((1 << 31) - 1,) * 2])])],
            "on chunks 2147483647 to 4294967293 of a buffer, which has 1 chunks",
        ),
        ([(0, 1, 1, 1, 0, [op(channel=4096)])], "an op on channel 4096"),
        ([(0, 1, 1, 1, 0, [op(kind=9)])], "no such kind of op or buffer: 9"),
    ],
)
def test_op_lists_name_chunks_of_their_buffers(op_lists: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        native.sim_graph_of_op_lists(op_lists)


# --- background traffic ---------------------------------------------------------------------------


def test_endless_traffic_has_no_number_of_bytes() -> None:
    """From any number of endpoints: 5000 of 10^15 bytes each were too many."""
    topology = switch(5000)
    hosts = topology.hosts
    load = [Traffic(a, b, share=0.5) for a, b in itertools.pairwise(hosts)]
    spec = ScheduleSpec("permute", 2, permutation=((0, 1),))
    timeline = run(spec, topology, 1 << 20, background=load, bounds="none")
    assert timeline.time_s == pytest.approx(2 * (1 << 20) / 50e9, rel=0.1)
    # It neither keeps a run alive nor ends early.
    assert simulated(background=[(0, 1, 0, ENDLESS, 1e9, 0.0)] * 10) == 32_000 * 11


def test_bytes_by_several_links_count_on_each() -> None:
    """The planes of a host carry `nbytes` each."""
    topology = parse("multi_plane:8,planes=8,radix=16")
    spec = ScheduleSpec("permute", 8, permutation=((0, 1),))
    load = [Traffic("h0", "h1", share=0.5, nbytes=1 << 60)]
    with pytest.raises(ValueError, match=r"background traffic together are 9.22e\+18 bytes, 2 tim"):
        run(spec, topology, 1 << 20, background=load, bounds="none")
    run(spec, topology, 1 << 20, background=[Traffic("h0", "h1", 1e9, nbytes=1 << 60)])


def test_endless_traffic_that_moves_more_than_the_range_is_refused() -> None:
    """At 10^15 bytes per second, 2^62 take 77 minutes; the run takes 167."""
    message = r"the bytes that background traffic moved are 1e\+19 bytes, 2.17 times the most"
    with pytest.raises(ValueError, match=message):
        simulated(
            network=native.sim_network(
                ["0", "1", "2", "3"],
                np.ones(4, np.uint8),
                np.array([0, 1, 2], np.int32),
                np.array([1, 0, 3], np.int32),
                np.array([1e9, 1e9, 1e15]),
                np.zeros(3),
            ),
            latency_ps=5_000 * 10**12,
            background=[(2, 3, 0, ENDLESS, 1e15, 0.0)],
        )


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("collective", ["broadcast", "reduce"])
@pytest.mark.parametrize("algorithm", ["direct", "binomial"])
@pytest.mark.parametrize("root", [0, 77])
def test_a_root_does_not_stand_for_all_ranks(collective: Any, algorithm: str, root: int) -> None:
    """It has up to as many ops as all others together, which were counted for each rank."""
    spec = spec_to_tuple(ScheduleSpec(collective, 4096, algorithm, root=root))
    graph = native.sim_graph(spec, 20 << 20)
    assert graph.ops < 3 * 4096
    with pytest.raises(ValueError, match=r"about \d{4,5} ops, which take 0.00\d+ GB of memory"):
        native.sim_graph(spec, 5 << 20)


def test_ranks_that_are_packed_are_counted() -> None:
    """A root that was not drawn is missing from the estimate of 4096 ops, and then counted."""
    spec = spec_to_tuple(ScheduleSpec("broadcast", 4096, "direct", root=77))
    estimated, needed = (4096 * 1500 + ops * 90 for ops in (4096, 8191))
    with pytest.raises(ValueError, match="the schedule has about 4096 ops"):
        native.sim_graph(spec, estimated - 1)
    with pytest.raises(
        ValueError, match=r"the schedule has at least [4-8]\d{3} ops, .* 0.00\d+ GB "
    ):
        native.sim_graph(spec, (estimated + needed) // 2)
    assert native.sim_graph(spec, needed + 4096 * 8).ops == 8191


# --- bounds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction_ps", [0.4, 0.49, 0.5, 0.6, 1.4, 1.5, 2.5, 1000.5, 7e6 + 0.25])
def test_bounds_count_the_picoseconds_that_the_engine_counts(fraction_ps: float) -> None:
    """Half a picosecond on each of 500 links was a defect."""
    cases = [
        (ring(1000, bandwidth_Bps=1e18, latency_s=fraction_ps * 1e-12), Model()),
        (
            switch(64, bandwidth_Bps=1e18, latency_s=0),
            Model(overhead_s=fraction_ps * 1e-12, latency_s=fraction_ps * 1e-12),
        ),
    ]
    for topology, model in cases:
        for algorithm in ("direct", "binomial"):
            spec = ScheduleSpec("broadcast", len(topology.hosts), algorithm)
            for slowdown in ((), (0.5,) * spec.world_size, (1.3,) * spec.world_size):
                timeline = run(
                    spec,
                    topology,
                    8,
                    model=model,
                    stragglers=Stragglers(slowdown=slowdown),
                    bounds="quick",
                )
                assert timeline.time_ps >= math.floor(timeline.bound_s * 1e12)
