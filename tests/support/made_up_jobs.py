"""Snapshots of jobs that do not exist."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jaxcoll._job.snapshot import Call, Ended, Peer, Snapshot, Thread

COUNT = 4
HOSTS = ("a", "a", "b", "b")
STEP = "train.py:57 (step)"


def waits(
    processes: Sequence[int] = range(COUNT),
    waits_for: Sequence[int] = (),
    *,
    key: str = "k1",
    number: int = 7,
    communicator: str = "c1",
    since_s: float = 14.0,
    moved_s: float | None = None,
    shapes: str = "[8]",
    op: str = "sum",
    program: str = "p1",
    line: str = STEP,
) -> Call:
    """A call that waits for the ranks `waits_for` of a communicator."""
    return Call(
        communicator,
        key,
        number,
        f"all_reduce({op}) of float32{shapes} over axis 'x' ({len(processes)} ranks)",
        tuple(processes),
        tuple(waits_for),
        since_s,
        moved_s,
        {"collectives": "all_reduce", "reduce ops": op, "dtypes": "float32", "shapes": shapes},
        program,
        line,
        bytes=32,
    )


def main_thread(place: str = "train.py:80 (main)", doing: str = "wait") -> Thread:
    return Thread("MainThread", True, place, doing)


def process(
    index: int,
    *pending: Call,
    thread: Thread | None = None,
    peers: Sequence[Peer] = (),
    next_numbers: dict[str, int] | None = None,
    **more: object,
) -> Snapshot:
    numbers = {"k1": 7} if next_numbers is None else dict(next_numbers)
    numbers |= {call.key: call.number + 1 for call in pending}
    known = {peer.process: peer for peer in peers}
    others = tuple(
        known.get(i, Peer(i, "up", "shm" if HOSTS[i] == HOSTS[index] else "tcp", f"link {i}"))
        for i in range(COUNT)
        if i != index
    )
    made = Snapshot(
        "job-1",
        index,
        COUNT,
        800 + index,
        HOSTS[index],
        "0.1.0",
        pending=pending,
        last=(Ended("all_reduce(sum) of float32[8]", 15.0),),
        next_numbers=numbers,
        peers=others,
        threads=(thread or main_thread(),),
    )
    return dataclasses.replace(made, **more)  # type: ignore[arg-type]


def all_but(*left_out: int, waits_for: Sequence[int] | None = None, **call: object) -> list:
    """The processes that wait for those that are left out."""
    wanted = left_out if waits_for is None else waits_for
    return [
        process(i, waits(waits_for=wanted, **call))  # type: ignore[arg-type]
        for i in range(COUNT)
        if i not in left_out
    ]


def with_peer(snapshots: list[Snapshot], peer: Peer) -> list[Snapshot]:
    return [
        dataclasses.replace(
            s, peers=tuple(peer if p.process == peer.process else p for p in s.peers)
        )
        for s in snapshots
    ]
