"""Stands for the native engine and the job's store, so that many processes fit into one."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from jaxcoll._job.bootstrap import Bootstrap

WAIT_S = 60.0  # until a test fails instead of waiting on


@dataclass
class FakeLink:
    transport: str
    sockets: list[socket.socket]
    text: str
    segment: int = -1
    peer_segment: int = -1
    peer_bell: int = -1
    offers: tuple[bytes, bytes] = (b"", b"")  # of rdma: ours and the peer's
    security: tuple[bytes, bool, bool] = (b"", False, False)  # link key, client, encrypt

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()
        for descriptor in (self.segment, self.peer_segment, self.peer_bell):
            if descriptor >= 0:
                os.close(descriptor)


class FakeRdmaHalf:
    """One side of an rdma link, as the bootstrap holds it."""

    def __init__(self, offer: bytes) -> None:
        self._offer = offer

    def offer(self) -> bytes:
        return self._offer


class FakeEngine:
    """Records the calls it gets. `links[peer]` and `failures[peer]` are lists: one entry each."""

    def __init__(self) -> None:
        self.fabrics: list[str] = []  # of its RDMA ports
        self.no_crypto = ""  # why nothing can be authenticated
        self.rdma_trouble = ""  # why no rdma link can be made, though there are ports
        self.bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.links: dict[int, list[FakeLink]] = {}
        self.failures: dict[int, list[str]] = {}
        self.refused: list[str] = []  # why it takes part in nothing any more
        self._changed = threading.Condition()

    def comm_bell(self) -> int:
        return self.bell

    def comm_make_segment(self) -> int:
        return os.memfd_create("jaxcoll-test")

    def comm_add_shm_link(
        self, peer: int, sock: int, own_segment: int, peer_segment: int, peer_bell: int, text: str
    ) -> None:
        link = FakeLink("shm", [socket.socket(fileno=sock)], text)
        link.segment, link.peer_segment, link.peer_bell = own_segment, peer_segment, peer_bell
        self._record(self.links, peer, link)

    def comm_no_crypto(self) -> str:
        return self.no_crypto

    def comm_add_tcp_link(
        self,
        peer: int,
        sockets: list[int],
        text: str,
        link_key: bytes,
        client: bool,
        encrypt: bool,
    ) -> None:
        link = FakeLink("tcp", [socket.socket(fileno=sock) for sock in sockets], text)
        link.security = (link_key, client, encrypt)
        self._record(self.links, peer, link)

    def comm_rdma_fabrics(self) -> list[str]:
        if not self.fabrics:
            raise ValueError("there is no RDMA device")
        return self.fabrics

    def comm_prepare_rdma(self, client_offer: bytes) -> FakeRdmaHalf:
        if self.rdma_trouble:
            raise ValueError(self.rdma_trouble)
        return FakeRdmaHalf(b"answer to " + client_offer if client_offer else os.urandom(2500))

    def comm_add_rdma_link(
        self,
        peer: int,
        half: FakeRdmaHalf,
        sock: int,
        offer: bytes,
        text: str,
        link_key: bytes,
        client: bool,
        encrypt: bool,
    ) -> None:
        link = FakeLink("rdma", [socket.socket(fileno=sock)], text)
        link.security = (link_key, client, encrypt)
        link.offers = (half.offer(), offer)
        self._record(self.links, peer, link)

    def comm_link_failed(self, peer: int, reason: str) -> None:
        self._record(self.failures, peer, reason)

    def comm_refuse(self, reason: str) -> None:
        self.refused.append(reason)

    def _record(self, where: dict[int, list[Any]], peer: int, what: object) -> None:
        with self._changed:
            where.setdefault(peer, []).append(what)
            self._changed.notify_all()

    def _wait(self, condition: Callable[[], Any]) -> Any:
        with self._changed:
            assert self._changed.wait_for(condition, WAIT_S), (self.links, self.failures)
            return condition()

    def link(self, peer: int) -> FakeLink:
        """Waits for the link."""
        self._wait(lambda: peer in self.links or peer in self.failures)
        assert peer in self.links, self.failures
        return self.links[peer][0]

    def failure(self, peer: int) -> str:
        """Waits for the reason."""
        self._wait(lambda: peer in self.links or peer in self.failures)
        assert peer in self.failures, self.links
        return self.failures[peer][0]

    def close(self) -> None:
        for links in self.links.values():
            for link in links:
                link.close()
        os.close(self.bell)


class FakeStore:
    """A job's store."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.waits: dict[str, int] = {}  # how often somebody waited in vain
        self.changed = threading.Condition()

    def set(self, key: str, value: bytes) -> None:
        with self.changed:
            self.values.setdefault(key, value)
            self.changed.notify_all()

    def wait(self, key: str, deadline_s: float) -> bytes:
        with self.changed:
            if not self.changed.wait_for(lambda: key in self.values, deadline_s):
                self.waits[key] = self.waits.get(key, 0) + 1
                self.changed.notify_all()
                raise TimeoutError(key)
            return self.values[key]

    def list(self, folder: str) -> dict[str, bytes]:
        with self.changed:
            return {k: v for k, v in self.values.items() if k.startswith(folder)}


