// The messages that the two sides exchange to set up an rdma link.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "transport/rdma/rail.h"

namespace jaxcoll {

struct RdmaOffer {
  uint64_t window_bytes = 0;
  uint64_t window = 0;             // addresses, as the NIC knows them
  uint64_t rings = 0;              // of the first rail; the others' follow
  std::vector<RailAddress> rails;  // the server's in the order of the client's counterparts

  std::string Encode() const;
  // Takes nobody's word for it.
  static StatusOr<RdmaOffer> Decode(std::string_view text, size_t max_rails);
};

// For each rail of a client the port here that it is joined to, if one is of its fabric: the one of
// the same name, as in a cluster of equal machines, where NICs of one name are on one rail; else
// they are shared out in order.
std::vector<std::optional<RdmaPort>> CounterpartsOf(const RdmaOffer& offer,
                                                    const std::vector<RdmaPort>& ports);

}  // namespace jaxcoll
