"""The attributes of a custom call, as XLA keeps them: an MLIR dictionary in text."""

from __future__ import annotations

import functools
import re
from typing import Any

import numpy as np


def text_of(attributes: dict[str, Any]) -> str:
    """Attributes as an MLIR dictionary: strings, int64 and arrays of int64."""
    return "{" + ", ".join([f"{k} = {_value(v)}" for k, v in sorted(attributes.items())]) + "}"


def _value(value: Any) -> str:
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, int):
        return f"{value} : i64"
    return _array(np.asarray(value, np.int64).tobytes()) if len(value) else "array<i64>"


_PLAIN = re.compile(r"[ !#-\[\]-~]*")


# The calls of a program have few different values.
@functools.lru_cache(maxsize=256)
def _string(value: str) -> str:
    if _PLAIN.fullmatch(value):
        return f'"{value}"'
    # Every byte that MLIR's strings give a meaning to, by its number.
    plain = "".join(
        c if 32 <= ord(c) < 127 and c not in '"\\' else "".join(f"\\{b:02X}" for b in c.encode())
        for c in value
    )
    return f'"{plain}"'


@functools.lru_cache(maxsize=256)
def _array(int64s: bytes) -> str:
    numbers = ", ".join(map(str, np.frombuffer(int64s, np.int64).tolist()))
    return f"array<i64: {numbers}>" if numbers else "array<i64>"


def integer(config: str, name: str) -> int:
    """An integer of an MLIR dictionary."""
    found = _INTEGER.match(config, _begin(config, name))
    return int(found[1]) if found else 0


def integers(config: str, name: str) -> list[int]:
    """An array of integers of an MLIR dictionary."""
    found = _INTEGERS.match(config, _begin(config, name))
    return [int(number) for number in found[1].split(",") if number.strip()] if found else []


def text(config: str, name: str) -> str:
    """A string of an MLIR dictionary."""
    found = _TEXT.match(config, _begin(config, name))
    if found is None:
        return ""
    raw = found[1]
    if "\\" in raw or not raw.isascii():
        raw = re.sub(r"\\([0-9A-F]{2})", lambda m: chr(int(m[1], 16)), raw)
        raw = re.sub(r"\\(.)", r"\1", raw)
        raw = raw.encode("latin-1", "replace").decode("utf-8", "replace")
    return raw


_INTEGER = re.compile(r"(-?\d+)")
_INTEGERS = re.compile(r"array<i64:? ?([-0-9, ]*)>")
_TEXT = re.compile(r'"((?:[^"\\]|\\.)*)"')


def _begin(config: str, name: str) -> int:
    """Where a value begins; behind the end if there is none of this name."""
    if config.startswith(f"{{{name} = "):
        return len(name) + 4
    place = config.find(f" {name} = ")
    return len(config) if place < 0 else place + len(name) + 4
