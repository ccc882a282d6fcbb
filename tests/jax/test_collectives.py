"""Every collective of lax, over meshes, axes, dtypes and shapes, against lax on the same inputs."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lax_oracle import API, IMPLEMENTATIONS, LAX, check, make_mesh, per_device, run, small_integers
from strategies import (
    ALL_DTYPES,
    COMPLEX,
    axis_name,
    block_shapes,
    device_orders,
    dtypes,
    exact_bound,
    few,
    meshes_and_axes,
    partial_permutations,
    partitions,
    seeds,
    several,
    world_size,
)

import jaxcoll


def served(size):
    """Whether calls of ours must appear: a collective of one rank may be compiled away."""
    return True if size > 1 else None


def reductions(c, axes, x):
    """Every reduction that lax defines for the dtype of `x`."""
    results = {"psum": c.psum(x, axes)}
    if x.dtype != np.bool_:
        results["pmean"] = c.pmean(x, axes)
    if x.dtype not in COMPLEX:
        results |= {"pmax": c.pmax(x, axes), "pmin": c.pmin(x, axes)}
    return results


@several
@given(meshes_and_axes(), dtypes, block_shapes, st.booleans(), seeds)
def test_reductions_match_lax(mesh_and_axes, dtype, shape, check_vma, seed):
    mesh_shape, order, axes = mesh_and_axes
    mesh = make_mesh(mesh_shape, order)
    size = world_size(mesh_shape, axes)
    x = small_integers((mesh.size, *shape), dtype, seed=seed, bound=exact_bound(dtype))

    def program(c, x):
        body = per_device(mesh, lambda x: reductions(c, axis_name(axes), x), check_vma=check_vma)
        return body(x)

    check(program, x, expect_served=served(size))


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=lambda d: np.dtype(d).name)
def test_every_dtype_goes_through_every_collective(dtype):
    mesh = make_mesh((4, 2), order=(3, 1, 4, 0, 5, 7, 2, 6))
    x = small_integers((8, 4, 8), dtype, bound=exact_bound(dtype))

    def body(c, x):
        results = reductions(c, "x", x) | {
            "all_gather": c.all_gather(x, "x", axis=1),
            "all_to_all": c.all_to_all(x, "x", 0, 1),
            "ppermute": c.ppermute(x, "x", [(0, 2), (2, 3), (3, 0)]),
        }
        if x.dtype != np.bool_:  # lax cannot add booleans
            results["psum_scatter"] = c.psum_scatter(x, "x", scatter_dimension=1, tiled=True)
        return results

    check(lambda c, x: per_device(mesh, lambda x: body(c, x))(x), x)


@pytest.mark.parametrize("dtype", ["int4", "uint4"])
def test_four_bit_integers_travel_and_add(dtype):
    mesh = make_mesh((4,))
    values = small_integers((4, 6), np.int32, bound=1)

    def body(c, x):
        x = x.astype(dtype)
        results = [
            c.psum(x, "x"),
            c.all_gather(x, "x"),
            c.ppermute(x, "x", [(0, 1), (1, 0)]),
        ]
        return [r.astype(jnp.int32) for r in results]

    check(lambda c, x: per_device(mesh, lambda x: body(c, x))(x), abs(values))


@several
@given(meshes_and_axes(), dtypes, st.data())
def test_all_gather_matches_lax(mesh_and_axes, dtype, data):
    mesh_shape, order, axes = mesh_and_axes
    mesh = make_mesh(mesh_shape, order)
    tiled = data.draw(st.booleans(), label="tiled")
    shape = data.draw(st.lists(st.integers(0, 3), min_size=tiled, max_size=3), label="shape")
    axis = data.draw(st.integers(-len(shape), len(shape) - tiled), label="axis")
    check_vma = data.draw(st.booleans(), label="check_vma")
    x = small_integers((mesh.size, *shape), dtype, bound=exact_bound(dtype))

    def program(c, x):
        def body(x):
            return c.all_gather(x, axis_name(axes), axis=axis, tiled=tiled)

        return per_device(mesh, body, check_vma=check_vma)(x)

    check(program, x, expect_served=served(world_size(mesh_shape, axes)))


@several
@given(meshes_and_axes(), dtypes.filter(lambda d: d != np.bool_), st.data())
def test_psum_scatter_matches_lax(mesh_and_axes, dtype, data):
    mesh_shape, order, axes = mesh_and_axes
    mesh = make_mesh(mesh_shape, order)
    size = world_size(mesh_shape, axes)
    tiled = data.draw(st.booleans(), label="tiled")
    shape = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=3), label="shape")
    dimension = data.draw(st.integers(0, len(shape) - 1), label="scatter_dimension")
    shape[dimension] = size * data.draw(st.integers(0, 2)) if tiled else size
    check_vma = data.draw(st.booleans(), label="check_vma")
    x = small_integers((mesh.size, *shape), dtype, bound=exact_bound(dtype))

    def program(c, x):
        def body(x):
            return c.psum_scatter(x, axis_name(axes), scatter_dimension=dimension, tiled=tiled)

        return per_device(mesh, body, check_vma=check_vma)(x)

    check(program, x, expect_served=served(size))


@several
@given(meshes_and_axes(), dtypes, st.data())
def test_all_to_all_matches_lax(mesh_and_axes, dtype, data):
    mesh_shape, order, axes = mesh_and_axes
    mesh = make_mesh(mesh_shape, order)
    size = world_size(mesh_shape, axes)
    tiled = data.draw(st.booleans(), label="tiled")
    shape = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=3), label="shape")
    split = data.draw(st.integers(0, len(shape) - 1), label="split_axis")
    concat = data.draw(st.integers(0, len(shape) - 1), label="concat_axis")
    shape[split] = size * data.draw(st.integers(0, 2)) if tiled else size
    check_vma = data.draw(st.booleans(), label="check_vma")
    x = small_integers((mesh.size, *shape), dtype, bound=exact_bound(dtype))

    def program(c, x):
        def body(x):
            return c.all_to_all(x, axis_name(axes), split, concat, tiled=tiled)

        return per_device(mesh, body, check_vma=check_vma)(x)

    check(program, x, expect_served=served(size))


@several
@given(meshes_and_axes(in_mesh_order=True), dtypes, block_shapes, st.booleans(), st.data())
def test_permutations_match_lax(mesh_and_axes, dtype, shape, check_vma, data):
    mesh_shape, order, axes = mesh_and_axes
    mesh = make_mesh(mesh_shape, order)
    size = world_size(mesh_shape, axes)
    pairs = data.draw(partial_permutations(size), label="perm")
    shuffle = data.draw(st.permutations(range(size)), label="shuffle")
    x = small_integers((mesh.size, *shape), dtype, bound=exact_bound(dtype))

    def program(c, x):
        def body(x):
            return (
                c.ppermute(x, axis_name(axes), pairs),
                c.pshuffle(x, axis_name(axes), shuffle),
            )

        return per_device(mesh, body, check_vma=check_vma)(x)

    check(program, x, expect_served=served(size))


@few
@given(st.sampled_from([(4,), (4, 2), (2, 2, 2)]), device_orders, dtypes, st.integers(0, 1))
def test_pswapaxes_matches_lax(mesh_shape, order, dtype, axis):
    mesh = make_mesh(mesh_shape, order)
    size = mesh_shape[0]
    x = small_integers((8 if len(mesh_shape) > 1 else 4, size, size, 3), dtype, bound=1)
    x = x[: mesh.size]
    check(lambda c, x: per_device(mesh, lambda x: c.pswapaxes(x, "x", axis))(x), x)


@several
@given(st.sampled_from([(8,), (4, 2), (6,), (2, 3)]), device_orders, dtypes, st.data())
def test_axis_index_groups_match_lax(mesh_shape, order, dtype, data):
    """lax serves groups only where check_vma is False; jaxcoll's drop-ins also where it is True."""
    mesh = make_mesh(mesh_shape, order)
    groups = data.draw(partitions(mesh_shape[0]), label="groups")
    size = len(groups[0])
    x = small_integers((mesh.size, size, 2 * size), dtype, bound=exact_bound(dtype))

    def body(c, x):
        results = {
            "psum": c.psum(x, "x", axis_index_groups=groups),
            "all_gather": c.all_gather(x, "x", axis_index_groups=groups),
            "all_to_all": c.all_to_all(x, "x", 0, 1, axis_index_groups=groups),
        }
        if dtype not in COMPLEX:
            results["pmax"] = c.pmax(x, "x", axis_index_groups=groups)
        if dtype != np.bool_:
            results["psum_scatter"] = c.psum_scatter(
                x, "x", scatter_dimension=1, axis_index_groups=groups, tiled=True
            )
        return results

    def program(c, x, check_vma=False):
        return per_device(mesh, lambda x: body(c, x), check_vma=check_vma)(x)

    expected = check(program, x, expect_served=served(size))
    check(
        lambda c, x: program(c, x, check_vma=True),
        x,
        expect_served=served(size),
        expected=expected,
        implementations=[API],
    )


