"""The whole stack on a GPU: 2 and 4 JAX processes that share it, and one that has it alone."""

import pytest
from jax_processes import run
from ranks_on_one_gpu import needs_gpu

from jaxcoll._jax import compat

pytestmark = needs_gpu

OPERANDS = """
from jaxcoll._native import native
print(*native.cuda_info()["communicators"], sep="\\n")
"""

EVERY_CALL = """
from spmd import *
import jax.numpy as jnp
mesh = make_mesh((jax.device_count(),))
n = mesh.size
assert n == processes and jax.devices()[0].platform == "gpu"
shift = [(i, (i + 1) % n) for i in range(n)]
chain = [(i, i - 1) for i in range(1, n)]

def permuted(x, pairs):
    out = np.zeros_like(x)
    for source, target in pairs:
        out[target] = x[source]
    return out

from jaxcoll import schedule
RING = schedule.build(schedule.ScheduleSpec("all_reduce", n, "ring"))
CALLS = {
    "all_reduce": (lambda x: c.all_reduce(x, "x"), lambda x: np.broadcast_to(x.sum(0), x.shape)),
    "one shot": (lambda x: c.all_reduce(x, "x", algorithm="direct"),
                 lambda x: np.broadcast_to(x.sum(0), x.shape)),
    "two shots": (lambda x: c.all_reduce(x, "x", algorithm="direct2"),
                  lambda x: np.broadcast_to(x.sum(0), x.shape)),
    "ring": (lambda x: c.all_reduce(x, "x", algorithm="ring"),
             lambda x: np.broadcast_to(x.sum(0), x.shape)),
    "double_tree": (lambda x: c.all_reduce(x, "x", algorithm="double_tree"),
                    lambda x: np.broadcast_to(x.sum(0), x.shape)),
    "a schedule": (lambda x: c.all_reduce(x, "x", schedule=RING),
                   lambda x: np.broadcast_to(x.sum(0), x.shape)),
    "bruck": (lambda x: c.all_to_all(x, "x", 0, 0, tiled=True, algorithm="bruck"),
              lambda x: x.reshape(n, n, -1).swapaxes(0, 1).reshape(x.shape)),
    "max": (lambda x: c.all_reduce(x, "x", op="max"),
            lambda x: np.broadcast_to(x.max(0), x.shape)),
    "all_gather": (lambda x: c.all_gather(x, "x", tiled=True),
                   lambda x: np.broadcast_to(x.reshape(-1), (n, x.size))),
    "reduce_scatter": (lambda x: c.reduce_scatter(x, "x", tiled=True),
                       lambda x: x.sum(0).reshape(n, -1)),
    "all_to_all": (lambda x: c.all_to_all(x, "x", 0, 0, tiled=True),
                   lambda x: x.reshape(n, n, -1).swapaxes(0, 1).reshape(x.shape)),
    "permute": (lambda x: c.ppermute(x, "x", shift), lambda x: permuted(x, shift)),
    "chain": (lambda x: c.ppermute(x, "x", chain), lambda x: permuted(x, chain)),
    "broadcast": (lambda x: c.broadcast(x, "x", n - 1),
                  lambda x: np.broadcast_to(x[n - 1], x.shape)),
}
rng = np.random.default_rng(0)
for dtype, sizes in ((np.float32, (4, 1004, 400_000)), (np.int8, (1004,)), (bfloat16, (1004,))):
    for size in sizes:
        x = rng.integers(-3, 4, (n, size // n * n)).astype(dtype)
        placed = place(mesh, x)
        for name, (call, expected) in CALLS.items():
            want = expected(x.astype(np.float64))
            f = per_device(mesh, call)  # compiling takes longer than running
            for repeat in range(3):
                for row, values in rows(f(placed)).items():
                    np.testing.assert_array_equal(
                        values.astype(np.float64), want[row], err_msg=f"{name} {dtype} {size}")
print("EQUAL")
"""

TRANSFORMATIONS = """
from spmd import *
import jax.numpy as jnp
from jax import lax
mesh = make_mesh((jax.device_count(),))
n = mesh.size
x = np.random.default_rng(0).integers(-3, 4, (n, 6, 5)).astype(np.float32)

def compare(name, body, expected):
    for row, values in rows(per_device(mesh, body)(place(mesh, x))).items():
        np.testing.assert_array_equal(values, expected[row], err_msg=name)

total = x.sum(0)
compare("vmap", jax.vmap(lambda row: c.psum(row, "x")), np.broadcast_to(total, x.shape))
compare("grad", jax.grad(lambda v: (c.psum(v * v, "x") * 0.5).sum()), x)

def many(v):
    def step(carry, _):
        carry = c.psum(carry, "x") / n
        return c.ppermute(carry, "x", [(i, (i + 1) % n) for i in range(n)]), carry.sum()
    return lax.scan(step, v, None, length=10)[0]
compare("scan", many, np.broadcast_to(total / n, x.shape))

def independent(v):
    return sum(c.psum(v * k, "x") for k in range(1, 6))
compare("independent", independent, np.broadcast_to(total * 15, x.shape))

placed = place(mesh, x)
for algorithm in ("auto", "ring"):
    f = per_device(mesh, lambda v: c.all_reduce(
        c.all_reduce(v, "x", algorithm=algorithm) * 0 + v, "x", algorithm=algorithm))
    for _ in range(100):  # replays, where XLA has made a graph of it
        y = f(placed)
    for row, values in rows(y).items():
        np.testing.assert_array_equal(values, total)
print("EQUAL")
"""

