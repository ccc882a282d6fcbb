"""Special values and small floats: what tolerances and exact integers do not show."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from lax_oracle import API, INSTALLED, LAX, check, make_mesh, per_device, run
from strategies import FLOAT8, FLOATS


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: np.dtype(d).name)
def test_nans_and_infinities_propagate_as_in_lax(dtype):
    """One column per pair of special values, on ranks 2 and 6; the others hold ones."""
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0], np.float64)
    first, second = (grid.ravel() for grid in np.meshgrid(special, special))
    x = np.ones((8, first.size))
    x[2], x[6] = first, second
    x = x.astype(dtype)
    mesh = make_mesh((8,))

    def sums(c, x):
        return c.psum(x, "x"), c.psum_scatter(jnp.broadcast_to(x, (8, x.size)), "x")

    check(lambda c, x: per_device(mesh, lambda x: sums(c, x))(x), x)

    # A maximum with a NaN is NaN, as in lax.max and lax.reduce_max. XLA's own all-reduce on CPU
    # gives either operand, whichever comes first, so lax.pmax cannot be the oracle here.
    def maxima(c, x):
        return c.pmax(x, "x"), c.pmin(x, "x")

    def reference(c, x):
        gathered = c.all_gather(x, "x")
        return jnp.max(gathered, axis=0), jnp.min(gathered, axis=0)

    expected = run(LAX, lambda c, x: per_device(mesh, lambda x: reference(c, x))(x), x)
    check(lambda c, x: per_device(mesh, lambda x: maxima(c, x))(x), x, expected=expected)


@pytest.mark.parametrize("dtype", FLOAT8, ids=lambda d: np.dtype(d).name)
def test_small_floats_are_added_in_float32_and_rounded_once(dtype):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 500)).astype(dtype)
    mesh = make_mesh((8,))
    # In the order of the ranks, the only order that one pass over all of them has.
    expected = x.astype(np.float32).sum(0, dtype=np.float32).astype(dtype)
    for implementation in (API, INSTALLED):
        result = run(
            implementation,
            lambda c, x: per_device(mesh, lambda x: c.psum(x, "x"))(x),
            x,
            expect_served=True,
        )
        for rank in range(8):
            assert result[rank].tobytes() == expected.tobytes(), implementation.name


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_sixteen_bit_sums_do_not_lose_what_single_roundings_would(dtype):
    """1 + eps/2 + eps/2 is 1 when every addition rounds, and 1 + eps when only the last does."""
    eps = float(ml_dtypes.finfo(dtype).eps)
    x = np.zeros((8, 3))
    x[0], x[3], x[7] = 1.0, eps / 2, eps / 2
    x = x.astype(dtype)
    mesh = make_mesh((8,))
    for implementation in (API, INSTALLED):
        result = run(implementation, lambda c, x: per_device(mesh, lambda x: c.psum(x, "x"))(x), x)
        np.testing.assert_array_equal(result.astype(np.float64), 1 + eps)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int64, np.uint64])
def test_integers_wrap_as_in_lax(dtype):
    info = np.iinfo(dtype)
    x = np.array([[info.max, info.min, info.max // 3]] * 8, dtype)
    mesh = make_mesh((8,))
    check(lambda c, x: per_device(mesh, lambda x: c.psum(x, "x"))(x), x)


@pytest.mark.parametrize("elements", [1, 3, 63, 64, 65, 1000, 16_385, 300_007])
def test_sizes_around_vectors_slices_and_pages(elements):
    """Odd lengths leave tails in every vectorised loop and every split over threads."""
    mesh = make_mesh((8,))
    x = (np.arange(8 * elements, dtype=np.int64).reshape(8, elements) * 7919 % 128).astype(
        np.float32
    )

    def body(c, x):
        return c.psum(x, "x"), c.pmax(x, "x"), c.all_gather(x, "x"), c.ppermute(x, "x", [(0, 5)])

    check(lambda c, x: per_device(mesh, lambda x: body(c, x))(x), x)


def test_tolerances_hold_for_random_floats():
    """Close to lax's own sums, not bitwise: lax adds in an order of its own."""
    mesh = make_mesh((8,))
    x = np.random.default_rng(3).normal(size=(8, 8, 200)).astype(np.float32)

    def body(c, x):
        return c.psum(x, "x"), c.pmean(x, "x"), c.psum_scatter(x, "x"), jax.nn.softmax(x)

    check(lambda c, x: per_device(mesh, lambda x: body(c, x))(x), x, tolerance=1e-5)
