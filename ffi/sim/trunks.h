// Parallel links with equal load, simulated as one. Where every packet may take any of them
// (Routing::kSpray), cables of one capacity between the same two switches carry equal shares of
// every flow, and so always have the same rates: a leaf with 32 cables to each of 8 spines costs as
// much as one with 8 cables.
#pragma once

#include <cstdint>
#include <vector>

#include "sim/network.h"

namespace jaxcoll::sim {

class Trunks {
 public:
  static constexpr int32_t kNone = -1;  // of a link without capacity, which nothing can take

  // Links in `alone` are not joined, as is necessary for links that will change during the run.
  Trunks(const Network& network, const std::vector<bool>& alone);

  // The same nodes, and one link for each trunk, in the order of their first links.
  const Network& network() const { return merged_; }
  // By link of the original network: its trunk.
  int32_t trunk_of(int32_t link) const { return trunk_of_[link]; }
  // The bytes that each original link carried: an equal share, up to a byte, of what its trunk did.
  std::vector<int64_t> PerLink(const std::vector<int64_t>& per_trunk) const;

 private:
  Network merged_;
  std::vector<int32_t> trunk_of_;
};

}  // namespace jaxcoll::sim
