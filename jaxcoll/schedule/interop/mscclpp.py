"""Schedules as execution plans of MSCCL++, the JSON that its executor runs on GPUs.

The plan translates a schedule as follows:

- each channel of a rank's ops becomes a thread block, which runs its operations one after the
  other;
- data is pulled: a send only signals that its source is ready; the receiver waits for that, reads
  the source (``get``, or ``rre``, which reads and reduces) and signals back;
- a thread block waits for that answer as late as it can: before an op that depends on the send,
  and at its end. So exchanges, where both sides send first, do not block;
- every connection of a pair of ranks and a channel has a memory channel of its own for each
  direction, so that its signals come in the order in which they are waited for;
- dependencies between thread blocks are semaphores, released once for each op that waits.

Since a thread block blocks where a channel of the IR does not, `export` replays the plan and
refuses what would hang. Sizes must be multiples of 16 bytes times the number of chunks, as the
executor demands. Plans have been checked against the format and replayed, not run on GPUs.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from jaxcoll.schedule.ir import Op, Operand, Program
from jaxcoll.schedule.schedule import Schedule

_COLLECTIVES = {
    "all_reduce": "allreduce",
    "all_gather": "allgather",
    "reduce_scatter": "reducescatter",
    "all_to_all": "alltoall",
    "broadcast": "broadcast",
    "reduce": "reduce",
}
_REDUCE_OPS = ("sum", "min")  # those of MSCCL++'s executor
_MAX_OPERANDS = 16  # of one operation of the executor

# (source rank, destination rank, channel): one direction of a pair
_Connection = tuple[int, int, int]
_Json = dict[str, Any]


def export(
    schedule: Schedule,
    *,
    name: str | None = None,
    reduce_op: str = "sum",
    min_message_size: int = 0,
    max_message_size: int = (1 << 64) - 1,
) -> str:
    """A schedule as an execution plan.

    Args:
      schedule: should have been verified.
      name: of the plan; None takes the algorithm's.
      reduce_op: sum or min.
      min_message_size, max_message_size: bytes for which MSCCL++ may pick the plan.

    Returns: the JSON text.

    Raises: ValueError for permute, for another reduce op, for an op with more operands than the
      executor takes, and for a schedule whose channels would block each other.
    """
    if schedule.collective not in _COLLECTIVES:
        choices = ", ".join(_COLLECTIVES)
        raise ValueError(f"MSCCL++ has no {schedule.collective}; there are {choices}")
    if reduce_op not in _REDUCE_OPS:
        raise ValueError(f"reduce_op {reduce_op!r}: MSCCL++ has {', '.join(_REDUCE_OPS)}")
    connections = sorted(
        {
            (op_list.rank, op.peer, op.channel)
            for op_list in schedule.programs
            for op in op_list.ops
            if op.kind == "send"
        }
    )
    gpus = [_Gpu(op_list, connections, reduce_op).json() for op_list in schedule.programs]
    check_progress(gpus)
    plan = {
        "name": name or f"{schedule.algorithm}_{schedule.collective}_{schedule.world_size}",
        "collective": _COLLECTIVES[schedule.collective],
        "protocol": "Simple",
        "inplace": False,
        "reuse_resources": False,
        "gpus": gpus,
        "num_threads_per_block": 1024,
        "use_double_scratch_buffer": False,
        "buffer_alignment": 16,
        "min_message_size": min_message_size,
        "max_message_size": max_message_size,
    }
    return json.dumps(plan, indent=1) + "\n"


@dataclass
class _Block:
    """A thread block under construction."""

    ops: list[_Json] = field(default_factory=list)
    channels: list[int] = field(default_factory=list)  # of the GPU's
    remote_buffers: list[int] = field(default_factory=list)  # of the GPU's
    unanswered: dict[_Connection, list[int]] = field(default_factory=lambda: defaultdict(list))

    def local(self, table: list[int], number: int) -> int:
        """Operations name channels and buffers by their place in the thread block's lists."""
        if number not in table:
            table.append(number)
        return table.index(number)

    def add(self, op: _Json) -> None:
        """Operations of a block synchronise its threads where there is a nop between them."""
        self.ops += [op, {"name": "nop"}]


