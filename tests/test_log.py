"""One log for both languages: its form, its levels, its file, and the handlers of a program."""

from __future__ import annotations

import logging
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support import warm_python, xla_flags

from jaxcoll import SettingError, _environment, _log
from jaxcoll._native import native

ROOT = Path(__file__).parent.parent
LINE = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z jaxcoll (WARNING|INFO|DEBUG|ERROR) "
    rf"{re.escape(socket.gethostname())}:\d+(?P<place> process \d+/\d+)?: (?P<text>.*)"
)
# A collective within one process; afterwards a line of Python's and one of C++ at each level.
PROGRAM = """
import logging, sys
import jax, numpy as np, jaxcoll
from jax.sharding import Mesh, PartitionSpec as P
mesh = Mesh(jax.devices(), "dp")
f = jax.shard_map(lambda x: jaxcoll.psum(x, "dp"), mesh=mesh, in_specs=P("dp"), out_specs=P())
jax.jit(f)(np.arange(8.0)).block_until_ready()
for level in (logging.DEBUG, logging.INFO, logging.WARNING):
    logging.getLogger("jaxcoll.somewhere").log(level, "python %s", logging.getLevelName(level))
"""


def run(program: str = PROGRAM, devices: int = 4, **environment: str) -> str:
    """Stderr of a program that succeeds. An empty variable is not set."""
    variables = {k: v for k, v in os.environ.items() if k not in _environment.added_environment()}
    variables |= {"PYTHONPATH": str(ROOT), "XLA_FLAGS": xla_flags.with_devices(devices)}
    finished = warm_python.run(["-c", program], variables | environment, timeout_s=120)
    assert finished.returncode == 0, finished.stderr
    return finished.stderr


def texts(log: str) -> list[str]:
    """The messages; every line has the log's form."""
    matches = [LINE.fullmatch(line) for line in log.splitlines()]
    assert all(matches), log
    return [match["text"] for match in matches if match]


# --- levels -------------------------------------------------------------------------------------


def test_without_settings_there_are_warnings_only() -> None:
    assert texts(run()) == ["python WARNING"]


def test_at_info_a_job_says_what_it_is_and_what_it_chose() -> None:
    log = run(JAXCOLL_LOG="info")
    told = texts(log)
    versions, secret, environment, platform, communicator, *own = told
    assert re.match(r"jaxcoll \S+, jax \S+, jaxlib \S+, Python 3\.\S+; kernels: \w+, of ", versions)
    assert secret == "secret: none was given (neither JAXCOLL_SECRET_FILE nor JAXCOLL_SECRET_FD)"
    assert "JAXCOLL_LOG='info'" in environment
    assert platform.startswith("platform cpu: 4 devices, all of this process")
    assert communicator.startswith("communicator axis 'dp' (4 ranks): devices 0, 1, 2, 3; \"auto\"")
    assert own == ["python INFO", "python WARNING"]
    # The index is known from the first collective on.
    assert ["process 0/1" in line for line in log.splitlines()] == [False] * 3 + [True] * 4


def test_at_debug_both_languages_say_more() -> None:
    told = texts(run(JAXCOLL_LOG="debug"))
    assert "python DEBUG" in told
    assert any(text.endswith(": prepared") for text in told)  # ffi/call/call_site.cc


def test_a_level_that_is_changed_later_counts_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    for level in ("debug", "info", "warning"):
        monkeypatch.setenv("JAXCOLL_LOG", level)
        _environment.values()
        assert _log.LOGGER.level == getattr(logging, level.upper())
    monkeypatch.delenv("JAXCOLL_LOG")
    _environment.values()
    assert _log.LOGGER.level == logging.NOTSET
    monkeypatch.undo()
    _environment.values()


# --- a program's own handlers -------------------------------------------------------------------

HANDLERS = {
    "of jaxcoll's logger": "logging.getLogger('jaxcoll').addHandler(handler)",
    "of a logger below": "logging.getLogger('jaxcoll.somewhere').addHandler(handler)",
    "of the root logger": "logging.getLogger().addHandler(handler)",
    "of the root logger, before the import": "logging.getLogger().addHandler(handler)",
}


@pytest.mark.parametrize("which", HANDLERS)
def test_a_programs_handlers_get_the_records_and_stderr_does_not_repeat_them(which: str) -> None:
    add = (
        "import logging, sys\nhandler = logging.StreamHandler(sys.stderr)\n"
        f"handler.setFormatter(logging.Formatter('mine: %(message)s'))\n{HANDLERS[which]}\n"
    )
    before = add + PROGRAM
    after = PROGRAM.replace("for level", add + "for level")
    log = run(before if "before" in which else after, JAXCOLL_LOG="warning")
    assert log.splitlines() == ["mine: python WARNING"]


def test_the_root_logger_and_its_level_stay_as_they_were() -> None:
    program = (
        "import logging\nroot = logging.getLogger()\nbefore = root.level, list(root.handlers)\n"
        f"{PROGRAM}\nassert before == (root.level, root.handlers)\n"
        "assert logging.getLogger('jaxcoll').propagate"
    )
    run(program, JAXCOLL_LOG="debug")


def test_a_programs_own_level_stays_where_none_is_asked_for() -> None:
    program = "import logging\nlogging.getLogger('jaxcoll').setLevel(logging.ERROR)\n" + PROGRAM
    assert run(program) == ""


def test_a_handlers_error_does_not_end_the_program(tmp_path: Path) -> None:
    """Text that is not UTF-8 is replaced; a program without stderr goes on."""
    path = tmp_path / "log"
    program = PROGRAM + "sys.stderr = None\nlogging.getLogger('jaxcoll').warning('odd \\udcff')\n"
    run(program, JAXCOLL_LOG_FILE=str(path))
    assert texts(path.read_text())[-1] == "odd ?"
    run(program)


