"""Planted faults of every kind are caught, and the message names step, rank, op and chunk."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import schedule_interpreter
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcoll.schedule import (
    COLLECTIVES,
    INPUT,
    OUTPUT,
    SCRATCH,
    Op,
    Operand,
    Schedule,
    ScheduleSpec,
    algorithms,
    build,
    copy,
    put,
    recv,
    recv_reduce,
    reduce,
    send,
)
from jaxcoll.schedule.verifier import ScheduleError, verify


def ring(p: int = 4) -> Schedule:
    return build(ScheduleSpec("all_reduce", p, "ring"))


def with_ops(schedule: Schedule, rank: int, ops: list[Op]) -> Schedule:
    op_lists = list(schedule.programs)
    op_lists[rank] = replace(op_lists[rank], ops=tuple(ops))
    return replace(schedule, programs=tuple(op_lists))


def with_op(schedule: Schedule, rank: int, index: int, **changes: object) -> Schedule:
    ops = list(schedule.programs[rank].ops)
    ops[index] = replace(ops[index], **changes)
    return with_ops(schedule, rank, ops)


def without_op(schedule: Schedule, rank: int, index: int) -> Schedule:
    """Drops an op; dependencies keep naming what they named."""
    ops = []
    for number, op in enumerate(schedule.programs[rank].ops):
        kept = [d - (d > index) for d in op.depends_on if d != index]
        if number != index:
            ops.append(replace(op, depends_on=tuple(kept)))
    return with_ops(schedule, rank, ops)


def inserted(schedule: Schedule, rank: int, index: int, op: Op) -> Schedule:
    ops = [
        replace(o, depends_on=tuple(d + (d >= index) for d in o.depends_on))
        for o in schedule.programs[rank].ops
    ]
    return with_ops(schedule, rank, [*ops[:index], op, *ops[index:]])


def fault(schedule: Schedule, *parts: str) -> ScheduleError:
    """The error that `verify` raises; its message contains every one of `parts`."""
    with pytest.raises(ScheduleError) as caught:
        verify(schedule)
    for part in parts:
        assert part in str(caught.value), f"{part!r} is not in: {caught.value}"
    return caught.value


def is_accepted(schedule: Schedule) -> bool:
    try:
        verify(schedule)
    except ScheduleError:
        return False
    return True


def index_of(schedule: Schedule, rank: int, kind: str, number: int = 0) -> int:
    ops = schedule.programs[rank].ops
    return [i for i, op in enumerate(ops) if op.kind == kind][number]


# Unmatched messages.


def test_a_dropped_send_is_detected_at_the_one_after_it() -> None:
    schedule = ring()
    index = index_of(schedule, 2, "send", 1)
    error = fault(
        without_op(schedule, 2, index),
        "unmatched: rank 2, step 2",
        "is message 2 from rank 2 to rank 3 on channel 0 where message 1 is due",
    )
    assert (error.kind, error.rank, error.step) == ("unmatched", 2, 2)
    assert error.op == index_of(schedule, 2, "send", 2) - 1


def test_a_dropped_last_send_leaves_its_recv_alone() -> None:
    schedule = ring()
    error = fault(
        without_op(schedule, 2, index_of(schedule, 2, "send", 5)),
        "has no send for message from rank 2 to rank 3",
    )
    assert (error.rank, error.step, error.op) == (3, 5, index_of(schedule, 3, "recv", 2))


def test_a_dropped_recv_leaves_its_send_alone() -> None:
    schedule = ring()
    error = fault(without_op(schedule, 1, index_of(schedule, 1, "recv", 2)), "has no recv")
    assert (error.kind, error.rank, error.step) == ("unmatched", 0, 5)


def test_a_wrong_sequence_is_named() -> None:
    error = fault(with_op(ring(), 1, 0, sequence=1), "is message 1", "where message 0 is due")
    assert (error.kind, error.rank, error.op, error.step) == ("unmatched", 1, 0, 0)


def test_a_wrong_channel_is_an_unmatched_message() -> None:
    assert fault(with_op(ring(2), 0, 0, channel=1)).kind == "unmatched"


def test_ends_that_name_other_chunks_are_named_both() -> None:
    schedule = build(ScheduleSpec("all_gather", 4, "ring"))
    index = index_of(schedule, 1, "recv", 1)
    error = fault(
        with_op(schedule, 1, index, destination=OUTPUT[1]),
        "its destination is output[1], but op",
        "of rank 0",
        "says output[3]",
    )
    assert (error.kind, error.rank, error.op, error.step) == ("unmatched", 1, index, 1)
    assert error.chunk == "output[1]"


# Malformed ops.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"destination": INPUT[0]}, "writes to the input, which is read-only"),
        ({"destination": OUTPUT[1]}, "is at position 0 of its block, output[1] at 1"),
        ({"destination": OUTPUT[9]}, "output[9] is out of range: output has 4 chunks"),
        ({"destination": Operand("output", ((-1, 1),))}, "out of range"),
        ({"destination": Operand("output", ((0, 0),))}, "out of range"),
        ({"destination": Operand("output", ())}, "output[] names no chunk"),
        ({"sources": (Operand("input", ()),)}, "input[] names no chunk"),
        ({"destination": SCRATCH[0]}, "scratch[0] is out of range: scratch has 0 chunks"),
        ({"destination": Operand("registers", ((0, 1),))}, "there is no buffer 'registers'"),
        ({"destination": OUTPUT[0:2]}, "input[0] has 1 chunks, output[0:2] 2"),
        ({"destination": OUTPUT[0, 0], "sources": (INPUT[0, 0],)}, "names a chunk twice"),
        ({"sources": ()}, "send has 0 sources"),
        ({"sources": (INPUT[0], INPUT[0])}, "send has 2 sources"),
        ({"kind": "post"}, "there is no op 'post'"),
        ({"peer": 4}, "peer 4"),
        ({"peer": 0}, "the peer must be another of 4 ranks"),
        ({"sequence": -1}, "message -1"),
        ({"kind": "copy"}, "is local: its peer and sequence must be -1"),
        ({"channel": 4096}, "is on channel 4096 of 4096"),
        ({"channel": -1}, "is on channel -1"),
        ({"depends_on": (99,)}, "depends on op 99, which is not there"),
    ],
)
def test_malformed_ops_are_refused(changes: dict, message: str) -> None:
    error = fault(with_op(ring(), 0, 0, **changes), "malformed: rank 0, step 0, op 0", message)
    assert (error.kind, error.rank, error.op, error.step) == ("malformed", 0, 0, 0)


def test_reduce_without_sources_is_refused() -> None:
    schedule = build(ScheduleSpec("all_reduce", 2, "direct"))
    fault(with_op(schedule, 0, 2, sources=()), "reduce has 0 sources")


def test_layouts_that_differ_between_ranks_or_from_the_collective_are_refused() -> None:
    schedule = ring()
    for changes in ({"chunks_per_block": 5}, {"scratch_blocks": 1}, {"input_blocks": 4}):
        op_lists = list(schedule.programs)
        op_lists[2] = replace(op_lists[2], **changes)
        assert fault(replace(schedule, programs=tuple(op_lists)), "rank 2").kind == "malformed"
    swapped = replace(schedule, programs=schedule.programs[::-1])
    fault(swapped, "malformed: rank 0: its op list is that of rank 3")
    fault(replace(schedule, collective="all_gather"), "all_gather of 4 ranks")


def test_schedules_too_large_to_prove_are_refused_before_memory_is_spent() -> None:
    huge = copy(0, INPUT[0 : 1 << 30], OUTPUT[0 : 1 << 30])
    schedule = Schedule.from_ops("all_reduce", 1, [huge], chunks_per_block=1 << 30)
    fault(schedule, "a buffer 16777216 at most")
    many = Schedule.from_ops("all_reduce", 8, [], scratch_blocks=1 << 23)
    fault(many, "more than 16777216 chunks on all ranks together")
    wide = [copy(0, INPUT[0 : 1 << 24], OUTPUT[0 : 1 << 24])]
    schedule = Schedule.from_ops("all_reduce", 1, wide, chunks_per_block=1 << 22)
    fault(schedule, "output[0:16777216] is out of range")
    repeated = [copy(0, INPUT[0 : 1 << 22], OUTPUT[0 : 1 << 22])] * 3
    schedule = Schedule.from_ops("all_reduce", 1, repeated, chunks_per_block=1 << 22)
    fault(schedule, "op 2", "more than 16777216 chunks are named in all")


def test_parts_that_belong_to_no_op_are_checked_too() -> None:
    schedule = build(ScheduleSpec("permute", 3, permutation=((0, 1),)))
    fault(replace(schedule, root=3), "malformed: rank 3: the root is not among the 3 ranks")
    fault(replace(schedule, root=-1), "malformed: rank -1: the root")
    fault(replace(schedule, programs=()), "of 0 ranks; there are all_reduce")
    fault(replace(schedule, collective="gossip"), "'gossip' of 3 ranks; there are all_reduce")
    fault(replace(schedule, permutation=((0, 1), (0, 2))), "rank 0: is 2 times a source")
    fault(replace(schedule, permutation=((0, 1), (2, 1))), "rank 1: is 2 times a destination")
    fault(replace(schedule, permutation=((0, 3),)), "rank 3: is 1 times a destination")
    for changes in ({"chunks_per_block": 0}, {"scratch_blocks": -1}):
        op_lists = tuple(replace(op_list, **changes) for op_list in schedule.programs)
        fault(replace(schedule, programs=op_lists), "a block has one at least")


# Deadlocks.


def test_an_exchange_over_one_buffer_deadlocks() -> None:
    """Each recv overwrites what the same rank is sending: it waits for its send, around a cycle."""
    ops = []
    for rank in range(2):
        ops.append(copy(rank, INPUT[0], OUTPUT[0]))
    for rank in range(2):
        ops.append(send(rank, 1 - rank, OUTPUT[0], OUTPUT[0]))
        ops.append(recv_reduce(rank, 1 - rank, OUTPUT[0], OUTPUT[0], OUTPUT[0]))
    error = fault(Schedule.from_ops("all_reduce", 2, ops), "deadlock: rank", "a cycle of 2 ops")
    assert error.kind == "deadlock"
    assert error.op == 2


def test_recvs_that_wait_for_each_other_around_the_ring_deadlock() -> None:
    ops = []
    for rank in range(3):  # everybody sends only after having received
        receipt = recv(rank, (rank - 1) % 3, INPUT[0], SCRATCH[0])
        ops += [receipt, send(rank, (rank + 1) % 3, INPUT[0], SCRATCH[0], after=[receipt])]
    error = fault(
        Schedule.from_ops("all_reduce", 3, ops),
        "a cycle of 3 ops",
        "op 1 of rank 0 (step 0, send to rank 1 input[0] => scratch[0]) waits for op 0 of rank 0",
        "which needs op 1 of rank 2",
    )
    assert (error.kind, error.rank, error.op, error.step) == ("deadlock", 0, 1, 0)


def test_a_blocked_op_holds_up_its_channel() -> None:
    """Rank 0's first op waits for what its second one would fetch; in another channel it may."""

    def schedule(channel: int) -> Schedule:
        fetch = recv(0, 1, INPUT[0], SCRATCH[0], channel=channel)
        ops = [
            reduce(0, [INPUT[0], SCRATCH[0]], OUTPUT[0], after=[fetch]),
            fetch,
            send(1, 0, INPUT[0], SCRATCH[0], channel=channel),
        ]
        return Schedule.from_ops("reduce", 2, ops, infer_dependencies=False)

    error = fault(schedule(channel=0), "deadlock", "rank 0")
    assert error.kind == "deadlock"
    verify(schedule(channel=1))


