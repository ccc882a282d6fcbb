"""The benchmarks measure what they say, and notice wrong results."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import compare, gpu, measure, processes, run, scale, transport
from benchmarks.collectives import COLLECTIVES, DTYPES, count_wrong, exact_input, group_rows, place
from jaxcoll._native import native


@pytest.mark.parametrize("name", COLLECTIVES)
def test_run_prints_nccl_tests_columns_and_writes_json(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "out.json"
    arguments = f"--mesh dp=2,tp=4 --axis tp --collective {name} -b 1K -e 4K -f 4 -n 2 -w 1"
    assert run.main([*arguments.split(), "--compare", "lax", "--json", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    heads = "size count type redop root time p95 algbw busbw #wrong lax ratio"
    assert lines[1].removeprefix("#").split() == heads.split()
    assert [line.split()[0] for line in lines[3:5]] == ["1024", "4096"]
    assert [line.split()[9] for line in lines[3:5]] == ["0", "0"]
    assert lines[5] == "# Out of bounds values : 0 OK"
    assert lines[6].startswith("# Avg bus bandwidth    : ")
    written = json.loads(path.read_text())
    assert written["mesh"] == {"dp": 2, "tp": 4}
    assert written["versions"]["jax"] == jax.__version__
    assert {"commit", "machine", "date"} <= set(written)
    for row in written["rows"]:
        assert 0 < row["time_s"] <= row["p95_s"]
        assert row["calls"] == 2
        assert row["algbw_GBps"] == pytest.approx(row["size_bytes"] / row["time_s"] / 1e9)


def test_sizes_and_bus_factors_are_those_of_nccl_tests() -> None:
    factors = {name: c.bus_factor(4) for name, c in COLLECTIVES.items()}
    assert factors == {
        "all_reduce": 1.5,
        "all_gather": 0.75,
        "reduce_scatter": 0.75,
        "all_to_all": 0.75,
        "ppermute": 1,
        "broadcast": 1,
    }
    per_rank = {name for name, c in COLLECTIVES.items() if c.count_divisor(4) == 1}
    assert per_rank == {"all_reduce", "ppermute", "broadcast"}
    assert [name for name, c in COLLECTIVES.items() if c.input_divisor(4) == 4] == ["all_gather"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ranks", [2, 8, 64])
def test_inputs_sum_exactly(dtype: str, ranks: int) -> None:
    rows = exact_input(ranks, 130, DTYPES[dtype], ranks)
    wide = rows.astype("complex128" if rows.dtype.kind == "c" else "float64").sum(0)
    assert (wide.astype(DTYPES[dtype]).astype(wide.dtype) == wide).all()
    assert len({row.tobytes() for row in rows}) > 1
    assert wide.any()


def test_a_wrong_element_is_counted() -> None:
    mesh = measure.make_mesh({"dp": 2, "tp": 4})
    sent = exact_input(8, 64, np.dtype("float32"), 4)
    right = np.concatenate(
        [np.tile(sent[rows].sum(0), (4, 1)) for rows in ([0, 1, 2, 3], [4, 5, 6, 7])]
    )
    assert count_wrong(COLLECTIVES["all_reduce"], mesh, "tp", sent, place(mesh, right)) == 0
    right[5, 7] += 1
    right[0, 0] = np.nan
    assert count_wrong(COLLECTIVES["all_reduce"], mesh, "tp", sent, place(mesh, right)) == 2


def test_groups_follow_the_axis() -> None:
    mesh = measure.make_mesh({"dp": 2, "tp": 4})
    assert group_rows(mesh, "tp").tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert group_rows(mesh, "dp").tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_sizes_are_multiples_that_ranks_can_share() -> None:
    assert list(run.sizes(1000, 5000, 2, 24)) == [984, 1992, 3984]
    assert list(run.sizes(1, 64, 4, 32)) == [32, 64]


@pytest.mark.parametrize(
    ("text", "size"), [("1", 1), ("4K", 4096), ("4k", 4096), ("64M", 64 << 20), ("1G", 1 << 30)]
)
def test_sizes_are_read_as_nccl_tests_reads_them(text: str, size: int) -> None:
    assert run.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "K", "0", "-1", "1T", "1.5K"])
def test_bad_sizes_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a size"):
        run.parse_size(text)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("--mesh dp", "write the mesh as"),
        ("--mesh dp=2,dp=4", "write the mesh as"),
        ("--axis pp", "--axis pp: the mesh has dp"),
        ("-f 1", "-f: at least 2"),
        ("-b 8K -e 4K", "is larger than"),
        ("--collective psum", "all_reduce"),
        ("--dtype float31", "float32"),
    ],
)
def test_run_explains_bad_arguments(
    arguments: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run.main(arguments.split())
    assert caught.value.code == 2
    assert complaint in capsys.readouterr().err


def test_calls_are_timed_alternately() -> None:
    order: list[str] = []
    calls = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    times = measure.measure(calls, budget_s=0, warmup=0, least=3)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert [len(times[name].calls_s) for name in calls] == [3, 3]


def test_medians_and_percentiles() -> None:
    times = measure.Times([float(i) for i in range(101)])
    assert (times.median_s, times.p95_s) == (50, 95)


def small_rows() -> list[int]:
    return [i for i, row in enumerate(compare.ROWS) if sum(row.elements) <= 64 << 10]


@pytest.mark.parametrize("index", small_rows(), ids=lambda i: compare.ROWS[i].name)
def test_a_row_of_the_comparison_agrees_with_lax(index: int) -> None:
    row = compare.ROWS[index]
    measured = compare.measure_apart if row.devices != 8 else None
    result = measured(index, 0.02) if measured else compare.measure_row(row, 0.02)
    assert result["right"]
    assert result["ratio"] == result["lax"]["median_s"] / result["jaxcoll"]["median_s"]


@pytest.mark.parametrize("name", [row.name for row in compare.ROWS if len(row.elements) == 100])
def test_both_gradients_agree_with_lax(name: str) -> None:
    row = next(row for row in compare.ROWS if row.name == name)
    assert compare.measure_row(row, 0.02)["right"]


def test_a_row_that_is_wrong_is_never_a_pass() -> None:
    result = {"right": True, "floor": 1.5, "ratio": 2.0}
    assert compare.verdict(result) == "PASS"
    assert compare.verdict(result | {"ratio": 1.4}) == "BELOW"
    assert compare.verdict(result | {"right": False}) == "WRONG"
    assert compare.verdict(result | {"floor": None}) == "-"
    constant = {"lax": lambda: np.ones(3), "jaxcoll": lambda: np.array([1, 1, 1.01])}
    assert not compare.agree(constant)


def test_copy_bandwidth_is_plausible() -> None:
    assert 1e8 < measure.copy_bandwidth_Bps(repeats=1) < 1e13


# --- between processes --------------------------------------------------------------------------


def test_a_job_of_processes_measures_its_peers() -> None:
    """gloo is always there; MPI and an engine that spans processes where they are."""
    found = processes.run_job(2, list(processes.PEERS), 0.05, only="all_reduce, 4 KiB")
    (row,) = found["rows"]
    assert row["right"]
    assert {"gloo"} <= set(row["median_s"]) <= {"gloo", "mpich", "jaxcoll"}
    assert ("jaxcoll" in row["median_s"]) == (row["absent"] is None)
    assert all(0 < seconds < 10 for seconds in row["median_s"].values())
    assert found["copy_Bps"] > 1e8
    assert ("mpich" in row["median_s"]) == (found["mpi"] is not None)


def test_floors_between_processes_are_judged_by_their_own_rules() -> None:
    job = {"nothing_s": 1e-5, "copy_Bps": 2e10}
    rows = {row.name: row for row in processes.ROWS}

    def judge(name: str, **median_s: float) -> dict[str, bool]:
        found = {"right": True, "absent": None, "median_s": median_s}
        return processes.judge(rows[name], 2, found, job)["checks"]

    size = 64 << 20  # bound: 4 x 64 MiB at 20 GB/s is 13.4 ms
    assert judge("all_reduce, 64 MiB", gloo=0.1, mpich=0.03, jaxcoll=0.024) == {
        "over gloo at least 4": True,
        "over mpich at least 1.2": True,
        "bounds at most 2.5": True,
    }
    assert not any(judge("all_reduce, 64 MiB", gloo=0.1, mpich=0.03, jaxcoll=0.035).values())
    assert judge("all_reduce, 4 KiB", gloo=1e-4, mpich=1e-5, jaxcoll=5e-5) == {
        "over gloo at least 8": False,
        "above an empty call, at most 3 of mpich's": False,
    }
    assert judge("tcp: all_reduce, 64 MiB", gloo=0.1, sockets=0.05, jaxcoll=0.07) == {
        "over gloo at least 1.7": False,
        "over plain sockets at most 1.5": True,
    }
    found = {"right": True, "absent": None, "median_s": {"gloo": 0.1, "jaxcoll": 0.02}}
    row = processes.judge(rows["all_reduce, 64 MiB"], 4, found, job)
    assert row["bus_Bps"] == pytest.approx(size / 0.02 * 1.5)
    assert row["bounds"] == pytest.approx(0.02 / (8 * size / 2e10))


def test_run_measures_a_mesh_of_processes() -> None:
    command = [sys.executable, "-m", "jaxcoll", "launch", "-n", "2", "-m", "benchmarks.run"]
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "PJRT_NPROC")}
    done = subprocess.run(
        [*command, "--mesh", "dp=2,tp=2", "-b", "1K", "-e", "1K", "-n", "2"],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if not line.startswith("[1]")]
    assert "2 x 2 ranks over dp, 2 processes" in lines[0]
    assert "[0] # Out of bounds values : 0 OK" in lines
    assert not [line for line in done.stdout.splitlines() if line.startswith("[1] #")]


@pytest.mark.skipif(
    not native.testing_built, reason="only a build with -DJAXCOLL_TESTING=ON has links alone"
)
def test_transport_measures_a_link_of_each_kind(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    command = [sys.executable, "-m", "benchmarks.transport", "--transports", "shm,tcp"]
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "PJRT_NPROC")}
    done = subprocess.run(
        [*command, "-b", "8", "-e", "128", "-f", "16", "-n", "10", "--json", str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("BW average[MB/sec]") == 2
    rows = json.loads(path.read_text())["rows"]
    assert [(row["transport"], row["bytes"]) for row in rows] == [
        *(("shm", 8), ("shm", 128), ("tcp", 8), ("tcp", 128))
    ]
    for row in rows:
        assert 0 < row["t_min_us"] <= row["t_typical_us"] <= row["t_max_us"]
        assert 0 < row["bw_average_MBps"] <= row["bw_peak_MBps"]


def test_transport_explains_bad_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, expected in (
        (["--transports", "smoke"], "there is no transport smoke"),
        (["--source", "lent"], "only rdma takes what is lent"),
        (["-e", "1G"], "the window of a link"),
        (["-b", "4K", "-e", "8"], "-b not larger than -e"),
    ):
        with pytest.raises(SystemExit):
            transport.main(arguments)
        assert expected in capsys.readouterr().err


def test_the_gpu_interpreter_is_compared_with_the_kernel_that_reaches_operands_alike() -> None:
    def row(median_s: float, **differs: object) -> dict[str, object]:
        same = {"collective": "all_reduce", "algorithm": "direct2", "size": 8, "dtype": "float32"}
        how = {"ranks": 8, "blocks_asked": 0, "interpret": False, "staged": False}
        return {**same, **how, "median_s": median_s, **differs}

    rows = [
        row(2.0),
        row(6.0, staged=True),
        row(9.0, blocks_asked=4),
        row(9.0, size=16),
        row(4.0, interpret=True),
        row(4.0, interpret=True, staged=True),
    ]
    ratios = gpu.interpreter_ratios(rows)
    assert [(r["against"], r["ratio"]) for r in ratios] == [("direct", 0.5), ("staged", 1.5)]


def test_gpu_calls_take_sets_of_operands_larger_than_the_cache_in_turn() -> None:
    l2_bytes = 50 << 20
    small = gpu.Case("all_reduce", "direct", 8 << 10)
    # A chain of 100 calls, each with operands of its own.
    assert gpu.repeats(small.floor_bytes(), 0.0, l2_bytes) == (100, 100)
    for size in (512 << 10, 2 << 20, 64 << 20, 256 << 20):
        set_bytes = gpu.Case("all_reduce", "direct2", size).floor_bytes()
        chain, sets = gpu.repeats(set_bytes, set_bytes / 3e12, l2_bytes)
        assert sets * set_bytes >= 4 * l2_bytes
        assert chain % sets == 0
        assert 4 <= chain <= 100


def test_the_floors_of_gpu_kernels_are_judged_by_the_rows() -> None:
    def row(size: int, **differs: object) -> dict[str, object]:
        same = {"collective": "all_reduce", "size": size, "dtype": "float32", "ranks": 8}
        how = {"blocks_asked": 0, "interpret": False, "staged": False}
        return {**same, **how, "median_s": 1.0, "floor_over_time": 0.5, **differs}

    mib = 1 << 20
    report = {
        "rows": [
            row(64 * mib),
            row(64 * mib, staged=True),
            row(64 * mib, floor_over_time=0.9, blocks_asked=4),  # not by all multiprocessors
            row(8 << 10, median_s=9e-6),
            row(8 << 10, median_s=5e-6, staged=True),
        ],
        "interpreter": [{"size": 64 * mib, "against": "direct", "ratio": 0.85}],
        "nccl": [
            {"outcome": "ran", "ranks": 8, "size": 8 << 10, "median_s": 2e-5},
            {"outcome": "ran", "ranks": 8, "size": 8 << 10, "median_s": 3e-5},
            {"outcome": "hang", "ranks": 2},
        ],
    }
    lines = [str(aim) for aim in gpu.aims(report)]
    for expected in (
        "FAIL all_reduce, 64 MiB of float32, direct: floor/time: 0.5, at least 0.8",
        "PASS all_reduce, 64 MiB of float32, staged: floor/time: 0.5, at least 0.4",
        "MISSING all_reduce, 64 MiB of bfloat16, direct: floor/time: not measured, at least 0.8",
        "MISSING all_to_all, 512 MiB: floor/time: not measured, at least 0.8",
        "PASS all_reduce, 8 KiB: us: 9, at most 10",
        "PASS the interpreter's speed by that of direct2's kernel, 64 MiB: 0.85, at least 0.8",
        "PASS time by NCCL's, 8 ranks, 8 KiB: 0.45, at most 1",
        "MISSING time by NCCL's, 2 ranks, 8 KiB: not measured, at most 1",
    ):
        assert expected in lines
    measured = {case: 0 for case in gpu.cases(quick=False)}
    assert len(measured) == len(list(gpu.cases(quick=False)))  # none twice
    everything = {
        **report,
        "rows": [
            {**row(case.size), **vars(case), "blocks_asked": case.blocks} for case in measured
        ],
        "nccl": [
            {"outcome": "ran", "ranks": ranks, "size": size, "median_s": 1.0}
            for ranks in (2, 8)
            for size in gpu._NCCL_SIZES
        ],
    }
    # There is a case for every aim.
    assert all(aim.outcome != "MISSING" for aim in gpu.aims(everything))


@pytest.mark.parametrize(("collective", "algorithm"), scale.CALLS)
def test_a_call_builds_its_own_ops_at_every_size(collective: str, algorithm: str) -> None:
    """Ops of one rank and of the root: at most linear, where all ranks' would be quadratic."""
    rows = []
    for ranks in scale.SIZES:
        _, ops = native.engine_instantiate(
            collective,
            algorithm,
            ranks,
            scale.Call(collective, algorithm, ranks).dims,
            ranks // 2 + 1,
            "float32",
            64,
        )
        rows.append({"ranks": ranks, "ops": ops})
        assert 0 < ops <= 8 * ranks
    assert scale.growth(rows, "ops") < 1.1


def test_the_benchmark_of_scale_prints_rows_and_writes_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale, "CALLS", (("all_reduce", "ring"),))
    monkeypatch.setattr(scale, "BOUND_S", 60)  # of a machine that is shared with others
    path = tmp_path / "new" / "scale.json"
    assert scale.main(["--quick", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "all_reduce ring" in printed
    written = json.loads(path.read_text())
    assert {"commit", "machine", "date", "bound_s", "bound_bytes"} <= set(written)
    assert [row["ranks"] for row in written["rows"]] == [64, 4096]
    assert [row["verdict"] for row in written["rows"]] == ["PASS", "PASS"]
    assert written["rows"][1]["ops"] == 2 * 4 * 4095  # of the rank and of the root
    assert written["series"][0]["exponent_ops"] == pytest.approx(1, abs=0.02)
    above = {"cpu_s": 1e-3, "peak_bytes": 20_000_001}
    assert scale.verdict(above) == "ABOVE"
