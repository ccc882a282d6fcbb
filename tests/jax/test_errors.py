"""Bad input: refused while tracing where that is possible, an error on every device where not."""

import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lax_oracle import make_mesh, per_device, small_integers
from subprocesses import run_python

import jaxcoll

MESH_SHAPE = (8,)


def trace(body, x=None, check_vma=True, shape=MESH_SHAPE):
    """Traces and lowers, but does not run."""
    mesh = make_mesh(shape)
    if x is None:
        x = small_integers((mesh.size, 8))
    return jax.jit(per_device(mesh, body, check_vma=check_vma)).lower(x)


# --- refused while tracing ----------------------------------------------------------------------


def test_an_unknown_axis_is_laxs_name_error():
    with pytest.raises(NameError, match="nowhere"):  # lax only where VMA is not tracked
        trace(lambda x: jax.lax.psum(x, "nowhere"), check_vma=False)
    for function in (
        lambda x: jaxcoll.psum(x, "nowhere"),
        lambda x: jaxcoll.all_gather(x, "nowhere"),
        lambda x: jaxcoll.psum_scatter(x, "nowhere"),
        lambda x: jaxcoll.all_to_all(x, "nowhere", 0, 0),
        lambda x: jaxcoll.ppermute(x, "nowhere", [(0, 1)]),
        lambda x: jaxcoll.pbroadcast(x, "nowhere", 0),
        lambda x: jaxcoll.pmax(x, ("x", "nowhere")),
    ):
        for check_vma in (True, False):
            with pytest.raises(NameError, match="nowhere"):
                trace(function, check_vma=check_vma)


@pytest.mark.parametrize("call", ["psum", "pmean", "pmax", "pmin", "all_gather", "psum_scatter"])
def test_outside_of_any_mapped_axis_laxs_name_error_is_raised(call):
    x = np.ones(8, np.float32)
    with pytest.raises(NameError, match="x"):
        getattr(jax.lax, call)(jnp.asarray(x), "x")
    with pytest.raises(NameError, match="x"):
        getattr(jaxcoll, call)(jnp.asarray(x), "x")


def test_an_unknown_op_names_the_choices():
    with pytest.raises(jaxcoll.UnknownReduceOpError, match=r"(?s)median.*sum.*max") as raised:
        trace(lambda x: jaxcoll.all_reduce(x, "x", op="median"))
    assert isinstance(raised.value, ValueError)


def test_an_unknown_algorithm_names_the_choices():
    with pytest.raises(jaxcoll.UnknownAlgorithmError, match=r"(?s)rign.*ring") as raised:
        trace(lambda x: jaxcoll.all_reduce(x, "x", algorithm="rign"))
    assert isinstance(raised.value, ValueError)


@pytest.mark.parametrize(
    ("op", "dtype"),
    [("and", np.float32), ("max", np.complex64), ("xor", np.complex64), ("or", np.float16)],
)
def test_an_op_that_the_dtype_lacks_names_those_it_has(op, dtype):
    x = small_integers((8, 4), dtype)
    with pytest.raises(jaxcoll.UnsupportedDtypeError, match=r"sum") as raised:
        trace(lambda x: jaxcoll.all_reduce(x, "x", op=op), x)
    assert isinstance(raised.value, TypeError)
    assert np.dtype(dtype).name in str(raised.value)


@pytest.mark.parametrize(
    ("groups", "reason"),
    [
        ([[0, 1, 2], [3, 4, 5, 6, 7]], "size"),
        ([[0, 1], [2, 3]], "cover"),
        ([[0, 1, 2, 3], [4, 5, 6, 6]], "cover|once"),
        ([[0, 1, 2, 3], [4, 5, 6, 8]], "cover|once"),
        ([], "cover|group"),
    ],
)
@pytest.mark.parametrize("check_vma", [True, False])
def test_axis_index_groups_must_be_equal_and_cover_the_axis(groups, reason, check_vma):
    for function in (
        lambda x: jaxcoll.psum(x, "x", axis_index_groups=groups),
        lambda x: jaxcoll.all_gather(x, "x", axis_index_groups=groups),
    ):
        with pytest.raises(ValueError, match=reason):
            trace(function, check_vma=check_vma)


