#include "xla/handler.h"

#include <cstdint>
#include <memory>
#include <utility>

#include "call/call_site.h"
#include "xla/ffi/api/ffi.h"
#include "xla/translate.h"

namespace jaxcoll {
namespace {

namespace ffi = ::xla::ffi;

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

// The calling device's logical id: by the device, and where devices are not known by the operand.
StatusOr<int64_t> LogicalOf(const CallCore& core, int32_t device_id, const uint32_t* operand) {
  if (!core.groups().ranks_by_device()) {
    if (operand == nullptr) return InvalidArgument("the logical id operand is missing");
    return *operand;
  }
  StatusOr<int64_t> logical = core.groups().LogicalOfDevice(device_id);
  if (logical.ok() && operand != nullptr && *operand != *logical) {
    return InvalidArgument(
        "this program was lowered for a mesh of the same shape with its devices in another order; "
        "call jax.clear_caches(), or pass jax.shard_map its mesh");
  }
  return logical;
}

// Never waits for other ranks: the future completes on a worker thread when the call has. A call
// between processes may complete before this returns (Reactor::Lend).
ffi::Future Execute(ffi::RunId run_id, int32_t device_id, Instruction<CallSite>* instruction,
                    ffi::RemainingArgs arguments, ffi::RemainingRets results, ffi::Dictionary) {
  CallSite& site = *instruction->site;
  const StatusOr<const uint32_t*> operand = LogicalIdOf(site.core(), arguments, results);
  if (!operand.ok()) return Completed(operand.status());
  const StatusOr<int64_t> logical = LogicalOf(site.core(), device_id, *operand);
  if (!logical.ok()) return Completed(logical.status());
  if (!site.prepared()) {
    StatusOr<CallShape> shape = ShapeOf(site.core(), arguments, results);
    if (!shape.ok()) return Completed(shape.status());
    if (Status status = site.Prepare(*shape); !status.ok()) return Completed(status);
  }
  const CallBuffers buffers(site.core(), arguments, results);
  Arrival arrival;
  arrival.run_id = run_id.run_id;
  arrival.logical_id = *logical;
  arrival.inputs = buffers.inputs.span();
  arrival.outputs = buffers.outputs.span();
  auto completion = std::make_unique<FutureCompletion>();
  ffi::Future future(completion->promise());
  StatusOr<CallSite::Entry> entry = site.Arrive(arrival, std::move(completion));
  if (!entry.ok()) return Completed(entry.status());
  if (*entry == CallSite::Entry::kDone) return Completed(Status());
  return future;
}

XLA_FFI_DEFINE_HANDLER(kInstantiate, Instantiate<CallSite>, ffi::Ffi::BindInstantiate().Attrs());
XLA_FFI_DEFINE_HANDLER(kExecute, Execute,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::RunId>()
                           .Ctx<ffi::DeviceOrdinal>()
                           .Ctx<ffi::State<Instruction<CallSite>>>()
                           .RemainingArgs()
                           .RemainingRets()
                           .Attrs());

}  // namespace

FfiRegistration GetFfiRegistration() {
  return {reinterpret_cast<void*>(+kInstantiate), nullptr, reinterpret_cast<void*>(+kExecute),
          &Instruction<CallSite>::id, &Instruction<CallSite>::info};
}

int FfiApiMajor() { return XLA_FFI_API_MAJOR; }
int FfiApiMinor() { return XLA_FFI_API_MINOR; }

}  // namespace jaxcoll
