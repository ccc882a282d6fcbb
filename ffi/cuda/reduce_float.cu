#include "cuda/families.h"
#include "cuda/kernels.h"
#include "cuda/reduce.cuh"

namespace jaxcoll::cuda {

const void* FloatReduceKernel(DType dtype) { return FloatFamily::Find<AnyReduction>(dtype); }

}  // namespace jaxcoll::cuda
