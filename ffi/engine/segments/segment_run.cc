#include "engine/segments/segment_run.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace jaxcoll {
namespace {

// Segments in flight: enough that a message is under way while another is added up, few enough that
// what they touch stays in cache. Four processes on two cores, 64 MiB: 64 ms with four segments of
// six messages each, 48 ms with two.
constexpr size_t kInFlightBytes = 3 << 19;
constexpr size_t kInFlightLeast = 2;
constexpr size_t kInFlightMost = 4;

}  // namespace

int32_t SegmentPlan::in_flight() const {
  size_t bytes = 1;
  for (const SegmentOp& op : program().ops) {
    if (op.kind == SegmentOp::Kind::kSend && segment_count() > 0) bytes += MessageBytes(0, op);
  }
  return static_cast<int32_t>(std::clamp(kInFlightBytes / bytes, kInFlightLeast, kInFlightMost));
}

std::unique_ptr<Run> SegmentPlan::MakeRun(MemberBuffers buffers, Wire& wire) const {
  return std::make_unique<SegmentRun>(shared_from_this(), std::move(buffers), wire);
}

SegmentRun::SegmentRun(std::shared_ptr<const SegmentPlan> plan, MemberBuffers buffers, Wire& wire)
    : plan_(std::move(plan)),
      buffers_(std::move(buffers)),
      wire_(wire),
      in_flight_(plan_->in_flight()),
      segment_count_(plan_->segment_count()) {
  if (plan_->ragged() == nullptr) return;
  table_ = std::make_unique<RaggedTable>(*plan_->ragged(), buffers_);
  segment_count_ = table_->segment_count();
  accepted_.resize(plan_->ragged()->peers().size());
}

SegmentRun::~SegmentRun() {
  for (const std::unique_ptr<Instance>& instance : active_) {
    for (const Kept& kept : instance->kept) wire_.Release(kept.rank, kept.handle);
    wire_.scratch().Give(std::move(instance->scratch));
  }
  for (const std::unique_ptr<Instance>& instance : unused_) {
    wire_.scratch().Give(std::move(instance->scratch));
  }
}

void SegmentRun::Begin() {
  if (table_ != nullptr) {
    if (const auto fault = table_->FillOwn()) return Refuse(*fault);
  }
  plan_->ClearUnwritten(buffers_);
  Admit();
  Drain();
}

SegmentRun::Instance* SegmentRun::Find(int32_t segment) const {
  for (const std::unique_ptr<Instance>& instance : active_) {
    if (instance->segment == segment) return instance.get();
  }
  return nullptr;
}

void SegmentRun::Admit() {
  const SegmentProgram& program = plan_->program();
  while (static_cast<int32_t>(active_.size()) < in_flight_ && admitted_ < segment_count_) {
    std::unique_ptr<Instance> instance;
    if (!unused_.empty()) {
      instance = std::move(unused_.back());
      unused_.pop_back();
    } else {
      instance = std::make_unique<Instance>();
      instance->scratch = wire_.scratch().Take(plan_->scratch_bytes());
    }
    instance->segment = admitted_++;
    instance->remaining = static_cast<int32_t>(program.ops.size());
    instance->waits.resize(program.ops.size());
    for (size_t op = 0; op < program.ops.size(); ++op) {
      instance->waits[op] = program.ops[op].waits;
    }
    instance->state.assign(program.ops.size(), 0);
    instance->landed.assign(program.ops.size(), nullptr);
    Instance& added = *instance;
    active_.push_back(std::move(instance));
    if (program.ops.empty()) {
      active_.pop_back();
      ++finished_;
      continue;
    }
    for (size_t op = 0; op < program.ops.size(); ++op) {
      if (program.ops[op].waits == 0) events_.push_back({&added, static_cast<int32_t>(op), false});
    }
  }
}

// Events are queued rather than called so that a long chain of ops does not become a deep stack.
void SegmentRun::Drain() {
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
    Arm(instance, plan_->program().ops[event.op].after_completion);
    if (--instance.remaining > 0) continue;
    for (const Kept& kept : instance.kept) wire_.Release(kept.rank, kept.handle);
    instance.kept.clear();
    ++finished_;
    const auto it = std::find_if(active_.begin(), active_.end(),
                                 [&](const auto& a) { return a.get() == &instance; });
    unused_.push_back(std::move(*it));
    active_.erase(it);
    if (table_ != nullptr && !complete_ && finished_ == segment_count_) CompleteTable();
    if (status_.ok()) Admit();
  }
  // Last, while the peers send: they have been told that this process is ready.
  if (std::exchange(owe_own_, false)) table_->CopyOwn();
  draining_ = false;
}

void SegmentRun::Arm(Instance& instance, const std::vector<int32_t>& ops) {
  for (const int32_t op : ops) {
    if (--instance.waits[op] == 0) events_.push_back({&instance, op, false});
  }
}

