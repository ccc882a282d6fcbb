"""The verdict of `jaxcoll inspect` on situations that are made up, each with its culprit."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from support.made_up_jobs import COUNT, STEP, all_but, main_thread, process, waits, with_peer

from jaxcoll._job.snapshot import (
    Absent,
    Failed,
    HalfMade,
    Peer,
    Snapshot,
    parse,
)
from jaxcoll._job.verdict import judge


@dataclass
class Case:
    snapshots: list[Snapshot]
    kind: str
    culprits: tuple[int, ...]
    words: tuple[str, ...] = ()  # patterns in the sentence
    absent: tuple[Absent, ...] = ()
    remarks: tuple[str, ...] = ()


def late() -> Case:
    return Case(
        [*all_but(2), process(2, thread=main_thread("data.py:31 (load)", ""))],
        "late",
        (2,),
        (
            r"rank 2 \(process 2 on b, pid 802\) has not called all_reduce\(sum\).* at train.py:57",
            "three processes have waited 14 s; it is in Python at data.py:31",
        ),
    )


def late_for_one_that_has_just_come() -> Case:
    young = [process(i, waits(waits_for=[2], since_s=0.3)) for i in (0, 1)]
    other = process(3, waits(waits_for=[2], since_s=1.5))
    return Case([*young, other, process(2)], "late", (2,), ("three processes have waited 1.5 s",))


def busy_elsewhere() -> Case:
    """It makes one call after the other with nobody else who waits."""
    young = waits([2, 3], [1], key="k9", communicator="c9", since_s=0.01, line="eval.py:5 (run)")
    there = waits([2, 3], [0], key="k9", communicator="c9", since_s=0.01, line="eval.py:5 (run)")
    return Case(
        [process(0, waits([0, 1, 2], [2])), process(1), process(2, young), process(3, there)],
        "late",
        (2,),
        ("rank 2 .*has not called .*; it makes other calls, now .* at eval.py:5",),
    )


def late_in_a_ring() -> Case:
    """Only the next rank waits for the late one; the others wait for that."""
    ring = [process(i, waits(waits_for=[(i - 1) % COUNT])) for i in (0, 1, 3)]
    loading = process(2, thread=main_thread("data.py:31 (load)", ""))
    return Case([*ring, loading], "late", (2,), ("rank 2 .* has not called", "data.py:31"))


def waits_for_another_result() -> Case:
    return Case([*all_but(1), process(1)], "late", (1,), ("it waits for a result at train.py:80",))


def dead() -> Case:
    gone = Absent(2, "dead", 802, "b", "there is no process 802")
    return Case(all_but(2), "dead", (2,), (r"pid 802\) is dead \(there is no",), (gone,))


def dead_as_peers_say() -> Case:
    peer = Peer(2, "down", "", "process 2 (shared memory of pid 802) is lost: it closed the link")
    return Case(with_peer(all_but(2), peer), "dead", (2,), ("rank 2 .* is lost", "pid 802"))


def stopped() -> Case:
    gone = Absent(1, "stopped", 801, "a", "state T")
    return Case(all_but(1), "stopped", (1,), ("rank 1 .* is stopped", "state T"), (gone,))


def silent() -> Case:
    """On another host, so nobody can look at it: its peers say that it does not answer."""
    quiet = Peer(3, "up", "tcp", "tcp to process 3 (pid 803 on b)", silent_s=12.0)
    return Case(
        with_peer(all_but(3), quiet),
        "silent",
        (3,),
        ("rank 3 .process 3 on b, pid 803. has not answered for 12 s",),
    )


def no_interpreter() -> Case:
    gone = Absent(0, "silent", 800, "a", "no answer within 2 s; state R, it runs")
    return Case(all_but(0), "silent", (0,), ("does not answer .no answer within 2 s",), (gone,))


def dead_host() -> Case:
    gone = (Absent(2, "silent", 802, "b"), Absent(3, "dead", 803, "b"))
    return Case(
        [process(i, waits(waits_for=[2, 3])) for i in (0, 1)],
        "host",
        (2, 3),
        ("host b does not answer: 2 and 3 are its processes",),
        gone,
    )


def opposite_order() -> Case:
    """Process 0 is in a call on {0, 1}, process 1 in one on {1, 0}, another communicator."""
    a = waits([0, 1], [1], key="ka", communicator="ca", program="p1")
    b = waits([1, 0], [1], key="kb", communicator="cb", program="p2", line="train.py:60 (step)")
    return Case(
        [process(0, a), process(1, b), process(2), process(3)],
        "deadlock",
        (0, 1),
        ("deadlock of two communicators", "train.py:57", "train.py:60"),
    )


def a_circle_of_three() -> Case:
    pairs = [(0, 1), (1, 2), (2, 0)]
    ring = [process(i, waits([i, j], [1], key=f"k{i}", communicator=f"c{i}")) for i, j in pairs]
    return Case([*ring, process(3)], "deadlock", (0, 1, 2), ("each for the next one: a deadlock",))


def order() -> Case:
    """One program's two calls, in another order on process 3."""
    first = [process(i, waits(waits_for=[3])) for i in range(3)]
    other = waits(waits_for=[0, 1, 2], key="k2", op="max", line="train.py:58 (step)")
    return Case([*first, process(3, other)], "order", (3,), ("another order", "train.py:58"))


