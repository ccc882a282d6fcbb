"""This process in its job: its announcement to the others, and its engine.

Once a process has been announced, the others can link to it and detect its death. It is announced
as early as possible: when JAX creates its back ends and calls `jax_plugins.jaxcoll`; at `import
jaxcoll` if `jax.distributed.initialize` was called before; otherwise at the first use. JAX creates
back ends in all processes together, so when a process can call a collective, all others that have
imported jaxcoll by then have been announced.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Callable, Iterator

import jax

from jaxcoll import _environment
from jaxcoll._errors import LinkError
from jaxcoll._jax import compat
from jaxcoll._job import host, own_snapshot
from jaxcoll._job.bootstrap import Bootstrap
from jaxcoll._job.inspection import Inspection
from jaxcoll._native import native

_PUBLISH_S = 2.0  # for the store to answer; it takes milliseconds

_log = logging.getLogger("jaxcoll.bootstrap")

_starting = threading.Lock()
_bootstrap: Bootstrap | None = None  # guarded by _starting
_inspection: Inspection | None = None  # guarded by _starting
_failure = ""  # why the engine cannot be started; guarded by _starting


def tell_log() -> None:
    """The log's lines name this process from now on, if it is in a job yet."""
    if (job := compat.distributed_store()) is not None:
        native.log_process(job[1], job[2])


def announce() -> None:
    """Lets the other processes know of this one, if there are any. Starts no back end.

    An error is reported to other processes now, and raised when a collective first needs them.
    """
    tell_log()
    job = compat.distributed_store()
    if job is None or job[2] == 1:
        return
    try:
        with _starting:
            bootstrap = _announced()
            _watched()
        bootstrap.wait_until_published(_PUBLISH_S)
    except LinkError as error:
        _log.info("%s", error)


def _announced() -> Bootstrap:
    """Raises: LinkError."""
    global _bootstrap
    if _bootstrap is None:
        _bootstrap = Bootstrap.from_environment(native, engine_started=False)
        _at_exit(_close)
        os.register_at_fork(after_in_child=_bootstrap.forget)
        _bootstrap.start()
        if _log.isEnabledFor(logging.INFO):
            for way in ways():
                _log.info("%s", way)
    return _bootstrap


def watch() -> None:
    """From now on `jaxcoll inspect` can ask this process what it is doing."""
    with _starting:
        _watched()


def _watched() -> Inspection:
    global _inspection
    if _inspection is None:
        job = compat.distributed_store()
        store, index, count = (None, 0, 1) if job is None or job[2] == 1 else job
        _inspection = Inspection(index, count, store)
        os.register_at_fork(after_in_child=_inspection.forget)
        _inspection.start()
        _at_exit(_end_inspection)
    return _inspection


def _end_inspection() -> None:
    assert _inspection is not None
    _inspection.close(_end_words() or "has ended")


def ways() -> Iterator[str]:
    """For people: by which transports the other processes can reach this one, and where."""
    values = _environment.values()
    allowed = values["JAXCOLL_TRANSPORT"] or host.TRANSPORTS
    left_out = [name for name in host.TRANSPORTS if name not in allowed]
    if "shm" in allowed:
        unknown = "" if values["JAXCOLL_HOST_ID"] else host.why_unknown()
        yield f"shm: {f'not here: {unknown}' if unknown else 'for processes of this host and user'}"
    if "rdma" in allowed:
        try:
            native.comm_rdma_fabrics()
            without = "".join(f"; without {port}" for port in native.comm_rdma_left_out())
            yield f"rdma: over {', '.join(native.comm_rdma_ports())}{without}"
        except ValueError as error:
            yield f"rdma: not here: {error}"
    if "tcp" in allowed or "rdma" in allowed:  # rdma is set up over tcp
        try:
            yield f"tcp: {host.describe_addresses(host.interfaces(), values['JAXCOLL_IFNAME'])}"
        except (LinkError, OSError) as error:
            yield f"tcp: not here: {error}"
    if left_out:
        yield f"left out by JAXCOLL_TRANSPORT: {', '.join(left_out)}"


def _at_exit(function: Callable[[], None]) -> None:
    owner = os.getpid()

    def call() -> None:
        if os.getpid() == owner:  # a process that was forked off has our links, but no threads
            function()

    atexit.register(call)


def start_engine() -> None:
    """Makes the engine know the other processes, once.

    Raises: LinkError; the other processes get the reason, too.
    """
    with _starting:
        if not native.comm_started():
            _start_engine_once()


def _start_engine_once() -> None:
    global _failure
    if _failure:
        raise LinkError(_failure)
    bootstrap = _announced()
    try:
        process_of_device = {device.id: device.process_index for device in jax.devices()}
        native.comm_start(jax.process_index(), process_of_device, bootstrap.want)
    except Exception as error:
        _failure = (
            f"process {jax.process_index()} (pid {os.getpid()} on {os.uname().nodename}) cannot "
            f"start the engine between processes: {error}"
        )
        bootstrap.refuse(_failure)
        raise LinkError(_failure) from error
    compat.on_compiled(native.comm_end_build)
    bootstrap.start_engine()
    # Last registered, first called: jax.distributed.initialize has registered a shutdown that waits
    # for the back end, which waits for our calls.
    _at_exit(native.shutdown)
    _at_exit(lambda: native.comm_stop(_end_words()))
    _at_exit(_close)
    inspection = _watched()
    inspection.watch_engine()
    _at_exit(_end_inspection)  # before the links end


def _close() -> None:
    assert _bootstrap is not None
    words = _end_words()
    _bootstrap.close(f"{words} and has ended" if words else "")


def _end_words() -> str:
    """Why this process ends, if not normally. Never raises: the links could not end without it."""
    try:
        if native.interrupts():
            return "was interrupted (Ctrl-C)"
        error = own_snapshot.exception()
        # After a failure the exception is the failure's, which the others know.
        return f"has raised {error}" if error and not own_snapshot.has_failed() else ""
    except BaseException as trouble:  # also Ctrl-C now
        _log.info("why this process ends is unknown: %s", type(trouble).__name__)
        return ""


def refuse(reason: str) -> None:
    """This process takes part in nothing any more, and the others learn why."""
    with _starting:
        bootstrap = _bootstrap
    if bootstrap is not None:
        bootstrap.refuse(reason)


def listening() -> list[str]:
    """The addresses at which this process can be reached now."""
    with _starting:
        return [] if _bootstrap is None else _bootstrap.listening()
