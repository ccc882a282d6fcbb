// PAT, parallel aggregated trees: Jeaugey, "PAT: a new algorithm for all-gather and reduce-scatter
// operations at scale", 2025. Every block has a binomial tree of its own, the same one shifted by
// a rank; messages of one distance that are due at once travel together, A blocks at most. Far
// messages come first and carry little, as opposed to Bruck's, whose last and largest goes
// farthest.
//
// P ranks, any P; 2^K the least power of two that is not below P; A = dims[0], at most 2^(K-1).
//   all_gather, reduce_scatter   log2(A) + 2^K / A - 1 steps, or fewer; (P-1)/P n sent
// With A = 2^(K-1), the default, these are K steps; with A = 1, 2^K - 1 of one block each.
//
// The tree, by the offset o = how many ranks behind the root: the parent of o is o without its
// lowest set bit. In all_gather a rank receives block r - o from its neighbour at that distance.
// First (distances 2^(K-1), ..., 2^K / A) the blocks spread to A offsets t * 2^K / A, and from then
// on A trees of 2^K / A offsets each are walked in parallel, depth first: the offsets o with
// o mod 2^K / A = 1, 2, ... in turn, one message each. reduce_scatter is all of it backwards.
//
// Invariant of the walk backwards: sums in progress are those of the ancestors of one offset per
// tree, one for each number of trailing zeros. So reduce_scatter needs scratch for A (1 + log2(2^K
// / A)) blocks at most, however many ranks there are.
#include <algorithm>
#include <bit>
#include <vector>

#include "schedule/algorithms/algorithms.h"

namespace jaxcoll {
namespace {

struct Trees {
  explicit Trees(const ScheduleSpec& spec)
      : world(spec.world_size),
        span(static_cast<int32_t>(std::bit_ceil(static_cast<uint32_t>(world)))),
        trees(std::min(spec.dims[0], std::max(span / 2, 1))),
        depth(span / trees) {}

  int32_t world;  // P
  int32_t span;   // 2^K
  int32_t trees;  // A
  int32_t depth;  // offsets of one tree

  // The offsets that all_gather reaches in each step, in order; all are at one distance.
  std::vector<std::vector<int32_t>> Steps() const {
    std::vector<std::vector<int32_t>> steps;
    for (int32_t distance = span / 2; distance >= depth; distance /= 2) {
      steps.emplace_back();
      for (int32_t o = distance; o < world; o += 2 * distance) steps.back().push_back(o);
    }
    for (int32_t t = 1; t < depth; ++t) {
      steps.emplace_back();
      for (int32_t o = t; o < world; o += depth) steps.back().push_back(o);
    }
    std::erase_if(steps, [](const std::vector<int32_t>& offsets) { return offsets.empty(); });
    return steps;
  }

  // The scratch block of the sum at an offset while it is in progress.
  int32_t ScratchBlock(int32_t o) const {
    const int32_t tree = o / depth, t = o % depth;
    return t == 0 ? tree : trees * std::countr_zero(static_cast<uint32_t>(t)) + tree;
  }
  int32_t ScratchBlocks() const {  // trailing zeros from 1 to log2(depth) - 1, and the trees' roots
    return trees * std::max(1, std::countr_zero(static_cast<uint32_t>(depth)));
  }
};

int32_t Parent(int32_t o) { return o & (o - 1); }

}  // namespace

void PatAllGather(OpListBuilder& b) {
  const Trees trees(b.spec());
  b.Copy(b.Blocks(kIn, 0), b.Blocks(kOut, b.rank()));
  for (const std::vector<int32_t>& offsets : trees.Steps()) {
    const int32_t distance = offsets.front() - Parent(offsets.front());
    const int32_t to = b.Neighbour(distance), from = b.Neighbour(-distance);
    // The blocks that arrive at `rank`.
    auto blocks = [&](int32_t rank) {
      std::vector<int32_t> result;
      for (int32_t o : offsets) result.push_back((rank - o + b.size()) % b.size());
      return b.Blocks(kOut, result);
    };
    const bool own = offsets.size() == 1 && Parent(offsets.front()) == 0;
    auto source = [&](int32_t rank) { return own ? b.Blocks(kIn, 0) : blocks(rank); };
    b.Send(to, source(to), blocks(to));
    b.Recv(from, source(b.rank()), blocks(b.rank()));
    b.NextStep();
  }
}

Layout PatReduceScatterLayout(const ScheduleSpec& spec) {
  return {.scratch_blocks = spec.world_size > 2 ? Trees(spec).ScratchBlocks() : 0};
}

void PatReduceScatter(OpListBuilder& b) {
  const Trees trees(b.spec());
  // The sum at offset o is of the block of the rank that is o behind: what that rank's tree has
  // gathered from `o` and below.
  std::vector<bool> has_sum(b.size());  // by offset, equal on all ranks
  auto sum = [&](const std::vector<int32_t>& offsets) {
    if (offsets.front() == 0) return b.Blocks(kOut, 0);
    std::vector<int32_t> blocks;
    for (int32_t o : offsets) blocks.push_back(trees.ScratchBlock(o));
    return b.Blocks(kTmp, blocks);
  };
  auto input = [&](int32_t rank, const std::vector<int32_t>& offsets) {
    std::vector<int32_t> blocks;
    for (int32_t o : offsets) blocks.push_back((rank - o + b.size()) % b.size());
    return b.Blocks(kIn, blocks);
  };
  auto value = [&](int32_t rank, const std::vector<int32_t>& offsets) {
    return has_sum[offsets.front()] ? sum(offsets) : input(rank, offsets);
  };
  const std::vector<std::vector<int32_t>> steps = trees.Steps();
  for (auto step = steps.rbegin(); step != steps.rend(); ++step, b.NextStep()) {
    const int32_t distance = step->front() - Parent(step->front());
    const int32_t to = b.Neighbour(-distance), from = b.Neighbour(distance);
    // Offsets whose values lie in the same buffers go together: all of them, but for the last tree,
    // which may be cut short, and the root, whose sum is the result.
    std::vector<bool> done(step->size());
    for (size_t i = 0; i < step->size(); ++i) {
      if (done[i]) continue;
      std::vector<int32_t> offsets, parents;
      auto alike = [&](int32_t x, int32_t y) {
        return has_sum[x] == has_sum[y] && has_sum[Parent(x)] == has_sum[Parent(y)] &&
               (Parent(x) == 0) == (Parent(y) == 0);
      };
      for (size_t j = i; j < step->size(); ++j) {
        if (done[j] || !alike((*step)[i], (*step)[j])) continue;
        done[j] = true;
        offsets.push_back((*step)[j]);
        parents.push_back(Parent((*step)[j]));
      }
      b.Send(to, value(b.rank(), offsets), sum(parents));
      b.RecvReduce(from, value(from, offsets), value(b.rank(), parents), sum(parents));
    }
    for (int32_t o : *step) has_sum[Parent(o)] = true;
  }
}

}  // namespace jaxcoll
