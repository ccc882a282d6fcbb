"""The job's secret: how a process gets it, and how it signs the values in the job's store.

The store of `jax.distributed` answers anyone who reaches its coordinator, so it cannot protect a
secret. A launcher therefore passes the secret outside the store:

- JAXCOLL_SECRET_FD names a descriptor that the process has inherited. `jaxcoll launch` makes the
  secret and does that. jaxcoll reads it at import, closes it and removes the variable, so that
  child processes do not have it.
- JAXCOLL_SECRET_FILE names a file that only this user may read.

A process with a secret signs the values that it writes into the store, and accepts only signed
ones. Only `take` and `hand_over` do I/O.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import select
import stat
import time
import zlib
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path

from jaxcoll._errors import SettingError
from jaxcoll._job.host import LinkError
from jaxcoll._job.store_thread import Store

FILE_VARIABLE, FD_VARIABLE = "JAXCOLL_SECRET_FILE", "JAXCOLL_SECRET_FD"
ADVICE = "(umask 077; head -c 32 /dev/urandom | base64 > FILE) makes one"
NONE_GIVEN = "none was given (neither JAXCOLL_SECRET_FILE nor JAXCOLL_SECRET_FD)"

_CONTENT_BYTES_MIN, _CONTENT_BYTES_MAX = 32, 4096
_COMPRESSED_BYTES_MIN = 32  # of 32 random hexadecimal digits: 38 and more; of a word 8 times: 18
_MEMFD_NAME = "jaxcoll-secret"
_FD_MIN = 100  # out of the way of shells, which take low numbers for themselves
_PIPE_S = 10.0
_SYMLINKS_MAX = 40
_ANCESTORS_MAX = 64


@dataclass(frozen=True)
class Secret:
    """A secret that was handed over. Its text form shows nothing of it."""

    content: bytes = field(repr=False)
    source: str  # for people

    def key(self, purpose: str) -> bytes:
        """32 bytes for one purpose, of which no other purpose's can be had."""
        # A line's end comes and goes as files are copied.
        job = hmac.digest(b"jaxcoll secret", self.content.rstrip(b"\r\n"), "sha256")
        return hmac.digest(job, purpose.encode(), "sha256")

    @property
    def name(self) -> str:
        """Equal for equal secrets; reveals nothing else about them."""
        return self.key("name").hex()[:12]


_given: Secret | None = None


def given() -> Secret | None:
    """The secret that `take` has found."""
    return _given


def take(environ: MutableMapping[str, str] = os.environ) -> None:
    """Reads what this process was given, if anything. Called once, by `import jaxcoll`.

    Raises: SettingError naming the variable, what is wrong and how to make a good one.
    """
    global _given
    path, number = environ.get(FILE_VARIABLE), environ.get(FD_VARIABLE)
    if path and number:
        raise SettingError(
            f"{FILE_VARIABLE}={path!r} and {FD_VARIABLE}={number} are both set; unset one of them"
        )
    if path:
        _given = _from_file(path)
    elif number:
        _given = _from_descriptor(int(number))
        del environ[FD_VARIABLE]  # it is closed; the number may come to stand for anything


def make() -> Secret:
    """A new one."""
    return Secret(base64.b64encode(secrets.token_bytes(32)), "made here")


def hand_over(secret: Secret) -> int:
    """A descriptor for processes that inherit it, of a sealed file in memory; closed on exec."""
    descriptor = os.memfd_create(_MEMFD_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.write(descriptor, secret.content)
        os.fchmod(descriptor, 0o400)
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        with contextlib.suppress(OSError):  # fewer descriptors than that are allowed
            high = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _FD_MIN)
            os.close(descriptor)
            return high
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


# --- reading it ---------------------------------------------------------------------------------


def _checked(content: bytes, source: str) -> Secret:
    """Raises: ValueError for what can be guessed."""
    if len(content) < _CONTENT_BYTES_MIN:
        raise ValueError(f"it has {len(content)} bytes; a secret has {_CONTENT_BYTES_MIN} or more")
    if len(content) > _CONTENT_BYTES_MAX:
        raise ValueError(f"it has more than {_CONTENT_BYTES_MAX} bytes; that is not a secret")
    if len(zlib.compress(content.strip(), 9)) < _COMPRESSED_BYTES_MIN:
        raise ValueError("it repeats itself, so it could be guessed")
    return Secret(content, source)


def _check_private(status: os.stat_result) -> None:
    """Raises: ValueError if others may read, or could have written, a file of this status."""
    if status.st_uid not in (os.geteuid(), 0):
        raise ValueError(f"it belongs to uid {status.st_uid}, this process to {os.geteuid()}")
    others = stat.S_IMODE(status.st_mode) & 0o077
    # Kubernetes mounts a secret for a process that is not root so: 0440, of root and its fsGroup.
    if others == 0o040 and status.st_uid == 0 != os.geteuid():
        others = 0
    if others:
        mode = stat.S_IMODE(status.st_mode)
        raise ValueError(f"its mode is {mode:04o}, so others can access it; run chmod 600 on it")


