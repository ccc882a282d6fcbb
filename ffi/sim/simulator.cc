#include "sim/simulator.h"

#include <string>
#include <utility>
#include <vector>

#include "sim/limits.h"
#include "sim/simulation.h"
#include "sim/trunks.h"

namespace jaxcoll::sim {
namespace {

Status Validate(const Graph& graph, const Network& network, const std::vector<int32_t>& node_of,
                const Parameters& p) {
  const auto ranks = static_cast<size_t>(graph.world_size());
  if (node_of.size() != ranks) {
    return InvalidArgument("the schedule is for " + std::to_string(ranks) +
                           " ranks, the placement for " + std::to_string(node_of.size()));
  }
  for (const NetworkLink& link : network.links) {
    if (link.from < 0 || link.from >= network.node_count() || link.to < 0 ||
        link.to >= network.node_count() || !(link.bytes_per_ps >= 0) || link.latency < 0) {
      return InvalidArgument(
          "a link names a node that does not exist, or has a negative capacity or latency");
    }
  }
  if (network.node_count() >= 1 << 22) return InvalidArgument("at most 4194303 nodes");
  std::vector<bool> taken(network.node_names.size());
  for (int32_t node : node_of) {
    if (node < 0 || node >= network.node_count()) return InvalidArgument("no such node");
    if (taken[node]) {
      return InvalidArgument(network.node_names[node] + " holds two ranks; a node can hold one");
    }
    taken[node] = true;
  }
  const bool good = p.overhead >= 0 && p.latency >= 0 && p.reduce_ps_per_byte >= 0 &&
                    p.copy_ps_per_byte >= 0 && p.split >= 1 && p.split <= 256 && p.in_flight >= 0 &&
                    p.efficiency > 0 && p.efficiency <= 1 && p.quantum >= 0 && p.jitter >= 0 &&
                    p.unfairness >= 0 && p.unfairness <= kMostUnfairness &&
                    (p.slowdown.empty() || p.slowdown.size() == ranks) &&
                    (p.start.empty() || p.start.size() == ranks);
  if (!good) return InvalidArgument("a parameter of the simulation is out of range");
  for (const LinkChange& change : p.changes) {
    if (change.link < 0 || change.link >= network.link_count() || change.time < 0 ||
        !(change.bytes_per_ps >= 0)) {
      return InvalidArgument(
          "a change names a link that does not exist, or has a negative time or capacity");
    }
  }
  for (const Background& traffic : p.background) {
    if (traffic.source < 0 || traffic.source >= network.node_count() || traffic.destination < 0 ||
        traffic.destination >= network.node_count() || traffic.source == traffic.destination ||
        traffic.time < 0 || traffic.bytes < 0 || !(traffic.share >= 0) ||
        (traffic.share == 0 && !(traffic.bytes_per_ps > 0))) {
      return InvalidArgument("background traffic needs two nodes, and a positive rate or share");
    }
  }
  return {};
}

}  // namespace

StatusOr<Result> Simulate(const Graph& graph, const Network& network,
                          const std::vector<int32_t>& node_of, int64_t block_elements,
                          int64_t element_bytes, const Parameters& parameters) {
  if (Status s = Validate(graph, network, node_of, parameters); !s.ok()) return s;
  if (Status s = CheckRanges(graph, network, node_of, block_elements, element_bytes, parameters);
      !s.ok()) {
    return s;
  }
  Network scaled = network;
  for (NetworkLink& link : scaled.links) link.bytes_per_ps *= parameters.efficiency;
  Parameters adjusted = parameters;
  std::vector<bool> alone(network.links.size(), parameters.routing != Routing::kSpray);
  adjusted.changes.clear();
  for (LinkChange change : parameters.changes) {
    change.bytes_per_ps *= parameters.efficiency;
    if (change.time == 0) {  // before anything starts
      scaled.links[change.link].bytes_per_ps = change.bytes_per_ps;
    } else {
      alone[change.link] = true;
      adjusted.changes.push_back(change);
    }
  }
  const Trunks trunks(scaled, alone);
  for (LinkChange& change : adjusted.changes) change.link = trunks.trunk_of(change.link);
  StatusOr<Result> result = Simulation(graph, trunks.network(), node_of,
                                       graph.ExtentBytes(block_elements, element_bytes), adjusted)
                                .Run();
  if (result.ok()) result->link_bytes = trunks.PerLink(result->link_bytes);
  return result;
}

}  // namespace jaxcoll::sim
