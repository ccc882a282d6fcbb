"""The Unix sockets at which the processes of this user answer, and how they are asked.

A socket's name tells the job, the process's index and its pid, so that a process that does not
answer can be named. A process that ends removes its own. One that was killed leaves it: that is how
`ask` knows of it. It is removed once no process of its job listens any more.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
import struct
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from jaxcoll._errors import SnapshotError
from jaxcoll._job import host
from jaxcoll._job.snapshot import BYTES_MAX, Absent, Snapshot, parse
from jaxcoll._text import printable

REQUEST = b"snapshot\n"
ANSWER_S = 2.0
_ASK_AT_ONCE = 64
_PATH_BYTES_MAX = 107  # of a Unix socket, sun_path of unix(7) less its zero
_NAME = re.compile(r"([0-9a-f]{16})-([0-9]{1,9})-([0-9]{1,9})\.sock")
_CREDENTIALS = struct.Struct("3i")
# Errors of connecting to a process, and of hearing from it, that say something of the process. Any
# other OSError is of the path or of the asking process.
_ENDED = (ConnectionRefusedError, FileNotFoundError)
_SILENT = (TimeoutError, BlockingIOError, ConnectionError)


@dataclass(frozen=True)
class Address:
    """A socket in the file system and the process that has made it."""

    path: Path
    job: str
    process: int
    pid: int


def peer_uid(connection: socket.socket) -> int:
    """The user at the other end of a Unix socket, as the kernel knows it."""
    options = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(options)[1])


def folders() -> list[Path]:
    """Where sockets may be; a process makes its own in the first one that it can use."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    found = [Path(runtime) / "jaxcoll"] if runtime and os.path.isabs(runtime) else []
    return [*found, Path(f"/tmp/jaxcoll-{os.getuid()}")]


def trouble_with(folder: Path) -> str:
    """Why a folder cannot be trusted; "" if it can. In /tmp anybody may make one of that name."""
    try:
        found = os.lstat(folder)
    except OSError as error:
        return f"{folder}: {error.strerror}"
    if not stat.S_ISDIR(found.st_mode):
        return f"{folder} is not a folder"
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        return f"{folder} is open to other users"
    return ""


def listen(job: str, process: int) -> tuple[socket.socket, Path]:
    """A listening socket for this process, and its path.

    Raises: OSError if there can be none.
    """
    trouble = ""
    for folder in folders():
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            trouble = f"{folder}: {error.strerror}"
            continue
        if trouble := trouble_with(folder):
            continue
        path = folder / f"{job}-{process}-{os.getpid()}.sock"
        if len(os.fsencode(path)) > _PATH_BYTES_MAX:
            trouble = f"{folder}: its path is too long for a socket ({_PATH_BYTES_MAX} bytes)"
            continue
        fresh = folder / f".{os.getpid()}"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            fresh.unlink(missing_ok=True)
            listener.bind(os.fspath(fresh))
            os.chmod(fresh, 0o600)  # the folder keeps others out meanwhile
            listener.listen(8)
            fresh.rename(path)  # whoever finds it finds it listening
        except OSError as error:
            listener.close()
            trouble = f"{path}: {error}"
            continue
        return listener, path
    raise OSError(trouble)


def addresses() -> Iterator[Address]:
    """All sockets of this user's processes, be they alive or not."""
    for folder in folders():
        if trouble_with(folder):
            continue
        try:
            paths = sorted(folder.iterdir())
        except OSError:  # it has been removed meanwhile
            continue
        for path in paths:
            if match := _NAME.fullmatch(path.name):
                yield Address(path, match[1], int(match[2]), int(match[3]))


def jobs() -> dict[str, list[Address]]:
    """The sockets of each job; removes those of jobs that are over."""
    by_job: defaultdict[str, list[Address]] = defaultdict(list)
    for address in addresses():
        by_job[address.job].append(address)
    alive = {}
    for job, found in by_job.items():
        if any(_listens(address) for address in found):
            alive[job] = found
            continue
        for address in found:
            with contextlib.suppress(OSError):
                address.path.unlink()
    return alive


def _listens(address: Address) -> bool:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(ANSWER_S)
            client.connect(os.fspath(address.path))
    except _ENDED:
        return False
    except OSError:
        return True  # it is busy, or stopped with a full queue; or it cannot be known
    return True


def ask(found: list[Address]) -> tuple[list[Snapshot], list[Absent], list[str]]:
    """The snapshots of processes, all asked at once; who does not answer; and what is wrong."""
    snapshots, absent, wrong = [], [], []
    with ThreadPoolExecutor(min(len(found), _ASK_AT_ONCE) or 1) as pool:
        answers = list(pool.map(_ask_one, found))
    for address, answer in zip(found, answers, strict=True):
        if isinstance(answer, Snapshot):
            snapshots.append(answer)
        elif isinstance(answer, Absent):
            absent.append(answer)
        else:
            wrong.append(f"process {address.process} (pid {address.pid}): {answer}")
    return snapshots, absent, wrong


def _ask_one(address: Address) -> Snapshot | Absent | SnapshotError:
    end = time.monotonic() + ANSWER_S
    chunks: list[bytes] = []
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(ANSWER_S)
            client.connect(os.fspath(address.path))
            client.sendall(REQUEST)
            while True:
                client.settimeout(max(0.001, end - time.monotonic()))
                chunk = client.recv(1 << 16)
                chunks.append(chunk)
                if not chunk:
                    break
                if sum(map(len, chunks)) > BYTES_MAX:
                    return SnapshotError(f"its answer has more than {BYTES_MAX} bytes")
    except _ENDED:
        words = "nobody listens at its socket"
        return Absent(address.process, "dead", address.pid, host.hostname(), words)
    except _SILENT:
        state, words = look_at(address.pid)
        return Absent(address.process, state, address.pid, host.hostname(), words)
    except OSError as error:
        reason = error.strerror or str(error)
        return SnapshotError(f"its socket {printable(str(address.path))} cannot be used: {reason}")
    try:
        return parse(b"".join(chunks))
    except SnapshotError as error:
        return error


_STATES = {
    "R": "it runs",
    "S": "it sleeps",
    "D": "it waits for a device or a file system",
    "T": "it was stopped by a signal",
    "t": "a debugger has stopped it",
    "Z": "it has ended, and its parent has not noticed",
}


def look_at(pid: int) -> tuple[str, str]:
    """Asks /proc about a process that does not answer. Returns `Absent.state`, and words."""
    try:
        line = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "dead", f"there is no process {pid}"
    letter = line.rpartition(")")[2].split()[0]
    words = f"state {letter}: {_STATES.get(letter, 'unknown')}"
    if letter in "Tt":
        return "stopped", words
    if letter in "ZX":
        return "dead", words
    with contextlib.suppress(OSError):
        inside = Path(f"/proc/{pid}/wchan").read_text().strip()
        words += f", in {inside}" if inside not in ("", "0") else ""
    held = "; a call in C may hold Python's interpreter lock" if letter in "RS" else ""
    return "silent", f"no answer within {ANSWER_S:g} s; {words}{held}"
