"""Why a job does not go on: from the snapshots of its processes to one sentence.

Processes and the calls in which they wait for each other form a graph. A process that is waited for
and waits for nobody is at fault: it is dead, stopped, late, or elsewhere. Where all of them wait,
two wait for each other in different calls, or a link carries nothing. `judge` is a pure function.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from jaxcoll._job.facts import SHOWN, STALL_S, Facts, count, listed, others, seconds
from jaxcoll._job.snapshot import Absent, Call, Snapshot

_SLOW_S = 5.0  # a call whose messages still come is slow after this


@dataclass
class Finding:
    """One cause, and who waits for it.

    Attributes:
      kind: "late", "compile", "exception", "dead", "host", "stopped", "silent", "left",
        "never started", "deadlock", "order", "mismatch", "program", "slow" or "failed".
      culprits: processes at fault.
      text: a sentence without its full stop.
    """

    kind: str
    culprits: tuple[int, ...]
    text: str
    waiters: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Row:
    """A process in the table."""

    process: int
    host: str
    pid: int
    state: str
    call: str = ""
    for_s: float | None = None
    waits_for: tuple[int, ...] = ()
    bytes: int = 0
    transport: str = ""
    last: str = ""
    place: str = ""


@dataclass(frozen=True)
class Verdict:
    """The state of a job: the causes of its stalls, and a table.

    Attributes:
      kind: of the first finding; "idle" or "moving" where nothing is wrong.
      sentence: the culprit and why.
      remarks: what else is to be known, such as processes that have not answered.
    """

    kind: str
    sentence: str
    culprits: tuple[int, ...]
    findings: tuple[Finding, ...]
    remarks: tuple[str, ...]
    rows: tuple[Row, ...]


def judge(snapshots: Sequence[Snapshot], absent: Iterable[Absent] = ()) -> Verdict:
    """Says what the processes of a job wait for, and names the one at fault.

    Args:
      snapshots: of the processes that have answered. Those of another job than the newest are left
        out, and a remark says so.
      absent: the processes that are known not to answer.
    """
    return _Search(snapshots, absent).verdict()


class _Search(Facts):
    """Follows who waits for whom, and keeps a finding for each cause."""

    def __init__(self, snapshots: Sequence[Snapshot], absent: Iterable[Absent]) -> None:
        super().__init__(snapshots, absent)
        self.findings: dict[tuple[str, tuple[int, ...]], Finding] = {}
        self.differences: dict[frozenset[tuple[str, str]], Finding] = {}  # by the calls' kinds

    # --- faults ---------------------------------------------------------------------------------

    def add(self, finding: Finding, waiter: int | None = None) -> Finding:
        found = self.findings.setdefault((finding.kind, finding.culprits), finding)
        if waiter is not None:
            found.waiters.add(waiter)
        return found

    def gone(self, process: int, call: Call) -> Finding | None:
        """A process that cannot make the call any more, whatever its snapshot says."""
        who = self.name(process, call)
        snapshot = self.snapshots.get(process)
        # After a failure the exception is the failure's.
        if snapshot is not None and snapshot.exception and not snapshot.failed:
            text = f"{who} has raised {snapshot.exception}"
            return Finding("exception", (process,), text + self.uncalled(call))
        if snapshot is not None and (snapshot.left or process in self.left):
            text = f"{who} {snapshot.left or 'has ended'}, and will not call {call.name}"
            return Finding("left", (process,), text)
        if snapshot is not None:
            return None
        lost = self.absent.get(process)
        if lost is not None:
            states = {
                "dead": "is dead",
                "stopped": "is stopped",
                "silent": "does not answer",
            }
            words = f" ({lost.words})" if lost.words else ""
            text = f"{who} {states.get(lost.state, lost.state)}{words}"
            return Finding(lost.state, (process,), text + self.uncalled(call))
        return None

    def heard(self, process: int, call: Call, by: int) -> Finding | None:
        """The fault of a process without a snapshot, from what the waiting process knows."""
        who = self.name(process, call)
        peer = self.peers[by].get(process)
        if peer is None or peer.state == "new":
            text = f"{who} has not started, or has not run a collective yet"
            return Finding("never started", (process,), text + self.uncalled(call))
        if peer.state == "left":
            text = f"{who} has ended, and will not call {call.name}: {peer.description}"
            return Finding("left", (process,), text)
        if peer.state == "down":
            text = f"{who} is lost: {peer.description}"
            return Finding("dead", (process,), text + self.uncalled(call))
        if peer.silent_s >= STALL_S:
            text = (
                f"{who} has not answered for {seconds(peer.silent_s)} ({peer.description}): it is "
                "stopped, or cut off"
            )
            return Finding("silent", (process,), text + self.uncalled(call))
        if peer.told.startswith("waits in "):
            return None  # what it waits for is another matter
        words = f": it {peer.told}" if peer.told else ", and has given no snapshot"
        text = f"{who} ({peer.description}) has not called {call.name}{words}"
        return Finding("late", (process,), text)

    def uncalled(self, call: Call) -> str:
        return f"; {self.waiting(call)} for it in {call.name}"

    def late(self, process: int, call: Call, instead: str = "") -> Finding:
        kind, clause = ("late", instead) if instead else self.place(process)
        text = (
            f"{self.name(process, call)} has not called {call.name}, for which "
            f"{self.waiting(call)}; {clause}"
        )
        return Finding(kind, (process,), text)

    def half_made(self, process: int) -> Finding | None:
        """Devices of one process that others of it wait for."""
        stalled = [c for c in self.snapshots[process].half_made if c.since_s >= STALL_S]
        if not stalled:
            return None
        call = max(stalled, key=lambda c: c.since_s)
        kind, clause = self.place(process)
        there = "have" if len(call.missing) > 1 else "has"
        others = "have" if len(call.arrived) > 1 else "has"
        text = (
            f"{listed(call.missing)} of {self.name(process)} {there} not called {call.name}, "
            f"for which {count(len(call.arrived), 'device')} of it {others} waited "
            f"{seconds(call.since_s)}; {clause}"
        )
        return Finding(kind, (process,), text)

    # --- the graph ------------------------------------------------------------------------------

    def look(self, process: int) -> Iterator[tuple[int, Call]]:
        """The processes that one waits for without their being at fault; reports those that are."""
        for call in self.calls.get(process, ()):
            for other in sorted(others(call) - {process}):
                if self.has_made(other, call):
                    yield other, call
                    continue
                finding = self.gone(other, call)
                if finding is None and other not in self.snapshots:
                    finding = self.heard(other, call, process)
                if finding is None and other in self.snapshots:
                    finding = self.fault(process, call, other)
                if finding is not None:
                    self.add(finding, process)
                else:
                    yield other, call

    def fault(self, process: int, call: Call, other: int) -> Finding | None:
        """The fault of a process that has answered; None: it waits for others."""
        theirs = self.waited_for[other]  # by each of its calls
        half = self.half_made(other)
        if half is not None:
            return half
        if not theirs:
            return self.late(other, call)
        for their, wanted in theirs:
            if process in wanted:
                return self.difference(process, call, other, their)
        if not self.calls[other]:  # it goes on elsewhere
            return self.late(other, call, f"it makes other calls, now {theirs[0][0].name}")
        return None

    def difference(self, process: int, call: Call, other: int, their: Call) -> Finding:
        """Two processes that wait for each other in different calls.

        Others that are in the same two calls wait for the same reason.
        """
        if other < process:
            process, call, other, their = other, their, process, call
        kinds = frozenset({(call.communicator, call.key), (their.communicator, their.key)})
        if kinds not in self.differences:
            self.differences[kinds] = self.new_difference(process, call, other, their)
        return self.differences[kinds]

    def new_difference(self, process: int, call: Call, other: int, their: Call) -> Finding:
        both = (process, other)
        if call.communicator != their.communicator:
            text = (
                f"{self.name(process, call)} waits in {call.name} for process {other}, and "
                f"{self.name(other, their)} waits in {their.name} for process {process}: a "
                "deadlock of two communicators, whose calls the processes make in opposite order"
            )
            return Finding("deadlock", both, text)
        kind, why = self.why_different(process, call, other, their)
        text = (
            f"{self.name(process, call)} waits in {call.name}, and {self.name(other, their)} in "
            f"{their.name}: {why}"
        )
        return Finding(kind, self.odd_ones(both, call, their), text)

    def why_different(self, a: int, call: Call, b: int, their: Call) -> tuple[str, str]:
        names = [n for n, value in call.parts.items() if their.parts.get(n, value) != value]
        both_know = (
            their.key in self.snapshots[a].next_numbers
            or call.key in self.snapshots[b].next_numbers
        )
        one_program = bool(call.program) and call.program == their.program
        if call.key != their.key and (one_program or both_know):
            return "order", "they make the same calls in another order"
        if names:
            return "mismatch", f"{listed(names)} differ"
        if call.program != their.program:
            return "program", call.mismatch or "they run different programs"
        return "order", "they make the same calls in another order"

    def odd_ones(self, both: tuple[int, int], call: Call, their: Call) -> tuple[int, ...]:
        """Fewer processes are at fault than wait; both sides are where they are equally many."""
        sides = self.sides[call.communicator]
        mine, others = sides[call.key], sides[their.key]
        if len(mine) == len(others):
            return both
        return tuple(sorted(mine if len(mine) < len(others) else others))

    def cycle(self, edges: dict[int, list[tuple[int, Call]]]) -> Finding | None:
        """Three processes or more that wait for each other in a circle, in different calls."""
        ways: dict[int, tuple[int, Call]] = {}  # of each process, the first to another call
        for process, found in edges.items():
            different = ((q, c) for q, c in found if not self.has_made(q, c))
            if (first := next(different, None)) is not None:
                ways[process] = first
        seen: set[int] = set()
        for start in ways:
            way: dict[int, Call] = {}
            at = start
            while at in ways and at not in seen:
                seen.add(at)
                way[at] = ways[at][1]
                at = ways[at][0]
            if at in way:
                processes = list(way)
                ring = processes[processes.index(at) :]
                parts = [f"{self.name(p, way[p])} waits in {way[p].name}" for p in ring]
                text = f"{listed(parts, len(parts))}, each for the next one: a deadlock"
                return Finding("deadlock", tuple(ring), text)
        return None

    def slow(self) -> Finding | None:
        """A link, where all processes are in the call that is not done."""
        waiting = {p: self.calls[p] or self._slow(s.pending) for p, s in self.snapshots.items()}
        waiting = {p: calls for p, calls in waiting.items() if calls}
        if not waiting:
            return None
        call = max((c for calls in waiting.values() for c in calls), key=lambda c: c.since_s)
        ranks = self.ranks(call)
        links = [
            (peer.queued, process, peer)
            for process, snapshot in self.snapshots.items()
            for peer in snapshot.peers
            if peer.queued and peer.process in ranks
        ]
        moved = min((c.waited_s() for c in waiting[max(waiting)]), default=0.0)
        came = f"the last message came {seconds(moved)} ago"
        if call.moved_s is None:
            came = "no message has come"
        if links:
            queued, source, peer = max(links, key=lambda link: link[0])
            text = (
                f"the link from {self.name(source)} to {self.name(peer.process)} over "
                f"{peer.transport or 'an unknown transport'} is slow or carries nothing: "
                f"{count(queued, 'message')} wait on it; all processes are in {call.name}, for "
                f"{seconds(call.since_s)}, and {came}"
            )
            finding = Finding("slow", (source, peer.process), text)
        else:
            text = (
                f"all processes are in {call.name}, for {seconds(call.since_s)}, and {came}: a "
                "link between them is slow or carries nothing"
            )
            finding = Finding("slow", tuple(sorted(waiting)), text)
        finding.waiters |= set(waiting)
        return finding

    @staticmethod
    def _slow(calls: Sequence[Call]) -> tuple[Call, ...]:
        return tuple(call for call in calls if call.since_s >= _SLOW_S)

    # --- the verdict ----------------------------------------------------------------------------

    def search(self) -> None:
        edges = {process: list(self.look(process)) for process in self.calls}
        for process in self.snapshots:
            finding = self.half_made(process)
            if finding is not None:
                self.add(finding, process)
        self.pass_on(edges)
        reached = {w for f in self.findings.values() for w in f.waiters}
        if not self.findings:
            circle = self.cycle({p: e for p, e in edges.items() if p not in reached})
            if circle is not None:
                circle.waiters |= set(circle.culprits)
                self.add(circle)
        if not self.findings and not self.over:
            link = self.slow()
            if link is not None:
                self.add(link)
        for process, snapshot in self.snapshots.items():
            if snapshot.exception and not snapshot.failed and not self.findings:
                text = f"{self.name(process)} has raised {snapshot.exception}"
                self.add(Finding("exception", (process,), text))
        if not self.findings:
            self.failures()

    def pass_on(self, edges: dict[int, list[tuple[int, Call]]]) -> None:
        """A process that waits for one that waits for a culprit waits for the culprit."""
        waiters: defaultdict[int, list[int]] = defaultdict(list)
        for process, found in edges.items():
            for other, _ in found:
                waiters[other].append(process)
        for finding in self.findings.values():
            new = list(finding.waiters)
            while new:
                more = set(waiters[new.pop()]) - finding.waiters
                finding.waiters |= more
                new += more

    def failures(self) -> None:
        for process, snapshot in sorted(self.snapshots.items()):
            for failed in snapshot.failed[:1]:
                text = f"a communicator has failed, first on {self.name(process)}: {failed.cause}"
                self.add(Finding("failed", (process,), text), process)
                return

    def hosts(self, findings: list[Finding]) -> list[Finding]:
        """One finding for a host none of whose processes answers, instead of one for each."""
        alive = {snapshot.host for snapshot in self.snapshots.values()}
        by_host: defaultdict[str, list[int]] = defaultdict(list)
        for lost in self.absent.values():
            if lost.host and lost.host not in alive and lost.state != "stopped":
                by_host[lost.host].append(lost.process)
        for host, processes in by_host.items():
            blamed = [f for f in findings if set(f.culprits) <= set(processes)]
            if len(processes) < 2 or not blamed:
                continue
            text = (
                f"host {host} does not answer: {listed(sorted(processes))} are its processes; "
                + blamed[0].text.partition("; ")[2]
            )
            waiters = {w for f in blamed for w in f.waiters}
            one = Finding("host", tuple(sorted(processes)), text.removesuffix("; "), waiters)
            findings = [one, *(f for f in findings if f not in blamed)]
        return findings

    def verdict(self) -> Verdict:
        self.search()
        findings = sorted(self.findings.values(), key=lambda f: (-len(f.waiters), f.culprits))
        findings = self.hosts(findings)
        self.remark_silence({c for f in findings for c in f.culprits})
        if findings:
            kind = findings[0].kind
            texts = _distinct(findings)
            sentence = texts[0] if len(texts) == 1 else _numbered(texts)
        else:
            kind, sentence = self.well()
        culprits = tuple(dict.fromkeys(c for f in findings for c in f.culprits))
        return Verdict(
            kind, sentence, culprits, tuple(findings), tuple(self.remarks), tuple(self.rows())
        )

    def remark_silence(self, blamed: set[int]) -> None:
        lacking = self.known() - set(self.snapshots) - blamed
        if lacking:
            names = listed(
                f"process {p}" + (f" ({self.absent[p].state})" if p in self.absent else "")
                for p in sorted(lacking)
            )
            self.remarks.append(f"there is no snapshot of {names}")
        if not self.over:
            for process, snapshot in sorted(self.snapshots.items()):
                for failed in snapshot.failed[:1]:
                    self.remarks.append(
                        f"a communicator of process {process} failed {seconds(failed.failed_s)} "
                        f"ago: {failed.cause}"
                    )
                    return

    def well(self) -> tuple[str, str]:
        if not self.snapshots:
            return "unknown", "no process has answered"
        pending = [c for s in self.snapshots.values() for c in s.pending]
        if pending:
            longest = max(pending, key=lambda c: c.waited_s())
            return "moving", (
                f"the job goes on: no call has waited longer than {seconds(longest.waited_s())}"
            )
        ended = [e.ended_s for s in self.snapshots.values() for e in s.last]
        since = f"; the last one ended {seconds(min(ended))} ago" if ended else ""
        return "idle", f"no process waits in a collective{since}"

    def rows(self) -> Iterator[Row]:
        culprits = {c: f.kind for f in reversed(list(self.findings.values())) for c in f.culprits}
        for process in sorted(self.known()):
            host, pid = self.home(process)
            snapshot = self.snapshots.get(process)
            if snapshot is None:
                lost = self.absent.get(process)
                state = lost.state if lost else culprits.get(process, "unknown")
                yield Row(process, host, pid, state, place=lost.words if lost else "")
                continue
            calls = self.calls[process] or snapshot.pending
            state = culprits.get(process, "waits" if calls else "idle")
            place = next((t.place for t in snapshot.threads if t.main), "")
            last = ""
            if snapshot.last:
                ended = snapshot.last[0]
                brief = ended.description.partition(" over ")[0]
                last = f"{brief}, {seconds(ended.ended_s)} ago"
            if not calls:
                yield Row(process, host, pid, state, last=last, place=place)
                continue
            call = max(calls, key=lambda c: c.since_s)
            waits_for = others(call)
            ways = {p.transport for p in snapshot.peers if p.process in waits_for and p.transport}
            yield Row(
                process,
                host,
                pid,
                state,
                call.brief,
                call.since_s,
                tuple(sorted(waits_for)),
                call.bytes,
                ", ".join(sorted(ways)),
                last,
                place,
            )


def _distinct(findings: Sequence[Finding]) -> list[str]:
    return list(dict.fromkeys(finding.text for finding in findings))


def _numbered(texts: Sequence[str]) -> str:
    shown = "; ".join(f"({i}) {text}" for i, text in enumerate(texts[:SHOWN], 1))
    more = f"; and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return f"{count(len(texts), 'cause')}: {shown}{more}"
