// The layout that host and kernels agree on: the workspace that every rank has, and the parameters
// of a launch.
//
// The workspace of a rank is one allocation on its device, mapped by all ranks of the communicator.
// It is a row of seats, the same on all ranks, and behind them areas: where operands are staged,
// and what the interpreter calls a region (device_table.h). An instruction of a program has a
// seat and an area of its own, so that concurrent branches of a graph share nothing. In a seat,
// block b of a rank meets block b of the other ranks and no other block: there is no grid-wide
// barrier, and blocks need not be resident together beyond their partners.
//
// Counters. Each block of a seat counts its barriers in `count`, in its own device's memory, so
// that a replayed graph goes on where the last replay ended. A barrier writes (fingerprint, count)
// to the block's flag on every peer (release, system scope) and waits until the peers' counts have
// come (acquire, system scope). A peer may be ahead by one barrier at most: it has then passed the
// one we are at, and so has checked our fingerprint. Where counts are equal, fingerprints must be:
// else the ranks are at different calls, and both say so.
#pragma once

#include <cstddef>
#include <cstdint>

#include "gpu/abi/cause.h"
#include "gpu/abi/host_device.h"

namespace jaxcoll::cuda {

inline constexpr int kMaxRanks = 16;    // of a communicator: the GPUs of one host
inline constexpr int kMaxBlocks = 160;  // per launch and rank
inline constexpr int kMaxVectors = 32;  // per launch; calls of more are several launches
inline constexpr int kThreads = 512;    // per block
inline constexpr int kAlignment = 256;

// A flag as it is written by one store.
JAXCOLL_HD constexpr uint64_t FlagOf(uint32_t fingerprint, uint32_t count) {
  return static_cast<uint64_t>(fingerprint) << 32 | count;
}

JAXCOLL_HD uint64_t AddressOf(const void* pointer) { return reinterpret_cast<uint64_t>(pointer); }

// Bytes from the rank's base.
struct VectorPointers {
  uint64_t input;
  uint64_t output;
};
// Instead: they cannot be reached.
inline constexpr uint64_t kNowhere = ~uint64_t{0};

// At the start of a workspace.
struct Header {
  uint32_t failing;  // how many threads gave up; the first one writes the cause
  uint32_t unused[63];
};
static_assert(sizeof(Header) == kAlignment);

// Behind the header, one after the other. All zero before the first call.
struct Seat {
  // Written by the peers, read here.
  uint64_t flags[kMaxBlocks][kMaxRanks];
  // Written by the peers before their first flag of a call. Every block of a peer writes the same.
  VectorPointers pointers[kMaxRanks][kMaxVectors];
  // Read and written here only.
  uint32_t count[kMaxBlocks];  // barriers passed
  uint32_t round[kMaxBlocks];  // times that staging was filled; its parity is the half in use
};
static_assert(sizeof(Seat) % kAlignment == 0);

enum class Mode : int32_t {
  kAllReduceOneShot,
  kAllReduceTwoShot,
  kReduceScatter,
  kReduce,
  kAllGather,
  kAllToAll,
  kBroadcast,
  kPermute,
  kRaggedAllToAll,
};
JAXCOLL_HD constexpr bool Reduces(Mode mode) { return mode <= Mode::kReduce; }

struct Vector {
  const void* input;
  void* output;
  int64_t elements;  // of one block of the schedule: of the whole vector, or one rank's part
};

// ragged_all_to_all. Offsets and sizes count rows; see engine/ragged.h. Its vectors are
// {operand, result}, {input_offsets, send_sizes}, {output_offsets, recv_sizes}, so that these
// addresses are exchanged.
struct Ragged {
  const void* output;  // what the result holds where nothing arrives
  int64_t operand_rows;
  int64_t output_rows;
  int64_t row_bytes;
  int32_t updates_per_peer;
  int32_t wide_index;  // int64 instead of int32
};

// A rank's record of an entry of its tables where these are staged: behind the slots of all
// blocks, by entry.
struct RaggedEntry {
  int64_t input_offset, send_size, output_offset, recv_size;
};

// Parameters of one launch for one rank. Everything but pointers and `rank` is equal on all ranks.
struct Call {
  Mode mode;
  int32_t reduce_op;  // a ReduceOp, for kernels that serve any
  int32_t world_size;
  int32_t rank;
  int32_t root;         // broadcast, reduce
  int32_t source;       // permute: the rank this one receives from, or -1
  int32_t destination;  // permute: the rank this one sends to, or -1
  int32_t vector_count;
  int32_t item_bytes;
  uint32_t seat;
  uint32_t fingerprint;
  int32_t staged;  // peers' operands are reached through the staging area
  // Where they are staged: whether ranks tell each other first where their operands are, and reach
  // them if all can. Equal on all ranks; `reachable` is this rank's word.
  int32_t mapped;
  int32_t reachable;
  uint64_t deadline_ns;  // of one wait
  uint64_t staging;      // staged: where this seat's staging area begins in every workspace
  int64_t slot_bytes;    // staged: of one slot; kAlignment divides it
  unsigned char* workspaces[kMaxRanks];  // as this rank's device maps them
  // By rank: the base of the published addresses of operands. Null within a process; else where the
  // allocation of its operands is mapped.
  unsigned char* bases[kMaxRanks];
  CauseRecord* cause;
  const uint32_t* logical_id;  // where the program says which logical id it runs as; may be null
  uint32_t expected_logical_id;
  uint32_t unused;
  Ragged ragged;
  Vector vectors[kMaxVectors];
};
static_assert(sizeof(Call) <= 2048, "kernel parameters");

JAXCOLL_HD constexpr uint64_t SeatOffset(uint32_t seat) {
  return sizeof(Header) + uint64_t{seat} * sizeof(Seat);
}

// Slots of a block in one of the two halves of its staging area.
JAXCOLL_HD constexpr int StagingSlots(Mode mode, int world_size) {
  switch (mode) {
    case Mode::kAllReduceTwoShot:
      return world_size + 1;  // one part per rank, and the sum of this rank's
    case Mode::kReduceScatter:
    case Mode::kAllToAll:
    case Mode::kRaggedAllToAll:
      return world_size;
    default:
      return 1;
  }
}

// The staging area of a seat: for each block two halves, used in turn, so that a slot is written
// again only when everybody has passed the barrier after the one that published it.
JAXCOLL_HD constexpr uint64_t StagingBytes(Mode mode, int world_size, int blocks,
                                           int64_t slot_bytes) {
  return uint64_t{2} * blocks * StagingSlots(mode, world_size) * slot_bytes;
}

}  // namespace jaxcoll::cuda
