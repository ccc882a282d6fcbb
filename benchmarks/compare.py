"""How many times faster than lax: one table of ratios, each beside the floor set for it.

    python -m benchmarks.compare            # about 4 minutes on two cores
    python -m benchmarks.compare --quick    # about 40 seconds, noisier

Every row runs in one process, lax and jaxcoll alternately on the same input, so that a noisy
machine hits both; the ratio is that of the medians. 8 virtual CPU devices, float32, sizes as
nccl-tests counts them (per device for all_reduce and ppermute). A row whose results differ
between lax and jaxcoll is WRONG and makes the exit code 1; one below its floor is only BELOW.

    python -m benchmarks.compare --style gspmd

measures programs whose collectives XLA inserts, with and without `jaxcoll.install()`, in one
process and in jobs of several, and the share of compile time that this takes;
benchmarks/gspmd.py and benchmarks/compile_time.py say how. About 6 minutes.

    python -m benchmarks.compare --processes 2,4 --peers gloo,mpich

measures between processes instead, one device in each, against lax over gloo and raw MPICH
(`pip install 'jaxcoll[bench]'`); benchmarks/processes.py says how. About 6 minutes.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh

import jaxcoll
from benchmarks import compile_time, gspmd, measure, processes
from benchmarks.collectives import COLLECTIVES, compile_call, place
from jaxcoll import _files

KIB, MIB = 1 << 10, 1 << 20
Psum = Callable[[Any, str], Any]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    floor: the ratio asked for; None where it is only reported.
    moved: bytes read plus written, over all devices, by an implementation that touches each byte
      once; None for small calls, which no memory bandwidth limits.
    """

    name: str
    floor: float | None
    elements: tuple[int, ...]  # of each argument, on each device
    lax: Callable[[list[jax.Array]], Any]
    jaxcoll: Callable[[list[jax.Array]], Any]
    installed: bool = False  # the second is lax's own code, under jaxcoll.install()
    moved: int | None = None
    devices: int = 8


def _each(psum: Psum) -> Callable[[list[jax.Array]], Any]:
    return lambda xs: [psum(x, "d") for x in xs]


def _chain(psum: Psum) -> Callable[[list[jax.Array]], Any]:
    def body(xs: list[jax.Array]) -> Any:
        value = xs[0]
        for _ in range(10):  # adding the input keeps XLA from seeing a sum of equal values
            value = psum(value, "d") * 0.125 + xs[0]
        return value

    return body


def _all_reduce(name: str, floor: float, size: int, large: bool = True) -> Row:
    row = _collective("all_reduce", floor, size, moved=16 * size if large else None)
    return Row(name, row.floor, row.elements, row.lax, row.jaxcoll, moved=row.moved)


