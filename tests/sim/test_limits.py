"""Inputs out of range are refused before anything is simulated or built; tables of their kinds."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jaxcoll._cli import simulate
from jaxcoll.schedule import ScheduleSpec
from jaxcoll.sim.links import MOST_LINKS, Links
from jaxcoll.sim.network import MOST_NODES
from jaxcoll.simulate import Change, Model, Stragglers, Traffic, pack, run
from jaxcoll.topology import (
    KINDS,
    Topology,
    TopologyError,
    from_yaml,
    multi_plane,
    parse,
    ring,
    switch,
    torus,
)

RING = ScheduleSpec("all_reduce", 4, "ring")


# --- distances ------------------------------------------------------------------------------------


@pytest.mark.parametrize("hosts", [131070, 131072, 200000])
def test_ranks_may_be_any_number_of_links_apart(hosts: int) -> None:
    """Half way round a ring: more links than 16 bits count."""
    network = ring(hosts, bandwidth_Bps=1e9, latency_s=1e-6)
    pair = ScheduleSpec("permute", 2, permutation=((0, 1),))
    timeline = run(pair, network, 1000, placement=["h0", f"h{hosts // 2}"], bounds="none")
    assert timeline.time_ps == 1_000_000 + hosts // 2 * 1_000_000


# --- totals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nbytes", "model", "message"),
    [
        (1 << 62, Model(), "a rank's buffers are .* bytes, 3 times the most that can be simulated"),
        (10**31, Model(), r"nbytes is 1e\+31, but must be at least 1 and at most 4.6.*e\+18, "),
        (1 << 20, Model(overhead_s=5e6), "model.overhead_s is 5000000.0, .* 1.08 times that"),
        (1 << 20, Model(latency_s=5e6), "model.latency_s is 5000000.0, .* at most 4611686"),
        (1 << 20, Model(quantum_s=5e6), "model.quantum_s is 5000000.0, .* at most 4611686"),
        (1 << 20, Model(latency_s=4e6), "an event happens after .* times the most"),
        (1 << 20, Model(overhead_s=4e6), " after .* times the most that can be simulated"),
        (1 << 20, Model(quantum_s=4e6), " after .* times the most that can be simulated"),
        (1 << 20, Model(reduce_s_per_byte=1e13), r"reductions and copies of rank 0 take 7.86e\+18"),
        (1 << 20, Model(reduce_s_per_byte=1e300), "reductions and copies of rank 0 take"),
        (1 << 59, Model(efficiency=1e-6), "the messages of rank 0 take"),
        (1 << 20, Model(unfairness=101), "model.unfairness is 101, but .* at most 100"),
        (0, Model(), "nbytes is 0, but must be at least 1"),
        (1 << 20, Model(in_flight=1 << 31), "model.in_flight is 2147483648, but"),
    ],
)
def test_totals_out_of_range_are_refused(nbytes: int, model: Model, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(RING, parse("switch:4"), nbytes, model=model, bounds="none")


def test_times_and_bytes_of_other_things_are_in_range_too() -> None:
    network = parse("switch:4")
    many: list[tuple[dict[str, object], str]] = [
        ({"stragglers": Stragglers(start_s=(0, 0, 0, 5e6))}, "start_s of rank 3 is 5000000.0"),
        ({"stragglers": Stragglers(start_s=(0, 0, 0, math.inf))}, "start_s of rank 3 is inf"),
        ({"changes": [Change(1e300, "s0")]}, "a change's time_s is"),
        ({"background": [Traffic("h0", "h1", 1e9, start_s=1e300)]}, "traffic's start_s is"),
        ({"background": [Traffic("h0", "h1", 1e9, nbytes=1 << 70)]}, "traffic's nbytes is"),
        ({"background": [Traffic("h0", "h1", 1e9, nbytes=1 << 62)] * 3}, "background traffic tog"),
        ({"background": [Traffic("h0", "h1")]}, "a positive rate or share"),
        ({"seed": -1}, "seed is -1"),
        ({"itemsize": 0}, "itemsize is 0"),
    ]
    for arguments, message in many:
        with pytest.raises(ValueError, match=message):
            run(RING, network, 1 << 20, bounds="none", **arguments)  # type: ignore[arg-type]
    for drawn, message in (
        ({"slowdown": -0.1}, "slowdown is -0.1"),
        ({"start_s": math.nan}, "start_s is nan"),
        ({"jitter": math.inf}, "jitter is inf"),
        ({"distribution": "cauchy"}, "unknown distribution 'cauchy'; there are normal"),
    ):
        with pytest.raises(ValueError, match=message):
            Stragglers.draw(4, **drawn)  # type: ignore[arg-type]
    far = Topology("far")
    with pytest.raises(TopologyError, match=r"link a - b has a latency of 1e\+300 s"):
        far.connect(far.add_host("a"), far.add_host("b"), 1e9, 1e300)


def test_a_run_up_to_the_last_day_is_simulated() -> None:
    """40 days: of the 53 that there are."""
    timeline = run(
        RING, parse("switch:4"), 16, model=Model(latency_s=40 * 86400 / 6), bounds="none"
    )
    assert timeline.time_s == pytest.approx(40 * 86400, rel=1e-9)


@pytest.mark.parametrize("unfairness", [5.0, 20.0, 40.0, 100.0])
@pytest.mark.parametrize("collective", ["all_to_all", "all_gather", "reduce_scatter"])
@pytest.mark.parametrize("network", ["switch:8", "leaf_spine:12,hosts_per_leaf=4", "torus:3x3"])
def test_shares_may_differ_by_any_factor(network: str, collective: str, unfairness: float) -> None:
    """No link carries too much, and all messages end: the engine checks it. No run is shorter than
    with fair shares by more than the ports allow."""
    topology = parse(network)
    for seed in range(3):
        spec = ScheduleSpec(collective, len(topology.hosts), "direct")  # type: ignore[arg-type]
        model = Model(in_flight=0, unfairness=unfairness)
        timeline = run(spec, topology, 1 << 20, model=model, seed=seed, bounds="quick")
        assert timeline.gap >= 1 - 1e-6


def test_background_traffic_takes_its_share_of_every_link_of_a_port() -> None:
    """Each of eight planes carries it; a message on one of them gets the rest of that one."""
    network = multi_plane(8, planes=8, radix=16, bandwidth_Bps=1e9, latency_s=0)
    pair = ScheduleSpec("permute", 8, permutation=((0, 1),))
    # No route is shared behind the leaf: all hosts are at one.
    alone = run(pair, network, 1 << 20, bounds="none")
    load = [Traffic("h0", "h1", share=0.75)]
    beside = run(pair, network, 1 << 20, background=load, bounds="none")
    # Max-min fair: half of the one link that the message takes; of the others their share.
    assert beside.time_ps == pytest.approx(2 * alone.time_ps, abs=2)
    carried = {
        link.name: nbytes
        for link, nbytes in zip(network.links, beside.link_bytes.tolist(), strict=True)
        if link.source == "h0"
    }
    whole = 1e9 * beside.time_s
    own = [nbytes / whole for nbytes in carried.values()]
    assert sorted(own) == pytest.approx([0.75] * 7 + [1.0], rel=1e-3)


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_are_bounded_before_anything_is_built(kind: str) -> None:
    for size in (10**9, 10**12, MOST_NODES + 1):
        with pytest.raises(TopologyError, match=r"would have|reach|join|asked for"):
            parse(f"{kind}:{f'{size}x1' if kind == 'torus' else size}")


@pytest.mark.parametrize(
    "text",
    [
        "multi_plane:16,planes=1000000000",
        "multi_plane:64,radix=2000000000",
        "leaf_spine:16,hosts_per_leaf=1000000000",
        "rail_optimised:16,gpus_per_node=1000000000",
        "rail_optimised:1000,nodes_per_leaf=100000000",
        "rail_only:16,gpus_per_node=1000000000",
        "fat_tree:16,radix=2000000000",
        "dragonfly:9,routers_per_group=100000000",
        "dragonfly:9,hosts_per_router=1000000000",
        "dragonfly:2,global_links_per_router=1000000000",
        "torus:99999x99999x99999",
    ],
)
def test_options_are_bounded_before_anything_is_built(text: str) -> None:
    with pytest.raises(TopologyError, match=f"would have .* at most ({MOST_NODES}|{MOST_LINKS})"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("switch:40,radix=32", "the switch has 40 links, but 32 ports"),
        ("leaf_spine:64,radix=16", "a leaf has 32 links, but 16 ports"),
        ("leaf_spine:256,hosts_per_leaf=8,spines=1,radix=16", "a spine has 256 links, but 16"),
        ("rail_optimised:64,radix=64", "a leaf has 128 links, but 64 ports"),
        ("rail_optimised:64,nodes_per_leaf=8,radix=32", "a spine has 64 links, but 32 ports"),
        ("rail_only:64,radix=32", "a leaf has 64 links, but 32 ports"),
    ],
)
def test_switches_have_the_ports_that_were_said(text: str, message: str) -> None:
    with pytest.raises(TopologyError, match=message):
        parse(text)
    parse(text.replace("radix=", "radix=9"))


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "0", "1e-300", "5e-324", "1e300"])
@pytest.mark.parametrize("kind", ["leaf_spine", "fat_tree", "multi_plane", "rail_optimised"])
def test_oversubscription_is_a_positive_number(kind: str, value: str) -> None:
    with pytest.raises(
        TopologyError, match=r"oversubscription='...' is not a number|oversubscribed|sp"
    ):
        parse(f"{kind}:64,oversubscription={value}")


def test_memory_is_judged_before_the_schedule_is_packed() -> None:
    """In a process with little: an all_to_all that would take some gigabytes."""
    program = (
        "import resource; from jaxcoll.simulate import pack; "
        "from jaxcoll.schedule import ScheduleSpec; "
        "from pathlib import Path; "
        "used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize(); "
        "resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), used + (1 << 30))); "
        "pack(ScheduleSpec('all_to_all', 4096, 'direct'))"
    )
    child = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert child.returncode == 1
    last = child.stderr.splitlines()[-1]
    assert last.startswith("ValueError: the schedule has about 33550336 ops, which take 3.0")
    assert last.endswith(" GB are available")
    assert pack(ScheduleSpec("all_to_all", 64, "direct")).ops == 64 * (2 * 63 + 1)


def test_a_sweep_is_checked_before_any_schedule_is_packed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks, placement, slow ranks, the number of simulations, and what their results take."""

    def packed(spec: object) -> None:
        raise AssertionError(f"{spec} was packed")

    monkeypatch.setattr("jaxcoll.sim.sweep.pack", packed)
    network = ["--topology", "switch:8", "--quiet", "--bytes", "1M"]
    for arguments, message in (
        (["--ranks", "4000000"], "has 8 endpoints, too few for 4000000 ranks"),
        (["--ranks", "4000000", "--collective", "permute"], "too few for 4000000 ranks"),
        (["--placement", "strided:1000000000"], "a stride must be from 1 to 8"),
        (["--placement", "strided:9"], "a stride must be from 1 to 8"),
        (["--placement", "strided:0"], "a stride must be from 1 to 8"),
        (["--placement", "random:-1"], "use linear, random:SEED or strided:K"),
        (["--placement", "random:\u0663"], "use linear, random:SEED or strided:K"),
        (["--placement", "strided:" + "1" * 4000], "use linear, random:SEED or strided:K"),
        (["--slow", "8=2"], "rank 8 is slow, but there are 8 ranks"),
        (["--seeds", "1048576", "--algorithm", "ring,direct"], "that is 2097152 simulations"),
    ):
        assert simulate.main([*network, *arguments]) == 1
        told = capsys.readouterr().err
        assert message in told
        assert len(told) < 400
    monkeypatch.setattr("jaxcoll.sim.sweep.available_bytes", lambda: 1 << 20)
    assert simulate.main([*network, "--algorithm", "ring", "--seeds", "1000"]) == 1
    told = "the results of 1000 simulations take 0.00532 GB; 0.00105 GB are available"
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("small", "large"),
    [
        ("dragonfly:5,routers_per_group=4", "dragonfly:9,routers_per_group=16"),
        ("leaf_spine:64,hosts_per_leaf=8", "leaf_spine:640,hosts_per_leaf=8"),
        ("rail_optimised:8", "rail_optimised:80"),
        ("torus:4x4", "torus:16x16"),
        ("switch:8", "switch:80"),
    ],
)
def test_links_are_added_in_as_many_calls_however_many_there_are(
    small: str, large: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    add = Links.add

    def counted(self: Links, *arguments: Any) -> None:
        nonlocal calls
        calls += 1
        add(self, *arguments)

    monkeypatch.setattr(Links, "add", counted)
    parse(small)
    of_small, calls = calls, 0
    parse(large)
    assert calls == of_small


def test_a_dragonfly_has_the_cables_that_its_definition_says() -> None:
    """The cables are those of each group and pair of groups, one by one."""
    for groups, a, p, h in ((1, 3, 2, 1), (2, 2, 1, 3), (5, 2, 3, 2), (9, 4, 2, 2)):
        network = parse(
            f"dragonfly:{groups},routers_per_group={a},hosts_per_router={p},"
            f"global_links_per_router={h},latency=1us,global_latency=2us"
        )
        expected = []
        for host in range(groups * a * p):
            expected.append({f"h{host}", f"r{host // (a * p)}.{host // p % a}"})
        for g in range(groups):
            for r in range(a):
                expected += [{f"r{g}.{r}", f"r{g}.{other}"} for other in range(r)]
        for turn in range(a * h // (groups - 1) if groups > 1 else 0):
            for g in range(groups):
                for other in range(g + 1, groups):
                    # The place of a group among all others, counted on from one's own.
                    there = (turn * (groups - 1) + (other - g - 1) % groups) // h
                    back = (turn * (groups - 1) + (g - other - 1) % groups) // h
                    expected.append({f"r{g}.{there}", f"r{other}.{back}"})
        found = [{link.source, link.destination} for link in network.links][::2]
        assert sorted(map(sorted, found)) == sorted(map(sorted, expected))
        for link in network.links:
            ends = link.source.split(".")[0], link.destination.split(".")[0]
            across = ends[0][0] == ends[1][0] == "r" and ends[0] != ends[1]
            assert link.latency_s == (2e-6 if across else 1e-6)


@pytest.mark.parametrize("dimensions", [[], [1] * 25, [1] * 70])
def test_a_torus_has_dimensions_and_not_too_many(dimensions: list[int]) -> None:
    with pytest.raises(TopologyError, match=f"has {len(dimensions)} dimensions, but must have fr"):
        torus(dimensions)
    assert len(torus([1] * 24).hosts) == 1


def test_links_have_a_capacity_that_bounds_can_be_computed_with() -> None:
    for rate in (0, -1, math.nan, math.inf, 1.1e18):
        with pytest.raises(TopologyError, match=r"a link's capacity must be above 0 and at most"):
            switch(4, bandwidth_Bps=rate)
        pair = Topology("pair")
        a, b = pair.add_host("a"), pair.add_host("b")
        with pytest.raises(TopologyError, match=r"has a capacity of .* above 0 and at most 1e\+18"):
            pair.connect(a, b, rate)
    network = switch(4)
    for factor in (math.nan, math.inf, -1.0, 1e9):
        with pytest.raises(ValueError, match=r"must be at least 0|B/s; at most 1e\+18"):
            run(RING, network, 1 << 20, changes=[Change(0.0, "h0->s0", factor)])
    assert run(RING, switch(4, bandwidth_Bps=1e18), 1 << 20).time_s > 0
    for traffic, told in (
        (Traffic("h0", "h1", math.nan), "bandwidth_Bps is nan"),
        (Traffic("h0", "h1", share=1.5), "share is 1.5"),
    ):
        with pytest.raises(ValueError, match=told):
            run(RING, network, 1 << 20, background=[traffic])


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "a\x1b[31m", "a\nb", "a\u202eb", "x" * 257, "\x00"])
def test_names_that_cannot_be_printed_are_refused(name: str) -> None:
    for make in (Topology, Topology("t").add_host, Topology("t").add_switch):
        with pytest.raises(TopologyError, match=r"the name '.*' of a n.* cannot be used") as error:
            make(name)
        assert str(error.value).isprintable()