def _from_file(path: str) -> Secret:
    try:
        with contextlib.closing(_Walk(path)) as walk:
            descriptor = walk.open()
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError(f"it is not a regular file (for a pipe there is {FD_VARIABLE})")
            _check_private(status)
            return _checked(_read_at_most(descriptor), f"{FILE_VARIABLE}={path}")
        finally:
            os.close(descriptor)
    except OSError as error:
        reason = error.strerror or str(error)
    except ValueError as error:
        reason = str(error)
    raise SettingError(f"{FILE_VARIABLE}={path!r} cannot be used: {reason}. {ADVICE}")


class _Walk:
    """Follows a path as the kernel does, but no symbolic link that another user has made.

    Kubernetes' mounts are full of links, all of root's. Each step holds a descriptor, so that
    nothing can be exchanged between a check and its use.
    """

    def __init__(self, path: str) -> None:
        self._rest: list[str] = []  # what is to be followed, the next one last
        self._add(os.path.join(os.getcwd(), path))
        self._folder = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._links = 0

    def _add(self, path: str) -> None:
        self._rest += [part for part in reversed(path.split("/")) if part not in ("", ".")]

    def open(self) -> int:
        """The file at the end. Raises: OSError, ValueError."""
        while self._rest:
            name = self._rest.pop()
            if not self._follow(name):
                if not self._rest:
                    # Not blocking, for a pipe would.
                    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                    return os.open(name, flags | os.O_NOCTTY, dir_fd=self._folder)
                self._enter(name)
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))

    def _enter(self, name: str) -> None:
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        folder = os.open(name, flags, dir_fd=self._folder)
        os.close(self._folder)
        self._folder = folder

    def _follow(self, name: str) -> bool:
        """Replaces a link by where it leads; False if `name` is none."""
        link = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._folder)
        try:
            status = os.fstat(link)
            if not stat.S_ISLNK(status.st_mode):
                return False
            if status.st_uid not in _trusted_owners():
                raise ValueError(f"the symbolic link {name!r} on its way is of uid {status.st_uid}")
            target = os.readlink("", dir_fd=link)
        finally:
            os.close(link)
        self._links += 1
        if self._links > _SYMLINKS_MAX:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if target.startswith("/"):
            os.close(self._folder)
            self._folder = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._add(target)
        return True

    def close(self) -> None:
        os.close(self._folder)


def _trusted_owners() -> set[int]:
    """Root, this process, and in a user namespace without the host's root what stands for it."""
    owners = {0, os.geteuid()}
    with contextlib.suppress(OSError, ValueError):
        lines = Path("/proc/self/uid_map").read_text().splitlines()
        mapped = [int(line.split()[2]) for line in lines]
        if sum(mapped) < 2**32 - 1:
            owners.add(int(Path("/proc/sys/kernel/overflowuid").read_text()))
    return owners


def _from_descriptor(number: int) -> Secret:
    try:
        kept, source = number, f"descriptor {number} ({FD_VARIABLE})"
        try:
            os.fstat(number)
        except OSError:
            kept = _of_an_ancestor(number)  # a program in between has closed it
        try:
            if _is_launchers(f"/proc/self/fd/{kept}"):
                source = f"descriptor {number}, of jaxcoll launch"
            status = os.fstat(kept)
            if stat.S_ISREG(status.st_mode):
                if status.st_nlink:  # else it has no name that others could open
                    _check_private(status)
                return _checked(os.pread(kept, _CONTENT_BYTES_MAX + 1, 0), source)
            if not stat.S_ISFIFO(status.st_mode) and not stat.S_ISSOCK(status.st_mode):
                raise ValueError("it is neither a file nor a pipe")
            return _checked(_read_at_most(kept), source)
        finally:
            os.close(kept)
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno == errno.EBADF:
            reason = (
                "it is not open here; a program between the launcher and this one has closed it, "
                f"or this process has read it before. {FILE_VARIABLE} does not depend on that"
            )
    except ValueError as error:
        reason = str(error)
    raise SettingError(f"{FD_VARIABLE}={number} cannot be used: {reason}")


def _is_launchers(path: str) -> bool:
    try:
        return os.readlink(path).startswith(f"/memfd:{_MEMFD_NAME}")
    except OSError:
        return False


def _of_an_ancestor(number: int) -> int:
    """The secret that `jaxcoll launch` has handed over under that number, from an ancestor that
    still has it.

    The kernel lets nobody but the same user, and root, open another process's descriptors.
    Raises: OSError if none has it.
    """
    for pid in _ancestors():
        path = f"/proc/{pid}/fd/{number}"
        if _is_launchers(path):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if os.fstat(descriptor).st_uid in (os.geteuid(), 0):
                return descriptor
            os.close(descriptor)
    raise OSError(errno.EBADF, os.strerror(errno.EBADF))


