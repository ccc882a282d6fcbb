"""One process of `jaxcoll.tune.ranks`: ranks of the engine without JAX, which obey their parent.

Run by its path, not as a module of the package, whose import also imports JAX: 0.7 s of CPU and 158
MB, measured, for each of many processes, where this takes 0.2 s and 38 MB.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any, cast

if __name__ == "__main__":
    package = types.ModuleType("jaxcoll")
    package.__path__ = [str(Path(__file__).parent.parent)]
    sys.modules["jaxcoll"] = package

import numpy as np

from jaxcoll import _environment
from jaxcoll import schedule as _schedule
from jaxcoll._job.bootstrap import Bootstrap
from jaxcoll._native import native

_POLL_S = 0.002
_CHECKED_BYTES = 1 << 22  # of everybody's input together; a larger call is not checked
_ITEM_BYTES = 4


class FolderStore:
    """A job's store: files of a folder that all its processes see."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, key: str) -> Path:
        return self._folder / key.replace("/", "~")

    def set(self, key: str, value: bytes) -> None:
        with tempfile.NamedTemporaryFile(dir=self._folder) as file:
            file.write(value)
            file.flush()
            try:
                os.link(file.name, self._path(key))
            except FileExistsError:
                return  # what was there stands

    def wait(self, key: str, deadline_s: float) -> bytes:
        end = time.monotonic() + deadline_s
        while True:
            try:
                return self._path(key).read_bytes()
            except FileNotFoundError:
                if time.monotonic() > end:
                    raise TimeoutError(key) from None
                time.sleep(_POLL_S)

    def list(self, folder: str) -> dict[str, bytes]:
        found = {}
        for path in self._folder.glob(f"{folder.replace('/', '~')}*"):
            found[path.name.replace("~", "/")] = path.read_bytes()
        return found


class Call:
    """A collective and its arrays."""

    def __init__(
        self,
        collective: str,
        algorithm: str,
        dims: list[int],
        block_elements: int,
        world_size: int,
        members: list[int],
    ) -> None:
        self.collective, self.world_size, self.members = collective, world_size, members
        self.blocks_in = _schedule.input_blocks(collective, world_size)
        self.blocks_out = _schedule.output_blocks(collective, world_size)
        self.elements = block_elements
        self.native = native.EngineCall(
            collective, algorithm, world_size, dims, "", members, "float32", block_elements
        )
        self.inputs = [self._input(rank) for rank in members]
        self.outputs = [np.zeros(self.blocks_out * block_elements, np.float32) for _ in members]

    def _input(self, rank: int) -> np.ndarray:
        """Small integers, so that every order of a sum gives the same bits."""
        values = np.arange(self.blocks_in * self.elements) % 61 + rank % 17
        return values.astype(np.float32)

    def run(self, calls: int) -> float:
        """Seconds for this many calls."""
        return float(
            self.native.run(
                [x.view(np.uint8) for x in self.inputs],
                [x.view(np.uint8) for x in self.outputs],
                calls,
            )
        )

    def wrong(self) -> list[int]:
        """Ranks with a wrong result."""
        if self.world_size * self.blocks_in * self.elements * _ITEM_BYTES > _CHECKED_BYTES:
            return []
        given = np.stack([self._input(rank) for rank in range(self.world_size)])
        cut = given.reshape(self.world_size, self.blocks_in, self.elements)
        wrong = []
        for rank, output in zip(self.members, self.outputs, strict=True):
            expected = {
                "all_reduce": lambda _: given.sum(0),
                "reduce": lambda rank: given.sum(0) if rank == 0 else None,
                "reduce_scatter": lambda rank: cut[:, rank].sum(0),
                "all_gather": lambda _: given.ravel(),
                "all_to_all": lambda rank: cut[:, rank].ravel(),
                "broadcast": lambda _: given[0],
            }[self.collective](rank)
            if expected is not None and not np.array_equal(expected, output):
                wrong.append(rank)
        return wrong


class Rank:
    """This process. The parent's commands are the methods without an underscore."""

    def __init__(self, settings: dict[str, Any]) -> None:
        index, processes = settings["index"], settings["processes"]
        each = settings["ranks_per_process"]
        self._world_size = processes * each
        self._members = list(range(index * each, (index + 1) * each))
        self._bootstrap: Bootstrap | None = None
        self._calls: dict[str, Call] = {}
        if processes > 1:
            self._bootstrap = Bootstrap(
                native,
                FolderStore(Path(settings["folder"])),
                index,
                processes,
                version="ranks",
                timeout_s=settings["timeout_s"],
                transports=tuple(settings["transports"]),
                host_id=settings["host_id"],
                tcp_encrypt=_environment.values()["JAXCOLL_TCP_ENCRYPT"] == "1",
            )
            owner = {rank: rank // each for rank in range(self._world_size)}
            native.comm_start(index, owner, self._bootstrap.want)
            self._bootstrap.start()

    def time(
        self,
        collective: str,
        algorithm: str,
        dims: list[int],
        block_elements: int,
        rounds: int,
        calls: int,
    ) -> dict[str, Any]:
        """Seconds per call of each round, each behind a small all_reduce that brings everybody
        together; CPU seconds of this process meanwhile."""
        call = Call(collective, algorithm, dims, block_elements, self._world_size, self._members)
        call.run(1)  # makes links and touches memory
        wrong = call.wrong()
        gather = self._gather()
        times_s = []
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        for _ in range(rounds):
            gather.run(1)
            times_s.append(call.run(calls) / calls)
        cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
        return {"times_s": times_s, "cpu_s": cpu_s, "wall_s": wall_s, "wrong": wrong}

    def _gather(self) -> Call:
        if "gather" not in self._calls:
            self._calls["gather"] = Call(
                "all_reduce", "direct", [], 1, self._world_size, self._members
            )
        return self._calls["gather"]

    def _close(self) -> None:
        self._calls.clear()
        if self._bootstrap is not None:
            self._bootstrap.close()
            native.comm_stop()
        native.shutdown()


def main() -> None:
    """Obeys until the input ends."""
    rank = Rank(json.loads(sys.stdin.readline()))
    print(json.dumps({"started": os.getpid()}), flush=True)
    for line in sys.stdin:
        command = cast(dict[str, Any], json.loads(line))
        try:
            answer = getattr(rank, command.pop("do"))(**command)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)
    rank._close()


if __name__ == "__main__":
    main()
