#include "engine/slices/slice_run.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace jaxcoll {
namespace {

// Slices in flight: enough that a message is under way while another is added up, few enough that
// what they touch stays in cache. Four processes on two cores, 64 MiB: 64 ms with four slices of
// six messages each, 48 ms with two.
constexpr size_t kInFlightBytes = 3 << 19;
constexpr size_t kInFlightLeast = 2;
constexpr size_t kInFlightMost = 4;

}  // namespace

int32_t SlicePlan::in_flight() const {
  size_t bytes = 1;
  for (const SliceOp& op : slice_ops().ops) {
    if (op.kind == SliceOp::Kind::kSend && slice_count() > 0) bytes += MessageBytes(0, op);
  }
  return static_cast<int32_t>(std::clamp(kInFlightBytes / bytes, kInFlightLeast, kInFlightMost));
}

std::unique_ptr<Run> SlicePlan::MakeRun(MemberBuffers buffers, Wire& wire) const {
  return std::make_unique<SliceRun>(shared_from_this(), std::move(buffers), wire);
}

SliceRun::SliceRun(std::shared_ptr<const SlicePlan> plan, MemberBuffers buffers, Wire& wire)
    : plan_(std::move(plan)),
      buffers_(std::move(buffers)),
      wire_(wire),
      in_flight_(plan_->in_flight()),
      slice_count_(plan_->slice_count()) {
  if (plan_->ragged() == nullptr) return;
  table_ = std::make_unique<RaggedTable>(*plan_->ragged(), buffers_);
  slice_count_ = table_->slice_count();
  accepted_.resize(plan_->ragged()->peers().size());
}

SliceRun::~SliceRun() {
  for (const std::unique_ptr<Instance>& instance : active_) {
    for (const Kept& kept : instance->kept) wire_.Release(kept.rank, kept.handle);
    wire_.scratch().Give(std::move(instance->scratch));
  }
  for (const std::unique_ptr<Instance>& instance : unused_) {
    wire_.scratch().Give(std::move(instance->scratch));
  }
}

void SliceRun::Begin() {
  if (table_ != nullptr) {
    if (const auto fault = table_->FillOwn()) return Refuse(*fault);
  }
  plan_->ClearUnwritten(buffers_);
  Admit();
  Drain();
}

SliceRun::Instance* SliceRun::Find(int32_t slice) const {
  for (const std::unique_ptr<Instance>& instance : active_) {
    if (instance->slice == slice) return instance.get();
  }
  return nullptr;
}

void SliceRun::Admit() {
  const std::vector<SliceOp>& ops = plan_->slice_ops().ops;
  while (static_cast<int32_t>(active_.size()) < in_flight_ && admitted_ < slice_count_) {
    std::unique_ptr<Instance> instance;
    if (!unused_.empty()) {
      instance = std::move(unused_.back());
      unused_.pop_back();
    } else {
      instance = std::make_unique<Instance>();
      instance->scratch = wire_.scratch().Take(plan_->scratch_bytes());
    }
    instance->slice = admitted_++;
    instance->remaining = static_cast<int32_t>(ops.size());
    instance->waits.resize(ops.size());
    for (size_t op = 0; op < ops.size(); ++op) {
      instance->waits[op] = ops[op].waits;
    }
    instance->state.assign(ops.size(), 0);
    instance->landed.assign(ops.size(), nullptr);
    Instance& added = *instance;
    active_.push_back(std::move(instance));
    if (ops.empty()) {
      active_.pop_back();
      ++finished_;
      continue;
    }
    for (size_t op = 0; op < ops.size(); ++op) {
      if (ops[op].waits == 0) events_.push_back({&added, static_cast<int32_t>(op), false});
    }
  }
}

