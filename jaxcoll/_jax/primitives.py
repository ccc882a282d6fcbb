"""The collective primitives: abstract evaluation, varying axes (VMA) and batching.

Each primitive has one canonical form, in which the ranks' chunks lie along the leading dimension;
api.py brings lax's `axis`, `tiled`, `split_axis` and so on into it with transposes and reshapes,
which have rules of their own. With P ranks in a group:

    all_reduce         n arrays of any shapes -> the same shapes
    reduce_scatter     (P, *s) -> s
    all_gather         s -> (P, *s)
    all_to_all         (P, *s) -> (P, *s)
    broadcast          s -> s
    ppermute           s -> s
    ragged_all_to_all  as lax's

Common parameters: `axis_name`, a tuple of axis names, most significant first; `axis_index_groups`,
None or a tuple of tuples; `algorithm`, a name or "auto"; `schedule`, the text of a schedule written
in Python, or "".

`invariant` says that the result is the same on all ranks and is typed so: its transpose then is
local. Without it the transpose communicates again, as lax's does when VMA is not tracked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcoll._errors import UnknownReduceOpError, UnsupportedDtypeError
from jaxcoll._jax import compat, reshaping
from jaxcoll._jax.compat import AxisName, Primitive

AxisIndexGroups = tuple[tuple[int, ...], ...] | None
Dims = Sequence[int | None]

all_reduce_p = Primitive("jaxcoll_all_reduce")
all_reduce_p.multiple_results = True
reduce_scatter_p = Primitive("jaxcoll_reduce_scatter")
all_gather_p = Primitive("jaxcoll_all_gather")
all_to_all_p = Primitive("jaxcoll_all_to_all")
ragged_all_to_all_p = Primitive("jaxcoll_ragged_all_to_all")
broadcast_p = Primitive("jaxcoll_broadcast")
ppermute_p = Primitive("jaxcoll_ppermute")
# Not a collective: jax.lax.pcast(x, axes, to="varying"), whose transpose is a sum through jaxcoll.
pvary_p = Primitive("jaxcoll_pvary")

primitives = (
    all_reduce_p,
    reduce_scatter_p,
    all_gather_p,
    all_to_all_p,
    ragged_all_to_all_p,
    broadcast_p,
    ppermute_p,
    pvary_p,
)
for _primitive in primitives:
    compat.define_impl(_primitive)
compat.define_dce(all_reduce_p)
compat.define_partial_evaluation(all_reduce_p)


# --- reduce ops ---------------------------------------------------------------------------------


class ReduceOp(NamedTuple):
    """The meaning of an op on one device; the engine's meaning across devices is the same."""

    over_axes: Callable[..., jax.Array]  # (x, axes) -> x reduced
    of_copies: Callable[[jax.Array, int], jax.Array]  # (x, n) -> x op x op ... op x, n operands
    accepts: Callable[[Any], bool]  # dtype -> whether it has the op


def _is_bool(dtype: Any) -> bool:
    return bool(dtype == np.bool_)


def _is_integral(dtype: Any) -> bool:
    return _is_bool(dtype) or bool(jnp.issubdtype(dtype, np.integer))


def _is_ordered(dtype: Any) -> bool:
    return not jnp.issubdtype(dtype, np.complexfloating)


def _same(x: jax.Array, count: int) -> jax.Array:
    return x


reduce_ops: dict[str, ReduceOp] = {
    "sum": ReduceOp(
        lax.reduce_sum, lambda x, n: lax.mul(x, lax.full_like(x, n)), lambda d: not _is_bool(d)
    ),
    "prod": ReduceOp(lax.reduce_prod, lax.integer_pow, lambda d: not _is_bool(d)),
    "min": ReduceOp(lax.reduce_min, _same, _is_ordered),
    "max": ReduceOp(lax.reduce_max, _same, _is_ordered),
    "and": ReduceOp(lax.reduce_and, _same, _is_integral),
    "or": ReduceOp(lax.reduce_or, _same, _is_integral),
    "xor": ReduceOp(lax.reduce_xor, lambda x, n: x if n % 2 else lax.full_like(x, 0), _is_integral),
}


