"""The sockets at which processes answer `jaxcoll inspect`: who may come, and what stays behind."""

import contextlib
import errno
import json
import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxcoll._cli import inspect
from jaxcoll._job import inspection as inspection_module
from jaxcoll._job import own_snapshot, sockets
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


def inspected(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str, list[str]]:
    """The command's exit code, its output, and its lines on stderr."""
    try:
        code: object = inspect.main(arguments)
    except SystemExit as ended:
        code = ended.code
    told = capsys.readouterr()
    return code, told.out, told.err.splitlines()


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
    with pytest.raises(OSError, match=r"open to other users|is not a folder|File exists"):
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


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_where_no_job_runs_one_line_says_what_to_do(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, (line,) = inspected(capsys, *arguments)
    assert (code, out) == (2, "")
    assert line.startswith("jaxcoll inspect: no jaxcoll job of this user runs on this host. Run ")
    assert "JAXCOLL_DUMP_DIR" in line


def test_a_job_of_another_version_does_not_hide_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is named on stderr, and alone it is nothing to inspect."""
    said = (
        f"jaxcoll inspect: job {JOB} cannot be inspected: process 0 (pid {os.getpid()}): its "
        "format is 0 (jaxcoll 0.0.9), and this jaxcoll reads 1: use the jaxcoll that the job "
        "runs with"
    )
    with answering(JOB, 0, b'{"format": 0, "version": "0.0.9"}'):
        assert inspected(capsys) == (2, "", [said])
        good = Snapshot(OTHER, 0, 1, 7, "a").to_json().encode()
        with answering(OTHER, 0, good):
            code, out, told = inspected(capsys)
            assert (code, told) == (0, [said])
            assert f"job {OTHER}, 1 process" in out
            code, out, told = inspected(capsys, "--json")
            assert [look["kind"] for look in json.loads(out)] == ["idle"]


def test_a_job_of_many_processes_of_another_version_is_told_in_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with contextlib.ExitStack() as stack:
        for process in range(9):
            stack.enter_context(answering(JOB, process, b'{"format": 0}'))
        code, _, (line,) = inspected(capsys)
    assert code == 2
    assert line.endswith("; and 6 more")


def test_a_folder_whose_path_is_too_long_for_a_socket_is_left_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = folder.with_name("l" * 100)
    monkeypatch.setattr(sockets, "folders", lambda: [long, folder])
    listener, path = sockets.listen(JOB, 0)
    with listener:
        assert path.parent == folder
        ((only,),) = sockets.jobs().values()
        assert sockets._listens(only)
    monkeypatch.setattr(sockets, "folders", lambda: [long])
    with pytest.raises(OSError, match="its path is too long for a socket"):
        sockets.listen(JOB, 0)
    made = Inspection(0, 1, None)  # it runs nevertheless
    made.start()
    made.close()
    assert not made._thread.is_alive()


def test_the_longest_path_that_is_taken_can_be_connected_to(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = len(f"/{JOB}-0-{os.getpid()}.sock")
    most = folder.with_name("m" * (107 - name - len(os.fsencode(folder.parent)) - 1))
    monkeypatch.setattr(sockets, "folders", lambda: [most])
    listener, path = sockets.listen(JOB, 0)
    with listener:
        assert len(os.fsencode(path)) == 107
        assert sockets._listens(next(sockets.addresses()))
    with pytest.raises(OSError, match="too long"):
        sockets.listen(JOB, 10)


@pytest.mark.parametrize("kind", ["too long", "a loop", "no folder"])
def test_a_path_that_cannot_be_used_is_told_from_a_silent_process(
    kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.sock"
    if kind == "too long":
        path = tmp_path / ("x" * 120)
    elif kind == "a loop":
        path.symlink_to(path)
    else:
        path.write_text("")
        path = path / "b.sock"
    snapshots, absent, (wrong,) = sockets.ask([sockets.Address(path, JOB, 3, os.getpid())])
    assert (snapshots, absent) == ([], [])
    assert wrong.startswith(f"process 3 (pid {os.getpid()}): its socket {path} cannot be used: ")


def test_the_thread_ends_with_the_inspection(folder: Path) -> None:
    """Also while somebody is connected who says nothing."""
    made = Inspection(0, 1, None)
    made.start()
    assert made._ready.wait(60)
    assert made._path is not None
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(os.fspath(made._path))
        made.close()
    assert not made._thread.is_alive()
    assert list(folder.iterdir()) == []
    made.close()  # another time, as at exit


@pytest.mark.parametrize("count", [1, 2])
def test_a_verdict_that_is_due_does_not_delay_the_end(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the dumps that exist by then; while the process runs, the others' are waited for."""
    monkeypatch.setattr(inspection_module, "_OTHERS_S", 1e6)
    monkeypatch.setenv("JAXCOLL_DUMP_DIR", str(tmp_path))
    monkeypatch.setattr(own_snapshot, "has_failed", lambda: True)
    made = Inspection(0, count, None)
    made.start()
    os.eventfd_write(made._bell, 1)
    while not list(tmp_path.glob("*.json")):
        made._thread.join(0.01)
    made.close("has ended")
    (verdict,) = tmp_path.glob("*.verdict")
    assert ("no snapshot of process 1" in verdict.read_text()) == (count == 2)


def test_an_error_while_the_dump_is_written_does_not_leave_the_socket(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> Snapshot:
        raise MemoryError

    monkeypatch.setenv("JAXCOLL_DUMP_DIR", str(tmp_path))
    monkeypatch.setattr(own_snapshot, "has_failed", lambda: True)
    monkeypatch.setattr(own_snapshot, "take", fails)
    made = Inspection(0, 1, None)
    made.start()
    assert made._ready.wait(60)
    made.close()
    assert list(folder.iterdir()) == []


def test_a_process_without_descriptors_runs_uninspected(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "eventfd", none_left)
    made = Inspection(0, 1, None)
    made.start()
    made.watch_engine()
    made.close()


def test_a_process_of_another_version_is_told_from_one_that_is_silent() -> None:
    with answering(JOB, 0, b'{"format": 2, "version": "0.9.0"}'):
        (found,) = [list(sockets.addresses())]
        snapshots, absent, (wrong,) = sockets.ask(found)
    assert (snapshots, absent) == ([], [])
    assert wrong.startswith(f"process 0 (pid {os.getpid()}): its format is 2 (jaxcoll 0.9.0)")
