"""The XML of MSCCL and msccl-tools, read element by element; `jaxcoll.interop.msccl` says what it
means.

Python's element tree would not know the lines, so this is on top of the parser beneath it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final
from xml.parsers import expat

from jaxcoll._errors import MscclError as MscclError
from jaxcoll.schedule.spec import MAX_CHANNELS, Collective

MAX_TEXT_BYTES: Final = 32 << 20
_MAX_RANKS: Final = 1 << 14
_MAX_CHUNKS: Final = 1 << 20  # of one buffer
_MAX_STEPS: Final = 1 << 13  # of one GPU; each knows which of the others come before it

_COLLECTIVES: Final[dict[str, Collective]] = {
    "allreduce": "all_reduce",
    "allgather": "all_gather",
    "reducescatter": "reduce_scatter",
    "alltoall": "all_to_all",
}
RECEIVING: Final = ("r", "rcs", "rrc", "rrcs", "rrs")
SENDING: Final = ("s", "rcs", "rrcs", "rrs")
REDUCING: Final = ("rrc", "rrcs", "rrs", "re")
_TYPES: Final = {*RECEIVING, *SENDING, "cpy", "re", "nop"}


# A chunk as the file names it: buffer letter and index.
Chunk = tuple[str, int]


@dataclass(eq=False)
class Step:
    """A thread block's next operation; see `jaxcoll.interop.msccl` for the types."""

    line: int
    rank: int
    block: int
    number: int
    type: str
    source: tuple[str, int]
    destination: tuple[str, int]
    count: int
    waits_for: tuple[int, int] | None  # (thread block, step)
    peer_send: int
    peer_recv: int
    channel: int
    position: int = -1  # among its rank's steps, in one order that the file allows
    before: int = 0  # bit set of positions that MSCCL completes first
    predecessors: int = 0
    successors: list[Step] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"line {self.line}: gpu {self.rank}, thread block {self.block}, step {self.number} "
            f"({self.type})"
        )

    def chunks(self, end: tuple[str, int]) -> list[Chunk]:
        """All chunks of one of its ends, source or destination."""
        return [(end[0], end[1] + i) for i in range(self.count)]


@dataclass
class Gpu:
    """A rank: the sizes of its buffers, and its thread blocks by their number."""

    input_chunks: int
    output_chunks: int
    scratch_chunks: int
    line: int
    step_count: int = 0
    blocks: dict[int, list[Step]] = field(default_factory=dict)


@dataclass
class Algo:
    """A file, with its ranks by their number."""

    name: str
    collective: Collective
    ranks: int
    chunks_per_loop: int
    in_place: bool
    line: int
    gpus: dict[int, Gpu] = field(default_factory=dict)


def read(text: str | bytes) -> Algo:
    """The elements of a file, each number within its bounds.

    Raises: MscclError, naming the line.
    """
    return _Reader().read(text)


