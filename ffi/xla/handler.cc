#include "xla/handler.h"

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "call/call_site.h"
#include "xla/ffi/api/ffi.h"
#include "xla/translate.h"

namespace jaxcoll {
namespace {

namespace ffi = ::xla::ffi;

// What instantiate makes: one per custom-call instruction, shared by the devices of the process.
struct Instruction {
  static ffi::TypeId id;
  static ffi::TypeInfo info;

  std::unique_ptr<CallSite> site;
};
ffi::TypeId Instruction::id = {};
ffi::TypeInfo Instruction::info = ffi::MakeTypeInfo<Instruction>();

ffi::ErrorOr<std::unique_ptr<Instruction>> Instantiate(ffi::Dictionary attributes) {
  StatusOr<CallSpec> spec = ReadCallSpec(attributes);
  if (!spec.ok()) return ffi::Unexpected(ToFfiError(spec.status()));
  StatusOr<std::unique_ptr<CallSite>> site = CallSite::Create(std::move(*spec));
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
  return {reinterpret_cast<void*>(+kInstantiate), nullptr, reinterpret_cast<void*>(+kExecute),
          &Instruction::id, &Instruction::info};
}

int FfiApiMajor() { return XLA_FFI_API_MAJOR; }
int FfiApiMinor() { return XLA_FFI_API_MINOR; }

}  // namespace jaxcoll
