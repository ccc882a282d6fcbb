"""Ops of a schedule that is written in Python, on their way into `Schedule.from_ops`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from jaxcoll.schedule.ir import Kind, Op, Operand


@dataclass(frozen=True, eq=False)
class RankOp:
    """An op to pass to `Schedule.from_ops`, not numbered yet. Equal only to itself."""

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
      after: ops of `rank` that must complete first, in addition to those inferred from data.
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


def numbered(world_size: int, items: Sequence[RankOp]) -> list[list[Op]]:
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


def scratch_blocks(items: Iterable[RankOp], chunks_per_block: int) -> int:
    """Blocks of scratch that the ops need."""
    ends = (
        begin + count
        for item in items
        for operand in (*item.op.sources, item.op.destination)
        if operand.buffer == "scratch"
        for begin, count in operand.chunks
    )
    return -(-max(ends, default=0) // chunks_per_block)
