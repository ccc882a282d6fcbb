"""``jaxcoll info``: versions, devices, and what this build can do here."""

from __future__ import annotations

import argparse

from jaxcoll.info import report


def parser() -> argparse.ArgumentParser:
    """The command line."""
    return argparse.ArgumentParser(
        prog="jaxcoll info",
        description="Prints versions, devices, algorithms, transports and settings.",
    )


def main(argv: list[str] | None = None) -> int:
    """Prints `report`; returns the exit code."""
    parser().parse_args(argv)
    print(report())
    return 0
