"""Keeps freed memory in the process, so that the next step's arrays need no fresh pages.

XLA:CPU allocates every step's arrays anew. By default the C library returns large blocks to the
kernel as soon as they are freed, and the kernel clears each page again at its next first use: for
arrays of many MiB that can take longer than the program itself.
"""

from __future__ import annotations

import ctypes
import warnings

# mallopt's parameters, as glibc numbers them.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_LIMITS = {"1": (1 << 31) - 1, "all": -1}  # bytes; mallopt takes an int, and -1 is never reached


def keep(setting: str) -> None:
    """Applies JAXCOLL_KEEP_MEMORY, "0", "1" or "all", to this process's malloc."""
    if setting == "0":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # All blocks come from the heap, not from mappings of their own, and from one heap, so that what
    # one thread frees serves the others.
    wanted = ((_MMAP_MAX, 0), (_ARENA_MAX, 1), (_TRIM_THRESHOLD, _LIMITS[setting]))
    if mallopt is None or not all(mallopt(*option) for option in wanted):
        warnings.warn("JAXCOLL_KEEP_MEMORY has no effect: it needs glibc's mallopt", stacklevel=2)
