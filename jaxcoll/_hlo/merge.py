"""Independent calls of one kind become one call with many operands, up to a number of bytes.

A call costs its messages' latency, whatever its size. XLA combines all independent all-reduces into
one after the last operand, and does not combine other collectives. So calls with many operands are
split into parts of one operand and its result. The parts are merged in the order in which their
operands are ready, under these rules:

- merged parts have equal attributes (collective, algorithm, groups, ...). Each is still reduced
  separately, with its schedule, so no bit of a result changes;
- no part needs another part of its call, directly or through other calls;
- no part waits for the merged call past the time when the critical path needs its result.

The times are estimates from the sizes of arrays.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxcoll._hlo import dictionary, serve
from jaxcoll._hlo import module as _module
from jaxcoll._hlo.costs import Costs
from jaxcoll._hlo.simplify import CHANGES

_UNMERGED = {"ragged_all_to_all"}

# (attributes of a call, bytes of its operands) -> its algorithm, and dims, or None to keep it.
Rechoose = Callable[[str, int], str | None]


@dataclasses.dataclass(slots=True)
class _Part:
    """One operand of a call, and its result."""

    call: Any
    place: int
    operand: int  # id
    key: tuple[Any, ...]
    bytes: int
    ready: float = 0.0  # when its operand is, by costs.py's unit of time, from the start
    needed: float = 0.0  # when its result must be there, lest the program takes longer


@dataclasses.dataclass(slots=True)
class _Group:
    """Parts that become one call."""

    parts: list[_Part] = dataclasses.field(default_factory=list)
    calls: int = 0  # a bit for each call that they are of
    behind: int = 0  # a bit for each call that one of them depends on
    bytes: int = 0
    needed: float = math.inf  # when the first result must be there

    def add(self, part: _Part, call: int, behind: int) -> None:
        self.parts.append(part)
        self.calls |= call
        self.behind |= behind
        self.bytes += part.bytes
        self.needed = min(self.needed, part.needed)


def merge(program: _module.Program, costs: Costs, most_bytes: int, rechoose: Rechoose) -> None:
    """Merges the calls of a module."""
    for body, calls in program.bodies(serve.is_custom_call, _may_merge):
        if len(calls) > 1 or len(calls[0].operand_ids) > 1:
            _Merger(body, calls, costs, most_bytes, rechoose).merge()


def _may_merge(instruction: Any) -> bool:
    if not serve.is_ours(instruction):
        return False
    config = instruction.backend_config.decode()
    # Some take operands that are not vectors, or one more, which says on which device they are
    # made.
    return (
        dictionary.text(config, "collective") not in _UNMERGED
        and not dictionary.integer(config, "separate_blocks")
        and len(instruction.operand_ids) == len(_module.arrays(instruction.shape))
    )


_TOLD_APART = re.compile(r'(signature|label|program) = "((?:[^"\\]|\\.)*)"')


class _Source(NamedTuple):
    """A call that is taken apart, read once."""

    results: list[Any]  # their shapes
    key: tuple[Any, ...]  # all that two calls must share to become one, but for their types
    config: list[str]  # in pieces: text, (name, value of a text that distinguishes it, text) ...
    texts: dict[str, str]  # these
    others: list[tuple[str, str]]  # frontend attributes
    notes: list[str]  # what jaxcoll has changed


class _Merger:
    """Merges the calls of one computation."""

    def __init__(
        self,
        body: Any,
        calls: Sequence[Any],
        costs: Costs,
        most_bytes: int,
        rechoose: Rechoose,
    ) -> None:
        self._body = body
        self._calls = calls
        self._most_bytes = most_bytes
        self._rechoose = rechoose
        self._sources = {call.id: _source(call) for call in calls}
        self._number = {call.id: number for number, call in enumerate(calls)}
        self._before = self._calls_before()  # by id: a bit for each call that it depends on
        self._costs = costs
        self._times = costs.times(body)
        self._made = 0

    def merge(self) -> None:
        parts = [part for call in self._calls for part in self._parts(call)]
        # A part comes behind all that it depends on.
        groups = self._grouped(sorted(parts, key=lambda p: (p.ready, self._number[p.call.id])))
        if any({p.call.id for p in g} != {g[0].call.id} for g in groups) or len(groups) != len(
            self._calls
        ):
            self._write(groups)

    # --- what is known of the computation ---------------------------------------------------------

    def _calls_before(self) -> dict[int, int]:
        before: dict[int, int] = {}
        for number, sources in self._body.sources.items():
            bits = 0
            for source in sources:
                bits |= before[source] | self._bits(source)
            before[number] = bits
        return before

    def _parts(self, call: Any) -> list[_Part]:
        parts = []
        source = self._sources[call.id]
        before = self._body.predecessors.get(call.id, [])
        needed = {
            self._body.by_id[user].tuple_index: self._times.must_end[user]
            for user in self._body.users[call.id]
            if self._body.opcodes[user] == "get-tuple-element"
        }
        for place, operand in enumerate(call.operand_ids):
            shape = self._body.by_id[operand].shape
            parts.append(
                _Part(
                    *(call, place, operand, (shape.element_type, source.key)),
                    _module.byte_count(shape),
                    max(self._times.end[s] for s in (operand, *before)),
                    needed.get(place, self._times.must_end[call.id]),
                )
            )
        return parts

    # --- which parts become a call ---------------------------------------------------------------

    def _grouped(self, parts: Sequence[_Part]) -> list[list[_Part]]:
        groups: list[_Group] = []
        open_groups: dict[tuple[Any, ...], _Group] = {}
        self._merged: list[_Group] = []  # those with parts of several calls
        for part in parts:
            group = open_groups.get(part.key)
            if group is None or not self._may_join(group, part):
                group = open_groups[part.key] = _Group()
                groups.append(group)
            call = 1 << self._number[part.call.id]
            if group.calls.bit_count() == 1 and group.calls != call:
                self._merged.append(group)
            group.add(part, call, self._behind(part))
        return [group.parts for group in groups]

    def _may_join(self, group: _Group, part: _Part) -> bool:
        if group.bytes + part.bytes > self._most_bytes or part.ready > group.needed:
            return False
        # Nothing in a group needs a later part, unless through a group that it has joined.
        return not self._needed_calls(part) & group.calls

    def _needed_calls(self, part: _Part) -> int:
        """A bit for each call that a part depends on, through whole groups."""
        # A call that is among the bits has all that it depends on there, too. So only groups of
        # several calls lead on to others.
        bits = self._behind(part)
        todo = self._merged
        while met := [group for group in todo if group.calls & bits]:
            todo = [group for group in todo if not group.calls & bits]
            for group in met:
                bits |= group.behind
        return bits

    def _behind(self, part: _Part) -> int:
        """A bit for each call that must come before a part."""
        bits = 0
        for source in (part.operand, *self._body.predecessors.get(part.call.id, [])):
            bits |= self._before[source] | self._bits(source)
        return bits

    def _bits(self, instruction: int) -> int:
        number = self._number.get(instruction)
        return 0 if number is None else 1 << number

    # --- the calls that they become --------------------------------------------------------------

    def _write(self, groups: list[list[_Part]]) -> None:
        results: dict[tuple[int, int], int] = {}  # (old call, place) -> what stands for it now
        made: list[Any] = []
        for group in groups:
            call = self._call(group)
            made.append(call)
            for index, part in enumerate(group):
                if len(group) > 1:
                    shape = self._sources[part.call.id].results[part.place]
                    made.append(
                        self._body.make(call, "get-tuple-element", shape, [call], tuple_index=index)
                    )
                results[part.call.id, part.place] = made[-1].id
        for call in self._calls:
            ids = [results[call.id, place] for place in range(len(call.operand_ids))]
            if call.shape.element_type == _module.TUPLE:
                whole = self._body.make(call, "tuple", call.shape, [])
                whole.operand_ids[:] = ids
                made.append(whole)
                ids = [whole.id]
            self._body.rename(call.id, ids[0])
        self._body.write(made)
        self._costs.forget_times(self._body)

    def _call(self, group: list[_Part]) -> Any:
        first = group[0].call
        call = self._body.copy(first)
        if len(group) > 1 or call.shape.element_type == _module.TUPLE:
            shapes = [self._sources[part.call.id].results[part.place] for part in group]
            call.shape.CopyFrom(shapes[0] if len(group) == 1 else _module.tuple_of(shapes))
            call.operand_ids[:] = [part.operand for part in group]
            layouts = [part.call.operand_shapes_with_layout[part.place] for part in group]
            del call.operand_shapes_with_layout[:]
            call.operand_shapes_with_layout.extend(layouts)
        calls = list({part.call.id: part.call for part in group}.values())
        if len(calls) > 1:
            before = [self._body.predecessors.get(call.id, []) for call in calls]
            call.control_predecessor_ids[:] = list(dict.fromkeys(itertools.chain(*before)))
        sources = [self._sources[call.id] for call in calls]
        call.backend_config = self._config(sources, group).encode()
        self._note(call, sources, group)
        return call

    def _config(self, sources: Sequence[_Source], group: list[_Part]) -> str:
        texts = [source.texts for source in sources]
        more = f" and {len(sources) - 1} more" if len(sources) > 1 else ""
        self._made += 1
        shown = {
            "label": texts[0]["label"] + more,
            "program": texts[0]["program"],
            # Processes merge alike: the number of the call distinguishes it from others in its
            # program.
            "signature": " + ".join(dict.fromkeys(t["signature"] for t in texts if t["signature"])),
        }
        if shown["signature"]:
            shown["signature"] += f" merged {self._made}"
        pieces = list(sources[0].config)
        for place in range(1, len(pieces), 3):
            name = pieces[place]
            pieces[place : place + 2] = [f'{name} = "', f'{shown[name]}"']
        config = "".join(pieces)
        if len(sources) == 1:
            return config
        return self._rechoose(config, sum(part.bytes for part in group)) or config

    def _note(self, call: Any, sources: Sequence[_Source], group: list[_Part]) -> None:
        notes = [note for source in sources for note in source.notes]
        if len(sources) > 1:
            notes.append(f"{len(group)} operands of {len(sources)} calls merged")
        elif len(group) < len(sources[0].results):
            notes.append(f"{len(group)} operands of a call of {len(sources[0].results)}")
        if not notes:
            return
        del call.frontend_attributes.map[:]
        for key, value in [*sources[0].others, (CHANGES, "; ".join(dict.fromkeys(notes)))]:
            call.frontend_attributes.map.add(key=key, value=value)


def _source(call: Any) -> _Source:
    pieces = _TOLD_APART.split(call.backend_config.decode())
    texts = dict(zip(pieces[1::3], pieces[2::3], strict=True))
    attributes = [(a.key, a.value) for a in call.frontend_attributes.map]
    others = [(key, value) for key, value in attributes if key != CHANGES]
    notes = [value for key, value in attributes if key == CHANGES]
    shared = (tuple(pieces[::3]), bool(texts.get("program")), tuple(sorted(others)))
    return _Source(_module.arrays(call.shape), shared, pieces, texts, others, notes)
