"""Primitives -> custom calls: one body for all collectives.

docs/explanation/custom-call.md has the contract.

The text that goes into the HLO is size-free and equal on every process; in particular JAX may emit
equal equations once, so nothing here may count calls.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P

from jaxcoll._errors import UnsupportedError
from jaxcoll._jax import compat, custom_call, job_log
from jaxcoll._jax import primitives as prim
from jaxcoll._jax import program as _program
from jaxcoll._jax import shardings as _shardings
from jaxcoll._jax import startup as startup
from jaxcoll._jax.compat import Value, hlo, ir, mlir
from jaxcoll._job import membership, presence
from jaxcoll._native import native
from jaxcoll.tune import select
from jaxcoll.tune import table as _tuning

TARGET = "jaxcoll_collective"
# The same handlers for calls beside axes that XLA partitions. Only these have a partitioner:
# XLA runs it, in Python, for every call that has one, 7 ms of each call's compilation.
PARTITIONED_TARGET = "jaxcoll_collective_partitioned"
_GPU = "cuda"
SERVED_PLATFORMS = ("cpu", _GPU) if native.cuda_built else ("cpu",)

Factors = list[str]


@dataclasses.dataclass(frozen=True)
class _Group:
    """The participants of one call."""

    groups: np.ndarray  # int64, (groups, ranks per group): logical ids
    device_ids: list[int] | None  # None: known only when the program runs
    # Whether the program may run on other devices than those of its mesh: each of its calls then
    # says where it runs, and device_ids, if there are any, are checked against that.
    movable: bool
    ranks_per_node: int  # as membership.ranks_per_node
    processes: int  # that a group reaches into, at most
    hosts: int  # the same
    on_gpu: bool
    exported: bool
    axes: tuple[int, ...]  # sizes of the mesh axes that are the group; () with axis_index_groups
    program: str  # fingerprint of the program where there are several, or may be; "" else
    agreed: bool  # whether its processes must pick alike: several compile it
    label: str

    @property
    def size(self) -> int:
        return int(self.groups.shape[1])


@dataclasses.dataclass(frozen=True)
class _Call:
    """One custom call, but for its operands."""

    collective: str
    group: _Group
    algorithm: str
    schedule: str
    reduce_op: str = ""
    root: int = 0
    permutation: tuple[tuple[int, int], ...] = ()

    def _signature(self, operands: Sequence[Value]) -> str:
        if self.group.processes == 1 and not self.group.exported:
            return ""  # nobody else must tell this call from others
        return ", ".join(str(operand.type) for operand in operands)

    def _table(self) -> tuple[_tuning.Table | None, str]:
        """The table that resolves "auto", and its digest for the HLO; raises TuningError."""
        if self.algorithm != "auto" or self.schedule or self.group.on_gpu:
            return None, ""
        if self.group.agreed:
            membership.agree_on_tuning()
        return _tuning.active(), _tuning.digest()

    def attributes(self, operands: Sequence[Value]) -> dict[str, ir.Attribute]:
        table, tuning = self._table()
        algorithm, dims = select.choose(
            self.collective,
            self.algorithm,
            self.group.size,
            byte_count=sum(compat.byte_count(operand) for operand in operands),
            ranks_per_node=self.group.ranks_per_node,
            processes=self.group.processes,
            hosts=self.group.hosts,
            axes=self.group.axes,
            on_gpu=self.group.on_gpu,
            table=table,
        )

        def text(value: str) -> ir.Attribute:
            return ir.StringAttr.get(value)

        def integer(value: int) -> ir.Attribute:
            return ir.IntegerAttr.get(ir.IntegerType.get_signless(64), value)

        def integers(values: Any) -> ir.Attribute:
            return ir.DenseI64ArrayAttr.get([int(value) for value in np.ravel(values)])

        return {
            "collective": text(self.collective),
            "algorithm": text("custom" if self.schedule else algorithm),
            "reduce_op": text(self.reduce_op),
            "groups": integers(self.group.groups),
            "group_size": integer(self.group.size),
            "device_ids": integers(self.group.device_ids or []),
            "root": integer(self.root),
            "permutation": integers(self.permutation),
            "dims": integers(dims),
            "channels": integer(1),
            "separate_blocks": integer(0),
            "schedule": text(self.schedule),
            "tuning": text(tuning),
            "program": text(self.group.program),
            "signature": text(self._signature(operands)),
            "label": text(self.group.label),
        }


def check_served(ctx: Any) -> None:
    """Raises UnsupportedError where no collective of a program can be served."""
    context = ctx.module_context.axis_context
    if not isinstance(context, compat.SPMDAxisContext):
        raise UnsupportedError("no axes are bound by a shard_map or pmap")
    unserved = [p for p in ctx.module_context.platforms if p not in SERVED_PLATFORMS]
    if unserved == [_GPU]:
        raise UnsupportedError(
            "this build of jaxcoll has no GPU kernels; reinstall it where nvcc is on PATH (CMake's "
            "JAXCOLL_CUDA=ON says what is missing), or use jax.lax's collectives"
        )
    if unserved:
        raise UnsupportedError(
            f"jaxcoll serves the platforms {', '.join(SERVED_PLATFORMS)}, but this program is "
            f"lowered for {', '.join(unserved)}; use jax.lax's collectives there"
        )
    if compat.is_for_export(ctx):
        return  # where it runs is known when it is called: _bind_exported
    mesh = _mesh(ctx)
    membership.check_platforms(mesh)
    membership.start(mesh)
    if _on_gpu(ctx):
        membership.start_gpus(mesh)


def _on_gpu(ctx: Any) -> bool:
    return _GPU in ctx.module_context.platforms


def _mesh(ctx: Any) -> Mesh | AbstractMesh:
    """The mesh of the innermost shard_map, with devices if somebody must know them: where other
    processes may have some of them, and on GPUs.

    A nested shard_map's own has none, nor has one that was made without.
    """
    mesh = ctx.module_context.axis_context.mesh
    if not isinstance(mesh, AbstractMesh) or (jax.process_count() == 1 and not _on_gpu(ctx)):
        return mesh
    return membership.mesh_of(mesh, compat.program_devices())


def _group(ctx: Any, axis_name: Sequence[Any], axis_index_groups: Any) -> _Group:
    check_served(ctx)
    _check_shapes_are_known(ctx)
    mesh = _mesh(ctx)
    exported = compat.is_for_export(ctx)
    # Exported programs, and those whose mesh comes from the context or is that of a nested
    # shard_map, run on other devices too.
    abstract = isinstance(ctx.module_context.axis_context.mesh, AbstractMesh)
    movable = exported or abstract or compat.is_mesh_of_context(mesh)
    # Where groups reach into other processes, one must know which: there a program that has moved
    # to another order of the devices is refused when it runs.
    processes = [] if exported else membership.processes(mesh)
    hosts = [] if exported else membership.hosts(mesh)
    one_process = len(set(processes)) <= 1
    program = "" if one_process else _program.announce()
    if exported:
        program = _program.fingerprint()
    # On GPUs the host must know, and the kernel compares the logical id of a moved program.
    known = not movable or not one_process or (_on_gpu(ctx) and not exported)
    device_ids = membership.device_ids(mesh) if known else None
    groups = membership.logical_groups(mesh.shape, axis_name, axis_index_groups)
    label = membership.label(axis_name, mesh.shape, groups.shape[1])
    if not exported:
        job_log.devices()
        job_log.communicator(label, groups, membership.device_ids(mesh), _on_gpu(ctx))
        if mesh.size == 1:
            job_log.one_device()
    return _Group(
        groups=groups,
        device_ids=device_ids,
        movable=movable,
        ranks_per_node=membership.ranks_per_node(groups, processes, hosts),
        processes=membership.owners_per_group(groups, processes),
        hosts=membership.owners_per_group(groups, hosts),
        on_gpu=_on_gpu(ctx),
        exported=exported,
        axes=() if axis_index_groups else tuple(mesh.shape[axis] for axis in axis_name),
        program=program,
        agreed=not one_process,
        label=label,
    )


def _check_shapes_are_known(ctx: Any) -> None:
    """Refuses what could be exported and never be called.

    Where an exported program is called, JAX puts numbers in place of its symbols. The results of a
    custom call get their shapes from operands that say them, and within a shard_map JAX cannot
    compute these: what infers its own shape works there, as XLA's collectives do, and nothing else.
    """
    for aval in ctx.avals_in:
        if not compat.is_constant_shape(aval.shape):
            raise UnsupportedError(
                f"jaxcoll cannot export a collective of symbolic shape {aval.str_short()}: within "
                "a shard_map JAX finds no shapes for custom calls when the program is called; "
                "export it once for each shape, or use jax.lax's collective here"
            )


def _is_partially_manual(ctx: Any) -> bool:
    context = ctx.module_context.axis_context
    return frozenset(context.manual_axes) != frozenset(context.mesh.axis_names)


def _logical_id(ctx: Any) -> Value:
    """This device's position in the mesh, uint32[]."""
    if not _is_partially_manual(ctx):
        return hlo.partition_id()
    axes = tuple(ctx.module_context.axis_context.mesh.axis_names)

    def position() -> jax.Array:
        return lax.axis_index(axes).astype(np.uint32)

    # Only a fully manual region can name the axes that XLA partitions.
    def lowered() -> list[jax.Array]:
        return [jax.shard_map(position, in_specs=(), out_specs=P(), check_vma=False)()]

    (value,) = mlir.lower_fun(lowered)(ctx.replace(primitive=None, avals_in=()))
    while isinstance(value, (list, tuple)):
        (value,) = value
    return value


