"""Where the Python threads of this process are, and what they do there."""

from __future__ import annotations

import os
import sys
import sysconfig
import threading
from types import FrameType

import jaxcoll
from jaxcoll._job.snapshot import Thread

_FRAMES_MAX = 100
_OWN = os.path.dirname(os.path.abspath(jaxcoll.__file__)) + os.sep
_EXAMPLES = _OWN + "examples" + os.sep
_STDLIB = sysconfig.get_paths()["stdlib"] + os.sep
_PACKAGES = ("site-packages", "dist-packages")
# The functions of JAX below which it compiles; everything else below a user's frame waits.
_COMPILING = {
    *("trace_to_jaxpr", "lower_jaxpr_to_module"),
    *("backend_compile_and_load", "compile_or_get_cached"),
}


def threads() -> tuple[Thread, ...]:
    """All threads that run Python now but the calling one, the main one first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    main, own = threading.main_thread().ident, threading.get_ident()
    found = [
        _thread(names.get(ident, f"thread {ident}"), ident == main, frame)
        for ident, frame in sys._current_frames().items()
        if ident != own
    ]
    return tuple(sorted(found, key=lambda thread: not thread.main))


def _thread(name: str, main: bool, innermost: FrameType) -> Thread:
    frames: list[FrameType] = []
    frame: FrameType | None = innermost
    while frame is not None and len(frames) < _FRAMES_MAX:
        frames.append(frame)
        frame = frame.f_back
    own = next((i for i, f in enumerate(frames) if _is_users(f.f_code.co_filename)), None)
    below = frames[:own] if own is not None else frames
    jax = [f for f in below if _is_of_jax(f.f_code.co_filename)]
    doing = ""
    if any(f.f_code.co_name in _COMPILING for f in jax):
        doing = "compile"
    elif jax:
        doing = "wait"
    return Thread(
        name,
        main,
        "" if own is None else place(frames[own]),
        doing,
        tuple(f"{f.f_code.co_filename}:{f.f_lineno} ({f.f_code.co_name})" for f in frames),
    )


def place(frame: FrameType) -> str:
    """ "train.py:31 (load)"."""
    code = frame.f_code
    return f"{os.path.basename(code.co_filename)}:{frame.f_lineno} ({code.co_name})"


def raised(error: BaseException) -> str:
    """An exception and the innermost place of the user's that it came through."""
    where, traceback = "", error.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        if _is_users(frame.f_code.co_filename):
            name = os.path.basename(frame.f_code.co_filename)
            where = f" at {name}:{traceback.tb_lineno} ({frame.f_code.co_name})"
        traceback = traceback.tb_next
    words = " ".join(str(error).split())
    return f"{type(error).__name__}" + (f": {words[:500]}" if words else "") + where


def _is_of_jax(file: str) -> bool:
    return f"{os.sep}jax{os.sep}" in file or f"{os.sep}jaxlib{os.sep}" in file or _is_ours(file)


def _is_ours(file: str) -> bool:
    return file.startswith(_OWN) and not file.startswith(_EXAMPLES)


def _is_users(file: str) -> bool:
    """Whether a frame is neither JAX's nor jaxcoll's nor the standard library's."""
    if _is_of_jax(file) or file.startswith("<frozen "):
        return False
    return not file.startswith(_STDLIB) or any(part in file.split(os.sep) for part in _PACKAGES)
