"""Networks from a text, a YAML file or networkx. `jaxcoll.topology` is the public face."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from jaxcoll import _files
from jaxcoll._errors import FileError
from jaxcoll.sim.network import Topology, TopologyError
from jaxcoll.sim.network_kinds import (
    dragonfly,
    fat_tree,
    leaf_spine,
    multi_plane,
    rail_only,
    rail_optimised,
    ring,
    switch,
    torus,
)

KINDS: Final = {
    kind.__name__: kind
    for kind in (
        ring,
        torus,
        switch,
        leaf_spine,
        fat_tree,
        rail_optimised,
        rail_only,
        dragonfly,
        multi_plane,
    )
}

_YAML_BYTES_MOST: Final = 16 << 20
_PARALLEL_LINKS_MOST: Final = 1 << 16
_SIZES: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_TIMES_S: Final = {"ps": 1e-12, "ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
_RATES_BPS: Final = {"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
_RATES_BPS.update({name.replace("B", "b"): rate / 8 for name, rate in _RATES_BPS.items()})


def parse_seconds(text: str) -> float:
    """``1.5us`` -> 1.5e-06; a plain number is in seconds."""
    match = re.fullmatch(r"([0-9.]+(?:e-?[0-9]+)?)\s*(ps|ns|us|ms|s)?", text.strip())
    if not match:
        raise TopologyError(f"{text!r} is not a time; write 500ns, 1.5us or 2ms")
    return float(match[1]) * _TIMES_S[match[2] or "s"]


def parse_rate(text: str) -> float:
    """``400Gb/s`` -> 5e10 bytes per second; ``50GB/s`` is the same, a plain number bytes."""
    match = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)\s*(?:([KMGT]?[bB])(?:/s|ps))?", text.strip())
    if not match:
        raise TopologyError(f"{text!r} is not a rate; write 400Gb/s or 50GB/s")
    return float(match[1]) * _RATES_BPS[match[2] or "B"]


def parse_bytes(text: str) -> int:
    """``4M`` -> 4194304; K, M, G and T are powers of 1024, as in nccl-tests."""
    match = re.fullmatch(r"([0-9]+)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match or int(match[1]) == 0:
        raise TopologyError(f"{text!r} is not a size; write 65536, 64K, 1M or 4G")
    return int(match[1]) * _SIZES[match[2].upper()]


def parse(text: str) -> Topology:
    """The network that a text describes.

    Args:
      text: ``KIND:SIZE,OPTION=VALUE,...``, e.g. ``fat_tree:1024,radix=16,bandwidth=400Gb/s``,
        ``torus:8x8x4,latency=200ns`` or ``rail_optimised:32``; or the name of a YAML file. Options
        are the keyword arguments of the kind; ``_Bps`` and ``_s`` at their ends may be left out.

    Raises:
      TopologyError: unknown kind or option, or a value that cannot be.
    """
    if text.endswith((".yaml", ".yml")):
        return from_yaml(text)
    kind, _, rest = text.partition(":")
    if kind not in KINDS:
        raise TopologyError(
            f"unknown topology {kind!r}; there are {', '.join(KINDS)}, and files ending in .yaml"
        )
    first, *options = [part.strip() for part in rest.split(",")] if rest else [""]
    if not first or "=" in first:
        raise TopologyError(f"write the size of {kind} first, e.g. {_example(kind)}")
    arguments: dict[str, str] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals:
            raise TopologyError(f"{option!r} in {text!r}: write NAME=VALUE")
        arguments[name] = value
    return _make(kind, first, arguments)


def _example(kind: str) -> str:
    return "torus:8x8" if kind == "torus" else f"{kind}:64"


def _make(kind: str, size: Any, options: Mapping[str, Any]) -> Topology:
    make = KINDS[kind]
    parameters = inspect.signature(make).parameters
    known = {n: p for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY and n != "name"}
    arguments: dict[str, Any] = {}
    for name, value in options.items():
        full = next((n for n in (name, f"{name}_Bps", f"{name}_s") if n in known), None)
        if full is None:
            short = [re.sub("_(Bps|s)$", "", n) for n in known]
            raise TopologyError(f"{kind} has no option {name!r}; it has {', '.join(short)}")
        arguments[full] = _value(full, value, str(known[full].annotation))
    if kind == "torus":
        lengths = size.split("x") if isinstance(size, str) else size
        return torus([_value("size", length, "int") for length in lengths], **arguments)
    return make(_value("size", size, "int"), **arguments)


def _value(name: str, value: Any, annotation: str) -> Any:
    if not isinstance(value, str):
        return value
    if name.endswith("_Bps"):
        return parse_rate(value)
    if name.endswith("_s"):
        return parse_seconds(value)
    try:
        return float(value) if annotation == "float" else int(value)
    except ValueError:
        raise TopologyError(f"{name}={value!r} is not a number") from None


def from_networkx(graph: Any, name: str = "graph") -> Topology:
    """A network from a networkx graph.

    Nodes with ``host=True`` are endpoints; where no node says so, all are, and forward. Others are
    switches of their ``tier``. Edges need ``bandwidth_Bps`` and may have ``latency_s`` and
    ``medium``. An undirected edge carries its bandwidth each way, and a multigraph's are parallel.

    Raises:
      TopologyError: an edge without capacity, or a graph in parts.
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
        topology.connect(
            str(a),
            str(b),
            float(data["bandwidth_Bps"]),
            float(data.get("latency_s", 0.0)),
            medium=str(data.get("medium", "optical")),
            both_ways=not graph.is_directed(),
        )
    topology.check()
    return topology


