"""Processes that do not make the same calls: all learn how these differ while they still wait.

Each job waits in calls that never meet. The words must come from both processes before the deadline
and are in the errors that end the calls.
"""

import re

import pytest
from processes import Job, run

PROGRAM = """
from spmd import *
import threading
import jax.numpy as jnp

mesh = make_mesh((jax.device_count(),))
n = mesh.size
x = small_integers((n, 12))
y = place(mesh, x)

def told(f, *operands):
    "Calls f; prints its value or its error."
    try:
        row = next(iter(rows(f(*operands)).values()))
        text = f"value {row.ravel()[0] / x.sum(0)[0]}"
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        text = f"error {error}"
    sys.stdout.write(text + "\\n")  # at once: other threads print, too

def call(body):
    told(per_device(mesh, body), y)
"""

# The computation of process `rank` -> the error of both. The first line of each is the last part of
# the warning.
DIFFERENT = {
    "shapes": ('c.psum(x[: 5 + rank], "x")', "the same of float32[6]: shapes differ"),
    "dtypes": ('c.psum(x.astype(["f4", "i4"][rank]), "x")', "int32[12]: dtypes differ"),
    "ops": ('[c.pmax, c.pmin][rank](x, "x")', "reduce ops differ"),
    "algorithms": (
        'c.all_reduce(x, "x", algorithm=["ring", "direct"][rank])',
        "algorithm ring, process 1 in all_reduce(sum) of float32[12] over axis 'x' (2 ranks), "
        "algorithm direct: algorithms differ",
    ),
    "collectives": (
        'c.psum(x, "x") if rank else c.all_gather(x, "x")',
        "collectives and reduce ops differ",
    ),
    "order": (
        'c.psum(c.pmax(x, "x"), "x") if rank else c.pmax(c.psum(x, "x"), "x")',
        "reduce ops differ",
    ),
    "literals": ('c.psum(x * (1.0 + rank), "x")', "2.0:float32[]"),
    "captured": ('c.psum(x * np.arange(rank, 12.0 + rank, dtype="f4"), "x")', "captured array"),
    "callbacks": (
        '(jax.debug.callback(lambda v: None, x) if rank == 0 else 0, c.psum(x, "x"))[1]',
        "`debug_callback ",
    ),
}
TIMEOUT_S = 10  # both compile within it, beside other work
ENVIRONMENT = {"JAXCOLL_TIMEOUT_S": str(TIMEOUT_S)}
PATIENT = {"JAXCOLL_TIMEOUT_S": "100"}


@pytest.mark.parametrize("case", DIFFERENT)
def test_both_are_told_what_differs_while_they_wait(case: str) -> None:
    body, words = DIFFERENT[case]
    script = PROGRAM + f"call(lambda x: {body})\n"
    with Job(script, processes=2, environment=PATIENT) as job:
        for rank in range(2):
            job.wait_for(rank, words)
        for text in (rank.text for rank in job.ranks):
            told = [line for line in text.splitlines() if words in line]
            assert len(told) == 1, text
            head = r"\S+Z jaxcoll WARNING \S+ process \d/2: "
            assert re.match(head + "process 0 waits in ", told[0]), text


def test_the_error_at_the_deadline_has_the_words_of_the_warning() -> None:
    script = PROGRAM + 'call(lambda x: c.psum(x[: 5 + rank], "x"))\n'
    for text in run(script, processes=2, environment=ENVIRONMENT, survives=True):
        (warning,) = re.findall(r"(?m)^\S+Z jaxcoll WARNING .*?: (process 0 waits in .*)$", text)
        error = text[text.index("error ") :]
        assert warning in error, text
        assert "waited 10" in error, text


def test_a_difference_in_a_line_names_its_place() -> None:
    script = PROGRAM + "def step(x):\n    return c.psum(x * (1.0 + rank), 'x')\ncall(step)\n"
    with Job(script, processes=2, environment=PATIENT) as job:
        job.wait_for(0, "in process 1")
        for rank in range(2):
            words = rf"{rank + 1}\.0:float32.*` \(<string>:\d+ \(step\)\) in process {rank}"
            assert re.search(words, job.ranks[0].text), job.ranks[0].text


def test_calls_of_functions_of_other_names_are_told_by_them() -> None:
    script = (
        PROGRAM
        + """
def mapped(x): return c.psum(x, "x")
mapped.__name__ = ["train", "evaluate"][rank]
told(jax.jit(jax.shard_map(mapped, mesh=mesh, in_specs=jax.P("x"), out_specs=jax.P())), y)
"""
    )
    with Job(script, processes=2, environment=PATIENT) as job:
        for rank in range(2):
            job.wait_for(rank, "another program: `function evaluate`, not `function train`")


def test_where_nothing_else_can_begin_it_is_an_error_at_once() -> None:
    """Programs of several local devices run one after the other: waiting would change nothing."""
    script = PROGRAM + 'call(lambda x: c.psum(x[: 5 + rank], "x"))\n'
    with Job(script, processes=2, devices=2, environment=PATIENT) as job:
        for rank in range(2):
            job.wait_for(rank, "shapes differ. JAX runs the programs of several local devices one")


