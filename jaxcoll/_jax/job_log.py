"""The log lines, once each, that describe a job and its choices.

`_job/presence.py` and `ffi/comm/reactor.cc` log transports, addresses and links.
"""

from __future__ import annotations

import logging
import os
import platform
import threading
from collections.abc import Hashable, Sequence
from importlib import metadata

import jax
import numpy as np

import jaxcoll
from jaxcoll import _environment
from jaxcoll._errors import TuningError
from jaxcoll._jax import compat
from jaxcoll._job import presence, secret
from jaxcoll._log import LOGGER
from jaxcoll._native import native
from jaxcoll.tune import table

_DEVICES_FLAG = "--xla_force_host_platform_device_count"
_IDS_SHOWN = 16
_TOLD_AT_MOST = 1000  # communicators, of a program that makes ever new ones

_lock = threading.Lock()
_told: set[Hashable] = set()  # guarded by _lock


def _first(what: Hashable) -> bool:
    with _lock:
        if what in _told or len(_told) >= _TOLD_AT_MOST:
            return False
        _told.add(what)
        return True


def process() -> None:
    """Versions, kernels, where the secret is from, and the variables that are set."""
    presence.tell_log()
    if not LOGGER.isEnabledFor(logging.INFO):
        return
    LOGGER.info(
        "jaxcoll %s, jax %s, jaxlib %s, Python %s; kernels: %s, of %s",
        jaxcoll.__version__,
        *(metadata.version(name) for name in ("jax", "jaxlib")),
        platform.python_version(),
        native.kernel_isa(),
        ", ".join(native.kernel_isas()),
    )
    given = secret.given()
    LOGGER.info("secret: %s", f"from {given.source}" if given else secret.NONE_GIVEN)
    names = [v.name for v in _environment.VARIABLES if os.environ.get(v.name)]
    LOGGER.info("environment: %s", ", ".join(f"{name}={os.environ[name]!a}" for name in names))


def devices() -> None:
    """Where the programs run. JAX's back ends have started."""
    if not LOGGER.isEnabledFor(logging.INFO) or not _first("devices"):
        return
    processes = jax.process_count()
    if processes == 1:
        where = "all of this process: ranks read each other's buffers"
    else:
        where = f"{jax.local_device_count()} of this process, of {processes} processes"
    LOGGER.info("platform %s: %d devices, %s", jax.default_backend(), jax.device_count(), where)


def communicator(label: str, groups: np.ndarray, ids: Sequence[int] | None, on_gpu: bool) -> None:
    """The ranks of a communicator, and how an algorithm is picked for it.

    Args:
      label: the axes, and how many ranks.
      groups: logical ids, (groups, ranks per group).
      ids: the device of each logical id, where it is known.
    """
    if not LOGGER.isEnabledFor(logging.INFO) or not _first((label, groups.tobytes())):
        return
    first = groups[0].tolist() if ids is None else [ids[i] for i in groups[0]]
    shown = ", ".join(map(str, first[:_IDS_SHOWN])) + (", ..." if len(first) > _IDS_SHOWN else "")
    kind = "positions in the mesh" if ids is None else "devices"
    more = f" (the first of {len(groups)} groups)" if len(groups) > 1 else ""
    if on_gpu:
        auto = "the rules for GPUs"
    else:
        try:
            auto = table.describe()
        except TuningError as error:
            auto = str(error)
    LOGGER.info('communicator %s: %s %s%s; "auto": %s', label, kind, shown, more, auto)


def one_device() -> None:
    """Says once that there is nobody to talk to, to somebody who may have expected otherwise.

    That is a program of one process that has found one CPU device and has asked for no number:
    there collectives return what they get, which a newcomer takes for wrong results.
    """
    if jax.process_count() > 1 or jax.device_count() > 1 or jax.default_backend() != "cpu":
        return
    asked = compat.num_cpu_devices() > 0 or _DEVICES_FLAG in os.environ.get("XLA_FLAGS", "")
    if asked or compat.distributed_store() is not None or not _first("one device"):
        return
    LOGGER.warning(
        "JAX has one CPU device, so a collective has one rank and returns its input; "
        "XLA_FLAGS=%s=8 in the environment makes eight devices of this CPU",
        _DEVICES_FLAG,
    )
