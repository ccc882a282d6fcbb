#include "sim/simulator.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <queue>
#include <string>
#include <unordered_map>
#include <utility>

#include "sim/fair_share.h"
#include "sim/flow_heap.h"
#include "sim/ledger.h"

namespace jaxcoll::sim {
namespace {

constexpr Time kNever = std::numeric_limits<Time>::max();
constexpr int32_t kNone = -1;
// How often to ask whether to go on.
constexpr uint64_t kEventsPerQuestion = 1 << 18;

// Nearly normal, mean 0 and variance 1: the sum of twelve uniform draws (exact on any machine).
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

class Simulation {
 public:
  Simulation(const Graph& graph, Network network, const std::vector<int32_t>& node_of,
             std::vector<int64_t> extent_bytes, const Parameters& parameters)
      : graph_(graph),
        network_(std::move(network)),
        node_of_(node_of),
        extent_bytes_(std::move(extent_bytes)),
        p_(parameters),
        router_(network_, parameters.routing, parameters.seed),
        share_(network_),
        ledger_(network_) {}

  StatusOr<Result> Run();

 private:
  // --- what happens ---
  enum class Event : uint8_t { kStart, kArrived, kDone, kChange, kBackground };
  struct Timer {
    Time time;
    uint64_t order;
    Event event;
    uint32_t what;  // rank, message, op, change or background flow
    bool operator>(const Timer& other) const {
      return time != other.time ? time > other.time : order > other.order;
    }
  };

  struct Message {
    uint32_t send = 0;
    int32_t port = kNone;
    int32_t parts = 0;  // still flowing
    Time arrival = 0;   // of what has left so far
    MessageRecord record;
  };

  // A message, or part of one, or its overhead, on its way; by the id that FairShare gave it.
  struct Flow {
    std::shared_ptr<const Route> route;
    int32_t message = kNone;  // or background
    int32_t background = kNone;
    int32_t part = 0;
    bool overhead = false;
    int64_t bytes = 0;  // on this route
    double left = 0;    // bytes at `since`
    double rate = 0;
    Time since = 0;
    uint64_t order = 0;
  };

  // The messages of one chain that leave by one link.
  struct Port {
    int32_t active = 0;
    bool touched = false;
    std::vector<std::pair<uint32_t, int32_t>> waiting;  // heap by op, which is program order
  };

  void At(Time time, Event event, uint32_t what) { timers_.push({time, order_++, event, what}); }
  bool Failed() const { return !status_.ok(); }
  void Fail(Status status) {
    if (status_.ok()) status_ = std::move(status);
  }
  int32_t Rank(uint32_t op) const { return graph_.chain_of(op).rank; }
  int64_t Bytes(uint32_t op) const { return extent_bytes_[graph_.node(op).extent]; }

  void ProcessNow();
  void Handle(const Timer& timer);
  void BeginRank(int32_t rank);
  void Advance(uint32_t chain);
  void Start(uint32_t op);
  void Complete(uint32_t op);
  void Drain();
  Time Worked(uint32_t op, double ps);
  void Compute(uint32_t op, double ps);

  void Ready(uint32_t send);
  void Dispatch();
  void Begin(int32_t message);
  void BeginData(int32_t message);
  void PartLeft(int32_t message, Time latency);
  void Arrived(int32_t message);

  std::shared_ptr<const Route> FindRoute(int32_t source, int32_t destination, int32_t channel,
                                         int32_t part);
  int32_t PortOf(uint32_t chain, const std::shared_ptr<const Route>& route);
  int32_t AddFlow(Flow flow);
  void RemoveFlow(int32_t id);
  void Settle(Flow& flow) const;
  void FlowEnded(int32_t id);
  void ChangeLink(const LinkChange& change);
  void RerouteAll();
  void Reroute(int32_t id);
  void UpdateRates();
  void EnterBytes(const Flow& flow, int64_t bytes);
  std::pair<int32_t, int32_t> Ends(const Flow& flow) const;
  Status Stuck() const;
  Status CheckTotals() const;

  const Graph& graph_;
  Network network_;
  const std::vector<int32_t>& node_of_;
  const std::vector<int64_t> extent_bytes_;
  const Parameters& p_;
  Router router_;
  FairShare share_;
  Ledger ledger_;
  Status status_;

