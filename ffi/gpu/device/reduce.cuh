// The kernel of all collectives that reduce: all_reduce, reduce_scatter, reduce.
//
// Sources are always in rank order, so one shot, two shots, direct and staged give the same bits,
// on every rank, and the same as the CPU engine's direct algorithms.
//
//   direct    all ranks reach each other's operands: a barrier when they are ready, one pass, a
//             barrier before they may be reused. Bytes read and written by P ranks of n bytes each:
//               one shot         P x P n read, P n written
//               two shots        P n read, P n written: a rank reduces its share for all
//               reduce_scatter   P n read, n written
//   staged    operands are copied, piece by piece, into a staging area that the others have mapped.
//             A piece is read again soon, by the others, from L2. One barrier for each piece, two
//             with two shots.
#pragma once

#include "gpu/device/memory.cuh"
#include "gpu/device/range.cuh"

namespace jaxcoll::cuda {

// This rank's share of a vector in two shots: whole packs, so that shares stay aligned.
struct Share {
  int64_t first, elements;
};
__device__ inline Share ShareOf(int64_t elements, int item_bytes, int rank, int world_size) {
  const int64_t per_pack = 16 / item_bytes;
  const int64_t packs = (elements + per_pack - 1) / per_pack;
  const int64_t most = (packs + world_size - 1) / world_size * per_pack;
  int64_t first = rank * most;
  if (first > elements) first = elements;
  return {first, elements - first < most ? elements - first : most};
}

template <typename E, int kOp, bool kHot>
__device__ __forceinline__ void ReduceDirect(const Call& call, Streams& streams,
                                             Partners& partners) {
  const ReduceOp op = static_cast<ReduceOp>(call.reduce_op);
  const int world_size = call.world_size;
  for (int v = 0; v < call.vector_count; ++v) {
    const int64_t elements = call.vectors[v].elements;
    Share share = {0, elements};
    int64_t skip = 0;  // elements of the sources
    if (call.mode == Mode::kAllReduceTwoShot) {
      share = ShareOf(elements, call.item_bytes, call.rank, world_size);
      skip = share.first;
    } else if (call.mode == Mode::kReduceScatter) {
      skip = call.rank * elements;
    } else if (call.mode == Mode::kReduce && call.rank != call.root) {
      Zero(partners.Output(call.rank, v), elements * call.item_bytes, Grid());
      continue;
    }
    __syncthreads();  // the last vector's streams have been used
    if (threadIdx.x < world_size) {
      const int rank = threadIdx.x;
      streams.sources[rank] = partners.Input(rank, v) + skip * call.item_bytes;
      if (call.mode == Mode::kAllReduceTwoShot) {
        streams.destinations[rank] = partners.Output(rank, v) + skip * call.item_bytes;
      } else if (rank == call.rank) {
        streams.destinations[0] = partners.Output(rank, v);
      }
    }
    if (threadIdx.x == 0) {
      streams.source_count = world_size;
      streams.destination_count = call.mode == Mode::kAllReduceTwoShot ? world_size : 1;
    }
    __syncthreads();
    Reduce<E, kOp, kHot>(streams, op, share.elements, Grid());
  }
  partners.Barrier();  // all have read and written what is not theirs
}

// One piece: bytes [at, at + bytes) of a vector, or of each of its blocks.
template <typename E, int kOp, bool kHot>
__device__ __forceinline__ void ReduceStaged(const Call& call, Streams& streams,
                                             Partners& partners) {
  const ReduceOp op = static_cast<ReduceOp>(call.reduce_op);
  const int world_size = call.world_size;
  const int rank = call.rank;
  const bool two_shots = call.mode == Mode::kAllReduceTwoShot;
  const bool scatters = call.mode == Mode::kReduceScatter;
  const int64_t piece_bytes = two_shots ? call.slot_bytes * world_size : call.slot_bytes;
  for (int v = 0; v < call.vector_count; ++v) {
    const auto* const input = static_cast<const unsigned char*>(call.vectors[v].input);
    auto* const output = static_cast<unsigned char*>(call.vectors[v].output);
    const int64_t total = call.vectors[v].elements * call.item_bytes;
    for (int64_t at = blockIdx.x * piece_bytes; at < total; at += gridDim.x * piece_bytes) {
      const int64_t bytes = total - at < piece_bytes ? total - at : piece_bytes;
      // The part of the piece that this rank reduces.
      int64_t first = 0, mine = bytes;
      if (two_shots) {
        first = rank * call.slot_bytes;
        mine = bytes - first < call.slot_bytes ? bytes - first : call.slot_bytes;
        if (mine < 0) mine = 0;
      } else if (call.mode == Mode::kReduce && rank != call.root) {
        mine = 0;
      }
      __syncthreads();  // the last piece's streams have been used
      if (threadIdx.x < world_size) {
        streams.sources[threadIdx.x] = partners.Slot(threadIdx.x, two_shots || scatters ? rank : 0);
      }
      if (threadIdx.x == 0) {
        streams.source_count = world_size;
        streams.destination_count = two_shots ? 2 : 1;
        streams.destinations[0] = output + at + first;
        streams.destinations[1] = partners.Slot(rank, two_shots ? world_size : 0);
      }
      // The slots of two shots follow each other.
      ForEachPart(scatters ? world_size : 1, [&](int q, Team team) {
        Copy(One{partners.Slot(rank, q)}, input + q * total + at, bytes, team);
      });
      partners.Barrier();
      Reduce<E, kOp, kHot>(streams, op, mine / call.item_bytes, Block());
      if (two_shots) {
        partners.Barrier();
        ForEachPart(world_size - 1, [&](int d, Team team) {
          const int q = (rank + 1 + d) % world_size;
          const int64_t left = bytes - q * call.slot_bytes;
          Copy(One{output + at + q * call.slot_bytes}, partners.Slot(q, world_size),
               left < call.slot_bytes ? left : call.slot_bytes, team);
        });
      }
      partners.NextRound();
    }
    if (call.mode == Mode::kReduce && rank != call.root) Zero(output, total, Grid());
  }
}

struct ReduceShared {
  Call call;
  Streams streams;
};

// One block.
template <typename E, int kOp, bool kHot>
__device__ __forceinline__ void RunReduce(ReduceShared& shared, const Call& parameter,
                                          const Call* all) {
  LoadCall(shared.call, parameter, all);
  Partners partners(shared.call);
  if (partners.Reach()) {
    ReduceDirect<E, kOp, kHot>(shared.call, shared.streams, partners);
  } else {
    ReduceStaged<E, kOp, kHot>(shared.call, shared.streams, partners);
  }
  partners.Leave();
}

// Launch bounds: all loads of an element in flight need up to 128 registers, so an SM has one
// block.
template <typename E, int kOp, bool kHot>
__global__ void __launch_bounds__(kThreads, 1)
    ReduceKernel(const __grid_constant__ Call parameter, const Call* all) {
  __shared__ ReduceShared shared;
  RunReduce<E, kOp, kHot>(shared, parameter, all);
}

// Any op of a dtype.
template <DType kDType>
struct AnyReduction {
  static const void* Address() {
    return reinterpret_cast<const void*>(&ReduceKernel<ElementOf<kDType>, kAnyOp, false>);
  }
};

}  // namespace jaxcoll::cuda