class _Reader:
    """Collects the elements. The standard library's element tree would not know the lines."""

    def read(self, text: str | bytes) -> Algo:
        if len(text) > MAX_TEXT_BYTES:
            raise MscclError(f"{len(text)} bytes; at most {MAX_TEXT_BYTES} are read")
        self._parser = expat.ParserCreate()
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.StartDoctypeDeclHandler = self._doctype
        self._path: list[str] = []
        self._algo: Algo | None = None
        try:
            self._parser.Parse(text, True)
        except expat.ExpatError as error:
            raise MscclError(f"line {error.lineno}: not well-formed XML: {error}") from error
        return self._complete()

    def _complete(self) -> Algo:
        if self._algo is None:
            raise MscclError("line 1: no <algo>")
        missing = set(range(self._algo.ranks)) - set(self._algo.gpus)
        if missing:
            raise MscclError(
                f"line {self._algo.line}: ngpus is {self._algo.ranks}, but there is no <gpu> with "
                f"id {min(missing)}"
            )
        return self._algo

    def _error(self, what: str) -> MscclError:
        return MscclError(f"line {self._parser.CurrentLineNumber}: {what}")

    def _doctype(self, *_: object) -> None:
        raise self._error("document types, which could define entities, are not read")

    def _end(self, _: str) -> None:
        self._path.pop()

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        parent = self._path[-1] if self._path else ""
        handlers: dict[tuple[str, str], Callable[[dict[str, str]], None]] = {
            ("", "algo"): self._algo_element,
            ("algo", "gpu"): self._gpu_element,
            ("gpu", "tb"): self._block_element,
            ("tb", "step"): self._step_element,
        }
        if (parent, tag) not in handlers:
            raise self._error(
                f"unexpected <{tag}> in {f'<{parent}>' if parent else 'the document'}"
            )
        self._path.append(tag)
        handlers[parent, tag](attributes)

    def _text(self, attributes: dict[str, str], name: str, default: str | None = None) -> str:
        value = attributes.get(name, default)
        if value is None:
            raise self._error(f"<{self._path[-1]}> has no attribute {name}")
        return value

    def _number(
        self,
        attributes: dict[str, str],
        name: str,
        low: int,
        high: int,
        default: str | None = None,
    ) -> int:
        text = self._text(attributes, name, default)
        digits = text.removeprefix("-")
        if not (digits.isascii() and digits.isdecimal() and len(digits) < 12):
            raise self._error(f"{name} is {text!r}, but must be a whole number")
        if not low <= int(text) <= high:
            raise self._error(f"{name} is {text}, but must be from {low} to {high}")
        return int(text)

    def _algo_element(self, attributes: dict[str, str]) -> None:
        collective = self._text(attributes, "coll")
        if collective not in _COLLECTIVES:
            raise self._error(
                f"coll is {collective!r}; collectives that can be read: {', '.join(_COLLECTIVES)}"
            )
        self._algo = Algo(
            self._text(attributes, "name", "msccl"),
            _COLLECTIVES[collective],
            self._number(attributes, "ngpus", 1, _MAX_RANKS),
            self._number(attributes, "nchunksperloop", 1, _MAX_CHUNKS),
            self._number(attributes, "inplace", 0, 1, "0") == 1,
            self._parser.CurrentLineNumber,
        )

    def _gpu_element(self, attributes: dict[str, str]) -> None:
        assert self._algo is not None
        self._rank = self._number(attributes, "id", 0, self._algo.ranks - 1)
        if self._rank in self._algo.gpus:
            raise self._error(f"a second <gpu> with id {self._rank}")
        self._gpu = self._algo.gpus[self._rank] = Gpu(
            self._number(attributes, "i_chunks", 0, _MAX_CHUNKS),
            self._number(attributes, "o_chunks", 0, _MAX_CHUNKS),
            self._number(attributes, "s_chunks", 0, _MAX_CHUNKS),
            self._parser.CurrentLineNumber,
        )

    def _block_element(self, attributes: dict[str, str]) -> None:
        assert self._algo is not None
        self._block = self._number(attributes, "id", 0, _MAX_STEPS)
        if self._block in self._gpu.blocks:
            raise self._error(f"a second <tb> with id {self._block} on gpu {self._rank}")
        self._gpu.blocks[self._block] = []
        last = self._algo.ranks - 1
        self._peers = (
            self._number(attributes, "send", -1, last),
            self._number(attributes, "recv", -1, last),
        )
        self._channel = self._number(attributes, "chan", 0, MAX_CHANNELS - 1)
        if self._rank in self._peers:
            raise self._error(f"gpu {self._rank} sends to or receives from itself")

    def _step_element(self, attributes: dict[str, str]) -> None:
        steps = self._gpu.blocks[self._block]
        self._gpu.step_count += 1
        if self._gpu.step_count > _MAX_STEPS:
            raise self._error(f"gpu {self._rank} has more than {_MAX_STEPS} steps")
        self._number(attributes, "s", len(steps), len(steps))  # they are numbered from 0
        kind = self._text(attributes, "type")
        if kind not in _TYPES:
            raise self._error(f"type is {kind!r}; there are {', '.join(sorted(_TYPES))}")
        for peer, types, what in zip(
            self._peers, (SENDING, RECEIVING), ("send", "recv"), strict=True
        ):
            if kind in types and peer < 0:
                raise self._error(f"type is {kind}, but the thread block has no {what} peer")
        waits = self._number(attributes, "depid", -1, _MAX_STEPS, "-1")
        count = self._number(attributes, "cnt", 0, _MAX_CHUNKS)
        step = Step(
            self._parser.CurrentLineNumber,
            self._rank,
            self._block,
            len(steps),
            kind,
            self._chunk(attributes, "src"),
            self._chunk(attributes, "dst"),
            count,
            None if waits < 0 else (waits, self._number(attributes, "deps", 0, _MAX_STEPS)),
            *self._peers,
            self._channel,
        )
        for end, used in (
            (step.source, kind in ("s", "cpy", *REDUCING)),
            (step.destination, kind in ("r", "rcs", "rrc", "rrcs", "cpy", "re")),
        ):
            size = {
                "i": self._gpu.input_chunks,
                "o": self._gpu.output_chunks,
                "s": self._gpu.scratch_chunks,
            }[end[0]]
            if used and (count < 1 or end[1] < 0 or end[1] + count > size):
                raise self._error(
                    f"chunks {end[1]} to {end[1] + count - 1} of buffer {end[0]}, which has {size}"
                )
        steps.append(step)

    def _chunk(self, attributes: dict[str, str], end: str) -> tuple[str, int]:
        buffer = self._text(attributes, f"{end}buf")
        if buffer not in ("i", "o", "s"):
            raise self._error(f"{end}buf is {buffer!r}; there are i, o and s")
        return buffer, self._number(attributes, f"{end}off", -1, _MAX_CHUNKS)
