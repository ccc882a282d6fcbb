"""Runs schedules on NumPy integers with random timing: evidence independent of the verifier.

Every start, every single chunk that moves, and every completion is an event of its own, and the
next event is drawn at random from those that may happen. Chunks that were never written hold
poison.
"""

from __future__ import annotations

import random
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from jaxcoll.schedule import Op, Schedule

_POISON = 10**12


class Stuck(Exception):
    """No event may happen, yet ops are left: a deadlock."""


def random_inputs(schedule: Schedule, elements: int, seed: int) -> NDArray[np.int64]:
    """Inputs of all ranks: (rank, block, element)."""
    rng = np.random.default_rng(seed)
    shape = (schedule.world_size, schedule.programs[0].input_blocks, elements)
    return rng.integers(-1000, 1000, shape)


def expected(schedule: Schedule, inputs: NDArray[np.int64], rank: int) -> NDArray[np.int64] | None:
    """The contents that `rank` should end with: (block, element); None where it is unspecified."""
    match schedule.collective:
        case "all_reduce":
            return inputs.sum(axis=0)
        case "reduce":
            return inputs.sum(axis=0) if rank == schedule.root else None
        case "broadcast":
            return inputs[schedule.root]
        case "reduce_scatter":
            return inputs[:, rank].sum(axis=0)[None]
        case "all_gather":
            return inputs[:, 0]
        case "all_to_all":
            return inputs[:, rank]
        case "permute":
            source = {d: s for s, d in schedule.permutation}.get(rank)
            return None if source is None else inputs[source]


def run(schedule: Schedule, inputs: NDArray[np.int64], seed: int) -> list[NDArray[np.int64]]:
    """Executes with sum; returns each rank's output, (block, element)."""
    return _Run(schedule, inputs, random.Random(seed)).outputs()


def check(schedule: Schedule, elements: int, seed: int) -> None:
    """Asserts that one run with random timing ends as the collective promises."""
    inputs = random_inputs(schedule, elements, seed)
    outputs = run(schedule, inputs.copy(), seed)
    for rank, output in enumerate(outputs):
        wanted = expected(schedule, inputs, rank)
        if wanted is not None:
            np.testing.assert_array_equal(output, wanted, err_msg=f"rank {rank}, seed {seed}")


class _Run:
    def __init__(self, schedule: Schedule, inputs: NDArray[np.int64], rng: random.Random) -> None:
        self._schedule, self._rng = schedule, rng
        layout = schedule.programs[0]
        elements, pieces = inputs.shape[-1], layout.chunks_per_block
        bounds = [j * elements // pieces for j in range(pieces + 1)]
        self._layout = layout

        def chunked(blocks: NDArray[np.int64]) -> list[NDArray[np.int64]]:
            return [
                block[bounds[j] : bounds[j + 1]].copy() for block in blocks for j in range(pieces)
            ]

        def poison(blocks: int) -> list[NDArray[np.int64]]:
            return chunked(np.full((blocks, elements), _POISON, np.int64))

        self._memory = [
            {
                "input": chunked(inputs[rank]),
                "output": poison(layout.output_blocks),
                "scratch": poison(layout.scratch_blocks),
            }
            for rank in range(schedule.world_size)
        ]

    def outputs(self) -> list[NDArray[np.int64]]:
        op_lists = [op_list.ops for op_list in self._schedule.programs]
        keys = [(rank, i) for rank, ops in enumerate(op_lists) for i in range(len(ops))]
        chains = defaultdict(list)  # ops that start in order
        mates = {}  # message: the ops at its ends so far
        other: dict[tuple[int, int], tuple[int, int]] = {}
        for rank, i in keys:
            op = op_lists[rank][i]
            chains[rank, op.channel].append((rank, i))
            if op.is_transfer:
                ends = (rank, op.peer) if op.kind == "send" else (op.peer, rank)
                message = (*ends, op.channel, op.sequence)
                if message in mates:
                    other[rank, i], other[mates[message]] = mates[message], (rank, i)
                mates[message] = (rank, i)

        waiting = {key: set(op_lists[key[0]][key[1]].depends_on) for key in keys}
        dependents = defaultdict(list)
        for rank, i in keys:
            for dependency in waiting[rank, i]:
                dependents[rank, dependency].append((rank, i))
        next_start = dict.fromkeys(chains, 0)
        started: set[tuple[int, int]] = set()
        left = len(keys)
        events: list[tuple[str, tuple[int, int], int]] = []

        def offer_start(chain: tuple[int, int]) -> None:
            if next_start[chain] < len(chains[chain]):
                key = chains[chain][next_start[chain]]
                if not waiting[key] and key not in started:
                    started.add(key)  # offered; it happens when drawn
                    events.append(("start", key, 0))

        happened: set[tuple[int, int]] = set()
        remaining: dict[tuple[int, int], int] = {}
        for chain in chains:
            offer_start(chain)
        while events:
            pick = self._rng.randrange(len(events))
            events[pick], events[-1] = events[-1], events[pick]
            what, key, chunk = events.pop()
            rank, i = key
            op = op_lists[rank][i]
            if what == "start":
                happened.add(key)
                next_start[rank, op.channel] += 1
                offer_start((rank, op.channel))
                mate = other.get(key, key if not op.is_transfer else None)
                if mate in happened:
                    mover = mate if op.kind == "send" else key  # the end that writes
                    count = len(op_lists[mover[0]][mover[1]].destination)
                    remaining[mover] = count
                    events += [("move", mover, c) for c in range(count)]
            elif what == "move":
                self._move(rank, op, chunk)
                remaining[key] -= 1
                if remaining[key] == 0:
                    events += [("complete", end, 0) for end in {key, other.get(key, key)}]
            else:
                left -= 1
                for dependent in dependents[key]:
                    waiting[dependent].discard(i)
                    offer_start((rank, op_lists[rank][dependent[1]].channel))
        if left:
            raise Stuck(f"{left} ops never complete")
        return [
            np.array(
                [
                    np.concatenate(
                        memory["output"][
                            block * self._layout.chunks_per_block : (block + 1)
                            * self._layout.chunks_per_block
                        ]
                    )
                    for block in range(self._layout.output_blocks)
                ]
            )
            for memory in self._memory
        ]

    def _move(self, rank: int, op: Op, chunk: int) -> None:
        values = []
        for number, source in enumerate(op.sources):
            owner = op.peer if op.is_transfer and number == 0 else rank
            values.append(self._memory[owner][source.buffer][source.indices()[chunk]])
        target = self._memory[rank][op.destination.buffer][op.destination.indices()[chunk]]
        target[...] = np.sum(values, axis=0)
