"""How XLA's partitioner splits operands and results: shardings with a dimension more or less.

Shardings of collectives in their canonical form, in which the ranks' chunks lie along a leading
dimension that must not be split.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcoll._jax import compat


def tuple_sharding(shape: Any, shardings: Sequence[compat.Sharding]) -> compat.Sharding:
    """The sharding of a result: of a tuple when `shape` is one."""
    if shape.is_tuple():
        return compat.HloSharding.tuple_sharding(shape, list(shardings))
    (sharding,) = shardings
    return sharding


def _tiles(sharding: compat.Sharding) -> tuple[Any, list[int]] | None:
    """The proto and tile dimensions; None for a sharding that is the same for every rank."""
    proto = sharding.to_proto()
    tiles = list(proto.tile_assignment_dimensions)
    return (proto, tiles) if tiles else None


def sharding_with_leading_dimension(sharding: compat.Sharding) -> compat.Sharding:
    """The sharding of the same value with one more, unsharded, dimension in front."""
    tiled = _tiles(sharding)
    if tiled is None:
        return sharding
    proto, tiles = tiled
    proto.tile_assignment_dimensions = [1, *tiles]
    return compat.HloSharding.from_proto(proto)


def sharding_without_leading_dimension(sharding: compat.Sharding) -> compat.Sharding:
    """The sharding of one element along an unsharded leading dimension."""
    tiled = _tiles(sharding)
    if tiled is None:
        return sharding
    proto, tiles = tiled
    if tiles[0] != 1:
        raise ValueError(f"the leading dimension is sharded: {sharding}")
    proto.tile_assignment_dimensions = tiles[1:]
    return compat.HloSharding.from_proto(proto)


def replicate_leading_dimension(sharding: compat.Sharding) -> compat.Sharding:
    """The same sharding with the devices along the leading dimension holding copies instead."""
    tiled = _tiles(sharding)
    if tiled is None or tiled[1][0] == 1:
        return sharding
    proto, tiles = tiled
    if proto.tile_assignment_devices:
        devices = np.asarray(proto.tile_assignment_devices)
    else:
        devices = np.arange(int(np.prod(proto.iota_reshape_dims)))
        devices = devices.reshape(proto.iota_reshape_dims).transpose(proto.iota_transpose_perm)
    kinds = list(proto.last_tile_dims)
    if proto.replicate_on_last_tile_dim:
        kinds = [compat.OpSharding.Type.REPLICATED]
    devices = np.moveaxis(devices.reshape(tiles), 0, -1)
    result = compat.OpSharding()
    result.type = proto.type
    result.tile_assignment_dimensions = [1, *devices.shape]
    result.tile_assignment_devices = [int(d) for d in devices.flat]
    result.last_tile_dims = [*kinds, compat.OpSharding.Type.REPLICATED]
    return compat.HloSharding.from_proto(result)
