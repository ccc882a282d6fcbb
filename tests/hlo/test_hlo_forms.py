"""Every form of a collective, in hand-written modules that run.

NumPy is the oracle: XLA:CPU lacks many of these, and its own pass over layouts comes before a
module gets here, so that it is wrong about dimensions that are not major.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from support import hlo

SUM = """
sum.{t} {{ a = {t}[] parameter(0)
  b = {t}[] parameter(1)
  ROOT c = {t}[] {op}(a, b) }}
"""
DTYPES = {
    "f32": "float32",
    "f64": "float64",
    "f16": "float16",
    "bf16": "bfloat16",
    "pred": "bool",
    "s8": "int8",
    "s16": "int16",
    "s32": "int32",
    "u8": "uint8",
    "u16": "uint16",
    "u32": "uint32",
    "c64": "complex64",
    "f8e4m3fn": "float8_e4m3fn",
    "f8e5m2": "float8_e5m2",
}
PAIRS = "replica_groups={{0,1},{2,3},{4,5},{6,7}}"
PAIR_ROWS = [[0, 1], [2, 3], [4, 5], [6, 7]]
FOURS = "replica_groups={{0,2,4,6},{7,5,3,1}}"
FOUR_ROWS = [[0, 2, 4, 6], [7, 5, 3, 1]]
FLAT = "channel_id=1, use_global_device_ids=true"


def module(entry: str, types: Sequence[str] = ("f32",), op: str = "add", more: str = "") -> str:
    reductions = "".join(SUM.format(t=t, op=op) for t in dict.fromkeys(types))
    return f"HloModule m\n{reductions}\n{more}\nENTRY e {{\n{entry}\n}}\n"


def case(
    name: str, entry: str, inputs: Sequence[str], outputs: Sequence[str], **options: Any
) -> hlo.Case:
    """Shapes as "f32[4,6]"."""
    module_options = {k: options.pop(k) for k in ("types", "op", "more") if k in options}

    def parsed(shapes: Sequence[str]) -> list[tuple[str, tuple[int, ...]]]:
        found = []
        for shape in shapes:
            name, _, sizes = shape.rstrip("]").partition("[")
            found.append((DTYPES[name], tuple(int(size) for size in sizes.split(",") if size)))
        return found

    return hlo.Case(
        name, module(entry, **module_options), parsed(inputs), parsed(outputs), **options
    )


def simple(
    name: str, opcode: str, operand: str, result: str, rest: str, **options: Any
) -> hlo.Case:
    """One instruction on one array."""

    def plain(shape: str) -> str:
        return shape.partition("{")[0]

    row_major = "{" + ",".join(map(str, reversed(range(len(plain(operand).split(",")))))) + "}"
    entry = f"  p = {plain(operand)}{row_major} parameter(0)\n"
    if operand != plain(operand):
        entry += f"  q = {operand} copy(p)\n"
    source = "p" if operand == plain(operand) else "q"
    entry += f"  r = {result} {opcode}({source}), {rest}\n"
    if result != plain(result):
        entry += f"  s = {plain(result)}{row_major} copy(r)\n"
    last = "r" if result == plain(result) else "s"
    entry += f"  ROOT t = ({plain(result)}{row_major}) tuple({last})"
    return case(name, entry, [plain(operand)], [plain(result)], **options)


# --- what they compute --------------------------------------------------------------------------
#
# Functions of arrays with a leading dimension, the device.

Rows = Sequence[Sequence[int]]
UFUNCS: dict[str, Any] = {
    "add": np.add,
    "multiply": np.multiply,
    "minimum": np.minimum,
    "maximum": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


def reduced(x: np.ndarray, rows: Rows, op: str = "add") -> np.ndarray:
    out = np.empty_like(x)
    for row in rows:
        total = x[row[0]]
        for rank in row[1:]:
            total = UFUNCS[op](total, x[rank])
        out[list(row)] = total
    return out


def gathered(x: np.ndarray, rows: Rows, dimension: int) -> np.ndarray:
    out = [x[0]] * len(x)
    for row in rows:
        for rank in row:
            out[rank] = np.concatenate([x[i] for i in row], dimension)
    return np.stack(out)


def scattered(x: np.ndarray, rows: Rows, dimension: int) -> np.ndarray:
    whole = reduced(x, rows)
    out = [x[0]] * len(x)
    for row in rows:
        for rank, device in enumerate(row):
            out[device] = np.split(whole[device], len(row), dimension)[rank]
    return np.stack(out)


def exchanged(x: np.ndarray, rows: Rows, dimension: int) -> np.ndarray:
    out = np.empty_like(x)
    for row in rows:
        for rank, device in enumerate(row):
            parts = [np.split(x[i], len(row), dimension)[rank] for i in row]
            out[device] = np.concatenate(parts, dimension)
    return out


def permuted(x: np.ndarray, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    out = np.zeros_like(x)
    for source, target in pairs:
        out[target] = x[source]
    return out


# A case, and its results of its inputs.
Checked = tuple[hlo.Case, Callable[..., Sequence[np.ndarray]]]

# --- forms that are served ----------------------------------------------------------------------


def reductions() -> list[Checked]:
    cases = []
    for t in DTYPES:
        if t == "f64":
            continue  # JAX narrows it unless told not to
        for op in ("add", "multiply", "minimum", "maximum", "and", "or", "xor"):
            bits = op in ("and", "or", "xor")
            if (t == "pred" and not bits) or (bits and t[0] not in "psu"):
                continue
            if t == "c64" and op in ("minimum", "maximum"):
                continue
            made = simple(
                *(f"{op} of {t}", "all-reduce", f"{t}[3,5]", f"{t}[3,5]"),
                f"{FOURS}, {FLAT}, to_apply=sum.{t}",
                types=[t],
                op=op,
            )
            cases.append((made, lambda x, op=op: [reduced(x, FOUR_ROWS, op)]))
    return cases


def dimensions() -> list[Checked]:
    """Each dimension of an array, in each layout."""
    layouts = ["", "{0,1,2}", "{1,2,0}", "{2,0,1}"]
    cases = []
    for dimension in range(3):
        for layout in layouts:
            small, large = [4, 8, 4], [4, 8, 4]
            large[dimension] *= 4
            small_shape = f"f32[{','.join(map(str, small))}]{layout}"
            large_shape = f"f32[{','.join(map(str, large))}]{layout}"
            where = f"dimension {dimension} of {layout or 'row-major'}"
            rest = f"{FOURS}, {FLAT}, dimensions={{{dimension}}}"
            gather = f"all-gather, {where}"
            scatter = f"reduce-scatter, {where}"
            exchange = f"all-to-all, {where}"
            plainly = f"channel_id=1, {FOURS}, dimensions={{{dimension}}}"
            reduction = f"{rest}, to_apply=sum.f32"
            cases += [
                (
                    simple(gather, "all-gather", small_shape, large_shape, rest),
                    lambda x, d=dimension: [gathered(x, FOUR_ROWS, d)],
                ),
                (
                    simple(scatter, "reduce-scatter", large_shape, small_shape, reduction),
                    lambda x, d=dimension: [scattered(x, FOUR_ROWS, d)],
                ),
                (
                    simple(exchange, "all-to-all", small_shape, small_shape, plainly),
                    lambda x, d=dimension: [exchanged(x, FOUR_ROWS, d)],
                ),
            ]
    return cases


def one_element_before() -> list[Checked]:
    """Dimensions of size 1 before the one that is gathered, and chunks of one element."""
    behind = simple(
        *("all-gather behind ones", "all-gather", "s32[1,1,3]", "s32[1,1,12]"),
        f"{FOURS}, {FLAT}, dimensions={{2}}",
        types=["s32"],
    )
    one = simple(
        *("all-gather of a one", "all-gather", "s32[3,1]", "s32[3,4]"),
        f"{FOURS}, {FLAT}, dimensions={{1}}",
        types=["s32"],
    )
    chunks = simple(
        *("all-to-all of chunks of one", "all-to-all", "u8[3,4]", "u8[3,4]"),
        f"channel_id=1, {FOURS}, dimensions={{1}}",
        types=["u8"],
    )
    return [
        (behind, lambda x: [gathered(x, FOUR_ROWS, 2)]),
        (one, lambda x: [gathered(x, FOUR_ROWS, 1)]),
        (chunks, lambda x: [exchanged(x, FOUR_ROWS, 1)]),
    ]


def variadic() -> list[Checked]:
    two = "  p = f32[3,5]{1,0} parameter(0)\n  q = f32[7]{0} parameter(1)\n"
    both = ["f32[3,5]", "f32[7]"]
    shapes = "(f32[3,5]{1,0}, f32[7]{0})"
    rest = f"{PAIRS}, {FLAT}"
    sums = case(
        "variadic all-reduce",
        f"""{two}
  r = {shapes} all-reduce(p, q), {rest}, to_apply=sum.f32
  a = f32[3,5]{{1,0}} get-tuple-element(r), index=0
  b = f32[7]{{0}} get-tuple-element(r), index=1
  ROOT t = (f32[7]{{0}}, f32[3,5]{{1,0}}) tuple(b, a)""",
        *(both, both[::-1]),
    )
    as_root = case(
        "variadic all-reduce as root",
        f"{two}  ROOT r = {shapes} all-reduce(p, q), {rest}, to_apply=sum.f32",
        *(both, both),
    )
    twice = case(
        "a variadic all-reduce of an operand twice",
        f"""  p = f32[5]{{0}} parameter(0)
  ROOT r = (f32[5]{{0}}, f32[5]{{0}}) all-reduce(p, p), {rest}, to_apply=sum.f32""",
        *(["f32[5]"], ["f32[5]", "f32[5]"]),
    )
    gathers = case(
        "variadic all-gather",
        f"""{two}
  ROOT r = (f32[6,5]{{1,0}}, f32[14]{{0}}) all-gather(p, q), {rest}, dimensions={{0}}""",
        *(both, ["f32[6,5]", "f32[14]"]),
    )
    scatters = case(
        "variadic reduce-scatter",
        f"""  p = f32[3,4]{{1,0}} parameter(0)
  q = f32[5,6]{{1,0}} parameter(1)
  ROOT r = (f32[3,2]{{1,0}}, f32[5,3]{{1,0}}) reduce-scatter(p, q), {rest}, dimensions={{1}},
    to_apply=sum.f32""",
        *(["f32[3,4]", "f32[5,6]"], ["f32[3,2]", "f32[5,3]"]),
    )
    exchange = case(
        "tuple all-to-all",
        f"""  p = s32[3,5]{{1,0}} parameter(0)
  q = s32[3,5]{{1,0}} parameter(1)
  ROOT r = (s32[3,5]{{1,0}}, s32[3,5]{{1,0}}) all-to-all(p, q), channel_id=1, {PAIRS}""",
        *(["s32[3,5]", "s32[3,5]"], ["s32[3,5]", "s32[3,5]"]),
        types=["s32"],
    )

    def exchanged_tuple(p: np.ndarray, q: np.ndarray) -> list[np.ndarray]:
        both = exchanged(np.stack([p, q], 1), PAIR_ROWS, 0)
        return [both[:, 0], both[:, 1]]

    return [
        (sums, lambda p, q: [reduced(q, PAIR_ROWS), reduced(p, PAIR_ROWS)]),
        (as_root, lambda p, q: [reduced(p, PAIR_ROWS), reduced(q, PAIR_ROWS)]),
        (twice, lambda p: [reduced(p, PAIR_ROWS)] * 2),
        (gathers, lambda p, q: [gathered(p, PAIR_ROWS, 0), gathered(q, PAIR_ROWS, 0)]),
        (scatters, lambda p, q: [scattered(p, PAIR_ROWS, 1), scattered(q, PAIR_ROWS, 1)]),
        (exchange, exchanged_tuple),
    ]


def asynchronous() -> list[Checked]:
    """A start and its done."""
    reduces = case(
        "all-reduce-start",
        f"""  p = f32[3,5]{{1,0}} parameter(0)
  s = f32[3,5]{{1,0}} all-reduce-start(p), {PAIRS}, {FLAT}, to_apply=sum.f32
  n = f32[3,5]{{1,0}} negate(p)
  d = f32[3,5]{{1,0}} all-reduce-done(s)
  ROOT t = (f32[3,5]{{1,0}}, f32[3,5]{{1,0}}) tuple(d, n)""",
        *(["f32[3,5]"], ["f32[3,5]"] * 2),
    )
    gathers = case(
        "all-gather-start",
        f"""  p = f32[3,5]{{1,0}} parameter(0)
  s = (f32[3,5]{{1,0}}, f32[6,5]{{1,0}}) all-gather-start(p), {PAIRS}, {FLAT}, dimensions={{0}}
  ROOT d = f32[6,5]{{1,0}} all-gather-done(s)
