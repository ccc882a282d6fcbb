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

import argparse
import sys
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from jaxcoll.schedule import (
    COLLECTIVES,
    MAX_CHANNELS,
    Buffer,
    Collective,
    Kind,
    Op,
    Operand,
    Program,
    Schedule,
    ScheduleSpec,
    algorithms,
    build,
    input_blocks,
    output_blocks,
)

FaultKind: TypeAlias = Literal["malformed", "unmatched", "deadlock", "race", "unwritten", "result"]
# Who contributed, in the order of evaluation: a rank, or what one op combined and rounded once.
Association: TypeAlias = "int | tuple[Association, ...]"

# A chunk that has not been written; values are numbered from 1.
_UNWRITTEN: Final = 0
# Chunks of one buffer; what Parse in ffi/schedule/text.cc accepts.
_MAX_CHUNKS: Final = 1 << 24
# Chunks of all ranks, and chunks that ops name, in all: what keeps a proof within about 1 GiB.
_MAX_ACCESSES: Final = 1 << 24
# Ops of a deadlock's cycle that its message describes.
_CYCLE_SHOWN: Final = 8
# Columns of the reachability table in memory at once.
_CHAINS_AT_ONCE: Final = 256


class ScheduleError(ValueError):
    """A schedule that must not run.

    Attributes:
      kind: what is wrong with it.
      rank: the rank at fault.
      op: index of the op in that rank's program; None where no op is to blame.
      step: that op's step.
      chunk: the chunk at fault, such as ``output[3]``, or None.
    """

    def __init__(
        self,
        kind: FaultKind,
        why: str,
        *,
        rank: int,
        op: int | None = None,
        step: int | None = None,
        chunk: str | None = None,
    ) -> None:
        where = [f"rank {rank}"]
        if op is not None:
            where.append(f"step {step}, op {op}")
        if chunk is not None:
            where.append(chunk)
        super().__init__(f"{kind}: {', '.join(where)}: {why}")
        self.kind = kind
        self.rank = rank
        self.op = op
        self.step = step
        self.chunk = chunk


def verify(schedule: Schedule) -> Verification:
    """Proves a schedule correct; see the module's documentation for what that means.

    Args:
      schedule: a built-in one, or one written with `Schedule.from_ops`.

    Returns:
      What else was found out about it.

    Raises:
      ScheduleError: the first fault found, with step, rank, op and chunk.
    """
    flat = _Flat(schedule)
    order = _Order(flat)
    return Verification(schedule, flat, order, _replay(flat, order, in_place=False))


