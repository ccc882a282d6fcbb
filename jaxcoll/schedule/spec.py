"""The arguments that determine a built-in schedule, and the collectives and algorithms there
are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from jaxcoll._native import native
from jaxcoll.schedule.ir import MAX_INT32

Collective: TypeAlias = Literal[
    "all_reduce", "reduce_scatter", "all_gather", "all_to_all", "broadcast", "reduce", "permute"
]

COLLECTIVES: Final[tuple[Collective, ...]] = (
    "all_reduce",
    "reduce_scatter",
    "all_gather",
    "all_to_all",
    "broadcast",
    "reduce",
    "permute",
)

# Op.channel is below this; equal to kMaxChannels in ffi/schedule/text.cc.
MAX_CHANNELS: Final = 1 << 12


def input_blocks(collective: str, world_size: int) -> int:
    """Blocks of a rank's input."""
    return world_size if collective in ("reduce_scatter", "all_to_all") else 1


def output_blocks(collective: str, world_size: int) -> int:
    """Blocks of a rank's output."""
    return world_size if collective in ("all_gather", "all_to_all") else 1


def block_elements(collective: str, world_size: int, nbytes: int, itemsize: int) -> int:
    """Elements of a block where the larger of a rank's buffers has `nbytes`; at least one."""
    blocks = max(input_blocks(collective, world_size), output_blocks(collective, world_size))
    return max(1, nbytes // (blocks * itemsize))


def algorithms(collective: str) -> tuple[str, ...]:
    """Names of the built-in algorithms of a collective.

    Raises:
      ValueError: there is no such collective.
    """
    return tuple(native.schedule_algorithms(collective))


def parse_algorithm(text: str) -> tuple[str, tuple[int, ...]]:
    """Name and dims of an algorithm: ``"swing[4x4]"`` is ``("swing", (4, 4))``.

    Raises:
      ValueError: brackets with anything but positive numbers and x between them.
    """
    name, bracket, rest = text.partition("[")
    if not bracket:
        return name, ()
    extents = rest.removesuffix("]").split("x")
    if not rest.endswith("]") or not all(
        re.fullmatch("[0-9]{1,10}", extent) and 0 < int(extent) <= MAX_INT32 for extent in extents
    ):
        raise ValueError(
            f"algorithm {text!r}: write the dims as positive numbers in brackets, {name}[4x4]"
        )
    return name, tuple(map(int, extents))


def dims_kind(collective: str, algorithm: str) -> str:
    """The meaning of an algorithm's dims: "nodes", "torus", "aggregate", or "" for nothing."""
    return str(native.schedule_dims(collective, algorithm))


@dataclass(frozen=True)
class ScheduleSpec:
    """The arguments that determine a built-in schedule.

    Attributes:
      collective: one of `COLLECTIVES`.
      world_size: ranks.
      algorithm: one of ``algorithms(collective)``.
      channels: independent copies of the pattern, each on its share of the chunks.
      root: broadcast and reduce: the root's rank.
      permutation: permute: pairs (source rank, destination rank).
      dims: the layout of the ranks, for some algorithms, () for their default; also written after
        the algorithm's name, ``"swing[4x4]"``:

        - hierarchical and its relatives: nodes x ranks per node; default: nearest to a square;
        - bucket, swing: the torus, whose last extent varies fastest; default: one ring;
        - pat: the most blocks in one message, a power of two; default: no limit.
    """

    collective: Collective
    world_size: int
    algorithm: str = "direct"
    channels: int = 1
    root: int = 0
    permutation: tuple[tuple[int, int], ...] = ()
    dims: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        name, dims = parse_algorithm(self.algorithm)
        if dims and self.dims:
            raise ValueError(f"give dims either in algorithm={self.algorithm!r} or as dims")
        object.__setattr__(self, "algorithm", name)
        object.__setattr__(self, "dims", dims or tuple(self.dims))


SpecTuple = tuple[str, str, int, int, int, tuple[tuple[int, int], ...], tuple[int, ...]]


def spec_to_tuple(spec: ScheduleSpec) -> SpecTuple:
    """The spec as the extension module takes it."""
    shape = (spec.collective, spec.algorithm, spec.world_size, spec.channels)
    return (*shape, spec.root, spec.permutation, spec.dims)
