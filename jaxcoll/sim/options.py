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
_MOST_SHOWN: Final = 40
_SIZES: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_TIMES_S: Final = {"": 1.0, "ps": 1e-12, "ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
_RATES_BPS: Final = {"": 1.0, "B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
_RATES_BPS.update({name.replace("B", "b"): rate / 8 for name, rate in _RATES_BPS.items() if name})
_NUMBER: Final = r"((?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"


def shown(text: str) -> str:
    """A text as an error quotes it: in ASCII, and only the beginning of a long one."""
    return ascii(text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}...")


def parse_seconds(text: str) -> float:
    """A time in seconds: ``1.5us`` -> 1.5e-06; a plain number is in seconds.

    Raises:
      TopologyError: the text is not a time, is negative, or is beyond the range of a float.
    """
    return _measure(text, r"(ps|ns|us|ms|s)?", _TIMES_S, "a time; write 500ns, 1.5us or 2ms")


def parse_rate(text: str) -> float:
    """A rate in bytes per second: ``400Gb/s`` and ``50GB/s`` -> 5e10; a plain number is bytes.

    Raises:
      TopologyError: the text is not a rate, is negative, or is beyond the range of a float.
    """
    units = r"(?:([KMGT]?[bB])(?:/s|ps))?"
    return _measure(text, units, _RATES_BPS, "a rate; write 400Gb/s or 50GB/s")


def _measure(text: str, units: str, scales: dict[str, float], what: str) -> float:
    match = re.fullmatch(rf"{_NUMBER}\s*{units}", text.strip())
    if not match:
        raise TopologyError(f"{shown(text)} is not {what}")
    value = float(match[1]) * scales[match[2] or ""]
    if not math.isfinite(value):
        raise TopologyError(f"{shown(text)} is beyond the range of a float")
    return value


def parse_bytes(text: str) -> int:
    """A size in bytes: ``4M`` -> 4194304; K, M, G and T are powers of 1024, as in nccl-tests.

    Raises:
      TopologyError: the text is not a size, is 0, or has more than 30 digits.
    """
    match = re.fullmatch(r"([0-9]+)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE | re.ASCII)
    if match and len(match[1]) > _MOST_DIGITS:
        raise TopologyError(
            f"a size of {len(match[1])} digits is too large; at most {_MOST_DIGITS} digits"
        )
    if not match or int(match[1]) == 0:
        raise TopologyError(f"{shown(text)} is not a size; write 65536, 64K, 1M or 4G")
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
        f"{kind} has no option {shown(name)}; it has {', '.join(known)}{nearest(name, known)}"
    )


def add_option(arguments: dict[str, float], kind: str, name: str, text: str) -> None:
    """Adds the value that a text gives to an option of a kind.

    Raises:
      TopologyError: there is no such option, it has a value already, by its short or its whole
        name, or the text is not a value.
    """
    parameter = option_of(kind, name)
    if parameter.name in arguments:
        raise TopologyError(f"{kind} has the option {name} twice")
    arguments[parameter.name] = value_of(parameter, text)


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
        return whole_of(text, parameter.name)
    return number_of(text, parameter.name)


def number_of(text: str, name: str = "") -> float:
    """A finite decimal number.

    Raises:
      TopologyError: the text is none.
    """
    value = float(text) if re.fullmatch(rf"[+-]?{_NUMBER}", text.strip()) else math.nan
    if not math.isfinite(value):
        raise TopologyError(f"{f'{name}=' if name else ''}{shown(text)} is not a number")
    return value


def whole_of(text: str, name: str = "") -> int:
    """A whole number of at most 30 digits.

    Raises:
      TopologyError: the text is none.
    """
    if not re.fullmatch(f"[+-]?[0-9]{{1,{_MOST_DIGITS}}}", text.strip()):
        raise TopologyError(f"{f'{name}=' if name else ''}{shown(text)} is not a whole number")
    return int(text)
