"""The groups of a collective, by every notation and in every mode, against a slow oracle."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from jaxcoll._hlo import groups, proto
from jaxcoll._hlo.groups import NotServed

WORLDS = [(1, 8), (8, 1), (2, 4), (4, 2)]
OF_ALL_PARTITIONS = ["all-reduce", "all-gather", "reduce-scatter"]
OF_PARTITIONS = ["all-to-all", "collective-broadcast", "ragged-all-to-all"]


def devices(replicas: int, partitions: int, seed: int = 0) -> groups.Devices:
    """In a permuted assignment, on which nothing depends."""
    ids = np.random.default_rng(seed).permutation(replicas * partitions).reshape(replicas, -1)
    module = proto.Module()
    module.device_assignment.replica_count = replicas
    module.device_assignment.computation_count = partitions
    for column in ids.T:
        module.device_assignment.computation_devices.add(replica_device_ids=column.tolist())
    found = groups.Devices(module)
    assert found.ids == ids.reshape(-1).tolist()
    return found


def instruction(opcode: str, channel: int = 0, flat: bool = False) -> Any:
    return proto.Instruction(opcode=opcode, channel_id=channel, use_global_device_ids=flat)


def as_set(rows: Any) -> set[tuple[int, ...]]:
    return {tuple(int(i) for i in row) for row in rows}


# --- notations ----------------------------------------------------------------------------------
#
# Each writes groups into an instruction, and returns them.

Rows = list[list[int]]


def old_list(draw: random.Random, i: Any, count: int) -> Rows:
    rows = random_rows(draw, count)
    for row in rows:
        i.replica_groups.add(replica_ids=row)
    return rows


def device_list(draw: random.Random, i: Any, count: int) -> Rows:
    rows = random_rows(draw, count)
    for row in rows:
        i.collective_device_list.replica_groups.add(replica_ids=row)
    return rows


def device_list_and_old_one(draw: random.Random, i: Any, count: int) -> Rows:
    rows = device_list(draw, i, count)
    for row in rows:
        i.replica_groups.add(replica_ids=row)
    return rows


def iota_list(draw: random.Random, i: Any, count: int) -> Rows:
    return into_iota(draw, i.iota_collective_device_list, count)


def iota_in_device_list(draw: random.Random, i: Any, count: int) -> Rows:
    return into_iota(draw, i.collective_device_list.iota_replica_group_list, count)


def into_iota(draw: random.Random, iota: Any, count: int) -> Rows:
    shape, order = random_shape(draw, count)
    per_group = draw.choice([d for d in range(1, count + 1) if count % d == 0])
    iota.num_replica_groups = count // per_group
    iota.num_devices_per_group = per_group
    iota.iota_reshape_dims.extend(shape)
    if order != sorted(order) or draw.random() < 0.5:
        iota.iota_transpose_perm.extend(order)
    flat = transposed(list(range(count)), shape, order)
    return [flat[at : at + per_group] for at in range(0, count, per_group)]


def mesh_axes(draw: random.Random, i: Any, count: int) -> Rows:
    """Axes and factors of axes; device ids in order, in any order, or as a transposed iota."""
    groups_ = i.mesh_axes_replica_group_list
    shape, _ = random_shape(draw, count)
    for number, size in enumerate(shape):
        groups_.mesh.axes.add(name=f"a{number}", size=size)
    ids = list(range(count))
    match draw.randrange(3):
        case 0:
            draw.shuffle(ids)
            groups_.mesh.device_ids.extend(ids)
        case 1:
            before, order = random_shape(draw, count)
            groups_.mesh.iota_transform.reshape_dims.extend(before)
            groups_.mesh.iota_transform.transpose_perm.extend(order)
            ids = transposed(ids, before, order)
    # (axis, pre_size, size): a factor of an axis, whose major factors multiply to pre_size.
    chosen = []
    for axis, size in enumerate(shape):
        factors = [(axis, 1, size)]
        if size >= 4 and draw.random() < 0.7:
            factors = [(axis, 1, 2), (axis, 2, size // 2)]
            if size >= 8 and draw.random() < 0.5:
                factors = [(axis, 1, 2), (axis, 2, 2), (axis, 4, size // 4)]
        chosen += [factor for factor in factors if draw.random() < 0.6]
    chosen = chosen or [(0, 1, shape[0])]
    draw.shuffle(chosen)
    for axis, pre_size, size in chosen:
        made = groups_.axes.add(mesh_axis_index=axis)
        if size != shape[axis] or draw.random() < 0.3:
            made.sub_axis_info.pre_size, made.sub_axis_info.size = pre_size, size
    found: dict[tuple[int, ...], dict[int, int]] = {}
    for place, index in enumerate(itertools.product(*map(range, shape))):
        rank, rest = 0, list(index)
        for axis, pre_size, size in chosen:
            minor = shape[axis] // (pre_size * size)
            digit = index[axis] // minor % size
            rank = rank * size + digit
            rest[axis] -= digit * minor
        found.setdefault(tuple(rest), {})[rank] = ids[place]
    return [[row[rank] for rank in range(len(row))] for row in found.values()]


NOTATIONS = [
    *(old_list, device_list, device_list_and_old_one, iota_list, iota_in_device_list, mesh_axes)
]


def random_rows(draw: random.Random, count: int) -> Rows:
    ids = list(range(count))
    draw.shuffle(ids)
    per_group = draw.choice([d for d in range(1, count + 1) if count % d == 0])
    return [ids[at : at + per_group] for at in range(0, count, per_group)]


def random_shape(draw: random.Random, count: int) -> tuple[list[int], list[int]]:
    """Sizes that multiply to `count`, some of them 1, and an order of them."""
    shape = []
    while count > 1:
        size = draw.choice([d for d in range(2, count + 1) if count % d == 0])
        shape.append(size)
        count //= size
    shape.insert(draw.randrange(len(shape) + 1), 1)
    order = list(range(len(shape)))
    draw.shuffle(order)
    return shape, order


def transposed(values: Sequence[int], shape: Sequence[int], order: Sequence[int]) -> list[int]:
    strides = [math.prod(shape[d + 1 :]) for d in range(len(shape))]
    return [
        values[sum(index[place] * strides[d] for place, d in enumerate(order))]
        for index in itertools.product(*(range(shape[d]) for d in order))
    ]


# --- modes --------------------------------------------------------------------------------------


def expected(opcode: str, channel: int, flat: bool, world: tuple[int, int], rows: Rows) -> Rows:
    """Device by device, as XLA's comments on its group modes have it."""
    replicas, partitions = world
    ids = {(r, p): r * partitions + p for r in range(replicas) for p in range(partitions)}
    if not channel:
        return [[ids[r, p] for r in row] for p in range(partitions) for row in rows]
    if opcode in OF_PARTITIONS:
        return [[ids[r, p] for p in row] for r in range(replicas) for row in rows]
    if flat:
        return rows
    return [[ids[r, p] for r in row for p in range(partitions)] for row in rows]


