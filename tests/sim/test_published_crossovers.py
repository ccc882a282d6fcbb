"""The sizes at which rings overtake trees: NCCL's all_reduce on DGX H100 (8 GPUs and 8 NICs per
node).

NCCL 2.30's tuning model first prefers rings at the sizes below, scanned by powers of two. It is a
table of latencies with factors fitted to machines, not a simulation, so what is compared is the
trend (the size grows with the nodes) and the order of magnitude (a factor of ten), no more.

Modelled: NVLink 450 GB/s per GPU and 3.4 us per message between GPUs of a node; 50 GB/s per NIC and
14 us per message between nodes (NCCL's latencies of its protocol for large messages).

  ring   8 rings over all GPUs, each through another NIC of every node. They are alike, so one is
         simulated, of an eighth of the bytes with an eighth of NVLink. Every step waits for the
         hop between nodes, where NCCL's buffers let the hops inside run ahead.
  tree   rings inside the nodes, double trees along the rails: `hierarchical_tree`

The simulated crossover grows more slowly than NCCL's, from 256 MiB at 2 nodes to 4 GiB at 128: it
is eight times too high at one end and eight times too low at the other. NCCL's trees pass pieces of
one size on, however large the vector, within a tenth of the rings' bandwidth; these cut it into 16
pieces per tree, and their three phases do not overlap.
"""

from __future__ import annotations

from functools import cache

import pytest

from jaxcoll.schedule import ScheduleSpec
from jaxcoll.simulate import run
from jaxcoll.topology import Topology, rail_optimised

GPUS = 8
NVLINK_BPS, NIC_BPS = 450e9, 50e9
INSIDE_S, ACROSS_S = 3.4e-6, 14e-6
MIB = 1 << 20
PUBLISHED_MIB = {2: 32, 4: 64, 8: 2048, 16: 4096, 32: 8192, 128: 32768}


@cache
def one_ring(nodes: int) -> Topology:
    network = Topology(f"one of {GPUS} rings through {nodes} nodes")
    network.add_switch("fabric")
    for n in range(nodes):
        inside = network.add_switch(f"nvs{n}", "nvswitch")
        for g in range(GPUS):
            gpu = network.add_host(f"n{n}g{g}")
            network.connect(gpu, inside, NVLINK_BPS / GPUS, INSIDE_S / 2, medium="nvlink")
        network.connect(inside, "fabric", NIC_BPS, (ACROSS_S - INSIDE_S) / 2)
    return network


@cache
def rails(nodes: int) -> Topology:
    return rail_optimised(
        nodes,
        gpus_per_node=GPUS,
        nvlink_Bps=NVLINK_BPS,
        nvlink_latency_s=INSIDE_S / 2,
        bandwidth_Bps=NIC_BPS,
        latency_s=ACROSS_S / 2,
    )


def ring_is_ahead(nodes: int, nbytes: int) -> bool:
    ring = ScheduleSpec("all_reduce", nodes * GPUS, "ring")
    tree = ScheduleSpec("all_reduce", nodes * GPUS, "hierarchical_tree", dims=(nodes, GPUS))
    ring_s = run(ring, one_ring(nodes), nbytes // GPUS, bounds="none").time_s
    return ring_s < run(tree, rails(nodes), nbytes, bounds="none").time_s


@cache
def crossover_mib(nodes: int) -> int:
    """The first power of two at which rings are ahead."""
    low, high = 0, 20  # not ahead at 2^low, ahead at 2^high
    assert not ring_is_ahead(nodes, MIB << low)
    assert ring_is_ahead(nodes, MIB << high)
    while high - low > 1:
        middle = (low + high) // 2
        if ring_is_ahead(nodes, MIB << middle):
            high = middle
        else:
            low = middle
    return 1 << high


def check(nodes: list[int]) -> None:
    sizes = [crossover_mib(n) for n in nodes]
    assert sizes == sorted(sizes)
    assert sizes[-1] > sizes[0]
    for n, size in zip(nodes, sizes, strict=True):
        assert 0.1 < size / PUBLISHED_MIB[n] < 10, (n, size)


def test_rings_overtake_trees_later_the_more_nodes_there_are() -> None:
    check([2, 4, 8, 16])


@pytest.mark.exhaustive
def test_rings_overtake_trees_later_up_to_128_nodes() -> None:
    check([2, 4, 8, 16, 32, 128])


@pytest.mark.parametrize("nodes", [2, 4])
def test_the_slowest_hop_paces_a_ring(nodes: int) -> None:
    """A receiver makes room for the next piece when the last one is there: a step at a time."""
    p, n = nodes * GPUS, 64 * MIB
    timeline = run(ScheduleSpec("all_reduce", p, "ring"), one_ring(nodes), n, bounds="none")
    steps = 2 * (p - 1)
    assert timeline.time_s == pytest.approx(steps * (ACROSS_S + n / p / NIC_BPS), rel=1e-9)
