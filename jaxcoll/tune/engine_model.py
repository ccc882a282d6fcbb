"""The engine's form of a schedule between processes, as a schedule that the simulator runs.

A call between processes is cut into slices, strips of every chunk, and a few of them are under
way at once, each running the whole schedule (ffi/engine/slices/slice_plan.h). So a tree is as
good a pipeline as a ring, and what a message costs is paid per slice. How a call is cut is the
engine's own word; this module only writes the cuts down as ops.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from jaxcoll import schedule as _schedule
from jaxcoll._native import native
from jaxcoll.schedule import Schedule, ScheduleSpec
from jaxcoll.schedule.ir import Operand, Program
from jaxcoll.sim.network import Topology
from jaxcoll.sim.simulate import run
from jaxcoll.sim.timeline import Model

ITEM_BYTES = 4  # float32, as is measured
# From here on every further slice takes as long as the last ones did.
_STEADY_SLICES = 16


@dataclass(frozen=True)
class Cut:
    """How the engine cuts a call: slices, how many run at once, bytes of the largest message."""

    slices: int
    in_flight: int
    message_bytes: int


def cut(spec: ScheduleSpec, nbytes: int) -> Cut:
    """How the engine would cut a float32 call of `nbytes` if each rank were a process.

    Raises: ValueError if the algorithm cannot be run by it.
    """
    elements = _schedule.block_elements(spec.collective, spec.world_size, nbytes, ITEM_BYTES)
    return Cut(
        *native.engine_slices(
            spec.collective,
            spec.algorithm,
            spec.world_size,
            list(spec.dims),
            "",
            "float32",
            elements,
        )
    )


def _strips(operand: Operand, slices: int, number: int) -> Operand:
    """The strips of slice `number`; each chunk is cut into `slices` strips."""
    chunks = [
        ((begin + i) * slices + number, 1) for begin, count in operand.chunks for i in range(count)
    ]
    return Operand(operand.buffer, tuple(chunks))


def _unroll(op_list: Program, slices: int, in_flight: int) -> Program:
    """The ops of all slices; one starts when the one `in_flight` before it has ended."""
    depended_on = {index for op in op_list.ops for index in op.depends_on}
    last = [index for index in range(len(op_list.ops)) if index not in depended_on]
    channels = 1 + max((op.channel for op in op_list.ops), default=0)
    ops = []
    for number in range(slices):
        base = number * len(op_list.ops)
        before = base - in_flight * len(op_list.ops)
        # A channel's ops start in order, so it is enough to hold back its first.
        held: set[int] = set()
        for op in op_list.ops:
            waits = [base + index for index in op.depends_on]
            if before >= 0 and op.channel not in held:
                held.add(op.channel)
                waits = [before + index for index in last] + waits
            ops.append(
                replace(
                    op,
                    channel=number * channels + op.channel,
                    sources=tuple(_strips(source, slices, number) for source in op.sources),
                    destination=_strips(op.destination, slices, number),
                    depends_on=tuple(waits),
                )
            )
    chunks = op_list.chunks_per_block * slices
    return replace(op_list, chunks_per_block=chunks, ops=tuple(ops))


@lru_cache(maxsize=32)
def as_run(spec: ScheduleSpec, slices: int, in_flight: int) -> Schedule:
    """The schedule that the engine runs for a call of so many slices."""
    built = _schedule.build(spec)
    if slices == 1:
        return built
    programs = tuple(_unroll(op_list, slices, in_flight) for op_list in built.programs)
    return replace(built, programs=programs)


def predict_s(
    spec: ScheduleSpec, nbytes: int, topology: Topology, model: Model, **options: Any
) -> float:
    """Simulated seconds of a float32 call of `nbytes` by the engine, each rank a process.

    Args:
      spec: what runs.
      nbytes: size, as `jaxcoll.simulate.run` counts it.
      topology: the network between the processes.
      model: what messages and computing cost.
      options: others of `jaxcoll.simulate.run`.

    Raises: ValueError for what cannot be run.
    """
    made = cut(spec, nbytes)

    def simulated_s(slices: int) -> float:
        part = max(1, nbytes * slices // made.slices)
        schedule = as_run(spec, slices, made.in_flight)
        return run(schedule, topology, part, model=model, bounds="none", **options).time_s

    if made.slices <= 2 * _STEADY_SLICES:
        return simulated_s(made.slices)
    most, half = simulated_s(_STEADY_SLICES), simulated_s(_STEADY_SLICES // 2)
    each_s = (most - half) / (_STEADY_SLICES - _STEADY_SLICES // 2)
    return most + each_s * (made.slices - _STEADY_SLICES)
