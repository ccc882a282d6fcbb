// Swing: De Sensi, Bonato, Saam and Hoefler, "Swing: Short-cutting Rings for Higher Bandwidth
// Allreduce", 2024. Recursive halving and doubling on a torus, among partners that are nearer than
// powers of two: |rho(s)| = 1, 1, 3, 5, 11, ... links apart (butterfly.h), so that each link
// carries fewer messages. The rounds go through the dimensions in turn.
//
// A torus of D dimensions; 2D parts of the vector, for its 2D ports: a part for each dimension to
// begin with, and its mirror image. K = sum(ceil(log2 d)) over the extents d.
//
//   all_reduce swing           2K steps, 2 (P-1)/P n sent per rank, (P-1)/P n reduced
//   all_reduce swing_latency    K steps, K n sent and reduced: for short vectors
//   reduce_scatter, all_gather  K steps, (P-1)/P n sent
//
// swing takes even extents, or one ring of any number of ranks: of an odd number the last rank
// exchanges its data with each of the others by itself, in two steps more (one in reduce_scatter
// and in all_gather). swing_latency takes powers of two, or one ring, which is folded (fold.h).
//
// Invariant: see butterfly.h. swing_latency takes the steps in reverse, the farthest first. In the
// paper's order the ranks that hold the same sum do not form classes that later steps respect, and
// ranks end with differently associated sums; in reverse those are the halves that the steps before
// reduce together, every class adds its first half to its second, and all end bitwise equal.
#include <bit>

#include "schedule/algorithms/algorithms.h"
#include "schedule/algorithms/butterfly.h"
#include "schedule/algorithms/exchange.h"

namespace jaxcoll {
namespace {

// Without the rank that a ring of an odd number leaves over.
Torus TorusOf(const ScheduleSpec& spec) {
  const Torus torus(spec.dims);
  return torus.dimensions() == 1 && torus.size() % 2 == 1 ? Torus({torus.size() - 1}) : torus;
}

bool PowersOfTwo(const Torus& torus) {
  return std::has_single_bit(static_cast<uint32_t>(torus.size()));  // then each extent is one
}

Status Refuse(const ScheduleSpec& spec, std::string_view takes) {
  std::string dims;
  for (int32_t extent : spec.dims) dims += (dims.empty() ? "" : "x") + std::to_string(extent);
  return InvalidArgument(spec.algorithm + " on a torus of " + dims + " ranks: it takes " +
                         std::string(takes) + ", or one ring of any size, " + spec.algorithm + "[" +
                         std::to_string(spec.world_size) + "]");
}

}  // namespace

Status CheckSwing(const ScheduleSpec& spec) {
  const Torus torus(spec.dims);
  for (int32_t d = 0; d < torus.dimensions(); ++d) {
    if (torus.dimensions() > 1 && torus.Extent(d) % 2 == 1) return Refuse(spec, "even extents");
  }
  return {};
}

Status CheckSwingLatency(const ScheduleSpec& spec) {
  const Torus torus(spec.dims);
  if (torus.dimensions() > 1 && !PowersOfTwo(torus)) {
    return Refuse(spec, "extents that are powers of two");
  }
  return {};
}

Layout SwingAllReduceLayout(const ScheduleSpec& spec) {
  const int64_t ports = TorusOf(spec).ports();
  return {.chunks = ports * spec.world_size, .subchannels = ports};
}

void SwingAllReduce(OpListBuilder& b) {
  const Torus torus = TorusOf(b.spec());
  for (int32_t part = 0; part < torus.ports(); ++part) {
    b.SetSubchannel(part);
    ButterflyAllReduce(b, Butterfly(torus, part / 2, part % 2 == 1), part);
  }
}

Layout SwingReduceScatterLayout(const ScheduleSpec& spec) {
  const Torus torus = TorusOf(spec);
  return {.chunks = torus.ports(),
          .scratch_blocks = ButterflyReduceScatterScratch(torus.size(), PowersOfTwo(torus)),
          .subchannels = torus.ports()};
}

void SwingReduceScatter(OpListBuilder& b) {
  const Torus torus = TorusOf(b.spec());
  for (int32_t part = 0; part < torus.ports(); ++part) {
    b.SetSubchannel(part);
    ButterflyReduceScatter(b, Butterfly(torus, part / 2, part % 2 == 1), part);
  }
}

Layout SwingAllGatherLayout(const ScheduleSpec& spec) {
  const int64_t ports = TorusOf(spec).ports();
  return {.chunks = ports, .subchannels = ports};
}

void SwingAllGather(OpListBuilder& b) {
  const Torus torus = TorusOf(b.spec());
  for (int32_t part = 0; part < torus.ports(); ++part) {
    b.SetSubchannel(part);
    ButterflyAllGather(b, Butterfly(torus, part / 2, part % 2 == 1), part);
  }
}

Layout SwingLatencyAllReduceLayout(const ScheduleSpec& spec) {
  const int64_t ports = Torus(spec.dims).ports();
  return {.chunks = ports, .scratch_blocks = spec.world_size > 2 ? 1 : 0, .subchannels = ports};
}

void SwingLatencyAllReduce(OpListBuilder& b) {
  const Fold fold(b.size());
  const Torus torus = fold.pairs > 0 ? Torus({fold.size}) : Torus(b.spec().dims);
  for (int32_t part = 0; part < torus.ports(); ++part) {
    b.SetSubchannel(part);
    b.SetStep(0);
    const Butterfly butterfly(torus, part / 2, part % 2 == 1);
    ExchangeAllReduce(
        b, fold,
        {.whole = [&](BufferKind buffer) { return b.Parts(buffer, {0}, part); },
         .partner =
             [&](int32_t folded, int32_t round) {
               return butterfly.Partner(folded, fold.rounds - 1 - round);
             },
         .first = [&](int32_t folded,
                      int32_t round) { return butterfly.First(folded, fold.rounds - 1 - round); }});
  }
}

}  // namespace jaxcoll
