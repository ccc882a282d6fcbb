"""The handshake in which two processes prove that they know the job's secret. Pure: no I/O.

    client -> server   hello      who, whom, what for, encrypted?, client's nonce, MAC
    server -> client   challenge  server's nonce, encrypted?, MAC over the hello and these
    client -> server   proof      MAC over the same; with the client's descriptors (shm)
    client -> server   offer      rdma only: the client's queue pairs and memory keys, MAC
    server -> client   beats      while the answer is not known yet: that the server lives, MAC
    server -> client   answer     accepted or refused and why, MAC; with the server's descriptors,
                                  or its offer

Every MAC is HMAC-SHA256 under the job's secret and covers a role byte that no two messages share,
so that none can be reflected to its author as another one. The hello contains both process indices:
reflected to its author, it names the wrong server. A replayed hello is answered by a challenge with
a fresh nonce, for which a recorded proof is wrong. A hello without a valid MAC gets no answer.

Later traffic over tcp is authenticated under the link's own key (`link_key`), and encrypted if
either side asks for it. The request is part of the authenticated messages, so an attacker between
them cannot disable encryption.
"""

from __future__ import annotations

import enum
import hmac
import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from jaxcoll._errors import JaxcollError

SECRET_BYTES = 32
LINK_ID_BYTES = 16
SOCKETS_MAX = 64
REASON_BYTES_MAX = 4096

_MAGIC = b"jaxcoll1"
_NONCE_BYTES = 32
_MAC_BYTES = 32
_COUNT = struct.Struct("!I")
_HELLO = struct.Struct(f"!8s{_NONCE_BYTES}s{LINK_ID_BYTES}sIIBHH?")
_ENCRYPT_AT = _HELLO.size - 1

HELLO_BYTES = _HELLO.size + _MAC_BYTES
CHALLENGE_BYTES = _NONCE_BYTES + 1 + _MAC_BYTES
PROOF_BYTES = _MAC_BYTES
BEAT_BYTES = _COUNT.size + _MAC_BYTES
ANSWER_BYTES_MAX = 1 + _MAC_BYTES + REASON_BYTES_MAX
OFFER_BYTES_MAX = _MAC_BYTES + REASON_BYTES_MAX


class ProtocolError(JaxcollError):
    """The other side does not know the secret, or does not speak this protocol."""


class Purpose(enum.IntEnum):
    """The purpose of a connection once both sides are known to each other."""

    SHM = 1  # the socket of a shared-memory link
    TCP = 2  # one of the sockets of a tcp link
    ASK = 3  # no link: the server is asked to make one, and answers when it is there or has failed
    RDMA = 4  # the socket beside an rdma link


class _Role(enum.IntEnum):
    HELLO = 1
    CHALLENGE = 2
    PROOF = 3
    ANSWER = 4
    OFFER = 5
    BEAT = 6
    LINK_KEY = 7


@dataclass(frozen=True)
class Hello:
    """The claims of a client. `link_id` is random and common to all sockets of one link."""

    purpose: Purpose
    client: int
    server: int
    link_id: bytes
    socket_index: int = 0
    socket_count: int = 1
    encrypt: bool = False
    nonce: bytes = field(default_factory=lambda: secrets.token_bytes(_NONCE_BYTES))


def _mac(secret: bytes, role: _Role, *parts: bytes) -> bytes:
    return hmac.digest(secret, _MAGIC + bytes([role]) + b"".join(parts), "sha256")


def _check(secret: bytes, mac: bytes, role: _Role, *parts: bytes) -> None:
    if not hmac.compare_digest(mac, _mac(secret, role, *parts)):
        raise ProtocolError(f"a {role.name.lower()} with a wrong MAC")


def _check_size(message: bytes, size: int, what: str) -> None:
    if len(message) != size:
        raise ProtocolError(f"a {what} of {len(message)} bytes instead of {size}")


@dataclass(frozen=True)
class LinkKey:
    """The key that authenticates the frames of a link, and whether they are encrypted as well."""

    key: bytes
    encrypt: bool


def link_key(secret: bytes, transcripts: Sequence[bytes]) -> LinkKey:
    """From the transcripts of all sockets of the link, in their order.

    They hold every nonce, both indices and the link's random id: sockets of two handshakes make no
    link, and no two links of a job have one key.
    """
    asked = (t[_ENCRYPT_AT] or t[HELLO_BYTES + _NONCE_BYTES] for t in transcripts)
    return LinkKey(_mac(secret, _Role.LINK_KEY, *transcripts), any(asked))


