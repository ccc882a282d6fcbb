"""Evaluates integers that a module computes from the device's number, for all devices at once.

The offset of a device's slice of an array is such an integer: partition-id times a size, or an
entry of a table. Other expressions are not evaluated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxcoll._hlo.groups import Devices

# XLA's types of integers.
_DTYPES = {
    2: np.int8,
    3: np.int16,
    4: np.int32,
    5: np.int64,
    6: np.uint8,
    7: np.uint16,
    8: np.uint32,
    9: np.uint64,
}
_LITERALS = {4: "s32s", 5: "s64s", 8: "u32s", 9: "u64s"}
_SAME = {"bitcast", "reshape", "copy"}
_BINARY: dict[str, Callable[..., np.ndarray]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "minimum": np.minimum,
    "maximum": np.maximum,
}


_KNOWN = {
    *(*_SAME, *_BINARY, "partition-id", "replica-id", "parameter", "constant", "fusion", "convert"),
    *("clamp", "dynamic-slice"),
}
_MOST_ELEMENTS = 1 << 22  # of all devices


def _is_row_major(instruction: Any) -> bool:
    order = list(instruction.shape.layout.minor_to_major)
    return order == sorted(order, reverse=True)


@dataclass
class _Frame:
    """One call of a computation.

    Attributes:
      computation: its id.
      parameters: their values, where they are known; none at all for a call from outside.
      known: the values of its instructions that have been evaluated, by their ids.
    """

    computation: int
    parameters: list[np.ndarray | None]
    known: dict[int, np.ndarray | None] = field(default_factory=dict)


class Evaluator:
    """Evaluates instructions of one module."""

    def __init__(self, module: Any, devices: Devices) -> None:
        self._computations = {c.id: c for c in module.computations}
        self._by_id: dict[int, dict[int, Any]] = {}  # of the computations that have been asked for
        logical = np.arange(len(devices))
        self._numbers = {
            "partition-id": logical % devices.partitions,
            "replica-id": logical // devices.partitions,
        }
        self._devices = len(devices)

    def value(
        self, computation: int, instruction: Any, parameters: list[np.ndarray | None] | None = None
    ) -> np.ndarray | None:
        """(devices, *dimensions); None if it is not known.

        Args:
          computation: the id of that of `instruction`.
          parameters: the values of the computation's parameters, where they are known.
        """
        try:
            return self._value(_Frame(computation, parameters or []), instruction)
        except RecursionError:  # an expression deeper than Python's stack
            return None

    def _value(self, frame: _Frame, instruction: Any) -> np.ndarray | None:
        if instruction.id not in frame.known:
            frame.known[instruction.id] = self._new_value(frame, instruction)
        return frame.known[instruction.id]

    def _new_value(self, frame: _Frame, instruction: Any) -> np.ndarray | None:
        dtype = _DTYPES.get(instruction.shape.element_type)
        shape = (self._devices, *instruction.shape.dimensions)
        opcode = instruction.opcode
        if dtype is None or opcode not in _KNOWN or math.prod(shape) > _MOST_ELEMENTS:
            return None
        if opcode in self._numbers:
            return self._numbers[opcode].astype(dtype)
        if opcode == "parameter":
            number = instruction.parameter_number
            return frame.parameters[number] if number < len(frame.parameters) else None
        if opcode == "constant":
            return self._constant(instruction, shape, dtype)
        by_id = self._instructions(frame.computation)
        sources = [by_id[operand] for operand in instruction.operand_ids]
        if opcode == "bitcast" and not all(map(_is_row_major, [instruction, *sources])):
            return None  # its values are those of the memory, in another order
        operands = [self._value(frame, source) for source in sources]
        if opcode == "fusion":
            (called,) = instruction.called_computation_ids
            root = self._instructions(called)[self._computations[called].root_id]
            return self._value(_Frame(called, operands), root)
        values = [operand for operand in operands if operand is not None]
        if len(values) < len(operands):
            return None
        with np.errstate(over="ignore"):
            return self._result(instruction, values, shape, dtype)

    def _instructions(self, computation: int) -> dict[int, Any]:
        """Those of a computation, by their ids."""
        if computation not in self._by_id:
            instructions = self._computations[computation].instructions
            self._by_id[computation] = {i.id: i for i in instructions}
        return self._by_id[computation]

    def _constant(self, instruction: Any, shape: tuple[int, ...], dtype: Any) -> np.ndarray | None:
        name = _LITERALS.get(instruction.shape.element_type)
        if name is None:
            return None
        values = np.array(list(getattr(instruction.literal, name)), dtype)
        if values.size != math.prod(shape[1:]) or not _is_row_major(instruction):
            return None
        return np.broadcast_to(values.reshape(shape[1:]), shape)

    def _result(
        self, instruction: Any, operands: list[np.ndarray], shape: tuple[int, ...], dtype: Any
    ) -> np.ndarray | None:
        opcode = instruction.opcode
        if opcode == "convert":
            return operands[0].astype(dtype)
        if opcode in _SAME and operands[0].dtype == dtype and operands[0].size == np.prod(shape):
            return operands[0].reshape(shape)
        if opcode in _BINARY and all(o.shape == shape for o in operands) and len(operands) == 2:
            return _BINARY[opcode](*operands).astype(dtype)
        if opcode == "clamp" and all(o.shape == shape for o in operands) and len(operands) == 3:
            least, value, most = operands
            return np.minimum(np.maximum(value, least), most).astype(dtype)
        if opcode == "dynamic-slice":
            return self._dynamic_slice(instruction, operands)
        return None

    def _dynamic_slice(self, instruction: Any, operands: list[np.ndarray]) -> np.ndarray:
        array, *starts = operands
        sizes = list(instruction.dynamic_slice_sizes)
        rows = []
        for device in range(self._devices):
            index = []
            for dimension, (start, size) in enumerate(zip(starts, sizes, strict=True)):
                first = min(max(int(start[device]), 0), array.shape[dimension + 1] - size)
                index.append(slice(first, first + size))
            rows.append(array[device][tuple(index)])
        return np.stack(rows)
