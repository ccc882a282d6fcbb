// Schedules between hosts: what the kernels of several hosts write, carried by their proxies,
// against the engine for CPUs.

#include "support/host_world.h"

namespace jaxcoll::cuda {
namespace {

// Ranks over hosts and processes.
struct Placement {
  std::vector<int> host_of_process;
  std::vector<int> process_of_rank;
};

// Ranks of a host follow each other; a process has one of them, or all.
Placement InBlocks(int ranks, int per_host, bool process_per_rank) {
  Placement placement;
  for (int rank = 0; rank < ranks; ++rank) {
    const int host = rank / per_host;
    if (process_per_rank || rank % per_host == 0) placement.host_of_process.push_back(host);
    placement.process_of_rank.push_back(static_cast<int>(placement.host_of_process.size()) - 1);
  }
  return placement;
}

// In any order, hosts and processes of any size.
Placement Anyhow(int ranks, std::mt19937& random) {
  Placement placement;
  const int processes = 2 + static_cast<int>(random() % 3);
  for (int p = 0; p < processes; ++p) {
    placement.host_of_process.push_back(p < 2 ? p : static_cast<int>(random() % 4));
  }
  for (int rank = 0; rank < ranks; ++rank) {
    placement.process_of_rank.push_back(static_cast<int>(random() % processes));
  }
  return placement;
}

std::vector<std::unique_ptr<Case>> MakeAll(const std::vector<OpList>& op_lists,
                                           Collective collective,
                                           const std::vector<int64_t>& elements,
                                           const std::string& name, int max_workers = 64,
                                           const RegionSize& region = kRegion) {
  std::vector<std::unique_ptr<Case>> cases;
  uint32_t seed = 1;
  for (const int64_t count : elements) {
    cases.push_back(Make(op_lists, collective, {.block_elements = {count}, .seed = ++seed},
                         max_workers, region));
    if (cases.back() == nullptr) return {};
    cases.back()->name = name + ", " + std::to_string(count) + " elements";
  }
  return cases;
}

void ExpectRight(HostedWorld& world, const std::vector<std::unique_ptr<Case>>& cases,
                 const DeviceWorld::Options& options = {}, int rounds = 2) {
  const std::vector<bool> ok = world.Run(options, rounds);
  for (int rank = 0; rank < world.ranks(); ++rank) {
    EXPECT_TRUE(ok[rank]) << cases[0]->name << ": " << Tell(world.world().cause(rank));
  }
  for (const auto& one : cases) EXPECT_EQ(one->Wrong(ok), "");
}

class EveryScheduleBetweenHosts : public testing::TestWithParam<Draw> {};

TEST_P(EveryScheduleBetweenHosts, GivesTheBitsOfTheEngineForCpus) {
  const auto& [collective, algorithm] = GetParam();
  int served = 0;
  for (const auto& [ranks, per_host] : {std::pair(2, 1), std::pair(3, 2), std::pair(4, 2),
                                        std::pair(6, 2), std::pair(7, 3), std::pair(8, 4)}) {
    ScheduleSpec spec = Spec(collective, algorithm, ranks);
    if (algorithm.starts_with("hierarchical") && ranks % per_host == 0) {
      spec.dims = {ranks / per_host, per_host};
    }
    const std::vector<OpList> op_lists = BuildAll(spec);
    if (op_lists.empty()) continue;
    ++served;
    const Placement placement = InBlocks(ranks, per_host, ranks % 4 == 2);
    const auto cases = MakeAll(op_lists, collective, {1000, 0, 67},
                               algorithm + ", " + std::to_string(ranks) + " ranks");
    ASSERT_FALSE(cases.empty());
    Hosts hosts(placement.host_of_process, Net::kFake, static_cast<uint64_t>(ranks));
    HostedWorld world(hosts, {placement.process_of_rank}, cases);
    ExpectRight(world, cases);
  }
  EXPECT_GT(served, 0);
}

INSTANTIATE_TEST_SUITE_P(All, EveryScheduleBetweenHosts, testing::ValuesIn(EveryAlgorithm()),
                         [](const auto& info) {
                           return std::string(Name(info.param.collective)) + "_" +
                                  info.param.algorithm;
                         });

// The bits are the same whatever links and threads do: ranks anywhere, workers that wait for each
// other, several threads per block, one to three uses of a slot.
TEST(HostProxy, GivesTheSameBitsInEveryInterleaving) {
  const std::vector<Draw> all = EveryAlgorithm();
  for (int i = 0; i < Seeds(25); ++i) {
    const auto seed = static_cast<uint32_t>(4000 + i);
    std::mt19937 random(seed);
    const Draw& draw = all[random() % all.size()];
    const int ranks = 2 + static_cast<int>(random() % 5);
    auto op_lists = BuildAll(Spec(draw.collective, draw.algorithm, ranks));
    if (op_lists.empty()) continue;
    if (random() % 2) op_lists = Rechannel(op_lists, 3, random);
    RegionSize region = kRegion;
    region.depth = 1 + static_cast<int32_t>(random() % 3);
    region.max_strands = 1 + static_cast<int32_t>(random() % 3);
    const Placement placement = Anyhow(ranks, random);
    std::vector<int64_t> elements;
    for (size_t n = 1 + random() % 3; n > 0; --n) {
      elements.push_back(static_cast<int64_t>(random() % 2000));
    }
    const int max_workers = 1 + static_cast<int>(random() % 4);
    const auto cases =
        MakeAll(op_lists, draw.collective, elements,
                "seed " + std::to_string(seed) + ", " + draw.algorithm, max_workers, region);
    ASSERT_FALSE(cases.empty());
    Hosts hosts(placement.host_of_process, Net::kFake, seed);
    HostedWorld world(hosts, {placement.process_of_rank, 1, region}, cases);
    DeviceWorld::Options options;
    options.threads_per_block = 1 + static_cast<int>(random() % 2);
    options.disturb = [seed](int, int) { return Disturbance{.seed = seed, .yields = true}; };
    ExpectRight(world, cases, options, 3);
  }
}

// Reactors with threads of their own, which sleep and are woken.
TEST(HostProxy, UsesRealLinks) {
  for (const Net net : {Net::kShm, Net::kTcp}) {
    for (const Draw& draw :
         {Draw{Collective::kAllReduce, "hierarchical"}, Draw{Collective::kAllReduce, "double_tree"},
          Draw{Collective::kReduceScatter, "ring"}, Draw{Collective::kAllToAll, "direct"}}) {
      ScheduleSpec spec = Spec(draw.collective, draw.algorithm, 4);
      if (draw.algorithm == "hierarchical") spec.dims = {2, 2};
      const auto op_lists = BuildAll(spec);
      ASSERT_FALSE(op_lists.empty()) << draw.algorithm;
      const auto cases = MakeAll(op_lists, draw.collective, {3000, 5}, draw.algorithm);
      ASSERT_FALSE(cases.empty());
      const Placement placement = InBlocks(4, 2, draw.algorithm == "ring");
      Hosts hosts(placement.host_of_process, net, 1);
      HostedWorld world(hosts, {placement.process_of_rank}, cases);
      ExpectRight(world, cases, {}, 3);
    }
  }
}

// A message of several parcels, which overtake each other.
TEST(HostProxy, CutsMessagesThatNoSlotOfALinkHolds) {
  const auto op_lists = BuildAll(Spec(Collective::kAllGather, "ring", 3));
  constexpr RegionSize kLarge = {.bytes = 8 << 20,
                                 .flag_capacity = 2048,
                                 .max_strands = 1,
                                 .depth = 2,
                                 .max_strip_bytes = 600 << 10,
                                 .min_strip_bytes = 256};
  const auto cases =
      MakeAll(op_lists, Collective::kAllGather, {400'000, 150'001}, "ring", 64, kLarge);
  ASSERT_FALSE(cases.empty());
  ASSERT_GT(cases[0]->launch.calls[0].vectors[0].strip_elements * 4, 3 * int64_t{kSlotBytes});
  const Placement placement = InBlocks(3, 1, true);
  Hosts hosts(placement.host_of_process, Net::kFake, 3);
  HostedWorld world(hosts, {placement.process_of_rank, 1, kLarge}, cases);
  ExpectRight(world, cases, {}, 1);
}

// Branches of a graph: one pair of proxies, several regions, at the same time.
TEST(HostProxy, ServesSeveralCallsAtTheSameTime) {
  const Placement placement = InBlocks(4, 2, false);
  Hosts hosts(placement.host_of_process, Net::kShm, 1);
  std::vector<std::thread> branches;
  uint64_t id = 0;
  for (const char* algorithm : {"direct", "ring", "double_tree"}) {
    branches.emplace_back([&, algorithm, mine = ++id] {
      const auto op_lists = BuildAll(Spec(Collective::kAllReduce, algorithm, 4));
      const auto cases = MakeAll(op_lists, Collective::kAllReduce, {700, 701, 5}, algorithm);
      if (cases.empty()) return;
      HostedWorld world(hosts, {placement.process_of_rank, mine}, cases);
      ExpectRight(world, cases, {}, 4);
    });
  }
  for (std::thread& branch : branches) branch.join();
}

// Epochs have 32 bits.
TEST(HostProxy, CountsOnWhereEpochsWrapAround) {
  for (const char* algorithm : {"ring", "direct"}) {
    const auto op_lists = BuildAll(Spec(Collective::kAllReduce, algorithm, 4));
    const auto cases = MakeAll(op_lists, Collective::kAllReduce, {900, 3, 500}, algorithm);
    ASSERT_FALSE(cases.empty());
    const Placement placement = InBlocks(4, 2, false);
    Hosts hosts(placement.host_of_process, Net::kFake, 1);
    HostedWorld world(hosts, {placement.process_of_rank, 1, kRegion, 0xfffffffd}, cases);
    ExpectRight(world, cases, {}, 2);
    EXPECT_EQ(static_cast<uint32_t>(world.world().header(0).epoch), 3u);
  }
}

// ---- Device memory -----------------------------------------------------------------------------

class EveryScheduleFromDeviceMemory : public testing::TestWithParam<Draw> {};

// Processors copy nothing: all that links carry is lent.
TEST_P(EveryScheduleFromDeviceMemory, GivesTheSameBitsAndNothingIsCopied) {
  const auto& [collective, algorithm] = GetParam();
  for (const int ranks : {4, 5}) {  // some algorithms serve powers of two only
    const std::vector<OpList> op_lists = BuildAll(Spec(collective, algorithm, ranks));
    if (op_lists.empty()) continue;
    const Placement placement = InBlocks(ranks, 2, ranks == 5);
    const auto cases = MakeAll(op_lists, collective, {700, 67},
                               algorithm + ", " + std::to_string(ranks) + " ranks");
    ASSERT_FALSE(cases.empty());
    Hosts hosts(placement.host_of_process, Net::kFake, static_cast<uint64_t>(ranks));
    hosts.takes_dmabuf = [](int, int) { return true; };
    {
      HostedWorld world(hosts, {.process_of_rank = placement.process_of_rank, .lends = true},
                        cases);
      ExpectRight(world, cases);
      EXPECT_GT(hosts.net().lent_buffers, 0);
    }
    EXPECT_GT(hosts.net().lent_puts, 0u);
    EXPECT_EQ(hosts.net().own_puts, 0u);
    EXPECT_EQ(hosts.net().lent_buffers, 0) << "the group is closed";
  }
}

INSTANTIATE_TEST_SUITE_P(All, EveryScheduleFromDeviceMemory, testing::ValuesIn(EveryAlgorithm()),
                         [](const auto& info) {
                           return std::string(Name(info.param.collective)) + "_" +
                                  info.param.algorithm;
                         });

// Some links take device memory, some do not, and some say so and then refuse it.
TEST(HostProxyLending, GivesTheSameBitsWhicheverLinksTakeIt) {
  const std::vector<Draw> all = EveryAlgorithm();
  uint64_t lent = 0, own = 0;
  for (int i = 0; i < Seeds(15); ++i) {
    const auto seed = static_cast<uint32_t>(6000 + i);
    std::mt19937 random(seed);
    const Draw& draw = all[random() % all.size()];
    const int ranks = 2 + static_cast<int>(random() % 5);
    auto op_lists = BuildAll(Spec(draw.collective, draw.algorithm, ranks));
    if (op_lists.empty()) continue;
    if (random() % 2) op_lists = Rechannel(op_lists, 3, random);
    RegionSize region = kRegion;
    region.depth = 1 + static_cast<int32_t>(random() % 3);
    region.max_strands = 1 + static_cast<int32_t>(random() % 3);
    const Placement placement = Anyhow(ranks, random);
    const auto cases =
        MakeAll(op_lists, draw.collective, {static_cast<int64_t>(random() % 2000), 31},
                "seed " + std::to_string(seed) + ", " + draw.algorithm, 4, region);
    ASSERT_FALSE(cases.empty());
    Hosts hosts(placement.host_of_process, Net::kFake, seed);
    const uint32_t takes = random(), refuses = random();
    hosts.takes_dmabuf = [=](int a, int b) { return (takes >> (a * 4 + b) & 1) != 0; };
    hosts.refuses_dmabuf = [=](int a, int b) { return (refuses >> (a * 4 + b) % 32 & 3) == 0; };
    HostedWorld world(
        hosts, {.process_of_rank = placement.process_of_rank, .region = region, .lends = true},
        cases);
    DeviceWorld::Options options;
    options.threads_per_block = 1 + static_cast<int>(random() % 2);
    options.disturb = [seed](int, int) { return Disturbance{.seed = seed, .yields = true}; };
    ExpectRight(world, cases, options, 3);
    lent += hosts.net().lent_puts;
    own += hosts.net().own_puts;
  }
  EXPECT_GT(lent, 0u);
  EXPECT_GT(own, 0u);
}

// Over NICs, with threads of their own; of two rails, one fails on the way, and what it still owed
// is read once more.
TEST(HostProxyLending, SurvivesARailThatFails) {
  for (const Draw& draw :
       {Draw{Collective::kAllReduce, "ring"}, Draw{Collective::kAllReduce, "double_tree"},
        Draw{Collective::kAllToAll, "direct"}}) {
    for (const int request : {0, 7, 100}) {
      const auto cases = MakeAll(BuildAll(Spec(draw.collective, draw.algorithm, 4)),
                                 draw.collective, {3000, 5}, draw.algorithm);
      ASSERT_FALSE(cases.empty());
      FakeVerbs verbs(static_cast<uint64_t>(request) + 1, /*device_count=*/2);
      const Placement placement = InBlocks(4, 2, false);
      Hosts hosts(placement.host_of_process, Net::kFakeRdma, 1);
      {
        HostedWorld world(hosts, {.process_of_rank = placement.process_of_rank, .lends = true},
                          cases);
        // Two rails and two ranks a process, to each side.
        EXPECT_EQ(verbs.dmabufs().size(), 8u);
        verbs.FailRequest(1, request, verbs::kWcRetryExcErr);
        ExpectRight(world, cases, {}, 3);
      }
      for (const int process : {0, 1}) hosts.reactor(process).Stop();
    }
  }
}

// The stretches make up the message, whatever gaps a slot has.
TEST(HostRoutes, CutsAMessageWhereItsSlotHasGaps) {
  uint64_t stretches = 0, messages = 0;
  for (const char* algorithm : {"ring", "recursive_doubling", "bruck"}) {
    const auto op_lists = BuildAll(Spec(Collective::kAllGather, algorithm, 4));
    ASSERT_FALSE(op_lists.empty()) << algorithm;
    const auto cases = MakeAll(op_lists, Collective::kAllGather, {1000, 67}, algorithm);
    for (const auto& one : cases) {
      auto routes =
          HostRoutes::Make(one->launch.tables, AllRanks(4), {one->launch.calls[0]}, {0, 1, 2, 3});
      ASSERT_TRUE(routes.ok()) << routes.status().message();
      const TableCall& call = routes->calls()[0];
      DeviceMemory region(HostRoutes::RegionBytes(call));
      std::mt19937 random(1);
      for (size_t i = 0; i < region.bytes(); ++i) {
        region.data()[i] = static_cast<unsigned char>(random());
      }
      for (const HostRoutes::HostMessage& message : routes->messages()) {
        for (int32_t slice = 0; slice < call.slice_count; ++slice, ++messages) {
          const SlotUse use{&call, slice};
          std::vector<std::byte> whole(routes->Bytes(message, use)), parts;
          routes->Gather(message, use, region.data(), 0, whole);
          while (parts.size() < whole.size()) {
            const auto stretch =
                routes->StretchAt(message, use, static_cast<int64_t>(parts.size()), 300);
            ASSERT_GT(stretch.bytes, 0);
            ASSERT_LE(stretch.bytes, 300);
            const auto* const at = reinterpret_cast<const std::byte*>(region.data()) + stretch.at;
            parts.insert(parts.end(), at, at + stretch.bytes);
            ++stretches;
          }
          EXPECT_EQ(parts, whole) << algorithm << ", slice " << slice;
        }
      }
    }
  }
  EXPECT_GT(stretches, messages);
}

// ---- Failure -----------------------------------------------------------------------------------

// Two hosts of two ranks, in one process each, and one call.
struct Pair {
  explicit Pair(Net net = Net::kFake, std::vector<int64_t> elements = {2000})
      : cases(MakeAll(BuildAll(Spec(Collective::kAllReduce, "ring", 4)), Collective::kAllReduce,
                      elements, "ring")),
        placement(InBlocks(4, 2, false)),
        hosts(placement.host_of_process, net, 7),
        world(hosts, {placement.process_of_rank}, cases) {}

