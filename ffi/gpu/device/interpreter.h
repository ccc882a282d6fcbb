// Runs a packed schedule (device_table.h). One text for the kernel and for a test on the host.
//
// RunBlock() is one thread block: one worker on one strand of one rank. The parts that differ
// between a GPU and the test are a Policy:
//
//   int thread(), threads()        of the block
//   bool All(bool)                 barrier of the block; whether all threads said true. All
//                                  threads may read behind it what one of them wrote before it
//   pointers()                     kPointers addresses that the block's threads share
//   operands()                     kMaxMeeting OperandAddresses that they share, by rank
//   and what a ChunkMover's Memory (chunk.h) and a DeviceAccess (access.h) have. Trap() does not
//   return on a GPU; a block in which it does returns false.
//
// Every flag is written by one thread of one rank. The data behind it were written by all threads
// of that block, before the barrier that stands before the Release; and are read by all threads of
// the waiting block, after the barrier that stands behind the Acquire.
#pragma once

#include "gpu/abi/device_table.h"
#include "gpu/device/access.h"
#include "gpu/device/chunk.h"

namespace jaxcoll::cuda {

// Addresses that a block's threads share: operands of an op times chunks moved side by side.
inline constexpr int32_t kPointers = 512;

template <typename Policy, DType kDType>
class Interpreter {
 public:
  JAXCOLL_HD Interpreter(Policy& policy, const TableCall& call, int32_t block)
      : policy_(policy),
        call_(call),
        header_(*call.table),
        bytes_(reinterpret_cast<const unsigned char*>(call.table)),
        rank_(header_.rank),
        worker_(block / call.strands),
        strand_(block % call.strands),
        slice_(strand_) {}

  // Whether the block did all it should.
  JAXCOLL_HD bool Run() {
    if (!Begin()) return false;
    if (header_.meets != 0 && !Meet()) return false;
    const TableWorker& worker = At<TableWorker>(header_.worker_offset)[worker_];
    const TableOp* ops = At<TableOp>(header_.op_offset) + worker.first_op;
    for (; slice_ < call_.slice_count; slice_ += call_.strands, ++count_) {
      FindSlice();
      for (int32_t i = 0; i < worker.op_count; ++i) {
        const TableOp& op = ops[i];
        if (!Wait(op)) return false;
        if (op.destination_count > 0) Move(op);
        policy_.All(true);
        Signal(op, worker.op_count);
      }
    }
    return Finish();
  }

 protected:  // what a ragged exchange has in common with schedules (ragged_exchange.h)
  JAXCOLL_HD bool Begin() {
    // A program may run on another mesh than the one it was lowered for; then ranks are not what
    // the host took them for.
    bool here = true;
    if (call_.logical_id != nullptr && policy_.thread() == 0) {
      here = *call_.logical_id == call_.expected_logical_id;
      if (!here) {
        Cause cause = {};
        cause.kind = Cause::kMoved;
        cause.rank = rank_;
        cause.entry = static_cast<int32_t>(*call_.logical_id);
        Fail(cause);
      }
    }
    if (!policy_.All(here)) return false;
    // The epoch changes when all blocks have ended, so this one still reads the old value.
    epoch_ = static_cast<uint32_t>(Header().epoch) + 1;
    if (call_.doorbell != nullptr && worker_ + strand_ + policy_.thread() == 0) {
      policy_.Release(call_.doorbell, uint64_t{epoch_});
    }
    return true;
  }

  using Mover = ChunkMover<Policy, kDType>;
  static constexpr int32_t kItemBytes = Mover::kItemBytes;

  template <typename T>
  JAXCOLL_HD const T* At(int32_t offset) const {
    return reinterpret_cast<const T*>(bytes_ + offset);
  }

  JAXCOLL_HD unsigned char* Region() const { return call_.regions[rank_]; }
  JAXCOLL_HD RegionHeader& Header() const { return *reinterpret_cast<RegionHeader*>(Region()); }

  // The memory that `peer` writes for this rank.
  JAXCOLL_HD unsigned char* Inbox(int32_t peer) const {
    return call_.inboxes == nullptr ? Region() : call_.inboxes[peer];
  }