def _collective(name: str, floor: float, size: int, moved: int | None) -> Row:
    one = COLLECTIVES[name]
    return Row(
        f"{name}, {size // MIB} MiB",
        floor,
        (size // 4 // one.input_divisor(8),),
        lambda xs: one.lax(xs[0], "d", 8),
        lambda xs: one.jaxcoll(xs[0], "d", 8, "auto"),
        moved=moved,
    )


LEAVES = (10 * MIB // 4 // 100,) * 100  # 100 leaves, 10 MiB in all
ROWS = (
    Row("8 independent all_reduces, 4 KiB", 4, (KIB,) * 8, _each(lax.psum), _each(jaxcoll.psum)),
    Row("chain of 10 all_reduces, 4 KiB", 5, (KIB,), _chain(lax.psum), _chain(jaxcoll.psum)),
    _all_reduce("all_reduce, 4 KiB", 1.5, 4 * KIB, large=False),
    _all_reduce("all_reduce, 64 KiB", 1.3, 64 * KIB, large=False),
    Row(
        "64 devices, 4 independent all_reduces, 4 KiB",
        7,
        (KIB,) * 4,
        _each(lax.psum),
        _each(jaxcoll.psum),
        devices=64,
    ),
    _all_reduce("all_reduce, 1 MiB", 1.5, MIB),
    _all_reduce("all_reduce, 16 MiB", 1.5, 16 * MIB),
    _all_reduce("all_reduce, 64 MiB", 3, 64 * MIB),
    # Reads and writes of 8 devices: gathering writes 8 times what it reads, scattering the reverse.
    _collective("all_gather", 1.2, MIB, moved=8 * MIB // 8 + 8 * MIB),
    _collective("reduce_scatter", 1.2, MIB, moved=8 * MIB + 8 * MIB // 8),
    _collective("all_to_all", 1.2, MIB, moved=16 * MIB),
    _collective("ppermute", 1.2, MIB, moved=16 * MIB),
    Row(
        "gradient, 100 leaves, 10 MiB, psum(tree)",
        4,
        LEAVES,
        lambda xs: lax.psum(xs, "d"),
        lambda xs: jaxcoll.psum(xs, "d"),
        moved=16 * 10 * MIB,
    ),
    Row(
        "the same gradient under install()",
        None,
        LEAVES,
        lambda xs: lax.psum(xs, "d"),
        lambda xs: lax.psum(xs, "d"),
        installed=True,
        moved=16 * 10 * MIB,
    ),
)


def compile_row(row: Row, mesh: Mesh) -> dict[str, Callable[[], Any]]:
    """Both sides of a row on the same input: small integers, another row on each device."""
    arguments = [
        place(mesh, ((7 * np.arange(mesh.size)[:, None] + np.arange(n)) % 251).astype(np.float32))
        for n in row.elements
    ]
    calls = {"lax": compile_call(mesh, row.lax, arguments)}
    if row.installed:
        with jaxcoll.installed():
            calls["jaxcoll"] = compile_call(mesh, row.jaxcoll, arguments)
    else:
        calls["jaxcoll"] = compile_call(mesh, row.jaxcoll, arguments)
    return calls


def agree(calls: dict[str, Callable[[], Any]]) -> bool:
    """Whether both sides of a row return the same numbers, up to the order of a float32 sum."""
    ours, theirs = (jax.tree.leaves(calls[name]()) for name in ("jaxcoll", "lax"))
    return all(
        np.allclose(np.asarray(a), np.asarray(b), rtol=1e-5)
        for a, b in zip(ours, theirs, strict=True)
    )


def measure_row(row: Row, budget_s: float) -> dict[str, Any]:
    """Times one row in this process."""
    mesh = measure.make_mesh({"d": row.devices})
    calls = compile_row(row, mesh)
    right = agree(calls)
    times = measure.measure(calls, budget_s=budget_s)
    ours, theirs = times["jaxcoll"], times["lax"]
    return {
        "work": row.name,
        "floor": row.floor,
        "right": right,
        "lax": {"median_s": theirs.median_s, "p95_s": theirs.p95_s},
        "jaxcoll": {"median_s": ours.median_s, "p95_s": ours.p95_s},
        "calls": len(ours.calls_s),
        "ratio": theirs.median_s / ours.median_s,
        "moved_bytes": row.moved,
        "bandwidth_Bps": row.moved / ours.median_s if row.moved else None,
    }


def measure_apart(index: int, budget_s: float) -> dict[str, Any]:
    """Times one row in a process of its own, for a device count other than this process's."""
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.compare", f"--row={index}", f"--budget={budget_s}"],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=60 + 10 * budget_s,
    )
    result: dict[str, Any] = json.loads(child.stdout)
    return result


def measure_nothing(mesh: Mesh, budget_s: float) -> float:
    """Median seconds of a jitted call that only negates 4 KiB on every device of `mesh`."""
    placed = place(mesh, np.ones((mesh.size, KIB), np.float32))
    calls = {"nothing": compile_call(mesh, lambda x: -x, placed)}
    return measure.measure(calls, budget_s=budget_s)["nothing"].median_s


def verdict(result: dict[str, Any]) -> str:
    """The text of the last column."""
    if not result["right"]:
        return "WRONG"
    if result["floor"] is None:
        return "-"
    return "PASS" if result["ratio"] >= result["floor"] else "BELOW"


def print_row(result: dict[str, Any]) -> None:
    """One line of the table."""
    floor = "-" if result["floor"] is None else f"{result['floor']:g}"
    bandwidth = result["bandwidth_Bps"]
    print(
        f"{result['work']:45} {result['lax']['median_s'] * 1e3:9.3f} "
        f"{result['jaxcoll']['median_s'] * 1e3:9.3f} {result['ratio']:7.2f} {floor:>6}  "
        f"{verdict(result):6} {f'{bandwidth / 1e9:.1f}' if bandwidth else '':>7}",
        flush=True,
    )


def default_json(about: dict[str, Any], what: str = "compare") -> Path:
    """benchmarks/results/compare-DATE-COMMIT.json."""
    date = datetime.date.today().isoformat()
    name = f"{what}-{date}-{about['commit'] or 'unknown'}.json"
    return Path(__file__).parent / "results" / name


def main(argv: list[str] | None = None) -> int:
    """Prints the table and writes it as JSON; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="1 s on each row instead of 12")
    parser.add_argument(
        "--json",
        type=_files.output(make_folders=True),
        help="default: benchmarks/results/compare-DATE-COMMIT.json",
    )
    parser.add_argument(
        "--processes",
        type=lambda text: [int(count) for count in text.split(",")],
        metavar="P,...",
        help="measure jobs of so many processes instead",
    )
    parser.add_argument(
        "--peers",
        type=processes.parse_peers,
        default="gloo,mpich",
        metavar="PEER,...",
        help="with --processes: what to compare with (default: gloo,mpich)",
    )
    parser.add_argument(
        "--style",
        choices=("shard_map", "gspmd"),
        default="shard_map",
        help="gspmd: programs without a collective in them, whose arrays are sharded",
    )
    parser.add_argument("--row", type=int, help=argparse.SUPPRESS)  # as measure_apart calls us
    parser.add_argument("--budget", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    budget_s = options.budget or (1.0 if options.quick else 12.0)
    if options.row is not None:
        print(json.dumps(measure_row(ROWS[options.row], budget_s)))
        return 0

    if options.processes:
        return processes.compare(
            options.processes,
            options.peers,
            budget_s / 2,
            lambda about: options.json or default_json(about, "processes"),
        )

    if options.style == "gspmd":
        about = measure.provenance({})
        path = options.json or default_json(about, "gspmd")
        _files.check_can_write(path, make_folders=True)
        rows = gspmd.compare(budget_s / 2) + compile_time.compare(2 if options.quick else 5)
        about |= {"rows": rows}
        _files.write(path, json.dumps(about, indent=1) + "\n", make_folders=True)
        print(f"# {path}")
        return 0 if all(row["right"] for row in about["rows"]) else 1

    mesh = measure.make_mesh({"d": 8})
    about = measure.provenance({"d": 8})
    path = options.json or default_json(about)
    _files.check_can_write(path, make_folders=True)
    print(f"# jaxcoll {jaxcoll.__version__}, jax {jax.__version__}, {measure.cores()} cores")
    print(f"{'work':45} {'lax ms':>9} {'ours ms':>9} {'ratio':>7} {'floor':>6}  {'':6} {'GB/s':>7}")
    results = []
    for index, row in enumerate(ROWS):
        apart = row.devices != mesh.size
        results.append(measure_apart(index, budget_s) if apart else measure_row(row, budget_s))
        print_row(results[-1])
    nothing_s = measure_nothing(mesh, budget_s / 4)
    copy_Bps = measure.copy_bandwidth_Bps()
    print(f"# a jitted call without a collective, 8 devices: {nothing_s * 1e3:.3f} ms")
    print(f"# GB/s: bytes read and written once / time; all cores copy {copy_Bps / 1e9:.1f} GB/s")

    about |= {"rows": results, "nothing_s": nothing_s, "copy_Bps": copy_Bps}
    _files.write(path, json.dumps(about, indent=1) + "\n", make_folders=True)
    print(f"# {path}")
    return 0 if all(result["right"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
