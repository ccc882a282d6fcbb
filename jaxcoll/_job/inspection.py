"""The thread that tells others what this process is doing.

It answers at a Unix socket (`sockets`), gives the engine the words that only Python has, and writes
this process's dump when a communicator has failed. It is a Python thread and needs the
interpreter's lock: while a call in C keeps that, nobody answers, and the one who asks says so.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import select
import socket
import threading
import time
from pathlib import Path

from jaxcoll import _environment
from jaxcoll._errors import FileError, SnapshotError
from jaxcoll._job import dumps, own_snapshot, sockets, stacks
from jaxcoll._job.facts import where
from jaxcoll._job.store_thread import Store
from jaxcoll._native import native

_CLIENT_S = 1.0  # for a client to say what it wants, and to take the answer
_END_S = 15.0  # for the thread to end; each of its waits is shorter
_JOB_KEY = "jaxcoll/1/job"
_STORE_S = 5.0
_OTHERS_S = 2.0  # for the others to write their dumps
_LOOK_S = 0.1

_log = logging.getLogger("jaxcoll.inspect")


class Inspection:
    """One per process. Thread rule: `close` by any thread once the program has ended; the rest is
    its own thread's, and `close` continues with it once that thread has ended.

    Args:
      index, count: this process's index in its job, and the number of processes.
      store: the job's store, in which the processes agree on the job's name; None: there are no
        others.
    """

    def __init__(self, index: int, count: int, store: Store | None) -> None:
        self._index, self._count, self._store = index, count, store
        self._job = ""
        self._listener: socket.socket | None = None
        self._path: Path | None = None
        self._bell = -1
        self._dumped = False
        self._folder: Path | None = None  # where the verdict is due
        self._verdict_at = 0.0  # when it is written, even if others' dumps are missing
        self._ending = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="jaxcoll-inspect", daemon=True)

    def start(self) -> None:
        """Starts the thread. A process that cannot be inspected runs nevertheless."""
        try:
            self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._thread.start()
        except (OSError, RuntimeError) as error:  # no descriptor, no thread
            _log.info("`jaxcoll inspect` cannot reach this process: %s", error)
            self._ready.set()

    def watch_engine(self) -> None:
        """The engine between processes has been started: it rings from now on."""
        if self._bell >= 0:
            native.comm_set_watcher(self._bell)

    def close(self, left: str = "") -> None:
        """Ends the thread, writes the dump and the verdict that are due, and removes the socket.

        Args:
          left: how the process ends.
        """
        self._ending.set()
        try:
            if self._thread.is_alive():
                os.eventfd_write(self._bell, 1)
                self._thread.join(_END_S)
            if self._thread.is_alive():
                _log.info("inspection: its thread has not ended within %g s", _END_S)
                return
            if own_snapshot.has_failed() or own_snapshot.exception():
                self._dump(left)
            self._judge(wait=False)
        except Exception as error:  # the links have to end after this
            _log.warning("there is no dump of this process: %s: %s", type(error).__name__, error)
        finally:
            self._stop_listening()

    def _stop_listening(self) -> None:
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()
        if self._listener is not None:
            self._listener.close()

    def forget(self) -> None:
        """In a process that was forked off: the socket is its parent's."""
        self._path = None
        self._stop_listening()

    def _name_job(self) -> str:
        """The name that the first process has given the job."""
        name = secrets.token_hex(8)
        if self._store is None:
            return name
        try:
            self._store.set(_JOB_KEY, name.encode())
            name = self._store.wait(_JOB_KEY, _STORE_S).decode("ascii", "replace")
        except Exception as error:
            _log.info("this process cannot learn its job's name from the store: %s", error)
        # Anybody who reaches the store may have written it, and it becomes part of a path.
        return name if dumps.is_name(name) else secrets.token_hex(8)

    def _run(self) -> None:
        try:
            self._job = self._name_job()
            with contextlib.suppress(OSError):
                sockets.jobs()  # removes what dead processes have left
            self._listener, self._path = sockets.listen(self._job, self._index)
        except OSError as error:
            _log.info("`jaxcoll inspect` cannot reach this process: %s", error)
        finally:
            self._ready.set()
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        if self._listener is not None:
            poll.register(self._listener, select.POLLIN)
        while not self._ending.is_set():
            found = poll.poll(None if self._folder is None else _LOOK_S * 1e3)
            turns = [self._on_bell if d == self._bell else self._answer for d, _ in found]
            for turn in [*turns, self._judge]:
                try:
                    turn()
                except Exception as error:
                    _log.info("inspection: %s: %s", type(error).__name__, error)

    def _answer(self) -> None:
        assert self._listener is not None
        client, _ = self._listener.accept()
        with client:
            if sockets.peer_uid(client) not in (os.getuid(), 0):
                return
            client.settimeout(_CLIENT_S)
            if client.recv(len(sockets.REQUEST)) == sockets.REQUEST:
                client.sendall(self._take().encode())

    def _take(self, left: str = "") -> str:
        return own_snapshot.take(self._job, self._index, self._count, left).to_json()

    def _on_bell(self) -> None:
        os.eventfd_read(self._bell)
        if self._ending.is_set():
            return
        native.comm_set_place(where(stacks.threads())[1])
        if own_snapshot.has_failed():
            self._dump()

    def _dump(self, left: str = "") -> None:
        """Once: later failures follow from the first, and the stacks are those of the first."""
        name = _environment.values()["JAXCOLL_DUMP_DIR"]
        if self._dumped or not name:
            return
        self._dumped = True
        try:
            snapshot = own_snapshot.take(self._job, self._index, self._count, left)
            dumps.write(Path(name), snapshot)
        except (FileError, SnapshotError) as error:
            _log.warning("there is no dump of this process: %s", error)
            return
        self._folder, self._verdict_at = Path(name), time.monotonic() + _OTHERS_S

    def _judge(self, *, wait: bool = True) -> None:
        """Writes the verdict that is due, once all dumps exist or have been waited for."""
        folder = self._folder
        if folder is None:
            return
        complete = dumps.count(folder, self._job) >= self._count
        if wait and not complete and time.monotonic() < self._verdict_at:
            return
        self._folder = None
        try:
            sentence = dumps.write_verdict(folder, self._job)
        except (FileError, SnapshotError) as error:
            _log.warning("there is no verdict on the dumps: %s", error)
            return
        path = dumps.path_of(folder, self._job, self._index)
        _log.warning("%s: %s; `jaxcoll inspect %s` says more", path, sentence, folder)
