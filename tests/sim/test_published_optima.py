"""Two DGX-2 chassis: 16 GPUs each, 125 GB/s and 0.35 us inside, 8 x 12.5 GB/s and 2.6 us between.

Published optima (from solvers of collective schedules): all_gather of 1 GB in all 7.75 ms, which is
what a GPU can take in; all_to_all of 1 GB per rank 80.0 ms, which is what fits between the chassis.
"""

from __future__ import annotations

from functools import cache

import pytest

from jaxcoll.schedule import Collective, ScheduleSpec, algorithms
from jaxcoll.simulate import Timeline, run
from jaxcoll.topology import Topology

GIGABYTE = 10**9


@cache
def two_chassis() -> Topology:
    network = Topology("two DGX-2", node_size=16)
    for c in range(2):
        network.add_switch(f"nvs{c}", "nvswitch")
        for g in range(16):
            gpu = network.add_host(f"c{c}g{g}")
            network.connect(gpu, f"nvs{c}", 125e9, 0.175e-6, medium="nvlink")
        network.groups[f"chassis{c}"] = tuple(f"c{c}g{g}" for g in range(16))
    for _ in range(8):
        network.connect("nvs0", "nvs1", 12.5e9, 2.6e-6 - 0.35e-6)
    return network


def simulated(collective: Collective, algorithm: str, placement: str) -> Timeline:
    spec = ScheduleSpec(collective, 32, algorithm)
    return run(spec, two_chassis(), GIGABYTE, routing="spray", placement=placement)


@pytest.mark.parametrize(
    ("collective", "optimum_s"), [("all_gather", 7.75e-3), ("all_to_all", 80e-3)]
)
def test_no_schedule_beats_the_optimum(collective: Collective, optimum_s: float) -> None:
    for algorithm in algorithms(collective):
        for placement in ("linear", "strided:16"):
            timeline = simulated(collective, algorithm, placement)
            assert timeline.bound_s == pytest.approx(optimum_s, rel=0.001)
            assert timeline.time_s > optimum_s


def test_a_shipped_all_to_all_comes_close() -> None:
    assert simulated("all_to_all", "direct", "linear").time_s < 1.1 * 80e-3


def test_all_gathers_are_ranked_by_what_they_send_between_chassis() -> None:
    """A ring sends everything across once, 9.7 ms; recursive doubling sends its nearest last."""
    ring = simulated("all_gather", "ring", "linear").time_s
    assert ring == pytest.approx(31 / 32 * GIGABYTE / 100e9, rel=0.02)
    far_first = simulated("all_gather", "recursive_doubling", "strided:16").time_s
    assert far_first == pytest.approx(5e-3 + 7.5e-3, rel=0.02)
    assert simulated("all_gather", "recursive_doubling", "linear").time_s > 80e-3
