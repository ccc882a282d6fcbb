"""MSCCL++ execution plans, run by a small interpreter of them, in random orders."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import pytest

from jaxcoll.interop import mscclpp
from jaxcoll.schedule import (
    COLLECTIVES,
    INPUT,
    OUTPUT,
    Schedule,
    ScheduleSpec,
    algorithms,
    build,
    recv,
    send,
)

Plan = dict[str, Any]
CASES = [(c, a) for c in COLLECTIVES if c != "permute" for a in algorithms(c)]
ROOT = 1


def run(plan: Plan, seed: int) -> list[list[Counter[Any]]]:
    """Each rank's output chunks, as sums of (rank, input chunk)."""
    rng = random.Random(seed)
    gpus = plan["gpus"]
    memory = [
        {
            "i": [Counter({(r, i): 1}) for i in range(gpu["input_chunks"])],
            "o": [Counter() for _ in range(gpu["output_chunks"])],
            "s": [Counter() for _ in range(gpu["scratch_chunks"])],
        }
        for r, gpu in enumerate(gpus)
    ]
    peers = [[p for group in gpu["channels"] for p in group["connected_to"]] for gpu in gpus]
    arrived: Counter[tuple[int, int]] = Counter()
    semaphores: Counter[tuple[int, int]] = Counter()
    todo = {(r, t["id"]): 0 for r, gpu in enumerate(gpus) for t in gpu["threadblocks"]}

    def other_end(rank: int, channel: int) -> tuple[int, int]:
        peer = peers[rank][channel]
        which = peers[rank][:channel].count(peer)
        return peer, [i for i, p in enumerate(peers[peer]) if p == rank][which]

    def step(rank: int, block: Plan, op: Plan) -> bool:
        if op["name"] in ("signal", "wait"):
            (here,) = (block["channels"][0]["channel_ids"][c] for c in op["channel_ids"])
            if op["name"] == "signal":
                arrived[other_end(rank, here)] += 1
            elif arrived[rank, here]:
                arrived[rank, here] -= 1
            else:
                return False
        elif op["name"] == "sem_release":
            semaphores[rank, op["semaphore_ids"][0]] += 1
        elif op["name"] == "sem_acquire":
            if not semaphores[rank, op["semaphore_ids"][0]]:
                return False
            semaphores[rank, op["semaphore_ids"][0]] -= 1
        elif op["name"] != "nop":
            move(rank, block, op)
        return True

    def chunks(rank: int, block: Plan, buffer: Plan) -> list[Counter[Any]]:
        kind = buffer.get("type")
        if "buffer_id" in buffer:
            number = block["remote_buffer_refs"][0]["remote_buffer_ids"][buffer["buffer_id"]]
            remote = gpus[rank]["remote_buffers"][number]
            rank, kind = remote["rank"], remote["type"]
        found = memory[rank][kind][buffer["index"] : buffer["index"] + buffer["size"]]
        assert len(found) == buffer["size"]
        return found

    def move(rank: int, block: Plan, op: Plan) -> None:
        sources = [chunks(rank, block, buffer) for buffer in op["src_buff"]]
        (target,) = op["dst_buff"]
        assert "buffer_id" not in target
        assert target["type"] != "i"
        if op["name"] in ("copy", "get"):
            assert len(sources) == 1
        else:
            assert op["name"] in ("re", "rre")
            assert "buffer_id" not in op["src_buff"][0]  # the executor wants a local one first
        for k in range(target["size"]):
            values = [source[k] for source in sources]
            assert all(values), f"rank {rank} reads a chunk that nothing has written"
            memory[rank][target["type"]][target["index"] + k] = sum(values, Counter())

    while any(
        todo[r, t["id"]] < len(t["ops"]) for r, g in enumerate(gpus) for t in g["threadblocks"]
    ):
        moved = False
        for rank, number in rng.sample(list(todo), len(todo)):
            block = gpus[rank]["threadblocks"][number]
            for _ in range(rng.randint(1, 6)):
                position = todo[rank, number]
                if position == len(block["ops"]) or not step(rank, block, block["ops"][position]):
                    break
                todo[rank, number] += 1
                moved = True
        assert moved, "the plan hangs"
    assert not +arrived, "signals that nobody waited for would spoil the next run"
    assert not +semaphores
    return [m["o"] for m in memory]


