"""Every other way to a collective, over several processes: pmap, lax's own under `install()`, vmap
over the axis of the collective."""

import pytest
from processes import run

PMAP = """
from spmd import *
from jax import lax

n = jax.device_count()
local = jax.local_device_count()
x = small_integers((n, 6))
mine = x[rank * local : (rank + 1) * local]  # pmap takes this process's rows

def body(x):
    return (c.psum(x, "i"), c.all_gather(x, "i"), c.ppermute(x, "i", [(0, n - 1), (n - 1, 0)]),
            c.psum(x * lax.axis_index("i"), "i"))

swapped = np.zeros_like(x)
swapped[[0, n - 1]] = x[[n - 1, 0]]
numbered = (x * np.arange(n)[:, None]).sum(0)
wanted = (np.broadcast_to(x.sum(0), x.shape), np.broadcast_to(x, (n, *x.shape)), swapped,
          np.broadcast_to(numbered, x.shape))
f = jax.pmap(body, axis_name="i")
for _ in range(3):
    for result, full in zip(f(mine), wanted, strict=True):
        assert result.shape[0] == local  # it returns this process's rows, too
        np.testing.assert_array_equal(np.asarray(result), full[rank * local :][:local])
if not LAX:
    assert "jaxcoll_collective" in f.lower(mine).as_text()
finished("end")
"""


def test_pmap_is_exact() -> None:
    run(PMAP, processes=2, devices=2)


@pytest.mark.exhaustive
def test_the_same_pmap_is_right_under_lax() -> None:
    run(PMAP, processes=2, devices=2, environment={"TEST_COLLECTIVES": "lax"})


INSTALLED = """
from spmd import *
from jax import lax
import jax.numpy as jnp
import jaxcoll

n = 4
mesh = make_mesh((n,))
x = small_integers((n, 4, 6))
sizes = np.arange(n * n, dtype=np.int32).reshape(n, n) % 3
starts = (np.cumsum(sizes, 1) - sizes).astype(np.int32)
lands = (np.cumsum(sizes, 0) - sizes).astype(np.int32)

def ragged_of(x):
    result = np.zeros((n, 9, 6), x.dtype)
    for s in range(n):
        for d in range(n):
            rows = np.resize(x[s], (9, 6))[starts[s, d]:][:sizes[s, d]]
            result[d, lands[s, d]:][:sizes[s, d]] = rows
    return result

def ragged(x):
    me = lax.axis_index("x")
    of = lambda table: jnp.asarray(table)[me]
    return lax.ragged_all_to_all(
        jnp.resize(x, (9, 6)), jnp.zeros((9, 6), x.dtype), of(starts), of(sizes), of(lands),
        of(sizes.T), axis_name="x")

total = x.sum(0)
# lax's function, and what NumPy says
FORMS = {
    "psum": (lambda x: lax.psum(x, "x"), np.broadcast_to(total, x.shape)),
    "groups": (lambda x: lax.psum(x, "x", axis_index_groups=[[0, 2], [1, 3]]),
               np.tile(x.reshape(2, 2, 4, 6).sum(0), (2, 1, 1))),
    "pmean": (lambda x: lax.pmean(x, "x"), np.broadcast_to(total / n, x.shape)),
    "pmax": (lambda x: lax.pmax(x, "x"), np.broadcast_to(x.max(0), x.shape)),
    "pmin": (lambda x: lax.pmin(x, "x"), np.broadcast_to(x.min(0), x.shape)),
    "all_gather": (lambda x: lax.all_gather(x, "x", axis=1, tiled=True),
                   np.broadcast_to(np.concatenate(list(x), 1), (n, 4, 24))),
    "reduce_scatter": (lambda x: lax.psum_scatter(x, "x"), total),
    "all_to_all": (lambda x: lax.all_to_all(x, "x", 0, 0), x.swapaxes(0, 1)),
    "ppermute": (lambda x: lax.ppermute(x, "x", [(i, (i + 1) % n) for i in range(n)]),
                 np.roll(x, 1, 0)),
    "pshuffle": (lambda x: lax.pshuffle(x, "x", [1, 2, 3, 0]), np.roll(x, -1, 0)),
    "pbroadcast": (lambda x: lax.pbroadcast(x, "x", 2), np.broadcast_to(x[2], x.shape)),
    "ragged": (ragged, ragged_of(x)),
    "grad": (jax.grad(lambda x: lax.psum(lax.psum(x, "x") ** 2, "x").sum() / n),
             np.broadcast_to(2 * n * total, x.shape)),
    "while": (lambda x: lax.fori_loop(0, 3, lambda i, y: lax.psum(y, "x") % 5 + i, x), None),
}
y = x
for i in range(3):
    y = np.broadcast_to(y.sum(0) % 5 + i, x.shape)
FORMS["while"] = (FORMS["while"][0], y)

for name, (call, wanted) in FORMS.items():
    for check_vma in (False, True) if name in ("psum", "all_gather", "ppermute") else (False,):
        with jaxcoll.installed():
            lowered = per_device(mesh, call, check_vma=check_vma).lower(place(mesh, x))
        assert "jaxcoll_collective" in lowered.as_text(), name
        compiled = lowered.compile()
        for _ in range(2):
            compare(compiled(place(mesh, x)), wanted, name)
jaxcoll.install()
compare(per_device(mesh, FORMS["psum"][0])(place(mesh, x)), FORMS["psum"][1], "install()")
jaxcoll.uninstall()
assert "jaxcoll" not in per_device(mesh, FORMS["psum"][0]).lower(place(mesh, x)).as_text()
finished("end")
"""


