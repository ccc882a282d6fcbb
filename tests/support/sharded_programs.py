"""Training programs as their users write them: no collective and no word of jaxcoll in them.

Each takes a mesh with axes dp and tp and returns what its last steps computed, as NumPy arrays of
this process's shards. Used in one process and in jobs of several.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

WIDTH, BATCH, STEPS = 32, 16, 3
Program = Callable[[Mesh], list[np.ndarray]]


def shards(tree: Any) -> list[np.ndarray]:
    return [np.asarray(s.data) for x in jax.tree.leaves(tree) for s in x.addressable_shards]


def put(mesh: Mesh, value: Any, spec: P) -> jax.Array:
    value = np.asarray(value)
    return jax.make_array_from_callback(value.shape, NamedSharding(mesh, spec), lambda i: value[i])


def batches(mesh: Mesh, *shape: int) -> list[tuple[jax.Array, jax.Array]]:
    rng = np.random.default_rng(0)
    spec = P("dp", *(None for _ in shape[1:]))
    return [
        tuple(put(mesh, rng.normal(size=shape).astype(np.float32), spec) for _ in range(2))
        for _ in range(STEPS)
    ]


def nnx_mlp(mesh: Mesh) -> list[np.ndarray]:
    """flax.nnx: tensor-parallel layers, data-parallel batch, adamw."""

    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.up = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
            self.down = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return x + self.down(nnx.relu(self.up(x)))

    model = Model(nnx.Rngs(0))
    specs = {"up": (P(None, "tp"), P("tp")), "down": (P("tp", None), P())}
    for name, (kernel, bias) in specs.items():
        layer = getattr(model, name)
        layer.kernel[...] = put(mesh, layer.kernel[...], kernel)
        layer.bias[...] = put(mesh, layer.bias[...], bias)
    optimizer = nnx.Optimizer(model, optax.adamw(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(model: Model, optimizer: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        loss, gradients = nnx.value_and_grad(lambda m: jnp.mean((m(x) - y) ** 2))(model)
        optimizer.update(model, gradients)
        return loss

    losses = [step(model, optimizer, x, y) for x, y in batches(mesh, BATCH, WIDTH)]
    return shards((losses, nnx.state(model)))


class Block(nn.Module):
    """A layer of a transformer."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + nn.MultiHeadDotProductAttention(num_heads=4)(nn.LayerNorm()(x))
        return x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(2 * WIDTH)(nn.LayerNorm()(x))))


