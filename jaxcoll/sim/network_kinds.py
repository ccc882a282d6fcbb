"""The ready-made networks of `jaxcoll.topology`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from jaxcoll.sim.network import Topology, TopologyError

# A link's default bandwidth and latency: 100 Gb/s, and 1 us with the switch behind it, as in the
# packet-level runs that the simulator is compared with.
_BANDWIDTH_BPS = 12.5e9
_LATENCY_S = 1e-6


def _at_least(name: str, value: int, low: int) -> None:
    if value < low:
        raise TopologyError(f"{name} is {value}, but must be at least {low}")


def _halves(topology: Topology) -> None:
    """The cut through the middle of the endpoints."""
    hosts = topology.hosts
    if len(hosts) > 1:
        topology.groups["first half"] = tuple(hosts[: len(hosts) // 2])


def _uplinks(hosts: int, oversubscription: float, what: str) -> int:
    uplinks = hosts / oversubscription
    if oversubscription <= 0 or uplinks < 1 or not math.isclose(uplinks, round(uplinks)):
        raise TopologyError(
            f"{what} with {hosts} links down cannot be oversubscribed {oversubscription:g}:1; "
            "the number of links up must be whole"
        )
    return round(uplinks)


def _shared(uplinks: int, radix: int, below: int, count: int, parts: int, what: str) -> int:
    """The number of switches of one part, where `count` above are dealt to `parts` parts, if all
    fits: each of the `below` switches of a part has `uplinks` links to share evenly among them."""
    shared = count // parts
    if shared < 1 or count % parts or uplinks % shared:
        raise TopologyError(
            f"{count} {what} in {parts} equal parts cannot share {uplinks} links from each switch "
            "below evenly"
        )
    if below * (uplinks // shared) > radix:
        raise TopologyError(
            f"{count} {what} of {radix} ports are too few: {below * uplinks * parts} links lead up"
        )
    return shared


def ring(
    hosts: int, *, bandwidth_Bps: float = _BANDWIDTH_BPS, latency_s: float = _LATENCY_S
) -> Topology:
    """Hosts in a ring, each linked to the next; traffic passes through hosts."""
    return torus([hosts], bandwidth_Bps=bandwidth_Bps, latency_s=latency_s, name=f"ring({hosts})")


def torus(
    dimensions: Sequence[int],
    *,
    bandwidth_Bps: float = _BANDWIDTH_BPS,
    latency_s: float = _LATENCY_S,
    name: str | None = None,
) -> Topology:
    """A grid of hosts that wraps around, with one link per host, dimension and direction.

    Hosts are named by their coordinates, ``h2.0``, and numbered with the last one fastest. A
    dimension of length 2 has one cable, of length 1 none.
    """
    for length in dimensions:
        _at_least("a dimension of a torus", length, 1)
    topology = Topology(
        name or f"torus({'x'.join(map(str, dimensions))})", extents=tuple(dimensions)
    )
    cells = list(itertools.product(*map(range, dimensions)))
    label = {cell: "h" + ".".join(map(str, cell)) for cell in cells}
    for cell in cells:
        topology.add_host(label[cell], forwards=True)
    for cell in cells:
        for axis, length in enumerate(dimensions):
            if length == 1 or (length == 2 and cell[axis] == 1):
                continue
            next_cell = (*cell[:axis], (cell[axis] + 1) % length, *cell[axis + 1 :])
            topology.connect(label[cell], label[next_cell], bandwidth_Bps, latency_s)
    for axis, length in enumerate(dimensions):
        if length > 1:
            half = tuple(label[cell] for cell in cells if cell[axis] < length // 2)
            topology.groups[f"half of dimension {axis}"] = half
    return topology


def switch(
    hosts: int, *, bandwidth_Bps: float = _BANDWIDTH_BPS, latency_s: float = _LATENCY_S / 2
) -> Topology:
    """Hosts on one switch; every link has `latency_s`, so two hosts are twice that apart."""
    _at_least("hosts", hosts, 1)
    topology = Topology(f"switch({hosts})")
    topology.add_switch("s0")
    for h in range(hosts):
        topology.connect(topology.add_host(f"h{h}"), "s0", bandwidth_Bps, latency_s)
    _halves(topology)
    return topology


def leaf_spine(
    hosts: int,
    *,
    hosts_per_leaf: int = 16,
    oversubscription: float = 1.0,
    spines: int | None = None,
    bandwidth_Bps: float = _BANDWIDTH_BPS,
    latency_s: float = _LATENCY_S,
) -> Topology:
    """Two tiers. A leaf has `hosts_per_leaf` / `oversubscription` links up, of the hosts' speed.

    They go to `spines` spines in turn; by default each to one of its own.
    """
    _at_least("hosts", hosts, 1)
    _at_least("hosts_per_leaf", hosts_per_leaf, 1)
    uplinks = _uplinks(hosts_per_leaf, oversubscription, "a leaf")
    spines = uplinks if spines is None else spines
    if spines < 1 or uplinks % spines:
        raise TopologyError(f"{uplinks} links up cannot be spread evenly over {spines} spines")
    topology = Topology(f"leaf_spine({hosts}, {oversubscription:g}:1)")
    for s in range(spines):
        topology.add_switch(f"spine{s}", "spine")
    for leaf in range(-(-hosts // hosts_per_leaf)):
        name = topology.add_switch(f"leaf{leaf}", "leaf")
        members = range(leaf * hosts_per_leaf, min(hosts, (leaf + 1) * hosts_per_leaf))
        for h in members:
            topology.connect(topology.add_host(f"h{h}"), name, bandwidth_Bps, latency_s)
        for u in range(uplinks):
            topology.connect(name, f"spine{u % spines}", bandwidth_Bps, latency_s)
        topology.groups[name] = tuple(f"h{h}" for h in members)
    _halves(topology)
    return topology


def fat_tree(
    hosts: int,
    *,
    radix: int = 16,
    oversubscription: float = 1.0,
    cores: int | None = None,
    bandwidth_Bps: float = _BANDWIDTH_BPS,
    latency_s: float = _LATENCY_S,
) -> Topology:
    """Three tiers of switches with `radix` ports, all links of one speed (Al-Fares et al., 2008).

    A rack switch ("tor") has radix * x / (x + 1) links down and radix / (x + 1) up, with x the
    oversubscription, one to each aggregation switch of its pod; those have radix / 2 each way. The
    i-th aggregation switches of all pods share radix / 2 cores; or, where there are not `radix`
    pods to fill those, a share of `cores`, each by several parallel links.
    """
    _at_least("hosts", hosts, 1)
    if radix < 2 or radix % 2:
        raise TopologyError(f"radix is {radix}, but must be even and positive")
    up = radix / (oversubscription + 1)
    if oversubscription <= 0 or up < 1 or not math.isclose(up, round(up)):
        raise TopologyError(
            f"{radix} ports cannot be split {oversubscription:g}:1 into links down and up"
        )
    up = round(up)
    down, half = radix - up, radix // 2
    pods = -(-hosts // (down * half))
    if pods > radix:
        raise TopologyError(
            f"a three-tier tree of {radix}-port switches reaches {down * half * radix} hosts at "
            f"{oversubscription:g}:1, {hosts} were asked for"
        )
    shared = half if cores is None else _shared(half, radix, pods, cores, up, "cores")
    topology = Topology(f"fat_tree({hosts}, radix {radix}, {oversubscription:g}:1)")
    for a in range(up):
        for c in range(shared):
            topology.add_switch(f"core{a}.{c}", "core")
    for pod in range(pods):
        for a in range(up):
            agg = topology.add_switch(f"agg{pod}.{a}", "agg")
            for c in range(half):
                topology.connect(agg, f"core{a}.{c % shared}", bandwidth_Bps, latency_s)
        first_host = pod * half * down
        last_host = min(hosts, first_host + half * down)
        for t in range(-(-(last_host - first_host) // down)):
            tor = topology.add_switch(f"tor{pod}.{t}", "tor")
            for a in range(up):
                topology.connect(tor, f"agg{pod}.{a}", bandwidth_Bps, latency_s)
            members = range(first_host + t * down, min(last_host, first_host + (t + 1) * down))
            for h in members:
                topology.connect(topology.add_host(f"h{h}"), tor, bandwidth_Bps, latency_s)
            topology.groups[tor] = tuple(f"h{h}" for h in members)
        topology.groups[f"pod{pod}"] = tuple(f"h{h}" for h in range(first_host, last_host))
    _halves(topology)
    return topology


def rail_optimised(
    nodes: int,
    *,
    gpus_per_node: int = 8,
    nvlink_Bps: float = 450e9,
    nvlink_latency_s: float = 0.5e-6,
    bandwidth_Bps: float = 50e9,
    latency_s: float = _LATENCY_S,
    nodes_per_leaf: int | None = None,
    oversubscription: float = 1.0,
) -> Topology:
    """GPU servers: GPUs on one NVLink switch, one NIC per GPU, the g-th of all nodes on one rail.

    A rail has a leaf per `nodes_per_leaf` nodes (by default one leaf); spines join all leaves, so
    GPUs of different rails reach each other through the network as well. Defaults: 450 GB/s of
    NVLink and a 400 Gb/s NIC per GPU. Endpoints are the GPUs, ``n3g5``, node after node.
    """
    return _rails(
        "rail_optimised",
        nodes,
        gpus_per_node,
        (nvlink_Bps, nvlink_latency_s),
        (bandwidth_Bps, latency_s),
        nodes_per_leaf or nodes,
        _uplinks(nodes_per_leaf or nodes, oversubscription, "a leaf"),
    )


def rail_only(
    nodes: int,
    *,
    gpus_per_node: int = 8,
    nvlink_Bps: float = 450e9,
    nvlink_latency_s: float = 0.5e-6,
    bandwidth_Bps: float = 50e9,
    latency_s: float = _LATENCY_S,
) -> Topology:
    """As `rail_optimised`, with one switch per rail and none between rails (Wang et al., 2024).

    Traffic between rails passes through a GPU of the same node: GPUs forward.
    """
    return _rails(
        "rail_only",
        nodes,
        gpus_per_node,
        (nvlink_Bps, nvlink_latency_s),
        (bandwidth_Bps, latency_s),
        nodes,
        0,
    )


def _rails(
    kind: str,
    nodes: int,
    gpus: int,
    nvlink: tuple[float, float],
    nic: tuple[float, float],
    nodes_per_leaf: int,
    uplinks: int,
) -> Topology:
    _at_least("nodes", nodes, 1)
    _at_least("gpus_per_node", gpus, 1)
    _at_least("nodes_per_leaf", nodes_per_leaf, 1)
    topology = Topology(f"{kind}({nodes} x {gpus})", node_size=gpus)
    for s in range(uplinks):
        topology.add_switch(f"spine{s}", "spine")
    for rail in range(gpus):
        for leaf in range(-(-nodes // nodes_per_leaf)):
            name = topology.add_switch(f"rail{rail}.{leaf}", "leaf")
            for s in range(uplinks):
                topology.connect(name, f"spine{s}", *nic)
    for n in range(nodes):
        inside = topology.add_switch(f"nvs{n}", "nvswitch")
        for g in range(gpus):
            gpu = topology.add_host(f"n{n}g{g}", forwards=uplinks == 0)
            topology.connect(gpu, inside, *nvlink, medium="nvlink")
            topology.connect(gpu, f"rail{g}.{n // nodes_per_leaf}", *nic)
        topology.groups[f"node{n}"] = tuple(f"n{n}g{g}" for g in range(gpus))
    _halves(topology)
    return topology


def dragonfly(
    groups: int,
    *,
    routers_per_group: int = 4,
    hosts_per_router: int = 2,
    global_links_per_router: int = 2,
    bandwidth_Bps: float = _BANDWIDTH_BPS,
    latency_s: float = _LATENCY_S,
    global_latency_s: float | None = None,
) -> Topology:
    """Groups of fully meshed routers, and links between all pairs of groups (Kim et al., 2008).

    Routes are minimal: at most one link between groups.
    """
    a, h = routers_per_group, global_links_per_router
    _at_least("groups", groups, 1)
    _at_least("routers_per_group", a, 1)
    _at_least("hosts_per_router", hosts_per_router, 1)
    if groups > a * h + 1:
        raise TopologyError(
            f"{a} routers with {h} global links each join {a * h + 1} groups, not {groups}"
        )
    topology = Topology(f"dragonfly({groups} x {a} x {hosts_per_router})")
    far = latency_s if global_latency_s is None else global_latency_s
    number = itertools.count()
    for g in range(groups):
        members: list[str] = []
        for r in range(a):
            router = topology.add_switch(f"r{g}.{r}", "router")
            for _ in range(hosts_per_router):
                host = topology.add_host(f"h{next(number)}")
                members.append(host)
                topology.connect(host, router, bandwidth_Bps, latency_s, medium="copper")
            for other in range(r):
                topology.connect(router, f"r{g}.{other}", bandwidth_Bps, latency_s, medium="copper")
        topology.groups[f"group{g}"] = tuple(members)
    # Every group deals its links to the other groups in turn, as often as all of them get one.
    for turn in range((a * h) // (groups - 1) if groups > 1 else 0):
        for g, other in itertools.combinations(range(groups), 2):
            ends = []
            for here, there in ((g, other), (other, g)):
                # The other group's index among all groups except `here`.
                place = (there - here - 1) % groups
                ends.append(f"r{here}.{(turn * (groups - 1) + place) // h}")
            topology.connect(ends[0], ends[1], bandwidth_Bps, far)
    _halves(topology)
    return topology


def multi_plane(
    hosts: int,
    *,
    planes: int = 8,
    radix: int = 64,
    oversubscription: float = 1.0,
    spines: int | None = None,
    bandwidth_Bps: float = _BANDWIDTH_BPS,
    latency_s: float = _LATENCY_S,
) -> Topology:
    """`planes` separate two-tier networks; every host has one link of `bandwidth_Bps` into each.

    Leaves of `radix` ports split them oversubscription : 1 into hosts and links up, one to each
    spine, so the reach is radix * radix * x / (x + 1) hosts; or, where there are not `radix` leaves
    to fill those, to `spines` per plane, each by several parallel links.
    """
    _at_least("hosts", hosts, 1)
    _at_least("planes", planes, 1)
    up = radix / (oversubscription + 1)
    if oversubscription <= 0 or up < 1 or not math.isclose(up, round(up)):
        raise TopologyError(
            f"{radix} ports cannot be split {oversubscription:g}:1 into links down and up"
        )
    uplinks = round(up)
    down = radix - uplinks
    leaves = -(-hosts // down)
    if leaves > radix:
        raise TopologyError(
            f"two tiers of {radix}-port switches reach {down * radix} hosts at "
            f"{oversubscription:g}:1, {hosts} were asked for"
        )
    spines = uplinks if spines is None else _shared(uplinks, radix, leaves, spines, 1, "spines")
    topology = Topology(f"multi_plane({hosts}, {planes} planes, radix {radix})")
    for h in range(hosts):
        topology.add_host(f"h{h}")
    for p in range(planes):
        for s in range(spines):
            topology.add_switch(f"p{p}.spine{s}", "spine")
        for leaf in range(leaves):
            name = topology.add_switch(f"p{p}.leaf{leaf}", "leaf")
            for u in range(uplinks):
                topology.connect(name, f"p{p}.spine{u % spines}", bandwidth_Bps, latency_s)
            for h in range(leaf * down, min(hosts, (leaf + 1) * down)):
                topology.connect(f"h{h}", name, bandwidth_Bps, latency_s)
    for leaf in range(leaves):
        members = tuple(f"h{h}" for h in range(leaf * down, min(hosts, (leaf + 1) * down)))
        topology.groups[f"leaf{leaf}"] = members
    _halves(topology)
    return topology