def test_pmean_over_groups_divides_by_the_size_of_the_group():
    mesh = make_mesh((8,))
    x = small_integers((8, 5))
    groups = [[0, 3], [1, 2], [4, 7], [5, 6]]
    check(
        lambda c, x: per_device(
            mesh, lambda x: c.pmean(x, "x", axis_index_groups=groups), check_vma=False
        )(x),
        x,
    )


@few
@given(st.sampled_from([((8,), "x"), ((4, 2), ("x", "y")), ((2, 3), "y")]), block_shapes, st.data())
def test_positional_axes_are_reduced_too(mesh_and_axes, shape, data):
    mesh_shape, axes = mesh_and_axes
    mesh = make_mesh(mesh_shape)
    shape = (2, *shape)
    positions = data.draw(
        st.lists(st.integers(0, len(shape) - 1), min_size=1, unique=True), label="positions"
    )
    axes = (*([axes] if isinstance(axes, str) else axes), *positions)
    x = small_integers((mesh.size, *shape))

    def body(c, x):
        return c.psum(x, axes), c.pmax(x, axes), c.pmin(x, axes)

    check(lambda c, x: per_device(mesh, lambda x: body(c, x), check_vma=False)(x), x)


@pytest.mark.parametrize("check_vma", [True, False])
def test_trees_keep_their_structure(check_vma):
    mesh = make_mesh((2, 4))
    tree = {
        "weights": [small_integers((8, 3, 2)), small_integers((8, 4), np.int32)],
        "bias": (small_integers((8,), ml_dtypes.bfloat16), None),
    }

    def body(c, tree):
        return {
            "psum": c.psum(tree, ("x", "y")),
            "pmean": c.pmean(tree, "x"),
            "pmax": c.pmax(tree, "y"),
            "pmin": c.pmin(tree, "y"),
            "all_gather": c.all_gather(tree, "y"),
            "ppermute": c.ppermute(tree, "x", [(0, 1)]),
        }

    check(lambda c, t: per_device(mesh, lambda t: body(c, t), check_vma=check_vma)(t), tree)


