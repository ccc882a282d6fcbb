// Starts the kernel of a call.
#pragma once

#include <cuda_runtime_api.h>

#include "base/status.h"
#include "cuda/call_plan.h"

namespace jaxcoll::cuda {

const void* KernelOf(const CallPlan& plan);

// Loads the kernel's code for the current device now: loading it at the first launch could wait for
// kernels that wait for this one.
Status Preload(const CallPlan& plan);

// One rank's launch, on the current device. Enqueues; captured into a graph where the stream is.
Status Launch(const CallPlan& plan, const Call& call, cudaStream_t stream);

// All ranks' at once, on one device that has room for all blocks together: refused otherwise.
// `calls` is device memory, by rank.
Status LaunchAll(const CallPlan& plan, const Call* calls, cudaStream_t stream);

}  // namespace jaxcoll::cuda
