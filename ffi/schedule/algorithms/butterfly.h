// Butterflies: in every step the ranks form pairs, and after ceil(log2 P) steps everyone has met
// everyone's data. swing.cc and bine.cc are made of them.
//
// The pairs are those of De Sensi et al. (see swing.cc): in round s along a dimension, the rank at
// an even coordinate meets the one rho(s) = 1 - 2 + 4 - ... + (-2)^s ahead, so that distances are
// about two thirds of a power of two, and directions alternate.
#pragma once

#include <cstdint>
#include <vector>

#include "schedule/algorithms/torus.h"
#include "schedule/op_list_builder.h"

namespace jaxcoll {

// Immutable. All extents are even.
class Butterfly {
 public:
  // The rounds go through the dimensions in turn, from `first_dimension` on; a mirrored butterfly
  // begins in the other direction.
  Butterfly(const Torus& torus, int32_t first_dimension, bool mirrored);

  int32_t size() const { return torus_.size(); }
  int32_t steps() const { return static_cast<int32_t>(hops_.size()); }
  bool power_of_two() const { return power_of_two_; }
  int32_t Partner(int32_t rank, int32_t step) const;

  // The place of the share of a vector that `rank` reduces, of size() shares, such that what is
  // handed over is contiguous if size() is a power of two.
  int32_t Position(int32_t rank) const;
  // Whether the pairs of `step` have this rank in the half that comes first.
  bool First(int32_t rank, int32_t step) const;

  // Reducing: whose shares `rank` hands to its partner in `step`; as ranks, and as positions.
  // Gathering, the steps run backwards and the partner hands them back.
  //
  // A share goes on in the last step that can still bring it to its owner, so everyone hands over
  // each share but its own exactly once, whatever the number of ranks: the ways of a share form a
  // tree with its owner as root.
  std::vector<int32_t> Given(int32_t rank, int32_t step) const;
  std::vector<Interval> GivenPositions(int32_t rank, int32_t step) const;

 private:
  struct Hop {
    int32_t dimension;
    int32_t round;
  };
  // The ranks that `rank`'s data reaches in the steps from `step` on, sorted.
  std::vector<int32_t> Reach(int32_t rank, int32_t step) const;

  Torus torus_;
  std::vector<Hop> hops_;
  int32_t sign_;
  bool power_of_two_ = true;
};

// The collectives over the first `butterfly.size()` ranks, on one share of every chunk or block:
// `subchannel` of the layout's, which the caller has set. The one rank there may be beside them, in
// worlds of an odd size, gives and takes its data directly.

// all_reduce: of the chunks subchannel * P, ..., subchannel * P + P - 1.
void ButterflyAllReduce(OpListBuilder& b, const Butterfly& butterfly, int32_t subchannel);
// reduce_scatter and all_gather: of chunk `subchannel` of every block.
void ButterflyReduceScatter(OpListBuilder& b, const Butterfly& butterfly, int32_t subchannel);
void ButterflyAllGather(OpListBuilder& b, const Butterfly& butterfly, int32_t subchannel);
int64_t ButterflyReduceScatterScratch(int32_t size, bool power_of_two);

}  // namespace jaxcoll
