"""Times the GPU kernels with N ranks on one GPU, beside the device's own copy bandwidth.

    python -m benchmarks.gpu --json gpu.json

A row is one collective at one size: the median of graph replays, each a chain of up to 100 calls
over operands that together are four times the L2 cache, or one set for each call if that is less.
`floor` is the time in which the device copies the bytes that the ranks must read and write at
least: each rank's input once, each rank's output once. With --nccl-s the same all_reduces through
NCCL in one process, chained in the same way, where the installed one lets several ranks share a
GPU (2.30 and later do). At the end, what was aimed at and whether it was reached.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any

import numpy as np

from jaxcoll import _files
from jaxcoll._native import cuda, native

_ITEM_BYTES = {"float32": 4, "bfloat16": 2}
_KERNELS = ("direct", "direct2")  # the interpreter runs the others
_MIB = 1 << 20
_NCCL_SIZES = (8 << 10, 128 << 10, 2 * _MIB, 64 * _MIB, 256 * _MIB)
# NCCL's thread blocks per rank: all of all ranks must be resident together.
_NCCL_CTAS = {2: (8, 16, 32), 8: (4, 8, 16)}


@dataclasses.dataclass(frozen=True)
class Case:
    """The subject of one row's measurement. `size` as nccl-tests counts: see benchmarks/run.py."""

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
        """The shapes of one rank's input and output."""
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

    def floors(self) -> float:
        """How many floors it takes, about: so that no case takes long."""
        slowed = 3.0 if self.staged or self.interpret or self.algorithm not in _KERNELS else 1.0
        return slowed * (16 / self.blocks if self.blocks else 1.0)

    def bus_factor(self) -> float:
        n = self.ranks
        return {"all_reduce": 2 * (n - 1) / n, "broadcast": 1.0}.get(self.collective, (n - 1) / n)


def repeats(set_bytes: int, call_s: float, l2_bytes: int) -> tuple[int, int]:
    """Calls of a graph, and the sets of operands that they take in turn.

    Enough calls to hide a graph's launch, and no more than 20 ms of them or 4.
    """
    calls = int(min(100, max(4, 0.02 / max(call_s, 1e-5))))
    sets = min(calls, max(1, math.ceil(4 * l2_bytes / set_bytes)))
    return calls // sets * sets, sets


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
        case.interpret or case.algorithm not in _KERNELS,
        [],
        "",
    )
    floor_s = case.floor_bytes() / copy_Bps
    chain, sets = repeats(case.floor_bytes(), case.floors() * floor_s, l2_bytes)
    seconds = harness.time(chain, 15, sets)
    median_s = statistics.median(seconds)
    return {
        **dataclasses.asdict(case),
        "blocks_asked": case.blocks,
        "blocks": harness.blocks,
        "chain": chain,
        "sets": sets,
        "median_s": median_s,
        "p95_s": float(np.percentile(seconds, 95)),
        "floor_s": floor_s,
        "floor_over_time": floor_s / median_s,
        "algbw_Bps": case.size / median_s,
        "busbw_Bps": case.size / median_s * case.bus_factor(),
    }


def cases(quick: bool) -> Iterator[Case]:
    """The most telling first: a run may be cut short."""
    large = (64 * _MIB,) if quick else (64 * _MIB, 256 * _MIB)
    yield Case("all_reduce", "direct", 8 << 10)
    for size in large:
        for dtype in ("float32", "bfloat16"):
            yield Case("all_reduce", "direct2", size, dtype)
            yield Case("all_reduce", "direct2", size, dtype, staged=True)
    for collective in ("all_gather", "reduce_scatter", "all_to_all"):
        yield Case(collective, "direct", (64 if quick else 512) * _MIB)
    # The interpreter beside the kernels of the same schedule.
    yield Case("all_reduce", "direct2", 64 * _MIB, interpret=True)
    yield Case("all_reduce", "direct2", 64 * _MIB, staged=True, interpret=True)
    yield Case("all_reduce", "direct", 8 << 10, interpret=True)
    for size in _NCCL_SIZES:
        if size <= large[-1]:
            yield Case("all_reduce", "direct2" if size > 256 << 10 else "direct", size, ranks=2)
    for size in (32 << 10, 128 << 10, 512 << 10, 2 * _MIB, 8 * _MIB):  # where to change over
        for algorithm in ("direct", "direct2"):
            yield Case("all_reduce", algorithm, size)
            yield Case("all_reduce", algorithm, size, staged=True)
    for blocks in (1, 2, 4, 8, 12, 16):  # time against the number of multiprocessors, per rank
        yield Case("all_reduce", "direct2", 64 * _MIB, blocks=blocks)
        yield Case("all_reduce", "direct2", 64 * _MIB, staged=True, blocks=blocks)
    for algorithm in ("ring", "double_tree", "recursive_doubling"):
        yield Case("all_reduce", algorithm, 64 * _MIB)
    for size in (8 << 10, 64 * _MIB):
        yield Case("all_reduce", "direct2" if size > _MIB else "direct", size, ranks=4)
    for collective in ("all_gather", "reduce_scatter", "all_to_all"):
        yield Case(collective, "direct", 64 * _MIB, staged=True)


