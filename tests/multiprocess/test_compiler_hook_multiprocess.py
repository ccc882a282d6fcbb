"""Collectives that XLA's partitioner inserts, through jaxcoll, between processes."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import Job, run

from jaxcoll._jax import compat

pytestmark = pytest.mark.skipif(bool(compat.hook_trouble()), reason=compat.hook_trouble() or "-")

RANDOM = """
import random
from spmd import *
import jax.numpy as jnp
from jax import lax
import jaxcoll
from jax.sharding import NamedSharding

jaxcoll.install()
n = jax.device_count()

def spec(draw, mesh, dimensions):
    axes = draw.sample(mesh.axis_names, len(mesh.axis_names))
    return P(*(axes.pop() if axes and draw.random() < 0.6 else None for _ in range(dimensions)))

def program(seed):
    draw = random.Random(seed)
    mesh = make_mesh(draw.choice([(n,), (2, 2)] if n == 4 else [(n,)]), draw.sample(range(n), n))
    x = small_integers((12, 12), draw.choice([np.float32, np.int32, bfloat16, bool]), seed, 3)
    before, after = (NamedSharding(mesh, spec(draw, mesh, 2)) for _ in range(2))
    def there_and_back(x):
        x = lax.with_sharding_constraint(x, after)
        return lax.with_sharding_constraint(x, before)
    kind = draw.choice(["reshard", "sum", "roll", "flip", "matmul", "loop"])
    function, expected = {
        "reshard": (lambda x: x, x),
        "sum": (lambda x: x.astype(jnp.float32).sum(0), x.astype(np.float32).sum(0)),
        "roll": (lambda x: jnp.roll(x, 3, 0), np.roll(x, 3, 0)),
        "flip": (lambda x: jnp.flip(x, 1), np.flip(x, 1)),
        "matmul": (lambda x: x.astype(jnp.float32) @ x.astype(jnp.float32),
                   x.astype(np.float32) @ x.astype(np.float32)),
        "loop": (lambda x: lax.fori_loop(0, 3, lambda _, x: there_and_back(x), x), x),
    }[kind]
    placed = jax.make_array_from_callback(x.shape, before, lambda i: x[i])
    options = {"out_shardings": after} if expected.ndim == 2 else {}
    return f"seed {seed}, {kind}", jax.jit(function, **options), placed, expected

served = 0
programs = [program(seed) for seed in range(SEEDS)]
order = list(range(SEEDS))
random.Random(rank).shuffle(order)  # compiled in another order on each process
compiled = {i: programs[i][1].lower(programs[i][2]).compile() for i in order}
for i, (name, _, placed, expected) in enumerate(programs):
    served += len(jaxcoll.install_report(compiled[i]).served)
    for shard in compiled[i](placed).addressable_shards:
        np.testing.assert_array_equal(np.asarray(shard.data), expected[shard.index], name)
assert served > 5, served
finished("end")
"""


@pytest.mark.parametrize(("processes", "devices"), [(2, 2), (3, 1)])
def test_random_programs_compiled_in_another_order_are_exact(
    processes: int, devices: int, request: pytest.FixtureRequest
) -> None:
    seeds = 60 if request.config.getoption("--exhaustive") else 14
    script = RANDOM.replace("SEEDS", str(seeds))
    printed = run(script, processes=processes, devices=devices, timeout_s=200)
    assert all("finished end" in text for text in printed)


def test_an_error_names_the_collective_and_where_the_program_asks_for_it() -> None:
    """One process is killed before the call that the other waits in."""
    with Job(
        """
from spmd import *
import jaxcoll
from jax.sharding import NamedSharding
jaxcoll.install()
mesh = make_mesh((2,))
ones = np.ones((2, 4), np.float32)
placed = jax.make_array_from_callback((2, 4), NamedSharding(mesh, P("x")), lambda i: ones[i])
function = jax.jit(lambda x: x.sum(0))
jax.block_until_ready(function(placed))
print("ready", flush=True)
if rank == 1:
    time.sleep(100)
sys.stdin.readline()
try:
    jax.block_until_ready(function(placed))
except (jax.errors.JaxRuntimeError, ValueError) as error:  # JAX's of FAILED_PRECONDITION
    print("error:", str(error).replace("\\n", " "), flush=True)
os._exit(0)
""",
        processes=2,
        survives=True,
    ) as job:
        job.wait_for(0, "ready")
        job.wait_for(1, "ready")
        job.send(1, signal.SIGKILL)
        job.write(0, "go\n")
        text = job.finish(exit_codes={1: -signal.SIGKILL})[0]
    (error,) = [line for line in text.splitlines() if line.startswith("error:")]
    where = "all-reduce that XLA inserted for"
    for part in ("all_reduce", "axis 'x'", "rank 1", "process 1", where, "(reduce_sum)"):
        assert part in error, f"no {part!r} in {error}"


# A program that a process compiles under a name of its own, as if from another checkout; rank 0
# has a cache.
ELSEWHERE = """
from spmd import *
import jaxcoll
from jax.sharding import NamedSharding

jaxcoll.install()
if rank == 0:
    jax.config.update("jax_compilation_cache_dir", sys.argv[1])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
