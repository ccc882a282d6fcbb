"""The ready-made networks of `jaxcoll.topology`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from jaxcoll.sim.network import Topology, TopologyError, check_links, check_nodes

# The defaults of all kinds, so that one is compared with another at equal NICs: 400 Gb/s, and 1 us
# with the switch behind it; NVLink of 450 GB/s as H100 and H200 have it.
_BANDWIDTH_BPS: Final = 50e9
_LATENCY_S: Final = 1e-6
_NVLINK_BPS: Final = 450e9
_NVLINK_LATENCY_S: Final = 0.5e-6

# More dimensions than any network can have that are longer than 1; NumPy's arrays have up to 32.
_MOST_DIMENSIONS: Final = 24


def _at_least(name: str, value: int, low: int) -> None:
    if value < low:
        raise TopologyError(f"{name} is {value}, but must be at least {low}")


def _bounded(topology: Topology, nodes: int, cables: int) -> None:
    """Refuses what is too large before any of it is made."""
    check_nodes(topology.name, nodes)
    check_links(topology.name, 2 * cables)


def _ports(topology: Topology, radix: int | None, needed: int, what: str) -> None:
    """Refuses a switch with more links than ports, where the ports were said."""
    if radix is not None and needed > radix:
        raise TopologyError(f"{topology.name}: {what} has {needed} links, but {radix} ports")


def _split(radix: int, oversubscription: float) -> int:
    """Ports that lead up."""
    up = radix / (oversubscription + 1) if 0 < oversubscription < math.inf else 0.0
    if not 1 <= round(up) < radix or not math.isclose(up, round(up)):
        raise TopologyError(
            f"{radix} ports cannot be split {oversubscription:g}:1 into links down and up"
        )
    return round(up)


def _halves(topology: Topology) -> None:
    """The cut through the middle of the endpoints."""
    hosts = topology.hosts
    if len(hosts) > 1:
        topology.groups["first half"] = tuple(hosts[: len(hosts) // 2])


def _uplinks(hosts: int, oversubscription: float, what: str) -> int:
    uplinks = hosts / oversubscription if 0 < oversubscription < math.inf else 0.0
    most = 1 << 53  # above, all floats are whole
    if not 1 <= uplinks <= most or not math.isclose(uplinks, round(uplinks)):
        raise TopologyError(
            f"{what} with {hosts} links down cannot be oversubscribed {oversubscription:g}:1; "
            f"the number of links up must be whole, and at most {most}"
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
    """Hosts in a ring, each linked to the next; traffic passes through hosts.

    Raises:
      TopologyError: a size or an option out of range, or too many nodes or links.
    """
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

    Raises:
      TopologyError: no dimension or more than 24, a size or an option out of range, or too many
        nodes or links.
    """
    if not 1 <= len(dimensions) <= _MOST_DIMENSIONS:
        raise TopologyError(
            f"a torus has {len(dimensions)} dimensions, but must have from 1 to {_MOST_DIMENSIONS}"
        )
    for length in dimensions:
        _at_least("a dimension of a torus", length, 1)
    topology = Topology(
        name or f"torus({'x'.join(map(str, dimensions))})", extents=tuple(dimensions)
    )
    count = math.prod(dimensions)
    _bounded(topology, count, count * len(dimensions))
    cells = list(itertools.product(*map(range, dimensions)))
    labels = ["h" + ".".join(map(str, cell)) for cell in cells]
    at = topology.add_hosts(labels, forwards=True).reshape(tuple(dimensions))
    # By cell, then by axis. A cable of a dimension of length 2 is its first cell's.
    following = [np.roll(at, -1, axis) for axis in range(len(dimensions))]
    owned = [
        np.broadcast_to(
            np.arange(length).reshape([-1 if a == axis else 1 for a in range(at.ndim)])
            < (0 if length == 1 else 1 if length == 2 else length),
            at.shape,
        )
        for axis, length in enumerate(dimensions)
    ]
    keep = np.stack(owned, axis=-1)
    here = np.broadcast_to(at[..., None], keep.shape)
    topology.connect_all(here[keep], np.stack(following, -1)[keep], bandwidth_Bps, latency_s)
    for axis, length in enumerate(dimensions):
        if length > 1:
            half = tuple(
                label for label, cell in zip(labels, cells, strict=True) if cell[axis] < length // 2
            )
            topology.groups[f"half of dimension {axis}"] = half
    return topology