def modes() -> list[tuple[str, int, bool]]:
    found = [(opcode, 0, False) for opcode in [*OF_ALL_PARTITIONS, *OF_PARTITIONS]]
    found += [(opcode, 5, False) for opcode in [*OF_ALL_PARTITIONS, *OF_PARTITIONS]]
    return found + [(opcode, 5, True) for opcode in OF_ALL_PARTITIONS]


def counted(opcode: str, channel: int, flat: bool, world: tuple[int, int]) -> int:
    """How many ids the groups of an instruction are made of."""
    if flat:
        return world[0] * world[1]
    return world[1] if channel and opcode in OF_PARTITIONS else world[0]


@pytest.mark.parametrize("notation", NOTATIONS)
@pytest.mark.parametrize(("opcode", "channel", "flat"), modes())
def test_groups_are_xlas(notation: Any, opcode: str, channel: int, flat: bool) -> None:
    for seed, world in itertools.product(range(25), WORLDS):
        draw = random.Random(f"{seed} {world}")
        i = instruction(opcode, channel, flat)
        rows = notation(draw, i, counted(opcode, channel, flat, world))
        got = groups.groups_of(i, devices(*world, seed))
        assert as_set(got) == as_set(expected(opcode, channel, flat, world, rows)), f"{seed}: {i}"


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(("opcode", "channel", "flat"), modes())
def test_no_groups_are_one_group_of_all(
    opcode: str, channel: int, flat: bool, world: tuple[int, int]
) -> None:
    i = instruction(opcode, channel, flat)
    if flat:  # XLA refuses it
        with pytest.raises(NotServed):
            groups.groups_of(i, devices(*world))
        return
    rows = [list(range(counted(opcode, channel, flat, world)))]
    got = groups.groups_of(i, devices(*world))
    assert as_set(got) == as_set(expected(opcode, channel, flat, world, rows))


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("channel", [0, 7])
def test_pairs_are_of_partitions_with_a_channel_and_of_replicas_without(
    world: tuple[int, int], channel: int
) -> None:
    i = instruction("collective-permute", channel)
    count = world[1] if channel else world[0]
    pairs = [(n, (n + 1) % count) for n in range(count)]
    for source, target in pairs:
        i.source_target_pairs.add(source=source, target=target)
    want = {
        (r * world[1] + a, r * world[1] + b) if channel else (a * world[1] + r, b * world[1] + r)
        for a, b in pairs
        for r in range(world[0] if channel else world[1])
    }
    assert set(groups.pairs_of(i, devices(*world))) == want


