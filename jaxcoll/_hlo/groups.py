"""The groups of devices that take part in a collective, as logical ids.

A logical id is a device's place in the module's device assignment, replica * partitions +
partition, whatever numbers the instruction itself uses. The rules are XLA's
(`GetCollectiveOpGroupMode`); a form that is not known here raises `NotServed` and is never guessed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcoll._errors import JaxcollError


class NotServed(JaxcollError):
    """Why a collective is left to XLA."""


# Those whose groups may be of replicas and span all partitions.
_OF_ALL_PARTITIONS = {"all-reduce", "all-gather", "reduce-scatter"}


class Devices:
    """A module's devices."""

    def __init__(self, module: Any) -> None:
        assignment = module.device_assignment
        self.replicas = assignment.replica_count
        self.partitions = assignment.computation_count
        columns = [list(c.replica_device_ids) for c in assignment.computation_devices]
        sizes = [len(column) for column in columns]
        if self.replicas < 1 or not sizes or sizes != [self.replicas] * self.partitions:
            raise NotServed("the module does not say on which devices it runs")
        #: The global device id of each logical id.
        self.ids: list[int] = np.array(columns, np.int64).T.reshape(-1).tolist()
        #: Groups that have been read, by all that they follow from.
        self.known: dict[tuple[Any, ...], np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.ids)


def groups_of(instruction: Any, devices: Devices) -> np.ndarray:
    """The groups of a collective with replica groups: int64, (groups, ranks per group).

    Raises: NotServed.
    """
    # Most of a program's collectives have one of a few groups.
    key = (
        instruction.opcode in _OF_ALL_PARTITIONS,
        instruction.channel_id > 0,
        instruction.use_global_device_ids,
        *(
            instruction.HasField(name) and getattr(instruction, name).SerializeToString()
            for name in _NOTATIONS
        ),
        *(group.SerializeToString() for group in instruction.replica_groups),
    )
    if key not in devices.known:
        devices.known[key] = _new_groups(instruction, devices)
    return devices.known[key]


_NOTATIONS = (
    "collective_device_list",
    "iota_collective_device_list",
    "mesh_axes_replica_group_list",
)


def _new_groups(instruction: Any, devices: Devices) -> np.ndarray:
    """As `groups_of`."""
    listed = _listed(instruction)
    table = np.arange(len(devices)).reshape(devices.replicas, devices.partitions)
    has_channel = instruction.channel_id > 0
    flattened = instruction.use_global_device_ids
    if flattened and not (has_channel and instruction.opcode in _OF_ALL_PARTITIONS):
        raise NotServed("global device ids in an instruction that has none in XLA")
    if flattened:
        if listed is None:
            raise NotServed("global device ids without groups")
        groups = _looked_up(table.reshape(-1), listed)
    elif not has_channel:  # of replicas, once for each partition
        groups = np.concatenate(
            [
                _looked_up(column, listed if listed is not None else _all(column))
                for column in table.T
            ]
        )
    elif instruction.opcode in _OF_ALL_PARTITIONS:  # of replicas, with all their partitions
        rows = listed if listed is not None else _all(table)
        groups = _looked_up(table, rows).reshape(len(rows), -1)
    else:  # of partitions, once for each replica
        groups = np.concatenate(
            [_looked_up(row, listed if listed is not None else _all(row)) for row in table]
        )
    if len(set(groups.reshape(-1).tolist())) != groups.size:
        raise NotServed("a device is in two groups")
    if groups.size != len(devices):
        raise NotServed("some devices are in no group")
    groups.flags.writeable = False
    return groups


def pairs_of(instruction: Any, devices: Devices) -> list[tuple[int, int]]:
    """The (source, target) pairs of a collective-permute, in logical ids."""
    table = np.arange(len(devices)).reshape(devices.replicas, devices.partitions)
    if instruction.use_global_device_ids:
        raise NotServed("global device ids in an instruction that has none in XLA")
    if list(_written(instruction)):
        raise NotServed("replica groups in an instruction that has none in XLA")
    pairs = [(pair.source, pair.target) for pair in instruction.source_target_pairs]
    # Partitions where there is a channel, else replicas.
    worlds = table if instruction.channel_id > 0 else table.T
    found = [
        (int(world[source]), int(world[target]))
        for world in worlds
        for source, target in pairs
        if 0 <= source < len(world) and 0 <= target < len(world)
    ]
    if len(found) != len(pairs) * len(worlds):
        raise NotServed("a pair names a device that is not there")
    for ends in zip(*found, strict=True):
        if len(set(ends)) != len(ends):
            raise NotServed("a device sends to several others, or receives from several")
    return found


def _all(ids: np.ndarray) -> np.ndarray:
    return np.arange(len(ids)).reshape(1, -1)


