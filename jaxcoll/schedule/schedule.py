"""Schedules and their specs; `jaxcoll.schedule` tells what they mean."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Final, Literal, TypeAlias

from jaxcoll._native import native
from jaxcoll.schedule.ir import INPUT as INPUT
from jaxcoll.schedule.ir import MAX_INT32, Kind, Op, Operand, Program, program_from_tuple, to_tuple
from jaxcoll.schedule.ir import OUTPUT as OUTPUT
from jaxcoll.schedule.ir import SCRATCH as SCRATCH

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
# What fits into an FFI attribute without bloating every executable that carries it.
MAX_SERIALIZED_BYTES: Final = 1 << 20

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
        extent.isascii() and extent.isdecimal() and 0 < int(extent) <= MAX_INT32
        for extent in extents
    ):
        raise ValueError(
            f"algorithm {text!r}: write the dims as positive numbers in brackets, {name}[4x4]"
        )
    return name, tuple(map(int, extents))


def dims_kind(collective: str, algorithm: str) -> str:
    """What an algorithm's dims mean: "nodes", "torus", "aggregate", or "" for nothing."""
    return str(native.schedule_dims(collective, algorithm))


@dataclass(frozen=True)
class ScheduleSpec:
    """What a built-in schedule is a pure function of.

    Attributes:
      collective: one of `COLLECTIVES`.
      world_size: ranks.
      algorithm: one of ``algorithms(collective)``.
      channels: independent copies of the pattern, each on its share of the chunks.
      root: broadcast and reduce: the root's rank.
      permutation: permute: pairs (source rank, destination rank).
      dims: what some algorithms must know beside the number of ranks, () for their default; also
        written behind the algorithm's name, ``"swing[4x4]"``:

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


def build_rank(spec: ScheduleSpec, rank: int) -> Program:
    """One rank's program. Costs what that one rank's ops cost.

    Raises:
      ValueError: unknown collective or algorithm, or one that cannot serve this spec; the message
        names the choices.
    """
    return program_from_tuple(
        native.build_schedule(
            spec.collective,
            spec.algorithm,
            spec.world_size,
            spec.channels,
            list(spec.dims),
            spec.root,
            list(spec.permutation),
            rank,
        )
    )


def build(spec: ScheduleSpec) -> Schedule:
    """All ranks' programs; see `build_rank` for the errors."""
    first = build_rank(spec, 0)  # also what refuses a world size below 1
    rest = (build_rank(spec, rank) for rank in range(1, spec.world_size))
    return Schedule(
        spec.collective, (first, *rest), spec.root, tuple(spec.permutation), spec.algorithm
    )


