"""How processes find each other: several bootstraps in this process, over a store in memory."""

from __future__ import annotations

import dataclasses
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
)

from jaxcoll import _host
from jaxcoll._bootstrap import Bootstrap
from jaxcoll._host import Interface, LinkError, Record

SEED = int(os.environ.get("BOOTSTRAP_TEST_SEED") or random.SystemRandom().randrange(2**32))


@pytest.fixture(autouse=True)
def _nothing_is_left():
    before = descriptors()
    assert bootstrap_threads() == []
    yield
    assert bootstrap_threads() == []
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


def test_a_late_process_0_is_waited_for() -> None:
    with processes(2, present=0) as job:
        job.add(1).want(0)
        with job.store.changed:
            assert job.store.changed.wait_for(
                lambda: job.store.waits.get("jaxcoll/1/secret", 0) > 0, WAIT_S
            )
        job.add(0).want(1)
        check_connected(job, 0, 1, "shm")


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
def test_a_peer_that_has_ended_is_not_waited_for(transport: str, dead: int) -> None:
    with processes(2, transports=(transport,)) as job:
        job.start(dead)
        job.bootstraps[dead].close()
        del job.store.values[f"jaxcoll/1/end/{dead}"]  # as if it had been killed
        job.bootstraps[1 - dead].want(dead)
        reason = job.engines[1 - dead].failure(dead)
        assert f"process {dead} (pid {os.getpid()} on {socket.gethostname()}) has ended" in reason
        assert "Connection refused" in reason


def test_an_asking_process_is_told_why_the_other_one_failed() -> None:
    """Nothing goes from 0 to 1, but 1 reaches 0: both fail with the reason that 0 has."""
    with processes(2, present=1, transports=("tcp",)) as job:
        job.start(0)
        record = json.loads(_fresh_record(job.store, 0))
        lying = {**record, "index": 1, "addresses": [["127.0.0.1", _closed_port()]]}
        job.store.set("jaxcoll/1/process/1", json.dumps(lying).encode())

        class Unread(FakeStore):
            """1's own record is what it published; the others read the one above."""

            def set(self, key: str, value: bytes) -> None:
                self.values[key] = value

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


def test_the_error_names_every_address_and_why_it_failed() -> None:
    with processes(2, present=1, transports=("tcp",)) as job:
        record = job.start(0)
        port = _closed_port()
        addresses = [["127.0.0.1", port], ["127.0.0.2", port]]
        job.store.set(
            "jaxcoll/1/process/1",
            json.dumps({**record, "index": 1, "addresses": addresses}).encode(),
        )
        job.bootstraps[0].want(1)
        reason = job.engines[0].failure(1)
        for address, _ in addresses:
            assert f"{address}:{port}: Connection refused" in reason


def test_addresses_are_tried_in_order_until_one_works() -> None:
    with processes(2, transports=("tcp",)) as job:
        record = job.start(1)
        bad = ["127.0.0.1", _closed_port()]
        changed = {**record, "addresses": [bad, *record["addresses"]]}
        job.store.values["jaxcoll/1/process/1"] = json.dumps(changed).encode()
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
            "the key-value store of jax.distributed has failed: coordinator gone"
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
        assert bootstrap_threads() == []
        job.bootstraps[0].want(1)
        job.bootstraps[0].close()
        assert job.engines[0].links == job.engines[0].failures == {}


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_close_at_any_moment_leaves_nothing(transport: str) -> None:
    """Whatever is under way: listening, publishing, a handshake, a link with one end."""
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
        names = [
            line.split()[7]
            for line in Path("/proc/net/unix").read_text().splitlines()
            if "jaxcoll-" in line
        ]
        assert names
        assert all(name.startswith("@") for name in names)


# --- which transport, which addresses -----------------------------------------------------------


