// Double binary tree: Sanders, Speck and Traeff, "Two-tree algorithms for full bandwidth broadcast,
// reduction and scan", 2009. Each half of the vector is reduced up and broadcast down its own
// binary tree, pipelined over kPipelineDepth chunks. A rank is an inner node of at most one of the
// trees, so both together use every port fully.
//
// P ranks, trees of height h = floor(log2 P), m chunks per tree:
//   2h + m - 1 steps; together the ranks send 2(P-1) n, one rank 2 n at most
//
// Tree 0 numbers an infinite binary tree in order, so that rank r, as r + 1 = odd * 2^l, is on
// level l; the parent is the nearest ancestor that exists. Its inner nodes have odd ranks. Tree 1
// is its mirror image for even P and shifted by one rank for odd P, which makes the inner nodes
// even.
//
// Invariant: a node at depth d sends chunk j up in step h - d + j, having reduced its children's,
// and down in step h + d + j. The root sums each chunk once, so all ranks end bitwise equal.
#include "schedule/algorithms/double_tree.h"

#include <array>
#include <bit>

#include "schedule/algorithms/algorithms.h"

namespace jaxcoll {
namespace {

constexpr int32_t kPipelineDepth = TreeGroup::kPieces / 2;
constexpr int32_t kNone = -1;

struct TreeNode {
  int32_t depth = 0;
  int32_t parent = kNone;  // indices in the group
  int32_t left = kNone, right = kNone;
};

// Node i = 1 ... n of the in-order tree; parent and children by the same numbers.
TreeNode InOrderNode(int32_t i, int32_t n) {
  auto ancestor = [](int64_t node) {
    const int64_t bit = node & -node;
    return (node ^ bit) | bit << 1;
  };
  auto nearest = [&](int64_t node) {  // the nearest ancestor that exists, or kNone
    const int64_t top = int64_t{std::bit_floor(static_cast<uint32_t>(n))};
    if (node == top) return kNone;
    do {
      node = ancestor(node);
    } while (node > n);
    return static_cast<int32_t>(node);
  };
  TreeNode result;
  result.parent = nearest(i);
  for (int32_t up = result.parent; up != kNone; up = nearest(up)) ++result.depth;
  const int32_t half = (i & -i) / 2;
  if (half > 0) {
    result.left = i - half;
    // Below the right child everything that exists is on its left spine.
    int32_t step = half;
    while (step > 0 && i > n - step) step /= 2;
    if (step > 0) result.right = i + step;
  }
  return result;
}

TreeNode NodeOf(int32_t index, int32_t size, int32_t tree) {
  const bool mirrored = tree == 1 && size % 2 == 0;
  const int32_t shift = tree == 1 && size % 2 == 1 ? 1 : 0;
  auto number = [&](int32_t r) { return mirrored ? size - r : (r - shift + size) % size + 1; };
  auto rank_of = [&](int32_t i) {
    if (i == kNone) return kNone;
    return mirrored ? size - i : (i - 1 + shift) % size;
  };
  TreeNode node = InOrderNode(number(index), size);
  node.parent = rank_of(node.parent);
  node.left = rank_of(node.left);
  node.right = rank_of(node.right);
  return node;
}

}  // namespace

void DoubleTreeSteps(OpListBuilder& b, const TreeGroup& group) {
  const int32_t height = std::bit_width(static_cast<uint32_t>(group.size)) - 1;
  const int32_t begin_step = b.Step(), steps = 2 * height + kPipelineDepth - 1;
  // The sum that a rank passes up: its own if it is a leaf.
  auto partial = [&](const TreeNode& node) { return node.left == kNone ? group.from : kOut; };

  for (int32_t tree = 0; tree < 2; ++tree) {
    b.SetSubchannel(group.first_subchannel + tree);
    const TreeNode node = NodeOf(group.index, group.size, tree);
    std::array<TreeNode, 2> children;
    const std::array<int32_t, 2> child_indices = {node.left, node.right};
    for (int c = 0; c < 2; ++c) {
      if (child_indices[c] != kNone) children[c] = NodeOf(child_indices[c], group.size, tree);
    }
    for (int32_t step = 0; step < steps; ++step) {
      b.SetStep(begin_step + step);
      auto chunk = [&](BufferKind buffer, int32_t j) {
        return group.piece(buffer, tree * kPipelineDepth + j);
      };
      auto valid = [](int32_t j) { return 0 <= j && j < kPipelineDepth; };

      if (int32_t j = step - height + node.depth + 1; valid(j)) {
        BufferKind local = group.from;
        for (int c = 0; c < 2; ++c) {
          if (child_indices[c] == kNone) continue;
          b.RecvReduce(group.rank_of(child_indices[c]), chunk(partial(children[c]), j),
                       chunk(local, j), chunk(kOut, j));
          local = kOut;
        }
      }
      const int32_t parent = node.parent == kNone ? kNone : group.rank_of(node.parent);
      if (int32_t j = step - height + node.depth; parent != kNone && valid(j)) {
        b.Send(parent, chunk(partial(node), j), chunk(kOut, j));
      }
      if (int32_t j = step - height - node.depth + 1; parent != kNone && valid(j)) {
        b.Recv(parent, chunk(kOut, j), chunk(kOut, j));
      }
      if (int32_t j = step - height - node.depth; valid(j)) {
        for (int32_t child : child_indices) {
          if (child != kNone) b.Send(group.rank_of(child), chunk(kOut, j), chunk(kOut, j));
        }
      }
    }
  }
  b.SetStep(begin_step + steps);
}

Layout DoubleTreeAllReduceLayout(const ScheduleSpec&) {
  return {.chunks = TreeGroup::kPieces, .subchannels = TreeGroup::kSubchannels};
}

void DoubleTreeAllReduce(OpListBuilder& b) {
  DoubleTreeSteps(
      b, {.size = b.size(),
          .index = b.rank(),
          .rank_of = [](int32_t index) { return index; },
          .piece = [&](BufferKind buffer, int32_t piece) { return b.Chunks(buffer, piece); }});
}

}  // namespace jaxcoll
