// ragged_all_to_all. A row of the result receives, in this order, the row of `output`, then
// the rows from ranks 0, 1, ...; a tile of the result belongs to one block, so that the order
// holds where rows overlap.
//
//   direct    every rank fetches its rows from the others' operands, whose addresses and tables
//             they publish.
//   staged    every rank tells the others its tables. For each tile it stages the rows that it has
//             for each of them, at their place in the tile, and fetches what they have for it.
//
// Every rank checks the tables of all, so that all of them fail, and name the same entry.
#pragma once

#include "gpu/device/memory.cuh"
#include "gpu/device/range.cuh"

namespace jaxcoll::cuda {

inline constexpr int64_t kTileBytes = 64 << 10;

// Entries from others that a block keeps at hand.
inline constexpr int kEntriesAtHand = 256;

struct RaggedShared {
  Call call;
  const unsigned char* operands[kMaxRanks];
  const unsigned char* tables[kMaxRanks][4];  // direct: in the order of a RaggedEntry
  int64_t first[kEntriesAtHand], bytes[kEntriesAtHand];
};

// The tables of all ranks.
class RaggedTables {
 public:
  __device__ explicit RaggedTables(RaggedShared& shared) : shared_(shared), call_(shared.call) {}

  // Called by all threads, before the barrier that publishes them.
  __device__ void Publish() const {
    RaggedEntry* const own = EntriesOf(call_.rank);
    const auto store = [&](int64_t& to, const void* table, int i) {
      access_.StoreRelaxed(reinterpret_cast<uint64_t*>(&to), static_cast<uint64_t>(At(table, i)));
    };
    for (int i = threadIdx.x; i < entries(); i += blockDim.x) {
      store(own[i].input_offset, call_.vectors[1].input, i);
      store(own[i].send_size, call_.vectors[1].output, i);
      store(own[i].output_offset, call_.vectors[2].input, i);
      store(own[i].recv_size, call_.vectors[2].output, i);
    }
  }

  __device__ int entries() const { return call_.world_size * call_.ragged.updates_per_peer; }
  // Entry u for (or, of recv_size, from) `peer` in the tables of `rank`.
  __device__ RaggedEntry Get(int rank, int peer, int u) const {
    const int i = peer * call_.ragged.updates_per_peer + u;
    if (!call_.staged) {
      const unsigned char* const* const tables = shared_.tables[rank];
      return {At(tables[0], i), At(tables[1], i), At(tables[2], i), At(tables[3], i)};
    }
    const auto load = [&](const int64_t& from) {
      return static_cast<int64_t>(access_.LoadRelaxed(reinterpret_cast<const uint64_t*>(&from)));
    };
    const RaggedEntry& said = EntriesOf(rank)[i];
    return {load(said.input_offset), load(said.send_size), load(said.output_offset),
            load(said.recv_size)};
  }

  // Refuses rows outside of the operand or the output, and a sender and a receiver that disagree.
  __device__ void Check() const {
    const Ragged& ragged = call_.ragged;
    const int updates = ragged.updates_per_peer;
    for (int i = threadIdx.x; i < call_.world_size * entries(); i += blockDim.x) {
      const int sender = i / entries(), receiver = i / updates % call_.world_size, u = i % updates;
      const RaggedEntry sent = Get(sender, receiver, u);
      const int64_t expected = Get(receiver, sender, u).recv_size;
      Cause cause = {};
      cause.rank = receiver;
      cause.peer = sender;
      cause.entry = receiver * updates + u;
      cause.rows = sent.send_size;
      if (cause.rows != expected) {
        cause.kind = Cause::kRaggedSizes;
        cause.total = expected;
        Fail(call_, cause);
      }
      cause.kind = Cause::kRaggedRows;
      const auto outside = [&](int64_t first, int64_t total) {
        cause.first = first;
        cause.total = total;
        return cause.rows < 0 || first < 0 || first > total - cause.rows;
      };
      if (outside(sent.input_offset, ragged.operand_rows)) Fail(call_, cause);
      if (outside(sent.output_offset, ragged.output_rows)) Fail(call_, cause);
    }
    // The extents of what this rank receives, in order.
    for (int i = threadIdx.x; i < entries() && i < kEntriesAtHand; i += blockDim.x) {
      const RaggedEntry sent = Get(i / updates, call_.rank, i % updates);
      shared_.first[i] = sent.output_offset * ragged.row_bytes;
      shared_.bytes[i] = sent.send_size * ragged.row_bytes;
    }
    __syncthreads();
  }

  // A part of the result: what update u of `sender` writes of the tile [at, end), and where that
  // lies in the sender's operand.
  struct Part {
    int64_t first, last, from;
  };
  // For this rank; without `from`.
  __device__ Part Incoming(int sender, int u, int64_t at, int64_t end) const {
    const int i = sender * call_.ragged.updates_per_peer + u;
    if (i < kEntriesAtHand) return Cut(shared_.first[i], shared_.bytes[i], 0, at, end);
    return Outgoing(sender, call_.rank, u, at, end);
  }
  __device__ Part Outgoing(int sender, int receiver, int u, int64_t at, int64_t end) const {
    const int64_t row = call_.ragged.row_bytes;
    const RaggedEntry sent = Get(sender, receiver, u);
    return Cut(sent.output_offset * row, sent.send_size * row, sent.input_offset * row, at, end);
  }