  Time now_ = 0;
  uint64_t order_ = 0;
  std::priority_queue<Timer, std::vector<Timer>, std::greater<>> timers_;
  FlowHeap ends_;

  std::vector<uint32_t> missing_;      // by op: dependencies not completed
  std::vector<uint32_t> head_;         // by chain: the next op to start
  std::vector<uint32_t> first_chain_;  // by rank, and the end
  std::vector<uint8_t> begun_;         // by rank
  std::vector<Time> busy_until_;       // by rank: the unit that reduces and copies
  std::vector<uint32_t> completed_;    // work list
  uint64_t ops_left_ = 0;

  std::vector<Message> messages_;
  std::vector<int32_t> free_messages_;
  std::vector<Flow> flows_;
  std::vector<Port> ports_;
  struct LastPort {
    std::shared_ptr<const Route> route;
    int32_t port = kNone;
  };
  std::vector<LastPort> last_port_;                    // by chain: spares most look-ups
  std::unordered_map<uint64_t, int32_t> port_ids_;     // (chain, first link or set of them)
  std::map<std::vector<int32_t>, int32_t> port_sets_;  // where a message leaves by several links
  std::vector<int32_t> touched_ports_;
  std::vector<int32_t> failed_links_;
  Result result_;
};

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
    now_ = std::min(timers_.empty() ? kNever : timers_.top().time,
                    ends_.empty() ? kNever : ends_.top().end);
    ProcessNow();
    if (Failed()) return status_;
    UpdateRates();
    if (p_.interrupted && result_.event_count - asked >= kEventsPerQuestion) {
      asked = result_.event_count;
      if (p_.interrupted()) return Status(StatusCode::kCancelled, "the simulation was interrupted");
    }
  }
  for (size_t id = 0; id < flows_.size(); ++id) {  // background traffic that is still under way
    Flow& flow = flows_[id];
    if (!flow.route) continue;
    Settle(flow);
    EnterBytes(flow, flow.bytes - static_cast<int64_t>(std::ceil(flow.left)));
  }
  if (Status s = ledger_.Check(now_); !s.ok()) return s;
  if (Status s = CheckTotals(); !s.ok()) return s;
  result_.time = *std::max_element(result_.rank_time.begin(), result_.rank_time.end());
  result_.link_bytes = ledger_.link_bytes();
  return std::move(result_);
}

// Everything that happens at now_; afterwards rates are out of date.
void Simulation::ProcessNow() {
  do {
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
    RerouteAll();
    Dispatch();
    if (Failed()) return;
  } while (!timers_.empty() && timers_.top().time == now_);
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
    case Event::kBackground: {
      const Background& traffic = p_.background[timer.what];
      Flow flow;
      flow.route = FindRoute(traffic.source, traffic.destination, 0, 0);
      if (Failed() || traffic.bytes == 0) return;
      flow.background = static_cast<int32_t>(timer.what);
      flow.bytes = traffic.bytes;
      flow.left = static_cast<double>(flow.bytes);
      AddFlow(std::move(flow));
      break;
    }
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
  return std::llround(ps);
}

// The rank's one unit for reductions and copies takes them in the order in which they come.
void Simulation::Compute(uint32_t op, double ps) {
  const Time duration = Worked(op, ps);
  Time& busy_until = busy_until_[Rank(op)];
  if (duration == 0) {
    Complete(op);
    return;
  }
  busy_until = std::max(busy_until, now_) + duration;
  At(busy_until, Event::kDone, op);
}

// --- messages ------------------------------------------------------------------------------------

void Simulation::Ready(uint32_t send) {
  int32_t id;
  if (free_messages_.empty()) {
    id = static_cast<int32_t>(messages_.size());
    messages_.emplace_back();
  } else {
    id = free_messages_.back();
    free_messages_.pop_back();
  }
  const Graph::Chain& chain = graph_.chain_of(send);
  Message& message = messages_[id];
  message = {};
  message.send = send;
  message.record.step = graph_.node(send).step;
  message.record.channel = chain.channel;
  message.record.source = chain.rank;
  message.record.destination = Rank(graph_.node(send).mate);
  message.record.bytes = Bytes(send);
  message.record.ready = now_;
  const auto route = FindRoute(node_of_[message.record.source],
                               node_of_[message.record.destination], chain.channel, 0);
  if (Failed()) return;
  message.port = PortOf(graph_.node(send).chain, route);
  Port& port = ports_[message.port];
  port.waiting.emplace_back(send, id);
  std::push_heap(port.waiting.begin(), port.waiting.end(), std::greater<>());
  if (!port.touched) {
    port.touched = true;
    touched_ports_.push_back(message.port);
  }
}

