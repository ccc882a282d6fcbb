#include "gpu/device/kernels.h"
#include "gpu/device/move.cuh"

namespace jaxcoll::cuda {
namespace {

__global__ void __launch_bounds__(kThreads, 1)
    Move(const __grid_constant__ Call parameter, const Call* all) {
  __shared__ MoveShared shared;
  RunMove(shared, parameter, all);
}

}  // namespace

const void* MoveKernel() { return reinterpret_cast<const void*>(&Move); }

}  // namespace jaxcoll::cuda
