"""How long instructions take, as estimated from the sizes of their arrays.

The unit of all costs and times is a byte: the time in which a core moves one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from jaxcoll._hlo import module as _module
from jaxcoll._hlo import serve

_FLOPS_PER_BYTE = 8.0  # that a core computes while it moves a byte, about
_LOOP = 10  # how often a loop runs, where nobody knows

# XLA does these before the program runs, or with pointers.
FREE = {"parameter", "constant", "bitcast", "tuple", "get-tuple-element", "after-all"}


_HEAVY = {"dot", "convolution", "fusion", "call", "while", "conditional"}


class Costs:
    """How long instructions take, in bytes that are moved meanwhile."""

    def __init__(self, program: _module.Program) -> None:
        self._program = program
        self._known: dict[int, float] = {}  # by computation
        self._of: dict[int, float] = {}  # by instruction
        self._sizes: dict[int, tuple[int, int]] = {}  # elements and bytes, by instruction
        self._by_shape: dict[bytes, tuple[int, int]] = {}  # most arrays have one of a few shapes
        self._times: dict[int, Times] = {}  # by computation

    def times(self, body: _module.Body) -> Times:
        """Those of a computation, which has not changed since it was asked for before."""
        if body.id not in self._times:
            self._times[body.id] = Times(body, self)
        return self._times[body.id]

    def forget_times(self, body: _module.Body) -> None:
        """The computation has changed."""
        self._times.pop(body.id, None)

    def of(self, body: _module.Body) -> dict[int, float]:
        """The costs of the instructions of a computation."""
        known = self._of
        for number, opcode in body.opcodes.items():
            if number not in known:
                instruction, operands = body.by_id[number], body.operands[number]
                known[number] = self._new(instruction, opcode, operands, body.by_id)
        return {number: known[number] for number in body.opcodes}

    def _new(
        self, instruction: Any, opcode: str, operands: Sequence[int], by_id: dict[int, Any]
    ) -> float:
        if opcode in FREE or (opcode == "custom-call" and serve.is_ours(instruction)):
            return 0.0
        sizes = []
        for number in (instruction.id, *operands):
            sizes.append(self._sizes.get(number) or self._size(number, by_id))
        cost = float(sum([size for _, size in sizes]))
        if opcode not in _HEAVY:
            return cost
        if opcode in ("dot", "convolution"):
            # The numbers of elements of M x K, K x N and M x N multiply to (M K N)^2.
            elements = math.prod([count for count, _ in sizes[:3]])
            return cost + 2 * math.sqrt(elements) / _FLOPS_PER_BYTE
        times = _LOOP if opcode == "while" else 1
        return cost + times * sum(map(self._within, instruction.called_computation_ids))

    def _size(self, number: int, by_id: dict[int, Any]) -> tuple[int, int]:
        """Elements and bytes of an instruction's result."""
        shape = by_id[number].shape
        serialized = shape.SerializeToString()
        if serialized not in self._by_shape:
            self._by_shape[serialized] = _size(shape)
        self._sizes[number] = self._by_shape[serialized]
        return self._sizes[number]

    def _within(self, number: int) -> float:
        """The cost of a computation's products; the rest of a fusion moves nothing."""
        if number not in self._known:
            self._known[number] = 0.0  # a cycle cannot be
            body = self._program.body(number)
            self._known[number] = sum(self.of(body).values()) if body else self._fused(number)
        return self._known[number]

    def _fused(self, number: int) -> float:
        instructions = self._program.computations[number].instructions
        opcodes = [i.opcode for i in instructions]
        if _HEAVY.isdisjoint(opcodes):  # as in most
            return 0.0
        by_id = {i.id: i for i in instructions}
        return sum(
            self._new(i, opcode, i.operand_ids, by_id)
            for i, opcode in zip(by_id.values(), opcodes, strict=True)
            if opcode in _HEAVY
        )


class Times:
    """When the instructions of a computation can begin and end at the earliest, and must end lest
    the computation takes longer."""

    def __init__(self, body: _module.Body, costs: Costs) -> None:
        sources = body.sources
        self.took = costs.of(body)
        begin: dict[int, float] = {}
        end: dict[int, float] = {}
        for number, took in self.took.items():
            begins = 0.0
            for source in sources[number]:
                if end[source] > begins:
                    begins = end[source]
            begin[number] = begins
            end[number] = begins + took
        self.begin, self.end = begin, end
        must_end = dict.fromkeys(sources, max(end.values()))
        for number in reversed(sources):
            must_begin = must_end[number] - self.took[number]
            for source in sources[number]:
                if must_begin < must_end[source]:
                    must_end[source] = must_begin
        self.must_end = must_end


def _size(shape: Any) -> tuple[int, int]:
    """Elements and bytes."""
    element_type = shape.element_type
    if element_type == _module.TUPLE:
        sizes = list(map(_size, shape.tuple_shapes))
        return sum(count for count, _ in sizes), sum(size for _, size in sizes)
    count = math.prod(shape.dimensions)
    return count, count * (_module.element_bytes(element_type) or 0)
