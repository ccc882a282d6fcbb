// Runs a packed schedule (device_program.h). One text for the kernel and for a test on the host.
//
// RunBlock() is one thread block: one worker on one lane of one rank. What differs between a GPU
// and the test is a Policy:
//
//   int thread(), threads()        of the block
//   bool All(bool)                 barrier of the block; whether all threads said true. What a
//                                  thread wrote before it, all may read behind it
//   pointers()                     kPointers addresses that the block's threads share
//   T Load<T>(address)             plain accesses of 1 to 16 bytes, aligned to their size
//   void Store<T>(address, T)
//   and what a DeviceAccess has (access.h). Trap() does not return on a GPU; a block in which it
//   does returns false.
//
// Every flag is written by one thread of one rank. The data behind it were written by all threads
// of that block, before the barrier that stands before the Release; and are read by all threads of
// the waiting block, after the barrier that stands behind the Acquire.
//
// Numbers are combined as element.h says, in the order of a piece's sources, and rounded once.
#pragma once

#include "cuda/access.h"
#include "cuda/device_program.h"
#include "cuda/element.h"

// For the compiler of kernels; it is what turns arrays into registers.
#if defined(__CUDACC__)
#define JAXCOLL_UNROLL _Pragma("unroll")
#define JAXCOLL_NO_UNROLL _Pragma("unroll 1")
#else
#define JAXCOLL_UNROLL
#define JAXCOLL_NO_UNROLL
#endif

namespace jaxcoll::cuda {

// Addresses that a block's threads share: operands of an op times chunks moved side by side.
inline constexpr int32_t kPointers = 512;

// How a thread accesses memory where everything is aligned.
struct alignas(16) Bytes16 {
  uint8_t byte[16];
};

template <typename Policy, DType kDType>
class Interpreter {
 public:
  JAXCOLL_HD Interpreter(Policy& policy, const ProgramCall& call, int32_t block)
      : policy_(policy),
        call_(call),
        program_(*call.program),
        bytes_(reinterpret_cast<const unsigned char*>(call.program)),
        rank_(program_.rank),
        worker_(block / call.lanes),
        lane_(block % call.lanes),
        segment_(lane_) {}

  // Whether the block did all it should.
  JAXCOLL_HD bool Run() {
    // A program may run on another mesh than the one it was lowered for; then ranks are not what
    // the host took them for.
    bool here = true;
    if (call_.logical_id != nullptr && policy_.thread() == 0) {
      here = *call_.logical_id == call_.expected_logical_id;
      if (!here) {
        Cause cause = {};
        cause.kind = Cause::kMoved;
        cause.entry = static_cast<int32_t>(*call_.logical_id);
        Fail(cause);
      }
    }
    if (!policy_.All(here)) return false;
    // The epoch changes when all blocks have ended, so this one still reads the old value.
    epoch_ = static_cast<uint32_t>(Header().epoch) + 1;
    if (call_.doorbell != nullptr && worker_ + lane_ + policy_.thread() == 0) {
      policy_.Release(call_.doorbell, uint64_t{epoch_});
    }
    const ProgramWorker& worker = At<ProgramWorker>(program_.worker_offset)[worker_];
    const ProgramOp* ops = At<ProgramOp>(program_.op_offset) + worker.first_op;
    for (; segment_ < call_.segment_count; segment_ += call_.lanes, ++count_) {
      FindSegment();
      for (int32_t i = 0; i < worker.op_count; ++i) {
        const ProgramOp& op = ops[i];
        if (!Wait(op)) return false;
        if (op.destination_count > 0) Move(op);
        policy_.All(true);
        Signal(op, worker.op_count);
      }
    }
    return Finish();
  }

 private:
  using Element = ElementOf<kDType>;
  using Stored = typename Element::Stored;
  using Wide = typename Element::Wide;
  static constexpr int32_t kItemBytes = sizeof(Stored);
  static constexpr int32_t kPerAccess = 16 / static_cast<int>(sizeof(Stored));
  // Accesses of one thread in flight for each source: as many as leave ptxas without spills for
  // sm_80, sm_90 and sm_100 at kInterpreterThreads.
  static constexpr int kHeldBytes = (sizeof(Wide) < 4 ? 4 : sizeof(Wide)) * kPerAccess;
  static constexpr int kUnroll = sizeof(Wide) == 2 ? 1
                                 : sizeof(Wide) < 4 || kHeldBytes > 32
                                     ? 2
                                     : (kHeldBytes > 16 || sizeof(Wide) == 8 ? 3 : 4);

