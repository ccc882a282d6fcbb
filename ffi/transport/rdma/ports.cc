#include "transport/rdma/ports.h"

#include <sched.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <set>

namespace jaxcoll {
namespace {

namespace fs = std::filesystem;

// The first line of a file of sysfs; empty if there is none, or if reading it fails, as for entries
// of the GID table that are not in use.
std::string Line(const fs::path& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

std::set<std::string> Names(const fs::path& folder) {
  std::set<std::string> names;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    names.insert(it->path().filename().string());
  }
  return names;
}

std::optional<std::array<uint8_t, 16>> ParseGid(const std::string& text) {
  unsigned words[8];
  if (std::sscanf(text.c_str(), "%x:%x:%x:%x:%x:%x:%x:%x", &words[0], &words[1], &words[2],
                  &words[3], &words[4], &words[5], &words[6], &words[7]) != 8) {
    return std::nullopt;
  }
  std::array<uint8_t, 16> gid;
  for (int i = 0; i < 8; ++i) {
    gid[2 * i] = static_cast<uint8_t>(words[i] >> 8);
    gid[2 * i + 1] = static_cast<uint8_t>(words[i]);
  }
  return gid;
}

// Routable RoCE v2 first, by IPv4 before IPv6; then what reaches only the same link. 0: of no use.
int Worth(const std::array<uint8_t, 16>& gid, const std::string& type) {
  static constexpr std::array<uint8_t, 16> kNone{};
  if (gid == kNone) return 0;
  const bool v2 = type.find("v2") != std::string::npos;
  const bool ipv4 = std::all_of(gid.begin(), gid.begin() + 10, [](uint8_t b) { return b == 0; }) &&
                    gid[10] == 0xff && gid[11] == 0xff;
  const bool link_local = gid[0] == 0xfe && (gid[1] & 0xc0) == 0x80;
  return (v2 ? 10 : 0) + (ipv4 ? 3 : link_local ? 1 : 2);
}

// The parsed value of JAXCOLL_IB_HCA.
class Choice {
 public:
  explicit Choice(const std::string& list) : excludes_(list.empty() || list[0] == '^') {
    for (size_t begin = excludes_ ? 1 : 0; begin < list.size();) {
      const size_t end = std::min(list.find(',', begin), list.size());
      names_.push_back({list.substr(begin, end - begin)});
      begin = end + 1;
    }
  }

  bool Takes(const RdmaPort& port) {
    bool named = false;
    for (Name& name : names_) {
      if (name.text != port.device && name.text != port.Name()) continue;
      named = name.found = true;
    }
    return named != excludes_;
  }
  // Names that no port had. Those that are excluded need not be there.
  std::vector<std::string> NotFound() const {
    std::vector<std::string> names;
    for (const Name& name : names_) {
      if (!name.found && !excludes_) names.push_back(name.text);
    }
    return names;
  }

 private:
  struct Name {
    std::string text;
    bool found = false;
  };
  const bool excludes_;
  std::vector<Name> names_;
};

// Chooses the GID; returns why there is none.
std::string ChooseGid(const fs::path& folder, int wanted_index, RdmaPort& port) {
  int best = 0;
  for (const std::string& name : Names(folder / "gids")) {
    const int index = std::atoi(name.c_str());
    if (wanted_index >= 0 && index != wanted_index) continue;
    const auto gid = ParseGid(Line(folder / "gids" / name));
    if (!gid) continue;
    const int worth = Worth(*gid, Line(folder / "gid_attrs" / "types" / name));
    // The lowest index among equals; names come in the order of text.
    if (worth < best || worth == 0 || (worth == best && index > port.gid_index)) continue;
    best = worth;
    port.gid_index = index;
    port.gid = *gid;
  }
  if (best > 0) return "";
  if (wanted_index >= 0) {
    return "entry " + std::to_string(wanted_index) +
           " of its GID table, JAXCOLL_IB_GID_INDEX, is not in use";
  }
  return "its GID table is empty: does its network interface have an address?";
}

}  // namespace

std::string RdmaPort::Fabric() const {
  if (ethernet) return "RoCE";
  std::array<uint8_t, 16> subnet = gid;
  std::fill(subnet.begin() + 8, subnet.end(), uint8_t{0});
  return "InfiniBand " + GidText(subnet).substr(0, 19);
}

std::string GidText(const std::array<uint8_t, 16>& gid) {
  std::string text;
  char word[8];
  for (int i = 0; i < 16; i += 2) {
    std::snprintf(word, sizeof(word), "%s%02x%02x", i == 0 ? "" : ":", gid[i], gid[i + 1]);
    text += word;
  }
  return text;
}

int NumaNodeOfThisThread() {
  unsigned cpu = 0, node = 0;
  return ::getcpu(&cpu, &node) == 0 ? static_cast<int>(node) : -1;
}

RdmaPorts FindRdmaPorts(const RdmaConfig& config, int near_node) {
  RdmaPorts found;
  Choice choice(config.devices);
  for (const std::string& device : Names(config.sysfs)) {
    const fs::path device_folder = fs::path(config.sysfs) / device;
    const std::string node = Line(device_folder / "device" / "numa_node");
    const std::string type = Line(device_folder / "node_type");
    for (const std::string& number : Names(device_folder / "ports")) {
      const fs::path port_folder = device_folder / "ports" / number;
      RdmaPort port;
      port.device = device;
      port.port = std::atoi(number.c_str());
      port.numa_node = node.empty() ? -1 : std::atoi(node.c_str());
      port.ethernet = Line(port_folder / "link_layer") == "Ethernet";
      const std::string state = Line(port_folder / "state");
      std::string why;
      if (!choice.Takes(port)) {
        why = "JAXCOLL_IB_HCA leaves it out";
      } else if (!type.empty() && type.find("CA") == std::string::npos) {
        why = "it is neither InfiniBand nor RoCE (" + type + ")";
      } else if (state.find("ACTIVE") == std::string::npos) {
        why = "its state is " + (state.empty() ? "unknown" : state);
      } else {
        why = ChooseGid(port_folder, port.ethernet ? config.gid_index : 0, port);
      }
      if (why.empty()) {
        found.usable.push_back(port);
      } else {
        found.left_out.push_back(port.Name() + ": " + why);
      }
    }
  }
  for (const std::string& name : choice.NotFound()) {
    found.left_out.push_back(name + ": JAXCOLL_IB_HCA names it, but this host has no such port");
  }
  std::stable_sort(found.usable.begin(), found.usable.end(), [&](const auto& a, const auto& b) {
    return (a.numa_node == near_node) > (b.numa_node == near_node);
  });
  return found;
}

RdmaRetries RetriesFor(double deadline_s) {
  RdmaRetries retries;
  // 20, 4.3 s a try, is what large fabrics ask for after a switch fails; 14, 67 ms, still tells a
  // busy peer from a dead one.
  const double try_s = deadline_s / 10 / (retries.retry_count + 1);
  retries.ack_timeout = 14;
  while (retries.ack_timeout < 20 && 4.096e-6 * (2 << retries.ack_timeout) <= try_s) {
    ++retries.ack_timeout;
  }
  // From the table of timer values: 0.64 ms and 82 ms.
  retries.rnr_timer = deadline_s / 10 < retries.rnr_retry_count * 0.082 ? 12 : 26;
  return retries;
}

}  // namespace jaxcoll
