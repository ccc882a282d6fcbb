"""The schedule as the engine runs it, and the costs that are fitted to measured times."""

from __future__ import annotations

import pytest

from jaxcoll import topology, verify
from jaxcoll.schedule import Schedule, ScheduleSpec, algorithms
from jaxcoll.simulate import Model, run
from jaxcoll.tune.costs import LinkCosts, MemoryCosts, NodeCosts, Sample, fit, misfit
from jaxcoll.tune.engine_model import as_run, cut, predict_s

KIB, MIB = 1 << 10, 1 << 20


@pytest.mark.parametrize("collective", ["all_reduce", "all_gather", "all_to_all", "broadcast"])
@pytest.mark.parametrize(("slices", "in_flight"), [(3, 2), (5, 4)])
def test_cut_into_slices_a_schedule_is_still_right(collective: str, slices: int, in_flight: int):
    for name in algorithms(collective):
        spec = ScheduleSpec(collective, 6, name)  # type: ignore[arg-type]
        made = as_run(spec, slices, in_flight)
        verify(made)
        assert isinstance(made, Schedule)
        assert len(made.programs[1].ops) == slices * len(as_run(spec, 1, 1).programs[1].ops)


def test_a_call_that_fits_one_slice_takes_what_its_schedule_takes():
    network, model = topology.switch(4, bandwidth_Bps=1e9), Model(latency_s=1e-5)
    spec = ScheduleSpec("all_reduce", 4, "ring")
    assert cut(spec, 64 * KIB).slices == 1
    assert (
        predict_s(spec, 64 * KIB, network, model)
        == run(spec, network, 64 * KIB, model=model).time_s
    )


def test_slices_turn_a_tree_into_a_pipeline():
    network, model = topology.switch(8, bandwidth_Bps=1e9), Model(in_flight=0)
    spec = ScheduleSpec("broadcast", 8, "binomial")
    assert cut(spec, 8 * MIB).slices == 64
    whole_s = run(spec, network, 8 * MIB, model=model).time_s
    assert predict_s(spec, 8 * MIB, network, model) < 0.8 * whole_s


@pytest.mark.parametrize("name", ["ring", "halving_doubling", "recursive_doubling"])
def test_slices_left_out_of_a_long_call_are_like_the_rest(name: str):
    """A few slices stand for many: the time of all of them, simulated."""
    network, model = topology.switch(4, bandwidth_Bps=1e9), Model(latency_s=1e-5, in_flight=0)
    spec = ScheduleSpec("all_reduce", 4, name)
    made = cut(spec, 32 * MIB)
    assert made.slices > 32
    schedule = as_run(spec, made.slices, made.in_flight)
    all_s = run(schedule, network, 32 * MIB, model=model, bounds="none").time_s
    assert predict_s(spec, 32 * MIB, network, model) == pytest.approx(all_s, rel=0.05)


SPECS = [
    ScheduleSpec("all_reduce", 4, "direct"),
    ScheduleSpec("all_reduce", 4, "ring"),
    ScheduleSpec("all_gather", 2, "ring"),
]


@pytest.mark.parametrize(
    ("true", "guess"),
    [
        (LinkCosts(3e-5, 4e-6, 2e-9, 1e-9), LinkCosts(5e-6, 2e-6, 5e-10, 1e-10)),
        (MemoryCosts(2e-5, 3e-6, 4e-10), MemoryCosts(1e-5, 1e-6, 1e-10)),
    ],
)
def test_costs_that_made_the_times_are_found_again(true, guess):
    samples = [
        Sample(spec, nbytes, true.of(spec, nbytes, 2)) for spec in SPECS for nbytes in (KIB, MIB)
    ]
    found = fit(guess, samples, 2)
    assert misfit(found, samples, 2) < 0.1 < misfit(guess, samples, 2)
    assert found.byte_s == pytest.approx(true.byte_s, rel=0.3)


def test_ranks_that_are_near_each_other_make_hierarchies_worth_it():
    costs = NodeCosts(LinkCosts(1e-6, 1e-6, 1e-10, 0), LinkCosts(5e-5, 1e-6, 1e-8, 0), 4)
    flat = costs.of(ScheduleSpec("all_reduce", 16, "direct2"), MIB, 1)
    assert costs.of(ScheduleSpec("all_reduce", 16, "hierarchical[4x4]"), MIB, 1) < flat
