"""Who does not know the job's secret gets a closed connection, and keeps nobody else out."""

from __future__ import annotations

import array
import json
import os
import random
import resource
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress

import pytest
from fake_engine import (
    WAIT_S,
    FakeStore,
    Job,
    bootstrap_threads,
    check_connected,
    descriptors,
    processes,
    receive,
)

from jaxcoll import _handshake as handshake
from jaxcoll import _listener
from jaxcoll._handshake import Hello, ProtocolError, Purpose

SEED = int(os.environ.get("BOOTSTRAP_TEST_SEED") or random.SystemRandom().randrange(2**32))
TRANSPORTS = ["shm", "tcp"]


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    before = descriptors()
    yield
    assert bootstrap_threads() == []
    assert {fd: what for fd, what in descriptors().items() if before.get(fd) != what} == {}


# --- the protocol, byte by byte -----------------------------------------------------------------

SECRET = bytes(range(32))
HELLO = Hello(Purpose.TCP, 0, 1, bytes(16), 2, 4)


def run_protocol(tamper: Callable[[str, bytes], bytes]) -> str | None:
    """A whole handshake, each message through `tamper`; the answer's refusal."""
    hello = tamper("hello", handshake.write_hello(SECRET, HELLO))
    assert handshake.read_hello(SECRET, 1, hello) == HELLO
    challenge, server = handshake.write_challenge(SECRET, hello)
    client = handshake.read_challenge(SECRET, hello, tamper("challenge", challenge))
    assert client == server
    handshake.read_proof(SECRET, server, tamper("proof", handshake.write_proof(SECRET, client)))
    offer = tamper("offer", handshake.write_offer(SECRET, client, b"keys"))
    assert handshake.read_offer(SECRET, server, offer) == b"keys"
    answer = tamper("answer", handshake.write_answer(SECRET, server, "no"))
    return handshake.read_answer(SECRET, client, answer)


@pytest.mark.parametrize("which", ["hello", "challenge", "proof", "offer", "answer"])
def test_every_changed_byte_and_every_other_size_is_noticed(which: str) -> None:
    sizes = {}

    def note(name: str, message: bytes) -> bytes:
        sizes[name] = len(message)
        return message

    assert run_protocol(note) == "no"
    changes: list[Callable[[bytes], bytes]] = [
        lambda m, i=i: m[:i] + bytes([m[i] ^ 1]) + m[i + 1 :]  # type: ignore[misc]
        for i in range(sizes[which])
    ]
    changes += [lambda m, n=n: m[:n] for n in range(sizes[which])]  # type: ignore[misc]
    changes += [lambda m: m + b"\0", lambda m: b""]
    for change in changes:
        with pytest.raises(ProtocolError):
            run_protocol(lambda name, m, change=change: change(m) if name == which else m)


def test_no_message_passes_for_another_or_under_another_secret() -> None:
    hello = handshake.write_hello(SECRET, HELLO)
    challenge, transcript = handshake.write_challenge(SECRET, hello)
    proof = handshake.write_proof(SECRET, transcript)
    assert proof not in challenge  # the server's proof is not the client's
    other = bytes(32)
    with pytest.raises(ProtocolError):
        handshake.read_hello(other, 1, hello)
    with pytest.raises(ProtocolError):
        handshake.read_hello(SECRET, 0, hello)  # reflected
    with pytest.raises(ProtocolError):
        handshake.read_challenge(SECRET, hello, hello[: handshake.CHALLENGE_BYTES])
    with pytest.raises(ProtocolError):
        handshake.read_challenge(other, hello, challenge)
    with pytest.raises(ProtocolError):
        handshake.read_proof(SECRET, transcript, challenge[33:])
    again, later = handshake.write_challenge(SECRET, hello)  # replayed
    assert again != challenge
    with pytest.raises(ProtocolError):
        handshake.read_proof(SECRET, later, proof)


@pytest.mark.parametrize(
    "claim",
    [
        Hello(Purpose.TCP, 1, 1, bytes(16)),
        Hello(Purpose.TCP, 0, 1, bytes(16), 4, 4),
        Hello(Purpose.TCP, 0, 1, bytes(16), 0, 0),
        Hello(Purpose.TCP, 0, 1, bytes(16), 0, handshake.SOCKETS_MAX + 1),
        Hello(9, 0, 1, bytes(16)),  # type: ignore[arg-type]
    ],
)
def test_a_hello_that_makes_no_sense_is_refused_even_with_the_secret(claim: Hello) -> None:
    with pytest.raises(ProtocolError):
        handshake.read_hello(SECRET, 1, handshake.write_hello(SECRET, claim))


# --- raw clients --------------------------------------------------------------------------------