int32_t Simulation::PortOf(uint32_t chain, const std::shared_ptr<const Route>& taken) {
  const Route& route = *taken;
  LastPort& last = last_port_[chain];
  if (last.route == taken) return last.port;
  int32_t port = route.hops.front().link;
  if (route.first_hops > 1) {
    std::vector<int32_t> links;
    for (int32_t h = 0; h < route.first_hops; ++h) links.push_back(route.hops[h].link);
    std::sort(links.begin(), links.end());
    const auto id = network_.link_count() + static_cast<int32_t>(port_sets_.size());
    port = port_sets_.try_emplace(std::move(links), id).first->second;
  }
  const auto [entry, is_new] = port_ids_.try_emplace(uint64_t(chain) << 32 | uint32_t(port),
                                                     static_cast<int32_t>(ports_.size()));
  if (is_new) ports_.emplace_back();
  last = {taken, entry->second};
  return last.port;
}

// Messages that became ready together are taken in program order: so not before all of them have.
void Simulation::Dispatch() {
  while (!touched_ports_.empty()) {
    std::vector<int32_t> touched;
    touched.swap(touched_ports_);
    for (int32_t id : touched) {
      ports_[id].touched = false;
      while (!ports_[id].waiting.empty() &&
             (p_.in_flight == 0 || ports_[id].active < p_.in_flight)) {
        auto& waiting = ports_[id].waiting;
        std::pop_heap(waiting.begin(), waiting.end(), std::greater<>());
        const int32_t message = waiting.back().second;
        waiting.pop_back();
        ++ports_[id].active;
        Begin(message);
        if (Failed()) return;
      }
    }
    Drain();
  }
}

void Simulation::Begin(int32_t id) {
  Message& message = messages_[id];
  message.record.sent = now_;
  const Time overhead = Worked(message.send, static_cast<double>(p_.overhead));
  if (overhead == 0) {
    BeginData(id);
    return;
  }
  Flow flow;
  flow.route = FindRoute(node_of_[message.record.source], node_of_[message.record.destination],
                         message.record.channel, 0);
  if (Failed()) return;
  flow.message = id;
  flow.overhead = true;
  flow.left = static_cast<double>(overhead) * flow.route->port_rate;
  AddFlow(std::move(flow));
}

void Simulation::BeginData(int32_t id) {
  const MessageRecord record = messages_[id].record;
  const int64_t wanted = p_.routing == Routing::kSplit ? p_.split : 1;
  const int64_t parts = std::clamp<int64_t>(record.bytes, 1, wanted);  // none of them empty
  messages_[id].arrival = now_;
  messages_[id].parts = static_cast<int32_t>(parts);
  for (int64_t part = 0; part < parts; ++part) {
    Flow flow;
    flow.route = FindRoute(node_of_[record.source], node_of_[record.destination], record.channel,
                           static_cast<int32_t>(part));
    if (Failed()) return;
    if (record.bytes == 0) {
      PartLeft(id, flow.route->latency);
      return;
    }
    flow.message = id;
    flow.part = static_cast<int32_t>(part);
    flow.bytes = record.bytes / parts + (part < record.bytes % parts ? 1 : 0);
    flow.left = static_cast<double>(flow.bytes);
    AddFlow(std::move(flow));
  }
}

void Simulation::PartLeft(int32_t id, Time latency) {
  Message& message = messages_[id];
  message.arrival = std::max(message.arrival, now_ + latency);
  if (--message.parts > 0) return;
  message.record.left = now_;
  Port& port = ports_[message.port];
  --port.active;
  if (!port.touched) {
    port.touched = true;
    touched_ports_.push_back(message.port);
  }
  At(message.arrival + p_.latency, Event::kArrived, static_cast<uint32_t>(id));
  Complete(message.send);
}

