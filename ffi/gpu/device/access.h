// Access to flags, clocks and the host, shared by the kernels of each collective and the
// interpreter.
//
// Data go by weak accesses. The flags order them: bar.sync, then a release store at
// system scope by one thread; an acquire load at system scope by one thread, then bar.sync. Both
// are cumulative, so that every write of every thread before the release is visible to every thread
// behind the acquire, on every rank.
#pragma once

#include <cstdint>

#include "gpu/abi/cause.h"
#include "gpu/abi/host_device.h"

namespace jaxcoll::cuda {

// Tests without a GPU run the kernels on threads and supply their own version of this class.
#if defined(__CUDACC__)
class DeviceAccess {
 public:
  __device__ uint64_t Acquire(const uint64_t* from) const {
    uint64_t value;
    asm volatile("ld.acquire.sys.u64 %0, [%1];" : "=l"(value) : "l"(from) : "memory");
    return value;
  }
  __device__ uint32_t Acquire(const uint32_t* from) const {
    uint32_t value;
    asm volatile("ld.acquire.sys.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return value;
  }
  __device__ void Release(uint64_t* to, uint64_t value) const {
    asm volatile("st.release.sys.u64 [%0], %1;" ::"l"(to), "l"(value) : "memory");
  }
  __device__ void Release(uint32_t* to, uint32_t value) const {
    asm volatile("st.release.sys.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
  }

  // Strong, so that writing one value from several blocks is not a race; the releasing store orders
  // it.
  __device__ uint64_t LoadRelaxed(const uint64_t* from) const {
    uint64_t value;
    asm volatile("ld.relaxed.sys.u64 %0, [%1];" : "=l"(value) : "l"(from) : "memory");
    return value;
  }
  __device__ void StoreRelaxed(uint64_t* to, uint64_t value) const {
    asm volatile("st.relaxed.sys.u64 [%0], %1;" ::"l"(to), "l"(value) : "memory");
  }

  // Among the threads of one device; returns the old value.
  __device__ uint32_t Increment(uint32_t* at) const {
    uint32_t old;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;"
                 : "=r"(old)
                 : "l"(__cvta_generic_to_global(at))
                 : "memory");
    return old;
  }

  __device__ uint64_t NowNs() const {
    uint64_t now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
  }
  // Called in every iteration of a waiting loop. It sleeps only in long waits, to leave memory
  // bandwidth to others.
  __device__ void Pause(int spins) const {
    if (spins % 256 == 255) __nanosleep(100);
  }
  __device__ void Trap() const {
    __threadfence_system();  // what was written for the host gets there
    __trap();
  }
};
#endif

// Spins until ok(), until the time is over, or until the host raises `abort`, if there is one;
// returns whether it was ok. The clock is read only occasionally; time slices of other processes
// count as waiting.
template <typename Access, typename Ok>
JAXCOLL_HD bool SpinUntil(Access& access, uint64_t deadline_ns, const Ok& ok,
                          const uint32_t* abort = nullptr) {
  constexpr int kSpinsBetweenClocks = 64;
  uint64_t deadline = 0;
  for (int spins = 0; !ok(); ++spins) {
    access.Pause(spins);
    if (spins % kSpinsBetweenClocks != 0) continue;
    if (abort != nullptr && access.Acquire(abort) != 0) return false;
    const uint64_t now = access.NowNs();
    if (deadline == 0) deadline = now + deadline_ns;
    if (now >= deadline) return false;
  }
  return true;
}

// Writes the reason of a failure for the host and traps, which ends the kernel and the context: no
// output of this launch can be read any more. The first thread of a rank that fails writes.
// `failing`: a word of the rank's workspace, zero until then.
template <typename Access>
JAXCOLL_HD void GiveUp(Access& access, uint32_t* failing, CauseRecord* record, uint64_t deadline_ns,
                       const Cause& cause) {
  if (access.Increment(failing) == 0) {
    record->cause = cause;
    access.Release(&record->written, uint32_t{1});
  } else {
    // A trap ends the writer, too: not before it is done, nor long after it was ended itself.
    constexpr uint64_t kPatienceNs = 1000000000;
    SpinUntil(access, deadline_ns < kPatienceNs ? deadline_ns : kPatienceNs,
              [&] { return access.Acquire(&record->written) != 0; });
  }
  access.Trap();
}

}  // namespace jaxcoll::cuda
