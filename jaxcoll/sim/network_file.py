"""Networks from YAML files, read node by node, so that an error names the line."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final

from jaxcoll import _files
from jaxcoll._errors import FileError
from jaxcoll.sim.network import MOST_NODES, Topology, TopologyError, check_links, check_name
from jaxcoll.sim.network_kinds import torus
from jaxcoll.sim.options import (
    KINDS,
    add_option,
    nearest,
    option_of,
    parse_rate,
    parse_seconds,
    shown,
)

_MOST_BYTES: Final = 16 << 20
_MOST_DEPTH: Final = 16
# Texts, lists and mappings. A file of the largest size has as many if it describes a network; one
# of commas has more. Each takes about 300 bytes.
_MOST_VALUES: Final = 3 << 20
_MOST_PARALLEL_LINKS: Final = 1 << 16
# Cuts are computed for every group: as many members in all as a network may have nodes.
_MOST_MEMBERS: Final = MOST_NODES

_TAG: Final = "tag:yaml.org,2002:"
_KINDS_OF_SCALARS: Final = {"str": "a text", "int": "a whole number", "float": "a number"}


def from_yaml(path: str | Path) -> Topology:
    """A network from a YAML file, ready-made or link by link.

    ::

        kind: leaf_spine        #  or:   name: triangle
        size: 64                #        nodes:
        oversubscription: 2     #          - {name: a, host: true}
        bandwidth: 400Gb/s      #          - {name: s, tier: leaf}
                                #        links:
                                #          - {ends: [a, s], bandwidth: 400Gb/s, latency: 1us}

    The keys of a node are name, host, forwards and tier; of a link ends, bandwidth, latency, count,
    medium and one_way. Beside nodes and links there may be node_size and groups, each with its list
    of endpoints, whose cuts then have bounds.

    Raises:
      TopologyError: what is wrong, with the file, the line and the key.
    """
    try:
        text = _files.read_text(Path(path), _MOST_BYTES)
    except FileNotFoundError as error:
        raise TopologyError(f"{path}: {error.strerror}") from None
    except (FileError, ValueError) as error:  # too large, or no text
        raise TopologyError(f"{path}: {error}") from None
    reader = _Reader(path)
    root = reader.compose(text)
    if root is None or root.id != "mapping":
        raise TopologyError(f"{path} should hold a mapping with `kind`, or `nodes` and `links`")
    with reader.at(root):
        if any(key.value == "kind" for key, _ in root.value):
            return _ready_made(reader, root)
        return _explicit(reader, root, Path(path).stem)


class _Reader:
    """Turns YAML nodes into values of the kinds that are expected, and refuses others."""

    def __init__(self, path: str | Path) -> None:
        self._path = path

    def compose(self, text: str) -> Any:
        """The node that the file holds, or None."""
        try:
            import yaml
            from yaml.composer import Composer
            from yaml.resolver import Resolver
        except ImportError:
            raise TopologyError(
                f"reading {self._path} needs PyYAML: pip install 'jaxcoll[sim]'"
            ) from None
        reader = self

        class Shallow(Composer):
            """Refuses what is nested too deeply, or has too many values, while it is read."""

            depth = 0
            values = 0

            def compose_node(self, parent: Any, index: Any) -> Any:
                self.depth += 1
                self.values += 1
                for count, most, what in (
                    (self.depth, _MOST_DEPTH, "nested more than {} levels deep"),
                    (self.values, _MOST_VALUES, "more than {} texts, lists and mappings"),
                ):
                    if count > most:
                        line = self.peek_event().start_mark.line + 1  # type: ignore[attr-defined]
                        told = what.format(most)
                        raise TopologyError(f"{reader._path}, line {line}: {told}")
                node = super().compose_node(parent, index)
                self.depth -= 1
                return node

        parser: Any = yaml.SafeLoader
        if yaml.__with_libyaml__:
            from yaml.cyaml import CParser

            class parser(CParser, Resolver):  # type: ignore[no-redef]
                """As yaml.CSafeLoader, whose own composer cannot be told how deep to go."""

                def __init__(self, stream: str) -> None:
                    CParser.__init__(self, stream)
                    Resolver.__init__(self)
                    Composer.__init__(self)  # type: ignore[arg-type]

        loader = type("Loader", (Shallow, parser), {"__init__": parser.__init__})(text)
        try:
            return loader.get_single_node()
        except yaml.YAMLError as error:
            told = " ".join(ascii(str(error))[1:-1].replace("\\n", " ").split())
            raise TopologyError(f"{self._path} is not YAML: {told}") from None
        finally:
            loader.dispose()

    def error(self, node: Any, what: str) -> TopologyError:
        return TopologyError(f"{self._path}, line {node.start_mark.line + 1}: {what}")

    @contextlib.contextmanager
    def at(self, node: Any) -> Iterator[None]:
        """Errors from inside that do not name the file are of this node."""
        try:
            yield
        except TopologyError as error:
            if str(error).startswith(f"{self._path}, "):
                raise
            raise self.error(node, str(error)) from None

    def mapping(self, node: Any, what: str, known: Collection[str]) -> dict[str, Any]:
        """Values by key, which must be one of `known`."""
        pairs = self.pairs(node, what)
        for key, (key_node, _) in pairs.items():
            if key not in known:
                raise self.error(
                    key_node,
                    f"{what} has no key {shown(key)}; it has {', '.join(known)}"
                    f"{nearest(key, known)}",
                )
        return {key: value for key, (_, value) in pairs.items()}

    def pairs(self, node: Any, what: str) -> dict[str, tuple[Any, Any]]:
        """By key: the key's node and the value's."""
        if node.id != "mapping":
            raise self.error(node, f"{what} should be a mapping, not {_kind(node)}")
        pairs: dict[str, tuple[Any, Any]] = {}
        for key, value in node.value:
            if key.id != "scalar":
                raise self.error(key, f"a key of {what} should be a text, not {_kind(key)}")
            if key.value in pairs:
                raise self.error(key, f"{what} has the key {shown(key.value)} twice")
            pairs[key.value] = key, value
        return pairs

    def items(self, node: Any, key: str) -> list[Any]:
        if node is None or node.id != "sequence":
            found = "" if node is None else f", not {_kind(node)}"
            error = f"`{key}` should be a list{found}"
            raise TopologyError(error) if node is None else self.error(node, error)
        items: list[Any] = node.value
        return items

    def text(self, node: Any, key: str, kinds: tuple[str, ...] = ("str", "int", "float")) -> str:
        """The text of a scalar of one of these kinds."""
        kind = node.tag.removeprefix(_TAG)
        if node.id != "scalar" or kind not in kinds:
            wanted = " or ".join(_KINDS_OF_SCALARS[kind] for kind in kinds)
            raise self.error(node, f"`{key}` should be {wanted}, not {_kind(node)}")
        value: str = node.value
        return value

    def name(self, node: Any, key: str) -> str:
        return self.text(node, key, ("str", "int"))

    def whole(self, node: Any, key: str, low: int, high: int) -> int:
        text = self.text(node, key, ("int",))
        if not re.fullmatch("-?[0-9]{1,30}", text):
            raise self.error(node, f"`{key}` is {shown(text)}; write it in decimal digits")
        if not low <= int(text) <= high:
            raise self.error(node, f"`{key}` is {text}, but must be from {low} to {high}")
        return int(text)

    def flag(self, node: Any, key: str) -> bool:
        if node is None:
            return False
        if node.tag != f"{_TAG}bool":
            raise self.error(node, f"`{key}` should be true or false, not {_kind(node)}")
        return str(node.value).lower() in ("true", "yes", "on")


def _kind(node: Any) -> str:
    if node.id != "scalar":
        return "a list" if node.id == "sequence" else "a mapping"
    kind = node.tag.removeprefix(_TAG)
    if kind == "null":
        return "nothing"
    return f"{shown(node.value)}" if kind != "bool" else f"the truth value {node.value}"


def _ready_made(reader: _Reader, root: Any) -> Topology:
    pairs = reader.pairs(root, "a network")
    kind = reader.text(pairs["kind"][1], "kind", ("str",))
    if kind not in KINDS:
        raise reader.error(
            pairs["kind"][1],
            f"unknown kind {shown(kind)}; there are {', '.join(KINDS)}{nearest(kind, KINDS)}",
        )
    if "size" not in pairs:
        raise TopologyError("`size` is missing")
    arguments: dict[str, Any] = {}
    for key, (key_node, value) in pairs.items():
        if key in ("kind", "size"):
            continue
        with reader.at(key_node):
            whole = "int" in str(option_of(kind, key).annotation)
            said = reader.text(value, key, ("int",) if whole else ("str", "int", "float"))
            add_option(arguments, kind, key, said)
    size = pairs["size"][1]
    most = 1 << 31
    with reader.at(size):
        if kind != "torus":
            make: Any = KINDS[kind]
            made: Topology = make(reader.whole(size, "size", 1, most), **arguments)
            return made
        if size.id == "sequence":
            lengths = [reader.whole(item, "size", 1, most) for item in size.value]
        else:
            said = reader.text(size, "size", ("str", "int"))
            if not re.fullmatch("[0-9]{1,9}(x[0-9]{1,9})*", said):
                raise reader.error(size, f"`size` is {shown(said)}; write 4x4x4 or [4, 4, 4]")
            lengths = [int(length) for length in said.split("x")]
        return torus(lengths, **arguments)


_NETWORK_KEYS: Final = ("name", "nodes", "links", "groups", "node_size")
_NODE_KEYS: Final = ("name", "host", "forwards", "tier")
_LINK_KEYS: Final = ("ends", "bandwidth", "latency", "count", "medium", "one_way")


def _explicit(reader: _Reader, root: Any, stem: str) -> Topology:
    keys = reader.mapping(root, "a network", _NETWORK_KEYS)
    nodes, links = (reader.items(keys.get(key), key) for key in ("nodes", "links"))
    topology = Topology(reader.name(keys["name"], "name") if "name" in keys else stem)
    for node in nodes:
        with reader.at(node):
            _add_node(reader, topology, node)
    _add_links(reader, topology, links)
    if "node_size" in keys:
        hosts = len(topology.hosts)
        topology.node_size = reader.whole(keys["node_size"], "node_size", 0, hosts)
    if "groups" in keys:
        _add_groups(reader, topology, keys["groups"])
    topology.check()
    return topology


def _add_node(reader: _Reader, topology: Topology, node: Any) -> None:
    keys = reader.mapping(node, "a node", _NODE_KEYS)
    if "name" not in keys:
        raise TopologyError("a node needs a `name`")
    name = reader.name(keys["name"], "name")
    forwards = reader.flag(keys.get("forwards"), "forwards")
    tier = reader.name(keys["tier"], "tier") if "tier" in keys else "switch"
    if reader.flag(keys.get("host"), "host"):
        topology.add_host(name, forwards=forwards)
    else:
        topology.add_switch(name, tier)


def _add_links(reader: _Reader, topology: Topology, links: list[Any]) -> None:
    """All links at once: how many there will be is checked before any of them is made."""
    read = []
    total = 0
    for node in links:
        with reader.at(node):
            link, count = _link(reader, node)
            total += count * (2 if link["both_ways"] else 1)
            check_links(topology.name, total)
        read.append((node, link, count))
    for node, link, count in read:
        with reader.at(node):
            topology.connect(**link, count=count)


def _link(reader: _Reader, node: Any) -> tuple[dict[str, Any], int]:
    """The arguments of `Topology.connect`, and the number of parallel links."""
    keys = reader.mapping(node, "a link", _LINK_KEYS)
    ends = keys.get("ends")
    if ends is None or ends.id != "sequence" or len(ends.value) != 2:
        raise TopologyError("a link needs `ends: [a, b]`")
    a, b = (reader.name(end, "ends") for end in ends.value)
    if "bandwidth" not in keys:
        raise TopologyError(f"link {shown(a)} - {shown(b)} needs a `bandwidth`")
    with reader.at(keys["bandwidth"]):
        bandwidth_Bps = parse_rate(reader.text(keys["bandwidth"], "bandwidth"))
    latency_s = 0.0
    if "latency" in keys:
        with reader.at(keys["latency"]):
            latency_s = parse_seconds(reader.text(keys["latency"], "latency"))
    medium = reader.name(keys["medium"], "medium") if "medium" in keys else "optical"
    count = reader.whole(keys["count"], "count", 0, _MOST_PARALLEL_LINKS) if "count" in keys else 1
    arguments = {
        "a": a,
        "b": b,
        "bandwidth_Bps": bandwidth_Bps,
        "latency_s": latency_s,
        "medium": medium,
        "both_ways": not reader.flag(keys.get("one_way"), "one_way"),
    }
    return arguments, count


def _add_groups(reader: _Reader, topology: Topology, node: Any) -> None:
    """Groups that share one list by an alias share its endpoints, too."""
    found: dict[int, tuple[str, ...]] = {}
    total = 0
    for name, (key, members) in reader.pairs(node, "`groups`").items():
        items = reader.items(members, "groups")
        total += len(items)
        if total > _MOST_MEMBERS:
            raise reader.error(
                key, f"the groups have {total} members together; at most {_MOST_MEMBERS}"
            )
        if id(members) not in found:
            found[id(members)] = tuple(_endpoint(reader, topology, item) for item in items)
        with reader.at(key):
            check_name("a group", name)
        topology.groups[name] = found[id(members)]


def _endpoint(reader: _Reader, topology: Topology, node: Any) -> str:
    name = reader.name(node, "groups")
    if name not in topology.nodes or not topology.nodes[name].is_host:
        raise reader.error(node, f"a group names {shown(name)}, which is not an endpoint")
    return name
