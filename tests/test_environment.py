"""Environment variables: one grammar for both languages, refused before a job begins."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import warm_python

from jaxcoll import SettingError, _environment
from jaxcoll._job import host
from jaxcoll._native import native

ROOT = Path(__file__).parent.parent
# Numbers as people, other programs and other languages write them.
ODD_NUMBERS = [
    *("1_0", "10 ", " 10", "10\n", "\t10", "+10", "-10", "x", "9" * 5000),
    *("\u0663", "1\u0660", "\u0967", "\uff12", "\xb2"),  # digits, but not ours
    *("0x10", "0b1", "1e400", "1e-400", "nan", "NaN", "inf", "Infinity", "-0", "1,5", "1.5.2"),
    *("5 min", "5s", "1e", "e5", ".", "--1", "1f", "1L", "True", "None"),
]


def run(
    *command: str, has_jax: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs Python, which need not import JAX any more if it has it from the beginning."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return warm_python.run(command, variables, timeout_s=120, fresh=not has_jax)


@pytest.fixture
def restored():
    """The engine's settings are those of the environment again afterwards."""
    yield
    native.configure(**_environment._for_engine(_environment.values()))


# --- the grammar --------------------------------------------------------------------------------


def numbers() -> list[str]:
    """Names of the variables that take a number."""
    return [v.name for v in _environment.VARIABLES if re.search(r"\d( to |$| or more)", v.takes)]


@pytest.mark.parametrize("name", numbers())
@pytest.mark.parametrize("text", ODD_NUMBERS)
def test_a_number_that_is_not_plain_digits_is_refused(name: str, text: str):
    with pytest.raises(SettingError) as caught:
        _environment.values({name: text})
    line = str(caught.value)
    assert line.startswith(f"{name}=")
    assert " cannot be used; it takes: " in line
    assert "\n" not in line
    assert line.isascii()
    assert len(line) < 600


@pytest.mark.parametrize("name", [v.name for v in _environment.VARIABLES])
@pytest.mark.parametrize("text", ["\x1b[31m\n", "\udcff", "\x00", "x" * 200_000, " ", ","])
def test_whatever_a_value_is_an_error_is_one_line(name: str, text: str):
    try:
        _environment.values({name: text})
    except SettingError as error:
        line = str(error)
        assert name in line
        assert line.isprintable()
        assert len(line) < 1000


@pytest.mark.parametrize(
    ("text", "number"),
    [("10", 10), ("0.5", 0.5), (".5", 0.5), ("5.", 5), ("1e2", 100), ("1E+2", 100), ("007", 7)],
)
def test_seconds_may_have_a_fraction_and_an_exponent(text: str, number: float):
    assert _environment.values({"JAXCOLL_TIMEOUT_S": text})["JAXCOLL_TIMEOUT_S"] == number


def test_an_empty_variable_is_not_set():
    empty = {v.name: "" for v in _environment.VARIABLES}
    assert _environment.values(empty) == _environment.values({})


def test_defaults_of_the_table_are_those_of_the_engine(restored: None):
    native.configure()
    (default,) = (v.default for v in _environment.VARIABLES if v.name == "JAXCOLL_TIMEOUT_S")
    assert native.engine_info()["timeout_s"] == float(default)
    assert native.kernel_isa() == native.kernel_isas()[-1]


# --- one parser for both languages --------------------------------------------------------------


def test_the_engine_takes_every_setting_that_the_table_hands_over(restored: None):
    given = {
        "JAXCOLL_LOG": "warning",
        "JAXCOLL_LOG_FILE": "/dev/null",
        "JAXCOLL_TIMEOUT_S": "12.5",
        "JAXCOLL_THREADS": "3",
        "JAXCOLL_ISA": "portable",
        "JAXCOLL_IB_HCA": "^mlx5_0, mlx5_1:1",
        "JAXCOLL_IB_GID_INDEX": "3",
        "JAXCOLL_IB_SL": "1",
        "JAXCOLL_IB_TC": "96",
        "JAXCOLL_IB_REGISTER_BYTES": str(2**62),
    }
    assert set(given) == {v.name for v in _environment.VARIABLES if v.engine}
    settings = _environment._for_engine(_environment.values(given))
    assert None not in settings.values()
    native.configure(**settings)
    assert native.engine_info()["timeout_s"] == 12.5
    assert native.kernel_isa() == "portable"


