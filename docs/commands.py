"""A hook of mkdocs: fills the page of commands with what each parser says of itself."""

import argparse
import importlib
import os
import re

from jaxcoll._cli import main

MARKER = "<!-- commands -->"
COLUMNS = 96  # of the help; argparse otherwise takes the terminal's


def helps(name: str, command: argparse.ArgumentParser) -> list[tuple[str, str]]:
    """The command and, where it has any, its subcommands, each with its help."""
    found = [(name, re.sub(r"\x1b\[[0-9;]*m", "", command.format_help()))]
    for action in command._actions:
        if isinstance(action, argparse._SubParsersAction):
            for title, below in action.choices.items():
                found += helps(f"{name} {title}", below)
    return found


def page() -> str:
    """All commands, as Markdown."""
    os.environ["COLUMNS"] = str(COLUMNS)
    parts = helps("jaxcoll", main.parser())
    for name in main._COMMANDS:
        parts += helps(f"jaxcoll {name}", importlib.import_module(f"jaxcoll._cli.{name}").parser())
    return "\n".join(f"## {name}\n\n```text\n{text}```\n" for name, text in parts)


def on_page_markdown(markdown: str, **_: object) -> str:
    """The hook that mkdocs calls for each page."""
    return markdown.replace(MARKER, page()) if MARKER in markdown else markdown
