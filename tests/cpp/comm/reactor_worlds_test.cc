// Many worlds, each from its seed.
//
//   JAXCOLL_TEST_SEED=n    runs that seed of every test, and no other
//   JAXCOLL_TEST_SEEDS=n   runs n seeds in all instead of 10 000 (fewer under a sanitizer)
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>

#include "support/reactor_world.h"

namespace jaxcoll {
namespace {

#if defined(__SANITIZE_THREAD__)
constexpr int kSeeds = 300;
#elif defined(__SANITIZE_ADDRESS__)
constexpr int kSeeds = 1000;
#else
constexpr int kSeeds = 10000;
#endif

int64_t EnvironmentNumber(const char* name, int64_t fallback) {
  const char* const text = std::getenv(name);
  return text == nullptr || *text == '\0' ? fallback : std::atoll(text);
}

// `share`: percent of all seeds.
void RunSeeds(Fault fault, int share) {
  const int64_t only = EnvironmentNumber("JAXCOLL_TEST_SEED", -1);
  const int64_t all = EnvironmentNumber("JAXCOLL_TEST_SEEDS", kSeeds);
  const int64_t first = only >= 0 ? only : 0;
  const int64_t count = only >= 0 ? 1 : std::max<int64_t>(1, all * share / 100);
  for (int64_t seed = first; seed < first + count; ++seed) {
    ReactorWorld(static_cast<uint64_t>(seed), fault).Run();
    if (::testing::Test::HasFailure()) {
      ADD_FAILURE() << "seed " << seed << ": run it alone with JAXCOLL_TEST_SEED=" << seed
                    << " --gtest_filter="
                    << ::testing::UnitTest::GetInstance()->current_test_info()->name();
      return;
    }
  }
}

TEST(Reactor, EveryCollectiveIsExactWhateverTheNetworkDoes) { RunSeeds(Fault::kNone, 50); }
TEST(Reactor, ALinkThatEndsFailsItsCommunicators) { RunSeeds(Fault::kCutBoth, 7); }
TEST(Reactor, ALinkThatEndsOnOneSideFailsItsCommunicators) { RunSeeds(Fault::kCutOne, 7); }
TEST(Reactor, ALinkThatLosesEverythingIsFoundByTheDeadline) { RunSeeds(Fault::kBlackHole, 5); }
TEST(Reactor, AStoppedProcessFindsItselfExcluded) { RunSeeds(Fault::kStop, 7); }
TEST(Reactor, AKilledProcessFailsItsCommunicators) { RunSeeds(Fault::kKill, 7); }
TEST(Reactor, ALinkThatNeverComesIsFoundByTheDeadline) { RunSeeds(Fault::kNeverUp, 3); }
TEST(Reactor, ALinkThatCannotBeMadeFailsItsCommunicators) { RunSeeds(Fault::kFailed, 3); }
TEST(Reactor, APoisonThatComesFirstIsRemembered) { RunSeeds(Fault::kPoison, 4); }
TEST(Reactor, AHostilePeerOnlyHurtsItsCommunicators) { RunSeeds(Fault::kHostile, 7); }

}  // namespace
}  // namespace jaxcoll
