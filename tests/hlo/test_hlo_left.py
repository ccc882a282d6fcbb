"""An unknown form of a collective is left to XLA, with the reason; its module is unchanged."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from support import hlo

from jaxcoll._hlo import report, serve

REST = "replica_groups={{0,1},{2,3}}, channel_id=1, use_global_device_ids=true"


def module(shape: str = "f32[4,6]{1,0}", entry: str = "", op: str = "add(a, b)") -> Any:
    name = shape.partition("[")[0]
    entry = entry or f"  ROOT r = {shape} all-reduce(p), {REST}, to_apply=sum"
    made = hlo.of_text(
        f"""HloModule m
sum {{ a = {name}[] parameter(0)
  b = {name}[] parameter(1)
  ROOT c = {name}[] {op} }}
ENTRY e {{
  p = {shape} parameter(0)
{entry}
}}
"""
    )
    made.device_assignment.replica_count = 1
    made.device_assignment.computation_count = 4
    for device in range(4):
        made.device_assignment.computation_devices.add(replica_device_ids=[device])
    return made


def collective(made: Any) -> Any:
    signs = ("all-", "collective-", "reduce-scatter", "ragged-")
    found = [i for c in made.computations for i in c.instructions if i.opcode.startswith(signs)]
    return found[0]


def changed(change: Callable[[Any], None], **options: Any) -> Any:
    made = module(**options)
    change(collective(made))
    return made


def of_all_shapes(change: Callable[[Any], None]) -> Any:
    made = module()
    for i in made.computations[-1].instructions:
        change(i.shape)
    return made


def without_devices() -> Any:
    made = module()
    made.ClearField("device_assignment")
    return made


def groups(instruction: Any, *rows: list[int]) -> None:
    for field in ("collective_device_list", "iota_collective_device_list"):
        instruction.ClearField(field)
    del instruction.replica_groups[:]
    for row in rows:
        instruction.replica_groups.add(replica_ids=row)


def of_floats_with(opcode: str) -> Any:
    """XLA's parser refuses bits of floats."""
    made = module()
    for computation in made.computations:
        for instruction in computation.instructions:
            if instruction.opcode == "add":
                instruction.opcode = opcode
    return made


def by_dimension(opcode: str, result: str, more: str = "") -> str:
    groups = REST.replace(", use_global_device_ids=true", "") if opcode == "all-to-all" else REST
    return f"  ROOT r = f32[{result}]{{0,1}} {opcode}(p), {groups}, dimensions={{0}}{more}"


def without_reasons(made: Any) -> bytes:
    """A module without what `serve` notes on collectives that it leaves."""
    copy = type(made).FromString(made.SerializeToString())
    for computation in copy.computations:
        for instruction in computation.instructions:
            kept = [a for a in instruction.frontend_attributes.map if a.key != serve.LEFT]
            attributes = [(a.key, a.value) for a in kept]
            del instruction.frontend_attributes.map[:]
            for key, value in attributes:
                instruction.frontend_attributes.map.add(key=key, value=value)
    text: bytes = copy.SerializeToString(deterministic=True)
    return text


UNKNOWN = b"\xf2\x7d\x03abc"  # field 2014, bytes

