"""Calls of different processes find each other, however each came by its program.

Every process compares every result with NumPy; a call that met the wrong partner has wrong numbers.
`--seeds N` runs N random programs instead of the usual few.
"""

from pathlib import Path

import pytest
from processes import Job, run

# A process's own ways to a program: rank 1 may differ from the others in all of them.
PROGRAM = """
from spmd import *
from jax import lax
import jax.numpy as jnp

mesh = make_mesh((jax.device_count(),))
n = mesh.size

def check_calls(elements=100, seed=0, tag=""):
    "Five calls with equal attributes, in an order that is left to XLA, and one that depends."
    x = small_integers((n, 5, elements), seed=seed)
    def body(x):
        sums = [c.psum(x[i] * (i + 1), "x") for i in range(5)]
        return sums, c.ppermute(sums[3] + x[0], "x", [(i, (i + 1) % n) for i in range(n)])
    sums = [np.broadcast_to((x[:, i] * (i + 1)).sum(0), x[:, i].shape) for i in range(5)]
    expected = sums, np.roll(sums[3] + x[:, 0], 1, axis=0)
    f = per_device(mesh, body)
    for _ in range(3):
        compare(f(place(mesh, x)), expected, f"{tag} {elements} elements, seed {seed}")
    return f
"""


def run_program(script: str, lax: bool = False, processes: int = 3, **options: object) -> None:
    environment = {"TEST_COLLECTIVES": "lax"} if lax else {}
    environment |= options.pop("environment", {})  # type: ignore[arg-type, call-overload]
    printed = run(
        PROGRAM + script + "\nfinished('end')\n",
        processes=processes,
        environment=environment,
        **options,
    )
    assert all("finished end" in text for text in printed)


def test_a_warm_and_a_cold_compilation_cache(tmp_path: Path) -> None:
    script = """
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax.config.update("jax_compilation_cache_dir", os.environ["CACHE"])
for elements in (100, 200, 100):
    check_calls(elements)
"""
    warm = [{"CACHE": str(tmp_path / str(rank))} for rank in range(3)]
    run_program(script, rank_environment=dict(enumerate(warm)))
    # Rank 1 starts anew; JAX lets only process 0 write, so give rank 2 what 0 has.
    cold = {0: warm[0], 1: {"CACHE": str(tmp_path / "cold")}, 2: warm[0]}
    assert any((tmp_path / "0").iterdir()), "process 0 wrote no cache"
    run_program(script, rank_environment=cold)


def test_clear_caches_in_one_process() -> None:
    run_program(
        """
f = check_calls(tag="before")
for round in range(4):
    if rank == round % 2:
        jax.clear_caches()
    check_calls(tag=f"round {round}")
    check_calls(200 + round, tag=f"round {round}")
x = np.ones((n, 5, 100), np.float32)
compare(f(place(mesh, x))[0][0], np.full((n, 100), n, np.float32), "an old function")
"""
    )


def test_different_source_paths(tmp_path: Path) -> None:
    """The same functions in files of other names and lines: other source locations in the HLO."""
    for rank in range(3):
        body = "\n" * (7 * rank) + PROGRAM
        (tmp_path / f"program_{'abc'[rank]}.py").write_text(body)
    script = """
import importlib
sys.path.insert(0, sys.argv[1])
module = importlib.import_module("program_" + "abc"[rank])
for seed in range(3):
    module.check_calls(100 + seed, seed)
from spmd import finished
finished("end")
"""
    assert all("finished end" in text for text in run(script, str(tmp_path), processes=3))


def test_extra_local_programs_in_one_process() -> None:
    run_program(
        """
local = Mesh(np.array(jax.local_devices()), ("x",))
for round in range(5):
    if rank == 1:  # the same functions over this process's own devices, and others
        for elements in (100, 300 + round):
            x = small_integers((local.size, 5, elements))
            sums = per_device(local, lambda x: c.psum(x, "x"))(place(local, x))
            compare(sums, np.broadcast_to(x.sum(0), x.shape), "local")
            jax.jit(lambda x: x * round)(1.0)
    check_calls(100 + round % 2, round)
""",
        devices=2,
    )


