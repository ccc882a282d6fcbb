// The kernel of a ragged exchange by messages (ragged_call.h). One text for GPUs and for a test on
// the host; see interpreter.h, whose flags and causes it uses. Its Policy is the interpreter's, and
//
//   void Copy(to, from, bytes)     by all threads of the block
//
// A block goes round by round. In round c it writes the c-th use of the slot of each rank for which
// there is one, raises their flags, waits for the c-th uses of those that send to it, puts what
// came into the result, and says that the slots are free. A rank's round waits for nothing but
// sends of the same round and slots freed in earlier ones, so no wait cycle can form.
//
// Streams begin with the sender's tables. When the last of them has come, every rank compares what
// others send with its own recv_sizes, and what it sends with theirs: so both find out that they
// differ. No row is written before.
//
// Every byte of the result is written once: by the last update, in order of ranks and updates, that
// reaches it, or else from `output`. So it does not matter which block writes first.
#pragma once

#include "gpu/abi/ragged_call.h"
#include "gpu/device/interpreter.h"

namespace jaxcoll::cuda {

template <typename Policy>
class RaggedExchange : Interpreter<Policy, DType::kUint8> {
  using Base = Interpreter<Policy, DType::kUint8>;
  using Base::call_, Base::count_, Base::epoch_, Base::strand_, Base::policy_, Base::header_,
      Base::rank_, Base::slice_;

 public:
  JAXCOLL_HD RaggedExchange(Policy& policy, const RaggedTableCall& call, int32_t block)
      : Base(policy, call.table_call, block),
        ragged_(call.ragged),
        tables_(call),
        ranks_(header_.world_size),
        updates_(call.ragged.updates_per_peer),
        extents_(reinterpret_cast<RaggedExtent*>(Base::Region() + call_.scratch_offset +
                                                 strand_ * RaggedScratchBytes(ranks_, updates_))) {}

  // Whether the block did all it should.
  JAXCOLL_HD bool Run() {
    if (!Base::Begin()) return false;
    FindSent();
    const int64_t told = UsesFor(TableBytes());  // rounds in which tables come
    int64_t rounds = MostUses(kSent);
    JAXCOLL_NO_UNROLL
    for (; count_ < rounds; ++count_, slice_ += call_.strands) {
      if (!AwaitRoom()) return false;
      Send();
      policy_.All(true);
      RaiseArrived();
      if (!AwaitArrivals(told)) return false;
      if (count_ < told && !ReadTables()) return false;
      if (count_ + 1 == told) {
        FindReceived();
        if (rounds < MostUses(kReceived)) rounds = MostUses(kReceived);
      }
      if (count_ + 1 >= told) PlaceArrived();
      policy_.All(true);
      RaiseFreed(told);
    }
    CopyRest();
    return Base::Finish();
  }

 private:
  enum Way { kSent, kReceived };

  // ---- Streams ---------------------------------------------------------------------------------

  // Bytes of rows that go to a peer, or come from it, by all strands. Shared by the block's
  // threads.
  JAXCOLL_HD int64_t Rows(Way way, int32_t peer) const {
    return static_cast<int64_t>(
        reinterpret_cast<uintptr_t>(policy_.pointers()[way * kMaxTableRanks + peer]));
  }
  JAXCOLL_HD void SetRows(Way way, int32_t peer, int64_t bytes) {
    policy_.pointers()[way * kMaxTableRanks + peer] =
        reinterpret_cast<unsigned char*>(static_cast<uintptr_t>(bytes));
  }
  static_assert(2 * kMaxTableRanks <= kPointers);

