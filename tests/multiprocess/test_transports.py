"""The transport that two processes use, their addresses, and the listeners."""

from __future__ import annotations

import dataclasses
import itertools
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_engine import WAIT_S, check_connected, descriptors, processes, threads_left

from jaxcoll._job import host
from jaxcoll._job.host import Interface, LinkError, Record


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    before = descriptors()
    yield
    assert threads_left() == []
    assert {fd: what for fd, what in descriptors().items() if before.get(fd) != what} == {}


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
    assert host.choose_transport(a, b) == host.choose_transport(b, a) == chosen


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
        host.choose_transport(a, b)
    assert expected in str(caught.value)
    assert "Unset JAXCOLL_TRANSPORT, or add" in str(caught.value)
    with pytest.raises(LinkError) as again:
        host.choose_transport(b, a)
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
    assert host.choose_addresses([ETH, IB, LO], chosen) == addresses


def test_a_host_without_network_still_has_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "interfaces", list)
    with processes(3, present=2) as job:
        job.add(2, host_id="elsewhere").want(0)
        job.bootstraps[0].want(1)
        job.start(1)
        check_connected(job, 0, 1, "shm")
        job.bootstraps[2].close()
    with processes(2, present=0, timeout_s=2) as job:
        for index in (0, 1):
            job.add(index, host_id=f"host-{index}").want(1 - index)
        assert "process 1 cannot be reached: it has no address" in job.engines[0].failure(1)


def test_ifname_that_matches_nothing_names_what_there_is() -> None:
    with pytest.raises(LinkError) as caught:
        host.choose_addresses([ETH, LO], (False, ("ib", "en")))
    assert str(caught.value) == (
        "JAXCOLL_IFNAME=ib,en leaves no network interface; those that are up: "
        "eth0 (192.0.2.1, fd00::1), lo (127.0.0.1, ::1)"
    )


def test_interfaces_of_this_host_have_loopback_last() -> None:
    found = host.interfaces()
    assert found[-1].loopback
    assert "127.0.0.1" in found[-1].addresses


@pytest.mark.parametrize(
    ("way", "chosen", "listens"),
    [
        ("near", ["192.0.2.1", "127.0.0.1", "::1"], ["127.0.0.1", "::1"]),
        ("far", ["192.0.2.1", "127.0.0.1", "::1", "fd00::1"], ["192.0.2.1", "fd00::1"]),
        ("near", ["192.0.2.1"], ["192.0.2.1"]),  # JAXCOLL_IFNAME leaves loopback out
    ],
)
def test_processes_of_one_machine_meet_on_loopback(
    way: str, chosen: list[str], listens: list[str]
) -> None:
    assert host.addresses_for(way, chosen) == listens


def test_loopback_reaches_no_other_machine() -> None:
    with pytest.raises(LinkError, match="no address but loopback"):
        host.addresses_for("far", ["127.0.0.1"])
    with pytest.raises(LinkError, match="no address"):
        host.addresses_for("near", [])


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_tcp_over_loopback(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not any(address in interface.addresses for interface in host.interfaces()):
        pytest.skip(f"this machine has no {address}")
    monkeypatch.setattr(host, "interfaces", lambda: [Interface("lo", True, (address,))])
    with processes(2, transports=("tcp",), ifname=(False, ("lo",))) as job:
        job.start(0)
        job.start(1)
        assert [a for a, _ in job.listen(0)] == [address]
        job.bootstraps[1].want(0)
        check_connected(job, 0, 1, "tcp")
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        assert {s.family for s in job.engines[0].link(1).sockets} == {family}
        nodelay = socket.IPPROTO_TCP, socket.TCP_NODELAY
        assert all(s.getsockopt(*nodelay) for s in job.engines[1].link(0).sockets)


def test_nobody_listens_at_an_interface_that_is_excluded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where several addresses of one family are to be listened at."""
    chosen = Interface("lo", True, ("127.0.0.1", "127.0.0.2"))
    monkeypatch.setattr(host, "interfaces", lambda: [chosen])
    with processes(2, transports=("tcp",)) as job:
        job.start(1)
        for _, port in job.listen(1):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.3", port), timeout=WAIT_S)
        job.bootstraps[0].want(1)
        job.start(0)
        check_connected(job, 0, 1, "tcp")


# --- who listens --------------------------------------------------------------------------------


def listening() -> list[str]:
    """Addresses of this process's tcp listeners."""
    inodes = {w[8:-1] for w in descriptors().values() if w.startswith("socket:[")}
    found = []
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in inodes:
                found.append(words[1].rpartition(":")[0])
    return found


LOOPBACK = {"0100007F", "00000000000000000000000001000000"}


def test_processes_of_one_host_listen_for_no_tcp() -> None:
    before = listening()
    with processes(4) as job:
        for one, other in itertools.permutations(range(4), 2):
            job.bootstraps[one].want(other)
        for one, other in itertools.combinations(range(4), 2):
            check_connected(job, one, other, "shm")
        assert listening() == before
        assert not [key for key in job.store.values if "secret" in key or "tcp" in key]
        for bootstrap in job.bootstraps.values():
            (where,) = bootstrap.listening()
            assert where.startswith("@jaxcoll-")


@pytest.mark.parametrize("wanting", [[0], [1], [0, 1]], ids=["lower", "higher", "both"])
@pytest.mark.parametrize("why", ["transport", "host ids"])
def test_tcp_on_one_machine_listens_on_loopback(why: str, wanting: list[int]) -> None:
    assert not listening()
    with processes(2, present=0) as job:
        for index in (0, 1):
            if why == "transport":
                job.add(index, transports=("tcp",))
            else:
                job.add(index, host_id=f"host-{index}")
            job.start(index)
        for index in wanting:
            job.bootstraps[index].want(1 - index)
        check_connected(job, 0, 1, "tcp")
        assert listening()
        assert set(listening()) <= LOOPBACK


@pytest.mark.parametrize("wanting", [[0], [1], [0, 1]], ids=["lower", "higher", "both"])
def test_processes_of_two_machines_listen_at_their_interfaces(
    wanting: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that has been reached by loopback before still can be, and the other way round."""
    addresses = [a for i in host.interfaces() if not i.loopback for a in i.addresses]
    if not addresses:
        pytest.skip("this machine has no interface but loopback")
    with processes(4, present=0) as job:
        for index in range(4):
            monkeypatch.setattr(host, "machine_identity", lambda i=index: f"machine-{i // 2}")
            job.add(index, transports=("tcp",))
            job.start(index)
        for one, other in [(0, 1), (1, 2), (0, 3), (2, 3)]:
            pair = one, other
            for i in wanting:
                job.bootstraps[pair[i]].want(pair[1 - i])
            check_connected(job, one, other, "tcp")
            names = {sock.getsockname()[0] for sock in job.engines[one].link(other).sockets}
            if pair in ((1, 2), (0, 3)):
                assert names <= set(addresses), names


def test_a_process_that_cannot_listen_says_why_to_waiting_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def listen_tcp(_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("jaxcoll._job.listener.listen_tcp", listen_tcp)
    with processes(2, transports=("tcp",)) as job:
        job.start(1)
        job.bootstraps[0].want(1)
        reason = job.engines[0].failure(1)
        assert "process 1 cannot be reached" in reason
        assert "Too many open files" in reason
