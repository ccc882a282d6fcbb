"""Every exception of jaxcoll's own, in one hierarchy below `JaxcollError`.

They are raised before a program runs. At run time JAX raises `jax.errors.JaxRuntimeError`, or
`ValueError` where it runs a small program of one device within the call. Each class also derives
from the built-in exception that its kind of mistake raises elsewhere in Python.
"""

from __future__ import annotations

import functools
from typing import Any, Literal, TypeAlias

FaultKind: TypeAlias = Literal["malformed", "unmatched", "deadlock", "race", "unwritten", "result"]


class JaxcollError(Exception):
    """Base class of the errors that jaxcoll itself raises."""


class UnsupportedError(JaxcollError, NotImplementedError):
    """A platform, process layout or combination of features that jaxcoll does not serve."""


class UnsupportedDtypeError(JaxcollError, TypeError):
    """A reduce op that the dtype lacks; names the ops it has."""


class UnknownReduceOpError(JaxcollError, ValueError):
    """A reduce op that does not exist; names those that do."""


class UnknownAlgorithmError(JaxcollError, ValueError):
    """An algorithm that the collective does not have; names those it has."""


class WorldSizeError(JaxcollError, ValueError):
    """An algorithm or a schedule that cannot serve this many ranks; names the sizes it takes."""


class AxisIndexGroupsError(JaxcollError, ValueError):
    """axis_index_groups that are ragged or do not cover the axis exactly once."""


class PermutationError(JaxcollError, ValueError):
    """A permutation with a repeated source or destination, or one out of range."""


class SetupError(JaxcollError):
    """The settings of a job, or of one of its processes, cannot be used, whatever it runs."""


class TuningError(SetupError, RuntimeError):
    """A tuning table that cannot be used, or not by all processes alike; names the files."""


class SettingError(SetupError, ValueError):
    """An environment variable whose value cannot be used; names it, its value and what it takes."""


class FileError(JaxcollError, OSError):
    """A file that cannot be read or written; names it and says why."""


class SnapshotError(JaxcollError, ValueError):
    """A snapshot of a process that cannot be had or read; says of which process, or file, and
    why."""


class LinkError(SetupError):
    """Why two processes cannot be linked, in words for the user."""


class ScheduleError(JaxcollError, ValueError):
    """A schedule that must not run.

    Attributes:
      kind: what is wrong with it.
      why: the same in words.
      rank: the rank at fault.
      op: index of the op in that rank's program; None where no op is to blame.
      step: that op's step.
      chunk: the chunk at fault, such as ``output[3]``, or None.
    """

    def __init__(
        self,
        kind: FaultKind,
        why: str,
        *,
        rank: int,
        op: int | None = None,
        step: int | None = None,
        chunk: str | None = None,
    ) -> None:
        where = [f"rank {rank}"]
        if op is not None:
            where.append(f"step {step}, op {op}")
        if chunk is not None:
            where.append(chunk)
        super().__init__(f"{kind}: {', '.join(where)}: {why}")
        self.why = why
        self.kind = kind
        self.rank = rank
        self.op = op
        self.step = step
        self.chunk = chunk

    def __reduce__(self) -> tuple[Any, ...]:  # keyword arguments: how copies and pickles are made
        rest: dict[str, Any] = {
            "rank": self.rank,
            "op": self.op,
            "step": self.step,
            "chunk": self.chunk,
        }
        return functools.partial(type(self), self.kind, self.why, **rest), ()


class MscclError(JaxcollError, ValueError):
    """The text is no MSCCL algorithm, or one that cannot be a schedule; names the line."""


class TopologyError(JaxcollError, ValueError):
    """A network, a placement or a failure that cannot be; the message names the component."""


class CutError(TopologyError):
    """Failed links or switches leave no path between ranks that must talk."""


class SimulationError(JaxcollError, RuntimeError):
    """The simulator contradicts itself: a time below its bound, or bytes that were lost."""


class RanksError(JaxcollError, RuntimeError):
    """A process that `jaxcoll tune` has started failed; says which, and what it said."""


# These depend on the process they are raised in. If they made one process leave a collective to
# XLA, the others would wait for it; everything else follows from the program, which all share.
ABOUT_THE_JOB = (SetupError, OSError, MemoryError)