def _ancestors() -> Iterator[int]:
    pid = os.getppid()
    for _ in range(_ANCESTORS_MAX):
        if pid <= 0:
            return
        yield pid
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            return


def _read_at_most(descriptor: int) -> bytes:
    """Up to its end, or one byte more than a secret may have. Raises: ValueError if none comes."""
    end = time.monotonic() + _PIPE_S
    content = b""
    while len(content) <= _CONTENT_BYTES_MAX:
        wait_s = max(0.0, end - time.monotonic())
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        if not poll.poll(wait_s * 1000):
            raise ValueError(f"its writer has not closed it within {_PIPE_S:g} s")
        part = os.read(descriptor, _CONTENT_BYTES_MAX + 1 - len(content))
        if not part:
            break
        content += part
    return content


# --- signing the store ----------------------------------------------------------------------------

_MAGIC = b"\0jaxcoll-signed\n"  # no value that is not signed begins so
_MAC_BYTES = hashlib.sha256().digest_size
_HEAD_BYTES_MAX = 4096
_UNPRINTABLE = re.compile(r"[^ -~]")


class SecretError(LinkError):
    """The processes of a job have not the same secret, or a stranger writes into its store."""


class SignedStore:
    """A job's store in which whoever has been given a secret signs what it writes.

    A process without one writes as it comes, and refuses what is signed: that is how processes
    find that they disagree, at the first value that one reads of another. Any thread.

    Args:
      who: this process, for people.
    """

    def __init__(self, store: Store, secret: Secret | None, who: str) -> None:
        self._store = store
        self._secret = secret
        self._who = who

    def set(self, key: str, value: bytes) -> None:
        """Sets a key for good; if it was set before, that value stands."""
        if self._secret is not None:
            head = json.dumps(
                {"secret": self._secret.name, "source": self._secret.source, "who": self._who}
            ).encode()
            value = _MAGIC + head + b"\n" + self._mac(key, head, value) + value
        self._store.set(key, value)

    def wait(self, key: str, deadline_s: float) -> bytes:
        """The value of a key. Raises: TimeoutError; SecretError if it cannot be trusted."""
        return self._trusted(key, self._store.wait(key, deadline_s))

    def list(self, folder: str) -> dict[str, bytes]:
        """The keys that are set below `folder` and their values; without what is not trusted."""
        found = {}
        for key, value in self._store.list(folder).items():
            with contextlib.suppress(SecretError):
                found[key] = self._trusted(key, value)
        return found

    def _trusted(self, key: str, value: bytes) -> bytes:
        if not value.startswith(_MAGIC):
            if self._secret is None:
                return value
            raise SecretError(
                f"{self._named(self._who, self._secret)}, but {key!r} in the job's store was "
                f"written by a process that has none, or by a stranger. {_EVERYBODY}"
            )
        head, _, rest = value[len(_MAGIC) :].partition(b"\n")
        their_name, theirs = self._read_head(key, head)
        if self._secret is None:
            raise SecretError(f"{theirs}, but {self._who} has none: {NONE_GIVEN}. {_EVERYBODY}")
        own = self._named(self._who, self._secret)
        if their_name != self._secret.name:
            raise SecretError(f"{theirs}, but {own}: they are different. {_EVERYBODY}")
        if not hmac.compare_digest(rest[:_MAC_BYTES], self._mac(key, head, rest[_MAC_BYTES:])):
            raise SecretError(
                f"{key!r} in the job's store was not written by a process of this job: its "
                "signature is wrong. Somebody else writes to the coordinator of jax.distributed"
            )
        return rest[_MAC_BYTES:]

    def _mac(self, key: str, head: bytes, value: bytes) -> bytes:
        assert self._secret is not None
        mac = hmac.new(self._secret.key("store"), digestmod="sha256")
        for part in (key.encode(), head):
            mac.update(len(part).to_bytes(8, "big") + part)
        mac.update(value)
        return mac.digest()

    @staticmethod
    def _named(who: str, secret: Secret) -> str:
        return f"{who} has the secret {secret.name} ({secret.source})"

    @staticmethod
    def _read_head(key: str, head: bytes) -> tuple[str, str]:
        """The name of the writer's secret, and a text about both; from anybody at all."""
        try:
            if len(head) > _HEAD_BYTES_MAX:
                raise ValueError
            fields = json.loads(head)
            name, source, who = (
                _UNPRINTABLE.sub("?", str(fields[f]))[:300] for f in ("secret", "source", "who")
            )
        except (ValueError, TypeError, KeyError, RecursionError):
            raise SecretError(f"{key!r} in the job's store cannot be read") from None
        return name, f"{who} has the secret {name} ({source})"


_EVERYBODY = (
    f"Give every process of the job the same: {FILE_VARIABLE} or {FD_VARIABLE} for all, or for none"
)
