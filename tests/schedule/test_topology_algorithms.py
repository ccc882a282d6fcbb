"""Algorithms that know where the ranks are: tori, nodes with rails, tapered networks."""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from dataclasses import replace
from fractions import Fraction
from math import log2, prod

import pytest
import schedule_interpreter
from test_schedule_costs import message_depth

from jaxcoll.schedule import Cost, Schedule, ScheduleSpec, algorithms, build, build_rank, dims_kind
from jaxcoll.schedule.verifier import verify

TORI = [(2, 2), (2, 4), (4, 4), (2, 2, 2), (3, 4), (2, 3, 2), (3, 3), (6, 4), (1, 5), (4, 1, 2)]
NODES = [(2, 2), (2, 3), (3, 2), (4, 4), (5, 3), (1, 6), (6, 1), (2, 8), (8, 2)]
ON_TORI = [
    (collective, algorithm)
    for collective in ("all_reduce", "reduce_scatter", "all_gather")
    for algorithm in algorithms(collective)
    if dims_kind(collective, algorithm) == "torus"
]
ON_NODES = [
    (collective, algorithm)
    for collective in ("all_reduce", "all_gather", "all_to_all")
    for algorithm in algorithms(collective)
    if dims_kind(collective, algorithm) == "nodes"
]


def made(collective: str, algorithm: str, dims: tuple[int, ...], **options: int) -> Schedule:
    return build(ScheduleSpec(collective, prod(dims), algorithm, dims=dims, **options))


def messages(schedule: Schedule) -> list[tuple[int, int, int, Fraction]]:
    """(step, source, destination, share of n) of everything that is sent."""
    layout = schedule.programs[0]
    blocks = max(layout.input_blocks, layout.output_blocks)
    return [
        (
            op.step,
            op_list.rank,
            op.peer,
            Fraction(len(op.destination), blocks * layout.chunks_per_block),
        )
        for op_list in schedule.programs
        for op in op_list.ops
        if op.kind == "send"
    ]


def coordinates(rank: int, dims: tuple[int, ...]) -> list[int]:
    result = []
    for extent in reversed(dims):
        rank, coordinate = divmod(rank, extent)
        result.append(coordinate)
    return result[::-1]


def hops(a: int, b: int, dims: tuple[int, ...]) -> list[int]:
    """Links between two ranks along each dimension, the shorter way around."""
    return [
        min((x - y) % extent, (y - x) % extent)
        for x, y, extent in zip(coordinates(a, dims), coordinates(b, dims), dims, strict=True)
    ]


def rho(step: int) -> int:
    return sum((-2) ** i for i in range(step + 1))


def ceil_log2(p: int) -> int:
    return (p - 1).bit_length()


# --- tori ---------------------------------------------------------------------------------------


def takes(algorithm: str, dims: tuple[int, ...]) -> bool:
    sides = [extent for extent in dims if extent > 1]
    if len(sides) < 2:
        return True
    if algorithm == "swing":
        return all(extent % 2 == 0 for extent in sides)
    return algorithm != "swing_latency" or all(extent.bit_count() == 1 for extent in sides)


@pytest.mark.parametrize("dims", TORI)
@pytest.mark.parametrize(("collective", "algorithm"), ON_TORI)
def test_on_tori_proved_exact_and_reproducible_or_refused(
    collective: str, algorithm: str, dims: tuple[int, ...]
) -> None:
    if not takes(algorithm, dims):
        with pytest.raises(ValueError, match=r"or one ring of any size, .*\["):
            made(collective, algorithm, dims)
        return
    for channels in (1, 2):
        schedule = made(collective, algorithm, dims, channels=channels)
        assert verify(schedule).reproducible
        for seed, elements in enumerate((0, 3, 41)):
            schedule_interpreter.check(schedule, elements, seed)


@pytest.mark.parametrize(
    ("collective", "algorithm", "dims"),
    [
        *((c, a, (8, 4)) for c, a in ON_TORI),
        *((c, a, (4, 8)) for c, a in ON_NODES),
        *(
            pytest.param(c, a, dims, marks=pytest.mark.exhaustive)
            for algorithms_on, all_dims in (
                (ON_TORI, ((8, 8), (4, 4, 4), (4, 16))),
                (ON_NODES, ((8, 8), (16, 4), (32, 2))),
            )
            for (c, a), dims in itertools.product(algorithms_on, all_dims)
        ),
    ],
)
def test_larger_ones_are_proved_correct_and_reproducible(
    collective: str, algorithm: str, dims: tuple[int, ...]
) -> None:
    assert verify(made(collective, algorithm, dims)).reproducible


