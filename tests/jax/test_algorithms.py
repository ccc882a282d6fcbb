"""Every algorithm of every collective, for groups of 2 to 8 ranks, against lax on integers."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lax_oracle import LAX, TARGET, make_mesh, per_device, place, run, small_integers

import jaxcoll
from jaxcoll import schedule

CALLS = {
    "all_reduce": (
        lambda x, **how: jaxcoll.all_reduce(x, "x", **how),
        lambda x: jax.lax.psum(x, "x"),
    ),
    "reduce_scatter": (
        lambda x, **how: jaxcoll.reduce_scatter(x, "x", tiled=True, **how),
        lambda x: jax.lax.psum_scatter(x, "x", tiled=True),
    ),
    "all_gather": (
        lambda x, **how: jaxcoll.all_gather(x, "x", **how),
        lambda x: jax.lax.all_gather(x, "x"),
    ),
    "all_to_all": (
        lambda x, **how: jaxcoll.all_to_all(x, "x", 0, 0, tiled=True, **how),
        lambda x: jax.lax.all_to_all(x, "x", 0, 0, tiled=True),
    ),
    "broadcast": (
        lambda x, **how: jaxcoll.broadcast(x, "x", 1, **how),
        lambda x: jax.lax.all_gather(x, "x")[1],
    ),
    "permute": (
        lambda x, **how: jaxcoll.ppermute(x, "x", [(1, 0), (0, 1)], **how),
        lambda x: jax.lax.ppermute(x, "x", [(1, 0), (0, 1)]),
    ),
}

ALGORITHMS = [
    (collective, algorithm) for collective in CALLS for algorithm in schedule.algorithms(collective)
]


ORDER = (5, 2, 7, 0, 3, 6, 1, 4)


def inputs(collective, size):
    shapes = [(size * 3, 7), (size,)]
    if collective == "all_reduce":
        shapes += [(), (1,), (13,), (20_001,)]
    return [small_integers((size, *shape), seed=i) for i, shape in enumerate(shapes)]


@functools.cache
def laxs_results(collective, size):
    """Of `inputs`; whatever the algorithm."""
    mesh, (_, theirs) = make_mesh((size,), ORDER), CALLS[collective]
    return run(
        LAX,
        lambda c, x: per_device(mesh, lambda x: jax.tree.map(theirs, x))(x),
        inputs(collective, size),
    )


@pytest.mark.parametrize(("collective", "algorithm"), ALGORITHMS)
def test_every_algorithm_matches_lax_for_every_group_size(collective, algorithm):
    """Sizes are chosen so that ranks' chunks are of different lengths; several vectors in one call
    keep to themselves."""
    ours, _ = CALLS[collective]
    for size in range(2, 9):
        mesh = make_mesh((size,), ORDER)
        x = inputs(collective, size)

        def body(x, ours=ours):
            return ours(x, algorithm=algorithm)

        lowered = jax.jit(per_device(mesh, body)).lower(x)
        assert f'algorithm = "{algorithm}"' in lowered.as_text()
        actual = jax.tree.map(np.asarray, lowered.compile()(x))
        for a, b in zip(actual, laxs_results(collective, size), strict=True):
            np.testing.assert_array_equal(a, b, err_msg=f"{size} ranks")


@pytest.mark.parametrize("algorithm", schedule.algorithms("all_reduce"))
@pytest.mark.parametrize("op", ["sum", "prod", "min", "max", "and", "or", "xor", "mean"])
def test_every_reduce_op_matches_numpy_under_every_algorithm(algorithm, op):
    mesh = make_mesh((8,))
    x = small_integers((8, 33), np.int32, bound=3)
    expected = {
        "sum": x.sum(0, dtype=np.int32),
        "prod": x.prod(0, dtype=np.int32),
        "min": x.min(0),
        "max": x.max(0),
        "and": np.bitwise_and.reduce(x),
        "or": np.bitwise_or.reduce(x),
        "xor": np.bitwise_xor.reduce(x),
        "mean": (x.sum(0) / 8).astype(np.float32),
    }[op]

    def body(x):
        return jaxcoll.all_reduce(x, "x", op=op, algorithm=algorithm)

    result = np.asarray(jax.jit(per_device(mesh, body))(x))
    assert result.dtype == expected.dtype
    for rank in range(8):
        np.testing.assert_array_equal(result[rank], expected)


@pytest.mark.parametrize(
    ("collective", "algorithm"),
    [(c, a) for c, a in ALGORITHMS if c in ("all_reduce", "reduce_scatter")],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_floats_are_bitwise_equal_on_all_ranks_and_in_all_runs(collective, algorithm, dtype):
    """Random floats: their sum depends on the order of additions, which the schedule fixes."""
    mesh = make_mesh((8,))
    ours, _ = CALLS[collective]
    x = np.random.default_rng(0).normal(size=(8, 4000)) * 10.0 ** np.arange(-4, 4)[:, None]
    x = place(mesh, jnp.asarray(x, dtype))

    def body(x):
        y = ours(x, algorithm=algorithm)
        return y if collective == "all_reduce" else jax.lax.all_gather(y, "x", tiled=True)

    function = jax.jit(per_device(mesh, body))
    first = np.asarray(function(x)).view(np.uint16)
    for rank in range(1, 8):
        np.testing.assert_array_equal(first[rank], first[0])
    for _ in range(10):
        np.testing.assert_array_equal(np.asarray(function(x)).view(np.uint16), first)

    expected = np.asarray(x, np.float64).sum(0)
    error = np.abs(np.asarray(function(x), np.float64)[0] - expected)
    # Eight terms: at most 7 roundings of partial sums no larger than the sum of magnitudes.
    bound = 8 * jnp.finfo(dtype).eps * np.abs(np.asarray(x, np.float64)).sum(0)
    assert (error <= bound).all()


def test_fusing_leaves_does_not_change_a_bit():
    mesh = make_mesh((8,))
    rng = np.random.default_rng(1)
    leaves = [rng.normal(size=(8, n)).astype(np.float32) for n in (1, 7, 64, 1000, 12_345)]

    def together(x):
        return jaxcoll.psum(x, "x")

    def apart(x):
        return [jaxcoll.psum(leaf, "x") for leaf in x]

    fused = jax.jit(per_device(mesh, together))(leaves)
    single = jax.jit(per_device(mesh, apart))(leaves)
    for a, b in zip(fused, single, strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_a_requested_algorithm_really_runs():
    """Different algorithms add in different orders, which shows in floats of mixed magnitude."""
    mesh = make_mesh((8,))
    rng = np.random.default_rng(2)
    x = (rng.normal(size=(8, 4096)) * 10.0 ** rng.integers(-3, 4, (8, 4096))).astype(np.float32)
    results = {}
    for algorithm in ("direct", "ring"):

        def body(x, algorithm=algorithm):
            return jaxcoll.all_reduce(x, "x", algorithm=algorithm)

        results[algorithm] = np.asarray(jax.jit(per_device(mesh, body))(x))[0]

    # A ring's chunk starts at one rank and collects the values of the following ranks in turn.
    for c, chunk in enumerate(np.array_split(x, 8, axis=1)):
        rotations = [in_order(np.roll(chunk, -start, axis=0)) for start in range(8)]
        assert len({rotation.tobytes() for rotation in rotations}) == 8, "the order must show"
        ran = np.array_split(results["ring"], 8)[c]
        assert any(np.array_equal(ran, rotation) for rotation in rotations), f"chunk {c}"
    assert not np.array_equal(results["ring"], results["direct"])


def in_order(rows):
    total = rows[0]
    for row in rows[1:]:
        total = total + row
    return total


def test_auto_is_resolved_while_tracing():
    mesh = make_mesh((8,))
    text = (
        jax.jit(per_device(mesh, lambda x: jaxcoll.psum(x, "x")))
        .lower(small_integers((8, 4)))
        .as_text()
    )
    assert TARGET in text
    assert '"auto"' not in text


def dims_in(lowered):
    found = set(re.findall(r"dims = array<i64(?:: ([^>]*))?>", lowered.as_text()))
    assert len(found) == 1, found
    return found.pop()


@pytest.mark.parametrize(
    ("collective", "algorithm"),
    [(c, a) for c, a in ALGORITHMS if schedule.dims_kind(c, a) in ("torus", "nodes")],
)
def test_over_several_axes_an_algorithm_takes_them_for_its_dims(collective, algorithm):
    _, theirs = CALLS[collective]
    mesh = make_mesh((2, 4), order=(3, 6, 1, 0, 7, 5, 2, 4))
    both = jax.sharding.Mesh(mesh.devices.reshape(8), ("x",))
    x = small_integers((8, 24, 5))
    expected = np.asarray(jax.jit(per_device(both, theirs))(x))

    def over(axes, name):
        rebound = {"x": axes}

        def body(x):
            return getattr(jaxcoll, collective)(
                x,
                rebound["x"],
                **({} if collective != "all_to_all" else {"split_axis": 0, "concat_axis": 0}),
                **({} if collective in ("all_reduce", "all_gather") else {"tiled": True}),
                algorithm=name,
            )

        return jax.jit(per_device(mesh, body)).lower(x)

    for axes, name, dims in (
        (("x", "y"), algorithm, "2, 4"),
        (("y", "x"), algorithm, "4, 2"),
        (("x", "y"), f"{algorithm}[4x2]", "4, 2"),
        (("x", "y"), f"{algorithm}[2x4]", "2, 4"),
    ):
        lowered = over(axes, name)
        assert dims_in(lowered) == dims
        assert f'algorithm = "{algorithm}"' in lowered.as_text()
        if axes == ("x", "y"):
            np.testing.assert_array_equal(np.asarray(lowered.compile()(x)), expected)
    assert dims_in(over("y", algorithm)) == ""  # one axis says nothing: the algorithm's default
    with pytest.raises(jaxcoll.WorldSizeError, match="does not fit 8 ranks"):
        over(("x", "y"), f"{algorithm}[3x3]")


def test_groups_of_an_axis_say_nothing_of_their_places():
    mesh = make_mesh((8,))

    def body(x):
        groups = [[0, 1, 2, 3], [4, 5, 6, 7]]
        return jaxcoll.all_reduce(x, "x", axis_index_groups=groups, algorithm="bucket[2x2]")

    x = small_integers((8, 24))
    lowered = jax.jit(per_device(mesh, body, check_vma=False)).lower(x)
    assert dims_in(lowered) == "2, 2"
    np.testing.assert_array_equal(
        np.asarray(lowered.compile()(x)), np.repeat(x.reshape(2, 4, 24).sum(1), 4, axis=0)
    )


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        ("ring[2x4]", "ring takes no dims"),
        ("swing[2x", "write the dims as positive numbers in brackets"),
        ("auto[8]", "has no algorithm 'auto"),
        ("swirl[8]", "choose one of auto, direct"),
    ],
)
def test_dims_that_mean_nothing_are_refused_while_tracing(algorithm, message):
    mesh = make_mesh((8,))
    error = jaxcoll.WorldSizeError if "ring" in algorithm else jaxcoll.UnknownAlgorithmError
    with pytest.raises(error, match=re.escape(message)):
        jax.eval_shape(
            per_device(mesh, lambda x: jaxcoll.all_reduce(x, "x", algorithm=algorithm)),
            small_integers((8, 4)),
        )


@pytest.mark.parametrize("algorithm", ["bucket", "swing", "swing_latency", "hierarchical_tree"])
def test_floats_on_a_torus_are_bitwise_equal_on_all_ranks_and_in_all_runs(algorithm):
    mesh = make_mesh((2, 4))
    x = np.random.default_rng(3).normal(size=(8, 4001)) * 10.0 ** np.arange(-4, 4)[:, None]
    x = place(mesh, jnp.asarray(x, jnp.float32))

    def body(x):
        return jaxcoll.all_reduce(x, ("x", "y"), algorithm=algorithm)

    function = jax.jit(per_device(mesh, body))
    results = {np.asarray(function(x))[rank].tobytes() for rank in range(8) for _ in range(3)}
    assert len(results) == 1
