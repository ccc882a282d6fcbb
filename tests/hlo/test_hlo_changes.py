"""Rewriting a program's collectives changes no bit: slices of all-reduces become
reduce-scatters where every device takes its own, and independent calls become one."""

from __future__ import annotations

import random
from typing import Any

import pytest
from support import hlo

from jaxcoll._hlo import merge, module, overlap, serve, simplify
from jaxcoll._hlo.costs import Costs

ALL = "replica_groups={{0,1,2,3,4,5,6,7}}, channel_id=1, use_global_device_ids=true"
FOURS = "replica_groups={{0,2,4,6},{7,5,3,1}}, channel_id=1, use_global_device_ids=true"
RANKS_OF_FOURS = [0, 3, 1, 2, 2, 1, 3, 0]  # of each device
SUM = "sum { a = f32[] parameter(0)\n  b = f32[] parameter(1)\n  ROOT c = f32[] add(a, b) }\n"

# The start of each device's slice, a number "at".
PLACES = {
    "the device's number": """
  id = u32[] partition-id()
  n = s32[] convert(id)
  two = s32[] constant(2)
  at = s32[] multiply(n, two)""",
    "a table": """
  table = s32[8]{0} constant({TABLE})
  id = u32[] partition-id()
  entry = s32[1]{0} dynamic-slice(table, id), dynamic_slice_sizes={1}
  at = s32[] bitcast(entry)""",
}


def sliced(
    name: str,
    offsets: list[int],
    place: str = "a table",
    groups: str = ALL,
    rows: int = 16,
    tail: str = "",
    dimension: int = 0,
) -> hlo.Case:
    start = PLACES[place].replace("TABLE", ", ".join(map(str, offsets)))
    at = "at, zero" if dimension == 0 else "zero, at"
    sizes = "2,3" if dimension == 0 else "3,2"
    whole = f"{rows},3" if dimension == 0 else f"3,{rows}"
    entry = f"""HloModule m
{SUM}
ENTRY e {{
  p = f32[{whole}]{{1,0}} parameter(0)
  zero = s32[] constant(0){start}
  r = f32[{whole}]{{1,0}} all-reduce(p), {groups}, to_apply=sum
  d = f32[{sizes}]{{1,0}} dynamic-slice(r, {at}), dynamic_slice_sizes={{{sizes}}}
  {tail or f"ROOT t = (f32[{sizes}]{{1,0}}) tuple(d)"}
}}
"""
    shape = (rows, 3) if dimension == 0 else (3, rows)
    result = (2, 3) if dimension == 0 else (3, 2)
    outputs = [("float32", result)] + ([("float32", shape)] if tail else [])
    return hlo.Case(name, entry, [("float32", shape)], outputs, alone=True, exact=False)


# The same table, whose bitcast is another order of its entries: another rank's slice.
PLACES["a table in another order"] = """
  rows = s32[2,4]{1,0} constant({ {0, 2, 4, 6}, {8, 10, 12, 14} })
  table = s32[4,2]{0,1} bitcast(rows)
  id = u32[] partition-id()
  n = s32[] convert(id)
  two = s32[] constant(2)
  half = s32[] divide(n, two)
  odd = s32[] remainder(n, two)
  entry = s32[1,1]{0,1} dynamic-slice(table, half, odd), dynamic_slice_sizes={1,1}
  at = s32[] bitcast(entry)"""
OWN = [2 * rank for rank in range(8)]
# Two values that are turned, in one fusion.
FUSED = hlo.Case(
    "two slices in a fusion",
    f"""HloModule m
{SUM}
fused {{
  x = f32[16,3]{{1,0}} parameter(0)
  y = f32[16,3]{{1,0}} parameter(1)
  at = s32[] parameter(2)
  zero = s32[] constant(0)
  dx = f32[2,3]{{1,0}} dynamic-slice(x, at, zero), dynamic_slice_sizes={{2,3}}
  dy = f32[2,3]{{1,0}} dynamic-slice(y, at, zero), dynamic_slice_sizes={{2,3}}
  ROOT product = f32[2,3]{{1,0}} multiply(dx, dy)
}}
ENTRY e {{
  p = f32[16,3]{{1,0}} parameter(0)
  q = f32[16,3]{{1,0}} parameter(1){PLACES["the device's number"]}
  r = (f32[16,3]{{1,0}}, f32[16,3]{{1,0}}) all-reduce(p, q), {ALL}, to_apply=sum
  r0 = f32[16,3]{{1,0}} get-tuple-element(r), index=0
  r1 = f32[16,3]{{1,0}} get-tuple-element(r), index=1
  f = f32[2,3]{{1,0}} fusion(r0, r1, at), kind=kLoop, calls=fused
  ROOT t = (f32[2,3]{{1,0}}) tuple(f)
}}
""",
    [("float32", (16, 3))] * 2,
    [("float32", (2, 3))],
    alone=True,
    exact=False,
)
TURNED = [
    sliced("the device's number", OWN, "the device's number"),
    sliced("a table", OWN),
    sliced("ranks in another order", [2 * r for r in RANKS_OF_FOURS], groups=FOURS, rows=8),
    sliced("another dimension", OWN, dimension=1),
    FUSED,
]
KEPT = [
    sliced("another rank's slice", OWN[1:] + OWN[:1]),
    sliced("ranks by the device's number", [0, 2, 4, 6] * 2, groups=FOURS, rows=8),
    sliced("one device is off by one", [*OWN[:-1], 13]),
    sliced("all take the first", [0] * 8),
    sliced("a table in another order", OWN, "a table in another order"),
    sliced("more rows than ranks", OWN, rows=32),
    sliced(
        "the whole is used, too",
        OWN,
        tail="ROOT t = (f32[2,3]{1,0}, f32[16,3]{1,0}) tuple(d, r)",
    ),
]


