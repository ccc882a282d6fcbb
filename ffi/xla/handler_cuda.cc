// The handlers for platform CUDA: they enqueue kernels and never wait for one.
#include <cstdint>

#include "gpu/host/gpu_call_site.h"
#include "xla/ffi/api/ffi.h"
#include "xla/handler.h"
#include "xla/translate.h"

namespace jaxcoll {
namespace {

namespace ffi = ::xla::ffi;

using GpuInstruction = Instruction<cuda::GpuCallSite>;

Status EnsurePrepared(cuda::GpuCallSite& site, ffi::RemainingArgs arguments,
                      ffi::RemainingRets results) {
  if (site.prepared()) return Status();
  StatusOr<CallShape> shape = ShapeOf(site.core(), arguments, results);
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
  if (results.size() == 0 || arguments.size() < site.core().vector_operands(results.size())) {
    return ffi::Error::Success();
  }
  return ToFfiError(EnsurePrepared(site, arguments, results));
}

// May run while a graph is being captured: then it is called once for many runs.
ffi::Error ExecuteGpu(int32_t ordinal, void* stream, GpuInstruction* instruction,
                      ffi::RemainingArgs arguments, ffi::RemainingRets results, ffi::Dictionary) {
  cuda::GpuCallSite& site = *instruction->site;
  // In device memory: the kernel checks it.
  const StatusOr<const uint32_t*> logical_id = LogicalIdOf(site.core(), arguments, results);
  if (!logical_id.ok()) return ToFfiError(logical_id.status());
  if (Status status = EnsurePrepared(site, arguments, results); !status.ok()) {
    return ToFfiError(status);
  }
  const CallBuffers buffers(site.core(), arguments, results);
  return ToFfiError(site.Enqueue(ordinal, stream, buffers.inputs.span().data(),
                                 buffers.outputs.span().data(), *logical_id));
}

XLA_FFI_DEFINE_HANDLER(kInstantiateGpu, Instantiate<cuda::GpuCallSite>,
                       ffi::Ffi::BindInstantiate().Attrs(), {ffi::Traits::kCmdBufferCompatible});
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
