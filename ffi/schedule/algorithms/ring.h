// The two halves of a ring all-reduce over any subset of the ranks, from which ring.cc and
// hierarchical.cc are made.
#pragma once

#include <functional>

#include "schedule/op_list_builder.h"

namespace jaxcoll {

struct Ring {
  int32_t size = 1;                                         // members, and pieces of the vector
  int32_t index = 0;                                        // this rank among the members
  int32_t next = 0, previous = 0;                           // ranks
  std::function<Operand(BufferKind, int32_t piece)> piece;  // named modulo `size`
};

// size - 1 steps. Afterwards this rank holds piece index + 1, reduced over all members, in output.
// `from` is where the members' contributions are: input, or output (then it is reduced in place).
void RingReduceScatterSteps(OpListBuilder& b, const Ring& ring, BufferKind from);

// size - 1 steps. This rank starts with piece index + 1 in output and ends with all of them.
void RingAllGatherSteps(OpListBuilder& b, const Ring& ring);

}  // namespace jaxcoll
