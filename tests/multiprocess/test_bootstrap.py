"""How processes find each other: several bootstraps in this process, over a store in memory."""

from __future__ import annotations

import itertools
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fake_engine import (
    WAIT_S,
    FakeEngine,
    FakeStore,
    bootstrap_threads,
    check_connected,
    descriptors,
    different_hosts,
    processes,
    threads_left,
)

from jaxcoll._job import host
from jaxcoll._job.bootstrap import Bootstrap

SEED = int(os.environ.get("BOOTSTRAP_TEST_SEED") or random.SystemRandom().randrange(2**32))


@pytest.fixture(autouse=True)
def _nothing_is_left():
    before = descriptors()
    assert threads_left() == []
    yield
    assert threads_left() == []
    left = {fd: what for fd, what in descriptors().items() if before.get(fd) != what}
    assert left == {}


# --- links --------------------------------------------------------------------------------------


def test_nothing_happens_before_a_link_is_wanted() -> None:
    engine = FakeEngine()
    before = descriptors()
    bootstrap = Bootstrap(engine, FakeStore(), 0, 2, version="1")
    assert descriptors() == before
    assert bootstrap_threads() == []
    bootstrap.close()
    engine.close()


@pytest.mark.parametrize("transport", ["shm", "tcp", "rdma"])
@pytest.mark.parametrize("wanting", [[0], [1], [0, 1]], ids=["lower", "higher", "both"])
def test_both_ends_get_one_link_whoever_wants_it(transport: str, wanting: list[int]) -> None:
    with processes(2, transports=(transport,)) as job:
        for index in set(range(2)) - set(wanting):
            job.bootstraps[index].start()
        for index in wanting:
            job.bootstraps[index].want(1 - index)
        check_connected(job, 0, 1, transport)
        for index in (0, 1):  # once more changes nothing
            job.bootstraps[index].want(1 - index)
            assert job.start(index)
        check_connected(job, 0, 1, transport)