@pytest.mark.parametrize("dims", [(4, 4), (2, 2, 2), (3, 4), (5,), (2, 3, 4), (8, 8)])
def test_bucket_costs_what_its_closed_form_says(dims: tuple[int, ...]) -> None:
    p, steps = prod(dims), sum(extent - 1 for extent in dims)
    share = Fraction(p - 1, p)
    assert made("all_reduce", "bucket", dims).cost() == Cost(
        2 * steps, (2 * share,) * p, (share,) * p
    )
    assert made("reduce_scatter", "bucket", dims).cost() == Cost(steps, (share,) * p, (share,) * p)
    assert made("all_gather", "bucket", dims).cost() == Cost(steps, (share,) * p, (0,) * p)


@pytest.mark.parametrize("collective", ["all_reduce", "reduce_scatter", "all_gather"])
def test_bucket_keeps_all_ports_busy_and_talks_to_neighbours_only(collective: str) -> None:
    dims = (4, 4, 4)
    sent: dict[tuple[int, int, int], Fraction] = defaultdict(Fraction)
    for step, source, destination, share in messages(made(collective, "bucket", dims)):
        assert sorted(hops(source, destination, dims)) == [0, 0, 1]
        sent[step, source, destination] += share
    ports = 2 * len(dims)
    steps = len({step for step, _, _ in sent})
    assert len(sent) == steps * prod(dims) * ports  # each of them in each step
    for step in range(steps):
        assert len({share for (s, _, _), share in sent.items() if s == step}) == 1


@pytest.mark.parametrize("dims", [(8,), (4, 4), (2, 8), (4, 4, 4), (6,), (6, 4), (2, 10)])
def test_swing_costs_what_its_closed_form_says(dims: tuple[int, ...]) -> None:
    p, steps = prod(dims), sum(ceil_log2(extent) for extent in dims)
    share = Fraction(p - 1, p)
    assert made("all_reduce", "swing", dims).cost() == Cost(
        2 * steps, (2 * share,) * p, (share,) * p
    )
    assert made("reduce_scatter", "swing", dims).cost() == Cost(steps, (share,) * p, (share,) * p)
    assert made("all_gather", "swing", dims).cost() == Cost(steps, (share,) * p, (0,) * p)
    if takes("swing_latency", dims) and p.bit_count() == 1:
        assert made("all_reduce", "swing_latency", dims).cost() == Cost(
            steps, (steps,) * p, (steps,) * p
        )