  // The memory where messages for `peer` are put.
  JAXCOLL_HD unsigned char* Outbox(int32_t peer) const {
    return (call_.slots == nullptr ? call_.regions : call_.slots)[peer];
  }

  // In a region: the launches that `peer` has ended, and those it has begun.
  static JAXCOLL_HD Flag& Done(unsigned char* region, int32_t peer) {
    return *reinterpret_cast<Flag*>(region + DoneOffset(peer));
  }
  JAXCOLL_HD Flag& Begun(unsigned char* region, int32_t peer) const {
    return *reinterpret_cast<Flag*>(region + BegunOffset(header_.world_size, peer));
  }

  // The flag of this block's partner whose region it is, or of another worker of this strand.
  JAXCOLL_HD Flag& FlagOf(unsigned char* region, int32_t worker, int32_t flag) const {
    return *reinterpret_cast<Flag*>(region +
                                    FlagOffset(header_, call_.strands, strand_, worker, flag));
  }

  JAXCOLL_HD void FindSlice() {
    const int32_t before = vector_;
    while (vector_ + 1 < call_.vector_count && slice_ >= call_.vectors[vector_ + 1].first_slice) {
      ++vector_;
    }
    if (header_.meets != 0 && vector_ != before) FindOperands();
  }

  // ---- Operands of other ranks -----------------------------------------------------------------

  // The addresses of its operands that `rank` has written into a region.
  JAXCOLL_HD OperandAddresses& Told(unsigned char* region, int32_t rank, int32_t vector) const {
    return reinterpret_cast<OperandAddresses*>(
        region + call_.operand_offset)[int64_t{rank} * kMaxTableVectors + vector];
  }

  // Behind it, all ranks have begun this launch: their operands are ready, and known.
  JAXCOLL_HD bool Meet() {
    bool ok = true;
    for (int32_t peer = policy_.thread(); peer < header_.world_size && ok;
         peer += policy_.threads()) {
      if (peer == rank_ || worker_ + strand_ != 0) continue;
      // The peer needs the operands told for its previous launch until that has ended.
      ok = WaitForRank(TableWait::kDone, peer, 0);
      if (!ok) break;
      unsigned char* const region = call_.regions[peer];
      for (int32_t v = 0; v < call_.vector_count; ++v) {
        OperandAddresses& told = Told(region, rank_, v);
        policy_.StoreRelaxed(&told.input, reinterpret_cast<uint64_t>(call_.vectors[v].input));
        policy_.StoreRelaxed(&told.output, reinterpret_cast<uint64_t>(call_.vectors[v].output));
      }
      Flag& begun = Begun(region, rank_);
      policy_.Release(&begun.fingerprint, call_.fingerprint);
      policy_.Release(&begun.value, TagOf(epoch_, 0));
    }
    for (int32_t peer = policy_.thread(); peer < header_.world_size && ok;
         peer += policy_.threads()) {
      if (peer != rank_) ok = WaitForRank(TableWait::kBegun, peer, 1);
    }
    if (!policy_.All(ok)) return false;
    FindOperands();
    return true;
  }

  // Finds the operands of the vector that is moved. Nobody uses those of the last one any more.
  JAXCOLL_HD void FindOperands() {
    for (int32_t peer = policy_.thread(); peer < header_.world_size; peer += policy_.threads()) {
      OperandAddresses& told = Told(Region(), peer, vector_);
      policy_.operands()[peer] = {policy_.LoadRelaxed(&told.input),
                                  policy_.LoadRelaxed(&told.output)};
    }
    policy_.All(true);
  }

  JAXCOLL_HD bool WaitForRank(TableWait::Kind kind, int32_t peer, int32_t launch) {
    return WaitFor({kind, peer, 0, launch, -1, -1, -1, 0});
  }

  // ---- Flags -----------------------------------------------------------------------------------

  // Each thread takes some of the flags; all go on when all have come.
  JAXCOLL_HD bool Wait(const TableOp& op) {
    if (op.wait_count == 0) return true;
    const TableWait* waits = At<TableWait>(header_.wait_offset) + op.first_wait;
    bool ok = true;
    for (int32_t i = policy_.thread(); i < op.wait_count && ok; i += policy_.threads()) {
      ok = WaitFor(waits[i]);
    }
    return policy_.All(ok);
  }

