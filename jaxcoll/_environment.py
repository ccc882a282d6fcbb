"""Every environment variable that jaxcoll reads, in one table; README and `info` show the same.

The C++ side reads the same variables when its engine starts. `import jaxcoll` calls `check`, so a
value that cannot be used stops a job before it has begun.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Variable:
    """One environment variable: what it takes, what stands for it when unset, what it does."""

    name: str
    default: str
    takes: str
    meaning: str
    parse: Callable[[str], object]  # raises ValueError on a value it does not take


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError
        return text

    return parse


def _positive_number(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise ValueError
    return number


def _integer_from(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
            raise ValueError
        return int(text)

    return parse


def _list_of(*choices: str) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        words = tuple(word.strip() for word in text.split(","))
        if not set(words) <= set(choices):
            raise ValueError
        return words

    return parse


def _interface_prefixes(text: str) -> tuple[bool, tuple[str, ...]]:
    """Whether they are excluded, and the prefixes."""
    prefixes = tuple(word.strip() for word in text.removeprefix("^").split(","))
    if not all(prefix.isascii() and prefix.isprintable() and prefix for prefix in prefixes):
        raise ValueError
    if any("^" in prefix for prefix in prefixes):
        raise ValueError
    return text.startswith("^"), prefixes


def _rdma_devices(text: str) -> str:
    for word in text.removeprefix("^").split(","):
        device, colon, port = word.partition(":")
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", device):
            raise ValueError
        if colon:
            _integer_from(1, 255)(port)
    return text


def _text_of_at_most(characters: int) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if len(text) > characters:
            raise ValueError
        return text

    return parse


VARIABLES = (
    Variable(
        "JAXCOLL_LOG",
        default="warning",
        takes="warning, info, debug",
        meaning="how much to tell on stderr",
        parse=_one_of("warning", "info", "debug"),
    ),
    Variable(
        "JAXCOLL_TIMEOUT_S",
        default="300",
        takes="seconds above 0",
        meaning="how long a collective waits for the other devices before it fails, naming those "
        "that did not arrive; a process that does not answer at all is given up after a fifth of "
        "it (10 s at least)",
        parse=_positive_number,
    ),
    Variable(
        "JAXCOLL_THREADS",
        default="one per core",
        takes="1 to 1024",
        meaning="worker threads that large collectives are split over",
        parse=_integer_from(1, 1024),
    ),
    Variable(
        "JAXCOLL_ISA",
        default="the best this CPU has",
        takes="portable, avx2, avx512",
        meaning="instruction set of the reduction kernels; results do not depend on it",
        parse=_one_of("portable", "avx2", "avx512"),
    ),
    Variable(
        "JAXCOLL_CUDA_BLOCKS",
        default="32",
        takes="1 to 160",
        meaning="multiprocessors of a GPU that one collective uses at most; the smallest number of "
        "all processes counts",
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
        meaning="whether NICs read from GPU memory what goes to other hosts, where GPU, driver and "
        "NIC can (`jaxcoll info` says where); else it is copied by the host",
        parse=_one_of("0", "1"),
    ),
    Variable(
        "JAXCOLL_TRANSPORT",
        default="all",
        takes="shm, rdma, tcp, comma separated",
        meaning="what may carry data between processes; the best that both of a pair allow and "
        "have is used",
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
        "JAXCOLL_IFNAME",
        default="all that are up",
        takes="prefixes of interface names, comma separated; `^` first excludes them",
        meaning="network interfaces that tcp may be reached at, e.g. `eth,ib0` or `^docker,lo`; "
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
    ),
    Variable(
        "JAXCOLL_IB_GID_INDEX",
        default="the first of RoCE v2 that can be routed",
        takes="0 to 255",
        meaning="entry of a RoCE port's GID table that names it to its peers",
        parse=_integer_from(0, 255),
    ),
    Variable(
        "JAXCOLL_IB_SL",
        default="0",
        takes="0 to 15",
        meaning="service level of rdma's packets",
        parse=_integer_from(0, 15),
    ),
    Variable(
        "JAXCOLL_IB_TC",
        default="0",
        takes="0 to 255",
        meaning="traffic class of rdma's packets; for RoCE v2 its upper six bits are the DSCP",
        parse=_integer_from(0, 255),
    ),
    Variable(
        "JAXCOLL_IB_REGISTER_BYTES",
        default="never",
        takes="65536 or more",
        meaning="arrays of at least so many bytes are registered with the NICs for the time of a "
        "call and sent from where they lie, instead of being copied",
        parse=_integer_from(65536, 2**62),
    ),
    Variable(
        "JAXCOLL_HOST_ID",
        default="boot id, network namespace, host name",
        takes="text of at most 255 characters",
        meaning="processes with equal ids count as on one host: they may use shm, and CUDA IPC",
        parse=_text_of_at_most(255),
    ),
    Variable(
        "JAXCOLL_MATCH",
        default="program",
        takes="program, order",
        meaning="which calls of processes meet: those of equal programs, captured values "
        "included; or, whatever differs in the programs, those of equal kind and shapes in the "
        "order of their launches, as with XLA's own collectives; the same in all processes",
        parse=_one_of("program", "order"),
    ),
    Variable(
        "JAXCOLL_TUNING",
        default="`jaxcoll/tuning.json` in `XDG_CACHE_HOME`, or `~/.cache`, if it is there",
        takes="a file, or off",
        meaning="the table of `jaxcoll tune` that `auto` picks by; off: the one that ships; the "
        "same in all processes",
        parse=_text_of_at_most(4096),
    ),
)


def values(environ: Mapping[str, str] = os.environ) -> dict[str, object | None]:
    """The parsed value of every variable in `VARIABLES`, None where it is unset or empty.

    Raises: ValueError naming the variable, its value and what it takes.
    """
    parsed: dict[str, object | None] = {}
    for variable in VARIABLES:
        text = environ.get(variable.name, "")
        try:
            parsed[variable.name] = variable.parse(text) if text else None
        except ValueError:
            raise ValueError(
                f"{variable.name}={text!r} cannot be used; it takes: {variable.takes}"
            ) from None
    return parsed


def check(environ: Mapping[str, str] = os.environ) -> None:
    """Refuses values that cannot be used and warns of JAXCOLL_ variables that do not exist.

    Raises: ValueError naming the variable, its value and what it takes.
    """
    values(environ)
    prefix = "JAXCOLL_"
    known = [variable.name.removeprefix(prefix) for variable in VARIABLES]
    for name in sorted(environ):
        if name.startswith(prefix) and name.removeprefix(prefix) not in known:
            close = difflib.get_close_matches(name.removeprefix(prefix), known, n=1)
            choices = [prefix + word for word in close or known]
            hint = f"did you mean {choices[0]}?" if close else f"there are {', '.join(choices)}"
            warnings.warn(
                f"environment variable {name} is unknown to jaxcoll; {hint}", stacklevel=2
            )
