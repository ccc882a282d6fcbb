"""Times the GPU kernels with N ranks on one GPU, beside the device's own copy bandwidth.

    python -m benchmarks.gpu --json gpu.json

A row is one collective at one size: the median of graph replays, over operands that together are
four times the L2 cache. `floor` is the time in which the device copies the bytes that the ranks
must read and write at least: each rank's input once, each rank's output once. With --nccl the same
all_reduces through NCCL in one process, where the installed one lets several ranks share a GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from jaxcoll._native import cuda, native

_ITEM_BYTES = {"float32": 4, "bfloat16": 2}
_SPLITS = ("reduce_scatter", "all_to_all")
_JOINS = ("all_gather", "all_to_all")


@dataclasses.dataclass(frozen=True)
class Case:
    """What one row measures. `size` as nccl-tests counts: see benchmarks/run.py."""

    collective: str
    algorithm: str
    size: int
    dtype: str = "float32"
    ranks: int = 8
    staged: bool = False
    blocks: int = 0  # as many as fit together
    interpret: bool = False  # by the interpreter, though it has a kernel

    @property
    def how(self) -> str:
        """How the operands are reached."""
        return "interp" if self.interpret else "staged" if self.staged else "direct"

    def shapes(self) -> tuple[list[int], list[int]]:
        """Of one rank's input and output."""
        count = self.size // _ITEM_BYTES[self.dtype]
        per_rank = count // self.ranks
        if self.collective == "all_gather":
            return [per_rank], [self.ranks, per_rank]
        if self.collective == "reduce_scatter":
            return [self.ranks, per_rank], [per_rank]
        if self.collective == "all_to_all":
            return [self.ranks, per_rank], [self.ranks, per_rank]
        return [count], [count]

    def floor_bytes(self) -> int:
        moved = sum(int(np.prod(shape)) for shape in self.shapes())
        return moved * _ITEM_BYTES[self.dtype] * self.ranks

    def bus_factor(self) -> float:
        n = self.ranks
        return {"all_reduce": 2 * (n - 1) / n, "broadcast": 1.0}.get(self.collective, (n - 1) / n)


def measure(case: Case, copy_Bps: float, l2_bytes: int) -> dict[str, Any]:
    """One row: seconds, and what they mean."""
    given, returned = case.shapes()
    harness = cuda.CudaHarness.create(
        case.collective,
        case.algorithm,
        "sum" if case.collective in ("all_reduce", "reduce_scatter") else "",
        case.ranks,
        0,
        [],
        [(case.dtype, given)],
        [(case.dtype, returned)],
        False,
        case.staged,
        case.blocks,
        20.0,
        128,
        case.interpret or case.algorithm not in ("direct", "direct2"),
        [],
        "",
    )
    floor_s = case.floor_bytes() / copy_Bps
    # A chain long enough to hide the launch of a graph, and as few as a second allows.
    chain = int(min(100, max(4, 0.02 / max(floor_s, 1e-5))))
    seconds = harness.time(chain, 15, 4 * l2_bytes)
    median_s = statistics.median(seconds)
    return {
        **dataclasses.asdict(case),
        "blocks_asked": case.blocks,
        "blocks": harness.blocks,
        "chain": chain,
        "median_s": median_s,
        "p95_s": float(np.percentile(seconds, 95)),
        "floor_s": floor_s,
        "floor_over_time": floor_s / median_s,
        "algbw_Bps": case.size / median_s,
        "busbw_Bps": case.size / median_s * case.bus_factor(),
    }


def cases(quick: bool) -> Iterator[Case]:
    """The most telling first: a run may be cut short."""
    mib = 1 << 20
    yield Case("all_reduce", "direct", 8 << 10)
    for dtype in ("float32", "bfloat16"):
        yield Case("all_reduce", "direct2", 64 * mib, dtype)
        yield Case("all_reduce", "direct2", 64 * mib, dtype, staged=True)
        if not quick:
            yield Case("all_reduce", "direct2", 256 * mib, dtype)
            yield Case("all_reduce", "direct2", 256 * mib, dtype, staged=True)
    for collective in ("all_gather", "reduce_scatter", "all_to_all"):
        yield Case(collective, "direct", (64 if quick else 512) * mib)
    # The interpreter, whose messages always go through slots, beside the kernels of the same
    # schedule; both ratios are reported.
    yield Case("all_reduce", "direct2", 64 * mib, interpret=True)
    yield Case("all_reduce", "direct", 8 << 10, interpret=True)
    for algorithm in ("ring", "double_tree", "recursive_doubling"):
        yield Case("all_reduce", algorithm, 64 * mib)
    for size in (8 << 10, 32 << 10, 128 << 10, 512 << 10, 2 * mib, 8 * mib):  # where to change over
        for algorithm in ("direct", "direct2"):
            yield Case("all_reduce", algorithm, size)
            yield Case("all_reduce", algorithm, size, staged=True)
    for blocks in (1, 2, 4, 8, 12, 16):  # time against the number of multiprocessors, per rank
        yield Case("all_reduce", "direct2", 64 * mib, blocks=blocks)
        yield Case("all_reduce", "direct2", 64 * mib, staged=True, blocks=blocks)
    for ranks in (2, 4):
        for size in (8 << 10, 64 * mib):
            yield Case("all_reduce", "direct2" if size > mib else "direct", size, ranks=ranks)
    for collective in ("all_gather", "reduce_scatter", "all_to_all"):
        yield Case(collective, "direct", 64 * mib, staged=True)


