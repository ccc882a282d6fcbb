"""jaxcoll's collectives under JAX's transformations, against lax on the same inputs.

The values are small integers and the functions polynomials, so derivatives compare exactly too.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P
from lax_oracle import (
    API,
    INSTALLED,
    LAX,
    check,
    make_mesh,
    per_device,
    run,
    small_integers,
)
from strategies import (
    axis_name,
    device_orders,
    differentiable,
    few,
    meshes_and_axes,
    world_size,
)

import jaxcoll

# name -> function of (namespace, axes, world size, x of shape (2, size)); all linear in x.
LINEAR = {
    "psum": lambda c, axes, n, x: c.psum(x, axes),
    "pmean": lambda c, axes, n, x: c.pmean(x * n, axes),
    "all_gather": lambda c, axes, n, x: c.all_gather(x, axes, axis=1),
    "all_gather_tiled": lambda c, axes, n, x: c.all_gather(x, axes, axis=1, tiled=True),
    "psum_scatter": lambda c, axes, n, x: c.psum_scatter(x, axes, scatter_dimension=1),
    "psum_scatter_tiled": lambda c, axes, n, x: c.psum_scatter(
        x, axes, scatter_dimension=1, tiled=True
    ),
    "all_to_all": lambda c, axes, n, x: c.all_to_all(x, axes, 1, 1),
    "all_to_all_tiled": lambda c, axes, n, x: c.all_to_all(x, axes, 1, 0, tiled=True),
    "ppermute": lambda c, axes, n, x: c.ppermute(x, axes, [(i, (i + 1) % n) for i in range(n - 1)]),
    "pshuffle": lambda c, axes, n, x: c.pshuffle(x, axes, list(range(n))[::-1]),
}


def all_linear(c, axes, n, x):
    return {name: function(c, axes, n, x) for name, function in LINEAR.items()}


def squares(tree):
    """A scalar whose gradient depends on the values: conjugate-free, so complex works as well."""
    return sum(jnp.sum(leaf * leaf) for leaf in jax.tree.leaves(tree))


meshes = meshes_and_axes(
    shapes=((8,), (2, 4), (2, 2, 2), (3,), (2, 3)), least_size=2, in_mesh_order=True
)


@settings(few, max_examples=5)
@given(meshes, differentiable, st.booleans())
def test_values_and_vjps_of_every_linear_collective_match_lax(mesh_and_axes, dtype, check_vma):
    mesh_shape, order, axes = mesh_and_axes
    mesh, n = make_mesh(mesh_shape, order), world_size(mesh_shape, axes)
    x = small_integers((mesh.size, 2, n), dtype)
    weights = small_integers((mesh.size, 2, n), dtype, seed=1)

    def program(c, x, weights):
        def body(x, weights):
            function = lambda x: all_linear(c, axis_name(axes), n, x * weights)  # noqa: E731
            value, vjp = jax.vjp(function, x)
            cotangent = jax.tree.map(lambda leaf: 2 * leaf + 1, value)
            return value, vjp(cotangent)

        return per_device(mesh, body, check_vma=check_vma)(x, weights)

    check(program, x, weights)


@settings(few, max_examples=4)
@given(meshes, differentiable, st.booleans())
def test_jvps_of_every_linear_collective_match_lax(mesh_and_axes, dtype, check_vma):
    mesh_shape, order, axes = mesh_and_axes
    mesh, n = make_mesh(mesh_shape, order), world_size(mesh_shape, axes)
    x = small_integers((mesh.size, 2, n), dtype)
    tangent = small_integers((mesh.size, 2, n), dtype, seed=1)

    def program(c, x, tangent):
        def body(x, tangent):
            return jax.jvp(lambda x: all_linear(c, axis_name(axes), n, x * x), (x,), (tangent,))

        return per_device(mesh, body, check_vma=check_vma)(x, tangent)

    check(program, x, tangent)


@settings(few, max_examples=5)
@given(meshes, st.booleans())
def test_second_derivatives_match_lax(mesh_and_axes, check_vma):
    """Reverse over reverse and forward over reverse."""
    mesh_shape, order, axes = mesh_and_axes
    mesh, n = make_mesh(mesh_shape, order), world_size(mesh_shape, axes)
    x = small_integers((mesh.size, 2, n), bound=2)
    direction = small_integers((mesh.size, 2, n), seed=1, bound=2)

    def program(c, x, direction):
        def body(x, direction):
            def energy(x):
                reduced = c.psum(x * x, axis_name(axes))
                gathered = c.all_gather(x, axis_name(axes))
                return jnp.sum(reduced * x) + squares(c.psum_scatter(gathered, axis_name(axes)))

            gradient = jax.grad(energy)
            forward = jax.jvp(gradient, (x,), (direction,))[1]
            reverse = jax.grad(lambda x: jnp.vdot(gradient(x), direction))(x)
            return gradient(x), forward, reverse

        return per_device(mesh, body, check_vma=check_vma)(x, direction)

    check(program, x, direction, expect_served="in part")


@pytest.mark.parametrize("check_vma", [True, False])
def test_gradient_of_a_sharded_function_matches_lax(check_vma):
    """grad outside shard_map: what a training step does."""
    mesh = make_mesh((2, 4))
    x = small_integers((8, 3))
    w = small_integers((3,), seed=1)

    def program(c, w, x):
        def loss(w, x):
            return c.pmean(c.psum((x @ w) ** 2, "y"), "x")[0]

        mapped = jax.shard_map(
            loss, mesh=mesh, in_specs=(P(), P(("x", "y"))), out_specs=P(), check_vma=check_vma
        )
        return jax.value_and_grad(mapped, argnums=(0, 1))(w, x)

    check(program, w, x, expect_served="in part")


def test_all_to_all_transposes_where_lax_cannot():
    """lax mistypes the cotangent of an untiled exchange between two dimensions."""
    mesh = make_mesh((4,))
    x = small_integers((4, 2, 4, 3))
    weights = small_integers((4, 4, 2, 3), seed=1)

    def program(c, x, weights):
        def body(x, weights):
            return jax.grad(lambda x: jnp.sum(c.all_to_all(x, "x", 1, 0) * weights))(x)

        return per_device(mesh, body)(x, weights)

    # y[d, s, i, j] = x[s, i, d, j], so the gradient of sum(y * w) is w with ranks exchanged.
    expected = weights.transpose(1, 2, 0, 3)
    check(program, x, weights, expected=expected, implementations=[API])


@pytest.mark.parametrize(("check_vma", "copies"), [(True, 1), (False, 4)])
def test_maxima_pass_tangents_to_the_ranks_that_attain_them(check_vma, copies):
    """lax has no derivative of pmax. Where VMA is tracked the result is one value, where it is not
    each of the four ranks' copies counts, as for psum."""
    mesh = make_mesh((4,))
    x = np.array([[1, 5], [3, 5], [0, 2], [2, -1]], np.float32)

    def gradient(c, x):
        body = jax.grad(lambda x: jnp.sum(c.pmax(x, "x")))
        return per_device(mesh, body, check_vma=check_vma)(x)

    share = np.array([[0, 0.5], [1, 0.5], [0, 0], [0, 0]], np.float32)
    check(gradient, x, expected=copies * share, implementations=[API])
    with jaxcoll.installed(), pytest.raises(NotImplementedError, match="pmax"):
        jax.jit(lambda x: gradient(jax.lax, x)).lower(x)


