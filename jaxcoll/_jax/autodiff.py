"""JVP and transpose rules of the collective primitives; importing it registers them.

Sums and movements are linear. The transpose of a collective whose result is typed invariant is
local: every rank holds the same cotangent. Otherwise cotangents are summed over the ranks, as lax
does where VMA is not tracked. A rule that turns one collective into another uses "auto" for it,
since an algorithm's name, like a schedule, belongs to one collective.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcoll._jax import compat, reshaping
from jaxcoll._jax.compat import ad
from jaxcoll._jax.primitives import (
    all_gather_p,
    all_reduce_p,
    all_to_all_p,
    broadcast_p,
    cast_varying,
    group_size,
    ppermute_p,
    pvary_p,
    ragged_all_to_all_p,
    rank_in_group,
    reduce_ops,
    reduce_scatter_p,
)

_AUTO = {"algorithm": "auto", "schedule": ""}


def _is_zero(tangent: Any) -> bool:
    return type(tangent) is ad.Zero


def _zero_tangent(primal: jax.Array) -> Any:
    return ad.Zero(jax.typeof(primal).to_tangent_aval())


def _zero_cotangent(operand: Any) -> Any:
    return ad.Zero(operand.aval.to_ct_aval()) if ad.is_undefined_primal(operand) else None


def _varying_like(x: jax.Array, value: jax.Array) -> jax.Array:
    """`value`, typed as varying over the axes that `x` varies over too."""
    axes = compat.varying_axes(jax.typeof(x)) - compat.varying_axes(jax.typeof(value))
    return cast_varying(value, tuple(axes))


def _check_linear(name: str, op: str) -> None:
    """As JAX where a primitive of lax's has no transpose."""
    if op != "sum":
        raise NotImplementedError(
            f"Transpose rule (for reverse-mode differentiation) for 'jaxcoll.{name}' with op "
            f"{op!r} not implemented: it is not linear; a sum is"
        )


def _differentiable(x: jax.Array) -> bool:
    return bool(jnp.issubdtype(x.dtype, np.inexact))


# --- all_reduce ---------------------------------------------------------------------------------


def _all_reduce_jvp(
    primals: Sequence[jax.Array], tangents: Sequence[Any], *, op: str, **params: Any
) -> tuple[list[jax.Array], list[Any]]:
    results = all_reduce_p.bind(*primals, op=op, **params)
    tangents_out = [_zero_tangent(result) for result in results]
    live = [
        i
        for i, (x, t) in enumerate(zip(primals, tangents, strict=True))
        if not _is_zero(t) and _differentiable(x)
    ]
    if live:
        moved = _all_reduce_tangents(
            op,
            [primals[i] for i in live],
            [tangents[i] for i in live],
            [results[i] for i in live],
            params,
        )
        for i, tangent in zip(live, moved, strict=True):
            tangents_out[i] = tangent
    return results, tangents_out


def _all_reduce_tangents(
    op: str,
    primals: list[jax.Array],
    tangents: list[jax.Array],
    results: list[jax.Array],
    params: dict[str, Any],
) -> list[jax.Array]:
    if op == "sum":
        return all_reduce_p.bind(*tangents, op="sum", **params)
    if op == "prod":
        return [_product_tangent(x, t, params) for x, t in zip(primals, tangents, strict=True)]

    # min, max: the mean of the tangents of the ranks that attain the result, as lax.reduce_max.
    attains = [
        lax.eq(x, _varying_like(x, result)).astype(x.dtype)
        for x, result in zip(primals, results, strict=True)
    ]
    # Two calls: in one, the counts would depend on tangents and could not be transposed around.
    counts = all_reduce_p.bind(*attains, op="sum", **params)
    chosen = [t * a for t, a in zip(tangents, attains, strict=True)]
    totals = all_reduce_p.bind(*chosen, op="sum", **params)
    return [total / count for total, count in zip(totals, counts, strict=True)]


