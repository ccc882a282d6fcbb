"""Links that slow down, recover, fail and are mended while messages are on them.

Expected times are integrals: a message's bytes over the least capacity of its path at each time.
"""

from __future__ import annotations

import json
import math
import random

import pytest

from jaxcoll import simulate
from jaxcoll._cli import simulate as command
from jaxcoll.schedule import ScheduleSpec
from jaxcoll.simulate import Change, Model, Stragglers, Traffic, run
from jaxcoll.topology import Topology, fat_tree, switch

RATE_BPS = 1e9
NBYTES = 1_000_000  # 1 ms alone
WHOLE_S = NBYTES / RATE_BPS
ONE = ScheduleSpec("permute", 2, permutation=((0, 1),))


def line(ways: int = 1) -> Topology:
    """a - s - t - b, with several cables between the switches that together carry one cable's."""
    network = Topology("line")
    network.add_host("a")
    network.add_host("b")
    network.add_switch("s")
    network.add_switch("t")
    network.connect("a", "s", RATE_BPS)
    for _ in range(ways):
        network.connect("s", "t", RATE_BPS / ways)
    network.connect("t", "b", RATE_BPS)
    return network


def integral_s(nbytes: float, changes: list[Change], share: float = 1.0) -> float:
    """When `nbytes` have left by a line of single cables, of which one flow gets `share`."""
    factors: dict[str, float] = {}
    now = 0.0
    for change in [*sorted(changes, key=lambda c: c.time_s), Change(math.inf, "", 1.0)]:
        rate = RATE_BPS * min([1.0, *factors.values()]) * share
        if now + nbytes / rate <= change.time_s:
            return now + nbytes / rate
        nbytes -= rate * (change.time_s - now)
        now = change.time_s
        factors[change.component] = change.factor
    raise AssertionError


@pytest.mark.parametrize("routing", simulate.ROUTINGS)
@pytest.mark.parametrize("seed", range(30))
def test_a_message_runs_at_what_its_links_allow_at_each_time(
    routing: simulate.Routing, seed: int
) -> None:
    draw = random.Random(seed)
    changes = [
        Change(
            draw.choice((0.0, draw.random() * 2 * WHOLE_S)),
            draw.choice(("a--s", "s--t", "t--b")),
            draw.choice((0.01, 0.1, 0.25, 0.5, 1.0, 2.0)),
        )
        for _ in range(draw.randrange(1, 7))
    ]
    timeline = run(ONE, line(), NBYTES, routing=routing, changes=changes)
    expected = integral_s(NBYTES, changes)
    assert timeline.time_s == pytest.approx(expected, rel=1e-9)
    assert timeline.utilisation.max() <= 1 + 1e-6


@pytest.mark.parametrize(
    "changes",
    [
        [Change(0, "s--t", 0.01), Change(1e-6, "s--t", 1.0)],
        [Change(1e-6, "s--t", 0.01), Change(2e-6, "s--t", 1.0)],
        [Change(0, "s--t", 0.1), Change(1e-4, "a--s", 0.2), Change(2e-4, "s--t", 1.0)],
        [
            Change(1e-4, "s", 0.5),
            Change(2e-4, "t", 0.25),
            Change(3e-4, "t", 4),
            Change(4e-4, "s", 1),
        ],
    ],
)
def test_messages_that_share_a_changed_link_share_what_it_has(changes: list[Change]) -> None:
    """Two messages from a to b, by two channels."""
    pairs = ScheduleSpec("permute", 2, channels=2, permutation=((0, 1),))
    changes = [
        Change(c.time_s, end, c.factor)
        for c in changes
        for end in ({"s": ("a--s", "s--t"), "t": ("s--t", "t--b")}.get(c.component, (c.component,)))
    ]
    timeline = run(pairs, line(), NBYTES, changes=changes)
    assert timeline.time_s == pytest.approx(integral_s(NBYTES / 2, changes, 0.5), rel=1e-9)


@pytest.mark.parametrize("factors", [(0.5,), (0.5, 0.1, 1.0), (3.0,), (0.01, 1.0)])
def test_an_overhead_takes_as_long_on_a_link_that_changes(factors: tuple[float, ...]) -> None:
    """It is the sender's time; the link is only closed to others."""
    overhead_s = 1e-3
    changes = [Change(1e-4 * (i + 1), "a--s", factor) for i, factor in enumerate(factors)]
    timeline = run(ONE, line(), NBYTES, model=Model(overhead_s=overhead_s), changes=changes)
    data_s = WHOLE_S / min(1.0, factors[-1])
    assert timeline.time_s == pytest.approx(overhead_s + data_s, rel=1e-9)


def test_sprayed_messages_follow_a_changed_cable_and_go_around_a_failed_one() -> None:
    """Over four cables: the slowest limits all; a failed one leaves three."""
    slow = [Change(0.5e-3, "s->t#1", 0.5)]
    assert run(ONE, line(4), NBYTES, routing="spray", changes=slow).time_s == pytest.approx(1.5e-3)
    mended = [*slow, Change(0.75e-3, "s->t#1", 1.0)]
    there = run(ONE, line(4), NBYTES, routing="spray", changes=mended)
    assert there.time_s == pytest.approx(1.125e-3)
    failed = run(ONE, line(4), NBYTES, routing="spray", changes=[Change(0.5e-3, "s->t#1")])
    assert failed.time_s == pytest.approx(0.5e-3 + 0.5e-3 * 4 / 3)
    # The message that is on its way stays on three cables when the fourth is mended.
    back = [Change(0.5e-3, "s->t#1"), Change(0.6e-3, "s->t#1", 1.0)]
    assert run(ONE, line(4), NBYTES, routing="spray", changes=back).time_ps == failed.time_ps


