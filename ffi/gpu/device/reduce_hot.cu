// Sums of the dtypes that gradients and activations have, unrolled for 2, 4 and 8 ranks.
#include "gpu/device/families.h"
#include "gpu/device/kernels.h"
#include "gpu/device/reduce.cuh"

namespace jaxcoll::cuda {
namespace {

template <DType kDType>
struct Sum {
  static const void* Address() {
    constexpr int kSum = static_cast<int>(ReduceOp::kSum);
    return reinterpret_cast<const void*>(&ReduceKernel<ElementOf<kDType>, kSum, true>);
  }
};

using Hot =
    Family<DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat64, DType::kUint32>;

}  // namespace

const void* HotReduceKernel(DType dtype, ReduceOp op) {
  if (op != ReduceOp::kSum) return nullptr;
  return Hot::Find<Sum>(dtype == DType::kInt32 ? DType::kUint32 : dtype);  // sums wrap alike
}

}  // namespace jaxcoll::cuda
