// The barrier between ranks, as a block sees it. Operands and staging are read and written with
// weak accesses, which the barrier orders (access.h). Loads bypass L1 (.cg): nothing is read twice
// from one SM.
#pragma once

#include <cstdint>

#include "gpu/abi/layout.h"
#include "gpu/device/access.h"

namespace jaxcoll::cuda {

// `cause` says whom it is about.
__device__ inline void Fail(const Call& call, Cause cause) {
  cause.seat = call.seat;
  cause.block = blockIdx.x;
  cause.expected_fingerprint = call.fingerprint;
  DeviceAccess access;
  Header* const header = reinterpret_cast<Header*>(call.workspaces[call.rank]);
  GiveUp(access, &header->failing, call.cause, call.deadline_ns, cause);
}

// Spins until `flag` shows barrier `count` or a later one. Not inlined: it would take registers
// from the loops around it.
__device__ __noinline__ inline void Await(const Call& call, int peer, const uint64_t* flag,
                                          uint32_t count) {
  DeviceAccess access;
  uint64_t seen = 0;
  const auto ahead = [&] { return static_cast<int32_t>(static_cast<uint32_t>(seen) - count); };
  const bool came = SpinUntil(access, call.deadline_ns, [&] {
    seen = access.Acquire(flag);
    return ahead() >= 0;
  });
  if (came && (ahead() > 0 || seen >> 32 == call.fingerprint)) return;
  Cause cause = {};
  cause.kind = came ? Cause::kMismatch : Cause::kDeadline;
  cause.rank = call.rank;
  cause.peer = peer;
  cause.expected = count;
  cause.seen = static_cast<uint32_t>(seen);
  cause.seen_fingerprint = seen >> 32;
  Fail(call, cause);
}

// This block and its partners on the other ranks. `call` is in shared memory.
class Partners {
 public:
  __device__ explicit Partners(const Call& call)
      : call_(call),
        own_(SeatOf(call.rank)),
        count_(own_->count[blockIdx.x]),
        round_(own_->round[blockIdx.x]) {}

  // Everything that any of the partners wrote before is visible to all of them behind.
  // Called by all threads.
  __device__ void Barrier() {
    __syncthreads();
    ++count_;
    const int peer = threadIdx.x;
    if (peer < call_.world_size && peer != call_.rank) {
      access_.Release(&SeatOf(peer)->flags[blockIdx.x][call_.rank],
                      FlagOf(call_.fingerprint, count_));
      Await(call_, peer, &own_->flags[blockIdx.x][peer], count_);
    }
    __syncthreads();
  }

  // Whether operands are reached in place: then the barrier is passed behind which all ranks know
  // each other's, and that these are ready. All ranks and threads get the same answer, and who got
  // true passes another barrier when it has read and written what is not its own.
  __device__ bool Reach() {
    if (call_.staged && !call_.mapped) return false;
    const int count = call_.world_size * call_.vector_count;
    const uint64_t base = AddressOf(call_.bases[call_.rank]);
    const bool tells = !call_.mapped || call_.reachable;
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
      const Vector& vector = call_.vectors[i % call_.vector_count];
      VectorPointers* const to =
          &SeatOf(i / call_.vector_count)->pointers[call_.rank][i % call_.vector_count];
      access_.StoreRelaxed(&to->input, tells ? AddressOf(vector.input) - base : kNowhere);
      access_.StoreRelaxed(&to->output, tells ? AddressOf(vector.output) - base : kNowhere);
    }
    Barrier();
    if (!call_.mapped) return true;
    bool all = true;
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
      const VectorPointers& told = own_->pointers[i / call_.vector_count][i % call_.vector_count];
      all = all && access_.LoadRelaxed(&told.input) != kNowhere;
    }
    all = __syncthreads_and(all) != 0;
    // All threads have read the told values: the next launch may overwrite them.
    if (!all) Barrier();
    return all;
  }
  __device__ const unsigned char* Input(int rank, int vector) const {
    return call_.bases[rank] + access_.LoadRelaxed(&own_->pointers[rank][vector].input);
  }
  __device__ unsigned char* Output(int rank, int vector) const {
    return call_.bases[rank] + access_.LoadRelaxed(&own_->pointers[rank][vector].output);
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
  __device__ Seat* SeatOf(int rank) const {
    return reinterpret_cast<Seat*>(call_.workspaces[rank] + SeatOffset(call_.seat));
  }

  const Call& call_;
  DeviceAccess access_;
  Seat* const own_;
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
    Cause cause = {};
    cause.kind = Cause::kMoved;
    cause.rank = shared.rank;
    cause.entry = static_cast<int32_t>(*shared.logical_id);
    Fail(shared, cause);
  }
}

}  // namespace jaxcoll::cuda
