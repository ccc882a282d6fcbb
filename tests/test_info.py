"""The command line, and the environment variables it shows."""

import importlib
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import pytest

import jaxcoll
from jaxcoll import __main__ as command_line
from jaxcoll import _environment
from jaxcoll._cli import info
from jaxcoll._job import secret as _secret


def test_info_prints_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["info"]) == 0
    printed = capsys.readouterr().out
    sections = dict(part.split("\n", 1) for part in printed.rstrip("\n").split("\n\n"))
    assert list(sections) == [
        "versions",
        "devices",
        "built in",
        "collectives and their algorithms",
        "transports",
        "reduce ops and the dtypes that have them",
        "lax's collectives under install()",
        "environment",
    ]
    assert jax.__version__ in sections["versions"]
    assert jaxcoll.__version__ in sections["versions"]
    assert f"{jax.device_count()} cpu" in sections["devices"]
    assert "XLA FFI API 0." in sections["built in"]
    assert "ring" in line_of(sections["collectives and their algorithms"], "all_reduce")
    assert "bruck" in line_of(sections["collectives and their algorithms"], "all_gather")
    assert "float8_e4m3fn" in sections["reduce ops and the dtypes that have them"]
    installed = " ".join(sections["lax's collectives under install()"].split())
    assert all(name in installed for name in ("served: ", "psum_invariant", "left to XLA: "))
    for variable in _environment.VARIABLES:
        assert line_of(sections["environment"], variable.name)


def line_of(section: str, word: str) -> str:
    """The line that starts with a word."""
    return next(line for line in section.splitlines() if line.replace(",", " ").split()[0] == word)


def test_the_installed_command_is_the_module() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "jaxcoll", "--help"], capture_output=True, text=True, timeout=60
    )
    assert finished.returncode == 0
    assert "info" in finished.stdout
    assert "verify" in finished.stdout


@pytest.mark.parametrize("start", [["-mjaxcoll"], ["-Bm", "jaxcoll"], ["-X", "utf8", "-Bmjaxcoll"]])
def test_the_command_starts_however_python_is_told_its_module(start: list[str]) -> None:
    finished = subprocess.run(
        [sys.executable, *start, "--version"], capture_output=True, text=True, timeout=60
    )
    assert (finished.returncode, finished.stdout) == (0, f"jaxcoll {jaxcoll.__version__}\n")


