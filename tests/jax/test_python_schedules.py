"""Schedules written in Python: run as they are, or refused before anything is lowered."""

import jax
import numpy as np
import pytest
from lax_oracle import TARGET, make_mesh, per_device, small_integers

import jaxcoll
from jaxcoll.interop import msccl
from jaxcoll.schedule import INPUT, OUTPUT, Schedule, copy, put, put_reduce


def neighbours_first(ranks):
    """An all_gather: each rank's block travels around the ring, both ways at once."""
    ops = [copy(rank, INPUT[0], OUTPUT[rank]) for rank in range(ranks)]
    clockwise, counter = ranks // 2, (ranks - 1) // 2
    for step in range(clockwise):
        for rank in range(ranks):
            block = OUTPUT[(rank - step) % ranks]
            ops += put(rank, (rank + 1) % ranks, block, block, step=step)
            if step < counter:
                block = OUTPUT[(rank + step) % ranks]
                ops += put(rank, (rank - 1) % ranks, block, block, step=step, channel=1)
    return ops


def star_all_reduce(ranks, fold=range):
    """Rank 0 adds what the others send, and sends the sum back."""
    ops = [copy(rank, INPUT[0], OUTPUT[0]) for rank in range(ranks)]
    for rank in fold(1, ranks):
        ops += put_reduce(rank, 0, OUTPUT[0], OUTPUT[0], OUTPUT[0], step=rank)
    for rank in range(1, ranks):
        ops += put(0, rank, OUTPUT[0], OUTPUT[0], step=ranks)
    return ops


def lowered(collective, schedule, x):
    call = getattr(jaxcoll, collective)
    mesh = make_mesh((len(x),), order=(6, 1, 4, 3, 0, 5, 2, 7))
    return jax.jit(per_device(mesh, lambda x: call(x, "x", schedule=schedule))).lower(x)


@pytest.mark.parametrize("ranks", [2, 3, 5, 8])
def test_a_schedule_of_ones_own_runs(ranks):
    x = small_integers((ranks, 5, 3))
    gather = Schedule.from_ops("all_gather", ranks, neighbours_first(ranks))
    program = lowered("all_gather", gather, x)
    assert TARGET in program.as_text()
    assert 'schedule = ""' not in program.as_text()
    result = np.asarray(program.compile()(x))
    np.testing.assert_array_equal(result, np.broadcast_to(x, (ranks, *x.shape)))

    reduce = Schedule.from_ops("all_reduce", ranks, star_all_reduce(ranks))
    result = np.asarray(lowered("all_reduce", reduce, x).compile()(x))
    np.testing.assert_array_equal(result, np.broadcast_to(x.sum(0), x.shape))


def test_a_schedule_runs_in_its_own_order():
    """Not another algorithm that computes the same: floats show the order of additions."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(8, 512)) * 10.0 ** rng.integers(-3, 4, (8, 512))).astype(np.float32)
    forwards = Schedule.from_ops("all_reduce", 8, star_all_reduce(8))
    backwards = Schedule.from_ops(
        "all_reduce", 8, star_all_reduce(8, fold=lambda low, high: reversed(range(low, high)))
    )
    for schedule, order in ((forwards, range(1, 8)), (backwards, range(7, 0, -1))):
        expected = x[0]
        for rank in order:
            expected = expected + x[rank]
        result = np.asarray(lowered("all_reduce", schedule, x).compile()(x))
        for rank in range(8):
            np.testing.assert_array_equal(result[rank], expected)


def test_a_forgotten_message_is_refused_with_its_rank():
    """The last block never reaches rank 3."""
    ops = star_all_reduce(4)[:-2]
    schedule = Schedule.from_ops("all_reduce", 4, ops)
    with pytest.raises(ValueError, match=r"rank 3, step \d+.*output\[0\]"):
        lowered("all_reduce", schedule, small_integers((4, 6)))


def test_a_contribution_counted_twice_is_refused_with_its_chunk():
    ops = star_all_reduce(4)
    ops[4:4] = put_reduce(2, 0, OUTPUT[0], OUTPUT[0], OUTPUT[0], step=9)
    schedule = Schedule.from_ops("all_reduce", 4, ops)
    with pytest.raises(ValueError, match=r"rank 0, step \d+.*output\[0\].*twice"):
        lowered("all_reduce", schedule, small_integers((4, 6)))


def test_a_block_in_the_wrong_place_is_refused():
    ops = neighbours_first(4)
    ops[1] = copy(1, INPUT[0], OUTPUT[2])
    schedule = Schedule.from_ops("all_gather", 4, ops)
    with pytest.raises(ValueError, match=r"rank 0, step 0.*output\[1\] of rank 1.*written"):
        lowered("all_gather", schedule, small_integers((4, 6)))


def test_a_receive_that_nobody_sends_to_is_refused():
    ops = star_all_reduce(4)
    del ops[4]  # rank 1's send
    schedule = Schedule.from_ops("all_reduce", 4, ops)
    with pytest.raises(ValueError, match=r"rank 0, step 1.*no send"):
        lowered("all_reduce", schedule, small_integers((4, 6)))


def test_a_schedule_for_another_size_or_collective_is_refused():
    schedule = Schedule.from_ops("all_reduce", 4, star_all_reduce(4))
    with pytest.raises(jaxcoll.WorldSizeError, match=r"4 ranks.*8"):
        lowered("all_reduce", schedule, small_integers((8, 6)))
    with pytest.raises(ValueError, match=r"all_reduce.*all_gather"):
        lowered("all_gather", schedule, small_integers((4, 6)))


def test_an_imported_msccl_algorithm_runs_in_a_program():
    """All pairs in place, two ranks: a chunk each way through scratch, sums, a chunk each way."""
    gpus = ""
    for rank, peer in ((0, 1), (1, 0)):
        steps = [
            f'type="s" srcbuf="i" srcoff="{peer}" dstbuf="s" dstoff="0"',
            f'type="r" srcbuf="i" srcoff="{rank}" dstbuf="s" dstoff="0"',
            f'type="re" srcbuf="s" srcoff="0" dstbuf="i" dstoff="{rank}"',
            f'type="s" srcbuf="i" srcoff="{rank}" dstbuf="i" dstoff="{rank}"',
            f'type="r" srcbuf="i" srcoff="{peer}" dstbuf="i" dstoff="{peer}"',
        ]
        gpus += f'<gpu id="{rank}" i_chunks="2" o_chunks="0" s_chunks="1">'
        gpus += f'<tb id="0" send="{peer}" recv="{peer}" chan="0">'
        gpus += "".join(f'<step s="{s}" {step} cnt="1"/>' for s, step in enumerate(steps))
        gpus += "</tb></gpu>"
    schedule = msccl.parse(
        '<algo name="pairs" nchunksperloop="2" ngpus="2" coll="allreduce" inplace="1">'
        f"{gpus}</algo>"
    )
    mesh = make_mesh((2,))
    x = small_integers((2, 1001))
    result = per_device(mesh, lambda x: jaxcoll.all_reduce(x, "x", schedule=schedule))(x)
    np.testing.assert_array_equal(result, np.broadcast_to(x.sum(0), x.shape))
