// The kernels by dtype and op; each is a pointer for cudaLaunchKernel. One file instantiates the
// kernels of one family of dtypes, so that they compile in parallel.
#pragma once

#include "base/dtype.h"

namespace jaxcoll::cuda {

// Of the dtypes of a family; null for one that is not of it.
const void* HotReduceKernel(DType dtype, ReduceOp op);  // sums worth code of their own
const void* FloatReduceKernel(DType dtype);
const void* Float8ReduceKernel(DType dtype);
const void* IntegerReduceKernel(DType dtype);

// Collectives that only move bytes.
const void* MoveKernel();
const void* RaggedKernel();

// Requires Supports(dtype, op).
const void* ReduceKernelFor(DType dtype, ReduceOp op);

}  // namespace jaxcoll::cuda
