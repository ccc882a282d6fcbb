"""Explicit mesh axes beside the manual ones of a shard_map: lax's values, and lax's shardings.

On explicit axes a type says how an array is sharded, and what merges or splits dimensions must say
what becomes of that. Where lax itself fails, jaxcoll may serve the call.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from lax_oracle import API, IMPLEMENTATIONS, INSTALLED, LAX, TARGET
from strategies import several

import jaxcoll

EXPLICIT, AUTO = AxisType.Explicit, AxisType.Auto


def make_mesh(shape=(2, 4), types=(EXPLICIT, EXPLICIT)):
    return jax.make_mesh(shape, tuple("ijk"[: len(shape)]), axis_types=types)


def outcome(implementation, body, x, mesh, check_vma):
    """(values, what shards the result): the collectives run over "i", of two ranks."""

    def shard(v):
        result = body(implementation.namespace, v)
        if check_vma and "i" not in jax.typeof(result).mat.varying:
            result = lax.pcast(result, "i", to="varying")
        return result

    function = jax.jit(
        jax.shard_map(
            shard,
            in_specs=P("i"),
            out_specs=P("i"),
            axis_names={"i"},
            check_vma=check_vma,
        )
    )
    with jax.set_mesh(mesh), implementation.context():
        lowered = function.lower(x)
        result = lowered.compile()(x)
    assert (TARGET in lowered.as_text()) == (implementation is not LAX), implementation.name
    return np.asarray(result), result.sharding.spec


def check_as_lax(body, spec, *, shape=(16, 8), mesh=None, check_vma=True):
    mesh = mesh or make_mesh()
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    x = jax.device_put(x, NamedSharding(mesh, spec))
    try:
        expected = outcome(LAX, body, x, mesh, check_vma)
    except Exception:
        return False
    for implementation in IMPLEMENTATIONS:
        values, result_spec = outcome(implementation, body, x, mesh, check_vma)
        np.testing.assert_array_equal(values, expected[0], err_msg=implementation.name)
        assert result_spec == expected[1], implementation.name
    return True


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("spec", [P("i", "j"), P(("i", "j"))], ids=["columns", "rows"])
def test_tiled_collectives_over_a_sharded_dimension_are_laxs(spec, check_vma):
    served = [
        check_as_lax(body, spec, check_vma=check_vma)
        for axis in (0, 1)
        for body in (
            lambda c, v, axis=axis: c.all_gather(v, "i", axis=axis, tiled=True),
            lambda c, v, axis=axis: c.all_to_all(v, "i", axis, 1 - axis, tiled=True),
            lambda c, v, axis=axis: c.all_to_all(v, "i", axis, axis, tiled=True),
        )
    ]
    assert all(served)


@pytest.mark.parametrize("spec", [P("i", "j"), P(("i", "j"))], ids=["columns", "rows"])
def test_calls_that_lax_itself_cannot_lower_are_served(spec):
    """psum_scatter, and so the gradient of all_gather: its reducer cannot be sharded."""
    mesh = make_mesh()
    x = np.arange(128, dtype=np.float32).reshape(16, 8)
    placed = jax.device_put(x, NamedSharding(mesh, spec))
    for axis in (0, 1):
        for implementation in (API, INSTALLED):
            values, _ = outcome(
                implementation,
                lambda c, v, axis=axis: c.psum_scatter(v, "i", scatter_dimension=axis, tiled=True),
                placed,
                mesh,
                True,
            )
            halves = np.split(x[:8] + x[8:], 2, axis)
            np.testing.assert_array_equal(values, np.concatenate(halves, 0))


BODIES = {
    "psum": lambda c, v, a, b: c.psum(v, "i"),
    "pmean": lambda c, v, a, b: c.pmean((v, 1.0), "i")[0],
    "pmax": lambda c, v, a, b: c.pmax(v, "i"),
    "ppermute": lambda c, v, a, b: c.ppermute(v, "i", [(0, 1)]),
    "all_gather": lambda c, v, a, b: c.all_gather(v, "i", axis=a),
    "all_gather, tiled": lambda c, v, a, b: c.all_gather(v, "i", axis=a % 2, tiled=True),
    "psum_scatter": lambda c, v, a, b: c.psum_scatter(
        jnp.stack([v, 2 * v], a), "i", scatter_dimension=a
    ),
    "psum_scatter, tiled": lambda c, v, a, b: c.psum_scatter(
        v, "i", scatter_dimension=a % 2, tiled=True
    ),
    "all_to_all": lambda c, v, a, b: c.all_to_all(jnp.stack([v, 2 * v], a), "i", a, b),
    "all_to_all, tiled": lambda c, v, a, b: c.all_to_all(v, "i", a % 2, b % 2, tiled=True),
}


def differentiated(body):
    return lambda c, v, a, b: jax.grad(lambda u: jnp.sum(body(c, u, a, b) ** 2))(v)


def mapped(body):
    """Another dimension in front, which a vmap takes away."""

    def over_both(c, v, a, b):
        return jax.vmap(lambda u: body(c, u, a, b), in_axes=2, out_axes=0)(jnp.stack([v, -v], 2))

    return over_both


@several
@given(
    name=st.sampled_from(sorted(BODIES)),
    a=st.integers(0, 2),
    b=st.integers(0, 2),
    transformed=st.sampled_from([lambda body: body, differentiated, mapped]),
    spec=st.sampled_from([P("i", "j"), P(("i", "j")), P("i"), P("i", ("j", "k"))]),
    types=st.sampled_from(
        [(EXPLICIT,) * 3, (EXPLICIT, EXPLICIT, AUTO), (EXPLICIT, AUTO, EXPLICIT)]
    ),
    check_vma=st.booleans(),
)
def test_collectives_beside_explicit_axes_are_laxs(name, a, b, transformed, spec, types, check_vma):
    check_as_lax(
        functools.partial(transformed(BODIES[name]), a=a, b=b),
        spec,
        mesh=make_mesh((2, 2, 2), types),
        check_vma=check_vma,
    )


def test_a_vmapped_axis_beside_an_explicit_one_is_gathered_over():
    """The chunks of the vmapped axis and those of the ranks are merged and split in the batcher."""
    mesh = make_mesh()
    x = np.arange(256, dtype=np.float32).reshape(16, 2, 8)
    placed = jax.device_put(x, NamedSharding(mesh, P("i", None, "j")))

    def body(c, v):
        def inner(u):
            return jaxcoll.all_gather(u, ("i", "b"), axis=1, tiled=True)

        return jax.vmap(inner, in_axes=1, out_axes=1, axis_name="b")(v)

    values, _ = outcome(API, body, placed, mesh, True)
    rows = np.concatenate([x[:8, 0], x[:8, 1], x[8:, 0], x[8:, 1]], 1)
    np.testing.assert_array_equal(values[:8, 0], rows)
    np.testing.assert_array_equal(values[8:, 1], rows)
