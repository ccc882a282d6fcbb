#include "gpu/device/families.h"
#include "gpu/device/kernels.h"
#include "gpu/device/reduce.cuh"

namespace jaxcoll::cuda {

const void* IntegerReduceKernel(DType dtype) { return IntegerFamily::Find<AnyReduction>(dtype); }

}  // namespace jaxcoll::cuda
