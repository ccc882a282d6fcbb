"""Listening sockets that survive whatever connects to them."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from jaxcoll import _handshake as handshake
from jaxcoll._connection import Connection, readable
from jaxcoll._handshake import Hello, LinkKey, ProtocolError
from jaxcoll._host import family_of

STRANGERS_MAX = 64  # connections of one listener that have not proved themselves yet
CROWDED_S = 0.25  # what a stranger is given when others wait; a handshake takes milliseconds
TROUBLE_S = 1.0  # without descriptors before others are told

_BACKLOG = 1024
_ACCEPT_PAUSE_S = 0.05

_log = logging.getLogger("jaxcoll.bootstrap")


def listen_unix() -> tuple[socket.socket, str]:
    """A socket in the abstract namespace, and its random name; nothing in the file system."""
    name = f"jaxcoll-{secrets.token_hex(16)}"
    return _listening(socket.AF_UNIX, socket.SOCK_SEQPACKET, "\0" + name), name


def listen_tcp(addresses: Sequence[str]) -> list[socket.socket]:
    """One socket per address family. With more than one address of a family it listens on all of
    the host's; the caller then turns away who has connected to another one."""
    listeners: list[socket.socket] = []
    try:
        for family, everywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            ours = [a for a in addresses if family_of(a) == family]
            if ours:
                where = ours[0] if len(ours) == 1 else everywhere
                listeners.append(_listening(family, socket.SOCK_STREAM, (where, 0)))
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _listening(family: int, kind: int, address: str | tuple[str, int]) -> socket.socket:
    listener = socket.socket(family, kind)
    try:
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


Serve = Callable[[Connection, Callable[[], None]], Awaitable[None]]


class _Strangers:
    """Tasks that serve somebody who has not proved himself, and when he came; the oldest first."""

    def __init__(self) -> None:
        self._since: dict[asyncio.Task[None], float] = {}
        self._left = asyncio.Event()

    def add(self, task: asyncio.Task[None]) -> None:
        self._since[task] = asyncio.get_running_loop().time()

    def remove(self, task: asyncio.Task[None]) -> None:
        self._since.pop(task, None)
        self._left.set()

    async def make_room(self) -> None:
        """Waits until one leaves, or the oldest has had its time and is dropped."""
        while len(self._since) >= STRANGERS_MAX:
            oldest, came = next(iter(self._since.items()))
            self._left.clear()
            try:
                async with asyncio.timeout_at(came + CROWDED_S):
                    await self._left.wait()
            except TimeoutError:
                if oldest in self._since:  # not admitted meanwhile
                    self.remove(oldest)
                    oldest.cancel()


async def accept_forever(
    listener: socket.socket, serve: Serve, on_trouble: Callable[[OSError], None]
) -> None:
    """Serves every connection by a task of its own, and closes what the task leaves.

    A connection is a stranger until its task calls the second argument. There are at most
    STRANGERS_MAX; when others wait, the oldest ones are dropped after CROWDED_S, so that neither
    many connections nor slow ones keep a peer out. `on_trouble` is told when connections wait that
    cannot be accepted, as without descriptors, for TROUBLE_S; it goes on trying.
    """
    trouble_since = float("inf")
    strangers = _Strangers()
    tasks: set[asyncio.Task[None]] = set()  # the loop itself keeps weak references
    while True:
        await readable(listener)
        await strangers.make_room()
        try:
            connection = Connection(listener.accept()[0])
            trouble_since = float("inf")
        except BlockingIOError:
            continue  # it left while it waited
        except OSError as error:  # out of descriptors, or it left
            _log.debug("accept: %s", error)
            now = asyncio.get_running_loop().time()
            trouble_since = min(trouble_since, now)
            if now - trouble_since > TROUBLE_S:
                on_trouble(error)
            await asyncio.sleep(_ACCEPT_PAUSE_S)
            continue
        task = asyncio.get_running_loop().create_task(_serve(connection, serve, strangers))
        strangers.add(task)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(strangers.remove)
        # Not in the task, which may be cancelled before it starts.
        task.add_done_callback(partial(_close, connection))


def _close(connection: Connection, _: asyncio.Task[None]) -> None:
    connection.close()


async def _serve(connection: Connection, serve: Serve, strangers: _Strangers) -> None:
    task = asyncio.current_task()
    assert task is not None
    try:
        await serve(connection, partial(strangers.remove, task))
    except Exception as error:  # of the one who connected, not ours
        _log.debug("a connection was dropped: %s: %s", type(error).__name__, error)


# --- links of several sockets -------------------------------------------------------------------


@dataclass
class Arrival:
    """The admitted sockets of one link, as far as they have come."""

    hello: Hello  # of the socket that came first
    connections: dict[int, Connection] = field(default_factory=dict)
    transcripts: dict[int, bytes] = field(default_factory=dict)
    offer: bytes = b""  # the peer's, for rdma

    @property
    def transcript(self) -> bytes:
        """Of socket 0, which the answer goes to."""
        return self.transcripts[0]

    def link_key(self, secret: bytes) -> LinkKey:
        """Of the complete link."""
        ordered = [self.transcripts[i] for i in range(self.hello.socket_count)]
        return handshake.link_key(secret, ordered)

    def close(self) -> None:
        for connection in self.connections.values():
            connection.close()
        self.connections.clear()


class Arrivals:
    """Gathers the sockets of links. One link at a time per peer: a peer that starts anew has given
    up the one before. Thread rule: the event loop's thread."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._of_peer: dict[int, Arrival] = {}

    def add(self, hello: Hello, transcript: bytes, connection: Connection) -> Arrival | None:
        """Takes the connection; returns the link, then the caller's, once it is complete."""
        arrival = self._of_peer.get(hello.client)
        if arrival is None or arrival.hello.link_id != hello.link_id:
            self._drop(hello.client, arrival)
            arrival = self._of_peer[hello.client] = Arrival(hello)
            asyncio.get_running_loop().call_later(
                self._timeout_s, self._drop, hello.client, arrival
            )
        first = arrival.hello
        if (hello.purpose, hello.socket_count) != (first.purpose, first.socket_count):
            raise ProtocolError("its sockets disagree on what they are for")
        if hello.socket_index in arrival.connections:
            raise ProtocolError(f"socket {hello.socket_index} came twice")
        arrival.connections[hello.socket_index] = connection.move()
        arrival.transcripts[hello.socket_index] = transcript
        if len(arrival.connections) < hello.socket_count:
            return None
        return self._of_peer.pop(hello.client)

    def _drop(self, peer: int, arrival: Arrival | None) -> None:
        if arrival is not None and self._of_peer.get(peer) is arrival:
            self._of_peer.pop(peer).close()

    def close(self) -> None:
        for arrival in self._of_peer.values():
            arrival.close()
        self._of_peer.clear()
