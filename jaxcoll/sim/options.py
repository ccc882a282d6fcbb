"""The kinds of networks, their options, and how values are written."""

from __future__ import annotations

import difflib
import inspect
import math
import re
from collections.abc import Collection
from typing import Final

from jaxcoll.sim.network import TopologyError
from jaxcoll.sim.network_kinds import (
    dragonfly,
    fat_tree,
    leaf_spine,
    multi_plane,
    rail_only,
    rail_optimised,
    ring,
    switch,
    torus,
)

KINDS: Final = {
    kind.__name__: kind
    for kind in (
        ring,
        torus,
        switch,
        leaf_spine,
        fat_tree,
        rail_optimised,
        rail_only,
        dragonfly,
        multi_plane,
    )
}

_MOST_DIGITS: Final = 30
_SIZES: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_TIMES_S: Final = {"ps": 1e-12, "ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
_RATES_BPS: Final = {"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
_NUMBER: Final = r"((?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
_RATES_BPS.update({name.replace("B", "b"): rate / 8 for name, rate in _RATES_BPS.items()})


def parse_seconds(text: str) -> float:
    """``1.5us`` -> 1.5e-06; a plain number is in seconds."""
    match = re.fullmatch(_NUMBER + r"\s*(ps|ns|us|ms|s)?", text.strip())
    if not match:
        raise TopologyError(f"{text!r} is no time; write 500ns, 1.5us or 2ms")
    return float(match[1]) * _TIMES_S[match[2] or "s"]


def parse_rate(text: str) -> float:
    """``400Gb/s`` -> 5e10 bytes per second; ``50GB/s`` is the same, a plain number bytes."""
    match = re.fullmatch(_NUMBER + r"\s*(?:([KMGT]?[bB])(?:/s|ps))?", text.strip())
    if not match:
        raise TopologyError(f"{text!r} is no rate; write 400Gb/s or 50GB/s")
    return float(match[1]) * _RATES_BPS[match[2] or "B"]


def parse_bytes(text: str) -> int:
    """``4M`` -> 4194304; K, M, G and T are powers of 1024, as in nccl-tests."""
    match = re.fullmatch(r"([0-9]+)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match or int(match[1]) == 0:
        raise TopologyError(f"{text!r} is no size; write 65536, 64K, 1M or 4G")
    if len(match[1]) > _MOST_DIGITS:
        raise TopologyError(f"a size of {len(match[1])} digits is too large")
    return int(match[1]) * _SIZES[match[2].upper()]


def nearest(word: str, words: Collection[str]) -> str:
    """A question to end an error with, where one of `words` is nearly `word`; or nothing."""
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def options_of(kind: str) -> dict[str, inspect.Parameter]:
    """The options of a kind, by the names that texts and files give them."""
    parameters = inspect.signature(KINDS[kind]).parameters
    return {
        re.sub("_(Bps|s)$", "", name): parameter
        for name, parameter in parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name != "name"
    }


def option_of(kind: str, name: str) -> inspect.Parameter:
    """One of them, by its short name or its whole one.

    Raises:
      TopologyError: there is none, and which is nearest.
    """
    known = options_of(kind)
    for short, parameter in known.items():
        if name in (short, parameter.name):
            return parameter
    raise TopologyError(
        f"{kind} has no option {name!r}; it has {', '.join(known)}{nearest(name, known)}"
    )


def value_of(parameter: inspect.Parameter, text: str) -> float:
    """The value that a text gives an option: a rate, a time, a number or a whole number.

    Raises:
      TopologyError: it says none.
    """
    if parameter.name.endswith("_Bps"):
        return parse_rate(text)
    if parameter.name.endswith("_s"):
        return parse_seconds(text)
    if not str(parameter.annotation).startswith("float"):
        return whole_of(parameter.name, text)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise TopologyError(f"{parameter.name}={text!r} is no number")
    return value


def whole_of(name: str, text: str) -> int:
    """A whole number.

    Raises:
      TopologyError: it is none.
    """
    if not re.fullmatch(f"[+-]?[0-9]{{1,{_MOST_DIGITS}}}", text.strip()):
        raise TopologyError(f"{name}={text!r} is no number that is whole")
    return int(text)
