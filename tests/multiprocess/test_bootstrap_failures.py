"""A process that cannot link to others tells the reason to the processes that wait for it.

Faults are injected into one of several bootstraps in this process; deadlines are those of
`fake_engine`, far longer than any of this takes.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from fake_engine import WAIT_S, FakeStore, Job, check_connected, processes, threads_left

from jaxcoll._job import bootstrap, host, listener, loop_thread, peer, store_thread
from jaxcoll._job.host import LinkError

SOON_S = WAIT_S / 3


def no_descriptors(*_: Any, **__: Any) -> Any:
    raise OSError(errno.EMFILE, "Too many open files")


def no_thread(*_: Any, **__: Any) -> Any:
    raise RuntimeError("can't start new thread")


def no_memory(*_: Any, **__: Any) -> Any:
    raise MemoryError("no memory for this")


def in_thread_of(index: int) -> bool:
    return threading.current_thread().name == f"injected-{index}"


# The failing call, its error, and the text that the others read. All of it while process 1 starts.
STARTING = {
    "no descriptor for the loop": (asyncio, "SelectorEventLoop", no_descriptors, "Too many open"),
    "no first thread": (store_thread.threading.Thread, "start", no_thread, "can't start new"),
    "no unix socket": (listener, "listen_unix", no_descriptors, "Too many open files"),
    "no interfaces": (host, "interfaces", no_descriptors, "Too many open files"),
    "interface excluded": (host, "choose_addresses", None, "leaves no network interface"),
    "no host name": (socket, "gethostname", no_memory, "no memory for this"),
    "no boot id": (host, "machine_identity", no_memory, "no memory for this"),
    "record": (host.Record, "to_bytes", no_memory, "no memory for this"),
}


def excluded(*_: Any) -> Any:
    raise LinkError("JAXCOLL_IFNAME=eth7 leaves no network interface; those that are up: lo")


def start_broken(job: Job, index: int, patch: Callable[[], None]) -> None:
    """Starts process `index` with a fault, which is mended once the process has seen it."""
    with pytest.MonkeyPatch.context() as fault:
        patch.__call__(fault)  # type: ignore[call-arg]
        try:
            job.bootstraps[index].start()
        except LinkError:
            return
        assert job.bootstraps[index].wait_until_published(WAIT_S)


@pytest.mark.parametrize("kind", STARTING)
@pytest.mark.parametrize("broken", [0, 1, 2])
def test_a_process_that_cannot_publish_says_why_to_waiting_processes(
    kind: str, broken: int
) -> None:
    where, name, what, expected = STARTING[kind]
    with processes(3) as job:
        others = [index for index in range(3) if index != broken]
        for index in others:  # all wait for the broken one
            job.bootstraps[index].start()
            assert job.bootstraps[index].wait_until_published(WAIT_S)
        start_broken(job, broken, lambda fault: fault.setattr(where, name, what or excluded))
        started = time.monotonic()
        for index in others:
            job.bootstraps[index].want(broken)
        for index in others:
            reason = job.engines[index].failure(broken)
            assert expected in reason
            assert reason.startswith(f"process {broken} (pid {os.getpid()} on ")
        assert time.monotonic() - started < SOON_S
        # Itself, too, and now, whatever it waits for.
        if job.bootstraps[broken]._lost is not None:
            with pytest.raises(LinkError, match=expected):
                job.bootstraps[broken].want(others[0])
        else:
            job.bootstraps[broken].want(others[0])
            assert expected in job.engines[broken].failure(others[0])
        # The others are linked all the same.
        if broken != 0:
            job.bootstraps[others[0]].want(others[1])
            check_connected(job, *others, "shm")


def test_a_second_thread_that_cannot_start_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    start, started = threading.Thread.start, []

    def once(thread: threading.Thread) -> None:
        if started:
            no_thread()
        started.append(thread)
        start(thread)

    with processes(2) as job:
        monkeypatch.setattr(threading.Thread, "start", once)
        with pytest.raises(LinkError, match="can't start new thread"):
            job.bootstraps[1].start()
        monkeypatch.undo()
        started[0].join(WAIT_S)
        assert threads_left() == []
        job.bootstraps[0].want(1)
        assert "can't start new thread" in job.engines[0].failure(1)
        with pytest.raises(LinkError, match="can't start new thread"):  # the first reason stands
            job.bootstraps[1].want(0)


def test_only_processes_that_want_links_to_it_need_process_0() -> None:
    with processes(3) as job:
        start_broken(job, 0, lambda f: f.setattr(asyncio, "SelectorEventLoop", no_descriptors))
        job.bootstraps[1].want(2)
        job.bootstraps[2].want(1)
        check_connected(job, 1, 2, "shm")


@pytest.mark.parametrize("broken", [0, 1])
def test_an_engine_that_cannot_be_started_says_why(broken: int) -> None:
    """It listens, and others are connected to it already: they learn it there."""
    other = 1 - broken
    with processes(2, present=0) as job:
        job.add(broken, engine_started=False)
        job.start(broken)
        job.add(other).want(broken)
        time.sleep(0.2)  # it is connected
        job.bootstraps[broken].refuse("no eventfd")
        assert job.engines[other].failure(broken).endswith("refuses: no eventfd")
        assert job.store.wait(f"jaxcoll/1/end/{broken}", WAIT_S) == b"no eventfd"
        assert job.engines[broken].refused == []  # it has no engine


@pytest.mark.parametrize("transport", ["shm", "tcp", "rdma"])
@pytest.mark.parametrize("late", [0, 1])
def test_a_link_waits_for_the_engine_of_the_other_side(transport: str, late: int) -> None:
    with processes(2, present=0, transports=(transport,)) as job:
        job.add(late, engine_started=False, handshake_s=2)
        job.start(late)
        job.add(1 - late, handshake_s=2).want(late)
        time.sleep(3)  # longer than a handshake may take: beats keep it
        assert not job.engines[late].links
        assert not job.engines[1 - late].failures
        job.bootstraps[late].start_engine()
        check_connected(job, 0, 1, transport)


def test_time_is_up_for_one_that_only_listens() -> None:
    with processes(2, present=0) as job:
        job.add(1, engine_started=False)
        job.start(1)
        job.add(0, timeout_s=3).want(1)
        reason = job.engines[0].failure(1)
        assert reason.endswith("within 3 s: it has run no collective across processes yet")


@pytest.mark.parametrize("ended", [0, 1])
@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_a_process_that_ends_in_order_tells_waiting_processes(transport: str, ended: int) -> None:
    with processes(2, present=0, transports=(transport,)) as job:
        job.add(ended, engine_started=False)
        job.start(ended)
        job.add(1 - ended).want(ended)
        time.sleep(0.2)
        job.bootstraps[ended].close()
        who = f"process {ended} (pid {os.getpid()} on {socket.gethostname()})"
        assert job.engines[1 - ended].failure(ended) == f"{who} has ended, or has shut down jaxcoll"


@pytest.mark.parametrize("last", [0, 2])
def test_the_end_of_a_process_tells_what_it_ended_of(last: int) -> None:
    """Else a process that reads this end first would report the consequence as the cause."""
    with processes(3, present=0) as job:
        job.add(1, engine_started=False)
        job.start(1)
        job.add(2 - last).want(1)
        job.bootstraps[1].refuse("no eventfd")
        assert job.engines[2 - last].failure(1).endswith("no eventfd")
        job.bootstraps[2 - last].close()
        job.add(last).want(2 - last)
        assert re.search(
            rf"process {2 - last} .* has ended, or .*, after a link had failed: .*no eventfd$",
            job.engines[last].failure(2 - last),
        )


def test_one_that_comes_when_another_has_ended_is_told_the_same() -> None:
    with processes(2) as job:
        job.start(0)
        job.bootstraps[0].close("was interrupted (Ctrl-C) and has ended")
        job.bootstraps[1].want(0)
        assert job.engines[1].failure(0).endswith(") was interrupted (Ctrl-C) and has ended")


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_process_that_is_silent_is_given_up_before_the_deadline(
    transport: str, stopped: int
) -> None:
    """Its thread hangs: the kernel still completes connections, and nothing answers."""
    with processes(2, present=0, transports=(transport,)) as job:
        job.add(stopped, engine_started=False)
        job.start(stopped)
        hang = threading.Event()
        job.bootstraps[stopped]._call_soon(hang.wait)
        job.add(1 - stopped, silence_s=2, handshake_s=0.5).want(stopped)
        started = time.monotonic()
        reason = job.engines[1 - stopped].failure(stopped)
        hang.set()
        assert "has not answered for 2 s: it is stopped, or cut off" in reason
        assert "no answer within 0.5 s" in reason
        assert time.monotonic() - started < SOON_S


def test_a_failing_loop_is_told_to_both_sides() -> None:
    with processes(2) as job:
        for index in (0, 1):
            job.start(index)

        selector: Any = job.bootstraps[1]._loop._selector  # type: ignore[union-attr]
        thread = job.bootstraps[1]._thread

        def fail(*_: Any) -> Any:  # once, so that it can be tidied up
            del selector.select
            raise OSError(errno.EBADF, "Bad file descriptor")

        selector.select = fail
        job.bootstraps[1].start()
        thread.join(WAIT_S)
        job.bootstraps[0].want(1)
        assert "Bad file descriptor" in job.engines[0].failure(1)
        with pytest.raises(LinkError, match="Bad file descriptor"):
            job.bootstraps[1].want(0)


def test_a_listener_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(listener.Door, "_accept_some", fail)
    with processes(2, present=1) as job:
        job.start(0)
        job.add(1).want(0)
        assert "cannot accept connections: OSError: [Errno 9]" in job.engines[1].failure(0)


@pytest.mark.parametrize("where", ["accept", "connect"])
def test_a_process_without_descriptors_gives_up_after_a_while(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shortage that lasts only a moment does no harm, see test_bootstrap_attacks.py."""
    with processes(2) as job:
        for index in (0, 1):
            job.start(index)
        thread = job.bootstraps[1 if where == "accept" else 0]._thread
        whole = getattr(socket.socket, where)

        def fail(self: socket.socket, *arguments: Any) -> Any:
            if threading.current_thread() is thread:
                no_descriptors()
            return whole(self, *arguments)

        monkeypatch.setattr(socket.socket, where, fail)
        started = time.monotonic()
        job.bootstraps[0].want(1)
        job.bootstraps[1].want(0)
        for index in (0, 1):
            assert "Too many open files" in job.engines[index].failure(1 - index)
        assert time.monotonic() - started < SOON_S