def switch(
    hosts: int,
    *,
    radix: int | None = None,
    bandwidth_Bps: float = _BANDWIDTH_BPS,
    latency_s: float = _LATENCY_S / 2,
) -> Topology:
    """Hosts on one switch; every link has `latency_s`, so two hosts are twice that apart.

    It has `radix` ports, by default as many as it needs.

    Raises:
      TopologyError: a size or an option out of range, a switch with more links than ports, or
        too many nodes or links.
    """
    _at_least("hosts", hosts, 1)
    topology = Topology(f"switch({hosts})")
    _bounded(topology, hosts + 1, hosts)
    _ports(topology, radix, hosts, "the switch")
    hub = topology.add_switches(["s0"])
    ends = topology.add_hosts(f"h{h}" for h in range(hosts))
    topology.connect_all(ends, hub, bandwidth_Bps, latency_s)
    _halves(topology)
    return topology


def leaf_spine(
    hosts: int,
    *,
    hosts_per_leaf: int = 16,
    oversubscription: float = 1.0,
    spines: int | None = None,
    radix: int | None = None,
    bandwidth_Bps: float = _BANDWIDTH_BPS,
    latency_s: float = _LATENCY_S,
) -> Topology:
    """Two tiers. A leaf has `hosts_per_leaf` / `oversubscription` links up, of the hosts' speed.

    They go to `spines` spines in turn; by default each to one of its own. Switches have `radix`
    ports, by default as many as they need.

    Raises:
      TopologyError: a size or an option out of range, links up that are not a whole number or
        cannot be spread evenly, a switch with more links than ports, or too many nodes or
        links.
    """
    _at_least("hosts", hosts, 1)
    _at_least("hosts_per_leaf", hosts_per_leaf, 1)
    uplinks = _uplinks(hosts_per_leaf, oversubscription, "a leaf")
    spines = uplinks if spines is None else spines
    if spines < 1 or uplinks % spines:
        raise TopologyError(f"{uplinks} links up cannot be spread evenly over {spines} spines")
    topology = Topology(f"leaf_spine({hosts}, {oversubscription:g}:1)")
    leaves = -(-hosts // hosts_per_leaf)
    _bounded(topology, hosts + leaves + spines, hosts + leaves * uplinks)
    _ports(topology, radix, hosts_per_leaf + uplinks, "a leaf")
    _ports(topology, radix, leaves * (uplinks // spines), "a spine")
    above = topology.add_switches((f"spine{s}" for s in range(spines)), "spine")
    for number in range(leaves):
        topology.add_switch(f"leaf{number}", "leaf")
        first = number * hosts_per_leaf
        members = [f"h{h}" for h in range(first, min(hosts, first + hosts_per_leaf))]
        topology.add_hosts(members)
        topology.groups[f"leaf{number}"] = tuple(members)
    # By leaf: the cables of its hosts, of which the last leaf may have fewer, then those up.
    most = min(hosts, hosts_per_leaf)
    leaf = (spines + np.arange(leaves) * (1 + most))[:, None]
    below = np.hstack([leaf + 1 + np.arange(most), np.repeat(leaf, uplinks, axis=1)])
    to_spine = np.broadcast_to(above[np.arange(uplinks) % spines], (leaves, uplinks))
    over = np.hstack([np.repeat(leaf, most, axis=1), to_spine])
    keep = np.ones(below.shape, bool)
    keep[-1, hosts - (leaves - 1) * most : most] = False
    topology.connect_all(below[keep], over[keep], bandwidth_Bps, latency_s)
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

    Raises:
      TopologyError: a size or an option out of range, ports that cannot be split in this
        proportion, more hosts than switches of `radix` ports reach, or too many nodes or links.
    """
    _at_least("hosts", hosts, 1)
    if radix < 2 or radix % 2:
        raise TopologyError(f"radix is {radix}, but must be even and positive")
    up = _split(radix, oversubscription)
    down, half = radix - up, radix // 2
    pods = -(-hosts // (down * half))
    if pods > radix:
        raise TopologyError(
            f"a three-tier tree of {radix}-port switches reaches {down * half * radix} hosts at "
            f"{oversubscription:g}:1, {hosts} were asked for"
        )
    shared = half if cores is None else _shared(half, radix, pods, cores, up, "cores")
    topology = Topology(f"fat_tree({hosts}, radix {radix}, {oversubscription:g}:1)")
    tors = -(-hosts // down)
    nodes = hosts + tors + up * (pods + shared)
    _bounded(topology, nodes, hosts + tors * up + pods * up * half)
    top = topology.add_switches(
        (f"core{a}.{c}" for a in range(up) for c in range(shared)), "core"
    ).reshape(up, shared)
    for pod in range(pods):
        aggs = topology.add_switches((f"agg{pod}.{a}" for a in range(up)), "agg")
        topology.connect_all(
            np.repeat(aggs, half),
            top[:, np.arange(half) % shared].ravel(),
            bandwidth_Bps,
            latency_s,
        )
        first_host = pod * half * down
        last_host = min(hosts, first_host + half * down)
        for t in range(-(-(last_host - first_host) // down)):
            name = f"tor{pod}.{t}"
            tor = topology.add_switches([name], "tor")
            topology.connect_all(np.repeat(tor, up), aggs, bandwidth_Bps, latency_s)
            members = range(first_host + t * down, min(last_host, first_host + (t + 1) * down))
            ends = topology.add_hosts(f"h{h}" for h in members)
            topology.connect_all(ends, tor, bandwidth_Bps, latency_s)
            topology.groups[name] = tuple(f"h{h}" for h in members)
        topology.groups[f"pod{pod}"] = tuple(f"h{h}" for h in range(first_host, last_host))
    _halves(topology)
    return topology


def rail_optimised(
    nodes: int,
    *,
    gpus_per_node: int = 8,
    nvlink_Bps: float = _NVLINK_BPS,
    nvlink_latency_s: float = _NVLINK_LATENCY_S,
    bandwidth_Bps: float = _BANDWIDTH_BPS,
    latency_s: float = _LATENCY_S,
    nodes_per_leaf: int | None = None,
    oversubscription: float = 1.0,
    radix: int | None = None,
) -> Topology:
    """GPU servers: GPUs on one NVLink switch, one NIC per GPU, the g-th of all nodes on one rail.

    A rail has a leaf per `nodes_per_leaf` nodes (by default one leaf); spines join all leaves, so
    GPUs of different rails reach each other through the network as well. Defaults: 450 GB/s of
    NVLink and a 400 Gb/s NIC per GPU. Endpoints are the GPUs, ``n3g5``, node after node. Leaves and
    spines have `radix` ports, by default as many as they need.

    Raises:
      TopologyError: a size or an option out of range, links up that are not a whole number, a
        switch with more links than ports, or too many nodes or links.
    """
    _at_least("nodes", nodes, 1)
    nodes_per_leaf = nodes if nodes_per_leaf is None else nodes_per_leaf
    _at_least("nodes_per_leaf", nodes_per_leaf, 1)
    return _rails(
        "rail_optimised",
        nodes,
        gpus_per_node,
        (nvlink_Bps, nvlink_latency_s),
        (bandwidth_Bps, latency_s),
        nodes_per_leaf,
        _uplinks(nodes_per_leaf, oversubscription, "a leaf"),
        radix,
    )


def rail_only(
    nodes: int,
    *,
    gpus_per_node: int = 8,
    nvlink_Bps: float = _NVLINK_BPS,
    nvlink_latency_s: float = _NVLINK_LATENCY_S,
    bandwidth_Bps: float = _BANDWIDTH_BPS,
    latency_s: float = _LATENCY_S,
    radix: int | None = None,
) -> Topology:
    """As `rail_optimised`, with one switch per rail and none between rails (Wang et al., 2024).

    Traffic between rails passes through a GPU of the same node: GPUs forward.

    Raises:
      TopologyError: a size or an option out of range, a switch with more links than ports, or
        too many nodes or links.
    """
    return _rails(
        "rail_only",
        nodes,
        gpus_per_node,
        (nvlink_Bps, nvlink_latency_s),
        (bandwidth_Bps, latency_s),
        nodes,
        0,
        radix,
    )


def _rails(
    kind: str,
    nodes: int,
    gpus: int,
    nvlink: tuple[float, float],
    nic: tuple[float, float],
    nodes_per_leaf: int,
    uplinks: int,
    radix: int | None,
) -> Topology:
    _at_least("nodes", nodes, 1)
    _at_least("gpus_per_node", gpus, 1)
    topology = Topology(f"{kind}({nodes} x {gpus})", node_size=gpus)
    leaves = -(-nodes // nodes_per_leaf)
    switches = uplinks + gpus * leaves
    cables = 2 * nodes * gpus + gpus * leaves * uplinks
    _bounded(topology, nodes * (gpus + 1) + switches, cables)
    _ports(topology, radix, min(nodes, nodes_per_leaf) + uplinks, "a leaf")
    if uplinks:
        _ports(topology, radix, gpus * leaves, "a spine")
    spines = topology.add_switches((f"spine{s}" for s in range(uplinks)), "spine")
    rails = topology.add_switches(
        (f"rail{rail}.{leaf}" for rail in range(gpus) for leaf in range(leaves)), "leaf"
    )
    if uplinks:
        topology.connect_all(np.repeat(rails, uplinks), np.tile(spines, len(rails)), *nic)
    first = len(topology.nodes)
    for n in range(nodes):
        members = tuple(f"n{n}g{g}" for g in range(gpus))
        topology.add_switch(f"nvs{n}", "nvswitch")
        topology.add_hosts(members, forwards=uplinks == 0)
        topology.groups[f"node{n}"] = members
    # By node, GPU and cable: to the node's switch, to the rail's leaf.
    inside = (first + np.arange(nodes) * (gpus + 1))[:, None]
    ends = inside + 1 + np.arange(gpus)
    leaf = rails.reshape(gpus, leaves)[:, np.arange(nodes) // nodes_per_leaf].T
    topology.connect_all(
        np.repeat(ends.ravel(), 2),
        np.stack([np.broadcast_to(inside, ends.shape), leaf], axis=-1).ravel(),
        np.tile([nvlink[0], nic[0]], ends.size),
        np.tile([nvlink[1], nic[1]], ends.size),
        medium=["nvlink", "optical"],
    )
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

    Raises:
      TopologyError: a size or an option out of range, more groups than the global links join,
        or too many nodes or links.
    """
    a, h = routers_per_group, global_links_per_router
    _at_least("groups", groups, 1)
    _at_least("routers_per_group", a, 1)
    _at_least("hosts_per_router", hosts_per_router, 1)
    _at_least("global_links_per_router", h, 0)
    if groups > a * h + 1:
        raise TopologyError(
            f"{a} routers with {h} global links each join {a * h + 1} groups, not {groups}"
        )
    topology = Topology(f"dragonfly({groups} x {a} x {hosts_per_router})")
    pairs = (a * h) // max(1, groups - 1) * (groups * (groups - 1) // 2)
    cables = groups * (a * hosts_per_router + a * (a - 1) // 2) + pairs
    _bounded(topology, groups * a * (1 + hosts_per_router), cables)
    far = latency_s if global_latency_s is None else global_latency_s
    per_router, per_group = 1 + hosts_per_router, a * (1 + hosts_per_router)
    number = itertools.count()
    for g in range(groups):
        members: list[str] = []
        for r in range(a):
            topology.add_switch(f"r{g}.{r}", "router")
            members += (topology.add_host(f"h{next(number)}") for _ in range(hosts_per_router))
        topology.groups[f"group{g}"] = tuple(members)
    # Within a group, router after router: its hosts, then the routers before it. A node's number
    # is that of its group's first, which is a router, and what is here.
    routers = np.arange(a) * per_router
    hosts = 1 + np.arange(hosts_per_router)
    here = np.concatenate([np.append(x + hosts, np.full(r, x)) for r, x in enumerate(routers)])
    there = np.concatenate(
        [np.append(np.full(len(hosts), x), routers[:r]) for r, x in enumerate(routers)]
    )
    first = (np.arange(groups) * per_group)[:, None]
    topology.connect_all(
        (first + here).ravel(), (first + there).ravel(), bandwidth_Bps, latency_s, medium="copper"
    )
    # Every group deals its links to the other groups in turn, as often as all of them get one.
    turns = np.arange((a * h) // (groups - 1) if groups > 1 else 0)[:, None] * (groups - 1)
    one, other = np.triu_indices(groups, 1)

    def router(own: NDArray[np.intp], to: NDArray[np.intp]) -> NDArray[np.intp]:
        """By turn and pair, the router of group `own` whose link leads to group `to`."""
        place = (to - own - 1) % groups  # of `to` among all groups but `own`
        found: NDArray[np.intp] = own * per_group + (turns + place) // h * per_router
        return found.ravel()

    if len(turns):
        topology.connect_all(router(one, other), router(other, one), bandwidth_Bps, far)
    _halves(topology)
    return topology


def multi_plane(
    hosts: int,
    *,
    planes: int = 8,
    radix: int = 64,
    oversubscription: float = 1.0,
    spines: int | None = None,
    bandwidth_Bps: float | None = None,
    latency_s: float = _LATENCY_S,
) -> Topology:
    """`planes` separate two-tier networks; every host has one link of `bandwidth_Bps` into each.

    By default the planes share a NIC of 400 Gb/s, which other kinds have on one link.

    Leaves of `radix` ports split them oversubscription : 1 into hosts and links up, one to each
    spine, so the reach is radix * radix * x / (x + 1) hosts; or, where there are not `radix` leaves
    to fill those, to `spines` per plane, each by several parallel links.

    Raises:
      TopologyError: a size or an option out of range, ports that cannot be split in this
        proportion, more hosts than switches of `radix` ports reach, or too many nodes or links.
    """
    _at_least("hosts", hosts, 1)
    _at_least("planes", planes, 1)
    uplinks = _split(radix, oversubscription)
    down = radix - uplinks
    leaves = -(-hosts // down)
    if leaves > radix:
        raise TopologyError(
            f"two tiers of {radix}-port switches reach {down * radix} hosts at "
            f"{oversubscription:g}:1, {hosts} were asked for"
        )
    spines = uplinks if spines is None else _shared(uplinks, radix, leaves, spines, 1, "spines")
    rate = _BANDWIDTH_BPS / planes if bandwidth_Bps is None else bandwidth_Bps
    topology = Topology(f"multi_plane({hosts}, {planes} planes, radix {radix})")
    nodes = hosts + planes * (spines + leaves)
    _bounded(topology, nodes, planes * (hosts + leaves * uplinks))
    ends = topology.add_hosts(f"h{h}" for h in range(hosts))
    for p in range(planes):
        above = topology.add_switches((f"p{p}.spine{s}" for s in range(spines)), "spine")
        below = topology.add_switches((f"p{p}.leaf{leaf}" for leaf in range(leaves)), "leaf")
        up = above[np.arange(uplinks) % spines]
        for leaf in range(leaves):
            mine = ends[leaf * down : (leaf + 1) * down]
            here = below[leaf]
            a = np.concatenate([np.full(uplinks, here), mine])
            b = np.concatenate([up, np.full(len(mine), here)])
            topology.connect_all(a, b, rate, latency_s)
    for leaf in range(leaves):
        members = tuple(f"h{h}" for h in range(leaf * down, min(hosts, (leaf + 1) * down)))
        topology.groups[f"leaf{leaf}"] = members
    _halves(topology)
    return topology