""".replace("ROOT d", "d")
        + "  ROOT t = (f32[6,5]{1,0}) tuple(d)",
        *(["f32[3,5]"], ["f32[6,5]"]),
    )
    permute = case(
        "collective-permute-start",
        """  p = f32[3,5]{1,0} parameter(0)
  s = (f32[3,5]{1,0}, f32[3,5]{1,0}) collective-permute-start(p), channel_id=1,
    source_target_pairs={{0,1},{1,2}}
  d = f32[3,5]{1,0} collective-permute-done(s)
  ROOT t = (f32[3,5]{1,0}) tuple(d)""",
        *(["f32[3,5]"], ["f32[3,5]"]),
    )
    return [
        (reduces, lambda p: [reduced(p, PAIR_ROWS), -p]),
        (gathers, lambda p: [gathered(p, PAIR_ROWS, 0)]),
        (permute, lambda p: [permuted(p, [(0, 1), (1, 2)])]),
    ]


def permutes() -> list[Checked]:
    cases = []
    for name, t, pairs in [
        ("a ring", "f32", [(i, (i + 1) % 8) for i in range(8)]),
        ("some pairs", "s8", [(0, 3), (3, 0), (5, 5)]),
        ("no pairs", "s32", []),
        ("the identity", "f32", [(i, i) for i in range(8)]),
    ]:
        written = ",".join(f"{{{source},{target}}}" for source, target in pairs)
        made = simple(
            *(name, "collective-permute", f"{t}[5,3]", f"{t}[5,3]"),
            f"channel_id=1, source_target_pairs={{{written}}}",
            types=[t],
        )
        cases.append((made, lambda x, pairs=pairs: [permuted(x, pairs)]))
    return cases


def placed() -> list[Checked]:
    """In the bodies of while loops, conditionals and calls, behind control predecessors.

    With the copies that XLA has inserted by then.
    """
    reduce = f"{PAIRS}, {FLAT}, to_apply=sum.f32"
    loop = f"""
