// The GPU's element types against the CPU's kernels: every pair of codes of the 8-bit types, and
// for wider ones the special values and random ones, with every op, bit for bit.
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "base/kernels.h"
#include "gpu/device/element.h"

namespace jaxcoll::cuda {
namespace {

// The corners of the exponents and the rounding of floats.
template <typename Stored>
std::vector<Stored> Samples() {
  std::vector<Stored> samples;
  std::mt19937_64 random(11);
  constexpr int kBits = 8 * sizeof(Stored) > 64 ? 64 : 8 * sizeof(Stored);
  const auto add = [&](uint64_t low, uint64_t high) {
    Stored value = {};
    unsigned char bytes[16];
    std::memcpy(bytes, &low, 8);
    std::memcpy(bytes + 8, &high, 8);
    std::memcpy(&value, bytes, sizeof(value));
    samples.push_back(value);
  };
  if constexpr (kBits == 8) {
    for (uint64_t code = 0; code < 256; ++code) add(code, 0);
    return samples;
  }
  for (int bit = 0; bit < kBits; ++bit) {
    for (const int64_t beside : {-1, 0, 1}) add((uint64_t{1} << bit) + beside, ~uint64_t{0} << bit);
    add(~uint64_t{0} << bit, uint64_t{1} << bit);
  }
  for (const uint64_t special :
       {uint64_t{0x7f800000}, uint64_t{0xff800000}, uint64_t{0x7fc00000}, uint64_t{0x7ff0} << 48,
        uint64_t{0xfff0} << 48, uint64_t{0x7ff8} << 48, uint64_t{0x3ff0} << 48, uint64_t{0x7c00},
        uint64_t{0xfc00}, uint64_t{0x7f80}, uint64_t{0x3f803f80}}) {
    add(special, special);
  }
  for (int i = 0; i < 60; ++i) add(random(), random());
  return samples;
}

template <DType kDType>
void Compare() {
  using E = ElementOf<kDType>;
  using Stored = typename E::Stored;
  ASSERT_EQ(sizeof(Stored), ItemBytes(kDType));
  std::vector<Stored> a, b;
  const std::vector<Stored> samples = Samples<Stored>();
  for (const Stored& x : samples) {
    for (const Stored& y : samples) {
      a.push_back(x);
      b.push_back(y);
    }
  }
  const size_t bytes = a.size() * sizeof(Stored);
  for (int i = 0; i < kReduceOpCount; ++i) {
    const auto op = static_cast<ReduceOp>(i);
    if (!Supports(kDType, op)) continue;
    std::vector<unsigned char> expected(bytes), actual(bytes);
    void* to = expected.data();
    const std::vector<const void*> sources = {a.data(), b.data(), a.data()};
    Reduce({&to, 1}, sources, a.size(), kDType, op, Caching::kCached);
    for (size_t n = 0; n < a.size(); ++n) {
      const auto sum = Combine(op, Combine(op, E::Load(a[n]), E::Load(b[n])), E::Load(a[n]));
      const Stored stored = E::Store(sum);
      std::memcpy(actual.data() + n * sizeof(Stored), &stored, sizeof(Stored));
    }
    for (size_t n = 0; n < a.size(); ++n) {
      ASSERT_EQ(std::memcmp(actual.data() + n * sizeof(Stored),
                            expected.data() + n * sizeof(Stored), sizeof(Stored)),
                0)
          << Name(op) << " of " << Name(kDType) << ", pair " << n;
    }
  }
}

template <int... I>
void CompareAll(std::integer_sequence<int, I...>) {
  (Compare<static_cast<DType>(I + 1)>(), ...);  // 0 is bool
}

TEST(CudaElement, EveryDtypeAndOpGivesTheBitsOfTheCpu) {
  CompareAll(std::make_integer_sequence<int, kDTypeCount - 1>());
}

}  // namespace
}  // namespace jaxcoll::cuda
