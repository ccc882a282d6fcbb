"""Every collective and algorithm over several processes, against NumPy, bit by bit."""

import re

import pytest
from processes import run

EVERY_CALL = """
import itertools
from spmd import *
from jax import lax
import jax.numpy as jnp

if not LAX:
    from jaxcoll import schedule, WorldSizeError
    from jaxcoll.tune.select import choose

mesh = make_mesh((jax.device_count(),))
n = mesh.size
KIB64, MIB3 = 1 << 16, 3 << 20
# Elements of the larger of input and output, rounded up to whole chunks; 3 MiB in float32 only.
SIZES = {
    np.dtype(np.float32): [0, 1, 7, 1001, KIB64 // 4, MIB3 // 4],
    bfloat16: [0, 3, 1001, KIB64 // 2],
    np.dtype(np.int8): [5, 1001, KIB64],
}
shift = [(i, (i + 1) % n) for i in range(n)]
partial = [(0, n - 1), (n - 1, 0)] if n > 2 else [(0, 1)]

def wide(x):
    return x.astype(np.float64)

def numpy_permute(x, pairs):
    out = np.zeros_like(x)
    for source, target in pairs:
        out[target] = x[source]
    return out

# name -> (how many chunks the input has for each chunk of SIZES, the call, what NumPy says)
CALLS = {
    "all_reduce": (
        1,
        lambda x, **how: c.psum(x, "x") if LAX else c.all_reduce(x, "x", **how),
        lambda x: np.broadcast_to(wide(x).sum(0), x.shape),
    ),
    "all_gather": (
        1 / n,
        lambda x, **how: c.all_gather(x, "x", tiled=True, **how),
        lambda x: np.broadcast_to(x.reshape(-1), (n, x.size)),
    ),
    "reduce_scatter": (
        1,
        lambda x, **how: c.psum_scatter(x, "x", tiled=True)
        if LAX else c.reduce_scatter(x, "x", tiled=True, **how),
        lambda x: wide(x).sum(0).reshape(n, -1),
    ),
    "all_to_all": (
        1,
        lambda x, **how: c.all_to_all(x, "x", 0, 0, tiled=True, **how),
        lambda x: x.reshape(n, n, -1).swapaxes(0, 1).reshape(x.shape),
    ),
    "permute": (
        1,
        lambda x, **how: c.ppermute(x, "x", shift, **how) + c.ppermute(x, "x", partial, **how),
        lambda x: numpy_permute(wide(x), shift) + numpy_permute(wide(x), partial),
    ),
    "broadcast": (
        1,
        lambda x, **how: c.all_gather(x, "x")[n - 1] if LAX else c.broadcast(x, "x", n - 1, **how),
        lambda x: np.broadcast_to(x[n - 1], x.shape),
    ),
}

cases = 0
for name, (share, call, expected) in CALLS.items():
    sent = [
        small_integers((n, round(-(-elements // n) * n * share)), dtype, seed=cases + i)
        for i, (dtype, elements) in enumerate(
            (dtype, elements) for dtype in SIZES for elements in SIZES[dtype]
        )
        if not LAX or (elements and name not in ("reduce_scatter", "permute"))
    ]
    if not sent:
        continue
    placed = place(mesh, sent)
    wanted = [expected(x) for x in sent]
    for algorithm in ["auto"] + ([] if LAX else list(schedule.algorithms(name))):
        if not LAX:
            try:
                choose(name, algorithm, n)
            except WorldSizeError as error:
                print("left out:", name, algorithm, error)
                continue
        how = {} if LAX else {"algorithm": algorithm}
        body = lambda xs: [call(x, **how) for x in xs]
        result = per_device(mesh, body)(placed)
        compare(result, wanted, f"{name}, {algorithm}")
        cases += len(sent)

# Sums that round: not what NumPy says, but the same bits on every rank and in every run.
if not LAX:
    rng = np.random.default_rng(0)
    placed = place(mesh, [
        rng.standard_normal((n, size)).astype(dtype)
        for size in (1, 1001, 1 << 16) for dtype in (np.float32, bfloat16)
    ])
    for algorithm in ["auto", *schedule.algorithms("all_reduce")]:
        try:
            choose("all_reduce", algorithm, n)
        except WorldSizeError:
            continue
        f = per_device(mesh, lambda xs: [c.all_reduce(x, "x", algorithm=algorithm) for x in xs])
        bits = {hash for _ in range(3) for hash in digest(f(placed))}
        assert len(bits) == 1, (algorithm, bits)
        print("bits", algorithm, bits.pop())
print("cases", cases)
finished("end")
"""