def test_all_of_lax_goes_through_jaxcoll_when_installed() -> None:
    run(INSTALLED, processes=2, devices=2)


VMAPPED = """
from spmd import *
from jax import lax
import jax.numpy as jnp

n = jax.device_count()
mesh = make_mesh((n,))
x = small_integers((n, 3, 12))

# The collective's axis is that of the vmap, or both that and the mesh's.
def body(x):
    def row(x):
        parts = [c.psum(x, "v"), c.psum(x, ("x", "v")), c.pmax(x, ("v", "x")),
                 c.ppermute(c.psum(x, "x"), "v", [(i, (i + 1) % 3) for i in range(3)]),
                 c.all_gather(x, "v"), c.all_to_all(c.psum(x, "x"), "v", 0, 0, tiled=True)]
        return parts
    return jax.vmap(row, axis_name="v")(x)

shape = x.shape
over_v, over_x = np.broadcast_to(x.sum(1, keepdims=True), shape), np.broadcast_to(x.sum(0), shape)
wanted = [
    over_v, np.broadcast_to(x.sum((0, 1)), shape), np.broadcast_to(x.max((0, 1)), shape),
    np.roll(over_x, 1, 1), np.broadcast_to(x[:, None], (n, 3, 3, 12)),
    over_x.reshape(n, 3, 3, 4).swapaxes(1, 2).reshape(shape),
]
f = per_device(mesh, body, check_vma=False)
for _ in range(3):
    compare(f(place(mesh, x)), wanted, "vmap")
finished("end")
"""


def test_vmap_over_the_axis_of_the_collective_is_exact() -> None:
    run(VMAPPED, processes=2, devices=2)


@pytest.mark.exhaustive
def test_asynchronous_forms_are_left_to_xla_and_right_beside_ours() -> None:
    """They are not public in lax yet; under `install()` they stay as they are."""
    run(
        """
        from spmd import *
        from support import private_jax
        import jaxcoll

        mesh = make_mesh((4,))
        x = small_integers((4, 100))
        total = np.broadcast_to(x.sum(0), x.shape)

        def body(x):
            started = psum_start(x, "x")
            return jaxcoll.psum(x, "x"), started.done(), jaxcoll.all_gather(x, "x")

        if psum_start := private_jax.asynchronous_psum():
            with jaxcoll.installed():
                result = per_device(mesh, body, check_vma=False)(place(mesh, x))
            compare(result, (total, total, np.broadcast_to(x, (4, *x.shape))), "beside one")
        finished("end")
        """,
        processes=2,
        devices=2,
    )


PARTITIONED = """
from spmd import *
from jax.experimental.custom_partitioning import custom_partitioning
import jaxcoll

mesh = make_mesh((n := jax.device_count(),))
sharding = jax.NamedSharding(mesh, P("x"))
x = small_integers((n, 6))

def partitioned(body):
    function = custom_partitioning(lambda x: x)
    function.def_partition(
        partition=lambda mesh, *_: (mesh, body, sharding, (sharding,)),
        infer_sharding_from_operands=lambda mesh, *_: sharding,
        sharding_rule="i j -> i j",
    )
    return jax.jit(function)

def exchange(c, x):
    return c.psum(x, "x") + c.ppermute(x, "x", [(i, (i + 1) % n) for i in range(n)])

wanted = x.sum(0) + np.roll(x, 1, axis=0)
placed = place(mesh, x)
if sys.argv[1] == "lax":
    jaxcoll.install()
    c = jax.lax
compiled = partitioned(lambda x: exchange(c, x)).lower(placed).compile()
assert "jaxcoll_collective" in compiled.as_text()
for i in range(3):
    compare(compiled(placed), wanted, f"call {i}")
finished("end")
"""


@pytest.mark.parametrize("namespace", ["jaxcoll", "lax"])
def test_functions_under_custom_partitioning_are_exact(namespace: str) -> None:
    run(PARTITIONED, namespace, processes=2, devices=2)
