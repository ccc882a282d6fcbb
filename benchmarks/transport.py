"""Measures puts over one link of each transport, in perftest's columns.

    python -m benchmarks.transport -b 8 -e 1M -f 4
    python -m benchmarks.transport --transports rdma -n 1000
    python -m benchmarks.transport --transports tcp-plain,tcp,tcp-encrypted --bound

Starts two processes on this machine. Within a job of two (`jaxcoll launch`, or one process on each
of two hosts, after the environment that `jax.distributed.initialize()` reads) it measures between
those. Links are made as the engine's are, authenticated through the job's store.

Latency is comparable with `ib_write_lat`: half the round trip of a put, its notice included.
Bandwidth is comparable with `ib_write_bw`, but a put counts when the receiver has answered that its
place is free again, as between engines; MB are 2^20 bytes, as there. Bytes are where the engine
puts messages together; `--source copied` has them copied there first, `--source lent` has rdma
register them instead, anew each time the window has been filled. Where the latter is faster, from
some size on, is what JAXCOLL_IB_REGISTER_BYTES is for. The last column is what the sender's CPUs
spend: a measure that other work on this machine changes less.

tcp is authenticated, as it is in every job; tcp-encrypted encrypts as well, tcp-plain does neither
and is there to be compared with. `--bound` says before what one core can do at most: copy, compute
the MAC, encrypt, each of 128 KiB in cache.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import measure
from benchmarks.run import parse_size
from jaxcoll import _files
from jaxcoll._jax import compat
from jaxcoll._job import secret
from jaxcoll._job.bootstrap import Bootstrap
from jaxcoll._job.store_thread import Store
from jaxcoll._native import native

TRANSPORTS = ("shm", "tcp", "rdma")  # measured unless others are named
PROTECTIONS = {"tcp-plain": "plain", "tcp": "authenticated", "tcp-encrypted": "encrypted"}
WARMUP = 5
LINK_S = 60.0


class PrefixedStore:
    """The job's store under other keys: a job sets up jaxcoll's own links only once."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._store, self._prefix = store, prefix

    def set(self, key: str, value: bytes) -> None:
        self._store.set(self._prefix + key, value)

    def wait(self, key: str, deadline_s: float) -> bytes:
        return self._store.wait(self._prefix + key, deadline_s)

    def list(self, folder: str) -> dict[str, bytes]:
        found = self._store.list(self._prefix + folder)
        return {key.removeprefix(self._prefix): value for key, value in found.items()}


class OneLink:
    """Stands for the engine in a bootstrap: takes the one link, to be measured."""

    def __init__(self, protection: str = "") -> None:
        self.bench = native.LinkBench()
        self._protection = protection
        self.failure = "it was not made in time"
        self._settled = threading.Event()

    def comm_bell(self) -> int:
        return self.bench.bell()

    def comm_make_segment(self) -> int:
        return native.comm_make_segment()

    def comm_rdma_fabrics(self) -> list[str]:
        return native.comm_rdma_fabrics()

    def comm_prepare_rdma(self, client_offer: bytes) -> Any:
        return native.comm_prepare_rdma(client_offer)

    def comm_add_shm_link(
        self, peer: int, sock: int, own_segment: int, peer_segment: int, peer_bell: int, text: str
    ) -> None:
        self.bench.use_shm(sock, own_segment, peer_segment, peer_bell)
        self._linked()

    def comm_no_crypto(self) -> str:
        return native.comm_no_crypto()

    def comm_add_tcp_link(
        self,
        peer: int,
        sockets: list[int],
        text: str,
        link_key: bytes,
        client: bool,
        encrypt: bool,
    ) -> None:
        self.bench.use_tcp(sockets, self._protection, link_key, client)
        self._linked()

    def comm_add_rdma_link(
        self,
        peer: int,
        half: Any,
        sock: int,
        offer: bytes,
        text: str,
        link_key: bytes,
        client: bool,
        encrypt: bool,
    ) -> None:
        self.bench.use_rdma(half, sock, offer)
        self._linked()

    def comm_link_failed(self, peer: int, reason: str) -> None:
        self.failure = reason
        self._settled.set()

    def comm_refuse(self, reason: str) -> None:
        self.comm_link_failed(-1, reason)

    def _linked(self) -> None:
        self.failure = ""
        self._settled.set()

    def wait(self) -> str:
        """Why there is no link; empty if there is."""
        self._settled.wait(LINK_S)
        return self.failure


