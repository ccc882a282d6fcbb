// Properties that only C++ can see: memory bounds, threads, and the floating-point state of the
// caller. The numbers of every dtype and op are checked by tests/test_kernels.py.
#include "base/kernels.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <numeric>
#include <ostream>
#include <string>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace jaxcoll {

void PrintTo(Isa isa, std::ostream* out) { *out << Name(isa); }  // found by GoogleTest

namespace {

class KernelsTest : public testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    if (GetParam() > BestIsa()) GTEST_SKIP() << "this machine has no " << Name(GetParam());
  }

  void Sum(std::vector<void*> destinations, std::vector<const void*> sources, size_t count,
           DType dtype, Caching caching) {
    ReduceWith(GetParam(), destinations, sources, count, dtype, ReduceOp::kSum, caching);
  }
};

INSTANTIATE_TEST_SUITE_P(EveryIsa, KernelsTest,
                         testing::Values(Isa::kPortable, Isa::kAvx2, Isa::kAvx512),
                         [](const auto& info) { return std::string(Name(info.param)); });

// Blocks of the exact size, so that AddressSanitizer sees a read or write beyond them.
TEST_P(KernelsTest, StaysWithinItsBuffers) {
  for (const Caching caching : {Caching::kCached, Caching::kStreaming}) {
    for (size_t count = 0; count < 700; count += count < 140 ? 1 : 17) {
      for (const size_t skipped : {0, 1, 5}) {
        std::vector<std::unique_ptr<int32_t[]>> blocks;
        std::vector<const void*> sources;
        std::vector<void*> destinations;
        for (int i = 0; i < 5; ++i) {
          blocks.push_back(std::make_unique<int32_t[]>(skipped + count));
          int32_t* begin = blocks.back().get() + skipped;
          std::iota(begin, begin + count, i);
          (i < 3 ? sources.push_back(begin) : destinations.push_back(begin));
        }
        destinations.push_back(const_cast<void*>(sources[1]));  // in place
        Sum(destinations, sources, count, DType::kInt32, caching);
        for (const void* destination : destinations) {
          const int32_t* sums = static_cast<const int32_t*>(destination);
          for (size_t i = 0; i < count; ++i) ASSERT_EQ(sums[i], static_cast<int32_t>(3 * i + 3));
        }
      }
    }
  }
}

TEST_P(KernelsTest, RoundsSmallFloatsOnce) {
  const std::vector<uint16_t> one(100, 0x3f80);     // bfloat16 1
  const std::vector<uint16_t> eighth(100, 0x3b00);  // 2^-9, an eighth of what 1 can take in
  std::vector<uint16_t> sum(100);
  std::vector<const void*> sources(9, eighth.data());
  sources[0] = one.data();
  Sum({sum.data()}, sources, sum.size(), DType::kBFloat16, Caching::kCached);
  EXPECT_EQ(sum, std::vector<uint16_t>(100, 0x3f82));  // 1 + 8 * 2^-9
}

TEST_P(KernelsTest, NanIsTheSameWhicheverSourceBroughtIt) {
  const auto nan = [](uint32_t bits) { return std::vector<uint32_t>(33, bits); };
  const std::vector<uint32_t> first = nan(0xffc12345), second = nan(0x7f800001);
  std::vector<uint32_t> sum(33);
  Sum({sum.data()}, {first.data(), second.data()}, 33, DType::kFloat32, Caching::kCached);
  EXPECT_EQ(sum, nan(0x7fc00000));
  Sum({sum.data()}, {second.data(), first.data()}, 33, DType::kFloat32, Caching::kCached);
  EXPECT_EQ(sum, nan(0x7fc00000));
}

#if defined(__x86_64__)
TEST_P(KernelsTest, SubnormalsSurviveAThreadThatFlushesThem) {
  constexpr unsigned kFlushAndDenormalsAreZero = 0x8040, kControl = 0xffc0;
  const float tiny = std::numeric_limits<float>::denorm_min();
  const std::vector<float> tinies(40, tiny);
  std::vector<float> sum(40);
  const unsigned saved = _mm_getcsr();
  _mm_setcsr(saved | kFlushAndDenormalsAreZero);
  Sum({sum.data()}, {tinies.data(), tinies.data()}, 40, DType::kFloat32, Caching::kCached);
  const unsigned after = _mm_getcsr();
  _mm_setcsr(saved);
  EXPECT_EQ(sum, std::vector<float>(40, 2 * tiny));
  EXPECT_EQ(after & kControl, (saved | kFlushAndDenormalsAreZero) & kControl);
}
#endif

TEST(ReduceTest, ServesManyThreads) {
  const std::vector<float> ones(4096, 1.0f);
  std::vector<std::vector<float>> sums(4, std::vector<float>(4096));
  std::vector<std::thread> threads;
  for (std::vector<float>& sum : sums) {
    threads.emplace_back([&ones, &sum] {
      void* const destination = sum.data();
      const void* const sources[] = {ones.data(), ones.data(), ones.data()};
      Reduce({&destination, 1}, sources, sum.size(), DType::kFloat32, ReduceOp::kSum,
             Caching::kStreaming);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::vector<float>& sum : sums) EXPECT_EQ(sum, std::vector<float>(4096, 3.0f));
}

TEST(CopyTest, FillsEveryDestination) {
  std::vector<uint8_t> source(1000);
  std::iota(source.begin(), source.end(), 0);
  for (const Caching caching : {Caching::kCached, Caching::kStreaming}) {
    for (const size_t size : {0, 1, 63, 64, 500, 999}) {
      for (const size_t destination_count : {1, 2, 5}) {
        const std::vector<uint8_t> expected(source.begin() + 1, source.begin() + 1 + size);
        std::vector<std::vector<uint8_t>> blocks(destination_count, std::vector<uint8_t>(size));
        std::vector<void*> destinations;
        for (std::vector<uint8_t>& block : blocks) destinations.push_back(block.data());
        Copy(destinations, source.data() + 1, size, caching);
        for (const std::vector<uint8_t>& block : blocks) EXPECT_EQ(block, expected);
      }
    }
  }
}

TEST(CopyTest, ToItselfChangesNothing) {
  std::vector<uint8_t> block(300, 7);
  void* const destination = block.data();
  Copy({&destination, 1}, block.data(), block.size(), Caching::kCached);
  Copy({&destination, 1}, block.data(), block.size(), Caching::kStreaming);
  EXPECT_EQ(block, std::vector<uint8_t>(300, 7));
}

TEST(CopyTest, KeepsThePayloadOfNan) {
  const uint32_t signalling = 0x7f800001;
  uint32_t copied = 0;
  void* const destination = &copied;
  const void* const source = &signalling;
  Reduce({&destination, 1}, {&source, 1}, 1, DType::kFloat32, ReduceOp::kSum, Caching::kCached);
  EXPECT_EQ(copied, signalling);
}

TEST(ReduceDeathTest, RefusesAnOpThatTheDtypeLacks) {
  float value = 1;
  void* const destination = &value;
  const void* const sources[] = {&value, &value};
  EXPECT_DEATH(
      Reduce({&destination, 1}, sources, 1, DType::kFloat32, ReduceOp::kXor, Caching::kCached),
      "xor of float32");
}

}  // namespace
}  // namespace jaxcoll
