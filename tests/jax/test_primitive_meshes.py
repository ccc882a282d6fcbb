"""The devices that take part: groups of logical ids, meshes known late, parts of a machine."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from lax_oracle import TARGET, make_mesh, per_device, place, small_integers

import jaxcoll
from jaxcoll._jax import shardings
from jaxcoll._job import membership


def test_groups_follow_the_order_of_the_axes():
    shape = {"x": 2, "y": 3}
    assert membership.logical_groups(shape, ["y"]).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert membership.logical_groups(shape, ["x"]).tolist() == [[0, 3], [1, 4], [2, 5]]
    assert membership.logical_groups(shape, ["y", "x"]).tolist() == [[0, 3, 1, 4, 2, 5]]


def test_index_groups_divide_every_group():
    groups = membership.logical_groups({"x": 2, "y": 4}, ["y"], ((3, 0), (1, 2)))
    assert groups.tolist() == [[3, 0], [1, 2], [7, 4], [5, 6]]


def test_labels_name_axes_ranks_and_group_size():
    shape = {"x": 2, "y": 4}
    assert membership.label(["y"], shape, 4) == "axis 'y' (4 ranks)"
    assert membership.label(["x", "y"], shape, 2) == "axes 'x', 'y' (8 ranks, in groups of 2)"


def test_one_program_serves_every_mesh_it_is_called_under():
    """Its mesh comes from the context, and JAX lowers it once for all meshes of a shape."""

    @jax.jit
    def shifted(x):
        def body(x):
            return jaxcoll.ppermute(x, "x", [(i, (i + 1) % 4) for i in range(4)]) + jaxcoll.psum(
                x, "y"
            )

        return jax.shard_map(body, in_specs=P(("x", "y")), out_specs=P(("x", "y")))(x)

    x = small_integers((8, 3))
    blocks = x.reshape(4, 2, 3)
    expected = (np.roll(blocks, 1, axis=0) + blocks.sum(1, keepdims=True)).reshape(8, 3)
    devices = np.array(jax.devices())
    for order in ([0, 1, 2, 3, 4, 5, 6, 7], [3, 1, 4, 7, 5, 0, 2, 6], [7, 6, 5, 4, 3, 2, 1, 0]):
        mesh = Mesh(devices[order].reshape(4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
        with jax.set_mesh(mesh):
            actual = shifted(jax.device_put(x, NamedSharding(mesh, P(("x", "y")))))
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("order", [[4, 5, 6, 7], [6, 1, 3], [5]], ids=str)
def test_a_mesh_of_some_devices(order):
    mesh = make_mesh((len(order),), order)
    x = small_integers((len(order), 5))
    actual = jax.jit(per_device(mesh, lambda x: (jaxcoll.psum(x, "x"), jaxcoll.pmax(x, "x"))))(
        place(mesh, x)
    )
    for result, expected in zip(actual, (x.sum(0), x.max(0)), strict=True):
        np.testing.assert_array_equal(result, np.tile(expected, (len(order), 1)))


def test_other_platforms_are_refused_by_name():
    mesh = make_mesh((8,))
    traced = jax.jit(per_device(mesh, lambda x: jaxcoll.psum(x, "x"))).trace(small_integers((8, 2)))
    with pytest.raises(jaxcoll.UnsupportedError, match=r"no GPU kernels|no GPU that JAX can use"):
        traced.lower(lowering_platforms=("cuda",))


def test_groups_of_one_rank_and_empty_arrays_cost_no_call():
    mesh = make_mesh((1, 8))

    def body(x):
        return (
            jaxcoll.psum(x, "x"),
            jaxcoll.all_gather(x, "x"),
            jaxcoll.ppermute(x, "x", []),
            jaxcoll.ppermute(x, "x", [(0, 0)]),
            jaxcoll.all_gather(x[:0], "y"),
            jaxcoll.psum_scatter(x[:0], "y", tiled=True),
        )

    f = jax.jit(per_device(mesh, body))
    x = small_integers((8, 2, 3))
    assert TARGET not in f.lower(x).as_text()
    total, gathered, nothing, same, empty, none = f(x)
    np.testing.assert_array_equal(total, x)
    np.testing.assert_array_equal(gathered, x[:, None])
    np.testing.assert_array_equal(nothing, 0 * x)
    np.testing.assert_array_equal(same, x)
    assert empty.shape == (8, 8, 0, 3)
    assert none.shape == (8, 0, 3)


@pytest.mark.parametrize("dtype", ["int2", "uint2", "int4", "uint4", "float4_e2m1fn"])
def test_types_below_a_byte_travel_and_reduce(dtype):
    x = jax.numpy.asarray(np.arange(32).reshape(8, 4) % 2, dtype)
    mesh = make_mesh((8,))

    def body(x):
        return (
            jaxcoll.all_gather(x, "x"),
            jaxcoll.pmax(x, "x"),
            jaxcoll.psum(x, "x"),
            jaxcoll.all_reduce(x, "x", op="prod"),
        )

    gathered, largest, total, product = (
        np.asarray(y).astype(np.float32) for y in jax.jit(per_device(mesh, body))(place(mesh, x))
    )
    values = np.arange(32).reshape(8, 4) % 2
    np.testing.assert_array_equal(gathered, np.tile(values, (8, 1, 1)))
    np.testing.assert_array_equal(largest[0], values.max(0))
    np.testing.assert_array_equal(product[0], values.prod(0))
    wrapped = np.asarray(jax.numpy.asarray(values.sum(0)).astype(dtype)).astype(np.float32)
    np.testing.assert_array_equal(total[0], wrapped)


def test_random_keys_travel():
    mesh = make_mesh((8,))
    keys = jax.random.split(jax.random.key(0), 8)
    gathered, sent = jax.jit(
        per_device(
            mesh,
            lambda key: (
                jax.random.key_data(jaxcoll.all_gather(key, "x")),
                jax.random.key_data(jaxcoll.ppermute(key, "x", [(1, 0)])),
            ),
        )
    )(keys)
    data = np.asarray(jax.random.key_data(keys))
    np.testing.assert_array_equal(gathered[3], data)
    np.testing.assert_array_equal(sent[0], data[1])
    assert not np.asarray(sent[1:]).any()


def test_shardings_lose_gain_and_replicate_a_leading_dimension():
    """The results that the partitioner computes, on a partially manual sharding of 4 x 2
    devices."""
    mesh = make_mesh((4, 2))
    sharding = NamedSharding(mesh, P("y", None, "x"))._to_xla_hlo_sharding(3)
    taller = shardings.sharding_with_leading_dimension(sharding)
    assert taller == NamedSharding(mesh, P(None, "y", None, "x"))._to_xla_hlo_sharding(4)
    assert shardings.sharding_without_leading_dimension(taller) == sharding
    copies = shardings.replicate_leading_dimension(sharding)
    assert copies == NamedSharding(mesh, P(None, None, "x"))._to_xla_hlo_sharding(3)
    assert shardings.sharding_without_leading_dimension(copies) == NamedSharding(
        mesh, P(None, "x")
    )._to_xla_hlo_sharding(2)
    with pytest.raises(ValueError, match="leading dimension"):
        shardings.sharding_without_leading_dimension(sharding)