def _looked_up(table: np.ndarray, groups: np.ndarray) -> np.ndarray:
    if groups.size and not (groups.min() >= 0 and groups.max() < len(table)):
        raise NotServed("a group names a device that is not there")
    return table[groups]


def _written(instruction: Any) -> list[str]:
    """The notations in which an instruction has groups."""
    names = ("iota_collective_device_list", "mesh_axes_replica_group_list")
    notations = [name for name in names if instruction.HasField(name)]
    in_list = instruction.collective_device_list
    if in_list.HasField("iota_replica_group_list"):
        notations.append("collective_device_list.iota")
    if in_list.replica_groups:
        notations.append("collective_device_list")
    if instruction.replica_groups and not notations:  # newer ones repeat themselves in the old one
        notations.append("replica_groups")
    return notations


def _listed(instruction: Any) -> np.ndarray | None:
    """The groups as they are written; None: there is one group, of all."""
    notations = _written(instruction)
    if len(notations) > 1:
        raise NotServed(f"groups in several notations: {', '.join(notations)}")
    match notations:
        case []:
            return None
        case ["iota_collective_device_list"]:
            return _of_iota(instruction.iota_collective_device_list)
        case ["collective_device_list.iota"]:
            return _of_iota(instruction.collective_device_list.iota_replica_group_list)
        case ["mesh_axes_replica_group_list"]:
            return _of_mesh(instruction.mesh_axes_replica_group_list)
        case ["collective_device_list"]:
            return _of_list(instruction.collective_device_list.replica_groups)
        case _:
            return _of_list(instruction.replica_groups)


def _of_list(groups: Sequence[Any]) -> np.ndarray:
    rows = [list(group.replica_ids) for group in groups]
    if len({len(row) for row in rows}) != 1:
        raise NotServed("groups of several sizes")
    return np.array(rows, np.int64)


def _iota(reshape: Sequence[int], transpose: Sequence[int]) -> np.ndarray:
    if (
        not reshape
        or min(reshape) < 1
        or sorted(transpose or range(len(reshape))) != list(range(len(reshape)))
    ):
        raise NotServed("a list of devices that cannot be read")
    ids = np.arange(math.prod(reshape)).reshape(tuple(reshape))
    return (ids.transpose(tuple(transpose)) if transpose else ids).reshape(-1)


def _of_iota(iota: Any) -> np.ndarray:
    ids = _iota(list(iota.iota_reshape_dims), list(iota.iota_transpose_perm))
    groups, ranks = iota.num_replica_groups, iota.num_devices_per_group
    if groups < 1 or ranks < 1 or ids.size != groups * ranks:
        raise NotServed("a list of devices that cannot be read")
    return ids.reshape(groups, ranks)


def _of_mesh(groups: Any) -> np.ndarray:
    """Each group varies along the axes (or factors of axes) that are named, in their order."""
    mesh = groups.mesh
    sizes = [axis.size for axis in mesh.axes]
    count = math.prod(sizes)
    if mesh.HasField("iota_transform"):
        if mesh.device_ids:
            raise NotServed("a mesh whose devices are given twice")
        ids = _iota(
            list(mesh.iota_transform.reshape_dims), list(mesh.iota_transform.transpose_perm)
        )
    else:
        ids = np.array(mesh.device_ids, np.int64) if mesh.device_ids else np.arange(count)
    if ids.size != count or not groups.axes:
        raise NotServed("a mesh that cannot be read")
    # Every axis is cut where a factor of it begins or ends; its factors are major to minor.
    cuts = [{1, size} for size in sizes]
    spans = []
    for axis in groups.axes:
        index = axis.mesh_axis_index
        if not 0 <= index < len(sizes):
            raise NotServed("a mesh that cannot be read")
        begin, end = 1, sizes[index]
        if axis.HasField("sub_axis_info"):
            begin = axis.sub_axis_info.pre_size
            end = begin * axis.sub_axis_info.size
        cuts[index] |= {begin, end}
        spans.append((index, begin, end))
    shape: list[int] = []
    places: dict[tuple[int, int], int] = {}  # (axis, where a factor begins) -> dimension
    for index, points in enumerate(cuts):
        ordered = sorted(points)
        for begin, end in itertools.pairwise(ordered):
            if begin < 1 or end % begin:
                raise NotServed("a mesh that cannot be read")
            places[index, begin] = len(shape)
            shape.append(end // begin)
    grouped = []
    for index, begin, end in spans:
        grouped += [places[index, p] for p in sorted(cuts[index]) if begin <= p < end]
    if math.prod(shape) != count or len(set(grouped)) != len(grouped):
        raise NotServed("a mesh that cannot be read")
    rest = [dimension for dimension in range(len(shape)) if dimension not in grouped]
    ranks = math.prod(shape[dimension] for dimension in grouped)
    return ids.reshape(shape).transpose(rest + grouped).reshape(-1, ranks)
