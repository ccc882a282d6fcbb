"""Computations while they are rewritten: their instructions in order, and new ones among them."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

from jaxcoll._hlo import proto

# The number of XLA's type, and a type's name there: its bytes.
TUPLE = 13
PRED = 1
_BYTES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 2,
    8: 4,
    9: 8,
    10: 2,
    11: 4,
    12: 8,
    15: 8,
    16: 2,
    18: 16,
    19: 1,
    20: 1,
    23: 1,
    24: 1,
    25: 1,
    28: 1,
    29: 1,
    33: 1,
}
_NAMES = {
    1: "pred",
    2: "s8",
    3: "s16",
    4: "s32",
    5: "s64",
    6: "u8",
    7: "u16",
    8: "u32",
    9: "u64",
    10: "f16",
    11: "f32",
    12: "f64",
    15: "c64",
    16: "bf16",
    18: "c128",
    19: "f8e5m2",
    20: "f8e4m3fn",
    23: "f8e4m3b11fnuz",
    24: "f8e5m2fnuz",
    25: "f8e4m3fnuz",
    28: "f8e4m3",
    29: "f8e3m4",
    33: "f8e8m0fnu",
    13: "tuple",
    14: "opaque",
    17: "token",
}


def element_bytes(element_type: int) -> int | None:
    """Bytes of an element; None for types that jaxcoll's engines do not have."""
    return _BYTES.get(element_type)


def type_name(element_type: int) -> str:
    return _NAMES.get(element_type, f"type {element_type}")


def element_count(shape: Any) -> int:
    return math.prod(shape.dimensions)


def byte_count(shape: Any) -> int:
    """Bytes of an array whose type the engines have."""
    return element_count(shape) * _BYTES[shape.element_type]


def arrays(shape: Any) -> list[Any]:
    """The arrays of a shape: itself, or the elements of a tuple of arrays."""
    return list(shape.tuple_shapes) if shape.element_type == TUPLE else [shape]


def array(
    element_type: int, dimensions: Sequence[int], minor_to_major: Sequence[int] | None = None
) -> Any:
    """The shape of an array; row-major unless it says otherwise."""
    shape = proto.Shape(element_type=element_type, dimensions=dimensions)
    shape.is_dynamic_dimension.extend([False] * len(dimensions))
    order = range(len(dimensions) - 1, -1, -1) if minor_to_major is None else minor_to_major
    shape.layout.minor_to_major.extend(order)
    shape.layout.tail_padding_alignment_in_elements = 1
    return shape


def tuple_of(shapes: Iterable[Any]) -> Any:
    return proto.Shape(element_type=TUPLE, tuple_shapes=shapes)


def text(shape: Any) -> str:
    """A shape as XLA prints it, without its layout."""
    if shape.element_type == TUPLE:
        return f"({', '.join(map(text, shape.tuple_shapes))})"
    return f"{type_name(shape.element_type)}[{','.join(map(str, shape.dimensions))}]"


class Body:
    """A computation whose instructions are replaced."""

    def __init__(self, module: Any, computation: Any) -> None:
        self._module = module
        self._computation = computation
        self._replaced: dict[int, list[Any]] = {}  # by id of what they replace
        self._renamed: dict[int, int] = {}  # id -> the id that stands for it now

    @functools.cached_property
    def _ids(self) -> Iterator[int]:
        """The numbers that no instruction has."""
        # XLA numbers instructions within the upper half of their computation's number, or through.
        last = max(self.by_id)
        if last >> 32 != self._computation.id:
            last = max(i.id for c in self._module.computations for i in c.instructions)
        return itertools.count(last + 1)

    @functools.cached_property
    def by_id(self) -> dict[int, Any]:
        return {i.id: i for i in self._computation.instructions}

    @functools.cached_property
    def sources(self) -> dict[int, list[int]]:
        """The operands and then the control predecessors of each instruction, in order."""
        return {
            number: [*i.operand_ids, *i.control_predecessor_ids] for number, i in self.by_id.items()
        }

    @functools.cached_property
    def users(self) -> dict[int, list[Any]]:
        """The instructions that use an instruction, by its id."""
        users: dict[int, list[Any]] = {number: [] for number in self.by_id}
        for instruction in self.by_id.values():
            for operand in dict.fromkeys(instruction.operand_ids):
                users[operand].append(instruction)
        return users

    @property
    def instructions(self) -> Sequence[Any]:
        """Those of the computation, as it was."""
        return self._computation.instructions

    @property
    def id(self) -> int:
        """That of the computation."""
        return int(self._computation.id)

    @property
    def root_id(self) -> int:
        return int(self._computation.root_id)

    def operands(self, instruction: Any) -> list[Any]:
        return [self.by_id[operand] for operand in instruction.operand_ids]

    def make(
        self, like: Any, opcode: str, shape: Any, operands: Sequence[Any], **fields: Any
    ) -> Any:
        """A new instruction, which stands for a part of `like`."""
        made = proto.Instruction(opcode=opcode, id=next(self._ids), **fields)
        made.name = f"{like.name}.{opcode}.{made.id & 0xFFFFFFFF}"
        made.shape.CopyFrom(shape)
        made.operand_ids.extend(operand.id for operand in operands)
        made.metadata.CopyFrom(like.metadata)
        return made

    def replace(self, old: Any, new: Sequence[Any]) -> None:
        """Puts `new` where `old` is. The last of them stands for it, and has its id."""
        *_, last = new
        last.id, last.name = old.id, old.name
        for instruction in new:
            instruction.control_predecessor_ids[:] = old.control_predecessor_ids
        self._replaced[old.id] = list(new)

    def drop(self, old: Any, instead: Any) -> None:
        """Removes an instruction; who uses it uses `instead`."""
        self.rename(old.id, instead.id)

    def rename(self, old: int, new: int) -> None:
        """As `drop`, by ids."""
        self._renamed[old] = new
        self._replaced[old] = []

    def add(self, instructions: Sequence[Any]) -> None:
        """Adds instructions that nothing uses, and puts all in an order that holds."""
        _change(self._computation, set(), instructions, {})

    def write(self, more: Sequence[Any] = ()) -> None:
        """Puts what has been replaced into the computation, and more."""
        if self._replaced:
            added = [i for new in self._replaced.values() for i in new]
            _change(self._computation, self._replaced.keys(), [*added, *more], self._renamed)


