"""Two DGX-2 chassis: 16 GPUs each, 125 GB/s and 0.35 us inside, 8 x 12.5 GB/s and 2.6 us between.

Published optima (from solvers of collective schedules): all_gather of 1 GB in all 7.75 ms, which is
what a GPU can take in; all_to_all of 1 GB per rank 80.0 ms, which is what fits between the chassis.

Modelled as a switch per chassis, half of 0.35 us from each GPU; eight cables join the switches, all
of 12.5 GB/s and of what is left of 2.6 us; messages are sprayed over them. Links cost time, nothing
else does.
"""

from __future__ import annotations

from functools import cache

import pytest

from jaxcoll.schedule import ScheduleSpec, algorithms, parse_algorithm
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


OPTIMA = {
    # The time it takes, and the bound that says so.
    "all_gather": (31 / 32 * GIGABYTE / 125e9, "ports"),
    "all_to_all": (16 * 16 * GIGABYTE / 32 / 100e9, "cut chassis0"),
}


def simulated(collective: str, algorithm: str, placement: str = "linear") -> Timeline:
    name, dims = parse_algorithm(algorithm)
    spec = ScheduleSpec(collective, 32, name, dims=dims)  # type: ignore[arg-type]
    return run(spec, two_chassis(), GIGABYTE, routing="spray", placement=placement)


@pytest.mark.parametrize(
    ("collective", "published_s"), [("all_gather", 7.75e-3), ("all_to_all", 80e-3)]
)
def test_no_schedule_beats_the_optimum(collective: str, published_s: float) -> None:
    optimum_s, name = OPTIMA[collective]
    assert optimum_s == pytest.approx(published_s, rel=1e-9)
    for algorithm in (*algorithms(collective), "hierarchical[2x16]"):
        for placement in ("linear", "strided:16"):
            timeline = simulated(collective, algorithm, placement)
            # On top: the least latency of a last byte.
            bounds_s = {bound.name: bound.time_s for bound in timeline.bounds}
            assert bounds_s[name] == pytest.approx(optimum_s + 0.35e-6, rel=1e-6)
            assert timeline.bound_s == pytest.approx(optimum_s, rel=0.001)
            assert timeline.time_s > optimum_s


@pytest.mark.parametrize("collective", OPTIMA)
def test_a_shipped_schedule_comes_close(collective: str) -> None:
    """Ten percent are asked for; a thousandth is what the rails and the ports being full give."""
    optimum_s, _ = OPTIMA[collective]
    assert optimum_s < simulated(collective, "hierarchical[2x16]").time_s < 1.001 * optimum_s


def test_direct_all_to_all_leaves_the_chassis_idle_for_a_while() -> None:
    """Messages inside a chassis take turns with those across: the cables wait for some of them."""
    assert 1.01 * 80e-3 < simulated("all_to_all", "direct").time_s < 1.1 * 80e-3


def test_all_gathers_are_ranked_by_what_they_send_between_chassis() -> None:
    """A ring sends everything across once, 9.7 ms; recursive doubling sends its nearest last."""
    ring = simulated("all_gather", "ring").time_s
    assert ring == pytest.approx(31 / 32 * GIGABYTE / 100e9, rel=0.02)
    far_first = simulated("all_gather", "recursive_doubling", "strided:16").time_s
    assert far_first == pytest.approx(5e-3 + 7.5e-3, rel=0.02)
    assert simulated("all_gather", "recursive_doubling").time_s > 80e-3
