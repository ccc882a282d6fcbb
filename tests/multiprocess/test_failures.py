"""When a process is lost, late or runs something else, the others learn why and live on.

Random cases print their seed; `--seeds 100` runs a hundred of them, `-k 'death and 17'` one.
"""

import random
import re
import signal
import textwrap
import time
from pathlib import Path

import pytest
from processes import Job, run

# Deadlines that are waited for are short, but not so short that a busy machine misses them.
TIMEOUT_S = 8
# Above the deadline: a busy machine, and what the watchdog takes to look.
SLACK_S = 25


def deadlines(how: int) -> tuple[int, int]:
    """JAXCOLL_TIMEOUT_S, and the seconds in which the others know of it, if one gets that signal.

    A killed process is detected immediately, without a deadline.
    """
    return (60, SLACK_S) if how == signal.SIGKILL else (TIMEOUT_S, TIMEOUT_S + SLACK_S)


COLLECTIVES = ["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "permute"]

COMMON = """
import re, threading, signal
from spmd import *
import jaxcoll
import jax.numpy as jnp

AXIS = "rows"
mesh = Mesh(make_mesh((jax.device_count(),)).devices, (AXIS,))
n = mesh.size
local = [device for device in mesh.devices.flat if device.process_index == rank]
CALLS = {
    "all_reduce": lambda x: jaxcoll.psum(x, AXIS),
    "all_gather": lambda x: jaxcoll.all_gather(x, AXIS, tiled=True),
    "reduce_scatter": lambda x: jaxcoll.psum_scatter(x, AXIS, tiled=True),
    "all_to_all": lambda x: jaxcoll.all_to_all(x, AXIS, 0, 0, tiled=True),
    "broadcast": lambda x: jaxcoll.broadcast(x, AXIS, 0),
    "permute": lambda x: jaxcoll.ppermute(x, AXIS, [(i, (i + 1) % n) for i in range(n)]),
}

def expected_of(name, x):
    return {
        "all_reduce": lambda: np.broadcast_to(x.sum(0), x.shape),
        "all_gather": lambda: np.broadcast_to(x.reshape(-1), (n, x.size)),
        "reduce_scatter": lambda: x.sum(0).reshape(n, -1),
        "all_to_all": lambda: x.reshape(n, n, -1).swapaxes(0, 1).reshape(x.shape),
        "broadcast": lambda: np.broadcast_to(x[0], x.shape),
        "permute": lambda: np.roll(x, 1, axis=0),
    }[name]()

def loop(name, elements, on_call=lambda i: None):
    "Calls until one fails; returns the error's text and the seconds that call took."
    x = small_integers((n, elements))
    placed = place(mesh, x)
    f = per_device(mesh, CALLS[name], check_vma=False).lower(placed).compile()
    wanted = expected_of(name, x)
    finished("compiled")  # together: a deadline runs from the first call
    i = 0
    while True:
        on_call(i)
        start = time.monotonic()
        try:
            result = f(placed)
            jax.block_until_ready(result)
        except (jax.errors.JaxRuntimeError, ValueError) as error:  # JAX: ValueError if run inline
            return str(error), time.monotonic() - start
        compare(result, wanted, f"call {i}")  # never a wrong result
        i += 1

def names_the_lost(text, name, lost, dtype="(float32|f32)"):
    "The error names rank, process, collective, dtype, shape and axis."
    ranks = "|".join(str(i) for i, d in enumerate(mesh.devices.flat) if d.process_index in lost)
    for pattern in (rf"rank\\w* ({ranks})\\b", rf"process\\w* ({'|'.join(map(str, lost))})\\b",
                    "permute" if name == "permute" else name, dtype, r"\\[\\d+", AXIS):
        assert re.search(pattern, text), f"{pattern!r} is not in: {text}"

def stays_poisoned(name, lost):
    "Later calls on that mesh fail at once and tell the first cause."
    x = place(mesh, small_integers((n, 8 * n)))
    for later in (name, "all_reduce"):
        f = per_device(mesh, CALLS[later], check_vma=False).lower(x).compile()
        start = time.monotonic()
        try:
            jax.block_until_ready(f(x))
        except (jax.errors.JaxRuntimeError, ValueError) as error:  # JAX: ValueError if run inline
            ranks = "|".join(str(i) for i, d in enumerate(mesh.devices.flat)
                             if d.process_index in lost)
            assert re.search(rf"rank\\w* ({ranks})\\b", str(error)), error
            took_s = time.monotonic() - start
            assert took_s < float(os.environ["JAXCOLL_TIMEOUT_S"]), "it waited for somebody"
        else:
            raise AssertionError("a call on a poisoned communicator succeeded")

def works_alone():
    "What needs no other process goes on."
    assert float(jax.jit(lambda x: (x * x).sum())(jnp.arange(4.0))) == 14
    own = Mesh(np.array(local), (AXIS,))
    x = jax.device_put(np.ones((len(local), 5), np.float32), jax.NamedSharding(own, P(AXIS)))
    total = per_device(own, lambda x: jaxcoll.psum(x, AXIS))(x)
    assert np.asarray(total).tolist() == [[len(local)] * 5] * len(local)
"""

LOST = """
name, elements, lost = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
limit_s = float(sys.argv[4])
text, took_s = loop(name, elements, lambda i: i == 20 and print("looping"))
print("error after", round(took_s, 2), "s:", text)
assert took_s < limit_s, f"after {took_s} s"
names_the_lost(text, name, [lost])
stays_poisoned(name, [lost])
works_alone()
print("lived on")
"""


# Every rank and every kind of call once; test_random_points_of_death draws the others.
@pytest.mark.parametrize(
    ("name", "elements", "lost"),
    [("all_reduce", 6, 0), ("all_reduce", 600_000, 1), ("all_to_all", 6000, 2)],
)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_the_others_raise_and_live_on(how: int, name: str, elements: int, lost: int) -> None:
    timeout_s, limit_s = deadlines(how)
    with Job(
        COMMON + LOST,
        *(name, str(elements), str(lost), str(limit_s)),
        processes=3,
        devices=2,
        environment={"JAXCOLL_TIMEOUT_S": str(timeout_s)},
        survives=True,
    ) as job:
        job.wait_for(lost, "looping")
        job.send(lost, how)
        killed = -signal.SIGKILL if how == signal.SIGKILL else None
        printed = job.finish(exit_codes={lost: killed})  # type: ignore[dict-item]
        assert all("lived on" in printed[rank] for rank in range(3) if rank != lost)


RESUMED = """
lost, done = 1, sys.argv[1]
text, took_s = loop("all_reduce", 600_000, lambda i: i == 20 and print("looping"))
print("error:", text)
if rank == lost:
    stays_poisoned("all_reduce", [0, 1, 2])
    print("found itself excluded")
else:
    names_the_lost(text, "all_reduce", [lost])
    # Take over the memory that the failed call had, and watch it while the other one resumes.
    fill = jax.jit(lambda i: jnp.full((600_000,), i, jnp.int32) + 0)
    held = [(i, fill(i)) for i in range(40)]
    heap = [np.full(600_000, i, np.int32) for i in range(40)]
    print("guarding")
    while not os.path.exists(done):
        for i, array in held:
            assert (np.asarray(array) == i).all(), f"buffer {i} was written to"
        for i, array in enumerate(heap):
            assert (array == i).all(), f"heap array {i} was written to"
        held = [(i, fill(i)) for i in range(40)]
    print("unharmed")
works_alone()
"""


def test_a_resumed_process_finds_itself_excluded_and_has_touched_nothing(tmp_path: Path) -> None:
    done = tmp_path / "done"
    with Job(
        COMMON + RESUMED,
        str(done),
        processes=3,
        devices=2,
        environment={"JAXCOLL_TIMEOUT_S": str(TIMEOUT_S)},
        survives=True,
        heartbeat_timeout_s=600,  # the resumed one shall live, to see what it does
    ) as job:
        job.wait_for(1, "looping")
        job.send(1, signal.SIGSTOP)
        for rank in (0, 2):
            job.wait_for(rank, "guarding")
        job.send(1, signal.SIGCONT)
        job.wait_for(1, "found itself excluded")
        done.touch()
        printed = job.finish()
    assert "unharmed" in printed[0]
    assert "unharmed" in printed[2]


@pytest.mark.parametrize("late_s", [5, pytest.param(20, marks=pytest.mark.exhaustive)])
def test_a_rank_that_starts_late_is_waited_for(late_s: int) -> None:
    script = """
    if rank == 1:
        time.sleep(int(sys.argv[1]) / 2)  # late for the first call as well
    x = small_integers((n, 1000))
    compare(per_device(mesh, CALLS["all_reduce"])(place(mesh, x)), expected_of("all_reduce", x), "")
    print("works")
    """
    with Job(
        COMMON + textwrap.dedent(script),
        str(late_s),
        processes=3,
        start_late_s={2: late_s},
        environment={"JAXCOLL_TIMEOUT_S": "60"},
    ) as job:
        assert all("works" in text for text in job.finish())


DIFFERENT = """
PSUM = "lambda x: jaxcoll.psum(x, AXIS)"
ring = 'lambda x: jaxcoll.all_reduce(x, AXIS, algorithm="ring")'
doubling = 'lambda x: jaxcoll.all_reduce(x, AXIS, algorithm="recursive_doubling")'
CASES = {  # what all but rank 1 do, what rank 1 does, what the error says
    "shape": (PSUM, "lambda x: jaxcoll.psum(x[:5], AXIS)", ["24", "5"]),
    "dtype": (PSUM, "lambda x: jaxcoll.psum(x.astype(jnp.int32), AXIS)", ["float32", "int32"]),
    "op": (PSUM, "lambda x: jaxcoll.pmax(x, AXIS)", ["sum", "max"]),
    "algorithm": (ring, doubling, ["ring", "recursive_doubling"]),
    "collective": (PSUM, "lambda x: jaxcoll.all_to_all(x, AXIS, 0, 0, tiled=True)",
                   ["all_reduce", "all_to_all"]),
    "nothing": (PSUM, "lambda x: x", ["all_reduce", "rank 1"]),
}
assert len(sys.argv[2:]) > 0 and set(sys.argv[2:]) <= set(CASES)
for i, case in enumerate(sys.argv[2:]):
    theirs, ours, patterns = CASES[case]
    # A mesh for each case, its devices rotated: a failed communicator stays so.
    mesh = Mesh(np.roll(make_mesh((n,)).devices, i), (AXIS,))
    x = place(mesh, small_integers((n, 24)))
    jax.block_until_ready(per_device(mesh, CALLS["all_reduce"])(x))  # works
    f = per_device(mesh, eval(ours if rank == 1 else theirs), check_vma=False).lower(x).compile()
    finished(f"case {i}")  # compiled by all: a deadline runs from the first call
    start = time.monotonic()
    try:
        jax.block_until_ready(f(x))
    except (jax.errors.JaxRuntimeError, ValueError) as error:  # JAX: ValueError if run inline
        text, took_s = str(error), time.monotonic() - start
    else:
        assert case == "nothing" and rank == 1, f"{case}: no error"
        continue  # its own result is right; the others learn who is missing
    print(case, text)
    assert took_s < float(sys.argv[1]), took_s
    for pattern in [*patterns, "process 1"] if rank != 1 else patterns:
        pattern = pattern.replace("rank 1", f"rank {(1 + i) % n}")
        assert pattern in text, f"{case}: {pattern!r} is not in: {text}"
works_alone()
print("told")
"""


@pytest.mark.parametrize("cases", ["shape dtype op algorithm", "collective nothing"])
def test_a_different_call_on_one_process_is_told_to_all(cases: str) -> None:
    timeout_s = 4
    with Job(
        COMMON + DIFFERENT,
        *(str(timeout_s + SLACK_S), *cases.split()),
        processes=4,
        environment={"JAXCOLL_TIMEOUT_S": str(timeout_s)},
        survives=True,
    ) as job:
        assert all("told" in text for text in job.finish())


RANDOM = """
name, elements, lost, how, first = sys.argv[1], *map(int, sys.argv[2:6])
delay_s, limit_s = float(sys.argv[6]), float(sys.argv[7])

def strike():  # not from outside: the moment shall be the seed's
    end = time.perf_counter() + delay_s
    while time.perf_counter() < end:
        pass
    os.kill(os.getpid(), how)

def on_call(i):
    if rank == lost and i == first:
        threading.Thread(target=strike).start()

text, took_s = loop(name, n * elements, on_call)
print("error after", round(took_s, 2), "s:", text)
if rank == lost:
    stays_poisoned(name, range(processes))
else:
    assert took_s < limit_s
    names_the_lost(text, name, [lost])
    stays_poisoned(name, [lost])
works_alone()
print("lived on")
"""


@pytest.mark.seeds(4, exhaustive=100)
def test_random_points_of_death(seed: int) -> None:
    """A process is killed, or stopped and resumed when the others have given it up."""
    draw = random.Random(seed)
    processes, devices = draw.choice([2, 3, 4]), draw.choice([1, 2])
    lost = draw.randrange(processes)
    how = draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP])
    timeout_s, limit_s = deadlines(how)
    name = draw.choice(COLLECTIVES)
    elements = draw.choice([1, 7, 1000, 30_000, 200_000])
    first, delay_s = draw.randrange(3, 40), draw.random() ** 3 * 0.02
    print(
        f"seed {seed}: {how.name} to process {lost} of {processes} x {devices} devices, "
        f"{delay_s:.6f} s after call {first} of {name} of {elements} elements per rank"
    )
    with Job(
        COMMON + RANDOM,
        *(name, str(elements), str(lost), str(int(how)), str(first)),
        *(str(delay_s), str(limit_s)),
        processes=processes,
        devices=devices,
        environment={"JAXCOLL_TIMEOUT_S": str(timeout_s)},
        survives=True,
        heartbeat_timeout_s=600,  # the resumed one shall live
    ) as job:
        for rank in range(processes):
            if rank != lost:
                job.wait_for(rank, "error after")
        job.send(lost, signal.SIGCONT)
        printed = job.finish(exit_codes={lost: -how if how == signal.SIGKILL else 0})
        killed = {lost} if how == signal.SIGKILL else set()
        assert all("lived on" in printed[rank] for rank in set(range(processes)) - killed)


