// Hierarchical, rail-aware all_to_all: as NCCL's PXN (Mandakolathur and Jeaugey, "Doubling
// all2all performance with NVIDIA Collective Communication Library 2.12", 2022). A block for
// another node first goes, inside the node, to the rank on the receiver's rail, which sends what it
// has collected: no message changes rails between nodes, and there are fewer and larger ones.
//
// N nodes of G ranks, rank = node * G + place.
//   inside   G-1 messages of N-1 blocks, one to each place: what is for that rail
//   rail     N-1 messages of this rank's own block, which wait for nobody, and N-1 of the G-1
//            blocks that the others of its node have brought
//   local    G-1 messages of one block, for the ranks of this node
//
//   2(G-1) + 2(N-1) messages per rank instead of P-1, in 2(G-1) + N-1 steps;
//   sent per rank (G-1) N/P n inside, (N-1) G/P n across
//
// Invariant: after the inside steps scratch block b * G + p of the rank at place q of node a holds
// block (b, q) of rank (a, p). The local blocks to a place leave after what goes through it, so
// that the rails, the narrower way, are busy as early as can be.
#include <vector>

#include "schedule/algorithms/algorithms.h"

namespace jaxcoll {
namespace {

struct ExchangeSubchannel {
  enum : int32_t { kInside, kOwn, kRail, kSubchannels };
};

}  // namespace

Layout HierarchicalAllToAllLayout(const ScheduleSpec& spec) {
  const bool collects = spec.dims[0] > 1 && spec.dims[1] > 1;
  return {.scratch_blocks = collects ? spec.world_size : 0,
          .subchannels = ExchangeSubchannel::kSubchannels};
}

void HierarchicalAllToAll(OpListBuilder& b) {
  const int32_t nodes = b.spec().dims[0], node_size = b.spec().dims[1];
  const int32_t node = b.rank() / node_size, place = b.rank() % node_size;
  auto rank_of = [&](int32_t n, int32_t p) {
    return (n + nodes) % nodes * node_size + (p + node_size) % node_size;
  };
  // The blocks of place p, on all nodes but this one.
  auto elsewhere = [&](int32_t p) {
    std::vector<int32_t> blocks;
    for (int32_t e = 1; e < nodes; ++e) blocks.push_back(rank_of(node + e, p));
    return blocks;
  };
  // The blocks of node n, at all places but this one.
  auto others = [&](int32_t n) {
    std::vector<int32_t> blocks;
    for (int32_t d = 1; d < node_size; ++d) blocks.push_back(rank_of(n, place + d));
    return blocks;
  };

  b.SetSubchannel(ExchangeSubchannel::kInside);
  b.Copy(b.Blocks(kIn, b.rank()), b.Blocks(kOut, b.rank()));
  std::vector<int32_t> collected(node_size, -1);  // ops, by the place they send to
  for (int32_t d = 1; d < node_size && nodes > 1; ++d, b.NextStep()) {
    const int32_t to = (place + d) % node_size, from = (place - d + node_size) % node_size;
    b.Send(rank_of(node, to), b.Blocks(kIn, elsewhere(to)), b.Blocks(kTmp, elsewhere(place)));
    collected[to] = b.LastOp();
    b.Recv(rank_of(node, from), b.Blocks(kIn, elsewhere(place)), b.Blocks(kTmp, elsewhere(from)));
  }
  const int32_t rail_step = b.Step();
  b.SetStep(rail_step + nodes - 1);
  for (int32_t d = 1; d < node_size; ++d, b.NextStep()) {
    const int32_t to = rank_of(node, place + d), from = rank_of(node, place - d);
    b.Send(to, b.Blocks(kIn, to), b.Blocks(kOut, b.rank()));
    if (nodes > 1) b.LastOpWaitsFor(collected[to % node_size]);
    b.Recv(from, b.Blocks(kIn, b.rank()), b.Blocks(kOut, from));
  }

  for (int32_t e = 1; e < nodes; ++e) {
    const int32_t to = rank_of(node + e, place), from = rank_of(node - e, place);
    b.SetStep(rail_step + e - 1);
    b.SetSubchannel(ExchangeSubchannel::kOwn);
    b.Send(to, b.Blocks(kIn, to), b.Blocks(kOut, b.rank()));
    b.Recv(from, b.Blocks(kIn, b.rank()), b.Blocks(kOut, from));
    if (node_size == 1) continue;
    b.SetSubchannel(ExchangeSubchannel::kRail);
    b.Send(to, b.Blocks(kTmp, others(node + e)), b.Blocks(kOut, others(node)));
    b.Recv(from, b.Blocks(kTmp, others(node)), b.Blocks(kOut, others(node - e)));
  }
}

}  // namespace jaxcoll
