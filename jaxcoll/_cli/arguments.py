"""Types of arguments that several commands have."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from jaxcoll._text import is_number


def whole(low: int, high: int) -> Callable[[str], int]:
    """A type of argparse: a whole number from `low` to `high`, in ASCII digits."""

    def parse(text: str) -> int:
        if not is_number(text, low, high):
            raise argparse.ArgumentTypeError(f"{text[:40]!a} is not a number from {low} to {high}")
        return int(text)

    return parse
