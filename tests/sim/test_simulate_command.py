"""``jaxcoll simulate``."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from jaxcoll._cli import simulate
from jaxcoll.schedule import algorithms
from jaxcoll.sim.sweep import Setting, Sweep
from jaxcoll.simulate import KEPT_SCHEDULES, SimulationError
from jaxcoll.topology import TopologyError, switch

SMALL = ["--topology", "fat_tree:16,radix=4", "--bytes", "64K:1M", "--quiet"]


def run(*arguments: str) -> int:
    return simulate.main([*SMALL, *arguments])


def test_prints_a_line_per_case_and_says_that_it_is_simulated(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("--algorithm", "ring,double_tree", "--prices", "switches=1000,optics=1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "simulated" in lines[0]
    assert "time(us)" in lines[1]
    assert "gap" in lines[1]
    cases = [line.split() for line in lines[2:] if " all_reduce " in line and line[0] != "#"]
    assert [case[5] for case in cases] == ["ring"] * 3 + ["double_tree"] * 3
    assert [int(case[6]) for case in cases] == [65536, 262144, 1048576] * 2
    assert "20 switches" in lines[-1]
    assert lines[-1].endswith("cost 20,096")


def test_writes_json_page_and_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {name: tmp_path / name for name in ("out.json", "out.html", "out.trace.json")}
    code = run(
        "--topology",
        "torus:4x4",
        "--collective",
        "all_reduce,all_to_all",
        "--routing",
        "ecmp,spray",
        "--fail",
        "0,2",
        "--seeds",
        "3",
        "--overhead",
        "1us",
        "--reduce-rate",
        "100GB/s",
        "--json",
        str(files["out.json"]),
        "--html",
        str(files["out.html"]),
        "--trace",
        str(files["out.trace.json"]),
    )
    assert code == 0
    capsys.readouterr()
    report = json.loads(files["out.json"].read_text())
    assert report["simulated"] is True
    assert report["command"][:2] == ["jaxcoll", "simulate"]
    # 2 networks, 3 sizes, 2 routings, 2 failure counts.
    schedules = 2 * sum(len(algorithms(name)) for name in ("all_reduce", "all_to_all"))
    assert len(report["results"]) == (schedules - len(report["refused"])) * 3 * 2 * 2
    for row in report["results"]:
        chance = row["routing"] == "ecmp" or row["failed_links"]
        assert len(row["times_s"]) == (3 if chance else 1)
        assert min(row["times_s"]) <= row["time_s"] <= row["time_p99_s"] == max(row["times_s"])
        assert row["gap"] >= 1 - 1e-6
        assert row["bottlenecks"]
    assert report["topologies"][1]["components"]["links"] == 32

    trace = json.loads(files["out.trace.json"].read_text())
    slices = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert all(event["dur"] >= 0 for event in slices)
    assert "simulated" in trace["otherData"]
    names = [e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"]
    assert "rank 3 (h3)" in names

    check_page(files["out.html"].read_text())


class Balance(HTMLParser):
    """Every tag that is opened is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.attributes: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check_page(text: str) -> None:
    """Self-contained, well formed, everything there."""
    parser = Balance()
    parser.feed(text)
    assert parser.open == []
    assert not re.search(r"(https?:)?//[a-z]", text.replace("</", "")), "it needs a network"
    assert not [name for name, _ in parser.attributes if name in ("src", "href")]
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    for drawing in drawings:
        ElementTree.fromstring(drawing)
        numbers = re.findall(r"[-0-9.]+", " ".join(re.findall(r" d='([^']*)'", drawing)))
        assert all(abs(float(number)) < 1e4 for number in numbers)
        assert "nan" not in drawing
    for title in ("Time against size", "Crossover map", "Load of the links", "Timeline"):
        assert f"<h2>{title}" in text
    # 2 collectives, 2 networks, 2 routings, 2 failure counts.
    assert text.count("all_reduce on fat_tree(16, radix 4, 1:1), ecmp, 2 links down</h3>") == 1
    charts = [drawing for drawing in drawings if "data-line" in drawing]
    assert len(charts) == 16
    for chart in charts:  # one bound per size, whatever the failures of each seed
        (bound,) = re.findall(r"<path d='M([^']*)'[^>]*stroke-dasharray='5 4'", chart)
        assert bound.count("L") == 2
    assert "simulated" in text
    assert "core1.1" in text


def test_json_goes_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--algorithm", "ring", "--json", "-") == 0
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)["results"]) == 3


def test_progress_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate.main([*SMALL[:-1], "--algorithm", "ring", "--seeds", "4"]) == 0
    assert "12 of 12 simulations: ring all_reduce on fat_tree" in capsys.readouterr().err