body {{ a = (s32[], f32[5]{{0}}) parameter(0)
  i = s32[] get-tuple-element(a), index=0
  x = f32[5]{{0}} get-tuple-element(a), index=1
  one = s32[] constant(1)
  n = s32[] add(i, one)
  y = f32[5]{{0}} copy(x)
  r = f32[5]{{0}} all-reduce(y), {reduce}
  ROOT t = (s32[], f32[5]{{0}}) tuple(n, r) }}
cond {{ a = (s32[], f32[5]{{0}}) parameter(0)
  i = s32[] get-tuple-element(a), index=0
  three = s32[] constant(3)
  ROOT l = pred[] compare(i, three), direction=LT }}
"""
    called = f"""
inner {{ x = f32[5]{{0}} parameter(0)
  ROOT r = f32[5]{{0}} all-reduce(x), {reduce} }}
other {{ x = f32[5]{{0}} parameter(0)
  ROOT r = f32[5]{{0}} negate(x) }}
"""
    one = (["f32[5]"], ["f32[5]"])
    in_loop = case(
        "in a while loop",
        """  p = f32[5]{0} parameter(0)
  z = s32[] constant(0)
  y = s32[] copy(z)
  q = f32[5]{0} copy(p)
  i = (s32[], f32[5]{0}) tuple(y, q)
  w = (s32[], f32[5]{0}) while(i), condition=cond, body=body
  g = f32[5]{0} get-tuple-element(w), index=1
  ROOT t = (f32[5]{0}) tuple(g)""",
        *one,
        more=loop,
    )
    in_call = case(
        "in a call",
        """  p = f32[5]{0} parameter(0)
  c = f32[5]{0} call(p), to_apply=inner
  ROOT t = (f32[5]{0}) tuple(c)""",
        *one,
        more=called,
    )
    in_branch = case(
        "in a conditional",
        """  p = f32[5]{0} parameter(0)
  z = pred[] constant(true)
  c = f32[5]{0} conditional(z, p, p), true_computation=inner, false_computation=other
  ROOT t = (f32[5]{0}) tuple(c)""",
        *one,
        more=called,
    )
    control = case(
        "behind a control predecessor, and before one",
        f"""  p = f32[5]{{0}} parameter(0)
  n = f32[5]{{0}} negate(p)
  r = f32[5]{{0}} all-reduce(p), {reduce}, control-predecessors={{n}}
  s = f32[5]{{0}} all-reduce(n), {reduce.replace("id=1", "id=2")}, control-predecessors={{r}}
  ROOT t = (f32[5]{{0}}, f32[5]{{0}}) tuple(r, s)""",
        *(["f32[5]"], ["f32[5]", "f32[5]"]),
    )
    return [
        (in_loop, lambda p: [reduced(p, PAIR_ROWS) * 4]),
        (in_call, lambda p: [reduced(p, PAIR_ROWS)]),
        (in_branch, lambda p: [reduced(p, PAIR_ROWS)]),
        (control, lambda p: [reduced(p, PAIR_ROWS), reduced(-p, PAIR_ROWS)]),
    ]


def mesh_axes() -> list[hlo.Case]:
    """XLA itself says what a mesh of devices means: the order of ranks shows in an all-gather."""
    cases = []
    written = [
        ([2, 4], [], [(0,)]),
        ([2, 4], [], [(1,)]),
        ([2, 2, 2], [], [(2,), (0,)]),
        ([2, 4], [3, 1, 0, 2, 7, 6, 5, 4], [(1,)]),
        ([8], [], [(0, 2, 2)]),
        ([8], [5, 1, 0, 2, 7, 6, 3, 4], [(0, 1, 2), (0, 4, 2)]),
        ([8], [], [(0, 4, 2), (0, 1, 2)]),
    ]
    for sizes, ids, axes in written:
        ranks = int(np.prod([axis[2] if len(axis) > 1 else sizes[axis[0]] for axis in axes]))
        made = simple(
            f"mesh {sizes} {ids}, axes {axes}",
            *("all-gather", "s32[2]", f"s32[{2 * ranks}]"),
            f"replica_groups=[{8 // ranks},{ranks}]<=[8], {FLAT}, dimensions={{0}}",
            types=["s32"],
            alone=True,
        )
        rewritten = hlo.of_text(made.module)
        (gather,) = [
            i for c in rewritten.computations for i in c.instructions if i.opcode == "all-gather"
        ]
        for field in ("iota_collective_device_list", "collective_device_list", "replica_groups"):
            gather.ClearField(field)
        groups = gather.mesh_axes_replica_group_list
        for number, size in enumerate(sizes):
            groups.mesh.axes.add(name=f"a{number}", size=size)
        groups.mesh.device_ids.extend(ids)
        for index, *sub in axes:
            axis = groups.axes.add(mesh_axis_index=index)
            if sub:
                axis.sub_axis_info.pre_size, axis.sub_axis_info.size = sub
        made.module = rewritten.SerializeToString()
        cases.append(made)
    return cases


def rare() -> list[Checked]:
    mixed = case(
        "variadic all-reduce of several types",
        f"""  p = f32[3]{{0}} parameter(0)
  q = f16[4]{{0}} parameter(1)
  r = f32[5]{{0}} parameter(2)
  ROOT s = (f32[3]{{0}}, f16[4]{{0}}, f32[5]{{0}}) all-reduce(p, q, r), {PAIRS}, {FLAT},
    to_apply=sum.f16""",
        *(["f32[3]", "f16[4]", "f32[5]"], ["f32[3]", "f16[4]", "f32[5]"]),
        types=["f16"],  # XLA widens operands, and leaves the reduction as it is
    )
    widened = case(
        "a sum of small floats that is done in float32",
        f"""  p = f16[6]{{0}} parameter(0)
  r = f16[6]{{0}} all-reduce(p), {PAIRS}, {FLAT}, to_apply=wide
  ROOT t = (f16[6]{{0}}) tuple(r)""",
        *(["f16[6]"], ["f16[6]"]),
        types=["f16"],
        more="""wide { a = f16[] parameter(0)
  b = f16[] parameter(1)
  c = f32[] convert(a)
  d = f32[] convert(b)
  e = f32[] add(c, d)
  ROOT f = f16[] convert(e) }""",
    )
    broadcast = simple(
        *("collective-broadcast", "collective-broadcast", "f32[2,3]", "f32[2,3]"),
        f"channel_id=1, {PAIRS}",
    )
    # Each rank sends its rows but the last to the others, one to each, in the order of ranks.
    ragged = case(
        "ragged-all-to-all",
        f"""  p = f32[3,2]{{1,0}} parameter(0)
  o = f32[3,2]{{1,0}} parameter(1)
  from = s32[2]{{0}} constant({{0, 1}})
  sizes = s32[2]{{0}} constant({{1, 1}})
  id = u32[] partition-id()
  two = u32[] constant(2)
  rank = u32[] remainder(id, two)
  n = s32[] convert(rank)
  to = s32[2]{{0}} broadcast(n), dimensions={{}}
  r = f32[3,2]{{1,0}} ragged-all-to-all(p, o, from, sizes, to, sizes), channel_id=1, {PAIRS}
  ROOT t = (f32[3,2]{{1,0}}) tuple(r)""",
        *(["f32[3,2]", "f32[3,2]"], ["f32[3,2]"]),
    )

    def exchanged_rows(p: np.ndarray, o: np.ndarray) -> list[np.ndarray]:
        out = o.copy()
        for row in PAIR_ROWS:
            for place, device in enumerate(row):
                out[device, :2] = p[row, place]
        return [out]

    def of_first(x: np.ndarray) -> list[np.ndarray]:
        return [np.repeat(x[::2], 2, axis=0)]

    return [
        (mixed, lambda *xs: [reduced(x, PAIR_ROWS) for x in xs]),
        (widened, lambda p: [reduced(p, PAIR_ROWS)]),
        (broadcast, of_first),
        (ragged, exchanged_rows),
    ]


FAMILIES: list[Callable[[], list[Checked]]] = [
    *(reductions, dimensions, one_element_before, variadic, asynchronous, permutes, placed, rare)
]


def trouble(
    case: hlo.Case, outcome: hlo.Outcome, expected: Sequence[np.ndarray] | None = None
) -> list[str]:
    """The faults in the runs of a case: an error, other bits, or something left to XLA."""
    found = []
    if expected is None:
        assert outcome.alone is not None
        assert not outcome.alone.error, f"{case.name}: {outcome.alone.error}"
        expected = outcome.alone.results
    for merge_bytes, run in zip(case.merge_bytes, outcome.runs, strict=True):
        name = f"{case.name}, merge {merge_bytes}"
        if run.error:
            found.append(f"{name}: {run.error}")
            continue
        assert expected is not None
        assert run.results is not None
        for i, (got, want) in enumerate(zip(run.results, expected, strict=True)):
            if got.tobytes() != np.ascontiguousarray(want.astype(got.dtype)).tobytes():
                found.append(f"{name}: result {i}\n{got}\nis not\n{want}\n{run.text}")
        found += [f"{name}: left: {left}" for left in run.left]
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_forms_are_served_and_are_right(family: Callable[[], list[Checked]]) -> None:
    checked = family()
    found = []
    outcomes = hlo.outcomes([case for case, _ in checked])
    for (case, oracle), outcome in zip(checked, outcomes, strict=True):
        found += trouble(case, outcome, oracle(*outcome.inputs))
    assert not found, "\n".join(found)


def test_groups_by_axes_of_a_mesh_are_those_of_xla() -> None:
    cases = mesh_axes()
    found = []
    for case, outcome in zip(cases, hlo.outcomes(cases), strict=True):
        found += trouble(case, outcome)
    assert not found, "\n".join(found)