  JAXCOLL_HD int64_t TableBytes() const {
    return updates_ * static_cast<int64_t>(sizeof(RaggedEntry));
  }
  JAXCOLL_HD int64_t StreamBytes(Way way, int32_t peer) const {
    return TableBytes() + ShareOf(Rows(way, peer), strand_, call_.strands).bytes;
  }
  // Whether a stream has a use of its slot in round `count`.
  JAXCOLL_HD bool HasUse(Way way, int32_t peer, int64_t count) const {
    return count * call_.stride_bytes < StreamBytes(way, peer);
  }
  JAXCOLL_HD int64_t UsesFor(int64_t bytes) const {
    const auto units = static_cast<uint32_t>((bytes + kSlotAlignment - 1) / kSlotAlignment);
    const auto stride = static_cast<uint32_t>(call_.stride_bytes / kSlotAlignment);
    return (units + stride - 1) / stride;
  }
  // This rank's own rows come by no stream, but in rounds like those of others.
  JAXCOLL_HD int64_t MostUses(Way way) const {
    int64_t most = 0;
    JAXCOLL_NO_UNROLL
    for (int32_t peer = 0; peer < ranks_; ++peer) {
      if (most < StreamBytes(way, peer)) most = StreamBytes(way, peer);
    }
    return UsesFor(most);
  }

  // This round's part of a share of rows: [first, last) of the pair's, the first of them `at` bytes
  // behind the slot's beginning.
  struct Span {
    int64_t first, last, at;
  };
  JAXCOLL_HD Span SpanOf(Way way, int32_t peer) const {
    const RaggedShare share = ShareOf(Rows(way, peer), strand_, call_.strands);
    const int64_t begin = count_ * call_.stride_bytes - TableBytes();  // of the share
    const int64_t end = begin + call_.stride_bytes;
    const int64_t first = begin < 0 ? 0 : begin;
    const int64_t last = end < share.bytes ? end : share.bytes;
    return {share.first + first, share.first + last, first - begin};
  }

  // ---- Tables ----------------------------------------------------------------------------------

  JAXCOLL_HD int64_t At(const void* table, int32_t peer, int32_t u) const {
    const int64_t i = int64_t{peer} * updates_ + u;
    return ragged_.wide_index
               ? policy_.template Load<int64_t>(static_cast<const int64_t*>(table) + i)
               : policy_.template Load<int32_t>(static_cast<const int32_t*>(table) + i);
  }
  // The entries of this rank's tables for a peer.
  JAXCOLL_HD RaggedEntry Own(int32_t peer, int32_t u) const {
    return {At(tables_.input_offsets, peer, u), At(tables_.send_sizes, peer, u),
            At(tables_.output_offsets, peer, u), At(tables_.recv_sizes, peer, u)};
  }

  // Null, or what is wrong with rows that a rank sends.
  struct Fault {
    uint32_t kind;
    int64_t first, total;
  };
  JAXCOLL_HD Fault FaultOf(const RaggedEntry& sent, int64_t expected) const {
    if (sent.send_size != expected) return {Cause::kRaggedSizes, 0, expected};
    const auto outside = [&](int64_t first, int64_t total) {
      return sent.send_size < 0 || first < 0 || first > total - sent.send_size;
    };
    if (outside(sent.input_offset, ragged_.operand_rows)) {
      return {Cause::kRaggedRows, sent.input_offset, ragged_.operand_rows};
    }
    if (outside(sent.output_offset, ragged_.output_rows)) {
      return {Cause::kRaggedRows, sent.output_offset, ragged_.output_rows};
    }
    return {Cause::kNone, 0, 0};
  }
  JAXCOLL_HD bool Check(int32_t sender, int32_t receiver, int32_t u, const RaggedEntry& sent,
                        int64_t expected) {
    const Fault fault = FaultOf(sent, expected);
    if (fault.kind == Cause::kNone) return true;
    Cause cause = {};
    cause.kind = fault.kind;
    cause.rank = receiver;
    cause.peer = sender;
    cause.entry = receiver * updates_ + u;
    cause.rows = sent.send_size;
    cause.first = fault.first;
    cause.total = fault.total;
    Base::Fail(cause);
    return false;
  }

  // Rows that lie outside of an operand are not sent, but the table that says so is.
  JAXCOLL_HD void FindSent() {
    JAXCOLL_NO_UNROLL
    for (int32_t peer = policy_.thread(); peer < ranks_; peer += policy_.threads()) {
      int64_t rows = 0;
      bool within = true;
      JAXCOLL_NO_UNROLL
      for (int32_t u = 0; u < updates_; ++u) {
        const RaggedEntry sent = Own(peer, u);
        within &= FaultOf(sent, sent.send_size).kind == Cause::kNone;
        rows += within ? sent.send_size : 0;
      }
      SetRows(kSent, peer, within ? rows * ragged_.row_bytes : 0);
    }
    policy_.All(true);
  }

