// Loads, stores and the barrier between ranks, as a block sees them.
//
// Operands and staging are read and written with weak accesses; what orders them is the barrier:
// bar.sync, a release store of the flag at system scope by one thread for each peer, an acquire
// load of the peer's flag at system scope, bar.sync. Release and acquire are cumulative, so that
// every write of every thread before the barrier is visible to every thread behind it, on every
// rank. Loads bypass L1 (.cg): nothing is read twice from one SM.
#pragma once

#include <cstdint>

#include "cuda/layout.h"

namespace jaxcoll::cuda {

// A test without a GPU runs the kernels on threads and brings these functions with it.
#if defined(__CUDACC__)
__device__ inline void StoreRelease(uint64_t* address, uint64_t value) {
  asm volatile("st.release.sys.u64 [%0], %1;" ::"l"(address), "l"(value) : "memory");
}

__device__ inline uint64_t LoadAcquire(const uint64_t* address) {
  uint64_t value;
  asm volatile("ld.acquire.sys.u64 %0, [%1];" : "=l"(value) : "l"(address) : "memory");
  return value;
}

// Strong, so that writing one value from several blocks is no race; ordered by the barrier.
__device__ inline void StoreRelaxed(uint64_t* address, uint64_t value) {
  asm volatile("st.relaxed.sys.u64 [%0], %1;" ::"l"(address), "l"(value) : "memory");
}

__device__ inline uint64_t LoadRelaxed(const uint64_t* address) {
  uint64_t value;
  asm volatile("ld.relaxed.sys.u64 %0, [%1];" : "=l"(value) : "l"(address) : "memory");
  return value;
}

__device__ inline uint64_t NowNs() {
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}
#endif

// Writes the cause where the host will find it and ends the kernel, and with it the context: no
// output of this launch can be read any more. The first thread of a rank that fails writes.
__device__ inline void Fail(const Call& call, const CauseRecord& cause) {
  Header* const header = reinterpret_cast<Header*>(call.workspaces[call.rank]);
  if (atomicCAS(&header->failing, 0u, 1u) == 0u) {
    volatile CauseRecord* const record = call.cause;
    record->rank = call.rank;
    record->peer = cause.peer;
    record->lane = call.lane;
    record->block = blockIdx.x;
    record->expected_count = cause.expected_count;
    record->seen_count = cause.seen_count;
    record->expected_fingerprint = call.fingerprint;
    record->seen_fingerprint = cause.seen_fingerprint;
    record->entry = cause.entry;
    record->first = cause.first;
    record->rows = cause.rows;
    record->total = cause.total;
    __threadfence_system();
    record->kind = cause.kind;
    __threadfence_system();
    atomicExch(&header->failing, 2u);
  } else {
    // A trap ends the whole grid: not before the writer is done, nor long after it hangs.
    for (int i = 0; i < 100000 && atomicCAS(&header->failing, 2u, 2u) != 2u; ++i) {
      __nanosleep(1000);
    }
  }
  __trap();
}

// Spins until `flag` shows barrier `count` or a later one.
__device__ inline void Await(const Call& call, int peer, const uint64_t* flag, uint32_t count) {
  // The clock is looked at now and then only; time slices of other processes count as waiting.
  constexpr int kSpinsPerLook = 256;
  uint64_t started = 0;
  for (int spins = 0;; ++spins) {
    const uint64_t seen = LoadAcquire(flag);
    const uint32_t seen_count = static_cast<uint32_t>(seen);
    const int32_t ahead = static_cast<int32_t>(seen_count - count);
    if (ahead > 0) return;
    const uint32_t seen_fingerprint = static_cast<uint32_t>(seen >> 32);
    if (ahead == 0 && seen_fingerprint == call.fingerprint) return;
    CauseRecord cause = {};
    cause.peer = peer;
    cause.expected_count = count;
    cause.seen_count = seen_count;
    cause.seen_fingerprint = seen_fingerprint;
    if (ahead == 0) {
      cause.kind = CauseRecord::kMismatch;
      Fail(call, cause);
    }
    if (spins % kSpinsPerLook == kSpinsPerLook - 1) {
      const uint64_t now = NowNs();
      if (started == 0) {
        started = now;
      } else if (now - started > call.deadline_ns) {
        cause.kind = CauseRecord::kDeadline;
        Fail(call, cause);
      }
      __nanosleep(100);
    }
  }
}

// This block and its partners on the other ranks. `call` is in shared memory.
class Partners {
 public:
  __device__ explicit Partners(const Call& call)
      : call_(call),
        own_(LaneOf(call.rank)),
        count_(own_->count[blockIdx.x]),
        round_(own_->round[blockIdx.x]) {}

