"""The report that ``jaxcoll info`` prints: versions, devices, and what this build can do here."""

from __future__ import annotations

import contextlib
import os
import platform
import textwrap
from collections.abc import Iterator
from importlib import metadata

import jax

import jaxcoll
from jaxcoll import _environment
from jaxcoll._errors import LinkError, TuningError
from jaxcoll._jax import install
from jaxcoll._job import host, presence
from jaxcoll._job import secret as _secret
from jaxcoll._native import cuda, native
from jaxcoll.tune import select, table

# As the API names them -> as schedules name them.
_COLLECTIVES = {
    "all_reduce": "all_reduce",
    "reduce_scatter": "reduce_scatter",
    "all_gather": "all_gather",
    "all_to_all": "all_to_all",
    "ragged_all_to_all": "ragged_all_to_all",
    "ppermute": "permute",
    "broadcast": "broadcast",
}


def report() -> str:
    """Everything ``jaxcoll info`` prints, as text. Starts JAX's back ends."""
    sections = {
        "versions": _versions(),
        "devices": _devices(),
        "built in": _built_in(),
        "collectives and their algorithms": _collectives(),
        "transports": iter(
            [
                "local    devices of one process read each other's buffers",
                f"shm      {_shm()}",
                "tcp      processes of several hosts, and of one where shm is excluded",
                f"rdma     {_rdma()}",
                f"memory   {native.comm_window_bytes / 2**20:g} MiB per peer, whatever is sent",
                f"secret   {_secret_source()}",
                f"listens  {_listens()}",
            ]
        ),
        "reduce ops and the dtypes that have them": _reduce_ops(),
        "lax's collectives under install()": _installed(),
        "environment": _variables(),
    }
    return "\n\n".join(
        "\n".join([title, *(_wrapped(line) for line in lines)]) for title, lines in sections.items()
    )


def _shm() -> str:
    what = "processes of one host: a window of shared memory for each peer"
    unknown = host.why_unknown()
    if not unknown or _environment.values()["JAXCOLL_HOST_ID"]:
        return what
    return f"{what}; not here, where JAXCOLL_HOST_ID is not set: {unknown}"


def _rdma() -> str:
    try:
        native.comm_rdma_fabrics()
    except ValueError as error:
        return f"not here: {error}"
    left_out = "".join(f"; without {port}" for port in native.comm_rdma_left_out())
    return f"processes of several hosts, over {', '.join(native.comm_rdma_ports())}{left_out}"


def _secret_source() -> str:
    if secret := _secret.given():
        return f"{secret.name}, from {secret.source}"
    return (
        f"{_secret.NONE_GIVEN}: the kernel tells shm the user of each process; tcp and rdma use "
        "a secret in the store of jax.distributed, so anyone who reaches its coordinator can join"
    )


def _listens() -> str:
    """The addresses at which a job would listen here, and those that this process has opened."""
    values = _environment.values()
    transports = values["JAXCOLL_TRANSPORT"] or host.TRANSPORTS
    found = ["a Unix socket, for this user"] if "shm" in transports else []
    if "tcp" in transports or "rdma" in transports:
        try:
            chosen = host.choose_addresses(host.interfaces(), values["JAXCOLL_IFNAME"])
            for way, whom in (("near", "of this machine"), ("far", "of others")):
                with contextlib.suppress(LinkError):
                    where = ", ".join(host.addresses_for(way, chosen))
                    found.append(f"tcp at {where} once a process {whom} needs it")
        except LinkError as error:
            found.append(str(error))
    now = presence.listening()
    return "; ".join(found) + (f"; now at {', '.join(now)}" if now else "")


def _wrapped(line: str) -> str:
    return textwrap.fill(line, 100, initial_indent="  ", subsequent_indent="      ")


def _versions() -> Iterator[str]:
    yield f"jaxcoll  {jaxcoll.__version__}"
    for name in ("jax", "jaxlib", "numpy"):
        yield f"{name:9}{metadata.version(name)}"
    yield f"python   {platform.python_version()}"


def _devices() -> Iterator[str]:
    for platform_name in sorted({device.platform for device in jax.devices()} | {"cpu"}):
        count = len(jax.devices(platform_name))
        served = platform_name == "cpu" or (platform_name == "gpu" and native.cuda_built)
        yield f"{count} {platform_name}{'' if served else ', not served by this build'}"


def _built_in() -> Iterator[str]:
    major, minor = native.ffi_api_version()
    engine = native.engine_info()
    yield f"XLA FFI API {major}.{minor}"
    isas = native.kernel_isas()
    wanted = _environment.values()["JAXCOLL_ISA"]
    lacking = (
        f" ({wanted} is asked for, which this CPU lacks)" if wanted not in (None, *isas) else ""
    )
    yield f"kernels  {', '.join(isas)}; in use: {native.kernel_isa()}{lacking}"
    yield f"cuda     {_cuda()}"
    yield f"threads  {engine['threads']}"
    yield f"timeout  {engine['timeout_s']:g} s"
    yield f"auto     {_auto()}"


def _auto() -> str:
    try:
        return table.describe()
    except TuningError as error:
        return str(error)


def _cuda() -> str:
    if not native.cuda_built:
        return "none in this build"
    here = cuda.cuda_info()
    version = f"{here['runtime_version'] // 1000}.{here['runtime_version'] % 1000 // 10}"
    if not here["driver"]:
        return f"{version}; no GPU can be used: {here['problem']}"
    groups = "".join(f"; {text}" for text in here["communicators"])
    return f"{version}; {here['devices']} GPUs{groups}"


def _collectives() -> Iterator[str]:
    for name, schedule_name in _COLLECTIVES.items():
        yield f"{name:19}{', '.join(select.algorithms(schedule_name))}"


def _reduce_ops() -> Iterator[str]:
    dtypes_of: dict[str, list[str]] = {}
    for dtype in native.dtype_names():
        for op in native.reduce_ops(dtype):
            dtypes_of.setdefault(op, []).append(dtype)
    together: dict[tuple[str, ...], list[str]] = {}
    for op, dtypes in dtypes_of.items():
        together.setdefault(tuple(dtypes), []).append(op)
    for names, ops in together.items():
        yield f"{', '.join(ops)}: {', '.join(names)}"
    yield "mean: as sum"


def _installed() -> Iterator[str]:
    together: dict[tuple[str, str], list[str]] = {}
    for name, treatment, reason, _ in install.install_report():
        together.setdefault((treatment, reason), []).append(name)
    for (how, why), names in sorted(together.items(), reverse=True):
        yield f"{how}: {', '.join(names)}{f' ({why})' if why else ''}"


def _variables() -> Iterator[str]:
    variables = [variable for variable in _environment.VARIABLES if not variable.internal]
    width = 1 + max(len(variable.name) for variable in variables)
    for variable in variables:
        value = os.environ.get(variable.name)  # as it was given, not as it was understood
        if not value:
            shown = f"not set: {variable.default}"
        else:
            shown = value if value.isprintable() else ascii(value)
        yield f"{variable.name:{width}}{shown}"