# --- element types ------------------------------------------------------------------------------


# Types below a byte cross the engine as wider ones. Narrowing back is exact for integers: they
# wrap, so what is dropped at the end could have been dropped on the way. float4 is reduced in
# float32, like every small float, and rounded once; every float4 is a float8.
_CARRIERS_MOVING = {"i2": "i8", "i4": "i8", "ui2": "ui8", "ui4": "ui8", "f4E2M1FN": "f8E4M3FN"}
_CARRIERS_REDUCING = {**_CARRIERS_MOVING, "f4E2M1FN": "f32"}


def _carrier(element: ir.Type, reduces: bool) -> ir.Type:
    """The engine's type for an element type: the type itself if it has a byte or more."""
    carriers = _CARRIERS_REDUCING if reduces else _CARRIERS_MOVING
    name = carriers.get(str(element))
    return element if name is None else ir.Type.parse(name)


def _with_element(tensor: ir.Type, element: ir.Type) -> ir.Type:
    return ir.RankedTensorType.get(ir.RankedTensorType(tensor).shape, element)


def _converted(value: Value, element: ir.Type) -> Value:
    if ir.RankedTensorType(value.type).element_type == element:
        return value
    return hlo.convert(_with_element(value.type, element), value)


def _shape(value: Value) -> list[int]:
    return list(ir.RankedTensorType(value.type).shape)


