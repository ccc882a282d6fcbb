"""Runs one program through lax and through both faces of jaxcoll, and compares the results.

A *program* is a function of a namespace `c` that holds the collectives and of the arrays one device
sees. lax itself is the oracle: `c` is `jax.lax`. The two implementations under test are jaxcoll's
drop-ins (`c` is `jaxcoll`) and lax again, lowered under `jaxcoll.installed()`.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxcoll

TARGET = "jaxcoll_collective"

# The HLO ops that lax's own collectives become on CPU. None of it may be left where jaxcoll serves
# the call.
XLA_COLLECTIVES = (
    "stablehlo.all_reduce",
    "stablehlo.all_gather",
    "stablehlo.all_to_all",
    "stablehlo.reduce_scatter",
    "stablehlo.collective_permute",
    "stablehlo.collective_broadcast",
)


@dataclasses.dataclass(frozen=True)
class Implementation:
    name: str
    namespace: Any
    context: Callable[[], contextlib.AbstractContextManager]


LAX = Implementation("lax", jax.lax, contextlib.nullcontext)
API = Implementation("jaxcoll", jaxcoll, contextlib.nullcontext)
INSTALLED = Implementation("lax under installed()", jax.lax, jaxcoll.installed)
IMPLEMENTATIONS = (API, INSTALLED)


def make_mesh(shape: Sequence[int], order: Sequence[int] | None = None) -> Mesh:
    """A mesh of `shape` with axes x, y, z; `order` names its devices, so that it can be permuted
    or leave devices out."""
    count = int(np.prod(shape))
    devices = jax.devices("cpu")
    chosen = [devices[i] for i in (range(count) if order is None else order[:count])]
    return Mesh(np.array(chosen, dtype=object).reshape(shape), tuple("xyz"[: len(shape)]))


def per_device(mesh: Mesh, body: Callable, *, check_vma: bool = True) -> Callable:
    """Maps `body` over `mesh`: its arguments and results gain a leading dimension, the device."""
    spec = P(mesh.axis_names)

    def shard(*blocks):
        results = body(*jax.tree.map(lambda block: block[0], blocks))
        return jax.tree.map(lambda result: jax.numpy.asarray(result)[None], results)

    return jax.shard_map(shard, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=check_vma)


def place(mesh: Mesh, tree: Any) -> Any:
    """Puts one leading slice on each device of `mesh`."""
    return jax.device_put(tree, NamedSharding(mesh, P(mesh.axis_names)))


def run(
    implementation: Implementation,
    program: Callable,
    *arguments: Any,
    expect_served: bool | Literal["in part"] | None = None,
) -> Any:
    """Compiles `program(namespace, *arguments)` with `implementation` and returns NumPy results.

    `expect_served` says whether all, some or none of the collectives must become jaxcoll's custom
    calls (True, "in part", False); None leaves it open.
    """
    # 64-bit dtypes on: without them JAX narrows the inputs before a collective sees them.
    with jax.enable_x64(True), implementation.context():
        lowered = jax.jit(lambda *xs: program(implementation.namespace, *xs)).lower(*arguments)
    text = lowered.as_text()
    if expect_served:
        assert TARGET in text, f"{implementation.name}: no collective of ours in\n{text}"
    if expect_served is True:
        left = [name for name in XLA_COLLECTIVES if name in text]
        assert not left, f"{implementation.name}: left to XLA: {left} in\n{text}"
    if expect_served is False:
        assert TARGET not in text, f"{implementation.name}: unexpected call of ours in\n{text}"
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, lowered.compile()(*arguments))


def check(
    program: Callable,
    *arguments: Any,
    expect_served: bool | Literal["in part"] | None = True,
    expected: Any = None,
    tolerance: float = 0.0,
    implementations: Sequence[Implementation] = IMPLEMENTATIONS,
) -> Any:
    """Compares every implementation with lax, or with `expected` where lax cannot run the program.

    Exact unless `tolerance`, a relative and absolute bound, is given. Results without elements
    need no oracle but their shapes: lax cannot lower all of them.

    `expect_served` is as for `run`. "in part" is for programs to which JAX itself adds psums (it
    transposes implicit casts to varying): those only `installed()` can route, and must.
    """
    if expected is None:
        with jax.enable_x64(True):
            shapes = jax.eval_shape(lambda *xs: program(jax.lax, *xs), *arguments)
        if all(leaf.size == 0 for leaf in jax.tree.leaves(shapes)):
            expected = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        else:
            expected = run(LAX, program, *arguments, expect_served=False)
    if all(np.size(leaf) == 0 for leaf in jax.tree.leaves(expected)):
        expect_served = None  # nothing to communicate
    for implementation in implementations:
        served = True if expect_served and implementation is INSTALLED else expect_served
        actual = run(implementation, program, *arguments, expect_served=served)
        assert_same(actual, expected, implementation.name, tolerance)
    return expected


def assert_same(actual: Any, expected: Any, name: str, tolerance: float = 0.0) -> None:
    """Same tree, shapes, dtypes and values (NaN equals NaN)."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected), name
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True
    ):
        where = f"{name}: result{jax.tree_util.keystr(path)}"
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype, f"{where}: {a.dtype} is not {b.dtype}"
        assert a.shape == b.shape, f"{where}: {a.shape} is not {b.shape}"
        if a.dtype.kind not in "biufc":  # ml_dtypes: compare as a float that holds them exactly
            a, b = a.astype(np.float32), b.astype(np.float32)
        if tolerance:
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=where)
        else:
            np.testing.assert_array_equal(a, b, err_msg=where)


def small_integers(
    shape: Sequence[int], dtype: Any = np.float32, *, seed: int = 0, bound: int = 4
) -> np.ndarray:
    """Integers in [-bound, bound] ([0, bound] where unsigned): sums of eight are exact in every
    dtype of 16 bits and more."""
    dtype = np.dtype(dtype)
    rng = np.random.default_rng(seed)
    low = 0 if dtype.kind in "bu" else -bound
    values = rng.integers(low, bound + 1, shape)
    if dtype.kind == "c":
        return (values + 1j * rng.integers(-bound, bound + 1, shape)).astype(dtype)
    return values.astype(dtype)
