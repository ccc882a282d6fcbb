// Simulates one collective: runs its dependency graph over a network, in simulated time.
//
// A message. Both ends start (as in the IR: every earlier op of the channel has started, every
// dependency has completed). The sender's port then sends the messages of a channel one by one, in
// program order: each first occupies the port for the overhead o, then flows to the other end at a
// max-min fair rate, or at an unequal one, as with real congestion control (`unfairness`). The send
// completes when the last byte has left, and the last byte arrives after the latency l and those of
// the links. For a recv_reduce the rank then reduces the received data, one message at a time, at
// the reduce rate.
//
//   one message of m bytes alone: o + m / capacity + l + links' latencies (+ m / reduce rate)
//
// Messages that reach a port or the reducing unit at the same time are processed in order of
// channel, then of program: in a two-way ring two messages meet at every step, and their order
// affects the time. Equal times may differ by a picosecond or two after rounding, so times within
// kTie count as equal.
//
// A port is the first link of a route, or all first links of a sprayed one. Channels have separate
// queues and share the port's rate; each may have `in_flight` messages in flight.
//
// Flows are fluid: no packets, no queues in switches. Nothing is drawn from a global stream of
// random numbers, so equal seeds give equal results, event by event.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "sim/graph.h"
#include "sim/network.h"
#include "sim/router.h"

namespace jaxcoll::sim {

// Two times that are equal differ by at most this after a few roundings by half a picosecond.
inline constexpr Time kTie = 2;

// A link's capacity from `time` on; 0 fails it, and its flows are rerouted. Other flows keep their
// links, also where a failed one that would be shorter works again.
struct LinkChange {
  Time time = 0;
  int32_t link = 0;
  double bytes_per_ps = 0;
};

// Other traffic than the collective's: `bytes`, or endless, from node to node from `time` on, at
// most at `bytes_per_ps`; or, with a `share` above 0, as many by each link of the source that
// begins a shortest path, at most at that share of the link's capacity. It ends with the
// collective.
struct Background {
  int32_t source = 0, destination = 0;
  Time time = 0;
  std::optional<int64_t> bytes = 0;  // nullopt: endless
  double bytes_per_ps = 0;
  double share = 0;
};

struct Parameters {
  Time overhead = 0;  // o: per message, occupies the port
  Time latency = 0;   // l: per message, occupies nothing
  double reduce_ps_per_byte = 0;
  double copy_ps_per_byte = 0;
  Routing routing = Routing::kEcmp;
  int32_t split = 1;      // kSplit: parts of a message
  uint64_t seed = 0;      // of routes and jitter
  int32_t in_flight = 1;  // messages of one channel that a port sends at once; 0: all
  double efficiency = 1;  // share of every capacity that carries payload
  Time quantum = 0;       // flows end at multiples of it only: coarser and faster; 0: exactly
  double jitter = 0;      // standard deviation of each overhead, reduction and copy, relative
  double unfairness = 0;  // of the logarithm of the share that a message takes from its rivals
  std::vector<double> slowdown;  // by rank: factor on the same; empty: 1
  std::vector<Time> start;       // by rank: when it calls the collective; empty: 0
  std::vector<LinkChange> changes;
  std::vector<Background> background;
  bool record = false;  // keep every message
  // Polled occasionally; true ends the simulation with an error.
  std::function<bool()> interrupted;
};

struct MessageRecord {
  uint32_t step = 0;
  int32_t channel = 0;
  int32_t source = 0, destination = 0;  // ranks
  int64_t bytes = 0;
  Time ready = 0;    // both ends had started
  Time sent = 0;     // the port began
  Time left = 0;     // the last byte left
  Time arrived = 0;  // the last byte was there
  Time done = 0;     // and had been reduced
};

struct Result {
  Time time = 0;                    // the last op of the last rank completed
  std::vector<Time> rank_time;      // by rank
  std::vector<int64_t> link_bytes;  // by link: payload of the collective and of background traffic
  std::vector<MessageRecord> messages;
  uint64_t message_count = 0, event_count = 0;
};

// `node_of`: by rank, its endpoint. Fails, naming the component, if two ranks that must communicate
// have no path, or if the schedule deadlocks. Checked at the end: every byte that entered a switch
// left it, every endpoint sent and received the schedule's bytes, and no link carried more than its
// capacity allows.
StatusOr<Result> Simulate(const Graph& graph, const Network& network,
                          const std::vector<int32_t>& node_of, int64_t block_elements,
                          int64_t element_bytes, const Parameters& parameters);

}  // namespace jaxcoll::sim
