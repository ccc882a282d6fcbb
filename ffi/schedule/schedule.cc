#include "schedule/schedule.h"

#include <algorithm>
#include <array>
#include <limits>
#include <string>

#include "schedule/algorithms/algorithms.h"
#include "schedule/program_builder.h"

namespace jaxcoll {
namespace {

// Far above any machine; keeps every product of two of these within 64 bits.
constexpr int32_t kMaxWorldSize = 1 << 20;
constexpr int32_t kMaxChannels = 1 << 10;

Layout NoScratch(const ScheduleSpec&) { return {}; }

struct Algorithm {
  Collective collective;
  std::string_view name;
  Layout (*layout)(const ScheduleSpec&);
  void (*build)(ProgramBuilder&);  // one rank, one channel
};

constexpr std::array kAlgorithms = {
    Algorithm{Collective::kAllReduce, "direct", DirectAllReduceLayout, DirectAllReduce},
    Algorithm{Collective::kAllReduce, "direct2", Direct2AllReduceLayout, Direct2AllReduce},
    Algorithm{Collective::kAllReduce, "ring", RingAllReduceLayout, RingAllReduce},
    Algorithm{Collective::kAllReduce, "recursive_doubling", RecursiveDoublingAllReduceLayout,
              RecursiveDoublingAllReduce},
    Algorithm{Collective::kAllReduce, "halving_doubling", HalvingDoublingAllReduceLayout,
              HalvingDoublingAllReduce},
    Algorithm{Collective::kAllReduce, "double_tree", DoubleTreeAllReduceLayout,
              DoubleTreeAllReduce},
    Algorithm{Collective::kAllReduce, "hierarchical", HierarchicalAllReduceLayout,
              HierarchicalAllReduce},
    Algorithm{Collective::kReduceScatter, "direct", DirectReduceScatterLayout, DirectReduceScatter},
    Algorithm{Collective::kReduceScatter, "ring", RingReduceScatterLayout, RingReduceScatter},
    Algorithm{Collective::kReduceScatter, "recursive_halving", RecursiveHalvingReduceScatterLayout,
              RecursiveHalvingReduceScatter},
    Algorithm{Collective::kAllGather, "direct", NoScratch, DirectAllGather},
    Algorithm{Collective::kAllGather, "ring", NoScratch, RingAllGather},
    Algorithm{Collective::kAllGather, "recursive_doubling", NoScratch, RecursiveDoublingAllGather},
    Algorithm{Collective::kAllGather, "bruck", NoScratch, BruckAllGather},
    Algorithm{Collective::kAllToAll, "direct", NoScratch, DirectAllToAll},
    Algorithm{Collective::kAllToAll, "bruck", BruckAllToAllLayout, BruckAllToAll},
    Algorithm{Collective::kBroadcast, "direct", NoScratch, DirectBroadcast},
    Algorithm{Collective::kBroadcast, "binomial", NoScratch, BinomialBroadcast},
    Algorithm{Collective::kReduce, "direct", DirectReduceLayout, DirectReduce},
    Algorithm{Collective::kReduce, "binomial", BinomialReduceLayout, BinomialReduce},
    Algorithm{Collective::kPermute, "direct", NoScratch, DirectPermute},
};

// By Collective.
constexpr std::array<std::string_view, 7> kCollectiveNames = {
    "all_reduce", "reduce_scatter", "all_gather", "all_to_all", "broadcast", "reduce", "permute"};

Status Check(std::string_view what, int64_t value, int64_t low, int64_t high) {
  if (low <= value && value <= high) return {};
  return InvalidArgument(std::string(what) + " is " + std::to_string(value) +
                         ", but must be from " + std::to_string(low) + " to " +
                         std::to_string(high));
}

Status CheckPermutation(const ScheduleSpec& spec) {
  std::vector<bool> sends(spec.world_size), receives(spec.world_size);
  for (const auto& [source, destination] : spec.permutation) {
    if (Status s = Check("permutation source", source, 0, spec.world_size - 1); !s.ok()) return s;
    if (Status s = Check("permutation destination", destination, 0, spec.world_size - 1); !s.ok()) {
      return s;
    }
    if (sends[source] || receives[destination]) {
      return InvalidArgument("permutation names " +
                             (sends[source] ? "source " + std::to_string(source)
                                            : "destination " + std::to_string(destination)) +
                             " twice; each rank sends and receives at most once");
    }
    sends[source] = receives[destination] = true;
  }
  return {};
}

std::string Divisors(int32_t n) {
  std::string result;
  for (int32_t d = 1; d <= n; ++d) {
    if (n % d == 0) result += (d == 1 ? "" : ", ") + std::to_string(d);
  }
  return result;
}

Status CheckSpec(const ScheduleSpec& spec) {
  if (Status s = Check("world_size", spec.world_size, 1, kMaxWorldSize); !s.ok()) return s;
  if (Status s = Check("channels", spec.channels, 1, kMaxChannels); !s.ok()) return s;
  if (Status s = Check("root", spec.root, 0, spec.world_size - 1); !s.ok()) return s;
  if (spec.node_size != 0 && (spec.node_size < 0 || spec.world_size % spec.node_size != 0)) {
    return InvalidArgument("node_size is " + std::to_string(spec.node_size) +
                           ", but must be 0 (choose) or divide the world size " +
                           std::to_string(spec.world_size) + ": " + Divisors(spec.world_size));
  }
  return CheckPermutation(spec);
}

StatusOr<Algorithm> Find(const ScheduleSpec& spec) {
  std::string names;
  for (const Algorithm& algorithm : kAlgorithms) {
    if (algorithm.collective != spec.collective) continue;
    if (algorithm.name == spec.algorithm) return algorithm;
    names += (names.empty() ? "" : ", ") + std::string(algorithm.name);
  }
  return InvalidArgument(std::string(Name(spec.collective)) + " has no algorithm '" +
                         spec.algorithm + "'; it has " + names);
}

// Chunk indices are 32 bits wide, and so are the largest buffers of real schedules.
Status CheckLayout(const ScheduleSpec& spec, const Layout& layout) {
  const int64_t blocks =
      std::max<int64_t>({layout.scratch_blocks, InputBlocks(spec.collective, spec.world_size),
                         OutputBlocks(spec.collective, spec.world_size)});
  const int64_t chunks_per_block = layout.chunks * spec.channels;
  constexpr int64_t kMax = std::numeric_limits<int32_t>::max();
  if (blocks <= kMax / chunks_per_block) return {};
  return InvalidArgument(std::string(Name(spec.collective)) + " " + spec.algorithm + " for " +
                         std::to_string(spec.world_size) + " ranks and " +
                         std::to_string(spec.channels) + " channels has a buffer of " +
                         std::to_string(blocks) + " blocks of " + std::to_string(chunks_per_block) +
                         " chunks, but at most " + std::to_string(kMax) +
                         " chunks can be named; use another algorithm");
}

}  // namespace

StatusOr<Program> BuildSchedule(const ScheduleSpec& spec, int32_t rank) {
  StatusOr<Algorithm> algorithm = Find(spec);
  if (!algorithm.ok()) return algorithm.status();
  if (Status s = CheckSpec(spec); !s.ok()) return s;
  if (Status s = Check("rank", rank, 0, spec.world_size - 1); !s.ok()) return s;

  // Alone there is nobody to talk to; a permutation alone may still leave the output to be zeros.
  const bool alone = spec.world_size == 1 && spec.collective != Collective::kPermute;
  const Layout layout = alone ? Layout{} : algorithm->layout(spec);
  if (Status s = CheckLayout(spec, layout); !s.ok()) return s;

  ProgramBuilder builder(spec, rank, layout);
  for (int32_t channel = 0; channel < spec.channels; ++channel) {
    builder.SetChannel(channel);
    if (alone) {
      builder.Copy(builder.Blocks(BufferKind::kInput, 0), builder.Blocks(BufferKind::kOutput, 0));
    } else {
      algorithm->build(builder);
    }
  }
  return std::move(builder).Finish();
}

std::vector<std::string> Algorithms(Collective collective) {
  std::vector<std::string> names;
  for (const Algorithm& algorithm : kAlgorithms) {
    if (algorithm.collective == collective) names.emplace_back(algorithm.name);
  }
  return names;
}

std::string_view Name(Collective collective) {
  return kCollectiveNames[static_cast<size_t>(collective)];
}

std::optional<Collective> ParseCollective(std::string_view name) {
  for (size_t i = 0; i < kCollectiveNames.size(); ++i) {
    if (kCollectiveNames[i] == name) return static_cast<Collective>(i);
  }
  return std::nullopt;
}

}  // namespace jaxcoll
