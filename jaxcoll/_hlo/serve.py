"""XLA's collectives -> jaxcoll's custom call.

Every form is checked, down to the layouts; unknown forms are left to XLA, with the reason.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxcoll._hlo import dictionary, proto
from jaxcoll._hlo import groups as _groups
from jaxcoll._hlo import module as _module
from jaxcoll._hlo.groups import NotServed
from jaxcoll._hlo.module import Body

TARGET = "jaxcoll_collective"
LEFT = "jaxcoll_left"  # frontend attribute of a collective: why it is left to XLA
TYPED_FFI = 4


@dataclasses.dataclass(frozen=True)
class Request:
    """A collective as the program asks for it."""

    collective: str  # by the engine's name
    groups: np.ndarray  # int64, (groups, ranks per group): logical ids
    byte_count: int  # of the operands
    signature: str  # the operands' types
    source: str  # where the program asks for it; "" if unknown
    origin: str  # XLA's opcode
    reduce_op: str = ""
    permutation: Sequence[tuple[int, int]] = ()  # of ranks


@dataclasses.dataclass(frozen=True)
class Left:
    """A collective that is left to XLA."""

    origin: str
    shape: str
    source: str
    reason: str


# A request -> the custom call's attributes. Raises NotServed.
Decide = Callable[[Request], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Target:
    """A platform's compiler at the place of the hook, and the handler of its calls."""

    # Whether the layouts of arrays are final. XLA:GPU assigns them only later: what says now how
    # bytes are stored in memory, as a bitcast does, may then say something else.
    has_layouts: bool
    takes_separate_blocks: bool  # an all-to-all's operand for each rank, in place

    @property
    def reshape(self) -> str:
        """The opcode that gives a row-major array another shape."""
        return "bitcast" if self.has_layouts else "reshape"


CPU = Target(has_layouts=True, takes_separate_blocks=True)
GPU = Target(has_layouts=False, takes_separate_blocks=False)


def serve(
    program: _module.Program, decide: Decide, target: Target = CPU
) -> tuple[list[Request], list[Left]]:
    """Replaces the collectives of a module, and notes on those that are left why they are."""
    served: list[Request] = []
    left: list[Left] = []
    devices: _groups.Devices | None = None
    sources = _module.Sources(program.module)
    for body, found in program.bodies(_may_be_collective, is_collective):
        server: Server | None = None
        for instruction in found:
            if instruction.opcode in DONE:
                continue  # a done goes with its start
            try:
                if body.id in program.asynchronous:
                    raise NotServed("an unknown asynchronous form")
                devices = devices or _groups.Devices(program.module)
                server = server or Server(program, body, devices, decide, target)
                served += server.serve(instruction)
            except NotServed as why:
                instruction.frontend_attributes.map.add(key=LEFT, value=str(why))
                left.append(
                    Left(
                        instruction.opcode,
                        _module.text(instruction.shape),
                        sources.of(instruction),
                        str(why),
                    )
                )
        body.write()
    return served, left


def is_custom_call(opcode: str) -> bool:
    return opcode == "custom-call"


def is_ours(custom_call: Any) -> bool:
    """Whether a custom call is jaxcoll's."""
    return bool(custom_call.custom_call_target == TARGET)


OPCODES = {
    "all-reduce": "all_reduce",
    "all-gather": "all_gather",
    "reduce-scatter": "reduce_scatter",
    "all-to-all": "all_to_all",
    "collective-permute": "permute",
    "collective-broadcast": "broadcast",
    "ragged-all-to-all": "ragged_all_to_all",
}
_ASYNCHRONOUS = {"all-reduce-start", "all-gather-start", "collective-permute-start"}
DONE = {start.replace("-start", "-done") for start in _ASYNCHRONOUS}


def _may_be_collective(opcode: str) -> bool:
    return opcode not in _ALONE


