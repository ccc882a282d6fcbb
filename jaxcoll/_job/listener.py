"""Listening sockets that tolerate any client."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import resource
import secrets
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from jaxcoll._job.connection import Connection
from jaxcoll._job.handshake import HELLO_BYTES, Hello, LinkKey, ProtocolError, link_key, read_hello
from jaxcoll._job.host import address_text, family_of

STRANGERS_MAX = 512  # connections that have not sent a hello, and that have not proved it
TROUBLE_S = 1.0  # without descriptors before others learn of it

_BACKLOG = 4096  # the kernel takes net.core.somaxconn if that is less
_ACCEPT_BATCH = 64
_ACCEPT_PAUSE_S = 0.05

_log = logging.getLogger("jaxcoll.bootstrap")


def listen_unix() -> tuple[socket.socket, str]:
    """A socket in the abstract namespace, and its random name; nothing in the file system."""
    name = f"jaxcoll-{secrets.token_hex(16)}"
    return _listening(socket.AF_UNIX, socket.SOCK_SEQPACKET, "\0" + name), name


def listen_tcp(addresses: Sequence[str]) -> list[socket.socket]:
    """A socket for each address, so that nobody comes by another one."""
    listeners: list[socket.socket] = []
    try:
        for address in addresses:
            listeners.append(_listening(family_of(address), socket.SOCK_STREAM, (address, 0)))
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


# --- whoever connects ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Visit:
    """A connection whose first message shows that its author knows the secret."""

    connection: Connection
    secret: bytes  # under which the handshake goes on
    message: bytes  # the first, as it came
    hello: Hello
    admitted: Callable[[], None]  # to be called once the other side has proved itself


Serve = Callable[[Visit], Awaitable[None]]


class _Guest(Protocol):
    def dismiss(self) -> None:
        """Sends it away."""


class _Crowd:
    """Guests that have not proved themselves yet, by where they come from.

    When there are too many, the source that has most of them loses the one that has been there
    longest: whoever sends many connections competes with itself alone, and among those of one
    source a peer, which speaks at once, has proved itself before its turn comes.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self._of_source: dict[str, dict[_Guest, None]] = {}  # the oldest first

    def add(self, guest: _Guest, source: str) -> None:
        self._of_source.setdefault(source, {})[guest] = None
        self._count += 1
        if self._count > self._most:
            self.dismiss_one()

    def remove(self, guest: _Guest, source: str) -> None:
        """Does nothing if it does not exist."""
        guests = self._of_source.get(source, {})
        if guest in guests:
            del guests[guest]
            self._count -= 1
            if not guests:
                del self._of_source[source]

    def dismiss_one(self) -> None:
        if self._of_source:
            source, largest = max(self._of_source.items(), key=lambda item: len(item[1]))
            guest = next(iter(largest))
            self.remove(guest, source)
            guest.dismiss()

    def __iter__(self) -> Iterator[_Guest]:
        return iter([guest for guests in self._of_source.values() for guest in guests])


class _Stranger:
    """A connection that has not sent its hello. Costs a socket and no task."""

    def __init__(self, door: Door, connection: Connection, secret: bytes, source: str) -> None:
        self._door = door
        self._connection = connection
        self._secret = secret
        self._descriptor = connection.socket.fileno()
        self._loop = asyncio.get_running_loop()
        self._waits = False  # the loop calls `read`
        self.source = source
        self.since = self._loop.time()

    def read(self) -> None:
        """Takes what is there, now and whenever there is more."""
        try:
            message = self._connection.receive_now(HELLO_BYTES)
            if message is None:
                if not self._waits:
                    self._waits = True
                    self._loop.add_reader(self._descriptor, self.read)
                return
            hello = read_hello(self._secret, self._door.index, message)
        except (OSError, ProtocolError) as error:
            _log.debug("a connection was dropped: %s", error)
            self._door.forget(self)
            self.dismiss()
            return
        self._leave_loop()
        self._door.forget(self)
        self._door.let_in(self.source, self._connection, self._secret, message, hello)

    def _leave_loop(self) -> None:
        if self._waits:
            self._loop.remove_reader(self._descriptor)
            self._waits = False

    def dismiss(self) -> None:
        self._leave_loop()
        self._connection.close()


class _Caller:
    """A connection that has sent a good hello, served by a task; it may be a recorded one."""

    def __init__(self, task: asyncio.Task[None]) -> None:
        self._task = task

    def dismiss(self) -> None:
        self._task.cancel()


