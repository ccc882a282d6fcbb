"""N ranks on one GPU, in one process, and what they should compute."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from jaxcoll import schedule
from jaxcoll._native import native


def reason_without_gpu() -> str:
    """Why nothing can run on a GPU here; "" where it can."""
    if not native.cuda_built:
        return "this build has no GPU kernels"
    if not native.testing_built:
        return "this build has no harness: it takes -DJAXCOLL_TESTING=ON"
    info = native.cuda_info()
    return "" if info["driver"] and info["devices"] else f"no GPU: {info['problem']}"


needs_gpu = pytest.mark.skipif(bool(reason_without_gpu()), reason=reason_without_gpu())

SPLITS = ("reduce_scatter", "all_to_all")  # inputs of one block per rank
JOINS = ("all_gather", "all_to_all")  # outputs of one block per rank


def numpy_dtype(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name, name))


@dataclass
class Call:
    """One collective of vectors of `elements` elements per block."""

    collective: str
    ranks: int
    elements: Sequence[int] = (1000,)
    algorithm: str = "direct"
    dtype: str = "float32"
    op: str = "sum"
    root: int = 0
    permutation: Sequence[tuple[int, int]] = ()
    streams: bool = False
    staged: bool = False
    blocks: int = 0  # as many as fit
    timeout_s: float = 30.0
    workspace_mib: int = 64
    interpret: bool = False  # by the interpreter, even where there is a kernel
    dims: Sequence[int] = ()
    schedule: str = ""  # serialised
    harness: Any = field(init=False, default=None)

    def shapes(self) -> tuple[list[tuple[str, list[int]]], list[tuple[str, list[int]]]]:
        inputs = [[self.ranks if self.collective in SPLITS else 1, n] for n in self.elements]
        outputs = [[self.ranks if self.collective in JOINS else 1, n] for n in self.elements]
        return [(self.dtype, x) for x in inputs], [(self.dtype, x) for x in outputs]

    def make(self) -> Any:
        inputs, outputs = self.shapes()
        self.harness = native.CudaHarness.create(
            self.collective,
            self.algorithm,
            self.op,
            self.ranks,
            self.root,
            [rank for pair in self.permutation for rank in pair],
            inputs,
            outputs,
            self.streams,
            self.staged,
            self.blocks,
            self.timeout_s,
            self.workspace_mib,
            self.interpret,
            list(self.dims),
            self.schedule,
        )
        return self.harness

    def random_inputs(self, seed: int = 0) -> list[list[np.ndarray]]:
        """[rank][vector]: any bits, or floats of a size that rounds when they are added."""
        rng = np.random.default_rng(seed)
        dtype = numpy_dtype(self.dtype)

        def array(shape: list[int]) -> np.ndarray:
            if self.dtype == "bool":
                return rng.integers(0, 2, shape).astype(bool)
            if dtype.kind in "iu":
                info = np.iinfo(dtype)
                return rng.integers(info.min, info.max, shape, dtype, endpoint=True)
            if dtype.kind == "c":
                values = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
                return values.astype(dtype)
            return rng.standard_normal(shape).astype(dtype)

        return [[array(shape) for _, shape in self.shapes()[0]] for _ in range(self.ranks)]

    def run(
        self, inputs: list[list[np.ndarray]], calls: int = 1, leave_out: int = -1
    ) -> list[list[np.ndarray]]:
        """[rank][vector], after `calls` calls."""
        harness = self.harness or self.make()
        raw = harness.run([[x.tobytes() for x in row] for row in inputs], calls, leave_out)
        dtype = numpy_dtype(self.dtype)
        shapes = self.shapes()[1]
        return [
            [np.frombuffer(b, dtype).reshape(s) for b, (_, s) in zip(row, shapes, strict=True)]
            for row in raw
        ]

    def fold(self, sources: list[np.ndarray]) -> np.ndarray:
        """The CPU engine's reduction, which tests/test_kernels.py compares with NumPy."""
        result = np.empty_like(sources[0])
        native.kernel_reduce(
            [result.reshape(-1).view(np.uint8)],
            [np.ascontiguousarray(s).reshape(-1).view(np.uint8) for s in sources],
            self.dtype,
            self.op,
        )
        return result

    def expected(self, inputs: list[list[np.ndarray]], rank: int, v: int) -> np.ndarray:
        of_all = [row[v] for row in inputs]
        if self.collective == "all_reduce":
            return self.fold(of_all)
        if self.collective == "reduce":
            return self.fold(of_all) if rank == self.root else np.zeros_like(of_all[0])
        if self.collective == "reduce_scatter":
            return self.fold([x[rank : rank + 1] for x in of_all])
        if self.collective == "all_gather":
            return np.concatenate(of_all)
        if self.collective == "all_to_all":
            return np.concatenate([x[rank : rank + 1] for x in of_all])
        if self.collective == "broadcast":
            return of_all[self.root]
        assert self.collective == "permute"
        for source, destination in self.permutation:
            if destination == rank:
                return of_all[source]
        return np.zeros_like(of_all[0])

    def check(self, calls: int = 2, seed: int = 0) -> None:
        """Bit for bit."""
        inputs = self.random_inputs(seed)
        outputs = self.run(inputs, calls)
        for rank in range(self.ranks):
            for v in range(len(self.elements)):
                expected = self.expected(inputs, rank, v)
                actual = outputs[rank][v]
                assert actual.tobytes() == np.ascontiguousarray(expected).tobytes(), (
                    f"{self}, rank {rank}, vector {v}: "
                    f"{np.flatnonzero(bits(actual) != bits(expected))[:10]} differ"
                )


def bits(array: np.ndarray) -> np.ndarray:
    """The elements as rows of bytes, so that NaNs compare."""
    flat = np.ascontiguousarray(array).reshape(-1)
    rows = flat.view(np.uint8).reshape(len(flat), -1)
    return np.array([row.tobytes() for row in rows], dtype=object)


def every_algorithm(ranks: int, **how: Any) -> list[Call]:
    """Every collective by every algorithm that serves this many ranks, by the interpreter."""
    calls = []
    for collective in schedule.COLLECTIVES:
        pairs = [(i, (i + 2) % ranks) for i in range(ranks - 1)]  # one rank receives nothing
        permutation = pairs if collective == "permute" else ()
        for algorithm in schedule.algorithms(collective):
            spec = schedule.ScheduleSpec(
                collective, ranks, algorithm, root=ranks - 1, permutation=tuple(permutation)
            )
            try:
                schedule.build_rank(spec, 0)
            except ValueError:
                continue  # it does not serve this many
            call = Call(collective, ranks, algorithm=algorithm, root=ranks - 1, **how)
            calls.append(dataclasses.replace(call, permutation=permutation, interpret=True))
    return calls


def collectives(ranks: int, **how: Any) -> list[Call]:
    """Every collective and algorithm that has a kernel of its own."""
    shift = [(i, (i + 1) % ranks) for i in range(ranks)]
    chain = [(i, i - 1) for i in range(1, ranks)]
    return [
        Call("all_reduce", ranks, **how),
        Call("all_reduce", ranks, algorithm="direct2", **how),
        Call("reduce_scatter", ranks, **how),
        Call("reduce", ranks, root=ranks - 1, **how),
        Call("all_gather", ranks, **how),
        Call("all_to_all", ranks, **how),
        Call("broadcast", ranks, root=ranks - 1, **how),
        Call("permute", ranks, permutation=shift, **how),
        Call("permute", ranks, permutation=chain, **how),
    ]
