// A schedule as the interpreter kernel reads it: a table of plain numbers, equal wherever it lies.
//
// Pack() turns the op lists of all ranks into one table per rank. The order of the ops, the slots
// and the flags of a message depend on both of its sides, so every rank packs the same op lists and
// keeps its own table. A table is free of sizes and addresses: PlanCall() binds sizes to it, the
// launch brings addresses.
//
// Workers. The ops of a channel are one worker's; where there are more channels than workers may
// be, several share one. A worker runs its ops one after the other, in an order (level by level of
// the graph of all ranks' ops) in which no op ever waits for a later one on any rank. One thread
// block runs one worker on one strand.
//
// Slices and strands. As in engine/slices/slice_ops.h, a call is cut into slices, each a
// strip of every chunk of one vector, and a slice runs the whole schedule. Slice g belongs to
// strand g mod strands: strands are what uses more of a GPU without changing a bit of the result.
//
// Messages. The sender puts a strip into a slot of the receiver's region and raises the message's
// `arrived` flag there; the reader of the slot raises its `freed` flag at the sender. A slot is
// there `depth` times, used in turn by the slices of a strand. A message that a schedule receives
// in scratch stays in its slot, where the ops that need it read it.
//
// Operands. Where ranks reach each other's operands (Reach::kOperands) many messages need no slot.
// Inputs do not change, so one that comes from an input is not sent at all: whoever needs it reads
// it there (pulled). One that goes to an output that nothing else writes is written there by its
// sender (pushed), who raises `arrived`. So that operands are known, ready and let go of in time,
// ranks meet: a launch begins by telling all others where its operands are (`begun`), and does not
// end before the others have (`done`).
//
// Hosts. Messages that a rank of another host writes for this one come by gpu/proxy/proxy.h: into
// host memory that is laid out like the region, an inbox. Messages that are written for it go to
// another such piece of host memory, an outbox, whose flags tell the proxy what to send; its slots
// may lie in the rank's own device. So a rank finds a peer's slots and flags in `inboxes`, by peer,
// and writes itself to flags in `regions` and to slots in `slots`.
//
// Region. The region that one call uses of a rank's symmetric workspace, at the same offset on
// every rank:
//
//     RegionHeader | Flag done[ranks] | Flag begun[ranks] | Flag[flag capacity]
//                  | OperandAddresses[ranks][vectors], if they meet | slots | scratch
//
// Calls that follow one another on every rank in the same order may share a region, whatever their
// schedules and sizes; calls that may run at the same time may not. All of it is zero before the
// first call. Flags only grow: they hold (epoch, count), and an epoch is one launch; they are
// compared by their difference, so that epochs may wrap. `epoch` lives in the region, so a replayed
// graph goes on where the last replay ended. When the last block of a launch ends, the rank tells
// the others through `done`; before a rank writes to another's slots it waits for the previous
// launch's `done` (that is READY: the destination may be overwritten), and from the depth-th
// slice on for the slot's own `freed`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "base/status.h"
#include "gpu/abi/cause.h"
#include "gpu/abi/host_device.h"

namespace jaxcoll {
class World;  // schedule/world.h, of which kernels know nothing
}