def check_every_call(processes: int, devices: int, **environment: str) -> None:
    printed = run(
        EVERY_CALL, processes=processes, devices=devices, environment=environment, timeout_s=240
    )
    counts = {re.search(r"^cases (\d+)$", text, re.MULTILINE)[1] for text in printed}
    assert len(counts) == 1
    assert int(counts.pop()) > (20 if environment else 200)
    bits = {tuple(re.findall(r"^bits .*$", text, re.MULTILINE)) for text in printed}
    assert len(bits) == 1, bits


@pytest.mark.parametrize(
    ("processes", "devices"),
    [
        (3, 1),
        (4, 2),
        *(
            pytest.param(p, d, marks=pytest.mark.exhaustive)
            for p, d in [(2, 1), (2, 2), (3, 2), (4, 1)]
        ),
    ],
)
def test_every_collective_and_algorithm_is_exact(processes: int, devices: int) -> None:
    check_every_call(processes, devices)


@pytest.mark.exhaustive
def test_the_same_program_is_right_under_lax() -> None:
    """Over gloo: what this file expects is what JAX computes."""
    check_every_call(2, 2, TEST_COLLECTIVES="lax")


MESHES = """
from spmd import *
from jax import lax
import jax.numpy as jnp
import itertools, random

total = jax.device_count()
assert total == 8 and processes == 4


def grouped(x, shape, axes, call):
    "call on [ranks of the group, ...] for each group over `axes` of a mesh of `shape`"
    positions = ["xyz".index(axis) for axis in axes]
    grid = np.moveaxis(np.arange(x.shape[0]).reshape(shape), positions, range(len(axes)))
    size = int(np.prod([shape[p] for p in positions]))
    out = None
    for members in grid.reshape(size, -1).T:
        part = call(x[members])
        out = np.zeros((x.shape[0], *part.shape[1:]), part.dtype) if out is None else out
        out[members] = part
    return out

def psum_rows(x):
    return np.broadcast_to(x.sum(0), x.shape)

def gather_rows(x):
    return np.broadcast_to(x.reshape(-1), (len(x), x.size))

def exchange_rows(x):
    return x.reshape(len(x), len(x), -1).swapaxes(0, 1).reshape(x.shape)

def shift_rows(x):
    return np.roll(x, 1, axis=0)


def check_mesh(shape, order, seed):
    if order is not None and not any(
        sorted(jax.devices(), key=lambda d: d.id)[i].process_index == rank for i in order
    ):
        return  # a mesh that this process has no part in: nothing to run, nobody waits for it
    mesh = make_mesh(shape, order)
    x = small_integers((mesh.size, 24, 5), seed=seed)
    names = mesh.axis_names
    subsets = [s for k in range(1, len(names) + 1) for s in itertools.combinations(names, k)]

    def body(x):
        results = []
        for axes in subsets:
            size = int(np.prod([mesh.shape[a] for a in axes]))
            axis = axes if len(axes) > 1 else axes[0]
            results += [c.psum(x, axis), c.all_gather(x, axis, tiled=True),
                        c.ppermute(x, axis, [(i, (i + 1) % size) for i in range(size)])]
            if 24 % size == 0:
                results.append(c.all_to_all(x, axis, 0, 0, tiled=True))
        return results

    expected = []
    for axes in subsets:
        size = int(np.prod([mesh.shape[a] for a in axes]))
        flat = [psum_rows, lambda x: gather_rows(x).reshape(len(x), -1, 5), shift_rows]
        if 24 % size == 0:
            flat.append(lambda x: exchange_rows(x))
        expected += [grouped(x, shape, axes, call) for call in flat]
    compare(per_device(mesh, body)(place(mesh, x)), expected, f"mesh {shape} of {order}")


# 1. All shapes of the whole, in the order of the ids and permuted.
for shape in [(8,), (4, 2), (2, 4), (2, 2, 2)]:
    check_mesh(shape, None, 1)
    for seed in (1, 2):
        check_mesh(shape, random.Random(seed).sample(range(total), total), seed)
# 2. Sub-meshes: of one process, of some processes, one device of each, and two at once.
for order in [[0, 1], [1, 0], [2, 3], [0, 7], [2, 5, 3, 4], [0, 2, 4, 6], [7, 5, 3, 1]]:
    check_mesh((len(order),), order, len(order))
check_mesh((2, 2), [6, 0, 1, 7], 3)
print("meshes")

# 3. Two meshes in one program: two ways to see the same devices in the same order.
flat, square = make_mesh((8,)), make_mesh((2, 4))
x = small_integers((8, 33), seed=9)

@jax.jit
def both(x):
    a = jax.shard_map(lambda x: c.psum(x, "x"), mesh=flat, in_specs=P("x"), out_specs=P())(x)
    b = jax.shard_map(lambda x: c.psum(x, "y"), mesh=square, in_specs=P(("x", "y")),
                      out_specs=P("x"))(x)
    return a, b

a, b = both(place(flat, x))
for got in rows(a).values():
    np.testing.assert_array_equal(got, x.sum(0))
wanted = x.reshape(2, 4, 33).sum(1)
for row, got in rows(b).items():
    np.testing.assert_array_equal(got, wanted[row])
print("two meshes")

# 4. Derivatives, loops, branches.
mesh = flat
weights, data = small_integers((8, 16), seed=3, bound=4), small_integers((8, 16), seed=4, bound=4)

def loss(w, d):  # sum over ranks of (w . d)^2, seen by each
    return c.psum(jnp.vdot(w, d) ** 2, "x")

gradient = per_device(mesh, jax.grad(loss))(*place(mesh, (weights, data)))
dots = (weights * data).sum(1, keepdims=True)
compare(gradient, 2 * dots * data, "grad through psum")

def scanned(x):
    def step(carry, i):
        carry = c.psum(carry + i, "x") % 7 + lax.axis_index("x").astype(carry.dtype)
        return carry, c.ppermute(carry, "x", [(i, (i + 3) % 8) for i in range(8)])
    return lax.scan(step, x, jnp.arange(20, dtype=x.dtype))

expected, history = weights.astype(np.float64), []
for i in range(20):
    expected = (expected + i).sum(0) % 7 + np.arange(8)[:, None]
    history.append(np.roll(expected, 3, axis=0))
compare(per_device(mesh, scanned)(place(mesh, weights)), (expected, np.stack(history, 1)), "scan")

def branched(x, flag):
    # The flag is the same on all ranks, but the compiler does not know it.
    return lax.cond(flag[0] > 0, lambda x: c.psum(x, "x") * 2.0,
                    lambda x: c.all_gather(x, "x").sum(0) + x, x)

f = per_device(mesh, branched, check_vma=False)
for flag in (0, 1, 1, 0, 1):
    flags = np.full((8, 1), flag, np.int32)
    total_ = np.broadcast_to(weights.sum(0), weights.shape)
    compare(f(*place(mesh, (weights, flags))), total_ * 2 if flag else total_ + weights, "cond")

def batched(x):
    return jax.vmap(lambda row: c.psum(row, "x"))(x)

x = small_integers((8, 3, 5), seed=5)
compare(per_device(mesh, batched)(place(mesh, x)), psum_rows(x), "vmap")
print("transformations")
finished("end")
"""