def check(cases: list[hlo.Case]) -> list[hlo.Outcome]:
    outcomes = hlo.outcomes(cases)
    for case, outcome in zip(cases, outcomes, strict=True):
        assert outcome.alone is not None
        for run in [outcome.alone, *outcome.runs]:
            assert not run.error, f"{case.name}: {run.error}"
        for merge_bytes, run in zip(case.merge_bytes, outcome.runs, strict=True):
            assert not run.left, f"{case.name}: {run.left}"
            assert run.served, f"{case.name}, merge {merge_bytes}: left to XLA\n{run.text}"
            for i, got in enumerate(run.results):
                name = f"{case.name}, merge {merge_bytes}, result {i}"
                first, alone = outcome.runs[0].results[i], outcome.alone.results[i]
                assert got.tobytes() == first.tobytes(), f"{name}: {got}\nis not\n{first}"
                # XLA adds to a zero of its own: what is -0 on every device is 0 there.
                same = (got + 0.0).tobytes() == (alone + 0.0).tobytes()
                assert same, f"{name}: {got}\nis not\n{alone}\n{run.text}"
    return outcomes


def test_a_slice_of_an_all_reduce_is_scattered_where_every_device_takes_its_own() -> None:
    cases = [*TURNED, *KEPT]
    outcomes = check(cases)
    for number, (case, outcome) in enumerate(zip(cases, outcomes, strict=True)):
        got = [call.collective for call in outcome.runs[0].served]
        want = "reduce_scatter" if number < len(TURNED) else "all_reduce"
        assert got == [want], case.name


def test_an_all_reduce_that_is_not_served_is_not_turned() -> None:
    """XLA:CPU's own reduce-scatter is wrong along some dimensions."""
    case = sliced("a field of the future", OWN, "the device's number")
    module = hlo.of_text(case.module)
    module.device_assignment.replica_count = 1
    module.device_assignment.computation_count = 8
    del module.device_assignment.computation_devices[:]
    for device in range(8):
        module.device_assignment.computation_devices.add(replica_device_ids=[device])
    plain = type(module).FromString(module.SerializeToString())
    with hlo.rewriting(plain) as program:
        simplify.simplify(program, lambda request: {}, lambda *sizes: True)
    assert "reduce-scatter" in [i.opcode for c in plain.computations for i in c.instructions]
    for computation in module.computations:
        for instruction in computation.instructions:
            if instruction.opcode == "all-reduce":
                instruction.MergeFromString(b"\xf2\x7d\x03abc")  # field 2014
    before = module.SerializeToString(deterministic=True)
    with hlo.rewriting(module) as program:
        simplify.simplify(program, lambda request: {}, lambda *sizes: True)
    assert module.SerializeToString(deterministic=True) == before


# --- merging ------------------------------------------------------------------------------------