namespace jaxcoll::cuda {

inline constexpr int kMaxTableRanks = 256;   // of a communicator
inline constexpr int kMaxTableVectors = 32;  // per launch; calls of more are several launches
inline constexpr int kSlotAlignment = 256;
inline constexpr int kMaxSources = 256;  // of one op
inline constexpr int kMaxMeeting = 16;   // ranks that reach each other's operands

// The memory of other ranks that a rank reaches.
enum class Reach { kRegions, kOperands };

// ---- The table ---------------------------------------------------------------------------------

// Offsets count bytes from the header's start, counts count elements of the array there.
struct TableHeader {
  uint32_t magic;
  int32_t total_bytes;
  int32_t rank;
  int32_t world_size;
  int32_t chunks_per_block;
  int32_t workers;         // this and what follows up to `flags_per_worker` is equal on all ranks
  int32_t slot_chunks;     // of the worker that receives most
  int32_t scratch_chunks;  // of the rank that needs most
  int32_t arrivals;        // flags of messages to one worker, at most
  int32_t departures;      // flags of messages from one worker, at most
  int32_t flags_per_worker;
  int32_t reduces;        // whether some rank has an op of several sources
  int32_t worker_offset;  // TableWorker[workers]
  int32_t op_offset;      // TableOp[]
  int32_t wait_offset;    // TableWait[]
  int32_t signal_offset;  // TableSignal[]
  int32_t piece_offset;   // TablePiece[]
  int32_t ref_offset;     // TableRef[]
  int32_t meets;          // whether ranks reach for each other's operands
  int32_t padding;
};
static_assert(sizeof(TableHeader) == 80);

struct TableWorker {
  int32_t first_op;
  int32_t op_count;
};
static_assert(sizeof(TableWorker) == 8);

// Waits for its flags, moves its pieces, raises its flags.
struct TableOp {
  int32_t first_wait;
  int32_t wait_count;
  int32_t first_piece;
  int32_t piece_count;
  int32_t chunk_count;        // of all pieces
  int32_t source_count;       // of each piece; 0: the destinations are cleared, 1: copied to
  int32_t destination_count;  // of each piece
  int32_t first_signal;
  int32_t signal_count;
};
static_assert(sizeof(TableOp) == 36);

struct TableWait {
  enum Kind : int32_t {
    kArrived = 1,  // the message is in its slot
    kFree,         // the slot at the receiver may be overwritten
    kWorker,       // worker `peer` of this rank has ended its first `amount` ops of this slice
    kWorkerSlice,  // ... all `amount` ops of the slice before
    // Used at launch start and end; never stored in a table.
    kBegun,  // rank `peer` has begun this launch
    kDone,   // rank `peer` has ended it, or, before operands are published, the one before
  };
  int32_t kind;
  int32_t peer;
  int32_t flag;  // of the worker's flags
  int32_t amount;
  // For the cause record only: the message, and the op of the rank's op list.
  int32_t channel;
  int32_t sequence;
  int32_t op;
  int32_t padding;
};
static_assert(sizeof(TableWait) == 32);

struct TableSignal {
  enum Kind : int32_t {
    kArrived,  // at the receiver
    kFreed,    // at the sender
    kWorker,   // here: the first `amount` ops of the slice have ended
  };
  int32_t kind;
  int32_t peer;
  int32_t flag;
  int32_t amount;
};
static_assert(sizeof(TableSignal) == 16);

// `count` chunks at consecutive positions of their blocks, or, where a block is one chunk, of
// consecutive blocks. Its refs: sources, then destinations.
struct TablePiece {
  int32_t count;
  int32_t position;  // of the first chunk in its block
  int32_t first_ref;
};
static_assert(sizeof(TablePiece) == 12);

struct TableRef {
  enum Memory : int16_t { kInput, kOutput, kScratch, kSlot, kPeerSlot, kPeerInput, kPeerOutput };
  int16_t memory;
  int16_t peer;   // kPeer*: whose; kSlot: who writes it
  int32_t index;  // block of the first chunk; in scratch and slots, the chunk there
};
static_assert(sizeof(TableRef) == 8);

inline constexpr uint32_t kTableMagic = 0x4a435031;  // "JCP1"

// ---- The region --------------------------------------------------------------------------------

// Alone in its 32-byte sector.
struct alignas(32) Flag {
  uint64_t value;        // TagOf(epoch, count)
  uint64_t fingerprint;  // of the call, written before the first count of an epoch
  // Only for a message whose length is data (ragged_exchange.h), written with the fingerprint: how
  // often its slot is used in this launch, and how many bytes the last use has; all others are
  // full.
  uint64_t uses;
  uint64_t last_bytes;
};
static_assert(sizeof(Flag) == 32);

// The number of a flag's use; that of a later launch is above all of an earlier one.
JAXCOLL_HD constexpr uint64_t TagOf(uint64_t epoch, uint64_t count) { return epoch << 32 | count; }
JAXCOLL_HD constexpr bool TagBefore(uint64_t a, uint64_t b) {
  return static_cast<int64_t>(a - b) < 0;
}

// Before `done`: by rank, how many launches that rank has ended, as a tag.
struct alignas(32) RegionHeader {
  uint64_t epoch;     // launches that ended; of this rank's own
  uint32_t finished;  // blocks of this launch that ended
  uint32_t unused[5];
};
static_assert(sizeof(RegionHeader) == sizeof(Flag));

// The addresses of a rank's operands, of one vector.
struct OperandAddresses {
  uint64_t input;
  uint64_t output;
};

// Flags of launches, of `rank`: whether it has ended one, and whether it has begun it.
JAXCOLL_HD constexpr int64_t DoneOffset(int32_t rank) {
  return static_cast<int64_t>(sizeof(RegionHeader)) + rank * static_cast<int64_t>(sizeof(Flag));
}
JAXCOLL_HD constexpr int64_t BegunOffset(int32_t world_size, int32_t rank) {
  return DoneOffset(world_size + rank);
}

// Behind all flags.
JAXCOLL_HD constexpr int64_t OperandOffset(int32_t world_size, int64_t flag_capacity) {
  const int64_t end =
      BegunOffset(world_size, world_size) + flag_capacity * static_cast<int64_t>(sizeof(Flag));
  return (end + kSlotAlignment - 1) / kSlotAlignment * kSlotAlignment;
}

// The offset of the flag of a worker's block on a strand in a region.
JAXCOLL_HD constexpr int64_t FlagOffset(const TableHeader& header, int32_t strands, int32_t strand,
                                        int32_t worker, int32_t flag) {
  const int64_t block = int64_t{worker} * strands + strand;
  const int64_t index = block * header.flags_per_worker + flag;
  return BegunOffset(header.world_size, header.world_size) +
         index * static_cast<int64_t>(sizeof(Flag));
}

// ---- A launch ----------------------------------------------------------------------------------

struct TableVector {
  const void* input;
  void* output;
  int64_t elements;        // of one block
  int32_t strip_elements;  // of each chunk; the last strips may be shorter or empty
  int32_t first_slice;
};

// Elements of a block.
struct Strip {
  int64_t first;
  int64_t count;
};

// A slice's strip of the chunk at `position` of its block.
JAXCOLL_HD constexpr Strip StripAt(const TableVector& vector, int32_t chunks_per_block,
                                   int32_t slice, int32_t position) {
  const int64_t strip = vector.strip_elements;
  const int64_t begin =
      position * vector.elements / chunks_per_block + int64_t{slice - vector.first_slice} * strip;
  const int64_t end = (position + 1) * vector.elements / chunks_per_block;
  const int64_t count = end - begin < strip ? end - begin : strip;
  return {begin, count < 0 ? 0 : count};
}

// Parameters of one launch for one rank. All but the pointers and what hangs on the rank is equal
// on all ranks.
struct TableCall {
  const TableHeader* table;
  // By rank, as this rank maps them: its own region, a peer's, the outbox for a peer elsewhere.
  unsigned char* const* regions;
  // By rank, where what it writes for this one is found; null if that is this rank's region always.
  unsigned char* const* inboxes;
  // By rank, where this one puts messages for it, laid out like its region; null if that is in
  // `regions` always.
  unsigned char* const* slots;
  uint64_t* doorbell;     // in host memory: the launch's epoch, when it begins; may be null
  const uint32_t* abort;  // in host memory: not 0 if the launch is to give up; may be null
  CauseRecord* cause;
  uint32_t* failing;           // see GiveUp()
  const uint32_t* logical_id;  // where the program says which logical id it runs as; may be null
  uint32_t expected_logical_id;
  uint32_t seat;         // for the cause record only: whose call it is
  uint64_t deadline_ns;  // of one wait
  uint64_t fingerprint;
  int64_t stride_bytes;    // of a chunk in slots and scratch; kSlotAlignment divides it
  int64_t operand_offset;  // in a region
  int64_t slot_offset;
  int64_t scratch_offset;
  int32_t slice_count;
  int32_t strands;
  int32_t depth;
  int32_t dtype;      // a DType
  int32_t reduce_op;  // a ReduceOp
  int32_t item_bytes;
  int32_t vector_count;
  int32_t unused;
  TableVector vectors[kMaxTableVectors];
};
static_assert(sizeof(TableCall) <= 2048, "kernel parameters");

// ---- On the host -------------------------------------------------------------------------------

// A rank's table; starts with its TableHeader.
struct DeviceTable {
  std::vector<uint64_t> words;
  const TableHeader& header() const { return *reinterpret_cast<const TableHeader*>(words.data()); }
  size_t bytes() const { return words.size() * sizeof(uint64_t); }
};

// `world`: all ranks. `ranks`: those to return tables for. `reach`: kOperands only where there are
// kMaxMeeting ranks at most. Fails, naming rank and op, on what the tables cannot hold and on a
// deadlock.
StatusOr<std::vector<DeviceTable>> Pack(const World& world, const std::vector<int32_t>& ranks,
                                        int32_t max_workers, Reach reach = Reach::kRegions);

// How a region is divided, and how much of a launch may be in flight.
struct RegionSize {
  int64_t bytes = 0;          // of the region
  int32_t flag_capacity = 0;  // fixed for the region's life
  int32_t max_strands = 1;
  int32_t depth = 2;
  int64_t max_strip_bytes = 64 << 10;
  int64_t min_strip_bytes = 4 << 10;  // below it no further strand is used
};

// Binds sizes: everything in the call but pointers, deadline and fingerprint. Fails, saying what
// would do, if the region is too small.
StatusOr<TableCall> PlanCall(const TableHeader& header, const std::vector<int64_t>& block_elements,
                             DType dtype, ReduceOp reduce_op, const RegionSize& region);

// Thread blocks of a launch for one rank.
inline int32_t BlockCount(const TableHeader& header, const TableCall& call) {
  return header.workers * call.strands;
}

}  // namespace jaxcoll::cuda
