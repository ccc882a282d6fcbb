"""Networks from a text, a YAML file or networkx. `jaxcoll.topology` is the public face."""

from __future__ import annotations

import difflib
import inspect
import math
import re
from collections.abc import Collection, Mapping
from typing import Any, Final

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

_MOST_DIGITS: Final = 30
_SIZES: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_TIMES_S: Final = {"ps": 1e-12, "ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
_RATES_BPS: Final = {"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
_NUMBER: Final = r"((?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
_RATES_BPS.update({name.replace("B", "b"): rate / 8 for name, rate in _RATES_BPS.items()})


def parse_seconds(text: str) -> float:
    """``1.5us`` -> 1.5e-06; a plain number is in seconds."""
    match = re.fullmatch(_NUMBER + r"\s*(ps|ns|us|ms|s)?", text.strip())
    if not match:
        raise TopologyError(f"{text!r} is no time; write 500ns, 1.5us or 2ms")
    return float(match[1]) * _TIMES_S[match[2] or "s"]


def parse_rate(text: str) -> float:
    """``400Gb/s`` -> 5e10 bytes per second; ``50GB/s`` is the same, a plain number bytes."""
    match = re.fullmatch(_NUMBER + r"\s*(?:([KMGT]?[bB])(?:/s|ps))?", text.strip())
    if not match:
        raise TopologyError(f"{text!r} is no rate; write 400Gb/s or 50GB/s")
    return float(match[1]) * _RATES_BPS[match[2] or "B"]


def parse_bytes(text: str) -> int:
    """``4M`` -> 4194304; K, M, G and T are powers of 1024, as in nccl-tests."""
    match = re.fullmatch(r"([0-9]+)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match or int(match[1]) == 0:
        raise TopologyError(f"{text!r} is no size; write 65536, 64K, 1M or 4G")
    if len(match[1]) > _MOST_DIGITS:
        raise TopologyError(f"a size of {len(match[1])} digits is too large")
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
        from jaxcoll.sim.network_file import from_yaml

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


def nearest(word: str, words: Collection[str]) -> str:
    """A question to end an error with, where one of `words` is nearly `word`; or nothing."""
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def options_of(kind: str) -> dict[str, inspect.Parameter]:
    """The options of a kind, by the names that texts and files give them."""
    parameters = inspect.signature(KINDS[kind]).parameters
    return {
        re.sub("_(Bps|s)$", "", name): parameter
        for name, parameter in parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name != "name"
    }


def option_of(kind: str, name: str) -> inspect.Parameter:
    """One of them, by its short name or its whole one.

    Raises:
      TopologyError: there is none, and which is nearest.
    """
    known = options_of(kind)
    for short, parameter in known.items():
        if name in (short, parameter.name):
            return parameter
    raise TopologyError(
        f"{kind} has no option {name!r}; it has {', '.join(known)}{nearest(name, known)}"
    )


def _make(kind: str, size: str, options: Mapping[str, str]) -> Topology:
    arguments: dict[str, Any] = {}
    for name, value in options.items():
        parameter = option_of(kind, name)
        arguments[parameter.name] = value_of(parameter, value)
    if kind == "torus":
        return torus([_whole("size", length) for length in size.split("x")], **arguments)
    return KINDS[kind](_whole("size", size), **arguments)


def value_of(parameter: inspect.Parameter, text: str) -> float:
    """What a text says for an option: a rate, a time, a number or a whole number.

    Raises:
      TopologyError: it says none.
    """
    if parameter.name.endswith("_Bps"):
        return parse_rate(text)
    if parameter.name.endswith("_s"):
        return parse_seconds(text)
    if not str(parameter.annotation).startswith("float"):
        return _whole(parameter.name, text)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise TopologyError(f"{parameter.name}={text!r} is no number")
    return value


def _whole(name: str, text: str) -> int:
    if not re.fullmatch(f"[+-]?[0-9]{{1,{_MOST_DIGITS}}}", text.strip()):
        raise TopologyError(f"{name}={text!r} is no number that is whole")
    return int(text)


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