def expected(schedule: Schedule, rank: int, chunk: int) -> Counter[Any]:
    per_block = schedule.programs[0].chunks_per_block
    block, position = divmod(chunk, per_block)
    ranks = range(schedule.world_size)
    return {
        "all_reduce": Counter({(q, position): 1 for q in ranks}),
        "reduce": Counter({(q, position): 1 for q in ranks}),
        "broadcast": Counter({(ROOT % len(ranks), position): 1}),
        "reduce_scatter": Counter({(q, rank * per_block + position): 1 for q in ranks}),
        "all_gather": Counter({(block, position): 1}),
        "all_to_all": Counter({(block, rank * per_block + position): 1}),
    }[schedule.collective]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize(("collective", "algorithm"), CASES)
def test_plans_compute_the_collective_in_any_order(
    collective: str, algorithm: str, world_size: int
) -> None:
    root = ROOT % world_size if collective in ("broadcast", "reduce") else 0
    schedule = build(ScheduleSpec(collective, world_size, algorithm, root=root))
    plan = json.loads(mscclpp.export(schedule))
    for seed in range(3):
        outputs = run(plan, seed)
        for rank, chunks in enumerate(outputs):
            if collective == "reduce" and rank != root:
                continue
            for chunk, value in enumerate(chunks):
                assert value == expected(schedule, rank, chunk), (seed, rank, chunk)


def test_plans_have_the_fields_that_the_executor_reads() -> None:
    plan = json.loads(mscclpp.export(build(ScheduleSpec("all_reduce", 4, "ring")), name="mine"))
    assert plan["name"] == "mine"
    assert (plan["collective"], plan["protocol"], plan["inplace"]) == ("allreduce", "Simple", False)
    for rank, gpu in enumerate(plan["gpus"]):
        assert gpu["id"] == rank
        assert (gpu["input_chunks"], gpu["output_chunks"], gpu["scratch_chunks"]) == (4, 4, 0)
        (block,) = gpu["threadblocks"]
        assert block["channels"][0]["channel_type"] == "memory"
        names = {op["name"] for op in block["ops"]}
        assert names == {"signal", "wait", "nop", "rre", "get"}
        assert {op["reduce_op"] for op in block["ops"] if op["name"] == "rre"} == {"sum"}


def test_features_that_the_executor_lacks_are_refused() -> None:
    with pytest.raises(ValueError, match="MSCCL\\+\\+ has no permute"):
        mscclpp.export(build(ScheduleSpec("permute", 2, permutation=((0, 1),))))
    with pytest.raises(ValueError, match="reduce_op 'prod': MSCCL\\+\\+ has sum, min"):
        mscclpp.export(build(ScheduleSpec("all_reduce", 2)), reduce_op="prod")
    with pytest.raises(ValueError, match="of 17 operands; MSCCL\\+\\+'s executor takes 16"):
        mscclpp.export(build(ScheduleSpec("all_reduce", 17)))


def test_a_schedule_that_would_hang_as_thread_blocks_is_refused() -> None:
    """Both receive before they send: ops of a channel start in order, thread blocks wait."""
    ops = []
    for rank, peer in ((0, 1), (1, 0)):
        ops.append(recv(rank, peer, INPUT[0], OUTPUT[peer]))
        ops.append(send(rank, peer, INPUT[0], OUTPUT[rank]))
    schedule = Schedule.from_ops("all_gather", 2, ops)
    with pytest.raises(ValueError, match="would hang: thread block 0 of rank 0 waits forever"):
        mscclpp.export(schedule)
