"""Networks: what they are made of, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import networkx
import pytest

from jaxcoll._native import native
from jaxcoll.schedule import ScheduleSpec
from jaxcoll.simulate import run
from jaxcoll.topology import (
    KINDS,
    Topology,
    TopologyError,
    dragonfly,
    fat_tree,
    from_networkx,
    from_yaml,
    leaf_spine,
    multi_plane,
    parse,
    parse_bytes,
    parse_rate,
    parse_seconds,
    rail_only,
    rail_optimised,
    ring,
    switch,
    torus,
)


def distance(topology: Topology, a: str, b: str) -> int:
    index = topology.index
    return len(native.sim_route(topology.native, "ecmp", 0, index[a], index[b], 0, 0))


def counts(topology: Topology) -> tuple[int, int, int, int]:
    c = topology.components()
    return c["hosts"], c["switches"], c["links"], c["optics"]


def test_component_counts_equal_the_closed_forms() -> None:
    assert counts(ring(7)) == (7, 0, 7, 14)
    assert counts(ring(2)) == (2, 0, 1, 2)
    assert counts(torus([4, 5, 6])) == (120, 0, 3 * 120, 6 * 120)
    assert counts(torus([2, 3])) == (6, 0, 3 + 6, 18)
    assert counts(switch(9)) == (9, 1, 9, 18)
    # 1024 hosts, 32 down and 8 up per leaf.
    assert counts(leaf_spine(1024, hosts_per_leaf=32, oversubscription=4)) == (
        1024,
        32 + 8,
        1024 + 256,
        2 * 1280,
    )
    # A full tree of k-port switches: k^3/4 hosts, 5k^2/4 switches, 3 links per host.
    for k in (4, 8):
        hosts = k**3 // 4
        assert counts(fat_tree(hosts, radix=k)) == (hosts, 5 * k * k // 4, 3 * hosts, 6 * hosts)
    # The packet-level reference: 8 down, 8 up; 16 down at the core.
    tree = fat_tree(1024, radix=16).components()
    assert (tree["switches.tor"], tree["switches.agg"], tree["switches.core"]) == (128, 128, 64)
    rails = rail_optimised(16, gpus_per_node=8, nodes_per_leaf=8)
    assert counts(rails) == (128, 16 + 8 * 2 + 8, 128 + 128 + 16 * 8, 2 * (128 + 128))
    assert counts(rail_only(16)) == (128, 16 + 8, 256, 2 * 128)
    # a h + 1 groups: every pair once.
    full = dragonfly(9, routers_per_group=4, hosts_per_router=2, global_links_per_router=2)
    assert counts(full)[:3] == (72, 36, 72 + 9 * 6 + 36)
    assert full.components()["optics"] == 2 * 36


def test_multi_plane_reach_and_counts_equal_the_closed_forms() -> None:
    """Two tiers of radix k reach k^2 / 2; every plane has its own."""
    for planes, radix in ((1, 8), (4, 8), (2, 16)):
        reach = radix * radix // 2
        network = multi_plane(reach, planes=planes, radix=radix)
        assert counts(network) == (
            reach,
            planes * (radix + radix // 2),
            2 * planes * reach,
            4 * planes * reach,
        )
        with pytest.raises(TopologyError, match=rf"reach {reach} hosts at 1:1, {reach + 1} were"):
            multi_plane(reach + 1, planes=planes, radix=radix)
    # Published: 512 ports reach 131072 in two tiers; 64 ports 2048 in two, 65536 in three.
    with pytest.raises(TopologyError, match="reach 131072 hosts"):
        multi_plane(131073, radix=512)
    with pytest.raises(TopologyError, match="reach 2048 hosts"):
        multi_plane(2049, radix=64)
    with pytest.raises(TopologyError, match="reaches 65536 hosts"):
        fat_tree(65537, radix=64)


@pytest.mark.parametrize(
    ("network", "hosts", "switches", "cables"),
    [
        # One plane of 800 Gb/s, 64 ports: k^2 / 2 hosts on k leaves and k / 2 spines.
        ("multi_plane:2048,planes=1,radix=64,bandwidth=800Gb/s", 2048, 96, 2 * 2048),
        # The same in three tiers: k^3 / 4 hosts, 5 k^2 / 4 switches.
        pytest.param(
            "fat_tree:65536,radix=64,bandwidth=800Gb/s",
            65536,
            5 * 64 * 64 // 4,
            3 * 65536,
            marks=pytest.mark.exhaustive,
        ),
        # Eight planes of 100 Gb/s, 512 ports.
        pytest.param(
            "multi_plane:131072,planes=8,radix=512,bandwidth=100Gb/s",
            131072,
            8 * (512 + 256),
            8 * 2 * 131072,
            marks=pytest.mark.exhaustive,
        ),
    ],
)
def test_published_networks_at_their_full_reach(
    network: str, hosts: int, switches: int, cables: int
) -> None:
    assert counts(parse(network)) == (hosts, switches, cables, 2 * cables)


def test_distances() -> None:
    assert distance(torus([4, 4]), "h0.0", "h2.1") == 3
    assert distance(fat_tree(1024, radix=16), "h0", "h1023") == 6
    assert distance(fat_tree(1024, radix=16), "h0", "h63") == 4
    assert distance(fat_tree(1024, radix=16), "h0", "h7") == 2
    rails = rail_optimised(4, gpus_per_node=4)
    assert distance(rails, "n0g0", "n0g3") == 2
    assert distance(rails, "n0g1", "n3g1") == 2
    assert distance(rails, "n0g0", "n3g1") == 4
    assert distance(rail_only(4, gpus_per_node=4), "n0g0", "n3g1") == 4  # through a GPU
    assert distance(dragonfly(9), "h0", "h71") <= 5


def test_a_dragonfly_joins_every_pair_of_groups_once() -> None:
    network = dragonfly(9)
    pairs = [
        frozenset((link.source.split(".")[0], link.destination.split(".")[0]))
        for link in network.links
        if link.source[0] == link.destination[0] == "r"
    ]
    between = [pair for pair in pairs if len(pair) == 2]
    assert len(between) == 2 * len(set(between)) == 2 * 36
    per_router = [0] * 36
    for link in network.links:
        a, b = link.source, link.destination
        if a[0] == b[0] == "r" and a.split(".")[0] != b.split(".")[0]:
            group, router = a[1:].split(".")
            per_router[int(group) * 4 + int(router)] += 1
    assert set(per_router) == {2}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_connected_and_its_groups_are_endpoints(kind: str) -> None:
    network = parse(f"{kind}:{'4x4' if kind == 'torus' else 9}")
    network.check()
    hosts = set(network.hosts)
    assert network.groups
    for name, group in network.groups.items():
        assert set(group) <= hosts, name


def test_prices() -> None:
    network = leaf_spine(64, hosts_per_leaf=16, oversubscription=2)
    c = network.components()
    assert network.cost({"switches": 100, "optics": 1}) == 12 * 100 + c["optics"]
    assert network.cost({"switches": 100, "switches.spine": 7}) == 4 * 100 + 8 * 7
    for name in ("switch", "switches.laef", "switches.core", "x.y", ""):
        with pytest.raises(TopologyError, match=f"there is a price for '{name}', which leaf_spine"):
            network.cost({name: 1})
    for price in (-1.0, float("nan"), float("inf")):
        with pytest.raises(TopologyError, match="the price of 'switches' is"):
            network.cost({"switches": price})


def test_a_fail_set_is_drawn_between_switches_with_a_seed() -> None:
    network = fat_tree(64, radix=8)
    drawn = network.draw_failures(5, seed=1, tier="core")
    assert drawn == network.draw_failures(5, seed=1, tier="core")
    assert drawn != network.draw_failures(5, seed=2, tier="core")
    assert all("core" in name for name in drawn)
    assert all(len(network.find_links(name)) == 2 for name in drawn)
    with pytest.raises(TopologyError, match="has 128 cables that may fail, 129 were asked for"):
        network.draw_failures(129)


# --- text, YAML, networkx -------------------------------------------------------------------------


def test_text() -> None:
    network = parse("fat_tree:64,radix=8,bandwidth=400Gb/s,latency=500ns")
    assert len(network.hosts) == 64
    assert network.links[0].bandwidth_Bps == 50e9
    assert network.links[0].latency_s == pytest.approx(5e-7)
    assert len(parse("torus:4x4x4").hosts) == 64
    assert parse_rate("50GB/s") == parse_rate("400Gbps") == 50e9
    assert parse_seconds("1.5us") == pytest.approx(1.5e-6)
    assert parse_bytes("64K") == 65536


@pytest.mark.parametrize(
    ("parse_value", "texts"),
    [
        (parse_bytes, ["4\u212a", "1" * 5000, "0", "-1", "1.5K", "\u0663", "", "K", "nan", "1_0"]),
        (parse_rate, ["1e999", "1e300TB/s", "\u0663", "", "-1", "nan", "inf", "1Kb", "x" * 5000]),
        (parse_seconds, ["1e999", "\u0663", "", "-1s", "nan", "inf", "1 m", "1\u00b5s", "1_0"]),
    ],
)
def test_values_that_cannot_be_are_topology_errors_of_one_line(
    parse_value: Callable[[str], float], texts: list[str]
) -> None:
    for text in texts:
        with pytest.raises(TopologyError) as error:
            parse_value(text)
        assert str(error.value).isascii()
        assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("star:5", "unknown topology 'star'; there are ring, torus"),
        ("fat_tree", "write the size of fat_tree first, e.g. fat_tree:64"),
        ("fat_tree:radix=8", "write the size of fat_tree first"),
        ("fat_tree:64,ports=8", "fat_tree has no option 'ports'; it has radix, oversubscription"),
        ("switch:8,bandwidth=fast", "'fast' is not a rate; write 400Gb/s"),
        ("switch:8,latency=1furlong", "'1furlong' is not a time"),
        ("switch:many", "size='many' is not a whole number"),
        ("switch:0", "hosts is 0, but must be at least 1"),
        ("leaf_spine:64,oversubscription=3", "cannot be oversubscribed 3:1"),
        ("dragonfly:99", "4 routers with 2 global links each join 9 groups, not 99"),
        ("nowhere.yaml", "nowhere.yaml: No such file"),
    ],
)
def test_bad_texts_are_explained(text: str, message: str) -> None:
    with pytest.raises(TopologyError, match=message):
        parse(text)


def test_yaml(tmp_path: Path) -> None:
    ready = tmp_path / "ready.yaml"
    ready.write_text("kind: leaf_spine\nsize: 8\nhosts_per_leaf: 4\nbandwidth: 100Gb/s\n")
    assert counts(from_yaml(ready))[:2] == (8, 2 + 4)
    own = tmp_path / "own.yaml"
    own.write_text(
        """
        name: pair
        nodes:
          - {name: a, host: true}
          - {name: b, host: true}
          - {name: s, tier: leaf}
        links:
          - {ends: [a, s], bandwidth: 8Gb/s, latency: 1us}
          - {ends: [b, s], bandwidth: 8Gb/s, latency: 1us, count: 2}
        """
    )
    network = from_yaml(own)
    assert counts(network)[:3] == (2, 1, 3)
    exchange = ScheduleSpec("permute", 2, permutation=((0, 1),))
    assert run(exchange, network, 1000).time_ps == 1_000_000 + 2_000_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "should hold a mapping"),
        ("kind: star\nsize: 3", "unknown kind 'star'"),
        ("kind: ring", "`size` is missing"),
        ("nodes: []", "`links` should be a list"),
        ("nodes: [{host: true}]\nlinks: []", "needs a `name`"),
        (
            "nodes: [{name: a, host: true}]\nlinks: [{ends: [a, b], bandwidth: 1}]",
            "unknown node 'b'",
        ),
        ("nodes: [{name: a, host: true}]\nlinks: [{ends: [a]}]", "needs `ends"),
        ("nodes: [{name: a}, {name: b}]\nlinks: [{ends: [a, b]}]", "needs a `bandwidth`"),
        (
            "nodes: [{name: a}, {name: b}]\nlinks: [{ends: [a, b], bandwidth: 0}]",
            "has a capacity of 0.0 B/s",
        ),
        ("{", "is not YAML"),
    ],
)
def test_bad_yaml_is_explained(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(TopologyError, match=message) as error:
        from_yaml(path)
    assert "bad.yaml" in str(error.value)


def test_networkx() -> None:
    plain = networkx.cycle_graph(5)
    networkx.set_edge_attributes(plain, 1e9, "bandwidth_Bps")
    assert counts(from_networkx(plain))[:3] == (5, 0, 5)
    star = networkx.MultiGraph()
    star.add_nodes_from([("a", {"host": True}), ("b", {"host": True}), ("s", {"tier": "leaf"})])
    for end in ("a", "a", "b"):
        star.add_edge(end, "s", bandwidth_Bps=1e9, latency_s=1e-6)
    assert counts(from_networkx(star))[:3] == (2, 1, 3)
    del star["a"]["s"][0]["bandwidth_Bps"]
    with pytest.raises(TopologyError, match="edge a - s has no bandwidth_Bps"):
        from_networkx(star)
    parts = networkx.disjoint_union(plain, plain)
    with pytest.raises(TopologyError, match="disconnected: '5' cannot be reached from '0'"):
        from_networkx(parts)
    one_way = networkx.DiGraph()
    one_way.add_edge("a", "b", bandwidth_Bps=1e9)
    with pytest.raises(TopologyError, match="disconnected: 'b' cannot reach 'a'"):
        from_networkx(one_way)


# --- what cannot be ----------------------------------------------------------------------------


def test_links_that_cannot_be() -> None:
    network = Topology("bad")
    network.add_host("a")
    network.add_switch("s")
    for arguments, message in (
        (("a", "b", 1e9), "link a - b names unknown node 'b'"),
        (("a", "a", 1e9), "node 'a' is linked to itself"),
        (("a", "s", 0.0), "link a - s has a capacity of 0.0 B/s"),
        (("a", "s", float("nan")), "link a - s has a capacity of nan"),
        (("a", "s", 1e9, -1.0), "link a - s has a latency of -1.0 s"),
    ):
        with pytest.raises(TopologyError, match=message):
            network.connect(*arguments)  # type: ignore[arg-type]
    with pytest.raises(TopologyError, match="node 'a' exists twice"):
        network.add_host("a")


def test_placements() -> None:
    network = switch(4)
    assert network.place(3) == ["h0", "h1", "h2"]
    assert network.place(4, "strided:2") == ["h0", "h2", "h1", "h3"]
    assert sorted(network.place(4, "random:1")) == network.hosts
    assert network.place(4, "random:1") == network.place(4, "random:1")
    assert network.place(2, ["h3", "h1"]) == ["h3", "h1"]
    assert network.place(2, {0: "h2", 1: "h0"}) == ["h2", "h0"]
    assert network.place(2, {"h2": 1, "h0": [0]}) == ["h0", "h2"]


@pytest.mark.parametrize(
    ("placement", "message"),
    [
        (["h0", "h1"], "places 2 ranks, the schedule has 3"),
        (["h0", "h1", "h9"], "rank 2 is placed on unknown node 'h9'"),
        (["h0", "h1", "s0"], "rank 2 is placed on 's0', which is a switch"),
        (["h0", "h1", "h0"], "'h0' holds rank 0 and rank 2"),
        ({"h0": [0, 1], "h1": 2}, "'h0' holds rank 0 and rank 1"),
        ({"h0": 0, "h1": [0, 1]}, "rank 0 is placed twice: on 'h0' and on 'h1'"),
        ({0: "h0", 1: "h1", 3: "h2"}, "rank 2 is placed nowhere"),
        ("spiral", "placement 'spiral': use linear, random:SEED or strided:K"),
    ],
)
def test_placements_that_cannot_be(placement: object, message: str) -> None:
    with pytest.raises(TopologyError, match=message):
        run(ScheduleSpec("all_reduce", 3, "ring"), switch(4), 12, placement=placement)  # type: ignore[arg-type]
    with pytest.raises(TopologyError, match="has 2 endpoints, too few for 3 ranks"):
        run(ScheduleSpec("all_reduce", 3, "ring"), switch(2), 12)


def test_failures_that_cut_the_network_are_named() -> None:
    with pytest.raises(TopologyError, match=r"leads from h3 to h0; down: leaf0"):
        # Rank 3's messages to rank 0 are the first without a path.
        run(
            ScheduleSpec("permute", 4, permutation=((3, 0),)),
            leaf_spine(4, hosts_per_leaf=2),
            12,
            failures=["leaf0"],
        )
    with pytest.raises(TopologyError, match="has no node or link 'leaf7'"):
        run(ScheduleSpec("all_reduce", 2, "ring"), switch(2), 12, failures=["leaf7"])