def order_of_programs() -> Case:
    """Two programs that both have run before, launched in another order."""
    numbers = {"k1": 7, "k2": 4}
    first = [process(i, waits(waits_for=[3]), next_numbers=numbers) for i in range(3)]
    other = waits(waits_for=[0, 1, 2], key="k2", number=4, shapes="[9]", program="p2")
    last = process(3, other, next_numbers=numbers)
    return Case([*first, last], "order", (3,), ("another order",))


def mismatch(**differs: str) -> Callable[[], Case]:
    def case() -> Case:
        first = [process(i, waits(waits_for=[3])) for i in range(3)]
        other = waits(waits_for=[0, 1, 2], key="k2", program="p2", **differs)  # type: ignore
        last = process(3, other, next_numbers={})
        name = {"shapes": "shapes", "op": "reduce ops"}[next(iter(differs))]
        return Case([*first, last], "mismatch", (3,), (f"{name} differ",))

    return case


def other_dtype() -> Case:
    case = mismatch(shapes="[8]")()
    call = case.snapshots[3].pending[0]
    call = dataclasses.replace(call, parts={**call.parts, "dtypes": "int32"})
    case.snapshots[3] = process(3, call, next_numbers={})
    return dataclasses.replace(case, words=("dtypes differ",))


def other_program() -> Case:
    first = [process(i, waits(waits_for=[3])) for i in range(3)]
    other = waits(waits_for=[0, 1, 2], key="k2", program="p2")
    return Case(
        [*first, process(3, other, next_numbers={})], "program", (3,), ("different programs",)
    )


def slow_link() -> Case:
    """All are in the call, its messages still come, and one link has a queue."""
    snapshots = [
        process(i, waits(waits_for=[(i - 1) % COUNT], since_s=40.0, moved_s=0.2))
        for i in range(COUNT)
    ]
    queue = Peer(2, "up", "tcp", "tcp to b", queued=16)
    snapshots[1] = with_peer([snapshots[1]], queue)[0]
    return Case(snapshots, "slow", (1, 2), (r"from process 1 \(on a.* to process 2 .* over tcp",))


def cut_link() -> Case:
    """Nothing comes any more, though all are in the call."""
    snapshots = [
        process(i, waits(waits_for=[(i - 1) % COUNT], since_s=40.0, moved_s=39.0))
        for i in range(COUNT)
    ]
    queue = Peer(3, "up", "tcp", "tcp to b", queued=16)
    snapshots[0] = with_peer([snapshots[0]], queue)[0]
    return Case(snapshots, "slow", (0, 3), ("carries nothing", "last message came 39 s ago"))


def compiling() -> Case:
    thread = main_thread("train.py:12 (build)", "compile")
    return Case([*all_but(0), process(0, thread=thread)], "compile", (0,), ("compiles .*:12",))


def exception() -> Case:
    dead_one = process(1, exception="ValueError: bad batch at data.py:9 (read)")
    return Case(
        [*all_but(1), dead_one], "exception", (1,), ("rank 1 .* has raised ValueError: bad batch",)
    )


def left() -> Case:
    peer = Peer(3, "left", "", "process 3 (tcp to b) has ended, or has shut down jaxcoll")
    return Case(with_peer(all_but(3), peer), "left", (3,), ("rank 3 .* has ended, and will not",))


def never_started() -> Case:
    return Case(
        with_peer(all_but(3), Peer(3, "new")), "never started", (3,), ("3 .* has not started",)
    )


def two_stalls() -> Case:
    first = process(0, waits([0, 1], [1], key="ka", communicator="ca"))
    second = process(2, waits([2, 3], [1], key="kb", communicator="cb"))
    one = process(1, thread=main_thread("data.py:31 (load)", ""))
    other = process(3, thread=main_thread("train.py:12 (build)", "compile"))
    return Case(
        [first, one, second, other],
        "late",
        (1, 3),
        ("two causes: .1. rank 1 .*data.py:31.*; .2. rank 1 .process 3 .*compiles",),
    )


