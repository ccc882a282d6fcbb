"""Every GPU kernel with N ranks on one device, against the CPU's reductions and NumPy."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from ranks_on_one_gpu import Call, collectives, every_algorithm, needs_gpu, numpy_dtype

from jaxcoll import schedule
from jaxcoll._native import native

pytestmark = needs_gpu

HOW = [
    pytest.param({}, id="grid"),
    pytest.param({"staged": True}, id="grid-staged"),
    pytest.param({"streams": True}, id="streams"),
    pytest.param({"streams": True, "staged": True}, id="streams-staged"),
]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("ranks", range(1, 9))
def test_every_collective(ranks, how):
    for call in collectives(ranks, elements=[4099], **how):
        call.check(calls=3)


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("dtype", native.dtype_names())
def test_every_dtype_and_op(dtype, staged):
    for ranks in (2, 3, 8):
        for op in native.reduce_ops(dtype):
            for collective, algorithm in [
                ("all_reduce", "direct"),
                ("all_reduce", "direct2"),
                ("reduce_scatter", "direct"),
            ]:
                Call(
                    collective,
                    ranks,
                    elements=[1021],
                    algorithm=algorithm,
                    dtype=dtype,
                    op=op,
                    staged=staged,
                ).check(seed=ranks)


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("elements", [1, 2, 3, 5, 15, 16, 17, 255, 4095, 100_003, 1_000_001])
def test_every_size_and_alignment(elements, staged):
    for dtype in ("int8", "bfloat16", "float32"):
        for call in collectives(3, elements=[elements], dtype=dtype, staged=staged):
            call.check(calls=1)


@pytest.mark.parametrize("how", HOW)
def test_many_vectors_in_one_call(how):
    elements = [1 + 37 * v % 1000 for v in range(70)]
    Call("all_reduce", 4, elements=elements, algorithm="direct2", **how).check()
    Call("all_gather", 4, elements=elements, **how).check()


@pytest.mark.parametrize("how", HOW)
def test_hundreds_of_calls_in_a_row(how):
    for call in collectives(4, elements=[20_000], **how):
        call.check(calls=200)


@pytest.mark.parametrize("blocks", [1, 2, 7, 16])
def test_any_number_of_blocks_gives_the_same_bits(blocks):
    for call in collectives(8, elements=[300_007], blocks=blocks):
        call.check()


def test_sums_of_small_integers_are_numpys():
    rng = np.random.default_rng(1)
    for dtype in ("float32", "bfloat16", "float16", "float8_e4m3fn", "int32"):
        call = Call("all_reduce", 8, elements=[5000], algorithm="direct2", dtype=dtype)
        small = [[rng.integers(-1, 2, (1, 5000)).astype(numpy_dtype(dtype))] for _ in range(8)]
        expected = sum(x[0].astype(np.float64) for x in small)
        for (row,) in call.run(small):
            np.testing.assert_array_equal(row.astype(np.float64), expected)


def test_nan_in_one_rank_reaches_all():
    call = Call("all_reduce", 4, elements=[100], op="max")
    inputs = call.random_inputs()
    inputs[2][0][0, 17] = np.nan
    for (row,) in call.run(inputs):
        assert np.flatnonzero(np.isnan(row)).tolist() == [17]


def _in_a_process(script: str) -> subprocess.CompletedProcess[str]:
    """A trap ends the CUDA context for good, so it belongs in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("staged", [False, True])
def test_a_rank_that_never_comes_ends_the_call_and_is_named(staged):
    done = _in_a_process(f"""
        import time
        from ranks_on_one_gpu import Call
        call = Call("all_reduce", 4, streams=True, staged={staged}, timeout_s=1.0)
        call.make()
        begin = time.monotonic()
        try:
            call.run(call.random_inputs(), leave_out=2)
        except RuntimeError as error:
            print("RAISED", error)
        print("CAUSES", call.harness.causes())
        assert time.monotonic() - begin < 30
    """)
    assert done.returncode == 0, done.stderr
    assert "RAISED" in done.stdout, done
    assert "waited for rank 2" in done.stdout, done


RAGGED = """
    import numpy as np
    from jaxcoll._native import native
    ranks, rows, width = 4, 64, 3
    rng = np.random.default_rng(0)
    sizes = rng.integers(0, 9, (ranks, ranks)).astype(np.{index})  # [from][to]
    table = [("{index}", [ranks])] * 4
    body = ("float32", [rows, width])
    harness = native.CudaHarness.create(
        "ragged_all_to_all", "direct", "", ranks, 0, [], [body, body, *table], [body],
        {streams}, {staged}, 0, 5.0, 64, False, [], "")
    operands = [rng.standard_normal((rows, width)).astype(np.float32) for _ in range(ranks)]
    outputs = [rng.standard_normal((rows, width)).astype(np.float32) for _ in range(ranks)]
    first = np.cumsum(sizes, 1) - sizes  # where `from` keeps what goes to `to`
    place = np.cumsum(sizes, 0) - sizes  # where `to` gets what comes from `from`
    def inputs(recv):
        return [[operands[r].tobytes(), outputs[r].tobytes()]
                + [t.astype(np.{index}).tobytes() for t in (first[r], sizes[r], place[r], recv[r])]
                for r in range(ranks)]
    {check}
"""


