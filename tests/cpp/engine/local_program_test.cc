// What the engine makes of schedules.

#include "engine/memory/local_program.h"

#include <gtest/gtest.h>

#include "support/op_lists.h"

namespace jaxcoll {
namespace {

StatusOr<LocalProgram> Build(Collective collective, std::string algorithm, int ranks) {
  ScheduleSpec spec;
  spec.collective = collective;
  spec.algorithm = std::move(algorithm);
  spec.world_size = ranks;
  std::vector<Program> programs;
  for (int rank = 0; rank < ranks; ++rank) {
    StatusOr<Program> program = BuildSchedule(spec, rank);
    if (!program.ok()) return program.status();
    programs.push_back(std::move(*program));
  }
  return Compile(programs, collective);
}

TEST(LocalProgram, DirectAllReduceIsOnePass) {
  const StatusOr<LocalProgram> program = Build(Collective::kAllReduce, "direct", 8);
  ASSERT_TRUE(program.ok()) << program.status().message();
  ASSERT_EQ(program->levels.size(), 1u);
  ASSERT_EQ(program->levels[0].size(), 1u);
  EXPECT_EQ(program->levels[0][0].sources.size(), 8u);
  EXPECT_EQ(program->levels[0][0].destinations.size(), 8u);
  EXPECT_EQ(program->scratch_blocks, 0);
}

TEST(LocalProgram, DirectAllGatherReadsEveryInputOnce) {
  const StatusOr<LocalProgram> program = Build(Collective::kAllGather, "direct", 4);
  ASSERT_TRUE(program.ok()) << program.status().message();
  ASSERT_EQ(program->levels.size(), 1u);
  EXPECT_EQ(program->levels[0].size(), 4u);
}

TEST(LocalProgram, RingStaysARing) {
  const StatusOr<LocalProgram> program = Build(Collective::kAllReduce, "ring", 4);
  ASSERT_TRUE(program.ok()) << program.status().message();
  EXPECT_EQ(program->levels.size(), 6u);  // 2 (P - 1) steps
  for (const std::vector<Action>& level : program->levels) {
    for (const Action& action : level) EXPECT_LE(action.sources.size(), 2u);
  }
}

// A send without a receive, and two ranks that each wait for the other's message first.
TEST(LocalProgram, RefusesWhatCannotRun) {
  Op send;
  send.kind = OpKind::kSend;
  send.peer = 1;
  send.sequence = 0;
  send.sources = {{BufferKind::kInput, {{0, 1}}}};
  send.destination = {BufferKind::kOutput, {{0, 1}}};
  std::vector<Program> programs(2);
  programs[1].rank = 1;
  programs[0].ops = {send};
  EXPECT_FALSE(Compile(programs, Collective::kAllReduce).ok());

  for (int rank = 0; rank < 2; ++rank) {
    Op recv = send;
    recv.kind = OpKind::kRecv;
    recv.peer = 1 - rank;
    recv.sources = {{BufferKind::kInput, {{0, 1}}}};
    send.peer = 1 - rank;
    send.depends_on = {0};
    programs[rank].ops = {recv, send};
  }
  const StatusOr<LocalProgram> cycle = Compile(programs, Collective::kAllReduce);
  ASSERT_FALSE(cycle.ok());
  EXPECT_NE(cycle.status().message().find("deadlocks"), std::string::npos);

  programs[0].ops[0].destination.chunks = {{5, 1}};
  EXPECT_FALSE(Compile(programs, Collective::kAllReduce).ok());
}

}  // namespace
}  // namespace jaxcoll
