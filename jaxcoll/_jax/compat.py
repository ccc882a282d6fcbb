"""The interfaces that JAX does not promise to keep: the only file that touches `jax._src` or a JAX
version.

Written against JAX 0.10 to 0.12. Nothing here initialises a back end, so that importing jaxcoll
before `jax.distributed.initialize` works.
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import jax
from jax._src import compiler as _compiler
from jax._src import config as _config
from jax._src import core as _core
from jax._src import dispatch as _dispatch
from jax._src import distributed as _distributed
from jax._src import mesh as _mesh
from jax._src import source_info_util as _source_info_util
from jax._src import xla_bridge as _xla_bridge
from jax._src.custom_partitioning_sharding_rule import (
    ArrayMapping,
    SdyShardingRule,
    sdy_sharding_rule_to_mlir,
)
from jax._src.export import _export
from jax._src.interpreters import mlir
from jax._src.interpreters import partial_eval as _pe
from jax._src.lax import parallel as _parallel
from jax._src.lib import _jax
from jax._src.lib import xla_client as _xla_client
from jax._src.lib.mlir import ir
from jax._src.lib.mlir.dialects import func, hlo, sdy
from jax._src.sharding_impls import SPMDAxisContext
from jax.extend.core import Primitive
from jax.interpreters import ad, batching
from jax.sharding import PartitionSpec as P

try:
    from jaxlib import _xla  # from 0.10.2 on
except ImportError:
    _xla = None

AxisName = Hashable
if TYPE_CHECKING:
    Value: TypeAlias = ir.Value[Any]
else:
    Value = ir.Value  # not a generic class when it runs
_OWN_FOLDER = os.path.dirname(__file__)
Sharding = Any  # an HloSharding: jaxlib ships no public name for it
HloSharding = _xla_client.HloSharding
OpSharding = _xla_client.OpSharding

__all__ = [
    "AxisName",
    "DistributedStore",
    "HloSharding",
    "OpSharding",
    "Primitive",
    "SPMDAxisContext",
    "Sharding",
    "Value",
    "ad",
    "batching",
    "byte_count",
    "canonicalize_axis",
    "check_axis_names",
    "check_not_unreduced",
    "check_vma",
    "define_dce",
    "define_impl",
    "define_partial_evaluation",
    "dictionary_entries",
    "distributed_store",
    "drop_one_sized_axes",
    "exported_custom_call",
    "func",
    "function_name",
    "hlo",
    "in_unreduced_state",
    "inserts_pvary",
    "ir",
    "is_constant",
    "is_constant_shape",
    "is_extended_dtype",
    "is_for_export",
    "is_mesh_of_context",
    "lowered_jaxpr",
    "manual_mesh_axes",
    "mlir",
    "named_axis_effects",
    "num_cpu_devices",
    "on_compiled",
    "program_devices",
    "register_ffi",
    "register_partitioner",
    "rewrite_exported_calls",
    "sdy",
    "sharding_rule",
    "source_line",
    "typed_mesh_axes",
    "varying_axes",
    "varying_in_context",
    "with_leading_dimension",
    "with_varying",
    "without_leading_dimension",
]


# --- registration -------------------------------------------------------------------------------


def register_ffi(
    platform: str,
    targets: Mapping[str, Mapping[str, Any]],
    types: Mapping[str, Mapping[str, Any]],
) -> None:
    """Registers FFI handlers and the state types they use, without starting a back end.

    A target whose state type is unknown is refused. A starting CPU client registers pending targets
    before pending types; its own type handler, installed here first, makes types known at once. The
    plugin for CUDA registers types first.
    """
    if platform == "cpu":
        _xla_client.register_custom_type_handler("cpu", _xla_client._xla.register_custom_type)
    for name, registration in types.items():
        jax.ffi.register_ffi_type(name, dict(registration), platform=platform)  # type: ignore[arg-type]
    for name, stages in targets.items():
        jax.ffi.register_ffi_target(name, dict(stages), platform=platform)


def num_cpu_devices() -> int:
    """The number that jax_num_cpu_devices asks for; -1 if it was not set."""
    return int(_xla_bridge.num_cpu_devices.value)


def exported_custom_call(target: str) -> Any:
    return jax.export.DisabledSafetyCheck.custom_call(target)


# --- jax.distributed -----------------------------------------------------------------------------


class DistributedStore:
    """The key-value store of `jax.distributed`, which its coordinator keeps. Any thread."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def set(self, key: str, value: bytes) -> None:
        """Sets a key for good; if it was set before, that value stands."""
        try:
            self._client.key_value_set_bytes(key, value)
        except jax.errors.JaxRuntimeError as error:
            if "ALREADY_EXISTS" not in str(error):
                raise

    def wait(self, key: str, deadline_s: float) -> bytes:
        """Raises: TimeoutError if nobody has set the key within `deadline_s` from now."""
        try:
            return bytes(self._client.blocking_key_value_get_bytes(key, round(deadline_s * 1000)))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
            raise TimeoutError(key) from None

    def list(self, folder: str) -> dict[str, bytes]:
        """The keys that are set below `folder`, which ends in a slash, and their values."""
        try:
            return {k: bytes(v) for k, v in self._client.key_value_dir_get_bytes(folder)}
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" not in str(error):
                raise
            return {}


