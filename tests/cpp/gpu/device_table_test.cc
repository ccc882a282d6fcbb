// Every schedule as the GPU's interpreter runs it, on threads, against the engine for CPUs.

#include <algorithm>
#include <cstdlib>
#include <map>
#include <tuple>

#include "support/device_case.h"

namespace jaxcoll::cuda {
namespace {

class EverySchedule : public testing::TestWithParam<std::tuple<Draw, Reach>> {};

// Sizes that leave chunks empty, cut them unevenly, and need many slices; one launch after the
// other in the same region, as replays are.
TEST_P(EverySchedule, GivesTheBitsOfTheEngineForCpus) {
  const auto& [draw, reach] = GetParam();
  const auto& [collective, algorithm] = draw;
  int served = 0;
  for (const int ranks : Few({1, 2, 3, 4, 5, 6, 7, 8, 9, 16}, {1, 2, 5, 8})) {
    for (const int channels : {1, 3}) {
      if (channels > 1 && ranks > 5) continue;
      ScheduleSpec spec = Spec(collective, algorithm, ranks);
      spec.channels = channels;
      const std::vector<OpList> op_lists = BuildAll(spec);
      if (op_lists.empty()) continue;
      ++served;
      std::vector<std::unique_ptr<Case>> cases;
      uint32_t seed = 100 * ranks;
      for (const int64_t elements : {1000, 0, 1, 67, 1000, 333}) {
        cases.push_back(Make(op_lists, collective,
                             {.block_elements = {elements, 5}, .seed = ++seed, .reach = reach}));
        ASSERT_NE(cases.back(), nullptr);
        cases.back()->name = algorithm + ", " + std::to_string(ranks) + " ranks, " +
                             std::to_string(channels) + " channels, " + std::to_string(elements) +
                             " elements";
      }
      ExpectRight(cases);
    }
  }
  EXPECT_GT(served, 0);
}

INSTANTIATE_TEST_SUITE_P(All, EverySchedule,
                         testing::Combine(testing::ValuesIn(EveryAlgorithm()),
                                          testing::ValuesIn(kReaches)),
                         [](const auto& info) {
                           const Draw& draw = std::get<Draw>(info.param);
                           const Reach reach = std::get<Reach>(info.param);
                           return std::string(Name(draw.collective)) + "_" + draw.algorithm +
                                  (reach == Reach::kOperands ? "_operands" : "");
                         });

TEST(Interpreter, CombinesEveryDTypeAsTheKernelsDo) {
  for (int d = 0; d < kDTypeCount; ++d) {
    std::vector<std::unique_ptr<Case>> cases;
    for (int o = 0; o < kReduceOpCount; ++o) {
      const auto dtype = static_cast<DType>(d);
      const auto op = static_cast<ReduceOp>(o);
      if (!Supports(dtype, op)) continue;
      for (const char* algorithm : {"direct2", "ring"}) {
        const auto op_lists = BuildAll(Spec(Collective::kAllReduce, algorithm, 3));
        cases.push_back(Make(op_lists, Collective::kAllReduce,
                             {.block_elements = {700, 5}, .dtype = dtype, .op = op}));
        ASSERT_NE(cases.back(), nullptr);
        cases.back()->name = std::string(Name(dtype)) + " " + std::string(Name(op));
      }
    }
    ExpectRight(cases);
  }
}

// More than one thread per block, so that a barrier that is missing is a race for TSan.
TEST(Interpreter, SharesTheWorkOfABlock) {
  for (const int threads : {2, 3}) {
    for (const Draw& draw :
         {Draw{Collective::kAllReduce, "direct"}, Draw{Collective::kAllReduce, "ring"},
          Draw{Collective::kAllReduce, "halving_doubling"},
          Draw{Collective::kReduceScatter, "ring"}, Draw{Collective::kAllToAll, "bruck"},
          Draw{Collective::kAllGather, "recursive_doubling"}}) {
      std::vector<std::unique_ptr<Case>> cases;
      const auto op_lists = BuildAll(Spec(draw.collective, draw.algorithm, 4));
      for (const Reach reach : kReaches) {
        for (const int64_t elements : {801, 3}) {
          cases.push_back(
              Make(op_lists, draw.collective,
                   {.block_elements = {elements, 19}, .dtype = DType::kBFloat16, .reach = reach}));
          ASSERT_NE(cases.back(), nullptr);
          cases.back()->name = draw.algorithm;
        }
      }
      ExpectRight(cases, {.threads_per_block = threads});
    }
  }
}

// Several teams of threads in a block, which take chunks in turn.
TEST(Interpreter, MovesChunksSideBySide) {
  const auto op_lists = BuildAll(Spec(Collective::kAllToAll, "bruck", 5));
  std::vector<std::unique_ptr<Case>> cases;
  for (const int64_t elements : {40, 7}) {
    cases.push_back(Make(op_lists, Collective::kAllToAll, {.block_elements = {elements}}));
    ASSERT_NE(cases.back(), nullptr);
    cases.back()->name = "bruck";
  }
  ExpectRight(cases, {.threads_per_block = 70});
}

// Channels that wait for each other, run by as many workers, by fewer and by one.
TEST(Interpreter, OrdersWorkersThatDependOnEachOther) {
  std::mt19937 random(11);
  for (const Draw& draw : EveryAlgorithm()) {
    for (const int ranks : Few({3, 4}, {4})) {
      auto op_lists = BuildAll(Spec(draw.collective, draw.algorithm, ranks));
      if (op_lists.empty()) continue;
      for (const int workers : {1, 3, 8}) {
        const auto mixed = Rechannel(op_lists, 5, random);
        std::vector<std::unique_ptr<Case>> cases;
        for (const int64_t elements : {900, 13, 900, 901}) {
          const Reach reach = kReaches[elements % 2];
          cases.push_back(Make(mixed, draw.collective,
                               {.block_elements = {elements}, .reach = reach}, workers));
          ASSERT_NE(cases.back(), nullptr);
          cases.back()->name = draw.algorithm + ", " + std::to_string(workers) + " workers";
        }
        ExpectRight(cases, {.threads_per_block = 1});
      }
    }
  }
}

// Different schedules, sizes and dtypes one after the other in one region.
TEST(Interpreter, SharesARegionBetweenCallsThatFollowEachOther) {
  constexpr uint32_t kSeed = 5;
  std::mt19937 random(kSeed);
  const std::vector<Draw> all = EveryAlgorithm();
  std::vector<std::unique_ptr<Case>> cases;
  while (cases.size() < 60) {
    const Draw& draw = all[random() % all.size()];
    ScheduleSpec spec = Spec(draw.collective, draw.algorithm, 4);
    spec.channels = 1 + static_cast<int32_t>(random() % 3);
    const auto op_lists = BuildAll(spec);
    if (op_lists.empty()) continue;
    Values values{.block_elements = {static_cast<int64_t>(random() % 1500)},
                  .dtype = random() % 2 ? DType::kFloat32 : DType::kInt16,
                  .seed = static_cast<uint32_t>(random()),
                  .reach = kReaches[random() % 2]};
    for (int more = static_cast<int>(random() % 4); more > 0; --more) {
      values.block_elements.push_back(static_cast<int64_t>(random() % 300));
    }
    cases.push_back(Make(op_lists, draw.collective, values));
    ASSERT_NE(cases.back(), nullptr);
    cases.back()->name = "call " + std::to_string(cases.size()) + ", " + draw.algorithm;
  }
  const auto disturb = [](int, int) { return Disturbance{.seed = kSeed, .yields = true}; };
  ExpectRight(cases, {.disturb = disturb});
}

// Branches of a graph: regions of their own, at the same time.
TEST(Interpreter, RunsSeveralCallsAtTheSameTime) {
  std::vector<std::thread> branches;
  for (const char* algorithm : {"direct", "ring", "double_tree"}) {
    branches.emplace_back([algorithm] {
      std::vector<std::unique_ptr<Case>> cases;
      const auto op_lists = BuildAll(Spec(Collective::kAllReduce, algorithm, 4));
      for (uint32_t seed = 0; seed < 10; ++seed) {
        cases.push_back(
            Make(op_lists, Collective::kAllReduce, {.block_elements = {700}, .seed = seed}));
        if (cases.back() == nullptr) return;
        cases.back()->name = algorithm;
      }
      ExpectRight(cases);
    });
  }
  for (std::thread& branch : branches) branch.join();
}

TEST(Interpreter, GivesTheSameBitsInEveryInterleaving) {
  const std::vector<Draw> all = EveryAlgorithm();
  for (int i = 0; i < Seeds(40); ++i) {
    const auto seed = static_cast<uint32_t>(1000 + i);
    std::mt19937 random(seed);
    const Draw& draw = all[random() % all.size()];
    auto op_lists =
        BuildAll(Spec(draw.collective, draw.algorithm, 2 + static_cast<int32_t>(random() % 4)));
    if (op_lists.empty()) continue;
    if (random() % 2) op_lists = Rechannel(op_lists, 3, random);
    RegionSize region = kRegion;
    region.depth = 1 + static_cast<int32_t>(random() % 3);
    region.max_strands = 1 + static_cast<int32_t>(random() % 3);
    std::vector<std::unique_ptr<Case>> cases;
    for (int launch = 0; launch < 3; ++launch) {
      cases.push_back(Make(op_lists, draw.collective,
                           {.block_elements = {static_cast<int64_t>(random() % 2000)},
                            .seed = static_cast<uint32_t>(random()),
                            .reach = kReaches[random() % 2]},
                           1 + static_cast<int>(random() % 4), region));
      ASSERT_NE(cases.back(), nullptr);
      cases.back()->name = "seed " + std::to_string(seed) + ", " + draw.algorithm;
    }
    DeviceWorld::Options options;
    options.threads_per_block = 1 + static_cast<int>(random() % 2);
    options.disturb = [seed](int, int) { return Disturbance{.seed = seed, .yields = true}; };
    ExpectRight(cases, options, region);
  }
}

// ---- Failure -----------------------------------------------------------------------------------

TEST(InterpreterFailure, ARankThatNeverComesIsNamed) {
  const auto op_lists = BuildAll(Spec(Collective::kAllReduce, "direct", 4));
  const auto one = Make(op_lists, Collective::kAllReduce, {.block_elements = {50}});
  ASSERT_NE(one, nullptr);
  DeviceWorld world(4, kRegion);
  const auto ok = world.Run({&one->launch}, {.absent_rank = 2});
  for (const int rank : {0, 1, 3}) {
    EXPECT_FALSE(ok[rank]);
    const Cause& cause = world.cause(rank);
    EXPECT_EQ(cause.kind, Cause::kDeadline);
    EXPECT_EQ(cause.rank, rank);
    EXPECT_EQ(cause.peer, 2);
    EXPECT_EQ(cause.wait, TableWait::kArrived);
    EXPECT_EQ(cause.channel, 0);
    EXPECT_EQ(cause.sequence, 0);
    EXPECT_EQ(op_lists[rank].ops[cause.op].peer, 2);
    EXPECT_EQ(op_lists[rank].ops[cause.op].kind, OpKind::kRecv);
    const std::string text = Tell(cause);
    EXPECT_NE(text.find("rank " + std::to_string(rank) +
                        " waited for a message from rank 2 for 1 s (JAXCOLL_TIMEOUT_S) (channel 0, "
                        "message 0, slice 0"),
              std::string::npos)
        << text;
  }
}

// The check where ranks reach for each other's operands, before anything is touched.
TEST(InterpreterFailure, ARankThatNeverComesToMeetIsNamed) {
  const auto op_lists = BuildAll(Spec(Collective::kAllReduce, "direct", 4));
  const auto one =
      Make(op_lists, Collective::kAllReduce, {.block_elements = {50}, .reach = Reach::kOperands});
  ASSERT_NE(one, nullptr);
  DeviceWorld world(4, kRegion);
  const auto ok = world.Run({&one->launch}, {.absent_rank = 2});
  for (const int rank : {0, 1, 3}) {
    EXPECT_FALSE(ok[rank]);
    const Cause& cause = world.cause(rank);
    EXPECT_EQ(cause.kind, Cause::kDeadline);
    EXPECT_EQ(cause.rank, rank);
    EXPECT_EQ(cause.peer, 2);
    EXPECT_EQ(cause.wait, TableWait::kBegun);
    EXPECT_EQ(Tell(cause), "the call: rank " + std::to_string(rank) +
                               " waited for rank 2 to begin this call for 1 s (JAXCOLL_TIMEOUT_S)");
    for (size_t i = 0; i < one->outputs[rank]->bytes(); ++i) {
      ASSERT_EQ(one->outputs[rank]->data()[i], 0xa5);
    }
  }
}

// Its region has been made anew, and the others' have not.
TEST(InterpreterFailure, ARankAtAnotherLaunchIsFound) {
  const auto op_lists = BuildAll(Spec(Collective::kAllReduce, "ring", 3));
  const auto one = Make(op_lists, Collective::kAllReduce, {.block_elements = {100}});
  ASSERT_NE(one, nullptr);
  DeviceWorld world(3, kRegion);
  for (const bool ok : world.Run({&one->launch}, {})) ASSERT_TRUE(ok);
  EXPECT_EQ(world.header(1).epoch, 1u);
  world.Clear(1);
  const auto ok = world.Run({&one->launch}, {});
  EXPECT_FALSE(ok[0] || ok[1] || ok[2]);
  EXPECT_EQ(world.cause(1).kind, Cause::kLaunch);
  EXPECT_NE(Tell(world.cause(1)).find("at another launch"), std::string::npos);
  EXPECT_NE(world.cause(0).kind, Cause::kNone);
  EXPECT_NE(world.cause(2).kind, Cause::kNone);
}

// Epochs have 32 bits: a call site that is called without a pause wraps them within a day.
TEST(Interpreter, EpochsWrap) {
  for (const char* algorithm : {"ring", "double_tree", "direct"}) {
    std::mt19937 random(3);
    const auto op_lists =
        Rechannel(BuildAll(Spec(Collective::kAllReduce, algorithm, 3)), 3, random);
    std::vector<std::unique_ptr<Case>> cases;
    for (uint32_t seed = 0; seed < 5; ++seed) {
      cases.push_back(Make(op_lists, Collective::kAllReduce,
                           {.block_elements = {700}, .seed = seed, .reach = kReaches[seed % 2]},
                           /*max_workers=*/2));
      ASSERT_NE(cases.back(), nullptr);
    }
    DeviceWorld world(3, kRegion);
    constexpr uint64_t kEpoch = 0xfffffffd;
    for (int rank = 0; rank < 3; ++rank) {
      world.header(rank).epoch = kEpoch;
      for (int flag = 0; flag < 2 * 3 + kRegion.flag_capacity; ++flag) {
        world.flags(rank)[flag].value = TagOf(kEpoch, 0);
      }
    }
    std::vector<Launches*> launches;
    for (const auto& one : cases) launches.push_back(&one->launch);
    const auto ok = world.Run(launches, {});
    for (int rank = 0; rank < 3; ++rank) EXPECT_TRUE(ok[rank]) << Tell(world.cause(rank));
    for (const auto& one : cases) EXPECT_EQ(one->Wrong(ok), "");
    EXPECT_EQ(world.header(0).epoch, 2u);
  }
}

// One more than the others: it waits for room that it is never told of.
TEST(InterpreterFailure, ARankThatIsAheadWritesNothing) {
  const auto op_lists = BuildAll(Spec(Collective::kAllGather, "direct", 2));
  const auto one = Make(op_lists, Collective::kAllGather, {.block_elements = {50}});
  ASSERT_NE(one, nullptr);
  DeviceWorld world(2, kRegion);
  world.header(0).epoch = 2;
  const auto ok = world.Run({&one->launch}, {});
  EXPECT_FALSE(ok[0] || ok[1]);
  EXPECT_EQ(world.cause(0).kind, Cause::kDeadline);
  EXPECT_EQ(world.cause(0).wait, TableWait::kFree);
  EXPECT_NE(Tell(world.cause(0)).find("waited for room for a message to rank 1"),
            std::string::npos);
}

TEST(InterpreterFailure, ARankAtAnotherCallIsFound) {
  const auto op_lists = BuildAll(Spec(Collective::kAllReduce, "recursive_doubling", 4));
  const auto one = Make(op_lists, Collective::kAllReduce, {.block_elements = {100}});
  ASSERT_NE(one, nullptr);
  DeviceWorld world(4, kRegion);
  DeviceWorld::Options options;
  options.fingerprints = {7, 7, 7, 8};
  const auto ok = world.Run({&one->launch}, options);
  for (int rank = 0; rank < 4; ++rank) EXPECT_FALSE(ok[rank]);
  EXPECT_EQ(world.cause(3).kind, Cause::kMismatch);
  EXPECT_EQ(world.cause(3).expected_fingerprint, 8u);
  EXPECT_EQ(world.cause(3).seen_fingerprint, 7u);
  EXPECT_EQ(world.cause(2).kind, Cause::kMismatch);
  EXPECT_EQ(world.cause(2).peer, 3);
  EXPECT_NE(Tell(world.cause(2)).find("rank 2 met rank 3 at another call"), std::string::npos);
}

// A block stops somewhere without a word: nobody hangs, and who succeeds is right.
TEST(InterpreterFailure, ADeathAnywhereHangsNobody) {
  const std::vector<Draw> all = EveryAlgorithm();
  int failed = 0;
  for (int i = 0; i < Seeds(40); ++i) {
    const auto seed = static_cast<uint32_t>(i);
    std::mt19937 random(seed);
    const Draw& draw = all[random() % all.size()];
    const int ranks = 2 + static_cast<int>(random() % 3);
    const auto op_lists = BuildAll(Spec(draw.collective, draw.algorithm, ranks));
    if (op_lists.empty()) continue;
    const auto one =
        Make(op_lists, draw.collective,
             {.block_elements = {1500}, .seed = seed, .reach = kReaches[random() % 2]});
    ASSERT_NE(one, nullptr);
    one->name = "seed " + std::to_string(seed) + ", " + draw.algorithm;
    DeviceWorld world(ranks, kRegion);
    const int victim = static_cast<int>(random() % ranks);
    const int after = static_cast<int>(random() % 30);
    DeviceWorld::Options options;
    options.disturb = [&](int rank, int) {
      return Disturbance{.seed = seed, .die_after = rank == victim ? after : -1};
    };
    const auto ok = world.Run({&one->launch}, options);
    for (int rank = 0; rank < ranks; ++rank) {
      if (rank == victim) continue;
      failed += !ok[rank];
      EXPECT_EQ(ok[rank], world.cause(rank).kind == Cause::kNone) << one->name;
    }
    EXPECT_EQ(one->Wrong(ok), "");
  }
  EXPECT_GT(failed, 0) << "nobody died early enough to fail a call";
}

}  // namespace
}  // namespace jaxcoll::cuda
