"""GOAL text, read and run by a small interpreter of the language."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import pytest

from jaxcoll.interop import goal
from jaxcoll.schedule import COLLECTIVES, ScheduleSpec, algorithms, build

# The lines that LogGOPSim's txt2bin accepts.
OP = re.compile(
    r"(?P<label>[a-z]\w*): (?:(?P<kind>send|recv) (?P<bytes>\d+)b (?:to|from) (?P<peer>\d+) "
    r"tag (?P<tag>\d+)|calc (?P<time>\d+))"
)
ORDER = re.compile(r"(?P<label>[a-z]\w*) (?P<how>i?requires) (?P<other>[a-z]\w*)")


@dataclass
class Rank:
    ops: dict[str, re.Match[str]] = field(default_factory=dict)
    requires: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    irequires: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))


def read(text: str) -> list[Rank]:
    lines = text.splitlines()
    ranks: list[Rank] = []
    head = re.fullmatch(r"num_ranks (\d+)", lines[0])
    assert head
    for line in lines[1:]:
        if re.fullmatch(rf"rank {len(ranks)} {{", line):
            ranks.append(Rank())
        elif match := OP.fullmatch(line):
            assert match["label"] not in ranks[-1].ops
            ranks[-1].ops[match["label"]] = match
        elif match := ORDER.fullmatch(line):
            assert {match["label"], match["other"]} <= set(ranks[-1].ops)
            getattr(ranks[-1], match["how"])[match["label"]].add(match["other"])
        else:
            assert line in ("", "}"), line
    assert len(ranks) == int(head[1])
    return ranks


def run(ranks: list[Rank]) -> Counter[int]:
    """Bytes that each rank sends. Ops complete when they have started and their message is there;
    sends do not wait for the receiver, as in LogGOPSim."""
    started: list[set[str]] = [set() for _ in ranks]
    completed: list[set[str]] = [set() for _ in ranks]
    under_way: Counter[tuple[int, int, str, str]] = Counter()
    sent: Counter[int] = Counter()
    moved = True
    while moved:
        moved = False
        for r, rank in enumerate(ranks):
            for label, op in rank.ops.items():
                if label not in started[r]:
                    if rank.requires[label] - completed[r] or rank.irequires[label] - started[r]:
                        continue
                    started[r].add(label)
                    moved = True
                    if op["kind"] == "send":
                        under_way[r, int(op["peer"]), op["tag"], op["bytes"]] += 1
                        sent[r] += int(op["bytes"])
                if label in completed[r]:
                    continue
                message = (int(op["peer"] or 0), r, op["tag"], op["bytes"])
                if op["kind"] == "recv":
                    if not under_way[message]:
                        continue
                    under_way[message] -= 1
                completed[r].add(label)
                moved = True
    for r, rank in enumerate(ranks):
        assert completed[r] == set(rank.ops), f"rank {r} hangs"
    assert not +under_way
    return sent


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(
    ("collective", "algorithm"), [(c, a) for c in COLLECTIVES for a in algorithms(c)]
)
def test_every_algorithm_runs_and_sends_what_its_cost_says(
    collective: str, algorithm: str, world_size: int
) -> None:
    permutation = tuple((r, (r + 1) % world_size) for r in range(world_size))
    schedule = build(
        ScheduleSpec(
            collective,
            world_size,
            algorithm,
            permutation=permutation if collective == "permute" else (),
        )
    )
    layout = schedule.programs[0]
    n = 24 * layout.chunks_per_block * max(layout.input_blocks, layout.output_blocks)
    sent = run(read(goal.export(schedule, n)))
    for rank, share in enumerate(schedule.cost().sent):
        assert sent[rank] == share * n


def test_sizes_that_no_chunk_count_divides_add_up() -> None:
    schedule = build(ScheduleSpec("all_reduce", 3, "ring"))
    for n in (0, 1, 2, 100):
        text = goal.export(schedule, n)
        assert sum(run(read(text)).values()) == 2 * 2 * n  # each chunk makes two rounds of 2 hops


def test_reductions_take_the_time_they_are_said_to() -> None:
    text = goal.export(build(ScheduleSpec("all_reduce", 3)), 1000, reduce_ns_per_byte=0.5)
    assert re.findall(r"calc (\d+)", text) == ["1000"] * 3  # two pairs of 1000 bytes on each rank


def test_nothing_of_the_order_is_lost() -> None:
    schedule = build(ScheduleSpec("all_reduce", 4, "double_tree"))
    for op_list, rank in zip(schedule.programs, read(goal.export(schedule, 640)), strict=True):
        waits = sum(len(op.depends_on) for op in op_list.ops)
        reduces = sum(op.kind == "recv_reduce" for op in op_list.ops)
        assert sum(map(len, rank.requires.values())) == waits + reduces
        channels = len({op.channel for op in op_list.ops})
        ordered = sum(map(len, rank.irequires.values()))
        implied = sum(
            any(
                op_list.ops[d].channel == op.channel
                and not any(o.channel == op.channel for o in op_list.ops[d + 1 : i])
                for d in op.depends_on
                if d < i
            )
            for i, op in enumerate(op_list.ops)
        )
        assert ordered + implied == len(op_list.ops) - channels


def test_negative_numbers_are_refused() -> None:
    schedule = build(ScheduleSpec("all_reduce", 2))
    for n, time in ((-1, 0.0), (1, -0.5)):
        with pytest.raises(ValueError, match="must not be negative"):
            goal.export(schedule, n, reduce_ns_per_byte=time)