source = "def step(x):\\n    return x.sum(0), jax.numpy.roll(x, 1, 0)\\n"
names = {"jax": jax}
exec(compile(source, f"/checkout-{rank}/of-a-user/train_{rank}.py", "exec"), names)
mesh = make_mesh((2,))
rows = np.arange(8, dtype=np.float32).reshape(2, 4)
placed = jax.make_array_from_callback((2, 4), NamedSharding(mesh, P("x")), lambda i: rows[i])
total, rolled = jax.jit(names["step"])(placed)
assert (np.asarray(total.addressable_shards[0].data) == rows.sum(0)).all()
assert (np.asarray(rolled.addressable_shards[0].data) == np.roll(rows, 1, 0)[rank]).all()
"""


def test_processes_meet_from_other_paths_and_from_a_warm_cache(tmp_path: Path) -> None:
    run(ELSEWHERE, str(tmp_path), processes=2)
    assert list(tmp_path.iterdir()), "nothing was cached"
    run(ELSEWHERE, str(tmp_path), processes=2)


# XLA:CPU notes in a module how many cores it may use.
CORES = """
from spmd import *
import jaxcoll
from jax.sharding import NamedSharding

if rank == 0:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
jaxcoll.install()
mesh = make_mesh((2,))
def put(value, spec):
    return jax.make_array_from_callback(value.shape, NamedSharding(mesh, spec), lambda i: value[i])
w = put(np.ones((512, 1024), np.float32) / 512, P())
x = put(np.ones((512, 512), np.float32), P("x"))
gradient = jax.jit(jax.grad(lambda w, x: jax.numpy.tanh(x @ w).sum()))(w, x)
assert np.isfinite(np.asarray(gradient.addressable_shards[0].data)).all()
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one core")
def test_processes_with_other_numbers_of_cores_meet() -> None:
    run(CORES, processes=2, environment={"JAXCOLL_TIMEOUT_S": "60"})


NAMED = """
from spmd import *
import re
import jaxcoll
rows = np.ones((2, 1 << 15), np.float32)
def both(x):
    return [jaxcoll.all_reduce(x * n, "x", algorithm="direct") for n in (1, 2)]
mesh = make_mesh((2,))
x = place(mesh, rows)
jaxcoll.install()
text = jax.jit(jax.shard_map(both, mesh=mesh, in_specs=P("x"), out_specs=P("x"), check_vma=False)
).lower(x).compile().as_text()
assert set(re.findall(r'algorithm = "(\\w+)"', text)) == {"direct"}, text
"""


def test_an_algorithm_that_the_program_names_is_kept() -> None:
    run(NAMED, processes=2)


# A fault of one process while it rewrites a module.
FAULT = """
from spmd import *
import jaxcoll
from jax.sharding import NamedSharding
from jaxcoll._jax import hook

jaxcoll.install()
mesh = make_mesh((2,))
rows = np.ones((2, 4), np.float32)
x = jax.make_array_from_callback((2, 4), NamedSharding(mesh, P("x")), lambda i: rows[i])
if rank == 0:
    def fail(*_):
        raise MemoryError("no memory for this module")
    hook.serve.serve = fail
begun = time.monotonic()
if rank == 1:
    try:
        jax.block_until_ready(jax.jit(lambda x: x.sum(0))(x))
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        assert "no memory for this module" in str(error), error
        assert "process 0" in str(error), error
        assert time.monotonic() - begun < 30
        print("told", flush=True)
else:
    jax.jit(lambda x: x.sum(0)).lower(x).compile()
    time.sleep(3)
os._exit(0)
"""


def test_a_process_that_leaves_a_program_alone_tells_the_others() -> None:
    assert "told" in run(FAULT, processes=2, environment={"JAXCOLL_TIMEOUT_S": "60"})[1]


STRANGER = """
import sys, jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
if "distributed" in sys.argv:
    jax.distributed.initialize()
mesh = Mesh(np.array(jax.devices()), ("dp",))
rows = np.arange(8, dtype=np.float32).reshape(-1, 1) * np.ones((1, len(mesh.devices)), np.float32)
x = jax.make_array_from_callback(rows.shape, NamedSharding(mesh, P("dp")), lambda i: rows[i])
step = jax.jit(lambda x: x.sum(0)).lower(x).compile()
assert step(x)[0] == 28
print("through jaxcoll:", "jaxcoll_collective" in step.as_text(), flush=True)
"""
INSTALLED = pytest.mark.skipif(
    importlib.util.find_spec("jax_plugins") is None
    or importlib.util.find_spec("jax_plugins.jaxcoll") is None,
    reason="jaxcoll is not installed: JAX finds its plugin in site-packages only",
)


def started(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@INSTALLED
def test_a_program_that_does_not_know_jaxcoll_goes_through_it(tmp_path: Path) -> None:
    program = tmp_path / "train.py"
    program.write_text(STRANGER)
    eight = "--xla_force_host_platform_device_count=8"
    done = started(str(program), XLA_FLAGS=eight, JAXCOLL_INSTALL="1")
    assert "through jaxcoll: True" in done.stdout, done.stderr
    done = started(str(program), XLA_FLAGS=eight, JAXCOLL_INSTALL="")
    assert "through jaxcoll: False" in done.stdout, done.stderr
    done = started(str(program), XLA_FLAGS=eight, JAXCOLL_INSTALL="yes")
    assert done.returncode == 2
    assert "JAXCOLL_INSTALL" in done.stderr.splitlines()[-1]
    launch = ("-m", "jaxcoll", "launch", "-n", "2", "--devices-per-process", "2", "--install")
    done = started(*launch, str(program), "distributed")
    assert done.stdout.count("through jaxcoll: True") == 2, done.stdout + done.stderr