class _Gpu:
    def __init__(self, op_list: Program, connections: list[_Connection], reduce_op: str) -> None:
        self._op_list = op_list
        self._reduce_op = reduce_op
        # Memory channels of this rank, in the order in which both ends list them.
        self._channels = [c for c in connections if op_list.rank in c[:2]]
        self._remote: dict[tuple[int, str], int] = {}
        self._blocks: dict[int, _Block] = {}
        self._semaphores: dict[tuple[int, int], int] = {}  # (op, the op that waits for it)

    def json(self) -> _Json:
        op_list = self._op_list
        channels = sorted({op.channel for op in op_list.ops})
        self._blocks = {channel: _Block() for channel in channels}
        waiting = self._cross_dependencies()
        for i, op in enumerate(op_list.ops):
            block = self._blocks[op.channel]
            for dependency in op.depends_on:
                if op_list.ops[dependency].channel != op.channel:
                    semaphore = self._semaphores[dependency, i]
                    block.add({"name": "sem_acquire", "semaphore_ids": [semaphore]})
                elif op_list.ops[dependency].kind == "send":
                    self._await_answer(block, dependency)
            for operation in self._operations(block, op):
                block.add(operation)
            if op.kind == "send":
                block.unanswered[self._connection(op)].append(i)
            for later in waiting[i]:
                if op.kind == "send":
                    self._await_answer(block, i)
                block.add({"name": "sem_release", "semaphore_ids": [self._semaphores[i, later]]})
        for block in self._blocks.values():
            for sends in list(block.unanswered.values()):
                while sends:
                    self._await_answer(block, sends[0])
        layout = op_list.chunks_per_block
        return {
            "id": op_list.rank,
            "input_chunks": op_list.input_blocks * layout,
            "output_chunks": op_list.output_blocks * layout,
            "scratch_chunks": op_list.scratch_blocks * layout,
            "threadblocks": [
                {
                    "id": number,
                    "ops": self._blocks[channel].ops,
                    "channels": _listed(
                        "channel_type", "channel_ids", self._blocks[channel].channels
                    ),
                    "remote_buffer_refs": _listed(
                        "access_channel_type",
                        "remote_buffer_ids",
                        self._blocks[channel].remote_buffers,
                    ),
                }
                for number, channel in enumerate(channels)
            ],
            "channels": [
                {
                    "channel_type": "memory",
                    "connected_to": [a + b - op_list.rank for a, b, _ in self._channels],
                }
            ]
            if self._channels
            else [],
            "remote_buffers": [
                {"rank": rank, "type": buffer, "access_channel_types": ["memory"]}
                for rank, buffer in self._remote
            ],
            "semaphores": [{"init_value": 0} for _ in self._semaphores],
        }

    def _cross_dependencies(self) -> dict[int, list[int]]:
        waiting: dict[int, list[int]] = defaultdict(list)
        for i, op in enumerate(self._op_list.ops):
            for dependency in op.depends_on:
                if self._op_list.ops[dependency].channel != op.channel:
                    self._semaphores[dependency, i] = len(self._semaphores)
                    waiting[dependency].append(i)
        return waiting

    def _connection(self, op: Op) -> _Connection:
        ends = (self._op_list.rank, op.peer)
        return (*(ends if op.kind == "send" else ends[::-1]), op.channel)

    def _signalling(self, block: _Block, name: str, connection: _Connection) -> _Json:
        channel = block.local(block.channels, self._channels.index(connection))
        return {"name": name, "channel_ids": [channel], "channel_type": "memory"}

    def _await_answer(self, block: _Block, send: int) -> None:
        """Waits until a send of this block has been read; answers come in the order of sends."""
        connection = self._connection(self._op_list.ops[send])
        while send in block.unanswered[connection]:
            block.unanswered[connection].pop(0)
            block.add(self._signalling(block, "wait", connection))

    def _operations(self, block: _Block, op: Op) -> Iterator[_Json]:
        if not op.is_transfer:
            name = "copy" if op.kind == "copy" else "re"
            yield from self._moves(block, name, op, -1)
            return
        connection = self._connection(op)
        if op.kind == "send":
            yield self._signalling(block, "signal", connection)
            return
        yield self._signalling(block, "wait", connection)
        yield from self._moves(block, "get" if op.kind == "recv" else "rre", op, op.peer)
        yield self._signalling(block, "signal", connection)

    def _moves(self, block: _Block, name: str, op: Op, peer: int) -> Iterator[_Json]:
        """One operation for each run of chunks that is contiguous in all operands."""
        operands = [*op.sources, op.destination]
        if len(op.sources) > _MAX_OPERANDS:
            raise ValueError(
                f"rank {self._op_list.rank}, step {op.step}: {op.kind} of {len(op.sources)} "
                f"operands; MSCCL++'s executor takes {_MAX_OPERANDS}"
            )
        for begins, count in _runs(operands):
            buffers: list[_Json] = [
                {"type": operand.buffer[0], "index": begin, "size": count}
                for operand, begin in zip(operands, begins, strict=True)
            ]
            if peer >= 0:
                key = (peer, op.sources[0].buffer[0])
                number = self._remote.setdefault(key, len(self._remote))
                del buffers[0]["type"]
                buffers[0]["buffer_id"] = block.local(block.remote_buffers, number)
            sources = buffers[:-1]
            operation: _Json = {"name": name, "dst_buff": [buffers[-1]]}
            if peer >= 0:
                operation["channel_type"] = "memory"
            if name == "get":
                # The executor wants to know whose buffer it is by its channel, too.
                operation |= {
                    "channel_ids": self._signalling(block, "", self._connection(op))["channel_ids"]
                }
            if name in ("re", "rre"):
                operation["reduce_op"] = self._reduce_op
                sources = sources[::-1] if name == "rre" else sources  # local operands come first
            operation["src_buff"] = sources
            yield operation


