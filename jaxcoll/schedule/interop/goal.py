"""Schedules as GOAL text, the input of LogGOPSim.

Hoefler, Siebert and Lumsdaine, "Group operation assembly language", 2009; Hoefler, Schneider and
Lumsdaine, "LogGOPSim: simulating large-scale applications in the LogGOPS model", 2010. A rank is a
list of labelled ``send``, ``recv`` and ``calc``; ``a requires b`` starts a when b has completed,
``a irequires b`` when b has started. So nothing of a schedule's order is lost:

- ``requires`` is `Op.depends_on`;
- ``irequires`` is the order in which a channel's ops start;
- a tag numbers the messages from one rank to another, over all channels;
- combining and copying are a ``calc`` of as many time units as the caller says.
"""

from __future__ import annotations

from collections.abc import Iterator

from jaxcoll.schedule.ir import Op, Operand, Program
from jaxcoll.schedule.schedule import Schedule


def export(schedule: Schedule, byte_count: int, *, reduce_ns_per_byte: float = 0.0) -> str:
    """A schedule for vectors of one size, as GOAL text.

    Args:
      schedule: any; it should have been verified.
      byte_count: the n of `jaxcoll.schedule.Cost`: the vector of all_reduce, reduce, broadcast and
        permute; everything gathered by all_gather; one rank's input of reduce_scatter and
        all_to_all.
      reduce_ns_per_byte: time to combine two operands, or to copy, per byte of result.

    Returns: the text; LogGOPSim's unit of time is a nanosecond.

    Raises: ValueError for a negative size or time.
    """
    if byte_count < 0 or reduce_ns_per_byte < 0:
        raise ValueError(
            f"byte_count {byte_count} and reduce_ns_per_byte {reduce_ns_per_byte} must not be "
            "negative"
        )
    sizes = _Sizes(schedule, byte_count)
    tags = _tags(schedule)
    lines = [f"num_ranks {schedule.world_size}"]
    for op_list in schedule.programs:
        lines += ["", f"rank {op_list.rank} {{"]
        lines += _rank(op_list, sizes, tags, reduce_ns_per_byte)
        lines.append("}")
    return "\n".join(lines) + "\n"


class _Sizes:
    """Bytes of chunks: position j of C covers j n/C to (j+1) n/C of its block's n bytes."""

    def __init__(self, schedule: Schedule, byte_count: int) -> None:
        layout = schedule.programs[0]
        self._block = byte_count // max(layout.input_blocks, layout.output_blocks)
        self._chunks = layout.chunks_per_block

    def of(self, operand: Operand) -> int:
        total = 0
        for begin, count in operand.chunks:
            total += self._before(begin + count) - self._before(begin)
        return total

    def _before(self, chunk: int) -> int:
        block, position = divmod(chunk, self._chunks)
        return block * self._block + position * self._block // self._chunks


# (source, destination, channel, sequence) -> number among the messages from source to destination
_Tags = dict[tuple[int, int, int, int], int]


def _tags(schedule: Schedule) -> _Tags:
    tags: _Tags = {}
    counts: dict[tuple[int, int], int] = {}
    for op_list in schedule.programs:
        for op in op_list.ops:
            if op.kind == "send":
                pair = (op_list.rank, op.peer)
                tags[(*pair, op.channel, op.sequence)] = counts[pair] = counts.get(pair, -1) + 1
    return tags


def _rank(op_list: Program, sizes: _Sizes, tags: _Tags, ns_per_byte: float) -> Iterator[str]:
    def first(i: int) -> str:  # what starts an op
        return f"{'m' if op_list.ops[i].is_transfer else 'c'}{i}"

    def last(i: int) -> str:  # what completes it
        return f"{'m' if op_list.ops[i].kind in ('send', 'recv') else 'c'}{i}"

    def calc(i: int, op: Op) -> str:
        pairs = max(len(op.sources) - 1, 1)  # a copy costs what combining two does
        return f"c{i}: calc {round(pairs * sizes.of(op.destination) * ns_per_byte)}"

    previous: dict[int, int] = {}  # by channel
    for i, op in enumerate(op_list.ops):
        if op.kind == "send":
            tag = tags[op_list.rank, op.peer, op.channel, op.sequence]
            yield f"m{i}: send {sizes.of(op.destination)}b to {op.peer} tag {tag}"
        elif op.is_transfer:
            tag = tags[op.peer, op_list.rank, op.channel, op.sequence]
            yield f"m{i}: recv {sizes.of(op.destination)}b from {op.peer} tag {tag}"
        if first(i) != last(i):
            yield calc(i, op)
            yield f"{last(i)} requires {first(i)}"
        elif not op.is_transfer:
            yield calc(i, op)
    for i, op in enumerate(op_list.ops):
        for dependency in op.depends_on:
            yield f"{first(i)} requires {last(dependency)}"
        if op.channel in previous and previous[op.channel] not in op.depends_on:
            yield f"{first(i)} irequires {first(previous[op.channel])}"
        previous[op.channel] = i
