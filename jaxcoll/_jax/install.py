"""install(): lax's own collectives, and those that XLA inserts, through jaxcoll.

lax keeps its API, its types and its rules for differentiation and batching; only what its
primitives become in the compiled program changes. Collectives that XLA's partitioner inserts are
served after that, by the compiler's hook (`hook.py`). Calls that it cannot serve stay XLA's.

The switch is part of the key of JAX's caches: a function that was compiled under one setting is
compiled anew under the other, and both executables stay cached. For lax's collectives the setting
counts that is in force where a program is lowered, for XLA's the one where it is compiled: both are
at the first call of a jitted function, or at `.lower()` and `.compile()`.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, overload

import jax
import numpy as np

from jaxcoll._errors import ABOUT_THE_JOB, JaxcollError, UnsupportedError
from jaxcoll._jax import api, compat, hook, lowering
from jaxcoll.tune import table

_log = logging.getLogger("jaxcoll")

# The collectives that go through jaxcoll. The global value is install()'s, a thread's own value is
# installed()'s and wins.
_NOTHING, _PRIMITIVES, _ALL = "", "primitives", "all"
_routed = jax.make_user_context(default_value=_NOTHING)

_registration = threading.Lock()
_registered = False
_hook_trouble = ""  # why the compiler's hook could not be registered; guarded by _registration


def install(compiler: bool = True) -> None:
    """Routes collectives through jaxcoll in every thread, from now on until `uninstall()`.

    These are the ones that a program calls by `jax.lax`, and the ones that XLA inserts where arrays
    are sharded (`jax.jit` with a NamedSharding), from JAX 0.10.2 on; an older JAX logs one warning.

    Programs that are already compiled keep running as they are; calling the functions they came
    from compiles them anew. `install_report()` lists which collectives are served, and why some of
    their uses were left to XLA: whatever keeps jaxcoll from lowering a call, lax's rule takes over.
    A call that lax refuses too is refused in lax's words. Faults of the job's set-up are raised.

    Args:
      compiler: False serves those of `jax.lax` alone.

    Raises: TuningError for a table named by JAXCOLL_TUNING that cannot be used.
    """
    table.active()  # found here rather than while a program is lowered
    _register(compiler)
    _routed.set_global(_ALL if compiler else _PRIMITIVES)


def uninstall() -> None:
    """Undoes `install()`; inside `installed()` the context manager stays in force."""
    _routed.set_global(_NOTHING)


@contextlib.contextmanager
def installed(compiler: bool = True) -> Iterator[None]:
    """As `install()`, in this thread, within a `with` statement.

    A function that `custom_partitioning` partitions is lowered in a thread of XLA's: that takes
    `install()`.

    Args:
      compiler: False serves the collectives of `jax.lax` alone.

    Raises: RuntimeError when entered in a function that is being traced, where it would have no
      effect: programs are lowered after they are traced. Enter it around the call instead.
      TuningError for a table named by JAXCOLL_TUNING that cannot be used.
    """
    table.active()
    if compat.is_tracing():
        raise RuntimeError(
            "jaxcoll.installed() has no effect inside a function that JAX is tracing; "
            "enter it around the call of the jitted function"
        )
    _register(compiler)
    with _routed(_ALL if compiler else _PRIMITIVES):
        yield


class Treatment(NamedTuple):
    """How install() treats one of lax's primitives, or a collective that XLA inserts."""

    primitive: str  # "psum"; "all-reduce", with a hyphen, is XLA's
    treatment: Literal["served", "left to XLA"]
    reason: str  # why it is left to XLA, or which of its uses are
    fell_back: tuple[str, ...] = ()  # why this process has left some of its uses to XLA so far


