"""The connecting side of a link: one attempt each."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from jaxcoll._errors import JaxcollError
from jaxcoll._job import handshake
from jaxcoll._job.connection import SHM_DESCRIPTORS, Connection, introduce
from jaxcoll._job.handshake import Hello, LinkKey, ProtocolError, Purpose
from jaxcoll._job.host import LinkError, Record, address_text, family_of

# The resource that this process has run out of: no peer is at fault.
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}


class Unreachable(JaxcollError):
    """An attempt has failed; another one may succeed."""

    def __init__(
        self, reason: str, *, gone: bool = False, exhausted: bool = False, silent_s: float = 0.0
    ) -> None:
        super().__init__(reason)
        self.gone = gone  # nobody listens there
        self.exhausted = exhausted  # this process lacks descriptors or memory
        self.silent_s = silent_s  # how long the peer has been waited for in vain


@dataclass(frozen=True)
class Call:
    """The caller, the peer and where it listens: `addresses` for all but shm."""

    own: Record
    peer: Record
    secret: bytes
    handshake_s: float
    on_beat: Callable[[], None] = field(default=lambda: None)  # it lives, but has no answer yet
    encrypt: bool = False
    addresses: Sequence[tuple[str, int]] = ()

    def hello(self, purpose: Purpose, link_id: bytes, index: int = 0, count: int = 1) -> Hello:
        own, peer = self.own.index, self.peer.index
        return Hello(purpose, own, peer, link_id, index, count, self.encrypt)


def _link_id() -> bytes:
    return secrets.token_bytes(handshake.LINK_ID_BYTES)


async def dial_shm(
    call: Call, make_descriptors: Callable[[], tuple[int, int]]
) -> tuple[Connection, int]:
    """A connection that holds the peer's segment and bell, and this process's segment.

    Args:
      make_descriptors: this process's segment, from then on this function's, and its bell.

    Raises: Unreachable; LinkError if the peer refuses.
    """
    connection, transcript = await _meet_unix(call, call.hello(Purpose.SHM, _link_id()))
    segment = -1
    try:
        segment, bell = make_descriptors()
        connection.send(handshake.write_proof(call.secret, transcript), [segment, bell])
        await _accepted(call, connection, transcript, SHM_DESCRIPTORS)
    except BaseException as error:
        connection.close()
        if segment >= 0:
            os.close(segment)
        _raise_unreachable(error, "shm")
    return connection, segment


async def dial_tcp(call: Call, socket_count: int) -> tuple[list[Connection], LinkKey]:
    """Connected sockets. Raises: Unreachable naming every address; LinkError if refused."""
    link_id = _link_id()
    connections: list[Connection] = []
    transcripts: list[bytes] = []
    where = ""
    try:
        for index in range(socket_count):
            hello = call.hello(Purpose.TCP, link_id, index, socket_count)
            if index == 0:
                first, address, transcript = await _meet_tcp_somewhere(call, hello)
                where = address_text(address)
                connections.append(first)
            else:
                connection, transcript = await _meet_tcp(call, hello, address)
                connections.append(connection)
            connections[-1].send(handshake.write_proof(call.secret, transcript))
            transcripts.append(transcript)
        await _accepted(call, first, transcripts[0])
    except BaseException as error:
        for connection in connections:
            connection.close()
        _raise_unreachable(error, where)
    return connections, handshake.link_key(call.secret, transcripts)


async def dial_rdma(call: Call, offer: bytes) -> tuple[Connection, bytes, LinkKey]:
    """A connected socket, the peer's answer to this process's offer, and the socket's key.

    Raises: Unreachable naming every address; LinkError if refused.
    """
    connection, address, transcript = await _meet_tcp_somewhere(
        call, call.hello(Purpose.RDMA, _link_id())
    )
    try:
        connection.send(handshake.write_proof(call.secret, transcript))
        connection.send(handshake.write_offer(call.secret, transcript, offer))
        answer = await _accepted(call, connection, transcript)
    except BaseException as error:
        connection.close()
        _raise_unreachable(error, address_text(address))
    key = handshake.link_key(call.secret, [transcript])
    return connection, handshake.offer_in(answer), key


async def ask(call: Call, transport: str) -> None:
    """Asks the peer to make a link, and waits until it has, or has failed.

    Raises: Unreachable; LinkError if the peer has failed.
    """
    hello = call.hello(Purpose.ASK, _link_id())
    if transport == "shm":
        connection, transcript = await _meet_unix(call, hello)
    else:
        connection, _, transcript = await _meet_tcp_somewhere(call, hello)
    try:
        connection.send(handshake.write_proof(call.secret, transcript))
        await _accepted(call, connection, transcript)
    except BaseException as error:
        _raise_unreachable(error, transport)
    finally:
        connection.close()


async def _accepted(
    call: Call, connection: Connection, transcript: bytes, descriptor_count: int = 0
) -> bytes:
    """Waits for the answer as long as the peer says that it lives, and the caller lets it."""
    while True:
        async with _answered_within(call.handshake_s):
            answer = await connection.receive(handshake.ANSWER_BYTES_MAX, descriptor_count)
        if not handshake.is_beat(call.secret, transcript, answer):
            break
        call.on_beat()
    refusal = handshake.read_answer(call.secret, transcript, answer)
    if refusal is not None:
        named = refusal.startswith(f"process {call.peer.index} ")
        raise LinkError(refusal if named else f"{call.peer} refuses: {refusal}")
    if connection.descriptor_count != descriptor_count:
        raise ProtocolError(f"an answer with {connection.descriptor_count} descriptors")
    return answer


async def _meet_unix(call: Call, hello: Hello) -> tuple[Connection, bytes]:
    address = "\0" + call.peer.unix_name
    where = "shm"
    if call.own.machine != call.peer.machine:
        where += " (JAXCOLL_HOST_ID puts both on one host)"
    return await _meet(call, hello, socket.AF_UNIX, address, where)


async def _meet_tcp(call: Call, hello: Hello, address: tuple[str, int]) -> tuple[Connection, bytes]:
    return await _meet(call, hello, family_of(address[0]), address, address_text(address))


async def _meet_tcp_somewhere(
    call: Call, hello: Hello
) -> tuple[Connection, tuple[str, int], bytes]:
    """The first of the peer's addresses that works."""
    failures: list[Unreachable] = []
    for address in call.addresses:
        try:
            connection, transcript = await _meet_tcp(call, hello, address)
        except Unreachable as error:
            failures.append(error)
        else:
            return connection, address, transcript
    raise Unreachable(
        "; ".join(map(str, failures)),
        gone=all(failure.gone for failure in failures),
        exhausted=any(failure.exhausted for failure in failures),
        silent_s=sum(failure.silent_s for failure in failures),
    )


