"""The training example and the README's program, run as a user runs them."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from support import warm_python, xla_flags

ROOT = Path(__file__).parent.parent


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return warm_python.run(arguments, environment, timeout_s=120)


def digits(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run("-m", "jaxcoll.examples.digits", *arguments)


@pytest.mark.parametrize(
    ("mesh", "style", "peer"),
    [
        ("dp=4,tp=2", "shard_map", "lax"),
        ("tp=8", "shard_map", "lax"),
        ("dp=4,tp=2", "gspmd", "xla"),
    ],
)
def test_digits_learns_with_both_alike(mesh: str, style: str, peer: str) -> None:
    finished = digits("--mesh", mesh, "--style", style, "--epochs", "10")
    assert finished.returncode == 0, finished.stderr
    accuracies = re.findall(r"^  (lax|xla|jaxcoll) +([\d.]+)%$", finished.stdout, re.MULTILINE)
    assert [name for name, _ in accuracies] == [peer, "jaxcoll"]
    assert all(float(percent) >= 95 for _, percent in accuracies)
    difference = re.search(r"^largest parameter difference +(\S+)$", finished.stdout, re.MULTILINE)
    assert difference is not None
    assert float(difference[1]) < 1e-3


def test_digits_fails_below_the_wanted_accuracy() -> None:
    finished = digits("--mesh", "dp=2", "--epochs", "1")
    assert finished.returncode == 1
    assert "below the 95% wanted" in finished.stderr


@pytest.mark.parametrize(
    ("mesh", "complaint"),
    [
        ("dp=4,pp=2", "'pp=2': write the mesh as dp=N,tp=M"),
        ("dp=0", "'dp=0': write the mesh as dp=N,tp=M"),
        ("dp=\u0664", "'dp=\u0664': write the mesh as dp=N,tp=M"),
        ("dp=\xb2", "'dp=\xb2': write the mesh as dp=N,tp=M"),
        ("dp=" + "9" * 5000, "write the mesh as dp=N,tp=M"),
        ("dp=5", "dp must divide the batch of 96"),
        ("tp=3", "tp must divide the hidden layer of 128"),
    ],
)
def test_digits_explains_a_bad_mesh(mesh: str, complaint: str) -> None:
    finished = digits("--mesh", mesh)
    assert finished.returncode == 2
    assert complaint in finished.stderr


@pytest.mark.parametrize("epochs", ["0", "-1", "\u0663", "1_0", "x"])
def test_digits_explains_a_bad_number_of_epochs(epochs: str) -> None:
    finished = digits(f"--epochs={epochs}")
    assert finished.returncode == 2
    assert f"{epochs!r} is not a number from 1" in finished.stderr


def test_digits_refuses_a_file_that_it_cannot_save_before_it_trains(tmp_path: Path) -> None:
    (tmp_path / "folder.npz").mkdir()
    for name in ("none/params", "folder"):
        finished = digits("--mesh", "dp=2", "--save", str(tmp_path / name))
        assert finished.returncode == 2
        assert f"--save: {tmp_path}/{name}.npz cannot be written" in finished.stderr
        assert "loss" not in finished.stderr


@pytest.mark.exhaustive
def test_digits_in_processes_with_too_few_devices_says_what_to_do() -> None:
    launch = ["-m", "jaxcoll", "launch", "-n", "2"]
    finished = run(*launch, "-m", "jaxcoll.examples.digits", "--mesh", "dp=4,tp=2")
    assert finished.returncode == 1
    assert "the mesh needs 8 devices and the 2 processes have 2 in all" in finished.stderr
    assert "--devices-per-process" in finished.stderr


@pytest.mark.parametrize("devices", [1, 8])
def test_the_program_in_the_readme_prints_what_it_says(devices: int) -> None:
    text = (ROOT / "README.md").read_text()
    program = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert program is not None
    rows = dict(re.findall(r"^\| (.*device.*) \| (.*) \|$", text, re.MULTILINE))
    flag = f"--xla_force_host_platform_device_count={devices}"
    said = rows["not set: one device" if devices == 1 else f"`{flag}`"]
    printed = re.findall(r"`(\[.*?\])`", said) * (2 if said.endswith("twice") else 1)
    assert len(printed) == 2
    # With the flag the program is told nothing: who sets it knows how many devices there are.
    flags = xla_flags.with_devices(devices) if devices > 1 else ""
    finished = run("-c", program[1], XLA_FLAGS=flags)
    assert finished.stdout.splitlines() == printed, finished.stderr
    assert ("one CPU device" in finished.stderr) == (devices == 1), finished.stderr
