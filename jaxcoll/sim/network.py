"""Modelled networks: nodes, cables, what they cost, and where ranks sit. `jaxcoll.topology` is the
public face."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxcoll._errors import CutError as CutError
from jaxcoll._errors import TopologyError as TopologyError
from jaxcoll._native import native
from jaxcoll.sim.links import MOST_BPS, MOST_LINKS, Ints
from jaxcoll.sim.links import Link as Link
from jaxcoll.sim.links import Links as Links

# Rank -> endpoint: by position, by rank, or by endpoint.
Placement: TypeAlias = "Sequence[str] | Mapping[int, str] | Mapping[str, int | Sequence[int]]"


# The simulator keeps a node in 22 bits.
MOST_NODES: Final = (1 << 22) - 1
MOST_SECONDS: Final = float(native.SIM_MOST_TIME_PS) / 1e12
_MOST_NAME: Final = 256


def check_nodes(network: str, count: int) -> None:
    """Raises TopologyError where a network would have too many nodes; before they are made."""
    if count > MOST_NODES:
        raise TopologyError(f"{network} would have {count} nodes; at most {MOST_NODES}")


def check_links(network: str, count: int) -> None:
    """Raises TopologyError where a network would have too many directed links."""
    if count > MOST_LINKS:
        raise TopologyError(f"{network} would have {count} directed links; at most {MOST_LINKS}")


def check_name(what: str, name: str) -> None:
    """Raises TopologyError unless a name can be printed anywhere: names appear in tables, in pages
    and on terminals, which would obey an escape sequence."""
    if not name or len(name) > _MOST_NAME or not name.isprintable():
        short = name if len(name) <= 40 else f"{name[:40]}..."
        raise TopologyError(
            f"the name {short!a} of {what} cannot be used: up to {_MOST_NAME} characters that "
            "can be printed"
        )


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


@dataclass(eq=False)
class Topology:
    """A network under construction, or complete: `add_host`, `add_switch`, `connect`.

    Attributes:
      name: to print.
      nodes: by name.
      links: see `Link`; a cable that carries traffic both ways is two.
      index: node name -> number.
      groups: named sets of endpoints whose cuts are worth a bound: racks, pods, nodes, halves.
      node_size: endpoints per server, where they come in servers; else 0.
      extents: of a torus, the last one varying fastest; else ().
    """

    name: str
    nodes: dict[str, Node] = field(default_factory=dict, init=False)
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    node_size: int = 0
    extents: tuple[int, ...] = ()
    memo: dict[Any, Any] = field(default_factory=dict)  # what others computed about it

    def __post_init__(self) -> None:
        self.rename(self.name)
        self._names: list[str] = []  # by number
        self.index: dict[str, int] = {}
        self.links = Links(self._names)
        self._packed: tuple[tuple[int, int], Any] | None = None

    def rename(self, name: str) -> None:
        """Changes the network's name.

        Raises:
          TopologyError: the name cannot be printed.
        """
        check_name("a network", name)
        self.name = name

    def add_host(self, name: str, *, forwards: bool = False) -> str:
        """Adds an endpoint and returns its name.

        Raises:
          TopologyError: a name that exists or cannot be printed, too many nodes.
        """
        return self._add(Node(name, "host", forwards))

    def add_switch(self, name: str, tier: str = "switch") -> str:
        """Adds a switch and returns its name.

        Raises:
          TopologyError: a name that exists or cannot be printed, too many nodes.
        """
        return self._add(Node(name, tier, True))

    def add_hosts(self, names: Iterable[str], *, forwards: bool = False) -> Ints:
        """Adds endpoints and returns their numbers, for `connect_all`."""
        return self._numbers([self.add_host(name, forwards=forwards) for name in names])

    def add_switches(self, names: Iterable[str], tier: str = "switch") -> Ints:
        """Adds switches and returns their numbers, for `connect_all`."""
        return self._numbers([self.add_switch(name, tier) for name in names])

    def _numbers(self, added: list[str]) -> Ints:
        return np.arange(len(self._names) - len(added), len(self._names), dtype=np.int32)

    def connect(
        self,
        a: str,
        b: str,
        bandwidth_Bps: float,
        latency_s: float = 0.0,
        *,
        medium: str = "optical",
        both_ways: bool = True,
        count: int = 1,
    ) -> None:
        """Adds a cable from a to b; it carries `bandwidth_Bps` each way.

        Args:
          a: a node's name.
          b: another's.
          bandwidth_Bps: bytes per second, above 0 and at most 1e18.
          latency_s: seconds from end to end.
          medium: "optical" cables count two optics, others ("copper", "nvlink") none.
          both_ways: False: from a to b only.
          count: parallel cables.

        Raises:
          TopologyError: unknown node, a loop, a capacity or latency out of range, too many links.
        """
        for end in (a, b):
            if end not in self.nodes:
                raise TopologyError(f"{self.name}: link {a} - {b} names unknown node {end!r}")
        if a == b:
            raise TopologyError(f"{self.name}: node {a!r} is linked to itself")
        if not 0 < bandwidth_Bps <= MOST_BPS:
            raise TopologyError(
                f"{self.name}: link {a} - {b} has a capacity of {bandwidth_Bps} B/s; it must be "
                f"above 0 and at most {MOST_BPS:g} (a broken link is a failure, not a link)"
            )
        if not 0 <= latency_s <= MOST_SECONDS:
            raise TopologyError(f"{self.name}: link {a} - {b} has a latency of {latency_s} s")
        if count < 0:
            raise TopologyError(f"{self.name}: there are {count} cables of link {a} - {b}")
        check_links(self.name, len(self.links) + count * (1 + both_ways))
        self.connect_all(
            np.full(count, self.index[a]),
            self.index[b],
            bandwidth_Bps,
            latency_s,
            medium=medium,
            both_ways=both_ways,
        )

    def connect_all(
        self,
        a: ArrayLike,
        b: ArrayLike,
        bandwidth_Bps: ArrayLike,
        latency_s: ArrayLike = 0.0,
        *,
        medium: str | Sequence[str] = "optical",
        both_ways: bool = True,
    ) -> None:
        """Adds many cables at once, as `connect` adds one.

        Args:
          a: numbers of nodes, see `index`.
          b: of others, as many, or one for all.
          bandwidth_Bps: of all, or by cable.
          latency_s: of all, or by cable.
          medium: of all, or of the first cables and in turn of those after them.
          both_ways: see `connect`.

        Raises:
          TopologyError: a number that no node has, a loop, a capacity or latency out of range, too
            many links.
        """
        for end in (np.asarray(a), np.asarray(b)):
            if end.dtype.kind not in "iu" and end.size:
                raise TopologyError(f"{self.name}: a link's ends are {end.dtype}, not node numbers")
            known = (end >= 0) & (end < len(self._names))
            if not known.all():
                raise TopologyError(
                    f"{self.name}: a link ends at node {end[~known].flat[0]}, but nodes are from 0 "
                    f"to {len(self._names) - 1}"
                )
        capacity, latency = np.asarray(bandwidth_Bps), np.asarray(latency_s)
        if not ((capacity > 0) & (capacity <= MOST_BPS)).all():
            raise TopologyError(
                f"{self.name}: a link's capacity must be above 0 and at most {MOST_BPS:g} B/s"
            )
        if not ((latency >= 0) & (latency <= MOST_SECONDS)).all():
            raise TopologyError(
                f"{self.name}: a link's latency must be from 0 to {MOST_SECONDS:g} s"
            )
        if (np.asarray(a) == np.asarray(b)).any():
            raise TopologyError(f"{self.name}: a node is linked to itself")
        check_links(self.name, len(self.links) + np.broadcast(a, b).size * (1 + both_ways))
        self.links.add(a, b, bandwidth_Bps, latency_s, medium, both_ways)

    def _add(self, node: Node) -> str:
        check_name("a node", node.name)
        check_name("a tier", node.tier)
        if node.name in self.nodes:
            raise TopologyError(f"{self.name}: node {node.name!r} exists twice")
        check_nodes(self.name, len(self.nodes) + 1)
        self.index[node.name] = len(self._names)
        self._names.append(node.name)
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
        counted = np.bincount(self.links.medium, minlength=len(self.links.media)).tolist()
        media = Counter(dict(zip(self.links.media, counted, strict=True)))
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
          TopologyError: a price for a component that this network does not have, below 0, or not
            finite.
        """
        counts = self.components()
        for name, price in prices.items():
            if name not in counts:
                raise TopologyError(
                    f"there is a price for {name!r}, which {self.name} does not have; priced are "
                    f"{', '.join(counts)}"
                )
            if not 0 <= price < math.inf:
                raise TopologyError(f"the price of {name!r} is {price}; it must be at least 0")
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
            "strided:K": every K-th, then those next to them, K at most the number of endpoints; or
            explicitly: endpoints by rank, or a mapping rank -> endpoint or endpoint -> rank(s).

        Raises:
          TopologyError: too few endpoints, an unknown one, a rank or endpoint named twice, a text
            that is not one of these.
        """
        hosts = self.hosts
        if placement is None or isinstance(placement, str):
            if world_size > len(hosts):
                raise TopologyError(
                    f"{self.name} has {len(hosts)} endpoints, too few for {world_size} ranks"
                )
            return self._arrange(hosts, world_size, "linear" if placement is None else placement)
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

    def _arrange(self, hosts: list[str], world_size: int, how: str) -> list[str]:
        kind, colon, argument = how.partition(":")
        if kind == "linear" and not colon:
            return hosts[:world_size]
        number = int(argument) if re.fullmatch("[0-9]{1,20}", argument) else None
        if kind == "random" and (number is not None or not colon):
            return random.Random(number or 0).sample(hosts, world_size)
        if kind == "strided" and number is not None:
            if not 1 <= number <= len(hosts):
                raise TopologyError(
                    f"placement {how!r}: a stride must be from 1 to {len(hosts)}, the number of "
                    f"endpoints of {self.name}"
                )
            return [host for i in range(number) for host in hosts[i::number]][:world_size]
        short = how if len(how) <= 40 else f"{how[:40]}..."
        raise TopologyError(
            f"placement {short!a}: use linear, random:SEED or strided:K, with numbers of up to 20 "
            "digits"
        )

    # --- failures ---

    def find_links(self, component: str) -> list[int]:
        """Indices of the directed links that fail together with a component.

        Args:
          component: a node (all its links), ``a->b`` (that direction) or ``a--b`` (both); of
            parallel links all, or one of them as ``a--b#1``.

        Raises:
          TopologyError: there is no such component.
        """
        number = self.index.get(component)
        found = self._links_named(component) if number is None else self.links.at(number)
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

        links = self.links
        _, first = np.unique(links.cable, return_index=True)  # one direction of each
        is_host = np.array([node.is_host for node in self.nodes.values()])
        wanted = np.array([tier in (None, node.tier) for node in self.nodes.values()])
        source, destination = links.source[first], links.destination[first]
        between = ~(is_host[source] | is_host[destination])
        cables = first[between & (wanted[source] | wanted[destination])].tolist()
        if not cables and tier is None:  # no switches, or none behind another
            cables = first.tolist()
        if count > len(cables):
            raise TopologyError(
                f"{self.name} has {len(cables)} cables that may fail, {count} were asked for"
            )
        chosen = [links[i] for i in random.Random(seed).sample(cables, count)]
        return [f"{link.source}--{link.destination}#{link.number}" for link in chosen]

    def _links_named(self, component: str) -> list[int]:
        text, mark, number = component.rpartition("#")
        ways: list[tuple[str, int | None]] = [(component, None)]
        if mark and number.isdecimal():
            ways.append((text, int(number)))
        for ends, parallel in ways:
            for match in re.finditer("(?=--|->)", ends):  # names may hold either, too
                a, b = ends[: match.start()], ends[match.start() + 2 :]
                if a in self.index and b in self.index:
                    both_ways = ends[match.start() + 1] == "-"
                    found = self.links.between(self.index[a], self.index[b], parallel, both_ways)
                    if found:
                        return found
        return []

    # --- for the engine ---

    @property
    def native(self) -> Any:
        """The network as the engine takes it.

        Raises:
          TopologyError: see `check`.
        """
        size = len(self.nodes), len(self.links)
        if self._packed is None or self._packed[0] != size:
            links = self.links
            packed = native.sim_network(
                self._names,
                np.array([node.forwards for node in self.nodes.values()], np.uint8),
                links.source,
                links.destination,
                links.bandwidth_Bps,
                links.latency_ps,
            )
            self._check(packed)
            self._packed = size, packed
        return self._packed[1]

    @property
    def capacities_Bps(self) -> NDArray[np.float64]:
        """By link."""
        return self.links.bandwidth_Bps

    def check(self) -> None:
        """Raises TopologyError unless every endpoint can reach every other."""
        self.native  # noqa: B018 - made once, and checked then

    def _check(self, packed: Any) -> None:
        hosts = self.hosts
        if not hosts:
            raise TopologyError(f"{self.name} has no endpoints")
        numbers = np.array([self.index[host] for host in hosts])
        for backwards, how in ((False, "cannot be reached from"), (True, "cannot reach")):
            reachable: Any = native.sim_reachable(packed, int(numbers[0]), backwards)
            seen = reachable[numbers]
            if not seen.all():
                host = hosts[int(np.argmin(seen))]
                raise TopologyError(f"{self.name} is disconnected: {host!r} {how} {hosts[0]!r}")

    def __repr__(self) -> str:
        return (
            f"<{self.name}: {len(self.hosts)} endpoints, {len(self.switches)} switches, "
            f"{self.links.cables} links>"
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
