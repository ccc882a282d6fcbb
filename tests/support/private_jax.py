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
    """A client of the coordinator that is not a process of the job.

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


def hlo_of_text(text: str) -> bytes:
    """An HloModuleProto, by XLA's parser. JAX has nothing public that reads HLO."""
    from jaxlib import _hlo

    module: bytes = _hlo.hlo_module_from_text(text).as_serialized_hlo_module_proto()
    return module


def text_of_hlo(module: bytes) -> str:
    """An HloModuleProto in words."""
    from jaxlib import _hlo

    return str(_hlo.HloModule.from_serialized_hlo_module_proto(module).to_string())


def hlo_opcodes() -> list[str]:
    """Names of XLA's opcodes, "kAllReduce"."""
    from jaxlib import _hlo

    return [name for name in dir(_hlo.HloOpcode) if name.startswith("k")]


def register_transformation(name: str, transform: Callable[[bytes], bytes | None]) -> None:
    """As jax.extend.xla's function, which starts the back ends in some versions."""
    from jaxlib import _xla

    _xla.register_xla_transform(name, 0, transform)


def remove_the_compilers_hook() -> None:
    """Makes this process's JAX one that has none."""
    from jaxlib import _xla

    del _xla.register_xla_transform


def has_back_ends() -> bool:
    """Whether JAX has initialised any; asking it in public would do so."""
    from jax._src import xla_bridge

    return bool(xla_bridge._backends)
