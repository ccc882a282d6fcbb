"""ragged_all_to_all over several processes, against NumPy: lax's has no implementation for CPUs."""

import re
import signal

import pytest
from processes import Job, run

COMMON = """
from spmd import *
from jax import lax
import jax.numpy as jnp

n = jax.device_count()
mesh = make_mesh((n,))

def draw_tables(seed, groups, updates, most, overlap=False):
    "Input offsets, send sizes, output offsets, receive sizes, [device, entry]; rows needed"
    draw = np.random.default_rng(seed)
    p = groups.shape[1]
    sizes = draw.integers(0, most + 1, (groups.size, p * updates))
    sizes[draw.random(sizes.shape) < 0.3] = 0
    sizes[draw.integers(groups.size)] = 0  # one sends nothing at all
    starts = np.cumsum(sizes, 1) - sizes
    lands, expects = np.zeros_like(sizes), np.zeros_like(sizes)
    rows = 1
    for group in groups:
        for at, receiver in enumerate(group):
            next_row = 0
            for place, sender in enumerate(group):
                for u in range(updates):
                    i = at * updates + u
                    expects[receiver, place * updates + u] = sizes[sender, i]
                    lands[sender, i] = draw.integers(0, most + 1) if overlap else next_row
                    next_row += sizes[sender, i] + draw.integers(0, 2)  # gaps keep the output
            rows = max(rows, next_row, 2 * most)
    return (starts, sizes, lands, expects), (max(1, sizes.sum(1).max()), rows)

def exchanged(operand, output, tables, groups, updates):
    starts, sizes, lands, _ = tables
    result = output.copy()
    for group in groups:
        for receiver_at, receiver in enumerate(group):
            for sender in group:  # where blocks overlap, the last sender's stands
                for i in range(receiver_at * updates, (receiver_at + 1) * updates):
                    rows = operand[sender, starts[sender, i] : starts[sender, i] + sizes[sender, i]]
                    result[receiver, lands[sender, i] : lands[sender, i] + len(rows)] = rows
    return result

def bytes_of(shape, dtype, seed):
    draw = np.random.default_rng(seed)
    if np.dtype(dtype) == bool:
        return draw.integers(0, 2, shape).astype(bool)
    return draw.integers(0, 100, shape).astype(dtype)

def data(seed, groups, updates=1, most=4, row=(3,), dtype=np.float32, overlap=False):
    tables, (sent, received) = draw_tables(seed, groups, updates, most, overlap)
    operand = bytes_of((n, sent, *row), dtype, seed)
    output = bytes_of((n, received, *row), dtype, seed + 1)
    return operand, output, tables
"""