void Simulation::Arrived(int32_t id) {
  Message& message = messages_[id];
  message.record.arrived = message.record.done = now_;
  const uint32_t receive = graph_.node(message.send).mate;
  if (graph_.kind(receive) == OpKind::kRecvReduce) {
    Compute(receive, p_.reduce_ps_per_byte * static_cast<double>(message.record.bytes));
    message.record.done = std::max(now_, busy_until_[message.record.destination]);
  } else {
    Complete(receive);
  }
  ++result_.message_count;
  if (p_.record) result_.messages.push_back(message.record);
  free_messages_.push_back(id);
  Drain();
}

// --- flows ---------------------------------------------------------------------------------------

std::shared_ptr<const Route> Simulation::FindRoute(int32_t source, int32_t destination,
                                                   int32_t channel, int32_t part) {
  auto route = router_.Find(source, destination, channel, part);
  if (!route.ok()) {
    Fail(route.status());
    return nullptr;
  }
  return std::move(*route);
}

int32_t Simulation::AddFlow(Flow flow) {
  const Route& route = *flow.route;
  double limit = flow.overhead ? route.port_rate : route.capacity;
  if (flow.background != kNone)
    limit = std::min(limit, p_.background[flow.background].bytes_per_ps);
  const int32_t hops = flow.overhead ? route.first_hops : static_cast<int32_t>(route.hops.size());
  const int32_t id = share_.Add(route.hops.data(), hops, limit);
  if (static_cast<size_t>(id) >= flows_.size()) flows_.resize(id + 1);
  flow.since = now_;
  flow.order = order_++;
  flow.rate = 0;
  flows_[id] = std::move(flow);
  return id;
}

void Simulation::RemoveFlow(int32_t id) {
  share_.Remove(id);
  ends_.Erase(id);
  flows_[id].route.reset();
}

// Brings what is left up to now_.
void Simulation::Settle(Flow& flow) const {
  flow.left = std::max(0.0, flow.left - flow.rate * static_cast<double>(now_ - flow.since));
  flow.since = now_;
}

void Simulation::UpdateRates() {
  ++result_.rate_updates;
  for (int32_t id : share_.Update()) {
    Flow& flow = flows_[id];
    Settle(flow);
    flow.rate = share_.rate(id);
    const double wait = flow.rate > 0 ? flow.left / flow.rate : 0;
    if (flow.rate <= 0 || wait > 4e18) {
      ends_.Erase(id);  // stands still until something changes
      continue;
    }
    Time end = now_ + std::llround(wait);
    if (p_.quantum > 0) end = (end + p_.quantum - 1) / p_.quantum * p_.quantum;
    ends_.Set(id, end, flow.order);
  }
}

std::pair<int32_t, int32_t> Simulation::Ends(const Flow& flow) const {
  if (flow.background != kNone) {
    const Background& traffic = p_.background[flow.background];
    return {traffic.source, traffic.destination};
  }
  const MessageRecord& record = messages_[flow.message].record;
  return {node_of_[record.source], node_of_[record.destination]};
}

void Simulation::EnterBytes(const Flow& flow, int64_t bytes) {
  if (flow.overhead || bytes <= 0) return;
  const auto [source, destination] = Ends(flow);
  ledger_.Enter(*flow.route, source, destination, bytes);
}

void Simulation::FlowEnded(int32_t id) {
  const Flow flow = flows_[id];
  EnterBytes(flow, flow.bytes);
  RemoveFlow(id);
  if (flow.background != kNone) return;
  if (flow.overhead) {
    BeginData(flow.message);
  } else {
    PartLeft(flow.message, flow.route->latency);
  }
  Drain();
}

void Simulation::ChangeLink(const LinkChange& change) {
  network_.links[change.link].bytes_per_ps = change.bytes_per_ps;
  ledger_.ChangeCapacity(change.link, change.bytes_per_ps, now_);
  share_.SetCapacity(change.link, change.bytes_per_ps);
  router_.Reset();
  std::fill(last_port_.begin(), last_port_.end(), LastPort{});
  if (change.bytes_per_ps <= 0) failed_links_.push_back(change.link);
}

// After all changes of this instant, since a failed switch is many failed links.
void Simulation::RerouteAll() {
  if (failed_links_.empty()) return;
  std::vector<int32_t> flows;
  for (int32_t link : failed_links_) {
    for (int32_t id : share_.FlowsOn(link)) flows.push_back(id);
  }
  failed_links_.clear();
  std::sort(flows.begin(), flows.end());
  flows.erase(std::unique(flows.begin(), flows.end()), flows.end());
  for (int32_t id : flows) {
    if (!Failed()) Reroute(id);
  }
}