def test_leaves_that_vary_over_different_axes_reduce_in_one_tree():
    """Under check_vma a leaf may already be equal along an axis of the collective."""
    mesh = make_mesh((2, 4))
    x = small_integers((8, 3))

    def body(c, x):
        along_x = jax.lax.axis_index("x").astype(x.dtype)
        return c.psum({"both": x, "x": along_x}, "x"), c.pmax({"both": x, "x": along_x}, "x")

    check(lambda c, x: per_device(mesh, lambda x: body(c, x))(x), x)


@pytest.mark.parametrize("check_vma", [True, False])
def test_psum_of_a_constant_is_a_static_size(check_vma):
    mesh = make_mesh((2, 4))
    x = small_integers((8, 3))

    def body(c, x):
        size = c.psum(1, ("x", "y"))
        assert isinstance(size, int | np.integer | np.ndarray | jax.Array)
        assert not isinstance(size, jax.core.Tracer)
        return x * int(size), jnp.zeros(int(c.psum(1, "y"))) + x[0], c.psum(2.5, "x")

    check(
        lambda c, x: per_device(mesh, lambda x: body(c, x), check_vma=check_vma)(x),
        x,
        expect_served=None,
    )


def test_constants_close_over_the_mapped_function():
    mesh = make_mesh((4,))
    x = small_integers((4, 3))
    constant = jnp.arange(3.0)
    check(
        lambda c, x: per_device(mesh, lambda x: x + c.psum(constant, "x"), check_vma=False)(x),
        x,
        expect_served=None,
    )


