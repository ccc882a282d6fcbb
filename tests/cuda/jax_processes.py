"""Several JAX processes that share one GPU. For correctness only: they run in time slices."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

FOLDER = Path(__file__).parent

PRELUDE = """
import os, sys, time
import jax, numpy as np
rank, processes = int(os.environ["TEST_RANK"]), int(os.environ["TEST_PROCESSES"])
if processes > 1:
    jax.distributed.initialize(os.environ["TEST_COORDINATOR"], processes, rank,
                               local_device_ids=[0], initialization_timeout=120)
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def run(
    script: str, processes: int, timeout_s: float = 240, hosts: int = 1, **environment: str
) -> list[str]:
    """The outputs of the processes; raises with all of them if one fails or is late.

    With several `hosts`, they are on as many in name (JAXCOLL_HOST_ID), one after the other.
    """
    port = free_port()
    command = [sys.executable, "-c", PRELUDE + textwrap.dedent(script)]
    path = os.pathsep.join(
        [str(FOLDER), str(FOLDER.parent / "multiprocess"), os.environ.get("PYTHONPATH", "")]
    )
    jobs = [
        subprocess.Popen(
            command,
            env={
                **os.environ,
                "JAX_PLATFORMS": "cuda",
                "XLA_FLAGS": "",
                # Other tests run beside this one. One piece, so that others can map all of it.
                "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.02",
                "CUDA_DEVICE_MAX_CONNECTIONS": "32",
                "JAXCOLL_TIMEOUT_S": "60",
                "TEST_RANK": str(rank),
                "TEST_PROCESSES": str(processes),
                "TEST_COORDINATOR": f"127.0.0.1:{port}",
                "PYTHONPATH": path,
                **({"JAXCOLL_HOST_ID": f"host{rank * hosts // processes}"} if hosts > 1 else {}),
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(processes)
    ]
    outputs, late = [], False
    for job in jobs:
        try:
            outputs.append(job.communicate(timeout=timeout_s)[0])
        except subprocess.TimeoutExpired:
            late = True
            job.kill()
            outputs.append(job.communicate()[0])
    codes = [job.returncode for job in jobs]
    if late or any(codes):
        text = "".join(f"--- rank {r}: exit {codes[r]}\n{o}\n" for r, o in enumerate(outputs))
        raise AssertionError(f"{'late; ' if late else ''}exit codes {codes}\n{text}")
    return outputs
