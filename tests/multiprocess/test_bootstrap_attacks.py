"""A client that does not know the job's secret gets a closed connection, and keeps nobody else
out."""

from __future__ import annotations

import array
import hashlib
import itertools
import json
import os
import random
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress

import pytest
from fake_engine import (
    WAIT_S,
    Job,
    bootstrap_threads,
    check_connected,
    descriptors,
    processes,
    receive,
    threads_left,
)

from jaxcoll._job import handshake, host, listener
from jaxcoll._job.handshake import Hello, ProtocolError, Purpose
from jaxcoll._job.secret import Secret

SEED = int(os.environ.get("BOOTSTRAP_TEST_SEED") or random.SystemRandom().randrange(2**32))
TRANSPORTS = ["shm", "tcp"]


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    before = descriptors()
    yield
    assert threads_left() == []
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
    return socket.create_connection(job.listen(index)[-1], timeout=WAIT_S)


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


def secret_of(name: str) -> Secret:
    return Secret(hashlib.sha256(name.encode()).hexdigest().encode(), f"JAXCOLL_SECRET_FILE={name}")


GIVEN = {"a": secret_of("a"), "b": secret_of("b"), "none": None}


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("given", ["a b", "a none", "none a"])
def test_processes_with_different_secrets_name_both_soon(given: str, transport: str) -> None:
    with processes(2, present=0, transports=(transport,)) as job:
        began = time.monotonic()
        for index, name in enumerate(given.split()):
            job.add(index, secret=GIVEN[name]).want(1 - index)
        for index in (0, 1):
            reason = job.engines[index].failure(1 - index)
            for name in given.split():
                secret = GIVEN[name]
                if secret is not None:
                    assert f"has the secret {secret.name} (JAXCOLL_SECRET_FILE={name})" in reason
                else:
                    assert "has none" in reason
            assert "Give every process of the job the same: JAXCOLL_SECRET_FILE" in reason
        assert time.monotonic() - began < WAIT_S / 2
        assert job.engines[0].links == job.engines[1].links == {}


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_processes_with_one_secret_leave_none_in_the_store(transport: str) -> None:
    with processes(3, transports=(transport,), secret=GIVEN["a"]) as job:
        for index in range(3):
            job.bootstraps[index].want((index + 1) % 3)
        for one, other in ((0, 1), (1, 2), (0, 2)):
            check_connected(job, one, other, transport)
        assert "jaxcoll/1/secret" not in job.store.values
        assert GIVEN["a"] is not None
        for value in job.store.values.values():
            assert GIVEN["a"].content not in value
            assert GIVEN["a"].key("links") not in value
            assert GIVEN["a"].key("store") not in value


@pytest.mark.parametrize("forged", ["process/1", "tcp/1/near"])
@pytest.mark.parametrize("how", ["replaced", "copied from another key", "changed"])
def test_records_that_a_stranger_writes_into_the_store_are_refused(forged: str, how: str) -> None:
    secret = GIVEN["a"]
    with processes(3, transports=("tcp",), secret=secret) as job:
        job.bootstraps[1].start()
        job.store.wait("jaxcoll/1/process/1", WAIT_S)
        job.listen(1)
        good = job.store.values[f"jaxcoll/1/{forged}"]
        if how == "replaced":
            bad = b"{}"
        elif how == "changed":
            bad = good[:-3] + bytes([good[-3] ^ 1]) + good[-2:]
        else:
            bad = job.store.values[
                "jaxcoll/1/" + ("tcp/1/near" if "pro" in forged else "process/1")
            ]
        job.store.values[f"jaxcoll/1/{forged}"] = bad
        job.bootstraps[0].want(1)
        reason = job.engines[0].failure(1)
        assert f"'jaxcoll/1/{forged}' in the job's store was" in reason
        assert "stranger" in reason or "its signature is wrong" in reason


def test_one_process_warns_of_a_secret_in_the_store(caplog: pytest.LogCaptureFixture) -> None:
    with processes(4, transports=("tcp",)) as job:
        for one, other in itertools.permutations(range(4), 2):
            job.bootstraps[one].want(other)
        for one, other in itertools.combinations(range(4), 2):
            check_connected(job, one, other, "tcp")
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "whoever reaches its coordinator can join this job" in warnings[0]


