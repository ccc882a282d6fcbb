"""Modelled networks: nodes, cables, what they cost, and where ranks sit. `jaxcoll.topology` is the
public face."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from jaxcoll._errors import CutError as CutError
from jaxcoll._errors import TopologyError as TopologyError
from jaxcoll._native import native

# Rank -> endpoint: by position, by rank, or by endpoint.
Placement: TypeAlias = "Sequence[str] | Mapping[int, str] | Mapping[str, int | Sequence[int]]"


@dataclass(frozen=True, slots=True)
class Node:
    """An endpoint, on which a rank may be placed, or a switch.

    Attributes:
      name: unique.
      tier: "host" for endpoints; for switches their name in component counts: "leaf", "spine", ...
      forwards: whether it forwards traffic of others. Switches do; so do the hosts of a torus.
    """

    name: str
    tier: str
    forwards: bool

    @property
    def is_host(self) -> bool:
        return self.tier == "host"


@dataclass(frozen=True, slots=True)
class Link:
    """One direction of a cable.

    Attributes:
      source: name of a node.
      destination: name of a node.
      bandwidth_Bps: bytes per second.
      latency_s: seconds from end to end, with the switch behind it.
      number: tells parallel links apart, from 0.
      cable: index of the cable; both its directions have the same.
    """

    source: str
    destination: str
    bandwidth_Bps: float
    latency_s: float
    number: int = 0
    cable: int = 0

    @property
    def name(self) -> str:
        parallel = f"#{self.number}" if self.number else ""
        return f"{self.source}->{self.destination}{parallel}"


@dataclass(eq=False)
class Topology:
    """A network under construction, or complete: `add_host`, `add_switch`, `connect`.

    Attributes:
      name: to print.
      groups: named sets of endpoints whose cuts are worth a bound: racks, pods, nodes, halves.
      node_size: endpoints per server, where they come in servers; else 0.
      extents: of a torus, the last one varying fastest; else ().
    """

    name: str
    nodes: dict[str, Node] = field(default_factory=dict)
    links: list[Link] = field(default_factory=list)
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    node_size: int = 0
    extents: tuple[int, ...] = ()
    _media: list[str] = field(default_factory=list)  # by cable
    _parallel: Counter[tuple[str, str]] = field(default_factory=Counter)
    memo: dict[Any, Any] = field(default_factory=dict)  # what others computed about it

    def add_host(self, name: str, *, forwards: bool = False) -> str:
        """Adds an endpoint and returns its name."""
        return self._add(Node(name, "host", forwards))

    def add_switch(self, name: str, tier: str = "switch") -> str:
        """Adds a switch and returns its name."""
        return self._add(Node(name, tier, True))

    def connect(
        self,
        a: str,
        b: str,
        bandwidth_Bps: float,
        latency_s: float = 0.0,
        *,
        medium: str = "optical",
        both_ways: bool = True,
    ) -> None:
        """Adds a cable from a to b; it carries `bandwidth_Bps` each way.

        Args:
          a: a node's name.
          b: another's.
          bandwidth_Bps: bytes per second, above 0.
          latency_s: seconds from end to end.
          medium: "optical" cables count two optics, others ("copper", "nvlink") none.
          both_ways: False: from a to b only.

        Raises:
          TopologyError: unknown node, a loop, no capacity.
        """
        for end in (a, b):
            if end not in self.nodes:
                raise TopologyError(f"{self.name}: link {a} - {b} names unknown node {end!r}")
        if a == b:
            raise TopologyError(f"{self.name}: node {a!r} is linked to itself")
        if not (bandwidth_Bps > 0 and math.isfinite(bandwidth_Bps)):
            raise TopologyError(
                f"{self.name}: link {a} - {b} has a capacity of {bandwidth_Bps} B/s; "
                "it must be above 0 (a broken link is a failure, not a link)"
            )
        if not (latency_s >= 0 and math.isfinite(latency_s)):
            raise TopologyError(f"{self.name}: link {a} - {b} has a latency of {latency_s} s")
        cable = len(self._media)
        self._media.append(medium)
        for source, destination in ((a, b), (b, a)) if both_ways else ((a, b),):
            number = self._parallel[source, destination]
            self._parallel[source, destination] += 1
            self.links.append(
                Link(source, destination, float(bandwidth_Bps), float(latency_s), number, cable)
            )

    def _add(self, node: Node) -> str:
        if node.name in self.nodes:
            raise TopologyError(f"{self.name}: node {node.name!r} exists twice")
        self.nodes[node.name] = node
        return node.name

    # --- what is there ---

    @property
    def hosts(self) -> list[str]:
        """Endpoints, in the order in which they were added."""
        return [node.name for node in self.nodes.values() if node.is_host]

    @property
    def switches(self) -> list[str]:
        """All other nodes."""
        return [node.name for node in self.nodes.values() if not node.is_host]

    def components(self) -> dict[str, int]:
        """How many there are of each: hosts, switches (all, and by tier), links, optics.

        A link here is a cable, which carries traffic both ways; one to a switch on the same board
        (medium "nvlink") is counted, but has no optics.
        """
        tiers = Counter(node.tier for node in self.nodes.values() if not node.is_host)
        media = Counter(self._media)
        counts = {
            "hosts": len(self.hosts),
            "switches": sum(tiers.values()),
            **{f"switches.{tier}": count for tier, count in sorted(tiers.items())},
            "links": sum(media.values()),
            **{f"links.{medium}": count for medium, count in sorted(media.items())},
            "optics": 2 * media["optical"],
        }
        return counts

    def cost(self, prices: Mapping[str, float]) -> float:
        """The sum over components of count times price.

        Args:
          prices: by the names of `components`; of "switches" and "switches.leaf" the longer one
            counts for leaves. Components without a price cost nothing.

        Raises:
          TopologyError: a price for a component that this kind of network lacks, or two for one.
        """
        counts = self.components()
        known = {*counts, "hosts", "switches", "links", "optics"}
        for name in prices:
            if name not in known and "." not in name:
                raise TopologyError(f"there is a price for {name!r}; priced are {sorted(known)}")
        total = 0.0
        for name, count in counts.items():
            kinds = [other for other in counts if other.startswith(f"{name}.")]
            if kinds:  # what its kinds have no price of their own for
                count = sum(counts[kind] for kind in kinds if kind not in prices)
            total += count * prices.get(name, 0.0)
        return total

    # --- placement ---

    def place(self, world_size: int, placement: Placement | str | None = None) -> list[str]:
        """The endpoint of every rank.

        Args:
          world_size: ranks.
          placement: None or "linear": the first endpoints in order; "random:SEED": some, shuffled;
            "strided:K": every K-th, then those next to them; or explicitly: endpoints by rank, or
            a mapping rank -> endpoint or endpoint -> rank(s).

        Raises:
          TopologyError: too few endpoints, an unknown one, a rank or endpoint named twice.
        """
        hosts = self.hosts
        if placement is None or isinstance(placement, str):
            if world_size > len(hosts):
                raise TopologyError(
                    f"{self.name} has {len(hosts)} endpoints, too few for {world_size} ranks"
                )
            return self._arrange(hosts, world_size, placement or "linear")
        names = _by_rank(placement)
        if len(names) != world_size:
            raise TopologyError(
                f"the placement places {len(names)} ranks, the schedule has {world_size}"
            )
        holder: dict[str, int] = {}
        for rank, name in enumerate(names):
            if name not in self.nodes:
                raise TopologyError(f"rank {rank} is placed on unknown node {name!r}")
            if not self.nodes[name].is_host:
                raise TopologyError(f"rank {rank} is placed on {name!r}, which is a switch")
            if name in holder:
                raise TopologyError(
                    f"{name!r} holds rank {holder[name]} and rank {rank}; an endpoint holds one"
                )
            holder[name] = rank
        return names

    @staticmethod
    def _arrange(hosts: list[str], world_size: int, how: str) -> list[str]:
        kind, _, argument = how.partition(":")
        try:
            if kind == "linear" and not argument:
                return hosts[:world_size]
            if kind == "random":
                return random.Random(int(argument or 0)).sample(hosts, world_size)
            if kind == "strided" and int(argument) > 0:
                stride = int(argument)
                return [host for i in range(stride) for host in hosts[i::stride]][:world_size]
        except ValueError:
            pass
        raise TopologyError(f"placement {how!r}: use linear, random:SEED or strided:K")

    # --- failures ---

    def find_links(self, component: str) -> list[int]:
        """Indices of the directed links that fail together with a component.

        Args:
          component: a node (all its links), ``a->b`` (that direction) or ``a--b`` (both); of
            parallel links all, or one of them as ``a--b#1``.

        Raises:
          TopologyError: there is no such component.
        """
        if component in self.nodes:
            found = [i for i, x in enumerate(self.links) if component in (x.source, x.destination)]
        else:
            found = self._links_by_name.get(component, [])
        if not found:
            raise TopologyError(
                f"{self.name} has no node or link {component!r}; links are written a->b or a--b"
            )
        return found

    def draw_failures(self, count: int, seed: int = 0, tier: str | None = None) -> list[str]:
        """`count` cables drawn at random, as ``a--b``: between switches if there are any.

        Args:
          count: how many.
          seed: of the draw.
          tier: only cables with a switch of this tier at an end.

        Raises:
          TopologyError: there are fewer.
        """

        def eligible(link: Link) -> bool:
            ends = (self.nodes[link.source], self.nodes[link.destination])
            return not any(e.is_host for e in ends) and (
                tier is None or any(e.tier == tier for e in ends)
            )

        one_way = {link.cable: link for link in reversed(self.links)}
        cables = sorted(c for c, link in one_way.items() if eligible(link))
        if not cables and tier is None:  # no switches, or none behind another
            cables = sorted(one_way)
        if count > len(cables):
            raise TopologyError(
                f"{self.name} has {len(cables)} cables that may fail, {count} were asked for"
            )
        chosen = random.Random(seed).sample(cables, count)
        names = []
        for cable in chosen:
            link = one_way[cable]
            names.append(f"{link.source}--{link.destination}#{link.number}")
        return names

    @cached_property
    def _links_by_name(self) -> dict[str, list[int]]:
        links: dict[str, list[int]] = {}
        for i, x in enumerate(self.links):
            for ends in (
                f"{x.source}->{x.destination}",
                f"{x.source}--{x.destination}",
                f"{x.destination}--{x.source}",
            ):
                for name in (ends, f"{ends}#{x.number}"):
                    links.setdefault(name, []).append(i)
        return links

    # --- for the engine ---

    @cached_property
    def index(self) -> dict[str, int]:
        """Node name -> number."""
        return {name: i for i, name in enumerate(self.nodes)}

    @cached_property
    def native(self) -> Any:
        """The network as the engine takes it; nothing may be added afterwards."""
        self.check()
        index = self.index
        return native.sim_network(
            list(self.nodes),
            [node.forwards for node in self.nodes.values()],
            [index[link.source] for link in self.links],
            [index[link.destination] for link in self.links],
            [link.bandwidth_Bps for link in self.links],
            [round(link.latency_s * 1e12) for link in self.links],
        )

    @cached_property
    def capacities_Bps(self) -> np.ndarray:
        """By link."""
        return np.array([link.bandwidth_Bps for link in self.links])

    def check(self) -> None:
        """Raises TopologyError unless every endpoint can reach every other."""
        if not self.hosts:
            raise TopologyError(f"{self.name} has no endpoints")
        out: dict[str, list[str]] = {name: [] for name in self.nodes}
        back: dict[str, list[str]] = {name: [] for name in self.nodes}
        for link in self.links:
            out[link.source].append(link.destination)
            back[link.destination].append(link.source)
        first = self.hosts[0]
        for neighbours, how in ((out, "cannot be reached from"), (back, "cannot reach")):
            seen, frontier = {first}, [first]
            while frontier:
                node = frontier.pop()
                if node != first and not self.nodes[node].forwards:
                    continue
                fresh = [other for other in neighbours[node] if other not in seen]
                seen.update(fresh)
                frontier += fresh
            for host in self.hosts:
                if host not in seen:
                    raise TopologyError(f"{self.name} is disconnected: {host!r} {how} {first!r}")

    def __repr__(self) -> str:
        return (
            f"<{self.name}: {len(self.hosts)} endpoints, {len(self.switches)} switches, "
            f"{len(self._media)} links>"
        )


def _by_rank(placement: Placement) -> list[str]:
    if not isinstance(placement, Mapping):
        return list(placement)
    by_rank: dict[int, str] = {}
    for key, value in placement.items():
        if isinstance(key, int):
            pairs: Iterable[tuple[int, Any]] = [(key, value)]
        else:
            ranks = [value] if isinstance(value, int) else value
            pairs = [(int(rank), key) for rank in ranks]  # type: ignore[union-attr]
        for rank, name in pairs:
            if rank in by_rank:
                raise TopologyError(
                    f"rank {rank} is placed twice: on {by_rank[rank]!r} and on {name!r}"
                )
            by_rank[rank] = str(name)
    missing = sorted(set(range(len(by_rank))) - set(by_rank))
    if missing:
        raise TopologyError(f"rank {missing[0]} is placed nowhere")
    return [by_rank[rank] for rank in range(len(by_rank))]
