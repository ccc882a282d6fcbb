// The choice of a link's ports, and why there may be none.
#include <algorithm>
#include <optional>

#include "transport/rdma/offer.h"
#include "transport/rdma/rdma.h"
#include "transport/rdma/verbs.h"

namespace jaxcoll {

StatusOr<std::unique_ptr<RdmaLink>> RdmaLink::Prepare(const RdmaConfig& config, size_t window_bytes,
                                                      std::string_view client_offer) {
  const RdmaPorts found = FindRdmaPorts(config, NumaNodeOfThisThread());
  std::vector<std::optional<RdmaPort>> ports;
  if (client_offer.empty()) {
    ports.assign(found.usable.begin(), found.usable.end());
    if (ports.size() > kMaxRails) ports.resize(kMaxRails);
  } else {
    const StatusOr<RdmaOffer> offer = RdmaOffer::Decode(client_offer, kMaxRails);
    if (!offer.ok()) return offer.status();
    ports = CounterpartsOf(*offer, found.usable);
  }
  if (std::none_of(ports.begin(), ports.end(), [](const auto& port) { return port.has_value(); })) {
    std::string why = "no RDMA port of this host can be used";
    for (const std::string& left_out : found.left_out) why += "; " + left_out;
    if (!client_offer.empty()) why += "; or none is on the peer's fabric";
    return Status(StatusCode::kUnavailable, why);
  }
  return Make(config, window_bytes, ports);
}

std::string WhyNoRdma(const RdmaConfig& config, size_t window_bytes) {
  const RdmaPorts found = FindRdmaPorts(config, NumaNodeOfThisThread());
  if (found.usable.empty()) {
    std::string why;
    for (const std::string& left_out : found.left_out) why += (why.empty() ? "" : "; ") + left_out;
    return why.empty() ? "this machine has no RDMA device (/sys/class/infiniband is empty)" : why;
  }
  if (const auto loaded = verbs::Load(); !loaded.ok()) return loaded.status().message();
  const auto link = RdmaLink::Prepare(config, window_bytes, "");
  return link.ok() ? "" : link.status().message();
}

}  // namespace jaxcoll
