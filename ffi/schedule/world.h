// The world of a schedule: all ranks' op lists, or those that one process needs, with sends and
// receives matched and everything checked, once, for all who run or simulate it.
//
//   engine/memory/local_actions.h    all ranks, compiled to memory actions
//   engine/slices/slice_ops.h      this process's ranks, of a group that spans processes
//   gpu/host/device_graph.h         all ranks, packed for the interpreter
//   sim/graph.h                     thousands of ranks: their op lists do not fit into memory
//                                   together, so it packs one after the other and gives
//                                   MatchMessages() the ends
//
// A World is made of op lists by Create(), which refuses what does not fit together; an engine that
// takes one checks nothing again but its own limits. Questions that several engines ask about a
// world are answered here, too: how long its largest message is, which copies need not be made
// (ScratchUse), and which ops wait for which (Levels).
//
// Thread rule: immutable once created.
#pragma once

#include <compare>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "schedule/schedule.h"

namespace jaxcoll {

// Names a message between two ranks. A schedule has at most one of each name.
struct MessageKey {
  int32_t source = 0;
  int32_t destination = 0;
  int32_t channel = 0;
  int32_t sequence = 0;
  friend auto operator<=>(const MessageKey&, const MessageKey&) = default;
};

inline bool IsSend(const Op& op) { return op.kind == OpKind::kSend; }
inline bool IsReceive(const Op& op) {
  return op.kind == OpKind::kRecv || op.kind == OpKind::kRecvReduce;
}
inline bool IsTransfer(const Op& op) { return IsSend(op) || IsReceive(op); }

// The key of a send or receive of `rank`.
MessageKey KeyOf(int32_t rank, const Op& op);

int32_t CountChunks(const Operand& operand);
std::vector<int32_t> ListChunks(const Operand& operand);
// Whether both have equally many chunks, each at the position in its block of the other's.
bool Correspond(const Operand& a, const Operand& b, int32_t chunks_per_block);

// "rank 3, op 17", for errors.
std::string Where(int32_t rank, size_t op);

// Chunks in the largest message that the rank sends or receives; at least 1.
int32_t LargestMessage(const OpList& op_list);
// The same for all ranks. O(one rank's ops): rank `root` has an end of a message as large as any,
// which every algorithm keeps and world_test.cc checks. Equal on every process, as the cuts of a
// call must be.
StatusOr<int32_t> LargestMessage(const ScheduleSpec& spec);

// ---- Matching ----------------------------------------------------------------------------------

// One rank's ends of messages: 16 bytes each.
class MessageEnds {
 public:
  // A send or receive; `number` is the caller's for it.
  void Add(const Op& op, uint32_t number);
  void Sort();  // once, after the last Add()

 private:
  friend class Matcher;
  struct End {
    int32_t peer, channel, sequence;
    uint32_t number;
  };
  std::vector<End> sends_, receipts_;  // receipts stay in the order of their ops
};

// A message that cannot be matched, and the op which shows it.
struct Unmatched {
  enum class Why : uint8_t { kSentTwice, kNeverSent, kNeverReceived };
  Why why = Why::kSentTwice;
  MessageKey key;
  uint32_t number = 0;
  int32_t rank() const { return why == Why::kNeverSent ? key.destination : key.source; }
};

// Calls `pair` for each message between two of `ranks`, which ascend; `ends` stand in their order.
// Receiving ranks ascend, and each one's receipts come in the order they were added. Ends whose
// peer is another rank have no mate here, and are fine.
using OnPair = std::function<void(size_t source, uint32_t send, size_t destination,
                                  uint32_t receipt)>;  // indices in `ranks`, numbers
std::optional<Unmatched> MatchMessages(std::span<const int32_t> ranks,
                                       std::span<const MessageEnds> ends, const OnPair& pair);

// ---- The world ---------------------------------------------------------------------------------

class World {
 public:
  static constexpr int32_t kNone = -1;

