// One run of the simulator (described in simulator.h): a queue of events, and rates that are
// updated after all events of an instant. Used once, by one thread.
//
//   simulation.cc           time, ranks and their ops
//   simulation_messages.cc  messages, ports, flows, links that change
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <queue>
#include <unordered_map>
#include <utility>
#include <vector>

#include "sim/fair_share.h"
#include "sim/flow_heap.h"
#include "sim/ledger.h"
#include "sim/simulator.h"

namespace jaxcoll::sim {

// Nearly normal, mean 0 and variance 1: the sum of twelve uniform draws (exact on any machine).
double Deviate(uint64_t seed);

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
  static constexpr int32_t kNone = -1;

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
    std::shared_ptr<const Route> route;  // of its first part, as it was found in `version`
    uint32_t version = 0;
  };

  // A message, or part of one, or its overhead, on its way; by the id that FairShare gave it.
  struct Flow {
    std::shared_ptr<const Route> route;
    int32_t message = kNone;  // or background
    int32_t background = kNone;
    int32_t part = 0;
    bool overhead = false;
    int64_t bytes = 0;     // on this route
    bool endless = false;  // background without a number of bytes
    double left = 0;       // bytes at `since`
    double done = 0;       // background: bytes; a large rest has no room for their digits
    double rate = 0;
    Time since = 0;
    uint64_t order = 0;
  };

  // For a rank's one unit that reduces and copies.
  struct Work {
    uint32_t op;
    Time duration;
    int32_t message;  // that it reduces, or kNone
  };

  // The messages of one chain that leave by one link.
  struct Port {
    int32_t active = 0;
    bool touched = false;
    std::vector<std::pair<uint32_t, int32_t>> waiting;  // heap by op, which is program order
  };

  void At(Time time, Event event, uint32_t what);
  Time NextTime() const;
  bool Failed() const { return !status_.ok(); }
  void Fail(Status status) {
    if (status_.ok()) status_ = std::move(status);
  }
  int32_t Rank(uint32_t op) const { return graph_.chain_of(op).rank; }
  int64_t Bytes(uint32_t op) const { return extent_bytes_[graph_.node(op).extent]; }

  void ProcessNow();
  void HandleNow();
  void Handle(const Timer& timer);
  void BeginRank(int32_t rank);
  void Advance(uint32_t chain);
  void Start(uint32_t op);
  void Complete(uint32_t op);
  void Drain();
  Time Worked(uint32_t op, double ps);
  void Compute(uint32_t op, double ps, int32_t message = kNone);
  void GiveWork();
  void Received(int32_t message, Time done);

  void Ready(uint32_t send);
  void Dispatch();
  void Begin(int32_t message);
  void BeginData(int32_t message);
  void PartLeft(int32_t message, Time latency);
  void Arrived(int32_t message);

  void BeginBackground(int32_t number);
  std::shared_ptr<const Route> RouteOf(int32_t message);
  std::shared_ptr<const Route> FindRoute(int32_t source, int32_t destination, int32_t channel,
                                         int32_t part);
  int32_t PortOf(uint32_t chain, const std::shared_ptr<const Route>& route);
  double PullOf(const Flow& flow) const;
  double LimitOf(const Flow& flow) const;
  int32_t AddFlow(Flow flow);
  void RemoveFlow(int32_t id);
  void Settle(Flow& flow) const;
  static int64_t Moved(const Flow& flow);
  void FlowEnded(int32_t id);
  void ChangeLink(const LinkChange& change);
  void AdaptFlows();
  void Adapt(int32_t id);
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
  std::vector<Work> work_;             // that came up at now_
  std::vector<uint32_t> completed_;    // to be propagated to their dependents
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
  std::vector<int32_t> changed_links_;  // since AdaptFlows
  double background_bytes_ = 0;         // in the ledger
  Result result_;
};

}  // namespace jaxcoll::sim
