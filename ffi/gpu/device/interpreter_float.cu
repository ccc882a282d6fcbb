#include "gpu/device/families.h"
#include "gpu/device/interpreter.cuh"
#include "gpu/device/kernels.h"

namespace jaxcoll::cuda {

const void* FloatInterpreter(DType dtype) { return FloatFamily::Find<Interpretation>(dtype); }

}  // namespace jaxcoll::cuda
