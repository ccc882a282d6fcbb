// Schedules packed into the tables of the GPU's interpreter, and how calls are cut.

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "gpu/abi/device_table.h"
#include "support/device_world.h"
#include "support/op_lists.h"

namespace jaxcoll::cuda {
namespace {

struct Counts {
  int32_t ops = 0, most_sources = 0, most_destinations = 0;
};

Counts CountOf(const DeviceTable& table) {
  const TableHeader& header = table.header();
  const auto* bytes = reinterpret_cast<const unsigned char*>(table.words.data());
  const auto* workers = reinterpret_cast<const TableWorker*>(bytes + header.worker_offset);
  const auto* ops = reinterpret_cast<const TableOp*>(bytes + header.op_offset);
  Counts counts;
  for (int32_t w = 0; w < header.workers; ++w) counts.ops += workers[w].op_count;
  for (int32_t i = 0; i < counts.ops; ++i) {
    counts.most_sources = std::max(counts.most_sources, ops[i].source_count);
    counts.most_destinations = std::max(counts.most_destinations, ops[i].destination_count);
  }
  return counts;
}

TEST(Pack, OneShotIsOnePutAndOneReduction) {
  const auto tables = Pack(BuildAll(Spec(Collective::kAllReduce, "direct", 8)), {3}, 1);
  ASSERT_TRUE(tables.ok()) << tables.status().message();
  const TableHeader& header = tables->at(0).header();
  const Counts counts = CountOf(tables->at(0));
  EXPECT_EQ(header.rank, 3);
  EXPECT_EQ(counts.ops, 2);
  EXPECT_EQ(counts.most_destinations, 7);
  EXPECT_EQ(counts.most_sources, 8);
  EXPECT_EQ(header.scratch_chunks, 0);  // messages stay in their slots
  EXPECT_EQ(header.slot_chunks, 7);
}

// Where operands are reached, a schedule is what a kernel written for it would do.
TEST(Pack, OperandsAreReadAndWrittenInPlace) {
  const auto pack = [](Collective collective, const char* algorithm) {
    const auto tables = Pack(BuildAll(Spec(collective, algorithm, 8)), {3}, 1, Reach::kOperands);
    EXPECT_TRUE(tables.ok()) << tables.status().message();
    const TableHeader& header = tables->at(0).header();
    EXPECT_EQ(header.slot_chunks + header.scratch_chunks, 0) << algorithm;
    EXPECT_EQ(header.meets, 1);
    return CountOf(tables->at(0));
  };
  const auto expect = [](const Counts& counts, int ops, int sources, int destinations) {
    EXPECT_EQ(counts.ops, ops);
    EXPECT_EQ(counts.most_sources, sources);
    EXPECT_EQ(counts.most_destinations, destinations);
  };
  expect(pack(Collective::kAllReduce, "direct"), 1, 8, 1);
  // The sum goes to all outputs at once; behind it is a wait for the others' sums.
  expect(pack(Collective::kAllReduce, "direct2"), 2, 8, 8);
  expect(pack(Collective::kReduceScatter, "direct"), 1, 8, 1);
  expect(pack(Collective::kAllGather, "direct"), 2, 1, 8);
  expect(pack(Collective::kAllToAll, "direct"), 2, 1, 1);

  // Partial sums still go through slots, but what is gathered does not.
  const auto regions = Pack(BuildAll(Spec(Collective::kAllReduce, "ring", 8)), {3}, 1);
  const auto operands =
      Pack(BuildAll(Spec(Collective::kAllReduce, "ring", 8)), {3}, 1, Reach::kOperands);
  EXPECT_EQ(regions->at(0).header().slot_chunks, 14);
  EXPECT_EQ(operands->at(0).header().slot_chunks, 6);
}

TEST(Pack, ARingReducesAndSendsInOnePass) {
  const auto tables = Pack(BuildAll(Spec(Collective::kAllReduce, "ring", 8)), {0}, 1);
  ASSERT_TRUE(tables.ok()) << tables.status().message();
  const Counts counts = CountOf(tables->at(0));
  EXPECT_EQ(counts.ops, 1 + 2 * 7);  // the first send, and every step's receive with the next send
  EXPECT_EQ(counts.most_destinations, 2);

  // The partial sums of a reduce-scatter are nobody's but the next rank's: they are not stored.
  const auto scatter = Pack(BuildAll(Spec(Collective::kReduceScatter, "ring", 8)), {0}, 1);
  ASSERT_TRUE(scatter.ok()) << scatter.status().message();
  EXPECT_EQ(CountOf(scatter->at(0)).most_destinations, 1);
}

// Ops that do not wait for each other become one: a round of flags costs as much as a strip.
TEST(Pack, PutsSideBySideWhatMayGoSideBySide) {
  const auto two_shots = Pack(BuildAll(Spec(Collective::kAllReduce, "direct2", 8)), {2}, 1);
  ASSERT_TRUE(two_shots.ok()) << two_shots.status().message();
  EXPECT_EQ(CountOf(two_shots->at(0)).ops, 3);  // parts out, sum up and out, sums in
  const auto exchange = Pack(BuildAll(Spec(Collective::kAllToAll, "direct", 8)), {2}, 1);
  ASSERT_TRUE(exchange.ok()) << exchange.status().message();
  EXPECT_LE(CountOf(exchange->at(0)).ops, 3);
}

TEST(Pack, IsTheSameOnEveryRankButForTheRank) {
  const auto op_lists = BuildAll(Spec(Collective::kReduce, "binomial", 5));
  const auto tables = Pack(op_lists, AllRanks(5), 4);
  const auto alone = Pack(op_lists, {3}, 4);
  ASSERT_TRUE(tables.ok() && alone.ok());
  EXPECT_EQ(tables->at(3).words, alone->at(0).words);
  for (const DeviceTable& table : *tables) {
    EXPECT_EQ(table.header().slot_chunks, tables->at(0).header().slot_chunks);
    EXPECT_EQ(table.header().flags_per_worker, tables->at(0).header().flags_per_worker);
    EXPECT_EQ(table.bytes() % 16, 0u);
    EXPECT_EQ(table.bytes(), static_cast<size_t>(table.header().total_bytes));
  }
}

TEST(Pack, RefusesWhatDoesNotFitTogether) {
  const auto good = BuildAll(Spec(Collective::kAllReduce, "ring", 3));
  const auto refused = [&](const std::function<void(std::vector<OpList>&)>& spoil,
                           const std::string& because) {
    auto op_lists = good;
    spoil(op_lists);
    const auto tables = Pack(op_lists, {0}, 4);
    ASSERT_FALSE(tables.ok()) << because;
    EXPECT_NE(tables.status().message().find(because), std::string::npos)
        << tables.status().message();
  };
  refused([](auto& p) { p[1].ops[0].sequence = 9; }, "no rank sends what it receives");
  refused([](auto& p) { p[1].ops.pop_back(); }, "no rank receives what it sends");
  refused([](auto& p) { p[0].ops[0].peer = 3; }, "rank 0, op 0: its peer is rank 3");
  refused([](auto& p) { p[0].ops[1].destination.chunks[0].begin = 3; }, "outside of its buffer");
  refused([](auto& p) { p[2].ops[1].destination.buffer = BufferKind::kInput; }, "read-only");
  refused([](auto& p) { p[0].ops[1].destination.chunks[0].begin = 0; }, "differ in positions");
  refused([](auto& p) { p[0].ops[1].depends_on = {77}; }, "depends on an op that does not exist");
  refused([](auto& p) { p[0].ops[0].depends_on = {1}, p[0].ops[1].depends_on = {0}; }, "deadlocks");
  refused([](auto& p) { p[1].chunks_per_block = 4; }, "disagrees on blocks or chunks");
  refused([](auto& p) { p.clear(); }, "for 1 to 256 ranks");
  refused(
      [](auto& p) {
        Op reduce;
        reduce.kind = OpKind::kReduce;
        reduce.destination = {BufferKind::kOutput, {{0, 1}}};
        reduce.sources.assign(kMaxSources + 1, {BufferKind::kInput, {{0, 1}}});
        p[0].ops.push_back(reduce);
      },
      "a reduction of 257 operands");
}

TEST(PlanCall, SaysWhatARegionLacks) {
  const auto tables = Pack(BuildAll(Spec(Collective::kAllReduce, "ring", 8)), {0}, 1);
  ASSERT_TRUE(tables.ok());
  const TableHeader& header = tables->at(0).header();
  RegionSize region = kRegion;
  const auto plan = [&] {
    return PlanCall(header, {1 << 20}, DType::kFloat32, ReduceOp::kSum, region);
  };
  ASSERT_TRUE(plan().ok());
  region.bytes = 68 << 10;
  ASSERT_FALSE(plan().ok());
  const std::string text = plan().status().message();
  const std::string needs = "needs a region of ";
  ASSERT_NE(text.find(needs), std::string::npos) << text;
  region.bytes = std::stoll(text.substr(text.find(needs) + needs.size()));
  EXPECT_TRUE(plan().ok());
  region.bytes -= 1;
  EXPECT_FALSE(plan().ok());
  EXPECT_FALSE(PlanCall(header, {8}, DType::kFloat32, ReduceOp::kXor, kRegion).ok());
  region = kRegion;
  region.flag_capacity = header.flags_per_worker - 1;
  EXPECT_FALSE(plan().ok());
}

// Slots end where the region does, and so do flags; small calls stay on one strand.
TEST(PlanCall, CutsCallsWithinTheRegion) {
  const auto tables = Pack(BuildAll(Spec(Collective::kAllReduce, "halving_doubling", 8)), {0}, 1);
  ASSERT_TRUE(tables.ok());
  const TableHeader& header = tables->at(0).header();
  const RegionSize region{.bytes = 8 << 20, .flag_capacity = 4096, .max_strands = 32};
  const std::pair<int64_t, int32_t> sizes[] = {{0, 1}, {1, 1}, {8 * 1024, 1}, {1 << 24, 32}};
  for (const auto& [elements, strands] : sizes) {
    const auto call = PlanCall(header, {elements}, DType::kFloat32, ReduceOp::kSum, region);
    ASSERT_TRUE(call.ok());
    EXPECT_EQ(call->strands, strands);
    EXPECT_LE(
        call->scratch_offset + int64_t{call->strands} * header.scratch_chunks * call->stride_bytes,
        region.bytes);
    EXPECT_LE(BlockCount(header, *call) * header.flags_per_worker, region.flag_capacity);
    EXPECT_LE(call->vectors[0].strip_elements * 4, call->stride_bytes);
    EXPECT_GE(call->vectors[0].strip_elements * call->slice_count, elements / 8);
  }
}

// One strip more than there are strands must not take twice as long.
TEST(PlanCall, DividesTheWorkEvenly) {
  const auto tables = Pack(BuildAll(Spec(Collective::kAllGather, "direct", 4)), {0}, 1);
  ASSERT_TRUE(tables.ok());
  const RegionSize region{.bytes = 16 << 20, .flag_capacity = 4096, .max_strands = 16};
  const int64_t bytes = region.max_strip_bytes * 17;
  const auto call =
      PlanCall(tables->at(0).header(), {bytes / 4}, DType::kFloat32, ReduceOp::kSum, region);
  ASSERT_TRUE(call.ok());
  ASSERT_EQ(call->strands, 16);
  const int64_t rounds = (call->slice_count + call->strands - 1) / call->strands;
  EXPECT_LE(rounds * call->vectors[0].strip_elements * 4 * call->strands, bytes * 11 / 10);
}

}  // namespace
}  // namespace jaxcoll::cuda