  // `op_lists`: of different ranks below `world_size`, ascending. Fails, naming rank and op, if
  // layouts differ, an operand is out of range or does not correspond, an input is written, a peer
  // or dependency does not exist, or a message of two of these ranks has one end only, two senders,
  // or ends that name other chunks. (Races are the verifier's business, deadlocks Levels'.)
  static StatusOr<World> Create(std::vector<OpList> op_lists, int32_t world_size);

  int32_t world_size() const { return world_size_; }
  bool complete() const { return member_count() == world_size_; }  // all ranks are here

  // Members are the ranks that are here, numbered in order; of a complete world member = rank.
  int32_t member_count() const { return static_cast<int32_t>(op_lists_.size()); }
  const std::vector<OpList>& op_lists() const { return op_lists_; }  // by member
  const std::vector<int32_t>& ranks() const { return ranks_; }       // by member
  int32_t MemberOf(int32_t rank) const;                              // kNone: it is not here
  // The layout, equal on all ranks; there must be one.
  const OpList& layout() const { return op_lists_.front(); }

  // Ops have ids, member after member.
  int32_t op_count() const { return first_op_.back(); }
  int32_t Id(int32_t member, size_t op) const {
    return first_op_[member] + static_cast<int32_t>(op);
  }
  int32_t MemberOfOp(int32_t id) const;
  const Op& op(int32_t id) const;
  std::string WhereIs(int32_t id) const;
  // The other end of a message; kNone for local ops, and where the peer is not here.
  int32_t mate(int32_t id) const { return mates_[id]; }

 private:
  World() = default;
  Status CheckLayout() const;
  Status CheckOps() const;
  Status Match();

  int32_t world_size_ = 0;
  std::vector<OpList> op_lists_;
  std::vector<int32_t> ranks_;
  std::vector<int32_t> first_op_;  // by member, and the number of ops
  std::vector<int32_t> mates_;     // by id
};

// ---- What engines may leave out ----------------------------------------------------------------

// How the ops of a world write its members' scratch. O(n log n) in the chunks written.
class ScratchUse {
 public:
  explicit ScratchUse(const World& world);

  // Forwarding: a chunk of scratch that is written once, by a plain copy of an input, a member's
  // own or one sent by another, is as good read in that input, which never changes. So is one that
  // is a copy of such a chunk.
  struct Origin {
    int32_t member = World::kNone;  // none: the chunk must be read where it is
    int32_t chunk = 0;              // of that member's input
  };
  Origin OriginOf(int32_t member, int32_t chunk) const;
  // Whether all that an op writes has an origin, so that nobody need do it.
  bool Forwarded(int32_t id) const;

  // Staying in place: whether an op brings a message, as it is, to scratch that no other op writes.
  // Then it may as well be read where it landed.
  bool StaysInPlace(int32_t id) const;

 private:
  struct Written {
    enum From : uint8_t { kElse, kInput, kScratch };  // what it is a copy of
    int32_t chunk;
    From from;
    bool once;
    Origin origin;
  };
  void ListWrites(int32_t member, const Op& op, std::vector<Written>& written) const;
  void Resolve(Written& chunk);
  const Written* Find(int32_t member, int32_t chunk) const;

  const World& world_;
  std::vector<std::vector<Written>> written_;  // by member; chunks ascend
};

// ---- Order -------------------------------------------------------------------------------------

enum class Sending : uint8_t {
  // Both ends of a message complete together, and ops of a channel start in order.
  kRendezvous,
  // A send completes on its own and its message is taken later; an engine orders channels itself.
  kBuffered,
};

// By op id: the longest way to its completion through all ops that must complete before, counting
// those that take time. `takes_time`: by id, empty: all do; a send's rendezvous is its receiver's.
// Fails, naming an op, if ops wait for each other in a circle.
StatusOr<std::vector<int32_t>> Levels(const World& world, Sending sending,
                                      const std::vector<bool>& takes_time = {});

}  // namespace jaxcoll
