#include "transport/rdma/offer.h"

#include <cstring>
#include <type_traits>

namespace jaxcoll {
namespace {

struct Header {
  uint64_t magic;
  uint64_t window_bytes;
  uint64_t window;
  uint64_t rings;
  uint64_t rail_count;
};
// "JXLCRDM1"; another byte order reads otherwise.
constexpr uint64_t kOfferMagic = 0x314d4452434c584a;
static_assert(std::is_trivially_copyable_v<RailAddress>);

}  // namespace

std::string RdmaOffer::Encode() const {
  const Header header = {kOfferMagic, window_bytes, window, rings, rails.size()};
  std::string text(sizeof(header) + rails.size() * sizeof(RailAddress), '\0');
  std::memcpy(text.data(), &header, sizeof(header));
  if (!rails.empty()) {
    std::memcpy(text.data() + sizeof(header), rails.data(), rails.size() * sizeof(RailAddress));
  }
  return text;
}

StatusOr<RdmaOffer> RdmaOffer::Decode(std::string_view text, size_t max_rails) {
  Header header{};
  if (text.size() < sizeof(header)) {
    return InvalidArgument("an rdma offer of " + std::to_string(text.size()) + " bytes");
  }
  std::memcpy(&header, text.data(), sizeof(header));
  if (header.magic != kOfferMagic) return InvalidArgument("an rdma offer of another version");
  if (header.rail_count > max_rails ||
      text.size() != sizeof(header) + header.rail_count * sizeof(RailAddress)) {
    return InvalidArgument("an rdma offer of " + std::to_string(header.rail_count) + " rails in " +
                           std::to_string(text.size()) + " bytes");
  }
  RdmaOffer offer{header.window_bytes, header.window, header.rings, {}};
  offer.rails.resize(header.rail_count);
  if (!offer.rails.empty()) {
    std::memcpy(offer.rails.data(), text.data() + sizeof(header),
                offer.rails.size() * sizeof(RailAddress));
  }
  for (RailAddress& rail : offer.rails) {
    for (char* name : {rail.device, rail.fabric}) {
      name[sizeof(rail.device) - 1] = '\0';
      for (char* c = name; *c != '\0'; ++c) {
        if (*c < ' ' || *c > '~') *c = '?';
      }
    }
    if (rail.mtu < 1 || rail.mtu > 5) rail.mtu = 1;
  }
  return offer;
}

std::vector<std::optional<RdmaPort>> CounterpartsOf(const RdmaOffer& offer,
                                                    const std::vector<RdmaPort>& ports) {
  std::vector<std::optional<RdmaPort>> counterparts;
  for (size_t i = 0; i < offer.rails.size(); ++i) {
    std::vector<RdmaPort> possible;
    std::optional<RdmaPort> chosen;
    for (const RdmaPort& port : ports) {
      if (port.Fabric() != offer.rails[i].fabric) continue;
      possible.push_back(port);
      if (port.Name() == offer.rails[i].device) chosen = port;
    }
    if (!chosen && !possible.empty()) chosen = possible[i % possible.size()];
    counterparts.push_back(chosen);
  }
  return counterparts;
}

}  // namespace jaxcoll
