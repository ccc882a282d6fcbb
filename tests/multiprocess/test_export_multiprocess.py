"""Programs without devices of their own, over several processes: exported ones, nested shard_maps
and abstract meshes. They learn where they run when they are lowered or called."""

from pathlib import Path

import pytest
from processes import run

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:flatbuffers")


# The exported function, and NumPy's result for it; on four devices.
PROGRAM = """
from spmd import *
from jax import export, lax
import jax.numpy as jnp
import jaxcoll

N = 4
sizes = np.array([[1, 2, 0, 3], [0, 0, 4, 1], [2, 2, 2, 2], [5, 0, 1, 0]], np.int32)
tables = [(np.cumsum(sizes, 1) - sizes).astype(np.int32), sizes,
          (np.cumsum(sizes, 0) - sizes).astype(np.int32), np.ascontiguousarray(sizes.T)]

def body(x):  # (4, 8) on each device
    me = lax.axis_index("x")
    ragged = jaxcoll.ragged_all_to_all(
        jnp.repeat(x, 4, 0), jnp.zeros((16, 8), x.dtype), *(jnp.asarray(t)[me] for t in tables),
        axis_name="x")
    sums = [jaxcoll.psum(x * i, "x") for i in (1, 2, 3)]  # nothing but order tells them apart
    return [
        jnp.stack(sums), jaxcoll.all_gather(x[0], "x"), jaxcoll.psum_scatter(x, "x"),
        jaxcoll.all_to_all(x, "x", 0, 0),
        jaxcoll.ppermute(x, "x", [(i, (i + 3) % N) for i in range(N)]),
        jaxcoll.psum(x, "x", axis_index_groups=[[0, 1], [2, 3]]), ragged,
        jaxcoll.all_reduce(x, "x", algorithm="ring"),
    ]

def expected(x):
    total = x.sum(0)
    ragged = np.zeros((N, 16, 8), x.dtype)
    for s in range(N):
        for d in range(N):
            rows = np.repeat(x[s], 4, 0)[tables[0][s, d]:][:sizes[s, d]]
            ragged[d, tables[2][s, d]:][:sizes[s, d]] = rows
    pairs = x.reshape(2, 2, *x.shape[1:]).sum(1).repeat(2, 0)
    return [
        np.broadcast_to(np.stack([total * i for i in (1, 2, 3)]), (N, 3, *total.shape)),
        np.broadcast_to(x[:, 0], (N, *x[:, 0].shape)), total, x.swapaxes(0, 1), np.roll(x, 3, 0),
        pairs, ragged, np.broadcast_to(total, x.shape),
    ]

def a_mesh(order=None):
    return make_mesh((N,), order)

x = small_integers((N, 4, 8))
"""

EXPORT = """
f = per_device(a_mesh(), body, check_vma=False)
exported = export.export(f, disabled_checks=jaxcoll.export_checks())(place(a_mesh(), x))
if rank == 0:
    with open(sys.argv[1], "wb") as file:
        file.write(exported.serialize())
finished("end")
"""

LOAD = """
with open(sys.argv[1], "rb") as file:
    exported = export.deserialize(bytearray(file.read()))

def check(function, order=None, what=""):
    for _ in range(3):
        compare(function(place(a_mesh(order), x)), expected(x), what or str(order))

order = [int(i) for i in sys.argv[2]]
loaded = jax.jit(exported.call)
check(loaded, order)
# The same calls in other programs: beside each other, and after one process forgot its own.
twice = jax.jit(lambda x: [a + b for a, b in zip(exported.call(x), exported.call(x))])
for _ in range(2):
    compare(twice(place(a_mesh(order), x)), [2 * e for e in expected(x)], "twice")
if rank == 0:
    jax.clear_caches()
check(loaded, order, "after clear_caches")
check(jax.jit(lambda x: exported.call(x)), order, "another function")
if rank == processes - 1:
    jax.clear_caches()
check(loaded, order, "after clear_caches in the other")
compiled = jax.jit(exported.call).lower(place(a_mesh(order), x)).compile()
assert "jaxcoll_collective" in compiled.as_text() and "all-gather" not in compiled.as_text()
check(compiled, order, "compiled ahead")

# JAX may take what it has lowered for other devices, too: then it is right, or refused.
other = order[::-1]
try:
    check(loaded, other)
except (jax.errors.JaxRuntimeError, ValueError) as error:  # JAX: ValueError if run inline
    assert "another order" in str(error), error
    print("refused")
jax.clear_caches()
check(loaded, other, "after clear_caches everywhere")

# On the devices of one process of a job of several.
if jax.local_device_count() == N and processes > 1:
    own = Mesh(np.array(jax.local_devices()), ("x",))
    compare(loaded(place(own, x)), expected(x), "one process's own")
finished("end")
"""


@pytest.mark.parametrize(
    "writers",
    [
        pytest.param((2, 2), id="from-a-job"),
        pytest.param((1, 4), id="from-one-process", marks=pytest.mark.exhaustive),
    ],
)
def test_an_exported_program_runs_wherever_it_is_called(
    tmp_path: Path, writers: tuple[int, int]
) -> None:
    program = str(tmp_path / "program")
    run(PROGRAM + EXPORT, program, processes=writers[0], devices=writers[1])
    for readers, order in [((2, 2), "2031"), ((4, 1), "3102"), ((1, 4), "1320")]:
        run(PROGRAM + LOAD, program, order, processes=readers[0], devices=readers[1])


