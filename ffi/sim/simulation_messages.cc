#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <utility>

#include "sim/limits.h"
#include "sim/simulation.h"

namespace jaxcoll::sim {

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
  message.version = router_.version() - 1;
  const auto route = RouteOf(id);
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
  flow.route = RouteOf(id);
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
    flow.route = part == 0 ? RouteOf(id)
                           : FindRoute(node_of_[record.source], node_of_[record.destination],
                                       record.channel, static_cast<int32_t>(part));
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
  message.arrival = std::max(message.arrival, After(now_, latency));
  if (--message.parts > 0) return;
  message.record.left = now_;
  Port& port = ports_[message.port];
  --port.active;
  if (!port.touched) {
    port.touched = true;
    touched_ports_.push_back(message.port);
  }
  At(After(message.arrival, p_.latency), Event::kArrived, static_cast<uint32_t>(id));
  Complete(message.send);
}

void Simulation::Arrived(int32_t id) {
  messages_[id].record.arrived = now_;
  const uint32_t receive = graph_.node(messages_[id].send).mate;
  if (graph_.kind(receive) == OpKind::kRecvReduce) {
    const auto bytes = static_cast<double>(messages_[id].record.bytes);
    Compute(receive, p_.reduce_ps_per_byte * bytes, id);
  } else {
    Received(id, now_);
    Complete(receive);
  }
  Drain();
}

// The end of a message: `done` is the time at which it will have been reduced, too.
void Simulation::Received(int32_t id, Time done) {
  messages_[id].record.done = done;
  messages_[id].route.reset();
  ++result_.message_count;
  if (p_.record) result_.messages.push_back(messages_[id].record);
  free_messages_.push_back(id);
}

// --- flows ---------------------------------------------------------------------------------------

// Found once for a message's overhead and its data, unless links change in between.
std::shared_ptr<const Route> Simulation::RouteOf(int32_t id) {
  Message& message = messages_[id];
  if (message.version != router_.version() || !message.route) {
    message.route = FindRoute(node_of_[message.record.source], node_of_[message.record.destination],
                              message.record.channel, 0);
    message.version = router_.version();
  }
  return message.route;
}

std::shared_ptr<const Route> Simulation::FindRoute(int32_t source, int32_t destination,
                                                   int32_t channel, int32_t part) {
  auto route = router_.Find(source, destination, channel, part);
  if (!route.ok()) {
    Fail(route.status());
    return nullptr;
  }
  return std::move(*route);
}

// How hard a flow pulls where others want the same link: from its message and part alone.
double Simulation::PullOf(const Flow& flow) const {
  if (p_.unfairness <= 0 || flow.message == kNone) return 1;
  const uint64_t part = static_cast<uint64_t>(flow.part) + 1;
  const uint64_t seed = Mix(Mix(p_.seed, messages_[flow.message].send), part << 32);
  return std::exp(p_.unfairness * Deviate(seed));
}

void Simulation::BeginBackground(int32_t number) {
  const Background& traffic = p_.background[number];
  std::vector<std::shared_ptr<const Route>> routes;
  if (traffic.share > 0) {
    auto found = router_.FindEach(traffic.source, traffic.destination);
    if (!found.ok()) return Fail(found.status());
    routes = std::move(*found);
  } else {
    routes.push_back(FindRoute(traffic.source, traffic.destination, 0, 0));
    if (Failed()) return;
  }
  for (auto& route : routes) {
    if (traffic.bytes == 0) return;
    Flow flow;
    flow.background = number;
    flow.endless = !traffic.bytes;
    flow.bytes = traffic.bytes.value_or(0);
    flow.left = flow.endless ? kInfinity : static_cast<double>(flow.bytes);
    flow.route = std::move(route);
    AddFlow(std::move(flow));
  }
}

// The rate at which a flow would run alone.
double Simulation::LimitOf(const Flow& flow) const {
  const Route& route = *flow.route;
  if (flow.overhead) return route.port_rate;
  if (flow.background == kNone) return route.capacity;
  const Background& traffic = p_.background[flow.background];
  return std::min(route.capacity,
                  traffic.share > 0 ? traffic.share * route.port_rate : traffic.bytes_per_ps);
}

