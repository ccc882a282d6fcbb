#include "cuda/families.h"
#include "cuda/interpreter.cuh"
#include "cuda/kernels.h"

namespace jaxcoll::cuda {

const void* IntegerInterpreter(DType dtype) { return IntegerFamily::Find<Interpretation>(dtype); }

}  // namespace jaxcoll::cuda
