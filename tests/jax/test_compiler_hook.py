"""install() serves what XLA's partitioner inserts: the switch, the caches, and random programs."""

from __future__ import annotations

import random
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import serialize_executable
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from subprocesses import run_python

import jaxcoll
from jaxcoll._jax import compat, hook

pytestmark = pytest.mark.skipif(bool(compat.hook_trouble()), reason=compat.hook_trouble() or "-")


@pytest.fixture(autouse=True)
def _leaves_nothing_behind():
    yield
    jaxcoll.uninstall()


def mesh_of(*shape, order=None):
    devices = np.array(jax.devices("cpu"))[: int(np.prod(shape))]
    devices = devices if order is None else devices[order]
    return Mesh(devices.reshape(shape), tuple("abc"[: len(shape)]))


def summing():
    """A program in which XLA inserts an all-reduce, and its argument."""
    sharding = NamedSharding(mesh_of(8), P("a"))
    x = jax.device_put(np.arange(32, dtype=np.float32).reshape(8, 4), sharding)
    return jax.jit(lambda x: x.sum(0)), x


def is_served(function, *arguments):
    text = function.lower(*arguments).compile().as_text()
    assert ("jaxcoll_collective" in text) != (" all-reduce(" in text)
    return "jaxcoll_collective" in text


# --- random programs ----------------------------------------------------------------------------

DTYPES = ["float32", "int32", "bfloat16", "float16", "int8", "bool", "complex64", "float8_e4m3fn"]


def random_spec(draw, mesh, dimensions):
    axes = list(mesh.axis_names)
    draw.shuffle(axes)
    parts = []
    for _ in range(dimensions):
        count = min(draw.choice([0, 0, 1, 1, 2]), len(axes))
        parts.append(tuple(axes.pop() for _ in range(count)) or None)
    return P(*parts)


def real(x):
    return x.real if x.dtype == np.complex64 else x


def random_program(draw):
    """A function, its argument and the shardings of its results, None for any."""
    shape = draw.choice([(8,), (2, 4), (4, 2), (2, 2, 2), (4,), (2, 2)])
    order = draw.sample(range(int(np.prod(shape))), int(np.prod(shape)))
    mesh = mesh_of(*shape, order=draw.choice([None, order]))
    dimensions = draw.choice([1, 2, 3])
    axis = draw.randrange(dimensions)
    before, between, after = (
        NamedSharding(mesh, random_spec(draw, mesh, dimensions)) for _ in range(3)
    )
    sizes = [draw.choice([8, 16]) for _ in range(dimensions)]
    x = np.random.default_rng(draw.randrange(1 << 30)).integers(0, 3, sizes)
    x = jax.device_put(jnp.asarray(x).astype(draw.choice(DTYPES)), before)

    def there_and_back(x):
        there = lax.with_sharding_constraint(x, between)
        return lax.with_sharding_constraint(there, before)

    kinds = {
        "reshard": lambda x: x,
        "sum": lambda x: x.sum(axis),
        "max": lambda x: real(x).max(axis),
        "prod": lambda x: x.prod(axis),
        "any": lambda x: ((x != 0).any(axis), (x != 0).all(axis)),
        "matmul": lambda x: jnp.tensordot(x, x, axes=([axis], [axis])),
        "roll": lambda x: jnp.roll(x, 3, axis),
        "cumsum": lambda x: jnp.cumsum(x, axis),
        "sort": lambda x: jnp.sort(real(x), axis),
        "take": lambda x: jnp.take(x, jnp.array([3, 1, 0]), axis),
        "flip": lambda x: jnp.flip(x, axis),
        "reshape": lambda x: x.reshape(-1),
        "concatenate": lambda x: jnp.concatenate([x, x], axis),
        "slice": lambda x: lax.slice_in_dim(x, 1, 5, axis=axis),
        "scan": lambda x: lax.scan(lambda c, _: (there_and_back(c), c.sum()), x, None, length=3),
        "while": lambda x: lax.fori_loop(0, 3, lambda _, c: there_and_back(c), x),
        "cond": lambda x: lax.cond((x != 0).any(), there_and_back, lambda x: x, x),
    }
    kind = draw.choice(list(kinds))
    places = after if kind in ("reshard", "roll", "cumsum", "flip") else None
    return f"{kind} of {x.dtype}{sizes} over {mesh}, {before.spec}", kinds[kind], x, places


@pytest.mark.seeds(4, exhaustive=40)
def test_random_programs_have_the_same_bits(seed):
    """Eight programs for each seed."""
    served = 0
    for number in range(8):
        name, function, x, places = random_program(random.Random(8 * seed + number))
        expected = jax.jit(function, out_shardings=places)(x)
        with jaxcoll.installed():
            compiled = jax.jit(function, out_shardings=places).lower(x).compile()
        report = jaxcoll.install_report(compiled)
        served += len(report.served)
        assert not report.left, f"seed {seed}, {number}: {name}: {report}"
        for got, want in zip(jax.tree.leaves(compiled(x)), jax.tree.leaves(expected), strict=True):
            same = np.asarray(got).tobytes() == np.asarray(want).tobytes()
            assert same, f"seed {seed}, {number}: {name}: {got}\nis not\n{want}\n{report}"
    assert served


