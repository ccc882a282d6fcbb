"""Processes of a job tell their log of each other."""

import re
import socket
from pathlib import Path

import pytest
from processes import Job, run

PROGRAM = """
from spmd import *
mesh = make_mesh((jax.device_count(),))
x = small_integers((jax.device_count(), 8))
result = per_device(mesh, lambda x: c.psum(x, "x"))(place(mesh, x))
compare(result, np.broadcast_to(x.sum(0), x.shape), "sum")
finished("end")
"""
HOST = re.escape(socket.gethostname())
LINE = re.compile(
    rf"\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{{3}}Z jaxcoll (?:INFO|WARNING) {HOST}:(?P<pid>\d+)"
    r"(?P<place> process \d/2)?: (?P<text>.*)"
)


def lines(path: Path) -> list[re.Match[str]]:
    """All of them, each of the log's form."""
    found = [LINE.fullmatch(line) for line in path.read_text().splitlines()]
    assert all(found), path.read_text()
    return [match for match in found if match]


def has(told: list[str], pattern: str) -> None:
    """One line, and no other, matches."""
    assert [bool(re.match(pattern, text)) for text in told].count(True) == 1, (pattern, told)


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_each_process_has_its_file_with_what_it_chose(transport: str, tmp_path: Path) -> None:
    environment = {
        "JAXCOLL_LOG": "info",
        "JAXCOLL_LOG_FILE": f"{tmp_path}/log.%r",
        "JAXCOLL_TRANSPORT": transport,
    }
    printed = run(PROGRAM, processes=2, devices=2, environment=environment)
    assert not any(" jaxcoll INFO " in text for text in printed)
    for rank in range(2):
        found = lines(tmp_path / f"log.{rank}")
        assert {match["place"] for match in found} == {f" process {rank}/2"}
        assert len({match["pid"] for match in found}) == 1
        told = [match["text"] for match in found]
        has(told, r"jaxcoll \S+, jax ")
        has(told, r"secret: ")
        has(told, rf"environment: JAXCOLL_LOG='info', .*JAXCOLL_TRANSPORT='{transport}'")
        has(told, r"platform cpu: 4 devices, 2 of this process, of 2 processes$")
        has(told, r"communicator axis 'x' \(4 ranks\): devices \S+, \S+, \S+, \S+; \"auto\": ")
        if transport == "shm":
            has(told, r"shm: for processes of this host and user$")
            has(told, r"left out by JAXCOLL_TRANSPORT: rdma, tcp$")
        else:
            has(told, r"tcp: can be reached at .*\blo \(127\.0\.0\.1")
            has(told, r"listens at 127\.0\.0\.1:\d+")
        has(told, rf"linked to process {1 - rank}, .*{transport}")


def test_processes_can_share_a_file(tmp_path: Path) -> None:
    environment = {"JAXCOLL_LOG": "info", "JAXCOLL_LOG_FILE": str(tmp_path / "log")}
    run(PROGRAM, processes=2, devices=1, environment=environment)
    places = {match["place"] for match in lines(tmp_path / "log")}
    assert places == {" process 0/2", " process 1/2"}


def test_a_lost_process_is_in_the_log_of_the_other() -> None:
    script = PROGRAM.replace('finished("end")', 'print("summed"); sys.stdin.read()')
    with Job(
        script, processes=2, devices=1, environment={"JAXCOLL_LOG": "info"}, survives=True
    ) as job:
        for rank in range(2):
            job.wait_for(rank, "summed")
        job.send(1, 9)
        job.wait_for(0, "is lost: ")
        told = [match["text"] for line in job.text(0).splitlines() if (match := LINE.match(line))]
        has(told, r"process 1 \(.*\) is lost: ")
