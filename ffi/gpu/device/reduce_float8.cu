#include "gpu/device/families.h"
#include "gpu/device/kernels.h"
#include "gpu/device/reduce.cuh"

namespace jaxcoll::cuda {

const void* Float8ReduceKernel(DType dtype) { return Float8Family::Find<AnyReduction>(dtype); }

}  // namespace jaxcoll::cuda
