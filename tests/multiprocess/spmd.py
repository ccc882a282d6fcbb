"""Code that the scripts of these tests share; imported inside their processes, never by pytest.

Every process knows every rank's data, so each compares the rows on its own devices with NumPy's.
`c` holds the collectives under test: jaxcoll's, or with TEST_COLLECTIVES=lax those of JAX over
gloo, which prove the tests themselves.
"""

import hashlib
import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from support import private_jax

LAX = os.environ.get("TEST_COLLECTIVES") == "lax"
c: Any = importlib.import_module("jax.lax" if LAX else "jaxcoll")

bfloat16 = np.dtype(ml_dtypes.bfloat16)


def make_mesh(shape: Sequence[int], order: Sequence[int] | None = None) -> Mesh:
    """Axes x, y, z over the job's devices in the order of their ids, or those that `order` names"""
    devices = sorted(jax.devices(), key=lambda device: device.id)
    count = int(np.prod(shape))
    chosen = [devices[i] for i in (range(count) if order is None else order)]
    assert len(chosen) == count
    return Mesh(np.array(chosen, dtype=object).reshape(shape), tuple("xyz"[: len(shape)]))


def place(mesh: Mesh, tree: Any) -> Any:
    """Global arrays with one leading row of each NumPy array on each device of `mesh`."""
    sharding = jax.NamedSharding(mesh, P(mesh.axis_names))
    return jax.tree.map(
        lambda rows: jax.make_array_from_callback(rows.shape, sharding, lambda i: rows[i]), tree
    )


def per_device(mesh: Mesh, body: Callable, check_vma: bool = True) -> Callable:
    """Maps `body` over `mesh`: its arguments and results gain a leading dimension, the device."""
    spec = P(mesh.axis_names)

    def shard(*blocks: Any) -> Any:
        results = body(*jax.tree.map(lambda block: block[0], blocks))
        return jax.tree.map(lambda result: jax.numpy.asarray(result)[None], results)

    mapped = jax.shard_map(shard, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=check_vma)
    return jax.jit(mapped)


def rows(result: jax.Array) -> dict[int, np.ndarray]:
    """Row -> its values, of the rows on this process's devices."""
    return {
        shard.index[0].start or 0: np.asarray(shard.data)[0] for shard in result.addressable_shards
    }


def compare(result: Any, expected: Any, what: str) -> None:
    """Our rows of every array are bit by bit those that NumPy has computed."""
    leaves, wanted = jax.tree.leaves(result), jax.tree.leaves(expected)
    assert len(leaves) == len(wanted), what
    for i, (leaf, full) in enumerate(zip(leaves, wanted, strict=True)):
        assert leaf.shape == full.shape, f"{what}: {leaf.shape}, not {full.shape}"
        for row, got in rows(leaf).items():
            if got.tobytes() != np.ascontiguousarray(full[row].astype(got.dtype)).tobytes():
                wrong = int((got != full[row]).sum())
                raise AssertionError(
                    f"{what}, result {i}, {got.dtype}{list(got.shape)}, row {row}: {wrong} of "
                    f"{got.size} wrong\n{got.reshape(-1)[:9]}\n{full[row].reshape(-1)[:9]}"
                )


def small_integers(
    shape: Sequence[int], dtype: Any = np.float32, seed: int = 0, bound: int = 8
) -> np.ndarray:
    """Values whose sums over a few ranks are exact in every dtype, down to int8 and bfloat16."""
    return np.random.default_rng(seed).integers(0, bound, shape).astype(dtype)


def digest(result: Any) -> list[str]:
    """One hash for each of our rows, of all arrays together: equal where the bits are."""
    hashes: dict[int, Any] = {}
    for leaf in jax.tree.leaves(result):
        for row, got in rows(leaf).items():
            hashes.setdefault(row, hashlib.sha256()).update(got.tobytes())
    return [found.hexdigest()[:16] for found in hashes.values()]


def finished(name: str) -> None:
    """Waits for all: a process that leaves early would take JAX's coordinator with it."""
    private_jax.wait_for_all(name, timeout_s=60)
    print("finished", name, flush=True)
