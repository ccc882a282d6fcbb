"""(collective, world size, request) -> algorithm, chosen at lowering and equal everywhere.

The choice depends only on its arguments and the table of `jaxcoll tune`, whose digest the processes
of a job compare, so that every process compiles the same program.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from jaxcoll import schedule as _schedule
from jaxcoll._errors import UnknownAlgorithmError, WorldSizeError
from jaxcoll._native import native
from jaxcoll.schedule import verifier as _verify
from jaxcoll.schedule.schedule import check
from jaxcoll.tune import table as tables

# Ranks of one process read each other's buffers: one pass over all of them beats every algorithm
# that forwards partial results.
_AUTO = "direct"

# Between processes every message costs: up to this many bytes one exchange of everything is
# fastest, above it each rank adds up its own share.
_ONE_STEP_BYTES = 16 << 10
_ONE_STEP_RANKS = 8

# On GPUs: up to this many bytes every rank reads all vectors, above it each adds up its own share
# and writes it to all. Not measured yet.
_GPU_ONE_SHOT_BYTES = 256 << 10

# Between hosts these send everything once, whatever the number of GPUs that a host has.
_BETWEEN_HOSTS = ("all_reduce", "all_gather", "all_to_all")

# Its sizes are data: there is nothing to schedule before it runs.
_UNSCHEDULED = {"ragged_all_to_all": (_AUTO,)}


def algorithms(collective: str) -> tuple[str, ...]:
    """The algorithms of a collective, by the engine's name for it, without "auto"."""
    return _UNSCHEDULED.get(collective) or _schedule.algorithms(collective)


def shipped(
    collective: str, world_size: int, byte_count: int, ranks_per_node: int, processes: int
) -> str:
    """The choice of "auto" on CPUs without a table."""
    if processes <= 1 or collective != "all_reduce":
        return _AUTO
    if 1 < ranks_per_node < world_size:
        return "hierarchical"
    if byte_count > _ONE_STEP_BYTES:
        return "direct2"
    return _AUTO if world_size <= _ONE_STEP_RANKS else "recursive_doubling"


def _gpu(
    collective: str,
    world_size: int,
    byte_count: int,
    ranks_per_node: int,
    processes: int,
    hosts: int,
) -> str:
    if hosts <= 1:
        two_shots = collective == "all_reduce" and byte_count > _GPU_ONE_SHOT_BYTES
        return "direct2" if two_shots else _AUTO
    if collective in _BETWEEN_HOSTS and 1 < ranks_per_node < world_size:
        return "hierarchical"
    return shipped(collective, world_size, byte_count, ranks_per_node, processes)


def layout(processes: int, hosts: int) -> tables.Layout:
    """The layout of a group that spans this many processes and hosts."""
    return "process" if processes <= 1 else "host" if hosts <= 1 else "hosts"


class Choice(NamedTuple):
    """An algorithm and what it must know beside the number of ranks; see ScheduleSpec.dims."""

    algorithm: str
    dims: tuple[int, ...] = ()


def _dims(
    collective: str, algorithm: str, world_size: int, ranks_per_node: int, axes: tuple[int, ...]
) -> tuple[int, ...]:
    """The ranks' places as far as they are known; () leaves the algorithm its default."""
    kind = _schedule.dims_kind(collective, algorithm)
    if kind == "nodes" and ranks_per_node > 1:
        return world_size // ranks_per_node, ranks_per_node
    if (kind == "nodes" and len(axes) == 2) or (kind == "torus" and len(axes) > 1):
        return axes
    return ()


def serves(spec: _schedule.ScheduleSpec, processes: int) -> bool:
    """Whether an algorithm can run a call: by its ranks, and through the engine's slots."""
    try:
        check(spec)
        if processes > 1:
            native.engine_slices(
                *(spec.collective, spec.algorithm, spec.world_size, list(spec.dims), "", "uint8", 1)
            )
    except ValueError:
        return False
    return True


def _by_table(
    table: tables.Table | None,
    collective: str,
    world_size: int,
    byte_count: int,
    ranks_per_node: int,
    processes: int,
    hosts: int,
    axes: tuple[int, ...],
) -> str | None:
    """The table's pick; None if it has none, or one that cannot run this call."""
    if table is None or collective in _UNSCHEDULED:
        return None
    where = layout(processes, hosts)
    name = table.find(where, collective, world_size, ranks_per_node, byte_count)
    if name is None:
        return None
    dims = _dims(collective, name, world_size, ranks_per_node, axes)
    spec = _schedule.ScheduleSpec(
        cast(_schedule.Collective, collective), world_size, name, dims=dims
    )
    return name if serves(spec, processes) else None


