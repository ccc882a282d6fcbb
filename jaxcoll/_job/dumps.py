"""The files in which the processes of a dead job have left their snapshots."""

from __future__ import annotations

import re
from pathlib import Path

from jaxcoll import _files
from jaxcoll._errors import FileError, SnapshotError
from jaxcoll._job import verdict
from jaxcoll._job.snapshot import BYTES_MAX, Snapshot, parse
from jaxcoll._text import printable

_NAME = "jaxcoll-{job}-{process}.json"
_PATTERN = "jaxcoll-*.json"
_VERDICT = "jaxcoll-{job}.verdict"


def path_of(folder: Path, job: str, process: int | str) -> Path:
    """The file of one process."""
    return folder / _NAME.format(job=job, process=process)


def write(folder: Path, snapshot: Snapshot) -> None:
    """Writes one process's file. Raises: FileError."""
    path = path_of(folder, snapshot.job, snapshot.process)
    _files.write(path, snapshot.to_json() + "\n")


def count(folder: Path, job: str) -> int:
    """How many processes of a job have written their files."""
    return len(list(folder.glob(path_of(folder, job, "*").name)))


def read(folder: Path) -> tuple[list[Snapshot], list[str]]:
    """The snapshots in a folder, and what is wrong with files that hold none.

    Raises: SnapshotError for a folder without dumps.
    """
    return _read(folder, _PATTERN)


def _read(folder: Path, pattern: str) -> tuple[list[Snapshot], list[str]]:
    snapshots, wrong = [], []
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise SnapshotError(f"{folder} holds no dumps ({pattern}) of jaxcoll's")
    for path in paths:
        try:
            snapshots.append(parse(_files.read_bytes(path, BYTES_MAX, regular=True)))
        except SnapshotError as error:
            wrong.append(f"{printable(path.name)} cannot be used: {error}")
        except FileNotFoundError:
            wrong.append(f"{printable(path.name)} cannot be used: it has been removed")
        except FileError as error:
            wrong.append(str(error))
    return snapshots, wrong


def write_verdict(folder: Path, job: str) -> str:
    """Writes the verdict on the dumps of a job that exist by now, and returns its sentence.

    Raises: FileError, SnapshotError.
    """
    found = verdict.judge(_read(folder, path_of(folder, job, "*").name)[0])
    text = "".join(f"{line}\n" for line in (found.sentence, *found.remarks))
    _files.write(folder / _VERDICT.format(job=job), text)
    return found.sentence


def is_name(job: str) -> bool:
    """Whether a job's name can be part of file names."""
    return re.fullmatch(r"[0-9a-f]{16}", job) is not None
