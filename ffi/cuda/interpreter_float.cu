#include "cuda/families.h"
#include "cuda/interpreter.cuh"
#include "cuda/kernels.h"

namespace jaxcoll::cuda {

const void* FloatInterpreter(DType dtype) { return FloatFamily::Find<Interpretation>(dtype); }

}  // namespace jaxcoll::cuda