def distributed_store() -> tuple[DistributedStore, int, int] | None:
    """The job's store, this process's index and the number of processes; None before
    `jax.distributed.initialize`. Starts no back end."""
    state = _distributed.global_state
    if state.client is None:
        return None
    return DistributedStore(state.client), state.process_id, state.num_processes


# --- tracing ------------------------------------------------------------------------------------


def check_axis_names(axes: Sequence[AxisName], api_name: str) -> None:
    """lax's own check: NameError for an axis that nothing maps."""
    _parallel._check_axis_names(tuple(axes), api_name)


def named_axis_effects(axes: Iterable[AxisName]) -> set[Any]:
    """Effects that keep an equation inside the scope that binds its axes."""
    return {_core.NamedAxisEffect(axis) for axis in axes}


def check_vma() -> bool:
    """Whether the enclosing shard_map tracks which values vary over which mesh axes."""
    return bool(_config._check_vma.value)


def inserts_pvary() -> bool:
    """Whether an invariant operand of a collective is cast to varying by itself, as in lax."""
    return check_vma() and bool(_config.auto_pcast.value)


def manual_mesh_axes(axes: Sequence[AxisName]) -> tuple[AxisName, ...]:
    """Those of `axes` that a shard_map binds; the others belong to a vmap."""
    manual = jax.sharding.get_abstract_mesh().manual_axes
    return tuple(axis for axis in axes if axis in manual)


def drop_one_sized_axes(axes: tuple[AxisName, ...]) -> tuple[AxisName, ...]:
    """lax's treatment of one-sized axes under `jax_remove_size_one_mesh_axis_from_type`."""
    return tuple(_parallel._maybe_skip_one_sized_axes(axes))


def typed_mesh_axes(axes: Sequence[AxisName]) -> tuple[AxisName, ...]:
    """Those of `manual_mesh_axes(axes)` that a type can name: JAX may leave out one-sized ones."""
    return manual_mesh_axes(drop_one_sized_axes(tuple(axes)))


def varying_axes(aval: Any) -> frozenset[AxisName]:
    return frozenset(aval.mat.varying)


def with_varying(aval: Any, varying: Iterable[AxisName], **changes: Any) -> Any:
    """`aval` with other varying axes (and `changes` of ShapedArray.update)."""
    return aval.update(manual_axis_type=aval.mat.update(varying=frozenset(varying)), **changes)


def varying_in_context(aval: Any, varying: Iterable[AxisName]) -> Any:
    """`aval` as a value of the shard_map that is being traced, varying over `varying`.

    A constant belongs to no mesh, and a value from outside of a nested shard_map to that of the
    outer one: only the mesh of the context has all the axes that may vary. As in lax's pvary.
    """
    sharding = aval.sharding.update(mesh=jax.sharding.get_abstract_mesh())
    return with_varying(aval, varying, sharding=sharding)


def with_leading_dimension(aval: Any, size: int) -> Any:
    """`aval` with one more, unsharded, dimension in front."""
    sharding = aval.sharding.update(spec=P(None, *aval.sharding.spec))
    return aval.update(shape=(size, *aval.shape), sharding=sharding)


def without_leading_dimension(aval: Any) -> Any:
    """One element of `aval` along its leading dimension."""
    sharding = aval.sharding.update(spec=P(*aval.sharding.spec[1:]))
    return aval.update(shape=aval.shape[1:], sharding=sharding)


def in_unreduced_state(x: Any, axes: Sequence[AxisName]) -> bool:
    """Whether `x` is a pending sum over some of `axes` (lax's `unreduced` values)."""
    return bool(set(axes) & set(jax.typeof(x).mat.unreduced))


def check_not_unreduced(aval: Any, axes: Sequence[AxisName], api_name: str) -> None:
    _core.check_unreduced_args([aval], tuple(axes), api_name)


