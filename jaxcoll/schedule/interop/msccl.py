"""Algorithms of MSCCL and msccl-tools, in XML, as schedules.

So algorithms that others have synthesized (SCCL, TACCL, TE-CCL and msccl-tools write this format)
can be verified, simulated and run. An ``<algo>`` has a ``<gpu>`` for each rank, each with thread
blocks ``<tb>`` whose steps run one after the other. A thread block sends to one peer and receives
from one, on a channel; ``depid`` and ``deps`` make a step wait for one of another thread block.

==== ==========================================================================
type meaning
==== ==========================================================================
s    send src
r    receive into dst
rcs  receive into dst and send it on
rrc  dst = received + src
rrcs dst = received + src, and send it on
rrs  send received + src on, storing it nowhere
cpy  dst = src
re   dst = dst + src
nop  wait only
==== ==========================================================================

How it is brought into the IR:

- What MSCCL orders stays ordered as far as data demands it, and what it leaves unordered must not
  conflict: two steps that touch the same chunk without an order are an error here, not a schedule.
- In MSCCL a send completes when its data has been passed on. Here it completes when the receiver
  has it, so that later steps of its thread block wait for it only if they overwrite what it sends.
- Chunks of scratch have any content in MSCCL; here data keeps its position within a block. A
  scratch chunk becomes one for each position that it ever holds.
- ``inplace``: the input is first copied to where the algorithm may change it.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from jaxcoll.schedule.from_ops import RankOp, copy, recv, recv_reduce, reduce, send
from jaxcoll.schedule.interop.msccl_xml import MAX_TEXT_BYTES as MAX_TEXT_BYTES
from jaxcoll.schedule.interop.msccl_xml import (
    RECEIVING,
    REDUCING,
    SENDING,
    Algo,
    Chunk,
    Gpu,
    Step,
    read,
)
from jaxcoll.schedule.interop.msccl_xml import MscclError as MscclError
from jaxcoll.schedule.ir import Buffer, Operand
from jaxcoll.schedule.schedule import Schedule
from jaxcoll.schedule.spec import MAX_CHANNELS, input_blocks, output_blocks


def parse(text: str | bytes) -> Schedule:
    """An MSCCL algorithm as a schedule, not verified yet: see `jaxcoll.verify`.

    Args:
      text: the XML, 32 MiB at most.

    Raises: MscclError, a ValueError, naming line, gpu, thread block and step.
    """
    algo = read(text)
    orders = [_order(algo.gpus[rank]) for rank in range(algo.ranks)]
    return _Importer(algo, orders).schedule()


# --- order --------------------------------------------------------------------------------------


def _order(gpu: Gpu) -> list[Step]:
    """A rank's steps in one order that MSCCL allows, each knowing all that come before it."""
    steps = [step for block in gpu.blocks.values() for step in block]
    for step in steps:
        if step.number:
            gpu.blocks[step.block][step.number - 1].successors.append(step)
            step.predecessors += 1
        if step.waits_for is not None:
            block, number = step.waits_for
            if number >= len(gpu.blocks.get(block, [])):
                raise MscclError(
                    f"{step} waits for step {number} of thread block {block}, which does not exist"
                )
            gpu.blocks[block][number].successors.append(step)
            step.predecessors += 1
    waiting = {step: step.predecessors for step in steps}
    ready = deque(step for step in steps if step.predecessors == 0)
    order: list[Step] = []
    while ready:
        step = ready.popleft()
        step.position = len(order)
        order.append(step)
        for later in step.successors:
            later.before |= step.before | 1 << step.position
            waiting[later] -= 1
            if waiting[later] == 0:
                ready.append(later)
    if len(order) < len(steps):
        stuck = next(step for step in steps if waiting[step] > 0)
        raise MscclError(f"{stuck} waits for itself through other steps")
    return order


# --- into the IR --------------------------------------------------------------------------------