async def _meet(
    call: Call, hello: Hello, family: int, address: Any, where: str
) -> tuple[Connection, bytes]:
    """Connects and lets the server prove itself; the transcript."""
    connection = None
    try:
        async with _answered_within(call.handshake_s):
            connection = await Connection.open(family, address)
            if connection.is_unix and connection.peer_uid() != os.getuid():
                raise ProtocolError(f"it belongs to uid {connection.peer_uid()}")
            return connection, await introduce(connection, call.secret, hello)
    except BaseException as error:
        if connection is not None:
            connection.close()
        _raise_unreachable(error, where)


@contextlib.asynccontextmanager
async def _answered_within(seconds: float) -> AsyncIterator[None]:
    """Raises: Unreachable if what is inside takes longer."""
    try:
        async with asyncio.timeout(seconds) as timeout:
            yield
    except TimeoutError:
        if not timeout.expired():
            raise  # the kernel's, of a connection
        raise Unreachable(f"no answer within {seconds:g} s", silent_s=seconds) from None


def _raise_unreachable(error: BaseException, where: str) -> NoReturn:
    prefix = f"{where}: " if where else ""
    if isinstance(error, Unreachable) and not str(error).startswith(prefix):
        raise Unreachable(f"{prefix}{error}", silent_s=error.silent_s) from None
    if not isinstance(error, OSError | ProtocolError):
        raise error
    raise Unreachable(
        prefix + (getattr(error, "strerror", None) or str(error)),
        gone=isinstance(error, ConnectionRefusedError),
        exhausted=getattr(error, "errno", None) in _EXHAUSTED,
    ) from None