def check_reduce_op(op: str, dtype: Any) -> None:
    """Raises the error of an unknown op, or of one that `dtype` lacks."""
    if op not in reduce_ops:
        choices = ", ".join(["mean", *reduce_ops])
        raise UnknownReduceOpError(f"unknown reduce op {op!r}; choose one of {choices}")
    if compat.is_extended_dtype(dtype) or not reduce_ops[op].accepts(dtype):
        has = [
            name
            for name, candidate in reduce_ops.items()
            if not compat.is_extended_dtype(dtype) and candidate.accepts(dtype)
        ]
        raise UnsupportedDtypeError(
            f"reduce op {op!r} is not defined for {dtype}; it has {', '.join(has) or 'none'}"
        )


# --- abstract evaluation ------------------------------------------------------------------------


def group_size(axis_name: Sequence[AxisName], axis_index_groups: AxisIndexGroups) -> int:
    """Ranks per group; NameError for an unbound axis."""
    whole = math.prod(lax.axis_size(axis) for axis in axis_name)
    return len(axis_index_groups[0]) if axis_index_groups is not None else whole


def _varying_after(
    name: str, aval: Any, axis_name: Sequence[AxisName], invariant: bool
) -> frozenset[AxisName]:
    """Checks that `aval` varies over the mesh axes it is communicated over, as lax demands."""
    compat.check_not_unreduced(aval, axis_name, name)
    if not compat.check_vma():
        return frozenset()
    varying = compat.varying_axes(aval)
    missing = [axis for axis in compat.typed_mesh_axes(axis_name) if axis not in varying]
    if missing:
        raise ValueError(
            f"jaxcoll.{name} over axes {tuple(axis_name)} needs an operand that varies over them, "
            f"but it varies over {tuple(varying)} only; cast it with "
            f"jax.lax.pcast(x, {tuple(missing)}, to='varying')"
        )
    return varying - frozenset(axis_name) if invariant else varying


def _moved(
    name: str, aval: Any, axis_name: Sequence[AxisName], invariant: bool = False
) -> tuple[Any, set[Any]]:
    """The aval of a collective that keeps the shape."""
    compat.check_axis_names(axis_name, name)
    varying = _varying_after(name, aval, axis_name, invariant)
    return compat.with_varying(aval, varying), compat.named_axis_effects(axis_name)


@all_reduce_p.def_effectful_abstract_eval
def _all_reduce_abstract_eval(
    *avals: Any, op: str, axis_name: tuple[AxisName, ...], invariant: bool, **_: Any
) -> tuple[list[Any], set[Any]]:
    results = []
    for aval in avals:
        check_reduce_op(op, aval.dtype)
        result, _effects = _moved("all_reduce", aval, axis_name, invariant)
        # As lax: psum_invariant keeps weak types, psum does not.
        results.append(result if invariant else result.update(weak_type=False))
    return results, compat.named_axis_effects(axis_name)


@reduce_scatter_p.def_effectful_abstract_eval
def _reduce_scatter_abstract_eval(
    aval: Any,
    *,
    op: str,
    axis_name: tuple[AxisName, ...],
    axis_index_groups: AxisIndexGroups,
    **_: Any,
) -> tuple[Any, set[Any]]:
    check_reduce_op(op, aval.dtype)
    result, effects = _moved("reduce_scatter", aval, axis_name)
    _check_chunks("reduce_scatter", aval, axis_name, axis_index_groups)
    return compat.without_leading_dimension(result), effects


@all_gather_p.def_effectful_abstract_eval
def _all_gather_abstract_eval(
    aval: Any,
    *,
    axis_name: tuple[AxisName, ...],
    axis_index_groups: AxisIndexGroups,
    invariant: bool,
    **_: Any,
) -> tuple[Any, set[Any]]:
    result, effects = _moved("all_gather", aval, axis_name, invariant)
    size = group_size(axis_name, axis_index_groups)
    return compat.with_leading_dimension(result, size), effects


@all_to_all_p.def_effectful_abstract_eval
def _all_to_all_abstract_eval(
    aval: Any, *, axis_name: tuple[AxisName, ...], axis_index_groups: AxisIndexGroups, **_: Any
) -> tuple[Any, set[Any]]:
    result, effects = _moved("all_to_all", aval, axis_name)
    _check_chunks("all_to_all", aval, axis_name, axis_index_groups)
    return result.update(weak_type=False), effects


