"""The table of all environment variables that jaxcoll reads, and the only parser of their values.

docs/reference/environment.md and `info` show the same table. No other code, in either language,
reads or parses a `JAXCOLL_` variable: Python calls `values`, and passes the parsed values to C++
(`jaxcoll/_native.py`). A new variable is one entry of `VARIABLES`, and its row in that page; with
`engine` it is also a field of the settings in ffi/base/environment.h.

All variables have one grammar: digits are ASCII, there are no signs, underscores or blanks, except
blanks around the words of a list. An empty variable counts as not set.

`import jaxcoll` calls `check`, so a value that cannot be used stops a job before it begins. If a
program changes a variable afterwards, this affects only parts that start later.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxcoll._errors import SettingError

PREFIX = "JAXCOLL_"
_SHOWN_CHARACTERS = 300  # of a value, in errors


@dataclass(frozen=True)
class Variable:
    """One environment variable: what it takes, what stands for it when unset, what it does.

    Attributes:
      parse: raises ValueError on a value it does not take.
      engine: the name of the C++ side's setting that it is handed over as; "": Python's alone.
      internal: set by jaxcoll's own programs for each other, and not shown to users.
    """

    name: str
    default: str
    takes: str
    meaning: str
    parse: Callable[[str], Any]
    engine: str = ""
    internal: bool = False


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError
        return text

    return parse


def _number_from(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        if not re.fullmatch(r"([0-9]+(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]+)?", text, re.IGNORECASE):
            raise ValueError
        if not low <= float(text) <= high:
            raise ValueError
        return float(text)

    return parse


def _integer_from(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        # The length: Python converts no more than some thousand digits.
        if not re.fullmatch(r"0*[0-9]{1,20}", text) or not low <= int(text[-20:]) <= high:
            raise ValueError
        return int(text[-20:])

    return parse


def _list_of(*choices: str) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        words = tuple(word.strip(" ") for word in text.split(","))
        if not set(words) <= set(choices):
            raise ValueError
        return words

    return parse


def _interface_prefixes(text: str) -> tuple[bool, tuple[str, ...]]:
    """Whether they are excluded, and the prefixes."""
    prefixes = tuple(word.strip(" ") for word in text.removeprefix("^").split(","))
    if not all(re.fullmatch(r"[!-~]+", prefix) and "^" not in prefix for prefix in prefixes):
        raise ValueError
    return text.startswith("^"), prefixes


def _rdma_devices(text: str) -> str:
    words = [word.strip(" ") for word in text.removeprefix("^").split(",")]
    for word in words:
        device, colon, port = word.partition(":")
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", device):
            raise ValueError
        if colon:
            _integer_from(1, 255)(port)
    return ("^" if text.startswith("^") else "") + ",".join(words)


def _text_of_at_most(characters: int) -> Callable[[str], str]:
    def parse(text: str) -> str:
        # A value that is not UTF-8 could be neither printed nor sent to another process.
        if len(text) > characters or not text.isprintable():
            raise ValueError
        return text

    return parse


def _absolute(path: str, shown: Callable[[str], str] = str) -> str:
    """The same path however the process changes its folder later.

    Args:
      shown: how the current folder has to be written.
    """
    try:
        return os.path.join(shown(os.getcwd()), path)
    except FileNotFoundError:  # the folder has been removed, and so has everything in it
        return path


def _log_file(text: str) -> str:
    """The C++ side puts the marks' values in and opens it: ffi/base/log.h.

    Raises: SettingError with the reason why it could not be opened.
    """
    _text_of_at_most(4096)(text)
    if not re.fullmatch(r"(?:[^%]|%[hpr%])+", text):
        raise ValueError
    values = {"h": _socket_name(), "p": str(os.getpid()), "%": "%"}
    path = re.sub("%([hpr%])", lambda mark: values.get(mark[1], "%r"), text)
    folder = os.path.dirname(path) or "."
    try:
        if "%r" not in re.sub("%%", "", text.rpartition("/")[0]):
            os.stat(f"{folder}/.")  # the process's index is not known yet
            if not os.path.exists(path) and not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if os.path.exists(path) and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    except OSError as error:
        raise SettingError(f"{error.filename}: {error.strerror}") from None
    return _absolute(text, lambda folder: folder.replace("%", "%%"))


def _folder(text: str) -> str:
    _text_of_at_most(4096)(text)
    if not os.path.isdir(text):
        raise SettingError("it is not a folder")
    if not os.access(text, os.W_OK | os.X_OK):
        raise SettingError(os.strerror(errno.EACCES))
    return _absolute(text)


def _socket_name() -> str:
    try:
        return socket.gethostname()
    except OSError:
        return "unknown-host"


def _table_file(text: str) -> str:
    if len(os.fsencode(text)) > 4096:
        raise ValueError
    return text if text == "off" else _absolute(text)


VARIABLES = (
    Variable(
        "JAXCOLL_LOG",
        default="warning",
        takes="warning, info, debug",
        meaning="how much is logged: warnings; with info also choices, links and losses; with "
        "debug also each step",
        parse=_one_of("warning", "info", "debug"),
        engine="log",
    ),
    Variable(
        "JAXCOLL_LOG_FILE",
        default="stderr",
        takes="a file, in a folder that is there; in its name %h is the host, %p the process id, "
        "%r the process's index in the job, %% a percent sign",
        meaning="file that the log is appended to, instead of stderr",
        parse=_log_file,
        engine="log_file",
    ),
    Variable(
        "JAXCOLL_DUMP_DIR",
        default="none",
        takes="a folder that is there and can be written to",
        meaning="where a process of a job writes what it was doing when a collective failed or an "
        "exception ended it, and what the cause was: `jaxcoll inspect DIR` reads it",
        parse=_folder,
    ),
    Variable(
        "JAXCOLL_INSTALL",
        default="0",
        takes="0, 1",
        meaning="1: every JAX program that starts is served as if it called `jaxcoll.install()` "
        "first",
        parse=_one_of("0", "1"),
    ),
    Variable(
        "JAXCOLL_TIMEOUT_S",
        default="300",
        takes="seconds, 0.001 to 1e8",
        meaning="how long a collective waits for the other devices before it fails, naming those "
        "that did not arrive; a process that does not answer at all is given up after a fifth of "
        "it (10 s at least)",
        parse=_number_from(0.001, 1e8),
        engine="timeout_s",
    ),
    Variable(
        "JAXCOLL_THREADS",
        default="one per core",
        takes="1 to 1024",
        meaning="worker threads that large collectives are split over",
        parse=_integer_from(1, 1024),
        engine="threads",
    ),
    Variable(
        "JAXCOLL_KEEP_MEMORY",
        default="0",
        takes="0, 1, all",
        meaning="1: freed memory stays in the process, so that large arrays of the next step need "
        "no fresh pages; free memory above 2 GiB at the heap's end is returned; all: nothing is",
        parse=_one_of("0", "1", "all"),
    ),
    Variable(
        "JAXCOLL_ISA",
        default="the best this CPU has",
        takes="portable, avx2, avx512",
        meaning="instruction set of the reduction kernels; results do not depend on it",
        parse=_one_of("portable", "avx2", "avx512"),
        engine="isa",
    ),
    Variable(
        "JAXCOLL_CUDA_BLOCKS",
        default="32",
        takes="1 to 160",
        meaning="the most multiprocessors of a GPU that one collective uses; the smallest value in "
        "the job applies",
        parse=_integer_from(1, 160),
    ),
    Variable(
        "JAXCOLL_CUDA_WORKSPACE_MIB",
        default="128",
        takes="1 to 65536",
        meaning="GPU memory that a group of GPUs takes on each of them; the same in all processes",
        parse=_integer_from(1, 65536),
    ),
    Variable(
        "JAXCOLL_CUDA_OPERANDS",
        default="mapped",
        takes="mapped, staged",
        meaning="how GPUs of several processes of a host reach each other's arrays: in XLA's pool, "
        "where CUDA IPC can map it, or always copied through the workspace",
        parse=_one_of("mapped", "staged"),
    ),
    Variable(
        "JAXCOLL_CUDA_DMABUF",
        default="1",
        takes="0, 1",
        meaning="whether NICs read data for other hosts from GPU memory, where GPU, driver and NIC "
        "support it (`jaxcoll info` says where); otherwise the host copies it",
        parse=_one_of("0", "1"),
    ),
    Variable(
        "JAXCOLL_CUDA_STREAM",
        default="0",
        takes="0, 1",
        meaning="1: on GPUs collectives go on a stream of their own, beside work that does not "
        "need them, under `jaxcoll.install()` and in programs that start some "
        "(`all_reduce_start`); no GPU has run that yet",
        parse=_one_of("0", "1"),
    ),
    Variable(
        "JAXCOLL_TRANSPORT",
        default="all",
        takes="shm, rdma, tcp, comma separated",
        meaning="transports between processes; a pair uses the best one that both allow and have",
        parse=_list_of("shm", "rdma", "tcp"),
    ),
    Variable(
        "JAXCOLL_TCP_SOCKETS",
        default="4",
        takes="1 to 64",
        meaning="sockets between two processes that use tcp",
        parse=_integer_from(1, 64),
    ),
    Variable(
        "JAXCOLL_TCP_ENCRYPT",
        default="0",
        takes="0, 1",
        meaning="whether data over tcp is encrypted; it is always authenticated. It is enough to "
        "set it in one process of a pair. Data over rdma is neither encrypted nor authenticated: "
        "`JAXCOLL_TRANSPORT=shm,tcp` excludes rdma",
        parse=_one_of("0", "1"),
    ),
    Variable(
        "JAXCOLL_IFNAME",
        default="all that are up",
        takes="prefixes of interface names, comma separated; `^` first excludes them",
        meaning="network interfaces on which tcp listens, e.g. `eth,ib0` or `^docker,lo`; "
        "loopback is tried last",
        parse=_interface_prefixes,
    ),
    Variable(
        "JAXCOLL_IB_HCA",
        default="all active ports",
        takes="RDMA devices or device:port, comma separated; `^` first excludes them",
        meaning="NICs that rdma uses, e.g. `mlx5_0,mlx5_2:1` or `^mlx5_3`; the data is spread over "
        "them",
        parse=_rdma_devices,
        engine="rdma_devices",
    ),
    Variable(
        "JAXCOLL_IB_GID_INDEX",
        default="the first of RoCE v2 that can be routed",
        takes="0 to 255",
        meaning="entry of a RoCE port's GID table by which peers address it",
        parse=_integer_from(0, 255),
        engine="rdma_gid_index",
    ),
    Variable(
        "JAXCOLL_IB_SL",
        default="0",
        takes="0 to 15",
        meaning="service level of rdma's packets",
        parse=_integer_from(0, 15),
        engine="rdma_service_level",
    ),
    Variable(
        "JAXCOLL_IB_TC",
        default="0",
        takes="0 to 255",
        meaning="traffic class of rdma's packets; for RoCE v2 its upper six bits are the DSCP",
        parse=_integer_from(0, 255),
        engine="rdma_traffic_class",
    ),
    Variable(
        "JAXCOLL_IB_REGISTER_BYTES",
        default="never",
        takes="65536 or more",
        meaning="arrays of at least this many bytes are registered with the NICs for the time of a "
        "call and sent in place, instead of being copied",
        parse=_integer_from(65536, 2**62),
        engine="rdma_register_bytes",
    ),
    Variable(
        "JAXCOLL_HOST_ID",
        default="boot id, network namespace, host name",
        takes="printable text of at most 255 characters",
        meaning="processes with equal ids count as on one host, and may use shm and CUDA IPC",
        parse=_text_of_at_most(255),
    ),
    Variable(
        "JAXCOLL_MATCH",
        default="program",
        takes="program, order",
        meaning="how calls of different processes are matched. program: calls of programs that are "
        "equal, captured values included. order: calls of equal kind and shapes, in the order of "
        "their launches, as with XLA's own collectives. The same in all processes",
        parse=_one_of("program", "order"),
    ),
    Variable(
        "JAXCOLL_MERGE_BYTES",
        default="4194304",
        takes="0 to 2^40",
        meaning="under `install()`: independent collectives of one kind become one call of up to "
        "this many bytes, and larger calls of many arrays are cut to it; 0: never; the same in all "
        "processes",
        parse=_integer_from(0, 1 << 40),
    ),
    Variable(
        "JAXCOLL_SECRET_FILE",
        default="none",
        takes="a file that nobody else may read",
        meaning="the job's secret, which its processes prove themselves with; the same in all of "
        "them",
        parse=_text_of_at_most(4096),
    ),
    Variable(
        "JAXCOLL_SECRET_FD",
        default="set by `jaxcoll launch`",
        takes="the number of an inherited descriptor, from 3",
        meaning="the same, to be read from a descriptor, which is then closed",
        parse=_integer_from(3, 1 << 20),
    ),
    Variable(
        "JAXCOLL_TUNING",
        default="`jaxcoll/tuning.json` in `XDG_CACHE_HOME`, or `~/.cache`, if it is there",
        takes="a file, or off",
        meaning="the table of `jaxcoll tune` that `auto` picks by; off: the one that ships; the "
        "same in all processes",
        parse=_table_file,
    ),
)


def values(environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The parsed value of every variable in `VARIABLES`, None where it is unset or empty.

    Args:
      environ: None takes the process's, which is parsed once, and again when a program has changed
        it; what `tell` was given is then told. Any thread may ask.

    Raises: SettingError naming the variable, its value and what it takes.
    """
    global _parsed
    if environ is not None:
        return _parse(environ)
    with _lock:
        texts = {v.name: os.environ.get(v.name, "") for v in VARIABLES}
        if _parsed is None or _parsed[0] != texts:
            former, parsed = _parsed or ({}, {})
            same = {name: parsed[name] for name in former if former[name] == texts[name]}
            _parsed = (texts, _parse(texts, same))
            if _tell is not None:
                _tell(_for_engine(_parsed[1]))
        return dict(_parsed[1])


