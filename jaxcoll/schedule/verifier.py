"""Proves that a schedule is correct, by replaying it symbolically.

`verify` accepts a schedule only if, whatever the timing of its ranks:

- every op is well formed: chunks inside their buffers, as many and at the same positions in all
  operands, no input written;
- the n-th send from a to b on a channel meets the n-th recv, and both name the same chunks;
- it cannot deadlock: the starts and completions of all ops can be put in one order;
- it has no race: of two accesses of one chunk, one of them a write, one always completes first;
- nothing is read that was never written;
- every rank ends with every contribution exactly once, in the right place.

How time is modelled. An op has a start S and a completion C, and its data moves in between, after
the starts of both sides of a message. Edges mean "not before":

    S(op) <- S(previous op of its channel)      S(op) <- C(op it depends on)
    move  <- S(op), S(its peer)                 C(op) <- move

So a blocked op also holds up the later ops of its channel, a send's source is read until the send
completes, and a receiver's chunks are written only after its recv started. A cycle is a deadlock.
Access A comes before access B exactly if C(A) leads to the start of B or to the start of B's peer.

Proofs need NumPy, not JAX, and take seconds for tens of thousands of ops.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final, TypeAlias

import numpy as np

from jaxcoll.schedule.happens_before import Flat, Order, ScheduleError
from jaxcoll.schedule.ir import Buffer
from jaxcoll.schedule.schedule import Schedule

# The contributors to a value, in the order of evaluation: a rank, or what one op combined and
# rounded once.
Association: TypeAlias = "int | tuple[Association, ...]"

# A chunk that has not been written; values are numbered from 1.
_UNWRITTEN: Final = 0


def verify(schedule: Schedule) -> Verification:
    """Proves a schedule correct; see the module's documentation for what that means.

    Args:
      schedule: a built-in one, or one written with `Schedule.from_ops`.

    Returns:
      A report on the schedule's properties.

    Raises:
      ScheduleError: the first fault found, with step, rank, op and chunk.
    """
    flat = Flat(schedule)
    order = Order(flat)
    return Verification(schedule, flat, order, _replay(flat, order, in_place=False))


@dataclass(frozen=True, repr=False)
class Verification:
    """A proof that `schedule` is correct, and further properties of it."""

    schedule: Schedule
    _flat: Flat
    _order: Order
    _values: _Values

    @property
    def reproducible(self) -> bool:
        """Whether ranks that end with the same reduction evaluate it in the same order.

        True means bitwise equal results on all ranks. Collectives that reduce nothing, or whose
        ranks reduce different things, are always reproducible.
        """
        if self.schedule.collective != "all_reduce":
            return True
        outputs = {
            tuple(self._values.output(rank, chunk) for chunk in range(self._flat.chunks("output")))
            for rank in range(self.schedule.world_size)
        }
        return len(outputs) == 1

    def association(self, rank: int, chunk: int) -> Association:
        """The order in which `rank` evaluates output chunk `chunk`.

        Returns:
          The contributing rank, or a tuple of such results for what one op combines from left to
          right and rounds once: ``((0, 1), 2)`` rounds rank 0 + rank 1, then adds rank 2's.
        """
        return self._values.association(self._values.output(rank, chunk))

    @cached_property
    def in_place_safe(self) -> bool:
        """Whether the schedule stays correct with its output in the memory of its input.

        False for collectives whose input and output differ in size.
        """
        layout = self.schedule.programs[0]
        if layout.input_blocks != layout.output_blocks:
            return False
        try:
            _replay(self._flat, self._order, in_place=True)
        except ScheduleError:
            return False
        return True

    def __repr__(self) -> str:
        return f"<verified: {self.schedule!r}>"


class _Values:
    """The contents of the chunks: contributions, and expressions over them, each known by a
    number."""

    def __init__(self, flat: Flat, in_place: bool) -> None:
        self._flat = flat
        self._per_block = flat.layout.chunks_per_block
        self._input_blocks = flat.layout.input_blocks
        # A rank's buffers stand side by side, rank after rank; in place, input and output coincide.
        self._offsets: dict[Buffer, int] = {
            "input": 0,
            "output": 0 if in_place else flat.chunks("input"),
        }
        self._offsets["scratch"] = self._offsets["output"] + flat.chunks("output")
        self._stride = self._offsets["scratch"] + flat.chunks("scratch")
        ranks = flat.schedule.world_size
        self.held = [_UNWRITTEN] * (self._stride * ranks)
        self.writer = [-1] * len(self.held)  # the op that wrote it last
        # By value: the set of contributions (bit rank * input blocks + block), what it was combined
        # from, and the first op that added a contribution twice.
        self.contributions: list[int] = [0]
        self._parts: list[tuple[int, ...]] = [()]
        self.doubled_by: list[int] = [-1]
        self._known: dict[tuple[int, ...], int] = {}
        self._atoms = 1
        for rank in range(ranks):
            for chunk in range(flat.chunks("input")):
                block = rank * self._input_blocks + chunk // self._per_block
                self.held[self.location(rank, "input", chunk)] = len(self.contributions)
                self.contributions.append(1 << block)
                self._parts.append(())
                self.doubled_by.append(-1)
        self._atoms = len(self.contributions)

    def location(self, rank: int, buffer: Buffer, chunk: int) -> int:
        return rank * self._stride + self._offsets[buffer] + chunk

    def locations(self, rank: int, buffer: Buffer, chunks: list[int]) -> list[int]:
        base = rank * self._stride + self._offsets[buffer]
        return [base + chunk for chunk in chunks]

    def name(self, location: int) -> tuple[Buffer, int]:
        """Buffer and chunk of a location; the output, where that is the input too."""
        offset = location % self._stride
        buffers: tuple[Buffer, ...] = ("scratch", "output", "input")
        buffer = next(name for name in buffers if offset >= self._offsets[name])
        return buffer, offset - self._offsets[buffer]

    def contribution(self, rank: int, chunk: int) -> int:
        """The value of an input chunk."""
        return 1 + rank * self._flat.chunks("input") + chunk

    def output(self, rank: int, chunk: int) -> int:
        return self.held[self.location(rank, "output", chunk)]

    def combine(self, parts: tuple[int, ...], op: int) -> int:
        """The value of an op over others, evaluated from left to right."""
        if len(parts) == 1:
            return parts[0]
        value = self._known.get(parts)
        if value is None:
            value = self._known[parts] = len(self.contributions)
            union, doubled = 0, -1
            for part in parts:
                if self.doubled_by[part] >= 0:
                    doubled = self.doubled_by[part]
                elif union & self.contributions[part] and doubled < 0:
                    doubled = op
                union |= self.contributions[part]
            self.contributions.append(union)
            self._parts.append(parts)
            self.doubled_by.append(doubled)
        return value

    def association(self, value: int) -> Association:
        known: dict[int, Association] = {}
        pending = [value]  # not recursive: a ring nests as deeply as it has ranks
        while pending:
            top = pending[-1]
            missing = [part for part in self._parts[top] if part not in known]
            if missing:
                pending += missing
                continue
            if top < self._atoms:
                known[top] = (top - 1) // self._flat.chunks("input")
            else:
                known[top] = tuple(known[part] for part in self._parts[top])
            pending.pop()
        return known[value]

    def describe(self, value: int) -> str:
        if value == _UNWRITTEN:
            return "nothing"
        return self.describe_set(self.contributions[value])

    def describe_set(self, contributions: int) -> str:
        members = []
        while contributions:
            bit = (contributions & -contributions).bit_length() - 1
            contributions &= contributions - 1
            rank, block = divmod(bit, self._input_blocks)
            members.append(f"{rank}" if self._input_blocks == 1 else f"{rank} (block {block})")
        return f"the contributions of ranks {', '.join(members) or 'none'}"


def _replay(flat: Flat, order: Order, *, in_place: bool) -> _Values:
    """Moves symbolic data in one possible order, having shown that all orders are equivalent."""
    values = _Values(flat, in_place)
    local_sources = []  # by op: locations that it reads, source by source
    destinations = []
    for g, op in enumerate(flat.ops):
        rank = flat.rank[g]
        skipped = len(op.sources) - len(op.local_sources)
        local_sources.append(
            [
                values.locations(rank, operand.buffer, chunks)
                for operand, chunks in zip(op.local_sources, flat.sources[g][skipped:], strict=True)
            ]
        )
        destinations.append(
            []
            if op.kind == "send"
            else values.locations(rank, op.destination.buffer, flat.destination[g])
        )
    moves = list(_moves(flat, order))
    _check_races(flat, order, values, moves, local_sources, destinations)
    held, writer = values.held, values.writer
    for g in moves:
        op = flat.ops[g]
        if op.kind == "send":
            continue  # moved by the other end
        sources = list(local_sources[g])
        if op.is_transfer:
            sources.insert(0, local_sources[flat.peer[g]][0])
        results = []
        for i, parts in enumerate(zip(*sources, strict=True)):
            read = tuple(held[location] for location in parts)
            if _UNWRITTEN in read:
                which = read.index(_UNWRITTEN)
                raise flat.error(
                    "unwritten",
                    g,
                    f"reads {op.sources[which].buffer}[{flat.sources[g][which][i]}]"
                    + (f" of rank {op.peer}" if op.is_transfer and which == 0 else "")
                    + ", which nothing has written",
                    (op.sources[which].buffer, flat.sources[g][which][i]),
                )
            results.append(values.combine(read, g))
        for location, value in zip(destinations[g], results, strict=True):
            held[location] = value
            writer[location] = g
    _check_result(flat, values)
    return values


def _moves(flat: Flat, order: Order) -> Iterator[int]:
    """Ops in an order in which their data could move; the ends of a message stand together."""
    started = set()
    for g in order.starts:
        started.add(g)
        if flat.peer[g] in started:
            if flat.peer[g] != g:
                yield flat.peer[g]
            yield g


def _check_races(
    flat: Flat,
    order: Order,
    values: _Values,
    moves: list[int],
    local_sources: list[list[list[int]]],
    destinations: list[list[int]],
) -> None:
    """Every chunk's accesses are ordered: each write against the reads and writes around it.

    Accesses are visited in one possible order. Order being transitive, neighbours suffice: a read
    and the write before it, a write and the reads since the write before it (or that write).
    """
    last_write: dict[int, int] = {}  # by location
    reads: defaultdict[int, list[int]] = defaultdict(list)  # since that write
    pairs: dict[tuple[int, int], int] = {}  # (earlier, later): a location
    for g in moves:
        destination = destinations[g]
        for source in local_sources[g]:
            if destination and source != destination and not set(source).isdisjoint(destination):
                # Corresponding chunks may coincide: in place.
                overlap = set(destination)
                for read, written in zip(source, destination, strict=True):
                    if read != written and read in overlap:
                        raise flat.error(
                            "race", g, "reads a chunk that it writes as another", values.name(read)
                        )
            for location in source:
                if location in last_write:
                    pairs.setdefault((last_write[location], g), location)
                reads[location].append(g)
        for location in destination:
            readers = reads[location]
            for reader in readers:
                if reader != g:
                    pairs.setdefault((reader, g), location)
            if not readers and location in last_write:
                pairs.setdefault((last_write[location], g), location)
            last_write[location] = g
            reads[location] = []
    if not pairs:
        return
    both = np.array(list(pairs), np.int64)
    ordered = order.before(both[:, 0], both[:, 1])
    if not ordered.all():
        a, b = both[int(np.argmin(ordered))].tolist()
        location = pairs[a, b]

        def access(g: int) -> str:
            return "writes" if location in destinations[g] else "reads"

        raise flat.error(
            "race",
            b,
            f"{access(b)} it while {flat.describe(a)} {access(a)} it: neither completes before the "
            "other moves data, a dependency is missing",
            values.name(location),
        )


def _check_result(flat: Flat, values: _Values) -> None:
    """The collective's postcondition."""
    schedule, per_block = flat.schedule, flat.layout.chunks_per_block
    ranks = range(schedule.world_size)
    source_of = {destination: source for source, destination in schedule.permutation}
    for rank in ranks:
        if schedule.collective == "reduce" and rank != schedule.root:
            continue  # unspecified
        for chunk in range(flat.chunks("output")):
            block, position = divmod(chunk, per_block)
            match schedule.collective:
                case "all_reduce" | "reduce":
                    expected = [(q, position) for q in ranks]
                case "reduce_scatter":
                    expected = [(q, rank * per_block + position) for q in ranks]
                case "broadcast":
                    expected = [(schedule.root, position)]
                case "all_gather":
                    expected = [(block, position)]
                case "all_to_all":
                    expected = [(block, rank * per_block + position)]
                case "permute":
                    expected = [(source_of[rank], position)] if rank in source_of else []
            _check_chunk(flat, values, rank, chunk, expected)


def _check_chunk(
    flat: Flat, values: _Values, rank: int, chunk: int, expected: list[tuple[int, int]]
) -> None:
    value = values.output(rank, chunk)
    wanted = 0
    for source_rank, source_chunk in expected:
        wanted |= values.contributions[values.contribution(source_rank, source_chunk)]
    doubled = values.doubled_by[value]
    if values.contributions[value] == wanted and doubled < 0:
        return
    writer = values.writer[values.location(rank, "output", chunk)]
    if value == _UNWRITTEN or writer < 0:
        raise ScheduleError("result", "is never written", rank=rank, chunk=f"output[{chunk}]")
    if doubled >= 0:
        why = f"holds a contribution twice; {flat.describe(doubled)} took it again"
    else:
        why = f"ends with {values.describe(value)}, but should hold {values.describe_set(wanted)}"
    raise flat.error("result", writer, why, ("output", chunk))
