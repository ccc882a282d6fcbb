// Runs a packed schedule (device_program.h). One text for the kernel and for a test on the host.
//
// RunBlock() is one thread block: one worker on one lane of one rank. What differs between a GPU
// and the test is a Policy:
//
//   int thread(), threads()        of the block
//   bool All(bool)                 barrier of the block; whether all threads said true. What a
//                                  thread wrote before it, all may read behind it
//   T Load<T>(address)             plain accesses of 1 to 16 bytes, aligned to their size
//   void Store<T>(address, T)
//   uint64_t Acquire(address)      system scope: who sees a value that was Released sees
//   void Release(address, value)   everything that had happened before its Release
//   uint32_t Increment(address)    acquire and release, for the threads of one device; the old value
//   uint64_t NowNs(), void Pause() for spins
//   void Trap()                    does not return on a GPU; a block in which it does returns false
//
// Every flag is written by one thread of one rank. The data behind it were written by all threads
// of that block, before the barrier that stands before the Release; and are read by all threads of
// the waiting block, after the barrier that stands behind the Acquire.
//
// Numbers are combined as element.h says, in the order of a piece's sources, and rounded once.
#pragma once

#include "cuda/device_program.h"
#include "cuda/element.h"

// For the compiler of kernels; it is what turns arrays into registers.
#if defined(__CUDACC__)
#define JAXCOLL_UNROLL _Pragma("unroll")
#define JAXCOLL_UNROLL_2 _Pragma("unroll 2")
#else
#define JAXCOLL_UNROLL
#define JAXCOLL_UNROLL_2
#endif

namespace jaxcoll::cuda {

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
        lane_(block % call.lanes) {}