 private:
  static __device__ Part Cut(int64_t start, int64_t bytes, int64_t from, int64_t at, int64_t end) {
    const int64_t first = start > at ? start : at;
    const int64_t last = start + bytes < end ? start + bytes : end;
    return {first, last, from + (first - start)};
  }
  __device__ int64_t At(const void* table, int i) const {
    return call_.ragged.wide_index ? __ldcg(static_cast<const long long*>(table) + i)
                                   : __ldcg(static_cast<const int*>(table) + i);
  }
  __device__ RaggedEntry* EntriesOf(int rank) const {
    return reinterpret_cast<RaggedEntry*>(
        call_.workspaces[rank] + call_.staging +
        StagingBytes(call_.mode, call_.world_size, gridDim.x, call_.slot_bytes));
  }

  RaggedShared& shared_;
  const Call& call_;
  DeviceAccess access_;
};

__device__ inline void RaggedDirect(RaggedShared& shared, Partners& partners) {
  const Call& call = shared.call;
  if (threadIdx.x < call.world_size) {
    const int rank = threadIdx.x;
    shared.operands[rank] = partners.Input(rank, 0);
    shared.tables[rank][0] = partners.Input(rank, 1);
    shared.tables[rank][1] = partners.Output(rank, 1);
    shared.tables[rank][2] = partners.Input(rank, 2);
    shared.tables[rank][3] = partners.Output(rank, 2);
  }
  __syncthreads();
  const RaggedTables tables(shared);
  tables.Check();
  const auto* const output = static_cast<const unsigned char*>(call.ragged.output);
  auto* const result = static_cast<unsigned char*>(call.vectors[0].output);
  const int64_t total = call.ragged.output_rows * call.ragged.row_bytes;
  for (int64_t at = blockIdx.x * kTileBytes; at < total; at += gridDim.x * kTileBytes) {
    const int64_t end = total - at < kTileBytes ? total : at + kTileBytes;
    Copy(One{result + at}, output + at, end - at, Block());
    for (int i = 0; i < tables.entries(); ++i) {
      const int sender = i / call.ragged.updates_per_peer;
      const int u = i % call.ragged.updates_per_peer;
      const auto some = tables.Incoming(sender, u, at, end);
      if (some.first >= some.last) continue;  // for all threads alike
      const auto part = tables.Outgoing(sender, call.rank, u, at, end);
      __syncthreads();  // what is written here before comes first
      Copy(One{result + part.first}, shared.operands[sender] + part.from, part.last - part.first,
           Block());
    }
  }
}

__device__ inline void RaggedStaged(RaggedShared& shared, Partners& partners) {
  const Call& call = shared.call;
  const RaggedTables tables(shared);
  tables.Publish();
  partners.Barrier();
  tables.Check();
  const auto* const operand = static_cast<const unsigned char*>(call.vectors[0].input);
  const auto* const output = static_cast<const unsigned char*>(call.ragged.output);
  auto* const result = static_cast<unsigned char*>(call.vectors[0].output);
  const int64_t total = call.ragged.output_rows * call.ragged.row_bytes;
  const int64_t tile = call.slot_bytes;
  for (int64_t at = blockIdx.x * tile; at < total; at += gridDim.x * tile) {
    const int64_t end = total - at < tile ? total : at + tile;
    for (int i = 0; i < tables.entries(); ++i) {
      const int receiver = i / call.ragged.updates_per_peer;
      const auto part =
          tables.Outgoing(call.rank, receiver, i % call.ragged.updates_per_peer, at, end);
      if (part.first >= part.last) continue;
      __syncthreads();  // a later update comes on top
      Copy(One{partners.Slot(call.rank, receiver) + (part.first - at)}, operand + part.from,
           part.last - part.first, Block());
    }
    partners.Barrier();
    Copy(One{result + at}, output + at, end - at, Block());
    for (int i = 0; i < tables.entries(); ++i) {
      const int sender = i / call.ragged.updates_per_peer;
      const auto part = tables.Incoming(sender, i % call.ragged.updates_per_peer, at, end);
      if (part.first >= part.last) continue;
      __syncthreads();
      Copy(One{result + part.first}, partners.Slot(sender, call.rank) + (part.first - at),
           part.last - part.first, Block());
    }
    partners.NextRound();
  }
}

// One block.
__device__ inline void RunRagged(RaggedShared& shared, const Call& parameter, const Call* all) {
  LoadCall(shared.call, parameter, all);
  Partners partners(shared.call);
  const bool reached = partners.Reach();
  // Behind a barrier, if so: all threads have read it.
  if (reached && threadIdx.x == 0) shared.call.staged = 0;
  __syncthreads();
  if (reached) {
    RaggedDirect(shared, partners);
  } else {
    RaggedStaged(shared, partners);
  }
  partners.Barrier();  // all have read what is not theirs
  partners.Leave();
}

}  // namespace jaxcoll::cuda
