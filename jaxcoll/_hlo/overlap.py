"""Collectives overlap with instructions that do not need them.

XLA:CPU starts an instruction when its operands are ready, and continues while a call waits for
other devices. Two things prevent this:

- Short computations: in those of up to eight instructions XLA waits for each instruction, so a late
  device costs its whole delay. Such computations are made longer by calls that do nothing, if
  enough work can overlap.
- The order in which XLA starts what is ready, its schedule's. A call that starts after long work
  reaches the other devices late. Control dependencies move calls forward: they determine the place
  of instructions in the schedule, and XLA waits for none of them when the program runs.

Why not a pair of calls, one that starts a collective and one that waits for it: when another
instruction of the program fails, XLA frees the program's arrays, although a started collective is
still writing to them.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from jaxcoll._hlo import module as _module
from jaxcoll._hlo import serve
from jaxcoll._hlo.costs import FREE, Costs

TARGET = "jaxcoll_nothing"
_SHORT = 8  # ThunkExecutor::Options::execute_sequential_num_thunks_threshold of XLA:CPU
# To run instructions side by side costs some ten microseconds: less than this, as Costs counts.
_WORTH_BYTES = 1 << 20
_BEHIND_A_CALL = 4  # instructions that are put there, at most: others mostly wait for these
_U8 = 6


def overlap(program: _module.Program, costs: Costs) -> bool:
    """Lets the collectives of a module go on beside its other instructions; whether that took a
    change."""
    changed = False
    for body, calls in program.bodies(serve.is_custom_call, serve.is_ours):
        beside = _Beside(body, calls, costs)
        if not beside.is_worth_it():
            continue
        for call in calls:
            beside.put_first(call)
        length = sum(opcode not in FREE for opcode in body.opcodes.values())
        body.add([_nothing(body, calls[0]) for _ in range(_SHORT + 1 - length)])
        changed = True
    return changed


def _nothing(body: _module.Body, like: Any) -> Any:
    made = body.make(like, "custom-call", _module.array(_U8, [1]), [])
    made.custom_call_target = TARGET
    made.custom_call_api_version = serve.TYPED_FFI
    made.custom_call_has_side_effect = True
    made.constrain_layout = True
    return made


class _Beside:
    """The instructions that take time and can go on beside the calls of a computation."""

    def __init__(self, body: _module.Body, calls: list[Any], costs: Costs) -> None:
        self._body = body
        self._number = {call.id: number for number, call in enumerate(calls)}
        self._times = costs.times(body)
        took = self._times.took
        heavy = [n for n in took if n not in self._number and took[n] >= _WORTH_BYTES / 16]
        self._heavy = sorted(heavy, key=lambda n: self._times.begin[n])
        self._took = np.array([took[n] for n in self._heavy])
        self._begin = np.array([self._times.begin[n] for n in self._heavy])

    def is_worth_it(self) -> bool:
        """Whether enough can go on beside one of the calls."""
        if self._took.sum() < _WORTH_BYTES:
            return False
        return bool((self._took @ self._is_beside).max() >= _WORTH_BYTES)

    @functools.cached_property
    def _is_beside(self) -> np.ndarray:
        """(heavy instructions, calls): whether neither depends on the other."""
        sources = self._body.sources
        bit = {number: 1 << place for number, place in self._number.items()}
        before: dict[int, int] = {}  # the calls that an instruction depends on
        for number, needed in sources.items():
            bits = 0
            for source in needed:
                bits |= before[source] | bit.get(source, 0)
            before[number] = bits
        tied = dict(before)  # and those that depend on it
        for number in reversed(sources):
            bits = (tied[number] & ~before[number]) | bit.get(number, 0)
            for source in sources[number]:
                tied[source] |= bits
        row_bytes = (len(bit) + 7) // 8
        rows = b"".join(tied[number].to_bytes(row_bytes, "little") for number in self._heavy)
        bits_of = np.frombuffer(rows, np.uint8).reshape(len(self._heavy), row_bytes)
        return np.unpackbits(bits_of, axis=1, count=len(bit), bitorder="little") == 0

    def put_first(self, call: Any) -> None:
        """Has what becomes ready with a call, or later, start behind it.

        There is no cycle: instructions that take time lead only to ones that begin later.
        """
        first = int(np.searchsorted(self._begin, self._times.begin[call.id]))
        later = np.flatnonzero(self._is_beside[first:, self._number[call.id]])
        for place in later[:_BEHIND_A_CALL].tolist():
            self._body.put_behind(self._heavy[first + place], call.id)