  // Reads the tables for this round's part of the streams.
  JAXCOLL_HD bool ReadTables() {
    const auto per_use = static_cast<int32_t>(call_.stride_bytes / sizeof(RaggedEntry));
    const int32_t first = count_ * per_use;
    const int32_t count = updates_ - first < per_use ? updates_ - first : per_use;
    bool ok = true;
    JAXCOLL_NO_UNROLL
    for (int32_t i = policy_.thread(); i < ranks_ * count; i += policy_.threads()) {
      const int32_t peer = i / count, u = first + i % count;
      const RaggedEntry own = Own(peer, u);
      const RaggedEntry said =
          peer == rank_ ? own : LoadEntry(Slot(Base::Inbox(peer), peer), i % count);
      ok = Check(peer, rank_, u, said, own.recv_size) && Check(rank_, peer, u, own, said.recv_size);
      if (!ok) break;
      RaggedExtent& extent = extents_[peer * updates_ + u];
      policy_.Store(&extent.first, said.output_offset * ragged_.row_bytes);
      policy_.Store(&extent.bytes, said.send_size * ragged_.row_bytes);
    }
    return policy_.All(ok);
  }
  JAXCOLL_HD void FindReceived() {
    JAXCOLL_NO_UNROLL
    for (int32_t peer = policy_.thread(); peer < ranks_; peer += policy_.threads()) {
      int64_t bytes = 0;
      JAXCOLL_NO_UNROLL
      for (int32_t u = 0; u < updates_; ++u) bytes += ExtentOf(peer * updates_ + u).bytes;
      SetRows(kReceived, peer, bytes);
    }
    policy_.All(true);
  }
  JAXCOLL_HD RaggedExtent ExtentOf(int32_t i) const {
    return {policy_.template Load<int64_t>(&extents_[i].first),
            policy_.template Load<int64_t>(&extents_[i].bytes)};
  }

  JAXCOLL_HD RaggedEntry LoadEntry(const unsigned char* slot, int32_t i) const {
    const auto* const words = reinterpret_cast<const int64_t*>(slot + i * sizeof(RaggedEntry));
    return {policy_.template Load<int64_t>(words), policy_.template Load<int64_t>(words + 1),
            policy_.template Load<int64_t>(words + 2), policy_.template Load<int64_t>(words + 3)};
  }
  JAXCOLL_HD void StoreEntry(unsigned char* slot, int32_t i, const RaggedEntry& entry) const {
    auto* const words = reinterpret_cast<int64_t*>(slot + i * sizeof(RaggedEntry));
    policy_.Store(words, entry.input_offset);
    policy_.Store(words + 1, entry.send_size);
    policy_.Store(words + 2, entry.output_offset);
    policy_.Store(words + 3, entry.recv_size);
  }

  // ---- Slots and flags -------------------------------------------------------------------------

  // In a region: the slot of what `from` sends, for this round.
  JAXCOLL_HD unsigned char* Slot(unsigned char* region, int32_t from) const {
    const int64_t use = int64_t{strand_} * call_.depth + count_ % call_.depth;
    return region + call_.slot_offset + (use * ranks_ + from) * call_.stride_bytes;
  }
  JAXCOLL_HD Flag& Arrived(unsigned char* region, int32_t from) const {
    return Base::FlagOf(region, 0, RaggedArrived(from));
  }

  // Calls `ok` for every other rank, by a thread each; whether all were.
  template <typename Ok>
  JAXCOLL_HD bool ForPeers(const Ok& ok) {
    bool all = true;
    JAXCOLL_NO_UNROLL
    for (int32_t peer = policy_.thread(); peer < ranks_ && all; peer += policy_.threads()) {
      all = peer == rank_ || ok(peer);
    }
    return policy_.All(all);
  }
  JAXCOLL_HD bool Await(TableWait::Kind kind, int32_t peer, int32_t flag) {
    TableWait wait = {};
    wait.kind = kind;
    wait.peer = peer;
    wait.flag = flag;
    return Base::WaitFor(wait);
  }

