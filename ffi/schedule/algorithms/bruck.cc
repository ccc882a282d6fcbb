// Bruck, Ho, Kipnis, Upfal and Weathersby, "Efficient algorithms for all-to-all communications in
// multiport message-passing systems", 1997. P ranks, any P, K = ceil(log2 P).
//
//   all_gather   K steps, (P-1)/P n sent per rank: as few steps as possible for every P
//   all_to_all   K steps, about n/2 sent in each (n: the rank's input): for short vectors, where
//                log2(P) messages beat the P-1 of direct although blocks travel several hops
//
// Invariants, relative to rank r:
//   all_gather   after k rounds r holds the blocks of ranks r, ..., r + min(2^k, P) - 1
//   all_to_all   after k rounds the block that stands for distance i has moved i mod 2^k ranks
#include <algorithm>
#include <bit>

#include "schedule/algorithms/algorithms.h"

namespace jaxcoll {
void BruckAllGather(OpListBuilder& b) {
  // Blocks land where they belong, wrapping around: the paper's final rotation is not needed.
  b.Copy(b.Blocks(kIn, 0), b.Blocks(kOut, b.rank()));
  for (int32_t held = 1; held < b.size(); held *= 2, b.NextStep()) {
    const int32_t count = std::min(held, b.size() - held);
    const int32_t to = b.Neighbour(-held), from = b.Neighbour(held);
    auto source = [&](int32_t rank) {
      return held == 1 ? b.Blocks(kIn, 0) : b.Blocks(kOut, rank, count);
    };
    b.Send(to, source(b.rank()), b.Blocks(kOut, b.rank(), count));
    b.Recv(from, source(from), b.Blocks(kOut, from, count));
  }
}

Layout BruckAllToAllLayout(const ScheduleSpec& spec) {
  return {.scratch_blocks = 2 * int64_t{spec.world_size}};
}

void BruckAllToAll(OpListBuilder& b) {
  // A block cannot arrive where one is being sent from, so the block of distance i alternates
  // between scratch blocks i and P + i; which one, the number of its hops so far tells.
  auto block = [&](int32_t distance, int32_t hops) { return distance + hops % 2 * b.size(); };
  std::vector<int32_t> distances, first_blocks, last_blocks, in_blocks, out_blocks;
  for (int32_t i = 1; i < b.size(); ++i) {
    first_blocks.push_back(block(i, 0));
    last_blocks.push_back(block(i, std::popcount(static_cast<uint32_t>(i))));
    in_blocks.push_back(b.Neighbour(i));
    out_blocks.push_back(b.Neighbour(-i));
  }
  b.Copy(b.Blocks(kIn, b.rank()), b.Blocks(kOut, b.rank()));
  b.Copy(b.Blocks(kIn, in_blocks), b.Blocks(kTmp, first_blocks));
  for (int32_t bit = 1; bit < b.size(); bit *= 2, b.NextStep()) {
    std::vector<int32_t> before, after;
    for (int32_t i = bit; i < b.size(); ++i) {
      if (!(i & bit)) continue;
      const int32_t hops = std::popcount(static_cast<uint32_t>(i & (bit - 1)));
      before.push_back(block(i, hops));
      after.push_back(block(i, hops + 1));
    }
    b.Send(b.Neighbour(bit), b.Blocks(kTmp, before), b.Blocks(kTmp, after));
    b.Recv(b.Neighbour(-bit), b.Blocks(kTmp, before), b.Blocks(kTmp, after));
  }
  b.Copy(b.Blocks(kTmp, last_blocks), b.Blocks(kOut, out_blocks));
}

}  // namespace jaxcoll
