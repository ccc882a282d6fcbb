"""HLO modules for tests: made from text, and run in the place of a program of JAX's."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from support import private_jax, warm_python, xla_flags

from jaxcoll._hlo import module as _module
from jaxcoll._hlo import proto


def of_text(text: str) -> Any:
    """A module as jaxcoll's own protos have it, by XLA's parser."""
    return proto.Module.FromString(serialized(text))


def serialized(text: str) -> bytes:
    return private_jax.hlo_of_text(text)


@contextlib.contextmanager
def rewriting(module: Any) -> Iterator[_module.Program]:
    """A module for the passes, which has their changes at the end."""
    program = _module.Program(module)
    yield program
    program.store()


def to_text(module: Any) -> str:
    """A module in words, by XLA."""
    return private_jax.text_of_hlo(module.SerializeToString())


@dataclasses.dataclass
class Case:
    """A module to run on eight devices. Arrays are of a device: (dtype, shape)."""

    name: str
    module: str | bytes  # text, or an HloModuleProto
    inputs: Sequence[tuple[str, tuple[int, ...]]]
    outputs: Sequence[tuple[str, tuple[int, ...]]]
    alone: bool = False  # run it without jaxcoll, too
    merge_bytes: Sequence[str | None] = (None,)  # JAXCOLL_MERGE_BYTES of one run each
    exact: bool = True  # inputs are small integers; else anything, and sums depend on their order


@dataclasses.dataclass
class Run:
    results: list[np.ndarray] | None = None  # each with a leading dimension, the device
    error: str = ""
    served: list[Any] = dataclasses.field(default_factory=list)  # report.Call
    left: list[Any] = dataclasses.field(default_factory=list)  # serve.Left
    text: str = ""  # the compiled module


@dataclasses.dataclass
class Outcome:
    inputs: list[np.ndarray]
    alone: Run | None  # without jaxcoll
    runs: list[Run]  # one for each of merge_bytes


def outcomes(cases: Sequence[Case], devices: int = 8) -> list[Outcome]:
    """Runs modules in a process of their own: transformations cannot be unregistered."""
    with tempfile.TemporaryDirectory() as folder:
        asked, told = Path(folder) / "asked", Path(folder) / "told"
        asked.write_bytes(pickle.dumps(list(cases)))
        paths = [str(warm_python.ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
        completed = warm_python.run(
            ["-c", "from support import hlo; hlo._run_all()", str(asked), str(told)],
            {
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                "XLA_FLAGS": xla_flags.with_devices(devices),
            },
            timeout_s=240,
            warnings_are_errors=True,
        )
        assert completed.returncode == 0, f"{completed.stdout}\n{completed.stderr}"
        found: list[Outcome] = pickle.loads(told.read_bytes())
        return found


# --- within that process ------------------------------------------------------------------------


def _run_all() -> None:
    cases = pickle.loads(Path(sys.argv[1]).read_bytes())
    grafts = Grafts()
    found = [_outcome(grafts, case) for case in cases]
    Path(sys.argv[2]).write_bytes(pickle.dumps(found))


def _outcome(grafts: Grafts, case: Case) -> Outcome:
    import jaxcoll

    draw = np.random.default_rng(0)
    inputs = [_values(draw, dtype, (grafts.devices, *shape), case) for dtype, shape in case.inputs]
    alone = _run(grafts, case, inputs, contextlib.nullcontext()) if case.alone else None
    runs = []
    for merge_bytes in case.merge_bytes:
        os.environ.pop("JAXCOLL_MERGE_BYTES", None)
        if merge_bytes is not None:
            os.environ["JAXCOLL_MERGE_BYTES"] = merge_bytes
        runs.append(_run(grafts, case, inputs, jaxcoll.installed()))
    return Outcome(inputs, alone, runs)


def _values(
    draw: np.random.Generator, dtype: str, shape: tuple[int, ...], case: Case
) -> np.ndarray:
    import ml_dtypes  # registers the names of small floats

    assert ml_dtypes
    if case.exact:
        small = dtype == "bool" or dtype.startswith("float8")
        values = draw.integers(0, 2 if small else 4, shape).astype(np.float32)
    else:
        values = draw.standard_normal(shape).astype(np.float32)
    return values.astype(np.dtype(dtype))


def _run(
    grafts: Grafts, case: Case, inputs: list[np.ndarray], context: contextlib.AbstractContextManager
) -> Run:
    import jaxcoll

    run = Run()
    try:
        with context:
            run.results, compiled = grafts.run(case.module, inputs, case.outputs)
        run.text = compiled.as_text()
        report = jaxcoll.install_report(compiled)
        run.served, run.left = list(report.served), list(report.left)
    except Exception:
        run.error = traceback.format_exc()
    return run


class Grafts:
    """Runs modules as if XLA's partitioner had made them.

    Make it before jaxcoll's hook is registered: XLA calls transformations in that order.
    """

    def __init__(self) -> None:
        import jax

        self._module: str | bytes | None = None
        self._problem = ""
        self._count = 0
        self.devices = jax.device_count()
        private_jax.register_transformation("graft", self._transform)

    def _transform(self, module: bytes) -> bytes | None:
        if self._module is None or b"grafted" not in module:
            return None
        try:
            guest = self._module
            guest = of_text(guest) if isinstance(guest, str) else proto.Module.FromString(guest)
            host = proto.Module.FromString(module)
            del host.computations[:]
            host.computations.extend(guest.computations)
            host.entry_computation_id = guest.entry_computation_id
            replaced: bytes = host.SerializeToString()
            return replaced
        except Exception:  # XLA ignores it
            self._problem = traceback.format_exc()
            return None

    def run(
        self,
        module: str | bytes,
        inputs: Sequence[np.ndarray],
        outputs: Sequence[tuple[str, tuple[int, ...]]],
    ) -> tuple[list[np.ndarray], Any]:
        """Results, each with a leading dimension, the device; and the compiled program."""
        import jax
        import jax.numpy as jnp
        from jax.sharding import Mesh
        from jax.sharding import PartitionSpec as P

        mesh = Mesh(np.array(jax.devices()), ("d",))
        self._count += 1
        number = self._count  # no two are found in a cache

        def grafted(*blocks: Any) -> Any:
            # Results depend on all inputs, else XLA drops these.
            seed = sum(jnp.sum(block.real.astype(jnp.float32)) for block in blocks) + number
            return tuple(jnp.broadcast_to(seed, shape).astype(dtype) for dtype, shape in outputs)

        spec = P("d")
        function = jax.jit(
            jax.shard_map(
                grafted, mesh=mesh, in_specs=(spec,) * len(inputs), out_specs=(spec,) * len(outputs)
            )
        )
        self._module, self._problem = module, ""
        try:
            flat = [x.reshape(-1, *x.shape[2:]) for x in inputs]
            placed = [jax.device_put(x, jax.NamedSharding(mesh, spec)) for x in flat]
            compiled = function.lower(*placed).compile()
        finally:
            self._module = None
        assert not self._problem, self._problem
        results = [
            np.asarray(result).reshape(self.devices, *shape)
            for result, (_, shape) in zip(compiled(*placed), outputs, strict=True)
        ]
        return results, compiled
