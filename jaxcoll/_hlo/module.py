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


class Program:
    """A module while its computations are rewritten.

    Protocol buffers are slow in Python. So what the passes need of all instructions is read once,
    and `store` puts all changes into the module.
    """

    def __init__(self, module: Any) -> None:
        self.module = module
        self.computations: dict[int, Any] = {c.id: c for c in module.computations}
        # Most instructions are in fusions, which have no collectives.
        self._bodies = {
            number: Body(self, computation)
            for number, computation in self.computations.items()
            if not computation.is_fusion_computation
        }

    def store(self) -> None:
        """Puts all changes into the module."""
        for body in self._bodies.values():
            body.store()

    def body(self, number: int) -> Body | None:
        """A computation; None for a fusion."""
        return self._bodies.get(number)

    def by_id(self, number: int) -> dict[int, Any]:
        """The instructions of a computation as they are now."""
        if number in self._bodies:
            return self._bodies[number].by_id
        return {i.id: i for i in self.computations[number].instructions}

    def bodies(
        self, fits_opcode: Callable[[str], bool], fits: Callable[[Any], bool] | None = None
    ) -> Iterator[tuple[Body, list[Any]]]:
        """The computations, but for fusions, with instructions of some kind, and these.

        Args:
          fits_opcode: whether instructions of an opcode may be of the kind.
          fits: whether an instruction of such an opcode is of the kind; None: all are.
        """
        for body in self._bodies.values():
            opcodes = set(filter(fits_opcode, set(body.opcodes.values())))
            if not opcodes:
                continue
            found = [body.by_id[n] for n, opcode in body.opcodes.items() if opcode in opcodes]
            if found := list(filter(fits, found)) if fits else found:
                body.number_anew()
                yield body, found

    @functools.cached_property
    def asynchronous(self) -> set[int]:
        """The ids of computations that run beside others, by a start and a done of their own."""
        return {
            called
            for body in self._bodies.values()
            for number, opcode in body.opcodes.items()
            if opcode.startswith("async-")
            for called in body.by_id[number].called_computation_ids
        }

    def last_id(self) -> int:
        """The greatest id of an instruction."""
        return max(max(self.by_id(number)) for number in self.computations)

    def forward_tuples(self) -> None:
        """Has who takes an element of a tuple that is put together take what was put in.

        Else it would wait for the other elements, too.
        """
        for body in self._bodies.values():
            body.forward_tuples()