def is_collective(instruction: Any) -> bool:
    """Whether devices take part in an instruction together, known or not."""
    opcode = instruction.opcode
    if opcode in _ALONE:
        return False
    if opcode in OPCODES or opcode in _ASYNCHRONOUS or opcode in DONE:
        return True
    return bool(
        instruction.replica_groups
        or instruction.source_target_pairs
        or instruction.HasField("collective_device_list")
        or instruction.HasField("iota_collective_device_list")
        or instruction.HasField("mesh_axes_replica_group_list")
    )


_POINT_TO_POINT = {"send", "send-done", "recv", "recv-done"}
# Most of a program is of these, and they have no groups: not to look for any saves time.
_ALONE = _POINT_TO_POINT | {
    *("parameter", "constant", "fusion", "call", "while", "tuple", "get-tuple-element", "bitcast"),
    *("add", "subtract", "multiply", "divide", "dot", "copy", "transpose", "reshape", "broadcast"),
}

# The fields that a collective may have. Those that nothing here reads say neither who takes part
# nor what becomes of the values.
_MEANT = {
    *("name", "opcode", "shape", "metadata", "channel_id", "id", "operand_ids", "dimensions"),
    *("control_predecessor_ids", "called_computation_ids", "sharding", "replica_groups"),
    *("source_target_pairs", "constrain_layout", "frontend_attributes", "use_global_device_ids"),
    *("statistics_viz", "collective_device_list", "original_value", "iota_collective_device_list"),
    *("mesh_axes_replica_group_list", "backend_config"),
}

_REDUCE_OPS = {
    "add": "sum",
    "multiply": "prod",
    "minimum": "min",
    "maximum": "max",
    "and": "and",
    "or": "or",
    "xor": "xor",
}
_COMPLEX = {15, 18}
_FLOATS = {10, 11, 12, 16, 19, 20, 23, 24, 25, 28, 29, 33}
_F32, _F64 = 11, 12
_E8M0 = 33  # has no zero, which is what a rank that receives nothing gets
_OFFSETS = {4, 5}
# The algorithms of all_to_all that never take two blocks in one piece.
_OF_SEPARATE_BLOCKS = {"direct"}


