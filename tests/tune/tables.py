"""Tables made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jaxcoll.tune import table

Picks, Table = table.Picks, table.Table


def row(
    *steps: list[Any],
    layout: str = "process",
    collective: str = "all_reduce",
    world_size: Any = 2,
    ranks_per_node: Any = 1,
) -> dict[str, Any]:
    """An entry of a table's picks."""
    return {
        "layout": layout,
        "collective": collective,
        "world_size": world_size,
        "ranks_per_node": ranks_per_node,
        "algorithms": list(steps),
    }


def text(*rows: Any, **about: Any) -> str:
    """A file's content."""
    return json.dumps({"format": 1, **about, "picks": list(rows)})


def write(path: Path, *rows: Any, **about: Any) -> Path:
    """A file."""
    path.write_text(text(*rows, **about))
    return path