  template <typename T>
  JAXCOLL_HD const T* At(int32_t offset) const {
    return reinterpret_cast<const T*>(bytes_ + offset);
  }

  JAXCOLL_HD unsigned char* Region() const { return call_.regions[rank_]; }
  JAXCOLL_HD RegionHeader& Header() const { return *reinterpret_cast<RegionHeader*>(Region()); }

  // Where what `peer` writes for this rank is found.
  JAXCOLL_HD unsigned char* Inbox(int32_t peer) const {
    return call_.inboxes == nullptr ? Region() : call_.inboxes[peer];
  }

  // In a region: the launches that `peer` has ended.
  static JAXCOLL_HD Flag& Done(unsigned char* region, int32_t peer) {
    return reinterpret_cast<Flag*>(region + sizeof(RegionHeader))[peer];
  }

  // Of this block's partner whose region it is, or of another worker of this lane.
  JAXCOLL_HD Flag& FlagOf(unsigned char* region, int32_t worker, int32_t flag) const {
    return *reinterpret_cast<Flag*>(region +
                                    FlagOffset(program_, call_.lanes, lane_, worker, flag));
  }

  JAXCOLL_HD void FindSegment() {
    while (vector_ + 1 < call_.vector_count &&
           segment_ >= call_.vectors[vector_ + 1].first_segment) {
      ++vector_;
    }
  }

  // ---- Flags -----------------------------------------------------------------------------------

