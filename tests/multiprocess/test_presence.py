"""What happens to a process before its first link is known to those who wait for it.

Deadlines are long, so that whatever a test waits for comes for another reason.
"""

from __future__ import annotations

import signal
import textwrap
import time

import pytest
from processes import Job

TIMEOUT_S = 120
# Seconds in which others must know; a few on an idle machine, but this one may be busy.
SOON_S = 30
SURVIVES = {"survives": True, "heartbeat_timeout_s": 600}  # JAX shall not be the first to know

COMMON = """
import signal, threading
import jaxcoll
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

def mesh_of(ranks):
    devices = [d for d in jax.devices() if d.process_index in ranks]
    return Mesh(np.array(devices), "i")

def call(mesh):
    x = jax.make_array_from_callback(
        (mesh.size, 3), NamedSharding(mesh, P("i")), lambda i: np.ones((mesh.size, 3), "f4")[i])
    f = jax.jit(jax.shard_map(lambda v: jaxcoll.psum(v, "i"), mesh=mesh, in_specs=P("i"),
                              out_specs=P()))
    return f(x)

def fails(mesh, *patterns):
    "The error of a call, which names all that a reader needs, soon."
    print("calls", flush=True)
    start = time.monotonic()
    try:
        jax.block_until_ready(call(mesh))
    except (jax.errors.JaxRuntimeError, ValueError, jaxcoll.JaxcollError) as error:
        print(f"after {time.monotonic() - start:.2f} s: {error}", flush=True)
        text = str(error)
    else:
        raise AssertionError("no error")
    import re
    for pattern in patterns:
        assert re.search(pattern, text), f"{pattern!r} is not in: {text}"
    return text

def seconds_since(path):
    return time.time() - os.stat(path).st_mtime
"""


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_process_killed_before_its_first_collective_is_missed(lost: int, transport: str) -> None:
    """It has published itself, and has no link yet; one below and one above it wait."""
    script = """
    mesh = mesh_of([0, 1, 2])
    if rank == int(sys.argv[1]):
        print("here", flush=True)
        time.sleep(600)
    fails(mesh, r"all_reduce\\(sum\\) of float32\\[", f"process {sys.argv[1]} \\\\(pid \\\\d+ on ",
          "rank " + sys.argv[1], "has ended")
    """
    with Job(
        COMMON + textwrap.dedent(script),
        *(str(lost), transport),
        processes=3,
        environment={"JAXCOLL_TIMEOUT_S": str(TIMEOUT_S), "JAXCOLL_TRANSPORT": transport},
        **SURVIVES,
    ) as job:
        job.wait_for(lost, "here")
        for rank in {0, 1, 2} - {lost}:
            job.wait_for(rank, "calls")
        time.sleep(1)  # they wait for it
        killed = time.monotonic()
        job.send(lost, signal.SIGKILL)
        job.finish(exit_codes={lost: -signal.SIGKILL})
        assert time.monotonic() - killed < SOON_S