# --- the switch ---------------------------------------------------------------------------------


def test_each_setting_has_its_own_program():
    function, x = summing()
    assert not is_served(function, x)
    with jaxcoll.installed():
        assert is_served(function, x)
        with jaxcoll.installed(compiler=False):
            assert not is_served(function, x)
        assert is_served(function, x)
    assert not is_served(function, x)
    jaxcoll.install()
    assert is_served(function, x)
    jaxcoll.install(compiler=False)
    assert not is_served(function, x)


def test_calls_follow_the_setting_too():
    """By JAX's own cache of compiled functions."""
    function, x = summing()
    expected = np.asarray(x).sum(0)
    before = len(hook.reports())
    for context in (jaxcoll.installed(compiler=False), jaxcoll.installed()):
        with context:
            for _ in range(2):
                np.testing.assert_array_equal(function(x), expected)
    assert len(hook.reports()) == before + 1
    jax.clear_caches()
    with jaxcoll.installed():
        np.testing.assert_array_equal(function(x), expected)
    assert len(hook.reports()) == before + 2


def test_the_setting_where_a_program_is_compiled_counts():
    function, x = summing()
    options = {"xla_cpu_enable_fast_math": False}  # else a lowered program is compiled once
    lowered = function.lower(x)
    with jaxcoll.installed():
        assert "jaxcoll_collective" in lowered.compile(options).as_text()
        lowered_inside = function.lower(x)
    assert "jaxcoll_collective" not in lowered.compile(options).as_text()
    assert "jaxcoll_collective" not in lowered_inside.compile(options).as_text()


def test_threads_have_their_own_setting():
    function, x = summing()
    seen = {}

    def look():
        seen["thread"] = is_served(function, x)

    with jaxcoll.installed():
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        seen["here"] = is_served(function, x)
    assert seen == {"thread": False, "here": True}


# --- with the rest of JAX -----------------------------------------------------------------------


def test_the_report_of_a_program_names_the_line_and_the_axis():
    function, x = summing()
    with jaxcoll.installed():
        report = jaxcoll.install_report(function.lower(x).compile())
    (call,) = report.served
    assert call.collective == "all_reduce"
    assert "all-reduce that XLA inserted for test_compiler_hook.py:" in call.label
    assert "(reduce_sum)" in call.label
    assert "'a'" in call.label or "a=8" in call.label or "axis a" in call.label, call.label
    with pytest.raises(TypeError, match="compiled"):
        jaxcoll.install_report(function)


def test_at_info_the_log_says_what_has_become_of_a_program(caplog):
    function, x = summing()
    with caplog.at_level("INFO", logger="jaxcoll"), jaxcoll.installed():
        function.lower(x).compile()
    said = [record.message for record in caplog.records]
    assert "jit__lambda: 1 served, 0 left to XLA" in said
    assert any("all_reduce (direct) -> f32[4] over axis 'a'" in line for line in said)


def test_a_module_that_cannot_be_read_is_left_and_logged(caplog):
    assert hook._transform(b"\xff" + hook._MARK + b" all-reduce") is None
    (record,) = caplog.records
    assert "could not be rewritten" in record.getMessage()


def test_donated_arguments_and_partly_manual_programs():
    mesh = mesh_of(2, 4)
    x = np.arange(64, dtype=np.float32).reshape(8, 8)
    placed = jax.device_put(x, NamedSharding(mesh, P("a", "b")))

    def manual(x):  # over a; XLA inserts what b needs
        return jax.shard_map(
            lambda x: lax.psum(x, "a").sum(1),
            mesh=mesh,
            in_specs=P("a"),
            out_specs=P(),
            axis_names={"a"},
        )(x)

    donated = jax.jit(
        lambda x: x + x.sum(), donate_argnums=0, out_shardings=NamedSharding(mesh, P("a", "b"))
    )
    with jaxcoll.installed():
        compiled = jax.jit(manual).lower(placed).compile()
        assert len(jaxcoll.install_report(compiled).served) >= 2
        np.testing.assert_array_equal(compiled(placed), (x[:4] + x[4:]).sum(1))
        in_place = donated.lower(placed).compile()
        np.testing.assert_array_equal(in_place(placed), x + x.sum())
    assert jaxcoll.install_report(in_place).served