def test_a_permutation_with_duplicates_is_laxs_value_error():
    for perm in ([(0, 1), (2, 1)], [(0, 1), (0, 2)]):
        for c in (jax.lax, jaxcoll):
            with pytest.raises(ValueError, match="unique"):
                trace(lambda x, c=c, perm=perm: c.ppermute(x, "x", perm))


def test_a_permutation_out_of_range_is_refused():
    with pytest.raises(ValueError, match="8"):
        trace(lambda x: jaxcoll.ppermute(x, "x", [(0, 8)]))


def test_dimensions_that_do_not_fit_are_laxs_value_errors():
    x = small_integers((8, 6))
    for c in (jax.lax, jaxcoll):
        for function in (
            lambda x, c=c: c.psum_scatter(x, "x"),
            lambda x, c=c: c.psum_scatter(x, "x", tiled=True),
            lambda x, c=c: c.all_to_all(x, "x", 0, 0),
            lambda x, c=c: c.all_to_all(x, "x", 0, 0, tiled=True),
        ):
            with pytest.raises(ValueError, match=r"6.*8|8.*6"):
                trace(function, x)


def test_a_source_out_of_range_is_refused():
    with pytest.raises(ValueError, match="8"):
        trace(lambda x: jaxcoll.broadcast(x, "x", 8))


def test_ragged_sizes_must_be_integers_and_fit_the_axis():
    def exchange(x, sizes):
        return jaxcoll.ragged_all_to_all(*(x, x, sizes, sizes, sizes, sizes), axis_name="x")

    with pytest.raises(ValueError, match="integer"):
        trace(lambda x: exchange(x, jnp.ones(8)))
    with pytest.raises(ValueError, match="8"):
        trace(lambda x: exchange(x, jnp.ones(7, int)))


# --- refused at run time ------------------------------------------------------------------------

# Devices disagree by branching on their index, which shard_map only allows where VMA is not
# tracked. A script of its own runs them all with a short deadline.

