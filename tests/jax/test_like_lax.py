"""Programs that work with jax.lax, met in use: each must give the same with jaxcoll.

One case for each kind. What else there is of the kind: test_values_and_types.py,
test_explicit_axes.py, test_install_fallback.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import export, lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from lax_oracle import (
    API,
    IMPLEMENTATIONS,
    INSTALLED,
    LAX,
    TARGET,
    assert_same,
    make_mesh,
    small_integers,
)
from strategies import partial_permutations, several

import jaxcoll

CHECKED = pytest.mark.parametrize("check_vma", [True, False])


def mapped(body, out_specs=None, **options):
    mesh = make_mesh((8,))
    out_specs = P("x") if out_specs is None else out_specs
    return jax.jit(jax.shard_map(body, mesh=mesh, in_specs=P("x"), out_specs=out_specs, **options))


@pytest.fixture
def x():
    return jnp.arange(8.0)


@CHECKED
def test_a_loss_and_a_count(x, check_vma):
    def program(c):
        return mapped(lambda v: c.psum((v.sum(), 4.0), "x"), P(), check_vma=check_vma)(x)

    total, count = program(jaxcoll)
    assert (float(total), float(count)) == (28.0, 32.0)
    assert [leaf.weak_type for leaf in (total, count)] == [leaf.weak_type for leaf in program(lax)]


@CHECKED
def test_a_count_beside_an_array_is_a_shape(x, check_vma):
    def body(v):
        total, count = jaxcoll.psum((v, 1), "x")
        return jnp.ones(count) * total

    np.testing.assert_array_equal(mapped(body, check_vma=check_vma)(x), np.full(64, 28.0))


def test_a_float_beside_bfloat16_keeps_it_bfloat16(x):
    for c in (lax, jaxcoll):
        result = mapped(lambda v, c=c: v * c.psum((v, 1.0), "x")[1])(x.astype(jnp.bfloat16))
        assert result.dtype == jnp.bfloat16


def test_a_mean_over_no_axes_is_the_tree():
    tree = {"a": jnp.arange(3.0), "b": 2}
    assert_same(jaxcoll.pmean(tree, ()), lax.pmean(tree, ()), "pmean")


@pytest.mark.parametrize("value", [2.0, 2, 1 + 1j])
def test_literals_of_custom_derivatives_are_summed(x, value):
    def program(c):
        function = jax.custom_jvp(lambda a: c.psum(a, "i"))
        function.defjvp(lambda primals, tangents: (function(primals[0]), c.psum(tangents[0], "i")))
        return jax.vmap(lambda v: v * function(value), axis_name="i")(x)

    assert_same(program(jaxcoll), program(lax), "custom_jvp")


@pytest.mark.parametrize("name", ["all_gather", "all_to_all"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda i: i.name)
def test_a_tiled_collective_beside_an_explicit_axis(implementation, name):
    mesh = jax.make_mesh((2, 4), ("i", "j"), axis_types=(AxisType.Explicit,) * 2)
    x = jax.device_put(np.arange(64.0).reshape(8, 8), NamedSharding(mesh, P("i", "j")))

    def program(c):
        arguments = {"axis": 1} if name == "all_gather" else {"split_axis": 1, "concat_axis": 0}
        return jax.jit(
            jax.shard_map(
                lambda v: getattr(c, name)(v, "i", **arguments, tiled=True),
                mesh=mesh,
                in_specs=P("i"),
                out_specs=P("i"),
                axis_names={"i"},
            )
        )

    with jax.set_mesh(mesh):
        expected = program(lax)(x)
        with implementation.context():
            result = program(implementation.namespace)(x)
    np.testing.assert_array_equal(result, expected)
    assert result.sharding == expected.sharding


def test_a_linear_function_of_one_leaf_is_transposed(x):
    outer = jnp.arange(1.0, 9)

    def transposed(c):
        def function(v):
            def body(v, w):
                total, scale = c.psum((v, 4 * w), "x")
                return total / scale

            return jax.shard_map(
                body, mesh=make_mesh((8,)), in_specs=(P("x"), P("x")), out_specs=P()
            )(v, outer)

        return jax.linear_transpose(function, x)(jnp.ones(1))

    assert_same(transposed(jaxcoll), transposed(lax), "linear_transpose")


# --- exports of symbolic shapes -----------------------------------------------------------------

SYMBOLIC = {
    "psum": lambda c, v: c.psum(v, "x"),
    "pmax": lambda c, v: c.pmax(v, "x"),
    "psum of a tree": lambda c, v: c.psum((v, 2.0), "x")[0],
    "all_gather": lambda c, v: c.all_gather(v, "x", axis=1, tiled=True),
    "psum_scatter": lambda c, v: c.psum_scatter(v, "x", scatter_dimension=1, tiled=True),
    "all_to_all": lambda c, v: c.all_to_all(v, "x", 1, 0, tiled=True),
    "ppermute": lambda c, v: c.ppermute(v, "x", [(0, 1)]),
}


def exported(implementation, body):
    rows, columns = export.symbolic_shape("8, 8*n")
    function = mapped(lambda v: body(implementation.namespace, v), check_vma=False)
    with implementation.context():
        return export.export(function, disabled_checks=jaxcoll.export_checks())(
            jax.ShapeDtypeStruct((rows, columns), np.float32)
        )


@pytest.mark.parametrize("name", [*SYMBOLIC, "broadcast"])
def test_an_export_that_could_not_be_called_is_refused_while_exporting(name):
    """JAX finds no shape for a custom call within a shard_map when symbols become numbers."""
    body = SYMBOLIC.get(name, lambda c, v: jaxcoll.broadcast(v, "x", 3))
    with pytest.raises(jaxcoll.UnsupportedError, match=r"symbolic shape.*8\*n|symbolic shape.*n"):
        exported(API, body)


@pytest.mark.parametrize("name", SYMBOLIC)
def test_an_export_of_symbolic_shapes_works_under_install_where_it_does_without(name):
    """JAX 0.12 cannot call all that it has exported of lax's, either."""
    values = small_integers((8, 16))
    x = jax.device_put(values, NamedSharding(make_mesh((8,)), P("x")))
    program = exported(INSTALLED, SYMBOLIC[name])
    assert TARGET not in program.mlir_module()
    reasons = [r for entry in jaxcoll.install_report() for r in entry.fell_back]
    assert any("symbolic shape" in reason for reason in reasons)
    try:
        expected = jax.jit(exported(LAX, SYMBOLIC[name]).call)(x)
    except Exception as error:
        with pytest.raises(type(error)):
            jax.jit(program.call)(x)
    else:
        np.testing.assert_array_equal(jax.jit(program.call)(x), expected)


