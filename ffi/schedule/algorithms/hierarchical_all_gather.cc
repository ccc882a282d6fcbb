// Hierarchical all_gather: Kandalla et al., "Designing multi-leader-based allgather algorithms for
// multi-core clusters", 2009, with every rank a leader, and pipelined. Blocks cross between nodes
// once, on their rail, and what comes in is passed on inside the node while the next piece is still
// on its way.
//
// N nodes of G ranks, rank = node * G + place; each block is cut into kPieces. At the same time
//   inside    a rank sends its own block to the G - 1 others of its node;
//   rail      N - 1 steps of a ring over the ranks of equal place, piece after piece;
//   forward   each piece that arrives on the rail goes on to the G - 1 others.
//
//   kPieces (N-1) + 1 steps; sent per rank (G-1) N/P n inside, (N-1)/P n across
//
// Invariant: after s rail steps the rank at place p holds the blocks of place p of its own node and
// the s before it. A piece is sent on the rail when the one before has left, so that the first
// pieces arrive early instead of all of them late.
#include "schedule/algorithms/algorithms.h"

namespace jaxcoll {
namespace {

// With two, what a rank forwards of the last piece is half of a block; every further piece costs
// the rail another message's latency.
constexpr int32_t kPieces = 2;
struct GatherSubchannel {
  enum : int32_t { kInside, kRail, kForward, kSubchannels };
};

}  // namespace

Layout HierarchicalAllGatherLayout(const ScheduleSpec&) {
  return {.chunks = kPieces, .subchannels = GatherSubchannel::kSubchannels};
}

void HierarchicalAllGather(OpListBuilder& b) {
  const int32_t nodes = b.spec().dims[0], node_size = b.spec().dims[1];
  const int32_t node = b.rank() / node_size, place = b.rank() % node_size;
  auto rank_of = [&](int32_t n, int32_t p) {
    return (n + nodes) % nodes * node_size + (p + node_size) % node_size;
  };
  const Operand input = b.Blocks(kIn, 0);

  b.SetSubchannel(GatherSubchannel::kInside);
  b.Copy(input, b.Blocks(kOut, b.rank()));
  for (int32_t d = 1; d < node_size; ++d) {
    const int32_t to = rank_of(node, place + d), from = rank_of(node, place - d);
    b.Send(to, input, b.Blocks(kOut, b.rank()));
    b.Recv(from, input, b.Blocks(kOut, from));
  }

  int32_t sent_before = -1;
  for (int32_t s = 0; s + 1 < nodes; ++s) {
    for (int32_t piece = 0; piece < kPieces; ++piece) {
      const int32_t step = s * kPieces + piece;
      // The part of the node that many before this one.
      auto part = [&](int32_t back, int32_t p) {
        return b.Parts(kOut, {rank_of(node - back, p)}, piece);
      };
      auto source = [&](int32_t back) {
        return s == 0 ? b.Parts(kIn, {0}, piece) : part(back, place);
      };
      b.SetSubchannel(GatherSubchannel::kRail);
      b.SetStep(step);
      b.Send(rank_of(node + 1, place), source(s), part(s, place));
      if (sent_before >= 0) b.LastOpWaitsFor(sent_before);
      sent_before = b.LastOp();
      b.Recv(rank_of(node - 1, place), source(s + 1), part(s + 1, place));

      b.SetSubchannel(GatherSubchannel::kForward);
      b.SetStep(step + 1);
      for (int32_t d = 1; d < node_size; ++d) {
        const int32_t to = rank_of(node, place + d), from = rank_of(node, place - d);
        b.Send(to, part(s + 1, place), part(s + 1, place));
        b.Recv(from, part(s + 1, place - d), part(s + 1, place - d));
      }
    }
  }
}

}  // namespace jaxcoll
