"""Schedules as text for people."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxcoll.schedule.schedule import Schedule


def title(schedule: Schedule) -> str:
    """One line: what the schedule is and how large."""
    layout = schedule.programs[0]
    details = [
        f"{schedule.algorithm} {schedule.collective}",
        f"{schedule.world_size} ranks",
        f"{layout.chunks_per_block} chunks per block",
    ]
    if layout.scratch_blocks:
        details.append(f"{layout.scratch_blocks} blocks of scratch")
    return ", ".join([*details, f"{sum(len(p.ops) for p in schedule.programs)} ops"])


def text(schedule: Schedule) -> str:
    """All ops, step by step; messages once, with both of their ends."""
    lines = [title(schedule)]
    receipts = {
        (op.peer, rank, op.channel, op.sequence): op
        for rank, op in schedule.ops()
        if op.is_transfer and op.kind != "send"
    }
    by_step: dict[int, list[str]] = defaultdict(list)
    for rank, op in schedule.ops():
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
