// The exchange of ragged_exchange.h as a kernel; see interpreter.cuh.
#include "gpu/device/interpreter.cuh"
#include "gpu/device/kernels.h"
#include "gpu/device/ragged_exchange.h"
#include "gpu/device/range.cuh"

namespace jaxcoll::cuda {
namespace {

class RaggedPolicy : public DevicePolicy {
 public:
  using DevicePolicy::DevicePolicy;
  __device__ __forceinline__ void Copy(unsigned char* to, const unsigned char* from,
                                       int64_t bytes) const {
    CopyHere(One{to}, from, bytes, Block());
  }
};

__global__ void __launch_bounds__(kInterpreterThreads, 1)
    ExchangeRagged(const __grid_constant__ RaggedTableCall parameter, const RaggedTableCall* all) {
  __shared__ RaggedTableCall call;
  __shared__ unsigned char* pointers[kPointers];
  __shared__ TableHeader header;
  const RaggedTableCall& mine = all == nullptr ? parameter : all[blockIdx.y];
  const auto copy = [](void* to, const void* from, int bytes) {
    for (int i = threadIdx.x; i < bytes / static_cast<int>(sizeof(uint64_t)); i += blockDim.x) {
      static_cast<uint64_t*>(to)[i] = static_cast<const uint64_t*>(from)[i];
    }
  };
  static_assert(sizeof(call) % sizeof(uint64_t) == 0 && sizeof(header) % sizeof(uint64_t) == 0);
  copy(&call, &mine, sizeof(call));
  copy(&header, mine.table_call.table, sizeof(header));
  __syncthreads();
  if (threadIdx.x == 0) call.table_call.table = &header;
  __syncthreads();
  RaggedPolicy policy(pointers, nullptr);
  RaggedExchange<RaggedPolicy>(policy, call, static_cast<int32_t>(blockIdx.x)).Run();
}

}  // namespace

const void* RaggedExchangeKernel() { return reinterpret_cast<const void*>(&ExchangeRagged); }

}  // namespace jaxcoll::cuda
