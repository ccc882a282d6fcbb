"""The fate of a compiled program's collectives, for people."""

from __future__ import annotations

import re
from typing import NamedTuple

from jaxcoll._hlo import module as _module
from jaxcoll._hlo import proto, serve, simplify


class Call(NamedTuple):
    """A collective of a program that jaxcoll serves."""

    collective: str  # "all_reduce"
    algorithm: str
    result: str  # "f32[8,16]", or several in parentheses
    label: str  # over what, and where the program asks for it
    changes: str  # what jaxcoll made of the program's collectives here; "" if nothing


class ProgramReport(NamedTuple):
    """The fate of a program's collectives. `str` makes a page of it."""

    program: str
    served: tuple[Call, ...]
    left: tuple[serve.Left, ...]

    def __str__(self) -> str:
        lines = [f"{self.program}: {len(self.served)} served, {len(self.left)} left to XLA"]
        for call in self.served:
            changes = f"; {call.changes}" if call.changes else ""
            what = f"{call.collective} ({call.algorithm}) -> {call.result}"
            lines.append(f"  {what} over {call.label}{changes}")
        for left in self.left:
            place = f" for {left.source}" if left.source else ""
            lines.append(f"  left: {left.origin} -> {left.shape}{place}: {left.reason}")
        return "\n".join(lines)


def of_module(serialized: bytes) -> ProgramReport:
    """The report of a compiled module, an HloModuleProto."""
    module = proto.Module.FromString(serialized)
    calls = []
    for computation in module.computations:
        for instruction in computation.instructions:
            if instruction.custom_call_target.startswith(serve.TARGET):
                config = instruction.backend_config.decode()
                calls.append(
                    Call(
                        text(config, "collective"),
                        text(config, "algorithm"),
                        _module.text(instruction.shape),
                        text(config, "label"),
                        _module.attributes(instruction).get(simplify.CHANGES, ""),
                    )
                )
    # `serve` refuses again what it has refused, for the same reason. It never saw the others.
    unseen, left = serve.serve(module, lambda request: {})
    left += [serve.Left(r.origin, r.signature, r.source, _UNSEEN) for r in unseen]
    return ProgramReport(module.name, tuple(calls), tuple(left))


_UNSEEN = "the program was compiled without jaxcoll.install(), or a warning says why it was left"


def integer(config: str, name: str) -> int:
    """An integer of an MLIR dictionary."""
    found = re.search(rf"[{{ ]{name} = (-?\d+)", config)
    return int(found[1]) if found else 0


def integers(config: str, name: str) -> list[int]:
    """An array of integers of an MLIR dictionary."""
    found = re.search(rf"[{{ ]{name} = array<i64:? ?([-0-9, ]*)>", config)
    return [int(number) for number in found[1].split(",") if number.strip()] if found else []


def text(config: str, name: str) -> str:
    """A string of an MLIR dictionary."""
    found = re.search(rf'[{{ ]{name} = "((?:[^"\\]|\\.)*)"', config)
    if found is None:
        return ""
    raw = re.sub(r"\\([0-9A-F]{2})", lambda m: chr(int(m[1], 16)), found[1])
    return re.sub(r"\\(.)", r"\1", raw).encode("latin-1", "replace").decode("utf-8", "replace")
