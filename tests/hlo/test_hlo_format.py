"""The format of XLA's modules, as far as jaxcoll reads it, is that of the installed jaxlib.

The tables list every field and every opcode that jaxcoll has met. A JAX that has others is to be
looked at: may they say who takes part in a collective, or what becomes of the values?
"""

from __future__ import annotations

import importlib.util
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.message import DecodeError
from support import hlo, private_jax

from jaxcoll._hlo import proto, serve

# The messages that jaxcoll reads, and all of their fields that it has met: name, number, type.
SEEN = {
    ("Layout", "LayoutProto"): """
        minor_to_major 1 int64*, tiles 6 TileProto*, element_size_in_bits 7 int64,
        memory_space 8 int64, dim_level_types 9 DimLevelType*, physical_shape 10 ShapeProto,
        index_primitive_type 11 PrimitiveType, pointer_primitive_type 12 PrimitiveType,
        dim_unique 13 bool*, dim_ordered 14 bool*, dynamic_shape_metadata_prefix_bytes 15
        int64, tail_padding_alignment_in_elements 16 int64, split_configs 17
        SplitConfigProto*
    """,
    ("Shape", "ShapeProto"): """
        element_type 2 PrimitiveType, dimensions 3 int64*, tuple_shapes 4 ShapeProto*,
        layout 5 LayoutProto, is_dynamic_dimension 6 bool*
    """,
    ("ProgramShape", "ProgramShapeProto"): """
        parameters 1 ShapeProto*, result 2 ShapeProto, parameter_names 3 string*
    """,
    ("Literal", "LiteralProto"): """
        shape 1 ShapeProto, preds 2 bool*, u8s 3 bytes, s32s 4 int32*, s64s 5 int64*, u32s 6
        uint32*, u64s 7 uint64*, f32s 8 float*, f64s 9 double*, tuple_literals 10
        LiteralProto*, f16s 11 bytes, c64s 12 float*, bf16s 13 bytes, sparse_indices 14
        int64*, s8s 15 bytes, u16s 16 bytes, s16s 17 bytes, c128s 18 double*, f8e5m2s 19
        bytes, f8e4m3fns 20 bytes, s4s 21 bytes, u4s 22 bytes, f8e4m3b11fnuzs 23 bytes,
        f8e5m2fnuzs 24 bytes, f8e4m3fnuzs 25 bytes, s2s 26 bytes, u2s 27 bytes, f8e4m3s 28
        bytes, f8e3m4s 29 bytes, s1s 30 bytes, u1s 31 bytes, f4e2m1fns 32 bytes, f8e8m0fnus
        33 bytes, dynamic_sizes 34 int32*, f6e3m2fns 35 bytes, f6e2m3fns 36 bytes
    """,
    ("Metadata", "OpMetadata"): """
        op_type 1 string, op_name 2 string, source_file 3 string, source_line 4 int32,
        profile_type 5 ProfileType*, size_of_generated_code_in_bytes 8 int64,
        size_of_memory_working_set_in_bytes 9 int64, profile_info 10 ProfileInfo,
        deduplicated_name 12 string, stack_frame_id 15 int32, scheduling_name 16 string,
        source_end_line 17 int32, source_column 18 int32, source_end_column 19 int32,
        metadata_payload 20 Payload
    """,
    ("Group", "ReplicaGroup"): "replica_ids 1 int64*",
    ("IotaGroups", "IotaReplicaGroupListProto"): """
        num_replica_groups 1 int64, num_devices_per_group 2 int64, iota_reshape_dims 3
        int64*, iota_transpose_perm 4 int32*
    """,
    # The second was there before hlo.proto's field 92.
    ("GroupList", "CollectiveDeviceListProto"): """
        replica_groups 1 ReplicaGroup*, iota_replica_group_list 2 IotaReplicaGroupListProto
    """,
    ("MeshAxis", "MeshProto.MeshAxis"): "name 1 string, size 2 int64",
    ("IotaTransform", "MeshProto.IotaTransform"): "reshape_dims 1 int64*, transpose_perm 2 int64*",
    ("Mesh", "MeshProto"): """
        axes 1 MeshAxis*, device_ids 2 int64*, iota_transform 3 IotaTransform
    """,
    ("SubAxis", "AxisRefProto.SubAxis"): "pre_size 1 int64, size 2 int64",
    ("AxisRef", "AxisRefProto"): "mesh_axis_index 1 int64, sub_axis_info 2 SubAxis",
    ("MeshAxesGroups", "MeshAxesReplicaGroupListProto"): "mesh 1 MeshProto, axes 2 AxisRefProto*",
    ("SourceTarget", "SourceTarget"): "source 1 int64, target 2 int64",
    (
        "SliceDimensions",
        "HloInstructionProto.SliceDimensions",
    ): "start 1 int64, limit 2 int64, stride 3 int64",
    ("Attribute", "FrontendAttributes.MapEntry"): "key 1 string, value 2 string",
    ("Attributes", "FrontendAttributes"): "map 1 MapEntry*",
    ("Instruction", "HloInstructionProto"): """
        name 1 string, opcode 2 string, shape 3 ShapeProto, metadata 7 OpMetadata, literal 8
        LiteralProto, parameter_number 9 int64, fusion_kind 11 string, tuple_index 13 int64,
        dimensions 14 int64*, window 15 Window, convolution_dimension_numbers 16
        ConvolutionDimensionNumbers, slice_dimensions 17 SliceDimensions*, exponent_bits 18
        int32, mantissa_bits 19 int32, dynamic_slice_sizes 20 int64*, padding_config 21
        PaddingConfig, outfeed_config 22 bytes, distribution 23 RandomDistribution, epsilon
        24 float, feature_index 25 int64, channel_id 26 int64, infeed_config 27 bytes,
        custom_call_target 28 string, outfeed_shape 29 ShapeProto, dot_dimension_numbers 30
        DotDimensionNumbers, fft_type 31 FftType, fft_length 32 int64*,
        gather_dimension_numbers 33 GatherDimensionNumbers, gather_slice_sizes 34 int64*, id
        35 int64, operand_ids 36 int64*, control_predecessor_ids 37 int64*,
        called_computation_ids 38 int64*, sharding 40 OpSharding, backend_config 43 bytes,
        all_reduce_id 45 int64, is_host_transfer 47 bool, scatter_dimension_numbers 48
        ScatterDimensionNumbers, replica_groups 49 ReplicaGroup*, feature_group_count 50
        int64, precision_config 51 PrecisionConfig, source_target_pairs 52 SourceTarget*,
        domain_entry_sharding 54 OpSharding, domain_exit_sharding 55 OpSharding,
        constrain_layout 56 bool, operand_shapes_with_layout 57 ShapeProto*,
        batch_group_count 58 int64, triangular_solve_options 59 TriangularSolveOptions,
        is_stable 60 bool, parameter_replication 61 ParameterReplication, cholesky_options
        62 CholeskyOptions, comparison_direction 63 string, custom_call_has_side_effect 65
        bool, delta 66 int64, indices_are_sorted 67 bool, frontend_attributes 68
        FrontendAttributes, unique_indices 69 bool, rng_algorithm 70 RandomAlgorithm,
        use_global_device_ids 71 bool, comparison_type 72 string, is_cross_program_prefetch
        73 bool, output_operand_aliasing 74 OutputOperandAliasing*, padding_type 75
        PaddingType, custom_call_schedule 76 CustomCallSchedule, custom_call_api_version 77
        CustomCallApiVersion, async_execution_thread 79 string, cross_program_prefetch_index
        80 int32, k 81 int64, statistics_viz 82 StatisticsViz, largest 85 bool,
        collective_device_list 87 CollectiveDeviceListProto, original_value 88
        OriginalValueProto, is_composite 89 bool, ragged_dot_dimension_numbers 90
        RaggedDotDimensionNumbers, result_accuracy 91 ResultAccuracy,
        iota_collective_device_list 92 IotaReplicaGroupListProto,
        mesh_axes_replica_group_list 93 MeshAxesReplicaGroupListProto, is_reverse 94 bool,
        num_carries 95 int64, is_associative 96 TriState, conv_kind 97 ConvolutionKind,
        sparsity_config 98 SparsityConfig, backend_config_payload 99 Payload,
        has_dynamic_root 100 bool, block_scaling_config 101 BlockScalingConfig,
        comparison_order 102 string, shuffle_mode 103 ShuffleMode
    """,
    ("Computation", "HloComputationProto"): """
        name 1 string, instructions 2 HloInstructionProto*, program_shape 4
        ProgramShapeProto, id 5 int64, root_id 6 int64, is_fusion_computation 7 bool,
        execution_thread 8 string, backend_config 9 bytes
    """,
    ("ComputationDevice", "DeviceAssignmentProto.ComputationDevice"): "replica_device_ids 1 int64*",
    ("DeviceAssignment", "DeviceAssignmentProto"): """
        replica_count 1 int32, computation_count 2 int32, computation_devices 3
        ComputationDevice*
    """,
    ("FileLocation", "StackFrameIndexProto.FileLocation"): """
        file_name_id 1 int32, function_name_id 2 int32, line 3 int32, column 4 int32,
        end_line 5 int32, end_column 6 int32
    """,
    (
        "StackFrame",
        "StackFrameIndexProto.StackFrame",
    ): "file_location_id 1 int32, parent_frame_id 2 int32",
    ("StackFrameIndex", "StackFrameIndexProto"): """
        file_names 1 string*, function_names 2 string*, file_locations 3 FileLocation*,
        stack_frames 4 StackFrame*
    """,
    ("Module", "HloModuleProto"): """
        name 1 string, entry_computation_name 2 string, computations 3 HloComputationProto*,
        host_program_shape 4 ProgramShapeProto, id 5 int64, entry_computation_id 6 int64,
        schedule 7 HloScheduleProto, input_output_alias 8 HloInputOutputAliasProto,
        cross_program_prefetches 10 CrossProgramPrefetch*, is_dynamic 11 bool,
        spmd_output_sharding 12 OpSharding, profile_info 13 ProfileInfo*,
        spmd_parameters_shardings 14 OpSharding*, device_assignment 15
        DeviceAssignmentProto, use_auto_spmd_partitioning 16 bool, stack_frame_index 17
        StackFrameIndexProto, buffer_donor 18 HloBufferDonorProto, frontend_attributes 19
        FrontendAttributes, original_value_recovery_table 20
        OriginalValueRecoveryTableProto, device_type 21 string, payloads 22 bytes*, pjrt_id
        23 int64, debug_attributes 24 DebugAttributeTableEntryProto*, backend_config 25
        bytes
    """,
}

