"""The table of `benchmarks.compare --processes`: jaxcoll between processes, beside gloo and MPI.

One job per number of processes, one CPU device each, float32. Within it all implementations take
turns on the same input: a turn is one call that is not counted, to bring the processes together,
and some that are. A figure is the median over those calls, of the process that waited longest.

    gloo     lax's collectives, a jitted call, as JAX runs them on CPUs by default
    mpich    MPI's own call through mpi4py on NumPy arrays that are there already: no JAX, nothing
             compiled, nothing allocated (the extra `bench` brings MPICH)
    jaxcoll  a jitted call

`bound` is the time to read and write P x S bytes at the bandwidth with which all cores copy memory,
measured in the same run; `bus` is nccl-tests' bus bandwidth of jaxcoll. The rows named tcp run in
a job of their own whose processes count as different hosts, beside plain sockets in a ring that
carry as many bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

import jaxcoll
from benchmarks import measure
from benchmarks.collectives import COLLECTIVES, Body, Collective, compile_call, place
from jaxcoll import _files

KIB, MIB = 1 << 10, 1 << 20
PEERS = ("gloo", "mpich")
TURN_S = 0.003  # what one implementation calls before the next has its turn, at least


@dataclass(frozen=True)
class Floor:
    """The floors that a row must reach, each None where there is none."""

    over_gloo: dict[int, float] = field(default_factory=dict)  # processes -> ratio
    over_mpich: float | None = None
    bounds_most: float | None = None  # time over the memory bound
    raw_most: float | None = None  # tcp: time over plain sockets
    above_nothing_most: float | None = None  # (time - empty call) over MPICH's


@dataclass(frozen=True)
class Row:
    """One line of the table: a collective of `size` bytes, done `times` times in one call.

    chained: each takes the result of the one before; otherwise they are the leaves of a tree.
    """

    name: str
    collective: str
    size: int
    floor: Floor
    times: int = 1
    chained: bool = False
    tcp: bool = False


def _both(ratio: float) -> dict[int, float]:
    return {2: ratio, 4: ratio}


ROWS = (
    Row(
        "all_reduce, 4 KiB",
        "all_reduce",
        4 * KIB,
        Floor({2: 8, 4: 5}, above_nothing_most=3),
    ),
    Row("all_reduce, 1 MiB", "all_reduce", MIB, Floor(_both(3), over_mpich=1)),
    Row("all_reduce, 4 MiB", "all_reduce", 4 * MIB, Floor(over_mpich=1.2)),
    Row("all_reduce, 16 MiB", "all_reduce", 16 * MIB, Floor(_both(2.5), 1.2, 2.5)),
    Row("all_reduce, 64 MiB", "all_reduce", 64 * MIB, Floor(_both(4), 1.2, 2.5)),
    Row("chain of 10 all_reduces, 4 KiB", "all_reduce", 4 * KIB, Floor(_both(10)), 10, True),
    Row("gradient, 100 leaves, 10 MiB", "all_reduce", 10 * MIB // 100, Floor(_both(10)), 100),
    Row("all_gather, 1 MiB", "all_gather", MIB, Floor(_both(3))),
    Row("reduce_scatter, 1 MiB", "reduce_scatter", MIB, Floor(_both(3))),
    Row("all_to_all, 1 MiB", "all_to_all", MIB, Floor(_both(3))),
    Row(
        "tcp: all_reduce, 64 MiB", "all_reduce", 64 * MIB, Floor(_both(1.7), raw_most=1.5), tcp=True
    ),
)


# --- inside a process of the job ----------------------------------------------------------------


def inputs(row: Row, rank: int, processes: int) -> list[np.ndarray]:
    """One rank's vectors: small integers, so that every order of a sum gives the same bits."""
    n = row.size // 4 // COLLECTIVES[row.collective].input_divisor(processes)
    count = 1 if row.chained else row.times
    n -= n % processes
    return [((7 * rank + i + np.arange(n)) % 251).astype(np.float32) for i in range(count)]


