"""The cost of setting up one call for a process, from 64 to 4096 processes of one rank.

    python -m benchmarks.scale            # about half a minute
    python -m benchmarks.scale --quick    # about 5 seconds: two sizes, once

A call is set up as an executable of a job does it: the ops of this process's rank and of the root,
their slices, and the plan. The other processes do not exist, so nothing is sent. Each row has a
process of its own, so that its peak memory is its own; the rank is neither the first nor the root.

The bounds, 20 ms of CPU time and 20 MB, are for 4096 ranks; a row above one is ABOVE. The exit code
is 1 only if memory is: CPU time depends on the machine and on what else it does. Growth is
fitted as a power of the number of ranks: 1 for algorithms that talk to every rank or go around a
ring, less for the others. A process that built other ranks' ops would show 2.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks import measure
from benchmarks.compare import default_json
from jaxcoll import _files
from jaxcoll._native import native

BOUND_S: Final = 0.020
BOUND_BYTES: Final = 20_000_000
SIZES: Final = (64, 256, 1024, 4096)
PER_NODE: Final = 8
# A block of this many float32; small, since elements are neither made nor moved.
BLOCK_ELEMENTS: Final = 1024


@dataclass(frozen=True)
class Call:
    """The calls that are set up: by `algorithm`, over `ranks` processes."""

    collective: str
    algorithm: str
    ranks: int

    @property
    def dims(self) -> list[int]:
        """Nodes of `PER_NODE` ranks for algorithms that know of nodes."""
        return [self.ranks // PER_NODE, PER_NODE] if self.algorithm == "hierarchical" else []


CALLS: Final = (
    ("all_reduce", "ring"),
    ("all_reduce", "halving_doubling"),
    ("all_reduce", "direct"),
    ("all_reduce", "direct2"),
    ("all_reduce", "hierarchical"),
    ("reduce_scatter", "recursive_halving"),
    ("all_gather", "recursive_doubling"),
    ("all_gather", "hierarchical"),
    ("all_to_all", "direct"),
)


def _status_bytes(field: str) -> int:
    """A size of this process, from /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def instantiate(call: Call) -> dict[str, Any]:
    """Sets a call up, in this process, which has set up none before."""
    ctypes.CDLL(None).malloc_trim(0)  # what imports have freed must not hide what the call takes
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = _status_bytes("VmRSS")
    cpu_s, ops = native.engine_instantiate(
        call.collective,
        call.algorithm,
        call.ranks,
        call.dims,
        call.ranks // 2 + 1,
        "float32",
        BLOCK_ELEMENTS,
    )
    return {"cpu_s": cpu_s, "ops": ops, "peak_bytes": _status_bytes("VmHWM") - before}


def instantiate_apart(call: Call, repeats: int) -> dict[str, Any]:
    """Medians of `repeats` new processes; the ops built must be equal in all."""
    runs = []
    for _ in range(repeats):
        child = subprocess.run(
            [sys.executable, "-m", "benchmarks.scale", "--call", json.dumps(asdict(call))],
            cwd=Path(__file__).parent.parent,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=120,
        )
        runs.append(json.loads(child.stdout))
    assert len({run["ops"] for run in runs}) == 1, f"ops built for {call} differ"
    return {
        **asdict(call),
        "ops": runs[0]["ops"],
        "cpu_s": statistics.median(run["cpu_s"] for run in runs),
        "peak_bytes": max(run["peak_bytes"] for run in runs),
        "runs_cpu_s": [run["cpu_s"] for run in runs],
    }


def verdict(row: dict[str, Any]) -> str:
    """The text of the last column."""
    return "ABOVE" if row["cpu_s"] > BOUND_S or row["peak_bytes"] > BOUND_BYTES else "PASS"


def growth(rows: list[dict[str, Any]], key: str) -> float:
    """The exponent of a power law of the ranks through the rows of one algorithm."""
    ranks = np.log([row["ranks"] for row in rows])
    values = np.log([max(row[key], 1e-9) for row in rows])
    return float(np.polyfit(ranks, values, 1)[0])


def main(argv: list[str] | None = None) -> int:
    """Prints the table and writes JSON; returns 1 if a row takes more memory than the bound."""
    command = measure.command_of_rows("scale", __doc__, quick="two sizes, one process a row")
    command.add_argument("--call", type=json.loads, help=argparse.SUPPRESS)  # instantiate_apart's
    options = command.parse_args(argv)
    if options.repeats < 1:
        command.error("--repeats: at least 1")
    if options.call is not None:
        print(json.dumps(instantiate(Call(**options.call))))
        return 0

    about = measure.provenance({})
    path = options.json or default_json(about, "scale")
    _files.check_can_write(path, make_folders=True)
    measure.print_heading(about)
    print(f"{'call':36} {'ranks':>6} {'ops':>7} {'CPU ms':>8} {'peak MB':>8}")
    sizes = (SIZES[0], SIZES[-1]) if options.quick else SIZES
    rows, series = [], []
    for collective, algorithm in CALLS:
        of_algorithm = []
        for ranks in sizes:
            call = Call(collective, algorithm, ranks)
            row = instantiate_apart(call, 1 if options.quick else options.repeats)
            row["verdict"] = verdict(row)
            of_algorithm.append(row)
            print(
                f"{f'{collective} {algorithm}':36} {ranks:6d} {row['ops']:7d} "
                f"{row['cpu_s'] * 1e3:8.2f} {row['peak_bytes'] / 1e6:8.2f} {row['verdict']}",
                flush=True,
            )
        rows += of_algorithm
        series.append(
            {
                "collective": collective,
                "algorithm": algorithm,
                "exponent_ops": growth(of_algorithm, "ops"),
                "exponent_cpu_s": growth(of_algorithm, "cpu_s"),
            }
        )
    print("# growth with the number of ranks, as a power:")
    for one in series:
        name = f"{one['collective']} {one['algorithm']}"
        print(f"#   {name:36} ops {one['exponent_ops']:.2f}, CPU {one['exponent_cpu_s']:.2f}")
    about |= {"bound_s": BOUND_S, "bound_bytes": BOUND_BYTES, "rows": rows, "series": series}
    _files.write(path, json.dumps(about, indent=1) + "\n", make_folders=True)
    print(f"# {path}")
    return int(any(row["peak_bytes"] > BOUND_BYTES for row in rows))


if __name__ == "__main__":
    sys.exit(main())