def record(index: int, **fields: object) -> Record:
    base = Record("1", index, "h", "m", "node", 100 + index, 0, ("shm", "tcp"), "x", ())
    return dataclasses.replace(base, **fields)  # type: ignore[arg-type]


RDMA = {"transports": ("shm", "rdma", "tcp"), "fabrics": ("RoCE",)}
ONLY_RDMA = {"transports": ("rdma",)}


@pytest.mark.parametrize(
    ("one", "other", "chosen"),
    [
        ({}, {}, "shm"),
        ({"host": "other"}, {}, "tcp"),
        ({"uid": 7}, {}, "tcp"),
        ({"transports": ("tcp",)}, {}, "tcp"),
        ({}, {"transports": ("tcp",)}, "tcp"),
        ({"transports": ("shm",)}, {"transports": ("tcp", "shm")}, "shm"),
        ({**RDMA, "host": "other"}, RDMA, "rdma"),
        (RDMA, RDMA, "shm"),
        ({**RDMA, "host": "other"}, {}, "tcp"),
        ({**RDMA, "host": "other"}, {**RDMA, "fabrics": ("InfiniBand fe80",)}, "tcp"),
        ({**RDMA, "transports": ("rdma",)}, RDMA, "rdma"),
    ],
)
def test_the_best_transport_that_both_allow_is_chosen(
    one: dict[str, object], other: dict[str, object], chosen: str
) -> None:
    a, b = record(0, **one), record(1, **other)
    assert _host.choose_transport(a, b) == _host.choose_transport(b, a) == chosen


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({"transports": ("shm",)}, {"transports": ("tcp",)}, "on one host, which takes shm or tcp"),
        ({"transports": ("shm",), "host": "a"}, {}, "JAXCOLL_HOST_ID), which takes tcp, but"),
        ({"transports": ("shm",), "uid": 7}, {}, "of different users (uid 7 and 0)"),
        (
            {**ONLY_RDMA, "fabrics": ("RoCE",)},
            {**ONLY_RDMA, "no_rdma": "no device"},
            "process 1 has no rdma: no device",
        ),
        (
            {**ONLY_RDMA, "fabrics": ("RoCE",)},
            {**ONLY_RDMA, "fabrics": ("InfiniBand fe80",)},
            "their RDMA ports are of different fabrics",
        ),
    ],
)
def test_without_a_transport_the_reason_says_what_to_change(
    one: dict[str, object], other: dict[str, object], expected: str
) -> None:
    a, b = record(0, **one), record(1, **other)
    with pytest.raises(LinkError) as caught:
        _host.choose_transport(a, b)
    assert expected in str(caught.value)
    assert "Unset JAXCOLL_TRANSPORT, or add" in str(caught.value)
    with pytest.raises(LinkError) as again:
        _host.choose_transport(b, a)
    assert str(again.value) == str(caught.value)


def test_no_common_transport_fails_both_sides() -> None:
    with processes(2, present=0) as job:
        job.add(0, transports=("shm",)).want(1)
        job.add(1, transports=("tcp",)).want(0)
        for index in (0, 1):
            assert "JAXCOLL_TRANSPORT" in job.engines[index].failure(1 - index)


