"""Where Python's threads are, and what is said of an exception."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import jax
import pytest
from support.made_up_jobs import process

from jaxcoll._job import presence, stacks


def test_a_thread_that_compiles_is_told_from_one_that_runs_python() -> None:
    """JAX's own functions tell them apart, whose names another version may change."""

    def compile_new(factor: float) -> None:
        def unrolled(x: jax.Array) -> jax.Array:
            for i in range(300):
                x = jax.numpy.sin(x) * (factor + i)
            return x

        jax.jit(unrolled).lower(1.0).compile()

    seen = set[tuple[str, bool]]()
    for attempt in range(100):
        thread = threading.Thread(target=compile_new, args=(float(attempt),), name="compiler")
        thread.start()
        while thread.is_alive():
            seen |= {
                (found.doing, "(compile_new)" in found.place)
                for found in stacks.threads()
                if found.name == "compiler"
            }
        if ("compile", True) in seen:
            break
    assert ("compile", True) in seen, seen


def test_a_place_is_the_innermost_one_outside_the_libraries() -> None:
    begun, leave = threading.Event(), threading.Event()

    def load() -> None:
        begun.set()
        leave.wait(60)

    thread = threading.Thread(target=load, name="loader")
    thread.start()
    try:
        assert begun.wait(60)
        while True:  # until it has gone on from `set` to `wait`
            (found,) = [t for t in stacks.threads() if t.name == "loader"]
            if "(wait)" in found.frames[0]:
                break
    finally:
        leave.set()
        thread.join()
    line = load.__code__.co_firstlineno + 2
    assert (found.place, found.doing) == (f"test_stacks.py:{line} (load)", "")


@pytest.mark.parametrize("name", ["jax", "jaxlib", "jaxcoll", "site-packages/jax_of_mine"])
def test_a_users_folder_may_have_a_librarys_name(name: str, tmp_path: Path) -> None:
    file = str(tmp_path / name / "train.py")
    names: dict[str, Any] = {}
    exec(compile("def load():\n    raise ValueError('bad')\n", file, "exec"), names)
    with pytest.raises(ValueError, match="bad") as caught:
        names["load"]()
    assert stacks.raised(caught.value) == "ValueError: bad at train.py:2 (load)"
    assert not stacks._is_of_jax(file)


def test_files_of_jax_and_jaxlib_are_no_users() -> None:
    for module in (jax, jax.numpy, sys.modules["jaxlib"]):
        assert stacks._is_of_jax(str(module.__file__))
        assert not stacks._is_users(str(module.__file__))


@pytest.mark.parametrize("error", [ValueError, MemoryError, KeyboardInterrupt, SystemExit])
def test_a_process_ends_even_if_it_cannot_say_why(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> str:
        raise error

    monkeypatch.setattr(presence.own_snapshot, "exception", fails)
    assert presence._end_words() == ""


class NoText(Exception):
    """Its text raises whatever it is made with."""

    def __str__(self) -> str:
        raise self.args[0]


class NoName(type):
    """Classes whose names cannot be had."""

    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise ValueError


class NotNamed(Exception, metaclass=NoName):
    pass


class NoTraceback(Exception):
    @property
    def __traceback__(self) -> None:  # type: ignore[override]
        raise ValueError


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (NoText(ValueError()), "NoText, whose text cannot be had: ValueError"),
        (NoText(SystemExit()), "NoText, whose text cannot be had: SystemExit"),
        (NoText(KeyboardInterrupt()), "NoText, whose text cannot be had: KeyboardInterrupt"),
        (NoText(RecursionError()), "NoText, whose text cannot be had: RecursionError"),
        (NotNamed("a"), "NotNamed: a"),
        (NoTraceback("a"), "NoTraceback, whose text cannot be had: ValueError"),
        (ValueError("\udc80 \x1b[2J\0\u202e"), r"ValueError: \udc80 \x1b[2J\x00\u202e"),
        (ValueError("a" * 10_000), "ValueError: " + "a" * 500),
        (OSError(2, "b", "\udcff"), r"FileNotFoundError: [Errno 2] b: '\udcff'"),
    ],
    ids=lambda value: "" if isinstance(value, str) else type.__repr__(type(value)),
)
def test_any_exception_can_be_told(error: Exception, told: str) -> None:
    assert stacks.raised(error) == told
    assert process(0, exception=stacks.raised(error)).to_json().encode()


def test_an_exception_is_told_with_the_place_where_it_was_raised() -> None:
    def load() -> None:
        raise ValueError("bad\n batch")

    with pytest.raises(ValueError, match="bad") as caught:
        load()
    line = load.__code__.co_firstlineno + 1
    told = stacks.raised(caught.value)
    assert told == f"ValueError: bad batch at test_stacks.py:{line} (load)"
