"""`jaxcoll inspect` on jobs that hang, and on what they leave behind."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import ROOT, Job

from jaxcoll._job.snapshot import Snapshot, Thread

COMMON = """
from spmd import *
import jaxcoll

mesh = make_mesh((jax.device_count(),))
x = place(mesh, small_integers((mesh.size, 8)))

def step(x):
    return jaxcoll.psum(x, "x")

f = per_device(mesh, step)

def told(f, *operands):
    try:
        jax.block_until_ready(f(*operands))
        print("value")
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        sys.stdout.write(f"error {error}\\n")

told(f, x)
finished("the first call")
"""
LATE = (
    COMMON
    + """
def load():
    time.sleep(1000)

if rank == 1:
    print("loading")
    load()
told(f, x)
print("the script goes on")  # no words of the log
sys.stdin.read()
"""
)
# While a call in C keeps the interpreter's lock, no Python thread of the process runs.
HOLDS_THE_LOCK = (
    COMMON
    + """
import ctypes
if rank == 1:
    print("loading")
    ctypes.PyDLL(None).sleep(1000)
told(f, x)
"""
)
# Processes 0 and 1 make the calls of two communicators in opposite order.
OPPOSITE = (
    COMMON
    + """
grid = make_mesh((2, 2))
devices = grid.devices
pairs = [Mesh(devices[0], "p"), Mesh(devices[0][::-1], "q")]
operands = [place(pair, small_integers((2, 8))) for pair in pairs] if rank < 2 else []
calls = [
    per_device(pair, lambda x, axis=axis: jaxcoll.psum(x, axis))
    for pair, axis in zip(pairs, "pq")
]
compiled = [f.lower(x).compile() for f, x in zip(calls, operands)]
finished("compiled")
if rank < 2:
    for i in [(0, 1), (1, 0)][rank]:
        told(compiled[i], operands[i])
else:
    time.sleep(1000)
"""
)


@pytest.fixture(autouse=True)
def runtime_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for the sockets; pytest's own is too long for a socket's path."""
    with tempfile.TemporaryDirectory(prefix="inspect-", dir="/tmp") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder)