def test_one_machine_counts_as_two_hosts_under_different_host_ids() -> None:
    with processes(4, present=0) as job:
        for index in range(4):
            job.add(index, host_id=f"host-{index // 2}")
            job.start(index)
        for one, other in itertools.combinations(range(4), 2):
            job.bootstraps[one].want(other)
        for one, other in itertools.combinations(range(4), 2):
            check_connected(job, one, other, "shm" if one // 2 == other // 2 else "tcp")


ETH = Interface("eth0", False, ("192.0.2.1", "fd00::1"))
IB = Interface("ib0", False, ("198.51.100.1",))
LO = Interface("lo", True, ("127.0.0.1", "::1"))


@pytest.mark.parametrize(
    ("chosen", "kept"),
    [
        (None, [ETH, IB, LO]),
        ((False, ("ib",)), [IB]),
        ((False, ("lo", "eth0")), [ETH, LO]),
        ((True, ("eth", "lo")), [IB]),
    ],
)
def test_ifname_chooses_interfaces(
    chosen: tuple[bool, tuple[str, ...]] | None, kept: list[Interface]
) -> None:
    addresses = [address for interface in kept for address in interface.addresses]
    assert _host.choose_addresses([ETH, IB, LO], chosen) == addresses


def test_a_host_without_network_still_has_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_host, "interfaces", list)
    with processes(3, present=2) as job:
        job.add(2, host_id="elsewhere").want(0)
        job.bootstraps[0].want(1)
        job.start(1)
        check_connected(job, 0, 1, "shm")
        job.bootstraps[2].close()
    with processes(2, present=0, timeout_s=2) as job:
        for index in (0, 1):
            job.add(index, host_id=f"host-{index}").want(1 - index)
        assert "it has no address but loopback" in job.engines[0].failure(1)


def test_ifname_that_matches_nothing_names_what_there_is() -> None:
    with pytest.raises(LinkError) as caught:
        _host.choose_addresses([ETH, LO], (False, ("ib", "en")))
    assert str(caught.value) == (
        "JAXCOLL_IFNAME=ib,en leaves no network interface; those that are up: "
        "eth0 (192.0.2.1, fd00::1), lo (127.0.0.1, ::1)"
    )


def test_interfaces_of_this_host_have_loopback_last() -> None:
    found = _host.interfaces()
    assert found[-1].loopback
    assert "127.0.0.1" in found[-1].addresses


def test_loopback_is_published_but_used_on_one_machine_only() -> None:
    addresses = (("192.0.2.1", 1), ("127.0.0.1", 2), ("::1", 3))
    here, there = record(0), record(1, addresses=addresses)
    assert there.addresses_for(here) == list(addresses)
    far = dataclasses.replace(here, machine="other")
    assert there.addresses_for(far) == [("192.0.2.1", 1)]


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_tcp_over_loopback(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not any(address in interface.addresses for interface in _host.interfaces()):
        pytest.skip(f"this machine has no {address}")
    monkeypatch.setattr(_host, "interfaces", lambda: [Interface("lo", True, (address,))])
    with processes(2, transports=("tcp",), ifname=(False, ("lo",))) as job:
        record = job.start(0)
        job.start(1)
        assert [a for a, _ in record["addresses"]] == [address]
        job.bootstraps[1].want(0)
        check_connected(job, 0, 1, "tcp")
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        assert {s.family for s in job.engines[0].link(1).sockets} == {family}
        nodelay = socket.IPPROTO_TCP, socket.TCP_NODELAY
        assert all(s.getsockopt(*nodelay) for s in job.engines[1].link(0).sockets)


def test_who_comes_by_an_excluded_interface_is_turned_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two addresses of a family make it listen everywhere; the third is none of ours."""
    chosen = Interface("lo", True, ("127.0.0.1", "127.0.0.2"))
    monkeypatch.setattr(_host, "interfaces", lambda: [chosen])
    with processes(2, transports=("tcp",)) as job:
        port = job.start(1)["addresses"][0][1]
        with socket.create_connection(("127.0.0.3", port), timeout=WAIT_S) as sock:
            assert sock.recv(1) == b""
        job.bootstraps[0].want(1)
        job.start(0)
        check_connected(job, 0, 1, "tcp")


# --- the real store -----------------------------------------------------------------------------

SCRIPT = """
import sys, jax
sys.path.insert(0, sys.argv[1])
port, index = sys.argv[2], int(sys.argv[3])
from fake_engine import FakeEngine, WAIT_S
from jaxcoll._bootstrap import Bootstrap
from jaxcoll._host import LinkError
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
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized()
from jax._src.distributed import global_state
global_state.client.wait_at_barrier("done", 10000)
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
