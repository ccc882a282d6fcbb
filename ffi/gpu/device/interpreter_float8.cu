#include "gpu/device/families.h"
#include "gpu/device/interpreter.cuh"
#include "gpu/device/kernels.h"

namespace jaxcoll::cuda {

const void* Float8Interpreter(DType dtype) { return Float8Family::Find<Interpretation>(dtype); }

}  // namespace jaxcoll::cuda
