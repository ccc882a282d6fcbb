"""Files that commands write and the package reads, with early checks and one-line errors.

A command declares its options for results with `output`, so that a path that cannot be written is
refused with the other errors in the command line, before any work is done. This module does not
import JAX.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import secrets
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from jaxcoll._errors import FileError

STDOUT: Final = Path("-")


# --- writing ------------------------------------------------------------------------------------


def output(*, make_folders: bool = False, stdout: bool = False) -> Callable[[str], Path]:
    """A type for an argparse option that names a file to write.

    Args:
      make_folders: whether `write` will make the folders that the file is in.
      stdout: whether "-" means standard output.
    """

    def parse(text: str) -> Path:
        if stdout and text == str(STDOUT):
            return STDOUT
        try:
            check_can_write(Path(text), make_folders=make_folders)
        except FileError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return Path(text)

    return parse


def check_can_write(path: Path, *, make_folders: bool = False) -> None:
    """Finds out whether `write` would succeed now. Leaves nothing behind.

    Raises: FileError naming the file and why.
    """
    try:
        _check_can_write(path, make_folders)
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        raise _failure("written", path, error) from None


def _check_can_write(path: Path, make_folders: bool) -> None:
    if not path.name:
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        folder = _target(path).parent
        while make_folders and not folder.exists() and folder != folder.parent:
            folder = folder.parent
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"there is no folder for {path}") from None
        with tempfile.TemporaryFile(dir=folder):
            return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    if not stat.S_ISREG(mode):  # a terminal, a pipe
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return
    with open(path, "ab"):
        pass


def write(path: Path, text: str, *, make_folders: bool = False) -> None:
    """Writes a text file; a regular one at once or not at all, where its folder allows it.

    Raises: FileError naming the file and why.
    """
    try:
        content = text.encode()
        if make_folders:
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            mode = os.stat(path).st_mode
        except FileNotFoundError:
            _replace(_target(path), content, None)
            return
        if stat.S_ISREG(mode):
            # It fails where only the file is ours to write, and not its folder.
            with contextlib.suppress(OSError):
                _replace(_target(path), content, stat.S_IMODE(mode))
                return
        path.write_bytes(content)
    except (OSError, ValueError) as error:
        raise _failure("written", path, error) from None


def _replace(target: Path, content: bytes, mode: int | None) -> None:
    fresh = target.with_name(f".jaxcoll-{secrets.token_hex(8)}")
    # "x": in a folder of all users a name may be there already, and lead elsewhere.
    with open(fresh, "xb") as f:
        try:
            if mode is not None:
                os.fchmod(f.fileno(), mode)
            f.write(content)
            f.close()  # a full disk is noticed here
            os.replace(fresh, target)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise


def _target(path: Path) -> Path:
    """The file that a link leads to: the file is replaced, not the link."""
    try:
        return path.resolve()
    except RuntimeError:  # a link to itself, as Python 3.11 and 3.12 tell it
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None


# --- reading ------------------------------------------------------------------------------------


def read_bytes(path: Path, most_bytes: int, *, regular: bool = False) -> bytes:
    """Reads a file's contents.

    Args:
      path: the file; for a command's argument a pipe will do.
      most_bytes: more are refused.
      regular: whether only a regular file will do: reading a pipe could block forever.

    Raises: FileNotFoundError; FileError naming the file and why.
    """
    try:
        # Without O_NONBLOCK, to open a pipe waits for somebody who writes.
        flags = os.O_RDONLY | os.O_CLOEXEC | (os.O_NONBLOCK | os.O_NOCTTY if regular else 0)
        with open(os.open(path, flags), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISDIR(mode):
                raise IsADirectoryError(errno.EISDIR, "it is a folder")
            if regular and not stat.S_ISREG(mode):
                raise OSError(errno.EINVAL, "it is not a regular file")
            content = file.read(most_bytes + 1)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise _failure("read", path, error) from None
    if len(content) > most_bytes:
        raise FileError(f"{_shown(path)} cannot be read: it has more than {most_bytes} bytes")
    return content


def read_text(path: Path, most_bytes: int, *, regular: bool = False) -> str:
    """The same for UTF-8."""
    try:
        return read_bytes(path, most_bytes, regular=regular).decode()
    except UnicodeDecodeError as error:
        raise FileError(
            f"{_shown(path)} cannot be read: it is not UTF-8 (byte {error.start})"
        ) from None


def _failure(what: str, path: Path, error: OSError | ValueError) -> FileError:
    reason = getattr(error, "strerror", None) or str(error)
    return FileError(f"{_shown(path)} cannot be {what}: {reason}")


def _shown(path: Path) -> str:
    """In one line, whatever the name."""
    text = str(path)
    return text if text.isprintable() else ascii(text)