# --- the call -----------------------------------------------------------------------------------


def _emit(
    ctx: Any, call: _Call, operands: Sequence[Value], result_types: Sequence[ir.Type]
) -> list[Value]:
    """Emits the custom call; every operand is of a type that the engine has."""
    attributes = call.attributes(operands)
    operands = list(operands)
    if call.group.movable:
        operands.append(_logical_id(ctx))
    target, extra = TARGET, None
    if _is_partially_manual(ctx):
        target = PARTITIONED_TARGET
        extra = {"sdy.sharding_rule": _sharding_rule(call.collective, operands, result_types)}
    return custom_call.emit(target, operands, result_types, attributes, extra)


def _lower_vectors(
    ctx: Any, call: _Call, vectors: Sequence[Value], result_shapes: Sequence[Sequence[int]]
) -> list[Value]:
    """Lowers a collective that turns each vector into one result of the same element type."""
    elements = [ir.RankedTensorType(vector.type).element_type for vector in vectors]
    results = [
        ir.RankedTensorType.get(list(shape), element)
        for shape, element in zip(result_shapes, elements, strict=True)
    ]
    live = [i for i, vector in enumerate(vectors) if 0 not in _shape(vector)]
    if call.group.size == 1:
        live = []
    # Without peers or elements the result is the operand under another shape.
    values = [
        vector if i in live or vector.type == result else hlo.reshape(result, vector)
        for i, (vector, result) in enumerate(zip(vectors, results, strict=True))
    ]
    if live:
        carriers = [_carrier(elements[i], reduces=bool(call.reduce_op)) for i in live]
        outputs = _emit(
            ctx,
            call,
            [_converted(vectors[i], to) for i, to in zip(live, carriers, strict=True)],
            [_with_element(results[i], to) for i, to in zip(live, carriers, strict=True)],
        )
        for i, output in zip(live, outputs, strict=True):
            values[i] = _converted(output, elements[i])
    return values


