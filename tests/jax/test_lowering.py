"""Properties of the lowered programs: how many calls, no hidden communication, donation."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from lax_oracle import (
    IMPLEMENTATIONS,
    LAX,
    TARGET,
    assert_same,
    make_mesh,
    per_device,
    place,
    small_integers,
)

import jaxcoll


def lowered_text(function, *arguments):
    return jax.jit(function).lower(*arguments).as_text()


def test_a_gradient_tree_is_one_call_per_dtype():
    mesh = make_mesh((8,))
    tree = {f"w{i}": small_integers((8, 3, i + 1)) for i in range(20)}
    tree |= {f"h{i}": small_integers((8, i + 1), ml_dtypes.bfloat16) for i in range(10)}
    tree |= {f"n{i}": small_integers((8,), np.int32) for i in range(5)}
    text = lowered_text(per_device(mesh, lambda tree: jaxcoll.psum(tree, "x")), tree)
    assert text.count(f"@{TARGET}") == 3
    assert "concatenate" not in text


def test_leaves_that_vary_over_different_axes_are_calls_of_their_own():
    mesh = make_mesh((2, 4))

    def body(x):
        along_x = jax.lax.axis_index("x").astype(x.dtype)
        return jaxcoll.psum([x, 2 * x, along_x, 3 * along_x], "x")

    text = lowered_text(per_device(mesh, body), small_integers((8, 3)))
    assert text.count(f"@{TARGET}") == 2


def test_the_program_is_the_same_whenever_it_is_lowered():
    """No counter, address or name of this process may reach the program: caches depend on it."""
    mesh = make_mesh((8,))
    x = small_integers((8, 4))

    def text():
        function = per_device(mesh, lambda x: jaxcoll.psum(jaxcoll.ppermute(x, "x", [(0, 1)]), "x"))
        return lowered_text(function, x)

    first = text()
    jax.clear_caches()
    assert text() == first


def test_only_calls_beside_automatic_axes_pay_for_a_partitioner():
    x = small_integers((32, 6))
    manual = lowered_text(per_device(make_mesh((8,)), lambda x: jaxcoll.psum(x, "x")), x[:8])
    assert f"@{TARGET}(" in manual
    assert "sharding_rule" not in manual
    mesh = partially_manual_mesh()
    x = jax.device_put(x, NamedSharding(mesh, P("dp", "tp")))
    beside = lowered_text(partially_manual(mesh, jaxcoll), x)
    assert f"@{TARGET}_partitioned(" in beside
    assert f"@{TARGET}(" not in beside


def partially_manual_mesh(order=range(8)):
    devices = [jax.devices("cpu")[i] for i in order]
    return Mesh(np.array(devices, dtype=object).reshape(4, 2), ("dp", "tp"))


def partially_manual(mesh, c, check_vma=True):
    """All collectives over dp, which is manual, of values that XLA shards over tp."""

    def body(x):
        summed = c.psum(x, "dp")
        scattered = c.psum_scatter(x, "dp", scatter_dimension=0, tiled=True)
        return {
            "psum": summed,
            "pmax": c.pmax(x, "dp"),
            "psum_scatter": scattered,
            "all_gather": c.all_gather(scattered, "dp", axis=0, tiled=True),
            "all_to_all": c.all_to_all(x, "dp", 0, 0, tiled=True),
            "ppermute": c.ppermute(x, "dp", [(i, (i + 1) % 4) for i in range(4)]),
        }

    specs = {
        name: P(None) if name in ("psum", "pmax") else P("dp")
        for name in ("psum", "pmax", "psum_scatter", "all_gather", "all_to_all", "ppermute")
    }
    if not check_vma:
        specs = P("dp")
    return jax.shard_map(
        body,
        mesh=mesh,
        in_specs=P("dp"),
        out_specs=specs,
        axis_names={"dp"},
        check_vma=check_vma,
    )


@pytest.mark.parametrize("order", [range(8), (3, 6, 1, 0, 7, 4, 2, 5)], ids=["", "permuted"])
@pytest.mark.parametrize("check_vma", [True, False])
def test_partially_manual_meshes_match_lax_without_a_hidden_gather(check_vma, order):
    mesh = partially_manual_mesh(order)
    x = small_integers((32, 6))
    x = jax.device_put(x, NamedSharding(mesh, P("dp", "tp")))

    def compiled(implementation):
        with implementation.context():
            function = partially_manual(mesh, implementation.namespace, check_vma)
            return jax.jit(function).lower(x).compile()

    expected = jax.tree.map(np.asarray, compiled(LAX)(x))
    for implementation in IMPLEMENTATIONS:
        executable = compiled(implementation)
        result = executable(x)
        assert_same(jax.tree.map(np.asarray, result), expected, implementation.name)
        text = executable.as_text()
        assert TARGET in text
        assert "all-gather" not in text, f"{implementation.name}: a hidden all-gather"
        # Each device keeps its shard of what XLA partitions.
        assert result["psum"].addressable_shards[0].data.shape[1] == 3


def test_gradients_through_partially_manual_meshes_match_lax():
    mesh = partially_manual_mesh()
    x = jax.device_put(small_integers((8, 6)), NamedSharding(mesh, P("dp", "tp")))
    w = jax.device_put(small_integers((6, 4), seed=1), NamedSharding(mesh, P("tp", None)))

    def loss(c, w, x):
        def body(w, x):
            return c.pmean(jnp.sum((x @ w) ** 2), "dp")

        mapped = jax.shard_map(
            body, mesh=mesh, in_specs=(P(), P("dp")), out_specs=P(), axis_names={"dp"}
        )
        return mapped(w, x)

    expected = jax.jit(jax.value_and_grad(lambda w: loss(jax.lax, w, x)))(w)
    for implementation in IMPLEMENTATIONS:
        c = implementation.namespace
        with implementation.context():
            actual = jax.jit(jax.value_and_grad(lambda w, c=c: loss(c, w, x)))(w)
        assert_same(actual, expected, implementation.name)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda i: i.name)
def test_donated_inputs_do_not_change_results(implementation):
    """A donated buffer may be reused for the result while peers still read it."""
    mesh = make_mesh((8,))
    values = small_integers((8, 50_000))

    def body(x):
        c = implementation.namespace
        return c.psum(x, "x"), c.ppermute(x, "x", [(i, (i + 1) % 8) for i in range(8)])

    with implementation.context():
        x = place(mesh, values)
        function = jax.jit(per_device(mesh, body), donate_argnums=0)
        compiled = function.lower(x).compile()
    for _ in range(10):
        summed, moved = compiled(place(mesh, values))
        np.testing.assert_array_equal(np.asarray(summed)[5], values.sum(0))
        np.testing.assert_array_equal(np.asarray(moved), np.roll(values, 1, axis=0))


def test_results_that_nobody_uses_cost_no_call():
    mesh = make_mesh((8,))

    def body(x):
        jaxcoll.psum(x, "x")
        _unused, used = jaxcoll.psum([x, x * 2], "x")
        return used

    text = lowered_text(per_device(mesh, body), small_integers((8, 3)))
    assert text.count(f"@{TARGET}") == 1
    (call,) = [line for line in text.splitlines() if f"@{TARGET}" in line]
    assert call.count("tensor<3xf32>") == 2  # one operand, one result
