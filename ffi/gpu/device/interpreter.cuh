// The interpreter (interpreter.h) as a kernel.
//
// A launch is for one rank, whose call is the kernel's parameter, or for all ranks at once on one
// device: then their calls are in memory, and a block's rank is blockIdx.y. blockIdx.x is the
// worker and its strand. All blocks of a rank must be resident together where workers wait for each
// other; all blocks of all ranks where one launch is for all ranks, which a cooperative launch
// checks.
//
// Loads of data bypass L1 (.cg): nothing is read twice from one SM.
#pragma once

#include "gpu/device/interpreter.h"
#include "gpu/device/kernels.h"

namespace jaxcoll::cuda {

// Tables of up to this size are read from shared memory: an op is several reads that depend on
// each other.
inline constexpr int kSharedTableBytes = 24 << 10;

// So many ranks' regions and slots, too.
inline constexpr int kSharedRegions = 64;

class DevicePolicy : public DeviceAccess {
 public:
  __device__ DevicePolicy(unsigned char** pointers, OperandAddresses* operands)
      : pointers_(pointers), operands_(operands) {}
  __device__ int thread() const { return static_cast<int>(threadIdx.x); }
  __device__ int threads() const { return static_cast<int>(blockDim.x); }
  __device__ bool All(bool mine) const { return __syncthreads_and(mine) != 0; }

  __device__ unsigned char** pointers() const { return pointers_; }
  __device__ OperandAddresses* operands() const { return operands_; }

  template <typename T>
  static __device__ __forceinline__ T Load(const void* from) {
    if constexpr (sizeof(T) == 16) {
      return BitCast<T>(__ldcg(static_cast<const uint4*>(from)));
    } else if constexpr (sizeof(T) == 8) {
      return BitCast<T>(__ldcg(static_cast<const unsigned long long*>(from)));
    } else if constexpr (sizeof(T) == 4) {
      return BitCast<T>(__ldcg(static_cast<const unsigned*>(from)));
    } else if constexpr (sizeof(T) == 2) {
      return BitCast<T>(__ldcg(static_cast<const unsigned short*>(from)));
    } else {
      return BitCast<T>(__ldcg(static_cast<const unsigned char*>(from)));
    }
  }
  template <typename T>
  static __device__ __forceinline__ void Store(void* to, const T& value) {
    if constexpr (sizeof(T) == 16) {
      *static_cast<uint4*>(to) = BitCast<uint4>(value);
    } else {
      *static_cast<T*>(to) = value;
    }
  }

 private:
  // In shared memory.
  unsigned char** const pointers_;
  OperandAddresses* const operands_;
};

template <DType kDType>
__global__ void __launch_bounds__(kInterpreterThreads)
    Interpret(const __grid_constant__ TableCall parameter, const TableCall* all) {
  __shared__ TableCall call;
  __shared__ unsigned char* pointers[kPointers];
  __shared__ OperandAddresses operands[kMaxMeeting];
  __shared__ unsigned char* regions[kSharedRegions];
  __shared__ unsigned char* slots[kSharedRegions];
  __shared__ uint4 table[kSharedTableBytes / sizeof(uint4)];
  const TableCall& mine = all == nullptr ? parameter : all[blockIdx.y];
  static_assert(sizeof(TableCall) % sizeof(uint64_t) == 0);
  for (int i = threadIdx.x; i < static_cast<int>(sizeof(call) / sizeof(uint64_t));
       i += blockDim.x) {
    reinterpret_cast<uint64_t*>(&call)[i] = reinterpret_cast<const uint64_t*>(&mine)[i];
  }
  const uint4* const from = reinterpret_cast<const uint4*>(mine.table);
  const int words = mine.table->total_bytes / static_cast<int>(sizeof(uint4));
  const bool fits = words * static_cast<int>(sizeof(uint4)) <= kSharedTableBytes;
  for (int i = threadIdx.x; fits && i < words; i += blockDim.x) table[i] = from[i];
  const int ranks = mine.table->world_size;
  for (int i = threadIdx.x; ranks <= kSharedRegions && i < ranks; i += blockDim.x) {
    regions[i] = mine.regions[i];
    slots[i] = (mine.slots == nullptr ? mine.regions : mine.slots)[i];
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    if (fits) call.table = reinterpret_cast<const TableHeader*>(table);
    if (ranks <= kSharedRegions) call.regions = regions, call.slots = slots;
  }
  __syncthreads();
  DevicePolicy policy(pointers, operands);
  Interpreter<DevicePolicy, kDType>(policy, call, static_cast<int32_t>(blockIdx.x)).Run();
}

template <DType kDType>
struct Interpretation {
  static const void* Address() { return reinterpret_cast<const void*>(&Interpret<kDType>); }
};

}  // namespace jaxcoll::cuda