class Body:
    """A computation whose instructions are replaced.

    `by_id`, `opcodes`, `operands` and `sources` are in the order of the instructions.
    """

    def __init__(self, program: Program, computation: Any) -> None:
        self._program = program
        self._computation = computation
        self.by_id: dict[int, Any] = {i.id: i for i in computation.instructions}
        self.opcodes: dict[int, str] = {number: i.opcode for number, i in self.by_id.items()}
        self.root_id = int(computation.root_id)
        self._stored: list[int] | None = None  # what the computation has; None: what is here
        self._made: dict[int, Any] = {}  # those of here that it does not have
        self._replaced: dict[int, list[Any]] = {}  # by id of what they replace
        self._renamed: dict[int, int] = {}  # id -> the id that stands for it now

    @functools.cached_property
    def _ids(self) -> Iterator[int]:
        """The numbers that no instruction has."""
        # XLA numbers instructions within the upper half of their computation's number, or through.
        last = max(self.by_id)
        if last >> 32 != self.id:
            last = self._program.last_id()
        return itertools.count(last + 1)

    def number_anew(self) -> None:
        """Numbers new instructions from the last one that is there now."""
        self.__dict__.pop("_ids", None)

    @functools.cached_property
    def operands(self) -> dict[int, list[int]]:
        """The ids of the operands of each instruction."""
        return {number: i.operand_ids[:] for number, i in self.by_id.items()}

    @functools.cached_property
    def predecessors(self) -> dict[int, list[int]]:
        """The ids of the control predecessors of those instructions that have any."""
        return {
            number: i.control_predecessor_ids[:]
            for number, i in self.by_id.items()
            if i.control_predecessor_ids
        }

    @functools.cached_property
    def sources(self) -> dict[int, list[int]]:
        """The operands and then the control predecessors of each instruction."""
        sources = dict(self.operands)
        for number, before in self.predecessors.items():
            sources[number] = [*sources[number], *before]
        return sources

    @functools.cached_property
    def users(self) -> dict[int, list[int]]:
        """The instructions that use an instruction, by its id."""
        users: dict[int, list[int]] = {number: [] for number in self.by_id}
        for number, operands in self.operands.items():
            for operand in dict.fromkeys(operands) if len(operands) > 1 else operands:
                users[operand].append(number)
        return users

    @functools.cached_property
    def id(self) -> int:
        """That of the computation."""
        return int(self._computation.id)

    def make(
        self, like: Any, opcode: str, shape: Any, operands: Sequence[Any], **fields: Any
    ) -> Any:
        """A new instruction, which stands for a part of `like`."""
        number, name = self._new_name(like, opcode)
        return proto.Instruction(
            opcode=opcode,
            id=number,
            name=name,
            shape=shape,
            operand_ids=[operand.id for operand in operands],
            metadata=like.metadata,
            **fields,
        )

    def copy(self, like: Any) -> Any:
        """A new instruction, which is another one under a name of its own."""
        made = proto.Instruction()
        made.CopyFrom(like)
        made.id, made.name = self._new_name(like, like.opcode)
        return made

    def _new_name(self, like: Any, opcode: str) -> tuple[int, str]:
        number = next(self._ids)
        return number, f"{like.name}.{opcode}.{number & 0xFFFFFFFF}"

    def replace(self, old: Any, new: Sequence[Any]) -> None:
        """Puts `new` where `old` is. The last of them stands for it, and has its id."""
        *_, last = new
        last.id, last.name = old.id, old.name
        before = old.control_predecessor_ids
        for instruction in new:
            if before or instruction.control_predecessor_ids:
                instruction.control_predecessor_ids[:] = before
        self._replaced[old.id] = list(new)

    def drop(self, old: Any, instead: Any) -> None:
        """Removes an instruction; who uses it uses `instead`."""
        self.rename(old.id, instead.id)

    def rename(self, old: int, new: int) -> None:
        """As `drop`, by ids."""
        self._renamed[old] = new
        self._replaced[old] = []

    def put_behind(self, instruction: int, before: int) -> None:
        """Makes an instruction a control predecessor of another; `add` puts them in order."""
        self.by_id[instruction].control_predecessor_ids.append(before)
        self.predecessors.setdefault(instruction, []).append(before)

    def reread(self, instruction: Any) -> None:
        """Takes over a change of an instruction's opcode or operands."""
        self.opcodes[instruction.id] = instruction.opcode
        self.operands[instruction.id] = instruction.operand_ids[:]
        self._forget()

    def add(self, instructions: Sequence[Any]) -> None:
        """Adds instructions that nothing uses, and puts all in an order that holds."""
        self._change(set(), instructions, {})

    def write(self, more: Sequence[Any] = ()) -> None:
        """Makes what has been replaced part of the computation, and more."""
        if self._replaced:
            added = [i for new in self._replaced.values() for i in new]
            self._change(self._replaced.keys(), [*added, *more], self._renamed)
            self._replaced, self._renamed = {}, {}

    def forward_tuples(self) -> None:
        """As Program's."""
        tuples = {number for number, opcode in self.opcodes.items() if opcode == "tuple"}
        if not tuples:
            return
        renamed = {}
        for number, opcode in self.opcodes.items():
            if opcode == "get-tuple-element" and (whole := self.operands[number][0]) in tuples:
                renamed[number] = self.operands[whole][self.by_id[number].tuple_index]
        if not renamed:
            return
        used = {self.root_id}
        for number, sources in self.sources.items():
            if number not in renamed:
                used.update(sources)
        unused = tuples - {_now(number, renamed) for number in used}
        self._change(renamed.keys() | unused, [], renamed, in_order=True)

    def store(self) -> None:
        """Puts the instructions into the computation, as they are here."""
        if self._stored is None:
            return
        instructions = self._computation.instructions
        kept = self.by_id.keys() - self._made.keys()
        for index in reversed([n for n, number in enumerate(self._stored) if number not in kept]):
            del instructions[index]
        instructions.extend(self._made.values())
        place = {number: at for at, number in enumerate(self.by_id)}
        instructions.sort(key=lambda i: place[i.id])
        self._computation.root_id = self.root_id
        self.by_id = {i.id: i for i in instructions}
        self._stored, self._made = None, {}

    def _change(
        self,
        removed: Collection[int],
        added: Sequence[Any],
        renamed: dict[int, int],
        in_order: bool = False,
    ) -> None:
        """Takes instructions out, puts others in, and renames ids of operands.

        Args:
          in_order: whether all instructions must still follow their operands afterwards.
        """
        if self._stored is None:
            self._stored = list(self.by_id)
        operands, predecessors = self.operands, self.predecessors
        # New ones are placed before their first use; old ones keep their order.
        for number in removed:
            del self.by_id[number], self.opcodes[number], operands[number]
            predecessors.pop(number, None)
            self._made.pop(number, None)
        for instruction in added:
            number = instruction.id
            self.by_id[number] = self._made[number] = instruction
            self.opcodes[number] = instruction.opcode
            operands[number] = instruction.operand_ids[:]
            if before := instruction.control_predecessor_ids[:]:
                predecessors[number] = before
        if renamed:
            for number, now in _renamed(operands, renamed).items():
                self.by_id[number].operand_ids[:] = operands[number] = now
            for number, now in _renamed(predecessors, renamed).items():
                self.by_id[number].control_predecessor_ids[:] = predecessors[number] = now
            self.root_id = _now(self.root_id, renamed)
        self._forget()
        if not in_order and (order := self._in_order()) != list(self.by_id):
            self.by_id = {number: self.by_id[number] for number in order}
            self.opcodes = {number: self.opcodes[number] for number in order}
            self.operands = {number: operands[number] for number in order}
            self._forget()

    def _forget(self) -> None:
        """Forgets what follows from the instructions."""
        self.__dict__.pop("sources", None)
        self.__dict__.pop("users", None)

    def _in_order(self) -> list[int]:
        """Instructions behind what they need, and otherwise as they were, by id.

        Raises: ValueError for a cycle.
        """
        sources = self.sources
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
                        raise ValueError(f"{self.by_id[number].name} depends on itself")
                    begun.add(number)
                    stack += [source for source in sources[number] if source not in done]
                    continue
                stack.pop()
                if number not in done:
                    done.add(number)
                    ordered.append(number)
        return ordered


def _now(number: int, renamed: dict[int, int]) -> int:
    """The id of the instruction that stands for one now."""
    while number in renamed:
        number = renamed[number]
    return number


def _renamed(ids: dict[int, list[int]], renamed: dict[int, int]) -> dict[int, list[int]]:
    """Those lists that change, with the ids that stand for the renamed ones now."""
    changed = renamed.keys()
    return {
        number: [_now(i, renamed) for i in listed]
        for number, listed in ids.items()
        if not changed.isdisjoint(listed)
    }


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