def test_a_variable_changed_later_counts_for_both_languages(
    monkeypatch: pytest.MonkeyPatch, restored: None
):
    monkeypatch.setenv("JAXCOLL_TIMEOUT_S", "1e3")
    assert _environment.values()["JAXCOLL_TIMEOUT_S"] == 1000
    assert native.engine_info()["timeout_s"] == 1000
    monkeypatch.setenv("JAXCOLL_TIMEOUT_S", "1_0")
    with pytest.raises(SettingError, match="JAXCOLL_TIMEOUT_S='1_0'"):
        _environment.values()
    assert native.engine_info()["timeout_s"] == 1000
    monkeypatch.undo()
    _environment.values()


def test_it_is_parsed_once(monkeypatch: pytest.MonkeyPatch):
    _environment.values()
    monkeypatch.setattr(_environment, "_parse", lambda environ: pytest.fail("parsed again"))
    _environment.values()


def test_ranks_without_jax_have_the_settings_too():
    program = (
        "import sys, types; package = types.ModuleType('jaxcoll')\n"
        f"package.__path__ = [{str(ROOT / 'jaxcoll')!r}]\n"
        "sys.modules['jaxcoll'] = package\n"
        "from jaxcoll._native import native\n"
        "print(native.engine_info()['timeout_s'], 'jax' in sys.modules)"
    )
    assert run("-c", program, has_jax=False, JAXCOLL_TIMEOUT_S="7").stdout == "7.0 False\n"
    refused = run("-c", program, has_jax=False, JAXCOLL_TIMEOUT_S="0x7")
    assert refused.returncode == 1
    assert "JAXCOLL_TIMEOUT_S='0x7' cannot be used" in refused.stderr.splitlines()[-1]


# --- before a job begins ------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["verify"], ["info"], ["tune", "--quick"], ["--help"]])
def test_a_command_says_it_in_one_line(command: list[str]):
    finished = run("-m", "jaxcoll", *command, JAXCOLL_THREADS="many")
    assert finished.returncode == 2
    assert finished.stdout == ""
    assert finished.stderr == (
        "jaxcoll: JAXCOLL_THREADS='many' cannot be used; it takes: 1 to 1024\n"
    )


def test_the_installed_script_says_it_in_one_line(tmp_path: Path):
    script = tmp_path / "jaxcoll"
    script.write_text("import sys; from jaxcoll.__main__ import main; sys.exit(main())")
    finished = run(str(script), "info", JAXCOLL_LOG="loud")
    assert finished.returncode == 2
    assert finished.stderr.count("\n") == 1


def test_launch_starts_nothing_with_a_value_that_cannot_be_used():
    started = ["--", sys.executable, "-c", "print('started')"]
    finished = run("-m", "jaxcoll", "launch", "-n", "2", *started, JAXCOLL_TIMEOUT_S="1_0")
    assert finished.returncode == 2
    assert finished.stdout == ""
    assert finished.stderr.count("\n") == 1


def test_launch_starts_nothing_with_a_table_that_cannot_be_used(tmp_path: Path):
    started = ["--", sys.executable, "-c", "print('started')"]
    table = tmp_path / "table.json"
    finished = run("-m", "jaxcoll", "launch", "-n", "2", *started, JAXCOLL_TUNING=str(table))
    assert finished.returncode == 1
    assert finished.stdout == ""
    assert finished.stderr.startswith(f"jaxcoll launch: JAXCOLL_TUNING={table}: there is no such")
    assert finished.stderr.count("\n") == 1


def test_an_import_ends_with_the_line():
    finished = run("-c", "import jaxcoll; print('began')", JAXCOLL_TCP_SOCKETS="1_0")
    assert finished.returncode == 1
    assert finished.stdout == ""
    assert "JAXCOLL_TCP_SOCKETS='1_0' cannot be used" in finished.stderr.splitlines()[-1]


def test_an_internal_variable_is_known_but_not_shown(monkeypatch: pytest.MonkeyPatch):
    """A new variable is one entry, and nothing else."""
    entry = _environment.Variable(
        "JAXCOLL_NEW", "", "0, 1", "", _environment._one_of("0", "1"), internal=True
    )
    monkeypatch.setattr(_environment, "VARIABLES", (*_environment.VARIABLES, entry))
    assert _environment.values({"JAXCOLL_NEW": "1"})["JAXCOLL_NEW"] == "1"
    _environment.check({"JAXCOLL_NEW": "1"})
    with pytest.warns(UserWarning, match=r"there are") as caught:
        _environment.check({"JAXCOLL_QQQ": "1"})
    assert "JAXCOLL_NEW" not in str(caught[0].message)