class Door:
    """Accepts whoever connects, and keeps out who does not know the secret.

    Neither many connections nor silent ones keep a peer out: see `_Crowd`. Not TCP_DEFER_ACCEPT:
    what it holds back fills the kernel's queue, in which peers have to wait, too, and whoever sends
    one byte gets past it. Thread rule: the event loop's thread, but for `forget_listeners`.

    Args:
      index: this process's.
      serve: given each connection with a good hello; what it leaves open is closed.
      patience_s: how long a connection may stay without one.
      on_trouble: called when connections wait that cannot be accepted, as without descriptors, for
        TROUBLE_S; the door goes on trying.
    """

    def __init__(
        self,
        index: int,
        serve: Serve,
        patience_s: float,
        on_trouble: Callable[[Exception], None],
    ) -> None:
        self.index = index
        self._serve = serve
        self._patience_s = patience_s
        self._on_trouble = on_trouble
        self._trouble_since = float("inf")
        # A quarter of the descriptors that a process may have: others need some, too.
        most = max(16, min(STRANGERS_MAX, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))
        self._strangers = _Crowd(most)
        self._callers = _Crowd(most)
        self._listeners: list[socket.socket] = []
        self._sweeping = False
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself keeps weak references

    def open(self, listener: socket.socket, secret: bytes) -> None:
        """Serves who connects to `listener`, which is the door's from now on."""
        self._listeners.append(listener)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(listener, self._accept, listener, secret)

    def listening(self) -> list[str]:
        """For people: where."""
        return [
            f"@{name[1:].decode()}" if isinstance(name, bytes) else address_text(name)
            for name in (listener.getsockname() for listener in list(self._listeners))
        ]

    def forget_listeners(self) -> None:
        """In a process that was forked off: nobody shall connect to it."""
        for listener in self._listeners:
            listener.close()

    def close(self) -> None:
        """Closes the listeners and what is not served yet; the tasks are the loop's to cancel."""
        for listener in self._listeners:
            self._loop.remove_reader(listener)
            listener.close()
        for stranger in self._strangers:
            stranger.dismiss()

    def _accept(self, listener: socket.socket, secret: bytes) -> None:
        try:
            self._accept_some(listener, secret)
        except Exception as error:  # ours, not the peers'
            self._loop.remove_reader(listener)
            self._on_trouble(error)

    def _accept_some(self, listener: socket.socket, secret: bytes) -> None:
        for _ in range(_ACCEPT_BATCH):  # then others have their turn
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:  # it left meanwhile, or there are no descriptors left
                self._pause(listener, secret, error)
                return
            self._trouble_since = float("inf")
            self._receive(Connection(sock), secret)

    def _pause(self, listener: socket.socket, secret: bytes, error: OSError) -> None:
        _log.debug("accept: %s", error)
        self._strangers.dismiss_one()
        self._loop.remove_reader(listener)
        self._loop.call_later(_ACCEPT_PAUSE_S, self._accept_again, listener, secret)
        self._trouble_since = min(self._trouble_since, self._loop.time())
        if self._loop.time() - self._trouble_since > TROUBLE_S:
            self._on_trouble(error)

    def _accept_again(self, listener: socket.socket, secret: bytes) -> None:
        if listener.fileno() >= 0:  # not closed meanwhile
            self._loop.add_reader(listener, self._accept, listener, secret)

    def _receive(self, connection: Connection, secret: bytes) -> None:
        try:
            if connection.is_unix:
                # Anybody on this machine can reach a name in the abstract namespace.
                if (uid := connection.peer_uid()) != os.getuid():
                    raise ProtocolError(f"uid {uid} has connected")
                source = f"uid {uid}"
            else:
                source = _source(connection.socket.getpeername()[0])
        except (OSError, ProtocolError) as error:
            _log.debug("a connection was dropped: %s", error)
            connection.close()
            return
        stranger = _Stranger(self, connection, secret, source)
        self._strangers.add(stranger, source)
        stranger.read()
        if not self._sweeping:
            self._sweeping = True
            self._loop.call_later(self._patience_s / 4, self._sweep)

    def _sweep(self) -> None:
        left = False
        for guest in self._strangers:
            assert isinstance(guest, _Stranger)
            if guest.since + self._patience_s <= self._loop.time():
                self.forget(guest)
                guest.dismiss()
            else:
                left = True
        self._sweeping = left
        if left:
            self._loop.call_later(self._patience_s / 4, self._sweep)

    def forget(self, stranger: _Stranger) -> None:
        self._strangers.remove(stranger, stranger.source)

    def let_in(
        self, source: str, connection: Connection, secret: bytes, message: bytes, hello: Hello
    ) -> None:
        """Serves a connection by a task of its own."""
        work = self._served(lambda: Visit(connection, secret, message, hello, admitted))
        task = self._loop.create_task(work)
        caller = _Caller(task)
        admitted = partial(self._callers.remove, caller, source)
        self._callers.add(caller, source)
        self._tasks.add(task)
        # Not in the task, which may be cancelled before it starts.
        task.add_done_callback(partial(self._ended, connection, admitted))

    def _ended(
        self, connection: Connection, forget: Callable[[], None], task: asyncio.Task[None]
    ) -> None:
        self._tasks.discard(task)
        forget()
        connection.close()

    async def _served(self, visit: Callable[[], Visit]) -> None:
        try:
            await self._serve(visit())
        except Exception as error:  # the peer's, not ours
            _log.debug("a connection was dropped: %s: %s", type(error).__name__, error)


def _source(address: str) -> str:
    """The address that counts as one source: of IPv6, the /64 that one machine may have to
    itself."""
    if ":" not in address:
        return address
    return str(ipaddress.ip_network((address.partition("%")[0], 64), strict=False))


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
        """The transcript of socket 0, which the answer goes to."""
        return self.transcripts[0]

    def link_key(self, secret: bytes) -> LinkKey:
        """The key of the complete link."""
        ordered = [self.transcripts[i] for i in range(self.hello.socket_count)]
        return link_key(secret, ordered)

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
