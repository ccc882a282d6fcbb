"""The text of a module, line by line, and the digest by which processes tell modules apart.

A line is an instruction without names, source locations and whatever else may differ between
processes that have compiled the same program; large literals stand in it as digests.
"""

from __future__ import annotations

import hashlib
from typing import Any

from jaxcoll._hlo import module as _module

# Not part of what an instruction computes, or shown in another form.
_LEFT_OUT = (
    *("name", "opcode", "shape", "metadata", "id", "operand_ids", "control_predecessor_ids"),
    *("called_computation_ids", "channel_id", "statistics_viz", "original_value"),
)


def lines(module: Any) -> list[str]:
    """Each "what it computes @ where it stands in the source"."""
    found = []
    computations = {c.id: number for number, c in enumerate(module.computations)}
    for number, computation in enumerate(module.computations):
        found.append(f"computation {number} @ ")
        places = {i.id: place for place, i in enumerate(computation.instructions)}
        for place, instruction in enumerate(computation.instructions):
            stripped = type(instruction)()
            stripped.CopyFrom(instruction)
            for field in _LEFT_OUT:
                stripped.ClearField(field)
            if instruction.opcode != "custom-call":
                stripped.ClearField("backend_config")  # XLA's, by the number of cores
            rest = stripped.SerializeToString(deterministic=True)
            operands = " ".join(f"v{places[i]}" for i in instruction.operand_ids)
            called = " ".join(
                f"computation {computations[i]}" for i in instruction.called_computation_ids
            )
            after = " ".join(f"v{places[i]}" for i in instruction.control_predecessor_ids)
            text = (
                f"  v{place} = {instruction.opcode} {operands} -> {_module.text(instruction.shape)}"
            )
            text += f" {called}" if called else ""
            text += f" after {after}" if after else ""
            text += f" #{hashlib.blake2b(rest, digest_size=6).hexdigest()}" if rest else ""
            root = " root" if instruction.id == computation.root_id else ""
            found.append(f"{text}{root} @ {_module.source(module, instruction)}")
    return found


def digest(lines_of_module: list[str], *more: str) -> str:
    """The fingerprint of a module, by its lines, and what else tells it from others."""
    made = hashlib.blake2b(digest_size=8)
    for line in lines_of_module:
        made.update(line.rpartition(" @ ")[0].encode() + b"\n")
    for text in more:
        made.update(text.encode() + b"\n")
    return made.hexdigest()
