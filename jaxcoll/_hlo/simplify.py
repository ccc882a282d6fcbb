"""Replaces collectives by cheaper ones with bitwise equal results.

- An all-reduce becomes a reduce-scatter if every device keeps only its own slice.
- A collective-permute from each device to itself becomes a copy.

Only collectives that `serve` can serve are changed: XLA:CPU's own reduce-scatter is wrong along
some dimensions. The results are XLA's instructions; `serve` replaces them by calls.
"""

from __future__ import annotations

import collections
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxcoll._hlo import groups as _groups
from jaxcoll._hlo import module as _module
from jaxcoll._hlo import proto, serve
from jaxcoll._hlo.evaluate import Evaluator
from jaxcoll._hlo.groups import NotServed
from jaxcoll._hlo.module import Body

CHANGES = "jaxcoll_changes"  # frontend attribute: what was made of the program's collectives


# (groups, bytes of an all-reduce, bytes that stay one, bytes of each reduce-scatter) -> whether all
# of these add in the same order.
MayScatter = Callable[[np.ndarray, int, int, list[int]], bool]


def simplify(
    program: _module.Program,
    decide: serve.Decide,
    may_scatter: MayScatter,
    target: serve.Target = serve.CPU,
) -> None:
    """Changes those collectives of a module that `serve` would serve."""
    try:
        devices = _groups.Devices(program.module)
    except NotServed:
        return
    known = _Known(program, devices)
    uses: list[_Use] = []
    for body, found in program.bodies(_CHANGED.__contains__):
        if body.id in program.asynchronous:
            continue
        server = serve.Server(program, body, devices, decide, target)
        scatter = _Scatter(known, body, server)
        for instruction in found:
            try:
                if instruction.opcode == "all-reduce":
                    uses += scatter.turn(instruction, may_scatter)
                else:
                    _drop_identity(body, instruction, devices, server)
            except NotServed:
                continue  # serve says why
        body.write()
    # Until here fusions are as they were: a fusion may use several values that have been turned.
    for use in uses:
        _keep_slice(use, target)
    for use in {use.computation: use for use in uses if use.fusion is not None}.values():
        _drop_unused(use.fusion, program.computations[use.computation])
        use.body.reread(use.fusion)


def _drop_identity(
    body: Body, permute: Any, devices: _groups.Devices, server: serve.Server
) -> None:
    """Raises: NotServed."""
    pairs = _groups.pairs_of(permute, devices)
    operands = [body.by_id[operand] for operand in permute.operand_ids]
    to_itself = sorted(pairs) == [(i, i) for i in range(len(devices))]
    if to_itself and len(operands) == 1 and operands[0].shape == permute.shape:
        server.check(permute)
        body.replace(permute, [body.make(permute, "copy", permute.shape, operands)])


_ALIASING = 74  # HloInstructionProto.output_operand_aliasing


_CHANGED = {"all-reduce", "collective-permute"}


class _Use(NamedTuple):
    """A dynamic-slice of a value, in the value's computation or within a fusion there."""

    body: Body  # of the value
    computation: int  # the slice's, by id
    slice: Any  # the instruction
    dimension: int
    fusion: Any = None  # and its parameter, where it is within one
    parameter: Any = None


class _Known:
    """Facts about a whole module; each is found once, when it is first asked for."""

    def __init__(self, program: _module.Program, devices: _groups.Devices) -> None:
        self.program = program
        self.module = program.module
        self.devices = devices

    @functools.cached_property
    def evaluator(self) -> Evaluator:
        return Evaluator(self.module, self.devices)

    @functools.cached_property
    def free_channels(self) -> Iterator[int]:
        """The channels that no instruction has."""
        channels = (i.channel_id for c in self.module.computations for i in c.instructions)
        return itertools.count(max(0, *channels) + 1)

    @functools.cached_property
    def callers(self) -> collections.Counter[int]:
        """How many instructions call a computation, by its id."""
        return collections.Counter(
            called
            for computation in self.module.computations
            for instruction in computation.instructions
            for called in instruction.called_computation_ids
        )


