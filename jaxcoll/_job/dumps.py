"""The files in which the processes of a dead job have left their snapshots."""

from __future__ import annotations

import re
from pathlib import Path

from jaxcoll import _files
from jaxcoll._errors import FileError, SnapshotError
from jaxcoll._job import verdict
from jaxcoll._job.snapshot import BYTES_MAX, Snapshot, parse

_NAME = "jaxcoll-{job}-{process}.json"
_PATTERN = "jaxcoll-*.json"
_VERDICT = "jaxcoll-{job}.verdict"


def write(folder: Path, snapshot: Snapshot) -> Path:
    """Writes one process's file. Raises: FileError."""
    path = folder / _NAME.format(job=snapshot.job, process=snapshot.process)
    _files.write(path, snapshot.to_json() + "\n")
    return path


def read(folder: Path) -> tuple[list[Snapshot], list[str]]:
    """The snapshots in a folder, and what is wrong with files that hold none.

    Raises: SnapshotError for a folder without dumps.
    """
    snapshots, wrong = [], []
    paths = sorted(folder.glob(_PATTERN))
    if not paths:
        raise SnapshotError(f"{folder} holds no dumps ({_PATTERN}) of jaxcoll's")
    for path in paths:
        try:
            snapshots.append(parse(_files.read_bytes(path, BYTES_MAX, regular=True)))
        except SnapshotError as error:
            wrong.append(f"{path.name} cannot be used: {error}")
        except FileError as error:
            wrong.append(str(error))
    return snapshots, wrong


def write_verdict(folder: Path, job: str) -> tuple[str, int]:
    """Writes the verdict on the dumps of a job that are there by now.

    Returns: the sentence, and how many dumps there are.

    Raises: FileError.
    """
    snapshots = [s for s in read(folder)[0] if s.job == job]
    found = verdict.judge(snapshots)
    text = "".join(f"{line}\n" for line in (found.sentence, *found.remarks))
    _files.write(folder / _VERDICT.format(job=job), text)
    return found.sentence, len(snapshots)


def is_name(job: str) -> bool:
    """Whether a job's name can stand in the names of files."""
    return re.fullmatch(r"[0-9a-f]{16}", job) is not None