def test_an_exported_program_runs_on_one_process_of_a_job(tmp_path: Path) -> None:
    program = str(tmp_path / "program")
    run(PROGRAM + EXPORT, program, processes=2, devices=2)
    script = """
own = Mesh(np.array(jax.local_devices()), ("x",))
with open(sys.argv[1], "rb") as file:
    exported = export.deserialize(bytearray(file.read()))
for i in range(3 + rank):  # each as often as it likes
    compare(jax.jit(exported.call)(place(own, x + i)), expected(x + i), "its own devices")
finished("end")
"""
    run(PROGRAM + script, program, processes=2, devices=4)


PARTIAL = """
from spmd import *
from jax import export
import jaxcoll

mesh = make_mesh((2, 2), [int(i) for i in sys.argv[3]])

def body(x):
    return jaxcoll.psum(x, "x") * 2, jaxcoll.ppermute(x, "x", [(0, 1), (1, 0)])

x = small_integers((8, 6))
sharding = jax.NamedSharding(mesh, P("x", "y"))
placed = jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])
if sys.argv[1] == "export":
    f = jax.jit(jax.shard_map(
        body, mesh=mesh, in_specs=P("x"), out_specs=(P(), P("x")), axis_names={"x"}))
    exported = export.export(f, disabled_checks=jaxcoll.export_checks())(placed)
    if rank == 0:
        with open(sys.argv[2], "wb") as file:
            file.write(exported.serialize())
else:
    with open(sys.argv[2], "rb") as file:
        exported = export.deserialize(bytearray(file.read()))
    compiled = jax.jit(exported.call).lower(placed).compile()
    assert "all-gather" not in compiled.as_text()
    halves = x.reshape(2, 4, 6)
    wanted = halves.sum(0) * 2, halves[::-1].reshape(8, 6)
    for _ in range(3):
        for result, full in zip(compiled(placed), wanted, strict=True):
            for shard in result.addressable_shards:
                np.testing.assert_array_equal(np.asarray(shard.data), full[shard.index])
finished("end")
"""


def test_an_exported_partially_manual_program_runs_between_processes(tmp_path: Path) -> None:
    program = str(tmp_path / "program")
    run(PARTIAL, "export", program, "0123", processes=2, devices=2)
    for order in ("0123", "2130"):
        run(PARTIAL, "load", program, order, processes=2, devices=2)


NESTED = """
from spmd import *
import jax.numpy as jnp
import jaxcoll

x = small_integers((4, 4, 8))

def program(outer_mesh):
    def inner(x):
        return c.psum(x, "y"), c.ppermute(x, "y", [(1, 0), (0, 1)])

    def outer(x):
        inside = jax.shard_map(
            inner, in_specs=P(None, "y"), out_specs=(P(None, None), P(None, "y")), axis_names={"y"})
        summed, moved = inside(x)
        return c.psum(summed, "x"), c.psum(moved, "x")

    return jax.jit(jax.shard_map(outer, mesh=outer_mesh, in_specs=P("x", None),
                                 out_specs=P(None, None), axis_names={"x"}))

def check(order):
    mesh = make_mesh((2, 2), order)
    x = small_integers((4, 8), seed=sum(order))
    placed = jax.make_array_from_callback(
        x.shape, jax.NamedSharding(mesh, P("x", "y")), lambda i: x[i])
    blocks = x.reshape(2, 2, 2, 4)  # x, rows, y, columns
    wanted = blocks.sum((0, 2)), blocks[:, :, ::-1].sum(0).reshape(2, 8)
    for _ in range(3):
        for result, full in zip(program(mesh)(placed), wanted, strict=True):
            for shard in result.addressable_shards:
                np.testing.assert_array_equal(np.asarray(shard.data), full[shard.index])

for order in ([0, 1, 2, 3], [2, 0, 3, 1], [3, 2, 1, 0], [0, 1, 2, 3]):
    check(order)
print("nested")

# A mesh that has no devices until it gets arguments that do.
automatic = (jax.sharding.AxisType.Auto,)  # JAX 0.12 would take them as explicit
abstract = jax.sharding.AbstractMesh((4,), ("x",), axis_types=automatic)
f = jax.jit(jax.shard_map(lambda x: c.psum(x * 2, "x"), mesh=abstract, in_specs=P("x"),
                          out_specs=P()))
flat = small_integers((4, 8))
for order in ([0, 1, 2, 3], [1, 3, 0, 2]):
    try:
        result = f(place(make_mesh((4,), order), flat))
        for shard in result.addressable_shards:
            np.testing.assert_array_equal(np.asarray(shard.data)[0], flat.sum(0) * 2)
        print("abstract", order)
    except (jax.errors.JaxRuntimeError, ValueError) as error:  # JAX: ValueError if run inline
        assert order != [0, 1, 2, 3] and "another order" in str(error), error
    jax.clear_caches()
finished("end")
"""


def test_nested_and_abstract_meshes_are_exact() -> None:
    for text in run(NESTED, processes=2, devices=2):
        assert "nested" in text
        assert "abstract [0, 1, 2, 3]" in text
