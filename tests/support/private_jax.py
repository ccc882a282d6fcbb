"""All that tests take from JAX's private modules, and why nothing public serves.

Scripts that tests start import it too, so it imports what it needs when it is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def wait_for_all(name: str, timeout_s: float) -> None:
    """Waits until all processes of the job have called it with this name.

    `multihost_utils.sync_global_devices` is a collective, which takes back ends and may be
    what is tested.
    """
    from jax._src import distributed

    distributed.global_state.client.wait_at_barrier(name, int(timeout_s * 1000))


def serve_coordinator(address: str, processes: int, heartbeat_timeout_s: int) -> Any:
    """JAX's coordinator; it serves for as long as the result lives.

    `jax.distributed.initialize` starts it in process 0 alone, with which it would end.
    """
    from jaxlib import _jax

    return _jax.get_distributed_runtime_service(
        address,
        processes,
        heartbeat_timeout=heartbeat_timeout_s,
        shutdown_timeout=1,
        recoverable=True,
    )


def connect_to_coordinator(address: str, node: int) -> Any:
    """A client of the coordinator that is no process of the job.

    `jax.distributed.initialize` would make it one, and has no access to the store.
    """
    from jaxlib import _jax

    client = _jax.get_distributed_runtime_client(
        address, node, init_timeout=120, heartbeat_timeout=600, shutdown_on_destruction=False
    )
    client.connect()
    return client


def asynchronous_psum() -> Callable[..., Any] | None:
    """psum in two halves, which lax does not export; None in versions of JAX without it."""
    from jax._src.lax import parallel

    return getattr(parallel, "psum_start", None)
