"""vmap over an axis that a collective communicates over, together with mesh axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from lax_oracle import assert_same, make_mesh, per_device, place, small_integers

import jaxcoll

SHIFT = [(i, (i + 3) % 8) for i in range(8)]
PARTIAL = [(0, 5), (1, 2), (6, 1), (7, 7)]

# Functions of the collectives `c`, the axes and one rank's (8, 3) block.
COLLECTIVES = {
    "psum": lambda c, axes, x: c.psum(x, axes),
    "pmax": lambda c, axes, x: c.pmax(x, axes),
    "pmean": lambda c, axes, x: c.pmean(x, axes),
    "all_gather": lambda c, axes, x: c.all_gather(x, axes, axis=1),
    "all_gather tiled": lambda c, axes, x: c.all_gather(x, axes, tiled=True),
    "psum_scatter": lambda c, axes, x: c.psum_scatter(x, axes),
    "psum_scatter tiled": lambda c, axes, x: c.psum_scatter(x, axes, tiled=True),
    "all_to_all": lambda c, axes, x: c.all_to_all(x, axes, 0, 1),
    "all_to_all tiled": lambda c, axes, x: c.all_to_all(x, axes, 0, 1, tiled=True),
    "ppermute": lambda c, axes, x: c.ppermute(x, axes, SHIFT),
    "partial ppermute": lambda c, axes, x: c.ppermute(x, axes, PARTIAL),
}


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("axes", [("x", "v"), ("v", "x")], ids="-".join)
@pytest.mark.parametrize("name", COLLECTIVES)
def test_a_vmapped_axis_among_mesh_axes_equals_a_mesh_axis(name, axes, check_vma):
    """Four devices that vmap two values each against lax on eight devices."""
    collective = COLLECTIVES[name]
    x = small_integers((8, 8, 3))
    sizes = [{"x": 4, "v": 2}[axis] for axis in axes]
    all_eight = jax.sharding.Mesh(np.array(jax.devices()).reshape(sizes), axes)

    def lax_body(x):
        return collective(jax.lax, axes, x[0])[None]

    # Without VMA: lax's types of all results need not be invariant to be gathered here.
    expected = jax.jit(
        jax.shard_map(
            lax_body, mesh=all_eight, in_specs=P(axes), out_specs=P(axes), check_vma=False
        )
    )(x)

    four = make_mesh((4,))
    rank = np.arange(8).reshape(sizes)
    if axes[0] == "v":
        rank = rank.T  # by device, then by vmapped index

    def ours(x):
        return jax.vmap(lambda x: collective(jaxcoll, axes, x), axis_name="v")(x)

    actual = jax.jit(per_device(four, ours, check_vma=check_vma))(x[rank])
    assert_same(np.asarray(actual), np.asarray(expected)[rank], name)


@pytest.mark.parametrize("op", ["sum", "prod", "min", "max", "and", "or", "xor"])
def test_a_value_that_does_not_vary_over_the_vmapped_axis_counts_once_per_index(op):
    x = small_integers((4, 5), np.int32)

    def body(x):
        def both(zero):
            return tuple(jaxcoll.all_reduce(v, ("v", "x"), op=op) for v in (x, x + zero))

        return jax.vmap(both, axis_name="v")(jnp.zeros(3, np.int32))

    np.testing.assert_array_equal(*per_device(make_mesh((4,)), body)(x))


def test_broadcast_over_a_vmapped_and_a_mesh_axis_has_one_root():
    x = small_integers((4, 2, 3))
    mesh = make_mesh((4,))
    for root in (0, 3, 6):
        actual = per_device(
            mesh,
            lambda x, root=root: jax.vmap(
                lambda x: jaxcoll.broadcast(x, ("x", "v"), root), axis_name="v"
            )(x),
        )(place(mesh, x))
        np.testing.assert_array_equal(actual, np.broadcast_to(x.reshape(8, 3)[root], x.shape))


def test_groups_over_a_vmapped_axis_are_laxs_not_implemented_error():
    for c in (jax.lax, jaxcoll):
        with pytest.raises(NotImplementedError, match="axis_index_groups"):
            jax.vmap(
                lambda x, c=c: c.psum(x, "v", axis_index_groups=[[0, 1], [2, 3]]), axis_name="v"
            )(jnp.ones(4))
