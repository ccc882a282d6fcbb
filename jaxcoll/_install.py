"""install(): lax's own collectives, lowered through jaxcoll.

lax keeps its API, its types and its rules for differentiation and batching; only what its
primitives become in the compiled program changes. What jaxcoll cannot serve is left to XLA.

The switch is part of the key of JAX's caches: a function that was compiled under one setting is
compiled anew under the other, and both executables stay cached. What counts is the setting in
force where a program is lowered: at the first call of a jitted function, or at `.lower()`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax

from jaxcoll import _api, _lowering, _tuning
from jaxcoll import _jax_compat as compat
from jaxcoll._errors import JaxcollError, UnsupportedError

# True: lower lax's collectives through jaxcoll. The global value is install()'s, a thread's own
# value is installed()'s and wins.
_routed = jax.make_user_context(default_value=False)

_registration = threading.Lock()
_registered = False


def install() -> None:
    """Routes lax's collectives through jaxcoll in every thread, from now on until `uninstall()`.

    Programs that are already compiled keep running as they are; calling the functions they came
    from compiles them anew. `install_report()` lists which collectives are served.

    Raises: TuningError for a table named by JAXCOLL_TUNING that cannot be used.
    """
    _tuning.active()  # later, while a program is lowered, lax would quietly take over
    _register()
    _routed.set_global(True)


def uninstall() -> None:
    """Undoes `install()`; inside `installed()` the context manager stays in force."""
    _routed.set_global(False)


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """Routes lax's collectives through jaxcoll in this thread, within a `with` statement.

    What `custom_partitioning` partitions is lowered in a thread of XLA's: that takes `install()`.

    Raises: RuntimeError when entered in a function that is being traced, where it would have no
      effect: programs are lowered after they are traced. Enter it around the call instead.
      TuningError for a table named by JAXCOLL_TUNING that cannot be used.
    """
    _tuning.active()
    if compat.is_tracing():
        raise RuntimeError(
            "jaxcoll.installed() has no effect inside a function that JAX is tracing; "
            "enter it around the call of the jitted function"
        )
    _register()
    with _routed(True):
        yield


class Treatment(NamedTuple):
    """What install() does with one of lax's primitives."""

    primitive: str
    treatment: Literal["served", "left to XLA"]
    reason: str  # why it is left to XLA, or which of its uses are


def install_report() -> list[Treatment]:
    """What install() does with each collective primitive of the JAX that is running."""
    report = []
    for name in sorted(compat.parallel_primitives()):
        if name in _NOT_COLLECTIVE:
            continue
        if name in _BODIES:
            report.append(Treatment(name, "served", _EXCEPTIONS.get(name, "")))
        else:
            reason = _LEFT_TO_XLA.get(name, "not known to this version of jaxcoll")
            report.append(Treatment(name, "left to XLA", reason))
    return report


def unknown_primitives() -> list[str]:
    """lax's primitives that this version of jaxcoll has never heard of."""
    known = {*_BODIES, *_LEFT_TO_XLA, *_NOT_COLLECTIVE}
    return sorted(set(compat.parallel_primitives()) - known)


# --- what each primitive becomes ----------------------------------------------------------------
#
# Functions of the primitive's operands and parameters, in terms of jaxcoll's API.


def _psum(x: Any, *, axes: Any, axis_index_groups: Any = None) -> Any:
    return _api.psum(x, axes, axis_index_groups=axis_index_groups)


def _pmax(x: Any, *, axes: Any, axis_index_groups: Any = None) -> Any:
    return _api.pmax(x, axes, axis_index_groups=axis_index_groups)


def _pmin(x: Any, *, axes: Any, axis_index_groups: Any = None) -> Any:
    return _api.pmin(x, axes, axis_index_groups=axis_index_groups)


def _all_gather(
    x: Any,
    *,
    all_gather_dimension: int,
    axis_name: Any,
    axis_size: int,
    tiled: bool,
    axis_index_groups: Any = None,
) -> Any:
    return _api.all_gather(
        x, axis_name, axis=all_gather_dimension, tiled=tiled, axis_index_groups=axis_index_groups
    )


def _reduce_scatter(
    x: Any,
    *,
    scatter_dimension: int,
    axis_name: Any,
    axis_size: int,
    tiled: bool,
    axis_index_groups: Any = None,
) -> Any:
    return _api.psum_scatter(
        x,
        axis_name,
        scatter_dimension=scatter_dimension,
        tiled=tiled,
        axis_index_groups=axis_index_groups,
    )


