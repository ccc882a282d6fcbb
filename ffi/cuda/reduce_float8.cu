#include "cuda/families.h"
#include "cuda/kernels.h"
#include "cuda/reduce.cuh"

namespace jaxcoll::cuda {

const void* Float8ReduceKernel(DType dtype) { return Float8Family::Find<AnyReduction>(dtype); }

}  // namespace jaxcoll::cuda