def test_the_death_of_a_process_that_has_forked_is_detected_immediately() -> None:
    """A child holds copies of all descriptors of its parent, whose end must show all the same."""
    script = """
    import multiprocessing, warnings
    warnings.simplefilter("ignore")  # JAX's: that forking it is a bad idea

    def on_call(i):
        if rank == 1 and i == 20:  # comes and goes
            child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(0.01,))
            child.start()
            child.join()
            assert child.exitcode == 0, child.exitcode
        if rank == 1 and i == 40:  # outlives its parent
            if os.fork() == 0:
                for output in (1, 2):  # the test waits for their end
                    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
                os.read(0, 1)  # until the test is over
                os._exit(0)
        if rank == 1 and i == 60:
            os.kill(os.getpid(), signal.SIGKILL)

    text, took_s = loop("all_reduce", 1000, on_call)
    print("error after", round(took_s, 2), "s:", text)
    assert took_s < 30, took_s
    names_the_lost(text, "all_reduce", [1])
    print("lived on")
    """
    with Job(
        COMMON + textwrap.dedent(script),
        processes=3,
        environment={"JAXCOLL_TIMEOUT_S": "60"},
        rank_environment={2: {"JAXCOLL_HOST_ID": "another"}},  # linked by tcp, the others by shm
        survives=True,
    ) as job:
        printed = job.finish(exit_codes={1: -signal.SIGKILL})
        assert "lived on" in printed[0]
        assert "lived on" in printed[2]


