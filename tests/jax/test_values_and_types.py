"""Leaf by leaf what lax gives: values, dtypes, weak types, varying axes, and what stays constant.

Constants, NumPy arrays, arrays from outside and traced values, alone and together in one tree;
under jit and without, under shard_map with and without VMA, under vmap, grad and scan.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax
from jax.sharding import PartitionSpec as P
from lax_oracle import API, IMPLEMENTATIONS, LAX, assert_same, make_mesh
from strategies import several

import jaxcoll

RANKS = 8


# --- what is compared ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Static:
    """A result that is there while its function is traced: usable as a shape, for instance."""

    type: str
    value: Any


def types_of(tree: Any) -> list[Any]:
    """What a function of a tracer may know of each leaf."""

    def type_of(leaf: Any) -> Any:
        if isinstance(leaf, (bool, int, float, complex)):
            return Static(type(leaf).__name__, leaf)
        if isinstance(leaf, np.ndarray | np.generic):
            return Static("NumPy", (leaf.dtype, leaf.shape))
        aval = jax.typeof(leaf)
        varying = frozenset(aval.mat.varying)
        return (aval.dtype, aval.weak_type, aval.shape, varying, isinstance(leaf, jax.core.Tracer))

    return [type_of(leaf) for leaf in jax.tree.leaves(tree)]


class Observed:
    """A namespace's collective, of which every result's types are written down."""

    def __init__(self, implementation, name):
        self._call = getattr(implementation.namespace, name)
        self.types = []

    def __call__(self, *arguments, **options):
        results = self._call(*arguments, **options)
        self.types.append(types_of(results))
        return results


# --- leaves -------------------------------------------------------------------------------------

# Constants as programs have them. What depends on JAX being initialised is made when it is used.
SCALARS: dict[str, Callable[[], Any]] = {
    "bool": lambda: True,
    "int": lambda: 3,
    "float": lambda: 4.0,
    "complex": lambda: 1 + 2j,
    "numpy float32": lambda: np.float32(2),
    "numpy float64": lambda: np.float64(2),
    "numpy int": lambda: np.int32(2),
    "numpy bool": lambda: np.bool_(True),
    "numpy bfloat16": lambda: ml_dtypes.bfloat16(2),
    "array": lambda: jnp.float32(3),
    "weak array": lambda: jnp.asarray(3.0),
}
ARRAYS: dict[str, Callable[[], Any]] = {
    "numpy array": lambda: np.arange(8, dtype=np.float32),
    "numpy array of int8": lambda: np.arange(8, dtype=np.int8),
    "numpy array of bool": lambda: np.arange(8) % 2 == 0,
    "array from outside": lambda: jnp.arange(8.0) + 1,
    "integers from outside": lambda: jnp.arange(8),
    "bfloat16 from outside": lambda: jnp.arange(8, dtype=jnp.bfloat16),
    "bool from outside": lambda: jnp.arange(8) % 2 == 0,
}
# Functions of the device's own values, (8,) float32.
TRACED: dict[str, Callable[[Any], Any]] = {
    "traced": lambda v: v,
    "traced scalar": lambda v: v.sum(),
    "traced bfloat16": lambda v: v.astype(jnp.bfloat16),
    "traced integers": lambda v: v.astype(np.int32),
    "traced bool": lambda v: v > 3,
    "traced and equal everywhere": lambda v: jnp.ones(8) * 2,
}


def leaf(kind, v):
    if kind in TRACED:
        return TRACED[kind](v)
    return {**SCALARS, **ARRAYS}[kind]()


REDUCTIONS = ("psum", "pmean", "pmax", "pmin")
# Collectives of leaves of eight elements, and of their axis.
COLLECTIVES: dict[str, tuple[str, Callable[..., Any]]] = {
    **{name: (name, lambda c, tree, axis: c(tree, axis)) for name in REDUCTIONS},
    "all_gather": ("all_gather", lambda c, tree, axis: c(tree, axis)),
    "all_gather, tiled": ("all_gather", lambda c, tree, axis: c(tree, axis, tiled=True)),
    "psum_scatter": ("psum_scatter", lambda c, tree, axis: c(tree, axis)),
    "psum_scatter, tiled": ("psum_scatter", lambda c, tree, axis: c(tree, axis, tiled=True)),
    "all_to_all": ("all_to_all", lambda c, tree, axis: c(tree, axis, 0, 0)),
    "all_to_all, tiled": ("all_to_all", lambda c, tree, axis: c(tree, axis, 0, 0, tiled=True)),
    "ppermute": (
        "ppermute",
        lambda c, tree, axis: c(tree, axis, [(i, (i + 3) % RANKS) for i in range(RANKS)]),
    ),
}


# --- contexts -----------------------------------------------------------------------------------


def mapped(body, check_vma):
    mesh = make_mesh((RANKS,))

    def shard(x):
        results = body(x[0])
        return jax.tree.map(lambda result: jnp.asarray(result)[None], results)

    return jax.shard_map(shard, mesh=mesh, in_specs=P("x"), out_specs=P("x"), check_vma=check_vma)


def scanned(body):
    """Two steps of a loop, in which `body` sees the carried values."""

    def steps(v):
        return lax.scan(lambda carry, _: (carry * 1, body(carry)), v, None, length=2)[1]

    return steps


CONTEXTS: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "jit": lambda body: jax.jit(mapped(body, True)),
    "jit, unchecked": lambda body: jax.jit(mapped(body, False)),
    "eager": lambda body: mapped(body, True),
    "eager, unchecked": lambda body: mapped(body, False),
    "vmap": lambda body: jax.vmap(body, axis_name="x"),
    "jit of vmap": lambda body: jax.jit(jax.vmap(body, axis_name="x")),
    "scan": lambda body: jax.jit(mapped(scanned(body), True)),
    "scan, unchecked": lambda body: jax.jit(mapped(scanned(body), False)),
}


def outcome(implementation, collective, make, context):
    """The results of a collective of the tree ``make(v)``, and their types while tracing."""
    name, call = COLLECTIVES[collective]
    observed = Observed(implementation, name)
    x = np.arange(RANKS * 8, dtype=np.float32).reshape(RANKS, 8)
    with implementation.context():
        results = CONTEXTS[context](lambda v: call(observed, make(v), "x"))(x)
    return jax.tree.map(np.asarray, results), observed.types


def check_as_lax(collective, make, context):
    """Compares types and values; False if lax fails, where jaxcoll may serve what lax cannot."""
    try:
        expected, types = outcome(LAX, collective, make, context)
    except Exception:
        return False
    for implementation in IMPLEMENTATIONS:
        actual, actual_types = outcome(implementation, collective, make, context)
        assert_same(actual, expected, implementation.name)
        assert actual_types == types, implementation.name
    return True


@pytest.mark.parametrize("context", ["jit", "jit, unchecked"])
@pytest.mark.parametrize("collective", COLLECTIVES)
def test_arrays_that_the_program_has_not_been_given_are_operands_as_in_lax(collective, context):
    """Each constant by itself, and in one tree with a traced value."""
    for kind in ("numpy array", "array from outside"):
        assert check_as_lax(collective, lambda v, kind=kind: leaf(kind, v), context)
    assert check_as_lax(
        collective,
        lambda v: {"constant": leaf("numpy array", v), "outer": [leaf("array from outside", v), v]},
        context,
    )


@pytest.mark.parametrize("context", ["jit", "jit, unchecked", "vmap"])
@pytest.mark.parametrize("collective", REDUCTIONS)
def test_types_of_reduced_leaves_are_laxs(collective, context):
    """All kinds of leaves, one by one and beside a traced value; traced, not run."""

    def types(implementation, make):
        name, call = COLLECTIVES[collective]
        observed = Observed(implementation, name)
        x = np.zeros((RANKS, 8), np.float32)
        jax.eval_shape(CONTEXTS[context](lambda v: call(observed, make(v), "x")), x)
        return observed.types

    compared = 0
    for kind in (*SCALARS, *ARRAYS, *TRACED):
        if kind == "complex" and collective in ("pmax", "pmin"):
            continue  # they have no order: refused
        for make in (
            lambda v, kind=kind: leaf(kind, v),
            lambda v, kind=kind: (v, leaf(kind, v)),
            lambda v, kind=kind: {"a": leaf(kind, v), "b": v.astype(jnp.bfloat16)},
        ):
            try:
                expected = types(LAX, make)
            except Exception:
                continue
            assert types(API, make) == expected, kind
            compared += 1
    assert compared > 40


@several
@given(
    collective=st.sampled_from(REDUCTIONS),
    kinds=st.lists(st.sampled_from([*SCALARS, *ARRAYS, *TRACED]), min_size=1, max_size=4),
    context=st.sampled_from(sorted(CONTEXTS)),
)
def test_trees_of_all_kinds_of_leaves_are_reduced_as_by_lax(collective, kinds, context):
    kinds = [k for k in kinds if k != "complex" or collective not in ("pmax", "pmin")]
    check_as_lax(collective, lambda v: [leaf(kind, v) for kind in kinds], context)


@several
@given(
    collective=st.sampled_from([name for name in COLLECTIVES if name not in REDUCTIONS]),
    kinds=st.lists(
        st.sampled_from([k for k in (*ARRAYS, *TRACED) if k != "traced scalar"]),
        min_size=1,
        max_size=3,
    ),
    context=st.sampled_from([name for name in sorted(CONTEXTS) if "vmap" not in name]),
)
def test_trees_of_all_kinds_of_leaves_are_moved_as_by_lax(collective, kinds, context):
    check_as_lax(collective, lambda v: [leaf(kind, v) for kind in kinds], context)


@pytest.mark.parametrize("check_vma", [True, False])
def test_gradients_beside_constants_are_laxs(check_vma):
    outer = jnp.arange(8.0)

    def loss(c):
        def body(v):
            total, count, weights = c.psum((v * outer, 2.0, np.arange(8, dtype=np.float32)), "x")
            gathered = c.all_gather({"v": v, "constant": outer}, "x")
            spread = c.psum_scatter(outer * v, "x") + c.pmax(outer, "x").sum()
            return (total / count * weights).sum() + (gathered["v"] * outer).sum() + spread

        return lambda x: mapped(body, check_vma)(x).sum()

    x = np.arange(64, dtype=np.float32).reshape(8, 8)
    expected = jax.jit(jax.grad(loss(lax)))(x)
    np.testing.assert_allclose(jax.jit(jax.grad(loss(jaxcoll)))(x), expected, rtol=1e-6)
    with jaxcoll.installed():
        np.testing.assert_allclose(jax.jit(jax.grad(loss(lax)))(x), expected, rtol=1e-6)


# --- one-sized axes -----------------------------------------------------------------------------


@pytest.fixture
def types_without_one_sized_axes():
    name = "jax_remove_size_one_mesh_axis_from_type"
    before = getattr(jax.config, name)
    jax.config.update(name, True)
    yield
    jax.config.update(name, before)


@pytest.mark.parametrize("check_vma", [True, False])
def test_axes_that_jax_has_dropped_are_reduced_over_as_by_lax(
    types_without_one_sized_axes, check_vma
):
    mesh = make_mesh((1, 4))
    x = np.arange(8.0, dtype=np.float32).reshape(4, 2)

    def program(c):
        def body(v):
            tree = {"array": v, "list": [v.astype(np.int32), 3]}
            return [c.psum(tree, "x"), c.pmean(tree, "x"), c.pmean(tree, ("x", "y"))]

        return jax.jit(
            jax.shard_map(
                lambda v: jax.tree.map(jnp.atleast_1d, body(v)),
                mesh=mesh,
                in_specs=P("y"),
                out_specs=[P("y"), P("y"), P()],
                check_vma=check_vma,
            )
        )(x)

    assert_same(program(jaxcoll), program(lax), "jaxcoll")


def test_collectives_over_axes_that_jax_has_dropped_are_the_identity(types_without_one_sized_axes):
    """Here lax demands that the operand varies over an axis that no type can name."""
    mesh = make_mesh((1, 4))
    x = np.arange(16.0, dtype=np.float32).reshape(4, 4)

    def body(v):
        return [
            jaxcoll.all_gather(v, "x", tiled=True),
            jaxcoll.all_to_all(v, "x", 0, 0, tiled=True),
            jaxcoll.psum_scatter(v, "x", tiled=True),
            jaxcoll.ppermute(v, "x", [(0, 0)]),
            jaxcoll.broadcast(v, "x"),
            jaxcoll.pmax(v, "x"),
        ]

    for result in jax.jit(jax.shard_map(body, mesh=mesh, in_specs=P("y"), out_specs=P("y")))(x):
        np.testing.assert_array_equal(result, x)


@pytest.mark.parametrize("op", ["sum", "mean", "max"])
def test_a_tree_over_no_axes_is_itself(op):
    tree = {"a": np.arange(3.0), "b": [2, 4.0]}
    result = jaxcoll.all_reduce(tree, (), op=op)
    assert_same(result, jax.tree.map(lambda leaf: leaf / 1, tree) if op == "mean" else tree, op)


# --- linear functions of one leaf ---------------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint], ids=["", "jit", "remat"])
@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_functions_linear_in_some_leaves_of_a_tree_are_transposed_as_with_lax(
    seed, check_vma, wrap
):
    """The others go through the same call and are what the result is divided by, for instance."""
    mesh = make_mesh((RANKS,))
    rng = np.random.default_rng(seed)
    known, order = rng.normal(size=(8, 2)).astype(np.float32), rng.permutation(3)

    def transposed(c):
        def body(x, known):
            leaves = [x, 4 * known, known.sum(keepdims=True)]
            shuffled = c.psum([leaves[i] for i in order], "x")
            total, scale, count = (shuffled[list(order).index(i)] for i in range(3))
            return total / scale + total * count

        def function(x):
            return jax.shard_map(
                wrap(body), mesh=mesh, in_specs=P("x"), out_specs=P(), check_vma=check_vma
            )(x, known)

        x = jax.ShapeDtypeStruct((8, 2), np.float32)
        function_t = jax.linear_transpose(function, x)
        if seed > 0:
            function_t = jax.jit(function_t)  # the first one runs step by step
        return function_t(jnp.ones((1, 2)))

    for a, b in zip(transposed(jaxcoll), transposed(lax), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_what_is_not_linear_says_so_when_it_is_transposed():
    x = jax.ShapeDtypeStruct((8, 2), np.float32)
    for call in (lax.pmax, jaxcoll.pmax):
        function = mapped(lambda v, call=call: call(v, "x"), False)
        with pytest.raises(NotImplementedError, match="Transpose rule"):
            jax.linear_transpose(function, x)(jnp.ones((8, 2)))


# --- roots that are traced ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int32, np.uint32])
def test_a_traced_root_that_is_not_in_the_group_gives_zeros(dtype):
    """As the sum by which lax defines pbroadcast."""
    mesh = make_mesh((RANKS,))
    roots = [3, 0, 7, 8, 100, np.iinfo(dtype).max]
    roots += [-1, -8, np.iinfo(dtype).min] if np.iinfo(dtype).min else []
    values = {
        name: jnp.asarray(np.arange(1, 17).reshape(8, 2) % 3 + 1, name)
        for name in ("float32", "int4", "bfloat16", "float8_e5m2", "float8_e8m0fnu", "complex64")
    }
    values["bool"] = np.ones((8, 2), np.bool_)

    @jax.jit
    def send(root, values):
        def body(root, values):
            return jaxcoll.broadcast(values, "x", root)

        return jax.shard_map(body, mesh=mesh, in_specs=(P(), P("x")), out_specs=P("x"))(
            root, values
        )

    def masked(root, value):
        rows = np.asarray(value)
        if 0 <= root < RANKS:
            return np.repeat(rows[root : root + 1], RANKS, 0)
        return np.repeat(np.zeros_like(rows[:1]), RANKS, 0)

    for root in roots:
        results = send(np.asarray(root, dtype), values)
        no_zero = results.pop("float8_e8m0fnu")
        if not 0 <= root < RANKS:
            assert np.isnan(np.asarray(no_zero, np.float32)).all()
        for name, result in results.items():
            expected = masked(root, values[name])
            assert_same(result, expected, f"{name}, root {root}")


def test_a_traced_root_must_be_an_integer_scalar():
    for root in (jnp.float32(1), jnp.arange(8), jnp.bool_(True)):
        with pytest.raises(TypeError, match="integer scalar"):
            jax.eval_shape(
                lambda root: jax.vmap(
                    lambda v: jaxcoll.broadcast(v, "x", root), axis_name="x", in_axes=0
                )(jnp.arange(8.0)),
                root,
            )
