// The ranges of the simulator's numbers, and the check of all totals of a run against them.
//
// Times are whole picoseconds and bytes whole numbers, both of 63 bits. Half of that range is used,
// so that a sum of two never leaves it. Totals that are known before a run are checked before:
// bytes in all, and the work of the busiest rank, which the run cannot be shorter than. The end of
// a run is not known, so that every time is also checked when it is set (Simulation::At).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "sim/graph.h"
#include "sim/simulator.h"

namespace jaxcoll::sim {

inline constexpr Time kMostTime = Time{1} << 62;  // 53 days
inline constexpr int64_t kMostBytes = int64_t{1} << 62;
inline constexpr double kMostUnfairness = 100;  // e to the power of six times it is still a number

// "the reductions of rank 3 take 1e+13 s, 2.2e+06 times the most that can be simulated, 4.61e+06 s"
Status TimeOutOfRange(const std::string& what, double ps);

// Fails, telling what is out of range and by how much.
Status CheckRanges(const Graph& graph, const Network& network, const std::vector<int32_t>& node_of,
                   int64_t block_elements, int64_t element_bytes, const Parameters& parameters);

}  // namespace jaxcoll::sim