def is_constant(x: Any) -> bool:
    return not isinstance(x, _core.Tracer)


def is_constant_shape(shape: Sequence[Any]) -> bool:
    """Whether every dimension is a number, not a symbol of `jax.export.symbolic_shape`."""
    return bool(_core.is_constant_shape(tuple(shape)))


def is_extended_dtype(dtype: Any) -> bool:
    return bool(jax.dtypes.issubdtype(dtype, jax.dtypes.extended))


def canonicalize_axis(axis: int, ndim: int) -> int:
    """A non-negative axis; ValueError, with lax's text, when it is out of range."""
    return int(_parallel.canonicalize_axis(axis, ndim))


def define_impl(primitive: Primitive) -> None:
    """Outside of any transformation a primitive is compiled and run by itself, as lax's are."""
    primitive.def_impl(partial(_dispatch.apply_primitive, primitive))


def define_dce(primitive: Primitive) -> None:
    """Dead results of a variadic primitive take the operands in the same position with them."""

    def rule(used: list[bool], *live_and_eqn: Any) -> tuple[list[bool], Any]:
        eqn = live_and_eqn[-1]  # from JAX 0.12 on, which inputs are live comes before it
        if not any(used):
            return [False] * len(eqn.invars), None
        if all(used):
            return used, eqn
        invars = [v for v, u in zip(eqn.invars, used, strict=True) if u]
        outvars = [v for v, u in zip(eqn.outvars, used, strict=True) if u]
        return used, eqn.replace(invars=invars, outvars=outvars)

    _pe.dce_rules[primitive] = rule


def define_partial_evaluation(primitive: Primitive) -> None:
    """Operands of a variadic primitive that are known keep their results known.

    By default one unknown operand makes all results unknown. Then a sum of constants would count as
    a function of what it shares a call with, and JAX could not transpose what it is used for.
    """

    def rule(trace: Any, *tracers: Any, **params: Any) -> list[Any]:
        known = [tracer.is_known() for tracer in tracers]
        results: list[Any] = [None] * len(tracers)
        for these in (True, False):
            places = [i for i, is_known in enumerate(known) if is_known is these]
            if places:
                part = [tracers[i] for i in places]
                values = trace.default_process_primitive(primitive, part, params)
                for i, value in zip(places, values, strict=True):
                    results[i] = value
        return results

    _pe.custom_partial_eval_rules[primitive] = rule


# --- lowering -----------------------------------------------------------------------------------


def is_for_export(ctx: Any) -> bool:
    return bool(ctx.module_context.lowering_parameters.for_export)


def is_mesh_of_context(mesh: Any) -> bool:
    """Whether `mesh` may have come from `jax.set_mesh` rather than from the program.

    JAX lowers such a program once and runs it on every mesh of that shape.
    """
    return mesh == _mesh.get_concrete_mesh()


def _local_of_caller(function: str, name: str) -> Any:
    """A local variable of the innermost caller of that name; None if there is none."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == function and frame.f_locals.get(name) is not None:
            return frame.f_locals[name]
        frame = frame.f_back
    return None


def program_devices() -> tuple[Any, ...] | None:
    """The devices of the program that is being lowered, by partition; None if it has none yet.

    JAX may run what it has lowered on other devices, too.
    """
    devices = _local_of_caller("lower_sharding_computation", "device_assignment")
    return None if devices is None else tuple(devices)


def lowered_jaxpr() -> Any:
    """The jaxpr of the program that is being lowered, closed before JAX 0.12; None if unknown."""
    return _local_of_caller("lower_jaxpr_to_module", "jaxpr")


def function_name(jaxpr: Any) -> str:
    """The name of the function that a (closed) jaxpr was traced from; "" if unknown."""
    info = getattr(getattr(jaxpr, "jaxpr", jaxpr), "debug_info", None)
    return str(getattr(info, "func_name", ""))


def source_line(eqn: Any) -> str:
    """The place of an equation in the user's code, "train.py:12 (step)"; "" if unknown."""
    for frame in _source_info_util.user_frames(eqn.source_info.traceback):
        folder, file = os.path.split(frame.file_name)
        if folder != _OWN_FOLDER:
            return f"{file}:{frame.start_line} ({frame.function_name})"
    return ""