def fsdp_transformer(mesh: Mesh) -> list[np.ndarray]:
    """flax.linen: every weight sharded over dp where it can be, matrices over tp as well."""

    class Transformer(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            for _ in range(2):
                x = Block()(x)
            return nn.Dense(WIDTH)(x)

    # The gradient of the keys' bias is zero but for rounding; a larger eps keeps Adam from dividing
    # rounding errors by rounding errors.
    model, optimizer = Transformer(), optax.adamw(1e-2, eps=1e-3)
    params = jax.tree.map(np.asarray, model.init(jax.random.key(0), jnp.ones((1, 8, WIDTH))))

    def spec(value: np.ndarray) -> P:
        axes: list[Any] = [None] * value.ndim
        free = ["tp", "dp"] if value.ndim > 1 else ["dp"]
        for dimension in sorted(range(value.ndim), key=lambda d: -value.shape[d]):
            if free and value.shape[dimension] % mesh.shape[free[-1]] == 0:
                axes[dimension] = free.pop()
        return P(*axes)

    params = jax.tree.map(lambda value: put(mesh, value, spec(value)), params)
    state = jax.jit(optimizer.init)(params)

    @jax.jit
    def step(params: Any, state: Any, x: jax.Array, y: jax.Array) -> Any:
        loss, gradients = jax.value_and_grad(lambda p: jnp.mean((model.apply(p, x) - y) ** 2))(
            params
        )
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    for x, y in batches(mesh, BATCH, 8, WIDTH):
        params, state, loss = step(params, state, x, y)
    return shards((params, loss))


def equinox_mlp(mesh: Mesh) -> list[np.ndarray]:
    """equinox: replicated weights, data-parallel batch."""
    model = equinox.nn.MLP(WIDTH, WIDTH, 2 * WIDTH, 2, key=jax.random.key(0))
    arrays, rest = equinox.partition(model, equinox.is_array)
    arrays = jax.tree.map(lambda value: put(mesh, value, P()), arrays)
    model = equinox.combine(arrays, rest)

    @equinox.filter_jit
    def step(model: Any, x: jax.Array, y: jax.Array) -> Any:
        loss = lambda m: jnp.mean((jax.vmap(m)(x) - y) ** 2)  # noqa: E731
        value, gradients = equinox.filter_value_and_grad(loss)(model)
        return equinox.apply_updates(model, jax.tree.map(lambda g: -0.1 * g, gradients)), value

    for x, y in batches(mesh, BATCH, WIDTH):
        model, loss = step(model, x, y)
    return shards((equinox.filter(model, equinox.is_array), loss))


def accumulation(mesh: Mesh) -> list[np.ndarray]:
    """Gradients accumulated in a scan, and a checkpoint of orbax saved and restored in between."""
    rng = np.random.default_rng(1)
    params = {
        "up": put(mesh, rng.normal(size=(WIDTH, WIDTH)).astype(np.float32) / 8, P("dp", "tp")),
        "down": put(mesh, rng.normal(size=(WIDTH, 8)).astype(np.float32) / 8, P("tp", "dp")),
    }
    data = put(mesh, rng.normal(size=(4, BATCH, WIDTH)).astype(np.float32), P(None, "dp", None))

    @jax.jit
    def step(params: Any, data: jax.Array) -> Any:
        def one(total: Any, x: jax.Array) -> Any:
            loss = lambda p: jnp.mean((jnp.tanh(x @ p["up"]) @ p["down"]) ** 2)  # noqa: E731
            value, gradients = jax.value_and_grad(loss)(params)
            return jax.tree.map(jnp.add, total, gradients), value

        total, losses = jax.lax.scan(one, jax.tree.map(jnp.zeros_like, params), data)
        return jax.tree.map(lambda p, g: p - 0.05 * g, params, total), losses

    params, _ = step(params, data)
    folder = multihost_utils.broadcast_one_to_all(_new_folder())
    path = Path(bytes(folder).rstrip(b"\0").decode()) / "checkpoint"
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, params)
        checkpointer.wait_until_finished()
        like = jax.tree.map(
            lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=p.sharding), params
        )
        params = checkpointer.restore(path, like)
    params, losses = step(params, data)
    return shards((params, losses))


def _new_folder() -> np.ndarray:
    name = tempfile.mkdtemp().encode()
    return np.frombuffer(name.ljust(256, b"\0"), np.uint8)


def explicit_axes(mesh: Mesh) -> list[np.ndarray]:
    """jax.numpy with shardings in types."""
    mesh = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Explicit,) * 2)
    rng = np.random.default_rng(2)
    x = put(mesh, rng.normal(size=(BATCH, WIDTH)).astype(np.float32), P("dp", None))
    up = put(mesh, rng.normal(size=(WIDTH, WIDTH)).astype(np.float32) / 8, P(None, "tp"))
    down = put(mesh, rng.normal(size=(WIDTH, WIDTH)).astype(np.float32) / 8, P("tp", None))

    @jax.jit
    def step(up: jax.Array, down: jax.Array, x: jax.Array) -> Any:
        def loss(weights: Any) -> jax.Array:
            hidden = jnp.tanh(x @ weights[0])
            out = jnp.einsum("bh,hw->bw", hidden, weights[1], out_sharding=P("dp", None))
            return jnp.mean(out**2)

        value, gradients = jax.value_and_grad(loss)((up, down))
        return up - 0.1 * gradients[0], down - 0.1 * gradients[1], value

    with jax.set_mesh(mesh):
        for _ in range(STEPS):
            up, down, value = step(up, down, x)
    return shards((up, down, value))


PROGRAMS: dict[str, Program] = {
    program.__name__: program
    for program in (*(nnx_mlp, fsdp_transformer, equinox_mlp, accumulation, explicit_axes),)
}
