"""A simulated timeline as a trace that Perfetto (ui.perfetto.dev) and chrome://tracing show."""

from __future__ import annotations

from typing import Any

from jaxcoll.sim.timeline import Timeline


def trace(timeline: Timeline) -> dict[str, Any]:
    """One track per rank and channel for what it sends, one per rank for what reaches it.

    Args:
      timeline: run with `record=True`.
    """
    title = (
        f"simulated: {timeline.algorithm} {timeline.collective}, {timeline.nbytes} bytes, "
        f"{timeline.topology.name}, {timeline.routing}, seed {timeline.seed}"
    )
    events: list[dict[str, Any]] = [
        {"ph": "M", "pid": 1, "name": "process_name", "args": {"name": f"{title}: sent"}},
        {"ph": "M", "pid": 2, "name": "process_name", "args": {"name": f"{title}: received"}},
    ]
    channels = int(timeline.messages[:, 1].max(initial=0)) + 1
    for rank, host in enumerate(timeline.hosts):
        for channel in range(channels):
            name = f"rank {rank} ({host})" + (f" channel {channel}" if channels > 1 else "")
            events.append(_thread(1, rank * channels + channel, name))
        events.append(_thread(2, rank, f"rank {rank} ({host})"))
    for number, row in enumerate(timeline.messages.tolist()):
        step, channel, source, destination, nbytes, ready, sent, left, arrived, done = row
        arguments = {
            "step": step,
            "channel": channel,
            "bytes": nbytes,
            "waited_us": (sent - ready) / 1e6,
        }
        tid = source * channels + channel
        events.append(_slice(1, tid, f"to {destination}, step {step}", sent, left, arguments))
        events.append(
            _slice(2, destination, f"from {source}, step {step}", arrived, done, arguments)
        )
        flow = {"cat": "message", "name": "message", "id": number}
        events.append({"ph": "s", "pid": 1, "tid": tid, "ts": sent / 1e6, **flow})
        events.append(
            {"ph": "f", "bp": "e", "pid": 2, "tid": destination, "ts": arrived / 1e6, **flow}
        )
    return {"displayTimeUnit": "ns", "otherData": {"simulated": title}, "traceEvents": events}


def _thread(pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "pid": pid, "tid": tid, "name": "thread_name", "args": {"name": name}}


def _slice(
    pid: int, tid: int, name: str, begin_ps: int, end_ps: int, arguments: dict[str, Any]
) -> dict[str, Any]:
    return {
        "ph": "X",
        "pid": pid,
        "tid": tid,
        "name": name,
        "ts": begin_ps / 1e6,
        "dur": (end_ps - begin_ps) / 1e6,
        "args": arguments,
    }