  // The flag, and the use of it that is waited for. Null: for nothing.
  struct Awaited {
    const Flag* flag;
    uint64_t tag;
  };

  JAXCOLL_HD Awaited AwaitedBy(const TableWait& wait) const {
    const auto count = static_cast<uint64_t>(count_), depth = static_cast<uint64_t>(call_.depth);
    switch (wait.kind) {
      case TableWait::kArrived:
        return {&FlagOf(Inbox(wait.peer), worker_, wait.flag), TagOf(epoch_, count + 1)};
      case TableWait::kFree:
        if (count < depth) return {&Done(Inbox(wait.peer), wait.peer), TagOf(epoch_ - 1, 0)};
        return {&FlagOf(Inbox(wait.peer), worker_, wait.flag), TagOf(epoch_, count - depth + 1)};
      case TableWait::kBegun:
        return {&Begun(Region(), wait.peer), TagOf(epoch_, 0)};
      case TableWait::kDone:  // of this launch, or the one before
        return {&Done(Region(), wait.peer), TagOf(wait.amount != 0 ? epoch_ : epoch_ - 1, 0)};
      default: {
        const bool before = wait.kind == TableWait::kWorkerSlice;
        if (before && count == 0) return {nullptr, 0};
        const auto slices = before ? count - 1 : count;
        const TableWorker& other = At<TableWorker>(header_.worker_offset)[wait.peer];
        const uint64_t ended =
            slices * static_cast<uint64_t>(other.op_count) + static_cast<uint64_t>(wait.amount);
        return {&FlagOf(Region(), wait.peer, wait.flag), TagOf(epoch_, ended)};
      }
    }
  }

  JAXCOLL_HD bool WaitFor(const TableWait& wait) {
    const Awaited awaited = AwaitedBy(wait);
    if (awaited.flag == nullptr) return true;
    uint64_t seen = 0, fingerprint = call_.fingerprint;
    uint32_t kind = Cause::kNone;
    const auto came = [&] {
      seen = policy_.Acquire(&awaited.flag->value);
      return !TagBefore(seen, awaited.tag);
    };
    if (!SpinUntil(policy_, call_.deadline_ns, came, call_.abort)) {
      const bool stopped = call_.abort != nullptr && policy_.Acquire(call_.abort) != 0;
      kind = stopped ? Cause::kStopped : Cause::kDeadline;
    } else if (wait.kind == TableWait::kArrived || wait.kind == TableWait::kBegun) {
      // Nobody is ahead of a launch that has not ended here, if all keep to the protocol.
      if (seen >> 32 != epoch_) {
        kind = Cause::kLaunch;
      } else if (count_ == 0) {
        fingerprint = policy_.Acquire(&awaited.flag->fingerprint);
        if (fingerprint != call_.fingerprint) kind = Cause::kMismatch;
      }
    }
    if (kind == Cause::kNone) return true;
    Cause cause = {};
    cause.kind = kind;
    cause.rank = rank_;
    cause.peer = wait.peer;
    cause.expected = awaited.tag;
    cause.seen = seen;
    cause.seen_fingerprint = fingerprint;
    cause.wait = wait.kind;
    cause.channel = wait.channel;
    cause.sequence = wait.sequence;
    cause.op = wait.op;
    cause.slice = slice_;
    Fail(cause);
    return false;
  }

  JAXCOLL_HD void Fail(Cause& cause) {
    cause.seat = call_.seat;
    cause.block = static_cast<uint32_t>(worker_ * call_.strands + strand_);
    cause.expected_fingerprint = call_.fingerprint;
    GiveUp(policy_, call_.failing, call_.cause, call_.deadline_ns, cause);
  }

