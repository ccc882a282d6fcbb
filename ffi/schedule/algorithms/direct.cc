// Direct: every rank talks to every other at once. No paper; MPI libraries call the all-to-all
// "pairwise" (Thakur, Rabenseifner and Gropp, "Optimization of Collective Communication Operations
// in MPICH", 2005), GPU libraries the all-reduces "one shot" and "two shot".
//
// P ranks, n bytes (all_gather: gathered; others: the rank's input).
//   all_reduce direct    1 step, (P-1) n sent per rank: fewest steps, for short vectors
//   all_reduce direct2   2 steps, 2 (P-1)/P n sent: the least that can be sent
//   reduce_scatter, all_gather   1 step, (P-1)/P n sent
//   all_to_all           P-1 steps (distance 1, 2, ...), (P-1)/P n sent
//   broadcast, reduce    1 step, (P-1) n through the root's port
//   permute              1 step, n sent
//
// Invariant: what is reduced is reduced by one N-ary op whose sources stand in rank order, so
// direct, direct2 and the direct reduce_scatter give the same bits.
//
// Ranks start with different peers (distance 1, 2, ...), so that no port is everyone's first.
#include "schedule/algorithms/algorithms.h"

namespace jaxcoll {
namespace {

// The scratch block of `rank` that receives from `peer`: there is none for the rank itself.
int32_t ScratchBlock(int32_t rank, int32_t peer) { return peer < rank ? peer : peer - 1; }

// `own` and the peers' contributions, in rank order.
template <typename At>
std::vector<Operand> InRankOrder(const OpListBuilder& b, Operand own, At received_from) {
  std::vector<Operand> sources;
  for (int32_t q = 0; q < b.size(); ++q) {
    sources.push_back(q == b.rank() ? own : received_from(q));
  }
  return sources;
}

}  // namespace

Layout DirectAllReduceLayout(const ScheduleSpec& spec) {
  return {.scratch_blocks = spec.world_size - 1};
}

void DirectAllReduce(OpListBuilder& b) {
  for (int32_t d = 1; d < b.size(); ++d) {
    const int32_t to = b.Neighbour(d), from = b.Neighbour(-d);
    b.Send(to, b.Blocks(kIn, 0), b.Blocks(kTmp, ScratchBlock(to, b.rank())));
    b.Recv(from, b.Blocks(kIn, 0), b.Blocks(kTmp, ScratchBlock(b.rank(), from)));
  }
  b.Reduce(InRankOrder(b, b.Blocks(kIn, 0),
                       [&](int32_t q) { return b.Blocks(kTmp, ScratchBlock(b.rank(), q)); }),
           b.Blocks(kOut, 0));
}

Layout Direct2AllReduceLayout(const ScheduleSpec& spec) {
  return {.chunks = spec.world_size, .scratch_blocks = spec.world_size - 1};
}

void Direct2AllReduce(OpListBuilder& b) {
  // Chunk r is reduced by rank r. Data keeps its position, so a peer has a whole scratch block, of
  // which only that chunk is touched.
  const int32_t scratch_stride = b.size() * b.spec().channels;
  auto scratch = [&](int32_t rank, int32_t peer) {
    Operand operand = b.Chunks(kTmp, rank);
    operand.chunks.front().begin += ScratchBlock(rank, peer) * scratch_stride;
    return operand;
  };
  for (int32_t d = 1; d < b.size(); ++d) {
    const int32_t to = b.Neighbour(d), from = b.Neighbour(-d);
    b.Send(to, b.Chunks(kIn, to), scratch(to, b.rank()));
    b.Recv(from, b.Chunks(kIn, b.rank()), scratch(b.rank(), from));
  }
  b.Reduce(InRankOrder(b, b.Chunks(kIn, b.rank()), [&](int32_t q) { return scratch(b.rank(), q); }),
           b.Chunks(kOut, b.rank()));
  b.NextStep();
  for (int32_t d = 1; d < b.size(); ++d) {
    const int32_t to = b.Neighbour(d), from = b.Neighbour(-d);
    b.Send(to, b.Chunks(kOut, b.rank()), b.Chunks(kOut, b.rank()));
    b.Recv(from, b.Chunks(kOut, from), b.Chunks(kOut, from));
  }
}

Layout DirectReduceScatterLayout(const ScheduleSpec& spec) {
  return {.scratch_blocks = spec.world_size - 1};
}

void DirectReduceScatter(OpListBuilder& b) {
  for (int32_t d = 1; d < b.size(); ++d) {
    const int32_t to = b.Neighbour(d), from = b.Neighbour(-d);
    b.Send(to, b.Blocks(kIn, to), b.Blocks(kTmp, ScratchBlock(to, b.rank())));
    b.Recv(from, b.Blocks(kIn, b.rank()), b.Blocks(kTmp, ScratchBlock(b.rank(), from)));
  }
  b.Reduce(InRankOrder(b, b.Blocks(kIn, b.rank()),
                       [&](int32_t q) { return b.Blocks(kTmp, ScratchBlock(b.rank(), q)); }),
           b.Blocks(kOut, 0));
}

Layout DirectReduceLayout(const ScheduleSpec& spec) {
  return {.scratch_blocks = spec.world_size - 1};
}

void DirectReduce(OpListBuilder& b) {
  const int32_t root = b.spec().root;
  if (b.rank() != root) {
    b.Send(root, b.Blocks(kIn, 0), b.Blocks(kTmp, ScratchBlock(root, b.rank())));
    return;
  }
  for (int32_t d = 1; d < b.size(); ++d) {
    const int32_t from = b.Neighbour(d);
    b.Recv(from, b.Blocks(kIn, 0), b.Blocks(kTmp, ScratchBlock(root, from)));
  }
  b.Reduce(InRankOrder(b, b.Blocks(kIn, 0),
                       [&](int32_t q) { return b.Blocks(kTmp, ScratchBlock(root, q)); }),
           b.Blocks(kOut, 0));
}

void DirectAllGather(OpListBuilder& b) {
  b.Copy(b.Blocks(kIn, 0), b.Blocks(kOut, b.rank()));
  for (int32_t d = 1; d < b.size(); ++d) {
    const int32_t to = b.Neighbour(d), from = b.Neighbour(-d);
    b.Send(to, b.Blocks(kIn, 0), b.Blocks(kOut, b.rank()));
    b.Recv(from, b.Blocks(kIn, 0), b.Blocks(kOut, from));
  }
}

void DirectAllToAll(OpListBuilder& b) {
  b.Copy(b.Blocks(kIn, b.rank()), b.Blocks(kOut, b.rank()));
  for (int32_t d = 1; d < b.size(); ++d) {
    const int32_t to = b.Neighbour(d), from = b.Neighbour(-d);
    b.Send(to, b.Blocks(kIn, to), b.Blocks(kOut, b.rank()));
    b.Recv(from, b.Blocks(kIn, b.rank()), b.Blocks(kOut, from));
    b.NextStep();
  }
}

void DirectBroadcast(OpListBuilder& b) {
  const int32_t root = b.spec().root;
  if (b.rank() != root) {
    b.Recv(root, b.Blocks(kIn, 0), b.Blocks(kOut, 0));
    return;
  }
  b.Copy(b.Blocks(kIn, 0), b.Blocks(kOut, 0));
  for (int32_t d = 1; d < b.size(); ++d) {
    b.Send(b.Neighbour(d), b.Blocks(kIn, 0), b.Blocks(kOut, 0));
  }
}

void DirectPermute(OpListBuilder& b) {
  for (const auto& [source, destination] : b.spec().permutation) {
    if (source == b.rank() && destination == b.rank()) {
      b.Copy(b.Blocks(kIn, 0), b.Blocks(kOut, 0));
    } else if (source == b.rank()) {
      b.Send(destination, b.Blocks(kIn, 0), b.Blocks(kOut, 0));
    } else if (destination == b.rank()) {
      b.Recv(source, b.Blocks(kIn, 0), b.Blocks(kOut, 0));
    }
  }
}

}  // namespace jaxcoll