void SegmentRun::Start(Instance& instance, int32_t index) {
  const SegmentOp& op = plan_->program().ops[index];
  instance.state[index] |= kStarted;
  Arm(instance, op.after_start);
  switch (op.kind) {
    case SegmentOp::Kind::kNothing:
    case SegmentOp::Kind::kMove: {
      if (op.partner >= 0 && !(instance.state[op.partner] & kStarted)) return;
      const int32_t mover = op.partner >= 0 && op.kind == SegmentOp::Kind::kNothing &&
                                    plan_->program().ops[op.partner].kind == SegmentOp::Kind::kMove
                                ? op.partner
                                : index;
      const SegmentOp& move = plan_->program().ops[mover];
      if (move.kind == SegmentOp::Kind::kMove) plan_->Move(move, nullptr, PlaceOf(instance));
      Complete(instance, index);
      if (op.partner >= 0) Complete(instance, op.partner);
      return;
    }
    case SegmentOp::Kind::kSend: {
      const auto ready = early_ready_.find({instance.segment, op.key});
      if (ready != early_ready_.end()) {
        early_ready_.erase(ready);
        instance.state[index] |= kReady;
      }
      TrySend(instance, index);
      return;
    }
    case SegmentOp::Kind::kReceive:
    case SegmentOp::Kind::kInPlace: {
      const MessageId id{instance.segment, op.key};
      if (Absent(instance.segment, op)) return Complete(instance, index);
      if (!Eager(instance.segment, op)) {
        wire_.SendReady(*this, op.peer, id);
        if (BytesOf(instance.segment, op) == 0) Complete(instance, index);
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

void SegmentRun::TrySend(Instance& instance, int32_t index) {
  const SegmentOp& op = plan_->program().ops[index];
  uint8_t& state = instance.state[index];
  if (!(state & kStarted) || (state & kSending)) return;
  const bool absent = Absent(instance.segment, op);
  if (!absent && !(state & kReady) && !Eager(instance.segment, op)) return;
  state |= kSending;
  if (absent || (table_ != nullptr && BytesOf(instance.segment, op) == 0)) {
    return Complete(instance, index);
  }
  wire_.SendData(*this, op.peer, instance.segment, index);
}

// The message goes where the op wants it: it is not needed after this.
void SegmentRun::Take(Instance& instance, int32_t index, const std::byte* message) {
  const SegmentOp& op = plan_->program().ops[index];
  if (table_ != nullptr) {
    table_->Take(instance.segment, PeerOf(op), message);
  } else {
    plan_->Move(op, message, PlaceOf(instance));
  }
  Complete(instance, index);
}

bool SegmentRun::OnReady(const MessageId& id) {
  const auto it = plan_->program().messages.find(id.key);
  if (it == plan_->program().messages.end() || id.segment < 0 ||
      plan_->program().ops[it->second].kind != SegmentOp::Kind::kSend) {
    return false;
  }
  if (!status_.ok()) return true;
  int32_t segments = segment_count_;
  if (table_ != nullptr) {
    const int32_t peer = PeerOf(plan_->program().ops[it->second]);
    segments = table_->SegmentsTo(peer);
    accepted_[peer] = accepted_[peer] || !table_->IsHeader(id.segment);
  }
  if (id.segment >= segments) return false;
  Instance* instance = Find(id.segment);
  if (Eager(id.segment, plan_->program().ops[it->second])) {  // it answers a request
    if (instance == nullptr || !(instance->state[it->second] & kHeld)) return false;
    instance->state[it->second] ^= kHeld | kReady;
    wire_.SendData(*this, plan_->program().ops[it->second].peer, id.segment, it->second);
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

bool SegmentRun::Hold(int32_t segment, int32_t op) {
  if (segment == kRefusal) return false;
  uint8_t& state = Find(segment)->state[op];
  if (state & kReady) return false;
  state |= kHeld;
  return true;
}

bool SegmentRun::OnRequest(const MessageId& id) {
  const auto it = plan_->program().messages.find(id.key);
  if (it == plan_->program().messages.end() || id.segment < 0 || id.segment >= segment_count_) {
    return false;
  }
  if (!status_.ok()) return true;
  const SegmentOp& op = plan_->program().ops[it->second];
  if (op.kind == SegmentOp::Kind::kSend || !Eager(id.segment, op)) return false;
  Instance* const instance = Find(id.segment);
  if (instance == nullptr || !(instance->state[it->second] & kStarted)) {
    requests_.insert(id);
  } else if (instance->state[it->second] & kCompleted) {
    return false;
  } else {
    wire_.SendReady(*this, op.peer, id);
  }
  return true;
}

SegmentRun::Taken SegmentRun::OnData(const MessageId& id, const std::byte* message, size_t bytes,
                                     std::optional<uint64_t> handle) {
  const auto it = plan_->program().messages.find(id.key);
  if (it == plan_->program().messages.end()) return Taken::kUnknown;
  const int32_t index = it->second;
  const SegmentOp& op = plan_->program().ops[index];
  if (op.kind == SegmentOp::Kind::kSend) return Taken::kUnknown;
  if (!status_.ok()) return Taken::kAtOnce;
  if (id.segment == kRefusal && table_ != nullptr) return TakeRefusal(op, message, bytes);
  if (id.segment < 0 || id.segment >= segment_count_ || BytesOf(id.segment, op) != bytes) {
    return Taken::kUnknown;
  }
  Instance* instance = Find(id.segment);
  if (instance == nullptr || !(instance->state[index] & kStarted)) {
    if (!Eager(id.segment, op)) return Taken::kUnknown;  // nobody asked for it
    early_data_[id].assign(message, message + bytes);
    return Taken::kAtOnce;
  }
  if (instance->state[index] & kCompleted) return Taken::kUnknown;
  Taken taken = Taken::kAtOnce;
  if (op.kind == SegmentOp::Kind::kInPlace && handle && wire_.MayKeep(op.peer)) {
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

void SegmentRun::OnSent(int32_t segment, int32_t op) {
  if (segment == kRefusal) {
    --refusals_left_;
  } else if (Instance* instance = Find(segment)) {
    Complete(*instance, op);
    Drain();
  }
}

void SegmentRun::Write(int32_t segment, int32_t op, std::byte* message) const {
  const SegmentOp& send = plan_->program().ops[op];
  if (table_ == nullptr) {
    plan_->Gather(send, message, PlaceOf(*Find(segment)));
  } else if (segment == kRefusal) {
    std::memcpy(message, &*fault_, sizeof(*fault_));
  } else {
    table_->Write(segment, PeerOf(send), message);
  }
}

const std::byte* SegmentRun::Contiguous(int32_t segment, int32_t op) const {
  if (table_ != nullptr) return nullptr;
  return plan_->Contiguous(plan_->program().ops[op], PlaceOf(*Find(segment)));
}

std::vector<int32_t> SegmentRun::WaitingFor() const {
  std::set<int32_t> ranks;
  const auto add = [&](const SegmentOp& op) {
    if (table_ == nullptr) {
      ranks.insert(op.peer);
      return;
    }
    const std::vector<int32_t>& all = plan_->ragged()->peers()[PeerOf(op)];
    ranks.insert(all.begin(), all.end());
  };
  for (const std::unique_ptr<Instance>& instance : active_) {
    for (size_t index = 0; index < instance->state.size(); ++index) {
      const SegmentOp& op = plan_->program().ops[index];
      const uint8_t state = instance->state[index];
      if (!(state & kStarted) || (state & kCompleted)) continue;
      if (op.kind != SegmentOp::Kind::kNothing && op.kind != SegmentOp::Kind::kMove) {
        add(op);
      }
    }
  }
  return {ranks.begin(), ranks.end()};
}

// ---- Ragged ------------------------------------------------------------------------------------

int32_t SegmentRun::PeerOf(const SegmentOp& op) const { return plan_->ragged()->PeerOf(op.peer); }

size_t SegmentRun::BytesOf(int32_t segment, const SegmentOp& op) const {
  if (table_ == nullptr) return plan_->MessageBytes(segment, op);
  if (segment == kRefusal) return sizeof(RaggedFault);
  return table_->MessageBytes(segment, PeerOf(op), op.kind == SegmentOp::Kind::kSend);
}

bool SegmentRun::Absent(int32_t segment, const SegmentOp& op) const {
  return table_ != nullptr && segment != plan_->ragged()->header_segments() &&
         BytesOf(segment, op) == 0;
}

void SegmentRun::CompleteTable() {
  complete_ = true;
  if (const auto fault = table_->Complete()) return Refuse(*fault);
  segment_count_ = table_->segment_count();
  owe_own_ = true;
}

void SegmentRun::Refuse(const RaggedFault& fault) {
  fault_ = fault;
  status_ = InvalidArgument(plan_->ragged()->Describe(fault));
  refusals_left_ = static_cast<int32_t>(accepted_.size());
  const std::vector<SegmentOp>& ops = plan_->program().ops;
  for (size_t op = 0; op < ops.size(); ++op) {
    if (ops[op].kind != SegmentOp::Kind::kSend) continue;
    wire_.SendData(*this, ops[op].peer, kRefusal, static_cast<int32_t>(op));
  }
}

Run::Taken SegmentRun::TakeRefusal(const SegmentOp& op, const std::byte* message, size_t bytes) {
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