class _Scatter:
    """Turns all-reduces of one computation, or some of their results."""

    def __init__(self, known: _Known, body: Body, server: serve.Server) -> None:
        self._known = known
        self._body = body
        self._server = server
        self._devices = known.devices

    def turn(self, reduce: Any, may_scatter: MayScatter) -> list[_Use]:
        """Turns what can be turned of an all-reduce; returns the slices that have become idle.

        Raises: NotServed.
        """
        results = self._results(reduce)
        turned: dict[int, list[_Use]] = {}
        for place, value in results.items():
            if uses := self._uses(value, reduce):
                turned[place] = uses
        if not turned:
            return []
        self._server.check(reduce)
        groups = _groups.groups_of(reduce, self._devices)
        operands = [self._body.by_id[operand] for operand in reduce.operand_ids]
        bytes_of = [_module.byte_count(operand.shape) for operand in operands]
        parts: dict[tuple[int, int], int] = collections.Counter()
        for place, uses in turned.items():
            parts[self._part(operands[place], uses)] += bytes_of[place]
        rest = sum(bytes_of) - sum(parts.values())
        if not may_scatter(groups, sum(bytes_of), rest, list(parts.values())):
            return []
        self._write(reduce, operands, results, turned)
        return [use for uses in turned.values() for use in uses]

    def _part(self, operand: Any, uses: list[_Use]) -> tuple[int, int]:
        """Operands that become one reduce-scatter share these: its dimension and its type."""
        return uses[0].dimension, operand.shape.element_type

    def _results(self, reduce: Any) -> dict[int, Any]:
        """The instructions that stand for results, by place, but for results with other uses."""
        root_id = self._body.root_id
        if reduce.id == root_id:
            return {}
        if reduce.shape.element_type != _module.TUPLE:
            return {0: reduce}
        numbers = self._body.users[reduce.id]
        if any(self._body.opcodes[number] != "get-tuple-element" for number in numbers):
            return {}
        users = [self._body.by_id[number] for number in numbers]
        places = [user.tuple_index for user in users]
        alone = {place for place, count in collections.Counter(places).items() if count == 1}
        elements = zip(places, users, strict=True)
        found = {place: u for place, u in elements if place in alone and u.id != root_id}
        return dict(sorted(found.items()))

    def _uses(self, value: Any, reduce: Any) -> list[_Use]:
        """All uses of a value, if each is the slice of the device's rank along one dimension.

        Raises: NotServed.
        """
        uses: list[_Use] = []
        numbers = self._body.users[value.id]
        if any(self._body.opcodes[n] not in ("dynamic-slice", "fusion") for n in numbers):
            return []  # as most do
        users = [self._body.by_id[number] for number in numbers]
        if any(u.opcode != "dynamic-slice" and u.fusion_kind != "kLoop" for u in users):
            return []
        for user in users:
            places = [i for i, operand in enumerate(user.operand_ids) if operand == value.id]
            found = None
            if user.opcode == "dynamic-slice" and places == [0]:
                found = self._use(self._body.id, user, value, None, reduce)
            elif user.fusion_kind == "kLoop" and len(places) == 1:
                found = self._use_within(user, places[0], reduce)
            if found is None or (uses and found.dimension != uses[0].dimension):
                return []
            uses.append(found)
        return uses

    def _use_within(self, fusion: Any, place: int, reduce: Any) -> _Use | None:
        called = self._known.program.computations[fusion.called_computation_ids[0]]
        inner = list(called.instructions)
        if "dynamic-slice" not in [i.opcode for i in inner]:
            return None
        parameters = [i for i in inner if i.opcode == "parameter" and i.parameter_number == place]
        if len(parameters) != 1 or parameters[0].id == called.root_id:
            return None
        users = [i for i in inner if parameters[0].id in i.operand_ids]
        if len(users) != 1 or users[0].opcode != "dynamic-slice":
            return None
        if self._known.callers[called.id] != 1:
            return None
        if list(users[0].operand_ids).count(parameters[0].id) != 1:
            return None
        if _ALIASING in proto.unknown_fields(fusion):  # goes by the numbers of operands
            return None
        outer = [
            self._known.evaluator.value(self._body.id, self._body.by_id[operand])
            for operand in fusion.operand_ids
        ]
        found = self._use(called.id, users[0], parameters[0], outer, reduce)
        return found and found._replace(fusion=fusion, parameter=parameters[0])

    def _use(
        self,
        computation: int,
        cut: Any,
        value: Any,
        outer: list[np.ndarray | None] | None,
        reduce: Any,
    ) -> _Use | None:
        groups = _groups.groups_of(reduce, self._devices)
        ranks = groups.shape[1]
        whole, sizes = list(value.shape.dimensions), list(cut.dynamic_slice_sizes)
        cuts = [d for d in range(len(whole)) if whole[d] != sizes[d]]
        if len(cuts) != 1 or whole[cuts[0]] != sizes[cuts[0]] * ranks:
            return None
        if value.shape.layout != cut.shape.layout:
            return None
        by_id = self._known.program.by_id(computation)
        for dimension, start in enumerate(cut.operand_ids[1:]):
            if dimension not in cuts:
                continue  # where all of a dimension is taken, XLA clamps every start to 0
            at = self._known.evaluator.value(computation, by_id[start], outer)
            expected = np.zeros(len(self._devices), np.int64)
            for row in groups:
                expected[row] = np.arange(ranks) * sizes[dimension]
            if at is None or not np.array_equal(at.astype(np.int64), expected):
                return None
        return _Use(self._body, computation, cut, cuts[0])

    def _write(
        self,
        reduce: Any,
        operands: list[Any],
        elements: dict[int, Any],
        turned: dict[int, list[_Use]],
    ) -> None:
        as_tuple = reduce.shape.element_type == _module.TUPLE
        shapes = list(_module.arrays(reduce.shape))
        made: list[Any] = []
        results: list[Any] = [None] * len(operands)
        scattered: dict[tuple[int, int], list[int]] = {}
        for place, uses in turned.items():
            scattered.setdefault(self._part(operands[place], uses), []).append(place)
            shapes[place] = _slice_shape(uses[0])
        rest = [place for place in range(len(operands)) if place not in turned]
        for part, places in [(None, rest), *scattered.items()]:
            if not places:
                continue
            parts = [shapes[place] for place in places]
            alone = not as_tuple or len(places) == 1
            collective = self._body.make(
                *(reduce, "all-reduce" if part is None else "reduce-scatter"),
                parts[0] if alone else _module.tuple_of(parts),
                [operands[place] for place in places],
            )
            self._copy_participants(reduce, collective)
            if part is not None:
                collective.dimensions[:] = [part[0]]
                note = collective.frontend_attributes.map.add(key=CHANGES)
                note.value = "an all-reduce of which each device keeps a slice"
            made.append(collective)
            for index, place in enumerate(places):
                results[place] = collective
                if not alone:
                    results[place] = self._body.make(
                        *(reduce, "get-tuple-element", parts[index], [collective]),
                        tuple_index=index,
                    )
                    made.append(results[place])
        if as_tuple:
            made.append(self._body.make(reduce, "tuple", _module.tuple_of(shapes), results))
            for place in turned:
                elements[place].shape.CopyFrom(shapes[place])
        self._body.replace(reduce, made)

    def _copy_participants(self, reduce: Any, collective: Any) -> None:
        """Makes a collective one of the same devices with the same reduction."""
        for descriptor, value in reduce.ListFields():
            if descriptor.name in _PARTICIPANTS:
                getattr(collective, descriptor.name).MergeFrom(value)
        collective.use_global_device_ids = reduce.use_global_device_ids
        if reduce.channel_id > 0:  # XLA's own collectives meet by it
            collective.channel_id = next(self._known.free_channels)


