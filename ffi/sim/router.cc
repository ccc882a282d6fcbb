#include "sim/router.h"

#include <algorithm>
#include <utility>

namespace jaxcoll::sim {
namespace {

// Fields and routes that are forgotten are found again.
constexpr size_t kMostFieldBytes = size_t{512} << 20;
constexpr size_t kMostRouteHops = size_t{8} << 20;  // 128 MiB, and as much around them

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
      fabric_(network),
      fields_(network, fabric_, kMostFieldBytes),
      share_(network.node_names.size(), 0.0),
      latency_(network.node_names.size(), 0) {}

void Router::Reset() {
  fields_.Clear();
  routes_.clear();
  route_hops_ = 0;
  destination_ = -1;
  ++version_;
}

StatusOr<std::shared_ptr<const Route>> Router::Find(int32_t source, int32_t destination,
                                                    int32_t channel, int32_t part) {
  if (routing_ == Routing::kSpray) channel = part = 0;
  const uint64_t key = Key(source, destination, channel, part);
  if (auto known = routes_.find(key); known != routes_.end()) return known->second;
  if (Status s = Aim(source, destination); !s.ok()) return s;
  std::shared_ptr<Route> route =
      routing_ == Routing::kSpray ? Fan(source) : Path(source, Mix(seed_, key));
  Finish(*route);
  if (route_hops_ > kMostRouteHops) {
    routes_.clear();
    route_hops_ = 0;
  }
  route_hops_ += route->hops.size();
  routes_.emplace(key, route);
  return std::shared_ptr<const Route>(std::move(route));
}

StatusOr<std::vector<std::shared_ptr<const Route>>> Router::FindEach(int32_t source,
                                                                     int32_t destination) {
  std::vector<std::shared_ptr<const Route>> routes;
  if (routing_ == Routing::kSpray) {
    auto route = Find(source, destination, 0, 0);
    if (!route.ok()) return route.status();
    routes.push_back(std::move(*route));
    return routes;
  }
  if (Status s = Aim(source, destination); !s.ok()) return s;
  std::vector<int32_t> first;
  Closer(source, distance_, first);
  for (size_t i = 0; i < first.size(); ++i) {
    auto route = std::make_shared<Route>();
    const uint64_t flow = Mix(Mix(seed_, Key(source, destination, 0, 0)), i);
    route->hops.push_back({first[i], 1});
    route->latency = network_.links[first[i]].latency;
    Walk(*route, network_.links[first[i]].to, distance_ - 1, flow);
    route->first_hops = 1;
    Finish(*route);
    routes.push_back(std::move(route));
  }
  return routes;
}

bool Router::Works(const Route& route) const {
  return std::all_of(route.hops.begin(), route.hops.end(),
                     [&](const Hop& hop) { return network_.links[hop.link].bytes_per_ps > 0; });
}

std::shared_ptr<const Route> Router::Renew(const Route& route) const {
  auto renewed = std::make_shared<Route>(route);
  Finish(*renewed);
  return renewed;
}

Status Router::Aim(int32_t source, int32_t destination) {
  if (destination != destination_) {
    destination_ = destination;
    aim_.clear();
    adjacent_.clear();
    aim_offset_ = network_.forwards[destination] ? 0 : 1;
    if (aim_offset_ == 0) aim_.push_back(fields_.Of(destination));
    for (const int32_t* link = in_.First(destination); link != in_.Last(destination); ++link) {
      if (network_.links[*link].bytes_per_ps <= 0) continue;
      const int32_t from = network_.links[*link].from;
      if (!network_.forwards[from]) {
        adjacent_.push_back(from);
      } else if (aim_offset_ == 1 && std::none_of(aim_.begin(), aim_.end(), [&](const auto& field) {
                   return field->root() == from;
                 })) {
        aim_.push_back(fields_.Of(from));
      }
    }
    std::sort(adjacent_.begin(), adjacent_.end());
  }
  distance_ = Search(source);
  for (const auto& field : aim_) fields_.Account(*field);
  if (distance_ < Field::kUnknown) return {};
  return InvalidArgument("no path of working links leads from " + network_.node_names[source] +
                         " to " + network_.node_names[destination]);
}

int32_t Router::Search(int32_t node) {
  if (node == destination_) return 0;
  if (std::binary_search(adjacent_.begin(), adjacent_.end(), node)) return 1;
  if (network_.forwards[node]) return SearchFrom(node, Field::kUnknown);
  int32_t nearest = Field::kUnknown;
  for (const int32_t* link = fabric_.out.First(node); link != fabric_.out.Last(node); ++link) {
    if (network_.links[*link].bytes_per_ps <= 0) continue;
    nearest = std::min(nearest, 1 + SearchFrom(network_.links[*link].to, nearest));
  }
  return nearest;
}

// Up to `most`, inclusive: of paths that are equally long all must be known.
int32_t Router::SearchFrom(int32_t forwarder, int32_t most) {
  int32_t nearest = most;
  bool found = false;
  for (const auto& field : aim_) {
    if (fabric_.part[field->root()] != fabric_.part[forwarder]) continue;
    const int32_t there = field->At(forwarder, nearest);
    if (there == Field::kUnknown) continue;
    nearest = std::min(nearest, there + aim_offset_);
    found = true;
  }
  return found ? nearest : Field::kUnknown;
}

int32_t Router::Known(int32_t node) const {
  if (node == destination_) return 0;
  int32_t nearest = Field::kUnknown;
  for (const auto& field : aim_) {
    if (fabric_.part[field->root()] != fabric_.part[node]) continue;
    nearest = std::min(nearest, field->Known(node) + aim_offset_);
  }
  return nearest;
}

// From whichever end has fewer links: a spine's thousands of leaves are not looked at.
void Router::LinksBetween(int32_t node, int32_t next, std::vector<int32_t>& links) const {
  const int32_t *first = out_.First(node), *last = out_.Last(node);
  if (in_.Last(next) - in_.First(next) < last - first) {
    first = in_.First(next);
    last = in_.Last(next);
  }
  for (; first != last; ++first) {
    const NetworkLink& link = network_.links[*first];
    if (link.from == node && link.to == next && link.bytes_per_ps > 0) links.push_back(*first);
  }
}

void Router::Closer(int32_t node, int32_t distance, std::vector<int32_t>& links) const {
  links.clear();
  if (distance == 1) {
    LinksBetween(node, destination_, links);
    return;
  }
  if (distance == 2 && aim_offset_ == 1 && network_.forwards[node]) {
    const auto here = [&](const auto& field) {
      return fabric_.part[field->root()] == fabric_.part[node];
    };
    const auto aim = std::find_if(aim_.begin(), aim_.end(), here);
    if (std::find_if(aim + 1, aim_.end(), here) == aim_.end()) {
      LinksBetween(node, (*aim)->root(), links);
      return;
    }
  }
  for (const int32_t* link = fabric_.out.First(node); link != fabric_.out.Last(node); ++link) {
    if (network_.links[*link].bytes_per_ps <= 0) continue;
    if (Known(network_.links[*link].to) == distance - 1) links.push_back(*link);
  }
}

void Router::Walk(Route& route, int32_t node, int32_t distance, uint64_t flow) {
  for (; node != destination_; --distance) {
    Closer(node, distance, links_);
    const int32_t link = links_[links_.size() == 1 ? 0 : Mix(flow, node) % links_.size()];
    route.hops.push_back({link, 1});
    route.latency = After(route.latency, network_.links[link].latency);
    node = network_.links[link].to;
  }
}

std::shared_ptr<Route> Router::Path(int32_t source, uint64_t flow) {
  auto route = std::make_shared<Route>();
  route->hops.reserve(distance_);
  Walk(*route, source, distance_, flow);
  route->first_hops = 1;
  return route;
}

std::shared_ptr<Route> Router::Fan(int32_t source) {
  auto route = std::make_shared<Route>();
  std::vector<int32_t> level = {source}, next, links;
  share_[source] = 1;
  latency_[source] = 0;
  for (int32_t distance = distance_; level.front() != destination_; --distance) {
    next.clear();
    for (int32_t node : level) {
      Closer(node, distance, links);
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
        latency_[to] = std::max(latency_[to], After(latency_[node], network_.links[link].latency));
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
  route.capacity = route.port_rate = kInfinity;
  for (size_t i = 0; i < route.hops.size(); ++i) {
    route.capacity = std::min(route.capacity, rate(route.hops[i]));
    if (i < static_cast<size_t>(route.first_hops)) route.port_rate = route.capacity;
  }
}

}  // namespace jaxcoll::sim
