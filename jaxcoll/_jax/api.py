"""The public collectives: jaxcoll's own, and drop-ins with the signatures of jax.lax's.

Here arguments are checked and brought into the canonical form of primitives.py.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcoll._errors import AxisIndexGroupsError, PermutationError, UnknownReduceOpError
from jaxcoll._jax import autodiff, compat, lowering, reshaping
from jaxcoll._jax import primitives as prim
from jaxcoll.schedule import Schedule
from jaxcoll.tune import select

# Imported for what they register: rules of differentiation, and the FFI target.
_registers = (autodiff, lowering)

AxisNames = Hashable | Sequence[Hashable]
Groups = Sequence[Sequence[int]]
# A pytree, and the same with the results: jax.Array for jax.Array. As with jax.lax.stop_gradient, a
# leaf that is a NumPy array or a number of Python's comes back as a jax.Array, whatever this says.
_Tree = TypeVar("_Tree")

_MEAN = "mean"  # a sum and a division: no op of the engine's


# --- jaxcoll's own ------------------------------------------------------------------------------


def all_reduce(
    x: _Tree,
    axis_name: AxisNames,
    *,
    op: str = "sum",
    axis_index_groups: Groups | None = None,
    algorithm: str = "auto",
    schedule: Schedule | None = None,
) -> _Tree:
    """Reduces `x` over `axis_name`; with ``op="sum"`` the same values as `jax.lax.psum`.

    A pytree is reduced in one call per dtype and set of varying axes, without concatenating.

    Args:
      x: pytree of arrays of any shape; float4/8/16/32/64, bfloat16, int, uint, bool, complex.
        Each Python scalar or other constant in it is summed without communicating, as in lax: its
        sum is a constant again, weakly typed where the scalar is.
      axis_name: a mesh or vmap axis, or a tuple of them; integers are dimensions of `x`, reduced
        away on each device first.
      op: sum, mean, prod (bool only as a sum or mean, which counts in int32); min, max (all but
        complex); and, or, xor (integers and bool).
      axis_index_groups: indices along `axis_name` in equal-sized groups that reduce by themselves.
      algorithm: "auto" or one of `jaxcoll.schedule.algorithms("all_reduce")`. Some must know where
        the ranks are: over several mesh axes they take those, and ``"swing[4x4]"`` or
        ``"hierarchical[2x8]"`` (nodes x ranks per node) says it; see
        `jaxcoll.schedule.ScheduleSpec`.
      schedule: a schedule written in Python, for this number of ranks; it is verified first.

    Returns: pytree, same shapes and dtypes (mean: as ``sum / ranks``), bitwise equal on every rank
      of the group.

    Raises:
      NameError: while tracing: no mesh or vmap axis of that name is bound.
      TypeError: a leaf, groups, an algorithm or a schedule of a kind that cannot be.
      UnknownReduceOpError, UnsupportedDtypeError: an op that does not exist, or not for the dtype.
      UnknownAlgorithmError, WorldSizeError: an algorithm that does not exist, or not for so many
        ranks; a schedule for another number of them.
      AxisIndexGroupsError: groups that are ragged or do not cover the axis exactly once.
      ScheduleError: a schedule that is wrong, naming step, rank and chunk.
      ValueError: an axis named twice or a dimension that does not exist; dimensions with groups; an
        algorithm with a schedule; a schedule of another collective.
      UnsupportedError: while lowering: a platform, or a mesh without devices where they must be
        known.
      TuningError: while lowering: a tuning table that cannot be used, or that processes differ in.
      jax.errors.JaxRuntimeError: at run time: a peer is lost or late, or calls with another shape,
        naming both. Where JAX runs a small program of one device within the call, it raises this
        as a ValueError of the same text.
    """
    if op not in (_MEAN, *prim.reduce_ops):
        choices = ", ".join([_MEAN, *prim.reduce_ops])
        raise UnknownReduceOpError(f"unknown reduce op {op!r}; choose one of {choices}")
    axes = compat.drop_one_sized_axes(_axes(axis_name))
    if not axes:
        return jax.tree.map(lambda leaf: leaf / 1, x) if op == _MEAN else x
    named = tuple(axis for axis in axes if not isinstance(axis, int))
    dimensions = tuple(axis for axis in axes if isinstance(axis, int))
    if dimensions and axis_index_groups is not None:
        raise ValueError("axis_index_groups only supported for sums over just named axes")
    group = _group("all_reduce", named, axis_index_groups, algorithm, schedule)
    leaves, treedef = jax.tree.flatten(x)
    if op == _MEAN:
        sums = _all_reduce("sum", leaves, group, dimensions)
        counts = [group.size * _elements(leaf, dimensions) for leaf in leaves]
        results = [total / count for total, count in zip(sums, counts, strict=True)]
    else:
        results = _all_reduce(op, leaves, group, dimensions)
    return jax.tree.unflatten(treedef, results)


def reduce_scatter(
    x: _Tree,
    axis_name: AxisNames,
    *,
    op: str = "sum",
    scatter_dimension: int = 0,
    axis_index_groups: Groups | None = None,
    tiled: bool = False,
    algorithm: str = "auto",
    schedule: Schedule | None = None,
) -> _Tree:
    """Reduces `x` over `axis_name` and leaves each rank one chunk of the result.

    With ``op="sum"`` the same values as `jax.lax.psum_scatter`.

    Args:
      x: pytree of arrays with one chunk per rank along `scatter_dimension`.
      op: as for `all_reduce`.
      scatter_dimension: a dimension of size P, the ranks of the group, that is removed; with
        `tiled` a dimension of P * n that becomes n.
      axis_name, axis_index_groups, algorithm, schedule: as for `all_reduce`.

    Returns: pytree, same dtypes (mean: as ``sum / ranks``).

    Raises: as `all_reduce`; ValueError also for a dimension that does not fit.
    """
    if op == _MEAN:
        sums = reduce_scatter(
            x,
            axis_name,
            scatter_dimension=scatter_dimension,
            axis_index_groups=axis_index_groups,
            tiled=tiled,
            algorithm=algorithm,
            schedule=schedule,
        )
        count = prim.group_size(_axes(axis_name), _canonical_groups(axis_index_groups))
        return jax.tree.map(lambda total: total / count, sums)
    axes = compat.drop_one_sized_axes(_axes(axis_name))
    if not axes:
        return x
    group = _group("reduce_scatter", axes, axis_index_groups, algorithm, schedule)
    oracle = functools.partial(
        lax.psum_scatter,
        axis_name=axes,
        scatter_dimension=scatter_dimension,
        axis_index_groups=axis_index_groups,
        tiled=tiled,
    )

    def scatter(leaf: Any) -> jax.Array:
        if op == "sum" and compat.in_unreduced_state(leaf, axes):
            return lax.psum_scatter(leaf, axes, scatter_dimension=scatter_dimension, tiled=tiled)
        leaf = _varying(_array(leaf), group)
        dimension = compat.canonicalize_axis(scatter_dimension, leaf.ndim)
        chunks = reshaping.chunks_in_front("reduce_scatter", leaf, dimension, group.size, tiled)
        result = prim.reduce_scatter_p.bind(chunks, op=op, **group.params)
        return reshaping.sharded_as(result, oracle, leaf)

    return jax.tree.map(scatter, x)


def all_gather(
    x: _Tree,
    axis_name: AxisNames,
    *,
    axis_index_groups: Groups | None = None,
    axis: int = 0,
    tiled: bool = False,
    to: str = "varying",
    algorithm: str = "auto",
    schedule: Schedule | None = None,
) -> _Tree:
    """Gathers `x` of all ranks; the signature and values of `jax.lax.all_gather`.

    Args:
      x: pytree of arrays of any shape and dtype.
      axis: where the ranks go: a new dimension of size P, the ranks of the group, or with `tiled`
        an existing dimension, which grows P-fold.
      to: "varying", "invarying" (typed as equal on all ranks; its gradient is local) or "reduced"
        (left to lax).
      axis_name, axis_index_groups, algorithm, schedule: as for `all_reduce`.

    Returns: pytree, same dtypes.

    Raises: as `all_reduce`, but for ops; ValueError also for another `to`; NotImplementedError for
      groups with a `to` that is not "varying".
    """
    if to not in ("varying", "invarying", "reduced"):
        raise ValueError(
            f"unexpected `to` value {to!r} for jaxcoll.all_gather; "
            "choose one of varying, invarying, reduced"
        )
    if to != "varying" and axis_index_groups is not None:  # lax's type
        raise NotImplementedError(f"all_gather with axis_index_groups cannot be typed {to}")
    axes = _axes(axis_name)
    if not axes:
        return x
    if to == "reduced":
        return lax.all_gather(x, axes, axis=axis, tiled=tiled, to=to)
    group = _group("all_gather", axes, axis_index_groups, algorithm, schedule)
    oracle = functools.partial(
        lax.all_gather,
        axis_name=axes,
        axis_index_groups=axis_index_groups,
        axis=axis,
        tiled=tiled,
        to=to,
    )

    def gather(leaf: Any) -> jax.Array:
        leaf = _varying(leaf, group)
        position = compat.canonicalize_axis(axis, np.ndim(leaf) + (not tiled))
        chunks = prim.all_gather_p.bind(leaf, invariant=to == "invarying", **group.params)
        return reshaping.sharded_as(reshaping.chunks_to(chunks, position, tiled), oracle, leaf)

    return jax.tree.map(gather, x)


def all_to_all(
    x: _Tree,
    axis_name: AxisNames,
    split_axis: int,
    concat_axis: int,
    *,
    axis_index_groups: Groups | None = None,
    tiled: bool = False,
    algorithm: str = "auto",
    schedule: Schedule | None = None,
) -> _Tree:
    """Sends each rank a chunk of its own; the signature and values of `jax.lax.all_to_all`.

    Args:
      x: pytree of arrays of any dtype with one chunk per rank along `split_axis`.
      split_axis: a dimension of size P, the ranks of the group, that is removed; with `tiled` a
        dimension of P * n that becomes n.
      concat_axis: where the result has the source ranks: a new dimension of size P; with `tiled`
        an existing dimension, which grows P-fold.
      axis_name, axis_index_groups, algorithm, schedule: as for `all_reduce`.

    Returns: pytree, same dtypes.

    Raises: as `all_reduce`, but for ops; ValueError also for a dimension that does not fit.
    """
    axes = _axes(axis_name)
    group = _group("all_to_all", axes, axis_index_groups, algorithm, schedule)
    oracle = functools.partial(
        lax.all_to_all,
        axis_name=axes,
        split_axis=split_axis,
        concat_axis=concat_axis,
        axis_index_groups=axis_index_groups,
        tiled=tiled,
    )

    def exchange(leaf: Any) -> jax.Array:
        leaf = _varying(_array(leaf), group)
        split = compat.canonicalize_axis(split_axis, leaf.ndim)
        concat = compat.canonicalize_axis(concat_axis, leaf.ndim)
        chunks = reshaping.chunks_in_front("all_to_all", leaf, split, group.size, tiled)
        chunks = prim.all_to_all_p.bind(chunks, **group.params)
        return reshaping.sharded_as(reshaping.chunks_to(chunks, concat, tiled), oracle, leaf)

    return jax.tree.map(exchange, x)


def ragged_all_to_all(
    operand: jax.Array,
    output: jax.Array,
    input_offsets: jax.Array,
    send_sizes: jax.Array,
    output_offsets: jax.Array,
    recv_sizes: jax.Array,
    *,
    axis_name: AxisNames,
    axis_index_groups: Groups | None = None,
    algorithm: str = "auto",
) -> jax.Array:
    """Exchanges slices of rows whose sizes are data; the signature of `jax.lax.ragged_all_to_all`.

    Slice i of the K = P * k slices goes to rank ``i // k``: rows ``input_offsets[i] +
    range(send_sizes[i])`` of `operand` become rows ``output_offsets[i] + ...`` of that rank's
    result. Rows that receive nothing keep the values of `output`.

    Args:
      operand: (N, ...), any dtype.
      output: (M, ...), the operand's dtype.
      input_offsets, send_sizes, output_offsets, recv_sizes: integers, (K,), counting rows.
        `recv_sizes` must equal what the peers send: ``all_to_all(send_sizes)``.
      axis_name, axis_index_groups, algorithm: as for `all_reduce`.

    Returns: (M, ...), the operand's dtype.

    Raises: as `all_reduce`, but for ops and schedules; ValueError also for operands whose shapes or
      dtypes do not fit each other; jax.errors.JaxRuntimeError at run time also for sizes that
      disagree or slices that do not fit, naming both ranks.
    """
    axes = _axes(axis_name)
    group = _group("ragged_all_to_all", axes, axis_index_groups, algorithm, None)
    values = [_array(value) for value in (operand, output)]
    values += [_array(v) for v in (input_offsets, send_sizes, output_offsets, recv_sizes)]
    if compat.inserts_pvary():
        have = [compat.varying_axes(jax.typeof(value)) for value in values]
        varying = frozenset(compat.typed_mesh_axes(axes)).union(*have)
        values = [
            prim.cast_varying(value, tuple(varying - mine))
            for value, mine in zip(values, have, strict=True)
        ]
    return prim.ragged_all_to_all_p.bind(*values, **group.params)


def ppermute(
    x: _Tree,
    axis_name: AxisNames,
    perm: Iterable[tuple[int, int]],
    *,
    algorithm: str = "auto",
    schedule: Schedule | None = None,
) -> _Tree:
    """Sends `x` along (source, destination) pairs; the signature of `jax.lax.ppermute`.

    Indices count along `axis_name` as `jax.lax.axis_index` does, also for a tuple of axes in
    another order than the mesh's, where `jax.lax.ppermute` refuses or, before JAX 0.12, counts
    in the mesh's order.

    Args:
      x: pytree of arrays of any shape and dtype.
      perm: pairs of indices along `axis_name`; negative ones count from the end. Any iterable of
        pairs: a list, ``dict.items()``, an array of shape (n, 2).
      axis_name, algorithm, schedule: as for `all_reduce`.

    Returns: pytree, same shapes and dtypes; zeros on ranks that are nobody's destination, and NaN
      there for float8_e8m0fnu, which has no zero (lax on CPU: the same).

    Raises: as `all_reduce`, but for ops and groups; PermutationError for a repeated source or
      destination, or one out of range.
    """
    axes = _axes(axis_name)
    pairs = _pairs(perm, prim.group_size(axes, None))
    group = _group("permute", axes, None, algorithm, schedule, permutation=pairs)

    def permute(leaf: Any) -> jax.Array:
        return prim.ppermute_p.bind(_varying(leaf, group), perm=pairs, **group.params)

    return jax.tree.map(permute, x)


def broadcast(
    x: _Tree,
    axis_name: AxisNames,
    root: int | jax.Array = 0,
    *,
    axis_index_groups: Groups | None = None,
    to: str = "varying",
    algorithm: str = "auto",
    schedule: Schedule | None = None,
) -> _Tree:
    """Copies `x` of rank `root` to all ranks.

    Args:
      x: pytree of arrays of any shape and dtype.
      root: index along `axis_name` (within a group of `axis_index_groups`), from 0 on. It may be
        traced: a scalar of any integer dtype, equal on all ranks, which costs an all_gather.
      to: "varying", or "invarying": typed as equal on all ranks; its gradient is local.
      axis_name, axis_index_groups, algorithm, schedule: as for `all_reduce`.

    Returns: pytree, same shapes and dtypes. Zeros (NaN for float8_e8m0fnu) for a traced root that
      is not in the group, as the sum of ``where(axis_index == root, x, 0)`` by which lax defines
      `pbroadcast`.

    Raises: as `all_reduce`, but for ops; TypeError also for a root that is no integer scalar;
      ValueError also for one that is not in the group, if it is not traced, and for another `to`;
      NotImplementedError for groups with a `to` that is not "varying".
    """
    if to not in ("varying", "invarying"):
        raise ValueError(
            f"unexpected `to` value {to!r} for jaxcoll.broadcast; choose one of varying, invarying"
        )
    if to != "varying" and axis_index_groups is not None:
        raise NotImplementedError(f"broadcast with axis_index_groups cannot be typed {to}")
    axes = _axes(axis_name)
    if isinstance(root, jax.Array) and not compat.is_constant(root):
        gathered = all_gather(x, axes, axis_index_groups=axis_index_groups, to=to)
        size = prim.group_size(axes, _canonical_groups(axis_index_groups))
        return jax.tree.map(functools.partial(prim.element_or_zeros, root, size), gathered)
    root = operator.index(root)
    group = _group("broadcast", axes, axis_index_groups, algorithm, schedule, root=root)
    if not 0 <= root < group.size:
        raise ValueError(f"broadcast root {root} is not one of the {group.size} ranks")

    def send(leaf: Any) -> jax.Array:
        return prim.broadcast_p.bind(
            _varying(leaf, group), root=root, invariant=to == "invarying", **group.params
        )

    return jax.tree.map(send, x)


# --- drop-ins for jax.lax -----------------------------------------------------------------------


def psum(x: _Tree, axis_name: AxisNames, *, axis_index_groups: Groups | None = None) -> _Tree:
    """`jax.lax.psum` through jaxcoll; a pytree in one call per dtype.

    ``psum(1, axis)`` is the static size of the axis. Groups also work where VMA is checked.

    Raises: as `all_reduce`.
    """
    return all_reduce(x, axis_name, axis_index_groups=axis_index_groups)


def pmean(x: _Tree, axis_name: AxisNames, *, axis_index_groups: Groups | None = None) -> _Tree:
    """`jax.lax.pmean` through jaxcoll. Raises: as `all_reduce`."""
    return all_reduce(x, axis_name, op=_MEAN, axis_index_groups=axis_index_groups)


def pmax(x: _Tree, axis_name: AxisNames, *, axis_index_groups: Groups | None = None) -> _Tree:
    """`jax.lax.pmax` through jaxcoll; differentiable, ties share the cotangent equally.

    Raises: as `all_reduce`.
    """
    return all_reduce(x, axis_name, op="max", axis_index_groups=axis_index_groups)


def pmin(x: _Tree, axis_name: AxisNames, *, axis_index_groups: Groups | None = None) -> _Tree:
    """`jax.lax.pmin` through jaxcoll; differentiable, ties share the cotangent equally.

    Raises: as `all_reduce`.
    """
    return all_reduce(x, axis_name, op="min", axis_index_groups=axis_index_groups)


def psum_scatter(
    x: _Tree,
    axis_name: AxisNames,
    *,
    scatter_dimension: int = 0,
    axis_index_groups: Groups | None = None,
    tiled: bool = False,
) -> _Tree:
    """`jax.lax.psum_scatter` through jaxcoll. Raises: as `reduce_scatter`."""
    return reduce_scatter(
        x,
        axis_name,
        scatter_dimension=scatter_dimension,
        axis_index_groups=axis_index_groups,
        tiled=tiled,
    )


def pshuffle(x: _Tree, axis_name: AxisNames, perm: Sequence[int]) -> _Tree:
    """`jax.lax.pshuffle` through jaxcoll: rank i gets the value of rank ``perm[i]``.

    Raises: as `ppermute`; PermutationError also for a `perm` that lacks a rank.
    """
    if set(perm) != set(range(len(perm))):
        raise PermutationError(f"`perm` does not represent a permutation: {perm}")
    return ppermute(x, axis_name, list(zip(perm, range(len(perm)), strict=True)))


def pswapaxes(
    x: _Tree, axis_name: AxisNames, axis: int, *, axis_index_groups: Groups | None = None
) -> _Tree:
    """`jax.lax.pswapaxes` through jaxcoll. Raises: as `all_to_all`."""
    return all_to_all(x, axis_name, axis, axis, axis_index_groups=axis_index_groups)


def pbroadcast(x: _Tree, axis_name: AxisNames, source: int | jax.Array) -> _Tree:
    """`jax.lax.pbroadcast` through jaxcoll, also on CPU. Raises: as `broadcast`."""
    return broadcast(x, axis_name, source)


# --- arguments ----------------------------------------------------------------------------------


class _GroupArguments(NamedTuple):
    """Ranks that communicate, and the parameters that say so to a primitive."""

    axes: tuple[Hashable, ...]
    size: int
    params: dict[str, Any]


def _axes(axis_name: AxisNames) -> tuple[Hashable, ...]:
    axes = tuple(axis_name) if isinstance(axis_name, (tuple, list)) else (axis_name,)
    if len(set(axes)) != len(axes):  # lax: ValueError, or an abort inside XLA
        raise ValueError(f"axis_name names an axis twice: {axes}")
    return axes


def _canonical_groups(groups: Groups | None) -> prim.AxisIndexGroups:
    if groups is None:
        return None
    return tuple(tuple(operator.index(i) for i in group) for group in groups)


def _check_groups(groups: prim.AxisIndexGroups, axes: Sequence[Hashable], size: int) -> None:
    if groups is None:
        return
    if sorted(i for group in groups for i in group) != list(range(size)):
        raise AxisIndexGroupsError(
            f"axis_index_groups must cover all indices exactly once, 0 to {size - 1} along "
            f"{tuple(axes)}, but got {groups}"
        )
    sizes = sorted({len(group) for group in groups})
    if len(sizes) != 1:
        raise AxisIndexGroupsError(
            f"axis_index_groups must all be of one size, but got sizes {sizes}: {groups}"
        )


def _group(
    collective: str,
    axes: tuple[Hashable, ...],
    axis_index_groups: Groups | None,
    algorithm: str,
    schedule: Schedule | None,
    **asked: Any,
) -> _GroupArguments:
    """Checks what can be checked while tracing.

    Args:
      asked: root or permutation, which a schedule must agree with.
    """
    groups = _canonical_groups(axis_index_groups)
    whole = prim.group_size(axes, None)  # NameError for an unbound axis
    _check_groups(groups, axes, whole)
    # Vmapped axes are reduced on each device: only the others communicate.
    mesh_axes = compat.manual_mesh_axes(axes)
    ranks = prim.group_size(mesh_axes, groups)
    sizes = () if groups else tuple(prim.group_size((axis,), None) for axis in mesh_axes)
    if schedule is not None and algorithm != "auto":
        raise ValueError(f"give either algorithm={algorithm!r} or a schedule, not both")
    select.choose(collective, algorithm, ranks, axes=sizes)
    params = {
        "axis_name": axes,
        "axis_index_groups": groups,
        "algorithm": algorithm,
        "schedule": select.verified_text(schedule, collective, ranks, **asked),
    }
    return _GroupArguments(axes, prim.group_size(axes, groups), params)


def _pairs(perm: Iterable[tuple[int, int]], size: int) -> tuple[tuple[int, int], ...]:
    if not isinstance(perm, Iterable):
        raise TypeError(f"perm must be pairs of indices, but got {type(perm)}")
    pairs = []
    for pair in perm:
        source, destination = (operator.index(i) for i in pair)
        if not (-size <= source < size and -size <= destination < size):
            raise PermutationError(f"({source}, {destination}) is outside of the {size} ranks")
        pairs.append((source % size, destination % size))
    sources, destinations = [s for s, _ in pairs], [d for _, d in pairs]
    if len(set(sources)) != len(pairs) or len(set(destinations)) != len(pairs):
        raise PermutationError(f"ppermute sources and destinations must be unique, got {pairs}")
    return tuple(pairs)


# --- canonical form -----------------------------------------------------------------------------


def _array(value: Any) -> jax.Array:
    return value if isinstance(value, jax.Array) else jnp.asarray(value)


def _varying(leaf: Any, group: _GroupArguments) -> Any:
    """The leaf, cast to varying over the mesh axes it is communicated over.

    As in lax a constant is not made an array before it is bound: under vmap it may stay a constant.
    """
    if not compat.inserts_pvary():
        return leaf
    have = compat.varying_axes(jax.typeof(leaf))
    missing = tuple(a for a in compat.typed_mesh_axes(group.axes) if a not in have)
    return prim.cast_varying(leaf, missing)


def _elements(leaf: Any, dimensions: Sequence[int]) -> int:
    return math.prod(np.shape(leaf)[dimension] for dimension in dimensions)


def _all_reduce(
    op: str, leaves: Sequence[Any], group: _GroupArguments, dimensions: tuple[int, ...]
) -> list[Any]:
    results: list[Any] = [None] * len(leaves)
    operands: list[jax.Array | None] = []
    batches: dict[Any, list[int]] = {}  # indices of the leaves that share a call
    for i, leaf in enumerate(leaves):
        if op == "sum":
            if jnp.result_type(leaf) == np.bool_:  # lax counts booleans
                leaf = lax.convert_element_type(leaf, np.int32)
            # Neither is anything that other ranks must hear of, or that jaxcoll types.
            if compat.is_constant(leaf) or compat.in_unreduced_state(leaf, group.axes):
                groups = group.params["axis_index_groups"]
                axes = (*group.axes, *dimensions)
                results[i] = lax.psum(leaf, axes, axis_index_groups=groups)
                operands.append(None)
                continue
        operand = _varying(_reduced(op, leaf, dimensions), group)
        operands.append(operand)
        aval = jax.typeof(operand)
        batches.setdefault((aval.dtype, compat.varying_axes(aval)), []).append(i)
    for indices in batches.values():
        for i, result in zip(
            indices, _bind_all_reduce(op, [operands[i] for i in indices], group), strict=True
        ):
            results[i] = result
    return results


def _bind_all_reduce(op: str, operands: list[Any], group: _GroupArguments) -> list[jax.Array]:
    if not group.axes:
        return operands

    def bind(values: list[Any], axes: tuple[Hashable, ...], invariant: bool) -> list[jax.Array]:
        params = {**group.params, "axis_name": axes}
        return prim.all_reduce_p.bind(*values, op=op, invariant=invariant, **params)

    # Results of different groups differ: they cannot be typed invariant.
    if not compat.check_vma() or group.params["axis_index_groups"] is not None:
        return bind(operands, group.axes, False)
    # Only mesh axes have types; a vmapped axis keeps lax's convention for untyped ones.
    mesh_axes = compat.manual_mesh_axes(group.axes)
    vmapped = tuple(axis for axis in group.axes if axis not in mesh_axes)
    if vmapped:
        operands = bind(operands, vmapped, False)
    return bind(operands, mesh_axes, True) if mesh_axes else operands


def _reduced(op: str, leaf: Any, dimensions: tuple[int, ...]) -> Any:
    """Reduces the dimensions that `axis_name` gives by number."""
    if not dimensions:
        return leaf
    leaf = _array(leaf)
    axes = [compat.canonicalize_axis(dimension, leaf.ndim) for dimension in dimensions]
    return prim.reduce_ops[op].over_axes(leaf, axes)