def _lower_all_reduce(
    ctx: Any,
    *operands: Value,
    op: str,
    axis_name: Any,
    axis_index_groups: Any,
    algorithm: str,
    schedule: str,
    invariant: bool,
) -> list[Value]:
    group = _group(ctx, axis_name, axis_index_groups)
    call = _Call("all_reduce", group, algorithm, schedule, reduce_op=op)
    return _lower_vectors(ctx, call, operands, [_shape(x) for x in operands])


def _lower_reduce_scatter(
    ctx: Any,
    operand: Value,
    *,
    op: str,
    axis_name: Any,
    axis_index_groups: Any,
    algorithm: str,
    schedule: str,
) -> list[Value]:
    group = _group(ctx, axis_name, axis_index_groups)
    call = _Call("reduce_scatter", group, algorithm, schedule, reduce_op=op)
    return _lower_vectors(ctx, call, [operand], [_shape(operand)[1:]])


def _lower_all_gather(
    ctx: Any,
    operand: Value,
    *,
    axis_name: Any,
    axis_index_groups: Any,
    algorithm: str,
    schedule: str,
    invariant: bool,
) -> list[Value]:
    group = _group(ctx, axis_name, axis_index_groups)
    call = _Call("all_gather", group, algorithm, schedule)
    return _lower_vectors(ctx, call, [operand], [[group.size, *_shape(operand)]])


def _lower_all_to_all(
    ctx: Any,
    operand: Value,
    *,
    axis_name: Any,
    axis_index_groups: Any,
    algorithm: str,
    schedule: str,
) -> list[Value]:
    group = _group(ctx, axis_name, axis_index_groups)
    call = _Call("all_to_all", group, algorithm, schedule)
    return _lower_vectors(ctx, call, [operand], [_shape(operand)])


def _lower_broadcast(
    ctx: Any,
    operand: Value,
    *,
    root: int,
    axis_name: Any,
    axis_index_groups: Any,
    algorithm: str,
    schedule: str,
    invariant: bool,
) -> list[Value]:
    group = _group(ctx, axis_name, axis_index_groups)
    call = _Call("broadcast", group, algorithm, schedule, root=root)
    return _lower_vectors(ctx, call, [operand], [_shape(operand)])


# Types of a byte that have no zero: a byte of zeros is a power of two. Zero converted to them
# becomes NaN, a byte of ones.
_WITHOUT_ZERO = {"f8E8M0FNU"}


def _lower_ppermute(
    ctx: Any,
    operand: Value,
    *,
    perm: tuple[tuple[int, int], ...],
    axis_name: Any,
    axis_index_groups: Any,
    algorithm: str,
    schedule: str,
) -> list[Value]:
    group = _group(ctx, axis_name, axis_index_groups)
    if group.size == 1 and not perm:
        (zeros,) = mlir.lower_fun(lambda x: [lax.full_like(x, 0)])(ctx, operand)
        return [zeros]
    call = _Call("permute", group, algorithm, schedule, permutation=perm)
    tensor = ir.RankedTensorType(operand.type)
    if str(tensor.element_type) not in _WITHOUT_ZERO or len(perm) == group.size:
        return _lower_vectors(ctx, call, [operand], [_shape(operand)])
    # The engine leaves zero bits where nothing arrives: move the complements of all bits.
    bits = _with_element(operand.type, ir.IntegerType.get_unsigned(8))
    flipped = hlo.not_(hlo.bitcast_convert(bits, operand))
    (moved,) = _lower_vectors(ctx, call, [flipped], [_shape(operand)])
    return [hlo.bitcast_convert(operand.type, hlo.not_(moved))]