  // Each thread takes some of the flags; all go on when all have come.
  JAXCOLL_HD bool Wait(const ProgramOp& op) {
    if (op.wait_count == 0) return true;
    const ProgramWait* waits = At<ProgramWait>(program_.wait_offset) + op.first_wait;
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

  JAXCOLL_HD Awaited AwaitedBy(const ProgramWait& wait) const {
    const auto count = static_cast<uint64_t>(count_), depth = static_cast<uint64_t>(call_.depth);
    switch (wait.kind) {
      case ProgramWait::kArrived:
        return {&FlagOf(Inbox(wait.peer), worker_, wait.flag), TagOf(epoch_, count + 1)};
      case ProgramWait::kFree:
        if (count < depth) return {&Done(Inbox(wait.peer), wait.peer), TagOf(epoch_ - 1, 0)};
        return {&FlagOf(Inbox(wait.peer), worker_, wait.flag), TagOf(epoch_, count - depth + 1)};
      default: {
        const bool before = wait.kind == ProgramWait::kWorkerSegment;
        if (before && count == 0) return {nullptr, 0};
        const auto segments = before ? count - 1 : count;
        const ProgramWorker& other = At<ProgramWorker>(program_.worker_offset)[wait.peer];
        const uint64_t ended =
            segments * static_cast<uint64_t>(other.op_count) + static_cast<uint64_t>(wait.amount);
        return {&FlagOf(Region(), wait.peer, wait.flag), TagOf(epoch_, ended)};
      }
    }
  }

  JAXCOLL_HD bool WaitFor(const ProgramWait& wait) {
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
    } else if (wait.kind == ProgramWait::kArrived) {
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
    cause.peer = wait.peer;
    cause.expected = awaited.tag;
    cause.seen = seen;
    cause.seen_fingerprint = fingerprint;
    cause.wait = wait.kind;
    cause.channel = wait.channel;
    cause.sequence = wait.sequence;
    cause.op = wait.op;
    cause.segment = segment_;
    Fail(cause);
    return false;
  }

  JAXCOLL_HD void Fail(Cause& cause) {
    cause.rank = rank_;
    cause.lane = call_.lane;
    cause.block = static_cast<uint32_t>(worker_ * call_.lanes + lane_);
    cause.expected_fingerprint = call_.fingerprint;
    GiveUp(policy_, call_.failing, call_.cause, call_.deadline_ns, cause);
  }

  // After the barrier behind the op: what its threads wrote goes before these.
  JAXCOLL_HD void Signal(const ProgramOp& op, int32_t op_count) {
    const ProgramSignal* signals = At<ProgramSignal>(program_.signal_offset) + op.first_signal;
    const uint64_t count = static_cast<uint64_t>(count_);
    for (int32_t i = policy_.thread(); i < op.signal_count; i += policy_.threads()) {
      const ProgramSignal& signal = signals[i];
      if (signal.kind == ProgramSignal::kWorker) {
        const uint64_t ended =
            count * static_cast<uint64_t>(op_count) + static_cast<uint64_t>(signal.amount);
        policy_.Release(&FlagOf(Region(), worker_, signal.flag).value, TagOf(epoch_, ended));
        continue;
      }
      // What nobody waits for is not told: it might arrive when the sender is at another call, for
      // which the flag means something else. Everything told is waited for within this launch.
      const int32_t next_use = segment_ + call_.depth * call_.lanes;
      if (signal.kind == ProgramSignal::kFreed && next_use >= call_.segment_count) continue;
      Flag& flag = FlagOf(call_.regions[signal.peer], worker_, signal.flag);
      if (count == 0 && signal.kind == ProgramSignal::kArrived) {
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
             static_cast<uint32_t>(program_.workers * call_.lanes);
      if (last) {
        header.finished = 0;  // nobody else looks before the next launch
        header.epoch = epoch_;
      }
    }
    if (policy_.All(!last)) return true;
    for (int32_t peer = policy_.thread(); peer < program_.world_size; peer += policy_.threads()) {
      if (peer == rank_) continue;
      policy_.Release(&Done(call_.regions[peer], rank_).value, TagOf(epoch_, 0));
    }
    return true;
  }

  // ---- Data ------------------------------------------------------------------------------------

  // This segment's slice of the chunk at a position.
  JAXCOLL_HD Strip SliceAt(int32_t position) const {
    return StripAt(call_.vectors[vector_], program_.chunks_per_block, segment_, position);
  }

  JAXCOLL_HD unsigned char* Address(const ProgramRef& ref, int32_t chunk,
                                    const Strip& strip) const {
    const ProgramVector& vector = call_.vectors[vector_];
    switch (ref.place) {
      case ProgramRef::kInput:
      case ProgramRef::kOutput: {
        const int64_t block = ref.index + (program_.chunks_per_block == 1 ? chunk : 0);
        const int64_t at = (block * vector.elements + strip.first) * sizeof(Stored);
        return ref.place == ProgramRef::kInput
                   ? const_cast<unsigned char*>(static_cast<const unsigned char*>(vector.input)) +
                         at
                   : static_cast<unsigned char*>(vector.output) + at;
      }
      case ProgramRef::kScratch:
        return Region() + call_.scratch_offset +
               (int64_t{lane_} * program_.scratch_chunks + ref.index + chunk) * call_.stride_bytes;
      default: {
        const int64_t block = int64_t{worker_} * call_.lanes + lane_;
        const int64_t use = block * call_.depth + count_ % call_.depth;
        unsigned char* const region =
            ref.place == ProgramRef::kSlot ? Inbox(ref.peer) : call_.regions[ref.peer];
        return region + call_.slot_offset +
               (use * program_.slot_chunks + ref.index + chunk) * call_.stride_bytes;
      }
    }
  }

  // Threads that work together on a chunk, so that short ones are moved side by side.
  struct Team {
    int32_t index, count;     // of teams
    int32_t thread, threads;  // of the team
  };

  // The sizes that are tried: all warps, half of them, and so on. What a round costs besides its
  // accesses is that of about as many of them.
  JAXCOLL_HD Team TeamOf(int32_t chunks, int32_t operands) const {
    constexpr int32_t kWarp = 32, kRoundCost = 2;
    const int32_t threads = policy_.threads();
    const int32_t accesses = (call_.vectors[vector_].slice_elements * kItemBytes + 15) / 16;
    int32_t size = threads, count = 1, best = 0;
    for (int32_t warps = threads / kWarp; warps > 0; warps /= 2) {
      int32_t teams = threads / (warps * kWarp);
      if (teams * operands > kPointers) teams = kPointers / operands;
      const int32_t at_once = warps * kWarp * kUnroll;
      const int32_t rounds = (chunks + teams - 1) / teams;
      const int32_t cost = rounds * (kRoundCost + (accesses + at_once - 1) / at_once);
      if (best != 0 && cost >= best) continue;
      best = cost, size = warps * kWarp, count = teams;
    }
    return {policy_.thread() / size, count, policy_.thread() % size, size};
  }

  // A chunk of an op.
  struct Chunk {
    const ProgramPiece* piece;
    int32_t index;  // in the piece
  };
  JAXCOLL_HD Chunk ChunkAt(const ProgramOp& op, int32_t index) const {
    const ProgramPiece* piece = At<ProgramPiece>(program_.piece_offset) + op.first_piece;
    for (; index >= piece->count; ++piece) index -= piece->count;
    return {piece, index};
  }

  JAXCOLL_HD Strip StripOf(const Chunk& chunk) const {
    return SliceAt(chunk.piece->position + (program_.chunks_per_block == 1 ? 0 : chunk.index));
  }

  // Chunks go to the teams in turn. For each round, the addresses of all operands of all teams'
  // chunks are found first, by a thread each.
  // (What is found again in every round would else take registers from the accesses.)
  JAXCOLL_HD void Move(const ProgramOp& op) {
    const Team team = TeamOf(op.chunk_count, op.source_count + op.destination_count);
    for (int32_t done = 0; done < op.chunk_count; done += team.count) {
      if (done > 0) policy_.All(true);  // the addresses of the last round are not needed
      const int32_t left = op.chunk_count - done;
      const int32_t chunks = left < team.count ? left : team.count;
      FindAddresses(op, done, chunks);
      policy_.All(true);
      if (team.index >= chunks) continue;
      const int32_t operands = op.source_count + op.destination_count;
      MoveChunk(op, policy_.pointers() + team.index * operands,
                static_cast<int32_t>(StripOf(ChunkAt(op, done + team.index)).count), team);
    }
  }

  JAXCOLL_HD void FindAddresses(const ProgramOp& op, int32_t first, int32_t chunks) {
    const int32_t operands = op.source_count + op.destination_count;
    const ProgramRef* refs = At<ProgramRef>(program_.ref_offset);
    for (int32_t i = policy_.thread(); i < chunks * operands; i += policy_.threads()) {
      const Chunk chunk = ChunkAt(op, first + i / operands);
      policy_.pointers()[i] =
          Address(refs[chunk.piece->first_ref + i % operands], chunk.index, StripOf(chunk));
    }
  }

  // `at`: the addresses of sources and destinations.
  JAXCOLL_HD void MoveChunk(const ProgramOp& op, unsigned char* const* at, int32_t count,
                            const Team& team) {
    const int32_t operands = op.source_count + op.destination_count;
    const auto offset = reinterpret_cast<uintptr_t>(at[0]) % 16;
    bool alike = true;  // all operands reach a multiple of 16 together
    for (int32_t i = 1; i < operands; ++i) {
      alike &= reinterpret_cast<uintptr_t>(at[i]) % 16 == offset;
    }
    int32_t head = count, accesses = 0;
    if (alike) {
      const auto to_multiple = static_cast<int32_t>((16 - offset) % 16 / sizeof(Stored));
      head = to_multiple < count ? to_multiple : count;
      accesses = (count - head) / kPerAccess;
    }
    for (int32_t i = team.thread; i < accesses; i += kUnroll * team.threads) {
      MoveAccesses(op, at, head * kItemBytes + i * 16, team.threads * 16, accesses - i,
                   team.threads);
    }
    // What is before and behind.
    for (int32_t i = team.thread; i < count - accesses * kPerAccess; i += team.threads) {
      MoveElement(op, at, (i < head ? i : i + accesses * kPerAccess) * kItemBytes);
    }
  }

  JAXCOLL_HD void MoveElement(const ProgramOp& op, unsigned char* const* at, int32_t offset) {
    Stored result{};
    if (op.source_count > 0) result = policy_.template Load<Stored>(at[0] + offset);
    if (op.source_count > 1) {
      Wide sum = Element::Load(result);
      JAXCOLL_NO_UNROLL
      for (int32_t s = 1; s < op.source_count; ++s) {
        sum =
            Combine(reduce_op(), sum, Element::Load(policy_.template Load<Stored>(at[s] + offset)));
      }
      result = Element::Store(sum);
    }
    JAXCOLL_NO_UNROLL
    for (int32_t d = 0; d < op.destination_count; ++d) {
      policy_.Store(at[op.source_count + d] + offset, result);
    }
  }

  // Accesses u = 0, 1, ... `step` bytes apart, those of which u * stride < left. All are read
  // before any is written: a destination may be a source.
  JAXCOLL_HD void MoveAccesses(const ProgramOp& op, unsigned char* const* at, int32_t offset,
                               int32_t step, int32_t left, int32_t stride) {
    Bytes16 result[kUnroll] = {};
    if (op.source_count > 0) LoadAll(at[0] + offset, step, left, stride, result);
    if (op.source_count > 1) {
      Wide sums[kUnroll][kPerAccess];
      JAXCOLL_UNROLL
      for (int u = 0; u < kUnroll; ++u) Widen(result[u], sums[u]);
      JAXCOLL_NO_UNROLL
      for (int32_t s = 1; s < op.source_count; ++s) {
        LoadAll(at[s] + offset, step, left, stride, result);
        CombineAll(sums, result);
      }
      JAXCOLL_UNROLL
      for (int u = 0; u < kUnroll; ++u) result[u] = Narrow(sums[u]);
    }
    JAXCOLL_NO_UNROLL
    for (int32_t d = 0; d < op.destination_count; ++d) {
      unsigned char* const to = at[op.source_count + d] + offset;
      JAXCOLL_UNROLL
      for (int u = 0; u < kUnroll; ++u) {
        if (u * stride < left) policy_.Store(to + u * step, result[u]);
      }
    }
  }

  JAXCOLL_HD void LoadAll(const unsigned char* from, int32_t step, int32_t left, int32_t stride,
                          Bytes16 (&into)[kUnroll]) const {
    JAXCOLL_UNROLL
    for (int u = 0; u < kUnroll; ++u) {
      if (u * stride < left) into[u] = policy_.template Load<Bytes16>(from + u * step);
    }
  }

  struct Pack16 {
    Stored element[kPerAccess];
  };

  static JAXCOLL_HD void Widen(const Bytes16& bytes, Wide (&wide)[kPerAccess]) {
    const Pack16 pack = BitCast<Pack16>(bytes);
    JAXCOLL_UNROLL
    for (int i = 0; i < kPerAccess; ++i) wide[i] = Element::Load(pack.element[i]);
  }

  static JAXCOLL_HD Bytes16 Narrow(const Wide (&wide)[kPerAccess]) {
    Pack16 pack;
    JAXCOLL_UNROLL
    for (int i = 0; i < kPerAccess; ++i) pack.element[i] = Element::Store(wide[i]);
    return BitCast<Bytes16>(pack);
  }

  // The choice of the op stands outside of the loops.
  JAXCOLL_HD void CombineAll(Wide (&sums)[kUnroll][kPerAccess], const Bytes16 (&next)[kUnroll]) {
    switch (reduce_op()) {
      case ReduceOp::kSum:
        return CombineBy<ReduceOp::kSum>(sums, next);
      case ReduceOp::kProd:
        return CombineBy<ReduceOp::kProd>(sums, next);
      case ReduceOp::kMin:
        return CombineBy<ReduceOp::kMin>(sums, next);
      case ReduceOp::kMax:
        return CombineBy<ReduceOp::kMax>(sums, next);
      case ReduceOp::kAnd:
        return CombineBy<ReduceOp::kAnd>(sums, next);
      case ReduceOp::kOr:
        return CombineBy<ReduceOp::kOr>(sums, next);
      case ReduceOp::kXor:
        return CombineBy<ReduceOp::kXor>(sums, next);
    }
  }

  template <ReduceOp kOp>
  static JAXCOLL_HD void CombineBy(Wide (&sums)[kUnroll][kPerAccess],
                                   const Bytes16 (&next)[kUnroll]) {
    // An op that the type lacks is refused by PlanCall(); here it would only be code.
    constexpr bool kWhole = std::is_integral_v<Wide>;
    constexpr bool kReal = kWhole || std::is_floating_point_v<Wide>;
    constexpr bool kBits = kOp == ReduceOp::kAnd || kOp == ReduceOp::kOr || kOp == ReduceOp::kXor;
    constexpr bool kOrders = kOp == ReduceOp::kMin || kOp == ReduceOp::kMax;
    if constexpr ((kWhole || !kBits) && (kReal || !kOrders)) {
      JAXCOLL_UNROLL
      for (int u = 0; u < kUnroll; ++u) {
        Wide wide[kPerAccess];
        Widen(next[u], wide);
        JAXCOLL_UNROLL
        for (int i = 0; i < kPerAccess; ++i) sums[u][i] = Combine(kOp, sums[u][i], wide[i]);
      }
    }
  }

  JAXCOLL_HD ReduceOp reduce_op() const { return static_cast<ReduceOp>(call_.reduce_op); }

  Policy& policy_;
  const ProgramCall& call_;
  const ProgramHeader& program_;
  const unsigned char* const bytes_;  // the table
  const int32_t rank_;
  const int32_t worker_;
  const int32_t lane_;
  uint32_t epoch_ = 0;
  int32_t count_ = 0;   // segments of this lane before this one
  int32_t segment_;     // of the call
  int32_t vector_ = 0;  // its vector
};

}  // namespace jaxcoll::cuda
