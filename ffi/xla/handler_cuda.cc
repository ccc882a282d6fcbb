// The handlers for platform CUDA: they enqueue kernels and never wait for one.
#include <memory>
#include <utility>

#include "gpu/host/gpu_call_site.h"
#include "xla/ffi/api/ffi.h"
#include "xla/handler.h"
#include "xla/translate.h"

namespace jaxcoll {
namespace {

namespace ffi = ::xla::ffi;

// The state that instantiate makes: one per custom-call instruction, shared by the GPUs of the
// process.
struct GpuInstruction {
  static ffi::TypeId id;
  static ffi::TypeInfo info;

  std::unique_ptr<cuda::GpuCallSite> site;
};
ffi::TypeId GpuInstruction::id = {};
ffi::TypeInfo GpuInstruction::info = ffi::MakeTypeInfo<GpuInstruction>();

ffi::ErrorOr<std::unique_ptr<GpuInstruction>> InstantiateGpu(ffi::Dictionary attributes) {
  StatusOr<CallSpec> spec = ReadCallSpec(attributes);
  if (!spec.ok()) return ffi::Unexpected(ToFfiError(spec.status()));
  StatusOr<std::unique_ptr<cuda::GpuCallSite>> site = cuda::GpuCallSite::Create(std::move(*spec));
  if (!site.ok()) return ffi::Unexpected(ToFfiError(site.status()));
  auto instruction = std::make_unique<GpuInstruction>();
  instruction->site = std::move(*site);
  return instruction;
}

Status EnsurePrepared(cuda::GpuCallSite& site, ffi::RemainingArgs arguments,
                      ffi::RemainingRets results) {
  if (site.prepared()) return Status();
  StatusOr<CallShape> shape = ShapeOf(arguments, site.vector_operands(results.size()), results);
  if (!shape.ok()) return shape.status();
  // A result that is not empty: an operand may be a constant, which lies elsewhere.
  const void* operand = nullptr;
  for (size_t i = 0; i < results.size() && operand == nullptr; ++i) {
    auto result = *results.get<ffi::AnyBuffer>(i);
    if (result->element_count() > 0) operand = result->untyped_data();
  }
  return site.Prepare(*shape, operand);
}

// XLA runs this on all devices before it starts a kernel of the program on any: taking memory here
// cannot wait for a kernel that waits for this device.
ffi::Error InitializeGpu(GpuInstruction* instruction, ffi::RemainingArgs arguments,
                         ffi::RemainingRets results, ffi::Dictionary) {
  cuda::GpuCallSite& site = *instruction->site;
  // A version of XLA that does not show the buffers at this stage shows them to Execute.
  if (results.size() == 0 || arguments.size() < site.vector_operands(results.size())) {
    return ffi::Error::Success();
  }
  return ToFfiError(EnsurePrepared(site, arguments, results));
}

// May run while a graph is being captured: then it is called once for many runs.
ffi::Error ExecuteGpu(int32_t ordinal, void* stream, GpuInstruction* instruction,
                      ffi::RemainingArgs arguments, ffi::RemainingRets results, ffi::Dictionary) {
  cuda::GpuCallSite& site = *instruction->site;
  const size_t operands = site.vector_operands(results.size());
  const uint32_t* logical_id = nullptr;  // in device memory: the kernel checks it
  if (arguments.size() == operands + 1) {
    const auto logical = arguments.get<ffi::AnyBuffer>(operands);
    if (logical->element_type() != ffi::DataType::U32 || logical->element_count() != 1) {
      return ToFfiError(InvalidArgument("the logical id operand must be one uint32"));
    }
    logical_id = logical->reinterpret_data<uint32_t>();
  } else if (arguments.size() != operands) {
    return ToFfiError(InvalidArgument("the custom call has " + std::to_string(arguments.size()) +
                                      " operands, " + std::to_string(operands) + " expected"));
  }
  if (Status status = EnsurePrepared(site, arguments, results); !status.ok()) {
    return ToFfiError(status);
  }
  PointerList<const void*> inputs(operands);
  for (size_t i = 0; i < operands; ++i) {
    inputs[i] = arguments.get<ffi::AnyBuffer>(i)->untyped_data();
  }
  PointerList<void*> outputs(results.size());
  for (size_t i = 0; i < results.size(); ++i) {
    outputs[i] = (*results.get<ffi::AnyBuffer>(i))->untyped_data();
  }
  return ToFfiError(
      site.Enqueue(ordinal, stream, inputs.span().data(), outputs.span().data(), logical_id));
}

XLA_FFI_DEFINE_HANDLER(kInstantiateGpu, InstantiateGpu, ffi::Ffi::BindInstantiate().Attrs(),
                       {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER(kInitializeGpu, InitializeGpu,
                       ffi::Ffi::BindInitialize()
                           .Ctx<ffi::State<GpuInstruction>>()
                           .RemainingArgs()
                           .RemainingRets()
                           .Attrs(),
                       {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER(kExecuteGpu, ExecuteGpu,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::DeviceOrdinal>()
                           .Ctx<ffi::PlatformStream<void*>>()
                           .Ctx<ffi::State<GpuInstruction>>()
                           .RemainingArgs()
                           .RemainingRets()
                           .Attrs(),
                       {ffi::Traits::kCmdBufferCompatible});

}  // namespace

FfiRegistration GetCudaFfiRegistration() {
  return {reinterpret_cast<void*>(+kInstantiateGpu), reinterpret_cast<void*>(+kInitializeGpu),
          reinterpret_cast<void*>(+kExecuteGpu), &GpuInstruction::id, &GpuInstruction::info};
}

}  // namespace jaxcoll
