#include "cuda/families.h"
#include "cuda/interpreter.cuh"
#include "cuda/kernels.h"

namespace jaxcoll::cuda {

const void* Float8Interpreter(DType dtype) { return Float8Family::Find<Interpretation>(dtype); }

}  // namespace jaxcoll::cuda
