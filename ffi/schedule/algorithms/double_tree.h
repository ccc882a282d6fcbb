// The double binary tree over any subset of the ranks, from which double_tree.cc and
// hierarchical.cc are made.
#pragma once

#include <functional>

#include "schedule/op_list_builder.h"

namespace jaxcoll {

struct TreeGroup {
  // The pieces of a vector, half for each tree. With m pieces per tree the pipeline is full in
  // (m - 1) of 2h + m - 1 steps; not measured yet, and `channels` multiplies it.
  static constexpr int32_t kPieces = 16;
  // One per tree: a rank that waits in one must not hold up the other.
  static constexpr int32_t kSubchannels = 2;

  int32_t size = 1;
  int32_t index = 0;  // this rank among the members
  std::function<int32_t(int32_t index)> rank_of;
  std::function<Operand(BufferKind, int32_t piece)> piece;
  // The buffer of the members' contributions: input, or output (then it is reduced in place).
  BufferKind from = BufferKind::kInput;
  int32_t first_subchannel = 0;
};

// An all-reduce; leaves the subchannel at the last tree's.
void DoubleTreeSteps(OpListBuilder& b, const TreeGroup& group);

}  // namespace jaxcoll
