"""Connects the processes of a job and passes the descriptors to the engine.

`start` runs early (`_job/presence.py`). From then on a daemon thread listens and runs every
handshake on its own event loop, and this process is published in the job's store; a second thread
makes the store's blocking calls. The engine requests links (`Bootstrap.want`) and gets descriptors,
which it then owns: non-blocking, closed on exec, TCP_NODELAY set on tcp.

A pair has exactly one link, and the lower process index connects it. If the higher one wants a
link, it connects to the lower one and requests it. That connection stays open until the lower one
reports success or the reason of a failure, so that both ends fail with the same reason and the
death of the lower one is detected. A request that is repeated, or made while the lower one
connects, has no effect, so there is no race. With a key in the store instead, a request to the
store would have to wait for each pair.

A process whose engine has not started yet also accepts connections, and holds them, with a
heartbeat every second, until it has. So a process that waits for a link is connected to its peer.
It detects within a second that the peer has died (the connection breaks, and no process listens any
more), and after a while that it is stopped or cut off (no heartbeats).

A process that cannot take part, or no longer can, writes the reason into the store, under "end/":
this may be all that it can still do. A process that waits for a link reads it twice a second.

A failure is final: a later request for a link to that peer fails with the same reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from jaxcoll import _environment
from jaxcoll._job import engine_links as links
from jaxcoll._job import handshake, host, waiting
from jaxcoll._job import listener as _listener
from jaxcoll._job import secret as _secret
from jaxcoll._job.connection import Connection, admit
from jaxcoll._job.dial import Call, Unreachable, ask, dial_rdma, dial_shm, dial_tcp
from jaxcoll._job.engine_links import Native
from jaxcoll._job.handshake import ProtocolError, Purpose
from jaxcoll._job.host import LinkError, Record
from jaxcoll._job.listener import Arrival, Arrivals, Visit
from jaxcoll._job.loop_thread import LoopThread, Store
from jaxcoll._job.peer import Exhausted, Gone, Peer, new_peer, persist, read_ends
from jaxcoll._job.reach import WATCH_S, TcpReach, way_to
from jaxcoll._job.secret import Secret, SignedStore
from jaxcoll._job.store_thread import StoreThread

PREFIX = "jaxcoll/1/"  # of every key in the store
ENDS = PREFIX + "end/"  # why processes take no part any more

_TIMEOUT_S = 300.0
_TCP_SOCKETS = 4
_HANDSHAKE_S = 10.0  # an emulated host with an emulated NIC has taken more than 5
_BEAT_S = 1.0
_SILENCE_S = 60.0
_LOOK_S = 0.5  # between two looks at why others have ended
_ASK_AFTER_S = 0.05  # normally both sides want the link, and the lower one connects by itself
_ANSWER_S = 0.02  # for telling the waiting processes that this one ends
_LAST_WORDS_S = 1.0  # for telling the store
# The secret of handshakes over Unix sockets in a job that was given no secret. The kernel
# tells both ends the other's user, so nothing needs to be secret there.
_NO_SECRET = bytes(32)

_Result = TypeVar("_Result")

_log = logging.getLogger("jaxcoll.bootstrap")


class _Twin(LinkError):
    """Another process has this one's index."""


def _link_timeout_s(timeout_s: float) -> float:
    """Sooner than the deadline of the collective, which can only say that there is no link."""
    return max(0.8 * timeout_s, timeout_s - 10)


def _silence_s(timeout_s: float) -> float:
    """How long a peer may be silent; the engine's rule, see docs/how-to/failures.md."""
    return max(timeout_s / 5, min(timeout_s, 10.0))


def _text(error: BaseException) -> str:
    return str(error) if isinstance(error, LinkError) else f"{type(error).__name__}: {error}"