RUN_TIME_ERRORS = """
    import re
    import sys
    import time

    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import Mesh, PartitionSpec as P

    import jaxcoll

    mesh = Mesh(np.array(jax.devices()), ("dp",))
    x = jax.device_put(np.arange(64, dtype=np.float32).reshape(8, 8),
                       jax.NamedSharding(mesh, P("dp")))

    def mapped(body):
        return jax.jit(jax.shard_map(lambda x: body(x[0])[None], mesh=mesh, in_specs=P("dp"),
                                     out_specs=P("dp"), check_vma=False))

    total = mapped(lambda x: jaxcoll.psum(x, "dp"))
    np.testing.assert_array_equal(np.asarray(total(x))[0], np.asarray(x).sum(0))

    def fails(body, *patterns, seconds, absent=()):
        start = time.monotonic()
        result = mapped(body)(x)
        try:
            result.block_until_ready()
        except jax.errors.JaxRuntimeError as error:
            text = str(error)
        else:
            raise AssertionError("no error")
        took_s = time.monotonic() - start
        print(text)
        for pattern in patterns:
            assert re.search(pattern, text), f"{pattern!r} is not in: {text}"
        assert seconds[0] <= took_s <= seconds[1], f"after {took_s} s"
        # Nobody who made the call sees a result.
        for shard in result.addressable_shards:
            if shard.device.id in absent:
                continue
            try:
                np.asarray(shard.data)
            except jax.errors.JaxRuntimeError:
                continue
            raise AssertionError(f"{shard.device} has a result")
        # Only that call failed.
        np.testing.assert_array_equal(np.asarray(total(x))[6], np.asarray(x).sum(0))

    def index():
        return jax.lax.axis_index("dp")

    def disagree(ours, theirs):
        return lambda x: jax.lax.cond(index() == 5, theirs, ours, x)

    def ragged(x, offsets=None, sizes=None, at=None, expects=None):
        ones = jnp.ones(8, jnp.int32)
        return jaxcoll.ragged_all_to_all(
            jnp.tile(x, 2), jnp.tile(x, 2),
            jnp.arange(8, dtype=jnp.int32) if offsets is None else offsets,
            ones if sizes is None else sizes,
            jnp.full(8, index(), jnp.int32) if at is None else at,
            ones if expects is None else expects,
            axis_name="dp")[:8]

    psum = lambda x: jaxcoll.psum(x, "dp")
    late, soon = (3, 60), (0, 60)
"""


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            """fails(disagree(psum, lambda x: jaxcoll.pmax(x, "dp")),
                     "sum", "max", "JAXCOLL_TIMEOUT_S", seconds=late)
               fails(disagree(psum, lambda x: jnp.pad(psum(x[:3]), (0, 5))),
                     "8", "3", seconds=late)
               fails(disagree(psum, lambda x: psum(x.astype(jnp.int32)).astype(x.dtype)),
                     "(?i)f32|float32", "(?i)s32|int32", seconds=late)""",
            id="op, shape or dtype differ",
        ),
        pytest.param(
            """fails(disagree(psum, lambda x: jaxcoll.all_to_all(x, "dp", 0, 0, tiled=True)),
                     "all_reduce", "all_to_all", seconds=late)
               fails(disagree(lambda x: jaxcoll.all_reduce(x, "dp", algorithm="ring"),
                              lambda x: jaxcoll.all_reduce(x, "dp", algorithm="direct")),
                     "ring", "direct", seconds=late)""",
            id="collective or algorithm differ",
        ),
        pytest.param(
            """fails(lambda x: jax.lax.cond(index() == 3, lambda x: x, psum, x),
                     "all_reduce", "dp", "8 ranks", "arrived: .*rank 0.*rank 7",
                     "missing: rank 3", "JAXCOLL_TIMEOUT_S", seconds=late, absent=[3])
               fails(lambda x: jax.lax.while_loop(lambda s: s[0] < 2 + (index() == 6),
                                                  lambda s: (s[0] + 1, psum(s[1])), (0, x))[1],
                     "arrived: rank 6", "missing: rank 0.*rank 7", seconds=late,
                     absent=[0, 1, 2, 3, 4, 5, 7])""",
            id="a device never arrives",
        ),
        pytest.param(
            """fails(lambda x: ragged(x, expects=jnp.where(index() == 2, 2, jnp.ones(8, int))),
                     "rank 2", "2", "1", seconds=soon)
               fails(lambda x: ragged(x, at=jnp.full(8, 100, jnp.int32)), "100", seconds=soon)
               fails(lambda x: ragged(x, offsets=jnp.full(8, -7, jnp.int32)), "-7", seconds=soon)
               fails(lambda x: ragged(x, sizes=jnp.full(8, -1, jnp.int32)), "-1", seconds=soon)""",
            id="ragged sizes disagree or do not fit",
        ),
        pytest.param(
            """bad = mapped(disagree(psum, lambda x: jaxcoll.pmin(x, "dp")))
               for _ in range(2):
                   first, healthy, second = bad(x), total(x), bad(x)
                   np.testing.assert_array_equal(np.asarray(healthy)[0], np.asarray(x).sum(0))
                   for result in (first, second):
                       try:
                           result.block_until_ready()
                       except jax.errors.JaxRuntimeError:
                           continue
                       raise AssertionError("no error")""",
            id="healthy programs between failing ones",
        ),
    ],
)
def test_a_failing_call_is_an_error_on_every_device_and_the_process_lives_on(case):
    run_python(
        textwrap.dedent(RUN_TIME_ERRORS) + textwrap.dedent(f"{'':15}{case}"),
        environment={"JAXCOLL_TIMEOUT_S": "3"},
        timeout_s=180,
    )