@broadcast_p.def_effectful_abstract_eval
def _broadcast_abstract_eval(
    aval: Any, *, axis_name: tuple[AxisName, ...], invariant: bool, **_: Any
) -> tuple[Any, set[Any]]:
    return _moved("broadcast", aval, axis_name, invariant)


@ppermute_p.def_effectful_abstract_eval
def _ppermute_abstract_eval(
    aval: Any, *, axis_name: tuple[AxisName, ...], **_: Any
) -> tuple[Any, set[Any]]:
    return _moved("ppermute", aval, axis_name)


@ragged_all_to_all_p.def_effectful_abstract_eval
def _ragged_all_to_all_abstract_eval(
    operand: Any,
    output: Any,
    *indices: Any,
    axis_name: tuple[AxisName, ...],
    axis_index_groups: AxisIndexGroups,
    **_: Any,
) -> tuple[Any, set[Any]]:
    compat.check_axis_names(axis_name, "ragged_all_to_all")
    if operand.dtype != output.dtype or operand.shape[1:] != output.shape[1:]:
        raise ValueError(
            "ragged_all_to_all operand and output must agree in dtype and in all dimensions but "
            f"the first, but got {operand} and {output}"
        )
    size = group_size(axis_name, axis_index_groups)
    names = ("input_offsets", "send_sizes", "output_offsets", "recv_sizes")
    for name, index in zip(names, indices, strict=True):
        if not jnp.issubdtype(index.dtype, np.integer):
            raise ValueError(f"ragged_all_to_all {name} must be integer type.")
        if len(index.shape) != 1 or index.shape[0] < 1:
            raise ValueError(
                f"ragged_all_to_all {name} must be rank 1 with positive dimension size, "
                f"but got shape {index.shape}"
            )
        if index.shape != indices[0].shape or index.shape[0] % size:
            raise ValueError(
                f"ragged_all_to_all {name} must have as many elements as input_offsets, a multiple "
                f"of the group's {size} ranks, but has shape {index.shape}"
            )
    result, effects = _moved("ragged_all_to_all", output, axis_name)
    return result.update(weak_type=False), effects


@pvary_p.def_abstract_eval
def _pvary_abstract_eval(aval: Any, *, axis_name: tuple[AxisName, ...], **_: Any) -> Any:
    compat.check_not_unreduced(aval, axis_name, "pvary")
    return compat.varying_in_context(aval, compat.varying_axes(aval) | frozenset(axis_name))


def cast_varying(
    x: jax.Array, axes: tuple[AxisName, ...], algorithm: str = "auto", schedule: str = ""
) -> jax.Array:
    """Types `x` as varying over `axes`, mesh axes over which it is invariant.

    Args:
      algorithm, schedule: how its transpose, a sum over `axes`, runs.
    """
    if not axes:
        return x
    return pvary_p.bind(x, axis_name=axes, algorithm=algorithm, schedule=schedule)


def _check_chunks(
    name: str, aval: Any, axis_name: Sequence[AxisName], axis_index_groups: AxisIndexGroups
) -> None:
    size = group_size(axis_name, axis_index_groups)
    if not aval.shape or aval.shape[0] != size:
        raise ValueError(
            f"jaxcoll.{name} needs one chunk per rank along the leading dimension, {size} of them, "
            f"but got shape {aval.shape}"
        )


# --- batching -----------------------------------------------------------------------------------
#
# A vmapped axis among `axis_name` means that this device holds the values of all its indices: what
# that axis contributes is done on this device, the remaining axes communicate.


class _Split(NamedTuple):
    """axis_name around a vmapped axis: rank = (before * vmapped + index) * after + ..."""

    rest: tuple[AxisName, ...]
    before: int  # ranks of the axes more significant than the vmapped one
    vmapped: int
    after: int  # and of the less significant ones


def _split_at(axis_data: Any, axis_name: tuple[AxisName, ...]) -> _Split:
    position = axis_name.index(axis_data.name)
    before, after = axis_name[:position], axis_name[position + 1 :]
    return _Split(
        before + after,
        math.prod(lax.axis_size(axis) for axis in before),
        axis_data.size,
        math.prod(lax.axis_size(axis) for axis in after),
    )


