"""The collectives under test, with nccl-tests' size conventions, busbw factors and exact inputs.

Size S of a run is what nccl-tests prints: each rank's buffer for all_reduce, broadcast and
ppermute, and count x ranks for the others, so that S is the larger of a rank's input and output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import jaxcoll

# As the collective's body inside shard_map: (one rank's vector, axis name, ranks) -> vector.
Body = Callable[[jax.Array, str, int], jax.Array]


@dataclass(frozen=True)
class Collective:
    """One collective over one mesh axis of n ranks, on vectors.

    input_divisor: a rank's input has S / input_divisor(n) bytes.
    count_divisor: the count column is S / (itemsize x count_divisor(n)).
    bus_factor: busbw = algbw x bus_factor(n), which does not depend on n if the links are busy.
    expected: float64 or int64 [n, elements], one row per rank -> the same of what each rank gets.
    """

    name: str
    redop: str
    root: int
    input_divisor: Callable[[int], int]
    count_divisor: Callable[[int], int]
    bus_factor: Callable[[int], float]
    lax: Body
    jaxcoll: Callable[[jax.Array, str, int, str], jax.Array]  # the last argument: algorithm
    expected: Callable[[np.ndarray], np.ndarray]


def _one(_: int) -> int:
    return 1


def _ranks(n: int) -> int:
    return n


def _shift(n: int) -> list[tuple[int, int]]:
    return [(rank, (rank + 1) % n) for rank in range(n)]


def _lax_broadcast(x: jax.Array, axis: str, n: int) -> jax.Array:
    """The idiom: lax has no broadcast that XLA's CPU back end can run."""
    return lax.psum(jax.numpy.where(lax.axis_index(axis) == 0, x, jax.numpy.zeros_like(x)), axis)


COLLECTIVES = {
    collective.name: collective
    for collective in (
        Collective(
            "all_reduce", "sum", -1, _one, _one, lambda n: 2 * (n - 1) / n,
            lax=lambda x, axis, n: lax.psum(x, axis),
            jaxcoll=lambda x, axis, n, algorithm: jaxcoll.all_reduce(x, axis, algorithm=algorithm),
            expected=lambda rows: np.broadcast_to(rows.sum(0), rows.shape),
        ),
        Collective(
            "all_gather", "none", -1, _ranks, _ranks, lambda n: (n - 1) / n,
            lax=lambda x, axis, n: lax.all_gather(x, axis, tiled=True),
            jaxcoll=lambda x, axis, n, algorithm: jaxcoll.all_gather(
                x, axis, tiled=True, algorithm=algorithm
            ),
            expected=lambda rows: np.broadcast_to(rows.reshape(-1), (len(rows), rows.size)),
        ),
        Collective(
            "reduce_scatter", "sum", -1, _one, _ranks, lambda n: (n - 1) / n,
            lax=lambda x, axis, n: lax.psum_scatter(x, axis, tiled=True),
            jaxcoll=lambda x, axis, n, algorithm: jaxcoll.reduce_scatter(
                x, axis, tiled=True, algorithm=algorithm
            ),
            expected=lambda rows: rows.sum(0).reshape(len(rows), -1),
        ),
        Collective(
            "all_to_all", "none", -1, _one, _ranks, lambda n: (n - 1) / n,
            lax=lambda x, axis, n: lax.all_to_all(x, axis, 0, 0, tiled=True),
            jaxcoll=lambda x, axis, n, algorithm: jaxcoll.all_to_all(
                x, axis, 0, 0, tiled=True, algorithm=algorithm
            ),
            expected=lambda rows: rows.reshape(len(rows), len(rows), -1)
            .swapaxes(0, 1)
            .reshape(rows.shape),
        ),
        Collective(
            "ppermute", "none", -1, _one, _one, lambda n: 1,
            lax=lambda x, axis, n: lax.ppermute(x, axis, _shift(n)),
            jaxcoll=lambda x, axis, n, algorithm: jaxcoll.ppermute(
                x, axis, _shift(n), algorithm=algorithm
            ),
            expected=lambda rows: np.roll(rows, 1, axis=0),
        ),
        Collective(
            "broadcast", "none", 0, _one, _one, lambda n: 1,
            lax=_lax_broadcast,
            jaxcoll=lambda x, axis, n, algorithm: jaxcoll.broadcast(
                x, axis, 0, algorithm=algorithm
            ),
            expected=lambda rows: np.broadcast_to(rows[0], rows.shape),
        ),
    )
}  # fmt: skip