  JAXCOLL_HD bool AwaitRoom() {
    return ForPeers([&](int32_t peer) {
      return !HasUse(kSent, peer, count_) ||
             Await(TableWait::kFree, peer, RaggedFreed(peer, ranks_));
    });
  }
  JAXCOLL_HD bool AwaitArrivals(int64_t told) {
    return ForPeers([&](int32_t peer) {
      return (count_ >= told && !HasUse(kReceived, peer, count_)) ||
             Await(TableWait::kArrived, peer, RaggedArrived(peer));
    });
  }
  // After the barrier behind what was written or read.
  JAXCOLL_HD void RaiseArrived() {
    JAXCOLL_NO_UNROLL
    for (int32_t peer = policy_.thread(); peer < ranks_; peer += policy_.threads()) {
      if (peer == rank_ || !HasUse(kSent, peer, count_)) continue;
      Flag& flag = Arrived(call_.regions[peer], rank_);
      if (count_ == 0) {
        policy_.Release(&flag.fingerprint, call_.fingerprint);
        const int64_t uses = UsesFor(StreamBytes(kSent, peer));
        const int64_t last = StreamBytes(kSent, peer) - (uses - 1) * call_.stride_bytes;
        policy_.Release(&flag.uses, static_cast<uint64_t>(uses));
        policy_.Release(&flag.last_bytes, static_cast<uint64_t>(last));
      }
      policy_.Release(&flag.value, TagOf(epoch_, static_cast<uint64_t>(count_) + 1));
    }
  }
  // A flag that nobody waits for is not raised; see interpreter.h. Before the tables have come, the
  // flag says how much comes.
  JAXCOLL_HD void RaiseFreed(int64_t told) {
    const int64_t next = int64_t{count_} + call_.depth;  // of this slot
    JAXCOLL_NO_UNROLL
    for (int32_t peer = policy_.thread(); peer < ranks_; peer += policy_.threads()) {
      if (peer == rank_) continue;
      if (count_ + 1 >= told ? !HasUse(kReceived, peer, next)
                             : static_cast<uint64_t>(next) >=
                                   policy_.Acquire(&Arrived(Base::Inbox(peer), peer).uses)) {
        continue;
      }
      Flag& flag = Base::FlagOf(call_.regions[peer], 0, RaggedFreed(rank_, ranks_));
      policy_.Release(&flag.value, TagOf(epoch_, static_cast<uint64_t>(count_) + 1));
    }
  }

  // ---- Rows ------------------------------------------------------------------------------------

  JAXCOLL_HD void Send() {
    JAXCOLL_NO_UNROLL
    for (int32_t i = 1; i < ranks_; ++i) {
      const int32_t peer = (rank_ + i) % ranks_;  // not all to the same one first
      if (!HasUse(kSent, peer, count_)) continue;
      unsigned char* const slot = Slot(Base::Outbox(peer), rank_);
      const auto per_use = static_cast<int32_t>(call_.stride_bytes / sizeof(RaggedEntry));
      JAXCOLL_NO_UNROLL
      for (int32_t e = policy_.thread(); e < per_use && count_ * per_use + e < updates_;
           e += policy_.threads()) {
        StoreEntry(slot, e, Own(peer, count_ * per_use + e));
      }
      const Span span = SpanOf(kSent, peer);
      int64_t before = 0;  // bytes of earlier updates
      JAXCOLL_NO_UNROLL
      for (int32_t u = 0; u < updates_ && before < span.last; ++u) {
        const int64_t bytes = At(tables_.send_sizes, peer, u) * ragged_.row_bytes;
        const Span part = Cut(span, before, bytes);
        if (part.first < part.last) {
          policy_.Copy(slot + part.at, OperandOf(peer, u) + (part.first - before),
                       part.last - part.first);
        }
        before += bytes;
      }
    }
  }

