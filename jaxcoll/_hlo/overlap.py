"""Collectives go on beside what does not need them.

XLA:CPU starts an instruction when its operands are ready, and goes on while a call waits for other
devices. Two things keep it from that:

- Short computations: of up to eight instructions each is waited for. A late device then costs its
  whole delay, whatever else there is to do. Such computations are made longer by calls that do
  nothing, where enough can go on meanwhile.
- The order in which XLA starts what is ready, its schedule's. A call that is started behind long
  work reaches the other devices late. Control dependencies put calls first: they say where
  instructions stand in the schedule, and XLA waits for none of them when the program runs.

Why not a pair of calls, one that starts a collective and one that waits for it: when another
instruction of the program fails, XLA frees the program's arrays without a word to a collective that
has been started and is still writing to them.
"""

from __future__ import annotations

from typing import Any

from jaxcoll._hlo import module as _module
from jaxcoll._hlo import serve
from jaxcoll._hlo.costs import FREE, Costs, Times

TARGET = "jaxcoll_nothing"
_SHORT = 8  # ThunkExecutor::Options::execute_sequential_num_thunks_threshold of XLA:CPU
# To run instructions side by side costs some ten microseconds: less than this, as Costs counts.
_WORTH_BYTES = 1 << 20
_BEHIND_A_CALL = 4  # instructions that are put there, at most: others mostly wait for these
_U8 = 6


def overlap(module: Any, costs: Costs) -> bool:
    """Lets the collectives of a module go on beside its other instructions; whether that took a
    change."""
    changed = False
    for computation, body in _module.bodies(module, _is_call):
        calls = [i for i in computation.instructions if _is_call(i)]
        beside = _Beside(computation, calls, costs)
        if max(sum(map(beside.cost, beside.of(call))) for call in calls) < _WORTH_BYTES:
            continue
        for call in calls:
            beside.put_first(call)
        length = sum(i.opcode not in FREE for i in computation.instructions)
        body.add([_nothing(body, calls[0]) for _ in range(_SHORT + 1 - length)])
        changed = True
    return changed


def _is_call(instruction: Any) -> bool:
    return bool(instruction.custom_call_target == serve.TARGET)


def _nothing(body: _module.Body, like: Any) -> Any:
    made = body.make(like, "custom-call", _module.array(_U8, [1]), [])
    made.custom_call_target = TARGET
    made.custom_call_api_version = serve.TYPED_FFI
    made.custom_call_has_side_effect = True
    made.constrain_layout = True
    return made


class _Beside:
    """The instructions that can go on beside the calls of a computation."""

    def __init__(self, computation: Any, calls: list[Any], costs: Costs) -> None:
        self._costs = costs
        self._by_id = {i.id: i for i in computation.instructions}
        self._bit = {call.id: 1 << number for number, call in enumerate(calls)}
        before: dict[int, int] = {}  # the calls that an instruction depends on
        for i in computation.instructions:
            before[i.id] = 0
            for source in (*i.operand_ids, *i.control_predecessor_ids):
                before[i.id] |= before[source] | self._bit.get(source, 0)
        tied = dict(before)  # and those that depend on it
        for i in reversed(list(computation.instructions)):
            for source in (*i.operand_ids, *i.control_predecessor_ids):
                tied[source] |= (tied[i.id] & ~before[i.id]) | self._bit.get(i.id, 0)
        self._begin = Times(computation, costs).begin
        self._heavy = [
            (i, tied[i.id])
            for i in computation.instructions
            if i.id not in self._bit and self.cost(i) >= _WORTH_BYTES / 16
        ]

    def cost(self, instruction: Any) -> float:
        return self._costs.of(instruction, self._by_id)

    def of(self, call: Any) -> list[Any]:
        """The instructions that take time and can go on while `call` does."""
        return [i for i, tied in self._heavy if not tied & self._bit[call.id]]

    def put_first(self, call: Any) -> None:
        """Has what becomes ready with a call, or later, start behind it.

        There is no circle: what takes time leads on to what begins later, and never back.
        """
        later = [i for i in self.of(call) if self._begin[i.id] >= self._begin[call.id]]
        for instruction in sorted(later, key=lambda i: self._begin[i.id])[:_BEHIND_A_CALL]:
            instruction.control_predecessor_ids.append(call.id)
