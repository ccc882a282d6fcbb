#include "sim/network.h"

namespace jaxcoll::sim {
namespace {

template <typename OwnerOf>
Adjacency Group(const Network& network, const LinkTest& wanted, OwnerOf owner_of) {
  Adjacency result;
  result.begin.assign(network.node_names.size() + 1, 0);
  for (const NetworkLink& link : network.links) {
    if (!wanted || wanted(link)) ++result.begin[owner_of(link) + 1];
  }
  for (size_t i = 1; i < result.begin.size(); ++i) result.begin[i] += result.begin[i - 1];
  result.items.resize(result.begin.back());
  std::vector<int32_t> next(result.begin.begin(), result.begin.end() - 1);
  for (int32_t i = 0; i < network.link_count(); ++i) {
    const NetworkLink& link = network.links[i];
    if (!wanted || wanted(link)) result.items[next[owner_of(link)]++] = i;
  }
  return result;
}

}  // namespace

Adjacency LinksOut(const Network& network, const LinkTest& wanted) {
  return Group(network, wanted, [](const NetworkLink& link) { return link.from; });
}

Adjacency LinksIn(const Network& network, const LinkTest& wanted) {
  return Group(network, wanted, [](const NetworkLink& link) { return link.to; });
}

std::vector<uint8_t> Reachable(const Network& network, int32_t start, bool backwards) {
  const Adjacency links = backwards ? LinksIn(network) : LinksOut(network);
  std::vector<uint8_t> seen(network.node_names.size(), 0);
  std::vector<int32_t> frontier = {start};
  seen[start] = 1;
  while (!frontier.empty()) {
    const int32_t node = frontier.back();
    frontier.pop_back();
    if (node != start && !network.forwards[node]) continue;
    for (const int32_t* link = links.First(node); link != links.Last(node); ++link) {
      const int32_t other = backwards ? network.links[*link].from : network.links[*link].to;
      if (seen[other]) continue;
      seen[other] = 1;
      frontier.push_back(other);
    }
  }
  return seen;
}

}  // namespace jaxcoll::sim
