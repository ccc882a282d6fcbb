// The kernels: addresses for cudaLaunchKernel, and how they are started.
//
// Parameters: (call, all), a Call, a TableCall or a RaggedTableCall, and device memory. With
// all == nullptr the launch is for the rank of `call`: grid (blocks, 1). Else it is for all ranks
// at once, cooperative, and `all` holds the calls of every rank, in rank order: grid (blocks,
// ranks).
#pragma once

#include "base/dtype.h"
#include "gpu/abi/runtime.h"

namespace jaxcoll::cuda {

// Threads of a block that waits for messages: of the interpreter and of ragged exchanges. The
// others have kThreads.
inline constexpr int kInterpreterThreads = 256;

// The kernels for a family's dtypes; null for a dtype of another family.
const void* HotReduceKernel(DType dtype, ReduceOp op);  // sums worth code of their own
const void* FloatReduceKernel(DType dtype);
const void* Float8ReduceKernel(DType dtype);
const void* IntegerReduceKernel(DType dtype);
const void* FloatInterpreter(DType dtype);
const void* Float8Interpreter(DType dtype);
const void* IntegerInterpreter(DType dtype);

// Collectives that only move bytes.
const void* MoveKernel();
const void* RaggedKernel();          // within reach of each other
const void* RaggedExchangeKernel();  // by messages

// Requires Supports(dtype, op) of one that reduces. Where the interpreter reduces nothing, any
// dtype of the same size does.
const void* FunctionOf(const Kernel& kernel);
int ThreadsOf(const Kernel& kernel);  // of a block

}  // namespace jaxcoll::cuda
