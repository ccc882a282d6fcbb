#include "sim/router.h"

#include <algorithm>
#include <limits>

namespace jaxcoll::sim {
namespace {

constexpr uint16_t kFar = std::numeric_limits<uint16_t>::max();
constexpr int32_t kUnreachable = std::numeric_limits<int32_t>::max() / 2;

// 256 MiB and 512 MiB; what is forgotten is found again.
constexpr size_t kMaxFieldEntries = size_t{128} << 20;
constexpr size_t kMaxRouteHops = size_t{32} << 20;

// The key of a route: 22 bits for each end, 12 for the channel, 8 for the part.
uint64_t Key(int32_t source, int32_t destination, int32_t channel, int32_t part) {
  return uint64_t(source) << 42 | uint64_t(destination) << 20 | uint64_t(channel) << 8 |
         uint64_t(part);
}

}  // namespace

Router::Router(const Network& network, Routing routing, uint64_t seed)
    : network_(network),
      routing_(routing),
      seed_(seed),
      out_(LinksOut(network)),
      in_(LinksIn(network)),
      share_(network.node_names.size(), 0.0),
      latency_(network.node_names.size(), 0) {}

void Router::Reset() {
  fields_.clear();
  routes_.clear();
  route_hops_ = 0;
  destination_ = -1;
}

StatusOr<std::shared_ptr<const Route>> Router::Find(int32_t source, int32_t destination,
                                                    int32_t channel, int32_t part) {
  if (routing_ == Routing::kSpray) channel = part = 0;
  const uint64_t key = Key(source, destination, channel, part);
  if (auto known = routes_.find(key); known != routes_.end()) return known->second;
  Aim(destination);
  if (Distance(source) >= kUnreachable) {
    return InvalidArgument("no path of working links leads from " + network_.node_names[source] +
                           " to " + network_.node_names[destination]);
  }
  std::shared_ptr<Route> route =
      routing_ == Routing::kSpray ? Fan(source) : Path(source, Mix(seed_, key));
  Finish(*route);
  if (route_hops_ > kMaxRouteHops) {
    routes_.clear();
    route_hops_ = 0;
  }
  route_hops_ += route->hops.size();
  routes_.emplace(key, route);
  return std::shared_ptr<const Route>(std::move(route));
}

std::shared_ptr<const Router::Field> Router::FieldOf(int32_t forwarder) {
  if (auto known = fields_.find(forwarder); known != fields_.end()) return known->second;
  if ((fields_.size() + 1) * network_.node_names.size() > kMaxFieldEntries) fields_.clear();
  auto field = std::make_shared<Field>(network_.node_names.size(), kFar);
  std::vector<int32_t> frontier = {forwarder}, next;
  (*field)[forwarder] = 0;
  for (uint16_t distance = 1; !frontier.empty(); ++distance) {
    next.clear();
    for (int32_t node : frontier) {
      for (const int32_t* link = in_.First(node); link != in_.Last(node); ++link) {
        const int32_t from = network_.links[*link].from;
        if (network_.links[*link].bytes_per_ps <= 0 || (*field)[from] != kFar) continue;
        (*field)[from] = distance;
        if (network_.forwards[from]) next.push_back(from);
      }
    }
    frontier.swap(next);
  }
  fields_.emplace(forwarder, field);
  return field;
}

void Router::Aim(int32_t destination) {
  if (destination == destination_) return;
  destination_ = destination;
  aim_.clear();
  adjacent_.clear();
  if (network_.forwards[destination]) {
    aim_offset_ = 0;
    aim_.push_back(FieldOf(destination));
    return;
  }
  aim_offset_ = 1;
  for (const int32_t* link = in_.First(destination); link != in_.Last(destination); ++link) {
    if (network_.links[*link].bytes_per_ps <= 0) continue;
    const int32_t from = network_.links[*link].from;
    if (network_.forwards[from]) {
      aim_.push_back(FieldOf(from));
    } else {
      adjacent_.push_back(from);
    }
  }
}

int32_t Router::Distance(int32_t node) const {
  if (node == destination_) return 0;
  if (std::find(adjacent_.begin(), adjacent_.end(), node) != adjacent_.end()) return 1;
  int32_t nearest = kUnreachable;
  for (const auto& field : aim_) {
    if ((*field)[node] != kFar) nearest = std::min(nearest, (*field)[node] + aim_offset_);
  }
  return nearest;
}

void Router::Closer(int32_t node, std::vector<int32_t>& links) const {
  links.clear();
  const int32_t distance = Distance(node);
  for (const int32_t* link = out_.First(node); link != out_.Last(node); ++link) {
    const int32_t to = network_.links[*link].to;
    if (network_.links[*link].bytes_per_ps <= 0) continue;
    if (to != destination_ && !network_.forwards[to]) continue;
    if (Distance(to) == distance - 1) links.push_back(*link);
  }
}

std::shared_ptr<Route> Router::Path(int32_t source, uint64_t flow) const {
  auto route = std::make_shared<Route>();
  std::vector<int32_t> links;
  for (int32_t node = source; node != destination_;) {
    Closer(node, links);
    const int32_t link = links[links.size() == 1 ? 0 : Mix(flow, node) % links.size()];
    route->hops.push_back({link, 1});
    route->latency += network_.links[link].latency;
    node = network_.links[link].to;
  }
  route->first_hops = 1;
  return route;
}

std::shared_ptr<Route> Router::Fan(int32_t source) {
  auto route = std::make_shared<Route>();
  std::vector<int32_t> level = {source}, next, links;
  share_[source] = 1;
  latency_[source] = 0;
  while (level.front() != destination_) {
    next.clear();
    for (int32_t node : level) {
      Closer(node, links);
      int32_t ways = 0;
      for (int32_t link : links) ways += network_.links[link].ways;
      for (int32_t link : links) {
        const double share = share_[node] / ways * network_.links[link].ways;
        route->hops.push_back({link, share});
        const int32_t to = network_.links[link].to;
        if (share_[to] == 0) {
          next.push_back(to);
          latency_[to] = 0;
        }
        share_[to] += share;
        latency_[to] = std::max(latency_[to], latency_[node] + network_.links[link].latency);
      }
      share_[node] = 0;
    }
    if (route->first_hops == 0) route->first_hops = static_cast<int32_t>(route->hops.size());
    level.swap(next);
  }
  share_[destination_] = 0;
  route->latency = latency_[destination_];
  return route;
}

void Router::Finish(Route& route) const {
  auto rate = [&](const Hop& hop) { return network_.links[hop.link].bytes_per_ps / hop.weight; };
  route.capacity = route.port_rate = std::numeric_limits<double>::infinity();
  for (size_t i = 0; i < route.hops.size(); ++i) {
    route.capacity = std::min(route.capacity, rate(route.hops[i]));
    if (i < static_cast<size_t>(route.first_hops)) route.port_rate = route.capacity;
  }
}

}  // namespace jaxcoll::sim
