#include "cuda/kernels.h"
#include "cuda/reduce.cuh"

namespace jaxcoll::cuda {
namespace {

template <DType kDType>
const void* Kernel() {
  return reinterpret_cast<const void*>(&ReduceKernel<ElementOf<kDType>, kAnyOp, false>);
}

}  // namespace

const void* Float8ReduceKernel(DType dtype) {
  switch (dtype) {
    case DType::kFloat8E3M4:
      return Kernel<DType::kFloat8E3M4>();
    case DType::kFloat8E4M3:
      return Kernel<DType::kFloat8E4M3>();
    case DType::kFloat8E4M3B11Fnuz:
      return Kernel<DType::kFloat8E4M3B11Fnuz>();
    case DType::kFloat8E4M3Fn:
      return Kernel<DType::kFloat8E4M3Fn>();
    case DType::kFloat8E4M3Fnuz:
      return Kernel<DType::kFloat8E4M3Fnuz>();
    case DType::kFloat8E5M2:
      return Kernel<DType::kFloat8E5M2>();
    case DType::kFloat8E5M2Fnuz:
      return Kernel<DType::kFloat8E5M2Fnuz>();
    case DType::kFloat8E8M0Fnu:
      return Kernel<DType::kFloat8E8M0Fnu>();
    default:
      return nullptr;
  }
}

}  // namespace jaxcoll::cuda
