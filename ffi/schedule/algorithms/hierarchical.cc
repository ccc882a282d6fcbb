// Hierarchical all-reduce: as in Mikami et al., "Massively distributed SGD", 2018 (there 2D-torus
// all-reduce) and in NCCL-based stacks. N nodes of G ranks, rank = node * G + place: rings inside a
// node reduce-scatter, the ranks of equal place (a "rail") all-reduce across nodes, and rings
// inside a node all-gather. Rails meet no other rail, so each may have a network of its own.
//
// Across nodes: hierarchical           rings: bandwidth
//               hierarchical_halving   halving-doubling (recursive_halving.cc): fewer steps
//               hierarchical_tree      double binary trees (double_tree.cc), pipelined
//
//   2(G-1) steps inside; across 2(N-1), or 2 log2(N) and two more if N is no power of two, or those
//   of the trees; sent per rank 2 (G-1)/G n inside; across 2 (N-1)/N n/G, trees up to 2 n/G
//
// Invariant: after the first phase the rank at place p holds its node's sum of piece p + 1 mod G
// (n / G); after the second, everyone's.
#include "schedule/algorithms/algorithms.h"
#include "schedule/algorithms/double_tree.h"
#include "schedule/algorithms/recursive_halving.h"
#include "schedule/algorithms/ring.h"

namespace jaxcoll {
namespace {

// The place of a rank, and its two groups.
class NodePlace {
 public:
  // Each of the G pieces has `parts` chunks.
  NodePlace(OpListBuilder& b, int32_t parts)
      : nodes(b.spec().dims[0]),
        node_size(b.spec().dims[1]),
        node(b.rank() / node_size),
        place(b.rank() % node_size),
        b_(b),
        parts_(parts) {}

  int32_t RankOf(int32_t n, int32_t p) const {
    return (n + nodes) % nodes * node_size + (p + node_size) % node_size;
  }
  Ring Inside() const {
    return {.size = node_size,
            .index = place,
            .next = RankOf(node, place + 1),
            .previous = RankOf(node, place - 1),
            .piece = [this](BufferKind buffer, int32_t piece) {
              piece = (piece + node_size) % node_size;
              return b_.Chunks(buffer, piece * parts_, parts_);
            }};
  }
  // The parts of the piece that this rank's rail reduces.
  Operand Parts(BufferKind buffer, int32_t begin, int32_t count) const {
    return b_.Chunks(buffer, (place + 1) % node_size * parts_ + begin, count);
  }
  BufferKind RailFrom() const { return node_size == 1 ? BufferKind::kInput : BufferKind::kOutput; }

  const int32_t nodes, node_size, node, place;

 private:
  OpListBuilder& b_;
  const int32_t parts_;
};

}  // namespace

Layout HierarchicalAllReduceLayout(const ScheduleSpec& spec) {
  return {.chunks = spec.world_size};  // G pieces, each of N chunks
}

void HierarchicalAllReduce(OpListBuilder& b) {
  const NodePlace at(b, b.spec().dims[0]);
  const Ring rail{.size = at.nodes,
                  .index = at.node,
                  .next = at.RankOf(at.node + 1, at.place),
                  .previous = at.RankOf(at.node - 1, at.place),
                  .piece = [&](BufferKind buffer, int32_t piece) {
                    return at.Parts(buffer, (piece + at.nodes) % at.nodes, 1);
                  }};
  RingReduceScatterSteps(b, at.Inside(), BufferKind::kInput);
  RingReduceScatterSteps(b, rail, at.RailFrom());
  RingAllGatherSteps(b, rail);
  RingAllGatherSteps(b, at.Inside());
}

Layout HierarchicalHalvingAllReduceLayout(const ScheduleSpec& spec) {
  return {.chunks = int64_t{spec.dims[1]} * Fold(spec.dims[0]).size};
}

void HierarchicalHalvingAllReduce(OpListBuilder& b) {
  const Fold fold(b.spec().dims[0]);
  const NodePlace at(b, fold.size);
  RingReduceScatterSteps(b, at.Inside(), BufferKind::kInput);
  HalvingDoublingSteps(b, {.fold = fold,
                           .index = at.node,
                           .rank_of = [&](int32_t node) { return at.RankOf(node, at.place); },
                           .part = [&](BufferKind buffer, int32_t begin,
                                       int32_t count) { return at.Parts(buffer, begin, count); },
                           .from = at.RailFrom()});
  RingAllGatherSteps(b, at.Inside());
}

Layout HierarchicalTreeAllReduceLayout(const ScheduleSpec& spec) {
  return {.chunks = int64_t{spec.dims[1]} * TreeGroup::kPieces,
          .subchannels = TreeGroup::kSubchannels};
}

void HierarchicalTreeAllReduce(OpListBuilder& b) {
  const NodePlace at(b, TreeGroup::kPieces);
  RingReduceScatterSteps(b, at.Inside(), BufferKind::kInput);
  if (at.nodes > 1) {
    DoubleTreeSteps(
        b, {.size = at.nodes,
            .index = at.node,
            .rank_of = [&](int32_t node) { return at.RankOf(node, at.place); },
            .piece = [&](BufferKind buffer, int32_t piece) { return at.Parts(buffer, piece, 1); },
            .from = at.RailFrom()});
  }
  b.SetSubchannel(0);
  RingAllGatherSteps(b, at.Inside());
}

}  // namespace jaxcoll
