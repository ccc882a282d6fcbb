"""How much memory this process may still take."""

from __future__ import annotations

import resource
from pathlib import Path


def available_bytes() -> int:
    """The least of what the machine has, and what a container and `ulimit -v` allow.

    A large number where none of them says anything.
    """
    limits = [1 << 62]
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            limits.append(int(line.split()[1]) << 10)
    for allowed, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        most, now = _lines(allowed), _lines(used)
        if most and now and most[0].isdecimal():
            limits.append(int(most[0]) - int(now[0]))
    most_here, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most_here != resource.RLIM_INFINITY:
        pages = _lines("/proc/self/statm")
        now_here = int(pages[0].split()[0]) * resource.getpagesize() if pages else 0
        limits.append(most_here - now_here)
    return max(0, min(limits))


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
