"""``jaxcoll launch``: starts the processes of a job on this machine."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

from jaxcoll import _environment
from jaxcoll._cli.arguments import whole
from jaxcoll._job import secret as _secret
from jaxcoll._text import is_number
from jaxcoll.tune import table

_DESCRIPTION = """\
Starts the processes of a job on this machine.

    jaxcoll launch -n 4 train.py --lr 0.1
    jaxcoll launch -n 2 --devices-per-process 4 -m package.train
    jaxcoll launch -n 4 -- ./train.sh
    jaxcoll launch -n 4 --install train.py     # a program that does not import jaxcoll

In each process a bare jax.distributed.initialize() finds the others. Each line of output is
prefixed with its rank. When a process fails, the others get SIGTERM and, 5 s later, SIGKILL. The
exit code is that of the first process that failed, or 128 + the signal's number if a signal ended
it. Ctrl-C, SIGTERM and SIGHUP are passed to all processes, which then have 5 s to end; a second
signal kills them. If the launcher itself is killed, so are the processes.

The processes inherit a descriptor with the job's secret (JAXCOLL_SECRET_FD). Launchers of one job
on several hosts must be given the same secret: JAXCOLL_SECRET_FILE.
"""

GRACE_S = 5.0
_PROCESSES_MAX = 1 << 20
_DEVICE_COUNT_FLAG = "--xla_force_host_platform_device_count"
_READ_BYTES = 1 << 16
_DRAIN_READS = 64  # more than a pipe holds; one that is being filled meanwhile must not keep us
_LONGEST_LINE_BYTES = 1 << 20  # longer ones are broken, so that no child can fill our memory
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)  # of the prefixes, by rank

# Runs in the child before the program: ask the kernel for SIGKILL when the launcher dies, see that
# it has not died already, and become the program. A wrapper, because code between fork and exec
# of a process with threads (numpy's) may deadlock.
_WRAPPER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):
    os.kill(os.getpid(), signal.SIGKILL)
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    print(f"jaxcoll launch: {sys.argv[2]}: {error.strerror}", file=sys.stderr)
    os._exit(127 if isinstance(error, FileNotFoundError) else 126)
"""


@dataclass(frozen=True)
class Job:
    """The processes to start: ranks `first` to `first + count - 1` of `total` processes."""

    command: list[str]
    count: int
    total: int
    first: int
    coordinator: str
    devices: int | None  # per process; None leaves it to XLA_FLAGS
    secret: int | None = None  # a descriptor to inherit
    install: bool = False
    keep_memory: bool = False


def environment(job: Job, local_rank: int, base: Mapping[str, str]) -> dict[str, str]:
    """The environment of one process: `base` and what `jax.distributed.initialize()` reads.

    JAX (0.10 to 0.12) takes the coordinator from JAX_COORDINATOR_ADDRESS and the local devices
    from JAX_LOCAL_DEVICE_IDS, but has no variable of its own for the number of processes and the
    rank: they come from a detected cluster. Among those, Slurm is the one that needs nothing beyond
    five variables. Open MPI's detection goes by OMPI_MCA_orte_hnp_uri, which a real Open MPI in
    the child would try to connect to, and newer JAX also wants mpi4py if OMPI_VERSION is set, as
    it is in many containers; its variables are removed, for JAX would ask them first. With the
    coordinator given, JAX never looks at the node list.
    """
    rank = job.first + local_rank
    result = {name: value for name, value in base.items() if not name.startswith("OMPI_")}
    for name in _environment.added_environment():  # chosen for this process, not for the children
        result.pop(name, None)
    host = job.coordinator.rpartition(":")[0]
    result |= {
        "JAX_COORDINATOR_ADDRESS": job.coordinator,
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_NODELIST": host,
        "SLURM_NTASKS": str(job.total),
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(local_rank),
    }
    if job.secret is not None:
        result[_secret.FD_VARIABLE] = str(job.secret)
    if _is_loopback(host):  # by default JAX's coordinator listens on every interface
        result.setdefault("JAX_COORDINATOR_BIND_ADDRESS", job.coordinator)
    if job.install:
        result["JAXCOLL_INSTALL"] = "1"
    if job.keep_memory:
        kept = result.get("JAXCOLL_KEEP_MEMORY")
        result["JAXCOLL_KEEP_MEMORY"] = "all" if kept == "all" else "1"  # "all" keeps more
    result.setdefault("JAX_PLATFORMS", "cpu")
    result.setdefault("PYTHONUNBUFFERED", "1")
    if job.devices is not None:
        flags = re.sub(rf"{_DEVICE_COUNT_FLAG}=\S*", "", result.get("XLA_FLAGS", "")).split()
        result["XLA_FLAGS"] = " ".join([*flags, f"{_DEVICE_COUNT_FLAG}={job.devices}"])
        result.pop("JAX_NUM_CPU_DEVICES", None)  # JAX would prefer it
        first = local_rank * job.devices  # which GPUs are ours; CPU devices are not numbered so
        ids = ",".join(str(first + i) for i in range(job.devices))
        result.setdefault("JAX_LOCAL_DEVICE_IDS", ids)
    return result


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "[::1]") or host.startswith("127.")