@settings(few, max_examples=5)
@given(meshes, st.booleans(), st.integers(0, 2))
def test_vmap_over_a_batch_axis_equals_a_loop(mesh_and_axes, check_vma, position):
    mesh_shape, order, axes = mesh_and_axes
    mesh, n = make_mesh(mesh_shape, order), world_size(mesh_shape, axes)
    shape = [2, n]
    shape.insert(position, 3)
    x = small_integers((mesh.size, *shape))

    def element(c, x):
        results = all_linear(c, axis_name(axes), n, x)
        return results | {"pmax": c.pmax(x, axis_name(axes)), "pmin": c.pmin(x, axes)}

    def looped(c, x):
        def body(x):
            rows = [element(c, row) for row in jnp.moveaxis(x, position, 0)]
            return jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)

        return per_device(mesh, body, check_vma=check_vma)(x)

    def batched(c, x):
        body = jax.vmap(lambda x: element(c, x), in_axes=position)
        return per_device(mesh, body, check_vma=check_vma)(x)

    # lax's psum_scatter cannot batch a dimension behind the scattered one.
    implementations = (API, INSTALLED) if position < 2 else (API,)
    expected = run(LAX, looped, x)
    check(batched, x, expected=expected, implementations=implementations)


def test_vmap_over_the_axis_of_the_collective_matches_lax():
    """vmap binds `v`; a collective over ("x", "v") runs partly on the mesh, partly inside."""
    mesh = make_mesh((4,))
    x = small_integers((4, 5, 2, 5))

    def body(c, x):
        def element(x):
            return {
                "psum": c.psum(x, "v"),
                "psum both": c.psum(x, ("x", "v")),
                "pmax": c.pmax(x, "v"),
                "pmean both": c.pmean(x, ("v", "x")) * 20,
                "all_gather": c.all_gather(x, "v", axis=1),
                "all_gather tiled": c.all_gather(x, "v", axis=1, tiled=True),
                "psum_scatter": c.psum_scatter(x, "v", scatter_dimension=1),
                "all_to_all": c.all_to_all(x, "v", 1, 0),
                "ppermute": c.ppermute(x, "v", [(i, (i + 2) % 5) for i in range(5)]),
            }

        return jax.vmap(element, axis_name="v")(x)

    # JAX binds no vmapped axes inside a shard_map that checks VMA.
    check(lambda c, x: per_device(mesh, lambda x: body(c, x), check_vma=False)(x), x)


