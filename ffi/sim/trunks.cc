#include "sim/trunks.h"

#include <map>
#include <tuple>

namespace jaxcoll::sim {

Trunks::Trunks(const Network& network, const std::vector<bool>& alone)
    : merged_{network.node_names, network.forwards, {}} {
  std::map<std::tuple<int32_t, int32_t, double, Time>, int32_t> known;
  for (int32_t l = 0; l < network.link_count(); ++l) {
    const NetworkLink& link = network.links[l];
    const auto next = static_cast<int32_t>(merged_.links.size());
    int32_t trunk = next;
    if (!alone[l]) {
      if (link.bytes_per_ps <= 0) {
        trunk_of_.push_back(kNone);
        continue;
      }
      const std::tuple kind(link.from, link.to, link.bytes_per_ps, link.latency);
      trunk = known.try_emplace(kind, next).first->second;
    }
    trunk_of_.push_back(trunk);
    if (trunk == next) {
      merged_.links.push_back(link);
    } else {
      merged_.links[trunk].bytes_per_ps += link.bytes_per_ps;
      ++merged_.links[trunk].ways;
    }
  }
}

std::vector<int64_t> Trunks::PerLink(const std::vector<int64_t>& per_trunk) const {
  std::vector<int64_t> bytes, given(merged_.links.size(), 0);
  for (int32_t trunk : trunk_of_) {
    if (trunk == kNone) {
      bytes.push_back(0);
      continue;
    }
    const int64_t ways = merged_.links[trunk].ways, way = given[trunk]++;
    bytes.push_back(per_trunk[trunk] / ways + (way < per_trunk[trunk] % ways ? 1 : 0));
  }
  return bytes;
}

}  // namespace jaxcoll::sim