class _Stream:
    """One pipe of one process; writes each line to a file in one piece, prefixed with the rank."""

    def __init__(self, source: BinaryIO, target: BinaryIO, rank: int) -> None:
        self.source = source
        self.ended = False
        self._target = target
        self._partial = b""
        self._prefix = f"[{rank}] ".encode()
        if target.isatty() and not os.environ.get("NO_COLOR"):
            colour = _COLOURS[rank % len(_COLOURS)]
            self._prefix = b"\x1b[%dm[%d]\x1b[0m " % (colour, rank)
        os.set_blocking(source.fileno(), False)

    def pump(self) -> bool:
        """Passes on available output, up to the last whole line; False if there was none."""
        try:
            data = os.read(self.source.fileno(), _READ_BYTES)
        except BlockingIOError:
            return False
        self.ended = not data
        *lines, self._partial = (self._partial + data).split(b"\n")
        if len(self._partial) > _LONGEST_LINE_BYTES:
            lines.append(self._partial)
            self._partial = b""
        self._write(lines)
        return bool(data)

    def flush(self) -> None:
        """Writes a last line that lacks its newline, and adds one."""
        if self._partial:
            self._write([self._partial])
            self._partial = b""

    def drain(self) -> None:
        """Passes on everything that is in the pipe now."""
        for _ in range(_DRAIN_READS):
            if not self.pump():
                break
        self.flush()

    def _write(self, lines: list[bytes]) -> None:
        if lines:
            self._target.write(b"".join(self._prefix + line + b"\n" for line in lines))
            self._target.flush()


class _Process:
    """One rank, in its own process group: a signal also reaches the processes that it starts."""

    def __init__(self, job: Job, local_rank: int) -> None:
        self.rank = job.first + local_rank
        self._popen = subprocess.Popen(
            # -I and -S: neither the user's environment nor site-packages slow the wrapper down.
            [sys.executable, "-I", "-S", "-c", _WRAPPER, str(os.getpid()), *job.command],
            env=environment(job, local_rank, os.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
            pass_fds=() if job.secret is None else (job.secret,),
        )
        assert self._popen.stdout is not None
        assert self._popen.stderr is not None
        self.streams = [
            _Stream(pipe, target, self.rank)  # type: ignore[arg-type]
            for pipe, target in (
                (self._popen.stdout, sys.stdout.buffer),
                (self._popen.stderr, sys.stderr.buffer),
            )
        ]

    def poll(self) -> int | None:
        """The exit code as a shell has it, None while the process runs."""
        code = self._popen.poll()
        return 128 - code if code is not None and code < 0 else code

    def send(self, number: int) -> None:
        """Sends a signal to the process's group, unless it has ended."""
        # The process has not been reaped, so the kernel has not reused its group's number.
        if self._popen.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._popen.pid, number)

    def close(self) -> None:
        """Waits for the process, which has been signalled or has ended."""
        self._popen.wait()
        for stream in self.streams:
            stream.source.close()


