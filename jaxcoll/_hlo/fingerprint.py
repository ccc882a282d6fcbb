"""The text of a module, line by line, and the digest by which processes identify modules.

A line is an instruction without names, source locations and whatever else may differ between
processes that have compiled the same program; large literals are replaced by digests.
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
    """Each is "computation @ source location". Clears the module's instructions."""
    found = []
    source_of = _module.Sources(module).of
    shapes: dict[bytes, str] = {}
    digests: dict[bytes, str] = {}  # of whatever else an instruction has: few differ
    computations = {c.id: number for number, c in enumerate(module.computations)}
    for number, computation in enumerate(module.computations):
        found.append(f"computation {number} @ ")
        root_id = computation.root_id
        names = {i.id: f"v{place}" for place, i in enumerate(computation.instructions)}
        for instruction in computation.instructions:
            opcode, own = instruction.opcode, instruction.id
            serialized = instruction.shape.SerializeToString()
            if serialized not in shapes:
                shapes[serialized] = _module.text(instruction.shape)
            operands = " ".join([names[i] for i in instruction.operand_ids])
            text = f"  {names[own]} = {opcode} {operands} -> {shapes[serialized]}"
            if called := instruction.called_computation_ids:
                text += "".join(f" computation {computations[i]}" for i in called)
            if before := instruction.control_predecessor_ids:
                text += f" after {' '.join([names[i] for i in before])}"
            source = source_of(instruction)
            clear = instruction.ClearField
            for field in _LEFT_OUT:
                clear(field)
            if opcode != "custom-call":
                clear("backend_config")  # XLA's, by the number of cores
            if rest := instruction.SerializeToString(deterministic=True):
                if rest not in digests:
                    digests[rest] = hashlib.blake2b(rest, digest_size=6).hexdigest()
                text += f" #{digests[rest]}"
            found.append(f"{text}{' root' if own == root_id else ''} @ {source}")
    return found


def digest(lines_of_module: list[str], *more: str) -> str:
    """The fingerprint of a module, from its lines and everything else that distinguishes it."""
    lines = [*[line.rpartition(" @ ")[0] for line in lines_of_module], *more, ""]
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=8).hexdigest()
