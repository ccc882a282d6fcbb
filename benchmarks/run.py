"""Measures one collective over one axis of a mesh, in nccl-tests' columns.

    python -m benchmarks.run --mesh dp=2,tp=4 --axis dp --collective all_reduce -b 1K -e 64M

Every device of the mesh takes part: over `dp` of dp=2,tp=4 four groups of two ranks run at once.
Size, algbw and busbw follow nccl-tests (1 GB = 1e9 B). A call is a jitted program with nothing but
the collective in it, timed from dispatch to the last device's result. Exit code 1 if any received
element is wrong.

    jaxcoll launch -n 4 -m benchmarks.run --mesh dp=4

measures between processes; the first prints, and its times are shown.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

import jaxcoll
from benchmarks import measure
from benchmarks.collectives import (
    COLLECTIVES,
    DTYPES,
    Collective,
    compile_call,
    count_wrong,
    exact_input,
    place,
)
from jaxcoll import _files
from jaxcoll._text import is_number

_SIZE_MAX = 1 << 50
ADAPTIVE_S = 1.0  # time spent on each size where -n is not given


def parse_size(text: str) -> int:
    """'64M' as bytes; K, M and G are powers of 1024, as in nccl-tests."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    number, unit = (text[:-1], units[text[-1].upper()]) if text[-1:].upper() in units else (text, 1)
    if not is_number(number, 1, _SIZE_MAX):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size like 4096, 4K, 64M or 1G")
    return int(number) * unit


def parse_mesh(text: str) -> dict[str, int]:
    """'dp=2,tp=4' as {'dp': 2, 'tp': 4}."""
    shape: dict[str, int] = {}
    for item in text.split(","):
        axis, _, size = item.partition("=")
        if not axis.isidentifier() or axis in shape or not is_number(size, 1, _SIZE_MAX):
            raise argparse.ArgumentTypeError(
                f"{item!r}: write the mesh as axis=size,axis=size with sizes from 1"
            )
        shape[axis] = int(size)
    return shape


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("--mesh", type=parse_mesh, default="dp=8", metavar="AXIS=N,...", help="default: dp=8")
    add("--axis", help="axis the collective runs over (default: the first)")
    add("--collective", choices=COLLECTIVES, default="all_reduce", help="default: all_reduce")
    add("--algorithm", default="auto", help="default: auto; `jaxcoll info` lists them")
    add("--dtype", choices=DTYPES, default="float32", metavar="DTYPE", help="default: float32")
    add("-b", type=parse_size, default="1K", metavar="SIZE", help="smallest size (default: 1K)")
    add("-e", type=parse_size, default="64M", metavar="SIZE", help="largest size (default: 64M)")
    add("-f", type=int, default=4, metavar="FACTOR", help="between sizes (default: 4)")
    add("-n", type=int, default=0, metavar="CALLS", help="timed calls (default: about 1 s of them)")
    add("-w", type=int, default=3, metavar="CALLS", help="warm-up calls (default: 3)")
    add("-c", type=int, choices=(0, 1), default=1, help="check the results (default: 1)")
    add("--compare", choices=("lax",), help="time lax's collective alternately with ours")
    add("--json", type=Path, metavar="FILE", help="also write the rows, and where they come from")
    return result