LEFT: dict[str, tuple[Callable[[], Any], str]] = {
    "a field of the future": (
        lambda: changed(lambda i: i.MergeFromString(UNKNOWN)),
        "number 2014",
    ),
    "a shape's field of the future": (
        lambda: changed(lambda i: i.shape.MergeFromString(UNKNOWN)),
        "number 2014",
    ),
    "a known field of other instructions": (
        lambda: changed(lambda i: i.dynamic_slice_sizes.append(1)),
        "dynamic_slice_sizes",
    ),
    "an opcode of the future": (
        lambda: changed(lambda i: setattr(i, "opcode", "collective-reduce")),
        "an unknown collective",
    ),
    "groups of several sizes": (
        lambda: changed(lambda i: groups(i, [0], [1, 2, 3])),
        "several sizes",
    ),
    "groups that leave devices out": (lambda: changed(lambda i: groups(i, [0, 1])), "no group"),
    "no device assignment": (without_devices, "on which devices"),
    "four bits": (lambda: module("s4[4,6]{1,0:E(4)}"), "engine has no|number 7"),
    "a dynamic dimension": (
        lambda: of_all_shapes(lambda s: s.is_dynamic_dimension.__setitem__(0, True)),
        "size is known only",
    ),
    "no elements": (lambda: module("f32[0,6]{1,0}"), "without elements"),
    "tiles": (lambda: module("f32[4,6]{1,0:T(2,2)}"), "layout|field"),
    "another memory": (lambda: module("f32[4,6]{1,0:S(1)}"), "layout|field"),
    "no layout": (
        lambda: of_all_shapes(lambda s: s.ClearField("layout")),
        "layout",
    ),
    "padding": (
        lambda: of_all_shapes(lambda s: setattr(s.layout, "tail_padding_alignment_in_elements", 8)),
        "layout",
    ),
    "a result in another layout": (
        lambda: module(entry=f"  ROOT r = f32[4,6]{{0,1}} all-reduce(p), {REST}, to_apply=sum"),
        "layout",
    ),
    "a difference": (lambda: module(op="subtract(a, b)"), "'subtract'"),
    "a sum of one value": (lambda: module(op="add(a, a)"), "two values"),
    "an operation of bits on floats": (
        lambda: of_floats_with("and"),
        "'and' of f32",
    ),
    "a gather whose result is in another layout": (
        lambda: module(entry=by_dimension("all-gather", "8,6")),
        "another layout",
    ),
    "a scatter whose result is in another layout": (
        lambda: module(entry=by_dimension("reduce-scatter", "2,6", ", to_apply=sum")),
        "another layout",
    ),
    "an exchange whose result is in another layout": (
        lambda: module(entry=by_dimension("all-to-all", "4,6")),
        "another layout",
    ),
    "a start used by others": (
        lambda: module(
            entry=f"""  s = (f32[4,6]{{1,0}}, f32[8,6]{{1,0}}) all-gather-start(p), {REST},
    dimensions={{0}}
  g = f32[4,6]{{1,0}} get-tuple-element(s), index=0
  d = f32[8,6]{{1,0}} all-gather-done(s)
  ROOT t = (f32[4,6]{{1,0}}, f32[8,6]{{1,0}}) tuple(g, d)"""
        ),
        "other instructions than its done",
    ),
}


@pytest.mark.parametrize("case", LEFT)
def test_an_unknown_form_is_left_as_it_is(case: str) -> None:
    make, reason = LEFT[case]
    made = make()
    before = without_reasons(made)
    with hlo.rewriting(made) as program:
        served, left = serve.serve(program, lambda request: {})
    assert not served
    (found,) = left
    assert re.search(reason, found.reason), found
    assert report.of_module(made.SerializeToString()).left == (found,)
    assert without_reasons(made) == before


def test_the_deciding_function_may_refuse() -> None:
    made = module()
    before = without_reasons(made)

    def refuse(request: serve.Request) -> dict[str, Any]:
        raise serve.NotServed("not today")

    with hlo.rewriting(made) as program:
        served, (left,) = serve.serve(program, refuse)
    assert not served
    assert left.reason == "not today"
    assert without_reasons(made) == before


def test_the_modules_above_are_served_without_their_oddity() -> None:
    made = module()
    with hlo.rewriting(made) as program:
        (request,), left = serve.serve(program, lambda request: {})
    assert not left
    assert (request.collective, request.reduce_op, request.byte_count) == ("all_reduce", "sum", 96)
    assert request.groups.tolist() == [[0, 1], [2, 3]]
    assert serve.TARGET in hlo.to_text(made)