class Server:
    """Replaces collectives of one computation."""

    def __init__(
        self,
        program: _module.Program,
        body: Body,
        devices: _groups.Devices,
        decide: Decide,
        target: Target,
    ) -> None:
        self._target = target
        self._sources = _module.Sources(program.module)
        self._computations = program.computations
        self._body = body
        self._devices = devices
        self._decide = decide

    def serve(self, instruction: Any) -> list[Request]:
        """Replaces a collective. Raises: NotServed."""
        requests, instructions, done = self._made(instruction)
        self._body.replace(instruction, instructions)
        if done is not None:
            self._body.drop(done, instruction)
        return requests

    def check(self, instruction: Any) -> None:
        """Changes nothing. Raises: NotServed for a collective that would not be served."""
        self._made(instruction)

    def _made(self, instruction: Any) -> tuple[list[Request], list[Any], Any]:
        """The requests, the instructions that take a collective's place, and its done, if any."""
        for number in proto.unknown_fields(instruction):
            raise NotServed(f"an unknown field: number {number} of hlo.proto")
        for descriptor, _ in instruction.ListFields():
            if descriptor.name not in _MEANT:
                raise NotServed(f"a field that no known collective has: {descriptor.name}")
        opcode = instruction.opcode
        done = None
        if opcode in _ASYNCHRONOUS:
            instruction, done = self._synchronous(instruction)
            opcode = instruction.opcode
        if opcode not in OPCODES:
            raise NotServed("an unknown collective")
        operands = [self._body.by_id[operand] for operand in instruction.operand_ids]
        for shape in [*(o.shape for o in operands), *_module.arrays(instruction.shape)]:
            if why := _trouble(shape.SerializeToString()):
                raise NotServed(why)
            if not self._target.has_layouts and not _is_row_major(shape):
                raise NotServed("a layout that is asked for before XLA has assigned any")
        match opcode:
            case "all-reduce" | "collective-permute" | "collective-broadcast":
                made = self._elementwise(instruction, operands)
            case "all-gather" | "reduce-scatter":
                made = self._by_dimension(instruction, operands)
            case "all-to-all" if instruction.shape.element_type != _module.TUPLE:
                made = self._by_dimension(instruction, operands)
            case "all-to-all":
                made = self._all_to_all_of_tuples(instruction, operands)
            case _:
                made = self._ragged(instruction, operands)
        return (*made, done)

    def _synchronous(self, start: Any) -> tuple[Any, Any]:
        """The synchronous form of a start, and its done."""
        users = [self._body.by_id[user] for user in self._body.users[start.id]]
        opcode = start.opcode.removesuffix("-start")
        if [user.opcode for user in users] != [f"{opcode}-done"] or start.id == self._body.root_id:
            raise NotServed("a start that other instructions than its done use")
        made = proto.Instruction()
        made.CopyFrom(start)
        made.opcode = opcode
        made.shape.CopyFrom(users[0].shape)
        return made, users[0]

    # --- what is asked for ----------------------------------------------------------------------

    def _request(self, instruction: Any, operands: Sequence[Any], **changes: Any) -> Request:
        fields: dict[str, Any] = {
            "collective": OPCODES[instruction.opcode],
            "byte_count": sum(_module.byte_count(o) for o in operands),
            "signature": ", ".join(map(_module.text, operands)),
            "source": self._sources.of(instruction),
            "origin": instruction.opcode,
            **changes,
        }
        if "groups" not in fields:
            fields["groups"] = _groups.groups_of(instruction, self._devices)
        return Request(**fields)

    def _reduce_op(self, instruction: Any, element_type: int) -> str:
        called = list(instruction.called_computation_ids)
        if len(called) != 1 or called[0] not in self._computations:
            raise NotServed("its reduction is not one computation")
        computation = self._computations[called[0]]
        opcode = _operation(computation, element_type)
        op = _REDUCE_OPS.get(opcode)
        if op is None:
            raise NotServed(f"its reduction is '{opcode}'")
        if element_type == _module.PRED:
            op = {"min": "and", "max": "or", "and": "and", "or": "or", "xor": "xor"}.get(op, "")
        elif element_type in _COMPLEX:
            op = op if op in ("sum", "prod") else ""
        elif element_type in _FLOATS:
            op = op if op in ("sum", "prod", "min", "max") else ""
        if not op:
            raise NotServed(f"'{opcode}' of {_module.type_name(element_type)}")
        return op

    # --- the forms ------------------------------------------------------------------------------

    def _elementwise(self, instruction: Any, operands: Sequence[Any]) -> _Made:
        results = _module.arrays(instruction.shape)
        if len(operands) != len(results) or not operands:
            raise NotServed("another number of results than of operands")
        for operand, result in zip(operands, results, strict=True):
            if operand.shape != result:
                raise NotServed("a result in another layout than its operand")
        types = list(dict.fromkeys(o.shape.element_type for o in operands))
        permutes = instruction.opcode == "collective-permute"
        fields: dict[str, Any] = {}
        if permutes:
            pairs = _groups.pairs_of(instruction, self._devices)
            if _E8M0 in types and len(pairs) < len(self._devices):
                raise NotServed("a type that has no zero, for ranks that receive nothing")
            groups = np.arange(len(self._devices)).reshape(1, -1)
            fields = {"groups": groups, "permutation": pairs}
        requests, calls = [], []
        places: dict[int, tuple[int, int]] = {}  # operand -> call, place in it
        for element_type in types:
            chosen = [i for i, o in enumerate(operands) if o.shape.element_type == element_type]
            if instruction.opcode == "all-reduce":
                fields["reduce_op"] = self._reduce_op(instruction, element_type)
            parts = [operands[i] for i in chosen]
            requests.append(self._request(instruction, [p.shape for p in parts], **fields))
            shapes = [p.shape for p in parts]
            as_tuple = instruction.shape.element_type == _module.TUPLE
            shape = _module.tuple_of(shapes) if as_tuple else shapes[0]
            calls.append(self._call(instruction, requests[-1], shape, parts))
            places |= {operand: (len(calls) - 1, place) for place, operand in enumerate(chosen)}
        if len(calls) == 1:
            return requests, calls
        elements = [
            self._body.make(
                instruction, "get-tuple-element", results[i], [calls[call]], tuple_index=place
            )
            for i, (call, place) in sorted(places.items())
        ]
        whole = self._body.make(instruction, "tuple", instruction.shape, elements)
        return requests, [*calls, *elements, whole]

    def _by_dimension(self, instruction: Any, operands: Sequence[Any]) -> _Made:
        """all-gather, reduce-scatter, all-to-all: chunks along a dimension."""
        results = _module.arrays(instruction.shape)
        if len(operands) != len(results) or not operands:
            raise NotServed("another number of results than of operands")
        if len(instruction.dimensions) != 1:
            raise NotServed("several dimensions")
        (dimension,) = instruction.dimensions
        groups = _groups.groups_of(instruction, self._devices)
        ranks = groups.shape[1]
        grows = ranks if instruction.opcode == "all-gather" else 1
        shrinks = ranks if instruction.opcode == "reduce-scatter" else 1
        element = _one_type(operands)
        scatters = instruction.opcode == "reduce-scatter"
        fields: dict[str, Any] = {"groups": groups}
        if scatters:
            fields["reduce_op"] = self._reduce_op(instruction, element)
        request = self._request(instruction, [operand.shape for operand in operands], **fields)
        made: list[Any] = []
        values, shapes = [], []
        for operand, result in zip(operands, results, strict=True):
            before, after = list(operand.shape.dimensions), list(result.dimensions)
            if dimension >= len(before) or len(before) != len(after):
                raise NotServed("a dimension that does not exist")
            before[dimension] *= grows
            after[dimension] *= shrinks
            if before != after or operand.shape.element_type != result.element_type:
                raise NotServed("a result of another shape than its operand's")
            if _major_to_minor(operand.shape) != _major_to_minor(result):
                raise NotServed("a result in another layout than its operand")
            if max(before[dimension], after[dimension]) % ranks:
                raise NotServed("a dimension that the number of ranks does not divide")
            chunk = _module.element_count(operand.shape)
            if instruction.opcode == "all-gather":
                value, more = self._flat(instruction, operand, [chunk])
            else:
                chunk //= ranks
                value, more = self._chunked(instruction, operand, dimension, ranks)
            shapes.append(_module.array(element, [chunk] if scatters else [ranks, chunk]))
            values.append(value)
            made += more
        alone = len(operands) == 1
        whole = shapes[0] if alone else _module.tuple_of(shapes)
        call = self._call(instruction, request, whole, values)
        made.append(call)
        ends = []
        for place, result in enumerate(results):
            value = call
            if not alone:
                value = self._body.make(
                    instruction, "get-tuple-element", shapes[place], [call], tuple_index=place
                )
                made.append(value)
            if scatters:
                made.append(self._body.make(instruction, self._target.reshape, result, [value]))
            else:
                made += self._unchunked(instruction, value, result, dimension, ranks)
            ends.append(made[-1])
        if instruction.shape.element_type == _module.TUPLE:
            made.append(self._body.make(instruction, "tuple", instruction.shape, ends))
        return [request], made

    def _flat(self, like: Any, value: Any, dimensions: Sequence[int]) -> tuple[Any, list[Any]]:
        shape = _module.array(value.shape.element_type, dimensions)
        if value.shape == shape:
            return value, []
        made = self._body.make(like, self._target.reshape, shape, [value])
        return made, [made]

    def _chunked(self, like: Any, value: Any, dimension: int, ranks: int) -> tuple[Any, list[Any]]:
        """An array cut along a dimension: row-major [ranks, elements of a chunk]."""
        chunk = _module.element_count(value.shape) // ranks
        order = _major_to_minor(value.shape)
        place = order.index(dimension)
        sizes = [value.shape.dimensions[d] for d in order]
        if all(size == 1 for size in sizes[:place]):
            return self._flat(like, value, [ranks, chunk])
        split = [*sizes[:place], ranks, sizes[place] // ranks, *sizes[place + 1 :]]
        cut, more = self._flat(like, value, split)
        front = [place, *(d for d in range(len(split)) if d != place)]
        element = value.shape.element_type
        moved = self._body.make(
            *(like, "transpose", _module.array(element, [split[d] for d in front]), [cut]),
            dimensions=front,
        )
        flat, last = self._flat(like, moved, [ranks, chunk])
        return flat, [*more, moved, *last]

    def _unchunked(
        self, like: Any, value: Any, result: Any, dimension: int, ranks: int
    ) -> list[Any]:
        """The inverse: [ranks, elements of a chunk] -> a result of these chunks."""
        order = _major_to_minor(result)
        place = order.index(dimension)
        sizes = [result.dimensions[d] for d in order]
        if all(size == 1 for size in sizes[:place]):
            return [self._body.make(like, self._target.reshape, result, [value])]
        rest = [*sizes[:place], sizes[place] // ranks, *sizes[place + 1 :]]
        cut, more = self._flat(like, value, [ranks, *rest])
        # Dimension 0, the ranks, goes to `place`.
        back = [*range(1, place + 1), 0, *range(place + 1, len(rest) + 1)]
        shape = _module.array(result.element_type, [([ranks, *rest])[d] for d in back])
        moved = self._body.make(like, "transpose", shape, [cut], dimensions=back)
        return [*more, moved, self._body.make(like, self._target.reshape, result, [moved])]

    def _all_to_all_of_tuples(self, instruction: Any, operands: Sequence[Any]) -> _Made:
        """One operand for each rank, one result from each."""
        results = list(instruction.shape.tuple_shapes)
        groups = _groups.groups_of(instruction, self._devices)
        ranks = groups.shape[1]
        if len(operands) != ranks or len(results) != ranks:
            raise NotServed("the number of operands is not the number of ranks")
        first = results[0]
        if any(shape != first for shape in [*results, *(o.shape for o in operands)]):
            raise NotServed("operands of several shapes")
        element, count = first.element_type, _module.element_count(first)
        request = self._request(instruction, [o.shape for o in operands], groups=groups)
        attributes = self._decide(request)
        takes_blocks = self._target.takes_separate_blocks
        if takes_blocks and attributes.get("algorithm") in _OF_SEPARATE_BLOCKS:
            attributes["separate_blocks"] = 1
            return [request], [self._emit(instruction, attributes, instruction.shape, operands)]
        made = []
        rows = []
        for operand in operands:
            row, more = self._flat(instruction, operand, [1, count])
            rows.append(row)
            made += more
        whole = _module.array(element, [ranks, count])
        joined = self._body.make(instruction, "concatenate", whole, rows, dimensions=[0])
        call = self._emit(instruction, attributes, whole, [joined])
        made += [joined, call]
        ends = []
        for rank, result in enumerate(results):
            cut = self._body.make(
                *(instruction, "slice", _module.array(element, [1, count]), [call]),
                slice_dimensions=[
                    {"start": rank, "limit": rank + 1, "stride": 1},
                    {"start": 0, "limit": count, "stride": 1},
                ],
            )
            end = self._body.make(instruction, self._target.reshape, result, [cut])
            made += [cut, end]
            ends.append(end)
        made.append(self._body.make(instruction, "tuple", instruction.shape, ends))
        return [request], made

    def _ragged(self, instruction: Any, operands: Sequence[Any]) -> _Made:
        if len(operands) != 6 or operands[1].shape != instruction.shape:
            raise NotServed("operands that are not those of a ragged exchange")
        if len({o.shape.element_type for o in operands[2:]} | _OFFSETS) > len(_OFFSETS) or (
            len({o.shape.element_type for o in operands[2:]}) != 1
        ):
            raise NotServed("offsets that are neither int32 nor int64")
        for operand in operands:
            if not _is_row_major(operand.shape):
                raise NotServed("an operand that is not row-major")
        request = self._request(instruction, [operands[0].shape])
        return [request], [self._call(instruction, request, instruction.shape, operands)]

    def _call(self, like: Any, request: Request, shape: Any, operands: Sequence[Any]) -> Any:
        return self._emit(like, self._decide(request), shape, operands)

    def _emit(
        self, like: Any, attributes: dict[str, Any], shape: Any, operands: Sequence[Any]
    ) -> Any:
        call = self._body.make(
            *(like, "custom-call", shape, operands),
            custom_call_target=TARGET,
            custom_call_api_version=TYPED_FFI,
            backend_config=dictionary.text_of(attributes).encode(),
            constrain_layout=True,
            operand_shapes_with_layout=[operand.shape for operand in operands],
        )
        call.frontend_attributes.CopyFrom(like.frontend_attributes)
        return call


_Made = tuple[list[Request], list[Any]]


def _operation(computation: Any, element_type: int) -> str:
    """The opcode of the one operation of two values that a reduction's computation is.

    Small floats may be widened for it, and its result narrowed: the engine does the same. Where XLA
    has widened the operands of a collective, the computation may still be of the narrow type.
    """
    instructions = {i.id: i for i in computation.instructions}
    opcodes = {number: i.opcode for number, i in instructions.items()}
    shapes = {number: i.shape for number, i in instructions.items()}
    parameters = [number for number, opcode in opcodes.items() if opcode == "parameter"]
    root_id = operation = computation.root_id
    used = {root_id}
    if opcodes[operation] == "convert":
        operation = instructions[operation].operand_ids[0]
        used.add(operation)
    operands = instructions[operation].operand_ids[:]
    sources = []
    for operand in operands:
        used.add(operand)
        if opcodes[operand] == "convert":
            operand = instructions[operand].operand_ids[0]
            used.add(operand)
        sources.append(operand)
    if used != set(opcodes) or sorted(sources) != sorted(parameters) or len(sources) != 2:
        raise NotServed("its reduction is not one operation of two values")
    types = {number: shape.element_type for number, shape in shapes.items()}
    outer = {types[number] for number in (*parameters, root_id)}
    inner = {types[number] for number in (*operands, operation)}
    if any([shape.dimensions for shape in shapes.values()]) or len(outer) != 1 or len(inner) != 1:
        raise NotServed("its reduction is not one operation of two numbers")
    if not (_is_as_exact(element_type, *outer) and inner in (outer, {_F32})):
        raise NotServed("its reduction is done in another type than its operands'")
    if inner != outer and not (outer < _FLOATS and _is_as_exact(_F32, *outer)):
        raise NotServed("its reduction is done in another type than its operands'")
    return opcodes[operation]


def _is_as_exact(wide: int, narrow: int) -> bool:
    """Whether a type is another one, or a float of more bytes than that."""
    if wide == narrow:
        return True
    if not {wide, narrow} < _FLOATS:
        return False
    return (_module.element_bytes(wide) or 0) > (_module.element_bytes(narrow) or 0)


def _one_type(operands: Sequence[Any]) -> int:
    types = {operand.shape.element_type for operand in operands}
    if len(types) != 1:
        raise NotServed("operands of several types")
    return int(types.pop())


@functools.lru_cache(maxsize=1024)
def _trouble(serialized: bytes) -> str:
    """Why the engine does not take a shape's type or layout; "" if it does."""
    shape = proto.Shape.FromString(serialized)
    if _module.element_bytes(shape.element_type) is None:
        return f"the engine has no {_module.type_name(shape.element_type)}"
    if any(shape.is_dynamic_dimension):
        return "a dimension whose size is known only when the program runs"
    if _module.element_count(shape) == 0:
        return "an array without elements"
    for number in proto.unknown_fields(shape):
        return f"a shape with an unknown field: number {number}"
    layout = shape.layout
    known = {"minor_to_major", "tail_padding_alignment_in_elements"}
    if (
        sorted(layout.minor_to_major) != list(range(len(shape.dimensions)))
        or {descriptor.name for descriptor, _ in layout.ListFields()} - known
        or layout.tail_padding_alignment_in_elements > 1
    ):
        return "an unknown layout"
    return ""


def _major_to_minor(shape: Any) -> list[int]:
    return list(shape.layout.minor_to_major)[::-1]


def _is_row_major(shape: Any) -> bool:
    return _major_to_minor(shape) == list(range(len(shape.dimensions)))
