#include "xla/handler.h"

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "executor/call_site.h"
#include "xla/ffi/api/ffi.h"

namespace jaxcoll {
namespace {

namespace ffi = ::xla::ffi;

// The one place where a Status becomes an XLA error.
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

// What instantiate makes: one per custom-call instruction, shared by the devices of the process.
struct Instruction {
  static ffi::TypeId id;
  static ffi::TypeInfo info;

  std::unique_ptr<CallSite> site;
};
ffi::TypeId Instruction::id = {};
ffi::TypeInfo Instruction::info = ffi::MakeTypeInfo<Instruction>();

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

ffi::ErrorOr<std::unique_ptr<Instruction>> Instantiate(ffi::Dictionary attributes) {
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
    return ffi::Unexpected(ToFfiError(InvalidArgument(
        "the custom call has no attribute '" + reader.missing() +
        "' of the expected type; was the program exported by another version of jaxcoll?")));
  }
  StatusOr<std::unique_ptr<CallSite>> site = CallSite::Create(std::move(spec));
  if (!site.ok()) return ffi::Unexpected(ToFfiError(site.status()));
  auto instruction = std::make_unique<Instruction>();
  instruction->site = std::move(*site);
  return instruction;
}

class FutureCompletion final : public Completion {
 public:
  void Done(const Status& status) override {
    if (status.ok()) {
      promise_.SetAvailable();
    } else {
      promise_.SetError(ToFfiError(status));
    }
  }
  const ffi::Promise& promise() const { return promise_; }

 private:
  ffi::Promise promise_;
};

ffi::Future Completed(const Status& status) {
  FutureCompletion completion;
  completion.Done(status);
  return ffi::Future(completion.promise());
}

StatusOr<CallShape::Array> ShapeOf(const ffi::AnyBuffer& buffer) {
  const std::optional<DType> dtype = ToDType(buffer.element_type());
  if (!dtype) {
    return InvalidArgument("the engine has no XLA element type " +
                           std::to_string(static_cast<int>(buffer.element_type())));
  }
  return CallShape::Array{*dtype, {buffer.dimensions().begin(), buffer.dimensions().end()}};
}

StatusOr<CallShape> ShapeOf(ffi::RemainingArgs arguments, size_t argument_count,
                            ffi::RemainingRets results) {
  CallShape shape;
  for (size_t i = 0; i < argument_count; ++i) {
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

// Most calls have one operand, gradients have hundreds.
template <typename T>
class PointerList {
 public:
  explicit PointerList(size_t size) : size_(size) {
    if (size > few_.size()) many_.resize(size);
  }
  T& operator[](size_t i) { return many_.empty() ? few_[i] : many_[i]; }
  std::span<T const> span() const { return {many_.empty() ? few_.data() : many_.data(), size_}; }

 private:
  size_t size_;
  std::array<T, 8> few_;
  std::vector<T> many_;
};

// Never blocks: the future completes on a worker thread when all ranks of the group have arrived.
ffi::Future Execute(ffi::RunId run_id, int32_t device_id, Instruction* instruction,
                    ffi::RemainingArgs arguments, ffi::RemainingRets results, ffi::Dictionary) {
  CallSite& site = *instruction->site;
  Arrival arrival;
  arrival.run_id = run_id.run_id;
  size_t argument_count = arguments.size();
  std::optional<int64_t> operand_id;
  if (argument_count > site.vector_operands(results.size())) {
    --argument_count;
    const auto logical = arguments.get<ffi::AnyBuffer>(argument_count);
    if (logical->element_type() != ffi::DataType::U32 || logical->element_count() != 1) {
      return Completed(InvalidArgument("the logical id operand must be one uint32"));
    }
    operand_id = *logical->reinterpret_data<uint32_t>();
  }
  if (site.groups().ranks_by_device()) {
    StatusOr<int64_t> logical = site.groups().LogicalOfDevice(device_id);
    if (!logical.ok()) return Completed(logical.status());
    if (operand_id && *operand_id != *logical) {
      return Completed(InvalidArgument(
          "this program was lowered for a mesh of the same shape with its devices in another "
          "order; call jax.clear_caches(), or pass jax.shard_map its mesh"));
    }
    arrival.logical_id = *logical;
  } else if (operand_id) {
    arrival.logical_id = *operand_id;
  } else {
    return Completed(InvalidArgument("the logical id operand is missing"));
  }
  if (!site.prepared()) {
    StatusOr<CallShape> shape = ShapeOf(arguments, argument_count, results);
    if (!shape.ok()) return Completed(shape.status());
    if (Status status = site.Prepare(*shape); !status.ok()) return Completed(status);
  }
  PointerList<const void*> inputs(argument_count);
  for (size_t i = 0; i < argument_count; ++i) {
    inputs[i] = arguments.get<ffi::AnyBuffer>(i)->untyped_data();
  }
  PointerList<void*> outputs(results.size());
  for (size_t i = 0; i < results.size(); ++i) {
    outputs[i] = (*results.get<ffi::AnyBuffer>(i))->untyped_data();
  }
  arrival.inputs = inputs.span();
  arrival.outputs = outputs.span();
  auto completion = std::make_unique<FutureCompletion>();
  ffi::Future future(completion->promise());
  StatusOr<CallSite::Entry> entry = site.Arrive(arrival, std::move(completion));
  if (!entry.ok()) return Completed(entry.status());
  if (*entry == CallSite::Entry::kDone) return Completed(Status());
  return future;
}

XLA_FFI_DEFINE_HANDLER(kInstantiate, Instantiate, ffi::Ffi::BindInstantiate().Attrs());
XLA_FFI_DEFINE_HANDLER(kExecute, Execute,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::RunId>()
                           .Ctx<ffi::DeviceOrdinal>()
                           .Ctx<ffi::State<Instruction>>()
                           .RemainingArgs()
                           .RemainingRets()
                           .Attrs());

}  // namespace

FfiRegistration GetFfiRegistration() {
  return {reinterpret_cast<void*>(+kInstantiate), reinterpret_cast<void*>(+kExecute),
          &Instruction::id, &Instruction::info};
}

int FfiApiMajor() { return XLA_FFI_API_MAJOR; }
int FfiApiMinor() { return XLA_FFI_API_MINOR; }

}  // namespace jaxcoll