@pytest.mark.parametrize("index", ["int32", "int64"])
@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("staged", [False, True])
def test_ragged_all_to_all(index, streams, staged):
    check = """
    got = harness.run(inputs(sizes.T), 3, -1)
    for to in range(ranks):
        expected = outputs[to].copy()
        for source in range(ranks):
            n = sizes[source, to]
            a, b = place[source, to], first[source, to]
            expected[a : a + n] = operands[source][b : b + n]
        assert got[to][0] == expected.tobytes(), to
    print("EQUAL")
    """
    done = _in_a_process(RAGGED.format(index=index, streams=streams, staged=staged, check=check))
    assert "EQUAL" in done.stdout, done


@pytest.mark.parametrize("staged", [False, True])
def test_ragged_sizes_that_disagree_are_refused(staged):
    check = """
    wrong = sizes.T.copy()
    wrong[1, 3] += 1
    try:
        harness.run(inputs(wrong), 1, -1)
    except RuntimeError:
        print("CAUSES", harness.causes())
    """
    done = _in_a_process(RAGGED.format(index="int32", streams=False, staged=staged, check=check))
    assert "rank 3 (device 3, process 0) sends" in done.stdout, done


def test_harness_refuses_what_there_is_not():
    with pytest.raises(RuntimeError, match="'nonsense'"):
        Call("all_reduce", 2, algorithm="nonsense").make()


# --- the interpreter ----------------------------------------------------------------------------

GRID_OR_STREAMS = pytest.mark.parametrize("streams", [False, True], ids=["grid", "streams"])


# Whether ranks reach each other's operands, or send all messages through slots.
OPERANDS_OR_SLOTS = pytest.mark.parametrize("staged", [False, True], ids=["operands", "slots"])


@OPERANDS_OR_SLOTS
@GRID_OR_STREAMS
@pytest.mark.parametrize("ranks", range(1, 9))
def test_every_algorithm(ranks, streams, staged):
    """Sums of int32 wrap: every order of reduction gives the same bits."""
    how = {"workspace_mib": 8, "streams": streams, "staged": staged}
    for call in every_algorithm(ranks, elements=[4099, 3], dtype="int32", **how):
        call.check(calls=3)


@pytest.mark.parametrize("dtype", native.dtype_names())
def test_the_interpreter_has_every_dtype_and_op(dtype):
    for op in native.reduce_ops(dtype):
        Call("all_reduce", 3, [1021], "direct", dtype, op, interpret=True).check()


@pytest.mark.parametrize("elements", [1, 2, 3, 5, 15, 16, 17, 255, 4095, 100_003, 1_000_001])
def test_the_interpreter_at_every_size_and_alignment(elements):
    for dtype in ("int8", "int16", "int32"):
        for collective, algorithm in [
            ("all_reduce", "ring"),
            ("all_reduce", "double_tree"),
            ("all_to_all", "bruck"),
            ("all_gather", "ring"),
        ]:
            Call(collective, 3, [elements], algorithm, dtype).check(calls=1)


@OPERANDS_OR_SLOTS
@GRID_OR_STREAMS
def test_hundreds_of_calls_by_the_interpreter(streams, staged):
    how = {"streams": streams, "staged": staged, "interpret": True}
    for algorithm in ("ring", "double_tree", "direct2"):
        Call("all_reduce", 4, [20_000], algorithm, "int32", **how).check(calls=200)


@OPERANDS_OR_SLOTS
@pytest.mark.parametrize("blocks", [1, 2, 7, 16])
def test_any_number_of_blocks_of_the_interpreter_gives_the_same_bits(blocks, staged):
    for call in collectives(8, elements=[300_007], blocks=blocks, staged=staged, interpret=True):
        call.check()


def test_many_vectors_in_one_call_of_the_interpreter():
    elements = [1 + 37 * v % 1000 for v in range(70)]
    Call("all_reduce", 4, elements, "ring", "int32").check()


def test_a_group_of_more_than_sixteen_ranks():
    Call("all_reduce", 20, [5000], "direct", "int32").check()
    Call("all_gather", 20, [5000], "ring", "int32").check()


def test_a_schedule_written_in_python():
    built = schedule.build(schedule.ScheduleSpec("all_reduce", 5, "ring"))
    Call("all_reduce", 5, [7001], "custom", "int32", schedule=built.serialize()).check()


def test_the_interpreter_names_a_rank_that_never_comes():
    done = _in_a_process("""
        from ranks_on_one_gpu import Call
        call = Call("all_reduce", 4, algorithm="ring", streams=True, timeout_s=1.0)
        call.make()
        try:
            call.run(call.random_inputs(), leave_out=2)
        except RuntimeError as error:
            print("RAISED", error)
        print("CAUSES", call.harness.causes())
    """)
    assert done.returncode == 0, done.stderr
    assert "RAISED" in done.stdout, done
    assert "for rank 2 (device 2, process 0) to begin this call for 1 s" in done.stdout, done
