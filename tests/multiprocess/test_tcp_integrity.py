"""An attacker between two processes alters frames: the calls of both fail; no result is wrong."""

import re
import time

import pytest
from fake_engine import FakeEngine, check_connected, processes
from processes import run

from jaxcoll._job import handshake
from jaxcoll._job.handshake import Hello, Purpose

TIMEOUT_S = 60  # of a call: what is found in time is found long before

# Process 0 connects to process 1 through its own relay, which does `sys.argv[1]` to the first large
# piece of what goes to process `sys.argv[2]`; handshakes and hellos are smaller.
_RELAYED = """
import socket, threading
from spmd import *
import jaxcoll
from jaxcoll._job.connection import Connection

what, victim = sys.argv[1], int(sys.argv[2])
done = threading.Event()

def relay(source, sink, altered):
    while part := source.recv(1 << 16):
        if altered and len(part) > 4096 and not done.is_set():
            done.set()
            if what == "flip":
                part = part[:3000] + bytes([part[3000] ^ 4]) + part[3001:]
            elif what == "repeat":
                part = part + part
            elif what == "omit":
                part = part[:1000] + part[1001:]
            elif what == "cut":
                sink.sendall(part[:2000])
                sink.shutdown(socket.SHUT_WR)
                return
        try:
            sink.sendall(part)
        except OSError:
            return
    try:
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass

def through_relay(address):
    listener = socket.create_server(("127.0.0.1", 0))
    def serve():
        near = listener.accept()[0]
        far = socket.create_connection(address)
        for ends in ((near, far, victim == 1), (far, near, victim == 0)):
            threading.Thread(target=relay, args=ends, daemon=True).start()
    threading.Thread(target=serve, daemon=True).start()
    return listener.getsockname()

straight = Connection.open
async def open_relayed(cls, family, address):
    return await straight(family, through_relay(address) if rank == 0 else address)
Connection.open = classmethod(open_relayed)

mesh = make_mesh((2,))
data = np.random.default_rng(0).integers(0, 100, (2, 1_000_000)).astype(np.float32)
x = place(mesh, data)
f = per_device(mesh, lambda x: jaxcoll.psum(x, "x"))
start = time.monotonic()
try:
    result = f(x)
    jax.block_until_ready(result)
except (jax.errors.JaxRuntimeError, ValueError) as error:  # JAX: ValueError if run inline
    print("error:", error, "after", round(time.monotonic() - start, 2), "s")
else:
    for row in rows(result).values():
        assert np.array_equal(row, data.sum(0)), "a wrong sum"
    print("right")
print(jaxcoll.debug.dump())
"""


def relayed(what: str, victim: int, encrypt: str = "0") -> list[str]:
    environment = {
        "JAXCOLL_TRANSPORT": "tcp",
        "JAXCOLL_TIMEOUT_S": str(TIMEOUT_S),
        "JAXCOLL_TCP_ENCRYPT": encrypt,
    }
    return run(_RELAYED, what, str(victim), processes=2, environment=environment)


@pytest.mark.parametrize("encrypt", ["0", "1"])
@pytest.mark.parametrize("victim", [0, 1])
def test_one_flipped_bit_is_an_error_of_both_processes(victim: int, encrypt: str) -> None:
    began = time.monotonic()
    texts = relayed("flip", victim, encrypt)
    assert time.monotonic() - began < TIMEOUT_S
    for rank, text in enumerate(texts):
        assert "error:" in text, texts
        assert f"peer process {1 - rank} (tcp to process {1 - rank} " in text
    check = r"frame \d+ of socket \d \(\S+:\d+ to \S+:\d+\) failed its check"
    assert re.search(check, texts[victim]), texts
    # The other one learns why, unless all sockets to it were within a frame.
    other = texts[1 - victim]
    assert re.search("has ended the link: .*" + check, other) or " is gone" in other, texts


@pytest.mark.parametrize("what", ["repeat", "omit", "cut"])
def test_bytes_repeated_left_out_or_cut_are_an_error(what: str) -> None:
    began = time.monotonic()
    texts = relayed(what, 1)
    assert time.monotonic() - began < TIMEOUT_S
    assert all("error:" in text for text in texts), texts
    expected = "cut off within frame" if what == "cut" else "failed its check"
    assert expected in texts[1], texts


@pytest.mark.parametrize("encrypt", ["0", "1"])
def test_a_relay_that_only_passes_on_is_not_detected(encrypt: str) -> None:
    assert all("right" in text for text in relayed("nothing", 1, encrypt))


# --- keys ---------------------------------------------------------------------------------------

SECRET = bytes(range(32))


def transcript(secret: bytes = SECRET, client: bool = False, server: bool = False) -> bytes:
    hello = handshake.write_hello(secret, Hello(Purpose.TCP, 0, 1, bytes(16), encrypt=client))
    challenge, ours = handshake.write_challenge(secret, hello, server)
    assert handshake.read_challenge(secret, hello, challenge) == ours
    return ours


def test_every_link_has_a_key_of_its_own_that_all_its_sockets_decide() -> None:
    first, second = transcript(), transcript()
    keys = [
        handshake.link_key(SECRET, transcripts).key
        for transcripts in ([first], [second], [first, second], [second, first])
    ]
    keys.append(handshake.link_key(bytes(32), [first]).key)
    assert len(set(keys)) == len(keys)
    assert {len(key) for key in keys} == {32}
    assert handshake.link_key(SECRET, [first]).key == keys[0]


@pytest.mark.parametrize("client", [False, True])
@pytest.mark.parametrize("server", [False, True])
def test_either_side_can_ask_for_encryption_and_nobody_between_can_refuse_it(
    client: bool, server: bool
) -> None:
    agreed = transcript(client=client, server=server)
    assert handshake.link_key(SECRET, [agreed]).encrypt == (client or server)
    with processes(2, present=0, transports=("tcp",)) as job:
        job.add(0, tcp_encrypt=client)
        job.add(1, tcp_encrypt=server)
        job.bootstraps[1].want(0)
        job.bootstraps[0].want(1)
        check_connected(job, 0, 1, "tcp")
        for index in (0, 1):
            link = job.engines[index].link(1 - index)
            assert link.security[2] == (client or server)
            assert ("encrypted" if client or server else "authenticated") in link.text


@pytest.mark.parametrize("without", [0, 1])
def test_a_process_without_libcrypto_refuses_tcp_and_both_say_why(without: int) -> None:
    with processes(2, transports=("tcp",)) as job:
        engine: FakeEngine = job.engines[without]
        engine.no_crypto = "libcrypto cannot be loaded; install OpenSSL's libcrypto"
        for index in (0, 1):
            job.bootstraps[index].want(1 - index)
        reasons = [job.engines[index].failure(1 - index) for index in (0, 1)]
        for reason in reasons:
            assert f"process {without} (pid " in reason
            assert "cannot use tcp, which authenticates what it sends: libcrypto" in reason
        assert job.engines[0].links == job.engines[1].links == {}