def interpreter_ratios(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """How fast the interpreter runs a schedule that has a kernel, by what the kernel takes: 1 is as
    fast, more is faster. Once beside the kernel that reaches operands directly, once beside the one
    that stages them, as the interpreter does."""
    keys = ("collective", "algorithm", "size", "dtype", "ranks", "blocks_asked")

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row[k] for k in keys)

    ratios = []
    for row in rows:
        if not row["interpret"]:
            continue
        for other in rows:
            if not other["interpret"] and key(other) == key(row):
                how = "staged" if other["staged"] else "direct"
                ratio = other["median_s"] / row["median_s"]
                ratios.append({**{k: row[k] for k in keys}, "against": how, "ratio": ratio})
    return ratios


def nccl_rows(limit_s: float) -> list[dict[str, Any]]:
    """NCCL's all_reduce with several ranks on this GPU, in processes that may be ended."""
    rows = []
    begin = time.monotonic()
    for ranks in (2, 8):
        for size in (8 << 10, 1 << 20, 64 << 20, 256 << 20):
            left_s = limit_s - (time.monotonic() - begin)
            row: dict[str, Any] = {"ranks": ranks, "size": size, "dtype": "float32"}
            if left_s < 5:
                rows.append({**row, "outcome": "no time left"})
                continue
            try:
                done = subprocess.run(
                    [sys.executable, "-m", "benchmarks.nccl_peer", str(ranks), str(size)],
                    env={**os.environ, "NCCL_MULTI_RANK_GPU_ENABLE": "1"},
                    capture_output=True,
                    text=True,
                    timeout=min(left_s, 20),
                )
            except subprocess.TimeoutExpired:
                rows.append({**row, "outcome": "hang"})
                continue
            if done.returncode == 0:
                rows.append({**row, "outcome": "ran", **json.loads(done.stdout)})
            else:
                error = (done.stderr or done.stdout).strip().splitlines()[-1:]
                rows.append({**row, "outcome": "refused", "error": "".join(error)})
    return rows


def _output_of(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def where() -> dict[str, Any]:
    """The device and the software that were measured."""
    versions = cuda.cuda_info()
    smi = _output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        "device": cuda.cuda_device(),
        "driver": smi.splitlines()[0] if smi else None,
        "cuda_driver": versions["driver_version"],
        "cuda_runtime": versions["runtime_version"],
        "jax": metadata.version("jax"),
        "commit": _output_of("git", "rev-parse", "HEAD") or os.environ.get("COMMIT"),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table and writes JSON after every row, so that a run cut short leaves its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="no size above 64 MiB")
    parser.add_argument("--nccl", action="store_true", help="compare with NCCL, too")
    parser.add_argument("--limit-s", type=float, default=150, help="start no case after this")
    args = parser.parse_args(argv)
    if not native.cuda_built or not cuda.cuda_info()["devices"]:
        print("there is no GPU, or this build has no kernels for one", file=sys.stderr)
        return 1
    begin = time.monotonic()
    report: dict[str, Any] = {
        **where(),
        "rows": [],
        "interpreter": [],
        "failed": [],
        "left_out": 0,
        "nccl": [],
    }
    copy_Bps = cuda.cuda_copy_bandwidth(2 << 30, 20)
    report["copy_Bps"] = copy_Bps
    print(f"{report['device']['name']}: copies {copy_Bps / 1e9:.0f} GB/s, read + written")
    print(
        f"{'collective':14} {'algorithm':9} {'how':6} {'dtype':8} ranks blocks {'size(B)':>10} "
        f"{'time(us)':>9} {'busbw(GB/s)':>11} floor/time"
    )
    for case in cases(args.quick):
        if time.monotonic() - begin > args.limit_s:
            report["left_out"] += 1
            continue
        try:
            row = measure(case, copy_Bps, report["device"]["l2_bytes"])
        except RuntimeError as error:
            report["failed"].append({**dataclasses.asdict(case), "error": str(error)})
            print(f"{case}: {error}", file=sys.stderr)
            break  # after a trap nothing runs any more
        report["rows"].append(row)
        print(
            f"{case.collective:14} {case.algorithm:9} {case.how:6} "
            f"{case.dtype:8} {case.ranks:5} {row['blocks']:6} {case.size:10} "
            f"{row['median_s'] * 1e6:9.1f} {row['busbw_Bps'] / 1e9:11.1f} "
            f"{row['floor_over_time']:.2f}",
            flush=True,
        )
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    report["interpreter"] = interpreter_ratios(report["rows"])
    for row in report["interpreter"]:
        print(
            f"interpreter: {row['collective']} {row['algorithm']} of {row['size']} B runs at "
            f"{row['ratio']:.2f} of the {row['against']} kernel's speed"
        )
    if args.nccl:
        report["nccl"] = nccl_rows(limit_s=60)
        for row in report["nccl"]:
            print("nccl", row)
    args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if report["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