def test_seeds_and_stragglers_and_failures_on_the_way(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(
            "--algorithm",
            "ring",
            *("--seeds", "3", "--jitter", "0.05", "--slow", "3=2.5", "--late", "10us"),
            *("--overhead", "1us", "--fail", "2", "--fail-at", "20us", "--background", "0.2"),
            *("--split", "2", "--routing", "split", "--json", "-"),
        )
        == 0
    )
    rows = json.loads(capsys.readouterr().out)["results"]
    assert all(len(set(row["times_s"])) == 3 for row in rows)


def test_says_which_algorithm_is_the_fastest_where(capsys: pytest.CaptureFixture[str]) -> None:
    torus = ["--topology", "torus:8x8,bandwidth=400Gb/s,latency=100ns", "--quiet"]
    costs = ["--overhead", "600ns", "--latency", "400ns", "--bounds", "none"]
    what = ["--algorithm", "bucket,swing", "--bytes", "4M:64M:2"]
    assert simulate.main([*torus, *costs, *what]) == 0
    # The closed forms meet at 17.9 MB, see test_tori.py.
    assert (
        "# fastest all_reduce on torus(8x8), ecmp: swing from 4 MiB to 16 MiB, "
        "bucket from 32 MiB to 64 MiB\n"
    ) in capsys.readouterr().out
    assert simulate.main([*torus, *costs, *what, "--json", "-"]) == 0
    (fastest,) = json.loads(capsys.readouterr().out)["fastest"]
    assert fastest["ranges"][0] == {
        "algorithm": "swing",
        "from_bytes": 4 << 20,
        "to_bytes": 16 << 20,
    }