def test_two_meshes_live_in_one_program():
    first = make_mesh((8,), order=(7, 2, 5, 0, 1, 6, 3, 4))
    second = make_mesh((2, 4), order=(7, 2, 5, 0, 1, 6, 3, 4))
    x = small_integers((8, 4))

    def program(c, x):
        y = per_device(first, lambda x: c.psum(x, "x") + x)(x)
        return per_device(second, lambda y: c.all_gather(y, "y") * c.pmax(y, "x"))(y)

    check(program, x)


def test_pmap_runs_the_same_collectives():
    x = small_integers((8, 4))

    def program(c, x):
        return jax.pmap(
            lambda x: (c.psum(x, "i"), c.all_gather(x, "i"), c.ppermute(x, "i", [(0, 7)])),
            axis_name="i",
            devices=jax.devices("cpu"),
        )(x)

    with jax.enable_x64(True):
        expected = jax.tree.map(np.asarray, program(LAX.namespace, x))
        for implementation in IMPLEMENTATIONS:
            with implementation.context():
                actual = jax.tree.map(np.asarray, program(implementation.namespace, x))
            for a, b in zip(actual, expected, strict=True):
                np.testing.assert_array_equal(a, b, err_msg=implementation.name)


# Where lax does not run on CPU, a NumPy model is the oracle.


def pbroadcast_model(x, mesh_shape, axis, source):
    """x: one block per device, device dimension first."""
    blocks = x.reshape(*mesh_shape, *x.shape[1:])
    position = "xyz".index(axis)
    chosen = np.take(blocks, [source], axis=position)
    return np.broadcast_to(chosen, blocks.shape).reshape(x.shape)


@several
@given(meshes_and_axes(least_size=2), dtypes, block_shapes, st.booleans(), st.data())
def test_pbroadcast_matches_its_model(mesh_and_axes, dtype, shape, check_vma, data):
    mesh_shape, order, axes = mesh_and_axes
    axis = axes[0]
    mesh = make_mesh(mesh_shape, order)
    source = data.draw(st.integers(0, world_size(mesh_shape, axis) - 1), label="source")
    x = small_integers((mesh.size, *shape), dtype, bound=exact_bound(dtype))
    check(
        lambda c, x: per_device(mesh, lambda x: c.pbroadcast(x, axis, source), check_vma=check_vma)(
            x
        ),
        x,
        expected=pbroadcast_model(x, mesh_shape, axis, source),
        expect_served=served(world_size(mesh_shape, axis)),
    )