@functools.lru_cache(maxsize=4096)
def choose(
    collective: str,
    algorithm: str,
    world_size: int,
    *,
    byte_count: int = 0,
    ranks_per_node: int = 1,
    processes: int = 1,
    hosts: int = 1,
    axes: tuple[int, ...] = (),
    on_gpu: bool = False,
    table: tables.Table | None = None,
) -> Choice:
    """Resolves "auto" and refuses, naming the choices, what cannot run.

    Args:
      collective: the engine's name: "all_reduce", ..., "permute".
      algorithm: "auto" or one of `algorithms(collective)`, with its dims in brackets or not.
      world_size: ranks per group.
      byte_count: bytes of one rank's operands.
      ranks_per_node: ranks of a group that a host, or a process, has; 0 if they differ.
      processes: processes that a group reaches into.
      hosts: hosts that it reaches into.
      axes: sizes of the mesh axes whose product a group is, the last one varying fastest; () if a
        group is something else. They are the dims of an algorithm that takes some, and has none
        in brackets.
      on_gpu: whether GPU kernels run it; tables are of CPUs.
      table: what resolves "auto"; None: the shipped rules.

    Raises: TypeError if `algorithm` is not text; UnknownAlgorithmError, WorldSizeError.
    """
    if not isinstance(algorithm, str):
        raise TypeError(f"algorithm must be text, but got {algorithm!r}")
    choices = ("auto", *algorithms(collective))
    try:
        name, dims = _schedule.parse_algorithm(algorithm)
    except ValueError as error:
        raise UnknownAlgorithmError(f"{collective}: {error}") from error
    if name not in choices or (dims and name in ("auto", *_UNSCHEDULED.get(collective, ()))):
        raise UnknownAlgorithmError(
            f"{collective} has no algorithm {algorithm!r}; choose one of {', '.join(choices)}"
        )
    if name == "auto":
        near = (collective, world_size, byte_count, ranks_per_node, processes)
        name = (
            _gpu(*near, hosts) if on_gpu else _by_table(table, *near, hosts, axes) or shipped(*near)
        )
    if collective not in _UNSCHEDULED:
        dims = dims or _dims(collective, name, world_size, ranks_per_node, axes)
        spec = _schedule.ScheduleSpec(
            cast(_schedule.Collective, collective), world_size, name, dims=dims
        )
        try:
            check(spec)
        except ValueError as error:  # names the sizes it takes
            raise WorldSizeError(f"{collective}: {error}") from error
    return Choice(name, dims)


def verified_text(
    schedule: _schedule.Schedule | None,
    collective: str,
    world_size: int,
    *,
    root: int = 0,
    permutation: Sequence[tuple[int, int]] = (),
) -> str:
    """The text of a schedule written in Python, once it is proved correct; "" for None.

    Raises: TypeError for anything but a schedule; WorldSizeError for another number of ranks;
      ValueError for another collective, root or permutation; ScheduleError, naming step, rank and
      chunk, for a wrong schedule.
    """
    if schedule is None:
        return ""
    if not isinstance(schedule, _schedule.Schedule):
        raise TypeError(f"schedule must be a jaxcoll.schedule.Schedule, but got {schedule!r}")
    asked: dict[str, Any] = {"collective": collective}
    if collective == "broadcast":
        asked["root"] = root
    if collective == "permute":
        asked["permutation"] = tuple(sorted(permutation))
    for name, wanted in asked.items():
        given = getattr(schedule, name)
        if (tuple(sorted(given)) if name == "permutation" else given) != wanted:
            raise ValueError(f"the schedule's {name} is {given}, but the call's is {wanted}")
    if len(schedule.programs) != world_size:
        raise WorldSizeError(
            f"the schedule is for {len(schedule.programs)} ranks, but the group has {world_size}"
        )
    return _verified(schedule)


@functools.lru_cache(maxsize=64)
def _verified(schedule: _schedule.Schedule) -> str:
    _verify.verify(schedule)
    return schedule.serialize()
