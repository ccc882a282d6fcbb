"""A record of the engine's calls, to debug a job.

`dump()` prints the last collectives, those that are pending with the peers that they wait for, and
the state of every peer. The recorder is always on and bounded: the last 256 calls between processes
and as many within this one.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import TextIO

from jaxcoll._native import native

__all__ = ["dump", "dump_on_signal"]


def dump(file: TextIO | None = None) -> None:
    """Prints the flight recorder to `file`, stderr by default.

    Works from any thread, even while another thread is blocked in a collective.
    """
    print(native.comm_dump() + native.engine_dump(), end="", file=file or sys.stderr, flush=True)


_watched: set[int] = set()


def dump_on_signal(signum: int = signal.SIGUSR1) -> None:
    """Makes `kill -USR1 PID` print the flight recorder to stderr. Call it in the main thread.

    It prints even while the main thread waits for a collective: Python's own signal handlers would
    run only afterwards. It takes over `signal.set_wakeup_fd`.

    Raises: ValueError outside the main thread, where `signal.set_wakeup_fd` is taken, and for a
      number that is not a signal that can be caught.
    """
    if signum in _watched:
        return
    if signum not in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        raise ValueError(f"{signum!r} is not a signal that can be caught")
    if threading.current_thread() is not threading.main_thread():
        raise ValueError("dump_on_signal works in the main thread only, where signals arrive")
    read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    os.set_blocking(read_end, True)
    # The C half of Python's signal handling writes the number to this descriptor at once.
    previous = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    if previous >= 0:
        signal.set_wakeup_fd(previous)
        os.close(read_end)
        os.close(write_end)
        raise ValueError("signal.set_wakeup_fd is taken, by asyncio perhaps; call dump() yourself")
    signal.signal(signum, lambda *_: None)
    _watched.add(signum)

    def watch() -> None:
        while numbers := os.read(read_end, 64):
            if signum in numbers:
                dump()

    threading.Thread(target=watch, name="jaxcoll-dump", daemon=True).start()
