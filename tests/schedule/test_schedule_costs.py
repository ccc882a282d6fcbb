"""Steps, bytes and reductions of every algorithm equal their published closed forms."""

from __future__ import annotations

from collections import Counter, defaultdict
from fractions import Fraction
from functools import cache

import pytest

from jaxcoll.schedule import Cost, Schedule, ScheduleSpec, build

SIZES = [2, 3, 4, 5, 7, 8, 11, 16, 17]
POWERS = [2, 4, 8, 16, 32, 64]
PIPELINE_DEPTH = 8  # chunks per tree, as in double_tree.cc


def cost(collective: str, algorithm: str, p: int) -> Cost:
    return build(ScheduleSpec(collective, p, algorithm)).cost()


def ceil_log2(p: int) -> int:
    return (p - 1).bit_length()


def floor_log2(p: int) -> int:
    return p.bit_length() - 1


def message_depth(schedule: Schedule) -> int:
    """The longest chain of messages each of which needs data or room that the one before made.

    Unlike `Cost.steps` it does not believe the labels.
    """
    op_lists = [op_list.ops for op_list in schedule.programs]
    receipts = {
        (op.peer, rank, op.channel, op.sequence): (rank, i)
        for rank, ops in enumerate(op_lists)
        for i, op in enumerate(ops)
        if op.kind in ("recv", "recv_reduce")
    }

    @cache
    def ready(rank: int, i: int) -> int:
        return max((done(rank, d) for d in op_lists[rank][i].depends_on), default=0)

    @cache
    def done(rank: int, i: int) -> int:
        op = op_lists[rank][i]
        if not op.is_transfer:
            return ready(rank, i)
        ends = (rank, op.peer) if op.kind == "send" else (op.peer, rank)
        receipt = receipts[(*ends, op.channel, op.sequence)]
        sends = [
            (ends[0], k)
            for k, other in enumerate(op_lists[ends[0]])
            if other.kind == "send"
            and (other.peer, other.channel, other.sequence) == (ends[1], op.channel, op.sequence)
        ]
        return 1 + max(ready(*sends[0]), ready(*receipt))

    return max(done(rank, i) for rank, ops in enumerate(op_lists) for i in range(len(ops)))


@pytest.mark.parametrize("p", SIZES)
def test_ring(p: int) -> None:
    share = Fraction(p - 1, p)
    assert cost("all_reduce", "ring", p) == Cost(2 * (p - 1), (2 * share,) * p, (share,) * p)
    assert cost("reduce_scatter", "ring", p) == Cost(p - 1, (share,) * p, (share,) * p)
    assert cost("all_gather", "ring", p) == Cost(p - 1, (share,) * p, (0,) * p)


@pytest.mark.parametrize("p", SIZES)
def test_direct(p: int) -> None:
    share = Fraction(p - 1, p)
    assert cost("all_reduce", "direct", p) == Cost(1, (p - 1,) * p, (p - 1,) * p)
    assert cost("all_reduce", "direct2", p) == Cost(2, (2 * share,) * p, (share,) * p)
    assert cost("reduce_scatter", "direct", p) == Cost(1, (share,) * p, (share,) * p)
    assert cost("all_gather", "direct", p) == Cost(1, (share,) * p, (0,) * p)
    assert cost("all_to_all", "direct", p) == Cost(p - 1, (share,) * p, (0,) * p)
    assert cost("broadcast", "direct", p) == Cost(1, (p - 1, *(0,) * (p - 1)), (0,) * p)
    reduce = Cost(1, (0, *(1,) * (p - 1)), (p - 1, *(0,) * (p - 1)))
    assert cost("reduce", "direct", p) == reduce


def test_permute_sends_the_vector_once() -> None:
    schedule = build(ScheduleSpec("permute", 4, permutation=((0, 1), (1, 0), (2, 2))))
    assert schedule.cost() == Cost(1, (1, 1, 0, 0), (0,) * 4)


@pytest.mark.parametrize("p", POWERS)
def test_recursive_algorithms_on_powers_of_two(p: int) -> None:
    rounds, share = floor_log2(p), Fraction(p - 1, p)
    assert cost("all_reduce", "recursive_doubling", p) == Cost(rounds, (rounds,) * p, (rounds,) * p)
    assert cost("all_reduce", "halving_doubling", p) == Cost(
        2 * rounds, (2 * share,) * p, (share,) * p
    )
    assert cost("reduce_scatter", "recursive_halving", p) == Cost(
        rounds, (share,) * p, (share,) * p
    )
    assert cost("all_gather", "recursive_doubling", p) == Cost(rounds, (share,) * p, (0,) * p)


@pytest.mark.parametrize("p", [3, 5, 6, 7, 9, 12, 17])
def test_folding_adds_two_steps_and_at_most_one_vector(p: int) -> None:
    rounds, folded = floor_log2(p), 1 << floor_log2(p)
    for collective, algorithm, steps, sent in (
        ("all_reduce", "recursive_doubling", rounds, rounds),
        ("all_reduce", "halving_doubling", 2 * rounds, 2 * Fraction(folded - 1, folded)),
    ):
        result = cost(collective, algorithm, p)
        assert result.steps == steps + 2
        assert max(result.sent) == sent + 1
        assert min(result.sent) == 1  # the waiting half of a pair
    assert cost("reduce_scatter", "recursive_halving", p).steps == rounds + 2
    assert cost("all_gather", "recursive_doubling", p).steps == rounds + 2


