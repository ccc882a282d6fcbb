"""Schedules: the ops of every rank in one collective, independent of sizes and dtypes.

A built-in algorithm makes a schedule::

    schedule = build(ScheduleSpec("all_reduce", world_size=4, algorithm="ring"))
    print(schedule)

You can also write one, op by op; it is verified (`jaxcoll.verify`) before it runs::

    def ring_all_gather(p):
        ops = []
        for rank in range(p):
            ops.append(copy(rank, INPUT[0], OUTPUT[rank]))
        for step in range(p - 1):
            for rank in range(p):
                block = OUTPUT[(rank - step) % p]
                ops += put(rank, (rank + 1) % p, block, block, step=step)
        return Schedule.from_ops("all_gather", p, ops)

Chunks. A buffer (input, output, scratch) is a row of blocks, each cut into `chunks_per_block`
chunks; chunk ``block * chunks_per_block + position``. Data only moves between chunks of equal
position, so that it fits for all sizes.

=============== ============ ============= =====================================
collective      input blocks output blocks on rank r afterwards
=============== ============ ============= =====================================
all_reduce      1            1             out[0] = reduction over q of in_q[0]
reduce          1            1             the same, on the root only
broadcast       1            1             out[0] = in_root[0]
reduce_scatter  P            1             out[0] = reduction over q of in_q[r]
all_gather      1            P             out[q] = in_q[0]
all_to_all      P            P             out[q] = in_q[r]
permute         1            1             out[0] = in_source(r)[0], else zeros
=============== ============ ============= =====================================

Order. Ops of one channel start in program order (the order of the rank's op list). A send completes
when its source may be reused, a recv when its data is visible; data moves once both have started.
Any other order must be a dependency: an op starts after the ops in `depends_on` have completed.

Modules: `spec` (the arguments of a built-in schedule), `schedule` and `from_ops` (the schedules
themselves), `ir` (their ops), `printing`, `verifier` with `happens_before` (proofs), and `interop`
(other projects' formats). The entry points are `Schedule`, `build` and `verify`. Nothing here
imports JAX.
"""

from jaxcoll.schedule.from_ops import RankOp, copy, put, put_reduce, recv, recv_reduce, reduce, send
from jaxcoll.schedule.ir import (
    INPUT,
    OUTPUT,
    SCRATCH,
    Kind,
    Op,
    Operand,
    Program,
)
from jaxcoll.schedule.schedule import MAX_SERIALIZED_BYTES, Cost, Schedule, build, build_rank
from jaxcoll.schedule.spec import (
    COLLECTIVES,
    MAX_CHANNELS,
    MAX_WORLD_SIZE,
    Collective,
    ScheduleSpec,
    algorithms,
    block_elements,
    dims_kind,
    input_blocks,
    output_blocks,
    parse_algorithm,
)
from jaxcoll.schedule.verifier import (
    Association,
    Verification,
    verify,
)

__all__ = [
    "COLLECTIVES",
    "INPUT",
    "MAX_CHANNELS",
    "MAX_SERIALIZED_BYTES",
    "MAX_WORLD_SIZE",
    "OUTPUT",
    "SCRATCH",
    "Association",
    "Collective",
    "Cost",
    "Kind",
    "Op",
    "Operand",
    "Program",
    "RankOp",
    "Schedule",
    "ScheduleSpec",
    "Verification",
    "algorithms",
    "block_elements",
    "build",
    "build_rank",
    "copy",
    "dims_kind",
    "input_blocks",
    "output_blocks",
    "parse_algorithm",
    "put",
    "put_reduce",
    "recv",
    "recv_reduce",
    "reduce",
    "send",
    "verify",
]
