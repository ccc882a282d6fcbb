// One call in a group that spans processes: the state machine that runs a SegmentPlan.
//
// A message of up to kEagerBytes is sent as soon as its op starts; a longer one when its receiver
// has said that it is ready, so that it never waits in a slot for an op that has not started.
// An eager message that comes too early is copied out of its slot; where too many have been, the
// wire holds the next ones back and asks the receiver to say when it is ready for them.
//
// Thread rule: under the reactor's lock, like the Wire.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <vector>

#include "executor/segment_plan.h"

namespace jaxcoll {

inline constexpr size_t kEagerBytes = 16 << 10;

struct MessageId {
  int32_t segment = 0;
  MessageKey key;
  friend auto operator<=>(const MessageId&, const MessageId&) = default;
};

class SegmentRun;

// How a run reaches the ranks of other processes.
class Wire {
 public:
  virtual ~Wire() = default;
  virtual void SendReady(SegmentRun& run, int32_t rank, const MessageId& id) = 0;
  // Takes the message from SegmentRun::Write or Contiguous, at once or later; then calls OnSent.
  // Or calls Hold, and is called again when the receiver is ready.
  virtual void SendData(SegmentRun& run, int32_t rank, int32_t segment, int32_t op) = 0;
  // Whether a message may stay in its slot for a while, and when it need not any more.
  virtual bool MayKeep(int32_t rank) = 0;
  virtual void Release(int32_t rank, uint64_t handle) = 0;
};

class SegmentRun {
 public:
  SegmentRun(std::shared_ptr<const SegmentPlan> plan, MemberBuffers buffers, Wire& wire);
  ~SegmentRun();
  SegmentRun(const SegmentRun&) = delete;
  SegmentRun& operator=(const SegmentRun&) = delete;

  void Begin();
  bool done() const { return finished_ == plan_->segment_count(); }

  // From the wire. Ids that the program does not have are the peer's error: they return false.
  bool OnReady(const MessageId& id);
  bool OnRequest(const MessageId& id);
  // `message` is valid until the call returns, or until Release(*handle) if it was kept; without a
  // handle it cannot be.
  enum class Taken { kAtOnce, kKept, kUnknown };
  Taken OnData(const MessageId& id, const std::byte* message, size_t bytes,
               std::optional<uint64_t> handle);
  void OnSent(int32_t segment, int32_t op);
  void Hold(int32_t segment, int32_t op) { Find(segment)->state[op] |= kHeld; }
  bool ReceiverIsReady(int32_t segment, int32_t op) const {
    return (Find(segment)->state[op] & kReady) != 0;
  }

  // For SendData.
  size_t MessageBytes(int32_t segment, int32_t op) const {
    return plan_->MessageBytes(segment, plan_->program().ops[op]);
  }
  void Write(int32_t segment, int32_t op, std::byte* message) const;
  const std::byte* Contiguous(int32_t segment, int32_t op) const;

  // The ranks whose messages or readiness it waits for.
  std::vector<int32_t> WaitingFor() const;
  const SegmentPlan& plan() const { return *plan_; }

 private:
  struct Kept {
    int32_t rank;
    uint64_t handle;
  };
  // A segment in flight.
  struct Instance final : SegmentPlan::InPlace {
    const std::byte* Message(int32_t op) const override { return landed[op]; }
    int32_t segment = 0;
    int32_t remaining = 0;
    std::vector<int32_t> waits;            // per op
    std::vector<uint8_t> state;            // per op: bits kStarted, kReady, ...
    std::vector<const std::byte*> landed;  // per op, of those that stay in place
    std::vector<Kept> kept;
    std::vector<std::byte> scratch;
  };
  enum : uint8_t { kStarted = 1, kReady = 2, kSending = 4, kCompleted = 8, kHeld = 16 };
  struct Event {
    Instance* instance;
    int32_t op;
    bool completed;  // else it starts
  };

  SegmentPlan::Place PlaceOf(Instance& instance) const {
    return {&buffers_, instance.scratch.data(), &instance, instance.segment};
  }
  Instance* Find(int32_t segment) const;
  void Admit();
  void Drain();
  void Start(Instance& instance, int32_t op);
  void TrySend(Instance& instance, int32_t op);
  void Take(Instance& instance, int32_t op, const std::byte* message);
  void Complete(Instance& instance, int32_t op) { events_.push_back({&instance, op, true}); }
  void Arm(Instance& instance, const std::vector<int32_t>& ops);
  bool Eager(int32_t segment, const SegmentOp& op) const {
    return plan_->MessageBytes(segment, op) <= kEagerBytes;
  }

  const std::shared_ptr<const SegmentPlan> plan_;
  const MemberBuffers buffers_;
  Wire& wire_;
  std::vector<std::unique_ptr<Instance>> active_;
  std::vector<std::unique_ptr<Instance>> unused_;
  int32_t admitted_ = 0;
  int32_t finished_ = 0;
  std::deque<Event> events_;
  bool draining_ = false;
  std::set<MessageId> early_ready_;
  std::set<MessageId> requests_;  // for ops that have not started
  std::map<MessageId, std::vector<std::byte>> early_data_;
};

}  // namespace jaxcoll
