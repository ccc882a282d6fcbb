#include "sim/ledger.h"

#include <algorithm>
#include <string>

namespace jaxcoll::sim {

Ledger::Ledger(const Network& network)
    : network_(network),
      link_bytes_(network.links.size(), 0),
      sent_(network.node_names.size(), 0),
      received_(network.node_names.size(), 0),
      entries_(network.links.size(), 0),
      allowance_(network.links.size(), 0),
      since_(network.links.size(), 0),
      at_node_(network.node_names.size(), 0) {
  for (const NetworkLink& link : network.links) capacity_.push_back(link.bytes_per_ps);
  top_capacity_ = capacity_;
}

void Ledger::Enter(const Route& route, int32_t source, int32_t destination, int64_t bytes) {
  sent_[source] += bytes;
  received_[destination] += bytes;
  at_node_[source] = bytes;
  const size_t count = route.hops.size();
  for (size_t i = 0; i < count;) {
    const int32_t from = network_.links[route.hops[i].link].from;
    int64_t ways = 0;
    size_t end = i;
    for (; end < count && network_.links[route.hops[end].link].from == from; ++end) {
      ways += network_.links[route.hops[end].link].ways;
    }
    const int64_t each = at_node_[from] / ways;
    int64_t rest = at_node_[from] % ways;  // one byte more for the first ways
    at_node_[from] = 0;
    for (; i < end; ++i) {
      const int32_t link = route.hops[i].link;
      const int64_t here = network_.links[link].ways, more = std::min(here, rest);
      rest -= more;
      link_bytes_[link] += each * here + more;
      entries_[link] += here;
      at_node_[network_.links[link].to] += each * here + more;
    }
  }
  at_node_[destination] = 0;
}

void Ledger::ChangeCapacity(int32_t link, double bytes_per_ps, Time now) {
  allowance_[link] += capacity_[link] * static_cast<double>(now - since_[link]);
  since_[link] = now;
  capacity_[link] = bytes_per_ps;
  top_capacity_[link] = std::max(top_capacity_[link], bytes_per_ps);
}

Status Ledger::Check(Time now) const {
  std::vector<int64_t> surplus(network_.node_names.size(), 0);
  for (int32_t l = 0; l < network_.link_count(); ++l) {
    surplus[network_.links[l].to] += link_bytes_[l];
    surplus[network_.links[l].from] -= link_bytes_[l];
    // An end is rounded to a picosecond, a rate to 40 bits, a share to a byte.
    const double allowed = allowance_[l] + capacity_[l] * static_cast<double>(now - since_[l]) +
                           static_cast<double>(entries_[l]) * (1 + top_capacity_[l]) +
                           static_cast<double>(link_bytes_[l]) * 1e-9;
    if (static_cast<double>(link_bytes_[l]) > allowed) {
      return Status(StatusCode::kInternal, "simulator: link " + network_.LinkName(l) + " carried " +
                                               std::to_string(link_bytes_[l]) + " bytes in " +
                                               std::to_string(now) +
                                               " ps, more than its capacity allows");
    }
  }
  for (size_t node = 0; node < surplus.size(); ++node) {
    if (surplus[node] != received_[node] - sent_[node]) {
      return Status(StatusCode::kInternal,
                    "simulator: node " + network_.node_names[node] + " lost or made up bytes: " +
                        std::to_string(surplus[node]) + " stayed there, " +
                        std::to_string(received_[node] - sent_[node]) + " should have");
    }
  }
  return {};
}

}  // namespace jaxcoll::sim