def test_one_function_at_changing_shapes() -> None:
    run_program(
        """
f = per_device(mesh, lambda x: c.psum(c.psum(x, "x") - x, "x"))
for i in range(60):
    shape = (n, *[(7,), (1,), (0,), (3, 5), (1000,), (2, 2, 2)][i * i % 6])
    x = small_integers(shape, [np.float32, np.int32][i % 2], seed=i)
    compare(f(place(mesh, x)), np.broadcast_to((n - 1) * x.sum(0), x.shape), f"call {i}")
"""
    )


CALLED_OFTEN = """
inner = jax.jit(lambda x: c.psum(x, "x"))
x = small_integers((n, 8, 33))
wanted = np.broadcast_to(x.sum(0), x.shape)
factors = np.arange(1, 9, dtype=np.float32)

def body(x):
    together = jnp.stack([inner(x[i]) * (i + 1) for i in range(8)])
    unrolled = jax.lax.scan(lambda _, row: (None, inner(row)), None, x, unroll=4)[1]
    return together, unrolled, jnp.stack([inner(inner(x[i]) % 5) for i in range(8)])

f = per_device(mesh, body)
expected = wanted * factors[:, None], wanted, wanted % 5 * n
for _ in range(20):
    compare(f(place(mesh, x)), expected, "inner jit")
"""


def test_an_inner_jit_called_several_times() -> None:
    run_program(CALLED_OFTEN, devices=2)


TWO_THREADS = """
import threading
functions = [per_device(mesh, lambda x, i=i: c.psum(x * (i + 1), "x")) for i in range(2)]
# One function for both threads as well: their calls are told apart by nothing but the meshes.
backwards = make_mesh((n,), list(range(n))[::-1])
functions += [per_device(mesh, lambda x: c.psum(x, "x")),
              per_device(backwards, lambda x: c.psum(x, "x"))]
x = small_integers((n, 1000))
errors = []

def work(thread):
    try:
        for i in range(100):
            f, m = functions[thread], mesh
            factor = thread + 1
            if i % 3 == 0:
                f, m, factor = functions[2 + thread], (mesh, backwards)[thread], 1
            compare(f(place(m, x + i)), np.broadcast_to(((x + i) * factor).sum(0), x.shape), str(i))
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        assert "jaxcoll" in str(error), error
    except BaseException as error:
        errors.append(error)

threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
if errors: raise errors[0]
"""


def test_two_dispatching_threads() -> None:
    """Each thread's calls are in the same order everywhere; those of different threads are not.

    XLA runs programs of several local devices one after the other, so processes that begin with
    different ones wait for each other until the deadline: an error then, but never a wrong sum and
    no hang.
    """
    environment = {"JAXCOLL_TIMEOUT_S": "3"}
    run_program(TWO_THREADS, processes=2, devices=2, environment=environment, timeout_s=120)


TWO_ORDERS = """
import threading
functions = [per_device(mesh, lambda x, i=i: c.psum(x * (i + 1), "x")) for i in range(2)]
x = small_integers((n, 100_000))  # not so small that JAX runs it inside the dispatching call
texts = [None, None]

def call(i):
    try:
        compare(functions[i](place(mesh, x)), np.broadcast_to((x * (i + 1)).sum(0), x.shape), "")
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        texts[i] = str(error)

for i in range(2):
    call(i)
for _ in range(5):
    finished(f"compiled {_}")
    order = [0, 1] if rank == 0 else [1, 0]
    threads = [threading.Thread(target=call, args=(i,)) for i in order]
    threads[0].start()
    time.sleep(0.2)  # its call has begun, and nobody can end it
    threads[1].start()
    for thread in threads: thread.join()
    if any(texts): break
for text in texts: print("told:", text)
"""