def test_a_long_cycle_is_cut_short_in_the_message() -> None:
    ops = []
    for rank in range(20):
        receipt = recv(rank, (rank - 1) % 20, INPUT[0], SCRATCH[0])
        ops += [receipt, send(rank, (rank + 1) % 20, INPUT[0], SCRATCH[0], after=[receipt])]
    fault(Schedule.from_ops("all_reduce", 20, ops), "a cycle of 20 ops", "and 12 more, back to")


def test_an_op_that_waits_for_itself_deadlocks() -> None:
    error = fault(with_op(ring(2), 1, 0, depends_on=(0,)), "a cycle of 1 ops")
    assert (error.kind, error.rank, error.op) == ("deadlock", 1, 0)


# Races.


def test_every_dependency_of_the_ring_is_needed_or_implied() -> None:
    """Dropping one either is a race, or leaves a schedule that still gives exact sums."""
    schedule, races = ring(), 0
    for op_list in schedule.programs:
        for index, op in enumerate(op_list.ops):
            if not op.depends_on:
                continue
            broken = with_op(schedule, op_list.rank, index, depends_on=())
            if is_accepted(broken):
                for seed in range(20):
                    schedule_interpreter.check(broken, 8, seed)
            else:
                error = fault(broken, "a dependency is missing")
                assert (error.kind, error.rank) == ("race", op_list.rank)
                races += 1
    assert races >= 12