def _refuse_groups(name: str, axis_data: Any, axis_index_groups: AxisIndexGroups) -> None:
    if axis_index_groups is not None:  # lax's type
        raise NotImplementedError(
            f"jaxcoll.{name}: axis_index_groups over the vmapped axis {axis_data.name!r} are not "
            "supported; reshape the batch into groups and vmap over each"
        )


def _all_reduce_batcher(
    axis_data: Any,
    vals: Sequence[jax.Array],
    dims: Dims,
    *,
    op: str,
    axis_name: tuple[AxisName, ...],
    axis_index_groups: AxisIndexGroups,
    **params: Any,
) -> tuple[list[jax.Array], Dims]:
    if axis_data.name not in axis_name:
        return all_reduce_p.bind(
            *vals, op=op, axis_name=axis_name, axis_index_groups=axis_index_groups, **params
        ), dims
    _refuse_groups("all_reduce", axis_data, axis_index_groups)
    results = [_reduce_locally(op, axis_data.size, x, d) for x, d in zip(vals, dims, strict=True)]
    rest = _split_at(axis_data, axis_name).rest
    if rest:
        results = all_reduce_p.bind(
            *results, op=op, axis_name=rest, axis_index_groups=None, **params
        )
    return results, [None] * len(results)


def _reduce_locally(op: str, size: int, x: jax.Array, d: int | None) -> jax.Array:
    if d is None:
        return reduce_ops[op].of_copies(x, size)
    return reduce_ops[op].over_axes(x, [d])


def _reduce_scatter_batcher(
    axis_data: Any,
    vals: Sequence[jax.Array],
    dims: Dims,
    *,
    op: str,
    axis_name: tuple[AxisName, ...],
    axis_index_groups: AxisIndexGroups,
    **params: Any,
) -> tuple[jax.Array, int | None]:
    (x,), (d,) = vals, dims
    if axis_data.name not in axis_name:
        x, d = _behind_chunks(x, d)
        y = reduce_scatter_p.bind(
            x, op=op, axis_name=axis_name, axis_index_groups=axis_index_groups, **params
        )
        return y, None if d is None else d - 1
    _refuse_groups("reduce_scatter", axis_data, axis_index_groups)
    split = _split_at(axis_data, axis_name)
    x = _reduce_locally(op, axis_data.size, x, d)
    x = _vmapped_behind_rest(split, x)
    if not split.rest:
        return lax.squeeze(x, [0]), 0
    y = reduce_scatter_p.bind(x, op=op, axis_name=split.rest, axis_index_groups=None, **params)
    return y, 0


def _all_gather_batcher(
    axis_data: Any,
    vals: Sequence[jax.Array],
    dims: Dims,
    *,
    axis_name: tuple[AxisName, ...],
    axis_index_groups: AxisIndexGroups,
    **params: Any,
) -> tuple[jax.Array, int | None]:
    (x,), (d,) = vals, dims
    if axis_data.name not in axis_name:
        y = all_gather_p.bind(x, axis_name=axis_name, axis_index_groups=axis_index_groups, **params)
        return y, None if d is None else d + 1
    _refuse_groups("all_gather", axis_data, axis_index_groups)
    split = _split_at(axis_data, axis_name)
    x = _batch_in_front(axis_data, x, d)
    if split.rest:
        y = all_gather_p.bind(x, axis_name=split.rest, axis_index_groups=None, **params)
    else:
        y = lax.expand_dims(x, [0])
    return _vmapped_among_rest(split, y), None


def _all_to_all_batcher(
    axis_data: Any,
    vals: Sequence[jax.Array],
    dims: Dims,
    *,
    axis_name: tuple[AxisName, ...],
    axis_index_groups: AxisIndexGroups,
    **params: Any,
) -> tuple[jax.Array, int | None]:
    (x,), (d,) = vals, dims
    if axis_data.name not in axis_name:
        x, d = _behind_chunks(x, d)
        y = all_to_all_p.bind(x, axis_name=axis_name, axis_index_groups=axis_index_groups, **params)
        return y, d
    _refuse_groups("all_to_all", axis_data, axis_index_groups)
    split = _split_at(axis_data, axis_name)
    # (P, source index, ...) -> (rest, destination index, source index, ...)
    x = jnp.moveaxis(_batch_in_front(axis_data, x, d), 0, 1)
    x = _vmapped_behind_rest(split, x)
    if split.rest:
        x = all_to_all_p.bind(x, axis_name=split.rest, axis_index_groups=None, **params)
    # Each destination index becomes a batch element, each source index a chunk.
    x = jnp.moveaxis(x, 1, 2)
    return _vmapped_among_rest(split, x), 1