# --- permutations -------------------------------------------------------------------------------


@several
@given(
    pairs=partial_permutations(8),
    spelling=st.sampled_from([list, tuple, np.array, dict, iter, "generator", "columns"]),
    kind=st.sampled_from([int, np.int8, np.uint32, np.int64]),
)
def test_permutations_of_any_spelling_are_taken(pairs, spelling, kind):
    pairs = [(kind(a), kind(b)) for a, b in pairs]
    tree = {"a": small_integers((8, 3)), "b": small_integers((8,), np.int32)}
    spelled = {
        dict: lambda: dict(pairs).items(),
        np.array: lambda: np.array(pairs, kind).reshape(-1, 2),
        "generator": lambda: ((a, b) for a, b in pairs),
        "columns": lambda: zip([a for a, _ in pairs], [b for _, b in pairs], strict=True),
    }.get(spelling) or (lambda: spelling(pairs))

    def program(c, perm):
        return mapped(lambda tree: c.ppermute(tree, "x", perm))(tree)

    expected = program(lax, [(int(a), int(b)) for a, b in pairs])
    assert_same(program(jaxcoll, spelled()), expected, "ppermute")


@pytest.mark.parametrize("perm", [5, None, [0, 1], {0: 1}, [(0, 1.0)], [(0, 1, 2)], [("0", "1")]])
def test_what_is_no_permutation_is_refused(x, perm):
    with pytest.raises((TypeError, ValueError)):
        jax.eval_shape(mapped(lambda v: jaxcoll.ppermute(v, "x", perm)), x)


ODD_DTYPES = (
    *("float8_e8m0fnu", "float4_e2m1fn", "int2", "uint2", "int4", "uint4"),
    *("float8_e3m4", "float8_e4m3b11fnuz", "float8_e5m2", "bool", "complex64", "bfloat16"),
)


@pytest.mark.parametrize("name", ODD_DTYPES)
def test_ranks_that_receive_nothing_have_laxs_zero(name):
    """NaN in float8_e8m0fnu, which has no zero."""
    x = jnp.ones((8, 3), name)
    perms = ([], [(0, 1)], [(i, (i + 1) % 8) for i in range(7)], [(i, i) for i in range(8)])

    def permuted(c, axis):
        return lambda v: [c.ppermute(v, axis, perm) for perm in perms]

    expected = mapped(permuted(lax, "x"))(x)
    for implementation in IMPLEMENTATIONS:
        with implementation.context():
            results = mapped(permuted(implementation.namespace, "x"))(x)
        assert_same(results, expected, implementation.name)
    vmapped = jax.vmap(permuted(jaxcoll, "i"), axis_name="i")(x)
    assert_same(vmapped, expected, "under vmap")
    alone = jax.jit(
        jax.shard_map(
            lambda v: jaxcoll.ppermute(v, "x", []),
            mesh=make_mesh((1,)),
            in_specs=P(),
            out_specs=P("x"),
        )
    )(x)
    if name == "float8_e8m0fnu":
        assert np.isnan(np.asarray(alone, np.float32)).all()
    else:
        assert not np.asarray(alone).astype(np.complex64).any()


def test_keys_are_permuted():
    keys = jax.random.split(jax.random.key(0), 8)
    perm = [(0, 1), (3, 2)]
    expected = mapped(lambda k: lax.ppermute(k, "x", perm))(keys)
    for implementation in IMPLEMENTATIONS:
        with implementation.context():
            result = mapped(lambda k, c=implementation.namespace: c.ppermute(k, "x", perm))(keys)
        np.testing.assert_array_equal(*map(jax.random.key_data, (result, expected)))
    vmapped = jax.vmap(lambda k: jaxcoll.ppermute(k, "i", perm), axis_name="i")(keys)
    np.testing.assert_array_equal(*map(jax.random.key_data, (vmapped, expected)))


@pytest.mark.parametrize("root", [2, 7, 9, -1])
def test_keys_are_broadcast_from_a_traced_root(root):
    keys = jax.random.split(jax.random.key(0), 8)
    send = jax.shard_map(
        lambda keys, root: jaxcoll.broadcast(keys, "x", root),
        mesh=make_mesh((8,)),
        in_specs=(P("x"), P()),
        out_specs=P("x"),
    )
    rows = np.asarray(jax.random.key_data(keys))
    expected = rows[root] if 0 <= root < 8 else np.zeros_like(rows[0])
    sent = jax.random.key_data(jax.jit(send)(keys, root))
    np.testing.assert_array_equal(sent, np.tile(expected, (8, 1)))