def test_a_missing_dependency_names_both_ops_and_the_chunk() -> None:
    schedule = ring()
    index = index_of(schedule, 1, "send", 1)  # forwards what recv_reduce just made
    error = fault(
        with_op(schedule, 1, index, depends_on=()),
        f"race: rank 1, step 1, op {index}, output[0]: reads it while op 1 of rank 1 (step 0, "
        "recv_reduce",
        "writes it",
    )
    assert (error.kind, error.chunk, error.op) == ("race", "output[0]", index)


def test_a_recv_that_does_not_wait_for_the_reader_of_its_chunk_is_a_race() -> None:
    """Write after read: the send's source is overwritten while it may still be read."""
    ops = [
        *put(0, 1, INPUT[0], SCRATCH[0]),
        *put(1, 2, SCRATCH[0], SCRATCH[0]),
        *put(0, 1, INPUT[0], SCRATCH[0]),
        *(copy(rank, INPUT[0] if rank == 0 else SCRATCH[0], OUTPUT[0]) for rank in range(3)),
    ]
    schedule = Schedule.from_ops("broadcast", 3, ops)
    verify(schedule)
    assert schedule.programs[1].ops[2].depends_on == (1,)
    error = fault(with_op(schedule, 1, 2, depends_on=()), "writes it while op 1 of rank 1")
    assert (error.kind, error.rank, error.chunk) == ("race", 1, "scratch[0]")


