"""Every built-in algorithm, for every world size: proved, and run with random timing."""

from __future__ import annotations

import math
import random
import re

import pytest
import schedule_interpreter

from jaxcoll.schedule import COLLECTIVES, ScheduleSpec, algorithms, build, build_rank
from jaxcoll.schedule.schedule import check
from jaxcoll.schedule.verifier import verify

WORLD_SIZES = [*range(1, 18), 32, 64]
ALL = [(c, a) for c in COLLECTIVES for a in algorithms(c)]
# Channels of ops that one of the spec's channels takes, where it is more than one; on a ring.
CHANNELS = {
    "double_tree": 2,
    "hierarchical_tree": 2,
    "bucket": 2,
    "swing": 2,
    "swing_latency": 2,
    ("all_gather", "hierarchical"): 3,
    ("all_to_all", "hierarchical"): 3,
}


def spec_of(collective: str, algorithm: str, world_size: int, **options: object) -> ScheduleSpec:
    """A spec whose root and permutation are not the trivial ones."""
    rng = random.Random(world_size)
    senders = rng.sample(range(world_size), rng.randint(0, world_size))
    receivers = rng.sample(range(world_size), len(senders))
    defaults = {
        "root": world_size // 2 if collective in ("broadcast", "reduce") else 0,
        "permutation": tuple(zip(senders, receivers, strict=True))
        if collective == "permute"
        else (),
    }
    return ScheduleSpec(collective, world_size, algorithm, **{**defaults, **options})


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


@pytest.mark.parametrize(("collective", "algorithm"), ALL)
def test_issue_lists_are_served(collective: str, algorithm: str) -> None:
    assert len(set(algorithms(collective))) == len(algorithms(collective))
    assert (
        algorithm
        in {
            "all_reduce": "direct direct2 ring recursive_doubling halving_doubling double_tree "
            "hierarchical hierarchical_halving hierarchical_tree bucket swing swing_latency bine "
            "bine_latency",
            "reduce_scatter": "direct ring recursive_halving bucket swing bine pat",
            "all_gather": "direct ring recursive_doubling bruck hierarchical bucket swing bine pat",
            "all_to_all": "direct bruck hierarchical",
            "broadcast": "direct binomial bine",
            "reduce": "direct binomial bine",
            "permute": "direct",
        }[collective].split()
    )


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize(("collective", "algorithm"), ALL)
def test_is_proved_correct_and_reproducible(
    collective: str, algorithm: str, world_size: int
) -> None:
    verification = verify(build(spec_of(collective, algorithm, world_size)))
    assert verification.reproducible


@pytest.mark.parametrize("world_size", WORLD_SIZES[:17])
@pytest.mark.parametrize(("collective", "algorithm"), ALL)
def test_gives_exact_sums_whatever_the_timing(
    collective: str, algorithm: str, world_size: int
) -> None:
    schedule = build(spec_of(collective, algorithm, world_size))
    # Fewer elements than chunks, none, and a number that no chunk count divides.
    for seed, elements in enumerate((3, 0, 37)):
        schedule_interpreter.check(schedule, elements, seed)


@pytest.mark.parametrize("channels", [2, 3])
@pytest.mark.parametrize("world_size", [1, 2, 5, 6, 8])
@pytest.mark.parametrize(("collective", "algorithm"), ALL)
def test_channels_are_independent_copies(
    collective: str, algorithm: str, world_size: int, channels: int
) -> None:
    schedule = build(spec_of(collective, algorithm, world_size, channels=channels))
    assert verify(schedule).reproducible
    schedule_interpreter.check(schedule, 41, channels)
    single = build(spec_of(collective, algorithm, world_size))
    assert schedule.cost() == single.cost()
    assert sum(len(p.ops) for p in schedule.programs) == channels * sum(
        len(p.ops) for p in single.programs
    )
    # No dependency leads from one copy to another.
    channels = (
        CHANNELS.get((collective, algorithm), CHANNELS.get(algorithm, 1)) if world_size > 1 else 1
    )
    for op_list in schedule.programs:
        for op in op_list.ops:
            for dependency in op.depends_on:
                assert op_list.ops[dependency].channel // channels == op.channel // channels