def _product_tangent(x: jax.Array, tangent: jax.Array, params: dict[str, Any]) -> jax.Array:
    """sum over q of (tangent of q) * (product of the others), exact where factors are zero."""

    def gather(value: jax.Array) -> jax.Array:
        return all_gather_p.bind(value, **{**params, **_AUTO})

    def product(factors: jax.Array) -> jax.Array:
        return lax.reduce_prod(factors, [0])

    return jax.jvp(product, (gather(x),), (gather(tangent),))[1]


def _all_reduce_transpose(
    cotangents: Sequence[Any],
    *operands: Any,
    op: str,
    axis_name: tuple[Any, ...],
    invariant: bool,
    **params: Any,
) -> list[Any]:
    _check_linear("all_reduce", op)  # the tangents of the other ops are sums too
    results = [_zero_cotangent(operand) for operand in operands]
    # An operand that is known has no cotangent, whatever shares the call with it.
    live = [
        i
        for i, (ct, operand) in enumerate(zip(cotangents, operands, strict=True))
        if ad.is_undefined_primal(operand) and not _is_zero(ct)
    ]
    if not live:
        return results
    arrived = [cotangents[i] for i in live]
    if invariant:
        moved = [
            cast_varying(ct, axis_name, params["algorithm"], params["schedule"]) for ct in arrived
        ]
    else:
        moved = all_reduce_p.bind(
            *arrived, op="sum", axis_name=axis_name, invariant=False, **params
        )
    for i, ct in zip(live, moved, strict=True):
        results[i] = ct
    return results


ad.primitive_jvps[all_reduce_p] = _all_reduce_jvp
ad.primitive_transposes[all_reduce_p] = _all_reduce_transpose


# --- reduce_scatter -----------------------------------------------------------------------------


def _reduce_scatter_jvp(
    primals: Sequence[jax.Array], tangents: Sequence[Any], *, op: str, **params: Any
) -> tuple[jax.Array, Any]:
    (x,), (tangent,) = primals, tangents
    result = reduce_scatter_p.bind(x, op=op, **params)
    if _is_zero(tangent) or not _differentiable(x):
        return result, _zero_tangent(result)
    if op == "sum":
        return result, reduce_scatter_p.bind(tangent, op="sum", **params)

    # The other ops reduce, on each rank, the chunks that an all_to_all brings.
    def exchange(value: jax.Array) -> jax.Array:
        return all_to_all_p.bind(value, **{**params, **_AUTO})

    def reduce(chunks: jax.Array) -> jax.Array:
        return reduce_ops[op].over_axes(chunks, [0])

    return result, jax.jvp(reduce, (exchange(x),), (exchange(tangent),))[1]


def _reduce_scatter_transpose(cotangent: Any, operand: Any, *, op: str, **params: Any) -> list[Any]:
    _check_linear("reduce_scatter", op)
    if _is_zero(cotangent):
        return [_zero_cotangent(operand)]
    return [all_gather_p.bind(cotangent, **{**params, **_AUTO}, invariant=False)]


ad.primitive_jvps[reduce_scatter_p] = _reduce_scatter_jvp
ad.primitive_transposes[reduce_scatter_p] = _reduce_scatter_transpose


# --- movements ----------------------------------------------------------------------------------


def _all_gather_transpose(
    cotangent: jax.Array, operand: Any, *, invariant: bool, **params: Any
) -> list[jax.Array]:
    if invariant:
        rank = rank_in_group(params["axis_name"], params["axis_index_groups"])
        cotangent = _varying_like(rank, cotangent)
        return [lax.dynamic_index_in_dim(cotangent, rank, 0, keepdims=False)]
    return [reduce_scatter_p.bind(cotangent, op="sum", **{**params, **_AUTO})]


def _all_to_all_transpose(cotangent: jax.Array, operand: Any, **params: Any) -> list[jax.Array]:
    return [all_to_all_p.bind(cotangent, **params)]


def _broadcast_transpose(
    cotangent: jax.Array, operand: Any, *, root: int, invariant: bool, **params: Any
) -> list[jax.Array]:
    if not invariant:
        (cotangent,) = all_reduce_p.bind(
            cotangent, op="sum", **{**params, **_AUTO}, invariant=False
        )
    is_root = rank_in_group(params["axis_name"], params["axis_index_groups"]) == root
    cotangent = _varying_like(is_root, cotangent)
    return [jnp.where(is_root, cotangent, lax.full_like(cotangent, 0))]