def _change(
    computation: Any,
    removed: Collection[int],
    added: Sequence[Any],
    renamed: dict[int, int],
    in_order: bool = False,
) -> None:
    """Takes instructions out of a computation, puts others in, and renames ids of operands.

    Args:
      in_order: whether all stand behind what they need afterwards, too.
    """

    instructions = computation.instructions
    # New ones stand where they are needed first, old ones as they stood.
    if removed:
        for index in reversed([n for n, i in enumerate(instructions) if i.id in removed]):
            del instructions[index]
    instructions.extend(added)
    sources = {}
    for instruction in instructions:
        operands, before = list(instruction.operand_ids), instruction.control_predecessor_ids
        if not renamed.keys().isdisjoint(operands):
            operands = [_now(i, renamed) for i in operands]
            instruction.operand_ids[:] = operands
        if before:
            if not renamed.keys().isdisjoint(before):
                before[:] = [_now(i, renamed) for i in before]
            operands += before
        sources[instruction.id] = operands
    if not in_order and (order := _in_order(sources, instructions)) != list(sources):
        place = {number: at for at, number in enumerate(order)}
        instructions.sort(key=lambda i: place[i.id])
    computation.root_id = _now(computation.root_id, renamed)


def _now(number: int, renamed: dict[int, int]) -> int:
    """The id of the instruction that stands for one now."""
    while number in renamed:
        number = renamed[number]
    return number


def _in_order(sources: dict[int, list[int]], instructions: Sequence[Any]) -> list[int]:
    """Instructions behind what they need, and otherwise as they were, by id.

    Raises: ValueError for a cycle.
    """
    done: set[int] = set()
    begun: set[int] = set()
    ordered = []
    for first, needed in sources.items():
        if first not in done and done.issuperset(needed):  # as most do
            done.add(first)
            ordered.append(first)
            continue
        stack = [first]
        while stack:
            number = stack[-1]
            if number not in done and not done.issuperset(sources[number]):
                if number in begun:
                    (name,) = (i.name for i in instructions if i.id == number)
                    raise ValueError(f"{name} depends on itself")
                begun.add(number)
                stack += [source for source in sources[number] if source not in done]
                continue
            stack.pop()
            if number not in done:
                done.add(number)
                ordered.append(number)
    return ordered


def forward_tuples(module: Any) -> None:
    """Has who takes an element of a tuple that is put together take what was put in.

    Else it would wait for the other elements, too.
    """
    for computation in module.computations:
        if computation.is_fusion_computation:
            continue
        tuples, elements = {}, []
        for i in computation.instructions:
            opcode = i.opcode
            if opcode == "tuple":
                tuples[i.id] = i
            elif opcode == "get-tuple-element":
                elements.append(i)
        renamed = {
            i.id: tuples[i.operand_ids[0]].operand_ids[i.tuple_index]
            for i in elements
            if i.operand_ids[0] in tuples
        }
        if not renamed:
            continue
        used = {computation.root_id}
        for i in computation.instructions:
            if i.id not in renamed:
                used.update(i.operand_ids)
                used.update(i.control_predecessor_ids)
        unused = tuples.keys() - {_now(number, renamed) for number in used}
        _change(computation, renamed.keys() | unused, [], renamed, in_order=True)


def bodies(module: Any, holds: Callable[[Any], bool]) -> Iterator[tuple[Any, Body, list[Any]]]:
    """The computations of a module with instructions that `holds` tells, and these."""
    for computation in module.computations:
        if computation.is_fusion_computation:
            continue
        if found := list(filter(holds, computation.instructions)):
            yield computation, Body(module, computation), found


def attributes(message: Any) -> dict[str, str]:
    """Frontend attributes of a module or an instruction."""
    return {entry.key: entry.value for entry in message.frontend_attributes.map}


class Sources:
    """Where instructions of a module come from."""

    def __init__(self, module: Any) -> None:
        self._index = module.stack_frame_index
        self._places: dict[int, tuple[str, int] | None] = {}  # file and line, by stack frame

    def of(self, instruction: Any) -> str:
        """ "train.py:57 (dot_general)"; "" if XLA does not know."""
        metadata = instruction.metadata
        frame = metadata.stack_frame_id
        if frame not in self._places:
            self._places[frame] = self._place(frame)
        file, line = self._places[frame] or (metadata.source_file, metadata.source_line)
        # A combined instruction has the names of all that it is made of, in parentheses.
        operation = metadata.op_name.rpartition("/")[2].strip("()")
        place = f"{file.rpartition('/')[2]}:{line}" if file else ""
        return f"{place} ({operation})" if place and operation else place or operation

    def _place(self, frame_id: int) -> tuple[str, int] | None:
        index = self._index
        if not 0 < frame_id <= len(index.stack_frames):
            return None
        frame = index.stack_frames[frame_id - 1]
        location = index.file_locations[frame.file_location_id - 1]
        return index.file_names[location.file_name_id - 1], location.line