def test_a_link_that_fails_and_works_again_in_one_instant_loses_nothing() -> None:
    changes = [Change(1e-4, "s"), Change(1e-4, "s", 1.0)]
    timeline = run(ONE, line(), NBYTES, changes=changes)
    assert timeline.time_s == pytest.approx(WHOLE_S, rel=1e-9)
    changes = [Change(1e-4, "s--t"), Change(1e-4, "s--t", 0.5)]
    timeline = run(ONE, line(), NBYTES, changes=changes)
    assert timeline.time_s == pytest.approx(integral_s(NBYTES, changes[1:]), rel=1e-9)


@pytest.mark.parametrize("routing", simulate.ROUTINGS)
def test_a_network_that_is_slow_for_a_moment_loses_only_that_moment(
    routing: simulate.Routing,
) -> None:
    """All links at a hundredth from `begin` to `end`, with messages in flight."""
    network = fat_tree(16, radix=4)
    spec = ScheduleSpec("all_reduce", 16, "ring")
    plain = run(spec, network, 16 << 20, routing=routing, bounds="quick")
    for begin, end in ((0.0, 1e-5), (0.25 * plain.time_s, 0.25 * plain.time_s + 1e-5)):
        changes = [
            Change(time_s, name, factor)
            for time_s, factor in ((begin, 0.01), (end, 1.0))
            for name in dict.fromkeys(f"{x.source}->{x.destination}" for x in network.links)
        ]
        slow = run(spec, network, 16 << 20, routing=routing, changes=changes, bounds="quick")
        assert slow.time_s == pytest.approx(plain.time_s + 0.99 * (end - begin), rel=5e-3)
        assert slow.gap >= 1 - 1e-6


def test_background_traffic_has_its_share_of_what_a_port_has() -> None:
    """Half of the port, also when the port is slowed and mended: the message gets the other."""
    load = [Traffic("a", "b", share=0.5)]
    changes = [Change(0.0, "a--s", 0.1), Change(1e-4, "a--s", 1.0)]
    timeline = run(ONE, line(), NBYTES, background=load, changes=changes)
    assert timeline.time_s == pytest.approx(integral_s(NBYTES, changes, 0.5), rel=1e-9)
    # Bytes of both filled the link all the time.
    filled = dict(zip([x.name for x in line().links], timeline.utilisation.tolist(), strict=True))
    assert filled["a->s"] == pytest.approx(1, rel=1e-5)


def test_unfair_and_jittery_messages_recover_too() -> None:
    spec = ScheduleSpec("all_to_all", 8, "direct")
    model = Model(in_flight=0, unfairness=1.0, overhead_s=1e-6)
    for seed in range(5):
        times = []
        for changes in ([], [Change(0.0, "s0", 0.01), Change(1e-6, "s0", 1.0)]):
            timeline = run(
                spec,
                switch(8),
                8 << 20,
                model=model,
                seed=seed,
                changes=changes,
                stragglers=Stragglers(jitter=0.1),
            )
            times.append(timeline.time_s)
        assert times[1] == pytest.approx(times[0], abs=2e-6)


def test_the_mean_and_the_greatest_capacity_count_the_time_of_the_run() -> None:
    """Neither a change at the end nor two in one instant count."""
    end = [Change(WHOLE_S, "s--t", 5.0)]
    timeline = run(ONE, line(), NBYTES, changes=end)
    assert timeline.capacities_Bps.max() == RATE_BPS
    changes = [Change(0.5e-3, "s--t", 9.0), Change(0.5e-3, "s--t", 0.5)]
    timeline = run(ONE, line(), NBYTES, changes=changes)
    assert timeline.capacities_Bps.min() == pytest.approx(RATE_BPS * (0.5 + 0.5) / 1.5)
    assert timeline.capacities_Bps.max() == RATE_BPS


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (math.nan, "a change's factor is nan, but must be at least 0 and finite"),
        (math.inf, "a change's factor is inf, but must be at least 0 and finite"),
        (-0.5, "a change's factor is -0.5, but must be at least 0 and finite"),
        (1e300, r"gives a->s .* B/s; at most 1e\+18"),
    ],
)
def test_a_factor_is_a_number(factor: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(ONE, line(), NBYTES, changes=[Change(1e-6, "s", factor)])


def test_the_command_line_mends_a_link(capsys: pytest.CaptureFixture[str]) -> None:
    what = ["--topology", "switch:2", "--bytes", "100M", "--algorithm", "ring", "--quiet"]
    times = []
    mended = ["--change", "0s:s0=0.01", "--change", "1us:s0=1"]
    for changes in ([], mended):
        assert command.main([*what, "--json", "-", *changes]) == 0
        times.append(json.loads(capsys.readouterr().out)["results"][0]["time_s"])
    assert times[1] == pytest.approx(times[0] + 0.99e-6, rel=1e-6)
