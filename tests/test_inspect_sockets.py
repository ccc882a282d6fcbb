"""The sockets at which processes answer `jaxcoll inspect`: who may come, and what stays behind."""

import contextlib
import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxcoll._job import sockets
from jaxcoll._job.inspection import Inspection
from jaxcoll._job.snapshot import Snapshot

JOB, OTHER = "0123456789abcdef", "f" * 16


@pytest.fixture(autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one folder that sockets may be in; a socket's path must be short."""
    made = tmp_path_factory.mktemp("s") / "j"
    monkeypatch.setattr(sockets, "folders", lambda: [made])
    return made


@pytest.fixture
def inspection() -> Iterator[Inspection]:
    """This process, as one that can be asked."""
    made = Inspection(0, 1, None)
    made.start()
    assert made._ready.wait(60)
    yield made
    made.close()


@contextlib.contextmanager
def answering(job: str, process: int, answer: bytes) -> Iterator[None]:
    """A process that gives one answer to all requests."""
    listener, path = sockets.listen(job, process)

    def serve() -> None:
        while True:
            client, _ = listener.accept()
            with client:
                request = client.recv(100)
                if request == b"end":
                    return
                if request:
                    client.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    with listener:
        yield
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(os.fspath(path))
            client.sendall(b"end")
        thread.join()


def dead(job: str, process: int) -> None:
    """Leaves a socket as a process that has been killed leaves it."""
    sockets.listen(job, process)[0].close()


def test_nobody_else_can_open_a_socket(folder: Path) -> None:
    listener, path = sockets.listen(JOB, 3)
    with listener:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert os.listdir(folder) == [f"{JOB}-3-{os.getpid()}.sock"]


@pytest.mark.parametrize("kind", ["open", "link", "file"])
def test_a_folder_that_others_can_change_is_not_used(folder: Path, kind: str) -> None:
    if kind == "open":
        folder.mkdir()
        folder.chmod(0o777)
    elif kind == "link":
        real = folder.with_name("real")
        real.mkdir(mode=0o700)
        folder.symlink_to(real)
    else:
        folder.write_text("")
    with pytest.raises(OSError, match=r"open to other users|is no folder|File exists"):
        sockets.listen(JOB, 0)
    assert list(sockets.addresses()) == []


def test_a_process_answers_with_its_snapshot(inspection: Inspection) -> None:
    ((job, found),) = sockets.jobs().items()
    (snapshot,), absent, wrong = sockets.ask(found)
    assert (absent, wrong) == ([], [])
    assert isinstance(snapshot, Snapshot)
    assert (snapshot.job, snapshot.process, snapshot.pid) == (job, 0, os.getpid())
    (main,) = [thread for thread in snapshot.threads if thread.main]
    assert main.place.endswith("(test_a_process_answers_with_its_snapshot)")
    inspection.close()
    assert sockets.jobs() == {}


def test_another_user_gets_no_answer(
    inspection: Inspection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even one whom the folder's mode has let in."""
    (found,) = sockets.jobs().values()
    monkeypatch.setattr(sockets, "peer_uid", lambda _: 65534)
    assert sockets.ask(found)[0] == []
    monkeypatch.undo()


def test_another_request_gets_no_answer(inspection: Inspection) -> None:
    assert inspection._path is not None
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(os.fspath(inspection._path))
        client.sendall(b"shutdown\n")
        assert client.recv(100) == b""


def test_a_killed_process_is_named_while_its_job_lives_and_forgotten_then(folder: Path) -> None:
    dead(JOB, 1)
    dead(OTHER, 0)
    with answering(JOB, 0, b""):
        (found,) = sockets.jobs().values()
        _, absent, _ = sockets.ask(found)
        assert [(a.process, a.pid, a.state) for a in absent] == [(1, os.getpid(), "dead")]
        assert {name[:16] for name in os.listdir(folder)} == {JOB}
    assert sockets.jobs() == {}
    assert os.listdir(folder) == []


def test_a_process_that_does_not_answer_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "ANSWER_S", 0.2)
    listener, _ = sockets.listen(JOB, 0)
    with listener:
        (found,) = sockets.jobs().values()
        _, (absent,), _ = sockets.ask(found)
    assert absent.state == "silent"
    assert absent.words.startswith("no answer within 0.2 s; state ")


def test_a_process_of_another_version_is_told_from_one_that_is_silent() -> None:
    with answering(JOB, 0, b'{"format": 2, "version": "0.9.0"}'):
        (found,) = [list(sockets.addresses())]
        snapshots, absent, (wrong,) = sockets.ask(found)
    assert (snapshots, absent) == ([], [])
    assert wrong.startswith(f"process 0 (pid {os.getpid()}): its format is 2 (jaxcoll 0.9.0)")