def _broadcast_batcher(
    axis_data: Any,
    vals: Sequence[jax.Array],
    dims: Dims,
    *,
    root: int,
    axis_name: tuple[AxisName, ...],
    axis_index_groups: AxisIndexGroups,
    **params: Any,
) -> tuple[jax.Array, int | None]:
    (x,), (d,) = vals, dims
    if axis_data.name not in axis_name:
        return broadcast_p.bind(
            x, root=root, axis_name=axis_name, axis_index_groups=axis_index_groups, **params
        ), d
    _refuse_groups("broadcast", axis_data, axis_index_groups)
    split = _split_at(axis_data, axis_name)
    index, rest_root = _split_rank(split, root)
    y = x if d is None else lax.index_in_dim(x, index, d, keepdims=False)
    if split.rest:
        y = broadcast_p.bind(
            y, root=rest_root, axis_name=split.rest, axis_index_groups=None, **params
        )
    return y, None


def _ppermute_batcher(
    axis_data: Any,
    vals: Sequence[jax.Array],
    dims: Dims,
    *,
    perm: tuple[tuple[int, int], ...],
    axis_name: tuple[AxisName, ...],
    axis_index_groups: AxisIndexGroups,
    **params: Any,
) -> tuple[jax.Array, int | None]:
    (x,), (d,) = vals, dims
    if axis_data.name not in axis_name:
        return ppermute_p.bind(
            x, perm=perm, axis_name=axis_name, axis_index_groups=axis_index_groups, **params
        ), d
    _refuse_groups("ppermute", axis_data, axis_index_groups)
    split = _split_at(axis_data, axis_name)
    if d is None and not split.rest and len(perm) == split.vmapped:
        return x, None  # as in lax: all indices have the same value, and each gets one
    x = _batch_in_front(axis_data, x, d)
    if not split.rest:
        source_of = {destination: source for source, destination in perm}
        zero = lax.full_like(x[0], 0)
        rows = [x[source_of[i]] if i in source_of else zero for i in range(split.vmapped)]
        return jnp.stack(rows), 0

    # One permutation of the remaining axes for every pair of indices of the vmapped one; a rank's
    # element comes out of at most one of them.
    moves: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for source, destination in perm:
        from_index, from_rest = _split_rank(split, source)
        to_index, to_rest = _split_rank(split, destination)
        moves.setdefault((from_index, to_index), []).append((from_rest, to_rest))
    rank = lax.axis_index(split.rest)
    rows = [lax.full_like(x[0], 0)] * split.vmapped
    for (from_index, to_index), pairs in moves.items():
        piece = ppermute_p.bind(
            x[from_index],
            perm=tuple(pairs),
            axis_name=split.rest,
            axis_index_groups=None,
            **params,
        )
        receives = np.zeros(split.before * split.after, np.bool_)
        receives[[destination for _, destination in pairs]] = True
        rows[to_index] = jnp.where(jnp.asarray(receives)[rank], piece, rows[to_index])
    return jnp.stack(rows), 0


def _ragged_all_to_all_batcher(
    axis_data: Any,
    vals: Sequence[jax.Array],
    dims: Dims,
    *,
    axis_name: tuple[AxisName, ...],
    axis_index_groups: AxisIndexGroups,
    **params: Any,
) -> tuple[jax.Array, int | None]:
    if axis_data.name in axis_name:  # lax's type
        raise NotImplementedError(
            f"jaxcoll.ragged_all_to_all over the vmapped axis {axis_data.name!r} is not supported"
        )
    size = axis_data.size
    fronted = [_batch_in_front(axis_data, x, d) for x, d in zip(vals, dims, strict=True)]
    operand, output = fronted[:2]
    # The batch becomes part of the ragged rows: element b's rows start at b * (rows per element).
    # The slices for one rank must stay together, so the batch is the inner index of the sizes.
    element = jnp.arange(size)[:, None]
    input_offsets, send_sizes, output_offsets, recv_sizes = fronted[2:]
    input_offsets = input_offsets + element * operand.shape[1]
    output_offsets = output_offsets + element * output.shape[1]
    indices = [input_offsets, send_sizes, output_offsets, recv_sizes]
    y = ragged_all_to_all_p.bind(
        reshaping.merge(operand, 0),
        reshaping.merge(output, 0),
        *(reshaping.merge(index.T, 0) for index in indices),
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        **params,
    )
    return reshaping.split(y, 0, output.shape[:2]), 0