  // Takes the contents of this round's slots, and this rank's own rows.
  JAXCOLL_HD void PlaceArrived() {
    JAXCOLL_NO_UNROLL
    for (int32_t i = 0; i < ranks_; ++i) {
      const int32_t peer = (rank_ + ranks_ - i) % ranks_;
      if (!HasUse(kReceived, peer, count_)) continue;
      const Span span = SpanOf(kReceived, peer);
      int64_t before = 0;
      JAXCOLL_NO_UNROLL
      for (int32_t u = 0; u < updates_ && before < span.last; ++u) {
        const int32_t entry = peer * updates_ + u;
        const RaggedExtent extent = ExtentOf(entry);
        const Span part = Cut(span, before, extent.bytes);
        if (part.first < part.last) {
          const unsigned char* const from = peer == rank_
                                                ? OperandOf(peer, u) + (part.first - before)
                                                : Slot(Base::Inbox(peer), peer) + part.at;
          Write(entry, extent.first + (part.first - before), extent.first + (part.last - before),
                from);
        }
        before += extent.bytes;
      }
    }
  }

  // The part of a span that lies in [before, before + bytes).
  static JAXCOLL_HD Span Cut(const Span& span, int64_t before, int64_t bytes) {
    const int64_t first = span.first < before ? before : span.first;
    const int64_t last = span.last < before + bytes ? span.last : before + bytes;
    return {first, last, span.at + (first - span.first)};
  }
  JAXCOLL_HD const unsigned char* OperandOf(int32_t peer, int32_t u) const {
    return static_cast<const unsigned char*>(call_.vectors[0].input) +
           At(tables_.input_offsets, peer, u) * ragged_.row_bytes;
  }

  // This strand's share of what no update reaches.
  JAXCOLL_HD void CopyRest() {
    constexpr int64_t kTile = 64 << 10;
    const RaggedShare share = ShareOf(call_.vectors[0].elements, strand_, call_.strands);
    JAXCOLL_NO_UNROLL
    for (int64_t at = share.first; at < share.first + share.bytes; at += kTile) {
      const int64_t end = share.first + share.bytes;
      Write(-1, at, end - at < kTile ? end : at + kTile,
            static_cast<const unsigned char*>(ragged_.output) + at);
    }
  }

  // Writes what update `entry` brings for [first, last) of the result, but not where a later one
  // reaches. Tables in which updates overlap are rare: only there, and at the ends of what updates
  // reach, every thread looks at all of them.
  JAXCOLL_HD void Write(int32_t entry, int64_t first, int64_t last, const unsigned char* from) {
    const int32_t entries = ranks_ * updates_;
    bool apart = true, hidden = false;
    JAXCOLL_NO_UNROLL
    for (int32_t i = entry + 1 + policy_.thread(); i < entries; i += policy_.threads()) {
      const RaggedExtent extent = ExtentOf(i);
      const int64_t end = extent.first + extent.bytes;
      if (extent.bytes == 0 || end <= first || last <= extent.first) continue;
      apart = false;
      hidden |= extent.first <= first && last <= end;
    }
    const bool alone = policy_.All(apart);
    if (!alone && !policy_.All(!hidden)) return;
    auto* const result = static_cast<unsigned char*>(call_.vectors[0].output);
    const int64_t begin = first;
    while (first < last) {
      int64_t next = last;  // where the next later one begins
      int64_t behind = 0;   // a later one reaches from here to there
      JAXCOLL_NO_UNROLL
      for (int32_t i = alone ? entries : entry + 1; i < entries && behind == 0; ++i) {
        const RaggedExtent extent = ExtentOf(i);
        const int64_t end = extent.first + extent.bytes;
        if (extent.bytes == 0 || end <= first || next <= extent.first) continue;
        if (extent.first <= first) behind = end;
        next = extent.first;
      }
      if (behind == 0) policy_.Copy(result + first, from + (first - begin), next - first);
      first = behind == 0 ? next : behind;
    }
  }

  const Ragged& ragged_;
  const RaggedTableCall& tables_;
  const int32_t ranks_;
  const int32_t updates_;
  RaggedExtent* const extents_;  // by rank and update, in order
};

}  // namespace jaxcoll::cuda
