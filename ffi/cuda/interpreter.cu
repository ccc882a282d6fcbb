// The interpreter (interpreter.h) as a kernel.
//
// A launch is for one rank, whose call is the kernel's parameter, or for all ranks at once on one
// device: then their calls are in memory, and a block's rank is blockIdx.y. blockIdx.x is the
// worker and its lane. All blocks of a rank must be resident together where workers wait for each
// other; all blocks of all ranks where one launch is for all ranks, which a cooperative launch
// checks.
//
// Loads of data bypass L1 (.cg): nothing is read twice from one SM.
#include "cuda/interpreter.h"
#include "cuda/interpreter_kernel.h"

namespace jaxcoll::cuda {
namespace {

// Tables of up to this size are read from shared memory: an op is several reads that depend on
// each other.
constexpr int kSharedTableBytes = 24 << 10;

// So many ranks' regions, too.
constexpr int kSharedRegions = 64;

class DevicePolicy : public DeviceAccess {
 public:
  __device__ explicit DevicePolicy(unsigned char** pointers) : pointers_(pointers) {}
  __device__ int thread() const { return static_cast<int>(threadIdx.x); }
  __device__ int threads() const { return static_cast<int>(blockDim.x); }
  __device__ bool All(bool mine) const { return __syncthreads_and(mine) != 0; }

  __device__ unsigned char** pointers() const { return pointers_; }

  template <typename T>
  __device__ __forceinline__ T Load(const void* from) const {
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
  __device__ __forceinline__ void Store(void* to, const T& value) const {
    if constexpr (sizeof(T) == 16) {
      *static_cast<uint4*>(to) = BitCast<uint4>(value);
    } else {
      *static_cast<T*>(to) = value;
    }
  }

 private:
  unsigned char** const pointers_;  // in shared memory
};

template <DType kDType>
__global__ void __launch_bounds__(kInterpreterThreads)
    Interpret(const __grid_constant__ ProgramCall parameter, const ProgramCall* all) {
  __shared__ ProgramCall call;
  __shared__ unsigned char* pointers[kPointers];
  __shared__ unsigned char* regions[kSharedRegions];
  __shared__ uint4 table[kSharedTableBytes / sizeof(uint4)];
  const ProgramCall& mine = all == nullptr ? parameter : all[blockIdx.y];
  static_assert(sizeof(ProgramCall) % sizeof(uint64_t) == 0);
  for (int i = threadIdx.x; i < static_cast<int>(sizeof(call) / sizeof(uint64_t));
       i += blockDim.x) {
    reinterpret_cast<uint64_t*>(&call)[i] = reinterpret_cast<const uint64_t*>(&mine)[i];
  }
  const uint4* const from = reinterpret_cast<const uint4*>(mine.program);
  const int words = mine.program->total_bytes / static_cast<int>(sizeof(uint4));
  const bool fits = words * static_cast<int>(sizeof(uint4)) <= kSharedTableBytes;
  for (int i = threadIdx.x; fits && i < words; i += blockDim.x) table[i] = from[i];
  const int ranks = mine.program->world_size;
  for (int i = threadIdx.x; ranks <= kSharedRegions && i < ranks; i += blockDim.x) {
    regions[i] = mine.regions[i];
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    if (fits) call.program = reinterpret_cast<const ProgramHeader*>(table);
    if (ranks <= kSharedRegions) call.regions = regions;
  }
  __syncthreads();
  DevicePolicy policy(pointers);
  Interpreter<DevicePolicy, kDType>(policy, call, static_cast<int32_t>(blockIdx.x)).Run();
}

template <DType kDType>
const void* Kernel() {
  return reinterpret_cast<const void*>(&Interpret<kDType>);
}

}  // namespace

const void* InterpreterKernel(DType dtype) {
  switch (dtype) {
    case DType::kBool:  // 0 or 1 in a byte
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
    case DType::kFloat8E3M4:
      return Kernel<DType::kFloat8E3M4>();
    case DType::kFloat8E4M3:
      return Kernel<DType::kFloat8E4M3>();
    case DType::kFloat8E4M3B11Fnuz:
      return Kernel<DType::kFloat8E4M3B11Fnuz>();
    case DType::kFloat8E4M3Fn:
      return Kernel<DType::kFloat8E4M3Fn>();
    case DType::kFloat8E4M3Fnuz:
      return Kernel<DType::kFloat8E4M3Fnuz>();
    case DType::kFloat8E5M2:
      return Kernel<DType::kFloat8E5M2>();
    case DType::kFloat8E5M2Fnuz:
      return Kernel<DType::kFloat8E5M2Fnuz>();
    case DType::kFloat8E8M0Fnu:
      return Kernel<DType::kFloat8E8M0Fnu>();
    case DType::kFloat16:
      return Kernel<DType::kFloat16>();
    case DType::kBFloat16:
      return Kernel<DType::kBFloat16>();
    case DType::kFloat32:
      return Kernel<DType::kFloat32>();
    case DType::kFloat64:
      return Kernel<DType::kFloat64>();
    case DType::kComplex64:
      return Kernel<DType::kComplex64>();
    case DType::kComplex128:
      return Kernel<DType::kComplex128>();
  }
  return nullptr;
}

}  // namespace jaxcoll::cuda
