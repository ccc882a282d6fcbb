"""The help of ``jaxcoll simulate`` about networks and algorithms, taken from their own code."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from jaxcoll.schedule import COLLECTIVES, algorithms
from jaxcoll.sim.options import KINDS, options_of


def value_text(name: str, value: object) -> str:
    """A default as one would write it."""
    if value is None:
        return "derived"
    if not isinstance(value, float):
        return str(value)
    if name.endswith("_Bps"):
        return f"{value * 8 / 1e9:g}Gb/s"
    return f"{value * 1e6:g}us" if name.endswith("_s") else f"{value:g}"


def kinds_text() -> str:
    """A line for each kind of network, with its options and their defaults."""
    lines = []
    for kind in KINDS:
        options = ",".join(
            f"{short}={value_text(parameter.name, parameter.default)}"
            for short, parameter in options_of(kind).items()
        )
        lines.append(_folded(f"{kind}:{'AxBx...' if kind == 'torus' else 'SIZE'},{options}", ","))
    return "\n".join(lines)


def algorithms_text() -> str:
    """A line for each collective."""
    return "\n".join(
        _folded(f"{collective}: {', '.join(algorithms(collective))}", " ")
        for collective in COLLECTIVES
    )


def _folded(text: str, separator: str) -> str:
    # A line may end after any option, which has no blanks.
    words = text.replace(separator, f"{separator} ") if separator != " " else text
    lines: Iterable[str] = textwrap.wrap(words, 88, break_long_words=False, break_on_hyphens=False)
    if separator != " ":
        lines = [line.replace(f"{separator} ", separator) for line in lines]
    return "\n".join(f"    {'' if i == 0 else '    '}{line}" for i, line in enumerate(lines))
