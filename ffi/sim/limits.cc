#include "sim/limits.h"

#include <algorithm>
#include <cstdio>
#include <limits>
#include <utility>

#include "base/range.h"

namespace jaxcoll::sim {
namespace {

constexpr double kMostTimeAsDouble = static_cast<double>(kMostTime);
constexpr double kMostFinite = std::numeric_limits<double>::max();
constexpr double kMostBytesAsDouble = static_cast<double>(kMostBytes);

std::string Short(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g", value);
  return text;
}

// Bytes of background traffic that ends.
double FiniteBytes(const Network& network, const Parameters& p) {
  std::vector<double> links_out(network.node_names.size(), 0);
  for (const NetworkLink& link : network.links) ++links_out[link.from];
  double bytes = 0;
  for (const Background& traffic : p.background) {
    // By a share, as many by each link: at most by all of the source's.
    const double ways = traffic.share > 0 ? links_out[traffic.source] : 1;
    bytes += static_cast<double>(traffic.bytes.value_or(0)) * ways;
  }
  return bytes;
}

Status CheckParameters(const Network& network, const Parameters& p) {
  const struct {
    const char* what;
    int64_t value, low, high;
  } integers[] = {
      {"the number of parts of a message", p.split, 1, kMostParts},
      {"the number of messages in flight", p.in_flight, 0, INT32_MAX},
  };
  for (const auto& [what, value, low, high] : integers) {
    if (Status s = CheckRange(what, value, low, high); !s.ok()) return s;
  }
  const struct {
    const char* what;
    double value, most;
  } numbers[] = {
      // If infinite, it is refused where something is reduced or copied.
      {"the time of a reduction per byte", p.reduce_ps_per_byte, kInfinity},
      {"the time of a copy per byte", p.copy_ps_per_byte, kInfinity},
      {"the efficiency", p.efficiency, 1},
      {"the jitter", p.jitter, kMostFinite},
      {"the unfairness", p.unfairness, kMostUnfairness},
  };
  for (const auto& [what, value, most] : numbers) {
    if (Status s = CheckNumber(what, value, most); !s.ok()) return s;
  }
  if (p.efficiency == 0) return InvalidArgument("the efficiency is 0, so that no message ends");
  for (double slowdown : p.slowdown) {
    if (Status s = CheckNumber("a slowdown", slowdown); !s.ok()) return s;
  }
  const std::pair<const char*, Time> times[] = {
      {"an overhead takes", p.overhead},
      {"a message's latency is", p.latency},
      {"the quantum is", p.quantum},
  };
  for (const auto& [what, time] : times) {
    if (Status s = CheckTime(what, static_cast<double>(time)); !s.ok()) return s;
  }
  for (const LinkChange& change : p.changes) {
    if (Status s = CheckTime("a link changes at", static_cast<double>(change.time)); !s.ok())
      return s;
  }
  for (Time start : p.start) {
    if (Status s = CheckTime("a rank starts at", static_cast<double>(start)); !s.ok()) return s;
  }
  for (const Background& traffic : p.background) {
    if (traffic.bytes.value_or(0) < 0) {
      return InvalidArgument("background traffic has " + std::to_string(*traffic.bytes) + " bytes");
    }
    if (Status s = CheckTime("traffic begins at", static_cast<double>(traffic.time)); !s.ok())
      return s;
  }
  return CheckBytes("the bytes of background traffic together", FiniteBytes(network, p));
}

}  // namespace

Status TimeOutOfRange(const std::string& what, double ps) {
  return InvalidArgument(what + " " + Short(ps / kPicosecondsPerSecond) + " s, " +
                         Short(ps / kMostTimeAsDouble) + " times the most that can be simulated, " +
                         Short(kMostTimeAsDouble / kPicosecondsPerSecond) + " s");
}

Status CheckTime(const std::string& what, double ps) {
  if (ps > kMostTimeAsDouble) return TimeOutOfRange(what, ps);
  if (ps >= 0) return {};
  return InvalidArgument(what + " " + Short(ps / kPicosecondsPerSecond) +
                         " s, but must be 0 or more");  // or is not a number
}

Status CheckBytes(const std::string& what, double bytes) {
  if (bytes <= kMostBytesAsDouble) return {};
  return InvalidArgument(what + " are " + Short(bytes) + " bytes, " +
                         Short(bytes / kMostBytesAsDouble) +
                         " times the most that can be simulated, " + Short(kMostBytesAsDouble));
}

Status CheckNumber(const std::string& what, double value, double most) {
  if (value >= 0 && value <= most) return {};
  return InvalidArgument(
      what + " is " + Short(value) + ", but must be " +
      (most < kMostFinite ? "from 0 to " + Short(most) : "finite, and 0 or more"));
}

Status CheckNode(const Network& network, const std::string& what, int64_t node) {
  return CheckRange(what, node, 0, int64_t{network.node_count()} - 1);
}

Status CheckNetwork(const Network& network) {
  if (Status s = CheckRange("the number of nodes", static_cast<int64_t>(network.node_names.size()),
                            0, kMostNodes);
      !s.ok()) {
    return s;
  }
  double latencies = 0;
  for (const NetworkLink& link : network.links) {
    if (Status s = CheckNode(network, "a link's source", link.from); !s.ok()) return s;
    if (Status s = CheckNode(network, "a link's destination", link.to); !s.ok()) return s;
    if (Status s = CheckNumber("a link's capacity in bytes per picosecond", link.bytes_per_ps);
        !s.ok()) {
      return s;
    }
    const auto latency = static_cast<double>(link.latency);
    if (Status s = CheckNumber("a link's latency in picoseconds", latency); !s.ok()) return s;
    latencies += latency;
  }
  return CheckTime("the latencies of all links together are", latencies);
}

Status CheckRanges(const Graph& graph, const Network& network, const std::vector<int32_t>& node_of,
                   int64_t block_elements, int64_t element_bytes, const Parameters& p) {
  if (Status s = CheckParameters(network, p); !s.ok()) return s;
  if (Status s = CheckRange("the number of elements of a block", block_elements, 0, kMostBytes);
      !s.ok()) {
    return s;
  }
  if (Status s = CheckRange("the size of an element", element_bytes, 0, kMostBytes); !s.ok()) {
    return s;
  }
  // First one block, since an op's bytes are computed in whole numbers.
  const double block = static_cast<double>(block_elements) * static_cast<double>(element_bytes);
  const int64_t blocks =
      int64_t{graph.input_blocks()} + graph.output_blocks() + std::max(1, graph.scratch_blocks());
  if (Status s = CheckBytes("a rank's buffers", block * static_cast<double>(blocks)); !s.ok()) {
    return s;
  }
  const std::vector<int64_t> extent_bytes = graph.ExtentBytes(block_elements, element_bytes);
  const auto ranks = static_cast<size_t>(graph.world_size());
  std::vector<double> sent(ranks, 0), work(ranks, 0);
  double total = 0;
  for (uint32_t op = 0; op < graph.op_count(); ++op) {
    const auto rank = static_cast<size_t>(graph.chain_of(op).rank);
    const auto bytes = static_cast<double>(extent_bytes[graph.node(op).extent]);
    switch (graph.kind(op)) {
      case OpKind::kSend:
        sent[rank] += bytes;
        total += bytes;
        break;
      case OpKind::kRecvReduce:
        work[rank] += p.reduce_ps_per_byte * bytes;
        break;
      case OpKind::kReduce:
        work[rank] += p.reduce_ps_per_byte * bytes * (graph.arity(op) - 1);
        break;
      case OpKind::kCopy:
        work[rank] += p.copy_ps_per_byte * bytes;
        break;
      case OpKind::kRecv:
        break;
    }
  }
  if (Status s = CheckBytes("all messages together", total); !s.ok()) return s;
  std::vector<double> leaves(network.node_names.size(), 0);  // bytes per picosecond
  for (const NetworkLink& link : network.links) leaves[link.from] += link.bytes_per_ps;
  for (const LinkChange& change : p.changes) {
    leaves[network.links[change.link].from] += change.bytes_per_ps;
  }
  for (size_t rank = 0; rank < ranks; ++rank) {
    const double factor = p.slowdown.empty() ? 1 : p.slowdown[rank];
    const std::string of = " of rank " + std::to_string(rank) + " take";
    if (Status s = CheckTime("the reductions and copies" + of, work[rank] * factor); !s.ok()) {
      return s;
    }
    const double rate = leaves[node_of[rank]] * p.efficiency;
    if (sent[rank] <= 0 || rate <= 0) continue;
    if (Status s = CheckTime("the messages" + of, sent[rank] / rate); !s.ok()) return s;
  }
  return {};
}

}  // namespace jaxcoll::sim