def test_a_process_that_runs_ahead_waits_for_a_late_one() -> None:
    """Process 0 waits for nobody: 320 MB of small messages to one that does something else."""
    script = """
    x = place(mesh, small_integers((n, 4000)))
    f = per_device(mesh, CALLS["broadcast"], check_vma=False)
    result = jax.block_until_ready(f(x))
    finished("together")
    if rank == 1:
        time.sleep(5)
    resident = lambda: int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    before = resident()
    for i in range(20_000):
        result = f(x)
    compare(result, expected_of("broadcast", small_integers((n, 4000))), "broadcast")
    print("grew by", resident() - before)
    assert resident() - before < 128 << 20
    finished("end")
    """
    run(COMMON + textwrap.dedent(script), processes=2, timeout_s=100)


def test_a_job_that_is_stopped_as_a_whole_goes_on() -> None:
    """As by ^Z: no process misses a deadline for the time in which none of them ran."""
    script = """
    x = place(mesh, small_integers((n, 1000)))
    f = per_device(mesh, CALLS["all_reduce"])
    jax.block_until_ready(f(x))
    if rank == 1:
        print("waiting")
        time.sleep(2)  # the others wait in a call
    else:
        threading.Timer(1, lambda: print("waiting")).start()
    compare(f(x), expected_of("all_reduce", small_integers((n, 1000))), "all_reduce")
    print("went on")
    """
    with Job(
        COMMON + textwrap.dedent(script),
        processes=3,
        devices=2,
        environment={"JAXCOLL_TIMEOUT_S": "6"},
        heartbeat_timeout_s=600,
    ) as job:
        for rank in range(3):
            job.wait_for(rank, "waiting")
        for rank in range(3):
            job.send(rank, signal.SIGSTOP)
        time.sleep(8)  # longer than the deadline
        for rank in range(3):
            job.send(rank, signal.SIGCONT)
        assert all("went on" in text for text in job.finish())


