"""Unmodified third-party code under install(): flax's batch norm over an axis, an optax training
loop, and both against what lax alone computes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from lax_oracle import TARGET, XLA_COLLECTIVES, make_mesh

import jaxcoll


def batch_norm_step():
    """(function, arguments): the normalised batch, updated statistics and gradient of a layer
    whose statistics span the devices."""
    mesh = make_mesh((8,))
    model = nn.BatchNorm(use_running_average=False, axis_name="batch", momentum=0.5)
    x = np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32)
    variables = model.init(jax.random.key(0), x[:8])

    def step(variables, x):
        def loss(params):
            y, updates = model.apply(
                {"params": params, "batch_stats": variables["batch_stats"]},
                x,
                mutable=["batch_stats"],
            )
            return jnp.sum(jnp.sin(y)), (y, updates)

        (_, (y, updates)), gradient = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        return y, jax.lax.pmean(updates, "batch"), jax.lax.psum(gradient, "batch")

    mesh = jax.sharding.Mesh(mesh.devices, ("batch",))
    function = jax.jit(
        jax.shard_map(
            step,
            mesh=mesh,
            in_specs=(P(), P("batch")),
            out_specs=(P("batch"), P(), P()),
            check_vma=False,
        )
    )
    return function, (variables, x)


def training():
    """(function, arguments): optax's adamw with gradients clipped by their global norm; the batch
    is split over dp, the hidden layer over tp."""
    mesh = make_mesh((4, 2))
    mesh = jax.sharding.Mesh(mesh.devices, ("dp", "tp"))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))
    rng = np.random.default_rng(1)
    params = {
        "up": rng.normal(size=(10, 16)).astype(np.float32) / 3,
        "down": rng.normal(size=(16, 1)).astype(np.float32) / 4,
    }
    x = rng.normal(size=(32, 10)).astype(np.float32)
    y = np.sin(x.sum(1, keepdims=True))
    specs = {"up": P(None, "tp"), "down": P("tp", None)}

    def loss(params, x, y):
        hidden = jnp.tanh(x @ params["up"])
        prediction = jax.lax.psum(hidden @ params["down"], "tp")
        return jax.lax.pmean(jnp.mean((prediction - y) ** 2), "dp")

    mapped = jax.shard_map(loss, mesh=mesh, in_specs=(specs, P("dp"), P("dp")), out_specs=P())

    def train(params, x, y):
        def step(carry, _):
            params, state = carry
            value, gradient = jax.value_and_grad(mapped)(params, x, y)
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), value

        (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), length=60)
        return params, losses

    return jax.jit(train), (params, x, y)


@pytest.mark.parametrize("work", [batch_norm_step, training])
def test_third_party_code_gives_what_it_gives_with_lax(work):
    function, arguments = work()
    expected = jax.tree.map(np.asarray, function(*arguments))
    jaxcoll.install()
    try:
        text = function.lower(*arguments).as_text()
        actual = jax.tree.map(np.asarray, function(*arguments))
    finally:
        jaxcoll.uninstall()
    assert TARGET in text
    assert not [name for name in XLA_COLLECTIVES if name in text]
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_training_loop_learns():
    """So that the comparison above is not one of two functions that do nothing."""
    function, arguments = training()
    with jaxcoll.installed():
        _, losses = function(*arguments)
    assert losses[-1] < 0.3 * losses[0]
