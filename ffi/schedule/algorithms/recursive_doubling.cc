// Recursive doubling: Thakur, Rabenseifner and Gropp, "Optimization of Collective Communication
// Operations in MPICH", 2005. In round k a rank exchanges all it has with the rank whose number
// differs in bit k. P = 2^K ranks; others fold first (fold.h), which adds two steps.
//
//   all_reduce   K steps, K n sent and K n reduced per rank: for short vectors
//   all_gather   K steps, (P-1)/P n sent
//
// Invariant: after k rounds the ranks that agree above bit k hold the same: the reduction, or the
// blocks, of that whole aligned group of 2^k ranks. Sums keep the lower half on the left on both
// sides, so all ranks evaluate one expression, (x0 + x1) + (x2 + x3), and end bitwise equal.
#include "schedule/algorithms/algorithms.h"
#include "schedule/algorithms/exchange.h"

namespace jaxcoll {
Layout RecursiveDoublingAllReduceLayout(const ScheduleSpec& spec) {
  return {.scratch_blocks = spec.world_size > 2 ? 1 : 0};
}

void ExchangeAllReduce(OpListBuilder& b, const Fold& fold, const PairExchange& exchange) {
  const Operand input = exchange.whole(kIn), output = exchange.whole(kOut);
  // A rank cannot receive over what it is sending, so results alternate between two buffers; the
  // last round's is the output. Round -1 is the fold.
  auto result = [&](int32_t round) {
    return (fold.rounds - 1 - round) % 2 == 0 ? output : exchange.whole(kTmp);
  };
  auto value_before = [&](int32_t round, int32_t rank) {
    return round == 0 && !fold.InPair(rank) ? input : result(round - 1);
  };

  if (fold.Waits(b.rank())) {
    b.Send(b.rank() + 1, input, result(-1));
    b.SetStep(1 + fold.rounds);
    b.Recv(b.rank() + 1, output, output);
    return;
  }
  if (fold.InPair(b.rank())) b.RecvReduce(b.rank() - 1, input, input, result(-1));
  if (fold.pairs > 0) b.NextStep();

  const int32_t folded = fold.Folded(b.rank());
  for (int32_t k = 0; k < fold.rounds; ++k, b.NextStep()) {
    const int32_t peer = fold.Rank(exchange.partner(folded, k));
    const Operand mine = value_before(k, b.rank()), theirs = value_before(k, peer);
    b.Send(peer, mine, result(k));
    if (!exchange.first(folded, k)) {
      b.RecvReduce(peer, theirs, mine, result(k));
    } else {  // incoming op local would put the partner's on the left
      b.Recv(peer, theirs, result(k));
      b.Reduce({mine, result(k)}, result(k));
    }
  }
  if (fold.InPair(b.rank())) b.Send(b.rank() - 1, output, output);
}

void RecursiveDoublingAllReduce(OpListBuilder& b) {
  ExchangeAllReduce(
      b, Fold(b.size()),
      {.whole = [&](BufferKind buffer) { return b.Blocks(buffer, 0); },
       .partner = [](int32_t folded, int32_t round) { return folded ^ (1 << round); },
       .first = [](int32_t folded, int32_t round) { return (folded >> round & 1) == 0; }});
}

void RecursiveDoublingAllGather(OpListBuilder& b) {
  const Fold fold(b.size());
  const Operand input = b.Blocks(kIn, 0);
  b.Copy(input, b.Blocks(kOut, b.rank()));

  if (fold.Waits(b.rank())) {
    b.Send(b.rank() + 1, input, b.Blocks(kOut, b.rank()));
    b.SetStep(1 + fold.rounds);
    // All but the own block: the others, from the next one around to the previous one.
    const Operand others = b.Blocks(kOut, b.rank() + 1, b.size() - 1);
    b.Recv(b.rank() + 1, others, others);
    return;
  }
  if (fold.InPair(b.rank())) b.Recv(b.rank() - 1, input, b.Blocks(kOut, b.rank() - 1));
  if (fold.pairs > 0) b.NextStep();

  for (int32_t k = 0; k < fold.rounds; ++k, b.NextStep()) {
    const int32_t folded = fold.Folded(b.rank());
    const int32_t peer = fold.Rank(folded ^ (1 << k));
    // The blocks of the aligned group of 2^k folded ranks around `member`.
    auto group = [&](int32_t member) {
      const int32_t begin = member >> k << k;
      const int32_t first = fold.FirstRank(begin);
      return b.Blocks(kOut, first, fold.FirstRank(begin + (1 << k)) - first);
    };
    auto source = [&](int32_t rank, const Operand& blocks) {
      return k == 0 && !fold.InPair(rank) ? input : blocks;
    };
    const Operand mine = group(folded), theirs = group(folded ^ (1 << k));
    b.Send(peer, source(b.rank(), mine), mine);
    b.Recv(peer, source(peer, theirs), theirs);
  }
  if (fold.InPair(b.rank())) {
    const Operand others = b.Blocks(kOut, b.rank(), b.size() - 1);
    b.Send(b.rank() - 1, others, others);
  }
}

}  // namespace jaxcoll