  // Whether the block did all it should.
  JAXCOLL_HD bool Run() {
    // The epoch changes when all blocks have ended, so this one still reads the old value.
    epoch_ = Header(rank_).epoch + 1;
    const ProgramWorker& worker = At<ProgramWorker>(program_.worker_offset)[worker_];
    const ProgramOp* ops = At<ProgramOp>(program_.op_offset) + worker.first_op;
    for (count_ = 0; (segment_ = lane_ + count_ * call_.lanes) < call_.segment_count; ++count_) {
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
  static constexpr int kPerAccess = 16 / static_cast<int>(sizeof(Stored));
  // Accesses of one thread in flight for each source. What is held is bounded by the registers.
  static constexpr int kUnroll = sizeof(Wide) * kPerAccess <= 16   ? 4
                                 : sizeof(Wide) * kPerAccess <= 32 ? 4
                                                                   : 2;

  template <typename T>
  JAXCOLL_HD const T* At(int32_t offset) const {
    return reinterpret_cast<const T*>(bytes_ + offset);
  }

  JAXCOLL_HD RegionHeader& Header(int32_t rank) const {
    return *reinterpret_cast<RegionHeader*>(call_.regions[rank]);
  }

  // Of this block's partner on `rank`, or of another worker of this lane.
  JAXCOLL_HD Flag& FlagOf(int32_t rank, int32_t worker, int32_t flag) const {
    Flag* flags = reinterpret_cast<Flag*>(call_.regions[rank] + sizeof(RegionHeader));
    return flags[(int64_t{worker} * call_.lanes + lane_) * program_.flags_per_worker + flag];
  }

  JAXCOLL_HD void FindSegment() {
    while (vector_ + 1 < call_.vector_count &&
           segment_ >= call_.vectors[vector_ + 1].first_segment) {
      ++vector_;
    }
    const ProgramVector& vector = call_.vectors[vector_];
    slice_first_ = (segment_ - vector.first_segment) * vector.slice_elements;
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

  JAXCOLL_HD bool WaitFor(const ProgramWait& wait) {
    const uint64_t count = static_cast<uint64_t>(count_);
    switch (wait.kind) {
      case ProgramWait::kArrived: {
        const Flag& flag = FlagOf(rank_, worker_, wait.flag);
        uint64_t seen = 0;
        if (!Spin(flag, TagOf(epoch_, count + 1), wait, seen)) return false;
        // Nobody is ahead of a launch that has not ended here, if all keep to the protocol.
        if (seen >> 32 != epoch_) {
          return Fail(ProgramCause::kEpoch, wait, TagOf(epoch_, count + 1), seen, 0);
        }
        if (count > 0) return true;
        const uint64_t fingerprint = policy_.Acquire(&flag.fingerprint);
        if (fingerprint == call_.fingerprint) return true;
        return Fail(ProgramCause::kMismatch, wait, TagOf(epoch_, count + 1), seen, fingerprint);
      }
      case ProgramWait::kFree: {
        uint64_t seen = 0;
        if (count < static_cast<uint64_t>(call_.depth)) {
          return Spin(Header(rank_).done[wait.peer], TagOf(epoch_ - 1, 0), wait, seen);
        }
        return Spin(FlagOf(rank_, worker_, wait.flag),
                    TagOf(epoch_, count - static_cast<uint64_t>(call_.depth) + 1), wait, seen);
      }
      default: {
        uint64_t seen = 0;
        const bool before = wait.kind == ProgramWait::kWorkerSegment;
        if (before && count == 0) return true;
        const ProgramWorker& other = At<ProgramWorker>(program_.worker_offset)[wait.peer];
        const uint64_t ended =
            (before ? count - 1 : count) * static_cast<uint64_t>(other.op_count) +
            static_cast<uint64_t>(wait.amount);
        return Spin(FlagOf(rank_, wait.peer, wait.flag), TagOf(epoch_, ended), wait, seen);
      }
    }
  }

  JAXCOLL_HD bool Spin(const Flag& flag, uint64_t wanted, const ProgramWait& wait, uint64_t& seen) {
    constexpr int kSpinsBetweenClocks = 64;
    uint64_t deadline = 0;
    for (int spins = 0; (seen = policy_.Acquire(&flag.value)) < wanted; ++spins) {
      policy_.Pause();
      if (spins % kSpinsBetweenClocks != 0) continue;
      const uint64_t now = policy_.NowNs();
      if (deadline == 0) deadline = now + call_.deadline_ns;
      if (now < deadline) continue;
      return Fail(ProgramCause::kDeadline, wait, wanted, seen, 0);
    }
    return true;
  }

  // The first one of a rank says why. Always false.
  JAXCOLL_HD bool Fail(ProgramCause::Kind kind, const ProgramWait& wait, uint64_t wanted,
                       uint64_t seen, uint64_t fingerprint) {
    if (policy_.Increment(&Header(rank_).failing) == 0) {
      ProgramCause& cause = *call_.cause;
      cause.rank = rank_;
      cause.peer = wait.peer;
      cause.wait = wait.kind;
      cause.channel = wait.channel;
      cause.sequence = wait.sequence;
      cause.op = wait.op;
      cause.worker = worker_;
      cause.lane = lane_;
      cause.segment = segment_;
      cause.wanted = wanted;
      cause.seen = seen;
      cause.wanted_fingerprint = call_.fingerprint;
      cause.seen_fingerprint = fingerprint;
      policy_.Release(&cause.kind, static_cast<uint32_t>(kind));
    }
    policy_.Trap();
    return false;
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
        policy_.Release(&FlagOf(rank_, worker_, signal.flag).value, TagOf(epoch_, ended));
        continue;
      }
      // What nobody waits for is not told: it might arrive when the sender is at another call, for
      // which the flag means something else. Everything told is waited for within this launch.
      const int64_t next_use = segment_ + int64_t{call_.depth} * call_.lanes;
      if (signal.kind == ProgramSignal::kFreed && next_use >= call_.segment_count) continue;
      Flag& flag = FlagOf(signal.peer, worker_, signal.flag);
      if (count == 0 && signal.kind == ProgramSignal::kArrived) {
        policy_.Release(&flag.fingerprint, call_.fingerprint);
      }
      policy_.Release(&flag.value, TagOf(epoch_, count + 1));
    }
  }

  // The last block to end ends the launch: all of them have read what came for them.
  JAXCOLL_HD bool Finish() {
    policy_.All(true);
    if (policy_.thread() != 0) return true;
    RegionHeader& header = Header(rank_);
    const auto blocks = static_cast<uint32_t>(program_.workers * call_.lanes);
    if (policy_.Increment(&header.finished) + 1 != blocks) return true;
    header.finished = 0;  // nobody else looks before the next launch
    header.epoch = epoch_;
    for (int32_t peer = 0; peer < program_.world_size; ++peer) {
      if (peer == rank_) continue;
      policy_.Release(&Header(peer).done[rank_].value, TagOf(epoch_, 0));
    }
    return true;
  }

  // ---- Data ------------------------------------------------------------------------------------

  // Elements of a block.
  struct Strip {
    int64_t first;
    int64_t count;
  };

  // This segment's slice of the chunk at a position.
  JAXCOLL_HD Strip StripAt(int32_t position) const {
    const ProgramVector& vector = call_.vectors[vector_];
    const int64_t n = vector.elements;
    const int64_t begin = position * n / program_.chunks_per_block + slice_first_;
    const int64_t end = (position + 1) * n / program_.chunks_per_block;
    const int64_t count = end - begin < vector.slice_elements ? end - begin : vector.slice_elements;
    return {begin, count < 0 ? 0 : count};
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
        return call_.regions[rank_] + call_.scratch_offset +
               (int64_t{lane_} * program_.scratch_chunks + ref.index + chunk) * call_.stride_bytes;
      default: {
        const int64_t block = int64_t{worker_} * call_.lanes + lane_;
        const int64_t use = block * call_.depth + count_ % call_.depth;
        const int32_t rank = ref.place == ProgramRef::kSlot ? rank_ : ref.peer;
        return call_.regions[rank] + call_.slot_offset +
               (use * program_.slot_chunks + ref.index + chunk) * call_.stride_bytes;
      }
    }
  }

