"""An extension of griffe: sections of docstrings that stand in one line, as jaxcoll writes them.

Google's style wants ``Returns:`` on a line of its own. A section that goes on behind its name
becomes a paragraph with that name in bold.
"""

import re
from typing import Any

import griffe

_SECTION = re.compile(r"^(Returns|Raises|Yields|Example): +(?=\S)(.*(?:\n[ \t]+\S.*)*)", re.MULTILINE)


def in_paragraphs(text: str) -> str:
    """``Returns: x`` with its indented continuation as a paragraph."""

    def paragraph(match: re.Match[str]) -> str:
        body = re.sub(r"\n[ \t]+", "\n", match[2])
        return f"\n**{match[1]}:** {body}\n"

    return _SECTION.sub(paragraph, text)


class OneLineSections(griffe.Extension):
    """Rewrites every docstring as it is read."""

    def on_instance(self, *, obj: Any, **_: object) -> None:
        if obj.docstring is not None:
            obj.docstring.value = in_paragraphs(obj.docstring.value)