def _ppermute_transpose(
    cotangent: jax.Array, operand: Any, *, perm: tuple[tuple[int, int], ...], **params: Any
) -> list[jax.Array]:
    backwards = tuple((destination, source) for source, destination in perm)
    # A schedule is written for one permutation.
    return [ppermute_p.bind(cotangent, perm=backwards, **{**params, "schedule": ""})]


def _pvary_transpose(
    cotangent: jax.Array, operand: Any, *, axis_name: tuple[Any, ...], **params: Any
) -> list[jax.Array]:
    return all_reduce_p.bind(
        cotangent,
        op="sum",
        axis_name=axis_name,
        axis_index_groups=None,
        invariant=True,
        **params,
    )


ad.deflinear2(pvary_p, _pvary_transpose)
ad.deflinear2(all_gather_p, _all_gather_transpose)
ad.deflinear2(all_to_all_p, _all_to_all_transpose)
ad.deflinear2(broadcast_p, _broadcast_transpose)
ad.deflinear2(ppermute_p, _ppermute_transpose)


# --- ragged_all_to_all: linear in operand and output, not in the four index arrays ----------------


def _ragged_all_to_all_jvp(
    primals: Sequence[jax.Array], tangents: Sequence[Any], **params: Any
) -> tuple[jax.Array, Any]:
    indices = primals[2:]
    result = ragged_all_to_all_p.bind(*primals, **params)
    if _is_zero(tangents[0]) and _is_zero(tangents[1]):
        return result, _zero_tangent(result)
    moving = [ad.instantiate_zeros(tangent) for tangent in tangents[:2]]
    return result, ragged_all_to_all_p.bind(*moving, *indices, **params)


def _ragged_all_to_all_transpose(
    cotangent: Any,
    operand: Any,
    output: Any,
    input_offsets: jax.Array,
    send_sizes: jax.Array,
    output_offsets: jax.Array,
    recv_sizes: jax.Array,
    **params: Any,
) -> list[Any]:
    if _is_zero(cotangent):
        return [_zero_cotangent(operand), _zero_cotangent(output), None, None, None, None]
    size = group_size(params["axis_name"], params["axis_index_groups"])

    def exchange(offsets: jax.Array) -> jax.Array:
        """Everything the peers know about the slices that they send here."""
        rows = reshaping.split(offsets, 0, (size, offsets.shape[0] // size))
        return reshaping.merge(all_to_all_p.bind(rows, **{**params, **_AUTO}), 0)

    received_at = exchange(output_offsets)
    operand_ct = output_ct = None
    if ad.is_undefined_primal(operand):
        nothing = jnp.zeros(operand.aval.shape, cotangent.dtype)
        if compat.inserts_pvary():
            nothing = cast_varying(nothing, tuple(compat.varying_axes(jax.typeof(cotangent))))
        operand_ct = ragged_all_to_all_p.bind(
            cotangent,
            nothing,
            received_at,
            recv_sizes,
            exchange(input_offsets),
            send_sizes,
            **params,
        )
    if ad.is_undefined_primal(output):
        # Rows [start, start + size) of each slice were overwritten: +1 and -1 at their ends.
        edges = jnp.zeros(cotangent.shape[0] + 1, np.int32)
        edges = edges.at[received_at].add(1).at[received_at + recv_sizes].add(-1)
        overwritten = jnp.cumsum(edges)[:-1] > 0
        overwritten = overwritten.reshape(-1, *[1] * (cotangent.ndim - 1))
        output_ct = jnp.where(overwritten, lax.full_like(cotangent, 0), cotangent)
    return [operand_ct, output_ct, None, None, None, None]


ad.primitive_jvps[ragged_all_to_all_p] = _ragged_all_to_all_jvp
ad.primitive_transposes[ragged_all_to_all_p] = _ragged_all_to_all_transpose