def test_order_through_another_rank_is_order() -> None:
    """Rank 1's second recv waits for its first only by way of rank 0; that is enough."""
    fetch = recv(0, 1, SCRATCH[0], SCRATCH[1])
    back = recv(1, 0, INPUT[0], SCRATCH[0])
    ops = [
        send(0, 1, INPUT[0], SCRATCH[0]),
        back,
        send(1, 0, SCRATCH[0], SCRATCH[1], after=[back]),
        fetch,
        send(0, 1, INPUT[0], SCRATCH[2], after=[fetch], channel=1),
        answer := recv(1, 0, INPUT[0], SCRATCH[2], channel=1),
        # Reads what `back` wrote, ordered by: back, its send, fetch, answer.
        copy(1, SCRATCH[0], OUTPUT[0], after=[answer], channel=2),
        copy(0, INPUT[0], OUTPUT[0], channel=2),
    ]
    verify(Schedule.from_ops("broadcast", 2, ops, infer_dependencies=False))
    loose = [replace(op, after=()) if op.op.channel == 2 else op for op in ops]
    error = fault(Schedule.from_ops("broadcast", 2, loose, infer_dependencies=False))
    assert (error.kind, error.rank, error.chunk) == ("race", 1, "scratch[0]")


def test_an_op_that_shifts_within_a_buffer_is_a_race_with_itself() -> None:
    ops = [
        copy(0, INPUT[0, 0], SCRATCH[0, 1]),
        copy(0, SCRATCH[0:2], SCRATCH[1:3]),
        copy(0, SCRATCH[1], OUTPUT[0]),
    ]
    error = fault(
        Schedule.from_ops("all_reduce", 1, ops), "reads a chunk that it writes as another"
    )
    assert (error.kind, error.op, error.chunk) == ("race", 1, "scratch[1]")


# Wrong data.


def test_a_read_of_what_nobody_wrote_is_named() -> None:
    schedule = build(ScheduleSpec("all_gather", 4, "ring"))
    error = fault(without_op(schedule, 1, index_of(schedule, 1, "copy")), "output[1]")
    assert (error.kind, error.rank) == ("result", 1)
    assert "is never written" in str(error)

    ops = [copy(0, SCRATCH[0], OUTPUT[0]), *put(0, 1, SCRATCH[0], OUTPUT[0])]
    error = fault(
        Schedule.from_ops("all_reduce", 2, ops),
        "unwritten: rank 0, step 0, op 0, scratch[0]: reads scratch[0], which nothing has written",
    )
    error = fault(
        Schedule.from_ops("all_reduce", 2, ops[1:]),
        "unwritten: rank 1, step 0, op 0, scratch[0]: reads scratch[0] of rank 0",
    )
    assert (error.kind, error.rank, error.op) == ("unwritten", 1, 0)


