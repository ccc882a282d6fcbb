"""NCCL's all_reduce with several ranks on one GPU, in one process: what gpu.py compares with.

    NCCL_MULTI_RANK_GPU_ENABLE=1 python -m benchmarks.nccl_peer RANKS BYTES

Prints one line of JSON. Calls the installed libnccl and libcudart by ctypes, so it needs no build;
a graph of calls on a stream per rank, timed by replays, as our own kernels are.
"""

from __future__ import annotations

import ctypes
import json
import statistics
import sys
from collections.abc import Sequence
from importlib import util
from pathlib import Path
from typing import Any

_CHAIN, _SAMPLES = 20, 15
_FLOAT32, _SUM = 7, 0  # NCCL's codes
_RELAXED = 2  # a capture that lets NCCL allocate


def _library(pattern: str) -> ctypes.CDLL:
    """A library that a PyPI package of NVIDIA's brought."""
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
    """Times RANKS ranks and vectors of BYTES."""
    ranks, size = int(argv[0]), int(argv[1])
    library = _library("libnccl.so*")
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
    inputs = [pointer("cudaMalloc", ctypes.c_size_t(size)) for _ in range(ranks)]
    outputs = [pointer("cudaMalloc", ctypes.c_size_t(size)) for _ in range(ranks)]
    for buffer in inputs:
        cuda("cudaMemset", buffer, 0x3F, ctypes.c_size_t(size))

    def all_reduce() -> None:
        nccl("ncclGroupStart")
        for rank in range(ranks):
            nccl(
                "ncclAllReduce",
                inputs[rank],
                outputs[rank],
                ctypes.c_size_t(size // 4),
                _FLOAT32,
                _SUM,
                communicators[rank],
                streams[rank],
            )
        nccl("ncclGroupEnd")

    for _ in range(3):
        all_reduce()
    cuda("cudaDeviceSynchronize")

    fork = pointer("cudaEventCreateWithFlags", 2)
    joins = [pointer("cudaEventCreateWithFlags", 2) for _ in range(ranks)]
    cuda("cudaStreamBeginCapture", streams[0], _RELAXED)
    cuda("cudaEventRecord", fork, streams[0])
    for stream in streams[1:]:
        cuda("cudaStreamWaitEvent", stream, fork, 0)
    for _ in range(_CHAIN):
        all_reduce()
    for stream, join in list(zip(streams, joins, strict=True))[1:]:
        cuda("cudaEventRecord", join, stream)
        cuda("cudaStreamWaitEvent", streams[0], join, 0)
    graph = ctypes.c_void_p()
    cuda("cudaStreamEndCapture", streams[0], ctypes.byref(graph))
    executable = pointer("cudaGraphInstantiate", graph, ctypes.c_ulonglong(0))

    begin, end = pointer("cudaEventCreate"), pointer("cudaEventCreate")
    seconds = []
    for sample in range(_SAMPLES + 2):
        cuda("cudaEventRecord", begin, streams[0])
        cuda("cudaGraphLaunch", executable, streams[0])
        cuda("cudaEventRecord", end, streams[0])
        cuda("cudaEventSynchronize", end)
        ms = ctypes.c_float()
        cuda("cudaEventElapsedTime", ctypes.byref(ms), begin, end)
        if sample >= 2:
            seconds.append(ms.value / 1e3 / _CHAIN)
    print(json.dumps({"nccl": version.value, "median_s": statistics.median(seconds)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
