"""The command line: ``jaxcoll COMMAND`` or ``python -m jaxcoll COMMAND``."""

from __future__ import annotations

import argparse
import importlib
import sys

from jaxcoll import _environment
from jaxcoll._errors import JaxcollError, SettingError

# command -> (module whose main(argv) runs it, what it does)
_COMMANDS = {
    "launch": ("jaxcoll._cli.launch", "start the processes of a job on this machine"),
    "info": ("jaxcoll._cli.info", "print versions, devices, and what this build can do"),
    "verify": ("jaxcoll._cli.verify", "prove that schedules are right"),
    "schedule": ("jaxcoll._cli.schedule", "print, export and import schedules"),
    "tune": ("jaxcoll._cli.tune", 'measure this machine, and what "auto" picks on it'),
    "simulate": ("jaxcoll._cli.simulate", "predict collectives on modelled networks"),
}


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns its exit code, 2 for one that does not exist."""
    try:
        _environment.check()
    except SettingError as error:  # before anything else, so that all commands say the same
        print(f"jaxcoll: {error}", file=sys.stderr)
        return 2
    width = max(map(len, _COMMANDS)) + 2
    parser = argparse.ArgumentParser(
        prog="jaxcoll",
        description="Collective communication for JAX.",
        epilog="commands:\n"
        + "".join(f"  {name:{width}}{text}\n" for name, (_, text) in _COMMANDS.items())
        + "\n`jaxcoll COMMAND --help` says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=_COMMANDS, metavar="COMMAND", help="one of those below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="passed to the command")
    options = parser.parse_args(argv)
    module = importlib.import_module(_COMMANDS[options.command][0])
    try:
        return int(module.main(options.arguments))
    except JaxcollError as error:  # a setting, a file: its text says what to change
        print(f"jaxcoll {options.command}: {error}", file=sys.stderr)
        return 1