def interpreter_ratios(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """How fast the interpreter runs a schedule that has a kernel, by what the kernel takes: 1 is as
    fast, more is faster. Sizes at which both reach operands directly, and sizes at which both stage
    them."""
    keys = ("collective", "algorithm", "size", "dtype", "ranks", "blocks_asked", "staged")

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


def nccl_rows(limit_s: float, copy_Bps: float, l2_bytes: int) -> list[dict[str, Any]]:
    """NCCL's all_reduce with several ranks on this GPU, in processes that may be ended."""
    end = time.monotonic() + limit_s
    rows: list[dict[str, Any]] = []
    for ranks, all_ctas in _NCCL_CTAS.items():
        work = []
        for size in _NCCL_SIZES:
            set_bytes = 2 * size * ranks
            chain, sets = repeats(set_bytes, set_bytes / copy_Bps, l2_bytes)
            work.append(f"{size},{chain},{sets}")
        for ctas in all_ctas:
            about: dict[str, Any] = {"ranks": ranks, "ctas": ctas, "dtype": "float32"}
            left_s = end - time.monotonic()
            if left_s < 5:
                rows.append({**about, "outcome": "no time left"})
                continue
            command = [sys.executable, "-m", "benchmarks.nccl_peer", str(ranks), *work]
            shared = {"NCCL_MULTI_RANK_GPU_ENABLE": "1", "NCCL_MAX_CTAS": str(ctas)}
            shared["NCCL_DEBUG"] = "WARN"  # says why it refuses
            with subprocess.Popen(
                command,
                env={**os.environ, **shared},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            ) as peer:
                try:
                    printed, late = peer.communicate(timeout=min(left_s, 20))[0], False
                except subprocess.TimeoutExpired:
                    peer.kill()
                    printed, late = peer.communicate()[0], True
            lines = printed.strip().splitlines()
            for line in lines:
                if line.startswith("{"):
                    rows.append({**about, "outcome": "ran", **json.loads(line)})
            if late:
                rows.append({**about, "outcome": "hang"})
            elif peer.returncode != 0:
                rows.append({**about, "outcome": "refused", "error": " / ".join(lines[-3:])})
                if not any(row["outcome"] == "ran" for row in rows):
                    return rows  # it would refuse other numbers, too
    return rows


@dataclasses.dataclass(frozen=True)
class Aim:
    """A bound, and what was measured; None: it was not."""

    what: str
    measured: float | None
    at_least: float | None = None
    at_most: float | None = None

    def __str__(self) -> str:
        bound = (
            f"at least {self.at_least:g}" if self.at_most is None else f"at most {self.at_most:g}"
        )
        measured = "not measured" if self.measured is None else f"{self.measured:.3g}"
        return f"{self.outcome} {self.what}: {measured}, {bound}"

    @property
    def outcome(self) -> str:
        if self.measured is None:
            return "MISSING"
        low = -math.inf if self.at_least is None else self.at_least
        high = math.inf if self.at_most is None else self.at_most
        return "PASS" if low <= self.measured <= high else "FAIL"


def aims(report: dict[str, Any]) -> list[Aim]:
    """The floors that the kernels should reach: most of the device's copy bandwidth, and NCCL's
    times."""

    def best(rows: Sequence[dict[str, Any]], key: str, **same: Any) -> float | None:
        found = [r[key] for r in rows if all(r.get(k) == v for k, v in same.items())]
        return (max if key == "floor_over_time" else min)(found, default=None)

    whole = {"blocks_asked": 0, "interpret": False}
    result = []
    for size in (64 * _MIB, 256 * _MIB):
        for dtype in ("float32", "bfloat16"):
            for staged, bound in ((False, 0.8), (True, 0.4)):
                same = {"collective": "all_reduce", "size": size, "dtype": dtype, "ranks": 8}
                share = best(report["rows"], "floor_over_time", staged=staged, **same, **whole)
                how = "staged" if staged else "direct"
                what = f"all_reduce, {size >> 20} MiB of {dtype}, {how}: floor/time"
                result.append(Aim(what, share, at_least=bound))
    for collective in ("all_gather", "reduce_scatter", "all_to_all"):
        same = {"collective": collective, "size": 512 * _MIB, "staged": False}
        share = best(report["rows"], "floor_over_time", **same, **whole)
        result.append(Aim(f"{collective}, 512 MiB: floor/time", share, at_least=0.8))

    def ours(size: int, ranks: int) -> float | None:
        same = {"collective": "all_reduce", "size": size, "ranks": ranks, "dtype": "float32"}
        return best(report["rows"], "median_s", staged=False, **same, **whole)

    small_s = ours(8 << 10, 8)
    result.append(Aim("all_reduce, 8 KiB: us", small_s and small_s * 1e6, at_most=10))
    ratio = best(report["interpreter"], "ratio", size=64 * _MIB, against="direct")
    what = "the interpreter's speed by that of direct2's kernel, 64 MiB"
    result.append(Aim(what, ratio, at_least=0.8))
    for ranks in _NCCL_CTAS:
        for size in _NCCL_SIZES:
            ran = [row for row in report["nccl"] if row["outcome"] == "ran"]
            theirs, own = best(ran, "median_s", ranks=ranks, size=size), ours(size, ranks)
            by = own / theirs if own and theirs else None
            result.append(Aim(f"time by NCCL's, {ranks} ranks, {size >> 10} KiB", by, at_most=1))
    return result


def _device_works() -> bool:
    """Not after a trap: nothing runs any more."""
    try:
        cuda.cuda_copy_bandwidth(_MIB, 1)
    except RuntimeError:
        return False
    return True


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
        "commit": os.environ.get("COMMIT") or _output_of("git", "rev-parse", "HEAD"),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table and writes JSON after every row, so that a run cut short leaves its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=_files.output(), required=True)
    parser.add_argument("--quick", action="store_true", help="no size above 64 MiB")
    parser.add_argument("--nccl-s", type=float, default=0, help="seconds to compare with NCCL for")
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
        "aims": [],
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
            if not _device_works():
                break
            continue
        report["rows"].append(row)
        print(
            f"{case.collective:14} {case.algorithm:9} {case.how:6} "
            f"{case.dtype:8} {case.ranks:5} {row['blocks']:6} {case.size:10} "
            f"{row['median_s'] * 1e6:9.1f} {row['busbw_Bps'] / 1e9:11.1f} "
            f"{row['floor_over_time']:.2f}",
            flush=True,
        )
        _files.write(args.json, json.dumps(report, indent=1) + "\n")
    report["interpreter"] = interpreter_ratios(report["rows"])
    for row in report["interpreter"]:
        print(
            f"interpreter: {row['collective']} {row['algorithm']} of {row['size']} B runs at "
            f"{row['ratio']:.2f} of the {row['against']} kernel's speed"
        )
    if args.nccl_s > 0:
        _files.write(args.json, json.dumps(report, indent=1) + "\n")
        report["nccl"] = nccl_rows(args.nccl_s, copy_Bps, report["device"]["l2_bytes"])
        for row in report["nccl"]:
            took = f"{row['size']:10} {row['median_s'] * 1e6:9.1f} us" if "size" in row else ""
            print(
                f"nccl: {row['ranks']} ranks, {row['ctas']} CTAs, {row['outcome']} {took}", end=""
            )
            print(f" {row.get('error', '')}".rstrip())
    results = aims(report)
    report["aims"] = [{**dataclasses.asdict(aim), "outcome": aim.outcome} for aim in results]
    _files.write(args.json, json.dumps(report, indent=1) + "\n")
    if report["left_out"]:
        print(f"{report['left_out']} cases were left out: no time left")
    print(*results, sep="\n")
    return 1 if report["failed"] or any(aim.outcome == "FAIL" for aim in results) else 0


if __name__ == "__main__":
    sys.exit(main())
