// Hierarchical: two levels of rings, as in Mikami et al., "Massively distributed SGD", 2018 (there
// 2D-torus all-reduce) and in NCCL-based stacks. N nodes of G ranks, rank = node * G + place: rings
// inside a node reduce-scatter, the ranks of equal place ("rails") all-reduce across nodes, and
// rings inside a node all-gather.
//
//   2(G-1) steps inside and 2(N-1) across; sent per rank 2 (G-1)/G n inside, 2 (N-1)/N n/G across
//
// Invariant: after the first phase the rank at place p holds its node's sum of piece p + 1 mod G
// (n / G); after the second, everyone's.
#include <cmath>

#include "schedule/algorithms/algorithms.h"
#include "schedule/algorithms/ring.h"

namespace jaxcoll {
namespace {

// The divisor nearest to the square root balances the two levels where nothing else is known.
int32_t NodeSize(const ScheduleSpec& spec) {
  if (spec.node_size != 0) return spec.node_size;
  const double root = std::sqrt(spec.world_size);
  int32_t best = 1;
  for (int32_t size = 2; size <= spec.world_size; ++size) {
    if (spec.world_size % size == 0 && std::abs(size - root) < std::abs(best - root)) best = size;
  }
  return best;
}

}  // namespace

Layout HierarchicalAllReduceLayout(const ScheduleSpec& spec) {
  return {.chunks = spec.world_size};  // G pieces, each of N chunks
}

void HierarchicalAllReduce(ProgramBuilder& b) {
  const int32_t node_size = NodeSize(b.spec()), node_count = b.size() / node_size;
  const int32_t node = b.rank() / node_size, place = b.rank() % node_size;
  auto rank_of = [&](int32_t n, int32_t p) {
    return (n + node_count) % node_count * node_size + (p + node_size) % node_size;
  };

  const Ring inside{.size = node_size,
                    .index = place,
                    .next = rank_of(node, place + 1),
                    .previous = rank_of(node, place - 1),
                    .piece = [&](BufferKind buffer, int32_t piece) {
                      piece = (piece + node_size) % node_size;
                      return b.Chunks(buffer, piece * node_count, node_count);
                    }};
  const int32_t reduced = (place + 1) % node_size;
  const Ring rail{.size = node_count,
                  .index = node,
                  .next = rank_of(node + 1, place),
                  .previous = rank_of(node - 1, place),
                  .piece = [&](BufferKind buffer, int32_t piece) {
                    piece = (piece + node_count) % node_count;
                    return b.Chunks(buffer, reduced * node_count + piece);
                  }};

  RingReduceScatterSteps(b, inside, BufferKind::kInput);
  RingReduceScatterSteps(b, rail, node_size == 1 ? BufferKind::kInput : BufferKind::kOutput);
  RingAllGatherSteps(b, rail);
  RingAllGatherSteps(b, inside);
}

}  // namespace jaxcoll