def idle() -> Case:
    return Case([process(i) for i in range(COUNT)], "idle", (), ("no process waits", "15 s ago"))


def moving() -> Case:
    young = [process(i, waits(waits_for=[0], since_s=0.2)) for i in range(1, COUNT)]
    return Case([process(0), *young], "moving", (), ("the job goes on",))


def poisoned() -> Case:
    cause = "rank 2 is lost: process 2 (tcp to b) is lost: Connection reset by peer"
    failed = Failed("c1", cause, 300.0)
    snapshots = [process(i, failed=(failed,)) for i in range(COUNT)]
    return Case(snapshots, "failed", (0,), ("a communicator has failed.*Connection reset",))


def dumps_of_a_timeout() -> Case:
    """The calls are over, and the late process is where it was."""
    cause = "all_reduce: waited 300 s; missing: rank 2"
    snapshots = [
        process(i, failed=(Failed("c1", cause, 0.1, (waits(waits_for=[2], since_s=300.0),)),))
        for i in (0, 1, 3)
    ]
    other = process(
        2, thread=main_thread("data.py:31 (load)", ""), failed=(Failed("c1", cause, 0),)
    )
    return Case([*snapshots, other], "late", (2,), ("have waited 300 s; it is in Python at data.",))


def one_missing() -> Case:
    """The late process has no snapshot, but its peers have heard of it."""
    told = Peer(
        2, "up", "tcp", "tcp to b", told="is in no collective; it is in Python at data.py:31"
    )
    return Case(
        with_peer(all_but(2), told),
        "late",
        (2,),
        ("rank 2 .* has not called .*: it is in no collective; it is in Python at data.py:31",),
    )


def a_bystander_missing() -> Case:
    case = late()
    del case.snapshots[0]
    return dataclasses.replace(
        case,
        words=("rank 2 .*two processes have waited.*data.py:31",),
        remarks=("there is no snapshot of process 0",),
    )


def another_job() -> Case:
    case = late()
    case.snapshots.append(process(1, waits(waits_for=[0]), job="job-2", pid=99))
    return dataclasses.replace(case, remarks=(r"pid 99 on a\): of another job, job-2",))


def another_version() -> Case:
    case = late()
    case.snapshots[0] = dataclasses.replace(case.snapshots[0], version="0.2.0")
    return dataclasses.replace(case, remarks=("process 0 runs jaxcoll 0.2.0, others 0.1.0",))


def a_device_of_a_process() -> Case:
    half = HalfMade("all_reduce(sum) of float32[8]", 14.0, ("rank 0 (device 0)",), ("rank 1",))
    other = process(0, half_made=(half,), thread=main_thread("data.py:31 (load)", ""))
    return Case(
        [other, *all_but(0)], "late", (0,), ("rank 1 of process 0 .* has not called .*data.py:31",)
    )


def finished_and_stuck() -> Case:
    """A broadcast's root is done with the call and computes; the messages did not come."""
    snapshots = [process(i, waits(waits_for=[0], moved_s=14.0)) for i in range(1, COUNT)]
    root = process(0, next_numbers={"k1": 8}, thread=main_thread("data.py:31 (load)", ""))
    queue = Peer(3, "up", "tcp", "tcp to b", queued=2)
    return Case([*with_peer([root], queue), *snapshots], "slow", (0, 3), ("two messages wait",))


CASES = [
    *(
        late,
        late_for_one_that_has_just_come,
        busy_elsewhere,
        late_in_a_ring,
        waits_for_another_result,
        dead,
        dead_as_peers_say,
        stopped,
        silent,
    ),
    *(no_interpreter, dead_host, opposite_order, a_circle_of_three, order, order_of_programs),
    *(mismatch(shapes="[9]"), mismatch(op="max"), other_dtype, other_program, slow_link, cut_link),
    *(compiling, exception, left, never_started, two_stalls, idle, moving, poisoned),
    *(dumps_of_a_timeout, one_missing, a_bystander_missing, another_job, another_version),
    *(a_device_of_a_process, finished_and_stuck),
]


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_the_verdict_names_the_culprit(make: Callable[[], Case]) -> None:
    case = make()
    verdict = judge(case.snapshots, case.absent)
    assert (verdict.kind, verdict.culprits) == (case.kind, case.culprits), verdict.sentence
    for words in case.words:
        assert re.search(words, verdict.sentence), verdict.sentence
    for words in case.remarks:
        assert any(re.search(words, remark) for remark in verdict.remarks), verdict.remarks
    if not case.remarks and len(case.snapshots) == COUNT:
        assert not [r for r in verdict.remarks if "no snapshot" in r]
    assert [row.process for row in verdict.rows] == list(range(COUNT))


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_the_order_of_snapshots_changes_nothing(make: Callable[[], Case]) -> None:
    case = make()
    there, back = (judge(s, case.absent) for s in (case.snapshots, case.snapshots[::-1]))
    assert (there.kind, set(there.culprits)) == (back.kind, set(back.culprits))