// What has gone has arrived; the rest takes another way, from the source.
void Simulation::Reroute(int32_t id) {
  Settle(flows_[id]);
  Flow flow = flows_[id];
  RemoveFlow(id);
  const auto [source, destination] = Ends(flow);
  const int32_t channel = flow.message == kNone ? 0 : messages_[flow.message].record.channel;
  if (flow.overhead) {
    const double rest = flow.left / flow.route->port_rate;
    flow.route = FindRoute(source, destination, channel, flow.part);
    if (Failed()) return;
    flow.left = rest * flow.route->port_rate;
  } else {
    const int64_t rest = static_cast<int64_t>(std::ceil(flow.left));
    EnterBytes(flow, flow.bytes - rest);
    flow.route = FindRoute(source, destination, channel, flow.part);
    if (Failed()) return;
    flow.bytes = rest;
    flow.left = static_cast<double>(rest);
  }
  AddFlow(std::move(flow));
}

// --- the end -------------------------------------------------------------------------------------

Status Simulation::Stuck() const {
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

Status Validate(const Graph& graph, const Network& network, const std::vector<int32_t>& node_of,
                const Parameters& p) {
  const auto ranks = static_cast<size_t>(graph.world_size());
  if (node_of.size() != ranks) {
    return InvalidArgument("the schedule is for " + std::to_string(ranks) +
                           " ranks, the placement for " + std::to_string(node_of.size()));
  }
  for (const Link& link : network.links) {
    if (link.from < 0 || link.from >= network.node_count() || link.to < 0 ||
        link.to >= network.node_count() || !(link.bytes_per_ps >= 0) || link.latency < 0) {
      return InvalidArgument("a link has no such end, or a negative capacity or latency");
    }
  }
  if (network.node_count() >= 1 << 22) return InvalidArgument("at most 4194303 nodes");
  std::vector<bool> taken(network.node_names.size());
  for (int32_t node : node_of) {
    if (node < 0 || node >= network.node_count()) return InvalidArgument("no such node");
    if (taken[node]) {
      return InvalidArgument(network.node_names[node] + " holds two ranks; a node holds one");
    }
    taken[node] = true;
  }
  const bool good = p.overhead >= 0 && p.latency >= 0 && p.reduce_ps_per_byte >= 0 &&
                    p.copy_ps_per_byte >= 0 && p.split >= 1 && p.split <= 256 && p.in_flight >= 0 &&
                    p.efficiency > 0 && p.efficiency <= 1 && p.quantum >= 0 && p.jitter >= 0 &&
                    (p.slowdown.empty() || p.slowdown.size() == ranks) &&
                    (p.start.empty() || p.start.size() == ranks);
  if (!good) return InvalidArgument("a parameter of the simulation is out of range");
  for (const LinkChange& change : p.changes) {
    if (change.link < 0 || change.link >= network.link_count() || change.time < 0 ||
        !(change.bytes_per_ps >= 0)) {
      return InvalidArgument("a change names no link, or a negative time or capacity");
    }
  }
  for (const Background& traffic : p.background) {
    if (traffic.source < 0 || traffic.source >= network.node_count() || traffic.destination < 0 ||
        traffic.destination >= network.node_count() || traffic.source == traffic.destination ||
        traffic.time < 0 || traffic.bytes < 0 || !(traffic.bytes_per_ps > 0)) {
      return InvalidArgument("background traffic needs two nodes, and a positive rate");
    }
  }
  return {};
}

}  // namespace

StatusOr<Result> Simulate(const Graph& graph, const Network& network,
                          const std::vector<int32_t>& node_of, int64_t block_elements,
                          int64_t element_bytes, const Parameters& parameters) {
  if (Status s = Validate(graph, network, node_of, parameters); !s.ok()) return s;
  Network scaled = network;
  for (Link& link : scaled.links) link.bytes_per_ps *= parameters.efficiency;
  Parameters adjusted = parameters;
  for (LinkChange& change : adjusted.changes) change.bytes_per_ps *= parameters.efficiency;
  return Simulation(graph, std::move(scaled), node_of,
                    graph.ExtentBytes(block_elements, element_bytes), adjusted)
      .Run();
}

}  // namespace jaxcoll::sim
