"""The processes of a job and their calls, as their snapshots tell, and words for them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jaxcoll._job.snapshot import Absent, Call, Peer, Snapshot, Thread

STALL_S = 1.0  # what waits for less is on its way
_JUST_S = 5.0  # a failure of so long ago belongs to what is pending now
SHOWN = 4  # of what there may be many of
_HOME = re.compile(r"\(pid ([0-9]{1,10}) on ([^\s()]+)\)")  # in the description of a link
_COUNTS = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def seconds(value: float) -> str:
    """For people: "0.2 s", "14 s"."""
    return f"{value:.0f} s" if value >= 10 else f"{value:.1f} s"


def count(number: int, noun: str) -> str:
    """ "two processes"."""
    word = _COUNTS[number] if number < len(_COUNTS) else str(number)
    return f"{word} {noun}" + ("" if number == 1 else "es" if noun.endswith("s") else "s")


def listed(items: Iterable[object], most: int = SHOWN) -> str:
    """ "0, 1 and 2"; of many, the first ones."""
    texts = [str(item) for item in items]
    if len(texts) > most:
        texts[most:] = [f"{len(texts) - most} more"]
    return " and ".join(filter(None, [", ".join(texts[:-1]), texts[-1]])) if texts else ""


def _chosen(snapshots: Sequence[Snapshot], remarks: list[str]) -> dict[int, Snapshot]:
    """Those of the newest job, by process."""
    by_job: defaultdict[str, list[Snapshot]] = defaultdict(list)
    for snapshot in sorted(snapshots, key=lambda s: (s.taken_at, s.process)):
        by_job[snapshot.job].append(snapshot)
    # A job that was started anew leaves its dumps beside the old ones.
    job = max(by_job, key=lambda j: (by_job[j][-1].taken_at, len(by_job[j]), j), default="")
    chosen = {snapshot.process: snapshot for snapshot in by_job[job]}
    for other, left_out in sorted(by_job.items()):
        if other != job:
            whose = listed(f"process {s.process} (pid {s.pid} on {s.host})" for s in left_out)
            remarks.append(f"{whose}: of another job, {other}, and left out")
    versions = Counter(s.version for s in chosen.values())
    for version, _ in versions.most_common()[1:]:
        whose = listed(p for p, s in sorted(chosen.items()) if s.version == version)
        remarks.append(
            f"process {whose} runs jaxcoll {version}, others {versions.most_common(1)[0][0]}"
        )
    return dict(sorted(chosen.items()))


@dataclass
class _Waiters:
    """The processes that are in one call."""

    count: int = 0
    longest_s: float = 0.0


class Facts:
    """The processes of one job and their calls.

    A job has thousands of processes, and each snapshot has a list of all the others. So what others
    say of a process, and who is in a call, is gathered once, and each rule looks it up.
    """

    def __init__(self, snapshots: Sequence[Snapshot], absent: Iterable[Absent]) -> None:
        self.remarks: list[str] = []
        self.snapshots = _chosen(snapshots, self.remarks)
        self.absent = {a.process: a for a in absent if a.process not in self.snapshots}
        # Where nothing is pending, the calls are those that were when the job failed.
        self.over = not any(s.pending for s in self.snapshots.values())
        self.calls = {p: self._stalled(s) for p, s in self.snapshots.items()}
        self.peers: dict[int, dict[int, Peer]] = {}  # by the process that knows them
        self.left: set[int] = set()  # as others know
        self._homes: dict[int, tuple[str, int]] = {}  # in others' descriptions of their links
        self._gather_peers()
        # By process: its calls, also those that have begun just now, by their ids.
        self.pending: dict[int, dict[tuple[str, int], Call]] = {}
        self.waited_for: dict[int, list[tuple[Call, frozenset[int]]]] = {}
        self.sides: defaultdict[str, defaultdict[str, list[int]]]
        self.sides = defaultdict(lambda: defaultdict(list))  # by communicator and key
        self._waiters: defaultdict[tuple[str, int], _Waiters] = defaultdict(_Waiters)
        self._ranks: dict[tuple[str, str, int], dict[int, list[int]]] = {}  # by call
        self._gather_calls()

    def _gather_peers(self) -> None:
        for process, snapshot in self.snapshots.items():
            known = self.peers[process] = {}
            for peer in snapshot.peers:
                known.setdefault(peer.process, peer)
                if peer.state == "left":
                    self.left.add(peer.process)
                if peer.process not in self._homes and (found := _HOME.search(peer.description)):
                    self._homes[peer.process] = (found[2], int(found[1]))

    def _gather_calls(self) -> None:
        for process, snapshot in self.snapshots.items():
            calls = {c.id: c for c in (*self.calls[process], *snapshot.pending)}
            self.pending[process] = calls
            self.waited_for[process] = [(call, others(call)) for call in calls.values()]
            for call in self.calls[process]:
                self.sides[call.communicator][call.key].append(process)
            for call in calls.values():
                waiters = self._waiters[call.id]
                waiters.count += 1
                waiters.longest_s = max(waiters.longest_s, call.since_s)

    def _stalled(self, snapshot: Snapshot) -> tuple[Call, ...]:
        pending = [call for call in snapshot.pending if call.waited_s() >= STALL_S]
        for failed in snapshot.failed:
            if self.over or failed.failed_s < _JUST_S:
                pending += failed.pending
        return tuple(pending)

    def name(self, process: int, call: Call | None = None) -> str:
        """ "rank 5 (process 5 on b, pid 812)"."""
        host, pid = self.home(process)
        about = (f" on {host}" if host else "") + (f", pid {pid}" if pid else "")
        if call is None:
            return f"process {process}" + (f" ({about.removeprefix(' ')})" if about else "")
        ranks = self.ranks(call).get(process, [])
        plural = "s" if len(ranks) > 1 else ""
        return f"rank{plural} {listed(ranks)} (process {process}{about})"

    def home(self, process: int) -> tuple[str, int]:
        """A process's host and pid; "" and 0 if unknown."""
        if process in self.snapshots:
            snapshot = self.snapshots[process]
            return snapshot.host, snapshot.pid
        if process in self.absent:
            return self.absent[process].host, self.absent[process].pid
        return self._homes.get(process, ("", 0))

    def ranks(self, call: Call) -> dict[int, list[int]]:
        """The ranks of each process in a call, which goes through them once for all processes."""
        key = (call.communicator, *call.id)
        if key not in self._ranks:
            ranks = self._ranks[key] = defaultdict(list)
            for rank, process in enumerate(call.processes):
                ranks[process].append(rank)
        return self._ranks[key]

    def known(self) -> set[int]:
        """The processes of the job."""
        processes = max((s.processes for s in self.snapshots.values()), default=0)
        return set(range(processes)) | set(self.absent) | set(self.snapshots)

    def place(self, process: int) -> tuple[str, str]:
        """Where a process's Python is, as `where` says it."""
        return where(self.snapshots[process].threads)

    def has_made(self, process: int, call: Call) -> bool:
        """Whether a process is in a call, or is done with it."""
        if process not in self.snapshots:
            return False
        snapshot = self.snapshots[process]
        made = snapshot.next_numbers.get(call.key, 0) > call.number
        return made or call.id in self.pending[process]

    def waiting(self, call: Call) -> str:
        """ "seven processes have waited 14 s"."""
        waiters = self._waiters[call.id]
        have = "has" if waiters.count == 1 else "have"
        return f"{count(waiters.count, 'process')} {have} waited {seconds(waiters.longest_s)}"


def others(call: Call) -> frozenset[int]:
    """The processes that a call waits for."""
    return frozenset(call.processes[rank] for rank in call.waits_for)


def where(threads: Sequence[Thread]) -> tuple[str, str]:
    """Where a process's Python is: the kind of finding, and a clause."""
    main = [t for t in threads if t.main]
    # Calls are launched by the main thread, unless it only waits for others.
    busy = [t for t in [*main, *threads] if t.place and t.doing != "wait"]
    compiling = [t for t in [*main, *threads] if t.doing == "compile"]
    if compiling and (not busy or not busy[0].main or busy[0].doing == "compile"):
        return "compile", f"it compiles a program at {compiling[0].place or 'an unknown place'}"
    if main and main[0].place and main[0].doing == "wait":
        return "late", f"it waits for a result at {main[0].place}"
    if busy and (busy[0].main or not main):
        thread = "" if busy[0].main else f", in thread {busy[0].name}"
        return "late", f"it is in Python at {busy[0].place}{thread}"
    return "late", "none of its Python threads runs code outside JAX"
