"""install(), uninstall(), installed(): lax's own collectives, lowered through jaxcoll or not."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from lax_oracle import (
    INSTALLED,
    LAX,
    TARGET,
    XLA_COLLECTIVES,
    check,
    make_mesh,
    per_device,
    run,
    small_integers,
)
from subprocesses import run_python

import jaxcoll
from jaxcoll._jax import install


@pytest.fixture
def function():
    """A jitted function of its own for each test, so that none finds it cached."""
    mesh = make_mesh((8,))
    return jax.jit(per_device(mesh, lambda x: jax.lax.psum(x, "x") + jax.lax.pmax(x, "x")))


@pytest.fixture
def x():
    return small_integers((8, 4))


@pytest.fixture(autouse=True)
def _leaves_nothing_behind():
    yield
    jaxcoll.uninstall()


def routed(function, *arguments):
    """Whether the program lowered here and now goes through jaxcoll."""
    text = function.lower(*arguments).as_text()
    through_xla = any(name in text for name in XLA_COLLECTIVES)
    assert (TARGET in text) != through_xla, f"neither one nor the other:\n{text}"
    return TARGET in text


def test_each_setting_has_its_own_executable_and_both_stay_cached(function, x):
    traces = []

    def counted(x):
        traces.append(1)
        return jax.lax.psum(x, "x")

    counted = jax.jit(per_device(make_mesh((8,)), counted))
    expected = np.broadcast_to(x.sum(0), x.shape)
    for _ in range(3):
        np.testing.assert_array_equal(counted(x), expected)
        with jaxcoll.installed():
            np.testing.assert_array_equal(counted(x), expected)
    assert len(traces) == 2


def test_a_function_compiled_before_is_compiled_anew_inside_and_kept_after(function, x):
    function(x)
    assert not routed(function, x)
    with jaxcoll.installed():
        function(x)
        assert routed(function, x)
    function(x)
    assert not routed(function, x)


def test_the_setting_where_a_program_is_lowered_counts(function, x):
    traced_outside = function.trace(x)
    with jaxcoll.installed():
        lowered_inside = function.lower(x)
        assert TARGET in traced_outside.lower().as_text()
    compiled = lowered_inside.compile()
    assert TARGET in compiled.as_text()
    np.testing.assert_array_equal(compiled(x)[0], x.sum(0) + x.max(0))
    # The same trace, lowered again under the other setting.
    assert TARGET not in traced_outside.lower().as_text()


def test_install_is_global_and_uninstall_undoes_it(function, x):
    function(x)
    jaxcoll.install()
    assert routed(function, x)
    jaxcoll.install()  # twice is once
    seen = in_a_thread(lambda: routed(function, x))
    assert seen == [True]
    jaxcoll.uninstall()
    assert not routed(function, x)
    jaxcoll.uninstall()


def test_contexts_nest(function, x):
    with jaxcoll.installed():
        with jaxcoll.installed():
            assert routed(function, x)
        assert routed(function, x)
        jaxcoll.install()
        jaxcoll.uninstall()
        assert routed(function, x)
    assert not routed(function, x)


def test_a_context_is_left_by_an_error_too(function, x):
    with pytest.raises(ZeroDivisionError), jaxcoll.installed():
        raise ZeroDivisionError
    assert not routed(function, x)


def in_a_thread(work):
    results = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join(timeout=60)
    return results


def test_threads_have_their_own_setting(function, x):
    """One thread inside installed(), one outside, calling one function at the same time."""
    expected = x.sum(0) + x.max(0)
    both_ready = threading.Barrier(2, timeout=60)
    seen = {}

    def work(name, context):
        with context:
            both_ready.wait()
            for _ in range(5):
                np.testing.assert_array_equal(function(x)[0], expected)
            seen[name] = routed(function, x)
            both_ready.wait()  # neither leaves before both have looked

    threads = [
        threading.Thread(target=work, args=("inside", INSTALLED.context())),
        threading.Thread(target=work, args=("outside", LAX.context())),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert seen == {"inside": True, "outside": False}


def test_inner_jits_follow_the_program_they_are_part_of(x):
    mesh = make_mesh((8,))
    inner = jax.jit(lambda x: jax.lax.psum(x, "x"))
    function = jax.jit(per_device(mesh, lambda x: inner(x) + inner(x * 2)))
    function(x)
    with jaxcoll.installed():
        assert routed(function, x)
        np.testing.assert_array_equal(function(x)[3], 3 * x.sum(0))
    assert not routed(function, x)


def test_gradients_are_routed_with_the_psums_that_jax_inserts(x):
    mesh = make_mesh((8,))

    def loss(w, x):
        body = jax.shard_map(
            lambda w, x: jax.lax.pmean((w * x).sum(), "x"),
            mesh=mesh,
            in_specs=(P(), P("x")),
            out_specs=P(),
        )
        return body(w, x)

    gradient = jax.jit(jax.grad(loss))
    w = np.ones(4, np.float32)
    expected = gradient(w, x)
    with jaxcoll.installed():
        assert routed(gradient, w, x)
        np.testing.assert_array_equal(gradient(w, x), expected)


def test_functions_without_jit_are_routed_too(x):
    """Outside of jit, shard_map compiles primitive by primitive, and caches them."""
    mesh = make_mesh((8,))
    eager = per_device(mesh, lambda x: jax.lax.psum(x, "x"))
    expected = np.asarray(eager(x))
    with jaxcoll.installed():
        np.testing.assert_array_equal(eager(x), expected)


def test_entering_it_while_a_function_is_traced_is_an_error(x):
    """There it could have no effect."""

    def body(x):
        with jaxcoll.installed():
            return jax.lax.psum(x, "x")

    with pytest.raises(RuntimeError, match="around the call"):
        jax.jit(per_device(make_mesh((8,)), body))(x)


def test_with_the_switch_off_programs_are_the_same_to_the_letter():
    """In a process that has never been routed, and after it has: also for platforms that lax
    lowers differently."""
    run_python(
        """
        import jax, numpy as np
        from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
        import jaxcoll

        mesh = Mesh(np.array(jax.devices()), ("x",))

        def body(x):
            c = jax.lax
            return (c.psum(x, "x"), c.pmin(x, "x"), c.all_gather(x, "x"),
                    c.psum_scatter(x, "x", tiled=True), c.ppermute(x, "x", [(0, 1)]),
                    c.all_to_all(x, "x", 0, 0, tiled=True))

        function = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=P("x"), out_specs=P("x"),
                                         check_vma=False))
        x = jax.device_put(np.ones((64, 2), np.float32), NamedSharding(mesh, P("x")))

        def texts():
            return [function.trace(x).lower(lowering_platforms=platforms).as_text()
                    for platforms in (("cpu",), ("cuda",), ("cpu", "cuda"))]

        before = texts()
        with jaxcoll.installed():
            routed = texts()
        jax.clear_caches()
        assert texts() == before
        assert "jaxcoll_collective" in routed[0] and routed[0] != before[0]
        assert routed[1:] == before[1:]  # not for CPU alone: left to XLA
        """
    )


# --- what is left to XLA ------------------------------------------------------------------------


def test_ragged_groups_are_left_to_xla(x):
    groups = [[0, 1, 2], [3, 4, 5, 6, 7]]

    def body(c, x):
        return c.psum(x, "x", axis_index_groups=groups)

    check(
        lambda c, x: per_device(make_mesh((8,)), lambda x: body(c, x), check_vma=False)(x),
        x,
        expect_served=False,
        implementations=[INSTALLED],
    )


def test_an_error_of_laxs_stays_laxs(x):
    """Refused by jaxcoll, so left to lax, which refuses it in its own words."""
    function = jax.jit(
        per_device(make_mesh((8,)), lambda x: jax.lax.ppermute(x, "x", [(0, 1), (2, 1)]))
    )
    with pytest.raises(ValueError, match="unique") as without:
        function.lower(x)
    with jaxcoll.installed(), pytest.raises(ValueError, match="unique") as inside:
        function.lower(x)
    assert str(inside.value) == str(without.value)
    complex_max = jax.jit(per_device(make_mesh((8,)), lambda x: jax.lax.pmax(x, "x")))
    with jaxcoll.installed():
        assert TARGET not in complex_max.lower(x.astype(np.complex64)).as_text()


def test_pbroadcast_without_installing_is_laxs_error(x):
    function = jax.jit(per_device(make_mesh((8,)), lambda x: jax.lax.pbroadcast(x, "x", 2)))
    with jaxcoll.installed():
        np.testing.assert_array_equal(function(x), np.broadcast_to(x[2], x.shape))
    with pytest.raises(NotImplementedError, match=r"pbroadcast.*not found for platform cpu"):
        function(x)


def test_permutations_over_axes_in_another_order_are_left_to_lax():
    """It counts ranks in the mesh's order or, from JAX 0.12 on, refuses; so does installed()."""
    mesh = make_mesh((2, 4))
    x = small_integers((8, 3))

    def program(c, x):
        pairs = [(i, (i + 1) % 8) for i in range(8)]
        return per_device(mesh, lambda x: c.ppermute(x, ("y", "x"), pairs), check_vma=False)(x)

    try:
        expected = run(LAX, program, x)
    except RuntimeError:
        with pytest.raises(RuntimeError, match="same order"):
            run(INSTALLED, program, x)
    else:
        actual = run(INSTALLED, program, x, expect_served=False)
        np.testing.assert_array_equal(actual, expected)


