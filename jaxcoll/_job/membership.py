"""The ranks that take part: mesh axes -> groups of logical device ids -> device ids.

A logical id is a device's position in its mesh, in row-major order. It is what an executable calls
its devices, and it stays meaningful when the executable is exported and runs elsewhere.
"""

from __future__ import annotations

import atexit
import math
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from jaxcoll import _environment
from jaxcoll._errors import LinkError, TuningError, UnsupportedError
from jaxcoll._jax import compat
from jaxcoll._job import bootstrap, host, presence, secret
from jaxcoll._native import cuda, native
from jaxcoll._text import printable
from jaxcoll.tune import table

AxisIndexGroups = tuple[tuple[int, ...], ...] | None


def logical_groups(
    mesh_shape: Mapping[Any, int],
    axis_name: Sequence[Any],
    axis_index_groups: AxisIndexGroups = None,
) -> np.ndarray:
    """The groups of a collective over `axis_name`.

    Args:
      mesh_shape: all axes of the mesh and their sizes, in the mesh's order.
      axis_name: the axes to communicate over, most significant first.
      axis_index_groups: equal-sized groups of indices along `axis_name`, or None for one group.

    Returns:
      int64, (groups, ranks per group): the logical ids of each group, in rank order.
    """
    names = list(mesh_shape)
    axes = [names.index(axis) for axis in axis_name]
    ids = np.arange(math.prod(mesh_shape.values())).reshape(tuple(mesh_shape.values()))
    ranks = math.prod(mesh_shape[axis] for axis in axis_name)
    groups = np.moveaxis(ids, axes, range(len(axes))).reshape(ranks, -1).T
    if axis_index_groups is not None:
        groups = groups[:, np.asarray(axis_index_groups)].reshape(-1, len(axis_index_groups[0]))
    return groups


def device_ids(mesh: Mesh | AbstractMesh) -> list[int] | None:
    """The device id of each logical id; None for a mesh that is not bound to devices yet."""
    if isinstance(mesh, AbstractMesh):
        return None
    return [device.id for device in mesh.devices.flat]


def processes(mesh: Mesh | AbstractMesh) -> list[int]:
    """The process of each logical id; empty for a mesh that is not bound to devices yet."""
    if isinstance(mesh, AbstractMesh):
        return []
    return [device.process_index for device in mesh.devices.flat]


def hosts(mesh: Mesh | AbstractMesh) -> list[int]:
    """The host of each logical id, as JAX tells machines apart; empty as for `processes`."""
    if isinstance(mesh, AbstractMesh):
        return []
    return [getattr(device, "slice_index", 0) for device in mesh.devices.flat]


def ranks_per_node(
    groups: np.ndarray, process_of_logical: Sequence[int], host_of_logical: Sequence[int]
) -> int:
    """How many ranks of a group are near each other, and reduce before they talk to the others.

    Those of one host where groups reach into several, else those of one process; as `ranks_per`.
    """
    per_host = ranks_per(groups, host_of_logical)
    return per_host if per_host > 1 else ranks_per(groups, process_of_logical)


def owners_per_group(groups: np.ndarray, owner_of_logical: Sequence[int]) -> int:
    """How many owners (processes, hosts) a group reaches into, at most; 1 if they are not known."""
    if len(owner_of_logical) == 0:
        return 1
    return max(len(np.unique(row)) for row in np.asarray(owner_of_logical)[groups])


def ranks_per(groups: np.ndarray, owner_of_logical: Sequence[int]) -> int:
    """How many ranks of a group each of its owners (processes, hosts) has.

    1 for groups within one owner. 0 unless it is the same number for every owner and group and each
    owner's ranks follow each other.
    """
    if len(owner_of_logical) == 0:
        return 1
    by_rank = np.asarray(owner_of_logical)[groups]
    if all((row == row[0]).all() for row in by_rank):
        return 1
    runs = set()
    for row in by_rank:
        ends = np.flatnonzero(np.diff(row)) + 1
        runs |= set(np.diff([0, *ends, len(row)]).tolist())
        if len(ends) + 1 != len(np.unique(row)):
            return 0
    return runs.pop() if len(runs) == 1 else 0