# --- the file -----------------------------------------------------------------------------------


def test_a_file_has_the_lines_of_both_languages_in_stderrs_place(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("")
    for _ in range(2):  # the second run appends
        log = run(JAXCOLL_LOG="debug", JAXCOLL_LOG_FILE=str(tmp_path / "log"))
        assert log == ""
    told = texts((tmp_path / "log").read_text())
    assert sum(text.endswith(": prepared") for text in told) == 2
    assert told.count("python DEBUG") == 2


def test_a_file_has_the_lines_that_a_programs_handlers_get_as_well(tmp_path: Path) -> None:
    own = "logging.basicConfig(format='mine: %(message)s')\n"
    program = PROGRAM.replace("for level", own + "for level")
    log = run(program, JAXCOLL_LOG_FILE=str(tmp_path / "log"))
    assert log == "mine: python WARNING\n"
    assert texts((tmp_path / "log").read_text()) == ["python WARNING"]


def test_a_files_name_takes_host_process_and_index(tmp_path: Path) -> None:
    """Lines from before the index is known are in the file, too."""
    log = run(JAXCOLL_LOG="info", JAXCOLL_LOG_FILE=f"{tmp_path}/%h-%r-%%")
    assert log == ""
    (path,) = tmp_path.iterdir()
    assert path.name == f"{socket.gethostname()}-0-%"
    told = texts(path.read_text())
    assert told[0].startswith("jaxcoll ")
    assert told[-1] == "python WARNING"
    log = run(JAXCOLL_LOG_FILE=f"{tmp_path}/%p")
    assert [path.name.isdigit() for path in tmp_path.iterdir()].count(True) == 1


def test_lines_that_wait_for_an_index_are_on_stderr_at_the_end(tmp_path: Path) -> None:
    program = "import jaxcoll, logging; logging.getLogger('jaxcoll').warning('never in a job')"
    assert texts(run(program, JAXCOLL_LOG_FILE=f"{tmp_path}/%r")) == ["never in a job"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("{folder}/none/log", "No such file or directory"),
        ("{folder}", "Is a directory"),
        ("{folder}/file/log", "Not a directory"),
        ("{folder}/%x", ""),
        ("{folder}/50%", ""),
        ("{folder}/two\nlines", ""),
        ("{folder}/" + "x" * 5000, ""),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(name: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingError) as caught:
        _environment.values({"JAXCOLL_LOG_FILE": name.format(folder=tmp_path)})
    said = str(caught.value)
    assert said.startswith("JAXCOLL_LOG_FILE='")
    assert f"{why}); it takes: a file, in a folder that is there" in said if why else True
    assert " cannot be used" in said


def test_a_file_that_cannot_be_used_stops_a_job_before_it_begins(tmp_path: Path) -> None:
    variables = {**os.environ, "JAXCOLL_LOG_FILE": f"{tmp_path}/none/log"}
    for command in (["-c", "import jaxcoll"], ["-m", "jaxcoll", "verify"]):
        finished = warm_python.run(command, variables, timeout_s=120)
        assert finished.returncode != 0
        last = finished.stderr.splitlines()[-1]
        assert f"JAXCOLL_LOG_FILE='{tmp_path}/none/log' cannot be used (" in last


def test_a_pipe_that_nobody_reads_stops_it_too(tmp_path: Path) -> None:
    """Only the opening finds out."""
    os.mkfifo(tmp_path / "pipe")
    finished = warm_python.run(
        ["-c", "import jaxcoll"],
        {**os.environ, "JAXCOLL_LOG_FILE": str(tmp_path / "pipe")},
        timeout_s=120,
    )
    assert finished.returncode == 1
    assert "SettingError: JAXCOLL_LOG_FILE" in finished.stderr.splitlines()[-1]


# --- one device ---------------------------------------------------------------------------------

# Two programs, so that there could be two lines.
ONE_DEVICE = PROGRAM.split("for level")[0] + "jax.jit(f)(np.ones(3)).block_until_ready()\n"


def first_run(program: str, **environment: str) -> str:
    """Stderr in an environment that asks for no devices."""
    variables = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "PJRT_NPROC")}
    finished = subprocess.run(
        [sys.executable, "-c", program],
        env=variables | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stderr


def test_a_newcomer_with_one_device_is_told_once_how_to_get_eight() -> None:
    (said,) = texts(first_run(ONE_DEVICE))
    assert said.startswith("JAX has one CPU device")
    assert "XLA_FLAGS=--xla_force_host_platform_device_count=8" in said


@pytest.mark.parametrize("asks", ["the flag", "the option"])
def test_a_program_that_asked_for_one_device_is_told_nothing(asks: str) -> None:
    if asks == "the flag":
        flags = "--xla_force_host_platform_device_count=1"
        assert first_run(ONE_DEVICE, XLA_FLAGS=flags) == ""
    else:
        assert first_run(ONE_DEVICE, JAX_NUM_CPU_DEVICES="1") == ""


def test_an_axis_of_one_rank_beside_other_devices_is_nothing_to_tell() -> None:
    program = ONE_DEVICE.replace("jax.devices()", "jax.devices()[:1]")
    assert run(program, devices=2) == ""


def test_the_sink_has_no_file_where_none_is_asked_for() -> None:
    assert not _environment.values()["JAXCOLL_LOG_FILE"]
    assert native.log_open() == ""
    assert not native.log_to_file("lines\n")