# Opcodes of instructions in which devices take part together, or which wrap these.
SEEN_OPCODES = {
    *("all-gather", "all-gather-start", "all-gather-done"),
    *("all-reduce", "all-reduce-start", "all-reduce-done"),
    *("collective-permute", "collective-permute-start", "collective-permute-done"),
    *("all-to-all", "ragged-all-to-all", "reduce-scatter", "collective-broadcast"),
    "collective-reduce",  # from 0.12 on; left to XLA
    *("async-start", "async-update", "async-done"),
    *("send", "send-done", "recv", "recv-done"),
}


def libraries() -> list[Path]:
    jaxlib = importlib.util.find_spec("jaxlib")
    assert jaxlib is not None
    assert jaxlib.origin is not None
    return sorted(Path(jaxlib.origin).parent.glob("*.so"))


def varint(data: Any, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def end_of_file_descriptor(data: Any, begin: int) -> int:
    """Where the fields of a FileDescriptorProto that begins with its name end."""
    at = begin
    while True:
        key, after = varint(data, at)
        number, wire_type = key >> 3, key & 7
        if not 1 <= number <= 14 or wire_type not in (0, 2) or (number == 1 and at > begin):
            return at
        value, after = varint(data, after)
        at = after + value if wire_type == 2 else after


def file_descriptor(name: str) -> Any:
    """The descriptor of a .proto file that is linked into jaxlib."""
    tag = b"\x0a" + bytes([len(name)]) + name.encode()
    for library in libraries():
        with (
            library.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            begin = data.find(tag)
            while begin >= 0:
                try:
                    end = end_of_file_descriptor(data, begin)
                    return descriptor_pb2.FileDescriptorProto.FromString(data[begin:end])
                except (DecodeError, IndexError):  # the name stands in other files' lists, too
                    begin = data.find(tag, begin + 1)
    pytest.fail(f"no {name} in jaxlib")


_SCALARS = {
    descriptor_pb2.FieldDescriptorProto.Type.Value(f"TYPE_{name.upper()}"): name
    for name in (
        *("double", "float", "int64", "uint64", "int32", "uint32"),
        *("bool", "string", "bytes"),
    )
}


def type_of(field: Any) -> str:
    name = field.type_name.rpartition(".")[2] or _SCALARS.get(field.type, f"type {field.type}")
    return name + ("*" if field.label == field.LABEL_REPEATED else "")


def messages(found: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for message in found:
        yield prefix + message.name, message
        yield from messages(message.nested_type, f"{prefix}{message.name}.")


@pytest.fixture(scope="module")
def fields() -> dict[str, dict[str, str]]:
    """Message -> name of a field -> "number type"."""
    return {
        name: {field.name: f"{field.number} {type_of(field)}" for field in message.field}
        for file in ("xla/service/hlo.proto", "xla/xla_data.proto")
        for name, message in messages(file_descriptor(file).message_type)
    }


def seen(text: str) -> dict[str, str]:
    return dict(field.split(maxsplit=1) for field in " ".join(text.split()).split(", "))


def test_every_field_of_the_messages_that_are_read_is_known(
    fields: dict[str, dict[str, str]],
) -> None:
    news = {
        xla: new
        for (_, xla), text in SEEN.items()
        if (new := set(fields[xla].items()) - set(seen(text).items()))
    }
    assert news == {}, "may these say who takes part in a collective, or what it computes?"


def test_the_fields_that_are_read_are_xlas(fields: dict[str, dict[str, str]]) -> None:
    """By name, number and encoding. Older ones lack some."""
    assert {ours for ours, _ in SEEN} == set(proto._TYPES)
    names = {xla: ours for ours, xla in SEEN}
    for (ours, _), text in SEEN.items():
        for field in proto._TYPES[ours]:
            name, number, kind = field.split()
            their_number, theirs = seen(text)[name].split()
            assert number == their_number, f"{ours}.{name}"
            assert kind.endswith("*") == theirs.endswith("*"), f"{ours}.{name}"
            kind, theirs = kind.rstrip("*"), theirs.rstrip("*")
            # Enumerations are read as numbers, messages of which only the presence counts as bytes.
            enumeration = kind == "int32" and theirs not in fields
            opaque = kind == "bytes" and theirs in fields
            nested = [n for n in names if n.rpartition(".")[2] == theirs]
            same = kind == theirs or kind in {names[n] for n in nested}
            assert same or enumeration or opaque, f"{ours}.{name}: {kind}, not {theirs}"


def test_every_opcode_of_a_collective_is_known() -> None:
    """jaxlib's binding names all opcodes; those that sound like one are looked up."""
    signs = ("All", "Collective", "Scatter", "Async", "Send", "Recv", "Permute", "Ragged")
    also = {"scatter", "select-and-scatter", "after-all", "ragged-dot", "call"}
    opcodes = {
        "".join(f"-{c.lower()}" if c.isupper() else c for c in name[1:]).lstrip("-")
        for name in private_jax.hlo_opcodes()
        if any(sign in name for sign in signs)
    }
    assert "all-reduce" in opcodes
    assert opcodes - also <= SEEN_OPCODES
    assert set(serve.OPCODES) | serve._ASYNCHRONOUS | serve.DONE <= SEEN_OPCODES


EVERYTHING = """
HloModule everything, input_output_alias={ {0}: (0, {}, must-alias) }, frontend_attributes={a="b"}
sum { a = bf16[] parameter(0)
  b = bf16[] parameter(1)
  ROOT c = bf16[] add(a, b) }
ENTRY e {
  p = bf16[2,8]{1,0:T(8,128)(2,1)S(1)} parameter(0), sharding={devices=[2,1]<=[2]}
  w = bf16[8,4]{1,0} parameter(1)
  d = bf16[2,4]{1,0} dot(p, w), lhs_contracting_dims={1},
    rhs_contracting_dims={0}, operand_precision={highest,high},
    metadata={op_name="f/dot" source_file="a.py" source_line=3}
  r = bf16[2,4]{1,0} all-reduce(d), channel_id=1, replica_groups=[2,4]<=[4,2]T(1,0),
    use_global_device_ids=true, to_apply=sum, frontend_attributes={x="y"}
  z = bf16[] constant(1.5)
  y = bf16[4,6]{1,0} pad(r, z), padding=1_1x1_1_0
  s = (bf16[4,6]{1,0}, s32[4,6]{1,0}) custom-call(y), custom_call_target="f",
    output_to_operand_aliasing={{0}: (0, {})}, custom_call_has_side_effect=true, backend_config="{}"
  g = bf16[4,6]{1,0} get-tuple-element(s), index=0
  ROOT t = (bf16[2,8]{1,0}, bf16[4,6]{1,0}) tuple(p, g), control-predecessors={r}
}
"""


def test_fields_that_are_not_read_survive() -> None:
    """XLA prints the same before and after; two modules of equal text have equal bytes."""
    before = hlo.serialized(EVERYTHING)
    after = proto.Module.FromString(before).SerializeToString(deterministic=True)
    texts = [private_jax.text_of_hlo(module) for module in (before, after)]
    assert texts[0] == texts[1]
    assert "output_to_operand_aliasing" in texts[1]
    assert "operand_precision={highest,high}" in texts[1]
    again = proto.Module.FromString(after).SerializeToString(deterministic=True)
    assert again == after


def test_fields_of_the_future_survive_and_are_noticed() -> None:
    """On every level: a module's, an instruction's, a shape's."""
    module = hlo.of_text(EVERYTHING)
    extra = b"\xf2\x7d\x03abc"  # field 2014, bytes
    instruction = module.computations[-1].instructions[0]
    assert 2014 not in set(proto.unknown_fields(instruction))
    instruction.shape.layout.MergeFromString(extra)
    assert 2014 in set(proto.unknown_fields(instruction))
    module.MergeFromString(extra)
    again = proto.Module.FromString(module.SerializeToString())
    assert again.SerializeToString(deterministic=True).count(extra) == 2
    assert 2014 in set(proto.unknown_fields(again.computations[-1].instructions[0]))