def from_yaml(path: str | Path) -> Topology:
    """A network from a YAML file, ready-made or link by link.

    ::

        kind: leaf_spine        #  or:   name: triangle
        size: 64                #        nodes:
        oversubscription: 2     #          - {name: a, host: true}
        bandwidth: 400Gb/s      #          - {name: s, tier: leaf}
                                #        links:
                                #          - {ends: [a, s], bandwidth: 400Gb/s, latency: 1us}

    Raises:
      TopologyError: what is wrong, with the file's name.
    """
    try:
        import yaml
    except ImportError:
        raise TopologyError(f"reading {path} needs PyYAML: pip install 'jaxcoll[sim]'") from None
    try:
        data = yaml.safe_load(_files.read_text(Path(path), _YAML_BYTES_MOST))
    except FileNotFoundError as error:
        raise TopologyError(f"{path}: {error.strerror}") from None
    except FileError as error:
        raise TopologyError(str(error)) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # e.g. a date that is none
        raise TopologyError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise TopologyError(f"{path} should hold a mapping with `kind`, or `nodes` and `links`")
    try:
        if "kind" in data:
            if data["kind"] not in KINDS:
                raise TopologyError(f"unknown kind {data['kind']!r}; there are {', '.join(KINDS)}")
            if "size" not in data:
                raise TopologyError("`size` is missing")
            options = {k: v for k, v in data.items() if k not in ("kind", "size")}
            return _make(data["kind"], data["size"], options)
        return _explicit(data, str(data.get("name", Path(path).stem)))
    except TopologyError as error:
        raise TopologyError(f"{path}: {error}") from None
    except (TypeError, ValueError, ArithmeticError, RecursionError) as error:
        raise TopologyError(f"{path} holds a value of a wrong kind: {error}") from None


def _explicit(data: dict[str, Any], name: str) -> Topology:
    for key in ("nodes", "links"):
        if not isinstance(data.get(key), list):
            raise TopologyError(f"`{key}` should be a list")
    topology = Topology(name)
    for node in data["nodes"]:
        if not isinstance(node, dict) or "name" not in node:
            raise TopologyError(f"node {node!r} needs a `name`")
        if node.get("host", False):
            topology.add_host(str(node["name"]), forwards=bool(node.get("forwards", False)))
        else:
            topology.add_switch(str(node["name"]), str(node.get("tier", "switch")))
    for link in data["links"]:
        ends = link.get("ends") if isinstance(link, dict) else None
        if not isinstance(ends, list) or len(ends) != 2:
            raise TopologyError(f"link {link!r} needs `ends: [a, b]`")
        if "bandwidth" not in link:
            raise TopologyError(f"link {ends[0]} - {ends[1]} needs a `bandwidth`")
        if not 0 <= (count := int(link.get("count", 1))) <= _PARALLEL_LINKS_MOST:
            raise TopologyError(f"link {ends[0]} - {ends[1]}: `count` is {count}")
        for _ in range(count):
            topology.connect(
                str(ends[0]),
                str(ends[1]),
                parse_rate(str(link["bandwidth"])),
                parse_seconds(str(link.get("latency", 0))),
                medium=str(link.get("medium", "optical")),
                both_ways=not link.get("one_way", False),
            )
    topology.check()
    return topology