def inspect(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jaxcoll", "inspect", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


def look_until(job: Job, rank: int, good: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """The verdict on a job as soon as it is `good`."""
    while True:
        finished = inspect(job.ranks[rank].pid, "--json")
        if finished.returncode == 2:
            job.fail(finished.stderr)
        (verdict,) = json.loads(finished.stdout)
        if good(verdict):
            return dict(verdict)
        if time.monotonic() > job.end or job.ranks[rank].code is not None:
            job.fail(finished.stdout)


def found(job: Job, kind: str) -> dict[str, Any]:
    return look_until(job, 0, lambda verdict: verdict["kind"] == kind)


def line_of(script: str, text: str) -> int:
    """The line of a script in which a text stands first."""
    return script[: script.index(text)].count("\n") + 1


def test_a_late_rank_is_named_with_its_line() -> None:
    with Job(LATE, processes=3) as job:
        job.wait_for(1, "loading")
        # The others come to the call one after the other.
        verdict = look_until(job, 0, lambda v: "two processes have waited" in v["sentence"])
        pid = job.ranks[1].pid
        assert verdict["culprits"] == [1]
        words = (
            rf"rank 1 \(process 1 on \S+, pid {pid}\) has not called all_reduce\(sum\) of "
            r"float32\[8\] over axis 'x' \(3 ranks\) at <string>:\d+ \(step\), for which two "
            r"processes have waited \S+ s; it is in Python at <string>:\d+ \(load\)"
        )
        assert re.fullmatch(words, verdict["sentence"]), verdict["sentence"]
        (late,) = [s for s in verdict["snapshots"] if s["process"] == 1]
        place = int(re.search(r":(\d+) \(load\)", verdict["sentence"])[1])  # type: ignore[index]
        assert any(re.search(rf":{place} \(load\)", f) for f in late["threads"][0]["frames"])
        text = inspect(job.ranks[2].pid)
        assert text.returncode == 1, text.stderr
        assert verdict["sentence"].partition(", for which")[0] in text.stdout
        # Without a process id it finds the same job, and no other.
        everything = inspect()
        assert everything.stdout.count("process 1, Python thread MainThread") == 1


def test_a_stopped_process_is_named() -> None:
    with Job(LATE, processes=2) as job:
        job.wait_for(1, "loading")
        job.send(1, signal.SIGSTOP)
        verdict = found(job, "stopped")
        assert verdict["culprits"] == [1]
        assert f"pid {job.ranks[1].pid}) is stopped (state T" in verdict["sentence"]


def test_a_killed_process_is_named() -> None:
    with Job(LATE, processes=3, survives=True) as job:
        job.wait_for(1, "loading")
        found(job, "late")
        job.send(1, signal.SIGKILL)
        verdict = found(job, "dead")
        assert verdict["culprits"] == [1]
        assert f"pid {job.ranks[1].pid}" in verdict["sentence"]


def test_a_process_that_holds_the_interpreters_lock_is_named() -> None:
    with Job(HOLDS_THE_LOCK, processes=2) as job:
        job.wait_for(1, "loading")
        verdict = found(job, "silent")
        assert verdict["culprits"] == [1]
        assert "no answer within 2 s; state S" in verdict["sentence"]


def test_two_communicators_in_opposite_order_are_a_deadlock() -> None:
    with Job(OPPOSITE, processes=4) as job:
        job.wait_for(0, "finished compiled")
        verdict = found(job, "deadlock")
        assert verdict["culprits"] == [0, 1]
        assert "axis 'p'" in verdict["sentence"]
        assert "axis 'q'" in verdict["sentence"]


def test_a_finished_job_leaves_nothing_to_inspect(runtime_dir: Path) -> None:
    with Job(COMMON + "print(jaxcoll)\n", processes=2) as job:
        job.finish()
        pid = job.ranks[0].pid
    gone = inspect(pid)
    assert (gone.returncode, gone.stderr.splitlines()[-1]) == (
        2,
        f"jaxcoll inspect: error: there is no process {pid}",
    )
    assert list((runtime_dir / "jaxcoll").iterdir()) == []
    assert f" {pid} " not in inspect().stdout


def test_dumps_of_a_timeout_have_the_verdict_of_the_living_job(tmp_path: Path) -> None:
    environment = {"JAXCOLL_TIMEOUT_S": "4", "JAXCOLL_DUMP_DIR": str(tmp_path)}
    with Job(LATE, processes=3, environment=environment, survives=True) as job:
        for rank in (0, 2):
            job.wait_for(rank, "the script goes on")
            # The error of every rank says where the late one is.
            error = job.text(rank).partition("error ")[2]
            assert re.search(r"rank 1 .*it is in Python at <string>:\d+ \(load\)", error), error
        for rank in range(3):
            job.wait_for(rank, "`jaxcoll inspect ")
        (verdict,) = tmp_path.glob("jaxcoll-*.verdict")
        told = verdict.read_text().splitlines()[0]
    words = r"rank 1 .* has not called all_reduce.*; it is in Python at <string>:\d+ \(load\)"
    assert re.fullmatch(words, told), told
    dead = inspect(tmp_path)
    assert dead.returncode == 1, dead.stderr
    assert told in dead.stdout
    assert "note:" not in dead.stdout
    one, two, _ = sorted(tmp_path.glob("jaxcoll-*.json"))
    one.unlink()
    two.write_bytes(two.read_bytes()[:1000])
    rest = inspect(tmp_path)
    assert f"note: {two.name} cannot be used: it is cut off" in rest.stdout
    assert "there is no snapshot of process 0" in rest.stdout


EXCEPTIONS = {
    "plain": ("KeyError('batch')", r"KeyError: 'batch' at <string>:\d+ \(load\)"),
    "not printable": (
        "OSError('\\udc80\\x1b[31m\\nfor ' + 'x' * 9000)",
        r"OSError: \\udc80\\x1b\[31m for x{480,} at <string>:\d+ \(load\)",
    ),
    "without a text": ("bad(ValueError)", "Bad, whose text cannot be had: ValueError"),
    "that ends the process": ("bad(SystemExit)", "Bad, whose text cannot be had: SystemExit"),
}
BAD = """
def bad(error):
    class Bad(Exception):
        def __str__(self):
            raise error("no text")
    return Bad()
"""


@pytest.mark.parametrize(("exception", "words"), EXCEPTIONS.values(), ids=EXCEPTIONS)
def test_an_exception_is_told_to_those_that_wait(
    exception: str, words: str, tmp_path: Path
) -> None:
    script = COMMON + (
        f"{BAD}\ndef load():\n    raise {exception}\nif rank == 1:\n    load()\ntold(f, x)\n"
        "print('the script goes on')\n"
    )
    environment = {"JAXCOLL_DUMP_DIR": str(tmp_path)}
    with Job(script, processes=2, environment=environment, survives=True) as job:
        job.wait_for(0, "the script goes on")
        assert re.search(rf"error .*has raised {words}", job.text(0)), job.text(0)
        job.finish(exit_codes={1: 1})
    dead = json.loads(inspect(tmp_path, "--json").stdout)[0]
    assert (dead["kind"], dead["culprits"]) == ("exception", [1]), dead["sentence"]


def test_watch_looks_again_until_ctrl_c() -> None:
    command = [sys.executable, "-m", "jaxcoll", "inspect", "--watch", "--every", "0.1", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as watching:
        assert watching.stdout is not None
        looks = [json.loads(watching.stdout.readline()) for _ in range(3)]
        watching.send_signal(signal.SIGINT)
        assert watching.wait(60) == 0
    assert all(isinstance(look, list) for look in looks)
    for arguments, words in [
        (["--watch", "--every", "0"], "'0' is not a number of seconds from 0.1 to 86400"),
        (["--every", "1"], "--every needs --watch"),
    ]:
        refused = inspect(*arguments)
        assert refused.returncode == 2
        assert words in refused.stderr


@pytest.mark.parametrize("order", [["--watch", "{}"], ["{}", "--watch"]])
def test_watch_takes_no_argument_of_its_own(order: list[str], tmp_path: Path) -> None:
    arguments = [argument.format(tmp_path) for argument in order]
    assert f"{tmp_path} holds no dumps" in refusal(*arguments)


def test_nothing_that_a_terminal_would_obey_is_printed(tmp_path: Path) -> None:
    """Neither from a dump nor from the name of a file."""
    nasty = "\x1b]0;title\x07\u202e\udc80\r"
    snapshot = Snapshot(
        *("0" * 16, 0, 1, 7, f"host{nasty}"),
        command=f"train{nasty}",
        exception=f"ValueError: {nasty}",
        threads=(Thread("main", True, f"{nasty}.py:1 (f)", "", (f"{nasty}.py:1 (f)",)),),
    )
    (tmp_path / "jaxcoll-a-0.json").write_text(snapshot.to_json())
    (tmp_path / f"jaxcoll-{nasty}.json").write_text("{")
    found = inspect(tmp_path)
    assert found.returncode == 1, found.stderr
    assert found.stdout.replace("\n", "").isprintable()
    assert "ValueError: \\x1b]0;title\\x07\\u202e\\udc80" in found.stdout
    assert "cannot be used: it is cut off" in found.stdout


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (lambda folder: 4194305, "there is no process 4194305"),
        (lambda folder: folder, r" holds no dumps \(jaxcoll-\*\.json\)"),
        (lambda folder: folder / "none", "is neither a process id nor a folder"),
    ],
    ids=["no process", "no dumps", "no folder"],
)
def test_a_target_that_cannot_be_inspected_is_refused_in_one_line(
    tmp_path: Path, target: Callable[[Path], object], words: str
) -> None:
    assert re.search(words, refusal(target(tmp_path)))


@pytest.mark.parametrize(
    ("user", "words"),
    [
        (None, r"process \d+ is not a process of a jaxcoll job: "),
        pytest.param(
            65534,
            "and only its own user can inspect it",
            marks=pytest.mark.skipif(
                os.getuid() != 0, reason="only root can start a process of another user"
            ),
        ),
    ],
    ids=["in no job", "of another user"],
)
def test_another_process_is_refused(user: int | None, words: str) -> None:
    """Not pytest's own process: a test that ran before may have made it a job."""
    with subprocess.Popen(["sleep", "100"], user=user) as other:
        try:
            assert re.search(words, refusal(other.pid))
        finally:
            other.kill()


def refusal(*arguments: object) -> str:
    """The one line that says why there is nothing to inspect."""
    finished = inspect(*arguments)
    assert finished.returncode == 2, finished.stdout
    assert finished.stdout == ""
    (line,) = finished.stderr.splitlines()
    return line
