// Sums of the dtypes that gradients and activations have, unrolled for 2, 4 and 8 ranks.
#include "cuda/kernels.h"
#include "cuda/reduce.cuh"

namespace jaxcoll::cuda {
namespace {

template <DType kDType>
const void* SumKernel() {
  constexpr int kSum = static_cast<int>(ReduceOp::kSum);
  return reinterpret_cast<const void*>(&ReduceKernel<ElementOf<kDType>, kSum, true>);
}

}  // namespace

const void* HotReduceKernel(DType dtype, ReduceOp op) {
  if (op != ReduceOp::kSum) return nullptr;
  switch (dtype) {
    case DType::kFloat32:
      return SumKernel<DType::kFloat32>();
    case DType::kBFloat16:
      return SumKernel<DType::kBFloat16>();
    case DType::kFloat16:
      return SumKernel<DType::kFloat16>();
    case DType::kFloat64:
      return SumKernel<DType::kFloat64>();
    case DType::kInt32:
    case DType::kUint32:  // sums wrap alike
      return SumKernel<DType::kUint32>();
    default:
      return nullptr;
  }
}

}  // namespace jaxcoll::cuda