def jax_call(row: Row, mesh: Mesh, body: Body) -> Callable[[], Any]:
    """`row` as a jitted call over `mesh`; body is lax's or jaxcoll's collective."""
    n = mesh.size
    ranks = [inputs(row, rank, n) for rank in range(n)]
    placed = [place(mesh, np.stack(rows)) for rows in zip(*ranks, strict=True)]

    def local(xs: list[jax.Array]) -> Any:
        if not row.chained:
            return body(xs[0], "d", n) if row.times == 1 else body(xs, "d", n)  # type: ignore[arg-type]
        value = xs[0]
        for _ in range(row.times):  # the mean keeps the numbers small and, for 2**k ranks, exact
            value = body(value, "d", n) * (1 / n) + xs[0]
        return value

    return compile_call(mesh, local, placed)


def mpi_call(row: Row, communicator: Any, mpi: Any) -> Callable[[], Any]:
    """`row` as MPI calls on arrays that are allocated once."""
    n = communicator.size
    xs = inputs(row, communicator.rank, n)
    if row.collective == "all_reduce":
        outs = [np.empty_like(x) for x in xs]
        if row.chained:

            def chain() -> Any:
                value = xs[0]
                for _ in range(row.times):
                    communicator.Allreduce(value, outs[0], mpi.SUM)
                    value = outs[0] * np.float32(1 / n) + xs[0]
                return [value]

            return chain

        def reduce() -> Any:
            for x, out in zip(xs, outs, strict=True):
                communicator.Allreduce(x, out, mpi.SUM)
            return outs

        return reduce
    size = {"all_gather": xs[0].size * n, "reduce_scatter": xs[0].size // n}
    out = np.empty(size.get(row.collective, xs[0].size), np.float32)
    function = {
        "all_gather": communicator.Allgather,
        "reduce_scatter": communicator.Reduce_scatter_block,
        "all_to_all": communicator.Alltoall,
    }[row.collective]

    def call() -> Any:
        function(xs[0], out)
        return [out]

    return call


class Ring:
    """Plain sockets from each process to the next, on loopback."""

    def __init__(self, rank: int, processes: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = np.array([listener.getsockname()[1]], np.int32)
            ports = np.asarray(multihost_utils.process_allgather(port)).reshape(-1)
            self._next = socket.create_connection(("127.0.0.1", int(ports[(rank + 1) % processes])))
            self._previous, _ = listener.accept()

    def call(self, size: int) -> Callable[[], Any]:
        """Sends `size` bytes on while it receives as many."""
        out, into = np.ones(size, np.uint8), np.empty(size, np.uint8)

        def exchange() -> Any:
            sender = threading.Thread(target=self._next.sendall, args=(out,))
            sender.start()
            view = into.data
            while view:
                view = view[self._previous.recv_into(view) :]
            sender.join()
            return None

        return exchange


def local_values(result: Any) -> list[np.ndarray]:
    """This process's part of a result, be it MPI's arrays or JAX's."""
    leaves = [
        leaf.addressable_shards[0].data[0] if isinstance(leaf, jax.Array) else leaf
        for leaf in jax.tree.leaves(result)
    ]
    return [np.asarray(leaf) for leaf in leaves]


def agree(calls: dict[str, Callable[[], Any]]) -> bool:
    """Whether all implementations return the same numbers, in all processes."""
    first: list[np.ndarray] | None = None
    same = True
    for name, call in calls.items():
        if name not in (*PEERS, "jaxcoll"):
            continue
        values = [value.copy() for value in local_values(call())]
        first = first or values
        same &= all(np.allclose(a, b, rtol=1e-5) for a, b in zip(values, first, strict=True))
    return bool(np.all(multihost_utils.process_allgather(np.array(same))))


def agreed(value: float) -> float:
    """Process 0's value, in all."""
    return float(multihost_utils.broadcast_one_to_all(np.float32(value)))


def take_turns(calls: dict[str, Callable[[], Any]], budget_s: float) -> dict[str, list[float]]:
    """Seconds of each counted call, for each implementation; all processes take the same turns."""
    estimate_s = {}
    for name, call in calls.items():
        for _ in range(3):
            jax.block_until_ready(call())
        start = time.perf_counter()
        jax.block_until_ready(call())
        estimate_s[name] = agreed(time.perf_counter() - start)
    each = {name: min(max(int(TURN_S / s), 2), 50) for name, s in estimate_s.items()}
    round_s = sum((each[name] + 1) * s for name, s in estimate_s.items())
    times: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    for _ in range(min(max(int(budget_s / round_s), 3), 500)):
        for name in order:
            call = calls[name]
            jax.block_until_ready(call())
            for _ in range(each[name]):
                start = time.perf_counter()
                result = jax.block_until_ready(call())
                times[name].append(time.perf_counter() - start)
                del result
        order.reverse()
    return times


def worker(options: argparse.Namespace) -> None:
    """One process of the job; process 0 writes the results."""
    mpi: Any = None
    if "mpich" in options.peers and "PMI_SIZE" in os.environ:
        from mpi4py import MPI

        mpi = MPI
        rank, processes = mpi.COMM_WORLD.rank, mpi.COMM_WORLD.size
        jax.distributed.initialize(os.environ["JAX_COORDINATOR_ADDRESS"], processes, rank)
    else:
        jax.distributed.initialize()
        rank, processes = jax.process_index(), jax.process_count()
    mesh = Mesh(np.array(sorted(jax.devices(), key=lambda device: device.id)), ("d",))
    ring = Ring(rank, processes) if options.tcp else None
    found: dict[str, Any] = {"rows": []}

    def tell(text: str) -> None:
        if rank == 0:
            print(text, file=sys.stderr, flush=True)

    nothing = place(mesh, np.ones((mesh.size, KIB), np.float32))
    empty = compile_call(mesh, lambda x: -x, nothing)
    found["nothing_s"] = slowest(take_turns({"nothing": empty}, options.budget / 4))["nothing"]
    for row in ROWS:
        if row.tcp != options.tcp or options.only not in row.name:
            continue
        collective = COLLECTIVES[row.collective]
        calls: dict[str, Callable[[], Any]] = {}
        if "gloo" in options.peers:
            calls["gloo"] = jax_call(row, mesh, collective.lax)
        if mpi is not None and not row.tcp:
            calls["mpich"] = mpi_call(row, mpi.COMM_WORLD, mpi)
        if ring is not None:
            calls["sockets"] = ring.call(2 * (processes - 1) * row.size // processes)
        absent = None
        try:
            calls["jaxcoll"] = jax_call(row, mesh, _auto(collective))
        except jaxcoll.UnsupportedError as error:
            absent = str(error)
        right = agree(calls)
        medians = slowest(take_turns(calls, options.budget))
        found["rows"].append(
            {"work": row.name, "right": right, "absent": absent, "median_s": medians}
        )
        tell(f"# {processes} processes, {row.name}: done")
    if rank == 0:
        found["copy_Bps"] = measure.copy_bandwidth_Bps()
        found["mpi"] = mpi.Get_library_version().split("\n")[0] if mpi is not None else None
        options.worker.write_text(json.dumps(found))
    multihost_utils.sync_global_devices("end")


def _auto(collective: Collective) -> Body:
    return lambda x, axis, n: collective.jaxcoll(x, axis, n, "auto")


def slowest(times: dict[str, list[float]]) -> dict[str, float]:
    """The largest of the processes' medians, for each implementation."""
    medians = np.array([statistics.median(times[name]) for name in times], np.float32)
    return dict(
        zip(
            times,
            np.asarray(multihost_utils.process_allgather(medians))
            .reshape(-1, len(times))
            .max(0)
            .tolist(),
            strict=True,
        )
    )


# --- outside ------------------------------------------------------------------------------------


def mpiexec() -> str | None:
    """The launcher of the MPI that mpi4py of this Python uses; None where there is none."""
    if importlib.util.find_spec("mpi4py") is None:
        return None
    return shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")


@contextlib.contextmanager
def free_port() -> Iterator[int]:
    """A port that stays ours until JAX's coordinator listens on it, as gRPC may: SO_REUSEPORT."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def run_job(
    processes: int, peers: list[str], budget_s: float, *, tcp: bool = False, only: str = ""
) -> dict[str, Any]:
    """Runs one job, for the rows with `only` in their names; returns what its process 0 found."""
    launcher = mpiexec() if "mpich" in peers and not tcp else None
    environment = {name: v for name, v in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}
    environment |= {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")])),
    }
    with tempfile.TemporaryDirectory() as folder, free_port() as port:
        out = Path(folder) / "found.json"
        program = ["-m", "benchmarks.processes", f"--worker={out}", f"--budget={budget_s}"]
        program += ["--peers", ",".join(peers), f"--only={only}", *(["--tcp"] if tcp else [])]
        if launcher:
            environment["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{port}"
            command = [launcher, "-n", str(processes), sys.executable, *program]
        else:
            command = [sys.executable, "-m", "jaxcoll", "launch", "-n", str(processes)]
            if tcp:  # each process is a host of its own
                each = 'export JAXCOLL_HOST_ID="host-$SLURM_PROCID"; exec "$0" "$@"'
                command += ["--", "sh", "-c", each, sys.executable, *program]
            else:
                command += program
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120 + 4 * len(ROWS) * (budget_s + 5),
            check=False,
        )
        if done.returncode != 0:
            raise SystemExit(f"{command}\n{done.stdout}\n{done.stderr}\nrc {done.returncode}")
        found: dict[str, Any] = json.loads(out.read_text())
    return found


def judge(row: Row, processes: int, found: dict[str, Any], job: dict[str, Any]) -> dict[str, Any]:
    """A row of the table: times, ratios, and for each floor whether it is met."""
    times = found["median_s"]
    ours = times.get("jaxcoll")
    result: dict[str, Any] = {
        "work": row.name,
        "processes": processes,
        "right": found["right"],
        "absent": found["absent"],
        "median_s": times,
        "floor": asdict(row.floor),
        "checks": {},
    }
    if ours is None:
        return result
    floor, checks = row.floor, result["checks"]
    bytes_moved = 2 * processes * row.size * (1 if row.chained else row.times)
    result["bounds"] = ours / (bytes_moved / job["copy_Bps"])
    factor = COLLECTIVES[row.collective].bus_factor(processes)
    result["bus_Bps"] = row.size * row.times / ours * factor
    for peer in ("gloo", "mpich", "sockets"):
        if peer in times:
            result[f"over_{peer}"] = times[peer] / ours
    wanted = floor.over_gloo.get(processes)
    if wanted is not None and "gloo" in times:
        checks[f"over gloo at least {wanted:g}"] = result["over_gloo"] >= wanted
    if floor.over_mpich is not None and "mpich" in times:
        checks[f"over mpich at least {floor.over_mpich:g}"] = (
            result["over_mpich"] >= floor.over_mpich
        )
    if floor.bounds_most is not None:
        checks[f"bounds at most {floor.bounds_most:g}"] = result["bounds"] <= floor.bounds_most
    if floor.raw_most is not None and "sockets" in times:
        checks[f"over plain sockets at most {floor.raw_most:g}"] = (
            ours / times["sockets"] <= floor.raw_most
        )
    if floor.above_nothing_most is not None and "mpich" in times:
        result["above_nothing_over_mpich"] = (ours - job["nothing_s"]) / times["mpich"]
        checks[f"above an empty call, at most {floor.above_nothing_most:g} of mpich's"] = (
            result["above_nothing_over_mpich"] <= floor.above_nothing_most
        )
    return result


def print_row(result: dict[str, Any]) -> None:
    """One line; below it, each floor that is not reached."""

    def cell(value: float | None, scale: float, width: int, digits: int) -> str:
        return f"{'-' if value is None else format(value * scale, f'.{digits}f'):>{width}}"

    times = result["median_s"]
    other = result.get("over_mpich", result.get("over_sockets"))
    third = times.get("sockets") if "sockets" in times else times.get("mpich")
    verdict = "absent"
    if not result["right"]:
        verdict = "WRONG"
    elif "jaxcoll" in times:
        missed = [name for name, met in result["checks"].items() if not met]
        verdict = "BELOW" if missed else "PASS" if result["checks"] else "-"
    print(
        f"{result['processes']:2d} {result['work']:31}"
        f"{cell(times.get('gloo'), 1e3, 10, 3)}{cell(third, 1e3, 10, 3)}"
        f"{cell(times.get('jaxcoll'), 1e3, 10, 3)}{cell(result.get('over_gloo'), 1, 8, 2)}"
        f"{cell(other, 1, 8, 2)}"
        f"{cell(result.get('bus_Bps'), 1e-9, 9, 2)}{cell(result.get('bounds'), 1, 7, 2)}  "
        f"{verdict}",
        flush=True,
    )
    for name, met in result["checks"].items():
        if not met:
            print(f"   missed: {name}", flush=True)


def compare(
    counts: list[int], peers: list[str], budget_s: float, path: Callable[[dict[str, Any]], Path]
) -> int:
    """Prints the table for each number of processes and writes it as JSON; the exit code."""
    about = measure.provenance({"d": max(counts)})
    out = path(about)
    _files.check_can_write(out, make_folders=True)
    print(
        f"# jaxcoll {jaxcoll.__version__}, jax {jax.__version__}, {measure.cores()} cores; "
        "ms, ratios above 1: jaxcoll is faster"
    )
    if "mpich" in peers and mpiexec() is None:
        print("# mpich: absent; pip install 'jaxcoll[bench]' brings it")
    print(
        f"{'P':>2} {'work':31}{'gloo':>10}{'mpich':>10}{'jaxcoll':>10}{'/gloo':>8}{'/mpich':>8}"
        f"{'bus GB/s':>9}{'bounds':>7}"
    )
    jobs, results = [], []
    for processes in counts:
        for tcp in (False, True):
            rows = [row for row in ROWS if row.tcp == tcp]
            job = run_job(processes, peers, budget_s, tcp=tcp)
            for row, found in zip(rows, job["rows"], strict=True):
                results.append(judge(row, processes, found, job))
                print_row(results[-1])
            jobs.append({"processes": processes, "tcp": tcp, "nothing_s": job["nothing_s"]})
            jobs[-1] |= {"copy_Bps": job["copy_Bps"], "mpi": job["mpi"]}
            print(
                f"# {processes} processes{', tcp' if tcp else ''}: all cores copy "
                f"{job['copy_Bps'] / 1e9:.1f} GB/s; an empty jitted call takes "
                f"{job['nothing_s'] * 1e6:.0f} us{'; ' + job['mpi'] if job['mpi'] else ''}",
                flush=True,
            )
    print("# tcp rows: the third column is plain sockets, which carry as many bytes in a ring")
    absent = next((r["absent"] for r in results if r["absent"]), None)
    if absent:
        print(f"# jaxcoll is absent: {absent}")
    about |= {"jobs": jobs, "rows": results}
    _files.write(out, json.dumps(about, indent=1) + "\n", make_folders=True)
    print(f"# {out}")
    return 0 if all(result["right"] for result in results) else 1


def parse_peers(text: str) -> list[str]:
    """'gloo,mpich' as a list."""
    peers = text.split(",")
    if not set(peers) <= set(PEERS):
        raise argparse.ArgumentTypeError(f"{text!r}: peers are {', '.join(PEERS)}")
    return peers


def main() -> None:
    """The function that `run_job` starts in each process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--worker", type=Path, required=True)
    parser.add_argument("--budget", type=float, required=True)
    parser.add_argument("--peers", type=parse_peers, required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--tcp", action="store_true")
    worker(parser.parse_args())


if __name__ == "__main__":
    main()