  // Everything that any of the partners wrote before is visible to all of them behind.
  // Called by all threads.
  __device__ void Barrier() {
    __syncthreads();
    ++count_;
    const int peer = threadIdx.x;
    if (peer < call_.world_size && peer != call_.rank) {
      StoreRelease(&LaneOf(peer)->flags[blockIdx.x][call_.rank], FlagOf(call_.fingerprint, count_));
      Await(call_, peer, &own_->flags[blockIdx.x][peer], count_);
    }
    __syncthreads();
  }

  // The barrier behind which all ranks know each other's operands, and that these are ready.
  __device__ void ExchangePointers() {
    for (int i = threadIdx.x; i < call_.world_size * call_.vector_count; i += blockDim.x) {
      const int vector = i % call_.vector_count;
      VectorPointers* const to = &LaneOf(i / call_.vector_count)->pointers[call_.rank][vector];
      StoreRelaxed(&to->input, reinterpret_cast<uint64_t>(call_.vectors[vector].input));
      StoreRelaxed(&to->output, reinterpret_cast<uint64_t>(call_.vectors[vector].output));
    }
    Barrier();
  }
  __device__ const unsigned char* Input(int rank, int vector) const {
    return reinterpret_cast<const unsigned char*>(LoadRelaxed(&own_->pointers[rank][vector].input));
  }
  __device__ unsigned char* Output(int rank, int vector) const {
    return reinterpret_cast<unsigned char*>(LoadRelaxed(&own_->pointers[rank][vector].output));
  }

  // A slot of a rank's staging, in the half of this round.
  __device__ unsigned char* Slot(int rank, int slot) const {
    const int slots = StagingSlots(call_.mode, call_.world_size);
    const int64_t index = (static_cast<int64_t>(blockIdx.x) * 2 + (round_ & 1)) * slots + slot;
    return call_.workspaces[rank] + call_.staging + index * call_.slot_bytes;
  }
  __device__ void NextRound() { ++round_; }

  // Last of all: the next launch goes on from here.
  __device__ void Leave() {
    __syncthreads();  // a block without work has passed no barrier: all have read the counters
    if (threadIdx.x == 0) {
      own_->count[blockIdx.x] = count_;
      own_->round[blockIdx.x] = round_;
    }
  }

 private:
  __device__ Lane* LaneOf(int rank) const {
    return reinterpret_cast<Lane*>(call_.workspaces[rank] + LaneOffset(call_.lane));
  }

  const Call& call_;
  Lane* const own_;
  uint32_t count_;
  uint32_t round_;
};

// A launch is for one rank, whose call is a kernel parameter, or for all ranks at once on one
// device: then their calls are in memory and a block's rank is blockIdx.y.
__device__ inline void LoadCall(Call& shared, const Call& parameter, const Call* all) {
  static_assert(sizeof(Call) % sizeof(uint64_t) == 0);
  constexpr int kWords = sizeof(Call) / sizeof(uint64_t);
  const uint64_t* const from =
      reinterpret_cast<const uint64_t*>(all == nullptr ? &parameter : all + blockIdx.y);
  uint64_t* const to = reinterpret_cast<uint64_t*>(&shared);
  for (int i = threadIdx.x; i < kWords; i += blockDim.x) to[i] = from[i];
  __syncthreads();
  // A program may run on another mesh than the one it was lowered for; then ranks are not what the
  // host took them for.
  if (shared.logical_id != nullptr && threadIdx.x == 0 &&
      *shared.logical_id != shared.expected_logical_id) {
    CauseRecord cause = {};
    cause.kind = CauseRecord::kMoved;
    cause.entry = static_cast<int32_t>(*shared.logical_id);
    Fail(shared, cause);
  }
}

}  // namespace jaxcoll::cuda
