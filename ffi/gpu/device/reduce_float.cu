#include "gpu/device/families.h"
#include "gpu/device/kernels.h"
#include "gpu/device/reduce.cuh"

namespace jaxcoll::cuda {

const void* FloatReduceKernel(DType dtype) { return FloatFamily::Find<AnyReduction>(dtype); }

}  // namespace jaxcoll::cuda