EXPORTED = """
from spmd import *
from jax import export
import jaxcoll
mesh = make_mesh((2,))
x = np.arange(2 * 100, dtype=np.float32).reshape(2, 100)
placed = place(mesh, x)
f = per_device(mesh, lambda v: jaxcoll.psum(v, "x"))
exported = export.export(f, disabled_checks=jaxcoll.export_checks())(placed)
call = jax.jit(export.deserialize(exported.serialize()).call)
for _ in range(3):
    for row, values in rows(call(placed)).items():
        np.testing.assert_array_equal(values, x.sum(0))
print("EQUAL")
"""

GRAPHS = "--xla_gpu_graph_min_graph_size=1 --xla_gpu_enable_command_buffer=+CUSTOM_CALL,+FUSION"


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("operands", ["mapped", "staged"])
def test_every_collective_between_processes(processes, operands):
    outputs = run(EVERY_CALL + OPERANDS, processes, JAXCOLL_CUDA_OPERANDS=operands)
    assert all("EQUAL" in out for out in outputs)
    # Whether XLA's memory can be mapped depends on how its version allocates it.
    said = [line for line in outputs[0].splitlines() if "operands" in line]
    assert operands == "mapped" or all("operands staged" in line for line in said), said
    print(*said, sep="\n")


@pytest.mark.parametrize("flags", ["", GRAPHS], ids=["launches", "graphs"])
@pytest.mark.parametrize("processes", [2, 4])
def test_transformations_between_processes(processes, flags):
    assert all("EQUAL" in out for out in run(TRANSFORMATIONS, processes, XLA_FLAGS=flags))


def test_an_exported_program_between_processes():
    assert all("EQUAL" in out for out in run(EXPORTED, 2))


def test_a_process_that_does_not_call_is_named():
    """XLA's error for a trap is printed: run with -s to see it."""
    outputs = run(
        """
        from spmd import *
        mesh = make_mesh((2,))
        f = per_device(mesh, lambda v: c.psum(v, "x"))
        placed = place(mesh, np.ones((2, 100), np.float32))
        f(placed).block_until_ready()
        if rank == 1:
            time.sleep(25)  # process 0's deadline passes
            os._exit(0)
        try:
            f(placed).block_until_ready()
        except Exception as error:
            print("FIRST", type(error).__name__, error)
        from jaxcoll._native import native
        print("CAUSE", native.cuda_info()["causes"])
        try:
            f(placed).block_until_ready()
        except Exception as error:
            print("NEXT", type(error).__name__, error)
        sys.stdout.flush()
        os._exit(0)  # the context is destroyed, and the other process has ended
        """,
        2,
        JAXCOLL_TIMEOUT_S="10",  # more than one is behind the other while they start
    )
    print(outputs[0])
    for raised in ("FIRST", "NEXT"):
        assert raised in outputs[0], outputs[0]
    assert "waited for rank 1 (device 1, process 1)" in outputs[0], outputs[0]


RAGGED = """
from spmd import *
import jaxcoll
mesh = make_mesh((jax.device_count(),))
n = mesh.size
rng = np.random.default_rng(0)
sizes = rng.integers(0, 9, (n, n)).astype(np.int32)  # [from][to]
first = (np.cumsum(sizes, 1) - sizes).astype(np.int32)
place_at = (np.cumsum(sizes, 0) - sizes).astype(np.int32)
operand = rng.standard_normal((n, 64, 3)).astype(np.float32)
output = rng.standard_normal((n, 64, 3)).astype(np.float32)
expected = output.copy()
for to in range(n):
    for source in range(n):
        count, a, b = sizes[source, to], place_at[source, to], first[source, to]
        expected[to, a : a + count] = operand[source, b : b + count]
tables = [np.ascontiguousarray(t) for t in (first, sizes, place_at, sizes.T)]
f = per_device(mesh, lambda *a: jaxcoll.ragged_all_to_all(*a, axis_name="x"))
for _ in range(3):
    got = f(*(place(mesh, a) for a in (operand, output, *tables)))
    for row, values in rows(got).items():
        np.testing.assert_array_equal(values, expected[row])
print("EQUAL")
"""


@pytest.mark.parametrize("processes", [2, 4])
def test_a_ragged_exchange_between_processes(processes):
    assert all("EQUAL" in out for out in run(RAGGED, processes))


INSERTED = """
from spmd import *
import jax.numpy as jnp
import jaxcoll
jaxcoll.install()
mesh = make_mesh((jax.device_count(),))
n = mesh.size
by_rows, whole = jax.NamedSharding(mesh, P("x")), jax.NamedSharding(mesh, P())
x = small_integers((8 * n, 4 * n))
placed = jax.make_array_from_callback(x.shape, by_rows, lambda index: x[index])
programs = {
    "sum": (lambda v: v.sum(0), whole, x.sum(0)),
    "gather": (lambda v: v * 2, whole, x * 2),
    "exchange": (lambda v: v + 1, jax.NamedSharding(mesh, P(None, "x")), x + 1),
    "shift": (lambda v: jnp.roll(v, 8, 0), by_rows, np.roll(x, 8, 0)),
}
for name, (f, sharding, expected) in programs.items():
    program = jax.jit(f, out_shardings=sharding).lower(placed).compile()
    report = jaxcoll.install_report(program)
    assert report.served and not report.left, f"{name}: {report}"
    for _ in range(3):
        for shard in program(placed).addressable_shards:
            np.testing.assert_array_equal(np.asarray(shard.data), expected[shard.index])
print("EQUAL")
"""


@pytest.mark.skipif(bool(compat.hook_trouble()), reason=compat.hook_trouble())
@pytest.mark.parametrize("stream", ["0", "1"])
def test_what_xla_inserts_between_processes(stream):
    assert all("EQUAL" in out for out in run(INSERTED, 2, JAXCOLL_CUDA_STREAM=stream))
