"""Programs that outlive their process: jax.export and the persistent compilation cache."""

import jax
import numpy as np
import pytest
from jax import export
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from lax_oracle import API, INSTALLED, LAX, make_mesh, per_device, place, small_integers
from subprocesses import run_python
from test_lowering import partially_manual, partially_manual_mesh

import jaxcoll

IMPLEMENTATIONS = (API, INSTALLED)

CALL_EXPORTED = """
    import sys
    import jax, numpy as np
    from jax import export
    from jax.sharding import Mesh, NamedSharding, PartitionSpec
    import jaxcoll  # all that is needed: it registers the handlers

    program, inputs, results, spec, order = sys.argv[1:]
    spec = PartitionSpec(*spec.split(","))
    with open(program, "rb") as file:
        exported = export.deserialize(bytearray(file.read()))
    x, expected = np.load(inputs), np.load(results)
    devices = np.array([jax.devices()[int(i)] for i in order])
    shape = (8,) if "x" in spec else (4, 2)
    mesh = Mesh(devices.reshape(shape), ("x",) if "x" in spec else ("dp", "tp"))
    x = jax.device_put(x, NamedSharding(mesh, spec))
    compiled = jax.jit(exported.call).lower(x).compile()
    for _ in range(3):
        for result, name in zip(jax.tree.leaves(compiled(x)), expected.files, strict=True):
            np.testing.assert_array_equal(np.asarray(result), expected[name])
    assert "jaxcoll_collective" in compiled.as_text()
    assert "all-gather" not in compiled.as_text()
"""


def exported_file(tmp_path, function, x):
    exported = export.export(jax.jit(function), disabled_checks=jaxcoll.export_checks())(x)
    path = tmp_path / "program"
    path.write_bytes(exported.serialize())
    return path


def all_collectives(c, x):
    """x: (8, n) on one device of eight."""
    return [
        c.psum(x, "x"),
        c.pmax(x, "x"),
        c.all_gather(x[0], "x"),
        c.psum_scatter(x, "x"),
        c.all_to_all(x, "x", 0, 0),
        c.ppermute(x, "x", [(i, (i + 3) % 8) for i in range(8)]),
    ]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:flatbuffers")
@pytest.mark.parametrize("order", ["01234567", "52741603"], ids=["", "permuted"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda i: i.name)
def test_exported_programs_run_in_a_fresh_process(tmp_path, implementation, order):
    """Also on devices in another order than that of the mesh it was exported with."""
    mesh = make_mesh((8,))
    x = small_integers((8, 8, 3))
    with implementation.context():
        program = exported_file(
            tmp_path,
            per_device(mesh, lambda x: all_collectives(implementation.namespace, x)),
            place(mesh, x),
        )
    expected = jax.jit(per_device(mesh, lambda x: all_collectives(LAX.namespace, x)))(x)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "expected.npz", *map(np.asarray, expected))
    run_python(
        CALL_EXPORTED,
        *map(str, (program, tmp_path / "x.npy", tmp_path / "expected.npz", "x", order)),
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning:flatbuffers")
@pytest.mark.parametrize("order", ["01234567", "52741603"], ids=["", "permuted"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda i: i.name)
def test_exported_partially_manual_programs_run_in_a_fresh_process(tmp_path, implementation, order):
    mesh = partially_manual_mesh()
    values = small_integers((32, 6))
    x = jax.device_put(values, NamedSharding(mesh, P("dp", "tp")))
    with implementation.context():
        program = exported_file(tmp_path, partially_manual(mesh, implementation.namespace), x)
    expected = jax.jit(partially_manual(mesh, LAX.namespace))(x)
    np.save(tmp_path / "x.npy", values)
    np.savez(tmp_path / "expected.npz", *map(np.asarray, jax.tree.leaves(expected)))
    run_python(
        CALL_EXPORTED,
        *map(str, (program, tmp_path / "x.npy", tmp_path / "expected.npz", "dp,tp", order)),
    )


def test_exporting_without_the_checks_says_which_call_is_unsafe():
    mesh = make_mesh((8,))
    function = jax.jit(per_device(mesh, lambda x: jaxcoll.psum(x, "x")))
    with pytest.raises(ValueError, match="jaxcoll_collective"):
        export.export(function)(place(mesh, small_integers((8, 3)))).serialize()


USE_CACHE = """
    import sys
    import jax, numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
    import jaxcoll

    jax.config.update("jax_compilation_cache_dir", sys.argv[1])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    hits = []
    jax.monitoring.register_event_listener(
        lambda name, **_: hits.append(name) if name == "/jax/compilation_cache/cache_hits" else None
    )

    partial = sys.argv[2] == "partial"
    devices = np.array(jax.devices())
    mesh = Mesh(devices.reshape(4, 2), ("dp", "tp"))
    def program(c):
        def body(x):
            return c.psum(x, "dp") + c.ppermute(x, "dp", [(0, 1), (1, 0)])
        return jax.jit(jax.shard_map(
            body, mesh=mesh, in_specs=P("dp"), out_specs=P("dp"),
            axis_names={"dp"} if partial else {"dp", "tp"}, check_vma=False))

    x = jax.device_put(
        np.arange(64, dtype=np.float32).reshape(8, 8),
        NamedSharding(mesh, P("dp", "tp" if partial else None)))
    hits.clear()
    first = np.asarray(program(jaxcoll)(x))
    with jaxcoll.installed():
        second = np.asarray(program(jax.lax)(x))
    expected = np.asarray(x).reshape(4, 2, 8)
    swapped = expected[[1, 0, 0, 0]] * np.array([1, 1, 0, 0])[:, None, None]
    expected = (expected.sum(0) + swapped).reshape(8, 8)
    np.testing.assert_array_equal(first, expected)
    np.testing.assert_array_equal(second, expected)
    print("hits", len(hits))
"""


@pytest.mark.parametrize("manual", ["full", "partial"])
def test_a_second_process_finds_the_program_in_the_persistent_cache(tmp_path, manual):
    first = run_python(USE_CACHE, str(tmp_path), manual)
    second = run_python(USE_CACHE, str(tmp_path), manual)
    # jaxcoll's program and lax's under installed() may be one and the same.
    assert first.stdout.split() in (["hits", "0"], ["hits", "1"])
    assert second.stdout.split() == ["hits", "2"]