  // Threads that work together on a chunk, so that short ones are moved side by side.
  struct Team {
    int32_t index, count;     // teams
    int32_t thread, threads;  // of the team
  };

  JAXCOLL_HD Team TeamOf() const {
    const int32_t threads = policy_.threads();
    int32_t size = 32;  // a warp
    const int64_t bytes = call_.vectors[vector_].slice_elements * int64_t{sizeof(Stored)};
    while (size < threads && int64_t{size} * 16 < bytes) size *= 2;
    if (size > threads) size = threads;
    return {policy_.thread() / size, threads / size, policy_.thread() % size, size};
  }

  JAXCOLL_HD void Move(const ProgramOp& op) {
    const Team team = TeamOf();
    int32_t turn = 0;
    for (int32_t p = 0; p < op.piece_count; ++p) {
      const ProgramPiece& piece = At<ProgramPiece>(program_.piece_offset)[op.first_piece + p];
      const ProgramRef* refs = At<ProgramRef>(program_.ref_offset) + piece.first_ref;
      for (int32_t chunk = 0; chunk < piece.count; ++chunk) {
        if (turn == team.index) {
          const bool whole_blocks = program_.chunks_per_block == 1;
          const Strip strip = StripAt(piece.position + (whole_blocks ? 0 : chunk));
          if (strip.count > 0) MoveChunk(op, refs, chunk, strip, team);
        }
        if (++turn == team.count) turn = 0;
      }
    }
  }

  JAXCOLL_HD void MoveChunk(const ProgramOp& op, const ProgramRef* refs, int32_t chunk,
                            const Strip& strip, const Team& team) {
    const int32_t operands = op.source_count + op.destination_count;
    const auto offset = reinterpret_cast<uintptr_t>(Address(refs[0], chunk, strip)) % 16;
    bool alike = true;  // all operands reach a multiple of 16 together
    for (int32_t i = 1; i < operands; ++i) {
      alike &= reinterpret_cast<uintptr_t>(Address(refs[i], chunk, strip)) % 16 == offset;
    }
    int64_t head = strip.count, accesses = 0;
    if (alike) {
      head = static_cast<int64_t>((16 - offset) % 16 / sizeof(Stored));
      if (head > strip.count) head = strip.count;
      accesses = (strip.count - head) / kPerAccess;
    }
    for (int64_t i = team.thread; i < head; i += team.threads) {
      MoveElement(op, refs, chunk, strip, i);
    }
    const int64_t body = head * int64_t{sizeof(Stored)};
    int64_t at = team.thread;
    for (; at + (kUnroll - 1) * team.threads < accesses; at += kUnroll * team.threads) {
      MoveAccesses<kUnroll>(op, refs, chunk, strip, body + at * 16, team.threads * 16);
    }
    for (; at < accesses; at += team.threads) {
      MoveAccesses<1>(op, refs, chunk, strip, body + at * 16, 0);
    }
    for (int64_t i = head + accesses * kPerAccess + team.thread; i < strip.count;
         i += team.threads) {
      MoveElement(op, refs, chunk, strip, i);
    }
  }

