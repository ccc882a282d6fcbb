// Ring: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations",
// 2009. P ranks, P pieces, each rank sends to the next one only.
//
//   all_reduce       2(P-1) steps, 2 (P-1)/P n sent per rank, (P-1)/P n reduced
//   reduce_scatter    (P-1) steps,   (P-1)/P n sent
//   all_gather        (P-1) steps,   (P-1)/P n sent
//
// Invariant: after s reduce-scatter steps rank r holds s+1 contributions of piece (r-s) mod P,
// those of ranks r-s, ..., r in that order; every rank later receives that one sum, so all end
// bitwise equal. After s all-gather steps rank r holds the pieces r+1, r, ..., r+1-s.
#include "schedule/algorithms/ring.h"

#include <algorithm>

#include "schedule/algorithms/algorithms.h"

namespace jaxcoll {
namespace {

Ring RingOfAllRanks(const OpListBuilder& b) {
  return {.size = b.size(),
          .index = b.rank(),
          .next = b.Neighbour(1),
          .previous = b.Neighbour(-1),
          .piece = [&b](BufferKind buffer, int32_t piece) {
            return b.Chunks(buffer, (piece + b.size()) % b.size());
          }};
}

}  // namespace

void RingReduceScatterSteps(OpListBuilder& b, const Ring& ring, BufferKind from) {
  for (int32_t s = 0; s + 1 < ring.size; ++s, b.NextStep()) {
    const BufferKind partial = s == 0 ? from : kOut;  // the first send is the contribution itself
    const int32_t sent = ring.index - s, received = sent - 1;
    b.Send(ring.next, ring.piece(partial, sent), ring.piece(kOut, sent));
    b.RecvReduce(ring.previous, ring.piece(partial, received), ring.piece(from, received),
                 ring.piece(kOut, received));
  }
}

void RingAllGatherSteps(OpListBuilder& b, const Ring& ring) {
  for (int32_t s = 0; s + 1 < ring.size; ++s, b.NextStep()) {
    const int32_t sent = ring.index + 1 - s, received = sent - 1;
    b.Send(ring.next, ring.piece(kOut, sent), ring.piece(kOut, sent));
    b.Recv(ring.previous, ring.piece(kOut, received), ring.piece(kOut, received));
  }
}

Layout RingAllReduceLayout(const ScheduleSpec& spec) { return {.chunks = spec.world_size}; }

void RingAllReduce(OpListBuilder& b) {
  const Ring ring = RingOfAllRanks(b);
  RingReduceScatterSteps(b, ring, kIn);
  RingAllGatherSteps(b, ring);
}

Layout RingReduceScatterLayout(const ScheduleSpec& spec) {
  // Partial sums alternate between two scratch blocks: with one, every rank would wait for its own
  // send to finish before it receives, all around the ring.
  return {.scratch_blocks = std::clamp(spec.world_size - 2, 0, 2)};
}

void RingReduceScatter(OpListBuilder& b) {
  const int32_t steps = b.size() - 1;
  auto partial = [&](int32_t s) {  // where step s puts its sum; on every rank
    return s + 1 == steps ? b.Blocks(kOut, 0) : b.Blocks(kTmp, s % 2);
  };
  for (int32_t s = 0; s < steps; ++s, b.NextStep()) {
    const int32_t sent = b.Neighbour(-1 - s), received = b.Neighbour(-2 - s);
    b.Send(b.Neighbour(1), s == 0 ? b.Blocks(kIn, sent) : partial(s - 1), partial(s));
    b.RecvReduce(b.Neighbour(-1), s == 0 ? b.Blocks(kIn, received) : partial(s - 1),
                 b.Blocks(kIn, received), partial(s));
  }
}

void RingAllGather(OpListBuilder& b) {
  b.Copy(b.Blocks(kIn, 0), b.Blocks(kOut, b.rank()));
  for (int32_t s = 0; s + 1 < b.size(); ++s, b.NextStep()) {
    const int32_t sent = b.Neighbour(-s), received = b.Neighbour(-s - 1);
    auto source = [&](int32_t block) { return s == 0 ? b.Blocks(kIn, 0) : b.Blocks(kOut, block); };
    b.Send(b.Neighbour(1), source(sent), b.Blocks(kOut, sent));
    b.Recv(b.Neighbour(-1), source(received), b.Blocks(kOut, received));
  }
}

}  // namespace jaxcoll
