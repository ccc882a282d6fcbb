"""How the processes of a job find each other and get connected descriptors.

Nothing happens before the first link is wanted. Then a daemon thread opens the listeners, publishes
this process in the job's key-value store and runs every handshake on an event loop of its own; a
second one makes the store's calls, which block. The engine asks for links (`Bootstrap.want`) and is
given descriptors, which it then owns: non-blocking, closed on exec, TCP_NODELAY set on tcp.

A pair has exactly one link, and the lower process index connects it. If the higher one wants it, it
connects to the lower one and asks; that connection stays open until the lower one says that the
link is there or why it has failed, so that both ends fail with one reason and the death of the
lower one is noticed. Asking twice, or while the lower one connects by itself, changes nothing, so
there is no race to resolve; a key in the store instead would keep somebody waiting per pair.

A failure is final: whoever wants a link to that peer later is told the same reason again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import threading
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

from jaxcoll import _environment, _listener
from jaxcoll import _handshake as handshake
from jaxcoll import _host as host
from jaxcoll._connection import Connection, admit
from jaxcoll._dial import Call, Unreachable, ask, dial_rdma, dial_shm, dial_tcp
from jaxcoll._handshake import ProtocolError, Purpose
from jaxcoll._host import LinkError, Record
from jaxcoll._listener import Arrival, Arrivals
from jaxcoll._store_thread import Store, StoreThread

PREFIX = "jaxcoll/1/"  # of every key in the store

_TIMEOUT_S = 300.0
_TCP_SOCKETS = 4
_HANDSHAKE_S = 5.0
_ASK_AFTER_S = 0.05  # normally both sides want the link, and the lower one connects by itself
_RETRY_MIN_S, _RETRY_MAX_S = 0.05, 1.0
_GONE_AFTER = 4  # attempts in a row that nobody listens to before a peer counts as dead
_CLOSE_S = 5.0

_log = logging.getLogger("jaxcoll.bootstrap")


class RdmaHalf(Protocol):
    """This process's side of an rdma link, which becomes one with the peer's offer."""

    def offer(self) -> bytes:
        """What the peer must know, and nobody else may: it can write to this process with it."""


class Native(Protocol):
    """What the engine offers. The bootstrap's thread calls it; it must not call `close` back."""

    def comm_bell(self) -> int:
        """The eventfd that wakes this process; it stays the engine's."""

    def comm_make_segment(self) -> int:
        """A fresh memfd for one link; the caller's."""

    def comm_add_shm_link(
        self, peer: int, sock: int, own_segment: int, peer_segment: int, peer_bell: int, text: str
    ) -> None:
        """Takes over all descriptors."""

    def comm_add_tcp_link(self, peer: int, sockets: list[int], text: str) -> None:
        """Takes over all descriptors; both sides list them in the same order."""

    def comm_rdma_fabrics(self) -> list[str]:
        """The fabrics of the RDMA ports that this process can use. Raises: ValueError, why none."""

    def comm_prepare_rdma(self, client_offer: bytes) -> RdmaHalf:
        """For the server the client's offer, for the client nothing. Raises: ValueError."""

    def comm_add_rdma_link(self, peer: int, half: Any, sock: int, offer: bytes, text: str) -> None:
        """Takes over the socket and uses up what comm_prepare_rdma has returned; `offer` is the
        peer's."""

    def comm_link_failed(self, peer: int, reason: str) -> None:
        """There will be no link to that peer."""

    def comm_refuse(self, reason: str) -> None:
        """Ends all links."""


@dataclass
class _Peer:
    """A peer that a link is wanted to, or that wants one."""

    who: str  # for people
    outcome: asyncio.Future[str]  # "" once linked, else why not; final
    task: asyncio.Task[None] | None = None
    trouble: str = "publishing this process"  # what to say if time runs out now


def _new_peer(index: int) -> _Peer:
    return _Peer(f"process {index}", asyncio.get_running_loop().create_future())


def _link_timeout_s(timeout_s: float) -> float:
    """Sooner than the deadline of the collective, which can only say that there is no link."""
    return max(0.8 * timeout_s, timeout_s - 10)