EXACT = """
import ml_dtypes

def check(name, axis="x", over=mesh, groups=np.arange(n)[None], call={}, index=np.int32, **how):
    for seed in range(2):
        operand, output, tables = data(seed, groups, **how)
        f = per_device(over, lambda *xs: c.ragged_all_to_all(*xs, axis_name=axis, **call))
        wanted = exchanged(operand, output, tables, groups, how.get("updates", 1))
        arguments = place(over, (operand, output, *(table.astype(index) for table in tables)))
        for _ in range(2):
            compare(f(*arguments), wanted, f"{name}, seed {seed}")

check("plain")
for dtype in (bool, np.int8, np.uint16, bfloat16, np.float16, np.int32, np.complex64,
              ml_dtypes.float8_e4m3fn, ml_dtypes.int4):
    check(str(dtype), dtype=dtype, row=(5,))
with jax.enable_x64(True):
    check("wide", dtype=np.float64, index=np.int64)
check("narrow tables", index=np.int8)
check("scalars", row=())
check("several updates for each peer", updates=3)
check("a header of several messages", updates=1500, most=1, row=(2,))
check("streams of many messages", most=300, row=(500,))
check("odd rows, cut anywhere", most=3000, row=(7, 11), dtype=np.int8)
check("blocks that overlap", most=9, overlap=True, updates=2)
check("nothing is sent", most=0)
check("empty rows", row=(0,))
check("algorithm", call={"algorithm": "direct"})
print("exact")

# Groups: those of an axis, and those of axis_index_groups.
ids = np.arange(n).reshape(2, -1)
square = make_mesh(ids.shape)
for axis, groups in [("x", ids.T), ("y", ids), (("x", "y"), ids.reshape(1, -1))]:
    check(f"over {axis}", axis, square, groups, most=50)
index_groups = [list(range(i, n, 2)) for i in range(2)]
check("groups", groups=np.array(index_groups), call={"axis_index_groups": index_groups})
backwards = make_mesh((n,), list(range(n))[::-1])
check("another order", over=backwards)
print("groups")

# In a loop, beside others.
operand, output, tables = data(7, np.arange(n)[None], most=6)
output = np.pad(output, [(0, 0), (0, max(0, operand.shape[1] - output.shape[1])), (0, 0)])
operand = np.pad(operand, [(0, 0), (0, output.shape[1] - operand.shape[1]), (0, 0)])

def looped(operand, output, *tables):
    def step(x, _):
        x = c.ragged_all_to_all(x, output, *tables, axis_name="x")
        return x, c.psum(x, "x")
    return lax.scan(step, operand, None, length=5)

x, sums = operand, []
for _ in range(5):
    x = exchanged(x, output, tables, np.arange(n)[None], 1)
    sums.append(np.broadcast_to(x.sum(0), x.shape))
tables = tuple(table.astype(np.int32) for table in tables)
compare(per_device(mesh, looped, check_vma=False)(*place(mesh, (operand, output, *tables))),
        (x, np.stack(sums, 1)), "in a loop")

# vmap, and the gradient: what is sent back is what came.
rows = [data(seed, np.arange(n)[None]) for seed in (1, 2, 3)]
tall = max(r[0].shape[1] for r in rows), max(r[1].shape[1] for r in rows)
pad = lambda x, to: np.pad(x, [(0, 0), (0, to - x.shape[1]), (0, 0)])
operands = [pad(r[0], tall[0]) for r in rows]
outputs = [pad(r[1], tall[1]) for r in rows]
wanted = [exchanged(a, b, r[2], np.arange(n)[None], 1) for a, b, r in zip(operands, outputs, rows)]
stacked = (np.stack(operands, 1), np.stack(outputs, 1),
           *(np.stack([r[2][i] for r in rows], 1).astype(np.int32) for i in range(4)))
f = per_device(mesh, jax.vmap(lambda *xs: c.ragged_all_to_all(*xs, axis_name="x")))
compare(f(*place(mesh, stacked)), np.stack(wanted, 1), "vmap")

operand, output, tables = data(11, np.arange(n)[None])
weights = small_integers(output.shape, seed=12)
def loss(operand, output, weights, *tables):
    return jnp.vdot(c.ragged_all_to_all(operand, output, *tables, axis_name="x"), weights)
f = per_device(mesh, jax.grad(loss, argnums=(0, 1)), check_vma=False)
arguments = place(mesh, (operand, output, weights, *(t.astype(np.int32) for t in tables)))
kept = exchanged(np.zeros_like(operand), np.ones_like(output), tables, np.arange(n)[None], 1)
to_operand = np.zeros_like(operand)
starts, sizes, lands, _ = tables
for sender in range(n):
    for receiver in range(n):
        for row in range(sizes[sender, receiver]):
            to_operand[sender, starts[sender, receiver] + row] += weights[
                receiver, lands[sender, receiver] + row]
compare(f(*arguments), (to_operand, weights * kept), "grad")
print("transformations")
finished("end")
"""


@pytest.mark.parametrize(
    ("processes", "devices", "environment"),
    [
        (2, 2, {}),
        (4, 1, {}),
        (2, 2, {"JAXCOLL_TRANSPORT": "tcp"}),
        pytest.param(3, 2, {}, marks=pytest.mark.exhaustive),
        pytest.param(4, 2, {"JAXCOLL_TRANSPORT": "tcp"}, marks=pytest.mark.exhaustive),
    ],
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else str(value),
)
def test_every_ragged_exchange_is_exact(
    processes: int, devices: int, environment: dict[str, str]
) -> None:
    for text in run(
        COMMON + EXACT,
        processes=processes,
        devices=devices,
        environment=environment,
        timeout_s=240,
    ):
        assert all(f"\n{word}" in f"\n{text}" for word in ("exact", "groups", "transformations"))


