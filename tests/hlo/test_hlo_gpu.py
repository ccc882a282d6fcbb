"""Modules for GPUs are rewritten before XLA assigns layouts, and calls may get a stream there."""

from __future__ import annotations

from typing import Any

import pytest
from support import hlo

from jaxcoll._hlo import serve, simplify, streams

SUM = "sum { a = f32[] parameter(0)\n  b = f32[] parameter(1)\n  ROOT c = f32[] add(a, b) }\n"
GROUP = "replica_groups={{0,1}}, channel_id=1"
PAIR = f"{GROUP}, use_global_device_ids=true"
ROW = "f32[1,6]{1,0}"
FORMS = {
    "all-gather of columns": f"""
  p = f32[4,6]{{1,0}} parameter(0)
  ROOT r = f32[4,12]{{1,0}} all-gather(p), {PAIR}, dimensions={{1}}""",
    "reduce-scatter of columns": f"""
  p = f32[4,6]{{1,0}} parameter(0)
  ROOT r = f32[4,3]{{1,0}} reduce-scatter(p), {PAIR}, dimensions={{1}}, to_apply=sum""",
    "all-to-all": f"""
  p = f32[4,6]{{1,0}} parameter(0)
  ROOT r = f32[4,6]{{1,0}} all-to-all(p), {GROUP}, dimensions={{0}}""",
    "all-to-all of a tuple": f"""
  p = {ROW} parameter(0)
  q = {ROW} parameter(1)
  ROOT r = ({ROW}, {ROW}) all-to-all(p, q), {GROUP}""",
}


def module(entry: str) -> Any:
    made = hlo.of_text(f"HloModule m\n{SUM}ENTRY e {{{entry}\n}}\n")
    made.device_assignment.replica_count = 1
    made.device_assignment.computation_count = 2
    for device in range(2):
        made.device_assignment.computation_devices.add(replica_device_ids=[device])
    return made


def opcodes(made: Any) -> list[str]:
    return [i.opcode for c in made.computations for i in c.instructions]


@pytest.mark.parametrize("form", FORMS)
def test_before_layouts_are_assigned_nothing_says_how_bytes_lie(form: str) -> None:
    attributes = {"algorithm": "direct"}
    made = module(FORMS[form])
    with hlo.rewriting(made) as program:
        (_,), left = serve.serve(program, lambda request: attributes, serve.GPU)
    assert not left
    assert "bitcast" not in opcodes(made)
    assert "separate_blocks" not in attributes  # GPUs take the blocks in one array
    (call,) = (i for c in made.computations for i in c.instructions if i.custom_call_target)
    assert len(call.operand_ids) == 1
    hlo.to_text(made)


def test_a_layout_that_is_asked_for_already_is_left_to_xla() -> None:
    made = module(FORMS["all-to-all"].replace("{1,0}", "{0,1}"))
    with hlo.rewriting(made) as program:
        served, (left,) = serve.serve(program, lambda request: {}, serve.GPU)
    assert not served
    assert "layout" in left.reason


def test_a_slice_that_xla_clamps_is_the_device_s_own() -> None:
    made = module(f"""
  p = f32[8,3]{{1,0}} parameter(0)
  r = f32[8,3]{{1,0}} all-reduce(p), {PAIR}, to_apply=sum
  id = u32[] partition-id()
  least = u32[] constant(0)
  most = u32[] constant(1)
  rank = u32[] clamp(least, id, most)
  number = s32[] convert(rank)
  four = s32[] constant(4)
  at = s32[] multiply(number, four)
  zero = s32[] constant(0)
  ROOT d = f32[4,3]{{1,0}} dynamic-slice(r, at, zero), dynamic_slice_sizes={{4,3}}""")
    with hlo.rewriting(made) as program:
        simplify.simplify(program, lambda request: {}, lambda *sizes: True, serve.GPU)
    assert "reduce-scatter" in opcodes(made)
    assert "bitcast" not in opcodes(made)


BESIDE = f"""
  p = f32[64]{{0}} parameter(0)
  q = f32[8,8]{{1,0}} parameter(1)
  d = f32[8,8]{{1,0}} dot(q, q), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
  r = f32[64]{{0}} all-reduce(p), {PAIR}, to_apply=sum
  s = f32[64]{{0}} add(r, r)
  ROOT t = (f32[64]{{0}}, f32[8,8]{{1,0}}) tuple(s, d)"""
BEHIND = f"""
  q = f32[8,8]{{1,0}} parameter(0)
  d = f32[8,8]{{1,0}} dot(q, q), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
  r = f32[8,8]{{1,0}} all-reduce(d), {PAIR}, to_apply=sum
  ROOT s = f32[8,8]{{1,0}} add(r, r)"""


@pytest.mark.parametrize(("entry", "count"), [(BESIDE, 1), (BEHIND, 0)])
def test_calls_that_have_work_beside_them_name_a_stream(entry: str, count: int) -> None:
    made = module(entry)
    with hlo.rewriting(made) as program:
        serve.serve(program, lambda request: {}, serve.GPU)
    with hlo.rewriting(made) as program:
        assert streams.put_on_stream(program) == count
    text = hlo.to_text(made)
    assert text.count("_xla_stream_annotation") == count
    assert text.count('inlineable="false"') == count
    assert text.count(f'custom_call_target="{serve.TARGET}"') == 1
    numbers = [i.id for c in made.computations for i in c.instructions]
    assert len(set(numbers)) == len(numbers)
    with hlo.rewriting(made) as program:
        assert streams.put_on_stream(program) == 0  # what is on the stream stays there


def test_calls_on_the_stream_run_one_after_the_other() -> None:
    made = module(f"""
  p = f32[64]{{0}} parameter(0)
  q = f32[8,8]{{1,0}} parameter(1)
  r = f32[64]{{0}} all-reduce(p), {PAIR}, to_apply=sum
  d = f32[8,8]{{1,0}} dot(q, q), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
  s = f32[64]{{0}} add(p, p)
  u = f32[64]{{0}} all-reduce(s), {PAIR}, to_apply=sum
  ROOT t = (f32[64]{{0}}, f32[8,8]{{1,0}}, f32[64]{{0}}) tuple(r, d, u)""")
    with hlo.rewriting(made) as program:
        serve.serve(program, lambda request: {}, serve.GPU)
    with hlo.rewriting(made) as program:
        assert streams.put_on_stream(program) == 2
    first, second = (i for i in made.computations[-1].instructions if i.opcode == "call")
    assert list(second.control_predecessor_ids) == [first.id]
    hlo.to_text(made)