@pytest.mark.parametrize("transport", ["shm", "tcp", "rdma"])
def test_simultaneous_wants_make_one_link_per_pair(transport: str) -> None:
    count = 6
    with processes(count, transports=(transport,)) as job:
        barrier = threading.Barrier(3 * count)

        def want_all(index: int) -> None:
            barrier.wait()
            for peer in range(count):
                if peer != index:
                    job.bootstraps[index].want(peer)

        threads = [threading.Thread(target=want_all, args=[i % count]) for i in range(3 * count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for one, other in itertools.combinations(range(count), 2):
            check_connected(job, one, other, transport)


def test_an_rdma_link_has_both_offers_and_no_one_else_does() -> None:
    with processes(2, transports=("rdma",)) as job:
        job.bootstraps[0].start()
        job.bootstraps[1].want(0)
        check_connected(job, 0, 1, "rdma")
        one, other = job.engines[0].link(1).offers, job.engines[1].link(0).offers
        assert one == other[::-1]
        assert other[0] == b"answer to " + one[0]
        assert not any(one[0] in value for value in job.store.values.values())


@pytest.mark.parametrize("where", [0, 1])
def test_rdma_that_cannot_be_set_up_fails_both_sides_with_the_reason(where: int) -> None:
    with processes(2, transports=("rdma",)) as job:
        job.engines[where].rdma_trouble = "no memory may be locked"
        job.bootstraps[0].want(1)
        job.bootstraps[1].want(0)
        for index in (0, 1):
            reason = job.engines[index].failure(1 - index)
            assert "no memory may be locked. JAXCOLL_TRANSPORT=shm,tcp does without" in reason


@pytest.mark.parametrize(("sockets", "others"), [(1, 4), (4, 1), (7, 3)])
def test_the_lower_index_decides_how_many_sockets_tcp_has(sockets: int, others: int) -> None:
    with processes(2, present=0, transports=("tcp",)) as job:
        job.add(0, tcp_sockets=sockets)
        job.add(1, tcp_sockets=others).want(0)
        job.start(0)
        check_connected(job, 0, 1, "tcp")
        assert len(job.engines[0].link(1).sockets) == sockets


def test_a_description_names_process_host_and_addresses() -> None:
    with processes(3, present=2) as job:
        job.add(2, host_id="elsewhere").want(0)
        job.bootstraps[0].want(1)
        job.start(1)
        who = f"(pid {os.getpid()} on {socket.gethostname()})"
        assert job.engines[1].link(0).text == f"shm to process 0 {who}"
        assert (
            job.engines[2]
            .link(0)
            .text.startswith(f"tcp to process 0 {who}, authenticated, 4 sockets, ")
        )
        job.engines[0].link(2)


def test_a_peer_that_starts_late_is_waited_for() -> None:
    with processes(4, present=2) as job:
        for peer in (1, 2, 3):
            job.bootstraps[0].want(peer)
        job.start(1)
        check_connected(job, 0, 1, "shm")  # not kept waiting by the others
        with job.store.changed:
            waited = job.store.changed.wait_for(
                lambda: all(job.store.waits.get(f"jaxcoll/1/process/{p}", 0) > 1 for p in (2, 3)),
                WAIT_S,
            )
        assert waited
        for late in (2, 3):
            job.add(late)
            job.start(late)
        for late in (2, 3):
            check_connected(job, 0, late, "shm")


# --- failures -----------------------------------------------------------------------------------


def test_a_peer_that_never_starts_fails_when_time_is_up() -> None:
    with processes(2, present=1, timeout_s=0.4) as job:
        job.bootstraps[0].want(1)
        assert job.engines[0].failure(1) == (
            "no link to process 1 within 0.4 s: it has not started, or has run no collective "
            "across processes yet"
        )


def test_a_failure_is_final_and_told_again() -> None:
    with processes(2, present=1, timeout_s=0.2) as job:
        job.bootstraps[0].want(1)
        reason = job.engines[0].failure(1)
        job.add(1).want(0)  # too late: refused with the same reason
        assert reason in job.engines[1].failure(0)
        job.bootstraps[0].want(1)
        job.engines[0]._wait(lambda: job.engines[0].failures[1] == [reason] * 2)


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("dead", [0, 1])
def test_a_peer_that_has_died_is_not_waited_for(transport: str, dead: int) -> None:
    with processes(2, transports=(transport,)) as job:
        job.start(dead)
        if transport == "tcp":
            job.listen(dead)
        job.bootstraps[dead].close()
        del job.store.values[f"jaxcoll/1/end/{dead}"]  # as if it had been killed
        job.bootstraps[1 - dead].want(dead)
        reason = job.engines[1 - dead].failure(dead)
        assert f"process {dead} (pid {os.getpid()} on {socket.gethostname()}) has ended" in reason
        assert "Connection refused" in reason


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("dead", [0, 1])
def test_a_peer_that_has_ended_is_not_waited_for(transport: str, dead: int) -> None:
    """Even if it has never listened for tcp."""
    with processes(2, transports=(transport,)) as job:
        job.start(dead)
        job.bootstraps[dead].close()
        job.bootstraps[1 - dead].want(dead)
        reason = job.engines[1 - dead].failure(dead)
        assert f"process {dead} (pid {os.getpid()} on {socket.gethostname()}) has ended" in reason


def test_a_peer_that_was_killed_before_it_listened_is_silent() -> None:
    with processes(2, transports=("tcp",), handshake_s=0.5, silence_s=1.0) as job:
        job.start(0)
        job.bootstraps[0].close()
        del job.store.values["jaxcoll/1/end/0"]
        job.bootstraps[1].want(0)
        reason = job.engines[1].failure(0)
        assert "has not answered for 1 s" in reason
        assert "no answer within 0.5 s to the request to listen for tcp" in reason


def test_processes_of_several_hosts_listen_before_a_link_is_wanted() -> None:
    """A process that dies before its first link is then missed as soon as it is looked for."""
    with processes(5, present=0) as job:
        for index in range(5):
            job.add(index, host_id=f"host-{index // 3}")
            job.bootstraps[index].start()
        for index in range(5):
            assert b"addresses" in job.store.wait(f"jaxcoll/1/tcp/{index}/near", WAIT_S)


def test_an_asking_process_is_told_why_the_other_one_failed() -> None:
    """Nothing goes from 0 to 1, but 1 reaches 0: both fail with the reason that 0 has."""
    with processes(2, present=1, transports=("tcp",)) as job:
        job.start(0)
        record = json.loads(_fresh_record(job.store, 0))
        job.store.set("jaxcoll/1/process/1", json.dumps({**record, "index": 1}).encode())
        publish_addresses(job.store, 1, [("127.0.0.1", _closed_port())])

        class Unread(FakeStore):
            """1's own record is what it published; the others read the one above."""

            def set(self, key: str, value: bytes) -> None:
                if key in ("jaxcoll/1/process/1", "jaxcoll/1/tcp/1/near"):
                    self.values[key] = value
                else:
                    job.store.set(key, value)

            def wait(self, key: str, deadline_s: float) -> bytes:
                return self.values[key] if key in self.values else job.store.wait(key, deadline_s)

        job.add(1, store=Unread()).want(0)
        reason = job.engines[0].failure(1)
        assert reason in job.engines[1].failure(0)
        assert "process 0" in job.engines[1].failure(0)


def _fresh_record(store: FakeStore, index: int) -> bytes:
    return store.wait(f"jaxcoll/1/process/{index}", WAIT_S)


def _closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def publish_addresses(store: FakeStore, index: int, addresses: list[tuple[str, int]]) -> None:
    store.set(f"jaxcoll/1/tcp/{index}/near", host.addresses_to_bytes(addresses))


def test_the_error_names_every_address_and_why_it_failed() -> None:
    with processes(2, present=1, transports=("tcp",)) as job:
        record = job.start(0)
        port = _closed_port()
        addresses = [("127.0.0.1", port), ("127.0.0.2", port)]
        job.store.set("jaxcoll/1/process/1", json.dumps({**record, "index": 1}).encode())
        publish_addresses(job.store, 1, addresses)
        job.bootstraps[0].want(1)
        reason = job.engines[0].failure(1)
        for address, _ in addresses:
            assert f"{address}:{port}: Connection refused" in reason


def test_addresses_are_tried_in_order_until_one_works() -> None:
    with processes(2, transports=("tcp",)) as job:
        job.start(1)
        addresses = [("127.0.0.1", _closed_port()), *job.listen(1)]
        del job.store.values["jaxcoll/1/tcp/1/near"]
        publish_addresses(job.store, 1, addresses)
        job.bootstraps[0].want(1)
        check_connected(job, 0, 1, "tcp")


def test_different_versions_refuse_each_other() -> None:
    with processes(2, present=1) as job:
        job.add(1, version="2").want(0)
        job.bootstraps[0].want(1)
        for index in (0, 1):
            reason = job.engines[index].failure(1 - index)
            assert "runs jaxcoll 1, process 1 (pid" in reason
            assert reason.endswith("runs jaxcoll 2; install the same version for every process")


def test_two_processes_of_one_index_are_noticed() -> None:
    with processes(2) as job:
        job.start(0)
        twin = FakeEngine()
        second = Bootstrap(twin, job.store, 0, 2, version="1")
        second.want(1)
        assert "two processes have the same index" in twin.failure(1)
        second.close()
        twin.close()


def test_a_record_that_cannot_be_read_is_an_error() -> None:
    with processes(2, present=1) as job:
        job.store.set("jaxcoll/1/process/1", b"[1, 2")
        job.bootstraps[0].want(1)
        assert "what process 1 has published cannot be read" in job.engines[0].failure(1)


@pytest.mark.parametrize("peer", [0, -1, 2])
def test_a_link_to_itself_or_nobody_is_refused(peer: int) -> None:
    with processes(2, present=1) as job:
        job.bootstraps[0].want(peer)
        assert f"process 0 of 2 wants a link to {peer}" in job.engines[0].failure(peer)


def test_a_store_that_fails_is_an_error() -> None:
    class Broken(FakeStore):
        def wait(self, key: str, deadline_s: float) -> bytes:
            raise RuntimeError("coordinator gone")

    with processes(2, present=0) as job:
        job.add(0, store=Broken()).want(1)
        assert job.engines[0].failure(1) == (
            "the job's store (jax.distributed) has failed: coordinator gone"
        )


@pytest.mark.parametrize("broken", [0, 1])
def test_an_engine_without_memory_fails_the_link_on_both_sides(broken: int) -> None:
    with processes(2) as job:

        def make_segment() -> int:
            raise RuntimeError("no memory")

        job.engines[broken].comm_make_segment = make_segment  # type: ignore[method-assign]
        for index in (0, 1):
            job.bootstraps[index].want(1 - index)
        for index in (0, 1):
            assert "no memory" in job.engines[index].failure(1 - index)


def test_close_is_quick_and_final_while_peers_are_missing() -> None:
    with processes(9, present=1) as job:
        for peer in range(1, 9):
            job.bootstraps[0].want(peer)
        job.start(0)
        began = time.monotonic()
        job.bootstraps[0].close()
        assert time.monotonic() - began < WAIT_S
        assert threads_left() == []
        job.bootstraps[0].want(1)
        job.bootstraps[0].close()
        assert job.engines[0].links == job.engines[0].failures == {}


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_close_at_any_moment_leaves_nothing(transport: str) -> None:
    """Anything may be under way: listening, publishing, a handshake, a link with one end."""
    print(f"BOOTSTRAP_TEST_SEED={SEED}")
    random_ = random.Random(SEED)
    for _ in range(40):
        with processes(3, transports=(transport,)) as job:
            for one, other in itertools.permutations(range(3), 2):
                job.bootstraps[one].want(other)
            threading.Event().wait(random_.random() * 0.02)
            for index in random_.sample(range(3), 3):
                job.bootstraps[index].close()


def test_links_outlive_the_bootstrap() -> None:
    with processes(2) as job:
        for index in (0, 1):
            job.bootstraps[index].want(1 - index)
        for index in (0, 1):
            job.engines[index].link(1 - index)
        for bootstrap in job.bootstraps.values():
            bootstrap.close()
        check_connected(job, 0, 1, "shm")


def test_nothing_lies_in_the_file_system() -> None:
    before = descriptors()
    with processes(2) as job:
        different_hosts(job)
        job.start(0)
        job.start(1)
        for index in (0, 1):
            job.bootstraps[index].want(1 - index)
        job.engines[0].link(1)
        opened = {fd: what for fd, what in descriptors().items() if before.get(fd) != what}
        assert opened
        for what in opened.values():
            assert what.startswith(("socket:", "anon_inode:", "pipe:", "/memfd:jaxcoll")), what
        named = [
            fields
            for line in Path("/proc/net/unix").read_text().splitlines()[1:]
            if len(fields := line.split()) > 7
        ]
        names = [name for *_, inode, name in named if f"socket:[{inode}]" in opened.values()]
        assert any(name.startswith("@jaxcoll-") for name in names)
        assert all(name.startswith("@") for name in names)


# --- the real store -----------------------------------------------------------------------------

SCRIPT = """
import sys, jax
sys.path[:0] = [sys.argv[1], f"{sys.argv[1]}/.."]
port, index = sys.argv[2], int(sys.argv[3])
from fake_engine import FakeEngine, WAIT_S
from support import private_jax
from jaxcoll._job.bootstrap import Bootstrap
from jaxcoll._job.host import LinkError
try:
    Bootstrap.from_environment(FakeEngine())
    raise SystemExit("linked without a job")
except LinkError as error:
    assert "jax.distributed.initialize" in str(error)
jax.distributed.initialize(f"127.0.0.1:{port}", 3, index)
engine = FakeEngine()
bootstrap = Bootstrap.from_environment(engine)
bootstrap.start()
if index == 2:  # asks; the lower ones never want anything
    bootstrap.want(0); bootstrap.want(1)
elif index == 0:
    bootstrap.want(1)
peers = [p for p in range(3) if p != index]
print(index, [engine.link(p).transport for p in peers], flush=True)
if index == 1:  # everybody's client must live until all have their links
    bootstrap.want(7)
    assert "wants a link to 7" in engine.failure(7)
jax.config.update("jax_num_cpu_devices", 3)  # refused once there is a back end
private_jax.wait_for_all("done", timeout_s=10)
bootstrap.close()
engine.close()
jax.distributed.shutdown()
"""


def test_processes_link_through_the_store_of_jax_distributed() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    here = str(Path(__file__).parent)
    running = []
    for index in range(3):
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAXCOLL_TIMEOUT_S": "60",
            "JAXCOLL_HOST_ID": f"host-{index // 2}",
        }
        running.append(
            subprocess.Popen(
                [sys.executable, "-c", SCRIPT, here, str(port), str(index)],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    outputs = []
    for process in running:
        try:
            outputs.append(process.communicate(timeout=60)[0])
        except subprocess.TimeoutExpired:
            process.kill()
            outputs.append(process.communicate()[0])
    assert [process.returncode for process in running] == [0, 0, 0], "\n".join(outputs)
    expected = ["0 ['shm', 'tcp']", "1 ['shm', 'tcp']", "2 ['tcp', 'tcp']"]
    assert [line for text in outputs for line in text.splitlines() if line in expected] == expected
