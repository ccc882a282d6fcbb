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


class Costs:
    """How long instructions take, in bytes that are moved meanwhile."""

    def __init__(self, module: Any) -> None:
        self._computations = {c.id: c for c in module.computations}
        self._known: dict[int, float] = {}  # by computation
        self._of: dict[int, float] = {}  # by instruction

    def of(self, instruction: Any, by_id: dict[int, Any]) -> float:
        """The cost of an instruction of a computation."""
        number = instruction.id
        if number not in self._of:
            self._of[number] = self._new(instruction, by_id)
        return self._of[number]

    def _new(self, instruction: Any, by_id: dict[int, Any]) -> float:
        opcode = instruction.opcode
        if opcode in FREE or instruction.custom_call_target == serve.TARGET:
            return 0.0
        cost = _size(instruction.shape)
        cost += sum(_size(by_id[o].shape) for o in instruction.operand_ids)
        if opcode in ("dot", "convolution"):
            # The numbers of elements of M x K, K x N and M x N multiply to (M K N)^2.
            counts = [_elements(by_id[o].shape) for o in instruction.operand_ids[:2]]
            cost += (
                2 * math.sqrt(math.prod(counts) * _elements(instruction.shape)) / _FLOPS_PER_BYTE
            )
        if instruction.called_computation_ids and opcode in _HEAVY:
            times = _LOOP if opcode == "while" else 1
            cost += times * sum(self._within(c) for c in instruction.called_computation_ids)
        return cost

    def _within(self, number: int) -> float:
        """The cost of a computation's products; the rest of a fusion moves nothing."""
        if number not in self._known:
            self._known[number] = 0.0  # a cycle cannot be
            computation = self._computations[number]
            counted = [
                i
                for i in computation.instructions
                if i.opcode in _HEAVY or not computation.is_fusion_computation
            ]
            if counted:
                by_id = {i.id: i for i in computation.instructions}
                self._known[number] = sum(self.of(i, by_id) for i in counted)
        return self._known[number]


class Times:
    """When the instructions of a computation can begin and end at the earliest, and must end lest
    the computation takes longer."""

    def __init__(self, computation: Any, costs: Costs) -> None:
        by_id = {i.id: i for i in computation.instructions}
        self.begin: dict[int, float] = {}
        self.end: dict[int, float] = {}
        took: dict[int, float] = {}
        for i in computation.instructions:
            sources = (*i.operand_ids, *i.control_predecessor_ids)
            self.begin[i.id] = max((self.end[source] for source in sources), default=0.0)
            took[i.id] = costs.of(i, by_id)
            self.end[i.id] = self.begin[i.id] + took[i.id]
        self.must_end = dict.fromkeys(by_id, max(self.end.values()))
        for i in reversed(list(computation.instructions)):
            for source in (*i.operand_ids, *i.control_predecessor_ids):
                must_begin = self.must_end[i.id] - took[i.id]
                self.must_end[source] = min(self.must_end[source], must_begin)


def _elements(shape: Any) -> int:
    return sum(_module.element_count(array) for array in _module.arrays(shape))


def _size(shape: Any) -> float:
    return float(
        sum(
            _module.element_count(array) * (_module.element_bytes(array.element_type) or 0)
            for array in _module.arrays(shape)
        )
    )
