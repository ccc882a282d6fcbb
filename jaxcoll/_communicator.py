"""Who takes part: mesh axes -> groups of logical device ids -> device ids.

A logical id is a device's position in its mesh, in row-major order. It is what an executable calls
its devices, and it stays meaningful when the executable is exported and runs elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from jaxcoll._errors import UnsupportedError

AxisIndexGroups = tuple[tuple[int, ...], ...] | None


def logical_groups(
    mesh_shape: Mapping[Any, int],
    axis_name: Sequence[Any],
    axis_index_groups: AxisIndexGroups = None,
) -> np.ndarray:
    """The groups of a collective over `axis_name`.

    Args:
      mesh_shape: all axes of the mesh and their sizes, in the mesh's order.
      axis_name: the axes to communicate over, most significant first.
      axis_index_groups: equal-sized groups of indices along `axis_name`, or None for one group.

    Returns:
      int64, (groups, ranks per group): the logical ids of each group, in rank order.
    """
    names = list(mesh_shape)
    axes = [names.index(axis) for axis in axis_name]
    ids = np.arange(math.prod(mesh_shape.values())).reshape(tuple(mesh_shape.values()))
    ranks = math.prod(mesh_shape[axis] for axis in axis_name)
    groups = np.moveaxis(ids, axes, range(len(axes))).reshape(ranks, -1).T
    if axis_index_groups is not None:
        groups = groups[:, np.asarray(axis_index_groups)].reshape(-1, len(axis_index_groups[0]))
    return groups


def device_ids(mesh: Mesh | AbstractMesh) -> list[int] | None:
    """The device id of each logical id; None for a mesh that is not bound to devices yet."""
    if isinstance(mesh, AbstractMesh):
        return None
    return [device.id for device in mesh.devices.flat]


def check_one_process(mesh: Mesh | AbstractMesh) -> None:
    """Raises UnsupportedError for a mesh that reaches into another process."""
    if isinstance(mesh, AbstractMesh):
        processes = set(range(jax.process_count()))
    else:
        processes = {device.process_index for device in mesh.devices.flat}
    if len(processes) > 1:
        raise UnsupportedError(
            f"jaxcoll serves the devices of one process, but this mesh spans {len(processes)} "
            f"processes: {sorted(processes)}. Use jax.lax's collectives over axes between processes"
        )


def label(axis_name: Sequence[Any], mesh_shape: Mapping[Any, int], group_size: int) -> str:
    """What error messages call the group, e.g. "axis 'dp' (4 ranks)"."""
    axes = ", ".join(repr(axis) for axis in axis_name)
    noun = "axis" if len(axis_name) == 1 else "axes"
    ranks = math.prod(mesh_shape[axis] for axis in axis_name)
    grouped = f", in groups of {group_size}" if group_size != ranks else ""
    return f"{noun} {axes} ({ranks} ranks{grouped})"