def test_vmap_without_a_mesh_needs_no_device():
    x = small_integers((6, 4))

    def program(c, x):
        def element(x):
            return c.psum(x, "v"), c.pmax(x, "v"), c.all_gather(x, "v"), c.pmean(x * 6, "v")

        return jax.vmap(element, axis_name="v")(x)

    check(program, x, expect_served=False)


@settings(few, max_examples=4)
@given(st.sampled_from([(8,), (2, 4)]), device_orders, st.booleans())
def test_control_flow_matches_lax(mesh_shape, order, check_vma):
    """scan, while with a collective in its condition, cond, switch, fori and their gradients."""
    mesh = make_mesh(mesh_shape, order)
    x = small_integers((mesh.size, 3), bound=2)

    def body(c, x):
        def scanned(x):
            def step(carry, _):
                total = c.psum(carry, "x")
                return carry - total + c.ppermute(carry, "x", [(0, 1), (1, 0)]), total[0]

            return jax.lax.scan(step, x, None, length=3)

        def condition(state):
            count, _ = state
            return c.pmax(count, "x") < 4

        def advance(state):
            count, value = state
            return count + 1, value + c.psum_scatter(c.all_gather(value, "x"), "x")

        start = jax.lax.axis_index("x") % 2
        looped = jax.lax.while_loop(condition, advance, (start, x))

        # The same branch on every device: its predicate comes out of a collective.
        agreed = c.psum(x[0], mesh.axis_names) > 0
        branched = jax.lax.cond(
            agreed, lambda x: x * c.pmax(x, "x"), lambda x: x + c.pmin(x, "x"), x
        )
        switched = jax.lax.switch(
            c.pmax(jnp.abs(x[0]), mesh.axis_names).astype(int),
            [lambda x: x + c.psum(x, "x"), lambda x: x - c.psum(x, "x"), lambda x: x],
            x,
        )
        gradient = jax.grad(lambda x: jnp.sum(scanned(x)[0] ** 2))(x)
        return scanned(x), looped, branched, switched, gradient

    check(
        lambda c, x: per_device(mesh, lambda x: body(c, x), check_vma=check_vma)(x),
        x,
        expect_served="in part",
    )


@pytest.mark.parametrize("policy", [None, jax.checkpoint_policies.nothing_saveable])
@pytest.mark.parametrize("check_vma", [True, False])
def test_remat_matches_lax(check_vma, policy):
    mesh = make_mesh((2, 4))
    x = small_integers((8, 4, 4), bound=2)

    def body(c, x):
        @functools.partial(jax.checkpoint, policy=policy)
        def layer(x):
            return c.psum(x @ x, "y") * x + c.all_gather(x, "x").sum(0)

        return jax.value_and_grad(lambda x: jnp.sum(layer(x)))(x)

    check(
        lambda c, x: per_device(mesh, lambda x: body(c, x), check_vma=check_vma)(x),
        x,
        expect_served="in part",
    )


def test_custom_vjp_matches_lax():
    """The pair of functions that tensor parallelism is made of."""
    mesh = make_mesh((2, 4))
    x = small_integers((8, 3))

    def body(c, x):
        @jax.custom_vjp
        def identity_then_sum(x):
            return x

        identity_then_sum.defvjp(lambda x: (x, None), lambda _, ct: (c.psum(ct, "y"),))

        @jax.custom_jvp
        def total(x):
            return c.psum(x, "x")

        total.defjvp(lambda primals, tangents: (total(*primals), 3 * c.psum(tangents[0], "x")))

        return jax.grad(lambda x: jnp.sum(identity_then_sum(x) * x))(x), jax.jvp(total, (x,), (x,))

    check(lambda c, x: per_device(mesh, lambda x: body(c, x), check_vma=False)(x), x)


