"""How long instructions take, as estimated from the sizes of their arrays.

The unit of all costs and times is a byte: the time in which a core moves one.
"""

from __future__ import annotations

import math
from typing import Any

from jaxcoll._hlo import module as _module
from jaxcoll._hlo import serve

_FLOPS_PER_BYTE = 8.0  # that a core computes while it moves a byte, about
_LOOP = 10  # how often a loop runs, where nobody knows

# XLA does these before the program runs, or with pointers.
FREE = {"parameter", "constant", "bitcast", "tuple", "get-tuple-element", "after-all"}


_HEAVY = {"dot", "convolution", "fusion", "call", "while", "conditional"}
# Where one of these is among a computation's instructions, its bytes have an opcode and its length.
_SIGNS = [bytes([len(opcode)]) + opcode.encode() for opcode in _HEAVY]


class Costs:
    """How long instructions take, in bytes that are moved meanwhile."""

    def __init__(self, module: Any) -> None:
        self._computations = {c.id: c for c in module.computations}
        self._known: dict[int, float] = {}  # by computation
        self._of: dict[int, float] = {}  # by instruction
        self._sizes: dict[int, tuple[int, int]] = {}  # elements and bytes, by instruction
        self._times: dict[int, Times] = {}  # by computation

    def times(self, body: _module.Body) -> Times:
        """Those of a computation, which has not changed since it was asked for before."""
        if body.id not in self._times:
            self._times[body.id] = Times(body, self)
        return self._times[body.id]

    def forget_times(self, body: _module.Body) -> None:
        """The computation has changed."""
        self._times.pop(body.id, None)

    def of(self, instruction: Any, by_id: dict[int, Any]) -> float:
        """The cost of an instruction of a computation."""
        number = instruction.id
        if number not in self._of:
            self._of[number] = self._new(instruction, by_id)
        return self._of[number]

    def _new(self, instruction: Any, by_id: dict[int, Any]) -> float:
        opcode = instruction.opcode
        if opcode in FREE:
            return 0.0
        if opcode == "custom-call" and instruction.custom_call_target == serve.TARGET:
            return 0.0
        sizes = []
        for number in (instruction.id, *instruction.operand_ids):
            if number not in self._sizes:
                self._sizes[number] = _size(by_id[number].shape)
            sizes.append(self._sizes[number])
        cost = float(sum(size for _, size in sizes))
        if opcode not in _HEAVY:
            return cost
        if opcode in ("dot", "convolution"):
            # The numbers of elements of M x K, K x N and M x N multiply to (M K N)^2.
            elements = math.prod(count for count, _ in sizes[:3])
            cost += 2 * math.sqrt(elements) / _FLOPS_PER_BYTE
        times = _LOOP if opcode == "while" else 1
        return cost + times * sum(map(self._within, instruction.called_computation_ids))

    def _within(self, number: int) -> float:
        """The cost of a computation's products; the rest of a fusion moves nothing."""
        if number not in self._known:
            self._known[number] = 0.0  # a cycle cannot be
            computation = self._computations[number]
            fused = computation.is_fusion_computation
            if fused:
                serialized = computation.SerializeToString()  # faster than a walk
                if not any(sign in serialized for sign in _SIGNS):
                    return 0.0
            by_id = {i.id: i for i in computation.instructions}
            counted = [i for i in by_id.values() if not fused or i.opcode in _HEAVY]
            self._known[number] = sum(self.of(i, by_id) for i in counted)
        return self._known[number]


class Times:
    """When the instructions of a computation can begin and end at the earliest, and must end lest
    the computation takes longer."""

    def __init__(self, body: _module.Body, costs: Costs) -> None:
        sources = body.sources
        self.begin: dict[int, float] = {}
        self.end: dict[int, float] = {}
        self.took: dict[int, float] = {}
        for number, instruction in body.by_id.items():
            begin = 0.0
            for source in sources[number]:
                begin = max(begin, self.end[source])
            self.begin[number] = begin
            self.took[number] = costs.of(instruction, body.by_id)
            self.end[number] = begin + self.took[number]
        self.must_end = dict.fromkeys(sources, max(self.end.values()))
        for number in reversed(sources):
            must_begin = self.must_end[number] - self.took[number]
            for source in sources[number]:
                if must_begin < self.must_end[source]:
                    self.must_end[source] = must_begin


def _size(shape: Any) -> tuple[int, int]:
    """Elements and bytes."""
    element_type = shape.element_type
    if element_type == _module.TUPLE:
        sizes = list(map(_size, shape.tuple_shapes))
        return sum(count for count, _ in sizes), sum(size for _, size in sizes)
    count = math.prod(shape.dimensions)
    return count, count * (_module.element_bytes(element_type) or 0)