# --- client -------------------------------------------------------------------------------------


def write_hello(secret: bytes, hello: Hello) -> bytes:
    claim = _HELLO.pack(
        _MAGIC,
        hello.nonce,
        hello.link_id,
        hello.client,
        hello.server,
        hello.purpose,
        hello.socket_index,
        hello.socket_count,
        hello.encrypt,
    )
    return claim + _mac(secret, _Role.HELLO, claim)


def read_challenge(secret: bytes, hello: bytes, challenge: bytes) -> bytes:
    """Checks the server's challenge; returns the transcript that the later messages answer for."""
    _check_size(challenge, CHALLENGE_BYTES, "challenge")
    transcript = hello + challenge[:-_MAC_BYTES]
    _check(secret, challenge[-_MAC_BYTES:], _Role.CHALLENGE, transcript)
    return transcript


def write_proof(secret: bytes, transcript: bytes) -> bytes:
    return _mac(secret, _Role.PROOF, transcript)


def write_offer(secret: bytes, transcript: bytes, offer: bytes) -> bytes:
    return offer + _mac(secret, _Role.OFFER, transcript, offer)


def read_answer(secret: bytes, transcript: bytes, answer: bytes) -> str | None:
    """None if the server accepts, else why it refuses."""
    if len(answer) <= _MAC_BYTES:
        raise ProtocolError(f"an answer of {len(answer)} bytes")
    body = answer[:-_MAC_BYTES]
    _check(secret, answer[-_MAC_BYTES:], _Role.ANSWER, transcript, body)
    return None if body[0] else body[1:].decode("utf-8", "replace")


def is_beat(secret: bytes, transcript: bytes, message: bytes) -> bool:
    """Whether the server says that it lives, instead of an answer."""
    count, mac = message[: _COUNT.size], message[_COUNT.size :]
    return len(message) == BEAT_BYTES and hmac.compare_digest(
        mac, _mac(secret, _Role.BEAT, transcript, count)
    )


def offer_in(answer: bytes) -> bytes:
    """The server's offer in an answer that `read_answer` has found to accept."""
    return answer[1:-_MAC_BYTES]


# --- server -------------------------------------------------------------------------------------


def read_hello(secret: bytes, server: int, message: bytes) -> Hello:
    """Checks a hello that process `server` received."""
    _check_size(message, HELLO_BYTES, "hello")
    claim = message[: _HELLO.size]
    _check(secret, message[_HELLO.size :], _Role.HELLO, claim)
    magic, nonce, link_id, client, named, purpose, index, count, encrypt = _HELLO.unpack(claim)
    if magic != _MAGIC or named != server or client == server:
        raise ProtocolError(f"a hello of process {client} to process {named}")
    if purpose not in set(Purpose) or not index < count <= SOCKETS_MAX:
        raise ProtocolError(f"a hello for purpose {purpose}, socket {index} of {count}")
    return Hello(Purpose(purpose), client, named, link_id, index, count, encrypt, nonce)


def write_challenge(secret: bytes, hello: bytes, encrypt: bool = False) -> tuple[bytes, bytes]:
    """The challenge and the transcript that the later messages answer for."""
    terms = secrets.token_bytes(_NONCE_BYTES) + bytes([encrypt])
    transcript = hello + terms
    return terms + _mac(secret, _Role.CHALLENGE, transcript), transcript


def read_proof(secret: bytes, transcript: bytes, proof: bytes) -> None:
    _check_size(proof, PROOF_BYTES, "proof")
    _check(secret, proof, _Role.PROOF, transcript)


def read_offer(secret: bytes, transcript: bytes, message: bytes) -> bytes:
    offer, mac = message[:-_MAC_BYTES], message[-_MAC_BYTES:]
    _check(secret, mac, _Role.OFFER, transcript, offer)
    return offer


def write_beat(secret: bytes, transcript: bytes, count: int) -> bytes:
    number = _COUNT.pack(count)
    return number + _mac(secret, _Role.BEAT, transcript, number)


def write_answer(
    secret: bytes, transcript: bytes, refusal: str | None = None, offer: bytes = b""
) -> bytes:
    """Accepts, with an offer if this is rdma, or refuses and says why."""
    body = b"\1" + offer if refusal is None else b"\0" + refusal.encode()[:REASON_BYTES_MAX]
    return body + _mac(secret, _Role.ANSWER, transcript, body)
