"""Converts lax's layouts to chunks along a leading dimension and back, also on explicit mesh axes.

On explicit axes a type says which axes shard which dimension, and JAX refuses a reshape unless the
type of its result follows or is given. Here it is given: a dimension that is split leaves its axes
to the last part, so that the parts before it may be counted by ranks, and dimensions that are
merged keep theirs. XLA moves what must be moved for that. On other axes these are plain reshapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

Axes = Any  # an entry of a PartitionSpec: None, the name of an axis, or a tuple of names


def _spec(x: jax.Array) -> list[Axes] | None:
    """The mesh axes that shard each dimension; None if no explicit axis does."""
    spec = list(jax.typeof(x).sharding.spec)
    spec += [None] * (np.ndim(x) - len(spec))
    return spec if any(axes is not None for axes in spec) else None


def _names(axes: Axes) -> tuple[Any, ...]:
    return () if axes is None else axes if isinstance(axes, tuple) else (axes,)


def _fits(x: jax.Array, axes: Axes, size: Any) -> bool:
    """Whether `axes` can shard a dimension of `size`: into equal parts only."""
    extents = jax.typeof(x).sharding.mesh.shape
    return bool(size % math.prod(extents[name] for name in _names(axes)) == 0)


def _reshape(x: jax.Array, shape: Sequence[Any], spec: Sequence[Axes]) -> jax.Array:
    return lax.reshape(x, tuple(shape), out_sharding=P(*spec))


def split(x: jax.Array, dimension: int, sizes: Sequence[Any]) -> jax.Array:
    """Dimension `dimension` becomes dimensions of `sizes`, the last varying fastest."""
    shape = (*x.shape[:dimension], *sizes, *x.shape[dimension + 1 :])
    spec = _spec(x)
    if spec is None:
        return lax.reshape(x, shape)
    axes = spec[dimension] if _fits(x, spec[dimension], sizes[-1]) else None
    parts = [None] * (len(sizes) - 1) + [axes]
    return _reshape(x, shape, [*spec[:dimension], *parts, *spec[dimension + 1 :]])


def merge(x: jax.Array, dimension: int) -> jax.Array:
    """Dimension `dimension` and the one behind it become one, the latter varying fastest."""
    merged = x.shape[dimension] * x.shape[dimension + 1]
    shape = (*x.shape[:dimension], merged, *x.shape[dimension + 2 :])
    spec = _spec(x)
    if spec is None:
        return lax.reshape(x, shape)
    names = _names(spec[dimension]) + _names(spec[dimension + 1])
    axes = names[0] if len(names) == 1 else names or None
    return _reshape(x, shape, [*spec[:dimension], axes, *spec[dimension + 2 :]])


def unsharded(x: jax.Array, dimension: int) -> jax.Array:
    """`x` with no explicit axes along `dimension`."""
    spec = _spec(x)
    if spec is None or spec[dimension] is None:
        return x
    spec[dimension] = None
    return jax.sharding.reshard(x, P(*spec))


def sharded_as(result: jax.Array, oracle: Callable[[Any], Any], x: jax.Array) -> jax.Array:
    """`result` with the explicit sharding of ``oracle(x)``, which is traced and never run."""
    if _spec(x) is None:
        return result
    try:
        spec = jax.eval_shape(oracle, x).sharding.spec
    except Exception:  # some of these lax cannot type: then ours stands
        return result
    spec = P(*spec, *[None] * (result.ndim - len(spec)))
    if list(spec) == (_spec(result) or [None] * result.ndim):
        return result
    return jax.sharding.reshard(result, spec)


def chunks_in_front(name: str, x: jax.Array, dimension: int, ranks: int, tiled: bool) -> jax.Array:
    """Moves the chunks of `dimension` into a leading dimension of size `ranks`."""
    size = x.shape[dimension]
    if tiled:
        if size % ranks:
            raise ValueError(
                f"tiled {name} needs a dimension that the group's {ranks} ranks divide, but "
                f"dimension {dimension} of {x.shape} has {size} elements"
            )
        x = split(x, dimension, (ranks, size // ranks))
    elif size != ranks:
        raise ValueError(
            f"{name} needs a dimension as large as the group, {ranks} ranks, but dimension "
            f"{dimension} of {x.shape} has {size} elements"
        )
    return jnp.moveaxis(unsharded(x, dimension), dimension, 0)


def chunks_to(chunks: jax.Array, position: int, tiled: bool) -> jax.Array:
    """Moves the leading dimension to `position`; with `tiled` into the dimension that is there."""
    y = jnp.moveaxis(chunks, 0, position)
    return merge(y, position) if tiled else y
