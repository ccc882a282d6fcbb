"""Collectives in what custom_partitioning partitions: JAX lowers that when XLA asks for it, with
axes that are bound and no mesh around. lax is the oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from lax_oracle import TARGET, make_mesh, small_integers

import jaxcoll

SPEC = P("x", "y")
RING = [(0, 1), (1, 2), (2, 3), (3, 0)]
BODIES = {
    "psum": lambda c, x: c.psum(x, "x"),
    "psum over both axes": lambda c, x: c.psum(x, ("x", "y")),
    "psum in groups": lambda c, x: c.psum(x, "x", axis_index_groups=[[0, 1], [2, 3]]),
    "pmax of a vmap": lambda c, x: jax.vmap(lambda row: c.pmax(row, "y"))(x),
    "ppermute": lambda c, x: c.ppermute(x, "x", RING),
    "ppermute over both axes": lambda c, x: c.ppermute(
        x, ("x", "y"), [(i, (i + 3) % 8) for i in range(8)]
    ),
    "ppermute in a scan": lambda c, x: lax.scan(
        lambda carry, _: (c.ppermute(carry, "x", RING), None), x, None, length=3
    )[0],
    "all_gather": lambda c, x: c.all_gather(x, "y").sum(0),
    "reduce_scatter": lambda c, x: jnp.tile(c.psum_scatter(x, "x", tiled=True), (4, 1)),
    "all_to_all": lambda c, x: c.all_to_all(x, "x", 0, 0, tiled=True),
}


def partitioned(mesh, body):
    """A jitted function of one matrix whose shards go through `body`."""

    @custom_partitioning
    def function(x):
        return x  # what XLA learns of it: shapes

    def partition(mesh, arguments, result):
        sharding = NamedSharding(mesh, SPEC)
        return mesh, body, sharding, (sharding,)

    function.def_partition(
        partition=partition,
        infer_sharding_from_operands=lambda mesh, *_: NamedSharding(mesh, SPEC),
        sharding_rule="i j -> i j",
    )
    return jax.jit(function)


@pytest.fixture(params=["jaxcoll", "lax under install()"])
def collectives(request):
    """XLA partitions in a thread of its own, which sees install(), but not installed()."""
    if request.param == "jaxcoll":
        yield jaxcoll
        return
    jaxcoll.install()
    yield lax
    jaxcoll.uninstall()


@pytest.mark.parametrize("name", BODIES)
def test_functions_under_custom_partitioning_match_lax(name, collectives):
    mesh = make_mesh((4, 2))
    x = jax.device_put(small_integers((16, 6)), NamedSharding(mesh, SPEC))
    body = BODIES[name]
    compiled = partitioned(mesh, lambda x: body(collectives, x)).lower(x).compile()
    assert TARGET in compiled.as_text()
    jaxcoll.uninstall()
    wanted = partitioned(mesh, lambda x: body(lax, x))(x)
    np.testing.assert_array_equal(np.asarray(compiled(x)), np.asarray(wanted))