DTYPES = {
    name: np.dtype(getattr(ml_dtypes, name, name))
    for name in (
        *("float32", "float64", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("complex64", "complex128"),
    )
}


def compile_call(mesh: Mesh, body: Callable[..., Any], arguments: Any) -> Callable[[], Any]:
    """Compiles `body` over every device of `mesh` and binds `arguments`, [devices, ...] each.

    The body sees one device's rows without the leading dimension and returns the like. A call
    returns arrays that are computed asynchronously; nothing is donated, so calls can be repeated.
    """
    rows = P(tuple(mesh.axis_names))

    def local(arguments: Any) -> Any:
        result = body(jax.tree.map(lambda x: x[0], arguments))
        return jax.tree.map(lambda x: x[None], result)

    mapped = jax.shard_map(local, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
    compiled = jax.jit(mapped).lower(arguments).compile()
    return lambda: compiled(arguments)


def place(mesh: Mesh, array: np.ndarray) -> jax.Array:
    """An array of [devices, ...] with one row on each device of `mesh`, in whatever process."""
    sharding = jax.NamedSharding(mesh, P(tuple(mesh.axis_names)))
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def exact_input(devices: int, elements: int, dtype: np.dtype, ranks: int) -> np.ndarray:
    """[devices, elements] of small integers whose sum over `ranks` of the rows is exact in `dtype`.

    Rows differ, and so do neighbouring elements, so that a misplaced chunk shows.
    """
    if dtype.kind in "iu":
        largest = int(np.iinfo(dtype).max)
    else:
        largest = 2 ** (int(ml_dtypes.finfo(dtype).nmant) + 1)
    levels = min(largest // ranks + 1, 251)  # a prime: no period of a power of two
    row, column = np.arange(devices)[:, None], np.arange(elements)[None, :]
    if levels < 2:  # more ranks than the type can count: each element is 1 on one row only
        return ((row + column) % ranks == 0).astype(dtype)
    return ((7 * row + column) % levels).astype(dtype)


def group_rows(mesh: Mesh, axis: str) -> np.ndarray:
    """[groups, ranks]: the rows of a [devices, ...] array that meet in a collective over `axis`."""
    position = list(mesh.axis_names).index(axis)
    rows = np.arange(mesh.size).reshape(mesh.devices.shape)
    return np.moveaxis(rows, position, -1).reshape(-1, mesh.shape[axis])


def count_wrong(
    collective: Collective, mesh: Mesh, axis: str, sent: np.ndarray, received: jax.Array
) -> int:
    """How many of the received elements, on this process's devices, differ from NumPy's."""
    ours = {shard.index[0].start or 0: shard.data for shard in received.addressable_shards}
    wide = np.dtype({"c": "complex128", "i": "int64", "u": "int64"}.get(sent.dtype.kind, "float64"))
    wrong = 0
    for rows in group_rows(mesh, axis):
        expected = collective.expected(sent[rows].astype(wide))
        for row, values in zip(rows, expected, strict=True):
            if row not in ours:
                continue
            got = np.asarray(ours[row])[0]
            if values.shape != got.shape:
                raise AssertionError(f"{collective.name}: got {got.shape}, not {values.shape}")
            wrong += int((got.astype(wide) != values).sum())
    return wrong