def connect(job: Job, index: int, transport: str) -> socket.socket:
    record = job.start(index)
    if transport == "shm":
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.settimeout(WAIT_S)
        sock.connect("\0" + record["unix_name"])
        return sock
    return socket.create_connection(tuple(record["addresses"][-1]), timeout=WAIT_S)


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


def receive_message(sock: socket.socket) -> bytes:
    """One message; b"" if the other end closes."""
    if sock.family == socket.AF_UNIX:
        try:
            return sock.recv(65536)[2:]
        except ConnectionResetError:
            return b""
    return receive(sock, int.from_bytes(receive(sock, 2), "big"))


def closed(sock: socket.socket) -> bool:
    """Waits for the end; nothing else may come."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def talk(sock: socket.socket, secret: bytes, hello: Hello) -> tuple[bytes, bytes, bytes]:
    """The client's side up to the proof; hello, challenge and proof."""
    message = handshake.write_hello(secret, hello)
    sock.sendall(framed(message))
    challenge = receive_message(sock)
    proof = handshake.write_proof(secret, handshake.read_challenge(secret, message, challenge))
    sock.sendall(framed(proof))
    return message, challenge, proof


class OtherSecret(FakeStore):
    """The job's store, but for the secret."""

    def __init__(self, store: FakeStore) -> None:
        super().__init__()
        self.store = store

    def set(self, key: str, value: bytes) -> None:
        self.store.set(key, value)

    def wait(self, key: str, deadline_s: float) -> bytes:
        return bytes(32) if key.endswith("secret") else self.store.wait(key, deadline_s)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("stranger", [0, 1])
def test_a_wrong_secret_links_nobody(transport: str, stranger: int) -> None:
    with processes(2, present=0, transports=(transport,), timeout_s=2) as job:
        job.add(1 - stranger)
        job.add(stranger, store=OtherSecret(job.store))
        for index in (0, 1):
            job.bootstraps[index].want(1 - index)
        for index in (0, 1):
            reason = job.engines[index].failure(1 - index)
            assert "it closed the connection" in reason or "reset by peer" in reason
        assert job.engines[0].links == job.engines[1].links == {}


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_stranger_hears_nothing_before_the_end(transport: str) -> None:
    with processes(2, present=1, transports=(transport,)) as job:
        for message in (
            framed(handshake.write_hello(bytes(32), Hello(Purpose.ASK, 1, 0, bytes(16)))),
            framed(b"x" * handshake.HELLO_BYTES),
            framed(b""),
            b"\xff\xff" + b"x" * 70000,
            b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        ):
            with closing(connect(job, 0, transport)) as sock:
                sock.send(message)
                assert closed(sock)


def test_a_replayed_handshake_is_refused() -> None:
    """First one that makes a link, then the same bytes again."""
    with processes(2, present=0, transports=("tcp",)) as job:
        job.add(1)
        record = job.start(1)
        job.store.set("jaxcoll/1/secret", SECRET)
        record0 = {**record, "index": 0, "addresses": []}
        job.store.set("jaxcoll/1/process/0", json.dumps(record0).encode())
        hello = Hello(Purpose.TCP, 0, 1, bytes(16))
        with closing(connect(job, 1, "tcp")) as sock:
            message, challenge, proof = talk(sock, SECRET, hello)
            transcript = handshake.read_challenge(SECRET, message, challenge)
            assert handshake.read_answer(SECRET, transcript, receive_message(sock)) is None
            assert len(job.engines[1].link(0).sockets) == 1
            with closing(connect(job, 1, "tcp")) as replay:
                replay.sendall(framed(message))
                assert receive_message(replay) != challenge
                replay.sendall(framed(proof))
                assert closed(replay)
            with closing(connect(job, 1, "tcp")) as second:  # known, but one too many: an answer
                message, challenge, _ = talk(second, SECRET, hello)
                transcript = handshake.read_challenge(SECRET, message, challenge)
                refusal = handshake.read_answer(SECRET, transcript, receive_message(second))
                assert refusal == "it has a link to this process already"
        assert len(job.engines[1].links[0]) == 1


@pytest.mark.parametrize("where", ["to its own listener", "on the same connection"])
def test_a_reflected_handshake_is_refused(where: str) -> None:
    """Process 0 dials an impostor, which sends its hello back to it."""
    with processes(2, present=1, transports=("tcp",), timeout_s=2) as job:
        record = job.start(0)
        with closing(socket.create_server(("127.0.0.1", 0))) as impostor:
            impostor.settimeout(WAIT_S)
            false = {**record, "index": 1, "addresses": [impostor.getsockname()]}
            job.store.set("jaxcoll/1/process/1", json.dumps(false).encode())
            job.bootstraps[0].want(1)
            with closing(impostor.accept()[0]) as sock:
                sock.settimeout(WAIT_S)
                hello = receive_message(sock)
                if where == "to its own listener":
                    with closing(connect(job, 0, "tcp")) as back:
                        back.sendall(framed(hello))
                        assert closed(back)
                else:
                    sock.sendall(framed(hello))
                    assert closed(sock)
        assert job.engines[0].failure(1)
        assert job.engines[0].links == {}