def test_explicit_axes():
    mesh = jax.make_mesh((8,), ("a",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh), jaxcoll.installed():
        x = jax.device_put(np.arange(16.0, dtype=np.float32), P("a"))
        compiled = jax.jit(lambda x: jax.sharding.reshard(x, P()) * 2).lower(x).compile()
        assert jaxcoll.install_report(compiled).served
        np.testing.assert_array_equal(compiled(x), np.arange(16) * 2)


def test_the_persistent_cache_tells_settings_apart(tmp_path):
    """Each setting compiles once, and finds its own program in another process."""
    script = """
        import os, sys
        import jax, numpy as np
        from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
        import jaxcoll
        if len(sys.argv) > 3:
            jaxcoll.__version__ = sys.argv[3]
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        jax.config.update("jax_compilation_cache_dir", sys.argv[1])
        x = jax.device_put(np.ones((8, 4), np.float32),
                           NamedSharding(Mesh(np.array(jax.devices()), "d"), P("d")))
        if sys.argv[2] == "yes":
            jaxcoll.install()
        before = set(os.listdir(sys.argv[1]))
        compiled = jax.jit(lambda x: x.sum(0)).lower(x).compile()
        assert ("jaxcoll_collective" in compiled.as_text()) == (sys.argv[2] == "yes")
        assert (np.asarray(compiled(x)) == 8).all()
        new = [n for n in set(os.listdir(sys.argv[1])) - before if n.startswith("jit__lambda")]
        print("new" if new else "found")
        """

    def result(*arguments, **environment):
        done = run_python(script, str(tmp_path), *arguments, environment=environment)
        return done.stdout.split()[-1]

    settings = [
        (("no",), {}),
        (("yes",), {}),
        (("yes",), {"JAXCOLL_MERGE_BYTES": "0"}),
        (("yes", "999.0"), {}),
    ]
    seen = [result(*a, **e) for a, e in settings * 2]
    assert seen == ["new"] * 4 + ["found"] * 4


def test_without_the_hook_one_warning_and_the_report_say_so():
    run_python(
        """
        import logging
        from support import private_jax
        private_jax.remove_the_compilers_hook()
        import jax, numpy as np, jaxcoll
        from jaxcoll._jax import compat
        records = []
        class Handler(logging.Handler):
            def emit(self, record):
                records.append(record.getMessage())
        logging.getLogger("jaxcoll").addHandler(Handler())
        jaxcoll.install()
        jaxcoll.install()
        assert len(records) == 1 and "has no hook" in records[0], records
        of_xla = [t for t in jaxcoll.install_report() if t.primitive == "all-reduce"]
        assert of_xla[0].treatment == "left to XLA" and "has no hook" in of_xla[0].reason
        """
    )


def test_installing_initialises_no_back_end():
    run_python(
        """
        import jaxcoll
        jaxcoll.install()
        from support import private_jax
        assert not private_jax.has_back_ends()
        """
    )


@pytest.mark.parametrize("first", ["theirs", "ours"])
def test_a_hook_of_somebody_else_is_called_too(first):
    run_python(
        """
        import sys
        import jax, numpy as np, jaxcoll
        from support import private_jax
        from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
        seen = []
        look = lambda module: seen.append(len(module))
        theirs = lambda: private_jax.register_transformation("another", look)
        for install in [theirs, jaxcoll.install][:: 1 if sys.argv[1] == "theirs" else -1]:
            install()
        x = jax.device_put(np.ones((8, 4), np.float32),
                           NamedSharding(Mesh(np.array(jax.devices()), "d"), P("d")))
        compiled = jax.jit(lambda x: x.sum(0)).lower(x).compile()
        assert "jaxcoll_collective" in compiled.as_text()
        assert seen
        """,
        first,
    )


def test_exported_and_serialised_programs():
    """The caller's setting decides for an exported program; an executable stays as it is."""
    function, x = summing()
    exported = jax.export.deserialize(jax.export.export(function)(x).serialize())
    assert not is_served(jax.jit(exported.call), x)
    with jaxcoll.installed():
        assert is_served(jax.jit(lambda x: exported.call(x)), x)
        np.testing.assert_array_equal(jax.jit(exported.call)(x), np.asarray(x).sum(0))
        compiled = function.lower(x).compile()
    loaded = serialize_executable.deserialize_and_load(*serialize_executable.serialize(compiled))
    assert len(jaxcoll.install_report(loaded).served) == 1
    np.testing.assert_array_equal(loaded(x), np.asarray(x).sum(0))


def test_the_report_lists_what_was_compiled_without_jaxcoll():
    function, x = summing()
    (left,) = jaxcoll.install_report(function.lower(x).compile()).left
    assert left.origin == "all-reduce"
    assert "without jaxcoll.install()" in left.reason


def test_pmap():
    if not hasattr(jax, "pmap"):
        pytest.skip("this JAX has no pmap")
    rows = np.arange(32, dtype=np.float32).reshape(8, 4)
    with jaxcoll.installed():
        summed = jax.pmap(lambda x: lax.psum(x, "i"), axis_name="i")(rows)
    np.testing.assert_array_equal(summed, np.broadcast_to(rows.sum(0), (8, 4)))
