"""Where the Python threads of this process are, and what they do there."""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
import threading
from types import FrameType, TracebackType

import jaxcoll
from jaxcoll._job.snapshot import Thread
from jaxcoll._text import printable

_FRAMES_MAX = 100
_WORDS_MAX = 500  # characters of an exception's text
_OWN = os.path.dirname(os.path.abspath(jaxcoll.__file__)) + os.sep
_EXAMPLES = _OWN + "examples" + os.sep
_JAX_PACKAGES = ("jax", "jaxlib")
_STDLIB = sysconfig.get_paths()["stdlib"] + os.sep
_PACKAGES = ("site-packages", "dist-packages")
# The functions of JAX below which it compiles; everything else below a user's frame waits.
_COMPILING = {
    *("trace_to_jaxpr", "lower_jaxpr_to_module"),
    *("backend_compile_and_load", "compile_or_get_cached"),
}


def _folders_of(package: str) -> tuple[str, ...]:
    """Where a package's files are, each with a separator at its end. Does not import it."""
    spec = importlib.util.find_spec(package)
    found = [] if spec is None else spec.submodule_search_locations or []
    return tuple(os.path.abspath(folder) + os.sep for folder in found)


# A folder of the user's may have the same name, so the path's words do not decide.
_OF_JAX = tuple(folder for package in _JAX_PACKAGES for folder in _folders_of(package))


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
        printable(str(name)),
        main,
        "" if own is None else place(frames[own]),
        doing,
        tuple(
            printable(f"{f.f_code.co_filename}:{f.f_lineno} ({f.f_code.co_name})") for f in frames
        ),
    )


def place(frame: FrameType, line: int | None = None) -> str:
    """ "train.py:31 (load)". `line` stands for the frame's current one."""
    code = frame.f_code
    name = os.path.basename(code.co_filename)
    return printable(f"{name}:{line or frame.f_lineno} ({code.co_name})")


def raised(error: BaseException) -> str:
    """An exception and the innermost place of the user's that it came through.

    Never raises, whatever the exception's class does, since it also runs while the process ends.
    """
    name = _class_name(error)
    try:
        words = " ".join(str(error).split())[:_WORDS_MAX]
        return printable(name + (f": {words}" if words else "")) + _where(error.__traceback__)
    except BaseException as second:  # the class may raise anything
        return printable(f"{name}, whose text cannot be had: {_class_name(second)}")


def _class_name(error: BaseException) -> str:
    """Not by an attribute, which a metaclass may have replaced."""
    return str(type.__dict__["__name__"].__get__(type(error)))


def _where(traceback: TracebackType | None) -> str:
    where = ""
    while traceback is not None:
        if _is_users(traceback.tb_frame.f_code.co_filename):
            where = f" at {place(traceback.tb_frame, traceback.tb_lineno)}"
        traceback = traceback.tb_next
    return where


def _is_of_jax(file: str) -> bool:
    return file.startswith(_OF_JAX) or _is_ours(file)


def _is_ours(file: str) -> bool:
    return file.startswith(_OWN) and not file.startswith(_EXAMPLES)


def _is_users(file: str) -> bool:
    """Whether a frame is neither JAX's nor jaxcoll's nor the standard library's."""
    if _is_of_jax(file) or file.startswith("<frozen "):
        return False
    return not file.startswith(_STDLIB) or any(part in file.split(os.sep) for part in _PACKAGES)