def ragged_model(operand, output, send_offsets, sizes, recv_offsets, groups):
    """`sizes[r, i]` rows go from rank r to the i-th update's receiver; one array row per device."""
    result = output.copy()
    for group in groups:
        updates = sizes.shape[1] // len(group)
        for rank in group:
            for update in range(sizes.shape[1]):
                receiver = group[update // updates]
                count = sizes[rank, update]
                start, target = send_offsets[rank, update], recv_offsets[rank, update]
                result[receiver, target : target + count] = operand[rank, start : start + count]
    return result


@st.composite
def ragged_plans(draw, size, updates):
    """Sizes of each rank's updates, with the offsets at both ends; updates of one receiver do not
    overlap, and gaps stay between them."""
    update_count = size * updates
    sizes = np.array(
        draw(
            st.lists(
                st.lists(st.integers(0, 3), min_size=update_count, max_size=update_count),
                min_size=size,
                max_size=size,
            )
        ),
        dtype=np.int32,
    ).reshape(size, update_count)
    send_offsets = np.cumsum(sizes, axis=1, dtype=np.int32) - sizes
    # Receiver r lays the updates out by (sender, update).
    by_receiver = sizes.reshape(size, size, updates).transpose(1, 0, 2).reshape(size, update_count)
    recv_offsets = np.cumsum(by_receiver + 1, axis=1, dtype=np.int32) - by_receiver - 1
    at_sender = recv_offsets.reshape(size, size, updates).transpose(1, 0, 2).reshape(size, -1)
    return sizes, send_offsets, at_sender.astype(np.int32), by_receiver


@several
@given(
    st.sampled_from([1, 2, 3, 4, 8]),
    st.integers(1, 2),
    st.sampled_from([(), (2,), (0,)]),
    dtypes,
    device_orders,
    st.booleans(),
    st.data(),
)
def test_ragged_all_to_all_matches_its_model(size, updates, row, dtype, order, check_vma, data):
    sizes, send_offsets, recv_offsets, recv_sizes = data.draw(ragged_plans(size, updates))
    rows = 3 * size * updates
    operand = small_integers((size, rows, *row), dtype, seed=1, bound=exact_bound(dtype))
    output = small_integers((size, rows + size * updates, *row), dtype, seed=2, bound=1)
    mesh = make_mesh((size,), order)
    expected = ragged_model(operand, output, send_offsets, sizes, recv_offsets, [range(size)])

    def program(c, *arguments):
        def body(*arguments):
            return c.ragged_all_to_all(*arguments, axis_name="x")

        return per_device(mesh, body, check_vma=check_vma)(*arguments)

    check(
        program,
        *(operand, output, send_offsets, sizes, recv_offsets, recv_sizes),
        expected=expected,
        expect_served=served(size),
    )


@few
@given(meshes_and_axes(least_size=2), dtypes, block_shapes, st.data())
def test_broadcast_and_all_reduce_have_their_own_spelling(mesh_and_axes, dtype, shape, data):
    mesh_shape, order, axes = mesh_and_axes
    mesh = make_mesh(mesh_shape, order)
    source = data.draw(st.integers(0, world_size(mesh_shape, axes[0]) - 1), label="source")
    x = small_integers((mesh.size, *shape), dtype, bound=exact_bound(dtype))

    def ours(c, x):
        results = {
            "broadcast": jaxcoll.broadcast(x, axes[0], source),
        }
        if dtype != np.bool_:
            results["sum"] = jaxcoll.all_reduce(x, axes, op="sum")
        if dtype not in COMPLEX:
            results["max"] = jaxcoll.all_reduce(x, axes, op="max")
        return results

    actual = run(API, lambda c, x: per_device(mesh, lambda x: ours(c, x))(x), x)
    np.testing.assert_array_equal(
        actual["broadcast"].astype(np.complex128),
        pbroadcast_model(x, mesh_shape, axes[0], source).astype(np.complex128),
    )
    theirs = run(
        LAX,
        lambda c, x: per_device(mesh, lambda x: reductions(c, axes, x))(x),
        x,
    )
    for ours_name, name in (("sum", "psum"), ("max", "pmax")):
        if ours_name in actual:
            assert actual[ours_name].tobytes() == theirs[name].tobytes()
