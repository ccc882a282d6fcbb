// What Python hands over, and what counts without it.

#include "base/environment.h"

#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/kernels.h"

namespace jaxcoll {
namespace {

// Other tests of this program have settings of their own.
class EnvironmentTest : public testing::Test {
 protected:
  void TearDown() override { Configure(before_); }

 private:
  const Settings before_ = CurrentSettings();
};

TEST_F(EnvironmentTest, DefaultsAreThoseOfTheTableForUsers) {
  Configure({});
  EXPECT_EQ(TimeoutS(), 300);
  EXPECT_GE(WorkerThreads(), 1);
  EXPECT_EQ(KernelIsa(), BestIsa());
}

TEST_F(EnvironmentTest, WhatWasReturnedBeforeStaysValid) {
  Configure({.timeout_s = 7, .rdma_devices = "mlx5_0"});
  const Settings& before = CurrentSettings();
  Configure({.timeout_s = 8, .threads = 5});
  EXPECT_EQ(before.rdma_devices, "mlx5_0");
  EXPECT_EQ(before.timeout_s, 7);
  EXPECT_EQ(TimeoutS(), 8);
  EXPECT_EQ(WorkerThreads(), 5);
}

TEST_F(EnvironmentTest, AnyThreadMayReadAndReplace) {
  std::vector<std::thread> threads;
  for (int i = 1; i <= 4; ++i) {
    threads.emplace_back([i] {
      for (int round = 0; round < 100; ++round) {
        Configure({.timeout_s = static_cast<double>(i), .rdma_devices = std::to_string(i)});
        const Settings& settings = CurrentSettings();
        EXPECT_EQ(settings.rdma_devices, std::to_string(static_cast<int>(settings.timeout_s)));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(EnvironmentTest, AnIsaThatTheCpuLacksIsNeverRun) {
  EXPECT_EQ(Allowed(std::nullopt, Isa::kAvx2), Isa::kAvx2);
  EXPECT_EQ(Allowed(Isa::kPortable, Isa::kAvx2), Isa::kPortable);
  EXPECT_EQ(Allowed(Isa::kAvx512, Isa::kAvx2), Isa::kAvx2);
  EXPECT_EQ(Allowed(Isa::kAvx512, Isa::kPortable), Isa::kPortable);
  Configure({.isa = Isa::kAvx512});
  EXPECT_EQ(KernelIsa(), BestIsa());
  Configure({.isa = Isa::kPortable});
  EXPECT_EQ(KernelIsa(), Isa::kPortable);
}

}  // namespace
}  // namespace jaxcoll