  // After the barrier behind the op: what its threads wrote goes before these.
  JAXCOLL_HD void Signal(const TableOp& op, int32_t op_count) {
    const TableSignal* signals = At<TableSignal>(header_.signal_offset) + op.first_signal;
    const uint64_t count = static_cast<uint64_t>(count_);
    for (int32_t i = policy_.thread(); i < op.signal_count; i += policy_.threads()) {
      const TableSignal& signal = signals[i];
      if (signal.kind == TableSignal::kWorker) {
        const uint64_t ended =
            count * static_cast<uint64_t>(op_count) + static_cast<uint64_t>(signal.amount);
        policy_.Release(&FlagOf(Region(), worker_, signal.flag).value, TagOf(epoch_, ended));
        continue;
      }
      // A flag that nobody waits for is not raised: it might arrive when the sender is at another
      // call, for which the flag means something else. Everything told is waited for within this
      // launch.
      const int32_t next_use = slice_ + call_.depth * call_.strands;
      if (signal.kind == TableSignal::kFreed && next_use >= call_.slice_count) continue;
      Flag& flag = FlagOf(call_.regions[signal.peer], worker_, signal.flag);
      if (count == 0 && signal.kind == TableSignal::kArrived) {
        policy_.Release(&flag.fingerprint, call_.fingerprint);
      }
      policy_.Release(&flag.value, TagOf(epoch_, count + 1));
    }
  }

  // The last block to end ends the launch: all of them have read what came for them.
  JAXCOLL_HD bool Finish() {
    if (!policy_.All(true)) return false;
    bool last = false;
    if (policy_.thread() == 0) {
      RegionHeader& header = Header();
      last = policy_.Increment(&header.finished) + 1 ==
             static_cast<uint32_t>(header_.workers * call_.strands);
      if (last) {
        header.finished = 0;  // nobody else looks before the next launch
        header.epoch = epoch_;
      }
    }
    if (policy_.All(!last)) return true;
    for (int32_t peer = policy_.thread(); peer < header_.world_size; peer += policy_.threads()) {
      if (peer == rank_) continue;
      policy_.Release(&Done(call_.regions[peer], rank_).value, TagOf(epoch_, 0));
    }
    if (header_.meets == 0) return true;
    // Behind the launch its operands are others' to write: not before the other ranks let go.
    bool ok = true;
    for (int32_t peer = policy_.thread(); peer < header_.world_size && ok;
         peer += policy_.threads()) {
      if (peer != rank_) ok = WaitForRank(TableWait::kDone, peer, 1);
    }
    return policy_.All(ok);
  }

  // ---- Data ------------------------------------------------------------------------------------

  // This slice's strip of the chunk at a position.
  JAXCOLL_HD Strip StripOf(int32_t position) const {
    return StripAt(call_.vectors[vector_], header_.chunks_per_block, slice_, position);
  }

  JAXCOLL_HD unsigned char* Address(const TableRef& ref, int32_t chunk, const Strip& strip) const {
    const TableVector& vector = call_.vectors[vector_];
    switch (ref.memory) {
      case TableRef::kInput:
      case TableRef::kOutput:
      case TableRef::kPeerInput:
      case TableRef::kPeerOutput: {
        const int64_t block = ref.index + (header_.chunks_per_block == 1 ? chunk : 0);
        const int64_t at = (block * vector.elements + strip.first) * kItemBytes;
        return BaseOf(ref) + at;
      }
      case TableRef::kScratch:
        return Region() + call_.scratch_offset +
               (int64_t{strand_} * header_.scratch_chunks + ref.index + chunk) * call_.stride_bytes;
      default: {
        const int64_t block = int64_t{worker_} * call_.strands + strand_;
        const int64_t use = block * call_.depth + count_ % call_.depth;
        unsigned char* const region =
            ref.memory == TableRef::kSlot ? Inbox(ref.peer) : Outbox(ref.peer);
        return region + call_.slot_offset +
               (use * header_.slot_chunks + ref.index + chunk) * call_.stride_bytes;
      }
    }
  }

  // The base address of an operand, of this rank or another.
  JAXCOLL_HD unsigned char* BaseOf(const TableRef& ref) const {
    const TableVector& vector = call_.vectors[vector_];
    switch (ref.memory) {
      case TableRef::kInput:
        return const_cast<unsigned char*>(static_cast<const unsigned char*>(vector.input));
      case TableRef::kOutput:
        return static_cast<unsigned char*>(vector.output);
      case TableRef::kPeerInput:
        return reinterpret_cast<unsigned char*>(policy_.operands()[ref.peer].input);
      default:
        return reinterpret_cast<unsigned char*>(policy_.operands()[ref.peer].output);
    }
  }

