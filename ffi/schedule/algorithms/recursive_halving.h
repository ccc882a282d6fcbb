// Halving-doubling over any subset of the ranks, from which recursive_halving.cc and
// hierarchical.cc are made.
#pragma once

#include <functional>

#include "schedule/algorithms/fold.h"
#include "schedule/op_list_builder.h"

namespace jaxcoll {

struct FoldedGroup {
  Fold fold;          // of the group's size
  int32_t index = 0;  // this rank among the members
  std::function<int32_t(int32_t index)> rank_of;
  // Pieces begin, ..., begin + count - 1 of fold.size pieces of what is reduced.
  std::function<Operand(BufferKind, int32_t begin, int32_t count)> part;
  // The buffer of the members' contributions: input, or output (then it is reduced in place).
  BufferKind from = BufferKind::kInput;
};

// An all-reduce of 2 fold.rounds steps, and two more if there are pairs to fold.
void HalvingDoublingSteps(OpListBuilder& b, const FoldedGroup& group);

}  // namespace jaxcoll
