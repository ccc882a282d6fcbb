"""`jaxcoll tune` itself, with little to measure, and the processes it measures with."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from tables import row, write

from jaxcoll import __main__ as command
from jaxcoll._cli import tune
from jaxcoll.tune import select, tuner
from jaxcoll.tune import table as tables
from jaxcoll.tune.ranks import Ranks, RanksError

KIB = 1 << 10
LITTLE = tuner.Effort(
    {"process": (2,), "host": (2,), "hosts": (2,)}, (KIB, 64 * KIB), (4 * KIB,), 1, 90.0
)


def test_it_measures_writes_and_tells_what_it_has_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(tuner, "QUICK", LITTLE)
    monkeypatch.setattr(tuner, "SIZES", (KIB, 1 << 20))
    path = tmp_path / "new" / "table.json"
    network = ["--bandwidth", "10Gb/s", "--latency", "30us"]
    assert command.main(["tune", "--quick", "--output", str(path), *network]) == 0
    told = capsys.readouterr().out
    table = tables.load({"JAXCOLL_TUNING": str(path)})
    assert table is not None
    assert table.digest in told
    for name in ("process", "shm", "tcp"):
        assert f"\n{name:8} alpha:" in told
        costs = table.about["measured"][name]["costs"]
        assert all(value > 0 for value in costs.values())
    assert {picks.layout for picks in table.picks} == set(tables.LAYOUTS)
    checked = table.about["checks"]
    assert f"# {len(checked)} checks: " in told
    assert checked
    for check in checked:
        assert check["bytes"] not in LITTLE.fitted
        assert check["pick"] in check["measured_s"]
    # The written table is the one that decides.
    for layout, processes in (("process", 1), ("host", 2)):
        for nbytes in (KIB, 1 << 20):
            choice = select.choose(
                "all_reduce", "auto", 2, byte_count=nbytes, processes=processes, table=table
            )
            assert choice.algorithm == table.find(layout, "all_reduce", 2, 1, nbytes)  # type: ignore[arg-type]
    monkeypatch.setenv("JAXCOLL_TUNING", str(path))
    assert command.main(["tune", "--show"]) == 0
    assert table.digest in capsys.readouterr().out
    assert command.main(["tune", "--show", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == 1
    assert [other.name for other in path.parent.iterdir()] == ["table.json"]


def test_without_a_table_it_says_so(capsys: pytest.CaptureFixture[str]):
    assert command.main(["tune", "--show"]) == 0
    assert "the shipped rules" in capsys.readouterr().out


def test_a_broken_table_is_shown_as_such(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "table.json").write_text("{")
    monkeypatch.setenv("JAXCOLL_TUNING", str(tmp_path / "table.json"))
    assert command.main(["tune", "--show"]) == 1
    assert "it is not JSON" in capsys.readouterr().err


def test_a_latency_needs_a_bandwidth(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        tune.main(["--latency", "3us"])
    assert "--latency needs --bandwidth" in capsys.readouterr().err


def choice(pick: str, nbytes: int = KIB) -> tuner.Choice:
    spec = tuner.ScheduleSpec("all_reduce", 4, pick)
    shipped = tuner.ScheduleSpec("all_reduce", 4, "direct")
    return tuner.Choice("host", spec, 1, nbytes, 1e-5, shipped, 2e-5)


def test_a_pick_that_loses_to_the_shipped_rules_is_not_written():
    choices = [choice("ring", KIB), choice("ring", 4 * KIB), choice("direct2", 16 * KIB)]
    won = tuner.Check(choice("ring", 2 * KIB), {"ring": 1e-5, "direct": 2e-5})
    lost = tuner.Check(choice("ring", 2 * KIB), {"ring": 2e-5, "direct": 1e-5})
    assert (won.loses, won.is_off, won.regret) == (False, False, 0)
    assert (lost.loses, lost.is_off, lost.best) == (True, True, "direct")
    assert "OFF" in tune.check_text(lost)
    (kept,) = tuner.table_of(choices, [won])
    assert kept.steps == ((8 * KIB, "ring"), (None, "direct2"))
    (replaced,) = tuner.table_of(choices, [won, lost])
    assert replaced.steps == ((8 * KIB, "direct"), (None, "direct2"))


def test_picks_are_of_the_operand_of_one_rank():
    assert tuner.operand_bytes("all_gather", 4, 4096) == 1024
    assert tuner.operand_bytes("reduce_scatter", 4, 4096) == 4096
    (picks,) = tuner.table_of([choice("ring")], [])
    assert "ring" in tune.picks_text([picks])[1]


# --- the processes ------------------------------------------------------------------------------


def test_ranks_do_without_jax():
    with Ranks(1) as ranks:
        loaded = Path(f"/proc/{ranks._children[0].pid}/maps").read_text()
    assert "/_jaxcoll." in loaded
    assert "jaxlib" not in loaded


def test_results_of_ranks_are_checked():
    with Ranks(2, 2) as ranks:
        for collective in tuner.COLLECTIVES:
            times = ranks.time(collective, "direct", 1000, rounds=2)
            assert len(times.rounds_s) == 2
            assert 0 < times.quiet_s <= times.median_s


def test_an_algorithm_that_does_not_exist_is_told_and_the_ranks_live_on():
    with Ranks(1, 2) as ranks:
        with pytest.raises(RanksError, match=r"process 0: .*song"):
            ranks.time("all_reduce", "song", 64)
        assert ranks.time("all_reduce", "ring", 64).median_s > 0


def test_a_process_that_dies_is_named():
    with Ranks(2) as ranks:
        os.kill(ranks._children[1].pid, signal.SIGKILL)
        with pytest.raises(RanksError, match=r"process 1: it has ended|is lost|is gone|has ended"):
            ranks.time("all_reduce", "ring", 64)


def test_a_table_of_hand_is_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    entries = (
        row([2048, "ring"], [None, "direct"], world_size=4, layout="host"),
        row([None, "hierarchical"], world_size=8, ranks_per_node=4, layout="hosts"),
    )
    monkeypatch.setenv("JAXCOLL_TUNING", str(write(tmp_path / "t.json", *entries)))
    assert command.main(["tune", "--show"]) == 0
    told = capsys.readouterr().out
    assert "4 on one host         all_reduce      ring 2K, direct\n" in told
    assert "2 hosts x 4           all_reduce      hierarchical\n" in told
