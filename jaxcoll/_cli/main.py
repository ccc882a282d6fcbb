"""The command line: finds the command, and says the same of what goes wrong in all of them."""

from __future__ import annotations

import argparse
import importlib
import sys

import jaxcoll
from jaxcoll import _environment
from jaxcoll._errors import JaxcollError, SettingError

# The commands, and what each does. Each is a module beside this one, imported when it is called.
_COMMANDS = {
    "launch": "start the processes of a job on this machine",
    "inspect": "say what a job waits for, and which rank is at fault",
    "info": "print versions, devices, and what this build can do",
    "verify": "prove that schedules are right",
    "schedule": "print, export and import schedules",
    "tune": 'measure this machine, and what "auto" picks on it',
    "simulate": "predict collectives on modelled networks",
}


def parser() -> argparse.ArgumentParser:
    """The arguments that ``jaxcoll`` itself takes."""
    width = max(map(len, _COMMANDS)) + 2
    command = argparse.ArgumentParser(
        prog="jaxcoll",
        description="Collective communication for JAX.",
        epilog="commands:\n"
        + "".join(f"  {name:{width}}{text}\n" for name, text in _COMMANDS.items())
        + "\n`jaxcoll COMMAND --help` says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--version", action="version", version=f"jaxcoll {jaxcoll.__version__}")
    command.add_argument("command", choices=_COMMANDS, metavar="COMMAND", help="one of those below")
    command.add_argument("arguments", nargs=argparse.REMAINDER, help="passed to the command")
    return command


def main(argv: list[str] | None = None) -> int:
    """Runs a command.

    Args:
      argv: arguments after the program's name; None takes the process's.

    Returns:
      The exit code: 0 where all is well, 1 where the command could not do it or found a fault, 2
      where it was called wrongly (argparse exits with it) or a variable cannot be used.
    """
    try:
        _environment.check()
    except SettingError as error:  # before anything else, so that all commands say the same
        print(f"jaxcoll: {error}", file=sys.stderr)
        return 2
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        parser().print_help(sys.stderr)
        return 2
    options = parser().parse_args(argv)
    command = importlib.import_module(f"jaxcoll._cli.{options.command}")
    try:
        return int(command.main(options.arguments))
    except JaxcollError as error:  # a setting, a file: its text says what to change
        print(f"jaxcoll {options.command}: {error}", file=sys.stderr)
        return 1
