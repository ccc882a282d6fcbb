"""The part of XLA's HLO format that jaxcoll reads or writes, as protocol buffers.

Descriptors are built at import, in a separate pool: any protobuf from version 4 on works, and
another copy of hlo.proto in the process (TensorFlow has one) does no harm. Fields that are not
listed survive, because protobuf keeps unknown fields.

Numbers and names are those of `xla/service/hlo.proto` and `xla/xla_data.proto`; what the types are
called is not part of the format.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.unknown_fields import UnknownFieldSet

_SCALARS = {
    "int64": descriptor_pb2.FieldDescriptorProto.TYPE_INT64,
    "uint64": descriptor_pb2.FieldDescriptorProto.TYPE_UINT64,
    "uint32": descriptor_pb2.FieldDescriptorProto.TYPE_UINT32,
    "int32": descriptor_pb2.FieldDescriptorProto.TYPE_INT32,
    "bool": descriptor_pb2.FieldDescriptorProto.TYPE_BOOL,
    "string": descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
    # Also for messages of which nothing but the presence matters.
    "bytes": descriptor_pb2.FieldDescriptorProto.TYPE_BYTES,
}

# Type: its fields, "name number type", "name number type*" where it is repeated.
_TYPES = {
    "Layout": ["minor_to_major 1 int64*", "tail_padding_alignment_in_elements 16 int64"],
    "Shape": [
        "element_type 2 int32",
        "dimensions 3 int64*",
        "tuple_shapes 4 Shape*",
        "layout 5 Layout",
        "is_dynamic_dimension 6 bool*",
    ],
    "ProgramShape": ["parameters 1 Shape*", "result 2 Shape", "parameter_names 3 string*"],
    "Literal": ["s32s 4 int32*", "s64s 5 int64*", "u32s 6 uint32*", "u64s 7 uint64*"],
    "Metadata": [
        "op_type 1 string",
        "op_name 2 string",
        "source_file 3 string",
        "source_line 4 int32",
        "stack_frame_id 15 int32",
    ],
    "Group": ["replica_ids 1 int64*"],
    "IotaGroups": [
        "num_replica_groups 1 int64",
        "num_devices_per_group 2 int64",
        "iota_reshape_dims 3 int64*",
        "iota_transpose_perm 4 int32*",
    ],
    "GroupList": ["replica_groups 1 Group*", "iota_replica_group_list 2 IotaGroups"],
    "MeshAxis": ["name 1 string", "size 2 int64"],
    "IotaTransform": ["reshape_dims 1 int64*", "transpose_perm 2 int64*"],
    "Mesh": ["axes 1 MeshAxis*", "device_ids 2 int64*", "iota_transform 3 IotaTransform"],
    "SubAxis": ["pre_size 1 int64", "size 2 int64"],
    "AxisRef": ["mesh_axis_index 1 int64", "sub_axis_info 2 SubAxis"],
    "MeshAxesGroups": ["mesh 1 Mesh", "axes 2 AxisRef*"],
    "SourceTarget": ["source 1 int64", "target 2 int64"],
    "SliceDimensions": ["start 1 int64", "limit 2 int64", "stride 3 int64"],
    "Attribute": ["key 1 string", "value 2 string"],
    "Attributes": ["map 1 Attribute*"],
    "Instruction": [
        "name 1 string",
        "opcode 2 string",
        "shape 3 Shape",
        "metadata 7 Metadata",
        "literal 8 Literal",
        "parameter_number 9 int64",
        "fusion_kind 11 string",
        "tuple_index 13 int64",
        "dimensions 14 int64*",
        "slice_dimensions 17 SliceDimensions*",
        "dynamic_slice_sizes 20 int64*",
        "channel_id 26 int64",
        "custom_call_target 28 string",
        "id 35 int64",
        "operand_ids 36 int64*",
        "control_predecessor_ids 37 int64*",
        "called_computation_ids 38 int64*",
        "sharding 40 bytes",
        "backend_config 43 bytes",
        "replica_groups 49 Group*",
        "source_target_pairs 52 SourceTarget*",
        "constrain_layout 56 bool",
        "operand_shapes_with_layout 57 Shape*",
        "custom_call_has_side_effect 65 bool",
        "frontend_attributes 68 Attributes",
        "use_global_device_ids 71 bool",
        "custom_call_api_version 77 int32",
        "statistics_viz 82 bytes",
        "collective_device_list 87 GroupList",
        "original_value 88 bytes",
        "iota_collective_device_list 92 IotaGroups",
        "mesh_axes_replica_group_list 93 MeshAxesGroups",
    ],
    "Computation": [
        "name 1 string",
        "instructions 2 Instruction*",
        "program_shape 4 ProgramShape",
        "id 5 int64",
        "root_id 6 int64",
        "is_fusion_computation 7 bool",
        "execution_thread 8 string",
    ],
    "ComputationDevice": ["replica_device_ids 1 int64*"],
    "DeviceAssignment": [
        "replica_count 1 int32",
        "computation_count 2 int32",
        "computation_devices 3 ComputationDevice*",
    ],
    "FileLocation": ["file_name_id 1 int32", "function_name_id 2 int32", "line 3 int32"],
    "StackFrame": ["file_location_id 1 int32", "parent_frame_id 2 int32"],
    "StackFrameIndex": [
        "file_names 1 string*",
        "function_names 2 string*",
        "file_locations 3 FileLocation*",
        "stack_frames 4 StackFrame*",
    ],
    "Module": [
        "name 1 string",
        "computations 3 Computation*",
        "entry_computation_id 6 int64",
        "device_assignment 15 DeviceAssignment",
        "stack_frame_index 17 StackFrameIndex",
        "frontend_attributes 19 Attributes",
    ],
}


def _types() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name="jaxcoll/hlo.proto", package="jaxcoll.hlo", syntax="proto3"
    )
    for type_name, fields in _TYPES.items():
        message = file.message_type.add(name=type_name)
        for field in fields:
            name, number, kind = field.split()
            repeated, kind = kind.endswith("*"), kind.rstrip("*")
            made = message.field.add(name=name, number=int(number))
            made.label = made.LABEL_REPEATED if repeated else made.LABEL_OPTIONAL
            if kind in _SCALARS:
                made.type = _SCALARS[kind]
            else:
                made.type, made.type_name = made.TYPE_MESSAGE, f".jaxcoll.hlo.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"jaxcoll.hlo.{name}"))
        for name in _TYPES
    }


_made = _types()
Module: Any = _made["Module"]
Computation: Any = _made["Computation"]
Instruction: Any = _made["Instruction"]
Shape: Any = _made["Shape"]


def unknown_fields(message: Any) -> list[int]:
    """The numbers of fields in a message, or in one within it, that are not listed here.

    Metadata, which decides nothing, is not looked at.
    """
    # Most messages have none, which protobuf finds out faster than a walk does.
    known = type(message)()
    known.CopyFrom(message)
    if isinstance(message, Instruction):
        known.ClearField("metadata")
    size = known.ByteSize()
    known.DiscardUnknownFields()
    return [] if known.ByteSize() == size else list(_unknown_fields(message))


def _unknown_fields(message: Any) -> Iterator[int]:
    fields: Any = UnknownFieldSet(message)
    for field in fields:
        yield field.field_number
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None and descriptor.message_type.name != "Metadata":
            for inner in value if isinstance(value, _Repeated) else [value]:
                yield from _unknown_fields(inner)


_Repeated = type(Module().computations)
