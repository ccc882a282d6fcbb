"""Derivatives of the reductions that lax cannot differentiate, against the same math on one device.

Also: which collectives a derivative is made of.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from lax_oracle import TARGET, XLA_COLLECTIVES, make_mesh

import jaxcoll

REDUCE = {"max": jnp.max, "min": jnp.min, "prod": jnp.prod, "sum": jnp.sum, "mean": jnp.mean}


def mapped(body, check_vma, out_specs):
    mesh = make_mesh((4, 2))
    return jax.jit(
        jax.shard_map(
            body, mesh=mesh, in_specs=P(("x", "y")), out_specs=out_specs, check_vma=check_vma
        )
    )


@pytest.fixture
def x():
    """(8, 3): one row per device, with a tie between ranks of "x", and zeros for products."""
    x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    x[2] = x[0]
    x[1], x[5] = 0, 0
    return x


def tangent_like(x):
    return np.random.default_rng(1).normal(size=x.shape).astype(x.dtype)


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("op", REDUCE)
def test_all_reduce_differentiates_as_the_reduction_it_is(op, check_vma, x):
    actual = mapped(lambda x: jaxcoll.all_reduce(x, "x", op=op), check_vma, P("y"))

    def expected(x):
        return REDUCE[op](x.reshape(4, 2, 3), axis=0)

    def loss(function):
        return lambda x: jnp.sum(jnp.sin(function(x)) * jnp.arange(1.0, 7).reshape(2, 3))

    t = tangent_like(x)
    for a, b in zip(jax.jvp(actual, (x,), (t,)), jax.jvp(expected, (x,), (t,)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        jax.grad(loss(actual))(x), jax.grad(loss(expected))(x), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        jax.jit(jax.hessian(loss(actual)))(x), jax.hessian(loss(expected))(x), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("op", REDUCE)
def test_reduce_scatter_differentiates_as_the_reduction_it_is(op, check_vma):
    x = np.random.default_rng(2).normal(size=(8, 4, 3)).astype(np.float32)
    x[2] = x[0]
    x[1, 0] = 0
    actual = mapped(
        lambda x: jaxcoll.reduce_scatter(x[0], "x", op=op)[None], check_vma, P(("x", "y"))
    )

    def expected(x):
        return REDUCE[op](x.reshape(4, 2, 4, 3), axis=0).swapaxes(0, 1).reshape(8, 3)

    t = tangent_like(x)
    for a, b in zip(jax.jvp(actual, (x,), (t,)), jax.jvp(expected, (x,), (t,)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    gradients = [jax.grad(lambda x, f=f: jnp.sum(jnp.sin(f(x))))(x) for f in (actual, expected)]
    np.testing.assert_allclose(*gradients, rtol=1e-4, atol=1e-5)


def test_gradients_of_gradients_are_made_of_our_collectives(x):
    """JAX's own cast to varying would turn into lax's psum."""

    def sum_of_squares(x):
        return jnp.sum(jnp.sin(mapped(lambda x: jaxcoll.psum(x * x, "x"), True, P("y"))(x)))

    text = jax.jit(jax.grad(lambda x: jnp.sum(jax.grad(sum_of_squares)(x) ** 2))).lower(x).as_text()
    assert TARGET in text
    assert not [name for name in XLA_COLLECTIVES if name in text]


def test_integer_and_bitwise_reductions_have_no_tangents(x):
    def body(x):
        bits = x.astype(np.int32)
        return x * jaxcoll.all_reduce(bits, "x", op="xor") + jaxcoll.pmax(bits, "x")

    f = mapped(body, False, P(("x", "y")))
    gradient = jax.grad(lambda x: jnp.sum(f(x)))(x)
    bits = np.bitwise_xor.reduce(x.astype(np.int32).reshape(4, 2, 3), axis=0)
    np.testing.assert_array_equal(gradient, np.tile(bits, (4, 1)))


def test_an_invariant_broadcast_has_a_local_gradient(x):
    def body(x):
        return jaxcoll.broadcast(x, "x", 2, to="invarying")

    f = mapped(body, True, P("y"))
    np.testing.assert_array_equal(f(x), x[4:6])
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(f(x) * 3)))
    expected = np.zeros_like(x)
    expected[4:6] = 3
    np.testing.assert_array_equal(gradient(x), expected)
    # One call: the broadcast's value is not needed, its gradient is local.
    assert gradient.lower(x).as_text().count(f"@{TARGET}") <= 1
