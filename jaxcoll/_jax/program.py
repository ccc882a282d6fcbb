"""The text of a program, line by line, and the fingerprint by which processes identify programs.

A line is an equation with its types, literals and parameters, but without source locations and
without anything that differs between processes which run the same code. Captured arrays are
represented by digests of their values: programs that differ only in these are different programs,
and threads may launch them in another order on each process.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import weakref
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jaxcoll import _environment
from jaxcoll._jax import compat
from jaxcoll._native import native

# Longer parameters are replaced by digests, to keep lines readable.
_PARAMETER_CHARACTERS = 80

# JAXCOLL_MATCH=order: calls of equal kind meet in the order of their launches, whatever program
# they are of.
_IN_ORDER = "order"


class Program(NamedTuple):
    """A program as processes compare it."""

    fingerprint: str
    name: str  # of its function
    lines: tuple[str, ...]  # each "operation @ source location"


def announce(*suffix: str) -> str:
    """The fingerprint of the program that is being lowered; "" if JAX does not show the program.

    The engine keeps the program's lines, to say where the program of another process differs.

    Args:
      suffix: of what else the program consists, for instance the digest of an exported one.
    """
    native.comm_end_build()
    jaxpr = compat.lowered_jaxpr()
    if jaxpr is None:
        return "+".join(["", *suffix])
    program = _program(jaxpr)
    if _environment.values()["JAXCOLL_MATCH"] == _IN_ORDER:
        return "+".join([_IN_ORDER, *suffix])
    key = "+".join([program.fingerprint, *suffix])
    if native.comm_wants_listing(key):
        native.comm_add_listing(key, program.name, list(program.lines))
    return key


def fingerprint() -> str:
    """As `announce`, of a program that no other process takes part in while it is lowered."""
    jaxpr = compat.lowered_jaxpr()
    return "" if jaxpr is None else _program(jaxpr).fingerprint


# A program has many collectives, each of which asks for it. Programs are not kept alive for this.
_programs: weakref.WeakKeyDictionary[Any, Program] = weakref.WeakKeyDictionary()


def _program(jaxpr: Any) -> Program:
    program = _programs.get(jaxpr)
    if program is None:
        program = _programs[jaxpr] = describe(jaxpr)
    return program


def describe(jaxpr: Any) -> Program:
    """The lines of a (closed) jaxpr, and their digest."""
    name = compat.function_name(jaxpr)
    lines = (f"function {name} @ ", *_lines(jaxpr, 0))
    digest = hashlib.blake2b(digest_size=8)
    for line in lines:
        digest.update(line.rpartition(" @ ")[0].encode() + b"\n")
    return Program(digest.hexdigest(), name, lines)


def _lines(jaxpr: Any, depth: int) -> Iterator[str]:
    consts = getattr(jaxpr, "consts", ())
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)  # before JAX 0.12 there are closed ones, too
    names: dict[Any, str] = {
        variable: f"#{_digest(value)}"
        for variable, value in zip(jaxpr.constvars, consts, strict=False)
    }

    def name(atom: Any) -> str:
        kind = atom.aval.str_short()
        if isinstance(atom, core.Literal):
            return f"{_value(atom.val)}:{kind}"
        return f"{names.setdefault(atom, f'v{len(names)}')}:{kind}"

    for eqn in jaxpr.eqns:
        inner: list[str] = []
        parameters = []
        for key in sorted(eqn.params):
            value = eqn.params[key]
            programs = list(_jaxprs(value))
            inner += [line for program in programs for line in _lines(program, depth + 1)]
            if not programs:
                parameters.append(f"{key}={_parameter(value)}")
        text = " ".join(
            ["  " * depth + eqn.primitive.name, *map(name, eqn.invars), "->"]
            + [name(variable) for variable in eqn.outvars]
            + ([f"[{', '.join(parameters)}]"] if parameters else [])
        )
        # JAX does not say where a shard_map stands; what it does is not far away.
        places = (line.rpartition(" @ ")[2] for line in inner)
        yield f"{text} @ {compat.source_line(eqn) or next(filter(None, places), '')}"
        yield from inner
    yield " ".join(["  " * depth + "return", *map(name, jaxpr.outvars)]) + " @ "


def _is_jaxpr(value: Any) -> bool:
    return isinstance(getattr(value, "jaxpr", value), core.Jaxpr)


def _jaxprs(value: Any) -> Iterator[Any]:
    if _is_jaxpr(value):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _jaxprs(item)


def _parameter(value: Any) -> str:
    text = _text(value)
    if len(text) <= _PARAMETER_CHARACTERS:
        return text
    return f"...{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"


def _text(value: Any) -> str:
    """A parameter as text that is equal on all processes; of what has no such text, its type."""
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return repr(value)
    if isinstance(value, enum.Enum):
        return str(value)
    if isinstance(value, np.dtype):
        return value.name
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return _value(value)
    if isinstance(value, PartitionSpec):
        return repr(value)
    if isinstance(value, AbstractMesh) or (isinstance(value, Mesh) and value.empty):
        return str(dict(value.shape))
    if isinstance(value, Mesh):
        return f"{dict(value.shape)} of {[device.id for device in value.devices.flat]}"
    if isinstance(value, NamedSharding):
        return f"{_text(value.spec)} on {_text(value.mesh)}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_text, value))})"
    if isinstance(value, Mapping):
        return f"({', '.join(sorted(f'{_text(k)}: {_text(v)}' for k, v in value.items()))})"
    if isinstance(value, Set):
        return f"({', '.join(sorted(map(_text, value)))})"
    if isinstance(value, functools.partial):
        return f"{_text(value.func)}({_text(value.args)}, {_text(value.keywords)})"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [_text(getattr(value, field.name)) for field in dataclasses.fields(value)]
        return f"{type(value).__qualname__}({', '.join(fields)})"
    if callable(value) and isinstance(getattr(value, "__name__", None), str):
        return str(getattr(value, "__qualname__", value.__name__))
    return type(value).__qualname__  # others may print their address


def _value(value: Any) -> str:
    """A literal: itself if it is a number, else the digest of its values."""
    if np.ndim(value) == 0 and not hasattr(value, "devices"):
        return str(value)
    return f"#{_digest(value)}"


def _digest(value: Any) -> str:
    digest = hashlib.blake2b(digest_size=6)
    for part in _parts(value):
        digest.update(f"{part.dtype}{part.shape}".encode())
        digest.update(np.ascontiguousarray(part).view(np.uint8).data if part.nbytes else b"")
    return digest.hexdigest()


def _parts(value: Any) -> Sequence[np.ndarray]:
    """The values of an array that this process has; none of one that spans processes."""
    if isinstance(value, jax.Array):
        if jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended):
            return _parts(jax.random.key_data(value))
        if value.is_deleted() or not value.is_fully_addressable:
            return []
    array = np.asarray(value)
    return [] if array.dtype == object else [array.reshape(-1)]
