#include "cuda/launch.h"

#include "cuda/kernels.h"
#include "cuda/runtime.h"

namespace jaxcoll::cuda {

const void* ReduceKernelFor(DType dtype, ReduceOp op) {
  if (const void* kernel = HotReduceKernel(dtype, op)) return kernel;
  for (const auto family : {FloatReduceKernel, Float8ReduceKernel, IntegerReduceKernel}) {
    if (const void* kernel = family(dtype)) return kernel;
  }
  return nullptr;
}

const void* KernelOf(const CallPlan& plan) {
  if (plan.mode == Mode::kRaggedAllToAll) return RaggedKernel();
  // One rank's sum is its input, to the last bit of a NaN.
  if (Reduces(plan.mode) && plan.world_size > 1) return ReduceKernelFor(plan.dtype, plan.reduce_op);
  return MoveKernel();
}

Status Preload(const CallPlan& plan) {
  cudaFuncAttributes attributes;
  return ToStatus(cudaFuncGetAttributes(&attributes, KernelOf(plan)), "loading a kernel");
}

Status Launch(const CallPlan& plan, const Call& call, cudaStream_t stream) {
  const Call* none = nullptr;
  void* arguments[] = {const_cast<Call*>(&call), &none};
  return ToStatus(
      cudaLaunchKernel(KernelOf(plan), dim3(plan.blocks), dim3(kThreads), arguments, 0, stream),
      "starting a kernel");
}

Status LaunchAll(const CallPlan& plan, const Call* calls, cudaStream_t stream) {
  const Call unused = {};
  void* arguments[] = {const_cast<Call*>(&unused), &calls};
  return ToStatus(cudaLaunchCooperativeKernel(KernelOf(plan), dim3(plan.blocks, plan.world_size),
                                              dim3(kThreads), arguments, 0, stream),
                  "starting a kernel for all ranks at once");
}

}  // namespace jaxcoll::cuda
