#include "sim/simulator.h"

#include <string>
#include <utility>
#include <vector>

#include "base/range.h"
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
  if (Status s = CheckNetwork(network); !s.ok()) return s;
  std::vector<bool> taken(network.node_names.size());
  for (int32_t node : node_of) {
    if (Status s = CheckNode(network, "the node of a rank", node); !s.ok()) return s;
    if (taken[node]) {
      return InvalidArgument(network.node_names[node] + " holds two ranks; a node can hold one");
    }
    taken[node] = true;
  }
  if ((!p.slowdown.empty() && p.slowdown.size() != ranks) ||
      (!p.start.empty() && p.start.size() != ranks)) {
    return InvalidArgument("slowdowns and starts are for " + std::to_string(p.slowdown.size()) +
                           " and " + std::to_string(p.start.size()) + " of " +
                           std::to_string(ranks) + " ranks");
  }
  for (const LinkChange& change : p.changes) {
    if (Status s = CheckRange("a change's link", change.link, 0, network.link_count() - 1);
        !s.ok()) {
      return s;
    }
    if (Status s = CheckNumber("a changed capacity in bytes per picosecond", change.bytes_per_ps);
        !s.ok()) {
      return s;
    }
  }
  for (const Background& traffic : p.background) {
    for (int32_t end : {traffic.source, traffic.destination}) {
      if (Status s = CheckNode(network, "an end of background traffic", end); !s.ok()) return s;
    }
    if (traffic.source == traffic.destination || !(traffic.share >= 0) ||
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