@dataclass(frozen=True)
class Cost:
    """What a schedule costs in the alpha-beta-gamma model, with chunks of equal length.

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
    """One collective: all ranks' programs. Immutable, comparable and cheap to hash.

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
        ops: Iterable[RankOp],
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
            scratch_blocks = _scratch_blocks(ops, chunks_per_block)
        programs = []
        for rank, rank_ops in enumerate(_number(world_size, ops)):
            program = Program(
                rank,
                chunks_per_block,
                input_blocks(collective, world_size),
                output_blocks(collective, world_size),
                scratch_blocks,
                tuple(rank_ops),
            )
            if infer_dependencies:
                program = program_from_tuple(native.infer_dependencies(to_tuple(program)))
            programs.append(program)
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
        programs = tuple(program_from_tuple(program) for program in native.parse_schedule(text))
        return Schedule(collective, programs, root, tuple(permutation), algorithm)

    def serialize(self) -> str:
        """The ops as text, which is what the FFI attribute `schedule` carries.

        The text holds the programs only: collective, root and permutation are attributes of their
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
        steps = {op.step for _, op in self._ops() if op.is_transfer}
        sent, reduced = [0] * self.world_size, [0] * self.world_size
        for rank, op in self._ops():
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
        return f"<{self._title()}>"

    def __str__(self) -> str:
        lines = [self._title()]
        receipts = {
            (op.peer, rank, op.channel, op.sequence): op
            for rank, op in self._ops()
            if op.is_transfer and op.kind != "send"
        }
        by_step: dict[int, list[str]] = defaultdict(list)
        for rank, op in self._ops():
            channel = f"  (channel {op.channel})" if op.channel else ""
            if op.kind == "send":
                receipt = receipts.pop((rank, op.peer, op.channel, op.sequence), None)
                what = " op local ".join(map(str, receipt.sources if receipt else op.sources))
                lost = "" if receipt else "  (never received)"
                by_step[op.step].append(
                    f"  {rank} -> {op.peer}  {what} => {op.destination}{channel}{lost}"
                )
            elif not op.is_transfer:
                what = " op ".join(map(str, op.sources))
                by_step[op.step].append(f"  {rank}: {op.kind} {what} => {op.destination}{channel}")
        for (source, rank, _, _), op in receipts.items():
            by_step[op.step].append(f"  {source} -> {rank}  {op}  (never sent)")
        for step, step_lines in sorted(by_step.items()):
            lines += [f"step {step}", *step_lines]
        return "\n".join(lines)

    def _title(self) -> str:
        layout = self.programs[0]
        details = [
            f"{self.algorithm} {self.collective}",
            f"{self.world_size} ranks",
            f"{layout.chunks_per_block} chunks per block",
        ]
        if layout.scratch_blocks:
            details.append(f"{layout.scratch_blocks} blocks of scratch")
        return ", ".join([*details, f"{sum(len(p.ops) for p in self.programs)} ops"])

    def _ops(self) -> Iterator[tuple[int, Op]]:
        return ((program.rank, op) for program in self.programs for op in program.ops)

    @cached_property
    def _digest(self) -> str:
        head = f"{self.collective} {self.root} {list(self.permutation)}\n"
        return hashlib.sha256((head + self._text).encode()).hexdigest()

    @cached_property
    def _text(self) -> str:
        return native.serialize_schedule([to_tuple(program) for program in self.programs])


@dataclass(frozen=True, eq=False)
class RankOp:
    """An op on its way into `Schedule.from_ops`: not numbered yet. Equal only to itself."""

    rank: int
    op: Op
    after: tuple[RankOp, ...] = ()


def send(
    rank: int,
    to: int,
    source: Operand,
    destination: Operand,
    *,
    step: int = 0,
    channel: int = 0,
    after: Sequence[RankOp] = (),
) -> RankOp:
    """`rank` sends its `source` into `destination` on rank `to`, which needs the same `recv`.

    Args:
      rank: the sender.
      to: the receiver.
      source: chunks of the sender.
      destination: chunks of the receiver, as many, at the same positions of their blocks.
      step: the round, for printing and counting.
      channel: ops of one channel start in order.
      after: ops of `rank` that must complete first, beside those that data implies.
    """
    return _rank_op("send", rank, to, (source,), destination, step, channel, after)


def recv(
    rank: int,
    source_rank: int,
    source: Operand,
    destination: Operand,
    *,
    step: int = 0,
    channel: int = 0,
    after: Sequence[RankOp] = (),
) -> RankOp:
    """`rank` receives `source` of rank `source_rank` into its `destination`; see `send`."""
    return _rank_op("recv", rank, source_rank, (source,), destination, step, channel, after)


def recv_reduce(
    rank: int,
    source_rank: int,
    source: Operand,
    local: Operand,
    destination: Operand,
    *,
    step: int = 0,
    channel: int = 0,
    after: Sequence[RankOp] = (),
) -> RankOp:
    """Like `recv`, but ``destination = incoming op local``; see `send`."""
    return _rank_op(
        "recv_reduce", rank, source_rank, (source, local), destination, step, channel, after
    )


def copy(
    rank: int,
    source: Operand,
    destination: Operand,
    *,
    step: int = 0,
    channel: int = 0,
    after: Sequence[RankOp] = (),
) -> RankOp:
    """`rank` copies between its own buffers; see `send`."""
    return _rank_op("copy", rank, -1, (source,), destination, step, channel, after)


def reduce(
    rank: int,
    sources: Sequence[Operand],
    destination: Operand,
    *,
    step: int = 0,
    channel: int = 0,
    after: Sequence[RankOp] = (),
) -> RankOp:
    """``destination = ((s0 op s1) op s2) ...`` on `rank`, rounded once at the end; see `send`."""
    return _rank_op("reduce", rank, -1, tuple(sources), destination, step, channel, after)


def put(
    rank: int,
    to: int,
    source: Operand,
    destination: Operand,
    *,
    step: int = 0,
    channel: int = 0,
) -> list[RankOp]:
    """Both sides of a message: `send` on `rank`, `recv` on `to`."""
    return [
        send(rank, to, source, destination, step=step, channel=channel),
        recv(to, rank, source, destination, step=step, channel=channel),
    ]


def put_reduce(
    rank: int,
    to: int,
    source: Operand,
    local: Operand,
    destination: Operand,
    *,
    step: int = 0,
    channel: int = 0,
) -> list[RankOp]:
    """Both sides of a reducing message; `local` and `destination` are chunks of rank `to`."""
    return [
        send(rank, to, source, destination, step=step, channel=channel),
        recv_reduce(to, rank, source, local, destination, step=step, channel=channel),
    ]


def _rank_op(
    kind: Kind,
    rank: int,
    peer: int,
    sources: tuple[Operand, ...],
    destination: Operand,
    step: int,
    channel: int,
    after: Sequence[RankOp],
) -> RankOp:
    op = Op(kind, channel, peer, -1, step, sources, destination)
    return RankOp(rank, op, tuple(after))


def _number(world_size: int, items: Sequence[RankOp]) -> list[list[Op]]:
    """Ops by rank, with sequence numbers and explicit dependencies."""
    positions: dict[int, int] = {}  # by id of the RankOp
    counts = [0] * world_size
    for item in items:
        positions[id(item)] = counts[item.rank]
        counts[item.rank] += 1
    by_rank: list[list[Op]] = [[] for _ in range(world_size)]
    messages: dict[tuple[int, int, int, bool], int] = defaultdict(int)
    for item in items:
        op = item.op
        for other in item.after:
            if other.rank != item.rank or id(other) not in positions:
                raise ValueError(
                    f"rank {item.rank}, {op}: `after` names {other.op} of rank {other.rank}, which "
                    "is not among this rank's ops"
                )
        sequence = -1
        if op.is_transfer:
            key = (item.rank, op.peer, op.channel, op.kind == "send")
            sequence = messages[key]
            messages[key] += 1
        depends_on = tuple(sorted({positions[id(other)] for other in item.after}))
        by_rank[item.rank].append(replace(op, sequence=sequence, depends_on=depends_on))
    return by_rank


def _scratch_blocks(items: Iterable[RankOp], chunks_per_block: int) -> int:
    ends = (
        begin + count
        for item in items
        for operand in (*item.op.sources, item.op.destination)
        if operand.buffer == "scratch"
        for begin, count in operand.chunks
    )
    return -(-max(ends, default=0) // chunks_per_block)