_FIT_INT32 = {"i2", "i4", "i8", "i16", "i32", "ui2", "ui4", "ui8", "ui16"}


def _lower_ragged_all_to_all(
    ctx: Any,
    operand: Value,
    output: Value,
    *indices: Value,
    axis_name: Any,
    axis_index_groups: Any,
    algorithm: str,
    schedule: str,
) -> list[Value]:
    group = _group(ctx, axis_name, axis_index_groups)
    call = _Call("ragged_all_to_all", group, algorithm, schedule)
    if 0 in _shape(operand) or 0 in _shape(output):
        return [output]  # nothing is sent
    # The engine takes offsets and sizes of one type, int32 or int64.
    fits = {str(ir.RankedTensorType(x.type).element_type) for x in indices} <= _FIT_INT32
    index_type = ir.IntegerType.get_signless(32 if fits else 64)
    element = ir.RankedTensorType(operand.type).element_type
    carried = [_converted(x, _carrier(element, reduces=False)) for x in (operand, output)]
    tables = [_converted(x, index_type) for x in indices]
    (result,) = _emit(ctx, call, [*carried, *tables], [carried[1].type])
    return [_converted(result, element)]


_rules: dict[compat.Primitive, Callable[..., list[Value]]] = {
    prim.all_reduce_p: _lower_all_reduce,
    prim.reduce_scatter_p: _lower_reduce_scatter,
    prim.all_gather_p: _lower_all_gather,
    prim.all_to_all_p: _lower_all_to_all,
    prim.broadcast_p: _lower_broadcast,
    prim.ppermute_p: _lower_ppermute,
    prim.ragged_all_to_all_p: _lower_ragged_all_to_all,
    prim.pvary_p: lambda ctx, x, **_: [x],
}
for _primitive, _rule in _rules.items():
    mlir.register_lowering(_primitive, _rule)


# --- partially manual meshes --------------------------------------------------------------------
#
# XLA partitions the axes that a shard_map leaves to it. Unless it knows that a collective over the
# other axes may run shard by shard, it gathers the operands first.


def _roles(collective: str, ranks: Sequence[int]) -> tuple[list[Factors], list[Factors], Factors]:
    """Names for the dimensions of operands and results, and those that must not be sharded.

    Args:
      ranks: the number of dimensions of each operand.
    """
    if collective == "ragged_all_to_all":
        inner = [f"d{j}" for j in range(1, ranks[0])]
        operands = [["rows_in", *inner], ["rows_out", *inner]]
        operands += [[f"i{i}"] * rank for i, rank in enumerate(ranks[2:])]
        fixed = ["rows_in", "rows_out", *(names[0] for names in operands[2:] if names)]
        return operands, [["rows_out", *inner]], fixed
    dims = [[f"d{i}_{j}" for j in range(rank)] for i, rank in enumerate(ranks)]
    if collective == "all_gather":
        return dims, [["ranks", *dims[0]]], ["ranks"]
    if collective == "reduce_scatter":
        return dims, [dims[0][1:]], [dims[0][0]]
    if collective == "all_to_all":
        return dims, [dims[0]], [dims[0][0]]
    return dims, dims, []


def _sharding_rule(
    collective: str, operands: Sequence[Value], result_types: Sequence[ir.Type]
) -> ir.Attribute:
    factors_in, factors_out, fixed = _roles(collective, [len(_shape(x)) for x in operands])
    return compat.sharding_rule(
        factors_in,
        factors_out[: len(result_types)],  # the logical id has no result
        [x.type for x in operands],
        result_types,
        fixed,
    )


def _collective_of(config: bytes | str) -> str:
    """The collective that a custom call's attributes, as XLA prints them, name."""
    text = config.decode() if isinstance(config, bytes) else config
    return custom_call.string_attribute(text, "collective")