REFUSED = """
operand, output, tables = data(3, np.arange(n)[None], most=500, row=(100,))
f = per_device(mesh, lambda *xs: c.ragged_all_to_all(*xs, axis_name="x"))
wanted = exchanged(operand, output, tables, np.arange(n)[None], 1)

def call(tables):
    result = f(*place(mesh, (operand, output, *(table.astype(np.int32) for table in tables))))
    jax.block_until_ready(result)
    return result

WRONG = {  # table, its entry for rank 1 of what rank 0 does
    "operand": (0, (0, 1), operand.shape[1] + 1),
    "before": (0, (0, 1), -1),
    "negative": (1, (0, 1), -5),
    "more": (1, (0, 1), tables[1][0, 1] + 1),
    "output": (2, (0, 1), output.shape[1] + 1),
    "expected": (3, (1, 0), tables[3][1, 0] + 7),
    "far": (2, (0, n - 1), 2**31 - 1),
    "own": (3, (1, 1), 10_000),
}
for name, (table, place_, value) in WRONG.items():
    wrong = [t.copy() for t in tables]
    wrong[table][place_] = value
    try:
        call(wrong)
    except (jax.errors.JaxRuntimeError, ValueError) as error:  # JAX: ValueError if run inline
        print("refused", name, "::", error)
    else:
        raise AssertionError(name + " was not refused")
    # It was the call that failed, not the communicator: the next one is right.
    compare(call(tables), wanted, "after " + name)
finished("end")
"""


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_tables_that_do_not_fit_fail_on_everyone_and_name_both_sides(transport: str) -> None:
    printed = run(
        COMMON + REFUSED, processes=3, devices=2, environment={"JAXCOLL_TRANSPORT": transport}
    )
    texts = [
        dict(re.findall(r"^refused (\w+) :: (?:\w+: )?(.*)$", text, re.MULTILINE))
        for text in printed
    ]
    assert len(texts[0]) == 8
    assert texts[0] == texts[1] == texts[2]
    for name, text in texts[0].items():
        assert "ragged_all_to_all of float32[" in text
        assert "axis 'x' (6 ranks)" in text
        ranks = {"far": (0, 0, 5, 2), "own": (1, 0, 1, 0)}.get(name, (0, 0, 1, 0))
        assert "rank {} (process {}) to rank {} (process {}): ".format(*ranks) in text, text


LOST = """
operand, output, tables = data(3, np.arange(n)[None], most=300, row=(500,))
f = per_device(mesh, lambda *xs: c.ragged_all_to_all(*xs, axis_name="x"))
wanted = exchanged(operand, output, tables, np.arange(n)[None], 1)
arguments = place(mesh, (operand, output, *(table.astype(np.int32) for table in tables)))
i = 0
try:
    while True:
        if i == 5 and rank == 1 and sys.argv[1] == "absent":
            print("stays away", flush=True)
            time.sleep(3600)
        compare(f(*arguments), wanted, f"call {i}")
        i += 1
        if i == 5:
            print("looping", flush=True)
except (jax.errors.JaxRuntimeError, ValueError) as error:  # JAX: ValueError if run inline
    print("failed ::", error, flush=True)
try:
    jax.block_until_ready(f(*arguments))
except (jax.errors.JaxRuntimeError, ValueError) as error:
    assert "failed earlier" in str(error), error
    print("poisoned")
"""


@pytest.mark.parametrize("how", ["killed", "stopped", "absent"])
def test_a_lost_process_is_named(how: str) -> None:
    with Job(
        COMMON + LOST,
        how,
        processes=3,
        devices=2,
        environment={"JAXCOLL_TIMEOUT_S": "4"},
        survives=True,
    ) as job:
        job.wait_for(1, "stays away" if how == "absent" else "looping")
        if how != "absent":
            job.send(1, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
        code = -signal.SIGKILL if how == "killed" else None
        printed = job.finish(exit_codes={1: code})  # type: ignore[dict-item]
        for text in (printed[0], printed[2]):
            assert "poisoned" in text
            failed = text.split("failed ::")[1]
            for wanted in ("ragged_all_to_all", "float32[", "axis 'x'", "process 1"):
                assert wanted in failed, failed
            assert re.search(r"rank\w* [23]\b", failed), failed