_added: set[str] = set()
_told: set[str] = set()  # unknown names that the process has been warned of


def add(name: str, value: str) -> None:
    """Sets a variable of other software's for this process alone."""
    os.environ[name] = value
    _added.add(name)


def added_environment() -> frozenset[str]:
    """Variables that jaxcoll has set in this process and that suit no other."""
    return frozenset(_added)


_lock = threading.RLock()
_parsed: tuple[dict[str, str], dict[str, Any]] | None = None  # guarded by _lock: texts and values
_tell: Callable[[dict[str, Any]], object] | None = None  # guarded by _lock


def tell(engine: Callable[[dict[str, Any]], object]) -> None:
    """Calls `engine` now, and at each change, with the settings of the C++ side by their names.

    Raises: as `values`.
    """
    global _tell
    with _lock:
        engine(_for_engine(values()))
        _tell = engine


def _for_engine(parsed: Mapping[str, Any]) -> dict[str, Any]:
    return {v.engine: parsed[v.name] for v in VARIABLES if v.engine}


def _parse(environ: Mapping[str, str], known: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """`known`: values that have been parsed before. A relative path means what it meant then."""
    parsed: dict[str, Any] = dict(known or {})
    for variable in VARIABLES:
        if variable.name in parsed:
            continue
        text = environ.get(variable.name, "")
        try:
            parsed[variable.name] = variable.parse(text) if text else None
        except ValueError as error:
            shown = f"{text[:_SHOWN_CHARACTERS]!a}"
            if len(text) > _SHOWN_CHARACTERS:
                shown += f"... ({len(text)} characters)"
            why = f" ({error})" if isinstance(error, SettingError) else ""
            raise SettingError(
                f"{variable.name}={shown} cannot be used{why}; it takes: {variable.takes}"
            ) from None
    return parsed


def check(environ: Mapping[str, str] | None = None) -> None:
    """Refuses values that cannot be used and warns of JAXCOLL_ variables that do not exist.

    A warning, not a refusal: another version, or a program that uses jaxcoll, may know the name.

    Raises: SettingError naming the variable, its value and what it takes.
    """
    values(environ)
    told = _told if environ is None else set[str]()
    shown = [v.name.removeprefix(PREFIX) for v in VARIABLES if not v.internal]
    known = {v.name for v in VARIABLES}
    for name in sorted(os.environ if environ is None else environ):
        if name.startswith(PREFIX) and name not in known | told:
            told.add(name)
            close = difflib.get_close_matches(name.removeprefix(PREFIX).upper(), shown, n=1)
            choices = [PREFIX + word for word in close or shown]
            hint = f"did you mean {choices[0]}?" if close else f"there are {', '.join(choices)}"
            warnings.warn(
                f"environment variable {name!a} is unknown to jaxcoll and changes nothing; {hint}",
                stacklevel=2,
            )


def is_command() -> bool:
    """Whether this process runs ``jaxcoll COMMAND`` or ``python -m jaxcoll COMMAND``.

    The way in which the process was started decides, since this is asked while the package is
    imported, before any code of the command's.
    """
    if sys.argv[:1] == ["-m"]:  # what runpy leaves there until it has found the module
        # The name of the module stands before its arguments, alone or joined: -Bmjaxcoll.
        last = sys.orig_argv[len(sys.orig_argv) - len(sys.argv)]
        return (last.partition("m")[2] if last.startswith("-") else last) == "jaxcoll"
    return os.path.basename(sys.argv[0] if sys.argv else "") == "jaxcoll"


def trouble_with_isa(wanted: str | None, here: Sequence[str]) -> str:
    """A warning about JAXCOLL_ISA on a CPU that has `here`, the best last; empty: nothing.

    This is not an error: hosts of one job may differ, and results do not depend on it.
    """
    if wanted is None or wanted in here:
        return ""
    return (
        f"JAXCOLL_ISA={wanted}: this CPU lacks it; it has {', '.join(here)}. The reduction kernels "
        f"use {here[-1]}, with the same results"
    )