def _partitioned(
    collective: str, operand_shardings: Sequence[compat.Sharding], result_count: int
) -> tuple[list[compat.Sharding], list[compat.Sharding]]:
    """Shardings of operands and results under which each shard is a call of its own."""
    operands = list(operand_shardings)
    if collective in ("reduce_scatter", "all_to_all"):
        operands[0] = _shardings.replicate_leading_dimension(operands[0])
    if collective == "ragged_all_to_all":
        operands = [_shardings.replicate_leading_dimension(s) for s in operands]
        operands[0] = operands[1]
        return operands, [operands[1]]
    if collective == "reduce_scatter":
        return operands, [_shardings.sharding_without_leading_dimension(operands[0])]
    if collective == "all_gather":
        return operands, [_shardings.sharding_with_leading_dimension(operands[0])]
    return operands, operands[:result_count]


def _shapes(shape: Any) -> list[Any]:
    return list(shape.tuple_shapes()) if shape.is_tuple() else [shape]


def _partition(
    operand_shapes: Sequence[Any],
    operand_shardings: Sequence[compat.Sharding],
    result_shape: Any,
    result_sharding: compat.Sharding,
    config: bytes | str,
) -> tuple[bytes, list[compat.Sharding], compat.Sharding]:
    result_shapes = _shapes(result_shape)
    operands, results = _partitioned(_collective_of(config), operand_shardings, len(result_shapes))

    def shards(shapes: Sequence[Any], shardings: Sequence[compat.Sharding]) -> list[Any]:
        return [
            (sharding.tile(shape).dimensions(), shape.numpy_dtype())
            for shape, sharding in zip(shapes, shardings, strict=True)
        ]

    module = custom_call.module(
        TARGET,
        config.decode() if isinstance(config, bytes) else config,
        shards(operand_shapes, operands),
        shards(result_shapes, results),
    )
    return module, operands, _shardings.tuple_sharding(result_shape, results)


def _infer(
    operand_shapes: Sequence[Any],
    operand_shardings: Sequence[compat.Sharding],
    result_shape: Any,
    config: bytes | str,
) -> compat.Sharding:
    count = len(_shapes(result_shape))
    _, results = _partitioned(_collective_of(config), operand_shardings, count)
    return _shardings.tuple_sharding(result_shape, results)


def _propagate(result_sharding: compat.Sharding, shape: Any, config: bytes | str) -> Any:
    return result_sharding


compat.register_partitioner(PARTITIONED_TARGET, _partition, _infer, _propagate)


# --- exported programs --------------------------------------------------------------------------


def _bind_exported(ctx: Any, digest: str) -> dict[str, ir.Attribute]:
    """The facts that an exported program's calls need where it runs on GPUs or on several
    processes.

    That is what `_group` would have told them: where the logical ids are, and of which program
    they are a part.
    """
    if compat.is_for_export(ctx) or (jax.process_count() == 1 and not _on_gpu(ctx)):
        return {}
    devices = compat.program_devices()
    if devices is None:
        raise UnsupportedError(
            "this exported program is called where its devices are not known; call it in a jax.jit "
            "whose arguments have shardings, or set a mesh with jax.set_mesh"
        )
    attributes: dict[str, ir.Attribute] = {}
    device_ids = ir.DenseI64ArrayAttr.get([device.id for device in devices])
    if _on_gpu(ctx):
        membership.start_gpus()
        attributes = {"device_ids": device_ids}
    if len({device.process_index for device in devices}) > 1:
        presence.start_engine()
        program = ir.StringAttr.get(_program.announce(digest))
        attributes = {"program": program, "device_ids": device_ids}
    return attributes


compat.rewrite_exported_calls([TARGET, PARTITIONED_TARGET], _bind_exported)


def export_checks() -> list[Any]:
    """The safety checks that `jax.export.export` must skip for programs that use jaxcoll.

    Example: ``jax.export.export(f, disabled_checks=jaxcoll.export_checks())``. The exported program
    runs in any process that imports this version of jaxcoll.
    """
    return [compat.exported_custom_call(target) for target in (TARGET, PARTITIONED_TARGET)]