// Events are queued rather than called so that a long chain of ops does not become a deep stack.
void SliceRun::Drain() {
  if (draining_) return;
  draining_ = true;
  while (!events_.empty()) {
    const Event event = events_.front();
    events_.pop_front();
    Instance& instance = *event.instance;
    if (!event.completed) {
      Start(instance, event.op);
      continue;
    }
    if (instance.state[event.op] & kCompleted) continue;
    instance.state[event.op] |= kCompleted;
    Arm(instance, plan_->slice_ops().ops[event.op].after_completion);
    if (--instance.remaining > 0) continue;
    for (const Kept& kept : instance.kept) wire_.Release(kept.rank, kept.handle);
    instance.kept.clear();
    ++finished_;
    const auto it = std::find_if(active_.begin(), active_.end(),
                                 [&](const auto& a) { return a.get() == &instance; });
    unused_.push_back(std::move(*it));
    active_.erase(it);
    if (table_ != nullptr && !complete_ && finished_ == slice_count_) CompleteTable();
    if (status_.ok()) Admit();
  }
  // Last, while the peers send: they have been told that this process is ready.
  if (std::exchange(owe_own_, false)) table_->CopyOwn();
  draining_ = false;
}

void SliceRun::Arm(Instance& instance, const std::vector<int32_t>& ops) {
  for (const int32_t op : ops) {
    if (--instance.waits[op] == 0) events_.push_back({&instance, op, false});
  }
}

void SliceRun::Start(Instance& instance, int32_t index) {
  const SliceOp& op = plan_->slice_ops().ops[index];
  instance.state[index] |= kStarted;
  Arm(instance, op.after_start);
  switch (op.kind) {
    case SliceOp::Kind::kNothing:
    case SliceOp::Kind::kMove: {
      if (op.partner >= 0 && !(instance.state[op.partner] & kStarted)) return;
      const int32_t mover = op.partner >= 0 && op.kind == SliceOp::Kind::kNothing &&
                                    plan_->slice_ops().ops[op.partner].kind == SliceOp::Kind::kMove
                                ? op.partner
                                : index;
      const SliceOp& move = plan_->slice_ops().ops[mover];
      if (move.kind == SliceOp::Kind::kMove) plan_->Move(move, nullptr, MemoryOf(instance));
      Complete(instance, index);
      if (op.partner >= 0) Complete(instance, op.partner);
      return;
    }
    case SliceOp::Kind::kSend: {
      const auto ready = early_ready_.find({instance.slice, op.key});
      if (ready != early_ready_.end()) {
        early_ready_.erase(ready);
        instance.state[index] |= kReady;
      }
      TrySend(instance, index);
      return;
    }
    case SliceOp::Kind::kReceive:
    case SliceOp::Kind::kInPlace: {
      const MessageId id{instance.slice, op.key};
      if (Absent(instance.slice, op)) return Complete(instance, index);
      if (!Eager(instance.slice, op)) {
        wire_.SendReady(*this, op.peer, id);
        if (BytesOf(instance.slice, op) == 0) Complete(instance, index);
        return;
      }
      const auto early = early_data_.find(id);
      if (early == early_data_.end()) {
        if (requests_.erase(id) != 0) wire_.SendReady(*this, op.peer, id);
        return;
      }
      Take(instance, index, early->second.data());
      early_data_.erase(early);
      return;
    }
  }
}

void SliceRun::TrySend(Instance& instance, int32_t index) {
  const SliceOp& op = plan_->slice_ops().ops[index];
  uint8_t& state = instance.state[index];
  if (!(state & kStarted) || (state & kSending)) return;
  const bool absent = Absent(instance.slice, op);
  if (!absent && !(state & kReady) && !Eager(instance.slice, op)) return;
  state |= kSending;
  if (absent || (table_ != nullptr && BytesOf(instance.slice, op) == 0)) {
    return Complete(instance, index);
  }
  wire_.SendData(*this, op.peer, instance.slice, index);
}

// The message goes where the op wants it: it is not needed after this.
void SliceRun::Take(Instance& instance, int32_t index, const std::byte* message) {
  const SliceOp& op = plan_->slice_ops().ops[index];
  if (table_ != nullptr) {
    table_->Take(instance.slice, PeerOf(op), message);
  } else {
    plan_->Move(op, message, MemoryOf(instance));
  }
  Complete(instance, index);
}