@dataclass(frozen=True, repr=False)
class Verification:
    """A proof that `schedule` is correct, and further properties of it."""

    schedule: Schedule
    _flat: _Flat
    _order: _Order
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
        """In which order `rank` evaluates output chunk `chunk`.

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


class _Flat:
    """All ranks' ops in one list, checked one by one and matched in pairs."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self._check_schedule()
        self.layout = schedule.programs[0]
        self.ops: list[Op] = []
        self.rank: list[int] = []
        self.first: list[int] = []  # by rank: number of its first op
        for rank, program in enumerate(schedule.programs):
            self._check_layout(rank, program)
            self.first.append(len(self.ops))
            self.ops += program.ops
            self.rank += [program.rank] * len(program.ops)
        accesses = 0
        for g, op in enumerate(self.ops):
            self._check_op(g)
            accesses += len(op.destination) * (1 + len(op.sources))
            if accesses > _MAX_ACCESSES:
                raise self.error(
                    "malformed", g, f"more than {_MAX_ACCESSES} chunks are named in all"
                )
        # Chunks of operands, by op: those of every source, and of the destination.
        self.sources = [[source.indices() for source in op.sources] for op in self.ops]
        self.destination = [op.destination.indices() for op in self.ops]
        for g in range(len(self.ops)):
            self._check_chunks(g)
        self.peer = self._match()  # by op: the op at the other end, or the op itself

    def chunks(self, buffer: Buffer) -> int:
        blocks = {
            "input": self.layout.input_blocks,
            "output": self.layout.output_blocks,
            "scratch": self.layout.scratch_blocks,
        }[buffer]
        return blocks * self.layout.chunks_per_block

    def describe(self, g: int) -> str:
        return f"op {self.index(g)} of rank {self.rank[g]} (step {self.ops[g].step}, {self.ops[g]})"

    def index(self, g: int) -> int:
        return g - self.first[self.rank[g]]

    def error(
        self, kind: FaultKind, g: int, why: str, chunk: tuple[Buffer, int] | None = None
    ) -> ScheduleError:
        return ScheduleError(
            kind,
            f"{why} [{self.ops[g]}]",
            rank=self.rank[g],
            op=self.index(g),
            step=self.ops[g].step,
            chunk=None if chunk is None else f"{chunk[0]}[{chunk[1]}]",
        )

    def _check_schedule(self) -> None:
        """What belongs to no op."""
        schedule, ranks = self.schedule, range(self.schedule.world_size)
        if schedule.collective not in COLLECTIVES or not ranks:
            raise ScheduleError(
                "malformed",
                f"{schedule.collective!r} of {len(ranks)} ranks; there are "
                f"{', '.join(COLLECTIVES)}, of one rank or more",
                rank=0,
            )
        if schedule.root not in ranks:
            raise ScheduleError(
                "malformed", f"the root is not among the {len(ranks)} ranks", rank=schedule.root
            )
        for side, name in enumerate(("source", "destination")):
            named = [pair[side] for pair in schedule.permutation]
            for rank in named:
                if rank not in ranks or named.count(rank) > 1:
                    raise ScheduleError(
                        "malformed",
                        f"is {named.count(rank)} times a {name} of the permutation of "
                        f"{len(ranks)} ranks",
                        rank=rank,
                    )

    def _check_layout(self, rank: int, program: Program) -> None:
        schedule, world_size = self.schedule, self.schedule.world_size
        if program.rank != rank:
            raise ScheduleError(
                "malformed", f"its program is that of rank {program.rank}", rank=rank
            )
        buffers = [self.chunks(buffer) for buffer in get_args(Buffer)]
        if self.layout.chunks_per_block < 1 or not 0 <= min(buffers) <= max(buffers) <= _MAX_CHUNKS:
            raise ScheduleError(
                "malformed",
                f"input, output and scratch of {buffers} chunks, {self.layout.chunks_per_block} "
                f"per block: a block has one at least, a buffer {_MAX_CHUNKS} at most",
                rank=rank,
            )
        if sum(buffers) * schedule.world_size > _MAX_ACCESSES:
            raise ScheduleError(
                "malformed", f"more than {_MAX_ACCESSES} chunks on all ranks together", rank=rank
            )
        expected = (
            self.layout.chunks_per_block,
            input_blocks(schedule.collective, world_size),
            output_blocks(schedule.collective, world_size),
            self.layout.scratch_blocks,
        )
        actual = (
            program.chunks_per_block,
            program.input_blocks,
            program.output_blocks,
            program.scratch_blocks,
        )
        if actual != expected:
            raise ScheduleError(
                "malformed",
                f"chunks per block and input, output and scratch blocks are {actual}, but "
                f"{schedule.collective} of {world_size} ranks, and rank 0, have {expected}",
                rank=rank,
            )

    def _check_op(self, g: int) -> None:
        op, world_size = self.ops[g], self.schedule.world_size
        if op.kind not in get_args(Kind):
            raise self.error("malformed", g, f"there is no op {op.kind!r}")
        if not 0 <= op.channel < MAX_CHANNELS or op.step < 0:
            raise self.error("malformed", g, f"is on channel {op.channel} of {MAX_CHANNELS}")
        arity = {"recv_reduce": 2, "reduce": max(1, len(op.sources))}.get(op.kind, 1)
        if len(op.sources) != arity:
            raise self.error("malformed", g, f"{op.kind} has {len(op.sources)} sources")
        if op.is_transfer and (
            not 0 <= op.peer < world_size or op.peer == self.rank[g] or op.sequence < 0
        ):
            raise self.error(
                "malformed",
                g,
                f"peer {op.peer}, message {op.sequence}: the peer must be another of "
                f"{world_size} ranks",
            )
        if not op.is_transfer and (op.peer, op.sequence) != (-1, -1):
            raise self.error("malformed", g, "is local: its peer and sequence must be -1")
        ops_of_rank = len(self.schedule.programs[self.rank[g]].ops)
        for dependency in op.depends_on:
            if not 0 <= dependency < ops_of_rank:
                raise self.error("malformed", g, f"depends on op {dependency}, which is not there")
        for operand in (op.destination, *op.sources):
            self._check_operand(g, operand)
            if len(operand) != len(op.destination):
                raise self.error(
                    "malformed",
                    g,
                    f"{operand} has {len(operand)} chunks, {op.destination} {len(op.destination)}",
                )
        if op.destination.buffer == "input":
            raise self.error(
                "malformed",
                g,
                "writes to the input, which is read-only",
                ("input", op.destination.chunks[0][0]),
            )

    def _check_operand(self, g: int, operand: Operand) -> None:
        if operand.buffer not in get_args(Buffer):
            raise self.error("malformed", g, f"there is no buffer {operand.buffer!r}")
        if not operand.chunks:
            raise self.error("malformed", g, f"{operand} names no chunk")
        end = self.chunks(operand.buffer)
        for begin, count in operand.chunks:
            if begin < 0 or count < 1 or begin + count > end:
                raise self.error(
                    "malformed",
                    g,
                    f"{operand} is out of range: {operand.buffer} has {end} chunks",
                    (operand.buffer, max(begin, end)),
                )

    def _check_chunks(self, g: int) -> None:
        op, destination, per_block = self.ops[g], self.destination[g], self.layout.chunks_per_block
        if len(set(destination)) != len(destination):
            raise self.error("malformed", g, f"{op.destination} names a chunk twice")
        for operand, chunks in zip(op.sources, self.sources[g], strict=True):
            for source, target in zip(chunks, destination, strict=True):
                if (source - target) % per_block:
                    raise self.error(
                        "malformed",
                        g,
                        f"{operand.buffer}[{source}] is at position {source % per_block} of its "
                        f"block, {op.destination.buffer}[{target}] at {target % per_block}: their "
                        "sizes can differ",
                        (op.destination.buffer, target),
                    )

    def _match(self) -> list[int]:
        ends: dict[tuple[int, int, int], tuple[list[int], list[int]]] = {}
        for g, op in enumerate(self.ops):
            if not op.is_transfer:
                continue
            is_send = op.kind == "send"
            key = (self.rank[g], op.peer) if is_send else (op.peer, self.rank[g])
            ends.setdefault((*key, op.channel), ([], []))[0 if is_send else 1].append(g)

        peer = list(range(len(self.ops)))
        for (source, destination, channel), (sends, recvs) in ends.items():
            link = f"from rank {source} to rank {destination} on channel {channel}"
            for side in (sends, recvs):
                for due, g in enumerate(side):
                    if self.ops[g].sequence != due:
                        raise self.error(
                            "unmatched",
                            g,
                            f"is message {self.ops[g].sequence} {link} where message {due} is due: "
                            "one is missing, doubled or out of order",
                        )
            for s, r in zip(sends, recvs, strict=False):
                self._check_pair(s, r)
                peer[s], peer[r] = r, s
            for g in (*sends[len(recvs) :], *recvs[len(sends) :]):
                other = "recv" if self.ops[g].kind == "send" else "send"
                raise self.error("unmatched", g, f"has no {other} for message {link}")
        return peer

    def _check_pair(self, s: int, r: int) -> None:
        send, recv = self.ops[s], self.ops[r]
        for what, ours, theirs, our_chunks, their_chunks in (
            ("source", send.sources[0], recv.sources[0], self.sources[s][0], self.sources[r][0]),
            (
                "destination",
                send.destination,
                recv.destination,
                self.destination[s],
                self.destination[r],
            ),
        ):
            if ours.buffer != theirs.buffer or our_chunks != their_chunks:
                wrong = next(
                    (b for a, b in zip(our_chunks, their_chunks, strict=False) if a != b),
                    their_chunks[0],
                )
                raise self.error(
                    "unmatched",
                    r,
                    f"its {what} is {theirs}, but {self.describe(s)}, which it meets, says {ours}",
                    (theirs.buffer, wrong),
                )