def test_roles_and_transports_cannot_be_swapped_even_with_the_secret() -> None:
    with processes(3, present=2) as job:
        job.start(0)
        secret = job.secret()
        cases = [
            ("tcp", Hello(Purpose.TCP, 2, 1, bytes(16))),  # the higher index does not connect
            ("tcp", Hello(Purpose.ASK, 0, 1, bytes(16))),  # the lower one does not ask
            ("tcp", Hello(Purpose.ASK, 3, 1, bytes(16))),  # there are three
        ]
        for transport, hello in cases:
            with closing(connect(job, 1, transport)) as sock:
                talk(sock, secret, hello)
                assert closed(sock)
        for transport, purpose in (("tcp", Purpose.SHM), ("shm", Purpose.TCP)):
            with closing(connect(job, 1, transport)) as sock:
                hello_text = handshake.write_hello(secret, Hello(purpose, 0, 1, bytes(16)))
                sock.sendall(framed(hello_text))
                assert closed(sock)


@pytest.mark.parametrize("count", [0, 1, 3, 200])
def test_descriptors_that_nobody_expects_are_closed(count: int) -> None:
    """With the hello from a stranger, and a wrong number of them from one who knows the secret."""
    with processes(2) as job:
        job.start(0)
        secret = job.secret()
        with ExitStack() as stack:
            own = [stack.enter_context(open(os.devnull)).fileno() for _ in range(count)]
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", own))]
            with closing(connect(job, 1, "shm")) as sock:
                before = descriptors()
                sock.sendmsg([framed(b"x" * handshake.HELLO_BYTES)], ancillary if own else [])
                assert closed(sock)
            with closing(connect(job, 1, "shm")) as sock:
                message = handshake.write_hello(secret, Hello(Purpose.SHM, 0, 1, bytes(16)))
                sock.sendall(framed(message))
                transcript = handshake.read_challenge(secret, message, receive_message(sock))
                proof = framed(handshake.write_proof(secret, transcript))
                sock.sendmsg([proof], ancillary if own else [])
                assert closed(sock)
            nulls = [what for what in descriptors().values() if what == os.devnull]
            assert len(nulls) == len([what for what in before.values() if what == os.devnull])
        job.bootstraps[0].want(1)
        check_connected(job, 0, 1, "shm")


def test_another_user_is_turned_away() -> None:
    python = "/usr/bin/python3"  # not ours, which may lie where only root can read
    if os.getuid() != 0 or not os.path.exists(python):
        pytest.skip(f"needs root, to become another user, and {python}")
    script = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); "
        "s.settimeout(10); s.connect('\\0' + sys.argv[1]); "
        "sys.exit(0 if s.recv(1) == b'' else 1)"
    )
    with processes(2) as job:
        name = job.start(1)["unix_name"]
        command = [python, "-I", "-c", script, name]
        subprocess.run(command, user=65534, cwd="/", env={}, timeout=30, check=True)


# --- many strangers -----------------------------------------------------------------------------


def garbage(random_: random.Random, secretless: bytes) -> bytes:
    """What a fuzzer sends: noise, and good messages cut, repeated, mixed and made too long."""
    choice = random_.randrange(6)
    if choice == 0:
        return random_.randbytes(random_.randrange(300))
    if choice == 1:
        return framed(random_.randbytes(random_.choice([0, 1, 32, 64, handshake.HELLO_BYTES, 999])))
    if choice == 2:
        return secretless[: random_.randrange(len(secretless))]
    if choice == 3:
        changed = bytearray(secretless)
        changed[random_.randrange(len(changed))] ^= 1 << random_.randrange(8)
        return bytes(changed)
    if choice == 4:
        return secretless * random_.randrange(2, 5)
    return b"\xff\xff" + random_.randbytes(65535)