def test_a_doubled_reduction_is_traced_to_the_op_that_doubled() -> None:
    schedule = build(ScheduleSpec("all_reduce", 3, "direct"))
    index = index_of(schedule, 1, "reduce")
    doubled = (INPUT[0], SCRATCH[0], SCRATCH[0], SCRATCH[1])
    error = fault(
        with_op(schedule, 1, index, sources=doubled),
        "result: rank 1",
        f"output[0]: holds a contribution twice; op {index} of rank 1 (step 0, reduce",
    )
    assert (error.kind, error.rank, error.op, error.chunk) == ("result", 1, index, "output[0]")


def test_a_reduction_doubled_upstream_is_traced_there() -> None:
    schedule = ring()
    index = index_of(schedule, 1, "recv_reduce", 1)
    # Rank 1 reduces the partial sum once more with its own contribution, and passes it on.
    extra = Op("reduce", 0, -1, -1, 1, (OUTPUT[3], INPUT[3]), OUTPUT[3], (index,))
    broken = inserted(schedule, 1, index + 1, extra)
    follower = index_of(broken, 1, "send", 2)
    broken = with_op(broken, 1, follower, depends_on=(index + 1,))
    error = fault(broken, "holds a contribution twice", f"op {index + 1} of rank 1")
    assert error.kind == "result"


def test_a_forgotten_contribution_is_detected() -> None:
    schedule = build(ScheduleSpec("all_reduce", 3, "direct"))
    index = index_of(schedule, 2, "reduce")
    error = fault(
        with_op(schedule, 2, index, sources=(SCRATCH[0], INPUT[0])),
        "ends with the contributions of ranks 0, 2, but should hold the contributions of ranks "
        "0, 1, 2",
    )
    assert (error.kind, error.rank, error.op) == ("result", 2, index)


def test_a_swapped_chunk_is_found_where_it_ends() -> None:
    ops = [copy(r, INPUT[0], OUTPUT[r]) for r in range(3)]
    for sender in range(3):
        for receiver in range(3):
            if sender != receiver:
                ops += put(sender, receiver, INPUT[0], OUTPUT[sender])
    good = Schedule.from_ops("all_gather", 3, ops)
    verify(good)
    wrong = {0: OUTPUT[1], 1: OUTPUT[0]}
    swapped = [
        replace(o, op=replace(o.op, destination=wrong[o.op.peer if o.rank == 2 else o.rank]))
        if (o.rank, o.op.peer, o.op.kind) in {(0, 2, "send"), (1, 2, "send")}
        or (o.rank == 2 and o.op.kind == "recv")
        else o
        for o in ops
    ]
    error = fault(
        Schedule.from_ops("all_gather", 3, swapped),
        "ends with the contributions of ranks 1, but should hold the contributions of ranks 0",
    )
    assert (error.kind, error.rank, error.chunk) == ("result", 2, "output[0]")


def test_a_block_meant_for_another_rank_is_named() -> None:
    schedule = build(ScheduleSpec("all_to_all", 2, "direct"))
    wrong = (INPUT[0],)
    schedule = with_op(schedule, 0, index_of(schedule, 0, "send"), sources=wrong)
    schedule = with_op(schedule, 1, index_of(schedule, 1, "recv"), sources=wrong)
    fault(schedule, "ends with the contributions of ranks 0 (block 0)", "0 (block 1)")


def test_a_permutation_that_writes_where_nobody_sends_is_refused() -> None:
    schedule = Schedule.from_ops(
        "permute",
        2,
        [*put(0, 1, INPUT[0], OUTPUT[0]), copy(0, INPUT[0], OUTPUT[0])],
        permutation=[(0, 1)],
    )
    error = fault(schedule, "should hold the contributions of ranks none")
    assert (error.kind, error.rank) == ("result", 0)


def test_the_wrong_root_is_refused() -> None:
    broadcast = build(ScheduleSpec("broadcast", 4, "binomial", root=1))
    fault(replace(broadcast, root=2), "but should hold the contributions of ranks 2")
    summed = build(ScheduleSpec("reduce", 4, "binomial", root=1))
    fault(replace(summed, root=2), "rank 2, output[0]: is never written")