def _pvary_batcher(
    axis_data: Any, vals: Sequence[jax.Array], dims: Dims, **params: Any
) -> tuple[jax.Array, int | None]:
    (x,), (d,) = vals, dims
    return pvary_p.bind(x, **params), d


def _behind_chunks(x: jax.Array, d: int | None) -> tuple[jax.Array, int | None]:
    """Moves a batch dimension out of the place of the chunks."""
    return (jnp.moveaxis(x, 0, 1), 1) if d == 0 else (x, d)


def _batch_in_front(axis_data: Any, x: jax.Array, d: int | None) -> jax.Array:
    if d is None:
        return lax.broadcast(x, (axis_data.size,))
    return jnp.moveaxis(x, d, 0)


def _vmapped_behind_rest(split: _Split, x: jax.Array) -> jax.Array:
    """(ranks, ...) -> (ranks of the rest, indices of the vmapped axis, ...)"""
    x = reshaping.split(x, 0, (split.before, split.vmapped, split.after))
    return reshaping.merge(jnp.moveaxis(x, 1, 2), 0)


def _vmapped_among_rest(split: _Split, x: jax.Array) -> jax.Array:
    """The inverse of _vmapped_behind_rest."""
    x = reshaping.split(x, 0, (split.before, split.after))
    return reshaping.merge(reshaping.merge(jnp.moveaxis(x, 2, 1), 0), 0)


def _split_rank(split: _Split, rank: int) -> tuple[int, int]:
    """The index along the vmapped axis, and the rank among the rest."""
    outer, inner = divmod(rank, split.vmapped * split.after)
    index, inner = divmod(inner, split.after)
    return index, outer * split.after + inner


compat.batching.fancy_primitive_batchers.update(
    {
        all_reduce_p: _all_reduce_batcher,
        reduce_scatter_p: _reduce_scatter_batcher,
        all_gather_p: _all_gather_batcher,
        all_to_all_p: _all_to_all_batcher,
        ragged_all_to_all_p: _ragged_all_to_all_batcher,
        broadcast_p: _broadcast_batcher,
        ppermute_p: _ppermute_batcher,
        pvary_p: _pvary_batcher,
    }
)


def rank_in_group(axis_name: Sequence[AxisName], axis_index_groups: AxisIndexGroups) -> jax.Array:
    """This device's position in its group: int32, scalar."""
    index = lax.axis_index(tuple(axis_name))
    if axis_index_groups is None:
        return index
    position = np.zeros(sum(map(len, axis_index_groups)), np.int32)
    for group in axis_index_groups:
        position[list(group)] = np.arange(len(group))
    return jnp.asarray(position)[index]


def element_or_zeros(index: jax.Array, size: int, elements: jax.Array) -> jax.Array:
    """``elements[index]``, or zeros where `index`, a traced one, is not below `size`."""
    if index.ndim or not jnp.issubdtype(index.dtype, np.integer):
        raise TypeError(f"a traced broadcast root must be an integer scalar, but is {index.aval}")
    if index.dtype.itemsize < np.dtype(np.int32).itemsize:
        index = index.astype(np.int32)  # `size` may not fit into a narrower one
    inside = (index >= 0) & (index < size)
    position = jnp.where(inside, index, 0).astype(np.int32)
    element = lax.dynamic_index_in_dim(elements, position, 0, keepdims=False)
    return jnp.where(inside, element, lax.full_like(element, 0))


__all__ = [
    "AxisIndexGroups",
    "ReduceOp",
    "all_gather_p",
    "all_reduce_p",
    "all_to_all_p",
    "broadcast_p",
    "cast_varying",
    "check_reduce_op",
    "element_or_zeros",
    "group_size",
    "ppermute_p",
    "primitives",
    "pvary_p",
    "ragged_all_to_all_p",
    "rank_in_group",
    "reduce_ops",
    "reduce_scatter_p",
]
