// Recursive halving: Rabenseifner, "Optimization of Collective Reduction Operations", 2004; Thakur,
// Rabenseifner and Gropp, 2005. In each round a rank gives half of what it still reduces to one
// partner and receives the other half. P = 2^K ranks; others fold first (fold.h), which adds two
// steps.
//
//   all_reduce halving_doubling          2K steps, 2 (P-1)/P n sent, (P-1)/P n reduced per rank
//   reduce_scatter recursive_halving      K steps,   (P-1)/P n sent, (P-1)/P n reduced
//
// Invariant: after k halving rounds a rank is alone in its group of 2^k partners responsible for
// n / 2^k of the vector, and holds the group's sum of that part. The doubling rounds of the
// all-reduce undo the halving rounds in reverse. Each chunk is summed in one place, whose bits all
// ranks receive.
#include "schedule/algorithms/recursive_halving.h"

#include "schedule/algorithms/algorithms.h"
#include "schedule/algorithms/fold.h"

namespace jaxcoll {
Layout HalvingDoublingAllReduceLayout(const ScheduleSpec& spec) {
  return {.chunks = Fold(spec.world_size).size};
}

void HalvingDoublingSteps(OpListBuilder& b, const FoldedGroup& group) {
  const Fold& fold = group.fold;
  const BufferKind from = group.from;
  const Operand input = group.part(from, 0, fold.size), output = group.part(kOut, 0, fold.size);
  auto rank_of = [&](int32_t folded) { return group.rank_of(fold.Rank(folded)); };
  const int32_t begin_step = b.Step();
  if (fold.Waits(group.index)) {
    b.Send(group.rank_of(group.index + 1), input, output);
    b.SetStep(begin_step + 1 + 2 * fold.rounds);
    b.Recv(group.rank_of(group.index + 1), output, output);
    b.NextStep();
    return;
  }
  if (fold.InPair(group.index)) {
    b.RecvReduce(group.rank_of(group.index - 1), input, input, output);
  }
  if (fold.pairs > 0) b.NextStep();

  // Distances double while halves shrink: the largest messages go to the nearest rank. The share of
  // a folded rank after `rounds` rounds depends on its lowest bits only.
  const int32_t folded = fold.Folded(group.index);
  auto part = [&](BufferKind buffer, int32_t member, int32_t rounds) {
    int32_t begin = 0, count = fold.size;
    for (int32_t k = 0; k < rounds; ++k) {
      count /= 2;
      if (member >> k & 1) begin += count;
    }
    return group.part(buffer, begin, count);
  };
  auto value = [&](int32_t k, int32_t member) {
    return k == 0 && !fold.InPair(fold.Rank(member)) ? from : kOut;
  };
  for (int32_t k = 0; k < fold.rounds; ++k, b.NextStep()) {
    const int32_t partner = folded ^ (1 << k), peer = rank_of(partner);
    b.Send(peer, part(value(k, folded), partner, k + 1), part(kOut, partner, k + 1));
    b.RecvReduce(peer, part(value(k, partner), folded, k + 1),
                 part(value(k, folded), folded, k + 1), part(kOut, folded, k + 1));
  }
  for (int32_t k = fold.rounds - 1; k >= 0; --k, b.NextStep()) {
    const int32_t partner = folded ^ (1 << k), peer = rank_of(partner);
    b.Send(peer, part(kOut, folded, k + 1), part(kOut, folded, k + 1));
    b.Recv(peer, part(kOut, partner, k + 1), part(kOut, partner, k + 1));
  }
  if (fold.InPair(group.index)) b.Send(group.rank_of(group.index - 1), output, output);
  if (fold.pairs > 0) b.NextStep();
}

void HalvingDoublingAllReduce(OpListBuilder& b) {
  const Fold fold(b.size());
  HalvingDoublingSteps(b, {.fold = fold,
                           .index = b.rank(),
                           .rank_of = [](int32_t index) { return index; },
                           .part = [&](BufferKind buffer, int32_t begin,
                                       int32_t count) { return b.Chunks(buffer, begin, count); }});
}

Layout RecursiveHalvingReduceScatterLayout(const ScheduleSpec& spec) {
  // Sums are kept for the half of the blocks left after the first round; of all blocks where a
  // fold comes first. Block i lies in scratch block i modulo that number.
  const Fold fold(spec.world_size);
  return {.scratch_blocks = fold.pairs > 0 ? spec.world_size : spec.world_size / 2};
}

void RecursiveHalvingReduceScatter(OpListBuilder& b) {
  const Fold fold(b.size());
  const Operand all_in = b.Blocks(kIn, 0, b.size());
  if (fold.Waits(b.rank())) {
    b.Send(b.rank() + 1, all_in, b.Blocks(kTmp, 0, b.size()));
    b.SetStep(1 + fold.rounds);
    b.Recv(b.rank() + 1, b.Blocks(kTmp, b.rank()), b.Blocks(kOut, 0));
    return;
  }
  if (fold.InPair(b.rank())) {
    b.RecvReduce(b.rank() - 1, all_in, all_in, b.Blocks(kTmp, 0, b.size()));
  }
  if (fold.pairs > 0) b.NextStep();

  const int32_t folded = fold.Folded(b.rank());
  auto value = [&](int32_t k, int32_t rank) { return k == 0 && !fold.InPair(rank) ? kIn : kTmp; };
  auto blocks = [&](BufferKind buffer, int32_t member, int32_t bit) {
    const int32_t begin = member >> bit << bit;  // the aligned group of 2^bit folded ranks
    const int32_t first = fold.FirstRank(begin);
    return b.Blocks(buffer, first, fold.FirstRank(begin + (1 << bit)) - first);
  };
  // Distances halve, so that a rank ends with the block of its own number.
  for (int32_t k = 0; k < fold.rounds; ++k, b.NextStep()) {
    const int32_t bit = fold.rounds - 1 - k;
    const int32_t partner = folded ^ (1 << bit), peer = fold.Rank(partner);
    auto sum = [&](int32_t rank, int32_t member) {
      const bool final = bit == 0 && !fold.InPair(rank);  // a pair still has two blocks
      return final ? b.Blocks(kOut, 0) : blocks(kTmp, member, bit);
    };
    b.Send(peer, blocks(value(k, b.rank()), partner, bit), sum(peer, partner));
    b.RecvReduce(peer, blocks(value(k, peer), folded, bit), blocks(value(k, b.rank()), folded, bit),
                 sum(b.rank(), folded));
  }
  if (fold.InPair(b.rank())) {
    b.Copy(b.Blocks(kTmp, b.rank()), b.Blocks(kOut, 0));
    b.Send(b.rank() - 1, b.Blocks(kTmp, b.rank() - 1), b.Blocks(kOut, 0));
  }
}

}  // namespace jaxcoll
