"""Networks from a text, a YAML file or networkx. `jaxcoll.topology` is the public face."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from jaxcoll.sim.network import Topology as Topology
from jaxcoll.sim.network import TopologyError as TopologyError
from jaxcoll.sim.network_file import from_yaml
from jaxcoll.sim.network_kinds import torus
from jaxcoll.sim.options import KINDS as KINDS
from jaxcoll.sim.options import add_option, nearest, shown, whole_of
from jaxcoll.sim.options import parse_bytes as parse_bytes
from jaxcoll.sim.options import parse_rate as parse_rate
from jaxcoll.sim.options import parse_seconds as parse_seconds


def parse(text: str) -> Topology:
    """The network that a text describes.

    Args:
      text: ``KIND:SIZE,OPTION=VALUE,...``, e.g. ``fat_tree:1024,radix=16,bandwidth=400Gb/s``,
        ``torus:8x8x4,latency=200ns`` or ``rail_optimised:32``; or the name of a YAML file. Options
        are the keyword arguments of the kind; ``_Bps`` and ``_s`` at their ends may be left out.

    Raises:
      TopologyError: an unknown kind or option, an option twice, a value that cannot be, or a
        network that is too large; what is wrong with a file.
    """
    if text.endswith((".yaml", ".yml")):
        return from_yaml(text)
    kind, _, rest = text.partition(":")
    if kind not in KINDS:
        raise TopologyError(
            f"unknown topology {shown(kind)}; there are {', '.join(KINDS)}, and files ending in "
            f".yaml{nearest(kind, KINDS)}"
        )
    first, *options = [part.strip() for part in rest.split(",")] if rest else [""]
    if not first or "=" in first:
        raise TopologyError(f"write the size of {kind} first, e.g. {_example(kind)}")
    arguments: dict[str, Any] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals:
            raise TopologyError(f"{shown(option)} in {shown(text)}: write NAME=VALUE")
        add_option(arguments, kind, name, value)
    if kind == "torus":
        return torus([whole_of(length, "size") for length in first.split("x")], **arguments)
    make: Any = KINDS[kind]
    made: Topology = make(whole_of(first, "size"), **arguments)
    return made


def parse_all(texts: Sequence[str]) -> list[Topology]:
    """The networks that texts describe, no two of one name: where names are equal, those networks
    are named by their texts.

    Raises:
      TopologyError: see `parse`.
    """
    networks = [parse(text) for text in texts]
    for network, name in zip(networks, apart([n.name for n in networks], texts), strict=True):
        network.rename(name)
    return networks


def apart(names: Sequence[str], texts: Sequence[str], taken: Collection[str] = ()) -> list[str]:
    """Names that tell things apart: each thing's own, or its text if another has that name."""
    counts = Counter([*names, *taken])
    return [text if counts[name] > 1 else name for name, text in zip(names, texts, strict=True)]


def _example(kind: str) -> str:
    return "torus:8x8" if kind == "torus" else f"{kind}:64"


def from_networkx(graph: Any, name: str = "graph") -> Topology:
    """A network from a networkx graph.

    Nodes with ``host=True`` are endpoints; where no node says so, all are, and forward. Others are
    switches of their ``tier``. Edges need ``bandwidth_Bps`` and may have ``latency_s`` and
    ``medium``. An undirected edge carries its bandwidth each way, and a multigraph's are parallel.

    Raises:
      TopologyError: an edge without capacity or with values that are not numbers, two nodes of
        one name, or a graph in parts.
    """
    topology = Topology(name)
    marked = any("host" in data for _, data in graph.nodes(data=True))
    for node, data in graph.nodes(data=True):
        if data.get("host", not marked):
            topology.add_host(str(node), forwards=bool(data.get("forwards", not marked)))
        else:
            topology.add_switch(str(node), str(data.get("tier", "switch")))
    for a, b, data in graph.edges(data=True):
        if "bandwidth_Bps" not in data:
            raise TopologyError(f"{name}: edge {a} - {b} has no bandwidth_Bps")
        try:
            bandwidth_Bps = float(data["bandwidth_Bps"])
            latency_s = float(data.get("latency_s", 0.0))
        except (TypeError, ValueError) as error:
            raise TopologyError(f"{name}: edge {a} - {b}: {error}") from None
        topology.connect(
            str(a),
            str(b),
            bandwidth_Bps,
            latency_s,
            medium=str(data.get("medium", "optical")),
            both_ways=not graph.is_directed(),
        )
    topology.check()
    return topology