  // Threads that work together on a chunk, so that short ones are moved side by side.
  struct Team {
    int32_t index, count;     // of teams
    int32_t thread, threads;  // of the team
  };

  // The sizes that are tried: all warps, half of them, and so on. Beside its accesses, a round
  // costs about as much as kRoundCost of them.
  JAXCOLL_HD Team TeamOf(const TableOp& op) const {
    constexpr int32_t kWarp = 32, kRoundCost = 2;
    const int32_t operands = op.source_count + op.destination_count;
    const int32_t each = op.source_count > 1 ? Mover::kUnroll : Mover::kCopyUnroll;
    const int32_t threads = policy_.threads();
    const int32_t accesses = (call_.vectors[vector_].strip_elements * kItemBytes + 15) / 16;
    int32_t size = threads, count = 1, best = 0;
    for (int32_t warps = threads / kWarp; warps > 0; warps /= 2) {
      int32_t teams = threads / (warps * kWarp);
      if (teams * operands > kPointers) teams = kPointers / operands;
      const int32_t at_once = warps * kWarp * each;
      const int32_t rounds = (op.chunk_count + teams - 1) / teams;
      const int32_t cost = rounds * (kRoundCost + (accesses + at_once - 1) / at_once);
      if (best != 0 && cost >= best) continue;
      best = cost, size = warps * kWarp, count = teams;
    }
    return {policy_.thread() / size, count, policy_.thread() % size, size};
  }

  // A chunk of an op.
  struct Chunk {
    const TablePiece* piece;
    int32_t index;  // in the piece
  };
  JAXCOLL_HD Chunk ChunkAt(const TableOp& op, int32_t index) const {
    const TablePiece* piece = At<TablePiece>(header_.piece_offset) + op.first_piece;
    for (; index >= piece->count; ++piece) index -= piece->count;
    return {piece, index};
  }

  JAXCOLL_HD Strip StripOf(const Chunk& chunk) const {
    return StripOf(chunk.piece->position + (header_.chunks_per_block == 1 ? 0 : chunk.index));
  }

  // Chunks go to the teams in turn. For each round, the addresses of all operands of all teams'
  // chunks are found first, by a thread each.
  // (What is found again in every round would else take registers from the accesses.)
  JAXCOLL_HD void Move(const TableOp& op) {
    const Team team = TeamOf(op);
    for (int32_t done = 0; done < op.chunk_count; done += team.count) {
      if (done > 0) policy_.All(true);  // the addresses of the last round are not needed
      const int32_t left = op.chunk_count - done;
      const int32_t chunks = left < team.count ? left : team.count;
      FindAddresses(op, done, chunks);
      policy_.All(true);
      if (team.index >= chunks) continue;
      const int32_t operands = op.source_count + op.destination_count;
      Mover::Move(reduce_op(),
                  {.at = policy_.pointers() + team.index * operands,
                   .sources = op.source_count,
                   .destinations = op.destination_count,
                   .count = static_cast<int32_t>(StripOf(ChunkAt(op, done + team.index)).count),
                   .thread = team.thread,
                   .threads = team.threads});
    }
  }

  JAXCOLL_HD void FindAddresses(const TableOp& op, int32_t first, int32_t chunks) {
    const int32_t operands = op.source_count + op.destination_count;
    const TableRef* refs = At<TableRef>(header_.ref_offset);
    for (int32_t i = policy_.thread(); i < chunks * operands; i += policy_.threads()) {
      const Chunk chunk = ChunkAt(op, first + i / operands);
      policy_.pointers()[i] =
          Address(refs[chunk.piece->first_ref + i % operands], chunk.index, StripOf(chunk));
    }
  }

  JAXCOLL_HD ReduceOp reduce_op() const { return static_cast<ReduceOp>(call_.reduce_op); }

  Policy& policy_;
  const TableCall& call_;
  const TableHeader& header_;
  const unsigned char* const bytes_;  // the table
  const int32_t rank_;
  const int32_t worker_;
  const int32_t strand_;
  uint32_t epoch_ = 0;
  int32_t count_ = 0;   // slices of this strand before this one
  int32_t slice_;       // of the call
  int32_t vector_ = 0;  // its vector
};

}  // namespace jaxcoll::cuda