bool SliceRun::OnReady(const MessageId& id) {
  const auto it = plan_->slice_ops().messages.find(id.key);
  if (it == plan_->slice_ops().messages.end() || id.slice < 0 ||
      plan_->slice_ops().ops[it->second].kind != SliceOp::Kind::kSend) {
    return false;
  }
  if (!status_.ok()) return true;
  int32_t slices = slice_count_;
  if (table_ != nullptr) {
    const int32_t peer = PeerOf(plan_->slice_ops().ops[it->second]);
    slices = table_->SlicesTo(peer);
    accepted_[peer] = accepted_[peer] || !table_->IsHeader(id.slice);
  }
  if (id.slice >= slices) return false;
  Instance* instance = Find(id.slice);
  if (Eager(id.slice, plan_->slice_ops().ops[it->second])) {  // it answers a request
    if (instance == nullptr || !(instance->state[it->second] & kHeld)) return false;
    instance->state[it->second] ^= kHeld | kReady;
    wire_.SendData(*this, plan_->slice_ops().ops[it->second].peer, id.slice, it->second);
    Drain();
    return true;
  }
  if (instance == nullptr || !(instance->state[it->second] & kStarted)) {
    early_ready_.insert(id);
    return true;
  }
  instance->state[it->second] |= kReady;
  TrySend(*instance, it->second);
  Drain();
  return true;
}

bool SliceRun::Hold(int32_t slice, int32_t op) {
  if (slice == kRefusal) return false;
  uint8_t& state = Find(slice)->state[op];
  if (state & kReady) return false;
  state |= kHeld;
  return true;
}

bool SliceRun::OnRequest(const MessageId& id) {
  const auto it = plan_->slice_ops().messages.find(id.key);
  if (it == plan_->slice_ops().messages.end() || id.slice < 0 || id.slice >= slice_count_) {
    return false;
  }
  if (!status_.ok()) return true;
  const SliceOp& op = plan_->slice_ops().ops[it->second];
  if (op.kind == SliceOp::Kind::kSend || !Eager(id.slice, op)) return false;
  Instance* const instance = Find(id.slice);
  if (instance == nullptr || !(instance->state[it->second] & kStarted)) {
    requests_.insert(id);
  } else if (instance->state[it->second] & kCompleted) {
    return false;
  } else {
    wire_.SendReady(*this, op.peer, id);
  }
  return true;
}

SliceRun::Taken SliceRun::OnData(const MessageId& id, const std::byte* message, size_t bytes,
                                 std::optional<uint64_t> handle) {
  const auto it = plan_->slice_ops().messages.find(id.key);
  if (it == plan_->slice_ops().messages.end()) return Taken::kUnknown;
  const int32_t index = it->second;
  const SliceOp& op = plan_->slice_ops().ops[index];
  if (op.kind == SliceOp::Kind::kSend) return Taken::kUnknown;
  if (!status_.ok()) return Taken::kAtOnce;
  if (id.slice == kRefusal && table_ != nullptr) return TakeRefusal(op, message, bytes);
  if (id.slice < 0 || id.slice >= slice_count_ || BytesOf(id.slice, op) != bytes) {
    return Taken::kUnknown;
  }
  Instance* instance = Find(id.slice);
  if (instance == nullptr || !(instance->state[index] & kStarted)) {
    if (!Eager(id.slice, op)) return Taken::kUnknown;  // nobody asked for it
    early_data_[id].assign(message, message + bytes);
    return Taken::kAtOnce;
  }
  if (instance->state[index] & kCompleted) return Taken::kUnknown;
  Taken taken = Taken::kAtOnce;
  if (op.kind == SliceOp::Kind::kInPlace && handle && wire_.MayKeep(op.peer)) {
    instance->landed[index] = message;
    instance->kept.push_back({op.peer, *handle});
    Complete(*instance, index);
    taken = Taken::kKept;
  } else {
    Take(*instance, index, message);
  }
  Drain();
  return taken;
}

