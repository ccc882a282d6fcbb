// The ports of the NICs that carry an rdma link, and how they are addressed. Read from sysfs, which
// has more information than libibverbs and needs no open device.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace jaxcoll {

struct RdmaConfig {
  std::string devices;      // JAXCOLL_IB_HCA: "mlx5_0,mlx5_2:1", "^mlx5_3"; empty: all
  int gid_index = -1;       // JAXCOLL_IB_GID_INDEX; -1: chosen
  int service_level = 0;    // JAXCOLL_IB_SL
  int traffic_class = 0;    // JAXCOLL_IB_TC
  double deadline_s = 300;  // JAXCOLL_TIMEOUT_S: retry limits are a fraction of it
  // JAXCOLL_IB_REGISTER_BYTES: buffers of calls from this size on are registered instead of copied;
  // 0: never.
  uint64_t register_bytes = 0;
  std::string sysfs = "/sys/class/infiniband";  // a subfolder for each device
};

struct RdmaPort {
  std::string device;
  int port = 1;
  bool ethernet = false;  // RoCE; else InfiniBand
  int gid_index = 0;
  std::array<uint8_t, 16> gid{};
  int numa_node = -1;  // -1: unknown, or there is but one

  std::string Name() const { return device + ":" + std::to_string(port); }
  // The properties that both ends of a connection must have in common.
  std::string Fabric() const;
};

struct RdmaPorts {
  std::vector<RdmaPort> usable;       // the nearest first
  std::vector<std::string> left_out;  // the others, and why
};

// `near_node` is the NUMA node to be near to, or -1.
RdmaPorts FindRdmaPorts(const RdmaConfig& config, int near_node);
int NumaNodeOfThisThread();

// "fe80::1" without the abbreviation: as sysfs writes it.
std::string GidText(const std::array<uint8_t, 16>& gid);

// How long a NIC retries before it fails a rail, in the units of queue pairs. All retries take a
// tenth of the deadline, so that traffic can move to another rail before a call fails.
struct RdmaRetries {
  uint8_t ack_timeout;      // 4.096 us * 2^this, per try
  uint8_t retry_count = 7;  // the most there is
  uint8_t rnr_timer;        // how long a receiver without a posted receive delays a sender
  // Not 7, which means forever. Credits ensure that receives never run out, so this is for peers
  // that break the protocol.
  uint8_t rnr_retry_count = 6;
};
RdmaRetries RetriesFor(double deadline_s);

}  // namespace jaxcoll
