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

#include "sim/network.h"

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

  // The network's links have changed: clears the cache.
  void Reset();

 private:
  using Field = std::vector<uint16_t>;  // by node: links from there to a fixed node

  std::shared_ptr<const Field> FieldOf(int32_t forwarder);
  void Aim(int32_t destination);
  int32_t Distance(int32_t node) const;  // links from `node` to where Aim aimed; or kUnreachable
  // Working links from `node` that are one closer.
  void Closer(int32_t node, std::vector<int32_t>& links) const;
  std::shared_ptr<Route> Path(int32_t source, uint64_t flow) const;
  std::shared_ptr<Route> Fan(int32_t source);
  void Finish(Route& route) const;

  const Network& network_;
  const Routing routing_;
  const uint64_t seed_;
  const Adjacency out_, in_;

  // Distances to nodes that forward are kept, up to a budget; those to an endpoint follow from its
  // neighbours', so that a thousand hosts behind one switch share one field.
  std::unordered_map<int32_t, std::shared_ptr<const Field>> fields_;
  int32_t destination_ = -1;
  int32_t aim_offset_ = 0;
  std::vector<std::shared_ptr<const Field>> aim_;
  std::vector<int32_t> adjacent_;  // endpoints with a link straight to the destination

  std::unordered_map<uint64_t, std::shared_ptr<const Route>> routes_;
  size_t route_hops_ = 0;

  // Scratch of Fan, by node.
  std::vector<double> share_;
  std::vector<Time> latency_;
};

}  // namespace jaxcoll::sim
