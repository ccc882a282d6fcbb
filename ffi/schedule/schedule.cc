#include "schedule/schedule.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <string>

#include "base/range.h"
#include "schedule/algorithms/algorithms.h"
#include "schedule/dependencies.h"
#include "schedule/op_list_builder.h"

namespace jaxcoll {
namespace {

// Far above any machine; keeps every product of two of these within 64 bits.
constexpr int32_t kMaxWorldSize = 1 << 20;
constexpr int32_t kMaxChannels = 1 << 10;

Layout NoScratch(const ScheduleSpec&) { return {}; }
Status AnyDims(const ScheduleSpec&) { return {}; }

struct Algorithm {
  Collective collective;
  std::string_view name;
  Layout (*layout)(const ScheduleSpec&);
  void (*build)(OpListBuilder&);  // one rank, one channel
  DimsKind dims = DimsKind::kNone;
  Status (*check)(const ScheduleSpec&) = AnyDims;  // of dims that fit their kind
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
              HierarchicalAllReduce, DimsKind::kNodes},
    Algorithm{Collective::kAllReduce, "hierarchical_halving", HierarchicalHalvingAllReduceLayout,
              HierarchicalHalvingAllReduce, DimsKind::kNodes},
    Algorithm{Collective::kAllReduce, "hierarchical_tree", HierarchicalTreeAllReduceLayout,
              HierarchicalTreeAllReduce, DimsKind::kNodes},
    Algorithm{Collective::kAllReduce, "bucket", BucketAllReduceLayout, BucketAllReduce,
              DimsKind::kTorus},
    Algorithm{Collective::kAllReduce, "swing", SwingAllReduceLayout, SwingAllReduce,
              DimsKind::kTorus, CheckSwing},
    Algorithm{Collective::kAllReduce, "swing_latency", SwingLatencyAllReduceLayout,
              SwingLatencyAllReduce, DimsKind::kTorus, CheckSwingLatency},
    Algorithm{Collective::kAllReduce, "bine", BineAllReduceLayout, BineAllReduce},
    Algorithm{Collective::kAllReduce, "bine_latency", BineLatencyAllReduceLayout,
              BineLatencyAllReduce},
    Algorithm{Collective::kReduceScatter, "direct", DirectReduceScatterLayout, DirectReduceScatter},
    Algorithm{Collective::kReduceScatter, "ring", RingReduceScatterLayout, RingReduceScatter},
    Algorithm{Collective::kReduceScatter, "recursive_halving", RecursiveHalvingReduceScatterLayout,
              RecursiveHalvingReduceScatter},
    Algorithm{Collective::kReduceScatter, "bucket", BucketReduceScatterLayout, BucketReduceScatter,
              DimsKind::kTorus},
    Algorithm{Collective::kReduceScatter, "swing", SwingReduceScatterLayout, SwingReduceScatter,
              DimsKind::kTorus, CheckSwing},
    Algorithm{Collective::kReduceScatter, "bine", BineReduceScatterLayout, BineReduceScatter},
    Algorithm{Collective::kReduceScatter, "pat", PatReduceScatterLayout, PatReduceScatter,
              DimsKind::kAggregate},
    Algorithm{Collective::kAllGather, "direct", NoScratch, DirectAllGather},
    Algorithm{Collective::kAllGather, "ring", NoScratch, RingAllGather},
    Algorithm{Collective::kAllGather, "recursive_doubling", NoScratch, RecursiveDoublingAllGather},
    Algorithm{Collective::kAllGather, "bruck", NoScratch, BruckAllGather},
    Algorithm{Collective::kAllGather, "hierarchical", HierarchicalAllGatherLayout,
              HierarchicalAllGather, DimsKind::kNodes},
    Algorithm{Collective::kAllGather, "bucket", BucketAllGatherLayout, BucketAllGather,
              DimsKind::kTorus},
    Algorithm{Collective::kAllGather, "swing", SwingAllGatherLayout, SwingAllGather,
              DimsKind::kTorus, CheckSwing},
    Algorithm{Collective::kAllGather, "bine", NoScratch, BineAllGather},
    Algorithm{Collective::kAllGather, "pat", NoScratch, PatAllGather, DimsKind::kAggregate},
    Algorithm{Collective::kAllToAll, "direct", NoScratch, DirectAllToAll},
    Algorithm{Collective::kAllToAll, "bruck", BruckAllToAllLayout, BruckAllToAll},
    Algorithm{Collective::kAllToAll, "hierarchical", HierarchicalAllToAllLayout,
              HierarchicalAllToAll, DimsKind::kNodes},
    Algorithm{Collective::kBroadcast, "direct", NoScratch, DirectBroadcast},
    Algorithm{Collective::kBroadcast, "binomial", NoScratch, BinomialBroadcast},
    Algorithm{Collective::kBroadcast, "bine", NoScratch, BineBroadcast},
    Algorithm{Collective::kReduce, "direct", DirectReduceLayout, DirectReduce},
    Algorithm{Collective::kReduce, "binomial", BinomialReduceLayout, BinomialReduce},
    Algorithm{Collective::kReduce, "bine", BineReduceLayout, BineReduce},
    Algorithm{Collective::kPermute, "direct", NoScratch, DirectPermute},
};

// By Collective.
constexpr std::array<std::string_view, 7> kCollectiveNames = {
    "all_reduce", "reduce_scatter", "all_gather", "all_to_all", "broadcast", "reduce", "permute"};

Status CheckPermutation(const ScheduleSpec& spec) {
  std::vector<bool> sends(spec.world_size), receives(spec.world_size);
  for (const auto& [source, destination] : spec.permutation) {
    if (Status s = CheckRange("permutation source", source, 0, spec.world_size - 1); !s.ok())
      return s;
    if (Status s = CheckRange("permutation destination", destination, 0, spec.world_size - 1);
        !s.ok()) {
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

std::string Text(const std::vector<int32_t>& dims) {
  std::string text;
  for (int32_t extent : dims) text += (text.empty() ? "" : "x") + std::to_string(extent);
  return text;
}

// "1x6, 2x3, 3x2, 6x1"
std::string Factorings(int32_t n) {
  std::string text;
  for (int32_t d = 1; d <= n; ++d) {
    if (n % d == 0) text += (d == 1 ? "" : ", ") + Text({d, n / d});
  }
  return text;
}

// The divisor nearest to the square root balances the two levels where nothing else is known.
int32_t BalancedNodeSize(int32_t world_size) {
  const double root = std::sqrt(world_size);
  int32_t best = 1;
  for (int32_t size = 2; size <= world_size; ++size) {
    if (world_size % size == 0 && std::abs(size - root) < std::abs(best - root)) best = size;
  }
  return best;
}

std::vector<int32_t> DefaultDims(DimsKind kind, int32_t world_size) {
  switch (kind) {
    case DimsKind::kNone:
      return {};
    case DimsKind::kNodes:
      return {world_size / BalancedNodeSize(world_size), BalancedNodeSize(world_size)};
    case DimsKind::kTorus:
      return {world_size};
    case DimsKind::kAggregate:
      return {static_cast<int32_t>(std::bit_ceil(static_cast<uint32_t>(world_size)))};
  }
  return {};
}

Status CheckDims(const ScheduleSpec& spec, const Algorithm& algorithm) {
  const std::string given = spec.algorithm + "[" + Text(spec.dims) + "]";
  const std::string ranks = std::to_string(spec.world_size) + " ranks";
  if (algorithm.dims == DimsKind::kNone) {
    if (spec.dims.empty()) return {};
    return InvalidArgument(given + ": " + spec.algorithm + " takes no dims");
  }
  int64_t product = 1;
  for (int32_t extent : spec.dims) {
    if (extent < 1) return InvalidArgument(given + ": dims must be positive");
    product = std::min<int64_t>(product * extent, kMaxWorldSize + 1);
  }
  switch (algorithm.dims) {
    case DimsKind::kNodes:
      if (spec.dims.size() == 2 && product == spec.world_size) break;
      return InvalidArgument(given + " does not fit " + ranks +
                             ": write nodes x ranks per node, one of " +
                             Factorings(spec.world_size));
    case DimsKind::kTorus:
      if (product == spec.world_size) break;
      return InvalidArgument(given + " does not fit " + ranks +
                             ": write extents whose product is the number of ranks, e.g. " +
                             Text({spec.world_size}) + " or one of " + Factorings(spec.world_size));
    case DimsKind::kAggregate:
      if (spec.dims.size() == 1 && std::has_single_bit(static_cast<uint32_t>(spec.dims[0]))) break;
      return InvalidArgument(given + ": write the most blocks in one message, a power of two");
    case DimsKind::kNone:
      break;
  }
  return algorithm.check(spec);
}

Status CheckSpec(const ScheduleSpec& spec) {
  if (Status s = CheckRange("world_size", spec.world_size, 1, kMaxWorldSize); !s.ok()) return s;
  if (Status s = CheckRange("channels", spec.channels, 1, kMaxChannels); !s.ok()) return s;
  if (Status s = CheckRange("root", spec.root, 0, spec.world_size - 1); !s.ok()) return s;
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

// A spec that can be built, with what its algorithm makes of it.
struct Resolved {
  Algorithm algorithm;
  ScheduleSpec spec;  // with dims
  bool alone = false;
  Layout layout;
};

StatusOr<Resolved> Resolve(const ScheduleSpec& asked) {
  StatusOr<Algorithm> algorithm = Find(asked);
  if (!algorithm.ok()) return algorithm.status();
  if (Status s = CheckSpec(asked); !s.ok()) return s;
  Resolved resolved{*algorithm, asked, false, {}};
  ScheduleSpec& spec = resolved.spec;
  if (spec.dims.empty()) spec.dims = DefaultDims(algorithm->dims, spec.world_size);
  if (Status s = CheckDims(spec, *algorithm); !s.ok()) return s;
  // Alone there is nobody to talk to; a permutation alone may still leave the output to be zeros.
  resolved.alone = spec.world_size == 1 && spec.collective != Collective::kPermute;
  if (!resolved.alone) resolved.layout = algorithm->layout(spec);
  if (Status s = CheckLayout(spec, resolved.layout); !s.ok()) return s;
  return resolved;
}

}  // namespace

Status CheckSchedule(const ScheduleSpec& spec) { return Resolve(spec).status(); }

StatusOr<OpList> BuildUnordered(const ScheduleSpec& asked, int32_t rank) {
  StatusOr<Resolved> resolved = Resolve(asked);
  if (!resolved.ok()) return resolved.status();
  const ScheduleSpec& spec = resolved->spec;
  if (Status s = CheckRange("rank", rank, 0, spec.world_size - 1); !s.ok()) return s;
  OpListBuilder builder(spec, rank, resolved->layout);
  for (int32_t channel = 0; channel < spec.channels; ++channel) {
    builder.SetChannel(channel);
    if (resolved->alone) {
      builder.Copy(builder.Blocks(BufferKind::kInput, 0), builder.Blocks(BufferKind::kOutput, 0));
    } else {
      resolved->algorithm.build(builder);
    }
  }
  return std::move(builder).Finish();
}

StatusOr<OpList> BuildSchedule(const ScheduleSpec& spec, int32_t rank) {
  StatusOr<OpList> op_list = BuildUnordered(spec, rank);
  if (op_list.ok()) InferDependencies(*op_list);
  return op_list;
}

DimsKind DimsKindOf(Collective collective, std::string_view algorithm) {
  for (const Algorithm& known : kAlgorithms) {
    if (known.collective == collective && known.name == algorithm) return known.dims;
  }
  return DimsKind::kNone;
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
