#include "cuda/kernels.h"
#include "cuda/reduce.cuh"

namespace jaxcoll::cuda {
namespace {

template <DType kDType>
const void* Kernel() {
  return reinterpret_cast<const void*>(&ReduceKernel<ElementOf<kDType>, kAnyOp, false>);
}

}  // namespace

const void* FloatReduceKernel(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return Kernel<DType::kFloat16>();
    case DType::kBFloat16:
      return Kernel<DType::kBFloat16>();
    case DType::kFloat32:
      return Kernel<DType::kFloat32>();
    case DType::kFloat64:
      return Kernel<DType::kFloat64>();
    case DType::kComplex64:
      return Kernel<DType::kComplex64>();
    case DType::kComplex128:
      return Kernel<DType::kComplex128>();
    default:
      return nullptr;
  }
}

}  // namespace jaxcoll::cuda