def test_calls_meet_in_order_where_that_is_asked_for() -> None:
    """Programs may differ in anything else, as with XLA's own collectives."""
    script = (
        PROGRAM
        + """
key = jax.random.key(0)
call(lambda x: c.psum(x * (1.0 + rank), "x"))
call(lambda x: c.psum(x * np.arange(1.0 + rank, 13.0 + rank, dtype="f4"), "x") / (1 + 2 * rank))
call(lambda x: (jax.debug.callback(lambda v: None, x) if rank == 0 else 0, c.psum(x, "x"))[1])
call(lambda x: c.psum(x + 0 * jax.random.uniform(jax.random.fold_in(key, rank)), "x"))
same = per_device(mesh, lambda x: c.psum(x, "x") + c.psum(2 * x, "x"))
for _ in range(5):
    told(same, y)
if rank == 1:
    jax.clear_caches()
told(same, y)
"""
    )
    environment = {**ENVIRONMENT, "JAXCOLL_MATCH": "order"}
    for text in run(script, processes=2, environment=environment, survives=True):
        values = [line for line in text.splitlines() if line.startswith(("value", "error"))]
        assert values[2:] == ["value 1.0"] * 2 + ["value 3.0"] * 6, text
        assert all(value.startswith("value") for value in values), text


TWO_THREADS = """
def thread(i):
    f = per_device(mesh, BODY)
    told(f, place(mesh, x * FACTOR))

threads = [threading.Thread(target=thread, args=(i,)) for i in (range(2) if rank == 0 else (1, 0))]
threads[0].start()
if APART:
    time.sleep(APART)
for t in threads[1:]: t.start()
for t in threads: t.join()
"""


def two_threads(body: str, factor: str, apart_s: float) -> list[list[str]]:
    script = PROGRAM + "import time\n" + TWO_THREADS
    script = script.replace("BODY", body).replace("FACTOR", factor).replace("APART", str(apart_s))
    texts = run(script, processes=2, environment=ENVIRONMENT, survives=True)
    return [
        sorted(line for line in text.splitlines() if line.startswith(("value", "error")))
        for text in texts
    ]


@pytest.mark.parametrize("apart_s", [0, 1.5])
def test_threads_may_launch_programs_that_differ_in_a_captured_array(apart_s: float) -> None:
    body = 'lambda x, a=np.full(12, 1.0 + i, "f4"): c.psum(x * a, "x")'
    for lines in two_threads(body, "1", apart_s):
        assert lines == ["value 1.0", "value 2.0"]


def test_equal_programs_of_two_threads_at_once_are_refused() -> None:
    """Process 1 comes to its first call when process 0 waits in both."""
    script = (
        PROGRAM
        + """
import time
def thread(i):
    told(per_device(mesh, lambda x: c.psum(x, "x")), place(mesh, x * (i + 1)))

told(per_device(mesh, lambda x: c.psum(x + 1, "x")), y)
if rank == 1:
    sys.stdin.readline()
threads = [threading.Thread(target=thread, args=(i,)) for i in (range(2) if rank == 0 else (1, 0))]
for t in threads: t.start()
for t in threads: t.join()
"""
    )
    with Job(script, processes=2, survives=True, environment={"JAXCOLL_TIMEOUT_S": "60"}) as job:
        job.wait_for(0, "two threads of process 0 have launched equal programs at once")
        job.ranks[1].write("\n")
        texts = job.finish()
    for text in texts:
        errors = [line for line in text.splitlines() if line.startswith("error")]
        assert len(errors) == 2, text
        assert all("two threads of process" in error for error in errors), text


def test_one_process_compiles_a_lowering_more_often() -> None:
    """Ahead of time, with options, which JAX does not cache; before and between calls."""
    script = (
        PROGRAM
        + """
f = per_device(mesh, lambda x: c.psum(x, "x") + c.psum(2 * x, "x"))
g = per_device(mesh, lambda x: c.pmax(x, "x") + 0 * c.psum(x, "x"))

def again(f):
    options = {"xla_cpu_enable_fast_math": False}
    return f.lower(y).compile(compiler_options=options)

if rank == 0:
    lowered = f.lower(y)
    options = {"xla_cpu_enable_fast_math": False}
    compiled = [lowered.compile(compiler_options=options) for _ in "123"]
    again(g)  # and is never run
    for executable in compiled[::-1]:
        told(executable, y)
    del compiled[1]
    told(compiled[0], y)
else:
    for _ in range(4):
        told(f, y)
told(f, y)
if rank == 1:
    again(f), again(g)
    told(again(f), y)
else:
    told(f, y)
for _ in range(3):
    told(f, y)
    g(y)
"""
    )
    for text in run(script, processes=2, environment={"JAXCOLL_TIMEOUT_S": "20"}, survives=True):
        values = [line for line in text.splitlines() if line.startswith(("value", "error"))]
        assert values == ["value 3.0"] * 9, text
