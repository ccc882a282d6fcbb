"""The snapshot of this process: what its engines hold already, and where its Python is."""

from __future__ import annotations

import os
import platform
import sys
import time
from typing import Any

import jaxcoll
from jaxcoll._job import host, stacks
from jaxcoll._job.snapshot import Call, Ended, Failed, HalfMade, Peer, Snapshot, read
from jaxcoll._native import native
from jaxcoll._text import printable

_LAST_SHOWN = 16
_LINES_SHOWN = 3
_COMMAND_SHOWN = 500
# The names that lax's primitives have in a program that `install()` serves.
_OF_LAX = {
    "all_reduce": ("psum", "pmax", "pmin"),
    "reduce_scatter": ("reduce_scatter",),
    "all_gather": ("all_gather",),
    "all_to_all": ("all_to_all",),
    "ragged_all_to_all": ("ragged_all_to_all",),
    "permute": ("jaxcoll_ppermute", "ppermute"),
}


def take(job: str, process: int, processes: int, left: str = "") -> Snapshot:
    """Reads what is there; nothing waits for anything but the engine's lock.

    Args:
      job: its name, equal on all processes.
      left: how this process ends, if it does.
    """
    between: Any = native.comm_snapshot() or {}
    within: dict[str, Any] = native.engine_snapshot()
    last = [read(Ended, e) for e in [*between.get("last", ()), *within["last"]]]
    modules = sys.modules
    return Snapshot(
        job=job,
        process=process,
        processes=processes,
        pid=os.getpid(),
        host=printable(host.hostname()),
        version=jaxcoll.__version__,
        jax=str(getattr(modules.get("jax"), "__version__", "")),
        python=platform.python_version(),
        command=printable(" ".join(map(str, sys.argv)))[:_COMMAND_SHOWN],
        taken_at=time.time(),
        exception=exception(),
        left=left,
        ended=between.get("ended", 0) + within["ended"],
        pending=tuple(read(Call, _facts(c)) for c in between.get("pending", ())),
        half_made=tuple(read(HalfMade, c) for c in within["pending"]),
        last=tuple(sorted(last, key=lambda e: e.ended_s)[:_LAST_SHOWN]),
        next_numbers=between.get("next_numbers", {}),
        failed=tuple(
            read(Failed, {**f, "pending": [_facts(c) for c in f["pending"]]})
            for f in between.get("failed", ())
        ),
        peers=tuple(read(Peer, p) for p in between.get("peers", ())),
        threads=stacks.threads(),
    )


def exception() -> str:
    """The error that has ended the main program, and where it was raised; "" if there is none."""
    if hasattr(sys, "ps1"):  # an interactive session goes on after an error
        return ""
    error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    return "" if error is None else stacks.raised(error)


def has_failed() -> bool:
    """Whether a communicator has failed."""
    snapshot: Any = native.comm_snapshot() or {}
    return bool(snapshot.get("failed"))


def _facts(call: dict[str, Any]) -> dict[str, Any]:
    return call | {"line": _line(call)}


def _line(facts: dict[str, Any]) -> str:
    """Where the program makes the call, "train.py:12 (step)"; several places if it may be any."""
    parts = facts["parts"]
    collective = parts.get("collectives", "")
    names = (f"jaxcoll_{collective}", *_OF_LAX.get(collective, ()))
    lines = [
        line
        for line in native.comm_lines(facts["program"])
        if line.strip().startswith(names) and not line.endswith(" @ ")
    ]
    for part in (parts.get("shapes", ""), f"op='{parts.get('reduce ops', '')}'"):
        lines = [line for line in lines if part in line] or lines
    places = list(dict.fromkeys(line.rpartition(" @ ")[2] for line in lines))
    return " or ".join(places[:_LINES_SHOWN])
