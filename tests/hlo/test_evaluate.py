"""Integers of a program that depend on the device's number."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np

from jaxcoll._hlo.evaluate import Evaluator

_S32 = 4  # XLA's number of the type


class _Devices(SimpleNamespace):
    partitions = 4

    def __len__(self) -> int:
        return self.partitions


def instruction(number: int, opcode: str, *operands: int) -> Any:
    shape = SimpleNamespace(element_type=_S32, dimensions=[])
    return SimpleNamespace(id=number, opcode=opcode, operand_ids=operands, shape=shape)


def chain(length: int) -> tuple[Evaluator, Any]:
    """The device's number, doubled `length` times."""
    instructions = [instruction(0, "partition-id")]
    instructions += [instruction(i, "add", i - 1, i - 1) for i in range(1, length + 1)]
    computation = SimpleNamespace(id=1, instructions=instructions, root_id=length)
    devices: Any = _Devices()
    return Evaluator(SimpleNamespace(computations=[computation]), devices), instructions[-1]


def test_a_value_of_every_device_is_found() -> None:
    evaluator, last = chain(3)
    assert np.array_equal(evaluator.value(1, last), [0, 8, 16, 24])  # type: ignore[arg-type]


def test_an_expression_deeper_than_the_stack_has_no_known_value() -> None:
    evaluator, last = chain(2 * sys.getrecursionlimit())
    assert evaluator.value(1, last) is None
    assert evaluator.value(1, instruction(0, "partition-id")) is not None
