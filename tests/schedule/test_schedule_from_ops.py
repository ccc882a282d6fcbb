"""Schedules written in Python."""

from __future__ import annotations

import re

import pytest
import schedule_interpreter

from jaxcoll.schedule import (
    INPUT,
    OUTPUT,
    SCRATCH,
    Operand,
    Schedule,
    ScheduleSpec,
    build,
    copy,
    put,
    put_reduce,
    recv,
    recv_reduce,
    reduce,
    send,
)
from jaxcoll.schedule.verifier import verify


def ring_all_reduce(p: int) -> Schedule:
    ops = []
    for step in range(p - 1):
        for rank in range(p):
            chunk = (rank - step) % p
            source = OUTPUT[chunk] if step else INPUT[chunk]
            ops += put_reduce(rank, (rank + 1) % p, source, INPUT[chunk], OUTPUT[chunk], step=step)
    for step in range(p - 1):
        for rank in range(p):
            chunk = OUTPUT[(rank + 1 - step) % p]
            ops += put(rank, (rank + 1) % p, chunk, chunk, step=p - 1 + step)
    return Schedule.from_ops("all_reduce", p, ops, chunks_per_block=p)


@pytest.mark.parametrize("p", [2, 3, 5, 8])
def test_a_ring_in_a_dozen_lines_is_as_good_as_the_built_in(p: int) -> None:
    schedule = ring_all_reduce(p)
    verification = verify(schedule)
    built_in = build(ScheduleSpec("all_reduce", p, "ring"))
    assert verification.reproducible
    assert verification.association(0, 1) == verify(built_in).association(0, 1)
    assert schedule.cost() == built_in.cost()
    schedule_interpreter.check(schedule, 23, p)


def test_the_module_documentation_s_example_is_correct() -> None:
    ops = [copy(rank, INPUT[0], OUTPUT[rank]) for rank in range(4)]
    for step in range(3):
        for rank in range(4):
            block = OUTPUT[(rank - step) % 4]
            ops += put(rank, (rank + 1) % 4, block, block, step=step)
    verify(Schedule.from_ops("all_gather", 4, ops))


def test_dependencies_are_those_of_running_one_op_after_the_other() -> None:
    ops = [
        copy(0, INPUT[0:2], SCRATCH[0:2]),  # 0
        copy(0, SCRATCH[0], OUTPUT[0]),  # 1 reads 0's
        copy(0, SCRATCH[1], OUTPUT[1]),  # 2 reads 0's
        copy(0, INPUT[0], SCRATCH[0]),  # 3 overwrites what 1 reads, not what 2 reads
        reduce(0, [OUTPUT[0:2], SCRATCH[0:2]], OUTPUT[0:2]),  # 4 reads 0's, 1's, 2's and 3's
    ]
    op_list = Schedule.from_ops("all_reduce", 1, ops, chunks_per_block=2).programs[0]
    assert [op.depends_on for op in op_list.ops] == [(), (0,), (0,), (1,), (0, 1, 2, 3)]


def test_after_adds_to_what_data_implies_and_is_all_without_inference() -> None:
    first = copy(0, INPUT[0], SCRATCH[0])
    second = copy(0, INPUT[0], SCRATCH[1], channel=1)
    third = copy(0, SCRATCH[0], OUTPUT[0], channel=2, after=[second])
    ops = [first, second, third]
    inferred = Schedule.from_ops("all_reduce", 1, ops)
    assert inferred.programs[0].ops[2].depends_on == (0, 1)
    explicit = Schedule.from_ops("all_reduce", 1, ops, infer_dependencies=False)
    assert explicit.programs[0].ops[2].depends_on == (1,)


def test_an_op_may_wait_for_a_later_one_of_another_channel() -> None:
    fetch = recv(1, 0, INPUT[0], SCRATCH[0], channel=1)
    ops = [
        copy(1, SCRATCH[0], OUTPUT[0], after=[fetch]),
        fetch,
        send(0, 1, INPUT[0], SCRATCH[0], channel=1),
        copy(0, INPUT[0], OUTPUT[0]),
    ]
    schedule = Schedule.from_ops("broadcast", 2, ops, infer_dependencies=False)
    assert schedule.programs[1].ops[0].depends_on == (1,)
    verify(schedule)


def test_messages_are_numbered_per_pair_of_ranks_and_channel() -> None:
    ops = [
        *put(0, 1, INPUT[0], SCRATCH[0]),
        *put(0, 1, INPUT[0], SCRATCH[1], channel=1),
        *put(0, 1, INPUT[0], SCRATCH[2]),
        *put(1, 0, INPUT[0], SCRATCH[3]),
        *put(0, 2, INPUT[0], SCRATCH[0]),
    ]
    schedule = Schedule.from_ops("all_reduce", 3, ops)
    assert [op.sequence for op in schedule.programs[0].ops] == [0, 0, 1, 0, 0]
    assert [op.sequence for op in schedule.programs[1].ops] == [0, 0, 1, 0]
    assert schedule.programs[0].scratch_blocks == 4