class _Importer:
    def __init__(self, algo: Algo, orders: list[list[Step]]) -> None:
        self._algo = algo
        self._orders = orders
        inputs = input_blocks(algo.collective, algo.ranks)
        outputs = output_blocks(algo.collective, algo.ranks)
        blocks = max(inputs, outputs)
        self._per_block, rest = divmod(algo.chunks_per_loop, blocks)
        if rest or not self._per_block:
            raise MscclError(
                f"line {algo.line}: nchunksperloop is {algo.chunks_per_loop}, but must be a "
                f"multiple of {blocks} for {algo.collective} of {algo.ranks} ranks"
            )
        self._sizes = {"i": inputs * self._per_block, "o": outputs * self._per_block}
        # By rank: (position, scratch chunk of the file) -> scratch block.
        self._scratch: list[dict[tuple[int, object], int]] = [{} for _ in range(algo.ranks)]
        self._per_position: list[dict[int, int]] = [defaultdict(int) for _ in range(algo.ranks)]
        # By rank: what position within a block a scratch chunk of the file holds now.
        self._held: list[dict[object, int]] = [{} for _ in range(algo.ranks)]
        self._log: list[dict[object, _Log]] = [defaultdict(_Log) for _ in range(algo.ranks)]
        self._ops: list[list[RankOp]] = [[] for _ in range(algo.ranks)]
        # By (source, destination, channel of the file): sent, not received yet.
        self._messages: dict[tuple[int, int, int], deque[_Message]] = defaultdict(deque)
        self._channels = _Channels(orders)

    def schedule(self) -> Schedule:
        algo = self._algo
        for rank in range(algo.ranks):
            self._copy_input(rank)
        for rank, step, incoming in self._replayed():
            self._convert(rank, step, incoming)
        for rank in range(algo.ranks):
            self._copy_result(rank)
        return Schedule.from_ops(
            algo.collective,
            algo.ranks,
            [op for ops in self._ops for op in ops],
            chunks_per_block=self._per_block,
            algorithm=algo.name,
        )

    # A chunk of the file is a chunk of the IR, or of scratch at the position that it holds.

    def _home(self, rank: int, chunk: Chunk) -> tuple[Buffer, int] | None:
        """The place of a chunk of the file's input or output; None for scratch."""
        buffer, index = chunk
        if buffer == "s":
            return None
        if self._algo.in_place:
            own = rank * self._per_block  # the rank's own block in a buffer of all
            match self._algo.collective:
                case "all_reduce":
                    return "output", index
                case "all_gather":
                    return "output", index + (own if buffer == "i" else 0)
                case "reduce_scatter":
                    return "scratch", index + (own if buffer == "o" else 0)
                case "all_to_all":
                    return ("scratch" if buffer == "i" else "output"), index
        return ("input" if buffer == "i" else "output"), index

    def _home_of(self, rank: int, chunk: Chunk, step: Step) -> tuple[Buffer, int] | None:
        if chunk[0] != "s" and chunk[1] >= self._sizes[chunk[0]]:
            raise MscclError(
                f"{step} uses {chunk[0]}[{chunk[1]}], but that buffer of {self._algo.collective} "
                f"has {self._sizes[chunk[0]]} chunks"
            )
        return self._home(rank, chunk)

    def _scratch_base(self) -> int:
        """Blocks of scratch that stand for the input."""
        moved = self._algo.in_place and self._algo.collective in ("reduce_scatter", "all_to_all")
        return self._algo.ranks if moved else 0

    def _place(self, rank: int, chunk: Chunk, position: int, step: Step) -> tuple[Buffer, int]:
        """The place of a chunk that is about to hold content of a position."""
        home = self._home_of(rank, chunk, step)
        if home is None:
            return self._scratch_place(rank, chunk, position)
        if home[1] % self._per_block != position:
            raise MscclError(
                f"{step} puts what belongs to position {position} of a block into {chunk[0]}"
                f"[{chunk[1]}], position {home[1] % self._per_block}; data must keep its position"
            )
        return home

    def _scratch_place(self, rank: int, key: object, position: int) -> tuple[Buffer, int]:
        self._held[rank][key] = position
        known = self._scratch[rank]
        if (position, key) not in known:
            known[position, key] = self._per_position[rank][position]
            self._per_position[rank][position] += 1
        block = self._scratch_base() + known[position, key]
        return "scratch", block * self._per_block + position

    def _content(self, rank: int, chunk: Chunk, step: Step) -> int:
        """The position within a block of what a chunk holds."""
        home = self._home_of(rank, chunk, step)
        if home is not None:
            return home[1] % self._per_block
        if chunk not in self._held[rank]:
            raise MscclError(f"{step} reads s[{chunk[1]}], which nothing has written")
        return self._held[rank][chunk]

    def _read(self, rank: int, step: Step, end: tuple[str, int]) -> tuple[Operand, list[int]]:
        chunks = step.chunks(end)
        positions = [self._content(rank, chunk, step) for chunk in chunks]
        places = [self._place(rank, c, p, step) for c, p in zip(chunks, positions, strict=True)]
        self._access(rank, step, end, writes=False)
        return _operand(places, step), positions

    def _write(self, rank: int, step: Step, positions: list[int]) -> Operand:
        chunks = step.chunks(step.destination)
        places = [self._place(rank, c, p, step) for c, p in zip(chunks, positions, strict=True)]
        if any(buffer == "input" for buffer, _ in places):
            raise MscclError(f"{step} writes its input, though the algorithm is not in place")
        self._access(rank, step, step.destination, writes=True)
        return _operand(places, step)

    def _access(self, rank: int, step: Step, end: tuple[str, int], *, writes: bool) -> None:
        """Steps that use a chunk, one of them writing it, must have an order in the file."""
        for chunk in step.chunks(end):
            log = self._log[rank][self._home(rank, chunk) or chunk]
            earlier = [*log.readers, *log.writer] if writes else log.writer
            for other in earlier:
                if other is not step and not step.before >> other.position & 1:
                    raise MscclError(
                        f"{step} and {other} both use {chunk[0]}[{chunk[1]}], one of them writes "
                        "it, and neither waits for the other"
                    )
            if writes:
                log.writer, log.readers = [step], []
            else:
                log.readers.append(step)

    def _replayed(self) -> Iterator[tuple[int, Step, _Message | None]]:
        """All ranks' steps in one order in which they can run, with what each receives."""
        waiting = [{step: step.predecessors for step in order} for order in self._orders]
        ready = [deque(s for s in order if s.predecessors == 0) for order in self._orders]
        moved = True
        while moved:
            moved = False
            for rank, candidates in enumerate(ready):
                for _ in range(len(candidates)):
                    step = candidates.popleft()
                    incoming = None
                    if step.type in RECEIVING:
                        queue = self._messages[step.peer_recv, rank, step.channel]
                        if not queue:
                            candidates.append(step)
                            continue
                        incoming = queue.popleft()
                    moved = True
                    yield rank, step, incoming
                    del waiting[rank][step]
                    for later in step.successors:
                        waiting[rank][later] -= 1
                        if waiting[rank][later] == 0:
                            candidates.append(later)
        for candidates in ready:
            if candidates:
                raise MscclError(f"{candidates[0]} receives what no rank sends")
        for queue in self._messages.values():
            if queue:
                raise MscclError(f"{queue[0].step} sends what no rank receives")

    def _convert(self, rank: int, step: Step, incoming: _Message | None) -> None:
        if step.type == "nop":
            return
        channel = self._channels.local(step)
        if step.type == "cpy":
            source, positions = self._read(rank, step, step.source)
            self._add(copy(rank, source, self._write(rank, step, positions), channel=channel))
            return
        if step.type == "re":
            source, positions = self._read(rank, step, step.source)
            target = self._write(rank, step, positions)
            self._add(reduce(rank, [target, source], target, channel=channel))
            return
        result: Operand | None = None
        positions = []
        if incoming is not None:
            positions = incoming.positions
            if len(positions) != step.count:
                raise MscclError(
                    f"{step} receives {step.count} chunks, but {incoming.step} sends "
                    f"{len(positions)}"
                )
            if step.type == "rrs":  # kept nowhere: in scratch of its own
                result = _operand(
                    [
                        self._scratch_place(rank, (step.block, i), p)
                        for i, p in enumerate(positions)
                    ],
                    step,
                )
            else:
                result = self._write(rank, step, positions)
            number = self._channels.of(incoming.step.rank, rank, step.channel)
            if step.type in REDUCING:
                local, _ = self._read(rank, step, step.source)
                op = recv_reduce(
                    rank, incoming.step.rank, incoming.operand, local, result, channel=number
                )
            else:
                op = recv(rank, incoming.step.rank, incoming.operand, result, channel=number)
            self._add(op)
            self._deliver(incoming, result)
        if step.type in SENDING:
            if step.type == "s":
                result, positions = self._read(rank, step, step.source)
            assert result is not None
            message = _Message(step, result, positions, len(self._ops[rank]))
            # Its destination is known when it is received; until then it holds a place.
            self._add(send(rank, step.peer_send, result, result))
            self._messages[rank, step.peer_send, step.channel].append(message)

    def _deliver(self, message: _Message, destination: Operand) -> None:
        """Completes a send, now that its receive is known."""
        step = message.step
        number = self._channels.of(step.rank, step.peer_send, step.channel)
        op = send(step.rank, step.peer_send, message.operand, destination, channel=number)
        self._ops[step.rank][message.index] = op

    def _add(self, op: RankOp) -> None:
        self._ops[op.rank].append(op)

    def _copy_input(self, rank: int) -> None:
        if not self._algo.in_place:
            return
        home = [self._home(rank, ("i", index)) for index in range(self._sizes["i"])]
        places = [place for place in home if place is not None]
        inputs: list[tuple[Buffer, int]] = [("input", i) for i in range(len(places))]
        self._add(copy(rank, _operand(inputs), _operand(places), channel=0))

    def _copy_result(self, rank: int) -> None:
        """Copies results to places where the file's output is not the IR's."""
        if self._algo.in_place and self._algo.collective == "reduce_scatter":
            home = [self._home(rank, ("o", index)) for index in range(self._sizes["o"])]
            outputs: list[tuple[Buffer, int]] = [("output", i) for i in range(len(home))]
            places = [place for place in home if place is not None]
            self._add(copy(rank, _operand(places), _operand(outputs), channel=0))


