#include "sim/limits.h"

#include <algorithm>
#include <cstdio>

namespace jaxcoll::sim {
namespace {

constexpr double kMostTimeAsDouble = static_cast<double>(kMostTime);
constexpr double kMostBytesAsDouble = static_cast<double>(kMostBytes);

std::string Short(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g", value);
  return text;
}

Status CheckTime(const std::string& what, double ps) {
  return ps <= kMostTimeAsDouble ? Status() : TimeOutOfRange(what, ps);  // nor is NaN
}

Status CheckBytes(const std::string& what, double bytes) {
  if (bytes <= kMostBytesAsDouble) return {};
  return InvalidArgument(what + " are " + Short(bytes) + " bytes, " +
                         Short(bytes / kMostBytesAsDouble) +
                         " times the most that can be simulated, " + Short(kMostBytesAsDouble));
}

Status CheckParameters(const Network& network, const Parameters& p) {
  double latencies = 0;
  for (const NetworkLink& link : network.links) latencies += static_cast<double>(link.latency);
  struct {
    const char* what;
    double ps;
  } const times[] = {
      {"an overhead takes", static_cast<double>(p.overhead)},
      {"a message's latency is", static_cast<double>(p.latency)},
      {"the quantum is", static_cast<double>(p.quantum)},
      {"the latencies of all links together are", latencies},
  };
  for (const auto& [what, ps] : times) {
    if (Status s = CheckTime(what, ps); !s.ok()) return s;
  }
  for (const LinkChange& change : p.changes) {
    if (Status s = CheckTime("a link changes at", static_cast<double>(change.time)); !s.ok()) {
      return s;
    }
  }
  for (Time start : p.start) {
    if (Status s = CheckTime("a rank starts at", static_cast<double>(start)); !s.ok()) return s;
  }
  double background = 0;
  for (const Background& traffic : p.background) {
    background += static_cast<double>(traffic.bytes);
    if (Status s = CheckTime("traffic begins at", static_cast<double>(traffic.time)); !s.ok()) {
      return s;
    }
  }
  return CheckBytes("the bytes of background traffic together", background);
}

}  // namespace

Status TimeOutOfRange(const std::string& what, double ps) {
  return InvalidArgument(what + " " + Short(ps / kPicosecondsPerSecond) + " s, " +
                         Short(ps / kMostTimeAsDouble) + " times the most that can be simulated, " +
                         Short(kMostTimeAsDouble / kPicosecondsPerSecond) + " s");
}

Status CheckRanges(const Graph& graph, const Network& network, const std::vector<int32_t>& node_of,
                   int64_t block_elements, int64_t element_bytes, const Parameters& p) {
  if (Status s = CheckParameters(network, p); !s.ok()) return s;
  // First one block, since an op's bytes are computed in whole numbers.
  const double block = static_cast<double>(block_elements) * static_cast<double>(element_bytes);
  const int64_t blocks = int64_t{graph.input_blocks()} + graph.output_blocks() + 1;
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
