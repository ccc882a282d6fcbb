// The links that a message takes: always shortest paths, counted in links, over links that work.
//
//   ecmp   one path; every node picks a next link by hashing (seed, source, destination, channel)
//   split  the message is cut in k equal parts, each hashed onto a path of its own
//   spray  every node splits evenly over all its next links, as when each packet is hashed alone;
//          the parts share one rate, that of the most crowded path
//
// Parallel links count as different next links. Nodes that do not forward can only be ends of a
// path.
#pragma once

#include <memory>
#include <unordered_map>
#include <vector>

#include "sim/distances.h"

namespace jaxcoll::sim {

enum class Routing : uint8_t { kEcmp, kSplit, kSpray };

struct Hop {
  int32_t link = 0;
  double weight = 1;  // share of the flow's rate that this link carries
};

struct Route {
  // In order of distance from the source; hops that leave one node are adjacent.
  std::vector<Hop> hops;
  int32_t first_hops = 0;  // how many of them leave the source: its port
  double capacity = 0;     // the rate at which the first link would be full
  double port_rate = 0;    // the same for the port alone
  Time latency = 0;        // of the longest path
};

class Router {
 public:
  Router(const Network& network, Routing routing, uint64_t seed);

  // The route of one message, or of one part of it. `source` and `destination` differ.
  StatusOr<std::shared_ptr<const Route>> Find(int32_t source, int32_t destination, int32_t channel,
                                              int32_t part);

  // One route for each link by which a shortest path may begin, or where messages are sprayed the
  // one route that takes all of them: for traffic that is to load all of a port.
  StatusOr<std::vector<std::shared_ptr<const Route>>> FindEach(int32_t source, int32_t destination);

  // Whether all links of a route work.
  bool Works(const Route& route) const;
  // The same links, with the rates that they allow now.
  std::shared_ptr<const Route> Renew(const Route& route) const;

  // The network's links have changed: clears the cache.
  void Reset();
  // Counts resets: a route that was found in another version may lead over failed links.
  uint32_t version() const { return version_; }

 private:
  Status Aim(int32_t source, int32_t destination);
  // Links from `node` to where Aim aimed, or Field::kUnknown; searches as far as that needs.
  int32_t Search(int32_t node);
  int32_t SearchFrom(int32_t forwarder, int32_t most);
  // The same of a node that is closer than one searched.
  int32_t Known(int32_t node) const;
  // Working links from `node`, which is `distance` away, that are one closer; in ascending order.
  void Closer(int32_t node, int32_t distance, std::vector<int32_t>& links) const;
  void LinksBetween(int32_t node, int32_t next, std::vector<int32_t>& links) const;
  void Walk(Route& route, int32_t node, int32_t distance, uint64_t flow);
  std::shared_ptr<Route> Path(int32_t source, uint64_t flow);
  std::shared_ptr<Route> Fan(int32_t source);
  void Finish(Route& route) const;

  const Network& network_;
  const Routing routing_;
  const uint64_t seed_;
  const Adjacency out_, in_;
  const Fabric fabric_;
  FieldCache fields_;
  uint32_t version_ = 0;

  // Distances to an endpoint follow from those to its neighbours, so that a thousand hosts behind
  // one switch share one field.
  int32_t destination_ = -1;
  int32_t aim_offset_ = 0;
  int32_t distance_ = 0;  // from Aim's source
  std::vector<std::shared_ptr<Field>> aim_;
  std::vector<int32_t> adjacent_;  // endpoints with a link straight to the destination

  std::unordered_map<uint64_t, std::shared_ptr<const Route>> routes_;
  size_t route_hops_ = 0;

  // Scratch of Fan, by node.
  std::vector<double> share_;
  std::vector<Time> latency_;
  std::vector<int32_t> links_;  // scratch of Path
};

}  // namespace jaxcoll::sim
