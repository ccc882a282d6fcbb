// The ranges of the simulator's numbers, and the check of all totals of a run against them.
//
// Times are whole picoseconds and bytes whole numbers, both of 63 bits. Half of that range is used,
// so that a sum of two never leaves it. Totals that are known before a run are checked before:
// bytes in all, and the work of the busiest rank, which the run cannot be shorter than. The end of
// a run is not known, so that every time is also checked when it is set (Simulation::At).
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "base/status.h"
#include "sim/graph.h"
#include "sim/simulator.h"

namespace jaxcoll::sim {

inline constexpr Time kMostTime = Time{1} << 62;  // 53 days
inline constexpr int64_t kMostBytes = int64_t{1} << 62;
inline constexpr int32_t kMostNodes = (1 << 22) - 1;
inline constexpr int32_t kMostChannels = 1 << 12;
inline constexpr int32_t kMostParts = 1 << 8;   // of a message; all three so that Router's keys fit
inline constexpr double kMostUnfairness = 100;  // e to the power of six times it is still a number

// "the reductions of rank 3 take 1e+13 s, 2.2e+06 times the most that can be simulated, 4.61e+06 s"
Status TimeOutOfRange(const std::string& what, double ps);

// Fail, telling what is out of range and by how much.
Status CheckTime(const std::string& what, double ps);
Status CheckBytes(const std::string& what, double bytes);
// From 0 to `most`; by default all that are finite.
Status CheckNumber(const std::string& what, double value,
                   double most = std::numeric_limits<double>::max());
// A node's number.
Status CheckNode(const Network& network, const std::string& what, int64_t node);
// Ends that exist, capacities and latencies. The latencies of all links together are in range, so
// those of a path are.
Status CheckNetwork(const Network& network);
Status CheckRanges(const Graph& graph, const Network& network, const std::vector<int32_t>& node_of,
                   int64_t block_elements, int64_t element_bytes, const Parameters& parameters);

}  // namespace jaxcoll::sim