# --- what is not understood ---------------------------------------------------------------------


def listed(*rows: Sequence[int], opcode: str = "all-reduce", flat: bool = True) -> Any:
    i = instruction(opcode, 1, flat)
    for row in rows:
        i.collective_device_list.replica_groups.add(replica_ids=row)
    return i


def with_iota(groups_: int, per_group: int, shape: Sequence[int], order: Sequence[int] = ()) -> Any:
    i = instruction("all-reduce", 1, True)
    iota = i.iota_collective_device_list
    iota.num_replica_groups, iota.num_devices_per_group = groups_, per_group
    iota.iota_reshape_dims.extend(shape)
    iota.iota_transpose_perm.extend(order)
    return i


def with_mesh(
    sizes: Sequence[int],
    axes: Sequence[tuple[int, ...]],
    ids: Sequence[int] = (),
    transform: tuple[Sequence[int], Sequence[int]] | None = None,
) -> Any:
    i = instruction("all-reduce", 1, True)
    written = i.mesh_axes_replica_group_list
    for size in sizes:
        written.mesh.axes.add(size=size)
    written.mesh.device_ids.extend(ids)
    if transform is not None:
        written.mesh.iota_transform.reshape_dims.extend(transform[0])
        written.mesh.iota_transform.transpose_perm.extend(transform[1])
    for index, *sub in axes:
        axis = written.axes.add(mesh_axis_index=index)
        if sub:
            axis.sub_axis_info.pre_size, axis.sub_axis_info.size = sub
    return i


def twice() -> Any:
    i = with_iota(1, 8, [8])
    i.collective_device_list.replica_groups.add(replica_ids=range(8))
    return i