def test_associations_nest_as_deeply_as_there_are_ranks() -> None:
    p = 1500  # deeper than Python recurses
    ops = []
    for rank in range(p - 1, 0, -1):
        source = INPUT[0] if rank == p - 1 else SCRATCH[0]
        target = OUTPUT[0] if rank == 1 else SCRATCH[0]
        ops += put_reduce(rank, rank - 1, source, INPUT[0], target)
    association = verify(Schedule.from_ops("reduce", p, ops)).association(0, 0)
    for rank in range(p - 1):
        association, right = association
        assert right == rank
    assert association == p - 1


def test_schedules_print_who_sends_what_to_whom() -> None:
    ops = [
        *put_reduce(0, 1, INPUT[0:2], INPUT[0:2], OUTPUT[0:2]),
        *put(1, 0, OUTPUT[0:2], OUTPUT[0:2], step=1, channel=1),
    ]
    schedule = Schedule.from_ops("all_reduce", 2, ops, chunks_per_block=2, algorithm="pair")
    assert str(schedule) == (
        "pair all_reduce, 2 ranks, 2 chunks per block, 4 ops\n"
        "step 0\n"
        "  0 -> 1  input[0:2] op local input[0:2] => output[0:2]\n"
        "step 1\n"
        "  1 -> 0  output[0:2] => output[0:2]  (channel 1)"
    )
    assert repr(schedule) == "<pair all_reduce, 2 ranks, 2 chunks per block, 4 ops>"
    local = Schedule.from_ops("all_reduce", 1, [reduce(0, [INPUT[0], INPUT[0]], OUTPUT[0])])
    assert "  0: reduce input[0] op input[0] => output[0]" in str(local)


def test_printing_shows_messages_without_a_partner() -> None:
    lost = send(0, 1, INPUT[0], OUTPUT[0])
    awaited = recv_reduce(0, 1, INPUT[0], INPUT[0], OUTPUT[0])
    text = str(Schedule.from_ops("all_reduce", 2, [lost, awaited]))
    assert "0 -> 1  input[0] => output[0]  (never received)" in text
    assert "(never sent)" in text


def test_operands_are_written_as_subscripts() -> None:
    assert INPUT[3] == Operand("input", ((3, 1),))
    assert OUTPUT[0:4, 7] == Operand("output", ((0, 4), (7, 1)))
    assert SCRATCH[:2] == Operand("scratch", ((0, 2),))
    assert SCRATCH[1:3, 5].indices() == [1, 2, 5]
    assert len(SCRATCH[1:3, 5]) == 3
    assert str(SCRATCH[1:3, 5]) == "scratch[1:3, 5]"


@pytest.mark.parametrize(
    "key", [-1, slice(2, 2), slice(2, None), slice(0, 4, 2), slice(-2, 1), 1 << 31]
)
def test_operands_that_make_no_sense_are_refused(key: int | slice) -> None:
    with pytest.raises(ValueError, match="input: "):
        INPUT[key]


def test_bad_op_lists_are_refused() -> None:
    stranger = copy(0, INPUT[0], OUTPUT[0])
    for arguments, message in (
        (("all_sum", 1, []), "unknown collective 'all_sum'; there are ['all_reduce'"),
        (("all_reduce", 0, []), "world_size 0 and chunks_per_block 1 must be positive"),
        (("all_reduce", 1, [copy(1, INPUT[0], OUTPUT[0])]), "names rank 1, but there are ranks 0"),
        (("all_reduce", 1, [copy(-1, INPUT[0], OUTPUT[0])]), "names rank -1"),
        (("all_reduce", 2, put(0, 2, INPUT[0], OUTPUT[0])), "op 0 of the list (send to rank 2"),
        (("all_reduce", 2, [send(0, -1, INPUT[0], OUTPUT[0])]), "names rank -1"),
        (("all_reduce", 1, [copy(0, INPUT[0], OUTPUT[0], channel=4096)]), "channels 0 to 4095"),
        (("all_reduce", 1, [copy(0, INPUT[0], OUTPUT[0], step=-1)]), "steps from 0"),
        (
            ("all_reduce", 1, [copy(0, INPUT[0], OUTPUT[0], after=[stranger])]),
            "not among this rank's ops",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            Schedule.from_ops(*arguments)
