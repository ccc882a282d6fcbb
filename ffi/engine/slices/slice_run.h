// The state machine that runs a SlicePlan.
//
// A message of up to kEagerBytes is sent as soon as its op starts; a longer one when its receiver
// has said that it is ready, so that it never waits in a slot for an op that has not started.
// An eager message that comes too early is copied out of its slot; where too many have been, the
// wire holds the next ones back and asks the receiver to say when it is ready for them.
//
// Ragged, the first slices carry the extents of the others, each small enough to be eager, and
// how many others there are is known when they are over. Every message of these others waits for
// its receiver, however small it is. A fault in the extents goes to every peer in the place of a
// send, as slice kRefusal, and ends the run.
//
// Thread rule: that of Run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <vector>

#include "engine/slices/run.h"
#include "engine/slices/slice_plan.h"

namespace jaxcoll {

class SliceRun final : public Run {
 public:
  SliceRun(std::shared_ptr<const SlicePlan> plan, MemberBuffers buffers, Wire& wire);
  ~SliceRun() override;

  void Begin() override;
  bool done() const override {
    return status_.ok() ? finished_ == slice_count_ : refusals_left_ == 0;
  }

  const Status& status() const override { return status_; }  // not ragged: always good

  bool OnReady(const MessageId& id) override;
  bool OnRequest(const MessageId& id) override;
  Taken OnData(const MessageId& id, const std::byte* message, size_t bytes,
               std::optional<uint64_t> handle) override;
  void OnSent(int32_t slice, int32_t op) override;
  bool Hold(int32_t slice, int32_t op) override;

  MessageKey Key(int32_t op) const override { return plan_->slice_ops().ops[op].key; }
  size_t MessageBytes(int32_t slice, int32_t op) const override {
    return BytesOf(slice, plan_->slice_ops().ops[op]);
  }
  void Write(int32_t slice, int32_t op, std::byte* message) const override;
  const std::byte* Contiguous(int32_t slice, int32_t op) const override;
  std::span<const std::byte> ArrayOf(int32_t slice, int32_t op) const override {
    if (table_ != nullptr) return {};
    return plan_->ArrayOf(plan_->slice_ops().ops[op], slice, buffers_);
  }

  std::vector<int32_t> WaitingFor() const override;

 private:
  struct Kept {
    int32_t rank;
    uint64_t handle;
  };
  // A slice in flight.
  struct Instance final : SlicePlan::InPlace {
    const std::byte* Message(int32_t op) const override { return landed[op]; }
    int32_t slice = 0;
    int32_t remaining = 0;
    std::vector<int32_t> waits;            // per op
    std::vector<uint8_t> state;            // per op: bits kStarted, kReady, ...
    std::vector<const std::byte*> landed;  // per op, of those that stay in place
    std::vector<Kept> kept;
    ScratchPool::Block scratch;
  };
  enum : uint8_t { kStarted = 1, kReady = 2, kSending = 4, kCompleted = 8, kHeld = 16 };
  struct Event {
    Instance* instance;
    int32_t op;
    bool completed;  // else it starts
  };

  SlicePlan::Memory MemoryOf(Instance& instance) const {
    return {&buffers_, instance.scratch.bytes.get(), &instance, instance.slice};
  }
  Instance* Find(int32_t slice) const;
  void Admit();
  void Drain();
  void Start(Instance& instance, int32_t op);
  void TrySend(Instance& instance, int32_t op);
  void Take(Instance& instance, int32_t op, const std::byte* message);
  void Complete(Instance& instance, int32_t op) { events_.push_back({&instance, op, true}); }
  void Arm(Instance& instance, const std::vector<int32_t>& ops);
  size_t BytesOf(int32_t slice, const SliceOp& op) const;
  bool Eager(int32_t slice, const SliceOp& op) const {
    return table_ != nullptr ? table_->IsHeader(slice) : BytesOf(slice, op) <= kEagerBytes;
  }
  // The rest is ragged.
  int32_t PeerOf(const SliceOp& op) const;  // as the table numbers them
  static constexpr int32_t kRefusal = -1;
  // Whether there is no message, and its receiver does not announce that it is ready, either.
  bool Absent(int32_t slice, const SliceOp& op) const;
  void CompleteTable();
  void Refuse(const RaggedFault& fault);
  Taken TakeRefusal(const SliceOp& op, const std::byte* message, size_t bytes);

  const std::shared_ptr<const SlicePlan> plan_;
  const MemberBuffers buffers_;
  Wire& wire_;
  const int32_t in_flight_;  // slices, at most
  Status status_;
  std::vector<std::unique_ptr<Instance>> active_;
  std::vector<std::unique_ptr<Instance>> unused_;
  int32_t admitted_ = 0;
  int32_t finished_ = 0;
  int32_t slice_count_;  // as far as known
  std::deque<Event> events_;
  bool draining_ = false;
  std::set<MessageId> early_ready_;
  std::set<MessageId> requests_;  // for ops that have not started
  std::map<MessageId, std::vector<std::byte>> early_data_;

  std::unique_ptr<RaggedTable> table_;  // null: not ragged
  bool complete_ = false;               // the table is
  bool owe_own_ = false;                // RaggedTable::CopyOwn() has to be called
  std::vector<bool> accepted_;          // by peer of the table: it has announced readiness
  std::optional<RaggedFault> fault_;    // that this process has found
  int32_t refusals_left_ = 0;           // to be sent
};

}  // namespace jaxcoll
