"""Schedules: all ranks' op lists. `jaxcoll.schedule` tells what they mean."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Final

from jaxcoll._native import native
from jaxcoll.schedule import from_ops, printing
from jaxcoll.schedule.ir import MAX_INT32, Op, Program, op_list_from_tuple, to_tuple
from jaxcoll.schedule.spec import (
    COLLECTIVES,
    MAX_CHANNELS,
    Collective,
    ScheduleSpec,
    input_blocks,
    output_blocks,
    spec_to_tuple,
)

# The longest text that fits into an FFI attribute without bloating every executable that carries
# it.
MAX_SERIALIZED_BYTES: Final = 1 << 20


def build_rank(spec: ScheduleSpec, rank: int) -> Program:
    """One rank's op list. Costs what that one rank's ops cost.

    Raises:
      ValueError: unknown collective or algorithm, or one that cannot serve this spec; the message
        names the choices.
    """
    return op_list_from_tuple(native.build_schedule(spec_to_tuple(spec), rank))


def check(spec: ScheduleSpec) -> None:
    """Raises what `build_rank` would raise for any rank, and builds nothing."""
    native.check_schedule(spec_to_tuple(spec))


def build(spec: ScheduleSpec) -> Schedule:
    """All ranks' programs; see `build_rank` for the errors."""
    first = build_rank(spec, 0)  # also what refuses a world size below 1
    rest = (build_rank(spec, rank) for rank in range(1, spec.world_size))
    return Schedule(
        spec.collective, (first, *rest), spec.root, tuple(spec.permutation), spec.algorithm
    )


@dataclass(frozen=True)
class Cost:
    """The cost of a schedule in the alpha-beta-gamma model, with chunks of equal length.

    Fractions are of n bytes: the vector of all_reduce, reduce, broadcast and permute; everything
    gathered by all_gather; one rank's whole input of reduce_scatter and all_to_all.

    Attributes:
      steps: rounds with messages in them.
      sent: what each rank sends, as a fraction of n.
      reduced: how many pairs of elements each rank combines, as a fraction of n.
    """

    steps: int
    sent: tuple[Fraction, ...]
    reduced: tuple[Fraction, ...]


