// Bine (binomial negabinary) trees: De Sensi et al., "Bine Trees: Enhancing Collective Operations
// by Optimizing Communication Locality", 2025. Trees and butterflies whose partners are
// |rho(s)| = 1, 1, 3, 5, 11, ... ranks apart instead of 1, 2, 4, 8, ... (butterfly.h). Where
// neighbouring ranks share a switch or a group, a quarter to a third less leaves it, on average
// over where groups begin. (Not where groups are aligned powers of two of ranks, and the root
// begins one: binomial trees and halving-doubling, each bit of the rank at a time, then cross
// fewer borders than any rotation of them.)
//
// P ranks, any P, K = ceil(log2 P):
//   broadcast, reduce           K steps; every rank but the root receives, or sends, n once
//   all_reduce bine            2K steps, 2 (P-1)/P n sent, (P-1)/P n reduced per rank
//   all_reduce bine_latency     K steps, K n sent and reduced; other P than 2^K fold (fold.h)
//   reduce_scatter, all_gather  K steps, (P-1)/P n sent
// For odd P all but the last rank do this, and the last one has its data from, or brings it to, the
// root, or each of the others, in one step more; two in all_reduce.
//
// Invariant of the tree: v = rank - root mod P. In step i = 0, 1, ... whoever has the vector sends
// it rho(K-1-i) ahead, or back if v is odd, unless that rank has it. For P = 2^K that never
// happens. reduce is the broadcast backwards. For the butterflies, see butterfly.h and swing.cc.
#include <bit>
#include <vector>

#include "schedule/algorithms/algorithms.h"
#include "schedule/algorithms/butterfly.h"
#include "schedule/algorithms/exchange.h"

namespace jaxcoll {
namespace {

// A ring of the ranks that take part in butterflies and trees.
Torus RingOf(int32_t size) { return Torus({size - size % 2}); }

// By v.
struct Tree {
  explicit Tree(int32_t size) : parent(size, kNone), joined(size, kNone) {
    const Butterfly butterfly(RingOf(size), 0, false);
    joined[0] = 0;
    std::vector<int32_t> members = {0};
    for (steps = 0; steps < butterfly.steps(); ++steps) {
      for (size_t i = members.size(); i-- > 0;) {
        Join(butterfly.Partner(members[i], butterfly.steps() - 1 - steps), members[i], members);
      }
    }
    if (size % 2 == 1) Join(size - 1, 0, members), ++steps;
  }

  static constexpr int32_t kNone = -1;
  std::vector<int32_t> parent;
  std::vector<int32_t> joined;  // in which step; the root: 0
  std::vector<int32_t> order;   // all but the root, as they join
  int32_t steps = 0;

 private:
  void Join(int32_t v, int32_t from, std::vector<int32_t>& members) {
    if (joined[v] != kNone) return;
    joined[v] = steps;
    parent[v] = from;
    members.push_back(v);
    order.push_back(v);
  }
};

}  // namespace

void BineBroadcast(OpListBuilder& b) {
  const Tree tree(b.size());
  const int32_t root = b.spec().root, v = b.Neighbour(-root);
  auto rank_of = [&](int32_t relative) { return (relative + root) % b.size(); };
  const Operand input = b.Blocks(kIn, 0), output = b.Blocks(kOut, 0);
  auto value = [&](int32_t relative) { return relative == 0 ? input : output; };
  if (v == 0) b.Copy(input, output);
  for (int32_t w : tree.order) {
    b.SetStep(tree.joined[w]);
    if (w == v) b.Recv(rank_of(tree.parent[w]), value(tree.parent[w]), output);
    if (tree.parent[w] == v) b.Send(rank_of(w), value(v), output);
  }
}

Layout BineReduceLayout(const ScheduleSpec& spec) {
  return {.scratch_blocks = spec.world_size > 3 ? 1 : 0};  // else only the root has children
}

void BineReduce(OpListBuilder& b) {
  const Tree tree(b.size());
  const int32_t root = b.spec().root, v = b.Neighbour(-root);
  auto rank_of = [&](int32_t relative) { return (relative + root) % b.size(); };
  // Only the root's output has a meaning, so the others sum in scratch.
  auto sum = [&](int32_t relative) {
    return relative == 0 ? b.Blocks(kOut, 0) : b.Blocks(kTmp, 0);
  };
  std::vector<bool> has_sum(b.size());  // so far; the others send their input
  auto value = [&](int32_t relative) {
    return has_sum[relative] ? sum(relative) : b.Blocks(kIn, 0);
  };
  for (auto w = tree.order.rbegin(); w != tree.order.rend(); ++w) {
    const int32_t parent = tree.parent[*w];
    b.SetStep(tree.steps - 1 - tree.joined[*w]);
    if (*w == v) b.Send(rank_of(parent), value(v), sum(parent));
    if (parent == v) b.RecvReduce(rank_of(*w), value(*w), value(v), sum(v));
    has_sum[parent] = true;
  }
}

Layout BineAllReduceLayout(const ScheduleSpec& spec) { return {.chunks = spec.world_size}; }

void BineAllReduce(OpListBuilder& b) {
  ButterflyAllReduce(b, Butterfly(RingOf(b.size()), 0, false), 0);
}

Layout BineLatencyAllReduceLayout(const ScheduleSpec& spec) {
  return {.scratch_blocks = spec.world_size > 2 ? 1 : 0};
}

void BineLatencyAllReduce(OpListBuilder& b) {
  const Fold fold(b.size());
  const Butterfly butterfly(Torus({fold.size}), 0, false);
  auto step = [&](int32_t round) { return fold.rounds - 1 - round; };  // why: swing.cc
  ExchangeAllReduce(
      b, fold,
      {.whole = [&](BufferKind buffer) { return b.Blocks(buffer, 0); },
       .partner = [&](int32_t folded, int32_t k) { return butterfly.Partner(folded, step(k)); },
       .first = [&](int32_t folded, int32_t k) { return butterfly.First(folded, step(k)); }});
}

Layout BineReduceScatterLayout(const ScheduleSpec& spec) {
  const int32_t size = RingOf(spec.world_size).size();
  return {.scratch_blocks = ButterflyReduceScatterScratch(
              size, std::has_single_bit(static_cast<uint32_t>(size)))};
}

void BineReduceScatter(OpListBuilder& b) {
  ButterflyReduceScatter(b, Butterfly(RingOf(b.size()), 0, false), 0);
}

void BineAllGather(OpListBuilder& b) {
  ButterflyAllGather(b, Butterfly(RingOf(b.size()), 0, false), 0);
}

}  // namespace jaxcoll
