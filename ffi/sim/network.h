// A modelled network: nodes joined by directed links. A cable that carries traffic both ways is two
// links. The placement assigns ranks to nodes that are endpoints.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "base/status.h"

namespace jaxcoll::sim {

// Picoseconds: fine enough for one byte at 8 Tb/s, and 2^63 of them are 106 days.
using Time = int64_t;
inline constexpr double kPicosecondsPerSecond = 1e12;
inline constexpr Time kNever = std::numeric_limits<Time>::max();
inline constexpr double kInfinity = std::numeric_limits<double>::infinity();  // of a rate

// `duration` after `time`, both from 0 on; kNever where that is out of the type's range.
inline Time After(Time time, Time duration) {
  return duration > kNever - time ? kNever : time + duration;
}

struct NetworkLink {
  int32_t from = 0;
  int32_t to = 0;
  double bytes_per_ps = 0;  // 0: failed
  Time latency = 0;
  // Parallel links that it stands for, with what they carry together; see trunks.h.
  int32_t ways = 1;
};

struct Network {
  std::vector<std::string> node_names;  // for error messages
  std::vector<uint8_t> forwards;        // by node: whether traffic of others may pass through it
  std::vector<NetworkLink> links;

  int32_t node_count() const { return static_cast<int32_t>(node_names.size()); }
  int32_t link_count() const { return static_cast<int32_t>(links.size()); }
  std::string LinkName(int32_t link) const {
    return node_names[links[link].from] + " -> " + node_names[links[link].to];
  }
};

// Lists of small integers, one per owner, side by side.
struct Adjacency {
  std::vector<int32_t> begin;  // by owner, and the end of the last
  std::vector<int32_t> items;

  const int32_t* First(int32_t owner) const { return items.data() + begin[owner]; }
  const int32_t* Last(int32_t owner) const { return items.data() + begin[owner + 1]; }
};

// The links that leave, or reach, every node, in ascending order; those alone that `wanted` takes.
using LinkTest = std::function<bool(const NetworkLink&)>;
Adjacency LinksOut(const Network& network, const LinkTest& wanted = {});
Adjacency LinksIn(const Network& network, const LinkTest& wanted = {});

// By node: whether a path leads to it from `start`, or to `start` from it, through nodes that
// forward.
std::vector<uint8_t> Reachable(const Network& network, int32_t start, bool backwards);

// Mixes `value` into `seed`; all draws of the simulator come from here, so that they depend on the
// purpose of the draw and not on the order of events (Steele et al., "Fast splittable pseudorandom
// number generators", 2014).
inline uint64_t Mix(uint64_t seed, uint64_t value) {
  uint64_t z = seed + 0x9e3779b97f4a7c15u * (value + 1);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

}  // namespace jaxcoll::sim
