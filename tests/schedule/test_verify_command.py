"""``jaxcoll verify``."""

from __future__ import annotations

import re

import pytest

from jaxcoll._cli import verify
from jaxcoll.schedule import COLLECTIVES, algorithms


def test_prints_a_line_per_schedule(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--collective", "all_reduce", "--algorithm", "ring", "--world-size", "1:4,8"]
    assert verify.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:5] for line in lines[1:-1]] == [
        ["all_reduce", "ring", "1", "0", "0.000"],
        ["all_reduce", "ring", "2", "2", "1.000"],
        ["all_reduce", "ring", "3", "4", "1.333"],
        ["all_reduce", "ring", "4", "6", "1.500"],
        ["all_reduce", "ring", "8", "14", "1.750"],
    ]
    assert all("correct" in line for line in lines[1:-1])
    assert re.fullmatch(r"verified 5 of 5 schedules in \d+\.\d\d s; failures: 0", lines[-1])


def test_everything_is_verified_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.main(["--world-size", "3", "--channels", "2"]) == 0
    built_in = sum(len(algorithms(collective)) for collective in COLLECTIVES)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + built_in + 1
    assert lines[-1].startswith(f"verified {built_in} of {built_in} schedules in ")


def test_schedules_that_cannot_be_built_fail(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--collective", "all_reduce", "--world-size", "6"]
    arguments += ["--algorithm", "hierarchical[2x4]"]
    assert verify.main(arguments) == 1
    captured = capsys.readouterr()
    assert "refused: hierarchical[2x4] does not fit 6 ranks" in captured.out
    assert "1 schedules were refused" in captured.err
    assert captured.out.endswith(" s; failures: 1\n")


def test_wrong_schedules_fail(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    def broken(spec: verify.ScheduleSpec) -> verify.Schedule:
        return replace(build(spec), root=1)

    build = verify.build
    monkeypatch.setattr(verify, "build", broken)
    assert verify.main(["--collective", "broadcast", "--world-size", "2"]) == 1
    assert "should hold the contributions of ranks 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--algorithm", "rign"], "no algorithm rign; choose from bine, bine_latency, binomial"),
        (["--algorithm", "ring[x]"], "write the dims as positive numbers"),
        (["--collective", "gather"], "invalid choice"),
        (["--world-size", "many"], "'many' is not a number from 1 to 1048576"),
        (["--world-size", "4:2"], "'4:2' is empty"),
        (["--world-size", "1000000000"], "'1000000000' is not a number from 1 to 1048576"),
        (["--world-size", "1:"], "'' is not a number from 1 to 1048576"),
        (["--channels", "\u0664"], r"'\u0664' is not a number from 1 to 4096"),
        (["--root", f"{10**30}"], "is not a number from 0 to 1048575"),
    ],
)
def test_bad_arguments_are_explained(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        verify.main(arguments)
    assert message in capsys.readouterr().err
