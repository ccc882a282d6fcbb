"""The simulator's benchmark measures what it says; the study of planes writes its table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import simulate
from benchmarks.simulate import Row, Work
from benchmarks.studies import planes


def test_the_simulator_is_measured_on_what_the_rows_say() -> None:
    p = 64
    for work, messages in (
        (Work("permutation", p), p),
        (Work("ring", p), 2 * p * (p - 1)),
        (Work("ring", p, channels=3), 3 * 2 * p * (p - 1)),
        (Work("ring", p, jitter=0.01), 2 * p * (p - 1)),
        (Work("hierarchical", p), p * (2 * 7 + 2 * 3)),  # rings of 8; halving over 8 nodes
        (Work("planes", p), p * (2 * 7 + 2 * 3)),
        (Work("one switch", p), p * (2 * 7 + 2 * 3)),
        (Work("all_to_all", p), p * (p - 1)),
        (Work("all_to_all by nodes", p), p * (2 * 7 + 2 * 7)),  # both ways round at once
        (Work("one message", p), 1),
    ):
        result = simulate.simulate(work)
        assert result["messages"] == messages, work
        assert result["events"] >= messages
        assert 0 < result["wall_s"] == pytest.approx(sum(result["phases_wall_s"].values()))
        assert result["peak_bytes"] > 1 << 20


def test_jitter_and_placement_change_the_simulated_time() -> None:
    works = (Work("ring", 64), Work("ring", 64, jitter=0.01), Work("ring", 64, placement="random"))
    assert len({simulate.simulate(work)["simulated_time_ps"] for work in works}) == 3


def test_a_row_is_below_its_floor_of_time_or_memory() -> None:
    row = Row("row", 1.0, Work("ring", 4), floor_bytes=100)
    assert simulate.verdict(row, {"wall_s": 1.0, "peak_bytes": 100}) == "PASS"
    assert simulate.verdict(row, {"wall_s": 1.1, "peak_bytes": 100}) == "BELOW"
    assert simulate.verdict(row, {"wall_s": 0.5, "peak_bytes": 101}) == "BELOW"


def test_growth_is_the_exponent_of_a_power() -> None:
    assert simulate.growth([1, 2, 4, 8], [3, 12, 48, 192]) == pytest.approx(2)


def test_the_simulators_benchmark_writes_rows_growth_and_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulate, "ROWS", (Row("a ring", 60, Work("ring", 16)),))
    works = tuple(Work("ring", p) for p in (8, 16, 32))
    monkeypatch.setattr(simulate, "SERIES", (simulate.Series("rings", works),))
    monkeypatch.setattr(simulate, "simulate_apart", lambda all: list(map(simulate.simulate, all)))
    path = tmp_path / "new" / "simulate.json"
    assert simulate.main(["--json", str(path)]) == 0
    assert "a ring" in (printed := capsys.readouterr().out)
    assert "PASS" in printed
    assert "rings: CPU time grows as ranks^" in printed
    written = json.loads(path.read_text())
    assert {"commit", "machine", "date", "model"} <= set(written)
    assert written["rows"][0]["verdict"] == "PASS"
    assert [point["messages"] for point in written["series"][0]["points"]] == [112, 480, 1984]
    assert path.with_suffix(".png").stat().st_size > 1000


def test_a_measurement_has_a_process_of_its_own() -> None:
    result = simulate.measure_apart(Work("ring", 8), 1)
    assert result["messages"] == 2 * 8 * 7
    assert len(result["runs_wall_s"]) == 1


def test_the_study_of_planes_writes_its_table_and_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "planes.json"
    assert planes.main(["--quick", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "one plane: 256 GPUs, 80 switches" in printed
    assert "simulated busbw" in printed
    written = json.loads(path.read_text())
    assert written["simulated"] is True
    found = {
        (row["network"], row["collective"], row["routing"], row["failed"]): row["busbw_GBps"]
        for row in written["summary"]
    }
    assert len(found) == 2 * 2 * 3 * 2
    for network in planes.NETWORKS:
        # A port's rate bounds a round; the more paths, the nearer.
        one, eight, every = (
            found[network, "all_to_all", routing, 0] for routing in planes.ROUTINGS
        )
        assert 0 < one < eight < every < 100
    # One message on one of eight planes has an eighth of the bandwidth at most.
    assert found["eight planes", "all_to_all", "ecmp", 0] < 12.5
    assert path.with_suffix(".png").stat().st_size > 1000


def test_hosts_of_the_study_have_their_gpus_on_different_switches() -> None:
    for name in planes.NETWORKS:
        network, gpus = planes.build(planes.QUICK, name)
        assert sorted(gpus) == sorted(network.hosts)
        below: dict[str, list[str]] = {}
        for link in network.links:
            if network.nodes[link.source].is_host:
                below.setdefault(link.destination, []).append(link.source)
        rank = {gpu: r for r, gpu in enumerate(gpus)}
        for switch, members in below.items():
            hosts = [rank[gpu] // planes.GPUS_PER_HOST for gpu in members]
            if network.nodes[switch].tier == "nvswitch":
                assert len(hosts) == planes.GPUS_PER_HOST
                assert len(set(hosts)) == 1
            else:
                assert len(set(hosts)) == len(hosts)
