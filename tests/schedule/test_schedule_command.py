"""``jaxcoll schedule``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_msccl import ring_all_reduce

from jaxcoll._cli import schedule as command
from jaxcoll.schedule import Schedule, ScheduleSpec, build

BUILT_IN = ["--collective", "all_reduce", "--world-size", "4", "--algorithm", "swing[2x2]"]


def test_show_prints_the_steps(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["show", *BUILT_IN]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("swing all_reduce, 4 ranks")
    assert "step 3" in lines


def test_export_writes_every_format(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert command.main(["export", "--format", "goal", "--bytes", "1K", *BUILT_IN]) == 0
    assert capsys.readouterr().out.startswith("num_ranks 4\n")
    plan = tmp_path / "plan.json"
    arguments = ["export", "--format", "mscclpp", "--reduce-op", "min", "-o", str(plan)]
    assert command.main([*arguments, *BUILT_IN]) == 0
    assert json.loads(plan.read_text())["name"] == "swing_all_reduce_4"
    assert command.main(["export", "--format", "text", *BUILT_IN]) == 0
    schedule = Schedule.parse("all_reduce", capsys.readouterr().out)
    assert schedule.programs == build(ScheduleSpec("all_reduce", 4, "swing[2x2]")).programs


def test_import_verifies_and_writes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file, text = tmp_path / "ring.xml", tmp_path / "ring.txt"
    file.write_text(ring_all_reduce(4))
    assert command.main(["import", str(file), "-o", str(text)]) == 0
    assert "correct, bitwise equal on all ranks" in capsys.readouterr().err
    assert Schedule.parse("all_reduce", text.read_text()).world_size == 4
    assert command.main(["export", "--format", "goal", "--bytes", "64", "--msccl", str(file)]) == 0
    assert capsys.readouterr().out.startswith("num_ranks 4\n")

    file.write_text(ring_all_reduce(4).replace("rrcs", "rcs", 1))
    assert command.main(["import", str(file)]) == 1
    assert "wrong: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show"], "give --collective and --world-size, or --msccl FILE"),
        (["export", "--format", "goal", *BUILT_IN], "GOAL files contain sizes: give --bytes"),
        (["show", *BUILT_IN[:-1], "swing[3x3]"], "does not fit 4 ranks"),
        (["import", "no such file"], "No such file"),
        (["export", "--format", "mscclpp", *BUILT_IN, "--reduce-op", "xor"], "has sum, min"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("jaxcoll schedule: ")
    assert message in error
    assert error.count("\n") == 1


def test_numbers_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["show", "--collective", "all_reduce", "--world-size", "0"])
    assert "--world-size: '0' is not a number from 1 to 1048576" in capsys.readouterr().err


def test_sizes_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["export", "--format", "goal", "--bytes", "1X", *BUILT_IN])
    assert "'1X' is not a size: write 4096, 64K" in capsys.readouterr().err
