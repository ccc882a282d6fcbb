"""On GPUs, collectives go on beside what does not need them: on a stream of their own.

XLA:GPU runs a custom call on the stream of its computation, behind whatever is enqueued there. A
call of a computation that names a stream becomes a start and a done: XLA has the stream wait for
the operands, schedules the done at the result's first use, and keeps the arrays until then.

The calls of a computation run one after the other, by control dependencies between them: each
starts behind the done of the one before. The stream alone would not do: XLA captures calls into
CUDA graphs, where two that do not wait for each other have no order. There two devices could begin
with different ones, each waiting for the other device with its multiprocessors taken.
"""

from __future__ import annotations

from typing import Any

from jaxcoll._hlo import module as _module
from jaxcoll._hlo import proto, serve

# XLA makes a start and a done of a call with the first attribute, unless it inlines the call, which
# the second one forbids.
_STREAM = {"_xla_stream_annotation": "1", "inlineable": "false"}
# Instructions that become kernels of their own, or several. Others mostly join their neighbours.
_KERNELS = {
    *("dot", "ragged-dot", "convolution", "scaled-dot", "custom-call", "fft", "sort", "scatter"),
    *("reduce", "reduce-window", "select-and-scatter", "call", "while", "conditional"),
}


def put_on_stream(program: _module.Program) -> int:
    """Puts calls that have something to go on beside on the stream; returns their number."""
    program.store()
    module = program.module
    through = not _in_upper_half(module)
    next_computation = max(c.id for c in module.computations) + 1
    next_instruction = max(i.id for c in module.computations for i in c.instructions) + 1
    made: list[Any] = []
    for computation in module.computations:
        if computation.is_fusion_computation or computation.id in program.asynchronous:
            continue
        by_id = {i.id: i for i in computation.instructions}
        before = None
        for call in _beside_kernels(computation):  # an instruction follows its operands
            base = next_instruction if through else next_computation << 32
            made.append(_computation(call, by_id, next_computation, base, len(made)))
            next_computation += 1
            next_instruction += len(made[-1].instructions)
            _become_call(call, made[-1])
            if before is not None:
                call.control_predecessor_ids.append(before)
            before = call.id
    if made:
        # XLA wants a computation behind those that it calls.
        others = [proto.Computation.FromString(c.SerializeToString()) for c in module.computations]
        del module.computations[:]
        module.computations.extend([*made, *others])
    return len(made)


def _in_upper_half(module: Any) -> bool:
    """Whether XLA numbers instructions within the upper half of their computation's number."""
    return all(i.id >> 32 == c.id for c in module.computations for i in c.instructions)


def _beside_kernels(computation: Any) -> list[Any]:
    """The calls of which some kernel is independent: neither needs the other."""
    calls = [i for i in computation.instructions if serve.is_ours(i)]
    if not calls:
        return []
    bit = {call.id: 1 << number for number, call in enumerate(calls)}
    before: dict[int, int] = {}  # the calls that an instruction depends on
    for i in computation.instructions:
        before[i.id] = 0
        for source in (*i.operand_ids, *i.control_predecessor_ids):
            before[i.id] |= before[source] | bit.get(source, 0)
    behind = dict.fromkeys(before, 0)  # the calls that depend on it
    for i in reversed(list(computation.instructions)):
        for source in (*i.operand_ids, *i.control_predecessor_ids):
            behind[source] |= behind[i.id] | bit.get(i.id, 0)
    kernels = [i for i in computation.instructions if i.opcode in _KERNELS and i.id not in bit]
    return [
        call
        for call in calls
        if any(not (before[k.id] | behind[k.id]) & bit[call.id] for k in kernels)
    ]


def _computation(call: Any, by_id: dict[int, Any], number: int, base: int, index: int) -> Any:
    """A computation that is one call."""
    made = proto.Computation(id=number, name=f"jaxcoll_stream.{index}")
    for place, operand in enumerate(call.operand_ids):
        parameter = made.instructions.add(
            name=f"{made.name}.{place}", opcode="parameter", parameter_number=place, id=base + place
        )
        parameter.shape.CopyFrom(by_id[operand].shape)
        made.program_shape.parameters.append(parameter.shape)
        made.program_shape.parameter_names.append(f"p{place}")
    made.program_shape.result.CopyFrom(call.shape)
    inner = made.instructions.add()
    inner.CopyFrom(call)
    inner.id = base + len(call.operand_ids)
    inner.name = f"{made.name}.call"
    inner.operand_ids[:] = range(base, inner.id)
    del inner.control_predecessor_ids[:]
    made.root_id = inner.id
    return made


def _become_call(call: Any, computation: Any) -> None:
    """Makes a custom call the call of a computation, under its id and name."""
    made = proto.Instruction(opcode="call", id=call.id, name=call.name)
    made.shape.CopyFrom(call.shape)
    made.metadata.CopyFrom(call.metadata)
    made.operand_ids.extend(call.operand_ids)
    made.control_predecessor_ids.extend(call.control_predecessor_ids)
    made.called_computation_ids.append(computation.id)
    for key, value in _STREAM.items():
        made.frontend_attributes.map.add(key=key, value=value)
    call.CopyFrom(made)