def test_says_which_bound_is_missing_and_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxcoll.sim.bounds._MOST_LP_VARIABLES", 1000)
    assert run("--collective", "all_to_all", "--algorithm", "direct") == 0
    assert (
        "# no flow bound: all_to_all on fat_tree(16, radix 4, 1:1): its linear program has 1536 "
        "variables (16 sources x 96 links); it is solved for up to 1000\n"
    ) in capsys.readouterr().out
    big = ["--topology", "switch:101", "--quiet", "--bytes", "1M", "--algorithm", "ring"]
    assert simulate.main([*big, "--collective", "all_gather", "--json", "-"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["results"]
    assert row["missing_bound"] == "101 ranks; it is computed for up to 100"
    # all_reduce has none, and who does not ask for it misses nothing.
    assert run("--algorithm", "ring") == 0
    assert run("--collective", "all_to_all", "--algorithm", "direct", "--bounds", "quick") == 0
    assert "no flow bound" not in capsys.readouterr().out


def test_draws_that_cut_ranks_off_are_left_out_and_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """12 of 32 cables of this network: most draws cut it, some do not."""
    page = tmp_path / "report.html"
    many = ["--algorithm", "ring", "--bytes", "64K", "--fail", "0,12", "--seeds", "8"]
    assert run(*many, "--html", str(page)) == 1
    out = capsys.readouterr().out
    told = re.search(r"# left out: .* 12 links down: (\d) of 8 seeds, whose failures cut.*", out)
    assert told
    assert re.search(r"no path of working links leads from h\d+ to h\d+; down: ", told[0])
    assert f"left out {told[1]} of 8 seeds, whose failures cut ranks off" in page.read_text()
    run(*many, "--json", "-")
    whole, torn = json.loads(capsys.readouterr().out)["results"]
    assert (whole["cut_seeds"], len(whole["times_s"])) == (0, 8)
    assert (torn["cut_seeds"], len(torn["times_s"])) == (int(told[1]), 8 - int(told[1]))
    # Nothing is left: not simulated, with the reason.
    assert run("--algorithm", "ring", "--fail", "32", "--bytes", "64K") == 1
    assert "# not simulated: ring all_reduce on fat_tree(16, radix 4, 1:1): 32 links down cut" in (
        capsys.readouterr().out
    )


def test_a_linear_program_that_takes_too_long_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxcoll.sim.bounds._MOST_LP_SECONDS", 1e-6)
    assert run("--collective", "all_to_all", "--algorithm", "direct") == 0
    assert "its linear program of 1536 variables was not solved in 1e-06 s" in (
        capsys.readouterr().out
    )


def test_simulates_schedules_of_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An MSCCL all_gather of two ranks: by itself, and beside a built-in one."""
    thread = (
        '<tb id="0" send="{peer}" recv="{peer}" chan="0">'
        '<step s="0" type="s" srcbuf="i" srcoff="0" dstbuf="o" dstoff="{rank}" cnt="1" '
        'depid="-1" deps="-1" hasdep="0"/>'
        '<step s="1" type="r" srcbuf="i" srcoff="0" dstbuf="o" dstoff="{peer}" cnt="1" '
        'depid="-1" deps="-1" hasdep="0"/>'
        '<step s="2" type="cpy" srcbuf="i" srcoff="0" dstbuf="o" dstoff="{rank}" cnt="1" '
        'depid="-1" deps="-1" hasdep="0"/></tb>'
    )
    gpus = "".join(
        f'<gpu id="{rank}" i_chunks="1" o_chunks="2" s_chunks="0">'
        f"{thread.format(rank=rank, peer=1 - rank)}</gpu>"
        for rank in range(2)
    )
    file = tmp_path / "pair.xml"
    file.write_text(
        '<algo name="pair" proto="Simple" nchannels="1" nchunksperloop="2" ngpus="2" '
        f'coll="allgather" inplace="0">{gpus}</algo>'
    )
    assert run("--schedule", str(file), "--json", "-") == 0
    rows = json.loads(capsys.readouterr().out)["results"]
    assert {(row["collective"], row["algorithm"], row["ranks"]) for row in rows} == {
        ("all_gather", "pair", 2)
    }
    both = ["--schedule", str(file), "--collective", "all_gather", "--algorithm", "ring"]
    assert run(*both, "--ranks", "2", "--json", "-") == 0
    times = {
        (row["algorithm"], row["bytes"]): row["time_s"]
        for row in json.loads(capsys.readouterr().out)["results"]
    }
    assert len(times) == 6
    assert all(times["pair", n] == time for (name, n), time in times.items() if name == "ring")
    # Beside a built-in one of its name, or another of its name, it has its file's name.
    others = [tmp_path / "ring.xml", tmp_path / "other.xml"]
    for other, name in zip(others, ("ring", "pair"), strict=True):
        other.write_text(file.read_text().replace('name="pair"', f'name="{name}"'))
    four = [*both, *(part for other in others for part in ("--schedule", str(other)))]
    assert run(*four, "--ranks", "2", "--bytes", "64K", "--json", "-") == 0
    report = json.loads(capsys.readouterr().out)
    names = [row["algorithm"] for row in report["results"]]
    assert names == [str(file), str(others[0]), str(others[1]), "ring"]
    assert [ranking["on"] for ranking in report["fastest"]] == [
        "fat_tree(16, radix 4, 1:1), 2 ranks, ecmp"
    ]
    # Nor is it compared with a built-in one of more ranks.
    assert run(*both, "--bytes", "64K", "--json", "-") == 0
    fastest = json.loads(capsys.readouterr().out)["fastest"]
    assert [ranking["ranges"][0]["algorithm"] for ranking in fastest] == ["pair", "ring"]
    file.write_text(file.read_text().replace('dstoff="1" cnt', 'dstoff="0" cnt'))
    with pytest.raises(SystemExit):
        run("--schedule", str(file))
    assert "pair.xml: " in capsys.readouterr().err


def test_changes_on_the_way_and_explicit_placement(capsys: pytest.CaptureFixture[str]) -> None:
    topology = ["--topology", "switch:3,bandwidth=1GB/s,latency=0s", "--quiet", "--bytes", "1M"]
    pair = ["--ranks", "2", "--algorithm", "recursive_doubling", "--json", "-"]

    def time_s(*arguments: str) -> float:
        assert simulate.main([*topology, *pair, *arguments]) == 0
        (row,) = json.loads(capsys.readouterr().out)["results"]
        return float(row["time_s"])

    plain = time_s()
    assert time_s("--change", "0s:h1--s0=0.5") == pytest.approx(2 * plain)
    assert time_s("--change", "0s:h1--s0=0.5", "--placement", "h2,h0") == plain
    # Half way, half the speed: the switch's links, all of them.
    half = f"{plain / 2}s:s0=0.5"
    assert time_s("--change", half) == pytest.approx(1.5 * plain)
    assert time_s("--change", half, "--change", f"{plain}s:s0=1") == pytest.approx(1.25 * plain)


def test_results_and_their_order_do_not_depend_on_the_number_of_jobs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """More schedules than are kept, one case each: they overlap, and are forgotten in between."""
    assert len(algorithms("all_reduce")) > KEPT_SCHEDULES
    reports = []
    for jobs in ("1", "3", "16"):
        chance = ["--fail", "3", "--seeds", "2", "--unfairness", "0.3", "--bytes", "64K"]
        assert run(*chance, "--bounds", "quick", "--jobs", jobs, "--json", "-") == 0
        reports.append(json.loads(capsys.readouterr().out)["results"])
    assert [row["algorithm"] for row in reports[0]] == list(algorithms("all_reduce"))
    assert reports[0] == reports[1] == reports[2]


@pytest.mark.parametrize("seeds", [1, 2, 3, 4])
def test_a_row_describes_one_run(seeds: int, capsys: pytest.CaptureFixture[str]) -> None:
    """With an even number of seeds it is the faster of the two in the middle."""
    chance = ["--unfairness", "0.5", "--fail", "2", "--seeds", str(seeds), "--bytes", "64K"]
    assert run("--algorithm", "halving_doubling", *chance, "--json", "-") == 0
    (row,) = json.loads(capsys.readouterr().out)["results"]
    assert len(set(row["times_s"])) == seeds
    assert row["time_s"] == sorted(row["times_s"])[(seeds - 1) // 2]
    assert row["time_s"] == row["times_s"][row["seed"]]
    assert row["time_is"] == f"the run of seed {row['seed']}, the (lower) median of {seeds}"
    assert row["algbw_GBps"] == pytest.approx(row["bytes"] / row["time_s"] / 1e9)
    assert row["gap"] == pytest.approx(row["time_s"] / max(row["bounds_s"].values()))


def test_networks_of_one_name_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By their texts: the same kind with other options, and two files with one `name`."""
    texts = ["switch:4,bandwidth=100Gb/s", "switch:4,bandwidth=800Gb/s", "torus:2x2"]
    for i, rate in enumerate((1, 2)):
        file = tmp_path / f"{i}.yaml"
        nodes = "".join(f"{{name: h{h}, host: true, forwards: true}}, " for h in range(4))
        ends = ((0, 1), (1, 2), (2, 3))
        links = "".join(f"{{ends: [h{a}, h{b}], bandwidth: {rate}GB/s}}, " for a, b in ends)
        file.write_text(f"name: mine\nnodes: [{nodes}]\nlinks: [{links}]\n")
        texts.append(str(file))
    page = tmp_path / "page.html"
    networks = [part for text in texts for part in ("--topology", text)]
    what = ["--algorithm", "ring", "--bytes", "1M", "--quiet", "--prices", "switches.switch=5"]
    files = ["--html", str(page), "--json", "-"]
    assert simulate.main([*networks, *what, *files]) == 0
    report = json.loads(capsys.readouterr().out)
    names = [*texts[:2], "torus(2x2)", *texts[3:]]
    assert [network["name"] for network in report["topologies"]] == names
    assert [network["cost"] for network in report["topologies"]] == [5, 5, 0, 0, 0]
    assert [row["topology"] for row in report["results"]] == names
    assert [ranking["on"] for ranking in report["fastest"]] == [f"{name}, ecmp" for name in names]
    for name in names:
        assert page.read_text().count(f"<h3>all_reduce on {name}, ecmp</h3>") == 1
    assert simulate.main(["--topology", "switch:4", "--algorithm", "ring", "--quiet"]) == 0
    assert "switch(4)" in capsys.readouterr().out


def test_two_networks_of_one_name_are_not_swept_as_one() -> None:
    sweep = Sweep(Setting())
    what = ("all_reduce", ["ring"], [1024], ["ecmp"], [0])
    sweep.add(switch(4), *what)  # type: ignore[arg-type]
    with pytest.raises(TopologyError, match=r"two networks have the name 'switch\(4\)'"):
        sweep.add(switch(4, radix=8), *what)  # type: ignore[arg-type]


def test_algorithms_of_other_dims_are_told_apart(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("--algorithm", "swing[4x4],swing[2x8],swing", "--bytes", "64K", "--json", "-") == 0
    rows = json.loads(capsys.readouterr().out)["results"]
    assert [row["algorithm"] for row in rows] == ["swing[4x4]", "swing[2x8]", "swing"]
    assert len({row["time_s"] for row in rows}) > 1


def test_an_algorithm_that_no_collective_has_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    both = ["--collective", "all_reduce,all_gather"]
    assert run(*both, "--algorithm", "double_tree,ring", "--bytes", "64K") == 0
    with pytest.raises(SystemExit):
        run(*both, "--algorithm", "rign,ring")
    told = capsys.readouterr().err
    assert "all_reduce and all_gather have no algorithm rign; choose from" in told
    assert "did you mean 'ring'?" in told


def test_prices_are_of_components_of_some_network(capsys: pytest.CaptureFixture[str]) -> None:
    two = ["--topology", "torus:4x4", "--algorithm", "ring", "--bytes", "64K"]
    assert run(*two, "--prices", "switches.core=7,links=1") == 0
    out = capsys.readouterr().out
    assert re.search(r"^fat_tree.*; cost 76$", out, re.MULTILINE)
    assert re.search(r"^torus.*; cost 32$", out, re.MULTILINE)
    assert run(*two, "--prices", "switches.croe=7") == 1
    assert "there is a price for 'switches.croe'; priced are hosts, " in capsys.readouterr().err


def test_a_time_of_nothing_has_no_gap(capsys: pytest.CaptureFixture[str]) -> None:
    alone = ["--topology", "switch:1", "--algorithm", "ring", "--bytes", "1M", "--quiet"]
    assert simulate.main([*alone, "--json", "-"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["results"]
    assert row["gap"] is None


def test_drawn_slow_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    def times(*arguments: str) -> list[float]:
        assert run("--algorithm", "ring", "--overhead", "1us", *arguments, "--json", "-") == 0
        return [t for r in json.loads(capsys.readouterr().out)["results"] for t in r["times_s"]]

    plain = times()
    for distribution in ("normal", "exponential", "uniform"):
        slow = times("--spread", "0.5", "--distribution", distribution, "--seeds", "2")
        assert len(set(slow)) == 2 * len(plain)
        assert min(slow) > min(plain)


def test_schedules_that_cannot_be_built_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--algorithm", "hierarchical[3x5]"]
    assert run(*arguments) == 1
    assert "# not simulated: hierarchical[3x5] all_reduce on fat_tree" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology", "star:3"], "unknown topology 'star'"),
        (["--down", "leaf9"], "has no node or link 'leaf9'"),
        (["--change", "1us:leaf9"], "has no node or link 'leaf9'"),
        (["--change", "0s:tor0.0"], "no path of working links leads from .*; down: tor0.0"),
        (["--placement", "h0,h1,h0"], "the placement places 3 ranks, the schedule has 16"),
        (["--ranks", "3", "--placement", "h0,h1,h0"], "'h0' holds rank 0 and rank 2"),
        (["--ranks", "17"], "has 16 endpoints, too few for 17 ranks"),
        (["--fail", "33"], "has 32 cables that may fail, 33 were asked for"),
        (["--down", "tor0.0"], "no path of working links leads from .*; down: tor0.0"),
        (["--placement", "spiral"], "use linear, random:SEED or strided:K"),
        (["--slow", "99=2"], "rank 99 is slow, but there are 16 ranks"),
        (["--prices", "switch=2"], "there is a price for 'switch'"),
    ],
)
def test_impossible_requests_are_explained(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--algorithm", "ring", *arguments) == 1
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--algorithm", "rign"], "all_reduce has no algorithm rign; choose from direct"),
        (["--collective", "gather"], "there is no collective 'gather'"),
        (["--routing", "magic"], "there is no routing 'magic'; choose from ecmp, split, spray"),
        (["--bytes", "4M:1M"], "write FROM:TO or FROM:TO:FACTOR"),
        (["--bytes", "many"], "'many' is not a size"),
        (["--slow", "1=-2"], "--slow: write RANK=FACTOR: '-2': must be above 0"),
        (["--slow", "a=2"], "--slow: write RANK=FACTOR: 'a' is not a whole number"),
        (["--jitter", "-1"], "--jitter: '-1': must be at least 0"),
        (["--split", "300"], "--split: '300': must be at least 1 and at most 256"),
        (["--unfairness", "nan"], "--unfairness: 'nan' is not a number"),
        (["--fail", "few"], "'few' is not a whole number"),
        (["--seeds", "0"], "--seeds: '0': must be at least 1"),
        (["--overhead", "soon"], "'soon' is not a time"),
        (["--background", "2"], "--background: '2': must be at least 0 and at most 1"),
        (["--html", "/nowhere/at/all.html"], "there is no folder for /nowhere/at/all.html"),
        (["--prices", "switches"], "write NAME=NUMBER"),
        (["--change", "50us"], "write TIME:NAME to fail a node or link"),
        (["--change", "soon:tor0.0"], "write TIME:NAME to fail a node or link"),
        (["--change", "1us:tor0.0=slow"], "write TIME:NAME to fail a node or link"),
        (["--schedule", "nowhere.xml"], "nowhere.xml: No such file"),
    ],
)
def test_bad_arguments_are_explained(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        run(*arguments)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_a_defect_of_the_simulator_is_called_that(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise SimulationError("below its bound")

    monkeypatch.setattr("jaxcoll.sim.sweep.run", broken)
    assert run("--algorithm", "ring") == 1
    assert "defect of the simulator: below its bound" in capsys.readouterr().err