@pytest.mark.parametrize("world_size", [1, 2, 6, 7, 12, 16])
def test_hierarchical_takes_every_divisor(world_size: int) -> None:
    for node_size in divisors(world_size):
        schedule = build(
            ScheduleSpec(
                "all_reduce", world_size, "hierarchical", dims=(world_size // node_size, node_size)
            )
        )
        assert verify(schedule).reproducible
        schedule_interpreter.check(schedule, 29, node_size)


def test_hierarchical_chooses_the_divisor_nearest_the_square_root() -> None:
    for world_size, node_size in ((12, 3), (16, 4), (7, 1), (64, 8), (24, 4)):
        assert build(ScheduleSpec("all_reduce", world_size, "hierarchical")) == build(
            ScheduleSpec(
                "all_reduce", world_size, f"hierarchical[{world_size // node_size}x{node_size}]"
            )
        )


@pytest.mark.parametrize("algorithm", ["direct", "binomial", "bine"])
@pytest.mark.parametrize("collective", ["broadcast", "reduce"])
def test_every_rank_can_be_the_root(collective: str, algorithm: str) -> None:
    for world_size in (2, 3, 6, 8):
        for root in range(world_size):
            schedule = build(ScheduleSpec(collective, world_size, algorithm, root=root))
            verify(schedule)
            schedule_interpreter.check(schedule, 5, root)


def test_direct_and_direct2_and_reduce_scatter_add_in_rank_order_and_round_once() -> None:
    for world_size in (2, 3, 8):
        in_order = tuple(range(world_size))
        for collective, algorithm in (
            ("all_reduce", "direct"),
            ("all_reduce", "direct2"),
            ("reduce_scatter", "direct"),
        ):
            schedule = build(ScheduleSpec(collective, world_size, algorithm))
            verification = verify(schedule)
            for rank in range(world_size):
                for chunk in range(schedule.programs[0].chunks_per_block):
                    assert verification.association(rank, chunk) == in_order


def test_recursive_doubling_keeps_the_lower_half_left() -> None:
    verification = verify(build(ScheduleSpec("all_reduce", 4, "recursive_doubling")))
    assert verification.association(3, 0) == ((0, 1), (2, 3))
    folded = verify(build(ScheduleSpec("all_reduce", 5, "recursive_doubling")))
    assert folded.association(0, 0) == (((0, 1), 2), (3, 4))


def test_ring_adds_around_the_ring() -> None:
    verification = verify(build(ScheduleSpec("all_reduce", 4, "ring")))
    assert verification.association(0, 0) == (((0, 1), 2), 3)
    assert verification.association(0, 2) == (((2, 3), 0), 1)


def test_only_what_survives_aliasing_is_called_safe_in_place() -> None:
    def in_place_safe(collective: str, algorithm: str, world_size: int = 4) -> bool:
        spec = ScheduleSpec(collective, world_size, algorithm)
        return verify(build(spec)).in_place_safe

    assert in_place_safe("reduce", "binomial")
    assert in_place_safe("all_to_all", "bruck")
    assert in_place_safe("all_reduce", "direct", world_size=1)
    assert not in_place_safe("all_reduce", "direct")  # others may still read the input
    assert not in_place_safe("all_to_all", "direct")
    assert not in_place_safe("all_gather", "ring")  # sizes differ


def test_one_rank_is_built_without_the_others() -> None:
    spec = ScheduleSpec("all_reduce", 16384, "halving_doubling")
    op_list = build_rank(spec, 16383)
    assert len(op_list.ops) == 2 * 2 * math.log2(16384)
    assert max(len(operand.chunks) for op in op_list.ops for operand in op.sources) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "rign"}, "has no algorithm 'rign'; it has direct, direct2, ring"),
        ({"collective": "all_reduced"}, "unknown collective 'all_reduced'"),
        ({"world_size": 0}, "world_size is 0, but must be from 1"),
        ({"channels": 0}, "channels is 0"),
        ({"root": 4}, "root is 4, but must be from 0 to 3"),
        ({"algorithm": "ring[4]"}, "ring takes no dims"),
        (
            {"algorithm": "hierarchical[2x3]"},
            "hierarchical[2x3] does not fit 4 ranks: write nodes x ranks per node, one of 1x4, "
            "2x2, 4x1",
        ),
        ({"algorithm": "hierarchical[4]"}, "does not fit 4 ranks"),
        ({"algorithm": "hierarchical", "dims": (-2, -2)}, "dims must be positive"),
        ({"algorithm": "hierarchical[2x2"}, "write the dims as positive numbers in brackets"),
        ({"algorithm": "hierarchical[2x0]"}, "write the dims as positive numbers in brackets"),
        ({"algorithm": "hierarchical[2x2]", "dims": (2, 2)}, "give dims either in"),
        ({"permutation": ((0, 4),)}, "permutation destination is 4"),
        ({"permutation": ((0, 1), (0, 2))}, "permutation names source 0 twice"),
        ({"permutation": ((0, 1), (2, 1))}, "permutation names destination 1 twice"),
        ({"world_size": 1 << 17, "algorithm": "direct2"}, "use another algorithm"),
    ],
)
def test_bad_specs_are_refused_with_the_choices(changes: dict, message: str) -> None:
    fields = {"collective": "all_reduce", "world_size": 4, **changes}
    with pytest.raises(ValueError, match=re.escape(message)):
        build_rank(ScheduleSpec(**fields), 0)
    with pytest.raises(ValueError, match=re.escape(message)):
        check(ScheduleSpec(**fields))


def test_a_rank_outside_the_world_is_refused() -> None:
    with pytest.raises(ValueError, match="rank is 4, but must be from 0 to 3"):
        build_rank(ScheduleSpec("all_reduce", 4), 4)