def _listed(kind: str, ids: str, numbers: list[int]) -> list[_Json]:
    return [{kind: "memory", ids: numbers}] if numbers else []


def _runs(operands: list[Operand]) -> Iterator[tuple[list[int], int]]:
    """(first chunk in each operand, number of chunks) for runs contiguous in all of them."""
    lists = [operand.indices() for operand in operands]
    begin = 0
    for i in range(1, len(lists[0]) + 1):
        if i == len(lists[0]) or any(chunks[i] != chunks[i - 1] + 1 for chunks in lists):
            yield [chunks[begin] for chunks in lists], i - begin
            begin = i


def check_progress(gpus: list[_Json]) -> list[tuple[int, int, int]]:
    """Replays a plan's signals and semaphores.

    Args:
      gpus: the plan's list.

    Returns: (GPU, thread block, operation) in one order in which they can run; every other order
      that the executor may take gets as far, since nobody takes away what another waits for.

    Raises: ValueError if thread blocks wait for each other for ever.
    """
    # A memory channel's other end: the k-th channel of a to b belongs to the k-th of b to a.
    ends: dict[tuple[int, int], tuple[int, int]] = {}
    for gpu in gpus:
        seen: Counter[int] = Counter()
        for number, peer in enumerate(_connected(gpu)):
            back = [n for n, p in enumerate(_connected(gpus[peer])) if p == gpu["id"]]
            ends[gpu["id"], number] = (peer, back[seen[peer]])
            seen[peer] += 1
    signals: Counter[tuple[int, int]] = Counter()  # by the channel that they arrive at
    semaphores: Counter[tuple[int, int]] = Counter()
    next_op = {(gpu["id"], tb["id"]): 0 for gpu in gpus for tb in gpu["threadblocks"]}
    order = []
    moved = True
    while moved:
        moved = False
        for rank, number in next_op:
            block = gpus[rank]["threadblocks"][number]
            while next_op[rank, number] < len(block["ops"]):
                op = block["ops"][next_op[rank, number]]
                if op["name"] in ("signal", "wait"):
                    channel = block["channels"][0]["channel_ids"][op["channel_ids"][0]]
                    if op["name"] == "signal":
                        signals[ends[rank, channel]] += 1
                    elif signals[rank, channel] > 0:
                        signals[rank, channel] -= 1
                    else:
                        break
                elif op["name"] in ("sem_acquire", "sem_release"):
                    semaphore = (rank, op["semaphore_ids"][0])
                    if op["name"] == "sem_acquire" and semaphores[semaphore] == 0:
                        break
                    semaphores[semaphore] += 1 if op["name"] == "sem_release" else -1
                order.append((rank, number, next_op[rank, number]))
                next_op[rank, number] += 1
                moved = True
    for (rank, number), position in next_op.items():
        ops = gpus[rank]["threadblocks"][number]["ops"]
        if position < len(ops):
            raise ValueError(
                f"as an MSCCL++ plan the schedule would hang: thread block {number} of rank {rank} "
                f"waits for ever at operation {position}, {ops[position]['name']}; its channels "
                "need more independent channels, or sends before receives"
            )
    return order


def _connected(gpu: _Json) -> list[int]:
    return [peer for group in gpu["channels"] for peer in group["connected_to"]]
