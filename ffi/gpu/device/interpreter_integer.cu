#include "gpu/device/families.h"
#include "gpu/device/interpreter.cuh"
#include "gpu/device/kernels.h"

namespace jaxcoll::cuda {

const void* IntegerInterpreter(DType dtype) { return IntegerFamily::Find<Interpretation>(dtype); }

}  // namespace jaxcoll::cuda
