"""An extension of griffe: docstrings as jaxcoll writes them, for a renderer of Markdown.

Google's style wants ``Returns:`` on a line of its own. A section that goes on behind its name
becomes a paragraph with that name in bold. A table of reStructuredText becomes a block of text, and
the double colon before a block of code a single one.
"""

import re
from typing import Any

import griffe

_SECTION = re.compile(
    r"^(Returns|Raises|Yields|Example): +(?=\S)(.*(?:\n[ \t]+\S.*)*)", re.MULTILINE
)

_TABLE = re.compile(r"^={3,}[= ]*\n(?:.*\n)+?={3,}[= ]*\n(?:.*\n)+?={3,}[= ]*$", re.MULTILINE)


def in_paragraphs(text: str) -> str:
    """``Returns: x`` with its indented continuation as a paragraph."""

    def paragraph(match: re.Match[str]) -> str:
        body = re.sub(r"\n[ \t]+", "\n", match[2])
        return f"\n**{match[1]}:** {body}\n"

    text = _SECTION.sub(paragraph, text)
    text = _TABLE.sub(lambda match: f"```text\n{match[0]}\n```", text)
    return re.sub(r"::$", ":", text, flags=re.MULTILINE)


class OneLineSections(griffe.Extension):
    """Rewrites every docstring as it is read."""

    def on_instance(self, *, obj: Any, **_: object) -> None:
        if obj.docstring is not None:
            obj.docstring.value = in_paragraphs(obj.docstring.value)
