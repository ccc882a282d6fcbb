"""Child processes that run collectives without JAX, to measure them.

    with Ranks(processes=4) as ranks:
        seconds = ranks.time("all_reduce", "ring", 1 << 20).median_s

The engine is the one that runs under XLA: the same schedules, links and kernels, called directly.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from jaxcoll import schedule as _schedule
from jaxcoll._errors import RanksError as RanksError

ITEM_BYTES = 4  # float32


@dataclass(frozen=True)
class Times:
    """Measured durations of a collective.

    Attributes:
      rounds_s: seconds per call of each round, of the process that took longest.
      cpu_share: CPU time of all processes over wall time and cores.
    """

    rounds_s: tuple[float, ...]
    cpu_share: float

    @property
    def median_s(self) -> float:
        return statistics.median(self.rounds_s)

    @property
    def quiet_s(self) -> float:
        """The median of the faster half: what else runs on a machine only adds to a time."""
        return statistics.median(sorted(self.rounds_s)[: (len(self.rounds_s) + 1) // 2])


class Ranks:
    """`processes` processes with `ranks_per_process` ranks each, linked when they first talk.

    Args:
      processes: how many.
      ranks_per_process: ranks that each has.
      transports: which may be used between them.
      apart: whether each process counts as a host of its own.
      enter: by process, a command that its own is appended to, e.g. to enter a network namespace.
      timeout_s: how long a collective, and everything else, may take.
      environment: variables beside this process's.
    """

    def __init__(
        self,
        processes: int,
        ranks_per_process: int = 1,
        *,
        transports: Sequence[str] = ("shm", "rdma", "tcp"),
        apart: bool = False,
        enter: Sequence[Sequence[str]] = (),
        timeout_s: float = 60.0,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.world_size = processes * ranks_per_process
        self._timeout_s = timeout_s
        try:
            self._folder = tempfile.TemporaryDirectory(prefix="jaxcoll-ranks-")
        except OSError as error:
            raise RanksError(f"the processes have no folder to meet in: {error}") from None
        self._children: list[subprocess.Popen[str]] = []
        self._logs: list[IO[str]] = []
        variables = {k: v for k, v in os.environ.items() if k != "JAXCOLL_TUNING"}
        variables |= {"JAXCOLL_TIMEOUT_S": f"{timeout_s:g}"} | (environment or {})
        try:
            for index in range(processes):
                log = open(Path(self._folder.name) / f"log-{index}", "w+")  # noqa: SIM115
                self._logs.append(log)
                prefix = list(enter[index]) if enter else []
                # -P: the program's folder is the package's, whose modules must not hide others.
                program = [sys.executable, "-P", str(Path(__file__).with_name("rank.py"))]
                self._children.append(
                    subprocess.Popen(
                        [*prefix, *program],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=log,
                        text=True,
                        env=variables,
                    )
                )
                self._tell(
                    index,
                    {
                        "index": index,
                        "processes": processes,
                        "ranks_per_process": ranks_per_process,
                        "folder": self._folder.name,
                        "transports": list(transports),
                        "host_id": f"host-{index}" if apart else None,
                        "timeout_s": timeout_s,
                    },
                )
            self._answers()
        except OSError as error:  # too many processes or files, a full disk
            self.close()
            raise RanksError(f"a process cannot be started: {error}") from None
        except BaseException:
            self.close()
            raise

    def time(
        self,
        collective: str,
        algorithm: str,
        nbytes: int,
        *,
        dims: Sequence[int] = (),
        rounds: int = 5,
        calls: int = 1,
    ) -> Times:
        """Measures a collective of float32.

        Args:
          collective: and `algorithm`, as in a ScheduleSpec.
          algorithm: its name.
          nbytes: as `jaxcoll.simulate.run` counts them.
          dims: of the algorithm.
          rounds: how often; before each the ranks meet.
          calls: how many calls follow each other in a round.

        Raises: RanksError if a process fails or a result is wrong.
        """
        command = {
            "do": "time",
            "collective": collective,
            "algorithm": algorithm,
            "dims": list(dims),
            "block_elements": _schedule.block_elements(
                collective, self.world_size, nbytes, ITEM_BYTES
            ),
            "rounds": rounds,
            "calls": calls,
        }
        for index in range(len(self._children)):
            self._tell(index, command)
        answers = self._answers()
        if wrong := sorted(rank for answer in answers for rank in answer["wrong"]):
            raise RanksError(f"{collective} by {algorithm} of {nbytes} bytes: wrong on {wrong}")
        rounds_s = zip(*(answer["times_s"] for answer in answers), strict=True)
        cores = len(os.sched_getaffinity(0))
        wall_s = max(answer["wall_s"] for answer in answers)
        cpu_s = sum(answer["cpu_s"] for answer in answers)
        return Times(tuple(map(max, rounds_s)), cpu_s / (wall_s * cores))

    def _tell(self, index: int, command: dict[str, Any]) -> None:
        pipe = self._children[index].stdin
        assert pipe is not None
        try:
            pipe.write(json.dumps(command) + "\n")
            pipe.flush()
        except BrokenPipeError:
            raise self._failure(index, "it has ended") from None

    def _answers(self) -> list[dict[str, Any]]:
        """Everybody's answer. A collective has a deadline of its own, so each waits a bit more."""
        answers: dict[int, dict[str, Any]] = {}
        # All rounds of a measurement are one answer.
        deadline = time.monotonic() + 10 * self._timeout_s
        pipes = {cast(IO[str], child.stdout): i for i, child in enumerate(self._children)}
        while len(answers) < len(self._children):
            left_s = max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select(list(pipes), [], [], left_s)
            if not ready:
                silent = sorted(pipes.values())
                raise self._failure(silent[0], f"processes {silent} do not answer")
            for pipe in ready:
                index = pipes.pop(pipe)
                if not (line := pipe.readline()):
                    raise self._failure(index, "it has ended")
                answers[index] = json.loads(line)
        failed = [i for i in sorted(answers) if "error" in answers[i]]
        if failed:
            raise self._failure(failed[0], answers[failed[0]]["error"])
        return [answers[i] for i in range(len(self._children))]

    def _failure(self, index: int, what: str) -> RanksError:
        self._logs[index].flush()
        log = Path(self._logs[index].name).read_text()[-2000:].strip()
        return RanksError(f"process {index}: {what}" + (f"; it said:\n{log}" if log else ""))

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes."""
        for child in self._children:
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it has ended
                child.stdin.close()
        for child in self._children:
            try:
                child.wait(5)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            assert child.stdout is not None
            child.stdout.close()
        for log in self._logs:
            log.close()
        self._folder.cleanup()
