// How the interpreter's kernel is started.
//
// Parameters: (ProgramCall call, const ProgramCall* all). With all == nullptr the launch is for the
// rank of `call`: grid (BlockCount, 1). Else `all` is device memory, the calls of every rank in
// rank order: grid (BlockCount, world size). Blocks have kInterpreterThreads threads. `program`
// and `regions` of a call are device memory.
#pragma once

#include "base/dtype.h"
#include "cuda/device_program.h"

namespace jaxcoll::cuda {

inline constexpr int kInterpreterThreads = 384;

// For cudaLaunchKernel, or cudaLaunchCooperativeKernel where `all` is given. Where nothing is
// reduced, any dtype of the same size does.
const void* InterpreterKernel(DType dtype);

}  // namespace jaxcoll::cuda