class _Order:
    """What must come before what."""

    def __init__(self, flat: _Flat) -> None:
        self._flat = flat
        ops = flat.ops
        # A chain is what starts in program order: one channel of one rank.
        self._chain_ids: dict[tuple[int, int], int] = {}
        self._chain = np.zeros(len(ops), np.int64)
        self._position = np.zeros(len(ops), np.int32)  # in its chain
        self._previous: list[int] = [-1] * len(ops)
        self._next: list[int] = [-1] * len(ops)
        self._dependents: list[list[int]] = [[] for _ in ops]
        self._dependencies: list[list[int]] = []
        last: dict[int, int] = {}
        for g, op in enumerate(ops):
            chain = self._chain_ids.setdefault((flat.rank[g], op.channel), len(self._chain_ids))
            self._chain[g] = chain
            if chain in last:
                self._previous[g] = last[chain]
                self._next[last[chain]] = g
                self._position[g] = self._position[last[chain]] + 1
            last[chain] = g
            self._dependencies.append([flat.first[flat.rank[g]] + d for d in op.depends_on])
            for dependency in self._dependencies[-1]:
                self._dependents[dependency].append(g)
        self.starts = self._sort()
        self._tables: dict[int, NDArray[np.int32]] = {}  # of _earliest_starts, by its argument

    def _sort(self) -> list[int]:
        """Ops in an order in which they could start; an op's move follows the later of two."""
        peer = self._flat.peer
        waiting = [
            len(dependencies) + (previous >= 0)
            for dependencies, previous in zip(self._dependencies, self._previous, strict=True)
        ]
        ready = deque(g for g, count in enumerate(waiting) if count == 0)
        started = [False] * len(peer)
        order = []

        def release(g: int) -> None:
            waiting[g] -= 1
            if waiting[g] == 0:
                ready.append(g)

        while ready:
            g = ready.popleft()
            started[g] = True
            order.append(g)
            if self._next[g] >= 0:
                release(self._next[g])
            if started[peer[g]]:  # data moves, both ends complete
                for end in {g, peer[g]}:
                    for dependent in self._dependents[end]:
                        release(dependent)
        if len(order) < len(peer):
            raise self._deadlock(started)
        return order

    def _deadlock(self, started: list[bool]) -> ScheduleError:
        """Follows from an op that never starts to one that it waits for, until that repeats."""
        flat = self._flat
        path: list[tuple[int, str]] = []  # an op that never starts, and why
        seen: dict[int, int] = {}
        g = started.index(False)
        while g not in seen:
            seen[g] = len(path)
            incomplete = next(
                (d for d in self._dependencies[g] if not (started[d] and started[flat.peer[d]])),
                None,
            )
            if incomplete is None:
                blocker = self._previous[g]
                why = f"starts after {flat.describe(blocker)}"
            elif started[incomplete]:  # its other end does not start
                blocker = flat.peer[incomplete]
                why = f"waits for {flat.describe(incomplete)}, which needs {flat.describe(blocker)}"
            else:
                blocker = incomplete
                why = f"waits for {flat.describe(blocker)}"
            path.append((g, why))
            g = blocker
        cycle = path[seen[g] :]
        reasons = [f"{flat.describe(g)} {reason}" for g, reason in cycle[:_CYCLE_SHOWN]]
        if len(cycle) > _CYCLE_SHOWN:
            reasons.append(f"and {len(cycle) - _CYCLE_SHOWN} more, back to the first")
        return flat.error(
            "deadlock", cycle[0][0], f"a cycle of {len(cycle)} ops: {'; '.join(reasons)}"
        )

    def before(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Element by element: whether op a completes before the data of op b moves."""
        peer = np.asarray(self._flat.peer, np.int64)
        return self._completes_before_start(a, b) | self._completes_before_start(a, peer[b])

    def _completes_before_start(
        self, a: NDArray[np.int64], b: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        result = np.zeros(len(a), np.bool_)
        chains = self._chain[b]
        for begin in range(0, len(self._chain_ids), _CHAINS_AT_ONCE):
            here = np.flatnonzero((chains >= begin) & (chains < begin + _CHAINS_AT_ONCE))
            if len(here):
                earliest = self._earliest_starts(begin)
                reached = earliest[a[here], chains[here] - begin]
                result[here] = reached <= self._position[b[here]]
        return result

    def _earliest_starts(self, first_chain: int) -> NDArray[np.int32]:
        """By op and chain: the first op of the chain that cannot start before the op completes.

        Chains from `first_chain` on; a position in the chain. Everything later in a chain follows.
        """
        if first_chain in self._tables:
            return self._tables[first_chain]
        peer, never = self._flat.peer, np.iinfo(np.int32).max
        chain_count = min(_CHAINS_AT_ONCE, len(self._chain_ids) - first_chain)
        shape = (len(peer), chain_count)
        # By op, from its start and from its completion.
        start, completion = np.full(shape, never, np.int32), np.full(shape, never, np.int32)
        # Backwards: an op's completion is known once all that may follow it has been seen.
        pending = [True] * len(peer)
        for g in reversed(self.starts):
            # Both ends of a message move together, and complete, after the later of them started:
            # met first here.
            if pending[g]:
                for end in {g, peer[g]}:
                    pending[end] = False
                    for dependent in self._dependents[end]:
                        np.minimum(completion[end], start[dependent], out=completion[end])
            row = start[g]
            np.minimum(completion[g], completion[peer[g]], out=row)
            if self._next[g] >= 0:
                np.minimum(row, start[self._next[g]], out=row)
            column = int(self._chain[g]) - first_chain
            if 0 <= column < chain_count:
                row[column] = min(row[column], self._position[g])
        self._tables[first_chain] = completion
        return completion


class _Values:
    """What the chunks hold: contributions, and expressions over them, each known by a number."""

    def __init__(self, flat: _Flat, in_place: bool) -> None:
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
        # from, and the first op that took a contribution twice on the way.
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


def _replay(flat: _Flat, order: _Order, *, in_place: bool) -> _Values:
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


def _moves(flat: _Flat, order: _Order) -> Iterator[int]:
    """Ops in an order in which their data could move; the ends of a message stand together."""
    started = set()
    for g in order.starts:
        started.add(g)
        if flat.peer[g] in started:
            if flat.peer[g] != g:
                yield flat.peer[g]
            yield g


def _check_races(
    flat: _Flat,
    order: _Order,
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


def _check_result(flat: _Flat, values: _Values) -> None:
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
    flat: _Flat, values: _Values, rank: int, chunk: int, expected: list[tuple[int, int]]
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


def main(argv: Sequence[str] | None = None) -> int:
    """The command ``jaxcoll verify``: verifies built-in schedules and prints their costs.

    Args:
      argv: arguments after the command's name; None takes the process's.

    Returns:
      The process's exit status: 0 if all schedules are correct.
    """
    parser = argparse.ArgumentParser(
        prog="jaxcoll verify",
        description="Proves built-in schedules correct and prints their steps and bytes.",
    )
    parser.add_argument(
        "--collective", choices=COLLECTIVES, action="append", help="repeatable; default: all"
    )
    parser.add_argument("--algorithm", action="append", help="repeatable; default: all")
    parser.add_argument(
        "--world-size",
        type=_world_sizes,
        default=_world_sizes("1:17"),
        metavar="P,P:P,...",
        help="ranks; ranges include their ends; default: 1:17",
    )
    parser.add_argument("--channels", type=int, default=1, help="copies of the pattern")
    parser.add_argument("--node-size", type=int, default=0, help="hierarchical: ranks per node")
    parser.add_argument("--root", type=int, default=0, help="broadcast and reduce")
    arguments = parser.parse_args(argv)

    collectives: Sequence[Collective] = arguments.collective or COLLECTIVES
    chosen = [
        (collective, algorithm)
        for collective in collectives
        for algorithm in algorithms(collective)
        if not arguments.algorithm or algorithm in arguments.algorithm
    ]
    unknown = set(arguments.algorithm or ()) - {algorithm for _, algorithm in chosen}
    if unknown:
        names = sorted({name for collective in collectives for name in algorithms(collective)})
        parser.error(f"no algorithm {', '.join(sorted(unknown))}; choose from {', '.join(names)}")

    print(
        f"{'collective':<15} {'algorithm':<19} {'ranks':>5} {'steps':>5} {'max sent':>9}  verdict"
    )
    failures = 0
    for collective, algorithm in chosen:
        for world_size in arguments.world_size:
            spec = ScheduleSpec(
                collective,
                world_size,
                algorithm,
                arguments.channels,
                arguments.node_size,
                arguments.root,
                # Permutations need one to be given: a shift by one rank stands for all.
                tuple((rank, (rank + 1) % world_size) for rank in range(world_size)),
            )
            line = f"{collective:<15} {algorithm:<19} {world_size:>5}"
            try:
                schedule = build(spec)
            except ValueError as error:
                print(f"{line} refused: {error}")
                failures += 1
                continue
            cost = schedule.cost()
            begin_s = time.perf_counter()
            try:
                verdict = _verdict(verify(schedule))
            except ScheduleError as error:
                verdict = str(error)
                failures += 1
            print(
                f"{line} {cost.steps:>5} {float(max(cost.sent)):>7.3f} n  {verdict} "
                f"({time.perf_counter() - begin_s:.2f} s)",
                flush=True,
            )
    if failures:
        print(f"{failures} schedules were refused", file=sys.stderr)
    return 1 if failures else 0


def _verdict(verification: Verification) -> str:
    facts = ["correct"]
    if not verification.reproducible:
        facts.append("ranks can differ in rounding")
    if verification.in_place_safe:
        facts.append("safe in place")
    return ", ".join(facts)


def _world_sizes(text: str) -> list[int]:
    sizes: list[int] = []
    for item in text.split(","):
        begin, _, end = item.partition(":")
        try:
            item_sizes = range(int(begin), int(end or begin) + 1)
        except ValueError:
            item_sizes = range(0)
        if not item_sizes:
            raise argparse.ArgumentTypeError(f"{item!r} is no world size: write 8, 1:17 or 1:17,32")
        sizes += item_sizes
    return sizes


if __name__ == "__main__":
    sys.exit(main())