MALFORMED = {
    "several sizes": listed([0, 1, 2], [3, 4, 5, 6, 7]),
    "some devices in none": listed([0, 1], [2, 3]),
    "a device twice": listed([0, 1, 2, 3], [4, 5, 6, 6]),
    "a device in two groups": listed([0, 1, 2, 3], [0, 1, 2, 3]),
    "an id too large": listed([0, 1, 2, 3], [4, 5, 6, 8]),
    "a negative id": listed([0, 1, 2, 3], [4, 5, 6, -1]),
    "an empty group": listed([]),
    "an empty group among others": listed([0, 1, 2, 3, 4, 5, 6, 7], []),
    "replicas that do not exist": listed([0, 1], flat=False),
    "global ids where XLA has none": listed(range(8), opcode="all-to-all"),
    "two notations": twice(),
    "iota of too few": with_iota(1, 4, [4]),
    "iota of another count": with_iota(2, 2, [8]),
    "iota of nothing": with_iota(0, 0, []),
    "iota with a zero": with_iota(2, 4, [0, 8]),
    "iota with negative sizes": with_iota(2, 4, [-2, -4]),
    "iota with negative counts": with_iota(-2, -4, [8]),
    "iota with no permutation": with_iota(2, 4, [2, 4], [0, 0]),
    "iota with a short permutation": with_iota(2, 4, [2, 4], [0]),
    "a mesh without axes": with_mesh([], [(0,)]),
    "a mesh of too few": with_mesh([4], [(0,)]),
    "a mesh of too many": with_mesh([4, 4], [(0,)]),
    "no axis of a mesh": with_mesh([2, 4], []),
    "an axis that does not exist": with_mesh([2, 4], [(2,)]),
    "a negative axis": with_mesh([2, 4], [(-1,)]),
    "an axis twice": with_mesh([2, 4], [(1,), (1,)]),
    "an axis and a factor of it": with_mesh([2, 4], [(1,), (1, 2, 2)]),
    "factors that overlap": with_mesh([8], [(0, 1, 4), (0, 2, 4)]),
    "a factor of zero": with_mesh([8], [(0, 1, 0)]),
    "a factor before zero": with_mesh([8], [(0, 0, 2)]),
    "a negative factor": with_mesh([8], [(0, 1, -2)]),
    "a factor that does not divide": with_mesh([8], [(0, 1, 3)]),
    "a factor beyond the axis": with_mesh([2, 4], [(0, 2, 2)]),
    "device ids of another count": with_mesh([2, 4], [(0,)], ids=[0, 1, 2]),
    "device ids that do not exist": with_mesh([2, 4], [(0,)], ids=[0, 1, 2, 3, 4, 5, 6, 9]),
    "device ids twice": with_mesh([2, 4], [(0,)], ids=[0, 0, 2, 3, 4, 5, 6, 7]),
    "device ids in two ways": with_mesh([8], [(0,)], range(8), ([2, 4], [1, 0])),
    "a transform of another count": with_mesh([8], [(0,)], transform=([2, 2], [1, 0])),
    "a transform that permutes nothing": with_mesh([8], [(0,)], transform=([2, 4], [1, 1])),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_groups_are_left_and_never_guessed(case: str) -> None:
    with pytest.raises(NotServed):
        groups.groups_of(MALFORMED[case], devices(1, 8))


@pytest.mark.parametrize(
    "pairs", [[(0, 8)], [(-1, 0)], [(0, 1), (0, 2)], [(0, 2), (1, 2)], [(0, 1), (0, 1)]]
)
def test_pairs_that_are_no_permutation_are_left(pairs: list[tuple[int, int]]) -> None:
    i = instruction("collective-permute", 1)
    for source, target in pairs:
        i.source_target_pairs.add(source=source, target=target)
    with pytest.raises(NotServed):
        groups.pairs_of(i, devices(1, 8))


def test_a_permute_with_groups_is_left() -> None:
    i = instruction("collective-permute", 1)
    i.source_target_pairs.add(source=0, target=1)
    i.replica_groups.add(replica_ids=range(8))
    with pytest.raises(NotServed):
        groups.pairs_of(i, devices(1, 8))


@pytest.mark.parametrize("columns", [[], [[0, 1], [2]], [[0], [1], [2]]])
def test_a_module_that_does_not_say_where_it_runs_is_left(columns: list[list[int]]) -> None:
    module = proto.Module()
    module.device_assignment.replica_count = 1
    module.device_assignment.computation_count = 2
    for column in columns:
        module.device_assignment.computation_devices.add(replica_device_ids=column)
    with pytest.raises(NotServed):
        groups.Devices(module)
