// The kernel of all collectives that only move bytes: all_gather, all_to_all, broadcast, permute.
//
//   direct a rank writes its data into the others' outputs: it reads its input once, and
//             writes need no round trip. P ranks of n bytes each: all_gather P n read, P P n
//             written; all_to_all P n both; broadcast n read, P n written by the root.
//   staged as in reduce.cuh: every rank reads its data from the others' staging areas.
#pragma once

#include "gpu/device/memory.cuh"
#include "gpu/device/range.cuh"

namespace jaxcoll::cuda {

__device__ inline void MoveDirect(const Call& call, unsigned char** destinations,
                                  Partners& partners) {
  const int world_size = call.world_size;
  for (int v = 0; v < call.vector_count; ++v) {
    const auto* const input = static_cast<const unsigned char*>(call.vectors[v].input);
    const int64_t bytes = call.vectors[v].elements * call.item_bytes;
    // The place of this rank's data in the others' outputs.
    const bool by_source = call.mode == Mode::kAllGather || call.mode == Mode::kAllToAll;
    const int64_t place = by_source ? call.rank * bytes : 0;
    __syncthreads();  // the last vector's destinations have been used
    if (threadIdx.x < world_size) {
      destinations[threadIdx.x] = partners.Output(threadIdx.x, v) + place;
    }
    __syncthreads();
    switch (call.mode) {
      case Mode::kAllToAll:
        for (int d = 0; d < world_size; ++d) {
          // Each rank begins with a different peer, so that no port is every rank's first.
          const int to = (call.rank + d) % world_size;
          Copy(One{destinations[to]}, input + to * bytes, bytes, Grid());
        }
        break;
      case Mode::kBroadcast:
        if (call.rank == call.root) Copy(Many{destinations, world_size}, input, bytes, Grid());
        break;
      case Mode::kPermute:
        if (call.destination >= 0) {
          Copy(One{destinations[call.destination]}, input, bytes, Grid());
        }
        if (call.source < 0) Zero(destinations[call.rank], bytes, Grid());
        break;
      default:
        Copy(Many{destinations, world_size}, input, bytes, Grid());
    }
  }
  partners.Barrier();  // all have finished their accesses to others' memory
}

__device__ inline void MoveStaged(const Call& call, Partners& partners) {
  const int world_size = call.world_size;
  const int rank = call.rank;
  for (int v = 0; v < call.vector_count; ++v) {
    const auto* const input = static_cast<const unsigned char*>(call.vectors[v].input);
    auto* const output = static_cast<unsigned char*>(call.vectors[v].output);
    const int64_t total = call.vectors[v].elements * call.item_bytes;
    for (int64_t at = blockIdx.x * call.slot_bytes; at < total; at += gridDim.x * call.slot_bytes) {
      const int64_t bytes = total - at < call.slot_bytes ? total - at : call.slot_bytes;
      const auto stage = [&](int slot, const unsigned char* from, Team team) {
        Copy(One{partners.Slot(rank, slot)}, from, bytes, team);
      };
      const auto fetch = [&](int from, int slot, int64_t place, Team team) {
        Copy(One{output + place + at}, partners.Slot(from, slot), bytes, team);
      };
      switch (call.mode) {
        case Mode::kAllToAll:
          ForEachPart(world_size,
                      [&](int q, Team team) { stage(q, input + q * total + at, team); });
          break;
        case Mode::kBroadcast:
          if (rank == call.root) stage(0, input + at, Block());
          break;
        case Mode::kPermute:
          if (call.destination >= 0) stage(0, input + at, Block());
          break;
        default:
          stage(0, input + at, Block());
      }
      partners.Barrier();
      switch (call.mode) {
        case Mode::kBroadcast:
          fetch(call.root, 0, 0, Block());
          break;
        case Mode::kPermute:
          if (call.source >= 0) fetch(call.source, 0, 0, Block());
          break;
        default:
          ForEachPart(world_size, [&](int d, Team team) {
            const int from = (rank + d) % world_size;
            fetch(from, call.mode == Mode::kAllToAll ? rank : 0, from * total, team);
          });
      }
      partners.NextRound();
    }
    if (call.mode == Mode::kPermute && call.source < 0) Zero(output, total, Grid());
  }
}

struct MoveShared {
  Call call;
  unsigned char* destinations[kMaxRanks];
};

// One block.
__device__ inline void RunMove(MoveShared& shared, const Call& parameter, const Call* all) {
  LoadCall(shared.call, parameter, all);
  Partners partners(shared.call);
  if (partners.Reach()) {
    MoveDirect(shared.call, shared.destinations, partners);
  } else {
    MoveStaged(shared.call, partners);
  }
  partners.Leave();
}

}  // namespace jaxcoll::cuda
