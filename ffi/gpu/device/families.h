// Kernels by dtype, in families: a file instantiates those of one, so that they compile in
// parallel.
#pragma once

#include "base/dtype.h"

namespace jaxcoll::cuda {

template <DType... kDTypes>
struct Family {
  // The address of KernelOf<dtype>'s kernel; null for a dtype that is not of the family.
  template <template <DType> class KernelOf>
  static const void* Find(DType dtype) {
    const void* found = nullptr;
    ((dtype == kDTypes ? void(found = KernelOf<kDTypes>::Address()) : void()), ...);
    return found;
  }
};

using FloatFamily = Family<DType::kFloat16, DType::kBFloat16, DType::kFloat32, DType::kFloat64,
                           DType::kComplex64, DType::kComplex128>;
using Float8Family = Family<DType::kFloat8E3M4, DType::kFloat8E4M3, DType::kFloat8E4M3B11Fnuz,
                            DType::kFloat8E4M3Fn, DType::kFloat8E4M3Fnuz, DType::kFloat8E5M2,
                            DType::kFloat8E5M2Fnuz, DType::kFloat8E8M0Fnu>;
// Without bool, which is 0 or 1 in a uint8: and is min, or is max.
using IntegerFamily = Family<DType::kUint8, DType::kInt8, DType::kInt16, DType::kInt32,
                             DType::kInt64, DType::kUint16, DType::kUint32, DType::kUint64>;

}  // namespace jaxcoll::cuda
