"""``jaxcoll info``: versions, devices, and what this build can do here."""

from __future__ import annotations

import argparse

from jaxcoll.info import report


def main(argv: list[str] | None = None) -> int:
    """Prints `report`; returns the exit code."""
    parser = argparse.ArgumentParser(prog="jaxcoll info", description=__doc__)
    parser.parse_args(argv)
    print(report())
    return 0
