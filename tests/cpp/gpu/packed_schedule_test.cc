// The tables that a process packs of a schedule: those of its ranks, and those that their proxies
// need of other hosts.
#include "gpu/host/packed_schedule.h"

#include <gtest/gtest.h>

#include <bit>

#include "gpu/proxy/routes.h"
#include "support/device_world.h"
#include "support/op_lists.h"
#include "support/schedules.h"

namespace jaxcoll::cuda {
namespace {

constexpr int kPerHost = 8;

CallSpec AllReduceOf(const char* algorithm, int ranks) {
  CallSpec spec;
  spec.collective = "all_reduce";
  spec.algorithm = algorithm;
  spec.reduce_op = "sum";
  spec.group_size = ranks;
  return spec;
}

std::vector<int> Hosts(int ranks) {
  std::vector<int> host_of_rank;
  for (int rank = 0; rank < ranks; ++rank) host_of_rank.push_back(rank / kPerHost);
  return host_of_rank;
}

std::vector<TableCall> CallsOf(const TableHeader& header) {
  const auto call =
      PlanCall(header, {5000}, DType::kFloat32, ReduceOp::kSum,
               {.bytes = 64 << 20, .flag_capacity = header.workers * header.flags_per_worker});
  EXPECT_TRUE(call.ok()) << call.status().message();
  return {*call};
}

// At any size: its own table, and those of as many ranks of other hosts as it talks to. All op
// lists are built for it, once for all instructions with the schedule.
TEST(PackedSchedule, HoldsTheTablesOfItsRanksAndOfTheirPeersOnOtherHosts) {
  for (int ranks = 16; ranks <= kMaxTableRanks; ranks *= 4) {
    const struct {
      const char* algorithm;
      int32_t rank;  // the last one of a host
      int64_t peers;
    } cases[] = {
        {"ring", kPerHost - 1, ranks == kPerHost ? 0 : 1},
        {"halving_doubling", 2, std::countr_zero(static_cast<unsigned>(ranks / kPerHost))}};
    for (const auto& c : cases) {
      const CallSpec spec = AllReduceOf(c.algorithm, ranks);
      const std::vector<int32_t> own = {c.rank};
      const int64_t before = TablesPacked();
      const auto packed = PackedFor(spec, 4, Reach::kRegions, own, Hosts(ranks));
      ASSERT_TRUE(packed.ok()) << packed.status().message();
      EXPECT_EQ(TablesPacked() - before, 1 + c.peers) << c.algorithm << ", " << ranks;
      const int64_t tables = TablesPacked(), ops = OpsBuilt();
      const auto again = PackedFor(spec, 4, Reach::kRegions, own, Hosts(ranks));
      EXPECT_EQ(*again, *packed);
      EXPECT_EQ(TablesPacked(), tables);
      EXPECT_EQ(OpsBuilt(), ops);
      // On one host no rank needs to know another's table.
      const auto alone = PackedFor(spec, 4, Reach::kRegions, own, {});
      ASSERT_TRUE(alone.ok());
      EXPECT_EQ((*alone)->tables.size(), 1u);
      EXPECT_EQ((*alone)->fingerprint, (*packed)->fingerprint);
    }
  }
}

// Processes that pack different tables agree on fingerprints, on sizes and on what they send each
// other, and each has what it would have if it packed all.
TEST(PackedSchedule, AgreesBetweenProcesses) {
  constexpr int kRanks = 24;
  const std::vector<int> host_of_rank = Hosts(kRanks);
  for (const char* algorithm : {"ring", "direct", "recursive_doubling", "double_tree"}) {
    const CallSpec spec = AllReduceOf(algorithm, kRanks);
    const auto op_lists = OpListsOf(spec, AllRanks(kRanks));
    ASSERT_TRUE(op_lists.ok()) << op_lists.status().message();
    const auto all = Pack(*op_lists, AllRanks(kRanks), 4);
    ASSERT_TRUE(all.ok()) << all.status().message();
    std::vector<HostRoutes> routes;  // by process, which has one rank
    for (int32_t rank = 0; rank < kRanks; ++rank) {
      const std::vector<int32_t> own = {rank};
      const auto packed = PackedFor(spec, 4, Reach::kRegions, own, host_of_rank);
      ASSERT_TRUE(packed.ok()) << packed.status().message();
      const auto first = PackedFor(spec, 4, Reach::kRegions, std::vector<int32_t>{0}, host_of_rank);
      EXPECT_EQ((*packed)->fingerprint, (*first)->fingerprint);
      EXPECT_EQ((*packed)->table_bytes, (*first)->table_bytes);
      for (const DeviceTable& table : (*packed)->tables) {
        EXPECT_EQ(table.words, all->at(table.header().rank).words) << algorithm;
      }
      auto made =
          HostRoutes::Make((*packed)->tables, own, CallsOf((*packed)->header()), host_of_rank);
      ASSERT_TRUE(made.ok()) << made.status().message();
      routes.push_back(std::move(*made));
    }
    const std::vector<int32_t> ranks = AllRanks(kRanks);
    const auto whole = HostRoutes::Make(*all, ranks, CallsOf(all->front().header()), host_of_rank);
    ASSERT_TRUE(whole.ok()) << whole.status().message();
    const std::vector<int>& process_of_rank = ranks;
    size_t messages = 0;
    for (int32_t rank = 0; rank < kRanks; ++rank) {
      messages += routes[rank].messages().size();
      for (int32_t peer = 0; peer < kRanks; ++peer) {
        const uint64_t digest = routes[rank].DigestBetween(process_of_rank, rank, peer);
        EXPECT_EQ(digest, routes[peer].DigestBetween(process_of_rank, peer, rank));
        EXPECT_EQ(digest, whole->DigestBetween(process_of_rank, rank, peer));
      }
      for (int32_t worker = 0; worker < whole->workers(); ++worker) {
        const auto& signals = whole->Signals(rank, worker);
        const auto& own = routes[rank].Signals(rank, worker);
        ASSERT_EQ(own.size(), signals.size());
        for (size_t i = 0; i < own.size(); ++i) {
          const HostRoutes::HostMessage& message = routes[rank].messages()[own[i].message];
          EXPECT_EQ(message.id, whole->messages()[signals[i].message].id);
          EXPECT_EQ(own[i].departure, signals[i].departure);
          EXPECT_EQ(routes[rank].Find(message.id), &message);
        }
      }
      EXPECT_EQ(routes[rank].Find(~uint32_t{0}), nullptr);
    }
    EXPECT_EQ(messages, 2 * whole->messages().size());  // each has two ends
  }
}

}  // namespace
}  // namespace jaxcoll::cuda
