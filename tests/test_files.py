"""Files that commands write and read: what cannot be done is found before any work."""

from __future__ import annotations

import argparse
import errno
import os
import pwd
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest
from support import warm_python

from jaxcoll import FileError, _files
from jaxcoll import __main__ as command_line
from jaxcoll._cli import tune as tune_command
from jaxcoll.tune import table

ROOT = Path(__file__).parent.parent
NOBODY = 65534
as_root = pytest.mark.skipif(os.getuid() != 0, reason="takes root, to become somebody else")


# --- writing ------------------------------------------------------------------------------------


def test_checking_leaves_nothing_behind(tmp_path: Path):
    _files.check_can_write(tmp_path / "new.json")
    _files.check_can_write(tmp_path / "a" / "b" / "new.json", make_folders=True)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old.json").write_text("old")
    _files.check_can_write(tmp_path / "old.json")
    assert (tmp_path / "old.json").read_text() == "old"


def test_a_path_that_was_checked_can_be_written(tmp_path: Path):
    path = tmp_path / "a" / "b" / "new.json"
    _files.check_can_write(path, make_folders=True)
    _files.write(path, "new\n", make_folders=True)
    assert path.read_text() == "new\n"
    assert list(path.parent.iterdir()) == [path]


def test_a_link_stays_one_and_permissions_stay(tmp_path: Path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    _files.write(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_a_device_is_written_to_and_not_replaced():
    _files.check_can_write(Path("/dev/null"))
    _files.write(Path("/dev/null"), "gone")
    assert Path("/dev/null").is_char_device()


def test_a_pipe_is_written_to():
    read_end, write_end = os.pipe()
    path = Path(f"/dev/fd/{write_end}")
    _files.check_can_write(path)
    _files.write(path, "text")
    assert os.read(read_end, 100) == b"text"
    os.close(read_end)
    os.close(write_end)


def test_a_name_of_full_length_can_be_written(tmp_path: Path):
    path = tmp_path / ("x" * 255)
    _files.check_can_write(path)
    _files.write(path, "text")
    _files.write(path, "again")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["again"]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "table"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(FileError, match="No space left on device"):
        _files.write(path, "new")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


@as_root
def test_a_file_in_a_folder_of_somebody_else_is_written_in_place():
    program = "_files.check_can_write(Path(sys.argv[1])); _files.write(Path(sys.argv[1]), 'new')"
    with tempfile.TemporaryDirectory() as name:  # pytest's are for their user alone
        folder, path = Path(name), Path(name) / "file"
        folder.chmod(0o755)
        path.write_text("old")
        path.chmod(0o666)
        finished = as_nobody(program, path)
        assert finished.returncode == 0, finished.stderr
        assert path.read_text() == "new"


def as_nobody(program: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Runs a program as a user without rights."""
    start = (
        "import os, sys; from pathlib import Path; from jaxcoll import _files, FileError\n"
        f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return warm_python.run(["-c", start + program, str(path)], environment, timeout_s=60)


def bad_places(tmp_path: Path) -> dict[str, Path]:
    """Places in which nothing can be written, even by root."""
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    return {
        "a folder": tmp_path,
        "no folder": tmp_path / "nowhere" / "x.json",
        "a file as a folder": tmp_path / "file" / "x.json",
        "a loop": tmp_path / "loop",
        "procfs": Path("/proc/x.json"),
        "a long name": tmp_path / ("x" * 300),
        "nothing": Path(""),
    }


@pytest.mark.parametrize("place", range(7))
def test_a_place_that_cannot_be_written_to_is_refused_in_one_line(place: int, tmp_path: Path):
    path = list(bad_places(tmp_path).values())[place]
    with pytest.raises(FileError, match=r"cannot be written: ") as caught:
        _files.check_can_write(path)
    assert str(caught.value).isprintable()
    with pytest.raises(FileError, match=r"cannot be written: "):
        _files.write(path, "x")
    with pytest.raises(argparse.ArgumentTypeError):
        _files.output()(str(path))


@as_root
def test_a_folder_of_somebody_else_is_refused(tmp_path: Path):
    program = "try: _files.check_can_write(Path(sys.argv[1]))\nexcept FileError as e: print(e)\n"
    for path in (tmp_path / "new", Path("/etc/passwd")):
        finished = as_nobody(program, path)
        assert "Permission denied" in finished.stdout, finished.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["tune", "--quick", "--output"],
        ["simulate", "--topology", "fat_tree:64,radix=8", "--bytes", "1K:1G:2", "--json"],
        ["simulate", "--topology", "fat_tree:64,radix=8", "--bytes", "1K:1G:2", "--html"],
        ["simulate", "--topology", "fat_tree:64,radix=8", "--bytes", "1K:1G:2", "--trace"],
        ["schedule", "export", "--format=text", "--collective=all_reduce", "--world-size=8", "-o"],
        ["schedule", "import", "missing.xml", "--output"],
    ],
)
def test_commands_refuse_a_result_that_cannot_be_written_before_they_work(
    command: list[str], capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as caught:
        command_line.main([*command, "/proc/x.json"])
    assert caught.value.code == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "/proc/x.json cannot be written: " in told.err.splitlines()[-1]


@pytest.mark.parametrize(
    "module", ["compare", "simulate", "studies.planes", "gpu", "transport", "run"]
)
def test_benchmarks_check_their_results_with_the_same_helper(module: str):
    text = (ROOT / "benchmarks" / (module.replace(".", "/") + ".py")).read_text()
    assert "_files.check_can_write(" in text or "_files.output(" in text
    assert ".write_text(" not in text


@pytest.mark.parametrize("module", ["simulate", "studies.planes", "compare"])
def test_a_benchmark_refuses_a_result_that_cannot_be_written(
    module: str, capsys: pytest.CaptureFixture[str]
):
    import importlib

    with pytest.raises(SystemExit) as caught:
        importlib.import_module(f"benchmarks.{module}").main(["--json", "/proc/x.json"])
    assert caught.value.code == 2
    assert "/proc/x.json cannot be written: " in capsys.readouterr().err


# --- the place of the tuning table --------------------------------------------------------------


@pytest.mark.parametrize("place", ["JAXCOLL_TUNING", "HOME", "XDG_CACHE_HOME"])
def test_tune_finds_out_first_that_it_cannot_write(
    place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(tune_command, "tune", lambda *_: pytest.fail("it measures"))
    for name in ("JAXCOLL_TUNING", "HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(place, "/proc/x.json")
    with pytest.raises(SystemExit):
        command_line.main(["tune", "--quick"])
    line = capsys.readouterr().err.splitlines()[-1]
    assert "/proc/x.json" in line
    assert "cannot be written" in line
    assert "--output" in line


def test_a_user_without_a_home_is_told_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def unknown(number: int) -> pwd.struct_passwd:
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(tune_command, "tune", lambda *_: pytest.fail("it measures"))
    for name in ("JAXCOLL_TUNING", "HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert table.default_path({}) is None
    assert table.load() is None
    with pytest.raises(SystemExit):
        command_line.main(["tune", "--quick"])
    line = capsys.readouterr().err.splitlines()[-1]
    assert "HOME is not set" in line or "nor HOME is set" in line
    assert "--output" in line


def test_without_home_the_systems_own_answer_counts(monkeypatch: pytest.MonkeyPatch):
    home = Path(pwd.getpwuid(os.getuid()).pw_dir)
    assert table.default_path({}) == home / ".cache" / "jaxcoll" / "tuning.json"
    assert table.default_path({"HOME": ""}) == table.default_path({})
    # The specification of XDG_CACHE_HOME: a path that is relative is to be ignored.
    assert table.default_path({"XDG_CACHE_HOME": "cache"}) == table.default_path({})


def test_tune_writes_no_table_if_nothing_could_be_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """It would replace a good one by one without picks."""
    path = tmp_path / "table.json"
    path.write_text("old")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    assert command_line.main(["tune", "--quick", "--output", str(path)]) == 1
    assert path.read_text() == "old"
    assert "nothing could be measured" in capsys.readouterr().err.splitlines()[-1]


# --- reading ------------------------------------------------------------------------------------


def test_a_pipe_is_read_where_a_user_names_it_and_refused_elsewhere(tmp_path: Path):
    read_end, write_end = os.pipe()
    os.write(write_end, b"text")
    os.close(write_end)
    assert _files.read_text(Path(f"/dev/fd/{read_end}"), 100) == "text"
    os.close(read_end)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(FileError, match="it is not a regular file"):
        _files.read_text(tmp_path / "fifo", 100, regular=True)


def test_a_file_that_is_too_long_is_not_read(tmp_path: Path):
    (tmp_path / "file").write_text("x" * 101)
    with pytest.raises(FileError, match="more than 100 bytes"):
        _files.read_text(tmp_path / "file", 100)
    with pytest.raises(FileError, match="more than 100 bytes"):
        _files.read_bytes(Path("/dev/zero"), 100)


@pytest.mark.parametrize(
    "command", [["schedule", "import"], ["schedule", "export", "--format", "text", "--msccl"]]
)
@pytest.mark.parametrize("file", ["/dev/zero", "/", "/nowhere", "/proc/self/mem"])
def test_commands_refuse_files_they_cannot_read_in_one_line(
    command: list[str], file: str, capsys: pytest.CaptureFixture[str]
):
    assert command_line.main([*command, file]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert file in told.err


HOSTILE_YAML = {
    "deep": "[" * 5000,
    "binary": b"\xff\xfe",
    "size": "kind: fat_tree\nsize: [1, 2]\n",
    "kind": "kind: [a]\nsize: 3\n",
    "count": "nodes: [{name: a, host: true}, {name: b, host: true}]\n"
    "links: [{ends: [a, b], bandwidth: 1Gb/s, count: 1000000000000}]\n",
    "date": "kind: ring\nsize: 2001-99-99\n",
    "nan": "kind: ring\nsize: .nan\n",
}


@pytest.mark.parametrize("what", HOSTILE_YAML)
def test_a_hostile_topology_is_refused_in_one_line(what: str, tmp_path: Path):
    pytest.importorskip("yaml")
    from jaxcoll import topology

    content = HOSTILE_YAML[what]
    path = tmp_path / "network.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(topology.TopologyError) as caught:
        topology.from_yaml(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