@overload
def install_report() -> list[Treatment]: ...
@overload
def install_report(compiled: jax.stages.Compiled) -> hook.report.ProgramReport: ...
def install_report(
    compiled: jax.stages.Compiled | None = None,
) -> list[Treatment] | hook.report.ProgramReport:
    """How install() treats each kind of collective, or each collective of one program.

    Args:
      compiled: a program, `jax.jit(f).lower(...).compile()`. None: all kinds of the JAX that is
        running, by lax's names for its primitives and XLA's for what it inserts.

    Returns:
      A list of `Treatment`, whose `fell_back` tells what no other entry can: which uses jaxcoll
      could not serve and has left to XLA in this process, each reason once. For a program, a report
      of what was served and what was left, and why; print it.

    Raises: TypeError for what is no compiled program.
    """
    if compiled is not None:
        return hook.report_of(compiled)
    report = []
    for name in sorted(compat.parallel_primitives()):
        if name in _NOT_COLLECTIVE:
            continue
        if name in _BODIES:
            with _registration:
                fell_back = tuple(_noted.get(name, ()))
            report.append(Treatment(name, "served", _EXCEPTIONS.get(name, ""), fell_back))
        else:
            reason = _LEFT_TO_XLA.get(name, "not known to this version of jaxcoll")
            report.append(Treatment(name, "left to XLA", reason))
    return report + _of_xla()


def _of_xla() -> list[Treatment]:
    """How what XLA inserts is treated."""
    with _registration:
        trouble = _hook_trouble or hook.trouble()
    if trouble:
        return [Treatment(opcode, "left to XLA", trouble) for opcode in hook.OPCODES]
    reasons: dict[str, dict[str, None]] = {opcode: {} for opcode in hook.OPCODES}
    for report in hook.reports():
        for left in report.left:
            reasons.setdefault(left.origin.removesuffix("-start"), {})[left.reason] = None
    for opcode in hook.OPCODES:
        reasons[opcode].update(dict.fromkeys(hook.left_on_gpus()))
    return [
        Treatment(opcode, "served" if opcode in hook.OPCODES else "left to XLA", "", tuple(found))
        for opcode, found in reasons.items()
    ]


def unknown_primitives() -> list[str]:
    """lax's primitives that this version of jaxcoll has never heard of."""
    known = {*_BODIES, *_LEFT_TO_XLA, *_NOT_COLLECTIVE}
    return sorted(set(compat.parallel_primitives()) - known)


# --- what each primitive becomes ----------------------------------------------------------------
#
# Functions of the primitive's operands and parameters, in terms of jaxcoll's API.


def _psum(x: Any, *, axes: Any, axis_index_groups: Any = None) -> Any:
    return api.psum(x, axes, axis_index_groups=axis_index_groups)


def _pmax(x: Any, *, axes: Any, axis_index_groups: Any = None) -> Any:
    return api.pmax(x, axes, axis_index_groups=axis_index_groups)


def _pmin(x: Any, *, axes: Any, axis_index_groups: Any = None) -> Any:
    return api.pmin(x, axes, axis_index_groups=axis_index_groups)