  std::vector<std::unique_ptr<Case>> cases;
  Placement placement;
  Hosts hosts;
  HostedWorld world;
};

TEST(HostProxyFailure, ALinkThatEndsStopsTheKernelsOfBothHosts) {
  Pair pair;
  pair.hosts.At(30, [&] { pair.hosts.Cut(0, 1); });
  const auto ok = pair.world.Run({}, 20);
  pair.hosts.Settle();
  EXPECT_FALSE(ok[0] && ok[1] && ok[2] && ok[3]);
  EXPECT_NE(pair.world.Cause(0).find("rank 2, rank 3 is lost"), std::string::npos)
      << pair.world.Cause(0);
  EXPECT_NE(pair.world.Cause(1).find("rank 0, rank 1 is lost"), std::string::npos)
      << pair.world.Cause(1);
  for (int rank = 0; rank < 4; ++rank) {
    const uint32_t kind = pair.world.world().cause(rank).kind;
    EXPECT_EQ(kind, ok[rank] ? Cause::kNone : Cause::kStopped);
  }
}

// A third host, whose links are whole, learns it from those that are cut.
TEST(HostProxyFailure, EveryHostLearnsTheFirstCause) {
  const auto cases = MakeAll(BuildAll(Spec(Collective::kAllReduce, "ring", 3)),
                             Collective::kAllReduce, {2000}, "ring");
  ASSERT_FALSE(cases.empty());
  const Placement placement = InBlocks(3, 1, true);
  Hosts hosts(placement.host_of_process, Net::kFake, 5);
  HostedWorld world(hosts, {placement.process_of_rank}, cases);
  hosts.At(40, [&] { hosts.Cut(0, 1); });
  const auto ok = world.Run({}, 50);
  hosts.Settle();
  EXPECT_FALSE(ok[0] || ok[1] || ok[2]);
  EXPECT_NE(world.Cause(2).find("is lost"), std::string::npos) << world.Cause(2);
}

// Nothing comes any more, and nobody says why: the kernels' deadline passes.
TEST(HostProxyFailure, AHostThatIsCutOffIsNamedWhenTheDeadlinePasses) {
  Pair pair;
  pair.hosts.At(30, [&] { pair.hosts.Swallow(0, 1); });
  const auto ok = pair.world.Run({}, 50);
  for (int rank = 0; rank < 4; ++rank) {
    EXPECT_FALSE(ok[rank]);
    EXPECT_EQ(pair.world.world().cause(rank).kind, Cause::kDeadline);
  }
  // The ring goes 0, 1 | 2, 3: ranks 0 and 2 receive from the other host.
  EXPECT_EQ(pair.world.world().cause(2).peer, 1);
  // The process of a kernel that gave up tells its proxy; the other host hears nothing.
  pair.hosts.proxy(0).Fail(1, Tell(pair.world.world().cause(0)));
  pair.hosts.Settle();
  EXPECT_NE(pair.world.Cause(0).find("waited for"), std::string::npos);
}

// The error that a kernel raised on one host is raised by the other host.
TEST(HostProxyFailure, AKernelsOwnCauseReachesTheOtherHost) {
  Pair pair;
  pair.hosts.At(40, [&] { pair.hosts.proxy(0).Fail(1, "rank 1 has met rank 7"); });
  const auto ok = pair.world.Run({}, 50);
  pair.hosts.Settle();
  EXPECT_FALSE(ok[0] || ok[1] || ok[2] || ok[3]);
  EXPECT_EQ(pair.world.Cause(1), "rank 1 has met rank 7");
}

TEST(HostProxyFailure, AStoppedProcessThatGoesOnInTimeDoesNoHarm) {
  Pair pair;
  pair.hosts.At(30, [&] { pair.hosts.SetRunning(1, false); });
  pair.hosts.At(300, [&] { pair.hosts.SetRunning(1, true); });
  ExpectRight(pair.world, pair.cases, {}, 10);
}

TEST(HostProxyFailure, AStoppedProcessThatGoesOnTooLateFindsItsGroupFailed) {
  Pair pair;
  pair.hosts.At(30, [&] { pair.hosts.SetRunning(1, false); });
  const auto ok = pair.world.Run({}, 50);
  EXPECT_FALSE(ok[0] || ok[1] || ok[2] || ok[3]);
  pair.hosts.proxy(0).Fail(1, Tell(pair.world.world().cause(0)));
  pair.hosts.SetRunning(1, true);
  pair.hosts.Settle();
  EXPECT_NE(pair.world.Cause(1).find("waited for"), std::string::npos);
}

// Fingerprints go with the messages.
TEST(HostProxyFailure, HostsAtDifferentCallsFindItOut) {
  Pair pair;
  DeviceWorld::Options options;
  options.fingerprints = {7, 7, 8, 8};
  const auto ok = pair.world.Run(options, 1);
  for (int rank = 0; rank < 4; ++rank) EXPECT_FALSE(ok[rank]);
  const Cause& cause = pair.world.world().cause(2);
  EXPECT_EQ(cause.kind, Cause::kMismatch);
  EXPECT_EQ(cause.peer, 1);
  EXPECT_EQ(cause.expected_fingerprint, 8u);
  EXPECT_EQ(cause.seen_fingerprint, 7u);
}

// A process that ends in good order when it has made all its calls does no harm; one that is still
// needed is named.
TEST(HostProxyFailure, AProcessThatHasEndedIsMissedOnlyWhenItIsNeeded) {
  Pair pair(Net::kTcp, {500});
  ExpectRight(pair.world, pair.cases, {}, 3);
  pair.hosts.reactor(1).Stop();
  EXPECT_EQ(pair.world.Cause(0), "");
  const auto ok = pair.world.Run({.absent_rank = 2}, 1);
  EXPECT_FALSE(ok[0] || ok[1]);
  EXPECT_NE(pair.world.Cause(0).find("has ended"), std::string::npos) << pair.world.Cause(0);
  EXPECT_EQ(pair.world.world().cause(0).kind, Cause::kStopped);
}

// Stop while kernels wait for a rank that does not come: they are stopped, and the other host
// learns of it.
TEST(HostProxyFailure, AProcessThatEndsWithWorkPendingSaysSo) {
  Pair pair(Net::kShm, {500});
  std::thread ends([&] {
    while (!pair.world.HasBegun(0)) std::this_thread::yield();
    pair.hosts.reactor(0).Stop();
  });
  const auto ok = pair.world.Run({.absent_rank = 2}, 1);
  ends.join();
  for (int rank = 0; rank < 4; ++rank) EXPECT_FALSE(ok[rank]);
  for (const int process : {0, 1}) {
    EXPECT_NE(pair.world.Cause(process).find("rank 0, rank 1 is shutting down"), std::string::npos)
        << pair.world.Cause(process);
  }
}

// A link ends anywhere: nobody hangs, who succeeds is right, and who does not can say why.
TEST(HostProxyFailure, AnEndAnywhereHangsNobody) {
  const std::vector<Draw> all = EveryAlgorithm();
  int failed = 0;
  for (int i = 0; i < Seeds(25); ++i) {
    const auto seed = static_cast<uint32_t>(9000 + i);
    std::mt19937 random(seed);
    const Draw& draw = all[random() % all.size()];
    const int ranks = 2 + static_cast<int>(random() % 4);
    const auto op_lists = BuildAll(Spec(draw.collective, draw.algorithm, ranks));
    if (op_lists.empty()) continue;
    const auto cases = MakeAll(op_lists, draw.collective, {1500, 40},
                               "seed " + std::to_string(seed) + ", " + draw.algorithm);
    ASSERT_FALSE(cases.empty());
    const Placement placement =
        InBlocks(ranks, 1 + static_cast<int>(random() % 2), random() % 2 != 0);
    Hosts hosts(placement.host_of_process, Net::kFake, seed);
    if (hosts.count() < 2) continue;
    hosts.takes_dmabuf = [](int, int) { return true; };
    HostedWorld world(hosts, {.process_of_rank = placement.process_of_rank, .lends = i % 2 != 0},
                      cases);
    const int a = static_cast<int>(random() % hosts.count());
    const int b = (a + 1) % hosts.count();
    const bool swallows = random() % 3 == 0;
    hosts.At(hosts.passes() + static_cast<int>(random() % 150),
             [&] { swallows ? hosts.Swallow(a, b) : hosts.Cut(a, b); });
    const auto ok = world.Run({}, 4);
    hosts.Settle();
    for (int rank = 0; rank < ranks; ++rank) {
      failed += !ok[rank];
      EXPECT_EQ(ok[rank], world.world().cause(rank).kind == Cause::kNone)
          << cases[0]->name << ", rank " << rank;
    }
    for (const auto& one : cases) EXPECT_EQ(one->Wrong(ok), "");
  }
  EXPECT_GT(failed, 0) << "no link ended early enough to fail a call";
}

}  // namespace
}  // namespace jaxcoll::cuda