def test_orders_that_differ_between_ranks_are_correct_but_not_reproducible() -> None:
    ops = []
    for rank in range(3):
        for peer in range(3):
            if peer != rank:
                ops += put(peer, rank, INPUT[0], SCRATCH[peer])
        own_first = [INPUT[0], *(SCRATCH[peer] for peer in range(3) if peer != rank)]
        ops.append(reduce(rank, own_first, OUTPUT[0]))
    verification = verify(Schedule.from_ops("all_reduce", 3, ops))
    assert not verification.reproducible
    assert verification.association(1, 0) == (1, 0, 2)


# Everything at once.


def mutations() -> dict[str, Callable[[Op, st.DataObject], Op | None]]:
    def another_chunk(operand: Operand, data: st.DataObject) -> Operand:
        buffer = data.draw(st.sampled_from(["input", "output", "scratch"]))
        shift = data.draw(st.integers(-2, 2))
        return Operand(buffer, tuple((begin + shift, count) for begin, count in operand.chunks))

    def mutate_source(op: Op, data: st.DataObject) -> Op:
        number = data.draw(st.integers(0, len(op.sources) - 1))
        changed = [another_chunk(s, data) if i == number else s for i, s in enumerate(op.sources)]
        return replace(op, sources=tuple(changed))

    return {
        "drop op": lambda op, data: None,
        "drop dependencies": lambda op, data: replace(op, depends_on=()),
        "drop a dependency": lambda op, data: replace(op, depends_on=op.depends_on[1:]),
        "reverse sources": lambda op, data: replace(op, sources=op.sources[::-1]),
        "another source": mutate_source,
        "another destination": lambda op, data: replace(
            op, destination=another_chunk(op.destination, data)
        ),
        "another channel": lambda op, data: replace(op, channel=op.channel + 1),
        "another sequence": lambda op, data: replace(op, sequence=op.sequence + 1),
        "recv without reducing": lambda op, data: (
            replace(op, kind="recv", sources=op.sources[:1]) if op.kind == "recv_reduce" else op
        ),
        "a dependency on any op": lambda op, data: replace(
            op, depends_on=(*op.depends_on, data.draw(st.integers(0, 3)))
        ),
    }


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_schedule_accepted_after_any_mutation_still_works(data: st.DataObject) -> None:
    """The verifier against the interpreter: accepted means right in every timing tried."""
    collective, algorithm = data.draw(
        st.sampled_from([(c, a) for c in COLLECTIVES for a in algorithms(c)])
    )
    world_size = data.draw(st.integers(2, 5))
    permutation = tuple((r, (r + 1) % world_size) for r in range(world_size))
    schedule = build(ScheduleSpec(collective, world_size, algorithm, permutation=permutation))
    rank = data.draw(st.integers(0, world_size - 1))
    index = data.draw(st.integers(0, len(schedule.programs[rank].ops) - 1))
    what = data.draw(st.sampled_from(sorted(mutations())))
    mutated = mutations()[what](schedule.programs[rank].ops[index], data)
    if mutated is None:
        schedule = without_op(schedule, rank, index)
    else:
        schedule = with_ops(
            schedule,
            rank,
            [mutated if i == index else op for i, op in enumerate(schedule.programs[rank].ops)],
        )
    if not is_accepted(schedule):
        return
    # A verified schedule can be sent to an engine, which parses it again.
    assert Schedule.parse(collective, schedule.serialize()).programs == schedule.programs
    for seed in range(5):
        schedule_interpreter.check(schedule, 2 * schedule.programs[0].chunks_per_block, seed)


def check_often(schedule: Schedule) -> None:
    for seed in range(50):
        schedule_interpreter.check(schedule, 8, seed)


def test_the_interpreter_sees_planted_races_and_deadlocks_too() -> None:
    """Otherwise the test above would prove nothing."""
    racy = with_op(ring(), 1, index_of(ring(), 1, "send", 1), depends_on=())
    with pytest.raises(AssertionError):
        check_often(racy)
    with pytest.raises(schedule_interpreter.Stuck):
        schedule_interpreter.check(with_op(ring(2), 1, 0, depends_on=(0,)), 4, 0)


def test_errors_are_one_line_and_carry_their_place() -> None:
    error = ScheduleError("race", "because", rank=1, op=2, step=3, chunk="output[4]")
    assert str(error) == "race: rank 1, step 3, op 2, output[4]: because"
    assert re.fullmatch(r"result: rank 0: why", str(ScheduleError("result", "why", rank=0)))
    assert isinstance(error, ValueError)