# --- the primitives -----------------------------------------------------------------------------


def test_every_primitive_of_lax_is_known():
    """A new JAX may bring new ones: they are left to XLA, listed, and noticed here."""
    assert install.unknown_primitives() == []


def test_the_report_covers_every_collective():
    report = {entry.primitive: entry for entry in jaxcoll.install_report()}
    served = {name for name, entry in report.items() if entry.treatment == "served"}
    assert {
        *("psum", "psum_invariant", "unreduced_psum", "pmax", "pmin", "ppermute", "pbroadcast"),
        *("all_to_all", "ragged_all_to_all", "all_gather", "all_gather_invariant"),
        *("all_gather_reduced", "reduce_scatter", "unreduced_reduce_scatter"),
    } <= served
    for name, entry in report.items():
        assert entry.treatment == "served" or entry.reason, f"no reason for {name}"
    assert "axis_index" not in report


def test_a_primitive_that_is_not_known_is_left_to_xla_and_listed(monkeypatch):
    known = install.compat.parallel_primitives()
    newcomer = next(iter(known.values()))
    monkeypatch.setattr(
        install.compat, "parallel_primitives", lambda: known | {"pfrobnicate": newcomer}
    )
    assert install.unknown_primitives() == ["pfrobnicate"]
    (entry,) = [e for e in jaxcoll.install_report() if e.primitive == "pfrobnicate"]
    assert entry.treatment == "left to XLA"
    assert "not known" in entry.reason


def test_the_typed_collectives_of_vma_are_served():
    """all_gather to invarying and to reduced, and what their transposes become: the unreduced
    reduce-scatter and psum."""
    mesh = make_mesh((8,))
    x = small_integers((8, 4))

    def program(c, x):
        def body(x):
            invariant = c.all_gather(x, "x", to="invarying")
            reduced = c.all_gather(x, "x", to="reduced", tiled=True)
            gradient = jax.grad(
                lambda x: jnp.sum(
                    jax.lax.pcast(c.all_gather(x, "x", to="reduced"), "x", to="varying") ** 2
                )
            )(x)
            unreduced = jax.lax.pcast(x, "x", to="unreduced")
            scattered = c.psum_scatter(
                jax.lax.pcast(jnp.tile(x, 2), "x", to="unreduced"), "x", tiled=True
            )
            summed = c.psum(unreduced, "x")
            return [
                invariant,
                jax.lax.pcast(reduced, "x", to="varying"),
                gradient,
                scattered,
                summed,
            ]

        return per_device(mesh, body)(x)

    check(program, x, implementations=[INSTALLED])
