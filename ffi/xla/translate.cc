#include "xla/translate.h"

#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace jaxcoll {

namespace ffi = ::xla::ffi;

namespace {

std::optional<DType> ToDType(ffi::DataType type) {
  switch (type) {
    case ffi::DataType::PRED:
      return DType::kBool;
    case ffi::DataType::S8:
      return DType::kInt8;
    case ffi::DataType::S16:
      return DType::kInt16;
    case ffi::DataType::S32:
      return DType::kInt32;
    case ffi::DataType::S64:
      return DType::kInt64;
    case ffi::DataType::U8:
      return DType::kUint8;
    case ffi::DataType::U16:
      return DType::kUint16;
    case ffi::DataType::U32:
      return DType::kUint32;
    case ffi::DataType::U64:
      return DType::kUint64;
    case ffi::DataType::F8E3M4:
      return DType::kFloat8E3M4;
    case ffi::DataType::F8E4M3:
      return DType::kFloat8E4M3;
    case ffi::DataType::F8E4M3B11FNUZ:
      return DType::kFloat8E4M3B11Fnuz;
    case ffi::DataType::F8E4M3FN:
      return DType::kFloat8E4M3Fn;
    case ffi::DataType::F8E4M3FNUZ:
      return DType::kFloat8E4M3Fnuz;
    case ffi::DataType::F8E5M2:
      return DType::kFloat8E5M2;
    case ffi::DataType::F8E5M2FNUZ:
      return DType::kFloat8E5M2Fnuz;
    case ffi::DataType::F8E8M0FNU:
      return DType::kFloat8E8M0Fnu;
    case ffi::DataType::F16:
      return DType::kFloat16;
    case ffi::DataType::BF16:
      return DType::kBFloat16;
    case ffi::DataType::F32:
      return DType::kFloat32;
    case ffi::DataType::F64:
      return DType::kFloat64;
    case ffi::DataType::C64:
      return DType::kComplex64;
    case ffi::DataType::C128:
      return DType::kComplex128;
    default:
      return std::nullopt;  // sub-byte types: the lowering widens them
  }
}

// Reads attributes until one is missing; then says which.
class AttributeReader {
 public:
  explicit AttributeReader(ffi::Dictionary attributes) : attributes_(attributes) {}

  void Read(std::string_view name, std::string& value) {
    if (auto read = attributes_.get<std::string_view>(name); read.has_value()) {
      value = std::string(*read);
    } else {
      missing_ = name;
    }
  }
  void Read(std::string_view name, int64_t& value) {
    if (auto read = attributes_.get<int64_t>(name); read.has_value()) {
      value = *read;
    } else {
      missing_ = name;
    }
  }
  void Read(std::string_view name, std::vector<int64_t>& value) {
    if (auto read = attributes_.get<ffi::Span<const int64_t>>(name); read.has_value()) {
      value.assign(read->begin(), read->end());
    } else {
      missing_ = name;
    }
  }
  const std::string& missing() const { return missing_; }

 private:
  ffi::Dictionary attributes_;
  std::string missing_;
};

StatusOr<CallShape::Array> ShapeOf(const ffi::AnyBuffer& buffer) {
  const std::optional<DType> dtype = ToDType(buffer.element_type());
  if (!dtype) {
    return InvalidArgument("the engine has no XLA element type " +
                           std::to_string(static_cast<int>(buffer.element_type())));
  }
  return CallShape::Array{*dtype, {buffer.dimensions().begin(), buffer.dimensions().end()}};
}

}  // namespace

ffi::Error ToFfiError(const Status& status) {
  const auto code = [&] {
    switch (status.code()) {
      case StatusCode::kOk:
        return ffi::ErrorCode::kOk;
      case StatusCode::kInvalidArgument:
        return ffi::ErrorCode::kInvalidArgument;
      case StatusCode::kDeadlineExceeded:
        return ffi::ErrorCode::kDeadlineExceeded;
      case StatusCode::kCancelled:
        return ffi::ErrorCode::kCancelled;
      case StatusCode::kFailedPrecondition:
        return ffi::ErrorCode::kFailedPrecondition;
      case StatusCode::kUnavailable:
        return ffi::ErrorCode::kUnavailable;
      case StatusCode::kInternal:
        return ffi::ErrorCode::kInternal;
    }
    return ffi::ErrorCode::kInternal;
  }();
  return ffi::Error(code, "jaxcoll: " + status.message());
}

StatusOr<CallSpec> ReadCallSpec(ffi::Dictionary attributes) {
  CallSpec spec;
  AttributeReader reader(attributes);
  reader.Read("collective", spec.collective);
  reader.Read("algorithm", spec.algorithm);
  reader.Read("reduce_op", spec.reduce_op);
  reader.Read("groups", spec.groups);
  reader.Read("group_size", spec.group_size);
  reader.Read("device_ids", spec.device_ids);
  reader.Read("root", spec.root);
  reader.Read("permutation", spec.permutation);
  reader.Read("dims", spec.dims);
  reader.Read("channels", spec.channels);
  reader.Read("schedule", spec.schedule);
  reader.Read("program", spec.program);
  reader.Read("signature", spec.signature);
  reader.Read("label", spec.label);
  if (!reader.missing().empty()) {
    return InvalidArgument(
        "the custom call has no attribute '" + reader.missing() +
        "' of the expected type; was the program exported by another version of jaxcoll?");
  }
  return spec;
}

StatusOr<const uint32_t*> LogicalIdOf(const CallCore& core, ffi::RemainingArgs arguments,
                                      ffi::RemainingRets results) {
  const size_t operands = core.vector_operands(results.size());
  if (arguments.size() == operands) return nullptr;
  if (arguments.size() != operands + 1) {
    return InvalidArgument("the custom call has " + std::to_string(arguments.size()) +
                           " operands, " + std::to_string(operands) + " expected");
  }
  const auto logical = arguments.get<ffi::AnyBuffer>(operands);
  if (logical->element_type() != ffi::DataType::U32 || logical->element_count() != 1) {
    return InvalidArgument("the logical id operand must be one uint32");
  }
  return logical->reinterpret_data<uint32_t>();
}

StatusOr<CallShape> ShapeOf(const CallCore& core, ffi::RemainingArgs arguments,
                            ffi::RemainingRets results) {
  CallShape shape;
  for (size_t i = 0; i < core.vector_operands(results.size()); ++i) {
    StatusOr<CallShape::Array> array = ShapeOf(*arguments.get<ffi::AnyBuffer>(i));
    if (!array.ok()) return array.status();
    shape.inputs.push_back(std::move(*array));
  }
  for (size_t i = 0; i < results.size(); ++i) {
    StatusOr<CallShape::Array> array = ShapeOf(**results.get<ffi::AnyBuffer>(i));
    if (!array.ok()) return array.status();
    shape.outputs.push_back(std::move(*array));
  }
  return shape;
}

CallBuffers::CallBuffers(const CallCore& core, ffi::RemainingArgs arguments,
                         ffi::RemainingRets results)
    : inputs(core.vector_operands(results.size())), outputs(results.size()) {
  for (size_t i = 0; i < inputs.span().size(); ++i) {
    inputs[i] = arguments.get<ffi::AnyBuffer>(i)->untyped_data();
  }
  for (size_t i = 0; i < results.size(); ++i) {
    outputs[i] = (*results.get<ffi::AnyBuffer>(i))->untyped_data();
  }
}

}  // namespace jaxcoll