class Bootstrap(LoopThread):
    """Links this process to others of its job. One per process and job.

    Thread rule: public methods may be called by any thread; everything else runs on its own.

    Args:
      native: the engine.
      store: the job's store.
      index, count: this process's index, and the number of processes.
      version: jaxcoll's; processes that differ refuse each other.
      timeout_s: from `want` until the link must be there.
      transports: those that may be used.
      tcp_sockets: how many sockets a tcp link has; the lower index of a pair decides.
      tcp_encrypt: whether what goes over tcp is encrypted; either of a pair decides.
      ifname: JAXCOLL_IFNAME: whether its names are excluded, and the names.
      host_id: what stands for this host instead of its own identity.
      handshake_s: how long one handshake may take.
      silence_s: a peer that gives no sign of life for this long is given up.
      engine_started: whether `native` can take links now; else after `start_engine`.
      secret: what this process was given beside the store, if anything.
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
        tcp_encrypt: bool = False,
        ifname: tuple[bool, tuple[str, ...]] | None = None,
        host_id: str | None = None,
        handshake_s: float = _HANDSHAKE_S,
        silence_s: float = _SILENCE_S,
        engine_started: bool = True,
        secret: Secret | None = None,
    ) -> None:
        who = f"process {index} (pid {os.getpid()} on {host.hostname()})"
        super().__init__(SignedStore(store, secret, who))
        self._who = who
        self._native = native
        self._given = secret
        self._index = index
        self._count = count
        self._version = version
        self._timeout_s = timeout_s
        self._transports = transports
        self._tcp_sockets = tcp_sockets
        self._tcp_encrypt = tcp_encrypt
        self._ifname = ifname
        self._host_id = host_id
        self._handshake_s = handshake_s
        self._silence_s = silence_s
        self._beat_s = min(_BEAT_S, handshake_s / 4)

        self._settled = threading.Event()  # published, or it cannot be
        self._end = ""  # why this process takes no part any more; written once
        self._first_failure = ""  # why the first link failed whose failure the engine knows

        # The rest belongs to the loop's thread.
        self._published: asyncio.Future[Record] | None = None
        self._engine_started = engine_started
        self._ready = asyncio.Event()  # to settle links: the engine has been started, or never will
        if engine_started:
            self._ready.set()
        self._watch: asyncio.Task[None] | None = None  # of the store, for processes that have ended
        self._told: asyncio.Task[None] | None = None  # the store knows of this process's end
        self._peers: dict[int, Peer] = {}
        self._arrivals = Arrivals(handshake_s)
        self._door = _listener.Door(index, self._serve, handshake_s, self._cannot_accept)
        self._reach: TcpReach | None = None

    @classmethod
    def from_environment(cls, native: Native, *, engine_started: bool = True) -> Bootstrap:
        """For the job that `jax.distributed.initialize` has joined. Starts nothing.

        Raises: LinkError if there is none.
        """
        import jaxcoll  # here: ranks of our own link up without JAX
        from jaxcoll._jax import compat

        job = compat.distributed_store()
        if job is None:
            raise LinkError("processes are linked only after jax.distributed.initialize()")
        values: dict[str, Any] = _environment.values()
        timeout_s = values["JAXCOLL_TIMEOUT_S"] or _TIMEOUT_S
        return cls(
            native,
            *job,
            version=jaxcoll.__version__,
            timeout_s=_link_timeout_s(timeout_s),
            silence_s=_silence_s(timeout_s),
            transports=values["JAXCOLL_TRANSPORT"] or host.TRANSPORTS,
            tcp_sockets=values["JAXCOLL_TCP_SOCKETS"] or _TCP_SOCKETS,
            tcp_encrypt=values["JAXCOLL_TCP_ENCRYPT"] == "1",
            ifname=values["JAXCOLL_IFNAME"],
            host_id=values["JAXCOLL_HOST_ID"],
            engine_started=engine_started,
            secret=_secret.given(),
        )

    # --- any thread -----------------------------------------------------------------------------

    def start(self) -> None:
        """Opens the listeners and publishes this process, so that others can link to it.

        Raises: LinkError if there can be no thread. A later failure is raised when a link is
        wanted.
        """
        self._call_soon(self._start_publishing)

    def wait_until_published(self, limit_s: float) -> bool:
        """Whether the others can know of this process by now, or of why they cannot link to it."""
        return self._settled.wait(limit_s)

    def start_engine(self) -> None:
        """`native` takes links from now on."""
        self._call_soon(self._on_engine)

    def want(self, peer: int) -> None:
        """Asks for a link to process `peer`; returns at once.

        The engine hears of the link once, by one of comm_add_*_link or by comm_link_failed; nothing
        for a link that it has, and nothing at all after `close`. A link may also come that only the
        peer wanted, or just before this call.
        """
        self._call_soon(self._want, peer)

    def refuse(self, reason: str) -> None:
        """From now on this process takes part in nothing: a request for a link fails with the
        reason."""
        with contextlib.suppress(LinkError):  # it has no thread, and the store has the reason
            self._call_soon(self._give_up, reason)

    def forget(self) -> None:
        """In a process that was forked off: nobody shall connect to it, or wait for it."""
        self._door.forget_listeners()
        Connection.close_all()

    def listening(self) -> list[str]:
        """For people: where this process can be reached now."""
        return self._door.listening()

    def _name(self) -> str:
        return self._who

    def _tell_store(self, reason: str) -> None:
        """By the calling thread."""
        try:
            self._store_client.set(f"{ENDS}{self._index}", reason.encode())
        except Exception as error:
            _log.info("could not write to the job's store that %s: %s", reason, error)

    def _on_no_thread(self, error: Exception) -> LinkError:
        if not self._end:
            self._end = f"{self._name()} cannot set up its links: {_text(error)}"
            self._tell_store(self._end)
        self._settled.set()
        return LinkError(self._end)

    # --- the thread -----------------------------------------------------------------------------

    def _on_lost_loop(self, error: BaseException) -> None:
        self._end = self._end or f"{self._name()} cannot make links any more: {_text(error)}"
        self._tell_store(self._end)
        for index, peer in self._peers.items():
            if not peer.outcome.done() and self._engine_started:
                self._native.comm_link_failed(index, self._end)

    def _on_trouble(self, error: Exception) -> None:
        self._give_up(f"{self._name()} cannot make links any more: {_text(error)}")

    def _free(self) -> None:
        self._settled.set()
        self._arrivals.close()
        self._door.close()
        if self._reach is not None:
            self._reach.close()

    def _on_engine(self) -> None:
        self._engine_started = True
        self._ready.set()

    async def _last_words(self, words: str) -> None:
        """Notifies the processes that wait for this one, now or later, that it ends. Links stay."""
        self._engine_started = False
        ended = f"{self._name()} {words or 'has ended, or has shut down jaxcoll'}"
        # A peer may read this end before the one that caused it.
        if self._first_failure and not words:
            ended += f", after a link had failed: {self._first_failure}"
        self._give_up(ended, tell=self._published is not None)
        last = [self._told] if self._told is not None else []
        if self._reach is not None:
            last.append(self._spawn(self._reach.stop_watching()))
        await asyncio.sleep(_ANSWER_S)
        if last:
            await asyncio.wait(last, timeout=_LAST_WORDS_S)

    def _give_up(self, reason: str, *, here: str = "", tell: bool = True) -> None:
        """This process takes part in nothing any more; the first reason stands.

        Args:
          here: the reason in other words, for this process itself.
          tell: whether to write it to the store.
        """
        if self._end:
            return
        self._end = reason
        if tell:
            _log.info("reported to the other processes: %s", reason)
            self._told = self._spawn(self._tell(reason))
        for index in range(self._count):
            if index != self._index:
                self._fail(index, self._peers.setdefault(index, new_peer(index)), reason, here)
        self._ready.set()
        self._settled.set()
        if self._engine_started:
            self._native.comm_refuse(here or reason)

    async def _tell(self, reason: str) -> None:
        with contextlib.suppress(LinkError):  # then the others find out by themselves
            await self._store.set(f"{ENDS}{self._index}", reason.encode())

    # --- the store ------------------------------------------------------------------------------

    def _start_publishing(self) -> asyncio.Future[Record]:
        if self._published is None:
            self._published = self._spawn(self._publish())
            self._published.add_done_callback(self._on_published)
        return self._published

    def _on_published(self, published: asyncio.Future[Record]) -> None:
        error = None if published.cancelled() else published.exception()
        # A twin must not speak for the process whose index it has.
        if error is not None and not isinstance(error, _Twin):
            reason = f"{self._name()} cannot be linked to: {_text(error)}"
            self._give_up(reason, here=_text(error))
        self._settled.set()

    async def _publish(self) -> Record:
        self._reach = TcpReach(
            PREFIX,
            self._index,
            self._count,
            self._door,
            self._store,
            StoreThread(self._store_client, asyncio.get_running_loop(), WATCH_S),
            self._given,
            self._ifname,
            self._record,
        )
        record = self._listen()
        key = f"{PREFIX}process/{self._index}"
        await self._store.set(key, record.to_bytes())
        if await self._store.get(key) != record.to_bytes():
            raise _Twin(
                f"process {self._index} is in this job's store already; two processes have the "
                "same index, or one has set up jaxcoll's links twice"
            )
        self._reach.watch(record)
        return record

    def _unix_secret(self) -> bytes:
        return self._given.key("links") if self._given else _NO_SECRET

    async def _record(self, index: int) -> Record:
        return Record.from_bytes(await self._store.get(f"{PREFIX}process/{index}"), index)

    def _listen(self) -> Record:
        """Listens for shared memory, and sees that it could for tcp. Raises: LinkError, OSError."""
        unix_name = ""
        if "shm" in self._transports:
            listener, unix_name = _listener.listen_unix()
            self._door.open(listener, self._unix_secret())
        if "tcp" in self._transports or "rdma" in self._transports:  # rdma is set up over tcp
            host.choose_addresses(host.interfaces(), self._ifname)
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
            fabrics=fabrics,
            no_rdma=no_rdma,
        )

    def _cannot_accept(self, error: BaseException) -> None:
        self._give_up(f"{self._name()} cannot accept connections: {_text(error)}")

    @property
    def _tcp(self) -> TcpReach:
        assert self._reach is not None  # since this process was published
        return self._reach

    def _fabrics(self) -> tuple[tuple[str, ...], str]:
        """Those of this process's RDMA ports, or why there are none."""
        if "rdma" not in self._transports:
            return (), "JAXCOLL_TRANSPORT leaves it out"
        try:
            return tuple(self._native.comm_rdma_fabrics()), ""
        except ValueError as error:
            return (), str(error)[: host.REASON_CHARACTERS_MAX]

    # --- peers ----------------------------------------------------------------------------------

    def _want(self, peer: int) -> None:
        state = self._make_link(peer)
        if state.outcome.done() and state.outcome.result():
            self._tell_engine(peer, state.outcome.result())

    def _make_link(self, index: int) -> Peer:
        """Starts making a link unless somebody did before."""
        peer = self._peers.get(index)
        if peer is None:
            peer = self._peers[index] = new_peer(index)
            peer.task = self._spawn(self._link(index, peer))
            if self._watch is None:
                self._watch = self._spawn(self._watch_ends())
        return peer

    async def _watch_ends(self) -> None:
        """Fails links to those that have said in the store why they take no part any more."""
        while True:
            await asyncio.sleep(_LOOK_S)
            waited_for = {
                index: peer
                for index, peer in self._peers.items()
                if peer.task is not None and not peer.outcome.done()
            }
            if not waited_for:
                self._watch = None
                return
            ends = await self._ends()
            for index, peer in waited_for.items():
                if index in ends:
                    self._fail(index, peer, ends[index])

    async def _ends(self) -> dict[int, str]:
        try:
            return read_ends(await self._store.list(ENDS), ENDS)
        except LinkError:  # whoever needs the store will say so
            return {}

    async def _link(self, index: int, peer: Peer) -> None:
        try:
            if index == self._index or not 0 <= index < self._count:
                raise LinkError(f"process {self._index} of {self._count} wants a link to {index}")
            await self._ready.wait()  # it may be long before this process wants a link
            async with waiting.deadline(self._timeout_s):
                own = await asyncio.shield(self._start_publishing())
                peer.trouble = "it has not started, or has run no collective across processes yet"
                record = await self._record(index)
                peer.who = str(record)
                transport = host.choose_transport(own, record)
                links.check_crypto(self._native, self._name(), transport)
                peer.trouble = "it does not complete the handshake"
                if self._index < index:
                    await self._persist(index, peer, lambda: self._connect(own, record, peer))
                    return
                if transport != "shm":
                    await self._tcp.listen(way_to(own, record))
                await asyncio.sleep(_ASK_AFTER_S)  # cancelled by the link's arrival
                await self._persist(index, peer, lambda: self._ask(own, record, peer))
                raise LinkError(f"{record} has made a link, but it has not arrived")
        except TimeoutError:
            reason = f"no link to {peer.who} within {self._timeout_s:g} s: {peer.trouble}"
            self._fail(index, peer, reason)
        except Exception as error:
            self._fail(index, peer, self._end or _text(error), _text(error))

    def _fail(self, index: int, peer: Peer, reason: str, here: str = "") -> None:
        if not peer.outcome.done():
            self._settle(peer, reason)
            if (
                self._engine_started
            ):  # otherwise it has not asked yet, and gets the answer when it does
                self._tell_engine(index, here or reason)

    def _tell_engine(self, index: int, reason: str) -> None:
        self._first_failure = self._first_failure or reason
        self._native.comm_link_failed(index, reason)

    def _settle(self, peer: Peer, reason: str = "") -> None:
        peer.outcome.set_result(reason)
        if peer.task is not None and peer.task is not asyncio.current_task():
            peer.task.cancel()

    async def _persist(
        self, index: int, peer: Peer, attempt: Callable[[], Awaitable[None]]
    ) -> None:
        try:
            await persist(peer, attempt, self._silence_s)
        except Gone as error:
            raise LinkError((await self._ends()).get(index, str(error))) from None
        except Exhausted as error:
            self._give_up(f"{self._name()} cannot make links: {error}")

    async def _call(self, own: Record, record: Record, transport: str, peer: Peer) -> Call:
        if transport == "shm":
            return Call(own, record, self._unix_secret(), self._handshake_s, peer.on_beat)
        try:
            async with asyncio.timeout(self._handshake_s):
                addresses = await self._tcp.addresses(own, record)
        except TimeoutError:
            reason = f"no answer within {self._handshake_s:g} s to the request to listen for tcp"
            raise Unreachable(reason, silent_s=self._handshake_s) from None
        secret = await self._tcp.secret()
        return Call(
            own,
            record,
            secret,
            self._handshake_s,
            peer.on_beat,
            encrypt=self._tcp_encrypt,
            addresses=addresses,
        )

    async def _ask(self, own: Record, record: Record, peer: Peer) -> None:
        transport = host.choose_transport(own, record)
        await ask(await self._call(own, record, transport, peer), transport)

    async def _connect(self, own: Record, record: Record, peer: Peer) -> None:
        transport = host.choose_transport(own, record)
        call = await self._call(own, record, transport, peer)
        if transport == "shm":
            await self._connect_shm(call, peer)
        elif transport == "rdma":
            await self._connect_rdma(call, peer)
        else:
            await self._connect_tcp(call, peer)

    async def _connect_shm(self, call: Call, peer: Peer) -> None:
        connection, segment = await dial_shm(
            call, lambda: (self._native.comm_make_segment(), self._native.comm_bell())
        )
        links.add_shm_link(self._native, call.peer, connection, segment)
        self._settle(peer)

    async def _connect_tcp(self, call: Call, peer: Peer) -> None:
        connections, key = await dial_tcp(call, self._tcp_sockets)
        links.add_tcp_link(self._native, call.peer, connections, key, client=True)
        self._settle(peer)

    async def _connect_rdma(self, call: Call, peer: Peer) -> None:
        half = links.prepare_rdma(self._native, b"")
        connection, offer, key = await dial_rdma(call, half.offer())
        links.add_rdma_link(self._native, call.peer, connection, half, offer, key, client=True)
        self._settle(peer)

    # --- connections from others ----------------------------------------------------------------

    async def _serve(self, visit: Visit) -> None:
        connection, secret, hello = visit.connection, visit.secret, visit.hello
        async with asyncio.timeout(self._handshake_s):
            transcript = await admit(connection, secret, visit.message, hello, self._tcp_encrypt)
            offer = b""
            if hello.purpose == Purpose.RDMA:
                message = await connection.receive(handshake.OFFER_BYTES_MAX)
                offer = handshake.read_offer(secret, transcript, message)
        visit.admitted()
        if hello.client >= self._count:
            raise ProtocolError(f"process {hello.client} of {self._count}")
        if (hello.purpose == Purpose.ASK) != (hello.client > self._index):
            raise ProtocolError("the lower index connects, the higher one asks")
        try:
            await self._check_way(visit)
        except LinkError as error:
            connection.send(handshake.write_answer(secret, transcript, str(error)))
            return
        if hello.purpose == Purpose.ASK:
            outcome = asyncio.shield(self._make_link(hello.client).outcome)
            reason = await self._hold(connection, secret, transcript, outcome)
            connection.send(handshake.write_answer(secret, transcript, reason or None))
            return
        arrival = self._arrivals.add(hello, transcript, connection)
        if arrival is not None:
            arrival.offer = offer
            try:
                await self._accept_link(arrival, secret)
            finally:
                arrival.close()

    async def _hold(
        self, connection: Connection, secret: bytes, transcript: bytes, result: Awaitable[_Result]
    ) -> _Result:
        def beat(count: int) -> bytes:
            return handshake.write_beat(secret, transcript, count)

        return await waiting.hold(connection, result, beat, self._beat_s)

    async def _check_way(self, visit: Visit) -> None:
        """Whether it came as its author and this process have to. Raises: LinkError."""
        async with asyncio.timeout(self._handshake_s):
            own = await asyncio.shield(self._start_publishing())
            # It is there: the peer published before it came.
            peer = await self._record(visit.hello.client)
        by_tcp = {Purpose.RDMA: ["rdma"], Purpose.TCP: ["tcp"], Purpose.ASK: ["tcp", "rdma"]}
        could_be = ["shm"] if visit.connection.is_unix else by_tcp[visit.hello.purpose]
        host.check_transport(own, peer, could_be)

    async def _accept_link(self, arrival: Arrival, secret: bytes) -> None:
        index = arrival.hello.client
        connections = [arrival.connections[i] for i in range(arrival.hello.socket_count)]
        async with asyncio.timeout(self._handshake_s):
            record = await self._record(index)  # it is there: the peer published before it came
        await self._hold(connections[0], secret, arrival.transcript, self._ready.wait())
        # Nothing below waits: either both ends see a link or neither.
        peer = self._peers.setdefault(index, new_peer(index))
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
                links.add_shm_link(self._native, record, connections[0], segment)
            elif arrival.hello.purpose == Purpose.RDMA:
                links.check_crypto(self._native, self._name(), "rdma")
                half = links.prepare_rdma(self._native, arrival.offer)
                connections[0].send(
                    handshake.write_answer(secret, arrival.transcript, offer=half.offer())
                )
                key = arrival.link_key(secret)
                links.add_rdma_link(
                    self._native, record, connections[0], half, arrival.offer, key, client=False
                )
            else:
                links.check_crypto(self._native, self._name(), "tcp")
                connections[0].send(answer)
                links.add_tcp_link(
                    self._native, record, connections, arrival.link_key(secret), client=False
                )
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
