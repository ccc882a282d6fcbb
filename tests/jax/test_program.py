"""The fingerprint that tells programs apart: the same on every process, and different where
anything differs."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from subprocesses import run_python

from jaxcoll._jax import program as _program


def fingerprint(function: Callable, *operands: object) -> str:
    return _program.describe(jax.make_jaxpr(function)(*operands)).fingerprint


x = np.arange(6, dtype=np.float32).reshape(2, 3)
array = np.arange(5000, dtype=np.float32)
other = array.copy()
other[2500] = -1  # in the middle, which NumPy does not print

# Programs of equal structure, each of which differs from all others of its row in one thing.
DIFFERENT = {
    "literals": [lambda x: x * 2.0, lambda x: x * 3.0, lambda x: x * jnp.float32(jnp.nan)],
    "captured arrays": [lambda x: x.sum() + array, lambda x: x.sum() + other],
    "captured device arrays": [
        lambda x, a=a: x.sum() + a for a in (jnp.asarray(array), jnp.asarray(other))
    ],
    "captured in an inner function": [
        lambda x: jax.jit(lambda x: x.sum() + array)(x),
        lambda x: jax.jit(lambda x: x.sum() + other)(x),
    ],
    "captured in a loop": [
        lambda x: lax.scan(lambda c, _: (c + jnp.asarray(array)[2500], None), x, length=3)[0],
        lambda x: lax.scan(lambda c, _: (c + jnp.asarray(other)[2500], None), x, length=3)[0],
    ],
    "captured keys": [
        lambda x, k=k: x + jax.random.uniform(k, (2, 3))
        for k in (jax.random.key(0), jax.random.key(1))
    ],
    "types of captured arrays": [
        lambda x, a=a: (x, a + 0) for a in (np.zeros(2, np.int32), np.zeros(2, np.uint32))
    ],
    "enumerations": [
        lambda x, p=precision: lax.dot(x, x.T, precision=p) for precision in lax.Precision
    ],
    "dtypes": [lambda x: lax.convert_element_type(x, jnp.int32), lambda x: x.astype(jnp.uint32)],
    "dimensions": [lambda x: x.sum(0)[0] + 0 * x, lambda x: x.sum(1)[0] + 0 * x],
    "functions": [
        lambda x: jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x),
        lambda x: jax.pure_callback(np.cos, jax.ShapeDtypeStruct(x.shape, x.dtype), x),
    ],
    "order": [lambda x: jnp.sin(x) + jnp.cos(x), lambda x: jnp.cos(x) + jnp.sin(x)],
    "results": [lambda x: (x + 1, x + 2), lambda x: (x + 2, x + 1)],
}


@pytest.mark.parametrize("row", DIFFERENT)
def test_programs_that_differ_are_told_apart(row: str) -> None:
    prints = [fingerprint(function, x) for function in DIFFERENT[row]]
    assert len(set(prints)) == len(prints)
    again = [fingerprint(function, x) for function in DIFFERENT[row]]
    assert again == prints


def test_shapes_are_told_apart() -> None:
    prints = [fingerprint(jnp.sin, np.zeros(shape)) for shape in ((3,), (4,), (1, 4))]
    assert len(set(prints)) == 3


def test_names_of_functions_are_told_apart() -> None:
    def double(x: jax.Array) -> jax.Array:
        return x + x

    def twice(x: jax.Array) -> jax.Array:
        return x + x

    assert fingerprint(double, x) != fingerprint(twice, x)


def test_equal_code_makes_equal_programs() -> None:
    def make() -> Callable:
        return lambda x: jnp.sin(x * 2) + array[0]

    assert fingerprint(make(), x) == fingerprint(make(), x)


def test_an_array_that_is_gone_is_none_the_less_a_program() -> None:
    gone = jnp.arange(3.0)
    jaxpr = jax.make_jaxpr(lambda: gone + 1)()
    gone.delete()
    assert _program.describe(jaxpr).fingerprint


IN_A_FRESH_PROCESS = """
import jax, jax.numpy as jnp, numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec as P
import jaxcoll
from jaxcoll._jax import program as _program

mesh = Mesh(np.array(jax.devices()).reshape(2, 1), ("a", "b"))
table = np.arange(10.0)

@jax.custom_vjp
def scaled(x): return x * 3
scaled.defvjp(lambda x: (scaled(x), None), lambda _, g: (g * 3,))

def step(x):
    def body(x):
        y = lax.cond(x[0] > 0, jnp.sin, lambda x: x * table[:1], scaled(x))
        jax.debug.callback(print, y)
        y = lax.scan(lambda y, t: (jaxcoll.psum(y, ("a", "b")) + t, None), y, table)[0]
        return jaxcoll.ppermute(jaxcoll.all_gather(y, "a").sum(0), "a", [(0, 1), (1, 0)])
    mapped = jax.shard_map(body, mesh=mesh, in_specs=P("a"), out_specs=P("a"), check_vma=False)
    return jnp.sum(mapped(x) * jax.random.normal(jax.random.key(3), (4,)))

program = _program.describe(jax.make_jaxpr(jax.grad(step))(np.zeros(4, np.float32)))
print(program.fingerprint)
assert not any("0x" in line for line in program.lines), program.lines
assert any("<string>" in line for line in program.lines), program.lines
"""


def test_fresh_processes_agree() -> None:
    """Hashes of strings, addresses and the order of sets differ between them."""
    prints = {
        run_python(
            IN_A_FRESH_PROCESS, device_count=2, environment={"PYTHONHASHSEED": str(seed)}
        ).stdout.strip()
        for seed in range(3)
    }
    assert len(prints) == 1, prints
