"""The fate of a compiled program's collectives, for people."""

from __future__ import annotations

from typing import NamedTuple

from jaxcoll._hlo import dictionary, proto, serve, simplify
from jaxcoll._hlo import module as _module


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
    sources = _module.Sources(module)
    calls, left = [], []
    for computation in module.computations:
        for instruction in computation.instructions:
            if instruction.custom_call_target.startswith(serve.TARGET):
                config = instruction.backend_config.decode()
                calls.append(
                    Call(
                        dictionary.text(config, "collective"),
                        dictionary.text(config, "algorithm"),
                        _module.text(instruction.shape),
                        dictionary.text(config, "label"),
                        _module.attributes(instruction).get(simplify.CHANGES, ""),
                    )
                )
            elif serve.is_collective(instruction) and instruction.opcode not in serve.DONE:
                left.append(
                    serve.Left(
                        instruction.opcode,
                        _module.text(instruction.shape),
                        sources.of(instruction),
                        _module.attributes(instruction).get(serve.LEFT, _UNSEEN),
                    )
                )
    return ProgramReport(module.name, tuple(calls), tuple(left))


_UNSEEN = "the program was compiled without jaxcoll.install(), or a warning says why it was left"