@pytest.mark.parametrize("wanting", [0, 1])
@pytest.mark.parametrize("broken", [0, 1])
@pytest.mark.parametrize("what", ["comm_make_segment", "comm_bell", "comm_add_shm_link"])
def test_an_engine_that_cannot_make_the_link_fails_it_on_both_sides(
    what: str, broken: int, wanting: int
) -> None:
    with processes(2) as job:
        for index in (0, 1):
            job.start(index)
        setattr(job.engines[broken], what, no_memory)
        job.bootstraps[wanting].want(1 - wanting)
        if what != "comm_add_shm_link":
            assert "no memory for this" in job.engines[wanting].failure(1 - wanting)
        job.bootstraps[broken].want(1 - broken)
        assert "no memory for this" in job.engines[broken].failure(1 - broken)


def test_values_of_the_store_are_taken_as_text() -> None:
    found = {"e/1": b"a\x00\x1b[31m\nb\xff", "e/x": b"", "e/2": b"x" * 10_000, "e/-1": b""}
    found |= {f"e/{index}": b"" for index in ("\u0663", "\xb2", "9" * 5000, "")}
    ends = peer.read_ends(found, "e/")
    assert ends[1] == "a\\x00\\x1b[31m b\ufffd"
    assert len(ends[2]) == 4096
    assert set(ends) == {1, 2}


def test_a_store_without_list_does_no_harm() -> None:
    class Old(FakeStore):
        def list(self, folder: str) -> dict[str, bytes]:
            raise RuntimeError("not implemented")

    with processes(2, present=0) as job:
        job.add(0, store=Old(), timeout_s=2).want(1)
        assert "no link to process 1 within 2 s" in job.engines[0].failure(1)


def test_the_rules_of_time_are_those_of_the_readme() -> None:
    assert [bootstrap._silence_s(t) for t in (5, 60, 300)] == [5, 12, 60]
    assert loop_thread._STORE_S < 5