def test_threads_in_another_order_on_each_process() -> None:
    """With one device per process threads do not wait for each other; with more, all get the
    error."""
    environment = {"JAXCOLL_TIMEOUT_S": "8"}
    for devices in (1, 2):
        texts = run(
            PROGRAM + TWO_ORDERS,
            processes=2,
            devices=devices,
            environment=environment,
            survives=True,
            timeout_s=120,
        )
        for text in texts:
            told = [line for line in text.splitlines() if line.startswith("told:")]
            if devices == 1:
                assert told == ["told: None"] * 2, text
            else:
                assert all("launch from one thread" in line for line in told), text


# A random program is a list of steps on a list of values; JAX and NumPy both interpret it.
RANDOM = """
import random

SHAPE = {4: (2, 2), 8: (4, 2)}[n]
grid = make_mesh(SHAPE)
WIDTH = 24  # of a value on each device; what any group divides

def draw_program(draw):
    "(steps, how often in a loop): a step is (name, value it takes, axes); its result is appended."
    names = ["psum", "pmax", "gather", "exchange", "shift", "add", "inner", "scatter", "broadcast"]
    steps = []
    for i in range(draw.randrange(5, 30)):
        axes = draw.choice([("x",), ("y",), ("x", "y")])
        steps.append((draw.choice(names), draw.randrange(i + 1), axes, draw.randrange(i + 1)))
    return steps, draw.choice([0, 0, 2])

def group(axes):
    return int(np.prod([SHAPE["xy".index(a)] for a in axes]))

def jax_step(name, x, axes, other):
    size = group(axes)
    axis = axes if len(axes) > 1 else axes[0]
    if name == "psum":
        return c.psum(x, axis)
    if name == "inner":  # one jitted function for all of them: equal attributes
        return inner_psum[axes](x)
    if name == "pmax":
        return c.pmax(x, axis)
    if name == "gather":
        return c.all_gather(x, axis).sum(0) * 2
    if name == "exchange":
        return c.all_to_all(x, axis, 0, 0, tiled=True)
    if name == "shift":
        return c.ppermute(x, axis, [(i, (i + 1) % size) for i in range(size)])
    if name == "scatter" and LAX:  # gloo's was wrong at times, and XLA has no broadcast on CPUs
        width = WIDTH // size
        return jnp.tile(
            lax.dynamic_slice(c.psum(x, axis), [lax.axis_index(axis) * width], [width]), size
        )
    if name == "broadcast" and LAX:
        return c.all_gather(x, axis)[size - 1]
    if name == "scatter":
        return jnp.tile(c.psum_scatter(x, axis, tiled=True), size)
    if name == "broadcast":
        return c.broadcast(x, axis, size - 1)
    return x + other

inner_psum = {
    axes: jax.jit(lambda x, axis=axes if len(axes) > 1 else axes[0]: c.psum(x, axis))
    for axes in [("x",), ("y",), ("x", "y")]
}

def numpy_step(name, x, axes, other):
    if name == "add":
        return x + other
    out = np.empty_like(x)
    ids = np.arange(n).reshape(SHAPE)
    members = {("x",): ids.T, ("y",): ids, ("x", "y"): ids.reshape(1, -1)}[axes]
    for rows_ in members:
        part, p = x[rows_], len(rows_)
        if name in ("psum", "inner"):
            got = np.broadcast_to(part.sum(0), part.shape)
        elif name == "pmax":
            got = np.broadcast_to(part.max(0), part.shape)
        elif name == "gather":
            got = np.broadcast_to(part.sum(0) * 2, part.shape)
        elif name == "exchange":
            got = part.reshape(p, p, -1).swapaxes(0, 1).reshape(part.shape)
        elif name == "shift":
            got = np.roll(part, 1, axis=0)
        elif name == "scatter":
            got = np.tile(part.sum(0).reshape(p, -1), p)
        else:
            got = np.broadcast_to(part[p - 1], part.shape)
        out[rows_] = got
    return out

def interpret(step_of, steps, values):
    values = list(values)
    for name, source, axes, other in steps:
        values.append(step_of(name, values[source], axes, values[other]) % 11)
    return values[-1], sum(values[1:]) % 11

def body_of(steps, turns):
    def body(x):
        if turns:
            return lax.fori_loop(
                0, turns, lambda i, pair: interpret(jax_step, steps, [pair[0] + pair[1]]), (x, x)
            )
        return interpret(jax_step, steps, [x])
    return body

first, programs, repeats = map(int, sys.argv[1:4])
done = 0
for seed in range(first, first + programs):
    steps, turns = draw_program(random.Random(seed))
    f = per_device(grid, body_of(steps, turns), check_vma=False)
    dtype = [np.int32, np.float32][seed % 2]
    for i in range(repeats):
        x = small_integers((n, WIDTH), dtype, seed=seed * 1000 + i)
        expected = (x, x)
        for _ in range(turns):
            expected = interpret(numpy_step, steps, [expected[0] + expected[1]])
        if not turns:
            expected = interpret(numpy_step, steps, [x])
        result = f(place(grid, x))
        compare(result, expected, f"seed {seed}, call {i}, {steps}, {turns} turns")
        done += max(turns, 1) * sum(step[0] != "add" for step in steps)
    if seed % 7 == rank:
        jax.clear_caches()
print("collectives", done)
"""