@pytest.mark.parametrize("p", [*SIZES, 32, 64])
def test_bruck(p: int) -> None:
    share = Fraction(p - 1, p)
    assert cost("all_gather", "bruck", p) == Cost(ceil_log2(p), (share,) * p, (0,) * p)
    hops = Fraction(sum(i.bit_count() for i in range(p)), p)
    assert cost("all_to_all", "bruck", p) == Cost(ceil_log2(p), (hops,) * p, (0,) * p)
    if p in POWERS:
        assert hops == Fraction(ceil_log2(p), 2)


@pytest.mark.parametrize("p", [*SIZES, 32, 64])
def test_binomial_tree(p: int) -> None:
    broadcast = cost("broadcast", "binomial", p)
    assert broadcast.steps == ceil_log2(p)
    assert broadcast.sent[0] == max(broadcast.sent) == ceil_log2(p)
    assert sum(broadcast.sent) == p - 1
    reduce = cost("reduce", "binomial", p)
    assert reduce == Cost(ceil_log2(p), (0, *(1,) * (p - 1)), reduce.reduced)
    assert sum(reduce.reduced) == p - 1


@pytest.mark.parametrize("p", [*SIZES, 32, 64])
def test_double_tree(p: int) -> None:
    schedule = build(ScheduleSpec("all_reduce", p, "double_tree"))
    result, height, depth = schedule.cost(), floor_log2(p), PIPELINE_DEPTH
    assert result.steps == 2 * height + depth - 1
    assert sum(result.sent) == 2 * (p - 1)
    assert max(result.sent) <= 2
    assert sum(result.reduced) == p - 1
    # A rank posts four sends and four receives of a chunk per round at most.
    for op_list in schedule.programs:
        sends = Counter(op.step for op in op_list.ops if op.kind == "send")
        receives = Counter(op.step for op in op_list.ops if op.kind != "send")
        assert max(sends.values()) <= 4
        assert max(receives.values()) <= 4
        assert all(len(op.destination) == 1 for op in op_list.ops)


@pytest.mark.parametrize("p", [*SIZES, 32, 64])
def test_double_tree_ranks_have_children_in_one_tree_only(p: int) -> None:
    schedule = build(ScheduleSpec("all_reduce", p, "double_tree"))
    inner = defaultdict(set)  # by tree, which is the channel
    for op_list in schedule.programs:
        for op in op_list.ops:
            if op.kind == "recv_reduce":
                inner[op.channel].add(op_list.rank)
    assert not inner[0] & inner[1]


@pytest.mark.parametrize(("p", "node_size"), [(4, 2), (6, 3), (8, 2), (12, 4), (16, 4), (7, 7)])
def test_hierarchical(p: int, node_size: int) -> None:
    nodes = p // node_size
    schedule = build(ScheduleSpec("all_reduce", p, f"hierarchical[{nodes}x{node_size}]"))
    assert schedule.cost().steps == 2 * (node_size - 1) + 2 * (nodes - 1)
    chunk = Fraction(1, schedule.programs[0].chunks_per_block)
    for op_list in schedule.programs:
        inside = across = 0
        for op in op_list.ops:
            if op.kind == "send" and op.peer // node_size == op_list.rank // node_size:
                inside += len(op.destination)
            elif op.kind == "send":
                across += len(op.destination)
                assert op.peer % node_size == op_list.rank % node_size  # stays on its rail
        assert inside * chunk == 2 * Fraction(node_size - 1, node_size)
        assert across * chunk == 2 * Fraction(nodes - 1, nodes) / node_size


@pytest.mark.parametrize("p", [2, 3, 5, 8, 13, 16])
@pytest.mark.parametrize(
    ("collective", "algorithm"),
    [
        ("all_reduce", "direct"),
        ("all_reduce", "direct2"),
        ("all_reduce", "ring"),
        ("all_reduce", "recursive_doubling"),
        ("all_reduce", "halving_doubling"),
        ("reduce_scatter", "ring"),
        ("reduce_scatter", "recursive_halving"),
        ("all_gather", "ring"),
        ("all_gather", "bruck"),
        ("broadcast", "binomial"),
        ("reduce", "binomial"),
    ],
)
def test_dependencies_allow_what_the_steps_promise(collective: str, algorithm: str, p: int) -> None:
    """No hidden wait makes the chain of messages longer than the closed form says."""
    schedule = build(ScheduleSpec(collective, p, algorithm))
    depth, steps = message_depth(schedule), schedule.cost().steps
    if p in POWERS or algorithm in ("direct", "direct2", "ring"):
        assert depth == steps
    else:
        assert depth <= steps  # branches that are cut short may run ahead


@pytest.mark.parametrize("p", [2, 5, 8])
def test_direct_all_to_all_serialises_nothing_and_double_tree_only_its_pipeline(p: int) -> None:
    assert message_depth(build(ScheduleSpec("all_to_all", p, "direct"))) == 1
    tree = build(ScheduleSpec("all_reduce", p, "double_tree"))
    assert message_depth(tree) <= tree.cost().steps


def test_both_ends_of_a_message_are_in_one_step() -> None:
    for p in (5, 8):
        for algorithm in ("ring", "recursive_doubling", "halving_doubling", "double_tree"):
            schedule = build(ScheduleSpec("all_reduce", p, algorithm))
            steps = defaultdict(set)
            for op_list in schedule.programs:
                for op in op_list.ops:
                    if op.is_transfer:
                        sends = op.kind == "send"
                        ends = (op_list.rank, op.peer) if sends else (op.peer, op_list.rank)
                        steps[(*ends, op.channel, op.sequence)].add(op.step)
            assert all(len(values) == 1 for values in steps.values())
