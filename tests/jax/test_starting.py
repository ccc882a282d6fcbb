"""Collectives that are started in one place and used in another: the values of the plain ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from lax_oracle import make_mesh

import jaxcoll

X = np.arange(64 * 8, dtype=np.float32).reshape(64, 8)
SHIFT = [(i, (i + 1) % 8) for i in range(8)]
STARTS = {
    "psum": ((), {}),
    "all_reduce": ((), {"op": "max"}),
    "all_gather": ((), {"tiled": True}),
    "psum_scatter": ((), {"tiled": True}),
    "reduce_scatter": ((), {"op": "min", "tiled": True}),
    "all_to_all": ((0, 1), {"tiled": True}),
    "ppermute": ((SHIFT,), {}),
    "broadcast": ((3,), {}),
}


def mapped(function):
    mesh = make_mesh((8,))
    (axis,) = mesh.axis_names
    return jax.shard_map(
        lambda x: function(x, axis), mesh=mesh, in_specs=P(axis), out_specs=P(axis), check_vma=False
    )


def both(name):
    args, named = STARTS[name]

    def started(x, axis):
        under_way = getattr(jaxcoll, f"{name}_start")(x, axis, *args, **named)
        beside = jnp.sin(x)
        return under_way.done() * 2, beside

    def plain(x, axis):
        return getattr(jaxcoll, name)(x, axis, *args, **named) * 2, jnp.sin(x)

    return mapped(started), mapped(plain)


@pytest.mark.parametrize("name", STARTS)
def test_a_start_has_the_values_of_its_collective(name):
    started, plain = both(name)
    for ours, expected in zip(jax.jit(started)(X), jax.jit(plain)(X), strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("name", ["psum", "all_gather", "psum_scatter", "all_to_all", "ppermute"])
def test_derivatives(name):
    started, plain = both(name)

    def loss(function):
        return jax.jit(jax.grad(lambda x: sum(jnp.sum(y**2) for y in function(x))))

    np.testing.assert_allclose(loss(started)(X), loss(plain)(X), rtol=1e-6)


def test_within_scan_and_vmap():
    started, plain = both("psum")

    def looped(function):
        body = lambda c, _: (function(c)[0] / 128, None)  # noqa: E731
        return jax.jit(lambda x: jax.lax.scan(body, x, None, length=3)[0])

    np.testing.assert_array_equal(looped(started)(X), looped(plain)(X))
    many = np.stack([X, 2 * X])
    for ours, expected in zip(jax.vmap(started)(many), jax.vmap(plain)(many), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_a_start_is_a_pytree_that_leaves_jitted_functions():
    mesh = make_mesh((8,))
    (axis,) = mesh.axis_names
    start = jax.jit(
        jax.shard_map(
            lambda x: jaxcoll.psum_start({"x": x, "count": 1}, axis),
            mesh=mesh,
            in_specs=P(axis),
            out_specs=P(),
        )
    )
    result = start(X).done()
    np.testing.assert_array_equal(result["x"], X.reshape(8, 8, 8).sum(0))
    assert result["count"] == 8


def test_a_start_refuses_what_its_collective_refuses():
    with pytest.raises(jaxcoll.UnknownAlgorithmError, match="no-such"):
        jax.jit(
            mapped(lambda x, axis: jaxcoll.all_reduce_start(x, axis, algorithm="no-such").done())
        )(X)
