// Bucket, or multi-dimensional ring: Barnett, Littlefield, Payne and van de Geijn, "Global combine
// on mesh architectures with wormhole routing", 1993; with all ports of a torus, Jain and
// Sabharwal, "Optimal bucket algorithms for large MPI collectives on torus interconnects", 2010.
//
// A torus of D dimensions with extents d1, d2, ... and P ranks. The vector is cut into 2D parts,
// and each part goes its own way: it starts with another dimension and runs along the dimensions
// in turn, in one of the two directions. So in every phase all 2D ports of a rank are in use, and
// all messages go to neighbours. Along each dimension a part does what a ring does.
//
//   all_reduce       2 sum(d - 1) steps, 2 (P-1)/P n sent per rank, (P-1)/P n reduced
//   reduce_scatter     sum(d - 1) steps,   (P-1)/P n sent
//   all_gather         sum(d - 1) steps,   (P-1)/P n sent
//
// Invariant: after the reduce-scatter phases along some dimensions, the ranks of a line along these
// hold the sums over that line, of one piece each; the later phases treat each piece as the whole.
// all_gather phases undo them in reverse. Each sum is made in one place, whose bits all receive.
#include <vector>

#include "schedule/algorithms/algorithms.h"
#include "schedule/algorithms/ring.h"
#include "schedule/algorithms/torus.h"

namespace jaxcoll {
namespace {

// The way of one part of the vector.
struct Way {
  int32_t start;      // dimension
  int32_t direction;  // 1 or -1
  int32_t Dimension(const Torus& torus, int32_t phase) const {
    return (start + phase) % torus.dimensions();
  }
};

Way WayOf(int32_t part) { return {part / 2, part % 2 == 0 ? 1 : -1}; }

// The ranks that differ from `rank` in the `free` dimensions only.
std::vector<int32_t> Around(const Torus& torus, int32_t rank, const std::vector<int32_t>& free) {
  std::vector<int32_t> ranks = {rank};
  for (int32_t d : free) {
    std::vector<int32_t> more;
    for (int32_t member : ranks) {
      for (int32_t c = 0; c < torus.Extent(d); ++c) more.push_back(torus.With(member, d, c));
    }
    ranks = std::move(more);
  }
  return ranks;
}

}  // namespace

Layout BucketAllReduceLayout(const ScheduleSpec& spec) {
  const int64_t ports = Torus(spec.dims).ports();
  return {.chunks = ports * spec.world_size, .subchannels = ports};
}

void BucketAllReduce(OpListBuilder& b) {
  const Torus torus(b.spec().dims);
  for (int32_t part = 0; part < torus.ports(); ++part) {
    b.SetSubchannel(part);
    const Way way = WayOf(part);
    std::vector<Ring> rings;
    int32_t begin = part * b.size(), count = b.size();  // what is reduced by the next phase
    for (int32_t phase = 0; phase < torus.dimensions(); ++phase) {
      const int32_t d = way.Dimension(torus, phase), extent = torus.Extent(d);
      const int32_t place = torus.Coordinate(b.rank(), d);
      const int32_t index = way.direction == 1 ? place : (extent - place) % extent;
      count /= extent;
      rings.push_back({.size = extent,
                       .index = index,
                       .next = torus.With(b.rank(), d, place + way.direction),
                       .previous = torus.With(b.rank(), d, place - way.direction),
                       .piece = [&b, begin, count, extent](BufferKind buffer, int32_t piece) {
                         piece = (piece + extent) % extent;
                         return b.Chunks(buffer, begin + piece * count, count);
                       }});
      begin += (index + 1) % extent * count;
    }
    b.SetStep(0);
    for (size_t phase = 0; phase < rings.size(); ++phase) {
      RingReduceScatterSteps(b, rings[phase], phase == 0 ? kIn : kOut);
    }
    for (auto ring = rings.rbegin(); ring != rings.rend(); ++ring) RingAllGatherSteps(b, *ring);
  }
}

Layout BucketReduceScatterLayout(const ScheduleSpec& spec) {
  // Partial sums of a block lie in the scratch block of its number.
  const int64_t ports = Torus(spec.dims).ports();
  return {.chunks = ports,
          .scratch_blocks = spec.world_size > 2 ? spec.world_size : 0,
          .subchannels = ports};
}

void BucketReduceScatter(OpListBuilder& b) {
  const Torus torus(b.spec().dims);
  for (int32_t part = 0; part < torus.ports(); ++part) {
    b.SetSubchannel(part);
    b.SetStep(0);
    const Way way = WayOf(part);
    for (int32_t phase = 0; phase < torus.dimensions(); ++phase) {
      const int32_t d = way.Dimension(torus, phase), extent = torus.Extent(d);
      const int32_t place = torus.Coordinate(b.rank(), d);
      std::vector<int32_t> later;
      for (int32_t p = phase + 1; p < torus.dimensions(); ++p) {
        later.push_back(way.Dimension(torus, p));
      }
      // The chunks that this line reduces for its member that many ranks ahead; on all members.
      auto blocks = [&](BufferKind buffer, int32_t ahead) {
        const int32_t member = torus.With(b.rank(), d, place + ahead * way.direction);
        return b.Parts(buffer, Around(torus, member, later), part);
      };
      const BufferKind from = phase == 0 ? kIn : kTmp;
      for (int32_t s = 0; s + 1 < extent; ++s, b.NextStep()) {
        const BufferKind partial = s == 0 ? from : kTmp;
        const bool last = later.empty() && s + 2 == extent;
        auto sum = [&](int32_t ahead) {
          return last ? b.Parts(kOut, {0}, part) : blocks(kTmp, ahead);
        };
        b.Send(torus.With(b.rank(), d, place + way.direction), blocks(partial, -1 - s),
               sum(-1 - s));
        b.RecvReduce(torus.With(b.rank(), d, place - way.direction), blocks(partial, -2 - s),
                     blocks(from, -2 - s), sum(-2 - s));
      }
    }
  }
}

Layout BucketAllGatherLayout(const ScheduleSpec& spec) {
  const int64_t ports = Torus(spec.dims).ports();
  return {.chunks = ports, .subchannels = ports};
}

void BucketAllGather(OpListBuilder& b) {
  const Torus torus(b.spec().dims);
  for (int32_t part = 0; part < torus.ports(); ++part) {
    b.SetSubchannel(part);
    b.SetStep(0);
    b.Copy(b.Parts(kIn, {0}, part), b.Parts(kOut, {b.rank()}, part));
    const Way way = WayOf(part);
    std::vector<int32_t> earlier;
    for (int32_t phase = 0; phase < torus.dimensions(); ++phase) {
      const int32_t d = way.Dimension(torus, phase);
      const int32_t place = torus.Coordinate(b.rank(), d);
      // The chunks that the member of this line that many ranks ahead has brought into this phase.
      auto blocks = [&](int32_t ahead) {
        const int32_t member = torus.With(b.rank(), d, place + ahead * way.direction);
        return b.Parts(kOut, Around(torus, member, earlier), part);
      };
      for (int32_t s = 0; s + 1 < torus.Extent(d); ++s, b.NextStep()) {
        const bool own = phase == 0 && s == 0;
        auto source = [&](int32_t ahead) { return own ? b.Parts(kIn, {0}, part) : blocks(ahead); };
        b.Send(torus.With(b.rank(), d, place + way.direction), source(-s), blocks(-s));
        b.Recv(torus.With(b.rank(), d, place - way.direction), source(-s - 1), blocks(-s - 1));
      }
      earlier.push_back(d);
    }
  }
}

}  // namespace jaxcoll