def sizes(begin: int, end: int, factor: int, step: int) -> Iterator[int]:
    """begin, begin x factor, ... up to end, each rounded down to a multiple of `step`, once."""
    last = 0
    while begin <= end:
        size = max(begin // step, 1) * step
        if size != last:
            yield size
        last, begin = size, begin * factor


@contextlib.contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """A bar on stderr that each call of the yielded function advances; nothing off a terminal."""
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        yield lambda text: None
        return
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("compiling", total=total)
        yield lambda text: bar.update(task, advance=1, description=text)


def measure_size(
    collective: Collective, mesh: Mesh, axis: str, size: int, options: argparse.Namespace
) -> dict[str, Any]:
    """One row of the table: `size` bytes, as nccl-tests counts them."""
    dtype, n = DTYPES[options.dtype], mesh.shape[axis]
    elements = size // dtype.itemsize // collective.input_divisor(n)
    sent = exact_input(mesh.size, elements, dtype, n)
    placed = place(mesh, sent)

    def ours(x: jax.Array) -> jax.Array:
        return collective.jaxcoll(x, axis, n, options.algorithm)

    calls = {"jaxcoll": compile_call(mesh, ours, placed)}
    if options.compare:
        calls["lax"] = compile_call(mesh, lambda x: collective.lax(x, axis, n), placed)
    wrong = None
    if options.c:
        here = count_wrong(collective, mesh, axis, sent, calls["jaxcoll"]())
        wrong = int(np.sum(multihost_utils.process_allgather(np.array(here))))
    del sent
    limits = {"least": options.n, "most": options.n} if options.n else {}
    times = measure.measure(calls, budget_s=ADAPTIVE_S, warmup=options.w, **limits)
    time_s = times["jaxcoll"].median_s
    row: dict[str, Any] = {
        "size_bytes": size,
        "count": size // dtype.itemsize // collective.count_divisor(n),
        "time_s": time_s,
        "p95_s": times["jaxcoll"].p95_s,
        "calls": len(times["jaxcoll"].calls_s),
        "algbw_GBps": size / time_s / 1e9,
        "busbw_GBps": size / time_s / 1e9 * collective.bus_factor(n),
        "wrong": wrong,
    }
    if options.compare:
        row |= {"lax_time_s": times["lax"].median_s, "lax_p95_s": times["lax"].p95_s}
        row["ratio"] = row["lax_time_s"] / time_s
    return row


def print_header(compare: bool) -> None:
    """The column heads."""
    columns = [
        *(("#       size", "(B)", 12), ("count", "(elements)", 13), ("type", "", 15)),
        *(("redop", "", 7), ("root", "", 7), ("time", "(us)", 8), ("p95", "(us)", 7)),
        *(("algbw", "(GB/s)", 7), ("busbw", "(GB/s)", 7), ("#wrong", "", 7)),
        *((("lax", "(us)", 8), ("ratio", "", 6)) if compare else ()),
    ]
    print(" ".join(f"{head:>{width}}" for head, _, width in columns))
    units = " ".join(f"{unit:>{width}}" for _, unit, width in columns)
    print(f"#{units[1:]}".rstrip(), flush=True)


def print_row(row: dict[str, Any], collective: Collective, dtype: str) -> None:
    """One size, in nccl-tests' columns, p95 beside the median and lax behind."""
    wrong = "N/A" if row["wrong"] is None else row["wrong"]
    line = (
        f"{row['size_bytes']:12d} {row['count']:13d} {dtype:>15} {collective.redop:>7} "
        f"{collective.root:7d} {row['time_s'] * 1e6:8.1f} {row['p95_s'] * 1e6:7.1f} "
        f"{row['algbw_GBps']:7.2f} {row['busbw_GBps']:7.2f} {wrong:>7}"
    )
    if "ratio" in row:
        line += f" {row['lax_time_s'] * 1e6:8.1f} {row['ratio']:6.2f}"
    print(line, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    command = parser()
    options = command.parse_args(argv)
    axis = options.axis or next(iter(options.mesh))
    if axis not in options.mesh:
        command.error(f"--axis {axis}: the mesh has {', '.join(options.mesh)}")
    if options.f < 2:
        command.error("-f: at least 2")
    if options.n < 0 or options.w < 0:
        command.error("-n, -w: at least 0")
    if options.b > options.e:
        command.error(f"-b {options.b} is larger than -e {options.e}")
    if options.dtype in ("float64", "int64", "uint64", "complex128"):
        jax.config.update("jax_enable_x64", True)
    mesh = measure.make_mesh(options.mesh)
    with contextlib.ExitStack() as stack:
        if jax.process_index() != 0:  # runs all the same, and says nothing
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            options.json = None
        if options.json:
            _files.check_can_write(options.json, make_folders=True)
        return measure_all(mesh, axis, options)


def measure_all(mesh: Mesh, axis: str, options: argparse.Namespace) -> int:
    """Measures and prints every size; returns the exit code."""
    dtype = DTYPES[options.dtype]
    collective, n = COLLECTIVES[options.collective], mesh.shape[axis]

    print(
        f"# jaxcoll {jaxcoll.__version__}, {collective.name}, algorithm {options.algorithm}, "
        f"mesh {options.mesh}: {mesh.size // n} x {n} ranks over {axis}, "
        f"{jax.process_count()} process{'es' * (jax.process_count() > 1)}, {measure.cores()} cores"
    )
    print_header(bool(options.compare))
    planned = list(sizes(options.b, options.e, options.f, n * dtype.itemsize))
    rows = []
    with progress(len(planned)) as advance:
        for size in planned:
            rows.append(measure_size(collective, mesh, axis, size, options))
            print_row(rows[-1], collective, options.dtype)
            advance(f"{size} B")
    wrong = sum(row["wrong"] or 0 for row in rows)
    if options.c:
        print(f"# Out of bounds values : {wrong} {'FAILED' if wrong else 'OK'}")
    else:
        print("# Out of bounds values : not checked")
    print(f"# Avg bus bandwidth    : {np.mean([row['busbw_GBps'] for row in rows]):g}")
    if options.json:
        about = {
            "collective": collective.name,
            "algorithm": options.algorithm,
            "dtype": options.dtype,
            "axis": axis,
            "rows": rows,
        }
        text = json.dumps(measure.provenance(options.mesh) | about, indent=1) + "\n"
        _files.write(options.json, text, make_folders=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
