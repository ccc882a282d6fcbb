"""HLO modules for tests: made from text, and run in the place of a program of JAX's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcoll._hlo import proto


def of_text(text: str) -> Any:
    """A module as jaxcoll's own protos have it, by XLA's parser."""
    return proto.Module.FromString(serialized(text))


def serialized(text: str) -> bytes:
    from jaxlib import _hlo

    module: bytes = _hlo.hlo_module_from_text(text).as_serialized_hlo_module_proto()
    return module


def to_text(module: Any) -> str:
    """A module in words, by XLA, which refuses what is no module."""
    from jaxlib import _hlo

    return str(
        _hlo.HloModule.from_serialized_hlo_module_proto(module.SerializeToString()).to_string()
    )


class Grafts:
    """Runs hand-written HLO on all devices, as if XLA's partitioner had made it.

    Register it before jaxcoll's hook: XLA calls transformations in the order of registration.
    """

    def __init__(self) -> None:
        from jaxlib import _xla

        self._text: str | None = None
        self.problems: list[str] = []
        _xla.register_xla_transform("graft", 0, self._transform)

    def _transform(self, module: bytes) -> bytes | None:
        if self._text is None or b"grafted" not in module:
            return None
        try:
            host = proto.Module.FromString(module)
            guest = of_text(self._text)
            del host.computations[:]
            host.computations.extend(guest.computations)
            host.entry_computation_id = guest.entry_computation_id
            return host.SerializeToString()
        except Exception as error:  # XLA would not pass it on
            self.problems.append(repr(error))
            raise

    def run(
        self,
        text: str,
        inputs: Sequence[np.ndarray],
        outputs: Sequence[tuple[Any, tuple[int, ...]]],
    ) -> tuple[list[np.ndarray], Any]:
        """Runs a module: inputs and results have a leading dimension, the device.

        outputs: (dtype, shape) of each result on a device.
        """
        import jax
        import jax.numpy as jnp
        from jax.sharding import Mesh
        from jax.sharding import PartitionSpec as P

        mesh = Mesh(np.array(jax.devices()), ("d",))

        def grafted(*blocks: Any) -> Any:
            # Results depend on all inputs, else XLA drops these.
            seed = sum(jnp.sum(block.astype(jnp.float32).real) for block in blocks)
            return tuple(jnp.broadcast_to(seed, shape).astype(dtype) for dtype, shape in outputs)

        spec = P("d")
        function = jax.jit(
            jax.shard_map(
                grafted, mesh=mesh, in_specs=(spec,) * len(inputs), out_specs=(spec,) * len(outputs)
            )
        )
        self._text = text
        try:
            flat = [x.reshape(-1, *x.shape[2:]) for x in inputs]
            placed = [jax.device_put(x, jax.NamedSharding(mesh, spec)) for x in flat]
            compiled = function.lower(*placed).compile()
        finally:
            self._text = None
        assert not self.problems, self.problems
        results = compiled(*placed)
        return [
            np.asarray(r).reshape(mesh.size, *shape)
            for r, (_, shape) in zip(results, outputs, strict=True)
        ], compiled