def _all_gather(
    x: Any,
    *,
    all_gather_dimension: int,
    axis_name: Any,
    axis_size: int,
    tiled: bool,
    axis_index_groups: Any = None,
) -> Any:
    return api.all_gather(
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
    return api.psum_scatter(
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
    return api.all_to_all(
        x, axis_name, split_axis, concat_axis, axis_index_groups=axis_index_groups, tiled=True
    )


def _ppermute(x: Any, *, axis_name: Any, perm: Sequence[tuple[int, int]]) -> Any:
    axes = compat.in_mesh_order(axis_name)
    if axes != tuple(axis_name):
        raise UnsupportedError(f"lax has rules of its own for ranks along {axis_name}")
    return api.ppermute(x, axes, perm)


def _pbroadcast(x: Any, *, axis_name: Any, source: int) -> Any:
    return api.pbroadcast(x, axis_name, source)


def _ragged_all_to_all(*operands: Any, axis_name: Any, axis_index_groups: Any) -> Any:
    return api.ragged_all_to_all(
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


def _register(compiler: bool) -> None:
    """Puts a rule that looks at the switch in front of each of lax's, once per process.

    It stays there: with the switch off it is lax's own rule. So does the compiler's hook.
    """
    global _registered, _hook_trouble
    with _registration:
        if compiler and not _hook_trouble:
            _hook_trouble = hook.register(lambda: _routed.value == _ALL)
            if _hook_trouble:
                _log.warning(
                    "jaxcoll.install(): what XLA inserts is left to XLA: %s. lax's own collectives "
                    "are served",
                    _hook_trouble,
                )
        if _registered:
            return
        primitives = compat.parallel_primitives()
        for name, body in _BODIES.items():
            if name in primitives:
                primitive = primitives[name]
                rule = _switched(name, body, compat.common_lowering_rule(primitive))
                compat.mlir.register_lowering(primitive, rule)
        _registered = True


def _switched(
    name: str, body: Callable[..., Any], lax_rule: Callable[..., Any]
) -> Callable[..., Any]:
    ours = compat.mlir.lower_fun(body, multiple_results=False)

    def rule(ctx: Any, *operands: Any, **params: Any) -> Any:
        if not _routed.value:
            return lax_rule(ctx, *operands, **params)
        why: Exception
        try:
            # Errors of other types concern the job, not this program.
            lowering.check_served(ctx)
        except UnsupportedError as error:
            why = error
        else:
            try:
                # How a result varies, and what shards it, was settled when lax's primitive was
                # traced.
                with _undone_if_it_fails(ctx), compat.unchecked_vma():
                    return ours(compat.without_mesh_types(ctx), *operands, **params)
            except ABOUT_THE_JOB:
                raise
            except Exception as error:
                why = error
        results = lax_rule(ctx, *operands, **params)  # or lax's error, for what is one to lax, too
        _note(name, why)
        return results

    return rule


_noted: dict[str, list[str]] = {}  # guarded by _registration
_NOTED_AT_MOST = 16  # of a primitive: reasons may have shapes in them


def _note(name: str, why: Exception) -> None:
    """Remembers, and logs once, why one of lax's primitives was left to XLA."""
    foreseen = isinstance(why, JaxcollError)
    reason = str(why) if foreseen else f"{type(why).__name__}: {why}"
    with _registration:
        reasons = _noted.setdefault(name, [])
        if reason in reasons or len(reasons) >= _NOTED_AT_MOST:
            return
        reasons.append(reason)
    if not foreseen:
        _log.warning(
            "jaxcoll.install(): a %s that jaxcoll could not lower is left to XLA: %s", name, reason
        )


# --- what a rule that failed leaves behind -------------------------------------------------------


@contextlib.contextmanager
def _undone_if_it_fails(ctx: Any) -> Iterator[None]:
    """Takes back what a lowering rule emits inside when it raises, as another one takes over.

    Beside operations of the function at hand that is functions of the module, which may be
    unfinished, and what JAX remembers of them.
    """
    module = ctx.module_context
    caches = (module.lowering_cache, module.cached_primitive_lowerings)
    remembered = [set(cache) for cache in caches]
    lists = (module.keepalives, module.host_callbacks)
    lengths = [len(items) for items in lists]
    functions = set(_symbols(module))
    point = compat.ir.InsertionPoint.current
    # Operations emitted inside stand between this and what stood behind it before.
    before: Any = compat.mlir.ir_constant(np.zeros((), np.int32)).owner
    try:
        yield
    except BaseException:
        emitted = list(point.block.operations)
        emitted = emitted[emitted.index(before) + 1 :]
        end = point.ref_operation
        for op in reversed(emitted if end is None else emitted[: emitted.index(end)]):
            op.erase()
        for name, op in _symbols(module).items():
            if name not in functions:
                module.symbol_table.erase(op)
        for cache, keys in zip(caches, remembered, strict=True):
            for key in set(cache) - keys:
                del cache[key]
        for items, length in zip(lists, lengths, strict=True):
            del items[length:]
        raise
    finally:
        before.erase()


def _symbols(module_context: Any) -> dict[str, Any]:
    """The functions of a module by name."""
    body = module_context.module.body
    return {
        compat.ir.StringAttr(op.attributes["sym_name"]).value: op
        for op in body.operations
        if "sym_name" in op.attributes
    }