def random_module(draw: random.Random) -> tuple[str, int]:
    """Calls that depend on each other in all ways; its text and how many results it has."""
    lines = ["  v0 = f32[6]{0} parameter(0)", "  v1 = f32[6]{0} parameter(1)"]
    values = ["v0", "v1"]
    named = list(values)  # also instructions that are not arrays
    groups = [
        "replica_groups={{0,1},{2,3},{4,5},{6,7}}",
        "replica_groups={{0,2},{1,3},{4,6},{5,7}}",
    ]
    for number in range(2, draw.randrange(8, 24)):
        name = f"v{number}"
        x, y = draw.choice(values), draw.choice(values)
        after = ""
        if draw.random() < 0.25:
            after = f", control-predecessors={{{draw.choice(named[2:] or named)}}}"
        channel = f"channel_id={number}, use_global_device_ids=true"
        kind = draw.choice(["one", "one", "one", "two", "gather", "negate", "add"])
        if kind == "one":
            lines.append(
                f"  {name} = f32[6]{{0}} all-reduce({x}), {draw.choice(groups)}, {channel}, "
                f"to_apply=sum{after}"
            )
        elif kind == "two":
            lines += [
                f"  {name}t = (f32[6]{{0}}, f32[6]{{0}}) all-reduce({x}, {y}), "
                f"{draw.choice(groups)}, {channel}, to_apply=sum{after}",
                f"  {name}o = f32[6]{{0}} get-tuple-element({name}t), index=1",
                f"  {name} = f32[6]{{0}} get-tuple-element({name}t), index=0",
            ]
            values.append(f"{name}o")
            named.append(f"{name}t")
        elif kind == "gather":
            lines += [
                f"  {name}g = f32[12]{{0}} all-gather({x}), {draw.choice(groups)}, {channel}, "
                f"dimensions={{0}}{after}",
                f"  {name} = f32[6]{{0}} slice({name}g), slice={{[3:9]}}",
            ]
            named.append(f"{name}g")
        elif kind == "negate":
            lines.append(f"  {name} = f32[6]{{0}} negate({x}){after}")
        else:
            lines.append(f"  {name} = f32[6]{{0}} subtract({x}, {y}){after}")
        values.append(name)
        named.append(name)
    results = values[2:]
    shape = ", ".join(["f32[6]{0}"] * len(results))
    lines.append(f"  ROOT t = ({shape}) tuple({', '.join(results)})")
    entry = "\n".join(lines)
    return f"HloModule m\n{SUM}\nENTRY e {{\n{entry}\n}}\n", len(results)


@pytest.mark.seeds(12, exhaustive=150)
def test_merging_changes_no_bit(seed: int) -> None:
    """Calls depend on each other by data and by order; four modules for each seed."""
    cases = []
    for number in range(4):
        text, results = random_module(random.Random(4 * seed + number))
        cases.append(
            hlo.Case(
                f"seed {seed}, module {number}\n{text}",
                text,
                [("float32", (6,))] * 2,
                [("float32", (6,))] * results,
                alone=True,
                merge_bytes=["0", "1", "60", None],
                exact=False,
            )
        )
    merged = 0
    for outcome in check(cases):
        calls = [len(run.served) for run in outcome.runs]
        assert calls[3] <= calls[2] <= calls[1]
        merged += calls[3] < calls[1]
    assert merged, "nothing was merged"


@pytest.mark.seeds(12, exhaustive=150)
def test_passes_know_a_module_as_they_have_changed_it(seed: int) -> None:
    """They read a module once, and each takes over what the others have changed."""
    made = hlo.of_text(random_module(random.Random(seed))[0])
    made.device_assignment.replica_count = 1
    made.device_assignment.computation_count = 8
    for device in range(8):
        made.device_assignment.computation_devices.add(replica_device_ids=[device])

    def decide(request: serve.Request) -> dict[str, Any]:
        texts = dict.fromkeys(["label", "program", "signature"], "")
        return {"collective": request.collective, "separate_blocks": 0, **texts}

    program = module.Program(made)
    serve.serve(program, decide)
    program.forward_tuples()
    costs = Costs(program)
    merge.merge(program, costs, 60, lambda config, byte_count: None)
    program.forward_tuples()
    overlap.overlap(program, costs)
    program.store()
    again = module.Program(made)
    for number in program.computations:
        known, read = program.body(number), again.body(number)
        assert known is not None
        assert read is not None
        assert list(known.by_id) == list(read.by_id)
        assert list(known.opcodes.items()) == list(read.opcodes.items())
        assert list(known.operands.items()) == list(read.operands.items())
        assert list(known.sources.items()) == list(read.sources.items())
        assert known.predecessors == read.predecessors
        assert known.users == read.users
        assert known.root_id == read.root_id


def test_calls_are_merged_up_to_the_size_and_combined_ones_are_taken_apart() -> None:
    shape = ", ".join(["f32[100]{0}"] * 6)
    several = "\n".join(
        f"  r{i} = f32[100]{{0}} all-reduce(p{i}), {ALL.replace('=1', f'={i + 1}')}, to_apply=sum"
        for i in range(6)
    )
    parameters = "\n".join(f"  p{i} = f32[100]{{0}} parameter({i})" for i in range(6))
    apart = f"{several}\n  ROOT t = ({shape}) tuple(r0, r1, r2, r3, r4, r5)"
    combined = f"  ROOT r = ({shape}) all-reduce(p0, p1, p2, p3, p4, p5), {ALL}, to_apply=sum"
    cases = [
        hlo.Case(
            name,
            f"HloModule m\n{SUM}\nENTRY e {{\n{parameters}\n{body}\n}}\n",
            [("float32", (100,))] * 6,
            [("float32", (100,))] * 6,
            alone=True,
            merge_bytes=["0", "1", "800", "1200", None],
            exact=False,
        )
        for name, body in [("apart", apart), ("combined", combined)]
    ]
    outcomes = check(cases)
    counts = [[len(run.served) for run in outcome.runs] for outcome in outcomes]
    assert counts == [[6, 6, 3, 2, 1], [1, 6, 3, 2, 1]]
