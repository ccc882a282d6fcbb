// Binomial tree: Thakur, Rabenseifner and Gropp, "Optimization of Collective Communication
// Operations in MPICH", 2005. Any P, K = ceil(log2 P); v = rank - root mod P; the parent of v is v
// without its lowest set bit.
//
//   broadcast   K steps; every rank receives n once; the root sends K n
//   reduce      K steps, the broadcast backwards: every rank sends n once
//
// Invariant: when bit 2^k has had its turn, in broadcast (highest bit first) exactly the multiples
// of 2^k hold the vector; in reduce (lowest first) the multiples of 2^(k+1) hold the sums of the
// 2^(k+1) ranks that begin with them.
#include "schedule/algorithms/algorithms.h"

namespace jaxcoll {
void BinomialBroadcast(OpListBuilder& b) {
  const int32_t v = b.Neighbour(-b.spec().root);
  const Operand input = b.Blocks(kIn, 0), output = b.Blocks(kOut, 0);
  if (v == 0) b.Copy(input, output);
  int32_t bit = 1;
  while (2 * bit < b.size()) bit *= 2;
  for (; bit > 0; bit /= 2, b.NextStep()) {
    if (v % (2 * bit) == bit) {
      const bool from_root = v == bit;
      b.Recv(b.Neighbour(-bit), from_root ? input : output, output);
    } else if (v % (2 * bit) == 0 && v + bit < b.size()) {
      b.Send(b.Neighbour(bit), v == 0 ? input : output, output);
    }
  }
}

Layout BinomialReduceLayout(const ScheduleSpec& spec) {
  return {.scratch_blocks = spec.world_size > 3 ? 1 : 0};  // else only the root has children
}

void BinomialReduce(OpListBuilder& b) {
  const int32_t v = b.Neighbour(-b.spec().root);
  const Operand input = b.Blocks(kIn, 0);
  // Only the root's output has a meaning, so the others sum in scratch.
  auto sum = [&](int32_t relative) {
    return relative == 0 ? b.Blocks(kOut, 0) : b.Blocks(kTmp, 0);
  };
  auto value = [&](int32_t relative, int32_t bit) {  // a rank without children sends its input
    return bit == 1 || relative + 1 >= b.size() ? input : sum(relative);
  };
  for (int32_t bit = 1; bit < b.size(); bit *= 2, b.NextStep()) {
    if (v & bit) {
      b.Send(b.Neighbour(-bit), value(v, bit), sum(v - bit));
      return;
    }
    if (v + bit < b.size()) {
      b.RecvReduce(b.Neighbour(bit), value(v + bit, bit), value(v, bit), sum(v));
    }
  }
}

}  // namespace jaxcoll
