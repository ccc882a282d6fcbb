// Properties of schedules that Python cannot see: what building one rank costs, that Parse survives
// anything under sanitizers, and the inference of dependencies by itself. All else is in
// tests/schedule.
#include "schedule/schedule.h"

#include <gtest/gtest.h>

#include <limits>
#include <random>
#include <string>

#include "schedule/dependencies.h"
#include "support/schedules.h"

namespace jaxcoll {
namespace {

std::vector<OpList> BuildServed(const ScheduleSpec& spec) {
  std::vector<OpList> op_lists = BuildAll(spec);
  EXPECT_EQ(op_lists.size(), static_cast<size_t>(spec.world_size)) << spec.algorithm;
  return op_lists;
}

TEST(ScheduleTest, CollectivesAreKnownByName) {
  for (Collective collective : kCollectives) {
    EXPECT_EQ(ParseCollective(Name(collective)), collective);
    EXPECT_FALSE(Algorithms(collective).empty());
  }
  EXPECT_EQ(ParseCollective("all_reduced"), std::nullopt);
  EXPECT_EQ(ParseCollective(""), std::nullopt);
}

TEST(ScheduleTest, OneOfAMillionRanksIsBuiltAlone) {
  // 2^20 ranks: an op list per rank would not fit in memory, nor would a chunk per interval.
  const int32_t ranks = 1 << 20;
  for (const char* algorithm : {"recursive_doubling", "halving_doubling", "double_tree"}) {
    StatusOr<OpList> op_list =
        BuildSchedule(PlainSpec(Collective::kAllReduce, algorithm, ranks), ranks - 1);
    ASSERT_TRUE(op_list.ok()) << op_list.status().message();
    EXPECT_LE(op_list->ops.size(), 100u);
    for (const Op& op : op_list->ops) EXPECT_EQ(op.destination.chunks.size(), 1u);
  }
}

TEST(ScheduleTest, ChunkIndicesThatDoNotFitAreRefused) {
  StatusOr<OpList> op_list =
      BuildSchedule(PlainSpec(Collective::kAllReduce, "direct2", 1 << 20), 0);
  ASSERT_FALSE(op_list.ok());
  EXPECT_EQ(op_list.status().code(), StatusCode::kInvalidArgument);
  EXPECT_NE(op_list.status().message().find("use another algorithm"), std::string::npos);
}

TEST(ScheduleTest, NegativeSpecsAreRefused) {
  for (int32_t bad : {-1, std::numeric_limits<int32_t>::min()}) {
    ScheduleSpec spec = PlainSpec(Collective::kPermute, "direct", 4);
    EXPECT_FALSE(BuildSchedule(spec, bad).ok());
    spec.permutation = {{bad, 0}};
    EXPECT_FALSE(BuildSchedule(spec, 0).ok());
    spec.permutation = {{0, bad}};
    EXPECT_FALSE(BuildSchedule(spec, 0).ok());
    for (int32_t ScheduleSpec::*field :
         {&ScheduleSpec::world_size, &ScheduleSpec::channels, &ScheduleSpec::root}) {
      ScheduleSpec broken = PlainSpec(Collective::kAllReduce, "ring", 4);
      broken.*field = bad;
      EXPECT_FALSE(BuildSchedule(broken, 0).ok());
    }
  }
}

// The reason to refuse a spec is known without its ops.
TEST(ScheduleTest, CheckingASpecBuildsNothing) {
  int64_t refused = 0;
  for (const Collective collective : kCollectives) {
    for (const std::string& algorithm : Algorithms(collective)) {
      for (int32_t ranks = -1; ranks <= 9; ++ranks) {
        for (const std::vector<int32_t>& dims : {std::vector<int32_t>{}, {2, 2}, {0}}) {
          ScheduleSpec spec = PlainSpec(collective, algorithm, ranks);
          spec.dims = dims;
          const int64_t before = OpsBuilt();
          const Status checked = CheckSchedule(spec);
          EXPECT_EQ(OpsBuilt(), before);
          EXPECT_EQ(checked.message(), BuildSchedule(spec, 0).status().message());
          refused += checked.ok() ? 0 : 1;
        }
      }
    }
  }
  EXPECT_GT(refused, 0);
  EXPECT_TRUE(CheckSchedule(PlainSpec(Collective::kAllReduce, "ring", 1 << 17)).ok());
}

TEST(ScheduleTest, TextRoundTripsForEveryAlgorithm) {
  for (Collective collective : kCollectives) {
    for (const std::string& algorithm : Algorithms(collective)) {
      for (int32_t world_size : {1, 2, 3, 6}) {
        ScheduleSpec spec = PlainSpec(collective, algorithm, world_size);
        spec.channels = 2;
        const std::string text = Serialize(BuildServed(spec));
        StatusOr<std::vector<OpList>> parsed = Parse(text);
        ASSERT_TRUE(parsed.ok()) << parsed.status().message();
        EXPECT_EQ(Serialize(*parsed), text);
      }
    }
  }
}

// An engine may index with everything that Parse accepts.
void ExpectIndexable(const std::vector<OpList>& op_lists) {
  for (const OpList& op_list : op_lists) {
    auto expect_inside = [&](const Operand& operand) {
      const int64_t blocks = operand.buffer == BufferKind::kInput    ? op_list.input_blocks
                             : operand.buffer == BufferKind::kOutput ? op_list.output_blocks
                                                                     : op_list.scratch_blocks;
      for (const Interval& interval : operand.chunks) {
        EXPECT_GE(interval.begin, 0);
        EXPECT_GE(interval.count, 1);
        EXPECT_LE(int64_t{interval.begin} + interval.count, blocks * op_list.chunks_per_block);
      }
    };
    for (const Op& op : op_list.ops) {
      for (const Operand& source : op.sources) expect_inside(source);
      expect_inside(op.destination);
      EXPECT_FALSE(op.sources.empty());
      EXPECT_NE(op.destination.buffer, BufferKind::kInput);
      EXPECT_LT(op.peer, static_cast<int32_t>(op_lists.size()));
      for (int32_t dependency : op.depends_on) {
        EXPECT_GE(dependency, 0);
        EXPECT_LT(dependency, static_cast<int32_t>(op_list.ops.size()));
      }
    }
  }
}

TEST(ScheduleTest, ParseSurvivesDamagedText) {
  constexpr uint32_t kSeed = 20240607;  // a failure reproduces: mt19937 is specified exactly
  std::mt19937 random(kSeed);
  const std::string_view alphabet = "isorecvdup 0123456789+,|>@\n-";
  const std::string originals[] = {
      Serialize(BuildServed(PlainSpec(Collective::kAllReduce, "recursive_doubling", 3))),
      Serialize(BuildServed(PlainSpec(Collective::kAllReduce, "halving_doubling", 4))),
      Serialize(BuildServed(PlainSpec(Collective::kAllToAll, "bruck", 5)))};
  int accepted = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string text = originals[random() % std::size(originals)];
    const int edits = 1 + static_cast<int>(random() % 3);
    for (int edit = 0; edit < edits; ++edit) {
      const size_t at = random() % text.size();
      switch (random() % 4) {
        case 0:
          text[at] = alphabet[random() % alphabet.size()];
          break;
        case 1:
          text.insert(at, 1, alphabet[random() % alphabet.size()]);
          break;
        case 2:
          text.erase(at, 1 + random() % 8);
          break;
        default:
          text.insert(at, "4294967295");
          break;
      }
      if (text.empty()) text = " ";
    }
    StatusOr<std::vector<OpList>> parsed = Parse(text);
    if (!parsed.ok()) continue;
    ++accepted;
    ExpectIndexable(*parsed);
    EXPECT_EQ(Serialize(*parsed), text);
  }
  EXPECT_GT(accepted, 0) << "every damaged text was refused: the checks above never ran";
}

TEST(ScheduleTest, ParseRefusesPrefixesOfAGoodText) {
  const std::string text = Serialize(BuildServed(PlainSpec(Collective::kAllGather, "ring", 4)));
  for (size_t length = 0; length < text.size(); ++length) {
    EXPECT_FALSE(Parse(std::string_view(text).substr(0, length)).ok()) << length;
  }
}

Op LocalCopy(Operand source, Operand destination) {
  Op op;
  op.sources = {std::move(source)};
  op.destination = std::move(destination);
  return op;
}

Operand Out(int32_t begin, int32_t count) { return {BufferKind::kOutput, {{begin, count}}}; }
Operand Tmp(int32_t begin, int32_t count) { return {BufferKind::kScratch, {{begin, count}}}; }

TEST(InferDependenciesTest, FollowsPartsOfIntervals) {
  OpList op_list;
  op_list.ops = {
      LocalCopy({BufferKind::kInput, {{0, 8}}}, Tmp(0, 8)),  // 0 writes all
      LocalCopy(Tmp(2, 2), Out(2, 2)),                       // 1 reads a part
      LocalCopy({BufferKind::kInput, {{0, 4}}}, Tmp(0, 4)),  // 2 overwrites it and more
      LocalCopy(Tmp(3, 4), Out(3, 4)),                       // 3 reads 2's and 0's, writes 1's
      LocalCopy(Tmp(7, 1), Out(7, 1)),                       // 4 reads 0's only
  };
  InferDependencies(op_list);
  EXPECT_EQ(op_list.ops[0].depends_on, (std::vector<int32_t>{}));
  EXPECT_EQ(op_list.ops[1].depends_on, (std::vector<int32_t>{0}));
  EXPECT_EQ(op_list.ops[2].depends_on, (std::vector<int32_t>{0, 1}));
  EXPECT_EQ(op_list.ops[3].depends_on, (std::vector<int32_t>{0, 1, 2}));
  EXPECT_EQ(op_list.ops[4].depends_on, (std::vector<int32_t>{0}));
}

TEST(InferDependenciesTest, IgnoresWhatPeersHold) {
  OpList op_list;
  Op recv;
  recv.kind = OpKind::kRecv;
  recv.peer = 1;
  recv.sources = {Tmp(0, 1)};  // the peer's scratch
  recv.destination = Out(0, 1);
  Op send = recv;
  send.kind = OpKind::kSend;
  send.sources = {Tmp(1, 1)};
  send.destination = Tmp(0, 1);  // the peer's again
  op_list.ops = {LocalCopy({BufferKind::kInput, {{0, 1}}}, Tmp(0, 1)), recv, send};
  InferDependencies(op_list);
  EXPECT_TRUE(op_list.ops[1].depends_on.empty());
  EXPECT_TRUE(op_list.ops[2].depends_on.empty());
}

TEST(InferDependenciesTest, KeepsWhatIsThereAndIsIdempotent) {
  OpList op_list;
  op_list.ops = {LocalCopy({BufferKind::kInput, {{0, 1}}}, Tmp(0, 1)),
                 LocalCopy({BufferKind::kInput, {{0, 1}}}, Tmp(1, 1)),
                 LocalCopy(Tmp(0, 1), Out(0, 1))};
  op_list.ops[2].depends_on = {1};
  InferDependencies(op_list);
  EXPECT_EQ(op_list.ops[2].depends_on, (std::vector<int32_t>{0, 1}));
  InferDependencies(op_list);
  EXPECT_EQ(op_list.ops[2].depends_on, (std::vector<int32_t>{0, 1}));
}

}  // namespace
}  // namespace jaxcoll
