#include "sim/simulation.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "sim/limits.h"

namespace jaxcoll::sim {
namespace {

// How often to ask whether to go on.
constexpr uint64_t kEventsPerQuestion = 1 << 18;

}  // namespace

double Deviate(uint64_t seed) {
  double sum = -6;
  for (uint64_t i = 0; i < 3; ++i) {
    const uint64_t bits = Mix(seed, i);
    for (int piece = 0; piece < 64; piece += 16) {
      sum += static_cast<double>(bits >> piece & 0xffff) / 65536.0 + 0.5 / 65536.0;
    }
  }
  return sum;
}

StatusOr<Result> Simulation::Run() {
  const uint32_t ops = graph_.op_count();
  missing_.resize(ops);
  for (uint32_t op = 0; op < ops; ++op) missing_[op] = graph_.node(op).dependencies;
  const int32_t ranks = graph_.world_size();
  first_chain_.assign(ranks + 1, 0);
  for (const Graph::Chain& chain : graph_.chains()) {
    head_.push_back(chain.begin);
    ++first_chain_[chain.rank + 1];
  }
  for (int32_t r = 0; r < ranks; ++r) first_chain_[r + 1] += first_chain_[r];
  last_port_.resize(head_.size());
  begun_.assign(ranks, 0);
  busy_until_.assign(ranks, 0);
  result_.rank_time.assign(ranks, 0);
  ops_left_ = ops;

  for (size_t i = 0; i < p_.changes.size(); ++i) {
    At(p_.changes[i].time, Event::kChange, static_cast<uint32_t>(i));
  }
  for (size_t i = 0; i < p_.background.size(); ++i) {
    At(p_.background[i].time, Event::kBackground, static_cast<uint32_t>(i));
  }
  for (int32_t r = 0; r < ranks; ++r) {
    At(p_.start.empty() ? 0 : p_.start[r], Event::kStart, static_cast<uint32_t>(r));
  }

  uint64_t asked = 0;
  while (ops_left_ > 0) {
    if (timers_.empty() && ends_.empty()) return Stuck();
    now_ = NextTime();
    ProcessNow();
    if (Failed()) return status_;
    UpdateRates();
    if (p_.interrupted && result_.event_count - asked >= kEventsPerQuestion) {
      asked = result_.event_count;
      if (p_.interrupted()) return Status(StatusCode::kCancelled, "the simulation was interrupted");
    }
  }
  for (size_t id = 0; id < flows_.size(); ++id) {  // background traffic that is still in flight
    Flow& flow = flows_[id];
    if (!flow.route) continue;
    Settle(flow);
    EnterBytes(flow, Moved(flow));
  }
  if (Failed()) return status_;
  if (Status s = ledger_.Check(now_); !s.ok()) return s;
  if (Status s = CheckTotals(); !s.ok()) return s;
  result_.time = *std::max_element(result_.rank_time.begin(), result_.rank_time.end());
  result_.link_bytes = ledger_.link_bytes();
  return std::move(result_);
}

void Simulation::At(Time time, Event event, uint32_t what) {
  if (time > kMostTime) {
    Fail(TimeOutOfRange("an event happens after", static_cast<double>(time)));
    return;
  }
  timers_.push({time, order_++, event, what});
}

Time Simulation::NextTime() const {
  return std::min(timers_.empty() ? kNever : timers_.top().time,
                  ends_.empty() ? kNever : ends_.top().end);
}

void Simulation::HandleNow() {
  while (!ends_.empty() && ends_.top().end == now_) {
    const int32_t id = ends_.top().flow;
    ++result_.event_count;
    FlowEnded(id);
  }
  while (!timers_.empty() && timers_.top().time == now_) {
    const Timer timer = timers_.top();
    timers_.pop();
    ++result_.event_count;
    Handle(timer);
  }
}

// Everything that happens at now_, or so soon after that it counts as together; afterwards rates
// are out of date.
void Simulation::ProcessNow() {
  const Time until = now_ + kTie;
  do {
    HandleNow();
    for (Time next = NextTime(); next <= until; next = NextTime()) {
      now_ = next;
      HandleNow();
      if (Failed()) return;
    }
    AdaptFlows();
    Dispatch();
    if (Failed()) return;
  } while (NextTime() == now_);
  GiveWork();
}

void Simulation::Handle(const Timer& timer) {
  switch (timer.event) {
    case Event::kStart:
      BeginRank(static_cast<int32_t>(timer.what));
      break;
    case Event::kArrived:
      Arrived(static_cast<int32_t>(timer.what));
      break;
    case Event::kDone:
      Complete(timer.what);
      Drain();
      break;
    case Event::kChange:
      ChangeLink(p_.changes[timer.what]);
      break;
    case Event::kBackground:
      BeginBackground(static_cast<int32_t>(timer.what));
      break;
  }
}

// --- ops -----------------------------------------------------------------------------------------

void Simulation::BeginRank(int32_t rank) {
  begun_[rank] = 1;
  result_.rank_time[rank] = now_;
  for (uint32_t chain = first_chain_[rank]; chain < first_chain_[rank + 1]; ++chain) Advance(chain);
  Drain();
}

// Starts the ops of a chain that may start.
void Simulation::Advance(uint32_t chain) {
  const uint32_t end = graph_.chains()[chain].end;
  while (head_[chain] < end && missing_[head_[chain]] == 0) Start(head_[chain]++);
}

void Simulation::Start(uint32_t op) {
  switch (graph_.kind(op)) {
    case OpKind::kCopy:
      Compute(op, p_.copy_ps_per_byte * static_cast<double>(Bytes(op)));
      return;
    case OpKind::kReduce:
      Compute(op, p_.reduce_ps_per_byte * static_cast<double>(Bytes(op)) * (graph_.arity(op) - 1));
      return;
    case OpKind::kSend:
    case OpKind::kRecv:
    case OpKind::kRecvReduce:
      break;
  }
  const uint32_t mate = graph_.node(op).mate;
  if (mate < head_[graph_.node(mate).chain]) {
    Ready(graph_.kind(op) == OpKind::kSend ? op : mate);
  }
}

// Completing an op may start others that complete at once: a list, not recursion, since a chain of
// copies may be long.
void Simulation::Complete(uint32_t op) { completed_.push_back(op); }

void Simulation::Drain() {
  while (!completed_.empty()) {
    const uint32_t op = completed_.back();
    completed_.pop_back();
    --ops_left_;
    result_.rank_time[Rank(op)] = now_;
    for (uint32_t dependent : graph_.dependents(op)) {
      if (--missing_[dependent] > 0) continue;
      const uint32_t chain = graph_.node(dependent).chain;
      if (head_[chain] == dependent && begun_[Rank(dependent)]) Advance(chain);
    }
  }
}

// How long `ps` of work takes this op's rank.
Time Simulation::Worked(uint32_t op, double ps) {
  if (ps <= 0) return 0;
  if (!p_.slowdown.empty()) ps *= p_.slowdown[Rank(op)];
  if (p_.jitter > 0) ps *= std::max(0.0, 1 + p_.jitter * Deviate(Mix(p_.seed, op)));
  if (!(ps <= static_cast<double>(kMostTime))) {
    Fail(TimeOutOfRange("an op of rank " + std::to_string(Rank(op)) + " takes", ps));
    return 0;
  }
  return std::llround(ps);
}

void Simulation::Compute(uint32_t op, double ps, int32_t message) {
  const Time duration = Worked(op, ps);
  if (duration > 0) {
    work_.push_back({op, duration, message});
    return;
  }
  if (message != kNone) Received(message, now_);
  Complete(op);
}

// The rank's one unit for reductions and copies takes them in the order in which they come, and in
// program order where they come together: so not before all of them have.
void Simulation::GiveWork() {
  if (work_.size() > 1) {
    std::sort(work_.begin(), work_.end(), [](const Work& a, const Work& b) { return a.op < b.op; });
  }
  for (const Work& work : work_) {
    Time& busy_until = busy_until_[Rank(work.op)];
    busy_until = After(std::max(busy_until, now_), work.duration);
    At(busy_until, Event::kDone, work.op);
    if (work.message != kNone) Received(work.message, busy_until);
  }
  work_.clear();
}

// --- the end -------------------------------------------------------------------------------------

Status Simulation::Stuck() const {
  for (const Flow& flow : flows_) {
    if (!flow.route || flow.background != kNone || flow.rate <= 0) continue;
    const auto [source, destination] = Ends(flow);
    return TimeOutOfRange("a message from " + network_.node_names[source] + " to " +
                              network_.node_names[destination] + " ends after",
                          static_cast<double>(now_) + flow.left / flow.rate);
  }
  for (size_t chain = 0; chain < head_.size(); ++chain) {
    const uint32_t op = head_[chain];
    if (op == graph_.chains()[chain].end) continue;
    return InvalidArgument("the schedule deadlocks: rank " + std::to_string(Rank(op)) +
                           " never starts its op of step " + std::to_string(graph_.node(op).step) +
                           "; " + std::to_string(ops_left_) + " ops are left");
  }
  return InvalidArgument("the schedule deadlocks: " + std::to_string(ops_left_) +
                         " ops never complete");
}

// Every endpoint has sent and received what the programs say.
Status Simulation::CheckTotals() const {
  std::vector<int64_t> sent(network_.node_names.size(), 0), received = sent;
  for (uint32_t op = 0; op < graph_.op_count(); ++op) {
    switch (graph_.kind(op)) {
      case OpKind::kSend:
        sent[node_of_[Rank(op)]] += Bytes(op);
        break;
      case OpKind::kRecv:
      case OpKind::kRecvReduce:
        received[node_of_[Rank(op)]] += Bytes(op);
        break;
      case OpKind::kCopy:
      case OpKind::kReduce:
        break;
    }
  }
  for (size_t node = 0; node < sent.size() && p_.background.empty(); ++node) {
    if (sent[node] != ledger_.sent()[node] || received[node] != ledger_.received()[node]) {
      return Status(StatusCode::kInternal, "simulator: " + network_.node_names[node] +
                                               " exchanged other bytes than its program says");
    }
  }
  return {};
}

}  // namespace jaxcoll::sim
