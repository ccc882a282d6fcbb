"""Modelled networks for `jaxcoll.simulate`: ready-made, from networkx, from YAML, or your own.

    network = fat_tree(1024, radix=16, oversubscription=2)
    network.components()       # {'hosts': 1024, 'switches': ..., 'links': ..., 'optics': ...}
    network.cost({"switches": 30_000, "optics": 500})

    mine = Topology("two hosts")
    mine.connect(mine.add_host("a"), mine.add_host("b"), bandwidth_Bps=12.5e9, latency_s=1e-6)

Endpoints (hosts, or GPUs where they are modelled one by one) are what ranks are placed on. Links
carry `bandwidth_Bps` each way. This module does not import JAX.
"""

from jaxcoll._errors import (
    CutError,
    TopologyError,
)
from jaxcoll.sim.network import (
    Link,
    Node,
    Placement,
    Topology,
)
from jaxcoll.sim.network_file import from_yaml
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
from jaxcoll.sim.topology import (
    KINDS,
    from_networkx,
    parse,
    parse_bytes,
    parse_rate,
    parse_seconds,
)

__all__ = [
    "KINDS",
    "CutError",
    "Link",
    "Node",
    "Placement",
    "Topology",
    "TopologyError",
    "dragonfly",
    "fat_tree",
    "from_networkx",
    "from_yaml",
    "leaf_spine",
    "multi_plane",
    "parse",
    "parse_bytes",
    "parse_rate",
    "parse_seconds",
    "rail_only",
    "rail_optimised",
    "ring",
    "switch",
    "torus",
]