class Bootstrap:
    """Links this process to others of its job. One per process and job.

    Thread rule: `start`, `want` and `close` may be called by any thread; everything else runs on
    the bootstrap's own.

    Args:
      native: the engine.
      store: the job's key-value store.
      index, count: this process's index, and the number of processes.
      version: jaxcoll's; processes that differ refuse each other.
      timeout_s: from `want` until the link must be there.
      transports: those that may be used.
      tcp_sockets: how many sockets a tcp link has; the lower index of a pair decides.
      ifname: JAXCOLL_IFNAME: whether its names are excluded, and the names.
      host_id: what stands for this host instead of its own identity.
      handshake_s: how long one handshake may take.
    """

    def __init__(
        self,
        native: Native,
        store: Store,
        index: int,
        count: int,
        *,
        version: str,
        timeout_s: float = _TIMEOUT_S,
        transports: tuple[str, ...] = host.TRANSPORTS,
        tcp_sockets: int = _TCP_SOCKETS,
        ifname: tuple[bool, tuple[str, ...]] | None = None,
        host_id: str | None = None,
        handshake_s: float = _HANDSHAKE_S,
    ) -> None:
        self._native = native
        self._store_client = store
        self._index = index
        self._count = count
        self._version = version
        self._timeout_s = timeout_s
        self._transports = transports
        self._tcp_sockets = tcp_sockets
        self._ifname = ifname
        self._host_id = host_id
        self._handshake_s = handshake_s

        self._lock = threading.Lock()  # over starting and closing
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._thread: threading.Thread
        self._store: StoreThread

        # The rest belongs to the loop's thread.
        self._published: asyncio.Future[Record] | None = None
        self._peers: dict[int, _Peer] = {}
        self._arrivals = Arrivals(handshake_s)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._listeners: list[socket.socket] = []
        self._listened_addresses: frozenset[str] = frozenset()

    @classmethod
    def from_environment(cls, native: Native) -> Bootstrap:
        """For the job that `jax.distributed.initialize` has joined. Starts nothing.

        Raises: LinkError if there is none.
        """
        import jaxcoll  # here: ranks of our own link up without JAX
        from jaxcoll import _jax_compat as compat

        job = compat.distributed_store()
        if job is None:
            raise LinkError("processes are linked only after jax.distributed.initialize()")
        values: dict[str, Any] = _environment.values()
        return cls(
            native,
            *job,
            version=jaxcoll.__version__,
            timeout_s=_link_timeout_s(values["JAXCOLL_TIMEOUT_S"] or _TIMEOUT_S),
            transports=values["JAXCOLL_TRANSPORT"] or host.TRANSPORTS,
            tcp_sockets=values["JAXCOLL_TCP_SOCKETS"] or _TCP_SOCKETS,
            ifname=values["JAXCOLL_IFNAME"],
            host_id=values["JAXCOLL_HOST_ID"],
        )

    # --- any thread -----------------------------------------------------------------------------

    def start(self) -> None:
        """Opens the listeners and publishes this process, so that others can link to it."""
        self._call_soon(self._start_publishing)

    def want(self, peer: int) -> None:
        """Asks for a link to process `peer`; returns at once.

        The engine is told once, by one of comm_add_*_link or by comm_link_failed; nothing for a
        link that it has, and nothing at all after `close`. A link may also come that only the peer
        wanted, or just before this call.
        """
        self._call_soon(self._want, peer)

    def refuse(self, reason: str) -> None:
        """From now on this process takes part in nothing: whoever wants a link is told why."""
        self._call_soon(self._refuse, reason)

    def close(self) -> None:
        """Stops listening, gives up what is under way and ends the threads. Links stay."""
        with self._lock:
            self._closed = True
            loop, self._loop = self._loop, None
        if loop is None:
            return
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join(_CLOSE_S)

    def forget_listeners(self) -> None:
        """In a process that was forked off: nobody shall connect to it."""
        for listener in self._listeners:
            listener.close()

    def _call_soon(self, function: Callable[..., Any], *arguments: Any) -> None:
        with self._lock:
            if self._closed:
                return
            if self._loop is None:
                loop = asyncio.SelectorEventLoop()
                self._store = StoreThread(self._store_client, loop)
                self._thread = threading.Thread(
                    target=self._run, args=[loop], name="jaxcoll-bootstrap", daemon=True
                )
                try:
                    self._thread.start()
                except BaseException:  # e.g. the interpreter is shutting down
                    loop.close()
                    raise
                self._loop = loop
            self._loop.call_soon_threadsafe(function, *arguments)

    # --- the thread -----------------------------------------------------------------------------

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.set_exception_handler(lambda _, context: _log.debug("%s", context))
        self._store.thread.start()
        loop.run_forever()
        self._store.close()
        while tasks := asyncio.all_tasks(loop):  # a task may start others as it ends
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.wait(tasks))
        self._arrivals.close()
        for listener in self._listeners:
            listener.close()
        self._store.thread.join(_CLOSE_S)
        loop.close()

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself keeps weak references
        task.add_done_callback(self._tasks.discard)
        return task

    # --- the store ------------------------------------------------------------------------------

    def _start_publishing(self) -> asyncio.Future[Record]:
        if self._published is None:
            self._published = self._spawn(self._publish())
            self._published.add_done_callback(lambda f: f.cancelled() or f.exception())
        return self._published

    async def _publish(self) -> Record:
        record = self._listen()
        if self._index == 0:
            # The first value stands, also when two processes take themselves for process 0.
            await self._store.set(PREFIX + "secret", secrets.token_bytes(handshake.SECRET_BYTES))
        key = f"{PREFIX}process/{self._index}"
        await self._store.set(key, record.to_bytes())
        if await self._store.get(key) != record.to_bytes():
            raise LinkError(
                f"process {self._index} is in this job's store already; two processes have the "
                "same index, or one has set up jaxcoll's links twice"
            )
        return record

    async def _secret(self) -> bytes:
        secret = await self._store.get(PREFIX + "secret")
        if len(secret) != handshake.SECRET_BYTES:
            raise LinkError(f"the job's secret has {len(secret)} bytes")
        return secret

    async def _record(self, index: int) -> Record:
        return Record.from_bytes(await self._store.get(f"{PREFIX}process/{index}"), index)

    def _listen(self) -> Record:
        """Opens the listeners that the transports need. Raises: LinkError, OSError."""
        unix_name, addresses = "", []
        if "shm" in self._transports:
            listener, unix_name = _listener.listen_unix()
            self._listeners.append(listener)
        if "tcp" in self._transports or "rdma" in self._transports:  # rdma is set up over tcp
            chosen = host.choose_addresses(host.interfaces(), self._ifname)
            self._listened_addresses = frozenset(chosen)
            opened = _listener.listen_tcp(chosen)
            self._listeners += opened
            ports: dict[int, int] = {o.family: o.getsockname()[1] for o in opened}
            addresses = [(address, ports[host.family_of(address)]) for address in chosen]
        for listener in self._listeners:
            self._spawn(_listener.accept_forever(listener, self._serve))
        fabrics, no_rdma = self._fabrics()
        machine, hostname = host.machine_identity(), socket.gethostname()
        return Record(
            version=self._version,
            index=self._index,
            host=self._host_id or host.identity(),
            machine=machine,
            hostname=hostname,
            pid=os.getpid(),
            uid=os.getuid(),
            transports=tuple(self._transports),
            unix_name=unix_name,
            addresses=tuple(addresses),
            fabrics=fabrics,
            no_rdma=no_rdma,
        )

    def _fabrics(self) -> tuple[tuple[str, ...], str]:
        """Those of this process's RDMA ports, or why there are none."""
        if "rdma" not in self._transports:
            return (), "JAXCOLL_TRANSPORT leaves it out"
        try:
            return tuple(self._native.comm_rdma_fabrics()), ""
        except ValueError as error:
            _log.info("rdma cannot be used: %s", error)
            return (), str(error)[: host.REASON_CHARACTERS_MAX]

    # --- peers ----------------------------------------------------------------------------------

    def _want(self, peer: int) -> None:
        state = self._make_link(peer)
        if state.outcome.done() and state.outcome.result():
            self._native.comm_link_failed(peer, state.outcome.result())

    def _refuse(self, reason: str) -> None:
        for index in range(self._count):
            if index != self._index:
                peer = self._peers.setdefault(index, _new_peer(index))
                self._fail(index, peer, reason)
        self._native.comm_refuse(reason)

    def _make_link(self, index: int) -> _Peer:
        """Starts making a link unless somebody did before."""
        peer = self._peers.get(index)
        if peer is None:
            peer = self._peers[index] = _new_peer(index)
            peer.task = self._spawn(self._link(index, peer))
        return peer

    async def _link(self, index: int, peer: _Peer) -> None:
        try:
            if index == self._index or not 0 <= index < self._count:
                raise LinkError(f"process {self._index} of {self._count} wants a link to {index}")
            async with asyncio.timeout(self._timeout_s):
                own = await asyncio.shield(self._start_publishing())
                peer.trouble = "process 0 has not published the job's secret"
                secret = await self._secret()
                peer.trouble = "it has not started, or has run no collective across processes yet"
                record = await self._record(index)
                peer.who = str(record)
                transport = host.choose_transport(own, record)
                call = Call(own, record, secret, self._handshake_s)
                peer.trouble = "it does not complete the handshake"
                if self._index > index:
                    await asyncio.sleep(_ASK_AFTER_S)  # cancelled by the link's arrival
                    await self._persist(peer, lambda: ask(call, transport))
                    raise LinkError(f"{record} has made a link, but it has not arrived")
                if transport == "shm":
                    await self._persist(peer, lambda: self._connect_shm(call, peer))
                elif transport == "rdma":
                    await self._persist(peer, lambda: self._connect_rdma(call, peer))
                else:
                    await self._persist(peer, lambda: self._connect_tcp(call, peer))
        except TimeoutError:
            reason = f"no link to {peer.who} within {self._timeout_s:g} s: {peer.trouble}"
            self._fail(index, peer, reason)
        except LinkError as error:
            self._fail(index, peer, str(error))
        except Exception as error:
            self._fail(index, peer, f"{type(error).__name__}: {error}")

    def _fail(self, index: int, peer: _Peer, reason: str) -> None:
        if not peer.outcome.done():
            self._settle(peer, reason)
            self._native.comm_link_failed(index, reason)

    def _settle(self, peer: _Peer, reason: str = "") -> None:
        peer.outcome.set_result(reason)
        if peer.task is not None and peer.task is not asyncio.current_task():
            peer.task.cancel()

    async def _persist(self, peer: _Peer, attempt: Callable[[], Awaitable[None]]) -> None:
        """Until it succeeds, it is refused for good, time runs out, or nobody is there."""
        refused, pause_s = 0, _RETRY_MIN_S
        while True:
            try:
                return await attempt()
            except Unreachable as error:
                peer.trouble = str(error)
                refused = refused + 1 if error.gone else 0
            if refused == _GONE_AFTER:
                raise LinkError(
                    f"{peer.who} has ended, or a firewall rejects this process: {peer.trouble}"
                )
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _RETRY_MAX_S)

    async def _connect_shm(self, call: Call, peer: _Peer) -> None:
        connection, segment = await dial_shm(
            call, lambda: (self._native.comm_make_segment(), self._native.comm_bell())
        )
        self._add_shm_link(call.peer, connection, segment)
        self._settle(peer)

    async def _connect_tcp(self, call: Call, peer: _Peer) -> None:
        self._add_tcp_link(call.peer, await dial_tcp(call, self._tcp_sockets))
        self._settle(peer)

    async def _connect_rdma(self, call: Call, peer: _Peer) -> None:
        half = self._prepare_rdma(b"")
        connection, offer = await dial_rdma(call, half.offer())
        self._add_rdma_link(call.peer, connection, half, offer)
        self._settle(peer)

    def _prepare_rdma(self, client_offer: bytes) -> RdmaHalf:
        try:
            return self._native.comm_prepare_rdma(client_offer)
        except ValueError as error:
            raise LinkError(f"{error}. JAXCOLL_TRANSPORT=shm,tcp does without rdma") from None

    def _add_rdma_link(
        self, peer: Record, connection: Connection, half: RdmaHalf, offer: bytes
    ) -> None:
        self._native.comm_add_rdma_link(
            peer.index, half, connection.detach(), offer, f"rdma to {peer}"
        )

    def _add_shm_link(self, peer: Record, connection: Connection, segment: int) -> None:
        peer_segment, peer_bell = connection.take_descriptors()
        self._native.comm_add_shm_link(
            peer.index, connection.detach(), segment, peer_segment, peer_bell, f"shm to {peer}"
        )

    def _add_tcp_link(self, peer: Record, connections: list[Connection]) -> None:
        first = connections[0].socket
        ends = map(host.address_text, (first.getsockname(), first.getpeername()))
        text = f"tcp to {peer}, {len(connections)} sockets, {' to '.join(ends)}"
        self._native.comm_add_tcp_link(peer.index, [c.detach() for c in connections], text)

    # --- those who connect ----------------------------------------------------------------------

    async def _serve(self, connection: Connection, admitted: Callable[[], None]) -> None:
        async with asyncio.timeout(self._handshake_s):
            if connection.is_unix:
                if connection.peer_uid() != os.getuid():
                    raise ProtocolError(f"uid {connection.peer_uid()} has connected")
            elif connection.socket.getsockname()[0] not in self._listened_addresses:
                raise ProtocolError("it came by an interface that JAXCOLL_IFNAME excludes")
            secret = await self._secret()
            hello, transcript = await admit(connection, secret, self._index)
            offer = b""
            if hello.purpose == Purpose.RDMA:
                message = await connection.receive(handshake.OFFER_BYTES_MAX)
                offer = handshake.read_offer(secret, transcript, message)
        admitted()
        if hello.client >= self._count:
            raise ProtocolError(f"process {hello.client} of {self._count}")
        if (hello.purpose == Purpose.ASK) != (hello.client > self._index):
            raise ProtocolError("the lower index connects, the higher one asks")
        if hello.purpose == Purpose.ASK:
            reason = await asyncio.shield(self._make_link(hello.client).outcome)
            connection.send(handshake.write_answer(secret, transcript, reason or None))
            return
        arrival = self._arrivals.add(hello, transcript, connection)
        if arrival is not None:
            arrival.offer = offer
            try:
                await self._accept_link(arrival, secret)
            finally:
                arrival.close()

    async def _accept_link(self, arrival: Arrival, secret: bytes) -> None:
        index = arrival.hello.client
        async with asyncio.timeout(self._handshake_s):
            record = await self._record(index)  # it is there: the peer published before it came
        # Nothing below waits: either both ends see a link or neither.
        peer = self._peers.setdefault(index, _new_peer(index))
        connections = [arrival.connections[i] for i in range(arrival.hello.socket_count)]
        if peer.outcome.done():
            reason = peer.outcome.result() or "it has a link to this process already"
            connections[0].send(handshake.write_answer(secret, arrival.transcript, reason))
            return
        answer = handshake.write_answer(secret, arrival.transcript)
        try:
            if arrival.hello.purpose == Purpose.SHM:
                segment = self._native.comm_make_segment()
                try:
                    connections[0].send(answer, [segment, self._native.comm_bell()])
                except BaseException:
                    os.close(segment)
                    raise
                self._add_shm_link(record, connections[0], segment)
            elif arrival.hello.purpose == Purpose.RDMA:
                half = self._prepare_rdma(arrival.offer)
                connections[0].send(
                    handshake.write_answer(secret, arrival.transcript, offer=half.offer())
                )
                self._add_rdma_link(record, connections[0], half, arrival.offer)
            else:
                connections[0].send(answer)
                self._add_tcp_link(record, connections)
        except OSError:
            raise  # the peer has gone or given up; it may come again
        except LinkError as error:
            self._fail(index, peer, str(error))
            connections[0].send(handshake.write_answer(secret, arrival.transcript, str(error)))
            raise
        except Exception as error:
            self._fail(index, peer, f"{type(error).__name__}: {error}")
            raise
        self._settle(peer)
