"""The nouns of a schedule: operands, ops and op lists, and how they cross into C++.

`jaxcoll.schedule` is where users find them; its docstring tells what they mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

Buffer: TypeAlias = Literal["input", "output", "scratch"]
Kind: TypeAlias = Literal["send", "recv", "recv_reduce", "copy", "reduce"]

MAX_INT32: Final = (1 << 31) - 1
# In the order of the C++ enums.
_BUFFERS: Final[tuple[Buffer, ...]] = ("input", "output", "scratch")
_KINDS: Final[tuple[Kind, ...]] = ("send", "recv", "recv_reduce", "copy", "reduce")


@dataclass(frozen=True, slots=True)
class Operand:
    """Chunks of one buffer, as intervals ``(first chunk, count)``.

    Usually written ``INPUT[3]``, ``OUTPUT[0:4]`` or ``SCRATCH[0:2, 6]``.
    """

    buffer: Buffer
    chunks: tuple[tuple[int, int], ...]

    def indices(self) -> list[int]:
        """The chunks one by one, in order."""
        return [chunk for begin, count in self.chunks for chunk in range(begin, begin + count)]

    def __len__(self) -> int:
        return sum(count for _, count in self.chunks)

    def __str__(self) -> str:
        intervals = (
            str(begin) if count == 1 else f"{begin}:{begin + count}" for begin, count in self.chunks
        )
        return f"{self.buffer}[{', '.join(intervals)}]"


class _BufferName:
    """Makes operands by subscription."""

    def __init__(self, buffer: Buffer) -> None:
        self._buffer = buffer

    def __getitem__(self, key: int | slice | tuple[int | slice, ...]) -> Operand:
        intervals = []
        for item in key if isinstance(key, tuple) else (key,):
            if isinstance(item, slice):
                begin, end = item.start or 0, item.stop
                if end is None or item.step is not None or begin >= end:
                    raise ValueError(
                        f"{self._buffer}: write chunks as [begin:end] with begin < end, not {item}"
                    )
            else:
                begin, end = item, item + 1
            if not 0 <= begin < end <= MAX_INT32:
                raise ValueError(f"{self._buffer}: there is no chunk {end - 1}")
            intervals.append((int(begin), int(end - begin)))
        return Operand(self._buffer, tuple(intervals))


INPUT: Final = _BufferName("input")
OUTPUT: Final = _BufferName("output")
SCRATCH: Final = _BufferName("scratch")


@dataclass(frozen=True, slots=True)
class Op:
    """One op of one rank.

    =========== ======================== ============= =========================================
    kind        sources                  destination   meaning
    =========== ======================== ============= =========================================
    send        (local,)                 on the peer
    recv        (on the peer,)           local
    recv_reduce (on the peer, local)     local         destination = incoming op local
    copy        (local,)                 local
    reduce      (s0, s1, ...) all local  local         ((s0 op s1) op s2) ..., rounded once
    =========== ======================== ============= =========================================

    Attributes:
      channel: ops of one channel start in program order.
      peer: the other rank of a transfer, -1 for local ops.
      sequence: the how-manieth message from source to destination rank on this channel this is,
        from 0; -1 for local ops.
      step: the algorithm's round; for printing and counting only.
      depends_on: indices of ops of this rank that complete before this one starts.
    """

    kind: Kind
    channel: int
    peer: int
    sequence: int
    step: int
    sources: tuple[Operand, ...]
    destination: Operand
    depends_on: tuple[int, ...] = ()

    @property
    def is_transfer(self) -> bool:
        return self.kind in ("send", "recv", "recv_reduce")

    @property
    def local_sources(self) -> tuple[Operand, ...]:
        """The operands that this rank reads from its own buffers."""
        return self.sources[1:] if self.kind in ("recv", "recv_reduce") else self.sources

    def __str__(self) -> str:
        sources = " op ".join(str(source) for source in self.sources)
        peer = {"send": f" to rank {self.peer}"}.get(
            self.kind, f" from rank {self.peer}" if self.is_transfer else ""
        )
        return f"{self.kind}{peer} {sources} => {self.destination}"


@dataclass(frozen=True, slots=True)
class Program:
    """All ops of one rank, and the layout, which is equal on all ranks."""

    rank: int
    chunks_per_block: int
    input_blocks: int
    output_blocks: int
    scratch_blocks: int
    ops: tuple[Op, ...] = field(repr=False)


# The form in which an op list crosses into C++; see ffi/bindings/schedule.cc.
_OperandTuple: TypeAlias = tuple[int, Sequence[tuple[int, int]]]
_OpTuple: TypeAlias = tuple[
    int, int, int, int, int, Sequence[_OperandTuple], _OperandTuple, Sequence[int]
]
OpListTuple: TypeAlias = tuple[int, int, int, int, int, Sequence[_OpTuple]]


def to_tuple(op_list: Program) -> OpListTuple:
    """An op list in the form that the extension module takes."""

    def operand(value: Operand) -> _OperandTuple:
        return _BUFFERS.index(value.buffer), value.chunks

    ops = [
        (
            _KINDS.index(op.kind),
            op.channel,
            op.peer,
            op.sequence,
            op.step,
            [operand(source) for source in op.sources],
            operand(op.destination),
            op.depends_on,
        )
        for op in op_list.ops
    ]
    return (
        op_list.rank,
        op_list.chunks_per_block,
        op_list.input_blocks,
        op_list.output_blocks,
        op_list.scratch_blocks,
        ops,
    )


def op_list_from_tuple(value: OpListTuple) -> Program:
    """The inverse of `to_tuple`."""

    def operand(item: _OperandTuple) -> Operand:
        return Operand(_BUFFERS[item[0]], tuple(item[1]))

    rank, chunks_per_block, inputs, outputs, scratch, ops = value
    return Program(
        rank,
        chunks_per_block,
        inputs,
        outputs,
        scratch,
        tuple(
            Op(
                _KINDS[kind],
                channel,
                peer,
                sequence,
                step,
                tuple(operand(source) for source in sources),
                operand(destination),
                tuple(depends_on),
            )
            for kind, channel, peer, sequence, step, sources, destination, depends_on in ops
        ),
    )
