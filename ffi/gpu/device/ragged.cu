#include "gpu/device/kernels.h"
#include "gpu/device/ragged.cuh"

namespace jaxcoll::cuda {
namespace {

__global__ void __launch_bounds__(kThreads, 1)
    MoveRows(const __grid_constant__ Call parameter, const Call* all) {
  __shared__ RaggedShared shared;
  RunRagged(shared, parameter, all);
}

}  // namespace

const void* RaggedKernel() { return reinterpret_cast<const void*>(&MoveRows); }

}  // namespace jaxcoll::cuda