# --- YAML -----------------------------------------------------------------------------------------

PAIR = "nodes: [{name: a, host: true}, {name: b, host: true}]\nlinks:\n - {ends: [a, b], %s}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: ring\nsize: 4\nlatancy: 5us\n", "line 3: ring has no option 'latancy'.*'latency'"),
        (PAIR % "bandwidth: 1GB/s, latancy: 5us", "line 3: a link has no key 'latancy'.*'latency'"),
        (PAIR % "bandwidth: 1GB/s, cuont: 3", "line 3: a link has no key 'cuont'.* 'count'"),
        (PAIR % "bandwidth: 1GB/s, oneway: true", "a link has no key 'oneway'.* 'one_way'"),
        (PAIR % "bandwith: 1GB/s", "line 3: a link has no key 'bandwith'.* 'bandwidth'"),
        (PAIR % "bandwidth: 1GB/s" + "gruops: {}", "line 4: a network has no key 'gruops'"),
        ("nodes: [{nmae: a}]\nlinks: []", "line 1: a node has no key 'nmae'.* 'name'"),
        (PAIR % "bandwidth: 1GB/s, count: 1, count: 2", "line 3: a link has the key 'count' twice"),
        (PAIR % "bandwidth: 1GB/s, count: null", "`count` should be a whole number, not nothing"),
        (PAIR % "bandwidth: 1GB/s, count: [1]", "`count` should be a whole number, not a list"),
        (PAIR % "bandwidth: 1GB/s, count: {}", "`count` should be a whole number, not a mapping"),
        (PAIR % "bandwidth: 1GB/s, count: 1.7", "`count` should be a whole number, not '1.7'"),
        (PAIR % "bandwidth: 1GB/s, count: true", "a whole number, not the truth value true"),
        (PAIR % "bandwidth: 1GB/s, count: 1000000000", "`count` is 1000000000, but must be from"),
        (PAIR % "bandwidth: 1GB/s, count: -1", "`count` is -1, but must be from 0"),
        (PAIR % "bandwidth: 1GB/s, count: 0x10", "`count` is '0x10'; write it in decimal"),
        (PAIR % "bandwidth: null", "line 3: `bandwidth` should be .*, not nothing"),
        (PAIR % "bandwidth: true", "line 3: `bandwidth` should be .*, not the truth value"),
        (PAIR % "bandwidth: fast", "line 3: 'fast' is not a rate"),
        (PAIR % "bandwidth: .inf", "line 3: '.inf' is not a rate"),
        (PAIR % "bandwidth: 1GB/s, latency: [1us]", "line 3: `latency` should be .*, not a list"),
        (PAIR % "bandwidth: 1GB/s, one_way: 1", "`one_way` should be true or false, not '1'"),
        ("nodes: [{name: a, host: 3}]\nlinks: []", "`host` should be true or false, not '3'"),
        ("nodes: [{name: [a]}]\nlinks: []", "`name` should be a text or a whole number, not a li"),
        ("nodes: [{name: null}]\nlinks: []", "`name` should be .*, not nothing"),
        ("nodes: [a]\nlinks: []", "line 1: a node should be a mapping, not 'a'"),
        ("nodes: {a: 1}\nlinks: []", "line 1: `nodes` should be a list, not a mapping"),
        ("nodes: [{name: a, host: true}]\nlinks: [a]", "line 2: a link should be a mapping"),
        ("? [a]\n: 1\n", "line 1: a key of a network should be a text, not a list"),
        ("kind: [ring]\nsize: 4", "line 1: `kind` should be a text, not a list"),
        ("kind: rign\nsize: 4", "line 1: unknown kind 'rign'.* 'ring'"),
        ("kind: ring\nsize: null", "line 2: `size` should be a whole number, not nothing"),
        ("kind: ring\nsize: 4.5", "line 2: `size` should be a whole number, not '4.5'"),
        ("kind: ring\nsize: true", "line 2: `size` should be a whole number, not the truth"),
        ("kind: switch\nsize: 1000000000", "line 2: switch.* would have 1000000001 nodes"),
        ("kind: torus\nsize: [4, x]", "line 2: `size` should be a whole number, not 'x'"),
        ("kind: torus\nsize: 4y4", "line 2: `size` is '4y4'; write 4x4x4"),
        ("kind: fat_tree\nsize: 16\nradix: 4.0", "line 3: `radix` should be a whole number"),
        ("kind: fat_tree\nsize: 16\nradix: []", "line 3: `radix` should be a whole number"),
        (PAIR % "bandwidth: 1GB/s" + "groups: {x: [c]}", "line 4: a group names 'c', which is no"),
        (
            PAIR % "bandwidth: 1GB/s" + "groups: {x: a}",
            "line 4: `groups` should be a list, not 'a'",
        ),
        (
            PAIR % "bandwidth: 1GB/s" + "node_size: 3",
            "line 4: `node_size` is 3, but must be from 0",
        ),
        ('nodes: [{name: "a\\e[31m"}]\nlinks: []', r"line 1: the name 'a\\x1b\[31m' of a node"),
        ("nodes: &a [*a]\nlinks: []", "line 1: a node should be a mapping, not a list"),
        ("kind: !!python/name:os.system x\nsize: 4", "line 1: `kind` should be a text"),
        ("nodes: []\n<<: {links: []}", "line 2: a network has no key '<<'"),
        ("nodes: " + "[" * 3000 + "]" * 3000, "nested more than 16 levels|nesting depth"),
        ("nodes: " + "[" * 20 + "]" * 20, "line 1: nested more than 16 levels deep"),
        ("nodes: []\x07\nlinks: []", "is not YAML"),
    ],
)
def test_yaml_that_cannot_be_is_refused_in_one_line(
    text: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(TopologyError, match=message) as error:
        from_yaml(path)
    told = str(error.value)
    assert told.startswith(str(path))
    assert told.isprintable()
    assert len(told) < 400 + len(str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # 600 statements of 65536 links each way.
        (
            PAIR % "bandwidth: 1GB/s, count: 65536"
            + " - {ends: [a, b], bandwidth: 1, count: 65536}\n" * 599,
            "would have 33685504 directed links",
        ),
        # 3000 groups that share a list of 3000.
        (
            "nodes: [{name: a, host: true}, {name: b, host: true}]\n"
            "links: [{ends: [a, b], bandwidth: 1}]\n"
            f"groups:\n g: &a [{'a, ' * 3000}b]\n" + "".join(f" g{i}: *a\n" for i in range(3000)),
            "line 1401: the groups have 4195398 members together; at most 4194303",
        ),
    ],
)
def test_totals_of_a_file_are_bounded_before_anything_is_built(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.yaml"
    path.write_text(text)
    most = 0
    add = Links.add

    def counted(self: Links, *arguments: Any) -> None:
        nonlocal most
        add(self, *arguments)
        most = len(self)

    monkeypatch.setattr(Links, "add", counted)
    with pytest.raises(TopologyError, match=message):
        from_yaml(path)
    assert most <= 2


def test_values_of_a_file_are_counted_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "commas.yaml"
    path.write_text(f"nodes: [{'a, ' * 100}a]\nlinks: []\n")
    monkeypatch.setattr("jaxcoll.sim.network_file._MOST_VALUES", 100)
    with pytest.raises(TopologyError, match="line 1: more than 100 texts, lists and mappings"):
        from_yaml(path)


def test_parallel_links_and_shared_lists_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(
        PAIR % "bandwidth: 1GB/s, count: 3, medium: copper"
        + " - {ends: [b, a], bandwidth: 2GB/s, one_way: true, count: 0}\n"
        + " - {ends: [b, a], bandwidth: 2GB/s, one_way: true, count: 2}\n"
        + "groups: {x: &x [a], y: *x}\n"
    )
    network = from_yaml(path)
    assert [link.name for link in network.links] == [
        *("a->b", "b->a", "a->b#1", "b->a#1", "a->b#2", "b->a#2"),
        *("b->a#3", "b->a#4"),
    ]
    assert network.components()["links.copper"] == 3
    assert network.groups["x"] is network.groups["y"]


def test_anchors_that_expand_are_not_expanded(tmp_path: Path) -> None:
    """Eleven lines that stand for ten thousand million nodes."""
    bomb = ["nodes:", "- &a0 [x, x, x, x, x, x, x, x, x, x]"]
    bomb += [f"- &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join([*bomb, "links: []"]))
    with pytest.raises(TopologyError, match="line 2: a node should be a mapping, not a list"):
        from_yaml(path)


def test_groups_and_node_size_of_a_file_are_used(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(
        "nodes: [{name: s}, {name: a, host: true}, {name: b, host: true}, {name: c, host: true}, "
        "{name: d, host: true}]\n"
        "links: [{ends: [a, s], bandwidth: 1GB/s}, {ends: [b, s], bandwidth: 1GB/s},\n"
        " {ends: [c, s], bandwidth: 1GB/s}, {ends: [d, s], bandwidth: 1GB/s}]\n"
        "node_size: 2\ngroups: {pair: [a, b]}\n"
    )
    network = from_yaml(path)
    assert network.node_size == 2
    timeline = run(RING, network, 1 << 20)
    assert "cut pair" in {bound.name for bound in timeline.bounds}


# --- pages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["switch:1", "ring:1", "switch:4"])
def test_a_page_of_one_rank(network: str, tmp_path: Path) -> None:
    """No time at all, and no link where there is no other host."""
    page = tmp_path / "page.html"
    arguments = ["--topology", network, "--ranks", "1", "--algorithm", "ring", "--bytes", "1M"]
    assert simulate.main([*arguments, "--quiet", "--html", str(page)]) == 0
    assert "Time against size" in page.read_text()


def test_the_page_says_where_it_is_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    what = ["--topology", "switch:4", "--algorithm", "ring", "--bytes", "1M", "--quiet"]
    assert simulate.main([*what, "--seeds", "20", "--html", str(page)]) == 0
    text = page.read_text()
    assert "jaxcoll simulate --topology switch:4 --algorithm ring" in text
    assert "jaxcoll 0." in text
    assert "p99 is the slowest of 20 seeds, which reaches the true 99th percentile with a" in text
    assert "# p99 is the slowest of 20 seeds" in capsys.readouterr().out


def test_the_help_lists_algorithms_and_every_option_with_its_default() -> None:
    text = simulate.parser().format_help()
    assert "leaf_spine:SIZE,hosts_per_leaf=16,oversubscription=1,spines=derived" in text
    assert "all_to_all: direct" in text
    for kind in KINDS:
        assert f"    {kind}:" in text


def test_default_nics_are_equal() -> None:
    """All of a host's links towards the network together, except for tori, which have several."""
    for kind in KINDS:
        network = parse(f"{kind}:{'4x4' if kind == 'torus' else 9}")
        host = network.hosts[0]
        rates = [
            link.bandwidth_Bps
            for link in network.links
            if link.source == host and not link.destination.startswith("nvs")
        ]
        assert (rates[0] if kind in ("ring", "torus") else sum(rates)) == 50e9