def check_meshes(**environment: str) -> None:
    for text in run(MESHES, processes=4, devices=2, environment=environment, timeout_s=240):
        assert all(f"\n{word}" in f"\n{text}" for word in ("meshes", "two meshes", "transform"))


def test_meshes_and_transformations_are_exact() -> None:
    check_meshes()


@pytest.mark.exhaustive
def test_the_same_meshes_are_right_under_lax() -> None:
    check_meshes(TEST_COLLECTIVES="lax")


def test_lax_collectives_go_through_jaxcoll_when_installed() -> None:
    run(
        """
        from spmd import *
        from jax import lax
        import jaxcoll

        mesh = make_mesh((4,))
        x = small_integers((4, 100))
        with jaxcoll.installed():
            f = per_device(mesh, lambda x: lax.psum(x, "x")).lower(place(mesh, x))
        assert "jaxcoll_collective" in f.as_text()
        compare(f.compile()(place(mesh, x)), np.broadcast_to(x.sum(0), x.shape), "installed psum")
        finished("end")
        """,
        processes=2,
        devices=2,
    )


def test_a_pytree_is_reduced_exactly() -> None:
    run(
        """
        from spmd import *

        mesh = make_mesh((4,))
        tree = {f"w{i}": small_integers((4, 3 * i + 1), seed=i) for i in range(100)}
        summed = per_device(mesh, lambda tree: c.psum(tree, "x"))(place(mesh, tree))
        compare(summed, jax.tree.map(lambda x: np.broadcast_to(x.sum(0), x.shape), tree), "tree")
        finished("end")
        """,
        processes=2,
        devices=2,
    )
