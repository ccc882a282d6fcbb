// ragged_all_to_all: every rank fetches its segments from the others' operands, whose addresses and
// tables it is told. What reaches a row of the result is, in this order, the row of `output`, then
// the segments of ranks 0, 1, ...; a tile of the result belongs to one block, so that the order
// holds where segments overlap.
#pragma once

#include "cuda/memory.cuh"
#include "cuda/range.cuh"

namespace jaxcoll::cuda {

inline constexpr int64_t kTileBytes = 64 << 10;

struct RaggedTables {
  const unsigned char* operand[kMaxRanks];
  const unsigned char* input_offsets[kMaxRanks];
  const unsigned char* send_sizes[kMaxRanks];
  const unsigned char* output_offsets[kMaxRanks];
};

__device__ inline int64_t At(const unsigned char* table, int64_t i, bool wide) {
  return wide ? __ldcg(reinterpret_cast<const long long*>(table) + i)
              : __ldcg(reinterpret_cast<const int*>(table) + i);
}

// Refuses rows outside of the operand or the output, and a sender and a receiver that disagree.
__device__ inline void CheckTables(const Call& call, const RaggedTables& tables) {
  const Ragged& ragged = call.ragged;
  const auto* const recv_sizes = static_cast<const unsigned char*>(call.vectors[2].output);
  for (int i = threadIdx.x; i < call.world_size * ragged.updates_per_peer; i += blockDim.x) {
    const int sender = i / ragged.updates_per_peer;
    const int entry = call.rank * ragged.updates_per_peer + i % ragged.updates_per_peer;
    const int64_t rows = At(tables.send_sizes[sender], entry, ragged.wide_index);
    const int64_t expected = At(recv_sizes, i, ragged.wide_index);
    Cause cause = {};
    cause.peer = sender;
    cause.entry = entry;
    cause.rows = rows;
    if (rows != expected) {
      cause.kind = Cause::kRaggedSizes;
      cause.total = expected;
      Fail(call, cause);
    }
    cause.kind = Cause::kRaggedRows;
    cause.first = At(tables.input_offsets[sender], entry, ragged.wide_index);
    cause.total = ragged.operand_rows;
    if (rows < 0 || cause.first < 0 || cause.first > cause.total - rows) Fail(call, cause);
    cause.first = At(tables.output_offsets[sender], entry, ragged.wide_index);
    cause.total = ragged.output_rows;
    if (cause.first < 0 || cause.first > cause.total - rows) Fail(call, cause);
  }
}

struct RaggedShared {
  Call call;
  RaggedTables tables;
};

// One block.
__device__ inline void RunRagged(RaggedShared& shared, const Call& parameter, const Call* all) {
  LoadCall(shared.call, parameter, all);
  const Call& call = shared.call;
  RaggedTables& tables = shared.tables;
  Partners partners(call);
  partners.ExchangePointers();
  if (threadIdx.x < call.world_size) {
    const int rank = threadIdx.x;
    tables.operand[rank] = partners.Input(rank, 0);
    tables.input_offsets[rank] = partners.Input(rank, 1);
    tables.send_sizes[rank] = partners.Output(rank, 1);
    tables.output_offsets[rank] = partners.Input(rank, 2);
  }
  __syncthreads();
  CheckTables(call, tables);

  const Ragged& ragged = call.ragged;
  const auto* const output = static_cast<const unsigned char*>(ragged.output);
  auto* const result = static_cast<unsigned char*>(call.vectors[0].output);
  const int64_t total = ragged.output_rows * ragged.row_bytes;
  const int entries = call.world_size * ragged.updates_per_peer;
  for (int64_t at = blockIdx.x * kTileBytes; at < total; at += gridDim.x * kTileBytes) {
    const int64_t end = total - at < kTileBytes ? total : at + kTileBytes;
    Copy(One{result + at}, output + at, end - at, Block());
    for (int i = 0; i < entries; ++i) {
      const int sender = i / ragged.updates_per_peer;
      const int entry = call.rank * ragged.updates_per_peer + i % ragged.updates_per_peer;
      const int64_t place =
          At(tables.output_offsets[sender], entry, ragged.wide_index) * ragged.row_bytes;
      const int64_t bytes =
          At(tables.send_sizes[sender], entry, ragged.wide_index) * ragged.row_bytes;
      const int64_t first = place > at ? place : at;
      const int64_t last = place + bytes < end ? place + bytes : end;
      if (first >= last) continue;  // for all threads alike
      const int64_t from =
          At(tables.input_offsets[sender], entry, ragged.wide_index) * ragged.row_bytes;
      __syncthreads();  // what is written here before comes first
      Copy(One{result + first}, tables.operand[sender] + from + (first - place), last - first,
           Block());
    }
  }
  partners.Barrier();  // all have read what is not theirs
  partners.Leave();
}

}  // namespace jaxcoll::cuda
