// Worlds whose size is not a power of two, for the recursive algorithms, as in Thakur, Rabenseifner
// and Gropp, "Optimization of Collective Communication Operations in MPICH", 2005.
//
// The first 2R of P = 2^K + R ranks form R pairs. The even rank sends its contribution to the odd
// one and waits. The remaining 2^K ranks get folded ranks 0 ... 2^K - 1 in the order of the ranks,
// which preserves the order of contributions. At the end the odd rank sends back the result.
#pragma once

#include <bit>
#include <cstdint>

namespace jaxcoll {

struct Fold {
  explicit Fold(int32_t world_size)
      : size(static_cast<int32_t>(std::bit_floor(static_cast<uint32_t>(world_size)))),
        pairs(world_size - size),
        rounds(std::countr_zero(static_cast<uint32_t>(size))) {}

  bool InPair(int32_t rank) const { return rank < 2 * pairs; }
  bool Waits(int32_t rank) const { return InPair(rank) && rank % 2 == 0; }
  int32_t Folded(int32_t rank) const { return InPair(rank) ? rank / 2 : rank - pairs; }
  int32_t Rank(int32_t folded) const { return folded < pairs ? 2 * folded + 1 : folded + pairs; }

  // The ranks that `folded` stands for are FirstRank(folded), ..., Rank(folded); therefore folded
  // ranks [a, b) stand for ranks [FirstRank(a), FirstRank(b)).
  int32_t FirstRank(int32_t folded) const { return folded < pairs ? 2 * folded : folded + pairs; }

  int32_t size;    // 2^K
  int32_t pairs;   // R
  int32_t rounds;  // K
};

}  // namespace jaxcoll