def _all_to_all(
    x: Any,
    *,
    split_axis: int,
    concat_axis: int,
    axis_name: Any,
    axis_index_groups: Any,
    tiled: bool,
) -> Any:
    # lax adds and drops the dimension of an untiled exchange around the primitive.
    return _api.all_to_all(
        x, axis_name, split_axis, concat_axis, axis_index_groups=axis_index_groups, tiled=True
    )


def _ppermute(x: Any, *, axis_name: Any, perm: Sequence[tuple[int, int]]) -> Any:
    axes = compat.in_mesh_order(axis_name)
    if axes != tuple(axis_name):
        raise UnsupportedError(f"lax has rules of its own for ranks along {axis_name}")
    # lax counts ranks modulo their number.
    size = jax.lax.axis_size(axes)
    return _api.ppermute(x, axes, [(source % size, target % size) for source, target in perm])


def _pbroadcast(x: Any, *, axis_name: Any, source: int) -> Any:
    return _api.pbroadcast(x, axis_name, source)


def _ragged_all_to_all(*operands: Any, axis_name: Any, axis_index_groups: Any) -> Any:
    return _api.ragged_all_to_all(
        *operands, axis_name=axis_name, axis_index_groups=axis_index_groups
    )


_BODIES: dict[str, Callable[..., Any]] = {
    "psum": _psum,
    "psum_invariant": _psum,
    "unreduced_psum": _psum,
    "pmax": _pmax,
    "unreduced_pmax": _pmax,
    "pmin": _pmin,
    "unreduced_pmin": _pmin,
    "all_gather": _all_gather,
    "all_gather_invariant": _all_gather,
    "all_gather_reduced": _all_gather,
    "reduce_scatter": _reduce_scatter,
    "unreduced_reduce_scatter": _reduce_scatter,
    "all_to_all": _all_to_all,
    "ppermute": _ppermute,
    "pbroadcast": _pbroadcast,
    "ragged_all_to_all": _ragged_all_to_all,
}

_ORDERED = "complex numbers, which have no order, are left to XLA"
_GROUPS = "ragged axis_index_groups are left to XLA"
_EXCEPTIONS = {
    "psum": _GROUPS,
    "pmax": f"{_ORDERED}; {_GROUPS}",
    "pmin": f"{_ORDERED}; {_GROUPS}",
    "ppermute": "axes in another order than the mesh's are left to XLA",
}

_ASYNCHRONOUS = "XLA's own asynchronous form; jaxcoll's calls never block, so psum & co overlap too"
_ONE_SIDED = "needs GPUs: one process sends, another receives"
_LEFT_TO_XLA = {
    **{
        f"{name}_{half}": _ASYNCHRONOUS
        for name in (
            *("all_gather", "all_gather_reduced", "psum", "psum_invariant", "unreduced_psum"),
            *("reduce_scatter", "unreduced_reduce_scatter", "all_to_all", "pbroadcast", "ppermute"),
        )
        for half in ("start", "done")
    },
    "psend": _ONE_SIDED,
    "precv": _ONE_SIDED,
    "pbroadcast_dynamic": "its source is known only when the program runs",
}

# In lax's module of collectives, but they move nothing.
_NOT_COLLECTIVE = {"axis_index", "preduced", "vary_unreduced_cast", "vary_unreduced_cast_p"}


# --- the lowering rules -------------------------------------------------------------------------


def _register() -> None:
    """Puts a rule that looks at the switch in front of each of lax's, once per process.

    It stays there: with the switch off it is lax's own rule.
    """
    global _registered
    with _registration:
        if _registered:
            return
        primitives = compat.parallel_primitives()
        for name, body in _BODIES.items():
            if name in primitives:
                primitive = primitives[name]
                rule = _switched(body, compat.common_lowering_rule(primitive))
                compat.mlir.register_lowering(primitive, rule)
        _registered = True


def _switched(body: Callable[..., Any], lax_rule: Callable[..., Any]) -> Callable[..., Any]:
    ours = compat.mlir.lower_fun(body, multiple_results=False)

    def rule(ctx: Any, *operands: Any, **params: Any) -> Any:
        if not _routed.value:
            return lax_rule(ctx, *operands, **params)
        try:
            _lowering.check_served(ctx)
            # How a result varies was settled when lax's primitive was traced.
            with compat.unchecked_vma():
                return ours(compat.without_manual_axis_types(ctx), *operands, **params)
        except JaxcollError:  # another platform, several processes, a dtype without the op, ...
            return lax_rule(ctx, *operands, **params)

    return rule
