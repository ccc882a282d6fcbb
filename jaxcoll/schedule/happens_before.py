"""The ops of all ranks, checked one by one, matched in pairs, and what must come before what.

The first half of `jaxcoll.verify`, whose docstring tells how time is modelled.
"""

from __future__ import annotations

from collections import deque
from typing import Final, get_args

import numpy as np
from numpy.typing import NDArray

from jaxcoll._errors import FaultKind as FaultKind
from jaxcoll._errors import ScheduleError as ScheduleError
from jaxcoll.schedule.ir import Buffer, Kind, Op, Operand, Program
from jaxcoll.schedule.schedule import Schedule
from jaxcoll.schedule.spec import COLLECTIVES, MAX_CHANNELS, input_blocks, output_blocks

# Chunks of one buffer; what Parse in ffi/schedule/text.cc accepts.
_MAX_CHUNKS: Final = 1 << 24
# Chunks of all ranks, and chunks that ops name, in all: what keeps a proof within about 1 GiB.
_MAX_ACCESSES: Final = 1 << 24
# Ops of a deadlock's cycle that its message describes.
_CYCLE_SHOWN: Final = 8
# Columns of the reachability table in memory at once.
_CHAINS_AT_ONCE: Final = 256


class Flat:
    """All ranks' ops in one list, checked one by one and matched in pairs."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self._check_schedule()
        self.layout = schedule.programs[0]
        self.ops: list[Op] = []
        self.rank: list[int] = []
        self.first: list[int] = []  # by rank: number of its first op
        for rank, op_list in enumerate(schedule.programs):
            self._check_layout(rank, op_list)
            self.first.append(len(self.ops))
            self.ops += op_list.ops
            self.rank += [op_list.rank] * len(op_list.ops)
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
        """Checks the parts of the schedule that belong to no op."""
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

    def _check_layout(self, rank: int, op_list: Program) -> None:
        schedule, world_size = self.schedule, self.schedule.world_size
        if op_list.rank != rank:
            raise ScheduleError(
                "malformed", f"its op list is that of rank {op_list.rank}", rank=rank
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
            op_list.chunks_per_block,
            op_list.input_blocks,
            op_list.output_blocks,
            op_list.scratch_blocks,
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


class Order:
    """The order that ops must keep."""

    def __init__(self, flat: Flat) -> None:
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
