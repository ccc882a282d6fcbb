"""Text that others have written: how it is shown, and how numbers in it are read."""

from __future__ import annotations


def printable(text: str) -> str:
    """The same text in one line, with what a terminal or an encoder could not take escaped.

    White space becomes blanks; other control characters, and halves of surrogate pairs, become
    escapes such as ``\\x1b``. The result is printable, so a second call changes nothing.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c.isspace() else ascii(c)[1:-1] for c in text)


def is_number(text: str, low: int, high: int) -> bool:
    """Whether a text consists of ASCII digits, for an integer from `low` to `high`."""
    # The length: Python converts no more than some thousand digits.
    return text.isascii() and text.isdecimal() and len(text) < 20 and low <= int(text) <= high
