"""Another user of the host, who reaches JAX's coordinator, neither joins a job nor reads its data.

The coordinator is on loopback. The intruder reads everything in the job's store, writes there what
may help, and tries to join as each of the two processes, by every socket that it finds.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import ROOT, Job

JOB = """
import contextlib, json

def tcp_listeners():
    "Ports that this process listens at."
    inodes, ports = set(), set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            inodes.add(os.readlink(f"/proc/self/fd/{fd}"))
    for name in ("tcp", "tcp6"):
        for line in open(f"/proc/net/{name}").read().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in inodes:
                ports.add(words[1])
    return ports

jax.devices()
listens = tcp_listeners()  # JAX's own
import jaxcoll
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

mesh = Mesh(np.array(jax.devices()), "i")

def check(seed):
    x = np.random.default_rng(seed).integers(0, 99, (processes, 50_000)).astype("f4")
    placed = jax.make_array_from_callback(
        x.shape, NamedSharding(mesh, P("i")), lambda index: x[index])
    f = jax.jit(jax.shard_map(lambda v: jaxcoll.psum(v, "i"), mesh=mesh, in_specs=P("i"),
                              out_specs=P()))
    np.testing.assert_array_equal(np.asarray(f(placed))[0], x.sum(0))

if sys.argv[1] == "linked":
    check(1)
print("ready", json.dumps(sorted(tcp_listeners() - listens)), flush=True)
sys.stdin.readline()
check(2)
check(3)
print("right", flush=True)
sys.stdin.readline()
"""

INTRUDER = """
import hashlib, itertools, json, os, socket, sys, time
from support import private_jax
from jaxcoll._job import handshake
from jaxcoll._job.handshake import Hello, Purpose

coordinator, writes = sys.argv[1], sys.argv[2] == "writes"
client = private_jax.connect_to_coordinator(coordinator, 2)
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
print("connected", flush=True)
ports = json.loads(sys.stdin.readline())  # where the job listens, found out beforehand
result = {"uid": os.getuid(), "tried": 0, "joined": [], "heard": []}

def store():
    return dict(client.key_value_dir_get_bytes("jaxcoll/"))

def put(key, value):
    try:
        client.key_value_set_bytes(key, value, allow_overwrite=True)
    except Exception as error:
        result.setdefault("not written", []).append(f"{key}: {error}")

found = store()
records = {}
for key, value in found.items():
    if "/process/" in key:
        text = value[value.index(b'{"version"'):]
        records[int(key.rpartition("/")[2])] = json.loads(text)
assert set(records) == {0, 1}, found
if writes:
    for index, record in records.items():
        put(f"jaxcoll/1/process/{index}", json.dumps({**record, "host": "elsewhere"}).encode())
        for name in ("any", "far"):
            put(f"jaxcoll/1/listen/{index}/{name}", f"{1 - index}".encode())
    put("jaxcoll/1/secret", bytes(range(32)))
    time.sleep(2)
    found |= store()

secrets = {bytes(32), bytes(range(32)), b""}
for value in found.values():
    for piece in (value, value[-32:], value[:32], value.strip(), hashlib.sha256(value).digest()):
        if len(piece) <= 64:
            secrets.add(piece)

sockets = [("unix", "\\0" + r["unix_name"]) for r in records.values() if r["unix_name"]]
for text in ports:  # as /proc/net/tcp has them
    address, _, port = text.rpartition(":")
    sockets.append(("tcp" if len(address) == 8 else "tcp6", int(port, 16)))

def talk(kind, where, secret, hello):
    if kind == "unix":
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    else:
        sock = socket.socket(socket.AF_INET if kind == "tcp" else socket.AF_INET6)
        where = ("127.0.0.1" if kind == "tcp" else "::1", where)
    sock.settimeout(5)
    with sock:
        sock.connect(where)
        message = handshake.write_hello(secret, hello)
        sock.send(len(message).to_bytes(2, "big") + message)
        challenge = sock.recv(65536)[2:]
        if challenge:
            result["heard"].append([kind, str(where), hello.purpose.name])
            transcript = handshake.read_challenge(secret, message, challenge)
            proof = handshake.write_proof(secret, transcript)
            sock.send(len(proof).to_bytes(2, "big") + proof)
            answer = sock.recv(65536)[2:]
            if handshake.read_answer(secret, transcript, answer) is None:
                result["joined"].append([kind, str(where), hello.purpose.name])

for (kind, where), secret, pair, purpose in itertools.product(
        sockets, secrets, ((0, 1), (1, 0)), Purpose):
    result["tried"] += 1
    try:
        talk(kind, where, secret, Hello(purpose, *pair, bytes(16)))
    except (OSError, handshake.ProtocolError):
        pass
result["sockets"] = sorted({kind for kind, _ in sockets})
result["keys"] = sorted(found)
result["sees"] = [v.hex() for v in found.values()]
print("result " + json.dumps(result), flush=True)
sys.stdin.read()
os._exit(0)  # the coordinator need not know
"""


@contextlib.contextmanager
def intruder(coordinator: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", INTRUDER, coordinator, *arguments],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/tests", "JAX_PLATFORMS": "cpu"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


LOOPBACK = ("0100007F:", "00000000000000000000000001000000:")
CASES = {
    # A job of one host as it comes, without anything that it was given.
    "plain": ({}, "reads"),
    "plain, not linked yet": ({}, "reads"),
    "secret": ({"JAXCOLL_SECRET_FILE": "{secret}"}, "writes"),
    "secret, not linked yet": ({"JAXCOLL_SECRET_FILE": "{secret}"}, "reads"),
    "secret, tcp": ({"JAXCOLL_SECRET_FILE": "{secret}", "JAXCOLL_TRANSPORT": "tcp"}, "writes"),
}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
@pytest.mark.parametrize("case", CASES)
def test_another_user_who_reaches_the_coordinator_is_refused(case: str, tmp_path: Path) -> None:
    environment, does = CASES[case]
    secret = tmp_path / "secret"
    secret.write_bytes(os.urandom(32))
    secret.chmod(0o600)
    with (
        Job(
            JOB,
            "later" if "not linked" in case else "linked",
            processes=2,
            environment={k: v.format(secret=secret) for k, v in environment.items()},
            survives=True,
            heartbeat_timeout_s=600,
            timeout_s=300,
            guests=1,
        ) as job,
        intruder(job.coordinator, does) as process,
    ):
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "connected\n"
        ports: list[str] = []
        for rank in (0, 1):
            job.wait_for(rank, "ready")
            found = json.loads(job.text(rank).split("ready ")[1].split("\n")[0])
            if "tcp" not in case:
                assert found == []
            ports += found
        assert all(port.startswith(LOOPBACK) for port in ports)
        process.stdin.write(json.dumps(ports) + "\n")
        process.stdin.flush()
        result = json.loads(process.stdout.readline().removeprefix("result "))
        print({k: v for k, v in result.items() if k != "sees"})
        assert result["uid"] == 65534
        assert result["tried"] > 10
        assert result["joined"] == []
        assert result["heard"] == []
        seen = [bytes.fromhex(value) for value in result["sees"]]
        assert not any(secret.read_bytes() in value for value in seen)
        assert "jaxcoll/1/secret" not in result["keys"] or does == "writes"
        for rank in (0, 1):
            job.write(rank, "\n")
        for rank in (0, 1):
            job.wait_for(rank, "right")
            job.write(rank, "\n")
        job.finish()
