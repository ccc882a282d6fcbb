"""A call stands before what becomes ready with it, and short computations run side by side."""

from __future__ import annotations

from typing import Any

import pytest
from support import hlo

from jaxcoll._hlo import overlap, serve
from jaxcoll._hlo.costs import Costs

# A sum of p, and products of q that need nothing of it.
PROGRAM = """HloModule m
sum {{ a = f32[] parameter(0)
  b = f32[] parameter(1)
  ROOT c = f32[] add(a, b) }}
ENTRY e {{
  p = f32[64]{{0}} parameter(0)
  q = f32[{n},{n}]{{1,0}} parameter(1)
  d = f32[{n},{n}]{{1,0}} dot(q, q), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
  r = f32[64]{{0}} all-reduce(p), replica_groups={{{{0,1}}}}, channel_id=1,
    use_global_device_ids=true, to_apply=sum
  {more}
  ROOT t = (f32[64]{{0}}, f32[{n},{n}]{{1,0}}) tuple({sum}, d)
}}
"""


def overlapped(n: int, more: str = "", total: str = "r") -> tuple[bool, Any]:
    module = hlo.of_text(PROGRAM.format(n=n, more=more, sum=total))
    module.device_assignment.replica_count = 1
    module.device_assignment.computation_count = 2
    for device in range(2):
        module.device_assignment.computation_devices.add(replica_device_ids=[device])
    with hlo.rewriting(module) as program:
        served, left = serve.serve(program, lambda request: {})
    assert served
    assert not left
    with hlo.rewriting(module) as program:
        changed = overlap.overlap(program, Costs(program))
    return changed, module.computations[-1]


def test_a_short_computation_is_made_longer_and_the_call_stands_first() -> None:
    changed, entry = overlapped(512)
    assert changed
    opcodes = {i.id: i for i in entry.instructions}
    (call,) = (i for i in entry.instructions if i.custom_call_target == serve.TARGET)
    (dot,) = (i for i in entry.instructions if i.opcode == "dot")
    assert list(dot.control_predecessor_ids) == [call.id]
    order = list(opcodes)
    assert order.index(call.id) < order.index(dot.id)
    nothing = [i for i in entry.instructions if i.custom_call_target == overlap.TARGET]
    assert all(i.custom_call_has_side_effect for i in nothing)  # or XLA would drop them
    work = [i for i in entry.instructions if i.opcode in ("dot", "custom-call")]
    assert len(work) == 9  # XLA:CPU waits for each instruction where there are up to eight


@pytest.mark.parametrize("n", [2, 64])
def test_little_work_is_left_alone(n: int) -> None:
    changed, entry = overlapped(n)
    assert not changed
    assert not [i for i in entry.instructions if i.control_predecessor_ids]


def test_a_long_computation_is_not_made_longer() -> None:
    chain = ["  n0 = f32[64]{0} negate(r)"]
    chain += [f"  n{i} = f32[64]{{0}} negate(n{i - 1})" for i in range(1, 9)]
    changed, entry = overlapped(512, "\n".join(chain), "n8")
    assert changed
    assert not [i for i in entry.instructions if i.custom_call_target == overlap.TARGET]


def test_work_behind_a_collective_is_not_work_beside_it() -> None:
    """Work behind the collective is nothing that it could go on beside."""
    more = "  w = f32[64,64]{1,0} broadcast(r), dimensions={0}"
    module = PROGRAM.replace("dot(q, q)", "dot(q, w)").format(n=64, more="", sum="r")
    module = module.replace("  d = ", f"{more}\n  d = ")
    lines = module.split("\n")
    first = next(i for i, line in enumerate(lines) if line.startswith("  r = "))
    lines[first - 2 : first - 2] = [lines.pop(first), lines.pop(first)]
    made = hlo.of_text("\n".join(lines))
    made.device_assignment.replica_count = 1
    made.device_assignment.computation_count = 2
    for device in range(2):
        made.device_assignment.computation_devices.add(replica_device_ids=[device])
    with hlo.rewriting(made) as program:
        serve.serve(program, lambda request: {})
    with hlo.rewriting(made) as program:
        assert not overlap.overlap(program, Costs(program))