def test_the_flight_recorder_is_dumped_on_a_signal() -> None:
    """While the main thread waits in a collective that the other process does not make."""
    script = """
    jaxcoll.debug.dump_on_signal()
    x = place(mesh, small_integers((n, 1000)))
    f = per_device(mesh, CALLS["all_reduce"])
    jax.block_until_ready(f(x))
    if rank == 0:
        print("waiting")
        jax.block_until_ready(f(x))
    else:
        sys.stdin.readline()
    """
    with Job(COMMON + textwrap.dedent(script), processes=2, devices=2, timeout_s=120) as job:
        job.wait_for(0, "waiting")
        while "1 are pending" not in (text := job.text(0)):  # the call may not have begun yet
            assert time.monotonic() < job.end, text
            job.send(0, signal.SIGUSR1)
            time.sleep(0.2)
        assert re.search(
            r"pending: all_reduce\(sum\) of float32\[1000\] over axis 'rows' \(4 ranks\), "
            r"algorithm \w+: waited .* missing: rank 2 \(device \d+, process 1, "
            r"shm to process 1 \(pid \d+ on ",
            text,
        ), text
        assert re.search(r" ago: all_reduce\(sum\) of float32\[1000\] .*, call 0, took ", text), (
            text
        )


def test_leaving_with_calls_in_flight_does_not_hang() -> None:
    script = """
    x = place(mesh, small_integers((n, 100_000)))
    f = per_device(mesh, CALLS["all_reduce"])
    jax.block_until_ready(f(x))
    pending = [f(x) for _ in range(20)]
    """
    run(COMMON + textwrap.dedent(script), processes=3, timeout_s=120)


def test_a_process_that_leaves_first_disturbs_nobody() -> None:
    """Rank 0 ends as soon as its own call has; the others still exchange what they need."""
    script = """
    x = place(mesh, small_integers((n, 300_000)))
    f = per_device(mesh, lambda x: jaxcoll.broadcast(x, AXIS, 0, algorithm="binomial"))
    for _ in range(5):
        result = f(x)
    jax.block_until_ready(result)
    if rank == 0:
        jaxcoll._native.native.comm_stop()
    compare(result, expected_of("broadcast", small_integers((n, 300_000))), "broadcast")
    """
    run(COMMON + textwrap.dedent(script), processes=4, timeout_s=120)


def test_leaving_while_a_peer_never_comes_does_not_hang() -> None:
    script = """
    x = place(mesh, small_integers((n, 1000)))
    f = per_device(mesh, CALLS["all_reduce"])
    jax.block_until_ready(f(x))
    if rank == 0:
        pending = f(x)
    finished("dispatched")
    """
    run(
        COMMON + textwrap.dedent(script),
        processes=2,
        devices=2,  # with one, JAX runs a small program inside the call that dispatches it
        environment={"JAXCOLL_TIMEOUT_S": "600"},
        timeout_s=120,
    )
