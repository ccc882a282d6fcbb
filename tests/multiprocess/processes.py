"""Runs a script in several Python processes with `jax.distributed` set up, and watches them.

    with Job("print(jax.process_index())", processes=2, devices=2) as job:
        job.wait_for(1, "1")            # until rank 1 prints a line with this in it
        job.send(1, signal.SIGKILL)
        job.finish(exit_codes={1: -signal.SIGKILL})

The script runs after `jax.distributed.initialize`; it has `jax`, `np`, `rank` and `processes`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from support import warm_python, xla_flags

from jaxcoll import _environment

ROOT = Path(__file__).parents[2]

# jax.distributed.initialize ends a process that has lost another one, unless
# - jax_enable_recoverability is on in process 0: its service then tells nobody of a lost process,
#   whether its connection broke (SIGKILL) or its heartbeats stopped (SIGSTOP);
# - the service itself lives on: losing it ends a client at once, and no setting prevents that. So
#   jobs that lose rank 0 run the service in a process of its own; JAX_COORDINATOR_BIND_ADDRESS
#   sends the one that rank 0 insists on starting to a port where nobody looks for it.
# Jobs with these settings need not wait long for who is lost. The others must be able to starve
# beside compilers: nobody is lost in them.
HEARTBEAT_TIMEOUT_S = 3
PATIENT_HEARTBEAT_TIMEOUT_S = 100

_PRELUDE = """
import os, sys, time
import jax, numpy as np
rank, processes = int(os.environ["TEST_RANK"]), int(os.environ["TEST_PROCESSES"])
jax.config.update("jax_enable_recoverability", os.environ["TEST_RECOVERABLE"] == "1")
jax.distributed.initialize(
    os.environ["TEST_COORDINATOR"], processes, rank,
    initialization_timeout=120, heartbeat_timeout_seconds=int(os.environ["TEST_HEARTBEAT_S"]),
    shutdown_timeout_seconds=20,
)
"""
_SERVICE = """
import sys
from support import private_jax
service = private_jax.serve_coordinator(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
print("ready", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """A port that gRPC servers of this user can listen on and that nobody else gets meanwhile.

    It stays bound here, without listening; gRPC sets SO_REUSEPORT as we do.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


class Rank:
    """One process and what it has printed so far, stdout and stderr together."""

    def __init__(
        self, name: str, command: list[str], environment: Mapping[str, str], *, place: int = 0
    ) -> None:
        self.name = name
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._start = time.monotonic()
        self._popen = self._forked(command, environment, place) or subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.PIPE,  # open until we end; the service lives as long
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @staticmethod
    def _forked(
        command: list[str], environment: Mapping[str, str], place: int
    ) -> warm_python.Process | None:
        if command[:2] != [sys.executable, "-c"]:
            return None
        return warm_python.start(command[2], command[3:], environment, place=place)

    def _read(self) -> None:
        assert self._popen.stdout is not None
        for line in self._popen.stdout:
            with self._changed:
                self._lines.append(f"{time.monotonic() - self._start:7.2f}  {line.rstrip()}")
                self._changed.notify_all()
        self._popen.wait()
        with self._changed:
            self._changed.notify_all()

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def code(self) -> int | None:
        """Exit code as subprocess has it, -N for signal N; None while it runs."""
        return self._popen.poll()

    @property
    def text(self) -> str:
        """The text it has printed, without our time stamps."""
        with self._changed:
            return "\n".join(line[9:] for line in self._lines)

    def wait_for(self, marker: str, end: float) -> bool:
        """Whether it prints a line with `marker` before the time `end`, and before it ends."""
        with self._changed:
            while not any(marker in line for line in self._lines):
                if self.code is not None and not self._reader.is_alive():
                    return False
                if (left := end - time.monotonic()) <= 0:
                    return False
                self._changed.wait(min(left, 1))
            return True

    def wait(self, timeout_s: float) -> bool:
        """Whether it has ended, and all its output is here, within the time given."""
        self._reader.join(timeout_s)
        return not self._reader.is_alive()

    def send(self, number: int) -> None:
        """Sends a signal to the process and what it has started."""
        if self._popen.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._popen.pid, number)

    def write(self, text: str) -> None:
        """Gives it something to read."""
        assert self._popen.stdin is not None
        self._popen.stdin.write(text)
        self._popen.stdin.flush()

    def close(self) -> None:
        """Kills what is left and frees its pipes."""
        self.send(signal.SIGKILL)
        self._popen.wait()
        self._reader.join(5)
        for pipe in (self._popen.stdin, self._popen.stdout):
            assert pipe is not None
            pipe.close()

    def report(self) -> str:
        """Everything it printed, for a failure's message."""
        state = "running" if self.code is None else f"exit code {self.code}"
        with self._changed:
            return "\n".join([f"--- {self.name}: {state}", *self._lines])


class Job:
    """`processes` Python processes running one script; see the module's docstring.

    devices: CPU devices of each process, one number or one for each rank.
    environment: for all; rank_environment: for single ranks, on top of it.
    start_late_s: rank -> seconds after the others.
    survives: processes live on when another is lost, be it rank 0 (see HEARTBEAT_TIMEOUT_S).
    heartbeat_timeout_s: JAX's; what is usual depends on `survives`.
    timeout_s: for the whole job; after it everything is killed and the test fails.
    address: where JAX's coordinator listens.
    enter: for each rank a command that runs the command behind it, on another host for example;
      the coordinator runs where rank 0 does.
    guests: clients of the coordinator beside the processes, with node ids behind theirs, whom all
      wait for; with `survives`.
    """

    def __init__(
        self,
        script: str,
        *arguments: str,
        processes: int,
        devices: int | list[int] = 1,
        environment: Mapping[str, str] | None = None,
        rank_environment: Mapping[int, Mapping[str, str]] | None = None,
        start_late_s: Mapping[int, float] | None = None,
        survives: bool = False,
        heartbeat_timeout_s: int | None = None,
        timeout_s: float = 120,
        address: str = "127.0.0.1",
        enter: Sequence[Sequence[str]] = (),
        guests: int = 0,
    ) -> None:
        self.end = time.monotonic() + timeout_s
        self._timeout_s = timeout_s
        self._stack = contextlib.ExitStack()
        self.ranks: list[Rank] = []
        self._service: Rank | None = None
        self._enter = enter
        if heartbeat_timeout_s is None:
            heartbeat_timeout_s = HEARTBEAT_TIMEOUT_S if survives else PATIENT_HEARTBEAT_TIMEOUT_S
        try:
            port = self._stack.enter_context(reserved_port())
            self.coordinator = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
            self._guests = guests
            self._start(
                [sys.executable, "-c", _PRELUDE + textwrap.dedent(script), *arguments],
                [devices] * processes if isinstance(devices, int) else devices,
                self.coordinator,
                dict(environment or {}),
                dict(rank_environment or {}),
                dict(start_late_s or {}),
                survives,
                heartbeat_timeout_s,
            )
        except BaseException:
            self.close()
            raise

    def _start(
        self,
        command: list[str],
        devices: list[int],
        address: str,
        environment: dict[str, str],
        rank_environment: dict[int, Mapping[str, str]],
        start_late_s: dict[int, float],
        survives: bool,
        heartbeat_timeout_s: int,
    ) -> None:
        base = {k: v for k, v in os.environ.items() if k not in _environment.added_environment()}
        here = Path(__file__).parent
        paths = [str(ROOT), str(here), str(here.parent), base.get("PYTHONPATH", "")]
        base |= {
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            "PYTHONUNBUFFERED": "1",
            "TEST_COORDINATOR": address,
            "TEST_HEARTBEAT_S": str(heartbeat_timeout_s),
            "TEST_PROCESSES": str(len(devices)),
            "TEST_RECOVERABLE": "1" if survives else "0",
            "JAX_COORDINATOR_BIND_ADDRESS": "127.0.0.1:0" if survives else address,
        }
        if survives:
            service = [sys.executable, "-c", _SERVICE, address]
            service += [str(len(devices) + self._guests), str(heartbeat_timeout_s)]
            self._service = Rank("coordinator", [*self._entering(0), *service], base)
            if not self._service.wait_for("ready", self.end):
                self.fail("the coordinator did not start")
        for rank in sorted(range(len(devices)), key=lambda rank: start_late_s.get(rank, 0)):
            if (late_s := start_late_s.get(rank, 0)) > 0:
                time.sleep(late_s)  # being late is the point
            own = {"XLA_FLAGS": xla_flags.with_devices(devices[rank]), "TEST_RANK": str(rank)}
            started = Rank(
                f"rank {rank}",
                [*self._entering(rank), *command],
                base | own | environment | dict(rank_environment.get(rank, {})),
                place=rank,
            )
            self.ranks.append(started)
        self.ranks.sort(key=lambda rank: int(rank.name.split()[1]))

    def _entering(self, rank: int) -> Sequence[str]:
        return self._enter[rank] if self._enter else ()

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kills everything that still runs."""
        for process in [*self.ranks, *([self._service] if self._service else [])]:
            process.close()
        self._stack.close()

    def fail(self, why: str) -> None:
        """Kills everything and fails the test with all output."""
        reports = [rank.report() for rank in self.ranks]  # before the killing changes the states
        self.close()
        raise AssertionError("\n".join([why, *reports]))

    def wait_for(self, rank: int, marker: str) -> None:
        """Until `rank` prints a line that has `marker` in it."""
        if not self.ranks[rank].wait_for(marker, self.end):
            self.fail(f"rank {rank} did not print {marker!r}")

    def send(self, rank: int, number: int) -> None:
        """Sends a signal to a rank."""
        self.ranks[rank].send(number)

    def write(self, rank: int, text: str) -> None:
        """Gives a rank something to read on its standard input."""
        self.ranks[rank].write(text)

    def text(self, rank: int) -> str:
        """The text that a rank has printed so far."""
        return self.ranks[rank].text

    def finish(self, exit_codes: Mapping[int, int] | None = None) -> list[str]:
        """Waits for all; returns what each printed. Each must exit with 0, or as `exit_codes` says.

        A rank that is expected not to end (SIGSTOP) is left out with `exit_codes={rank: None}`.
        Once one has failed, the others get 5 more seconds: they may hang because of it.
        """
        wanted = {i: 0 for i in range(len(self.ranks))} | dict(exit_codes or {})
        waiting = [i for i in wanted if wanted[i] is not None]
        end, failed = self.end, False
        while waiting:
            for i in list(waiting):
                if self.ranks[i].wait(0.02):
                    waiting.remove(i)
                    if self.ranks[i].code != wanted[i] and not failed:
                        failed, end = True, min(end, time.monotonic() + 5)
            if time.monotonic() > end:
                break
        if failed:
            codes = [rank.code for rank in self.ranks]
            self.fail(f"exit codes {codes}, expected {list(wanted.values())}")
        if waiting:
            self.fail(f"ranks {waiting} still ran after {self._timeout_s:g} s")
        return [rank.text for rank in self.ranks]


def run(script: str, *arguments: str, processes: int, **options: object) -> list[str]:
    """Runs a job that is to succeed; returns what each rank printed."""
    with Job(script, *arguments, processes=processes, **options) as job:  # type: ignore[arg-type]
        return job.finish()
