"""Code that the benchmarks share: a mesh of CPU devices, timing, memory bandwidth, where it ran."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gc
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

import jaxcoll
from jaxcoll import _files


def make_mesh(shape: Mapping[str, int]) -> Mesh:
    """A mesh of CPU devices; asks JAX for that many if it has not started yet.

    Under `jaxcoll launch` the mesh is over all processes, in the order of their ranks, and asks
    each for its part, unless XLA_FLAGS says how many devices a process has.
    """
    count = int(np.prod(list(shape.values())))
    if "JAX_COORDINATOR_ADDRESS" in os.environ and not jax.distributed.is_initialized():
        jax.distributed.initialize()
    processes = _process_count()
    if processes == 1 or "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # JAX has started: it has the devices it has
            jax.config.update("jax_num_cpu_devices", -(-count // processes))
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise SystemExit(
            f"the mesh needs {count} CPU devices and JAX has {len(devices)}; "
            f"set XLA_FLAGS=--xla_force_host_platform_device_count={count}"
        )
    return Mesh(np.array(devices[:count]).reshape(tuple(shape.values())), tuple(shape))


def _process_count() -> int:
    """Processes of the job; asking JAX would start it, with the devices it has by default."""
    from jaxcoll._jax import compat

    job = compat.distributed_store()
    return 1 if job is None else job[2]


@dataclass(frozen=True)
class Times:
    """Durations of single calls in seconds, each from its start to the last device's result."""

    calls_s: list[float]

    @property
    def median_s(self) -> float:
        return statistics.median(self.calls_s)

    @property
    def p95_s(self) -> float:
        return float(np.percentile(self.calls_s, 95))


def measure(
    calls: Mapping[str, Callable[[], Any]],
    *,
    budget_s: float,
    warmup: int = 3,
    least: int = 5,
    most: int = 1000,
    on_round: Callable[[], None] = lambda: None,
) -> dict[str, Times]:
    """Times each of `calls` alternately, so that a noisy machine hits all of them alike.

    A round calls each once, in an order that is reversed every other round. Rounds go on until
    `budget_s` is spent, within `least` and `most`. Every call is waited for. Its results are freed
    before the next one starts, outside the measured time, and the garbage collector is off. If
    there are several processes, the first decides how many rounds there are.
    """
    for call in calls.values():
        for _ in range(warmup):
            jax.block_until_ready(call())
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    if jax.process_count() > 1 and least < most:
        least = most = _agreed_rounds(calls, budget_s, least, most)
    gc.collect()
    gc.disable()
    try:
        end = time.perf_counter() + budget_s
        while (done := len(times[names[0]])) < least or (done < most and time.perf_counter() < end):
            for name in names:
                start = time.perf_counter()
                result = jax.block_until_ready(calls[name]())
                times[name].append(time.perf_counter() - start)
                del result
            names.reverse()
            on_round()
    finally:
        gc.enable()
    return {name: Times(times[name]) for name in calls}


def _agreed_rounds(
    calls: Mapping[str, Callable[[], Any]], budget_s: float, least: int, most: int
) -> int:
    start = time.perf_counter()
    for call in calls.values():
        jax.block_until_ready(call())
    rounds = int(budget_s / (time.perf_counter() - start))
    return int(multihost_utils.broadcast_one_to_all(np.int32(min(max(rounds, least), most))))


def copy_bandwidth_Bps(repeats: int = 9) -> float:
    """Bytes read plus bytes written per second when every core copies beyond the caches at once.

    Each thread copies its own 128 MiB, touched before, with NumPy, which is memcpy without the
    interpreter lock: above the last-level cache's size that streams past the cache. Median of
    `repeats` passes over everything.
    """
    threads = cores()
    pairs = [(np.ones(1 << 24), np.zeros(1 << 24)) for _ in range(threads)]

    def copy(pair: tuple[np.ndarray, np.ndarray]) -> None:
        np.copyto(pair[1], pair[0])

    times_s = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeats + 1):
            start = time.perf_counter()
            list(pool.map(copy, pairs))
            times_s.append(time.perf_counter() - start)
    moved = sum(2 * source.nbytes for source, _ in pairs)
    return moved / statistics.median(times_s[1:])


def cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0))


def command_of_rows(name: str, description: str | None, *, quick: str) -> argparse.ArgumentParser:
    """The arguments of a benchmark that measures each row in processes of its own.

    Args:
      name: of the module in this folder.
      description: the module's docstring.
      quick: what --quick leaves out.
    """
    command = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--quick", action="store_true", help=quick)
    command.add_argument("--repeats", type=int, default=3, metavar="N", help="processes a row [3]")
    command.add_argument(
        "--json",
        type=_files.output(make_folders=True),
        help=f"default: benchmarks/results/{name}-DATE-COMMIT.json",
    )
    return command


def print_heading(about: Mapping[str, Any]) -> None:
    """The first line of a table: jaxcoll's version and the machine, of `provenance`."""
    print(
        f"# jaxcoll {jaxcoll.__version__}, {cores()} cores, "
        f"load of the last minute {about['machine']['load_1min']:.1f}"
    )


def provenance(mesh: Mapping[str, int]) -> dict[str, Any]:
    """Commit, machine, mesh and versions, as they go into every JSON file."""
    return {
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": _cpu_model(),
            "cores": cores(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "kernel": platform.release(),
            "load_1min": os.getloadavg()[0],
        },
        "mesh": dict(mesh),
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "jaxlib": metadata.version("jaxlib"),
            "jaxcoll": jaxcoll.__version__,
        },
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith("JAXCOLL_") or name == "XLA_FLAGS"
        },
    }


def _commit() -> str | None:
    """The checkout's commit, "-dirty" if source files differ from it; None outside a checkout."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
