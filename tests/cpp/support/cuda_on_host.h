// The kernels of ffi/cuda on threads of the host: what a thread block is, and the device functions
// that they use. Include it before any .cuh. A trap anywhere ends all threads of the grid, as it
// ends a grid.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <utility>

#include "support/pause.h"

#if defined(__CUDACC__)
#error "for the host's compiler"
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__  // tests run a kernel's body and bring what its block shares

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct Index {
  int x = 0, y = 0;
};

namespace jaxcoll::cuda {

struct Trapped {};

// Whether a trap has ended it. Relaxed: looking must not order what ranks do, or
// ThreadSanitizer would take it for their barrier.
struct HostGrid {
  std::atomic<bool> trapped{false};

  void Trap() { trapped.store(true, std::memory_order_relaxed); }
  void Check() const {
    if (trapped.load(std::memory_order_relaxed)) throw Trapped();
  }
};

// Of the threads of a block, or of a launch.
class HostBarrier {
 public:
  HostBarrier(const HostGrid& world, int threads) : world_(world), threads_(threads) {}
  // Returns whether all said true.
  bool Wait(bool mine = true) {
    std::unique_lock lock(mutex_);
    const uint64_t round = round_;
    all_ = all_ && mine;
    if (++arrived_ == threads_) {
      arrived_ = 0;
      result_ = std::exchange(all_, true);
      ++round_;
      changed_.notify_all();
      return result_;
    }
    while (round_ == round) {
      world_.Check();  // nobody notifies of a trap
      changed_.wait_for(lock, std::chrono::milliseconds(20));
    }
    return result_;  // that of the next round needs this thread
  }

 private:
  const HostGrid& world_;
  const int threads_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int arrived_ = 0;     // guarded by mutex_
  uint64_t round_ = 0;  // guarded by mutex_
  bool all_ = true;     // guarded by mutex_
  bool result_ = true;  // guarded by mutex_
};

// What a thread knows of itself.
struct HostThread {
  HostGrid* world = nullptr;
  HostBarrier* block = nullptr;
};
inline thread_local HostThread this_thread;

class DeviceAccess {
 public:
  template <typename T>
  T Acquire(const T* from) const {
    this_thread.world->Check();
    return __atomic_load_n(from, __ATOMIC_ACQUIRE);
  }
  template <typename T>
  void Release(T* to, T value) const {
    __atomic_store_n(to, value, __ATOMIC_RELEASE);
  }
  uint64_t LoadRelaxed(const uint64_t* from) const {
    return __atomic_load_n(from, __ATOMIC_RELAXED);
  }
  void StoreRelaxed(uint64_t* to, uint64_t value) const {
    __atomic_store_n(to, value, __ATOMIC_RELAXED);
  }
  uint32_t Increment(uint32_t* at) const { return __atomic_fetch_add(at, 1, __ATOMIC_ACQ_REL); }
  uint64_t NowNs() const {
    return static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
  }
  void Pause(int spins) const { PauseAmongMany(spins); }
  [[noreturn]] void Trap() const {
    this_thread.world->Trap();
    throw Trapped();
  }
};

}  // namespace jaxcoll::cuda

inline thread_local Index threadIdx, blockIdx, blockDim, gridDim;

template <typename T>
T __ldcg(const T* address) {
  return *address;
}
inline void __syncthreads() { jaxcoll::cuda::this_thread.block->Wait(); }
inline int __syncthreads_and(int mine) {
  return jaxcoll::cuda::this_thread.block->Wait(mine != 0) ? 1 : 0;
}