def run_random(
    programs: int,
    lax: bool = False,
    devices: int = 1,
    repeats: int = 5,
    timeout_s: float = 240,
    first: int = 0,
) -> int:
    """Runs random programs over four processes; returns how many collectives each device did."""
    environment = {"TEST_COLLECTIVES": "lax"} if lax else {}
    with Job(
        PROGRAM + RANDOM + "\nfinished('end')\n",
        *(str(first), str(programs), str(repeats)),
        processes=4,
        devices=devices,
        environment=environment,
        timeout_s=timeout_s,
    ) as job:
        text = job.finish()[0]
    return int(text.split("collectives ")[1].split()[0])


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.exhaustive), 2])
def test_random_programs_are_exact(devices: int, request: pytest.FixtureRequest) -> None:
    """About 200 collectives for each program; `--exhaustive` makes it more than 10 000."""
    option = request.config.getoption
    programs = option("--seeds") or (60 if option("--exhaustive") else 12)
    done = run_random(programs, devices=devices, repeats=10, timeout_s=120 + 10 * programs)
    assert done > (10_000 if programs >= 60 else 2000 if programs >= 12 else 0), done


@pytest.mark.exhaustive
def test_the_same_kinds_of_program_are_right_under_lax() -> None:
    """Over gloo: fewer of them, for they are slow."""
    assert run_random(3, lax=True, repeats=2) > 50
    run_program(CALLED_OFTEN, lax=True, processes=2)


@pytest.mark.parametrize("count", [60, pytest.param(200, marks=pytest.mark.exhaustive)])
def test_many_communicators_come_and_go(count: int) -> None:
    run_program(
        """
import gc, random, re, threading
from jaxcoll._native import native
draw = random.Random(0)

def held():
    "Descriptors, threads and MiB of this process; communicators that are open."
    jax.clear_caches()
    gc.collect()
    megabytes = int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
    communicators = int(re.search(r"(\\d+) communicators are open", native.comm_dump())[1])
    threads = len(os.listdir("/proc/self/task"))
    return len(os.listdir("/proc/self/fd")), threads, megabytes, communicators

for i in range(COUNT):
    if i == COUNT // 2:
        fds, threads, megabytes, _ = held()
    order = draw.sample(range(n), draw.randrange(2, n + 1))
    mine = {d.id for d in jax.local_devices()}
    devices = sorted(jax.devices(), key=lambda d: d.id)
    if any(devices[j].id in mine for j in order):
        sub = make_mesh((len(order),), order)
        x = small_integers((len(order), 10), seed=i)
        result = per_device(sub, lambda x: c.psum(x, "x"))(place(sub, x))
        compare(result, np.broadcast_to(x.sum(0), x.shape), f"mesh {order}")
        del result, sub
after = held()
print("from", (fds, threads, megabytes), "to", after)
assert after[0] <= fds and after[1] <= threads, "descriptors or threads are left"
assert after[2] < megabytes + 64, "memory is left"
assert after[3] == 0, "communicators are left"
""".replace("COUNT", str(count)),
        devices=2,
        timeout_s=240,
    )
