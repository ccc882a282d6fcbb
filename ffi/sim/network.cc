#include "sim/network.h"

namespace jaxcoll::sim {
namespace {

template <typename OwnerOf>
Adjacency Group(const Network& network, OwnerOf owner_of) {
  Adjacency result;
  result.begin.assign(network.node_names.size() + 1, 0);
  for (const NetworkLink& link : network.links) ++result.begin[owner_of(link) + 1];
  for (size_t i = 1; i < result.begin.size(); ++i) result.begin[i] += result.begin[i - 1];
  result.items.resize(network.links.size());
  std::vector<int32_t> next(result.begin.begin(), result.begin.end() - 1);
  for (int32_t i = 0; i < network.link_count(); ++i) {
    result.items[next[owner_of(network.links[i])]++] = i;
  }
  return result;
}

}  // namespace

Adjacency LinksOut(const Network& network) {
  return Group(network, [](const NetworkLink& link) { return link.from; });
}

Adjacency LinksIn(const Network& network) {
  return Group(network, [](const NetworkLink& link) { return link.to; });
}

}  // namespace jaxcoll::sim