@dataclass
class _Log:
    """The steps that have used a chunk: its last writer, if any, and its readers since."""

    writer: list[Step] = field(default_factory=list)
    readers: list[Step] = field(default_factory=list)


@dataclass(eq=False)
class _Message:
    step: Step
    operand: Operand  # of the sender
    positions: list[int]
    index: int  # of the send among its rank's ops


class _Channels:
    """Channels of the IR. Each connection of two ranks and a channel of the file has one, which
    neither end uses for another, so that only messages of one connection wait for each other."""

    def __init__(self, orders: list[list[Step]]) -> None:
        used: dict[int, set[int]] = defaultdict(set)
        self._of: dict[tuple[int, int, int], int] = {}
        self._local: dict[tuple[int, int], int] = {}
        connections: set[tuple[int, int, int]] = set()
        for order in orders:
            for types, sends in ((SENDING, True), (RECEIVING, False)):
                users: dict[tuple[int, int], Step] = {}  # by (peer, channel of the file)
                for step in order:
                    if step.type not in types:
                        continue
                    peer = step.peer_send if sends else step.peer_recv
                    other = users.setdefault((peer, step.channel), step)
                    if other.block != step.block:
                        raise MscclError(
                            f"{step} and {other} use one connection, gpu {peer} on channel "
                            f"{step.channel}, from two thread blocks"
                        )
                    if sends:
                        connections.add((step.rank, peer, step.channel))
        for a, b, channel in sorted(connections):
            number = next(n for n in range(MAX_CHANNELS + 1) if n not in used[a] | used[b])
            self._of[a, b, channel] = number
            used[a].add(number)
            used[b].add(number)
        for rank, order in enumerate(orders):
            number = max(used[rank], default=0)
            for block in sorted({step.block for step in order if step.type in ("cpy", "re")}):
                number += 1
                self._local[rank, block] = number
            if number >= MAX_CHANNELS:
                raise MscclError(f"gpu {rank} has more than {MAX_CHANNELS} connections")

    def of(self, a: int, b: int, channel: int) -> int:
        return self._of[a, b, channel]

    def local(self, step: Step) -> int:
        return self._local.get((step.rank, step.block), 0)


def _operand(places: list[tuple[Buffer, int]], step: Step | None = None) -> Operand:
    """Chunks of one buffer, neighbours joined."""
    if len({buffer for buffer, _ in places}) != 1:
        raise MscclError(f"{step} uses chunks of several buffers at once")
    intervals: list[tuple[int, int]] = []
    for _, chunk in places:
        if intervals and sum(intervals[-1]) == chunk:
            intervals[-1] = (intervals[-1][0], intervals[-1][1] + 1)
        else:
            intervals.append((chunk, 1))
    return Operand(places[0][0], tuple(intervals))