@dataclass
class Job:
    """Processes that share a store; index -> bootstrap and engine."""

    count: int
    options: dict[str, Any]
    store: FakeStore = field(default_factory=FakeStore)
    bootstraps: dict[int, Bootstrap] = field(default_factory=dict)
    engines: dict[int, FakeEngine] = field(default_factory=dict)

    def add(self, index: int, store: Any = None, **options: Any) -> Bootstrap:
        self.engines[index] = FakeEngine()
        defaults = {"version": "1", "timeout_s": WAIT_S}
        if {**self.options, **options}.get("transports") == ("rdma",):
            self.engines[index].fabrics = ["RoCE"]
        self.bootstraps[index] = Bootstrap(
            self.engines[index],
            store or self.store,
            index,
            self.count,
            **{**defaults, **self.options, **options},
        )
        return self.bootstraps[index]

    def start(self, index: int) -> dict[str, Any]:
        """Publishes a process; its record."""
        import json

        self.bootstraps[index].start()
        return dict(json.loads(self.store.wait(f"jaxcoll/1/process/{index}", WAIT_S)))

    def listen(self, index: int) -> list[tuple[str, int]]:
        """Lets a process listen for tcp; where."""
        import json

        bootstrap = self.bootstraps[index]
        bootstrap._call_soon(lambda: bootstrap._spawn(bootstrap._reach.listen("near")))
        value = self.store.wait(f"jaxcoll/1/tcp/{index}/near", WAIT_S)
        published = json.loads(value[value.rindex(b'{"addresses"') :])  # it may be signed
        return [(address, port) for address, port in published["addresses"]]

    def secret(self, transport: str) -> bytes:
        """The secret of handshakes in a job that was given no secret."""
        if transport == "shm":
            return bytes(32)
        self.store.set("jaxcoll/1/secret", os.urandom(32))
        return self.store.wait("jaxcoll/1/secret", WAIT_S)

    def close(self) -> None:
        for bootstrap in self.bootstraps.values():
            bootstrap.close()
        for engine in self.engines.values():
            engine.close()


@contextmanager
def processes(count: int, present: int | None = None, **options: Any) -> Iterator[Job]:
    """A job of `count` processes; the first `present` of them are there."""
    job = Job(count, options)
    try:
        for index in range(count if present is None else present):
            job.add(index)
        yield job
    finally:
        job.close()


def different_hosts(job: Job) -> None:
    """Replaces every process by one on a host of its own."""
    for index in list(job.bootstraps):
        job.engines[index].close()
        job.add(index, host_id=f"host-{index}")


def check_connected(job: Job, one: int, other: int, transport: str) -> None:
    """Both ends have exactly one link, to each other, and no failure."""
    ends = job.engines[one].link(other), job.engines[other].link(one)
    assert len(job.engines[one].links[other]) == len(job.engines[other].links[one]) == 1
    assert other not in job.engines[one].failures
    assert one not in job.engines[other].failures
    assert [end.transport for end in ends] == [transport] * 2
    if transport != "shm":
        (key, client, encrypt), (other_key, other_client, other_encrypt) = (
            end.security for end in ends
        )
        assert len(key) == 32
        assert (key, client, encrypt) == (other_key, not other_client, other_encrypt)
    for sender, receiver in (ends, ends[::-1]):
        assert len(sender.sockets) == len(receiver.sockets)
        for i, (a, b) in enumerate(zip(sender.sockets, receiver.sockets, strict=True)):
            assert not a.get_inheritable()
            assert not os.get_blocking(a.fileno())
            message = f"{one} {other} {i}".encode()
            assert a.send(message) == len(message)
            assert receive(b, len(message)) == message
        if transport == "shm":
            assert os.fstat(sender.segment).st_ino == os.fstat(receiver.peer_segment).st_ino
            assert not os.get_inheritable(receiver.peer_segment)
            assert not os.get_inheritable(receiver.peer_bell)
    if transport == "shm":
        for sender, index in ((ends[0], other), (ends[1], one)):
            os.eventfd_write(sender.peer_bell, 7)
            assert os.eventfd_read(job.engines[index].bell) == 7


def receive(sock: socket.socket, size: int) -> bytes:
    """Up to `size` bytes; fewer if the other end closes."""
    deadline = time.monotonic() + WAIT_S
    received = b""
    while len(received) < size:
        ready, _, _ = select.select([sock], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"nothing came; so far {received!r}"
        try:
            part = sock.recv(size - len(received))
        except ConnectionResetError:
            break
        if not part:
            break
        received += part
    return received


def descriptors() -> dict[int, str]:
    """Every open descriptor of this process and what it refers to."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the listing's own
            continue
    return found


def threads_left() -> list[str]:
    """Those that do not end once what they are at is over: a request to the store is not ended."""
    for thread in _threads():
        thread.join(WAIT_S)
    return bootstrap_threads()


def bootstrap_threads() -> list[str]:
    return [thread.name for thread in _threads()]


def _threads() -> list[threading.Thread]:
    # The thread that answers `jaxcoll inspect` lives as long as the process, from the first
    # collective on, whichever test makes it.
    names = [(t, t.name) for t in threading.enumerate()]
    return [t for t, n in names if n.startswith("jaxcoll") and n != "jaxcoll-inspect"]