@pytest.mark.parametrize("dims", [(16,), (4, 4), (4, 4, 4)])
def test_swing_goes_the_published_distances_and_uses_all_ports(dims: tuple[int, ...]) -> None:
    """In round s every rank talks to 2D others, |rho(s)| links away along one dimension each."""
    rounds = [(i // len(dims), i % len(dims)) for i in range(sum(ceil_log2(e) for e in dims))]
    partners: dict[tuple[int, int], Counter[tuple[int, ...]]] = defaultdict(Counter)
    for step, source, destination, _ in messages(made("all_reduce", "swing", dims)):
        step = min(step, 2 * len(rounds) - 1 - step)  # gathering undoes reducing
        partners[step, source][tuple(hops(source, destination, dims))] += 1
    for (step, _), seen in partners.items():
        far = min(abs(rho(rounds[step][0])) % dims[0], -abs(rho(rounds[step][0])) % dims[0])
        along = [
            tuple(far if d == dimension else 0 for d in range(len(dims)))
            for dimension in range(len(dims))
        ]
        assert seen == {hop: 4 for hop in along}  # two directions, there and back


def test_swing_messages_are_contiguous_for_powers_of_two() -> None:
    for dims in ((16,), (8, 4), (4, 4, 4)):
        for op_list in made("all_reduce", "swing", dims).programs:
            assert all(len(op.destination.chunks) == 1 for op in op_list.ops)


def test_swing_serves_an_odd_ring_with_the_bytes_of_any_other() -> None:
    for p in (3, 5, 7, 9, 15):
        cost = build(ScheduleSpec("all_reduce", p, "swing")).cost()
        assert cost.steps == 2 * ceil_log2(p - 1) + 2
        assert set(cost.sent) == {2 * Fraction(p - 1, p)}


def test_large_tori_are_built_rank_by_rank() -> None:
    for dims, rank in (((64, 64), 4095), ((16, 16, 16), 1234), ((8, 8, 8, 8), 77)):
        spec = ScheduleSpec("all_reduce", prod(dims), "swing", dims=dims)
        op_list = build_rank(spec, rank)
        assert len(op_list.ops) == 2 * 2 * 12 * 2 * len(dims)
        assert len(build_rank(ScheduleSpec("all_reduce", 4096, "bucket", dims=dims), rank).ops) == (
            2 * 2 * sum(extent - 1 for extent in dims) * 2 * len(dims)
        )


# --- nodes and rails ----------------------------------------------------------------------------


@pytest.mark.parametrize("dims", NODES)
@pytest.mark.parametrize(("collective", "algorithm"), ON_NODES)
def test_on_nodes_proved_exact_and_reproducible(
    collective: str, algorithm: str, dims: tuple[int, int]
) -> None:
    schedule = made(collective, algorithm, dims)
    assert verify(schedule).reproducible
    for seed, elements in enumerate((0, 3, 41)):
        schedule_interpreter.check(schedule, elements, seed)


@pytest.mark.parametrize("dims", NODES)
@pytest.mark.parametrize(("collective", "algorithm"), ON_NODES)
def test_between_nodes_messages_stay_on_their_rail(
    collective: str, algorithm: str, dims: tuple[int, int]
) -> None:
    nodes, node_size = dims
    inside: Counter[int] = Counter()
    across: Counter[int] = Counter()
    for _, source, destination, share in messages(made(collective, algorithm, dims)):
        if source // node_size == destination // node_size:
            inside[source] += share
        else:
            assert source % node_size == destination % node_size
            across[source] += share
    p = prod(dims)
    each, rest = Fraction(1, p), Fraction(node_size - 1, node_size)
    expected = {  # sent by each rank inside its node, and to others; None: not equal for all
        "all_reduce": (2 * rest, 2 * Fraction(nodes - 1, nodes) / node_size),
        "all_gather": ((node_size - 1) * nodes * each, (nodes - 1) * each),
        "all_to_all": ((node_size - 1) * nodes * each, (nodes - 1) * node_size * each),
    }[collective]
    if node_size > 1:
        assert set(inside.values()) == {expected[0]}
    if nodes > 1 and (algorithm == "hierarchical" or nodes.bit_count() == 1):
        if algorithm != "hierarchical_tree":
            assert set(across.values()) == {expected[1]}
        assert sum(across.values()) == p * expected[1]  # trees: 2 (N-1) in all, too


@pytest.mark.parametrize("dims", NODES)
def test_hierarchical_steps(dims: tuple[int, int]) -> None:
    nodes, node_size = dims
    inside, floor = 2 * (node_size - 1), nodes.bit_length() - 1
    folds = 0 if nodes.bit_count() == 1 else 2

    def steps(collective: str, algorithm: str) -> int:
        return made(collective, algorithm, dims).cost().steps

    assert steps("all_reduce", "hierarchical") == inside + 2 * (nodes - 1)
    assert steps("all_reduce", "hierarchical_halving") == inside + 2 * floor + folds
    trees = 2 * floor + 8 - 1 if nodes > 1 else 0  # 8: pipeline depth, double_tree.h
    assert steps("all_reduce", "hierarchical_tree") == inside + trees
    forward = 1 if node_size > 1 else 0
    assert steps("all_gather", "hierarchical") == 2 * (nodes - 1) + forward
    through = node_size - 1 if nodes > 1 else 0
    assert steps("all_to_all", "hierarchical") == through + (nodes - 1) + (node_size - 1)


def test_hierarchical_all_to_all_sends_fewer_messages_than_ranks() -> None:
    for nodes, node_size in ((4, 8), (8, 4), (16, 8)):
        schedule = made("all_to_all", "hierarchical", (nodes, node_size))
        counts = Counter(source for _, source, _, _ in messages(schedule))
        assert set(counts.values()) == {2 * (node_size - 1) + 2 * (nodes - 1)}
        assert 2 * (node_size - 1) + 2 * (nodes - 1) < nodes * node_size - 1


def test_rail_messages_of_all_to_all_do_not_wait_for_local_blocks() -> None:
    """A chain of two messages, inside and on the rail: nothing else delays the rails."""
    assert message_depth(made("all_to_all", "hierarchical", (2, 4))) == 2
    assert message_depth(made("all_to_all", "hierarchical", (4, 4))) == 2


def test_all_gather_forwards_a_piece_while_the_next_one_is_on_its_way() -> None:
    """Two chassis of 16: the second piece leaves when the first has left, not when it is spread."""
    schedule = made("all_gather", "hierarchical", (2, 16))
    assert message_depth(schedule) == 3  # two on the rail, one inside
    for op_list in schedule.programs:
        rail = [i for i, op in enumerate(op_list.ops) if op.kind == "send" and op.channel == 1]
        assert len(rail) == 2
        assert rail[0] in op_list.ops[rail[1]].depends_on


# --- Bine ---------------------------------------------------------------------------------------


def leaving_groups(schedule: Schedule, group: int) -> Fraction:
    """Bytes that leave their group of consecutive ranks, as a share of n, averaged over all ways
    to cut the ring of ranks into groups of that size."""
    p = schedule.world_size
    total = sum(
        share
        for shift, (_, a, b, share) in itertools.product(range(group), messages(schedule))
        if (a + shift) % p // group != (b + shift) % p // group
    )
    return Fraction(total) / group


def expected_leaving(shares: list[tuple[int, Fraction]], group: int) -> Fraction:
    """The same for messages of (distance, share of n): one of distance d leaves with d / group."""
    return sum((share * min(Fraction(d, group), 1) for d, share in shares), Fraction())


@pytest.mark.parametrize(("p", "group"), [(16, 8), (64, 32), (64, 16), (64, 8), (128, 64)])
def test_bine_keeps_a_quarter_to_a_third_of_the_traffic_inside_groups(p: int, group: int) -> None:
    rounds = ceil_log2(p)
    bine = [abs(rho(s)) for s in range(rounds)]
    power = [1 << s for s in range(rounds)]
    saved = {}
    for collective, algorithm, other, share in (
        # In round s, counted from the leaves, of all ranks together; a tree has 2^(K-1-s) edges.
        ("broadcast", "bine", "binomial", lambda s: Fraction(p, 2 << s)),
        ("reduce", "bine", "binomial", lambda s: Fraction(p, 2 << s)),
        ("all_reduce", "bine", "halving_doubling", lambda s: 2 * Fraction(p, 2 << s)),
        ("all_reduce", "bine_latency", "recursive_doubling", lambda s: Fraction(p)),
    ):
        ours = leaving_groups(build(ScheduleSpec(collective, p, algorithm)), group)
        theirs = leaving_groups(build(ScheduleSpec(collective, p, other)), group)
        assert ours == expected_leaving([(d, share(s)) for s, d in enumerate(bine)], group)
        assert theirs == expected_leaving([(d, share(s)) for s, d in enumerate(power)], group)
        saved[algorithm] = 1 - ours / theirs
    assert Fraction(1, 5) < saved["bine"] < Fraction(1, 3)
    if group == p // 2:  # then it is the distances that count: 1 + 1 + 3 + 5 + ... of 1 + 2 + ...
        assert saved["bine_latency"] == 1 - Fraction(sum(bine), sum(power))


@pytest.mark.parametrize("p", [*range(2, 18), 32, 64])
def test_bine_costs(p: int) -> None:
    even = p - p % 2
    steps, odd, share = ceil_log2(even), p % 2, Fraction(p - 1, p)
    broadcast = build(ScheduleSpec("broadcast", p, "bine")).cost()
    assert (broadcast.steps, sum(broadcast.sent)) == (steps + odd, p - 1)
    reduce = build(ScheduleSpec("reduce", p, "bine")).cost()
    assert (reduce.steps, reduce.sent) == (steps + odd, (0, *(1,) * (p - 1)))
    assert sum(reduce.reduced) == p - 1
    for collective, extra, factor in (
        ("all_reduce", 2 * odd, 2),
        ("reduce_scatter", odd, 1),
        ("all_gather", odd, 1),
    ):
        cost = build(ScheduleSpec(collective, p, "bine")).cost()
        assert cost.steps == factor * steps + extra
        assert set(cost.sent) == {factor * share}
    if p.bit_count() == 1:
        rounds = int(log2(p))
        latency = build(ScheduleSpec("all_reduce", p, "bine_latency")).cost()
        assert latency == Cost(rounds, (rounds,) * p, (rounds,) * p)


# --- PAT ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregate", [1, 2, 4, 8, 64])
@pytest.mark.parametrize("p", [*range(2, 18), 32])
@pytest.mark.parametrize("collective", ["all_gather", "reduce_scatter"])
def test_pat_steps_bytes_and_scratch(collective: str, p: int, aggregate: int) -> None:
    schedule = build(ScheduleSpec(collective, p, f"pat[{aggregate}]"))
    verify(schedule)
    schedule_interpreter.check(schedule, 11, p)
    cost = schedule.cost()
    span = 1 << ceil_log2(p)
    trees = min(aggregate, max(span // 2, 1))
    assert cost.steps <= log2(trees) + span // trees - 1
    if p == span:
        assert cost.steps == log2(trees) + span // trees - 1
    assert set(cost.sent) == {Fraction(p - 1, p)}
    for _, _, _, share in messages(schedule):
        assert share * p <= trees
    assert schedule.programs[0].scratch_blocks <= trees * (1 + log2(span // trees))


def test_pat_sends_its_large_messages_to_near_ranks() -> None:
    for p in (8, 16, 64):
        distances: dict[int, Fraction] = {}
        for _, source, destination, share in messages(build(ScheduleSpec("all_gather", p, "pat"))):
            distances[(destination - source) % p] = share * p
        assert distances == {p >> k: 1 << (k - 1) for k in range(1, ceil_log2(p) + 1)}


# --- what holds for all -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("collective", "algorithm", "p"),
    [
        (collective, algorithm, p)
        for p in (2, 8, 16)
        for collective, algorithm in (
            *((c, a) for c, a in ON_TORI),
            ("all_reduce", "bine"),
            ("all_reduce", "bine_latency"),
            ("reduce_scatter", "bine"),
            ("all_gather", "bine"),
            ("broadcast", "bine"),
            ("reduce", "bine"),
            ("all_gather", "pat"),
            ("reduce_scatter", "pat"),
            ("all_reduce", "hierarchical_halving"),
        )
    ],
)
def test_dependencies_allow_what_the_steps_promise(collective: str, algorithm: str, p: int) -> None:
    schedule = build(ScheduleSpec(collective, p, algorithm))
    assert message_depth(schedule) == schedule.cost().steps


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        ("bucket[4x4]", "bucket[4x4] does not fit 12 ranks: write extents whose product is the"),
        ("swing[3x4]", "swing on a torus of 3x4 ranks: it takes even extents, or one ring of any"),
        ("swing_latency[2x6]", "it takes extents that are powers of two, or one ring of any size"),
        ("hierarchical_tree[12]", "write nodes x ranks per node, one of 1x12, 2x6, 3x4, 4x3"),
        ("bine[12]", "bine takes no dims"),
    ],
)
def test_dims_that_do_not_fit_are_refused_with_the_choices(algorithm: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build_rank(ScheduleSpec("all_reduce", 12, algorithm), 0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("world_size", 1 << 40),
        ("channels", 10**30),
        ("root", -(10**30)),
        ("permutation", ((0, 1 << 31),)),
        ("dims", (1 << 31,)),
    ],
)
def test_numbers_of_more_than_32_bits_are_refused(field: str, value: object) -> None:
    spec = replace(ScheduleSpec("all_reduce", 12, "ring"), **{field: value})
    with pytest.raises(ValueError, match=f"{field}: .* does not fit 32 bits"):
        build_rank(spec, 0)


@pytest.mark.parametrize("algorithm", ["pat[3]", "pat[2x2]"])
def test_pat_refuses_what_is_no_power_of_two(algorithm: str) -> None:
    with pytest.raises(ValueError, match="a power of two"):
        build_rank(ScheduleSpec("all_gather", 12, algorithm), 0)
