"""The text form: round trips, and garbage that gets an error and nothing else."""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcoll.schedule import (
    COLLECTIVES,
    INPUT,
    MAX_SERIALIZED_BYTES,
    OUTPUT,
    SCRATCH,
    Operand,
    Schedule,
    ScheduleSpec,
    algorithms,
    build,
    copy,
    put,
    put_reduce,
)
from jaxcoll.schedule.verifier import verify

HEAD = "jaxcoll-schedule 1 2\n"
RANK_0 = "rank 0 4 1 1 1 1\n"
RANK_1 = "rank 1 4 1 1 1 0\n"


def one_op(op: str) -> str:
    """A text of two ranks whose only op is `op`, on line 3."""
    return f"{HEAD}{RANK_0}{op}\n{RANK_1}"


@pytest.mark.parametrize("world_size", [1, 2, 5, 8])
@pytest.mark.parametrize("collective", COLLECTIVES)
def test_built_in_schedules_survive_the_round_trip(collective: str, world_size: int) -> None:
    for algorithm in algorithms(collective):
        spec = ScheduleSpec(collective, world_size, algorithm, channels=2)
        schedule = build(spec)
        text = schedule.serialize()
        again = Schedule.parse(collective, text, algorithm=algorithm)
        assert again == schedule
        assert again.serialize() == text
        assert again.digest() == schedule.digest()


def test_the_text_is_what_its_documentation_says() -> None:
    ops = [
        copy(0, INPUT[0:4], OUTPUT[0:4]),
        *put(0, 1, OUTPUT[0, 2:4], SCRATCH[0, 2:4], step=1, channel=3),
        *put_reduce(1, 0, INPUT[1], INPUT[1], OUTPUT[1], step=2),
    ]
    schedule = Schedule.from_ops("all_reduce", 2, ops, chunks_per_block=4)
    assert schedule.serialize() == (
        "jaxcoll-schedule 1 2\n"
        "rank 0 4 1 1 1 3\n"
        "copy 0 0 i0+4>o0+4\n"
        "send 3 1 1 0 o0,2+2>s0,2+2 @0\n"
        "recv_reduce 0 2 1 0 i1|i1>o1 @0\n"
        "rank 1 4 1 1 1 2\n"
        "recv 3 1 0 0 o0,2+2>s0,2+2\n"
        "send 0 2 0 0 i1>o1\n"
    )
    assert Schedule.parse("all_reduce", schedule.serialize()) == schedule


def test_the_digest_covers_meaning_and_nothing_else() -> None:
    schedule = build(ScheduleSpec("broadcast", 4, "binomial"))
    assert replace(schedule, algorithm="mine").digest() == schedule.digest()
    assert hash(build(ScheduleSpec("broadcast", 4, "binomial"))) == hash(schedule)
    digests = {
        schedule.digest(),
        replace(schedule, root=1).digest(),
        replace(schedule, collective="reduce").digest(),
        build(ScheduleSpec("broadcast", 4, "direct")).digest(),
    }
    assert len(digests) == 4