def emulation() -> list[str]:
    """The reasons why figures of this machine do not measure performance."""
    notes = []
    vendor = Path("/sys/class/dmi/id/sys_vendor")
    if vendor.exists() and "QEMU" in vendor.read_text():
        notes.append("emulated: a QEMU guest")
    if any(port.startswith(("rxe", "siw")) for port in native.comm_rdma_ports()):
        notes.append("emulated: the RDMA device is software")
    return notes


def measure_transport(transport: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Both tables of one transport; empty if the two processes cannot be linked by it."""
    job = compat.distributed_store()
    assert job is not None
    store, index, count = job
    link = OneLink(PROTECTIONS.get(transport, ""))
    bootstrap = Bootstrap(
        link,
        PrefixedStore(store, f"bench/{transport}/{options.source}/"),
        index,
        count,
        version="benchmark",
        timeout_s=LINK_S,
        transports=("tcp" if transport in PROTECTIONS else transport,),
        secret=secret.given(),
    )
    bootstrap.want(1 - index)
    failure = link.wait()
    first = index == 0
    if failure:
        print(f"# {transport}: {failure}\n" if first else "", end="", flush=True)
        bootstrap.close()
        return []
    bench, rows = link.bench, []
    sizes = [options.b]
    while sizes[-1] * options.f <= options.e:
        sizes.append(sizes[-1] * options.f)
    for size in sizes:
        bench.ping_pong(size, WARMUP, first)
        trips_s = bench.ping_pong(size, options.n, first)
        halves_us = [trip_s / 2 * 1e6 for trip_s in trips_s]
        bench.stream(size, WARMUP, first, options.source)
        # Peak: the best of a few runs; average: of all.
        began_s = time.process_time()
        runs_s = [bench.stream(size, options.n, first, options.source) for _ in range(5)]
        cpu_s = time.process_time() - began_s
        per_run = options.n * size / 2**20
        rows.append(
            {
                "transport": transport,
                "source": options.source,
                "bytes": size,
                "iterations": options.n,
                "t_min_us": min(halves_us),
                "t_max_us": max(halves_us),
                "t_typical_us": statistics.median(halves_us),
                "t_avg_us": statistics.fmean(halves_us),
                "t_stdev_us": statistics.pstdev(halves_us),
                "t_99_us": float(np.percentile(halves_us, 99)),
                "t_999_us": float(np.percentile(halves_us, 99.9)),
                "bw_peak_MBps": per_run / min(runs_s),
                "bw_average_MBps": len(runs_s) * per_run / sum(runs_s),
                "cpu_us_per_MB": cpu_s * 1e6 / (len(runs_s) * per_run),
                "rate_Mpps": len(runs_s) * options.n / sum(runs_s) / 1e6,
            }
        )
    bootstrap.close()
    if first:
        print_tables(transport, f"{bench.describe()}, {options.source}", rows)
    return rows


def print_tables(transport: str, description: str, rows: list[dict[str, Any]]) -> None:
    """As ib_write_lat and ib_write_bw print theirs."""
    print(f"\n# {transport}: {description}")
    print(
        " #bytes #iterations    t_min[usec]    t_max[usec]  t_typical[usec]    t_avg[usec]    "
        "t_stdev[usec]   99% percentile[usec]   99.9% percentile[usec]"
    )
    for row in rows:
        print(
            f" {row['bytes']:<7d} {row['iterations']:<11d}    {row['t_min_us']:<11.2f}    "
            f"{row['t_max_us']:<11.2f}  {row['t_typical_us']:<15.2f}    {row['t_avg_us']:<11.2f} "
            f"   {row['t_stdev_us']:<13.2f}   {row['t_99_us']:<20.2f}   {row['t_999_us']:.2f}"
        )
    print(
        " #bytes     #iterations    BW peak[MB/sec]    BW average[MB/sec]   MsgRate[Mpps]   "
        "CPU[usec/MB]"
    )
    for row in rows:
        print(
            f" {row['bytes']:<10d} {row['iterations']:<11d}    {row['bw_peak_MBps']:<15.2f}    "
            f"{row['bw_average_MBps']:<18.2f}   {row['rate_Mpps']:<13.6f}   "
            f"{row['cpu_us_per_MB']:.0f}"
        )
    sys.stdout.flush()


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(
        prog="python -m benchmarks.transport", description=(__doc__ or "").splitlines()[0]
    )
    command.add_argument("-b", type=parse_size, default=8, metavar="SIZE", help="smallest [8]")
    command.add_argument(
        "-e", type=parse_size, default=1 << 20, metavar="SIZE", help="largest [1M]"
    )
    command.add_argument("-f", type=int, default=8, metavar="N", help="factor between sizes [8]")
    command.add_argument("-n", type=int, default=1000, metavar="N", help="puts of each size [1000]")
    command.add_argument(
        "--transports",
        type=lambda text: text.split(","),
        default=list(TRANSPORTS),
        help=f"of shm, rdma, {', '.join(PROTECTIONS)}, comma separated [{','.join(TRANSPORTS)}]",
    )
    command.add_argument(
        "--source",
        choices=("staged", "copied", "lent"),
        default="staged",
        help="where bytes lie before [staged]",
    )
    command.add_argument(
        "--bound", action="store_true", help="measure what one core copies, authenticates, encrypts"
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, too")
    return command


def main(argv: list[str] | None = None) -> int:
    """Measures; returns the exit code."""
    command = parser()
    arguments = sys.argv[1:] if argv is None else argv
    options = command.parse_args(arguments)
    if options.f < 2 or options.n < 1 or options.b > options.e:
        command.error("-f is at least 2, -n at least 1, and -b not larger than -e")
    if options.e > native.comm_window_bytes:
        command.error(f"-e is at most {native.comm_window_bytes}, the window of a link")
    if unknown := set(options.transports) - set(TRANSPORTS) - set(PROTECTIONS):
        command.error(f"there is no transport {', '.join(sorted(unknown))}")
    if options.source == "lent" and options.transports != ["rdma"]:
        command.error("only rdma takes what is lent: --transports rdma")
    if not native.testing_built:
        command.error(
            "this build has no links alone: CMAKE_ARGS=-DJAXCOLL_TESTING=ON pip install ."
        )
    if "JAX_COORDINATOR_ADDRESS" not in os.environ:
        launch = [sys.executable, "-m", "jaxcoll", "launch", "-n", "2", "-m"]
        return subprocess.call([*launch, "benchmarks.transport", *arguments])
    if not jax.distributed.is_initialized():
        jax.distributed.initialize()
    job = compat.distributed_store()
    assert job is not None
    if job[2] != 2:
        command.error(f"it measures between two processes, not {job[2]}")
    first = job[1] == 0
    if options.json and first:  # the other process writes nothing
        _files.check_can_write(options.json, make_folders=True)
    notes = emulation()
    for note in notes if first else ():
        print(f"# {note}; these times do not measure performance", flush=True)
    bound = native.crypto_speed_Bps(128 << 10, 0.5) if options.bound and first else {}
    for what, speed_Bps in bound.items():
        print(f"# one core, 128 KiB in cache: {what} {speed_Bps / 2**20:.0f} MB/sec", flush=True)
    rows = [row for name in options.transports for row in measure_transport(name, options)]
    for note in notes if first else ():
        print(f"# {note}; these times do not measure performance", flush=True)
    if options.json and first:
        about = {"emulated": notes, "bound_Bps": bound, "rows": rows}
        text = json.dumps(measure.provenance({}) | about, indent=1) + "\n"
        _files.write(options.json, text, make_folders=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