def on_compiled(listener: Callable[[], None]) -> None:
    """Calls `listener` whenever the calling thread has compiled an executable, or loaded one."""

    def heard(event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            listener()

    jax.monitoring.register_event_duration_secs_listener(heard)


def byte_count(value: Value) -> int:
    """Bytes of a tensor; those of a type below a byte count as one each."""
    tensor = ir.RankedTensorType(value.type)
    return math.prod(tensor.shape) * max(1, _bits(tensor.element_type) // 8)


def _bits(element: ir.Type) -> int:
    if isinstance(element, ir.ComplexType):
        return 2 * _bits(element.element_type)
    return int(cast(Any, element).width)


def sharding_rule(
    operand_factors: Sequence[Sequence[str]],
    result_factors: Sequence[Sequence[str]],
    operand_types: Sequence[ir.Type],
    result_types: Sequence[ir.Type],
    replicated: Sequence[str],
) -> ir.Attribute:
    """An sdy.sharding_rule: which dimensions of operands and results are sharded alike.

    Args:
      operand_factors, result_factors: one name per dimension; equal names are sharded alike.
      replicated: the names along which nothing may be sharded.
    """
    rule = SdyShardingRule(
        tuple(ArrayMapping(*factors) for factors in operand_factors),
        tuple(ArrayMapping(*factors) for factors in result_factors),
        need_replication_factors=tuple(replicated),
    )
    return sdy_sharding_rule_to_mlir(rule, list(operand_types), list(result_types))


# --- partitioning -------------------------------------------------------------------------------


def register_partitioner(
    target: str,
    partition: Callable[..., Any],
    infer: Callable[..., Any],
    propagate: Callable[..., Any],
) -> None:
    """Tells XLA's partitioner how to split custom calls to `target`.

    partition(operand_shapes, operand_shardings, result_shape, result_sharding, config)
      -> (module as bytes, operand_shardings, result_sharding);
    infer(operand_shapes, operand_shardings, result_shape, config) -> result_sharding;
    propagate(result_sharding, result_shape, config) -> operand sharding.
    """
    _xla_client.register_custom_call_partitioner(
        target, propagate, partition, infer, can_side_effecting_have_replicated_sharding=True
    )
    # Plugins have a registry of their own, which is there once they have been found.
    _xla_bridge.register_plugin_callbacks(
        partial(
            _xla_client.register_custom_call_partitioner,
            name=target,
            prop_user_sharding=propagate,
            partition=partition,
            infer_sharding_from_operands=infer,
            can_side_effecting_have_replicated_sharding=True,
        )
    )


def dictionary_entries(dictionary: ir.Attribute) -> dict[str, ir.Attribute]:
    parsed: Any = ir.DictAttr(dictionary)
    return {item.name: item.attr for item in parsed}


# --- the compiler's hook ------------------------------------------------------------------------


def hook_trouble() -> str:
    """Why this JAX hands out no modules between partitioning and scheduling; "" if it does."""
    if not hasattr(_xla, "register_xla_transform"):
        return f"JAX {jax.__version__} has no hook in its compiler; 0.10.2 and later have one"
    if not hasattr(_compiler, "compile_or_get_cached"):
        return f"JAX {jax.__version__} compiles in another way than is known here"
    return ""


def register_module_transformation(name: str, transform: Callable[[bytes], bytes | None]) -> None:
    """Has `transform` called with every module that is compiled for CPUs, in any thread.

    JAX's own function for this starts the back ends in some versions.
    """
    _xla.register_xla_transform(name, 0, transform)  # 0: before the scheduler


_gpu_hook = "JAX has made no GPU's client in this process"  # why there is none


def gpu_hook_trouble() -> str:
    """Why modules for CUDA devices are not handed out; "" if they are."""
    return _gpu_hook


def register_gpu_module_transformation(
    name: str, transform: Callable[[bytes], bytes | None]
) -> None:
    """The same for CUDA devices, once JAX has loaded its plugin for them.

    The plugin has a compiler of its own, which takes transformations by an extension of its C
    interface. JAX 0.10.2 finds that by a client, so there must be a GPU; later versions by the
    plugin's name.
    """

    def register(plugin: Any) -> None:
        global _gpu_hook
        try:
            _xla.register_xla_transform_c_api(plugin, name, 0, transform)
            _gpu_hook = ""
        except RuntimeError as error:
            _gpu_hook = f"JAX's plugin for CUDA takes no transformation of modules: {error}"

    def on_client(client: Any) -> None:
        if platform_of(client) == "cuda" and _gpu_hook:
            register(client)

    def on_plugin(c_api: Any) -> None:  # called for the plugins of all platforms
        if _xla_client.pjrt_plugin_loaded("cuda") and _gpu_hook:
            register(_jax.get_pjrt_plugin("cuda"))

    if hasattr(_jax, "get_pjrt_plugin"):
        _xla_bridge.register_plugin_callbacks(on_plugin)
    else:
        _xla_bridge.register_backend_initialization_hook(on_client)


def platform_of(client: Any) -> str:
    """The platform of a client by the name that programs are lowered for: cuda, not gpu."""
    return str(getattr(client, "_raw_platform", client.platform))


def before_compilation(look: Callable[[ir.Module, Sequence[Any]], None]) -> None:
    """Has `look` called with each module that JAX is about to compile, or to look for in its
    persistent cache, and its devices, in the thread that asks for it."""
    compile_or_get_cached = _compiler.compile_or_get_cached

    def wrapper(
        backend: Any, computation: ir.Module, devices: Any, *rest: Any, **named: Any
    ) -> Any:
        look(computation, list(devices.flat))
        return compile_or_get_cached(backend, computation, devices, *rest, **named)

    _compiler.compile_or_get_cached = wrapper


# --- exported programs --------------------------------------------------------------------------


def rewrite_exported_calls(
    targets: Sequence[str],
    rewrite: Callable[[Any, str], Mapping[str, ir.Attribute]],
) -> None:
    """Lets the attributes of custom calls in exported programs depend on where these are called.

    When JAX lowers the call of a program that was exported with custom calls of these targets,
    ``rewrite(ctx, digest of the program)`` returns what replaces attributes of all of them, if
    anything.
    """
    primitive = _export.call_exported_p
    rule = common_lowering_rule(primitive)

    def target_of(op: Any) -> str:
        return str(ir.StringAttr(op.attributes["call_target_name"]).value)

    def custom_calls(functions: Iterable[Any]) -> list[Any]:
        found: list[Any] = []

        def look(op: Any) -> Any:
            if op.name == "stablehlo.custom_call" and target_of(op) in targets:
                found.append(op)
            return ir.WalkResult.ADVANCE

        for function in functions:
            function.operation.walk(look)
        return found

    def wrapped(ctx: Any, *operands: Any, exported: Any) -> Any:
        body = ctx.module_context.module.body
        before = {str(op.attributes["sym_name"]) for op in body if "sym_name" in op.attributes}
        results = rule(ctx, *operands, exported=exported)
        calls = custom_calls(
            op
            for op in body
            if "sym_name" in op.attributes and str(op.attributes["sym_name"]) not in before
        )
        if not calls:
            return results
        digest = hashlib.blake2b(exported.mlir_module_serialized, digest_size=8).hexdigest()
        changes = rewrite(ctx, digest)
        for call in calls:
            config = dictionary_entries(call.attributes["mhlo.backend_config"])
            call.attributes["mhlo.backend_config"] = ir.DictAttr.get({**config, **changes})
        return results

    mlir.register_lowering(primitive, wrapped)


# --- install ------------------------------------------------------------------------------------


def parallel_primitives() -> dict[str, Primitive]:
    """Every primitive in lax's module of collectives, by name."""
    return {value.name: value for value in vars(_parallel).values() if isinstance(value, Primitive)}


def common_lowering_rule(primitive: Primitive) -> Callable[..., Any]:
    """The rule of every platform that has none of its own; raises as JAX does where none exists."""
    entry = mlir._lowerings.get(primitive)
    if entry is not None:
        return entry.rule

    def rule(ctx: Any, *operands: Any, **params: Any) -> Any:
        platforms = ", ".join(ctx.module_context.platforms)
        raise NotImplementedError(
            f"MLIR translation rule for primitive '{primitive}' not found for platform {platforms}"
        )

    return rule


def without_mesh_types(ctx: Any) -> Any:
    """A lowering context whose operands are typed as under check_vma=False, on automatic axes."""
    plain = [
        aval.update(manual_axis_type=_core.ManualAxisType(), sharding=None)
        if hasattr(aval, "mat")
        else aval
        for aval in ctx.avals_in
    ]
    return ctx.replace(avals_in=plain)


def unchecked_vma() -> Any:
    """A context manager: what is traced inside is traced as under check_vma=False."""
    return _config._check_vma(False)


def in_mesh_order(axis_name: AxisName | Sequence[AxisName]) -> tuple[AxisName, ...]:
    """Axes in the order of the mesh that they belong to."""
    axes = axis_name if isinstance(axis_name, (tuple, list)) else (axis_name,)
    names = list(jax.sharding.get_abstract_mesh().axis_names)
    if not set(axes) <= set(names):
        # A function that custom_partitioning partitions is traced without a mesh: its axes alone
        # are bound.
        names = list(_core.get_axis_env().axis_sizes)
    return tuple(sorted(axes, key=names.index))


def is_tracing() -> bool:
    return not _core.trace_state_clean()
