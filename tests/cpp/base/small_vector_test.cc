// SmallVector against std::vector.
#include "base/small_vector.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace jaxcoll {
namespace {

using Small = SmallVector<int32_t, 2>;

TEST(SmallVector, HoldsWhatAVectorWould) {
  for (uint32_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 random(seed);
    Small ours;
    std::vector<int32_t> theirs;
    for (int step = 0; step < 40; ++step) {
      const auto value = static_cast<int32_t>(random() % 100);
      switch (random() % 6) {
        case 0:
        case 1:
          ours.push_back(value);
          theirs.push_back(value);
          break;
        case 2: {
          const std::vector<int32_t> more(random() % 5, value);
          ours.Append(more.data(), more.data() + more.size());
          theirs.insert(theirs.end(), more.begin(), more.end());
          break;
        }
        case 3: {
          const size_t kept = theirs.empty() ? 0 : random() % theirs.size();
          ours.Truncate(ours.begin() + kept);
          theirs.resize(kept);
          break;
        }
        case 4: {  // there and back
          Small copy = ours, moved = std::move(ours);
          EXPECT_EQ(copy, moved);
          EXPECT_TRUE(ours.empty());  // NOLINT(bugprone-use-after-move): as it promises
          ours = random() % 2 ? copy : std::move(moved);
          break;
        }
        default:
          if (!theirs.empty()) ours.push_back(ours.front()), theirs.push_back(theirs.front());
      }
      ASSERT_EQ(ours.size(), theirs.size());
      ASSERT_EQ(std::vector<int32_t>(ours), theirs);
      ASSERT_EQ(ours, Small(theirs));
    }
  }
}

}  // namespace
}  // namespace jaxcoll