void SliceRun::OnSent(int32_t slice, int32_t op) {
  if (slice == kRefusal) {
    --refusals_left_;
  } else if (Instance* instance = Find(slice)) {
    Complete(*instance, op);
    Drain();
  }
}

void SliceRun::Write(int32_t slice, int32_t op, std::byte* message) const {
  const SliceOp& send = plan_->slice_ops().ops[op];
  if (table_ == nullptr) {
    plan_->Gather(send, message, MemoryOf(*Find(slice)));
  } else if (slice == kRefusal) {
    std::memcpy(message, &*fault_, sizeof(*fault_));
  } else {
    table_->Write(slice, PeerOf(send), message);
  }
}

const std::byte* SliceRun::Contiguous(int32_t slice, int32_t op) const {
  if (table_ != nullptr) return nullptr;
  return plan_->Contiguous(plan_->slice_ops().ops[op], MemoryOf(*Find(slice)));
}

std::vector<int32_t> SliceRun::WaitingFor() const {
  std::set<int32_t> ranks;
  const auto add = [&](const SliceOp& op) {
    if (table_ == nullptr) {
      ranks.insert(op.peer);
      return;
    }
    const std::vector<int32_t>& all = plan_->ragged()->peers()[PeerOf(op)];
    ranks.insert(all.begin(), all.end());
  };
  for (const std::unique_ptr<Instance>& instance : active_) {
    for (size_t index = 0; index < instance->state.size(); ++index) {
      const SliceOp& op = plan_->slice_ops().ops[index];
      const uint8_t state = instance->state[index];
      if (!(state & kStarted) || (state & kCompleted)) continue;
      if (op.kind != SliceOp::Kind::kNothing && op.kind != SliceOp::Kind::kMove) {
        add(op);
      }
    }
  }
  return {ranks.begin(), ranks.end()};
}

// ---- Ragged ------------------------------------------------------------------------------------

int32_t SliceRun::PeerOf(const SliceOp& op) const { return plan_->ragged()->PeerOf(op.peer); }

size_t SliceRun::BytesOf(int32_t slice, const SliceOp& op) const {
  if (table_ == nullptr) return plan_->MessageBytes(slice, op);
  if (slice == kRefusal) return sizeof(RaggedFault);
  return table_->MessageBytes(slice, PeerOf(op), op.kind == SliceOp::Kind::kSend);
}

bool SliceRun::Absent(int32_t slice, const SliceOp& op) const {
  return table_ != nullptr && slice != plan_->ragged()->header_slices() && BytesOf(slice, op) == 0;
}

void SliceRun::CompleteTable() {
  complete_ = true;
  if (const auto fault = table_->Complete()) return Refuse(*fault);
  slice_count_ = table_->slice_count();
  owe_own_ = true;
}

void SliceRun::Refuse(const RaggedFault& fault) {
  fault_ = fault;
  status_ = InvalidArgument(plan_->ragged()->Describe(fault));
  refusals_left_ = static_cast<int32_t>(accepted_.size());
  const std::vector<SliceOp>& ops = plan_->slice_ops().ops;
  for (size_t op = 0; op < ops.size(); ++op) {
    if (ops[op].kind != SliceOp::Kind::kSend) continue;
    wire_.SendData(*this, ops[op].peer, kRefusal, static_cast<int32_t>(op));
  }
}

Run::Taken SliceRun::TakeRefusal(const SliceOp& op, const std::byte* message, size_t bytes) {
  RaggedFault fault;
  if (bytes != sizeof(fault) || accepted_[PeerOf(op)]) return Taken::kUnknown;
  std::memcpy(&fault, message, bytes);
  const int64_t ranks = plan_->ragged()->world_size();
  for (const int64_t rank : {fault.from, fault.to}) {
    if (rank < 0 || rank >= ranks) return Taken::kUnknown;
  }
  status_ = InvalidArgument(plan_->ragged()->Describe(fault));
  return Taken::kAtOnce;
}

}  // namespace jaxcoll