int32_t Simulation::AddFlow(Flow flow) {
  const Route& route = *flow.route;
  const int32_t hops = flow.overhead ? route.first_hops : static_cast<int32_t>(route.hops.size());
  const int32_t id = share_.Add(route.hops.data(), hops, LimitOf(flow), PullOf(flow));
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
  const double moved = flow.rate * static_cast<double>(now_ - flow.since);
  flow.done += moved;
  if (flow.background == kNone) {
    flow.left = std::max(0.0, flow.left - moved);
  } else if (!flow.endless) {
    flow.left = std::max(0.0, static_cast<double>(flow.bytes) - flow.done);
  }
  flow.since = now_;
}

// Whole bytes of a settled flow that have left.
int64_t Simulation::Moved(const Flow& flow) {
  if (flow.background != kNone) {
    // Beyond kMostBytes, EnterBytes fails.
    const double done = std::min(std::floor(flow.done), 1.5 * static_cast<double>(kMostBytes));
    const auto whole = static_cast<int64_t>(done);
    return flow.endless ? whole : std::min(flow.bytes, whole);
  }
  return std::max<int64_t>(0, flow.bytes - static_cast<int64_t>(std::ceil(flow.left)));
}

void Simulation::UpdateRates() {
  for (int32_t id : share_.Update()) {
    Flow& flow = flows_[id];
    Settle(flow);
    flow.rate = share_.rate(id);
    const double wait = flow.rate > 0 ? flow.left / flow.rate : 0;
    if (flow.rate <= 0 || wait > static_cast<double>(kMostTime - now_)) {
      ends_.Erase(id);  // stands still until something changes, see Stuck
      continue;
    }
    Time end = After(now_, std::llround(wait));
    if (p_.quantum > 0) end = After(end, p_.quantum - 1) / p_.quantum * p_.quantum;
    if (end > kMostTime) {
      ends_.Erase(id);
      continue;
    }
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
  if (flow.background != kNone) {
    // `done` is in no type's range; for endless traffic, `bytes` was cut to it.
    background_bytes_ += flow.endless ? flow.done : static_cast<double>(bytes);
    if (Status s = CheckBytes("the bytes that background traffic moved", background_bytes_);
        !s.ok()) {
      return Fail(std::move(s));
    }
  }
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
  changed_links_.push_back(change.link);
}

// After all changes of this instant, since a failed switch is many failed links.
void Simulation::AdaptFlows() {
  if (changed_links_.empty()) return;
  std::vector<int32_t> flows;
  for (int32_t link : changed_links_) {
    for (int32_t id : share_.FlowsOn(link)) flows.push_back(id);
  }
  changed_links_.clear();
  std::sort(flows.begin(), flows.end());
  flows.erase(std::unique(flows.begin(), flows.end()), flows.end());
  for (int32_t id : flows) {
    if (!Failed()) Adapt(id);
  }
}

// A flow stays on its links while they work, at the rate that they allow now. Otherwise the bytes
// that have left have arrived, and the rest takes another way, from the source.
void Simulation::Adapt(int32_t id) {
  Settle(flows_[id]);
  Flow flow = flows_[id];
  RemoveFlow(id);
  const double port_rate = flow.route->port_rate;
  if (router_.Works(*flow.route)) {
    flow.route = router_.Renew(*flow.route);
  } else {
    if (!flow.overhead) {
      const int64_t moved = Moved(flow);
      EnterBytes(flow, moved);
      flow.done = 0;
      if (!flow.endless) {
        flow.bytes -= moved;
        flow.left = static_cast<double>(flow.bytes);
      }
    }
    const auto [source, destination] = Ends(flow);
    const int32_t channel = flow.message == kNone ? 0 : messages_[flow.message].record.channel;
    flow.route = FindRoute(source, destination, channel, flow.part);
    if (Failed()) return;
  }
  if (flow.overhead) flow.left *= flow.route->port_rate / port_rate;  // it takes as long as before
  AddFlow(std::move(flow));
}

}  // namespace jaxcoll::sim