def test_too_long_a_text_is_refused_on_both_sides() -> None:
    every_other = tuple(range(0, 200_000, 2))
    ops = [copy(0, INPUT[every_other], OUTPUT[every_other])]
    schedule = Schedule.from_ops("all_reduce", 1, ops, chunks_per_block=200_000)
    with pytest.raises(ValueError, match=f"at most {MAX_SERIALIZED_BYTES} can be attached"):
        schedule.serialize()
    assert len(schedule.digest()) == 64
    with pytest.raises(ValueError, match="1048577 bytes; at most 1048576"):
        Schedule.parse("all_reduce", " " * (MAX_SERIALIZED_BYTES + 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected 'jaxcoll-schedule 1 <number of ranks"),
        ("jaxcoll-schedule 2 1\n", "line 1: expected"),
        ("jaxcoll-schedule 1 0\n", "line 1: expected"),
        ("jaxcoll-schedule 1 65537\n", "line 1: expected"),
        ("jaxcoll-schedule 1 99999999999999999999\n", "line 1: expected"),
        (HEAD, "line 2: expected 'rank 0 <chunks per block>"),
        (HEAD + RANK_1, "line 2: expected 'rank 0"),
        (HEAD + "rank 0 0 1 1 1 0\n", "line 2: expected 'rank 0"),
        (HEAD + "rank 0 16777216 1 1 2 0\n", "more than 16777216 chunks"),
        (HEAD + "rank 0 4 1 1 1 0\nrank 1 5 1 1 1 0\n", "rank 1 differs from rank 0 in blocks or chunks"),
        (HEAD + RANK_0, "line 3: the text ends before the last op"),
        (HEAD + "rank 0 4 1 1 1 2147483647\ncopy 0 0 i0>o0\n", "the text ends before"),
        (one_op("copy 0 0 i0>o0") + "copy", "text after the last rank"),
        (one_op("post 0 0 i0>o0"), "line 3: expected send, recv, recv_reduce, copy or reduce"),
        (one_op("copy 4096 0 i0>o0"), "expected '<channel> <step>' after copy"),
        (one_op("copy -1 0 i0>o0"), "expected '<channel> <step>' after copy"),
        (one_op("copy 00 0 i0>o0"), "expected '<channel> <step>' after copy"),
        (one_op("send 0 0 2 0 i0>o0"), "with a peer below 2"),
        (one_op("send 0 0 0 0 i0>o0"), "cannot send to itself"),
        (one_op("send 0 0 1 4294967296 i0>o0"), "expected '<peer> <sequence>'"),
        (one_op("copy 0 0 x0>o0"), "expected an operand"),
        (one_op("copy 0 0 i4>o0"), "within the 4 chunks"),
        (one_op("copy 0 0 i3+2>o0+2"), "within the 4 chunks"),
        (one_op("copy 0 0 i0+1>o0+1"), "count, at least 2"),
        (one_op("copy 0 0 i0+2147483647>o0"), "within the 4 chunks"),
        (one_op("copy 0 0 i0>o1"), "differ in number or positions"),
        (one_op("copy 0 0 i0+2>o0"), "differ in number or positions"),
        (one_op("copy 0 0 i0|i0>o0"), "copy with 2 sources"),
        (one_op("recv_reduce 0 0 1 0 i0>o0"), "recv_reduce with 1 sources"),
        (one_op("copy 0 0 s0>i0"), "inputs are read-only"),
        (one_op("copy 0 0 i0"), "expected '>'"),
        (one_op("copy 0 0 i0>o0 @1"), "index of another op of this rank, below 1"),
        (one_op("copy 0 0 i0>o0 @0"), "index of another op"),
        (one_op("copy 0 0 i0>o0 "), "expected the end of the line"),
        (one_op("copy 0 0 i0>o0\r"), "expected the end of the line"),
    ],
)
def test_garbage_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Schedule.parse("all_reduce", text)


SEEDS = [
    build(ScheduleSpec(collective, 3, algorithm)).serialize()
    for collective in COLLECTIVES
    for algorithm in algorithms(collective)
    if algorithm != "double_tree"  # long, and nothing new in it
]


def parse_or_refuse(text: str) -> None:
    with contextlib.suppress(ValueError):
        schedule = Schedule.parse("all_reduce", text)
        assert schedule.serialize() == text  # only the canonical text is accepted
        verify(schedule)  # a ScheduleError is a ValueError


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), st.text("jaxcol-shedu 0123+,|>@\n", max_size=200)))
def test_arbitrary_text_never_does_harm(text: str) -> None:
    parse_or_refuse(text)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_damaged_schedules_never_do_harm(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(SEEDS))
    for _ in range(data.draw(st.integers(1, 4))):
        begin = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(begin, min(len(text), begin + 6)))
        middle = data.draw(
            st.one_of(
                st.text("isorecvdup 0123456789+,|>@\n", max_size=4),
                st.sampled_from(["2147483647", "2147483648", "-1", "99999999999999999999", "\0"]),
            )
        )
        text = text[:begin] + middle + text[end:]
    parse_or_refuse(text)


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    """Well-formed schedules, right or wrong."""
    world_size = draw(st.integers(1, 4))
    pieces = draw(st.integers(1, 3))
    blocks = {"input": 1, "output": 1, "scratch": 2}
    ops = []

    def operand(buffers: list[str], positions: list[int]) -> Operand:
        buffer = draw(st.sampled_from(buffers))
        chunks = []
        for position in positions:
            block = draw(st.integers(0, blocks[buffer] - 1))
            chunks.append((block * pieces + position, 1))
        return Operand(buffer, tuple(chunks))

    for _ in range(draw(st.integers(0, 8))):
        positions = draw(st.lists(st.integers(0, pieces - 1), min_size=1, max_size=4))
        rank = draw(st.integers(0, world_size - 1))
        peer = draw(st.integers(0, world_size - 1))
        source = operand(["input", "output", "scratch"], positions)
        destination = operand(["output", "scratch"], positions)
        step, channel = draw(st.integers(0, 5)), draw(st.integers(0, 2))
        if peer == rank:
            ops.append(copy(rank, source, destination, step=step, channel=channel))
        else:
            ops += put(rank, peer, source, destination, step=step, channel=channel)
    return Schedule.from_ops(
        "all_reduce", world_size, ops, chunks_per_block=pieces, scratch_blocks=2
    )


@settings(max_examples=100, deadline=None)
@given(schedules())
def test_any_well_formed_schedule_survives_the_round_trip(schedule: Schedule) -> None:
    assert Schedule.parse("all_reduce", schedule.serialize()) == schedule
