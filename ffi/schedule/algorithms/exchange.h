// An all-reduce by exchanging whole sums with one partner after another, from which
// recursive_doubling.cc, swing.cc and bine.cc are made: they differ in who the partners are.
#pragma once

#include <functional>

#include "schedule/algorithms/fold.h"
#include "schedule/op_list_builder.h"

namespace jaxcoll {

struct PairExchange {
  std::function<Operand(BufferKind)> whole;  // what is reduced
  // The partner of a folded rank, folded as well; round 0, 1, ..., fold.rounds - 1.
  std::function<int32_t(int32_t folded, int32_t round)> partner;
  // Whether its sum stands on the left; true for exactly one of two partners. All ranks that hold
  // one sum must agree, or ranks end with differently rounded results.
  std::function<bool(int32_t folded, int32_t round)> first;
};

// fold.rounds steps, and two more if there are pairs to fold. The layout has a block of scratch if
// there are more than two ranks.
void ExchangeAllReduce(OpListBuilder& b, const Fold& fold, const PairExchange& exchange);

}  // namespace jaxcoll