@pytest.mark.parametrize("start", [["-mmodel.train"], ["-m", "model.train"], ["-Bmmodel.train"]])
def test_a_package_that_imports_jaxcoll_is_set_up_however_it_is_started(
    start: list[str], tmp_path: Path
) -> None:
    """Its `__init__` runs while Python looks for the module, before sys.argv says what is run."""
    package = tmp_path / "model"
    package.mkdir()
    (package / "__init__.py").write_text("import jaxcoll\n")
    (package / "train.py").write_text(
        "import sys\nassert sys.modules['jaxcoll._jax.startup'].started\n"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    subprocess.run(
        [sys.executable, *start, "-m", "jaxcoll"],
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": path},
    )


def test_an_unknown_command_names_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command_line.main(["inform"])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert "info" in error
    assert "verify" in error


COMMANDS = ["info", "launch", "schedule", "simulate", "tune", "verify"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as caught:
        command_line.main([command, "--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert f"jaxcoll {command}" in printed
    long = [line for line in printed.splitlines() if len(line) > 100]
    assert [line for line in long if "all_reduce,reduce_scatter" not in line] == []
    assert "``" not in printed


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_made_the_same_way(command: str) -> None:
    module = importlib.import_module(f"jaxcoll._cli.{command}")
    assert module.parser().prog == f"jaxcoll {command}"
    assert (module.__doc__ or "").startswith(f"``jaxcoll {command}``: ")


def test_without_arguments_it_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main([]) == 2
    printed = capsys.readouterr().err
    assert all(f"\n  {command} " in printed for command in COMMANDS)


def test_it_says_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command_line.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"jaxcoll {jaxcoll.__version__}\n"


def test_info_shows_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JAXCOLL_LOG", "debug")
    monkeypatch.delenv("JAXCOLL_ISA", raising=False)
    assert info.main([]) == 0
    environment = capsys.readouterr().out.split("\nenvironment\n")[1]
    assert line_of(environment, "JAXCOLL_LOG").split() == ["JAXCOLL_LOG", "debug"]
    assert "not set" in line_of(environment, "JAXCOLL_ISA")


# --- environment variables ----------------------------------------------------------------------


def test_values_are_parsed() -> None:
    unset = dict.fromkeys(variable.name for variable in _environment.VARIABLES)
    assert _environment.values({}) == unset
    assert _environment.values({"JAXCOLL_LOG": ""}) == unset
    assert _environment.values({"JAXCOLL_LOG": "debug", "JAXCOLL_TIMEOUT_S": "0.5"}) == unset | {
        "JAXCOLL_LOG": "debug",
        "JAXCOLL_TIMEOUT_S": 0.5,
    }
    assert _environment.values({"JAXCOLL_THREADS": "3", "JAXCOLL_ISA": "avx2"}) == unset | {
        "JAXCOLL_THREADS": 3,
        "JAXCOLL_ISA": "avx2",
    }
    assert _environment.values(
        {
            "JAXCOLL_TRANSPORT": "tcp, shm",
            "JAXCOLL_IFNAME": "^docker,lo",
            "JAXCOLL_HOST_ID": "a b",
            "JAXCOLL_TCP_SOCKETS": "64",
            "JAXCOLL_IB_HCA": "^mlx5_0:1,bnxt_re-bond0",
        }
    ) == unset | {
        "JAXCOLL_TRANSPORT": ("tcp", "shm"),
        "JAXCOLL_IFNAME": (True, ("docker", "lo")),
        "JAXCOLL_HOST_ID": "a b",
        "JAXCOLL_TCP_SOCKETS": 64,
        "JAXCOLL_IB_HCA": "^mlx5_0:1,bnxt_re-bond0",
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("JAXCOLL_LOG", "verbose"),
        ("JAXCOLL_TIMEOUT_S", "0"),
        ("JAXCOLL_TIMEOUT_S", "-3"),
        ("JAXCOLL_TIMEOUT_S", "nan"),
        ("JAXCOLL_TIMEOUT_S", "inf"),
        ("JAXCOLL_TIMEOUT_S", "5 min"),
        ("JAXCOLL_THREADS", "0"),
        ("JAXCOLL_THREADS", "1.5"),
        ("JAXCOLL_THREADS", "4096"),
        ("JAXCOLL_ISA", "neon"),
        ("JAXCOLL_TRANSPORT", "verbs"),
        ("JAXCOLL_IB_HCA", "mlx5_0,"),
        ("JAXCOLL_IB_HCA", "mlx5_0:x"),
        ("JAXCOLL_IB_HCA", "mlx5_0:0"),
        ("JAXCOLL_IB_HCA", "mlx5_0,^mlx5_1"),
        ("JAXCOLL_IB_HCA", "../0"),
        ("JAXCOLL_IB_REGISTER_BYTES", "100"),
        ("JAXCOLL_IB_REGISTER_BYTES", "1M"),
        ("JAXCOLL_IB_GID_INDEX", "-1"),
        ("JAXCOLL_IB_SL", "16"),
        ("JAXCOLL_TRANSPORT", "shm,"),
        ("JAXCOLL_IFNAME", "^"),
        ("JAXCOLL_IFNAME", "eth,^lo"),
        ("JAXCOLL_TCP_SOCKETS", "65"),
        ("JAXCOLL_HOST_ID", "x" * 256),
    ],
)
def test_a_value_that_cannot_be_used_is_refused(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{name}='{value}' cannot be used; it takes: ")):
        _environment.check({name: value})


def test_importing_jaxcoll_checks_the_environment() -> None:
    finished = subprocess.run(
        [sys.executable, "-c", "import jaxcoll"],
        capture_output=True,
        text=True,
        timeout=60,
        env={"JAXCOLL_ISA": "sse"} | {"PYTHONPATH": ":".join(sys.path)},
    )
    assert finished.returncode == 1
    assert "JAXCOLL_ISA='sse' cannot be used; it takes: portable, avx2, avx512" in finished.stderr


def test_a_misspelt_variable_is_noticed() -> None:
    with pytest.warns(UserWarning, match="did you mean JAXCOLL_TIMEOUT_S?"):
        _environment.check({"JAXCOLL_TIMOUT_S": "3"})
    with pytest.warns(UserWarning, match="there are JAXCOLL_LOG, "):
        _environment.check({"JAXCOLL_BLUE": "3"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _environment.check({"JAXCOLL_THREADS": "2", "JAX_PLATFORMS": "cpu", "JAXCOLLECT": "x"})


def test_info_says_where_the_secret_is_from_and_what_listens(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert info.main([]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "secret none was given (neither JAXCOLL_SECRET_FILE nor JAXCOLL_SECRET_FD)" in printed
    assert "listens a Unix socket, for this user; tcp at 127.0.0.1" in printed
    secret = _secret.Secret(b"x" * 32, "JAXCOLL_SECRET_FILE=/s")
    monkeypatch.setattr(_secret, "_given", secret)
    monkeypatch.setenv("JAXCOLL_TRANSPORT", "shm")
    assert info.main([]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"secret {secret.name}, from JAXCOLL_SECRET_FILE=/s" in printed
    assert "listens a Unix socket, for this user reduce ops" in printed
