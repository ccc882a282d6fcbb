// The copies that the engine makes of schedules.

#include "engine/memory/local_actions.h"

#include <gtest/gtest.h>

#include "support/op_lists.h"

namespace jaxcoll {
namespace {

StatusOr<LocalActions> Build(Collective collective, std::string algorithm, int ranks) {
  ScheduleSpec spec;
  spec.collective = collective;
  spec.algorithm = std::move(algorithm);
  spec.world_size = ranks;
  std::vector<OpList> op_lists;
  for (int rank = 0; rank < ranks; ++rank) {
    StatusOr<OpList> op_list = BuildSchedule(spec, rank);
    if (!op_list.ok()) return op_list.status();
    op_lists.push_back(std::move(*op_list));
  }
  return Compile(op_lists, collective);
}

TEST(LocalActions, DirectAllReduceIsOnePass) {
  const StatusOr<LocalActions> actions = Build(Collective::kAllReduce, "direct", 8);
  ASSERT_TRUE(actions.ok()) << actions.status().message();
  ASSERT_EQ(actions->levels.size(), 1u);
  ASSERT_EQ(actions->levels[0].size(), 1u);
  EXPECT_EQ(actions->levels[0][0].sources.size(), 8u);
  EXPECT_EQ(actions->levels[0][0].destinations.size(), 8u);
  EXPECT_EQ(actions->scratch_blocks, 0);
}

TEST(LocalActions, DirectAllGatherReadsEveryInputOnce) {
  const StatusOr<LocalActions> actions = Build(Collective::kAllGather, "direct", 4);
  ASSERT_TRUE(actions.ok()) << actions.status().message();
  ASSERT_EQ(actions->levels.size(), 1u);
  EXPECT_EQ(actions->levels[0].size(), 4u);
}

TEST(LocalActions, RingStaysARing) {
  const StatusOr<LocalActions> actions = Build(Collective::kAllReduce, "ring", 4);
  ASSERT_TRUE(actions.ok()) << actions.status().message();
  EXPECT_EQ(actions->levels.size(), 6u);  // 2 (P - 1) steps
  for (const std::vector<Action>& level : actions->levels) {
    for (const Action& action : level) EXPECT_LE(action.sources.size(), 2u);
  }
}

// A send without a receive, and two ranks that each wait for the other's message first.
TEST(LocalActions, RefusesWhatCannotRun) {
  Op send;
  send.kind = OpKind::kSend;
  send.peer = 1;
  send.sequence = 0;
  send.sources = {{BufferKind::kInput, {{0, 1}}}};
  send.destination = {BufferKind::kOutput, {{0, 1}}};
  std::vector<OpList> op_lists(2);
  op_lists[1].rank = 1;
  op_lists[0].ops = {send};
  EXPECT_FALSE(Compile(op_lists, Collective::kAllReduce).ok());

  for (int rank = 0; rank < 2; ++rank) {
    Op recv = send;
    recv.kind = OpKind::kRecv;
    recv.peer = 1 - rank;
    recv.sources = {{BufferKind::kInput, {{0, 1}}}};
    send.peer = 1 - rank;
    send.depends_on = {0};
    op_lists[rank].ops = {recv, send};
  }
  const StatusOr<LocalActions> cycle = Compile(op_lists, Collective::kAllReduce);
  ASSERT_FALSE(cycle.ok());
  EXPECT_NE(cycle.status().message().find("deadlocks"), std::string::npos);

  op_lists[0].ops[0].destination.chunks = {{5, 1}};
  EXPECT_FALSE(Compile(op_lists, Collective::kAllReduce).ok());
}

}  // namespace
}  // namespace jaxcoll