@pytest.mark.parametrize("check_vma", [True, False])
def test_nested_shard_maps_match_lax(check_vma):
    """The outer one is manual over x alone, the inner one adds y."""
    mesh = make_mesh((2, 4), order=(6, 1, 0, 4, 5, 2, 7, 3))
    x = small_integers((4, 8))

    def program(c, x):
        def inner(x):
            return c.psum(x, "y") + c.all_gather(x, "x").sum(0), c.ppermute(x, "y", [(1, 2)])

        def outer(x):
            inside = jax.shard_map(
                inner,
                in_specs=P(None, "y"),
                out_specs=(P(None, "y"), P(None, "y")),
                axis_names={"y"},
                check_vma=check_vma,
            )
            summed, moved = inside(x)
            return c.psum(summed, "x") + moved

        return jax.shard_map(
            outer,
            mesh=mesh,
            in_specs=P("x", None),
            out_specs=P("x", None),
            axis_names={"x"},
            check_vma=check_vma,
        )(x)

    check(program, x)


def test_inner_jits_keep_the_implementation_of_the_outer_one():
    mesh = make_mesh((8,))
    x = small_integers((8, 4))

    def body(c, x):
        @jax.jit
        def inner(x):
            return c.psum(x, "x") + c.all_gather(x, "x").sum(0)

        return inner(x) * inner(x + 1) - jax.jit(inner)(x)

    check(lambda c, x: per_device(mesh, lambda x: body(c, x))(x), x)


@pytest.mark.parametrize("check_vma", [True, False])
def test_ragged_all_to_all_transposes_to_itself(check_vma):
    """Sending back what arrived: the gradient of 0.5 sum(result ** 2) at the sender is what it
    sent, and zero in rows that it did not send."""
    n = 4
    mesh = make_mesh((n,))
    operand = small_integers((n, 6))
    output = np.zeros((n, 6), np.float32)
    sizes = np.ones((n, n), np.int32)
    offsets = np.tile(np.arange(n, dtype=np.int32), (n, 1))
    received_at = np.tile(np.arange(n, dtype=np.int32)[:, None], (1, n))

    def program(c, operand, output, offsets, sizes, received_at):
        def body(operand, output, *slices):
            def loss(operand):
                result = c.ragged_all_to_all(operand, output, *slices, axis_name="x")
                return 0.5 * jnp.sum(result**2)

            return jax.grad(loss)(operand)

        mapped = per_device(mesh, body, check_vma=check_vma)
        return mapped(operand, output, offsets, sizes, received_at, sizes)

    expected = operand.copy()
    expected[:, n:] = 0
    # lax's rule selects by an integer mask, which is an error.
    check(
        program,
        *(operand, output, offsets, sizes, received_at),
        expected=expected,
        implementations=[API],
    )


@pytest.mark.parametrize("check_vma", [True, False])
def test_pbroadcast_gradient_gathers_at_the_source(check_vma):
    mesh = make_mesh((4,))
    x = small_integers((4, 3))
    weights = small_integers((4, 3), seed=1)

    def program(c, x, weights):
        def body(x, weights):
            return jax.grad(lambda x: jnp.sum(c.pbroadcast(x, "x", 2) * weights))(x)

        return per_device(mesh, body, check_vma=check_vma)(x, weights)

    expected = np.zeros_like(x)
    expected[2] = weights.sum(0)
    # lax's rule builds an array from a fill value that is one, which is an error.
    check(program, x, weights, expected=expected, implementations=[API])


@pytest.mark.parametrize("check_vma", [True, False])
def test_pbroadcast_and_ragged_all_to_all_batch(check_vma):
    n = 4
    mesh = make_mesh((n,))
    operand = small_integers((n, 3, n))
    offsets = np.tile(np.arange(n, dtype=np.int32), (n, 3, 1))
    received_at = np.tile(np.arange(n, dtype=np.int32)[:, None, None], (1, 3, n))
    sizes = np.ones((n, 3, n), np.int32)

    def program(c, operand, offsets, received_at, sizes):
        def element(operand, offsets, received_at, sizes):
            result = c.ragged_all_to_all(
                *(operand, jnp.zeros_like(operand), offsets, sizes, received_at, sizes),
                axis_name="x",
            )
            return result, c.pbroadcast(operand, "x", 1)

        return per_device(mesh, jax.vmap(element), check_vma=check_vma)(
            operand, offsets, received_at, sizes
        )

    exchanged = operand.transpose(2, 1, 0)
    broadcast = np.broadcast_to(operand[1], operand.shape)
    check(program, operand, offsets, received_at, sizes, expected=(exchanged, np.array(broadcast)))