def mesh_of(mesh: AbstractMesh, devices: Sequence[Any] | None) -> Mesh | AbstractMesh:
    """`mesh` on the devices of its program, if they are known."""
    if devices is None or len(devices) != mesh.size:
        return mesh
    return Mesh(np.array(devices, dtype=object).reshape(mesh.axis_sizes), mesh.axis_names)


def start(mesh: Mesh | AbstractMesh) -> None:
    """Makes the engine know the other processes, once, when a mesh reaches into one of them.

    Raises: UnsupportedError for a mesh without devices in a job of several processes: which process
      a rank lives in would not be known.
    """
    _environment.values()  # a program may have changed them since the import
    native.log_process(jax.process_index(), jax.process_count())
    presence.watch()
    if jax.process_count() == 1:
        return
    if isinstance(mesh, AbstractMesh):
        raise UnsupportedError(
            "in a job of several processes jaxcoll needs to know a program's devices; pass "
            "jax.shard_map a jax.sharding.Mesh, or set one with jax.set_mesh"
        )
    if len(set(processes(mesh))) > 1:
        presence.start_engine()


_STEP_S = 0.5
_DIGEST_BYTES_MAX = 4096
_AGREE_S = 60.0  # for the store to answer: nobody else has to arrive
_agreeing = threading.Lock()
_disagreement: str | None = None  # guarded by _agreeing; None: not compared yet, "": none


def agree_on_tuning() -> None:
    """Compares this process's table with that of the first of the job that has asked, once.

    Nobody waits for anybody: the job's store keeps what came first. A process that differs takes
    part in nothing any more, so that the others fail with the same reason rather than wait for it.

    Raises: TuningError naming both digests, processes and files; for a table that cannot be used.
      LinkError if the first of the job has another secret.
    """
    global _disagreement
    with _agreeing:
        if _disagreement is None:
            try:
                _disagreement = _compare_tuning()
            except LinkError as error:  # what the others say cannot be trusted
                presence.refuse(str(error))
                raise
            if _disagreement:
                presence.refuse(_disagreement)
        if _disagreement:
            raise TuningError(_disagreement)


def _compare_tuning() -> str:
    """The fault that was found; empty if there is none."""
    job = compat.distributed_store()
    if job is None:
        return ""
    store, index, _ = job
    signed = secret.SignedStore(store, secret.given(), f"process {index}")
    try:
        digest, text = table.digest(), table.describe()
    except TuningError as error:  # the others must not wait for this process
        return f"process {index}: {error}"
    key = bootstrap.PREFIX + "tuning"
    own = f"process {index} on host {socket.gethostname()}: {text}"
    signed.set(key, f"{digest} {own}".encode())
    try:
        value = _wait(signed, key)[:_DIGEST_BYTES_MAX].decode("utf-8", "replace")
    except TimeoutError:
        return f"process {index}: the job's store has not answered for {_AGREE_S:g} s"
    first_digest, _, first = value.partition(" ")
    first = printable(first)
    if first_digest == digest:
        return ""
    return (
        'the processes of this job would pick different algorithms for "auto", by different tables '
        f"of `jaxcoll tune`: {first}; {own}. Copy one file to all hosts, or set JAXCOLL_TUNING=off "
        "for all processes, and start the job again"
    )


def _wait(store: secret.SignedStore, key: str) -> bytes:
    """The value of a key. In steps, between which Ctrl-C is heard. Raises: TimeoutError."""
    end = time.monotonic() + _AGREE_S
    while True:
        try:
            return store.wait(key, _STEP_S)
        except TimeoutError:
            if time.monotonic() > end:
                raise


_CUDA_BLOCKS = 32
_CUDA_WORKSPACE_MIB = 128


class _GpuStore:
    """The job's store, through which GPUs' processes exchange handles of their memory. Any thread.

    Signed, if there is a secret: a process maps the handles that it reads. Not hidden: whoever
    reads the store and may use the GPU could try to map it, too.
    """

    def __init__(self, store: compat.DistributedStore) -> None:
        self._store = secret.SignedStore(store, secret.given(), f"process {jax.process_index()}")

    def set(self, key: str, value: bytes) -> None:
        self._store.set(bootstrap.PREFIX + key, value)

    def wait(self, key: str, timeout_s: float) -> bytes:
        try:
            return self._store.wait(bootstrap.PREFIX + key, timeout_s)
        except TimeoutError:
            raise TimeoutError(f"nothing came within {timeout_s:g} s") from None