  JAXCOLL_HD void MoveElement(const ProgramOp& op, const ProgramRef* refs, int32_t chunk,
                              const Strip& strip, int64_t i) {
    const auto address = [&](int32_t operand) {
      return Address(refs[operand], chunk, strip) + i * int64_t{sizeof(Stored)};
    };
    Stored result{};
    if (op.source_count > 0) result = policy_.template Load<Stored>(address(0));
    if (op.source_count > 1) {
      Wide sum = Element::Load(result);
      for (int32_t s = 1; s < op.source_count; ++s) {
        sum = Combine(reduce_op(), sum, Element::Load(policy_.template Load<Stored>(address(s))));
      }
      result = Element::Store(sum);
    }
    for (int32_t d = 0; d < op.destination_count; ++d) {
      policy_.Store(address(op.source_count + d), result);
    }
  }

  // kCount accesses of 16 bytes, `step` bytes apart. All are read before any is written: a
  // destination may be a source.
  template <int kCount>
  JAXCOLL_HD void MoveAccesses(const ProgramOp& op, const ProgramRef* refs, int32_t chunk,
                               const Strip& strip, int64_t at, int64_t step) {
    const auto address = [&](int32_t operand) { return Address(refs[operand], chunk, strip) + at; };
    Bytes16 result[kCount] = {};
    if (op.source_count > 0) {
      const unsigned char* from = address(0);
      JAXCOLL_UNROLL
      for (int u = 0; u < kCount; ++u) {
        result[u] = policy_.template Load<Bytes16>(from + u * step);
      }
    }
    if (op.source_count > 1) {
      Wide sums[kCount][kPerAccess];
      JAXCOLL_UNROLL
      for (int u = 0; u < kCount; ++u) Widen(result[u], sums[u]);
      JAXCOLL_UNROLL_2
      for (int32_t s = 1; s < op.source_count; ++s) {
        const unsigned char* from = address(s);
        Bytes16 next[kCount];
        JAXCOLL_UNROLL
        for (int u = 0; u < kCount; ++u) {
          next[u] = policy_.template Load<Bytes16>(from + u * step);
        }
        CombineAll(sums, next);
      }
      JAXCOLL_UNROLL
      for (int u = 0; u < kCount; ++u) result[u] = Narrow(sums[u]);
    }
    for (int32_t d = 0; d < op.destination_count; ++d) {
      unsigned char* to = address(op.source_count + d);
      JAXCOLL_UNROLL
      for (int u = 0; u < kCount; ++u) policy_.Store(to + u * step, result[u]);
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

  template <int kCount>
  JAXCOLL_HD void CombineAll(Wide (&sums)[kCount][kPerAccess], const Bytes16 (&next)[kCount]) {
    // The op outside of the loops, the one that matters most by itself.
    if (reduce_op() == ReduceOp::kSum) {
      CombineBy(sums, next, [](Wide a, Wide b) { return Combine(ReduceOp::kSum, a, b); });
    } else {
      const ReduceOp op = reduce_op();
      CombineBy(sums, next, [op](Wide a, Wide b) { return Combine(op, a, b); });
    }
  }

  template <int kCount, typename Op>
  static JAXCOLL_HD void CombineBy(Wide (&sums)[kCount][kPerAccess], const Bytes16 (&next)[kCount],
                                   Op op) {
    JAXCOLL_UNROLL
    for (int u = 0; u < kCount; ++u) {
      Wide wide[kPerAccess];
      Widen(next[u], wide);
      JAXCOLL_UNROLL
      for (int i = 0; i < kPerAccess; ++i) sums[u][i] = op(sums[u][i], wide[i]);
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
  uint64_t epoch_ = 0;
  int64_t count_ = 0;        // segments of this lane before this one
  int64_t segment_ = 0;      // of the call
  int32_t vector_ = 0;       // its vector
  int64_t slice_first_ = 0;  // elements of each chunk before this segment's
};

}  // namespace jaxcoll::cuda
