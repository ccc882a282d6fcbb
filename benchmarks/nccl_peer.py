"""NCCL's all_reduce with several ranks on one GPU, in one process: what gpu.py compares with.

    NCCL_MULTI_RANK_GPU_ENABLE=1 python -m benchmarks.nccl_peer RANKS BYTES,CALLS,SETS...

Prints a line of JSON for each size. Calls the installed libnccl (or that of NCCL_LIBRARY) and
libcudart by ctypes, so it needs no build; a graph of calls on a stream per rank, which take sets of
operands in turn, timed by replays, as our own kernels are.
"""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import sys
from collections.abc import Sequence
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np

_SAMPLES = 15
_FLOAT32, _SUM = 7, 0  # NCCL's codes
_RELAXED = 2  # a capture that lets NCCL allocate
_TO_DEVICE = 1


def _library(pattern: str, variable: str = "") -> ctypes.CDLL:
    """The library that the variable names, or that a PyPI package of NVIDIA's brought."""
    if named := os.environ.get(variable):
        return ctypes.CDLL(named)
    spec = util.find_spec("nvidia")
    for place in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(place).rglob(pattern)):
            return ctypes.CDLL(str(path))
    raise SystemExit(f"no {pattern} among the installed packages")


class _Checked:
    """Functions of a library that return 0 when they succeed."""

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        self._library, self._name = library, name

    def __call__(self, function: str, *arguments: Any) -> None:
        code = getattr(self._library, function)(*arguments)
        if code != 0:
            raise SystemExit(f"{self._name}: {function} returned {code}")


class _UniqueId(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_char * 128)]


def main(argv: Sequence[str]) -> int:
    """Times RANKS ranks at every size."""
    ranks = int(argv[0])
    library = _library("libnccl.so*", "NCCL_LIBRARY")
    nccl = _Checked(library, "nccl")
    cuda = _Checked(_library("libcudart.so*"), "cuda")
    version = ctypes.c_int()
    nccl("ncclGetVersion", ctypes.byref(version))
    cuda("cudaSetDevice", 0)

    unique = _UniqueId()
    nccl("ncclGetUniqueId", ctypes.byref(unique))
    communicators = [ctypes.c_void_p() for _ in range(ranks)]
    library.ncclCommInitRank.argtypes = [
        ctypes.c_void_p,
        ctypes.c_int,
        _UniqueId,
        ctypes.c_int,
    ]
    nccl("ncclGroupStart")
    for rank, communicator in enumerate(communicators):
        nccl("ncclCommInitRank", ctypes.byref(communicator), ranks, unique, rank)
    nccl("ncclGroupEnd")

    def pointer(function: str, *arguments: Any) -> ctypes.c_void_p:
        made = ctypes.c_void_p()
        cuda(function, ctypes.byref(made), *arguments)
        return made

    streams = [pointer("cudaStreamCreateWithFlags", 1) for _ in range(ranks)]
    fork = pointer("cudaEventCreateWithFlags", 2)
    joins = [pointer("cudaEventCreateWithFlags", 2) for _ in range(ranks)]
    begin, end = pointer("cudaEventCreate"), pointer("cudaEventCreate")
    rng = np.random.default_rng(0)

    def median_s(size: int, chain: int, sets: int) -> float:
        noise = rng.standard_normal(size // 4, dtype=np.float32)
        values = noise.ctypes.data_as(ctypes.c_void_p)
        buffers = [
            [pointer("cudaMalloc", ctypes.c_size_t(size)) for _ in range(2 * ranks)]
            for _ in range(sets)
        ]
        for of_set in buffers:
            for buffer in of_set[:ranks]:
                cuda("cudaMemcpy", buffer, values, ctypes.c_size_t(size), _TO_DEVICE)

        def all_reduce(of_set: list[ctypes.c_void_p]) -> None:
            nccl("ncclGroupStart")
            for rank in range(ranks):
                nccl(
                    "ncclAllReduce",
                    of_set[rank],
                    of_set[ranks + rank],
                    ctypes.c_size_t(size // 4),
                    _FLOAT32,
                    _SUM,
                    communicators[rank],
                    streams[rank],
                )
            nccl("ncclGroupEnd")

        for _ in range(3):
            all_reduce(buffers[0])
        cuda("cudaDeviceSynchronize")

        cuda("cudaStreamBeginCapture", streams[0], _RELAXED)
        cuda("cudaEventRecord", fork, streams[0])
        for stream in streams[1:]:
            cuda("cudaStreamWaitEvent", stream, fork, 0)
        for i in range(chain):
            all_reduce(buffers[i % sets])
        for stream, join in list(zip(streams, joins, strict=True))[1:]:
            cuda("cudaEventRecord", join, stream)
            cuda("cudaStreamWaitEvent", streams[0], join, 0)
        graph = ctypes.c_void_p()
        cuda("cudaStreamEndCapture", streams[0], ctypes.byref(graph))
        executable = pointer("cudaGraphInstantiate", graph, ctypes.c_ulonglong(0))

        seconds = []
        for sample in range(_SAMPLES + 2):
            cuda("cudaEventRecord", begin, streams[0])
            cuda("cudaGraphLaunch", executable, streams[0])
            cuda("cudaEventRecord", end, streams[0])
            cuda("cudaEventSynchronize", end)
            ms = ctypes.c_float()
            cuda("cudaEventElapsedTime", ctypes.byref(ms), begin, end)
            if sample >= 2:
                seconds.append(ms.value / 1e3 / chain)
        cuda("cudaGraphExecDestroy", executable)
        cuda("cudaGraphDestroy", graph)
        for of_set in buffers:
            for buffer in of_set:
                cuda("cudaFree", buffer)
        return statistics.median(seconds)

    for argument in argv[1:]:
        size, chain, sets = map(int, argument.split(","))
        row = {"nccl": version.value, "size": size, "chain": chain, "sets": sets}
        print(json.dumps({**row, "median_s": median_s(size, chain, sets)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