_PARTICIPANTS = {
    *("replica_groups", "collective_device_list", "iota_collective_device_list"),
    *("mesh_axes_replica_group_list", "called_computation_ids", "frontend_attributes"),
}


def _slice_shape(use: _Use) -> Any:
    shape = proto.Shape()
    shape.CopyFrom(use.slice.shape)
    return shape


def _keep_slice(use: _Use, target: serve.Target) -> None:
    """Makes a slice pass on its operand, which is that slice now."""
    if use.parameter is not None:
        use.parameter.shape.CopyFrom(use.slice.shape)
    del use.slice.operand_ids[1:]
    del use.slice.dynamic_slice_sizes[:]
    use.slice.opcode = target.reshape
    if use.fusion is None:
        use.body.reread(use.slice)


def _drop_unused(fusion: Any, computation: Any) -> None:
    """Removes from a fusion what nobody in it uses any more, operands too: XLA refuses it."""
    kept = list(computation.instructions)
    while True:
        used = {operand for i in kept for operand in i.operand_ids} | {computation.root_id}
        rest = [i for i in kept if i.id in used]
        if len(rest) == len(kept):
            break
        kept = rest
    parameters = sorted(
        (i for i in kept if i.opcode == "parameter"), key=lambda i: int(i.parameter_number)
    )
    fusion.operand_ids[:] = [fusion.operand_ids[i.parameter_number] for i in parameters]
    for number, parameter in enumerate(parameters):
        parameter.parameter_number = number
    shapes = [proto.Shape.FromString(i.shape.SerializeToString()) for i in parameters]
    del computation.program_shape.parameters[:]
    computation.program_shape.parameters.extend(shapes)
    computation.program_shape.ClearField("parameter_names")
    copies = [proto.Instruction.FromString(i.SerializeToString()) for i in kept]
    del computation.instructions[:]
    computation.instructions.extend(copies)
