"""(collective, world size, request) -> algorithm, decided while tracing and equal everywhere.

The choice depends on nothing but its arguments, so that every process compiles the same program.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

from jaxcoll import schedule as _schedule
from jaxcoll import verify as _verify
from jaxcoll._errors import UnknownAlgorithmError, WorldSizeError

# Ranks of one process read each other's buffers: one pass over all of them beats every algorithm
# that forwards partial results. ragged_all_to_all has no schedule, its sizes are data.
_AUTO = "direct"
_UNSCHEDULED = {"ragged_all_to_all": [_AUTO]}


class Choice(NamedTuple):
    """What the FFI attributes say about how a collective runs."""

    algorithm: str
    node_size: int  # hierarchical: ranks per node; else 0


def algorithms(collective: str) -> list[str]:
    """The algorithms of a collective, without "auto"."""
    return _UNSCHEDULED.get(collective) or _schedule.algorithms(collective)


@functools.lru_cache(maxsize=4096)
def choose(collective: str, algorithm: str, world_size: int) -> Choice:
    """Resolves "auto" and refuses, naming the choices, what cannot run.

    Args:
      collective: the engine's name: "all_reduce", ..., "permute".
      algorithm: "auto" or one of `algorithms(collective)`.
      world_size: ranks per group.

    Raises: UnknownAlgorithmError, WorldSizeError.
    """
    check_algorithm(collective, algorithm)
    if algorithm == "auto":
        algorithm = _AUTO
    node_size = _node_size(world_size) if algorithm == "hierarchical" else 0
    if collective not in _UNSCHEDULED:
        spec = _schedule.ScheduleSpec(
            collective=collective,
            algorithm=algorithm,
            world_size=world_size,
            node_size=node_size,
        )
        try:
            _schedule.build_rank(spec, 0)
        except ValueError as error:  # names the sizes it takes
            raise WorldSizeError(str(error)) from error
    return Choice(algorithm, node_size)


def check_algorithm(collective: str, algorithm: str) -> None:
    """Raises UnknownAlgorithmError unless `algorithm` is "auto" or one of the collective's."""
    choices = ["auto", *algorithms(collective)]
    if algorithm not in choices:
        raise UnknownAlgorithmError(
            f"{collective} has no algorithm {algorithm!r}; choose one of {', '.join(choices)}"
        )


def _node_size(world_size: int) -> int:
    """The most balanced two levels: the smallest divisor that is at least the square root."""
    return next(d for d in range(math.isqrt(world_size - 1) + 1, world_size + 1)
                if world_size % d == 0)


def verified_text(schedule: _schedule.Schedule | None, collective: str, world_size: int) -> str:
    """The serialised form of a schedule written in Python, once it is proved correct; "" for None.

    Raises: WorldSizeError for another number of ranks; ValueError for another collective;
      whatever `jaxcoll.verify.verify` raises, naming step, rank and chunk, for a wrong schedule.
    """
    if schedule is None:
        return ""
    return _verified_text(schedule, collective, world_size)


def _verified_text(schedule: _schedule.Schedule, collective: str, world_size: int) -> str:
    if schedule.spec.collective != collective:
        raise ValueError(f"the schedule is for {schedule.spec.collective}, not for {collective}")
    if schedule.spec.world_size != world_size:
        raise WorldSizeError(
            f"the schedule is for {schedule.spec.world_size} ranks, but the group has {world_size}"
        )
    _verify.verify(schedule)
    return schedule.serialize()