@pytest.mark.parametrize("purpose", [Purpose.TCP, Purpose.RDMA, Purpose.ASK])
def test_a_client_by_another_transport_than_both_would_choose_is_refused(
    purpose: Purpose,
) -> None:
    """By tcp, with the secret, where shared memory joins the two, which looks at the user."""
    client, server = (2, 1) if purpose == Purpose.ASK else (0, 1)
    with processes(3) as job:
        job.start(client)
        with closing(connect(job, server, "tcp")) as sock:
            secret = job.secret("tcp")
            hello = Hello(purpose, client, server, bytes(16))
            message, challenge, _ = talk(sock, secret, hello)
            transcript = handshake.read_challenge(secret, message, challenge)
            if purpose == Purpose.RDMA:
                sock.sendall(framed(handshake.write_offer(secret, transcript, b"x")))
            refusal = handshake.read_answer(secret, transcript, receive_message(sock))
            assert refusal is not None
            assert "came by tcp" in refusal or "came by rdma" in refusal
            assert "but shm is what joins it to process 1" in refusal
        assert client not in job.engines[server].links
        job.bootstraps[server].want(client)
        check_connected(job, min(client, server), max(client, server), "shm")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_stranger_hears_nothing_before_the_end(transport: str) -> None:
    with processes(2, present=1, transports=(transport,)) as job:
        for message in (
            framed(handshake.write_hello(b"x" * 32, Hello(Purpose.ASK, 1, 0, bytes(16)))),
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
        record0 = {**record, "index": 0}
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
            job.store.set("jaxcoll/1/process/1", json.dumps({**record, "index": 1}).encode())
            where = host.addresses_to_bytes([impostor.getsockname()])
            job.store.set("jaxcoll/1/tcp/1/near", where)
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
        cases = [
            ("tcp", Hello(Purpose.TCP, 2, 1, bytes(16))),  # the higher index does not connect
            ("tcp", Hello(Purpose.ASK, 0, 1, bytes(16))),  # the lower one does not ask
            ("tcp", Hello(Purpose.ASK, 3, 1, bytes(16))),  # there are three
        ]
        for transport, hello in cases:
            with closing(connect(job, 1, transport)) as sock:
                talk(sock, job.secret(transport), hello)
                assert closed(sock)
        for transport, purpose in (("tcp", Purpose.SHM), ("shm", Purpose.TCP)):
            secret = job.secret(transport)
            with closing(connect(job, 1, transport)) as sock:
                hello_text = handshake.write_hello(secret, Hello(purpose, 0, 1, bytes(16)))
                sock.sendall(framed(hello_text))
                assert closed(sock)


@pytest.mark.parametrize("count", [0, 1, 3, 200])
def test_descriptors_that_nobody_expects_are_closed(count: int) -> None:
    """With the hello from a stranger, and a wrong number of them from a client that knows the
    secret."""
    with processes(2) as job:
        job.start(0)
        secret = job.secret("shm")
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
    python = "/usr/bin/python3"  # not ours, which only root may be able to read
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
    """The bytes that a fuzzer sends: noise, and good messages cut, repeated, mixed and made too
    long."""
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
    secret = job.secret(transport)
    recorded = framed(handshake.write_hello(secret, Hello(Purpose.TCP, 0, 1, bytes(16))))
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
def test_slow_strangers_keep_no_good_peer_out(
    transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than a listener serves at once: silent ones, and ones that send a byte now and then."""
    monkeypatch.setattr(listener, "STRANGERS_MAX", 64)
    with processes(2, transports=(transport,), handshake_s=60.0) as job, ExitStack() as stack:
        job.start(0)
        job.start(1)
        secret = job.secret(transport)
        hello = framed(handshake.write_hello(secret, Hello(Purpose.TCP, 0, 1, bytes(16))))
        for i in range(3 * listener.STRANGERS_MAX):
            sock = stack.enter_context(closing(connect(job, 1, transport)))
            if i % 2 and transport == "tcp":
                sock.send(hello[:3])
        assert len(bootstrap_threads()) <= 2 * 3  # none for any of them
        began = time.monotonic()
        job.bootstraps[0].want(1)
        check_connected(job, 0, 1, transport)
        assert time.monotonic() - began < 30


def test_admitted_clients_are_not_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that ask and wait take nobody's place, and are not dropped when it gets crowded."""
    monkeypatch.setattr(listener, "STRANGERS_MAX", 64)
    count = listener.STRANGERS_MAX + 20
    with processes(count, present=1, transports=("shm",)) as job, ExitStack() as stack:
        job.start(0)
        secret = job.secret("shm")
        asking = []
        for index in range(2, count):
            asking.append(stack.enter_context(closing(connect(job, 0, "shm"))))
            talk(asking[-1], secret, Hello(Purpose.ASK, index, 0, bytes(16)))
        for _ in range(2 * listener.STRANGERS_MAX):
            stack.enter_context(closing(connect(job, 0, "shm")))
        job.add(1).want(0)
        check_connected(job, 0, 1, "shm")
        for sock in asking:  # they are waiting still
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                sock.recv(1)


FLOODER = """
import collections, resource, select, socket, sys, time
kind, where, rate, words = sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4].encode()
most = min(8000, resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 100)
resource.setrlimit(resource.RLIMIT_NOFILE, (most + 50, most + 50))
held, made, began = collections.deque(), 0, time.monotonic()
while True:
    while made < rate * (time.monotonic() - began):
        if kind == "shm":
            sock, address = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET), "\\0" + where
        else:
            sock, address = socket.socket(), ("127.0.0.1", int(where))
        sock.setblocking(False)
        try:
            sock.connect(address)
            if words and kind == "shm":
                sock.send(words)
        except BlockingIOError:
            pass
        except OSError:
            pass
        held.append(sock)
        made += 1
        if words and kind == "tcp" and len(held) > 20:
            try:
                held[-20].send(words)
            except OSError:
                pass
        if len(held) > most:
            held.popleft().close()
        if made == int(rate):
            print("flooding", flush=True)
    if made >= rate and made % int(rate) < 3:
        print(f"{made / (time.monotonic() - began):.0f} connections per second", flush=True)
    time.sleep(0.001)
"""
FLOOD_PER_S = 2000
# Linking under it takes hundredths of a second on an idle machine; this one may be busy.
FLOODED_S = 20.0


@pytest.mark.parametrize("words", ["", "x", "GET / HTTP/1.1"])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_flood_of_connections_keeps_no_good_peer_out(transport: str, words: str) -> None:
    """Silent ones, and ones that say something; over shm of another user, if we may be one."""
    python = "/usr/bin/python3"  # not ours, which only root may be able to read
    other_user = transport == "shm" and os.getuid() == 0 and os.path.exists(python)
    with processes(2, transports=(transport,)) as job:
        job.start(0)
        where = job.start(1)["unix_name"] or str(job.listen(1)[0][1])
        flood = subprocess.Popen(
            [
                *(python if other_user else sys.executable, "-I", "-c", FLOODER),
                *(transport, where, str(FLOOD_PER_S), words),
            ],
            user=65534 if other_user else None,
            cwd="/",
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert flood.stdout is not None
            assert flood.stdout.readline() == "flooding\n"
            began = time.monotonic()
            job.bootstraps[0].want(1)
            check_connected(job, 0, 1, transport)
            took_s = time.monotonic() - began
            print(f"linked after {took_s:.3f} s; {flood.stdout.readline().strip()}")
            assert took_s < FLOODED_S
        finally:
            flood.kill()
            flood.communicate()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_handshake_that_never_ends_is_dropped(transport: str) -> None:
    """Before a hello; within one; after the challenge; and with a socket of the link missing."""
    with processes(2, transports=(transport,), handshake_s=1.0) as job:
        job.start(0)
        job.start(1)
        secret = job.secret(transport)
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
