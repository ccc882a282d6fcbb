#include "cuda/kernels.h"

namespace jaxcoll::cuda {

const void* ReduceKernelFor(DType dtype, ReduceOp op) {
  if (const void* kernel = HotReduceKernel(dtype, op)) return kernel;
  for (const auto family : {FloatReduceKernel, Float8ReduceKernel, IntegerReduceKernel}) {
    if (const void* kernel = family(dtype)) return kernel;
  }
  return nullptr;
}

}  // namespace jaxcoll::cuda