def check_platforms(mesh: Mesh | AbstractMesh) -> None:
    """Raises: UnsupportedError for a mesh of CPUs and GPUs."""
    if isinstance(mesh, AbstractMesh):
        return
    first: dict[str, Any] = {}
    for device in mesh.devices.flat:
        first.setdefault(device.platform, device)
    if len(first) > 1:
        named = " and ".join(f"{device} ({platform})" for platform, device in first.items())
        raise UnsupportedError(
            f"this mesh mixes devices of several platforms: {named}; make a mesh of each, and move "
            "arrays between them with jax.device_put"
        )


def driver_problem(here: Mapping[str, Any]) -> str:
    """Why the engine cannot use the GPUs that JAX uses, and what to do; "" if it can.

    Args:
      here: what `cuda_info` of the extension module says.
    """
    if here["driver"] and here["devices"]:
        return ""

    def version(number: int) -> str:
        return f"{number // 1000}.{number % 1000 // 10}"

    needs = f"this build of jaxcoll is for CUDA {version(here['runtime_version'])}"
    if not here["driver_version"]:
        return f"there is no NVIDIA driver ({here['problem']}); {needs}"
    return (
        f"the NVIDIA driver serves CUDA up to {version(here['driver_version'])}, and {needs} "
        f"({here['problem']}): update the driver, or build jaxcoll with the nvcc of that CUDA"
    )


_starting = threading.Lock()


def start_gpus(mesh: Mesh | AbstractMesh | None = None) -> None:
    """Makes the engine for GPUs know the job's devices, once.

    Raises: UnsupportedError where there is no GPU that the engine can use, and for a mesh without
      devices: the host must know which ranks are where.
    """
    if isinstance(mesh, AbstractMesh):
        raise UnsupportedError(
            "on GPUs jaxcoll needs to know a program's devices; pass jax.shard_map a "
            "jax.sharding.Mesh, or set one with jax.set_mesh"
        )
    with _starting:
        if cuda.cuda_started():
            return
        try:
            gpus = jax.devices("cuda")
        except RuntimeError as error:
            raise UnsupportedError(f"there is no GPU that JAX can use: {error}") from error
        if problem := driver_problem(cuda.cuda_info()):
            raise UnsupportedError(problem)
        values: dict[str, Any] = _environment.values()
        job = compat.distributed_store()
        store = _GpuStore(job[0]) if job is not None and job[2] > 1 else None
        cuda.cuda_start(
            jax.process_index(),
            [(d.id, d.process_index, d.local_hardware_id or 0) for d in gpus],
            values["JAXCOLL_CUDA_BLOCKS"] or _CUDA_BLOCKS,
            values["JAXCOLL_CUDA_WORKSPACE_MIB"] or _CUDA_WORKSPACE_MIB,
            values["JAXCOLL_CUDA_OPERANDS"] != "staged" and _arrays_are_in_a_pool(),
            values["JAXCOLL_CUDA_DMABUF"] != "0",
            values["JAXCOLL_HOST_ID"] or host.identity(),
            store,
        )
        atexit.register(cuda.cuda_stop)


def _arrays_are_in_a_pool() -> bool:
    """Whether XLA keeps GPU memory once it has it (its BFC allocator, the default).

    Memory that goes back to the driver array by array must not be mapped by other processes: at the
    same address there may be another allocation the next time.
    """
    names = ("XLA_PYTHON_CLIENT_ALLOCATOR", "XLA_CLIENT_ALLOCATOR")
    return all(os.environ.get(name, "default").lower() in ("default", "bfc") for name in names)


def label(axis_name: Sequence[Any], mesh_shape: Mapping[Any, int], group_size: int) -> str:
    """The group's name in error messages, e.g. "axis 'dp' (4 ranks)"."""
    axes = ", ".join(repr(axis) for axis in axis_name)
    noun = "axis" if len(axis_name) == 1 else "axes"
    ranks = math.prod(mesh_shape[axis] for axis in axis_name)
    grouped = f", in groups of {group_size}" if group_size != ranks else ""
    return f"{noun} {axes} ({ranks} ranks{grouped})"