def test_the_table_says_who_waits_for_whom() -> None:
    case = late()
    first, _, at_fault, _ = judge(case.snapshots).rows
    assert (first.state, first.waits_for, first.transport) == ("waits", (2,), "tcp")
    assert (first.call, first.for_s, first.bytes) == (
        f"all_reduce(sum) of float32[8] at {STEP}",
        14.0,
        32,
    )
    assert (at_fault.state, at_fault.place, at_fault.host) == ("late", "data.py:31 (load)", "b")


def test_no_snapshot_is_no_verdict() -> None:
    verdict = judge([])
    assert (verdict.kind, verdict.sentence) == ("unknown", "no process has answered")


class Counted(tuple[Any, ...]):
    """Counts how often its items are looked at."""

    looks = 0

    def __iter__(self) -> Iterator[Any]:
        for item in super().__iter__():
            Counted.looks += 1
            yield item

    def __getitem__(self, at: Any) -> Any:
        Counted.looks += 1
        return super().__getitem__(at)

    def __contains__(self, wanted: object) -> bool:
        return any(item == wanted for item in self)


def looks_at(count: int, kind: str) -> float:
    """How often the verdict on `count` processes looks at an item of their lists, per item."""
    everybody = Counted(range(count))
    snapshots, items = [], 0
    for i in range(count):
        waited = {
            "late": [0],
            "ring": [(i - 1) % count],
            "order": [j for j in range(count) if j % 2 != i % 2],
            "slow": [j for j in range(count) if j != i],
            "left": [0],
        }[kind]
        key = f"k{i % 2}" if kind == "order" else "k1"
        call = dataclasses.replace(
            waits(everybody, key=key), waits_for=Counted(waited), processes=everybody
        )
        state = "left" if kind == "left" else "up"
        peers = Counted(
            Peer(j, state, "tcp", f"tcp to process {j} (pid {j} on h{j})", queued=1)
            for j in range(count)
            if j != i
        )
        pending = () if kind in ("late", "left") and i == 0 else (call,)
        snapshots.append(
            Snapshot(
                *("job-1", i, count, 800 + i, f"h{i}"),
                pending=pending,
                peers=peers,
                threads=(main_thread(),),
                next_numbers={"k1": 7 + bool(pending)},
            )
        )
        items += len(peers) + len(call.waits_for) + len(everybody)
    Counted.looks = 0
    verdict = judge(snapshots if kind != "left" else snapshots[1:])
    assert verdict.kind == {"ring": "slow"}.get(kind, kind)
    return Counted.looks / items


@pytest.mark.parametrize("kind", ["late", "ring", "order", "slow", "left"])
def test_the_work_for_a_verdict_grows_as_the_snapshots_do(kind: str) -> None:
    """Each list is gone through a few times, however many processes there are."""
    few, many = looks_at(16, kind), looks_at(128, kind)
    assert many < 1.5 * few < 15


def test_two_groups_of_processes_in_different_calls_are_one_cause() -> None:
    first = [process(i, waits(waits_for=[2, 3])) for i in (0, 1)]
    other = waits(waits_for=[0, 1], key="k2", op="max")
    verdict = judge([*first, process(2, other), process(3, other)])
    assert (verdict.kind, len(verdict.findings)) == ("order", 1)
    assert verdict.findings[0].waiters == {0, 1, 2, 3}


def test_a_snapshot_survives_json() -> None:
    for make in CASES:
        for snapshot in make().snapshots:
            assert parse(snapshot.to_json()) == snapshot


def test_the_newest_job_of_a_folder_is_judged() -> None:
    old = [dataclasses.replace(s, job="job-0") for s in all_but(1)]
    case = late()
    new = [dataclasses.replace(s, taken_at=9.0) for s in case.snapshots[:3]]
    verdict = judge([*new, *old])
    assert (verdict.kind, verdict.culprits) == ("late", (2,))
    assert any("of another job, job-0" in remark for remark in verdict.remarks)
