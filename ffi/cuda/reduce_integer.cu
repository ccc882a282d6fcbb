#include "cuda/families.h"
#include "cuda/kernels.h"
#include "cuda/reduce.cuh"

namespace jaxcoll::cuda {

const void* IntegerReduceKernel(DType dtype) { return IntegerFamily::Find<AnyReduction>(dtype); }

}  // namespace jaxcoll::cuda
