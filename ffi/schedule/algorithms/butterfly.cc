#include "schedule/algorithms/butterfly.h"

#include <algorithm>
#include <bit>
#include <iterator>

namespace jaxcoll {
namespace {

int32_t Rho(int32_t round) {
  return (1 - (-2) * (round % 2 == 0 ? 1 << round : -(1 << round))) / 3;
}

int32_t Rounds(int32_t extent) {
  return static_cast<int32_t>(std::bit_width(static_cast<uint32_t>(extent - 1)));
}

// Digits of c to base -2, as many as there are rounds.
uint32_t Negabinary(uint32_t c, int32_t rounds) {
  constexpr uint32_t kOddDigits = 0xAAAAAAAA;
  return ((c + kOddDigits) ^ kOddDigits) & ((1u << rounds) - 1);
}

// In which half the pairs of each round have coordinate c, of 2^rounds on a ring; bit s is round
// s. Rank 0 is always in the first half. A coordinate in the second half of round s is turned over
// into the first, as its pairs turn it, so that later rounds need to know of one half only.
uint32_t Halves(int32_t c, int32_t rounds) {
  uint32_t halves = 0;
  for (int32_t s = 0; s < rounds; ++s) {
    const uint32_t digits = Negabinary(static_cast<uint32_t>(c), rounds);
    if (((digits ^ digits >> 1) >> s & 1) == 0) continue;
    halves |= 1u << s;
    c = (Rho(s) - c) & ((1 << rounds) - 1);
  }
  return halves;
}

}  // namespace

Butterfly::Butterfly(const Torus& torus, int32_t first_dimension, bool mirrored)
    : torus_(torus), sign_(mirrored ? -1 : 1) {
  int32_t most = 0;
  for (int32_t d = 0; d < torus.dimensions(); ++d) {
    most = std::max(most, Rounds(torus.Extent(d)));
    if (!std::has_single_bit(static_cast<uint32_t>(torus.Extent(d)))) power_of_two_ = false;
  }
  for (int32_t round = 0; round < most; ++round) {
    for (int32_t i = 0; i < torus.dimensions(); ++i) {
      const int32_t d = (first_dimension + i) % torus.dimensions();
      if (round < Rounds(torus.Extent(d))) hops_.push_back({d, round});
    }
  }
}

int32_t Butterfly::Partner(int32_t rank, int32_t step) const {
  const auto [d, round] = hops_[step];
  const int32_t c = torus_.Coordinate(rank, d);
  return torus_.With(rank, d, c + (c % 2 == 0 ? 1 : -1) * sign_ * Rho(round));
}

bool Butterfly::First(int32_t rank, int32_t step) const {
  const auto [d, round] = hops_[step];
  const int32_t extent = torus_.Extent(d), c = torus_.Coordinate(rank, d);
  return (Halves(sign_ == 1 ? c : (extent - c) % extent, Rounds(extent)) >> round & 1) == 0;
}

int32_t Butterfly::Position(int32_t rank) const {
  if (!power_of_two_) return rank;
  int32_t position = 0;
  for (int32_t s = 0; s < steps(); ++s) position = 2 * position + (First(rank, s) ? 0 : 1);
  return position;
}

std::vector<int32_t> Butterfly::Reach(int32_t rank, int32_t step) const {
  std::vector<int32_t> reached = {rank};
  std::vector<bool> seen(size());
  seen[rank] = true;
  for (int32_t s = step; s < steps(); ++s) {
    for (size_t i = reached.size(); i-- > 0;) {
      const int32_t partner = Partner(reached[i], s);
      if (seen[partner]) continue;
      seen[partner] = true;
      reached.push_back(partner);
    }
  }
  std::sort(reached.begin(), reached.end());
  return reached;
}

std::vector<int32_t> Butterfly::Given(int32_t rank, int32_t step) const {
  const std::vector<int32_t> through = Reach(Partner(rank, step), step + 1);
  const std::vector<int32_t> later = Reach(rank, step + 1);
  std::vector<int32_t> given;
  std::set_difference(through.begin(), through.end(), later.begin(), later.end(),
                      std::back_inserter(given));
  return given;
}

std::vector<Interval> Butterfly::GivenPositions(int32_t rank, int32_t step) const {
  if (power_of_two_) {  // all that agrees with the partner on the halves of the steps so far
    const int32_t bits = steps() - step - 1;
    return {{Position(Partner(rank, step)) >> bits << bits, 1 << bits}};
  }
  std::vector<Interval> intervals;
  for (int32_t share : Given(rank, step)) {
    if (!intervals.empty() && intervals.back().begin + intervals.back().count == share) {
      ++intervals.back().count;
    } else {
      intervals.push_back({share, 1});
    }
  }
  return intervals;
}

void ButterflyAllReduce(OpListBuilder& b, const Butterfly& butterfly, int32_t subchannel) {
  const int32_t base = subchannel * b.size(), extra = butterfly.size();
  const bool beside = extra < b.size();
  auto chunks = [&](BufferKind buffer, std::vector<Interval> positions) {
    for (Interval& interval : positions) interval.begin += base;
    return b.Chunks(buffer, positions);
  };
  auto share = [&](BufferKind buffer, int32_t rank) {
    const int32_t position = rank == extra ? extra : butterfly.Position(rank);
    return chunks(buffer, {{position, 1}});
  };
  const int32_t steps = butterfly.steps();
  b.SetStep(0);
  if (b.rank() == extra) {
    b.SetStep(steps);
    for (int32_t q = 0; q < extra; ++q) {
      b.Send(q, share(kIn, q), share(kOut, q));
      b.RecvReduce(q, share(kIn, extra), share(q == 0 ? kIn : kOut, extra), share(kOut, extra));
    }
    b.SetStep(2 * steps + 1);
    for (int32_t q = 0; q < extra; ++q) {
      b.Send(q, share(kOut, extra), share(kOut, extra));
      b.Recv(q, share(kOut, q), share(kOut, q));
    }
    return;
  }
  // Else a message may hold shares that have been added to and others that have not.
  const BufferKind from = butterfly.power_of_two() ? kIn : kOut;
  if (from == kOut) b.Copy(chunks(kIn, {{0, extra}}), chunks(kOut, {{0, extra}}));
  for (int32_t s = 0; s < steps; ++s, b.NextStep()) {
    const int32_t peer = butterfly.Partner(b.rank(), s);
    const auto given = butterfly.GivenPositions(b.rank(), s);
    const auto taken = butterfly.GivenPositions(peer, s);
    const BufferKind value = s == 0 ? from : kOut;
    b.Send(peer, chunks(value, given), chunks(kOut, given));
    b.RecvReduce(peer, chunks(value, taken), chunks(value, taken), chunks(kOut, taken));
  }
  if (beside) {
    b.Send(extra, share(kIn, extra), share(kOut, extra));
    b.RecvReduce(extra, share(kIn, b.rank()), share(kOut, b.rank()), share(kOut, b.rank()));
    b.NextStep();
  }
  for (int32_t s = steps - 1; s >= 0; --s, b.NextStep()) {
    const int32_t peer = butterfly.Partner(b.rank(), s);
    const Operand mine = chunks(kOut, butterfly.GivenPositions(peer, s));
    const Operand theirs = chunks(kOut, butterfly.GivenPositions(b.rank(), s));
    b.Send(peer, mine, mine);
    b.Recv(peer, theirs, theirs);
  }
  if (beside) {
    b.Send(extra, share(kOut, b.rank()), share(kOut, b.rank()));
    b.Recv(extra, share(kOut, extra), share(kOut, extra));
  }
}

int64_t ButterflyReduceScatterScratch(int32_t size, bool power_of_two) {
  if (!power_of_two) return size;
  return size > 2 ? size / 2 : 0;  // what is left after the first step
}

void ButterflyReduceScatter(OpListBuilder& b, const Butterfly& butterfly, int32_t subchannel) {
  const int32_t extra = butterfly.size(), steps = butterfly.steps();
  const bool power_of_two = butterfly.power_of_two();
  auto block = [&](BufferKind buffer, int32_t rank) { return b.Parts(buffer, {rank}, subchannel); };
  const Operand result = block(kOut, 0);
  b.SetStep(0);
  if (b.rank() == extra) {
    b.SetStep(steps);
    for (int32_t q = 0; q < extra; ++q) {
      b.Send(q, block(kIn, q), result);
      b.RecvReduce(q, block(kIn, extra), q == 0 ? block(kIn, extra) : result, result);
    }
    return;
  }
  // Sums of a share lie in one block of scratch, the same on all ranks.
  auto sums = [&](std::vector<int32_t> ranks) {
    if (power_of_two) {
      for (int32_t& rank : ranks) rank = butterfly.Position(rank) % (extra / 2);
    }
    return b.Parts(kTmp, ranks, subchannel);
  };
  if (!power_of_two) {  // see ButterflyAllReduce
    std::vector<int32_t> all(extra);
    for (int32_t q = 0; q < extra; ++q) all[q] = q;
    b.Copy(b.Parts(kIn, all, subchannel), sums(all));
  }
  for (int32_t s = 0; s < steps; ++s, b.NextStep()) {
    const int32_t peer = butterfly.Partner(b.rank(), s);
    auto value = [&](const std::vector<int32_t>& ranks) {
      return s == 0 && power_of_two ? b.Parts(kIn, ranks, subchannel) : sums(ranks);
    };
    // The last step brings a rank's own share and nothing else.
    auto sum = [&](const std::vector<int32_t>& ranks) {
      return s + 1 == steps ? result : sums(ranks);
    };
    const auto given = butterfly.Given(b.rank(), s), taken = butterfly.Given(peer, s);
    b.Send(peer, value(given), sum(given));
    b.RecvReduce(peer, value(taken), value(taken), sum(taken));
  }
  if (extra < b.size()) {
    b.Send(extra, block(kIn, extra), result);
    b.RecvReduce(extra, block(kIn, b.rank()), result, result);
  }
}

void ButterflyAllGather(OpListBuilder& b, const Butterfly& butterfly, int32_t subchannel) {
  const int32_t extra = butterfly.size(), steps = butterfly.steps();
  auto block = [&](BufferKind buffer, int32_t rank) { return b.Parts(buffer, {rank}, subchannel); };
  const Operand input = block(kIn, 0);
  b.SetStep(0);
  b.Copy(input, block(kOut, b.rank()));
  if (b.rank() == extra) {
    b.SetStep(steps);
    for (int32_t q = 0; q < extra; ++q) {
      b.Send(q, input, block(kOut, extra));
      b.Recv(q, input, block(kOut, q));
    }
    return;
  }
  for (int32_t s = steps - 1; s >= 0; --s, b.NextStep()) {
    const int32_t peer = butterfly.Partner(b.rank(), s);
    const Operand mine = b.Parts(kOut, butterfly.Given(peer, s), subchannel);
    const Operand theirs = b.Parts(kOut, butterfly.Given(b.rank(), s), subchannel);
    const bool own = s + 1 == steps;
    b.Send(peer, own ? input : mine, mine);
    b.Recv(peer, own ? input : theirs, theirs);
  }
  if (extra < b.size()) {
    b.Send(extra, input, block(kOut, b.rank()));
    b.Recv(extra, input, block(kOut, extra));
  }
}

}  // namespace jaxcoll