# --- what this machine lacks --------------------------------------------------------------------


def test_an_isa_that_the_cpu_lacks_is_said():
    here = ["portable", "avx2"]
    assert _environment.trouble_with_isa(None, here) == ""
    assert _environment.trouble_with_isa("portable", here) == ""
    assert _environment.trouble_with_isa("avx2", here) == ""
    said = _environment.trouble_with_isa("avx512", here)
    assert said.startswith("JAXCOLL_ISA=avx512: this CPU lacks it; it has portable, avx2.")
    assert "use avx2" in said


def test_importing_says_that_the_cpu_lacks_an_isa():
    """On a CPU that has no more than what is portable: the extension module gets that value."""
    program = (
        "import sys, types, importlib.util\n"
        "from importlib.machinery import ExtensionFileLoader\n"
        "create = ExtensionFileLoader.exec_module\n"
        "def poor(self, module):\n"
        "    create(self, module)\n"
        "    if module.__name__.endswith('_jaxcoll'):\n"
        "        module.kernel_isas = lambda: ['portable']\n"
        "ExtensionFileLoader.exec_module = poor\n"
        "import jaxcoll\n"
    )
    finished = run("-c", program, JAXCOLL_ISA="avx2")
    assert finished.returncode == 0, finished.stderr
    assert "JAXCOLL_ISA=avx2: this CPU lacks it; it has portable" in finished.stderr


@pytest.fixture
def unknown_machine():
    """Nothing is remembered of this machine, before and afterwards."""
    for remembered in (host._machine, host.identity):
        remembered.cache_clear()
    yield
    for remembered in (host._machine, host.identity):
        remembered.cache_clear()


def test_hosts_are_told_apart_by_the_boot_id(unknown_machine: None):
    assert host.BOOT_ID.read_text().strip() in host.machine_identity()
    assert host.identity().startswith(host.machine_identity())


@pytest.mark.parametrize("what", ["absent", "empty", "folder", "fifo", "binary", "endless"])
def test_a_boot_id_that_cannot_be_read_is_said_once(
    what: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    unknown_machine: None,
):
    path = tmp_path / "boot_id"
    if what == "folder":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "endless":
        path = Path("/dev/zero")
    elif what != "absent":
        path.write_bytes({"empty": b"", "binary": b"\xff\xfe\n"}[what])
    monkeypatch.setattr(host, "BOOT_ID", path)
    with caplog.at_level(logging.WARNING):
        first, machine = host.identity(), host.machine_identity()
        assert host.identity() == first
        assert first.startswith(machine)
    (record,) = caplog.records
    said = record.getMessage()
    assert str(path) in said
    assert "JAXCOLL_HOST_ID" in said
    assert "\n" not in said


def test_a_relative_path_means_what_it_meant_when_it_was_first_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """However a program changes its folder, or other variables, after that."""
    start, later = tmp_path / "100%h", tmp_path / "later"
    (start / "sub").mkdir(parents=True)
    (later / "sub").mkdir(parents=True)
    monkeypatch.chdir(start)
    paths = {
        "JAXCOLL_DUMP_DIR": ("sub", f"{start}/sub"),
        "JAXCOLL_LOG_FILE": ("sub/%p.log", f"{tmp_path}/100%%h/sub/%p.log"),
        "JAXCOLL_TUNING": ("sub/table.json", f"{start}/sub/table.json"),
    }
    for name, (text, _) in paths.items():
        monkeypatch.setenv(name, text)
    expected = {name: path for name, (_, path) in paths.items()}
    assert {name: _environment.values()[name] for name in paths} == expected
    monkeypatch.chdir(later)
    monkeypatch.setenv("JAXCOLL_THREADS", "3")
    values = _environment.values()
    assert {name: values[name] for name in paths} == expected
    assert values["JAXCOLL_THREADS"] == 3
    monkeypatch.setenv("JAXCOLL_DUMP_DIR", "./sub")
    assert _environment.values()["JAXCOLL_DUMP_DIR"] == f"{later}/./sub"
    monkeypatch.setenv("JAXCOLL_TUNING", "off")
    assert _environment.values()["JAXCOLL_TUNING"] == "off"
    monkeypatch.undo()
    _environment.values()  # tells the engine, too
