"""Starts Python scripts in processes that are forked from one that has imported JAX.

    process = start("print(jax.__version__)", [], environment)
    process.stdout.read(), process.wait()

Importing JAX takes a process longer than what most tests have it do. A nursery is a process that
has imported JAX, and what jaxcoll imports beside its own modules; it has one thread and no back
end. It forks a child for each script. The child has its own environment, arguments, standard
streams, process group and exit code, and imports jaxcoll itself, as a fresh Python does.

Forked processes share addresses and the seed of `hash`. Ranks must agree without either, so every
worker of pytest has two nurseries, and neighbours come from different ones.

`start` returns None where a nursery cannot give what a fresh Python would have, since a variable is
read when JAX is imported, for example; then the caller starts Python itself.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import types
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NURSERIES = 2
_START_S = 120.0  # for a nursery to import JAX beside compilers
_LONGEST_REQUEST_BYTES = 100_000  # of one message; sockets take twice as much

ROOT = Path(__file__).parents[2]
# These are read when they are used, not when JAX is imported; others must be the nursery's own.
_LATE_VARIABLES = {
    *("XLA_FLAGS", "PJRT_NPROC", "NPROC", "JAX_COORDINATOR_BIND_ADDRESS"),
    *("PYTHONPATH", "PYTHONUNBUFFERED", "PYTEST_CURRENT_TEST"),
}
_LATE_PREFIXES = ("JAXCOLL_", "TEST_")


# --- the tests' side ----------------------------------------------------------------------------


class Process:
    """A child of a nursery. Its attributes and methods are those of subprocess.Popen.

    own_stderr: stderr is a pipe of its own; else it goes where stdout goes.

    Raises: OSError if the nursery has ended.
    """

    def __init__(
        self, nursery: socket.socket, request: dict[str, object], own_stderr: bool
    ) -> None:
        self.returncode: int | None = None
        self._waiting = threading.Lock()
        self._unread = b""
        self._status, status = socket.socketpair()
        stdin, stdin_ours = os.pipe()
        stdout_ours, stdout = os.pipe()
        stderr_ours, stderr = os.pipe()
        self.stdin = os.fdopen(stdin_ours, "w")
        self.stdout = os.fdopen(stdout_ours, errors="replace")
        self.stderr = os.fdopen(stderr_ours, errors="replace")
        try:
            message = [json.dumps(request).encode()]
            outputs = [stdout, stderr if own_stderr else stdout]
            socket.send_fds(nursery, message, [stdin, *outputs, status.fileno()])
            status.close()  # so that the nursery's end is seen
            pid = self._read_number(_START_S)
            if pid is None:
                raise OSError("the nursery has ended")
        except OSError:
            for ours in (self.stdin, self.stdout, self.stderr, self._status):
                ours.close()
            raise
        finally:
            status.close()
            for theirs in (stdin, stdout, stderr):
                os.close(theirs)
        if not own_stderr:
            self.stderr.close()
        self.pid = pid

    def _read_number(self, timeout_s: float | None) -> int | None:
        """What the nursery says next: None after the timeout, or if it has ended."""
        while b"\n" not in self._unread:
            if not select.select([self._status], [], [], timeout_s)[0]:
                return None
            if not (more := self._status.recv(64)):
                return None
            self._unread += more
        line, _, self._unread = self._unread.partition(b"\n")
        return int(line)

    def poll(self) -> int | None:
        """The exit code, -N for signal N; None while it runs."""
        if self._waiting.acquire(blocking=False):
            try:
                self._look(0)
            finally:
                self._waiting.release()
        return self.returncode

    def wait(self) -> int | None:
        """The exit code, when it has ended; None if the nursery has ended before."""
        with self._waiting:
            self._look(None)
            return self.returncode

    def _look(self, timeout_s: float | None) -> None:
        if self.returncode is None:
            self.returncode = self._read_number(timeout_s)
            if self.returncode is not None:
                self._status.close()


class _Nursery:
    def __init__(self) -> None:
        self._asked = threading.Lock()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.environment = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}
        self.environment["JAX_PLATFORMS"] = "cpu"
        serve = f"import sys; sys.path.insert(1, {str(ROOT / 'tests')!r}); "
        serve += "from support import warm_python; warm_python.serve(int(sys.argv[1]))"
        self._process = subprocess.Popen(
            [sys.executable, "-c", serve, str(theirs.fileno())],
            # NumPy's BLAS starts threads when it is imported, else; they would not survive a fork.
            env={**self.environment, "PYTHONUNBUFFERED": "1", "OPENBLAS_NUM_THREADS": "1"},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            process_group=0,
        )
        theirs.close()

    def serves(self, environment: Mapping[str, str]) -> bool:
        """Whether a child of this nursery is what a fresh Python in that environment would be."""
        different = dict(environment.items() ^ self.environment.items())
        return all(name in _LATE_VARIABLES or name.startswith(_LATE_PREFIXES) for name in different)

    def start(self, request: dict[str, object], own_stderr: bool) -> Process:
        with self._asked:
            return Process(self._control, request, own_stderr)

    def close(self) -> None:
        self._control.close()
        self._process.wait()


_nurseries: list[_Nursery] = []


def start(
    script: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    *,
    command: Sequence[str] = ("-c",),
    place: int = 0,
    own_stderr: bool = False,
    warnings_are_errors: bool = False,
) -> Process | None:
    """Runs `python -c script arguments...` in a process group of its own, if a nursery can.

    Scripts of different `place` come from different nurseries. The child thinks that Python was
    started with `command`.
    """
    request = {
        "script": script,
        "arguments": [*arguments],
        "command": [*command],
        "environment": dict(environment),
        "folder": os.getcwd(),
        "warnings_are_errors": warnings_are_errors,
    }
    if len(json.dumps(request)) > _LONGEST_REQUEST_BYTES:
        return None
    while len(_nurseries) < NURSERIES:
        _nurseries.append(_Nursery())
    nursery = _nurseries[place % NURSERIES]
    if not nursery.serves(environment):
        return None
    try:
        return nursery.start(request, own_stderr)
    except OSError:  # it has said why on stderr; test_warm_python.py fails, the others take longer
        return None


def run(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    timeout_s: float,
    warnings_are_errors: bool = False,
    fresh: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Runs `python command...` to its end, with nothing to read, in a child of a nursery if the
    command begins with -c or -m and need not be `fresh`.

    Raises: subprocess.TimeoutExpired, when it has been killed.
    """
    option, script, *arguments = command
    process = None
    if option == "-m":
        script = f"import runpy; runpy.run_module({script!r}, run_name='__main__', alter_sys=True)"
    if option in ("-c", "-m") and not fresh:
        process = start(
            script,
            arguments,
            environment,
            command=command,
            own_stderr=True,
            warnings_are_errors=warnings_are_errors,
        )
    whole = [sys.executable, *(["-W", "error"] if warnings_are_errors else []), *command]
    if process is None:
        return subprocess.run(
            whole,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    late = threading.Event()

    def kill() -> None:
        late.set()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    errors: list[str] = []
    reader = threading.Thread(target=lambda: errors.append(process.stderr.read()))
    killer = threading.Timer(timeout_s, kill)
    with process.stdin, process.stdout, process.stderr:
        process.stdin.close()
        killer.start()
        reader.start()
        output = process.stdout.read()
        reader.join()
        code = process.wait()
    killer.cancel()
    killer.join()
    if late.is_set():
        raise subprocess.TimeoutExpired(whole, timeout_s, output, errors[0])
    if code is None:
        raise OSError("the nursery has ended")
    return subprocess.CompletedProcess(whole, code, output, errors[0])


def close() -> None:
    """Ends the nurseries and every process that they have started."""
    while _nurseries:
        _nurseries.pop().close()


# --- the nursery --------------------------------------------------------------------------------


def serve(control_number: int) -> None:
    """Is a nursery until there is nobody left to ask, then ends the process.

    In a child it runs the script. What the script raises passes through to the interpreter, which
    does with it what it does in `python -c`.
    """
    added_paths = _python_path(os.environ)
    paths = [path for path in sys.path[2:] if path not in added_paths]
    before = dict(os.environ)
    importlib.import_module("jax")
    added = {k: v for k, v in os.environ.items() if before.get(k) != v}
    for name in _modules_of_a_program(paths):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a child that collects garbage would copy the pages of all these objects
    assert len(os.listdir("/proc/self/task")) == 1, "a nursery that has threads cannot be forked"
    request = _next_child(socket.socket(fileno=control_number))
    os.environ.clear()
    os.environ.update(request["environment"] | added)
    os.chdir(request["folder"])
    sys.path[:] = ["", *_python_path(request["environment"]), *paths]
    sys.argv[:] = [request["command"][0], *request["arguments"]]
    sys.orig_argv[:] = [sys.executable, *request["command"]]
    if request["warnings_are_errors"]:
        sys.warnoptions[:] = ["error"]
        warnings.resetwarnings()
        warnings.simplefilter("error")
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    exec(compile(request["script"], "<string>", "exec"), main.__dict__)


def _python_path(environment: Mapping[str, str]) -> list[str]:
    paths = environment.get("PYTHONPATH", "").split(os.pathsep)
    return [*dict.fromkeys(os.path.abspath(path) for path in paths if path)]


def _modules_of_a_program(paths: list[str]) -> list[str]:
    """What a small program imports beside jaxcoll's own modules, in that order."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        try:
            known = set(sys.modules)
            sys.path[:] = [str(ROOT), *paths]
            importlib.import_module("jaxcoll")
            sys.modules["jax"].jit(lambda x: x + 1)(1.0).block_until_ready()
            found = [name for name in sys.modules if name not in known]
            os.write(writing, "\n".join(n for n in found if not n.startswith("jaxcoll")).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        names = pipe.read().split()
    os.wait()
    return names


def _next_child(control: socket.socket) -> dict[str, Any]:
    """Forks a child for each request, in which alone it returns, and tells how children end."""
    status_of: dict[int, socket.socket] = {}  # of each child that runs
    woken, waking = socket.socketpair()
    waking.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waking.fileno(), warn_on_full_buffer=False)
    while True:
        readable, _, _ = select.select([control, woken], [], [])
        if woken in readable:
            woken.recv(4096)
            _tell_ends(status_of)
        if control not in readable:
            continue
        message, descriptors, _, _ = socket.recv_fds(control, 2 * _LONGEST_REQUEST_BYTES, 4)
        if not message:
            for pid in status_of:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
            while status_of:
                os.waitpid(status_of.popitem()[0], 0)
            os._exit(0)
        *streams, status = descriptors
        if (pid := os.fork()) == 0:
            os.setpgid(0, 0)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for number, descriptor in enumerate(streams):
                os.dup2(descriptor, number)
            for descriptor in descriptors:
                os.close(descriptor)
            for ours in (control, woken, waking, *status_of.values()):
                ours.close()
            return json.loads(message)
        with contextlib.suppress(OSError):  # the child has done it, or has ended
            os.setpgid(pid, pid)
        for descriptor in streams:
            os.close(descriptor)
        status_of[pid] = socket.socket(fileno=status)
        _tell(status_of[pid], pid)


def _tell(status: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # nobody wants to know
        status.sendall(b"%d\n" % number, socket.MSG_NOSIGNAL)


def _tell_ends(status_of: dict[int, socket.socket]) -> None:
    while status_of:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        with status_of.pop(pid) as ended:
            _tell(ended, os.waitstatus_to_exitcode(status))
