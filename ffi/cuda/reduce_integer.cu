#include "cuda/kernels.h"
#include "cuda/reduce.cuh"

namespace jaxcoll::cuda {
namespace {

template <DType kDType>
const void* Kernel() {
  return reinterpret_cast<const void*>(&ReduceKernel<ElementOf<kDType>, kAnyOp, false>);
}

}  // namespace

const void* IntegerReduceKernel(DType dtype) {
  switch (dtype) {
    case DType::kBool:  // 0 or 1 in a byte: and is min, or is max
    case DType::kUint8:
      return Kernel<DType::kUint8>();
    case DType::kInt8:
      return Kernel<DType::kInt8>();
    case DType::kInt16:
      return Kernel<DType::kInt16>();
    case DType::kInt32:
      return Kernel<DType::kInt32>();
    case DType::kInt64:
      return Kernel<DType::kInt64>();
    case DType::kUint16:
      return Kernel<DType::kUint16>();
    case DType::kUint32:
      return Kernel<DType::kUint32>();
    case DType::kUint64:
      return Kernel<DType::kUint64>();
    default:
      return nullptr;
  }
}

}  // namespace jaxcoll::cuda