@dataclass(frozen=True, repr=False)
class Schedule:
    """One collective: all ranks' op lists. Immutable, comparable and cheap to hash.

    Attributes:
      collective: one of `COLLECTIVES`.
      programs: by rank.
      root: broadcast and reduce.
      permutation: permute: pairs (source rank, destination rank).
      algorithm: a name to print.
    """

    collective: Collective
    programs: tuple[Program, ...]
    root: int = 0
    permutation: tuple[tuple[int, int], ...] = ()
    algorithm: str = "custom"

    @staticmethod
    def from_ops(
        collective: Collective,
        world_size: int,
        ops: Iterable[from_ops.RankOp],
        *,
        chunks_per_block: int = 1,
        scratch_blocks: int | None = None,
        root: int = 0,
        permutation: Sequence[tuple[int, int]] = (),
        infer_dependencies: bool = True,
        algorithm: str = "custom",
    ) -> Schedule:
        """Makes a schedule from ops of all ranks, in the order in which each rank starts them.

        Messages are numbered in that order. With `infer_dependencies` every rank behaves as if its
        ops ran one after the other: a read waits for the last write of its chunks, a write for the
        reads since. Only `after` counts without it.

        Args:
          collective: one of `COLLECTIVES`.
          world_size: ranks.
          ops: from `send`, `recv`, `recv_reduce`, `copy`, `reduce`, `put` and `put_reduce`.
          chunks_per_block: pieces that each block is cut into, on all ranks.
          scratch_blocks: scratch of every rank, in blocks; None takes what the ops need.
          root: broadcast and reduce.
          permutation: permute: pairs (source rank, destination rank).
          infer_dependencies: see above.
          algorithm: a name to print.

        Returns:
          The schedule, not verified yet: see `jaxcoll.verify`.

        Raises:
          ValueError: unknown collective, a rank outside the world, or a channel or step out of
            range, or an `after` that names an op of another rank or none of `ops`.
        """
        if collective not in COLLECTIVES:
            raise ValueError(f"unknown collective {collective!r}; there are {list(COLLECTIVES)}")
        if world_size < 1 or chunks_per_block < 1:
            raise ValueError(
                f"world_size {world_size} and chunks_per_block {chunks_per_block} must be positive"
            )
        ops = list(ops)
        for number, item in enumerate(ops):
            op = item.op
            for rank in (item.rank, op.peer) if op.is_transfer else (item.rank,):
                if not 0 <= rank < world_size:
                    raise ValueError(
                        f"op {number} of the list ({op}) names rank {rank}, but there are ranks "
                        f"0 to {world_size - 1}"
                    )
            if not 0 <= op.channel < MAX_CHANNELS or not 0 <= op.step <= MAX_INT32:
                raise ValueError(
                    f"op {number} of the list ({op}) is on channel {op.channel} in step {op.step}, "
                    f"but there are channels 0 to {MAX_CHANNELS - 1} and steps from 0"
                )
        if scratch_blocks is None:
            scratch_blocks = from_ops.scratch_blocks(ops, chunks_per_block)
        programs = []
        for rank, rank_ops in enumerate(from_ops.numbered(world_size, ops)):
            op_list = Program(
                rank,
                chunks_per_block,
                input_blocks(collective, world_size),
                output_blocks(collective, world_size),
                scratch_blocks,
                tuple(rank_ops),
            )
            if infer_dependencies:
                op_list = op_list_from_tuple(native.infer_dependencies(to_tuple(op_list)))
            programs.append(op_list)
        return Schedule(collective, tuple(programs), root, tuple(permutation), algorithm)

    @staticmethod
    def parse(
        collective: Collective,
        text: str,
        *,
        root: int = 0,
        permutation: Sequence[tuple[int, int]] = (),
        algorithm: str = "custom",
    ) -> Schedule:
        """The inverse of `serialize`.

        Raises:
          ValueError: the text is no schedule; the message names the line.
        """
        programs = tuple(op_list_from_tuple(op_list) for op_list in native.parse_schedule(text))
        return Schedule(collective, programs, root, tuple(permutation), algorithm)

    def serialize(self) -> str:
        """The ops as text, which is what the FFI attribute `schedule` carries.

        The text holds the op lists only: collective, root and permutation are attributes of their
        own.

        Raises:
          ValueError: the text would exceed `MAX_SERIALIZED_BYTES`.
        """
        if len(self._text) > MAX_SERIALIZED_BYTES:
            raise ValueError(
                f"{self!r} takes {len(self._text)} bytes as text; at most {MAX_SERIALIZED_BYTES} "
                "can be attached to a call. Use fewer chunks, or intervals of chunks"
            )
        return self._text

    def digest(self) -> str:
        """Hexadecimal SHA-256 of everything that has a meaning (not of the algorithm's name)."""
        return self._digest

    def __hash__(self) -> int:
        # Computed once: JAX hashes an equation's parameters again and again.
        return hash(self._digest)

    @property
    def world_size(self) -> int:
        return len(self.programs)

    def cost(self) -> Cost:
        """Steps, bytes and reductions, to compare with an algorithm's closed form."""
        layout = self.programs[0]
        blocks = max(layout.input_blocks, layout.output_blocks)
        chunk = Fraction(1, blocks * layout.chunks_per_block)
        steps = {op.step for _, op in self.ops() if op.is_transfer}
        sent, reduced = [0] * self.world_size, [0] * self.world_size
        for rank, op in self.ops():
            if op.kind == "send":
                sent[rank] += len(op.destination)
            else:
                reduced[rank] += len(op.destination) * (len(op.sources) - 1)
        return Cost(
            len(steps),
            tuple(count * chunk for count in sent),
            tuple(count * chunk for count in reduced),
        )

    def __repr__(self) -> str:
        return f"<{printing.title(self)}>"

    def __str__(self) -> str:
        return printing.text(self)

    def ops(self) -> Iterator[tuple[int, Op]]:
        """Each rank and op, rank by rank in program order."""
        return ((op_list.rank, op) for op_list in self.programs for op in op_list.ops)

    @cached_property
    def _digest(self) -> str:
        head = f"{self.collective} {self.root} {list(self.permutation)}\n"
        return hashlib.sha256((head + self._text).encode()).hexdigest()

    @cached_property
    def _text(self) -> str:
        return native.serialize_schedule([to_tuple(op_list) for op_list in self.programs])