def attack(job: Job, transport: str, seed: int, rounds: int) -> None:
    """Sends garbage in random pieces; whatever is answered must be a close, or a challenge to a
    hello that somebody recorded."""
    random_ = random.Random(seed)
    recorded = framed(handshake.write_hello(job.secret(), Hello(Purpose.TCP, 0, 1, bytes(16))))
    for _ in range(rounds):
        with closing(connect(job, 1, transport)) as sock:
            message = garbage(random_, recorded)
            try:
                while message:
                    cut = random_.randrange(1, len(message) + 1)
                    sock.send(message[:cut])
                    message = message[cut:]
                if random_.random() < 0.5:
                    sock.shutdown(socket.SHUT_WR)
                elif random_.random() < 0.5:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            except OSError:
                pass  # it was closed already: fine


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_garbage_on_a_listener_keeps_no_good_peer_out(transport: str) -> None:
    print(f"BOOTSTRAP_TEST_SEED={SEED}")
    with processes(4, transports=(transport,)) as job:
        job.start(0)
        job.start(1)
        threads = [
            threading.Thread(target=attack, args=[job, transport, SEED + i, 300]) for i in range(3)
        ]
        for thread in threads:
            thread.start()
        for index in (0, 2, 3):
            job.bootstraps[index].want(1)
        for index in (0, 2, 3):
            check_connected(job, min(1, index), max(1, index), transport)
        for thread in threads:
            thread.join()
        job.bootstraps[1].close()
        for peer, links in job.engines[1].links.items():
            assert len(links) == 1, peer
        assert job.engines[1].failures == {}


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_slow_strangers_keep_no_good_peer_out(transport: str) -> None:
    """More than a listener serves at once: silent ones, and ones that send a byte now and then."""
    with processes(2, transports=(transport,), handshake_s=60.0) as job, ExitStack() as stack:
        job.start(0)
        job.start(1)
        threads_before = threading.active_count()
        hello = framed(handshake.write_hello(job.secret(), Hello(Purpose.TCP, 0, 1, bytes(16))))
        for i in range(3 * _listener.STRANGERS_MAX):
            sock = stack.enter_context(closing(connect(job, 1, transport)))
            if i % 2 and transport == "tcp":
                sock.send(hello[:3])
        assert threading.active_count() == threads_before
        began = time.monotonic()
        job.bootstraps[0].want(1)
        check_connected(job, 0, 1, transport)
        assert time.monotonic() - began < 30


def test_those_who_were_admitted_are_not_strangers() -> None:
    """Processes that ask and wait take nobody's place, and are not dropped when it gets crowded."""
    count = _listener.STRANGERS_MAX + 20
    with processes(count, present=1, transports=("shm",)) as job, ExitStack() as stack:
        job.start(0)
        secret = job.secret()
        asking = []
        for index in range(2, count):
            asking.append(stack.enter_context(closing(connect(job, 0, "shm"))))
            talk(asking[-1], secret, Hello(Purpose.ASK, index, 0, bytes(16)))
        for _ in range(2 * _listener.STRANGERS_MAX):
            stack.enter_context(closing(connect(job, 0, "shm")))
        job.add(1).want(0)
        check_connected(job, 0, 1, "shm")
        for sock in asking:  # they are waiting still
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                sock.recv(1)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_handshake_that_never_ends_is_dropped(transport: str) -> None:
    """Before a hello; within one; after the challenge; and with a socket of the link missing."""
    with processes(2, transports=(transport,), handshake_s=1.0) as job:
        job.start(0)
        job.start(1)
        secret = job.secret()
        purpose = Purpose.SHM if transport == "shm" else Purpose.TCP
        hello = framed(handshake.write_hello(secret, Hello(purpose, 0, 1, bytes(16))))
        for message in (b"", hello[:20], hello):
            if transport == "shm" and message == hello[:20]:
                continue  # a packet that is cut is an error at once
            with closing(connect(job, 1, transport)) as sock:
                if message:
                    sock.sendall(message)
                if message == hello:
                    assert len(receive_message(sock)) == handshake.CHALLENGE_BYTES
                assert closed(sock)
        if transport == "tcp":
            with closing(connect(job, 1, transport)) as sock:
                talk(sock, secret, Hello(purpose, 0, 1, bytes(16), 1, 2))
                assert closed(sock)
        job.bootstraps[0].want(1)
        check_connected(job, 0, 1, transport)


def test_a_process_out_of_descriptors_recovers() -> None:
    with processes(2, transports=("shm",)) as job, ExitStack() as stack:
        job.start(0)
        name = job.start(1)["unix_name"]
        sock = stack.enter_context(closing(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)))
        sock.settimeout(0.3)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(descriptors()) + 1, hard))
        taken = []
        try:
            with suppress(OSError):
                while True:
                    taken.append(os.dup(0))
            sock.connect("\0" + name)
            with pytest.raises(TimeoutError):
                sock.recv(1)  # nobody can accept it
        finally:
            for descriptor in taken:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        job.bootstraps[0].want(1)
        check_connected(job, 0, 1, "shm")
