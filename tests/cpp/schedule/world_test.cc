// Schedules matched: what a world knows, what it refuses, and what engines ask about it.
#include "schedule/world.h"

#include <gtest/gtest.h>

#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "support/few.h"
#include "support/op_lists.h"
#include "support/schedules.h"

namespace jaxcoll {
namespace {

// All algorithms, for the ranks given: every root, two channels, dims of two extents.
void ForEachSpec(const std::vector<int32_t>& sizes,
                 const std::function<void(const ScheduleSpec&, const std::string&)>& visit) {
  for (const Collective collective : kCollectives) {
    for (const std::string& algorithm : Algorithms(collective)) {
      for (const int32_t size : sizes) {
        ScheduleSpec spec = PlainSpec(collective, algorithm, size);
        std::vector<std::vector<int32_t>> all_dims = {{}};
        const DimsKind kind = DimsKindOf(collective, algorithm);
        for (int32_t d = 1; d <= size; ++d) {
          const bool two = kind == DimsKind::kNodes || kind == DimsKind::kTorus;
          if (two && size % d == 0) all_dims.push_back({d, size / d});
          if (kind == DimsKind::kAggregate && (d & (d - 1)) == 0) all_dims.push_back({d});
        }
        const bool rooted =
            collective == Collective::kBroadcast || collective == Collective::kReduce;
        for (int32_t rank = 0; rank < size && collective == Collective::kPermute; ++rank) {
          if (rank % 5 != 0) spec.permutation.emplace_back(rank, (rank + 2) % size);
        }
        for (const std::vector<int32_t>& dims : all_dims) {
          for (const int32_t channels : {1, 2}) {
            for (spec.root = 0; spec.root < (rooted ? size : 1); ++spec.root) {
              spec.dims = dims;
              spec.channels = channels;
              std::string name = std::string(Name(collective)) + ' ' + algorithm + ' ' +
                                 std::to_string(size) + " ranks, root " +
                                 std::to_string(spec.root) + ", dims";
              for (const int32_t extent : dims) name += ' ' + std::to_string(extent);
              visit(spec, name);
            }
          }
        }
      }
    }
  }
}

std::vector<int32_t> UpTo(int32_t last) {
  std::vector<int32_t> sizes(last);
  std::iota(sizes.begin(), sizes.end(), 1);
  return sizes;
}

Op Transfer(OpKind kind, int32_t peer, int32_t sequence, int32_t chunk = 0) {
  Op op;
  op.kind = kind;
  op.peer = peer;
  op.sequence = sequence;
  op.sources = {{BufferKind::kInput, {{chunk, 1}}}};
  op.destination = {BufferKind::kOutput, {{chunk, 1}}};
  return op;
}

TEST(World, EverySendHasOneReceiver) {
  ForEachSpec(UpTo(9), [](const ScheduleSpec& spec, const std::string& name) {
    const std::vector<OpList> op_lists = BuildAll(spec);
    if (op_lists.empty()) return;
    const StatusOr<World> world = WorldOf(op_lists);
    ASSERT_TRUE(world.ok()) << name << ": " << world.status().message();
    ASSERT_TRUE(world->complete());
    for (int32_t id = 0; id < world->op_count(); ++id) {
      const Op& op = world->op(id);
      if (!IsTransfer(op)) {
        ASSERT_EQ(world->mate(id), World::kNone);
        continue;
      }
      const int32_t mate = world->mate(id);
      ASSERT_EQ(world->mate(mate), id);
      ASSERT_EQ(world->MemberOfOp(mate), op.peer);
      ASSERT_EQ(KeyOf(world->MemberOfOp(id), op), KeyOf(op.peer, world->op(mate)));
      ASSERT_NE(IsSend(op), IsSend(world->op(mate)));
    }
  });
}

TEST(World, AFewRanksHaveTheMessagesBetweenThem) {
  const std::vector<OpList> all = BuildAll(PlainSpec(Collective::kAllReduce, "direct", 6));
  const StatusOr<World> world = World::Create({all[1], all[4]}, 6);
  ASSERT_TRUE(world.ok()) << world.status().message();
  EXPECT_FALSE(world->complete());
  EXPECT_EQ(world->ranks(), (std::vector<int32_t>{1, 4}));
  EXPECT_EQ(world->MemberOf(4), 1);
  EXPECT_EQ(world->MemberOf(3), World::kNone);
  int32_t matched = 0;
  for (int32_t id = 0; id < world->op_count(); ++id) {
    const Op& op = world->op(id);
    const bool here = IsTransfer(op) && world->MemberOf(op.peer) != World::kNone;
    EXPECT_EQ(world->mate(id) != World::kNone, here) << world->WhereIs(id);
    matched += here;
  }
  EXPECT_EQ(matched, 4);
  EXPECT_EQ(world->WhereIs(world->Id(1, 2)), "rank 4, op 2");
}

TEST(World, RefusesWhatDoesNotFitTogether) {
  const auto refused = [](const std::function<void(std::vector<OpList>&)>& spoil,
                          const std::string& because) {
    std::vector<OpList> op_lists = BuildAll(PlainSpec(Collective::kAllReduce, "ring", 3));
    spoil(op_lists);
    const StatusOr<World> world = World::Create(op_lists, 3);
    ASSERT_FALSE(world.ok()) << because;
    EXPECT_EQ(world.status().message().find(because), 0u) << world.status().message();
  };
  refused([](auto& p) { p[0].ops[0].sequence = p[0].ops[2].sequence; },
          "rank 0, op 2: sends a message twice");
  refused([](auto& p) { p[1].ops[1].sequence = p[1].ops[3].sequence; },
          "rank 1, op 3: no rank sends what it receives");
  refused([](auto& p) { p[1].ops[0].sequence = 9; },
          "rank 2, op 1: no rank sends what it receives");
  refused([](auto& p) { p[1].ops.erase(p[1].ops.end() - 1); },
          "rank 0, op 6: no rank receives what it sends");
  refused(
      [](auto& p) {
        p[1].ops[1].sources[0].chunks[0] = {2, 1}, p[1].chunks_per_block = 3;
      },
      "rank 1, op 1: operands differ in positions");
  refused([](auto& p) { p[1].ops[3].kind = OpKind::kCopy, p[1].ops[3].sources.resize(1); },
          "rank 0, op 2: no rank receives what it sends");
  refused([](auto& p) { p[1].ops[1].sources[0].buffer = BufferKind::kOutput; },
          "rank 1, op 1 and rank 0, op 0 disagree on a message");
  refused([](auto& p) { p[0].ops[0].sources.clear(); }, "rank 0, op 0: wrong number of sources");
  refused([](auto& p) { p[0].ops[0].peer = 0; }, "rank 0, op 0: its peer is rank 0");
  refused([](auto& p) { p[2].ops[1].destination.chunks[0].count = 2; },
          "rank 2, op 1: operands differ in size");
  refused([](auto& p) { p[2].ops[0].destination.chunks[0].begin = 7; },
          "rank 2, op 0: a chunk lies outside of its buffer");
  refused([](auto& p) { p[1].ops[2].depends_on = {8}; },
          "rank 1, op 2: depends on an op that does not exist");
  refused([](auto& p) { std::swap(p[0], p[1]); }, "the op list in place 1");
  refused([](auto& p) { p[2].scratch_blocks = 1; }, "rank 2 disagrees on blocks or chunks");
}

// The contract of every algorithm: rank `root` has an end of a message as large as any.
TEST(World, TheRootHasALargestMessage) {
  std::vector<int32_t> sizes = UpTo(17);
  sizes.insert(sizes.end(), {24, 33, 36});
  sizes = Few(sizes, {1, 2, 5, 8, 24});
  ForEachSpec(sizes, [](const ScheduleSpec& spec, const std::string& name) {
    int32_t largest = 1;
    for (const OpList& op_list : BuildAll(spec)) {
      largest = std::max(largest, LargestMessage(op_list));
    }
    const StatusOr<int32_t> alone = LargestMessage(spec);
    if (!alone.ok()) return;
    ASSERT_EQ(*alone, largest) << name;
  });
}

TEST(World, ScratchThatIsACopyOfAnInputIsForwarded) {
  const StatusOr<World> world = WorldOf(BuildAll(PlainSpec(Collective::kAllReduce, "direct", 4)));
  ASSERT_TRUE(world.ok());
  const ScratchUse use(*world);
  for (int32_t id = 0; id < world->op_count(); ++id) {
    const Op& op = world->op(id);
    EXPECT_EQ(use.Forwarded(id), IsReceive(op));
    EXPECT_EQ(use.StaysInPlace(id), IsReceive(op));
    if (!IsReceive(op)) continue;
    const ScratchUse::Origin origin =
        use.OriginOf(world->MemberOfOp(id), op.destination.chunks[0].begin);
    EXPECT_EQ(origin.member, op.peer);
    EXPECT_EQ(origin.chunk, 0);
  }
}

TEST(World, ACopyOfACopyIsForwardedAsWellAndACircleIsNot) {
  Op first = Transfer(OpKind::kCopy, -1, -1);
  first.destination = {BufferKind::kScratch, {{0, 1}}};
  Op second = first;
  second.sources = {first.destination};
  second.destination = {BufferKind::kScratch, {{1, 1}}};
  std::vector<OpList> op_lists(1);
  op_lists[0].scratch_blocks = 2;
  op_lists[0].ops = {second, first};
  const StatusOr<World> chain = WorldOf(op_lists);
  ASSERT_TRUE(chain.ok()) << chain.status().message();
  EXPECT_TRUE(ScratchUse(*chain).Forwarded(0));
  EXPECT_EQ(ScratchUse(*chain).OriginOf(0, 1).member, 0);

  op_lists[0].ops[1].sources = {second.destination};
  const StatusOr<World> circle = WorldOf(op_lists);
  ASSERT_TRUE(circle.ok()) << circle.status().message();
  EXPECT_FALSE(ScratchUse(*circle).Forwarded(0));
}

TEST(World, ScratchWrittenTwiceIsNot) {
  std::vector<OpList> op_lists(2);
  Op receive = Transfer(OpKind::kRecv, 0, 0);
  receive.destination.buffer = BufferKind::kScratch;
  Op send = Transfer(OpKind::kSend, 1, 0);
  send.destination = receive.destination;
  op_lists[0].ops = {send};
  op_lists[1].rank = 1;
  op_lists[1].ops = {receive};
  op_lists[0].scratch_blocks = op_lists[1].scratch_blocks = 1;
  EXPECT_TRUE(ScratchUse(*WorldOf(op_lists)).StaysInPlace(1));

  Op copy = Transfer(OpKind::kCopy, -1, -1);
  copy.destination = receive.destination;
  op_lists[1].ops.push_back(copy);
  const StatusOr<World> world = WorldOf(op_lists);
  ASSERT_TRUE(world.ok()) << world.status().message();
  const ScratchUse use(*world);
  EXPECT_FALSE(use.StaysInPlace(1));
  EXPECT_FALSE(use.Forwarded(1) || use.Forwarded(2));
  EXPECT_EQ(use.OriginOf(1, 0).member, World::kNone);

  // The message whose sender is elsewhere stays where it lands, but the sender's input cannot be
  // read.
  op_lists[1].ops.pop_back();
  const StatusOr<World> alone = World::Create({op_lists[1]}, 2);
  ASSERT_TRUE(alone.ok());
  EXPECT_TRUE(ScratchUse(*alone).StaysInPlace(0));
  EXPECT_FALSE(ScratchUse(*alone).Forwarded(0));
}

TEST(World, LevelsAreTheLongestWays) {
  const StatusOr<World> ring = WorldOf(BuildAll(PlainSpec(Collective::kAllReduce, "ring", 4)));
  ASSERT_TRUE(ring.ok());
  for (const Sending sending : {Sending::kRendezvous, Sending::kBuffered}) {
    const StatusOr<std::vector<int32_t>> levels = Levels(*ring, sending);
    ASSERT_TRUE(levels.ok());
    for (int32_t id = 0; id < ring->op_count(); ++id) {
      const Op& op = ring->op(id);
      // A step is a level; where a message waits for its receiver, a step is a send and a receipt.
      const int32_t expected =
          sending == Sending::kRendezvous ? op.step : 2 * op.step + IsReceive(op);
      EXPECT_EQ((*levels)[id], expected) << ring->WhereIs(id);
    }
  }
}

TEST(World, LevelsRefuseADeadlock) {
  std::vector<OpList> op_lists(2);
  for (int32_t rank = 0; rank < 2; ++rank) {
    Op send = Transfer(OpKind::kSend, 1 - rank, 0);
    send.depends_on = {0};
    op_lists[rank].rank = rank;
    op_lists[rank].ops = {Transfer(OpKind::kRecv, 1 - rank, 0), send};
  }
  const StatusOr<World> world = WorldOf(op_lists);
  ASSERT_TRUE(world.ok()) << world.status().message();
  for (const Sending sending : {Sending::kRendezvous, Sending::kBuffered}) {
    const StatusOr<std::vector<int32_t>> levels = Levels(*world, sending);
    ASSERT_FALSE(levels.ok());
    EXPECT_EQ(levels.status().message(), "the schedule deadlocks: rank 0, op 0 can never complete");
  }
}

// Thousands of ranks are matched without their op lists: nothing but the ends is kept.
TEST(World, MessagesAreMatchedByTheirEndsAlone) {
  const std::vector<int32_t> ranks = {3, 5};
  std::vector<MessageEnds> ends(2);
  ends[0].Add(Transfer(OpKind::kSend, 5, 1), 10);
  ends[0].Add(Transfer(OpKind::kSend, 5, 0), 11);
  ends[0].Add(Transfer(OpKind::kSend, 4, 0), 12);  // to somebody else
  ends[1].Add(Transfer(OpKind::kRecv, 3, 0), 20);
  ends[1].Add(Transfer(OpKind::kRecv, 3, 1), 21);
  for (MessageEnds& of_rank : ends) of_rank.Sort();
  std::vector<std::pair<uint32_t, uint32_t>> pairs;
  const auto pair = [&](size_t source, uint32_t send, size_t destination, uint32_t receipt) {
    EXPECT_EQ(source, 0u);
    EXPECT_EQ(destination, 1u);
    pairs.emplace_back(send, receipt);
  };
  EXPECT_FALSE(MatchMessages(ranks, ends, pair).has_value());
  EXPECT_EQ(pairs, (std::vector<std::pair<uint32_t, uint32_t>>{{11, 20}, {10, 21}}));

  ends[1] = MessageEnds();
  const std::optional<Unmatched> lost = MatchMessages(ranks, ends, pair);
  ASSERT_TRUE(lost.has_value());
  EXPECT_EQ(lost->why, Unmatched::Why::kNeverReceived);
  EXPECT_EQ(lost->number, 10u);
  EXPECT_EQ(lost->key, (MessageKey{3, 5, 0, 1}));
}

}  // namespace
}  // namespace jaxcoll
