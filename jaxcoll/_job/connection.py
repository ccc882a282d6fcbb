"""One socket of a handshake: short messages, descriptors, and nothing left open."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from jaxcoll._job import handshake
from jaxcoll._job.handshake import Hello, ProtocolError, Purpose

SHM_DESCRIPTORS = 2  # segment and bell

_LENGTH = struct.Struct("!H")
_DESCRIPTOR = struct.Struct("i")
_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid
_BACKLOG_FULL_PAUSE_S = 0.01

_open: weakref.WeakSet[Connection] = weakref.WeakSet()


class Connection:
    """A socket that does not block, and the descriptors that came over it.

    Closes whatever nobody has taken. Thread rule: only the event loop's thread uses it. Waiting can
    be cancelled anywhere without losing a descriptor: what is received is stored without a pause.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = sock
        self._descriptors: list[int] = []
        self._partial = b""  # of a message that is on its way, over tcp
        _open.add(self)

    @staticmethod
    def close_all() -> None:
        """In a process that was forked off: its copies must not outlive its parent's."""
        for connection in list(_open):
            connection.close()

    @classmethod
    async def open(cls, family: int, address: Any) -> Connection:
        """Connects. Raises: OSError."""
        kind = socket.SOCK_SEQPACKET if family == socket.AF_UNIX else socket.SOCK_STREAM
        connection = cls(socket.socket(family, kind))
        try:
            while not await connection._connect(address):
                await asyncio.sleep(_BACKLOG_FULL_PAUSE_S)
        except BaseException:
            connection.close()
            raise
        return connection

    async def _connect(self, address: Any) -> bool:
        try:
            self.socket.connect(address)
        except BlockingIOError:
            if self.is_unix:
                return False  # the listener's backlog is full; no event announces the end
            await writable(self.socket)
            error = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise OSError(error, os.strerror(error)) from None
        return True

    @property
    def is_unix(self) -> bool:
        return self.socket.family == socket.AF_UNIX

    @property
    def descriptor_count(self) -> int:
        """Received and not yet taken."""
        return len(self._descriptors)

    def peer_uid(self) -> int:
        """The user id of the process that connected, or listens, at the other end of a Unix
        socket."""
        credentials = self.socket.getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
        )
        return int(_CREDENTIALS.unpack(credentials)[1])

    def move(self) -> Connection:
        """A connection that owns what this one did; closing this one then does nothing."""
        moved = Connection(socket.socket(fileno=self.socket.detach()))
        moved._descriptors = self.take_descriptors()
        return moved

    def detach(self) -> int:
        """Gives the socket's descriptor away."""
        return self.socket.detach()

    def take_descriptors(self) -> list[int]:
        """Gives the received descriptors away."""
        taken, self._descriptors = self._descriptors, []
        return taken

    def close(self) -> None:
        for descriptor in self.take_descriptors():
            os.close(descriptor)
        self.socket.close()

    def send(self, message: bytes, descriptors: Sequence[int] = ()) -> None:
        """Sends at once: a handshake is far smaller than any socket's buffer. Raises: OSError."""
        frame = _LENGTH.pack(len(message)) + message
        if descriptors:
            sent = socket.send_fds(self.socket, [frame], list(descriptors))
        else:
            sent = self.socket.send(frame)
        if sent != len(frame):
            raise ProtocolError("it does not read what it is sent")

    async def receive(self, bytes_max: int, descriptor_count: int = 0) -> bytes:
        """One message. Raises: ProtocolError if it is longer, misses descriptors, or never ends."""
        while (message := self.receive_now(bytes_max, descriptor_count)) is None:
            await readable(self.socket)
        return message

    def receive_now(self, bytes_max: int, descriptor_count: int = 0) -> bytes | None:
        """The same if it is here as a whole; None if it is not yet. Reads nothing behind it."""
        try:
            if self.is_unix:
                return self._receive_packet(bytes_max, descriptor_count)
            return self._receive_stream(bytes_max)
        except BlockingIOError:
            return None

    def _receive_stream(self, bytes_max: int) -> bytes:
        wanted = _LENGTH.size
        while True:
            if len(self._partial) >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(self._partial)
                if length > bytes_max:
                    raise ProtocolError(f"a message of {length} bytes")
                wanted = _LENGTH.size + length
                if len(self._partial) == wanted:
                    message, self._partial = self._partial[_LENGTH.size :], b""
                    return message
            part = self.socket.recv(wanted - len(self._partial))
            if not part:
                raise ConnectionResetError("it closed the connection")
            self._partial += part

    def _receive_packet(self, bytes_max: int, descriptor_count: int) -> bytes:
        # One more: a longer packet must not look like a good one.
        room = _LENGTH.size + bytes_max + 1
        if descriptor_count:
            packet = self._receive_descriptors(room, descriptor_count)
        else:
            packet = self.socket.recv(room)  # the kernel drops descriptors that nobody expects
        if not packet:
            raise ConnectionResetError("it closed the connection")
        if (
            len(packet) < _LENGTH.size
            or _LENGTH.unpack_from(packet)[0] != len(packet) - _LENGTH.size
        ):
            raise ProtocolError(f"a packet of {len(packet)} bytes")
        return packet[_LENGTH.size :]

    def _receive_descriptors(self, room: int, count: int) -> bytes:
        # Not socket.recv_fds: it ignores its flags, and the descriptors would survive exec.
        packet, ancillary, flags, _ = self.socket.recvmsg(
            room, socket.CMSG_SPACE(count * _DESCRIPTOR.size), socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                whole = data[: len(data) // _DESCRIPTOR.size * _DESCRIPTOR.size]
                self._descriptors += [fd for (fd,) in _DESCRIPTOR.iter_unpack(whole)]
        if flags & socket.MSG_CTRUNC:
            raise ProtocolError("too many descriptors")
        return packet


async def readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    await _ready(sock, loop.add_reader, loop.remove_reader)


async def writable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    await _ready(sock, loop.add_writer, loop.remove_writer)


async def _ready(
    sock: socket.socket, add: Callable[..., Any], remove: Callable[[int], Any]
) -> None:
    ready = asyncio.Event()
    descriptor = sock.fileno()
    add(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        remove(descriptor)


# --- handshakes ---------------------------------------------------------------------------------


async def introduce(connection: Connection, secret: bytes, hello: Hello) -> bytes:
    """The client's half up to the server's proof; returns the transcript."""
    message = handshake.write_hello(secret, hello)
    connection.send(message)
    challenge = await connection.receive(handshake.CHALLENGE_BYTES)
    return handshake.read_challenge(secret, message, challenge)


async def admit(
    connection: Connection, secret: bytes, message: bytes, hello: Hello, encrypt: bool = False
) -> bytes:
    """The server's half from the client's hello up to its proof; returns the transcript.

    Args:
      message, hello: as it came, and what `handshake.read_hello` made of it.
      encrypt: whether this side asks that what goes over tcp is encrypted.
    """
    if hello.purpose in (Purpose.TCP, Purpose.RDMA) and connection.is_unix:
        raise ProtocolError("a link to another host over a Unix socket")
    if (hello.purpose == Purpose.SHM) and not connection.is_unix:
        raise ProtocolError("shared memory over tcp")
    challenge, transcript = handshake.write_challenge(secret, message, encrypt)
    connection.send(challenge)
    descriptor_count = SHM_DESCRIPTORS if hello.purpose == Purpose.SHM else 0
    proof = await connection.receive(handshake.PROOF_BYTES, descriptor_count)
    handshake.read_proof(secret, transcript, proof)
    if connection.descriptor_count != descriptor_count:
        raise ProtocolError(f"{connection.descriptor_count} descriptors")
    return transcript