class _Launcher:
    """Runs one job, in a single thread that waits for output and for signals."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._processes: list[_Process] = []
        self._exit_code = 0
        self._kill_at = float("inf")
        self._signalled = False

    def run(self) -> int:
        """The exit code of the first process that failed, 0 if none did."""
        with _signals_as_bytes() as wakeup, selectors.DefaultSelector() as selector:
            try:
                for local_rank in range(self._job.count):
                    self._processes.append(_Process(self._job, local_rank))
                    for stream in self._processes[-1].streams:
                        selector.register(stream.source, selectors.EVENT_READ, stream)
                selector.register(wakeup, selectors.EVENT_READ)
                running = list(self._processes)
                while running:
                    self._step(selector, wakeup)
                    running = self._reap(running)
                # All have ended. Processes that they started may hold the pipes open: read only
                # what is available.
                for process in self._processes:
                    for stream in process.streams:
                        stream.drain()
            except BrokenPipeError:  # our reader has ended, as in `jaxcoll launch ... | head`
                self._exit_code = 128 + signal.SIGPIPE
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            finally:
                for process in self._processes:
                    process.send(signal.SIGKILL)
                    process.close()
        return self._exit_code

    def _step(self, selector: selectors.BaseSelector, wakeup: socket.socket) -> None:
        timeout_s = max(self._kill_at - time.monotonic(), 0)
        ready = selector.select(None if timeout_s == float("inf") else timeout_s)
        for key, _ in ready:
            if key.fileobj is wakeup:
                for number in wakeup.recv(4096):
                    self._on_signal(number)
                continue
            key.data.pump()
            if key.data.ended:
                key.data.flush()
                selector.unregister(key.fileobj)
        if time.monotonic() >= self._kill_at:
            self._kill_at = float("inf")
            self._send_all(signal.SIGKILL)

    def _on_signal(self, number: int) -> None:
        if number not in _PASSED_ON:
            return  # SIGCHLD: _reap looks
        if self._signalled:
            self._send_all(signal.SIGKILL)
            return
        self._signalled = True
        self._end_all(number)

    def _reap(self, running: list[_Process]) -> list[_Process]:
        left = []
        for process in running:
            code = process.poll()
            if code is None:
                left.append(process)
            elif code != 0 and self._exit_code == 0:
                self._exit_code = code
                for stream in process.streams:  # its own error comes before ours
                    stream.drain()
                how = f"was ended by {_signal_name(code)}" if code > 128 else f"exited with {code}"
                print(f"jaxcoll launch: rank {process.rank} {how}", file=sys.stderr, flush=True)
                if not self._signalled:
                    self._end_all(signal.SIGTERM)
        return left

    def _end_all(self, number: int) -> None:
        self._send_all(number)
        self._kill_at = min(self._kill_at, time.monotonic() + GRACE_S)

    def _send_all(self, number: int) -> None:
        for process in self._processes:
            process.send(number)


def _signal_name(code: int) -> str:
    try:
        return signal.Signals(code - 128).name
    except ValueError:
        return f"signal {code - 128}"


@contextlib.contextmanager
def _signals_as_bytes() -> Iterator[socket.socket]:
    """A socket from which the numbers of arriving signals, SIGCHLD included, are read."""
    receiver, sender = socket.socketpair()
    receiver.setblocking(False)
    sender.setblocking(False)
    handlers = {n: signal.signal(n, lambda *_: None) for n in (*_PASSED_ON, signal.SIGCHLD)}
    former = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    try:
        yield receiver
    finally:
        signal.set_wakeup_fd(former)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        receiver.close()
        sender.close()


@contextlib.contextmanager
def _inherited_secret(total: int, count: int) -> Iterator[int | None]:
    """The descriptor that the processes inherit; None if they read a file, or there is no secret.

    It stays open here: a process whose parent has closed it finds it through its ancestors.
    """
    secret = _secret.given()
    if os.environ.get(_secret.FILE_VARIABLE) or (secret is None and count < total):
        yield None  # several launchers would make several secrets
        return
    descriptor = _secret.hand_over(secret or _secret.make())
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _local_coordinator() -> Iterator[str]:
    """The address of a port of this machine, reserved until rank 0 listens on it.

    The port stays bound here, without listening. JAX's coordinator can still bind it, since gRPC
    sets SO_REUSEPORT as we do and has the same user; the kernel refuses it to all others.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{holder.getsockname()[1]}"


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not is_number(port, 1, 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is not host:port")
    return text


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(
        prog="jaxcoll launch",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="jaxcoll launch -n N [options] (script.py | -m module | -- command) [arguments]",
        epilog="The launcher sets in each process the variables by which JAX detects a Slurm job,\n"
        "JAX_COORDINATOR_ADDRESS, JAX_LOCAL_DEVICE_IDS and JAXCOLL_SECRET_FD and, unless they are\n"
        "set already, JAX_PLATFORMS=cpu and PYTHONUNBUFFERED=1. Standard input is empty.\n"
        "Prefixes are coloured on a terminal, unless NO_COLOR is set.",
    )
    add = command.add_argument
    add(
        "-n",
        type=whole(1, _PROCESSES_MAX),
        required=True,
        metavar="N",
        help="number of processes to start",
    )
    add(
        "--devices-per-process",
        type=whole(1, _PROCESSES_MAX),
        metavar="D",
        help="CPU devices per process, set in XLA_FLAGS (default: the value in XLA_FLAGS, or 1)",
    )
    add(
        "--coordinator",
        type=_address,
        metavar="HOST:PORT",
        help="where rank 0 listens (default: a free port of 127.0.0.1)",
    )
    add(
        "--total",
        type=whole(1, _PROCESSES_MAX),
        metavar="T",
        help="processes of the whole job, if launchers with the same --coordinator start others on "
        "other hosts (default: N)",
    )
    add(
        "--first",
        type=whole(0, _PROCESSES_MAX),
        default=0,
        metavar="R",
        help="rank of the first process (default: 0)",
    )
    add(
        "--install",
        action="store_true",
        help="serve all collectives of the program, as if it called jaxcoll.install()",
    )
    add(
        "--keep-memory",
        action="store_true",
        help="keep freed memory in the processes: JAXCOLL_KEEP_MEMORY=1",
    )
    add("-m", nargs=argparse.REMAINDER, metavar="MODULE", help="run a Python module")
    add("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return command


def _command(options: argparse.Namespace) -> list[str]:
    """The command that each process runs; empty if nothing was given."""
    if options.m is not None:
        return [sys.executable, "-m", *options.m] if options.m else []
    if options.command[:1] == ["--"]:
        return options.command[1:]
    return [sys.executable, *options.command] if options.command else []


def main(argv: list[str] | None = None) -> int:
    """Runs the job that the command line describes; returns its exit code."""
    command_line = parser()
    options = command_line.parse_args(argv)
    command = _command(options)
    if not command:
        command_line.error("give a program to run: a script, -m module, or -- command")
    total = options.total or options.n
    if not options.first <= total - options.n:
        command_line.error(
            f"--first {options.first} with -n {options.n} does not fit --total {total}"
        )
    if total > options.n and not options.coordinator:
        command_line.error("--total needs --coordinator: the other processes must find rank 0")
    # Check the secret and the table before any process starts, since each would refuse them. The
    # environment variables have been checked already.
    _secret.take()
    if _environment.values()["JAXCOLL_TUNING"] is not None:
        table.load()
    with contextlib.ExitStack() as stack:
        address = options.coordinator or stack.enter_context(_local_coordinator())
        secret = stack.enter_context(_inherited_secret(total, options.n))
        devices = options.devices_per_process
        job = Job(
            *(command, options.n, total, options.first, address, devices, secret),
            install=options.install,
            keep_memory=options.keep_memory,
        )
        return _Launcher(job).run()
