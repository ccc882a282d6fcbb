// Every collective and algorithm between processes whose links are rdma, real or fake: as many
// reactors, in one thread. Their results are bit by bit those of the engine of one process.

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <array>
#include <cstring>
#include <functional>
#include <numeric>
#include <optional>
#include <random>

#include "comm/reactor.h"
#include "engine/memory/local_actions.h"
#include "engine/memory/local_plan.h"
#include "engine/ragged.h"
#include "engine/slices/slice_plan.h"
#include "schedule/schedule.h"
#include "support/link_pair.h"
#include "support/op_lists.h"
#include "transport/rdma/rdma.h"

namespace jaxcoll {
namespace {

using Buffers = std::vector<std::vector<std::byte>>;

class CallbackCompletion final : public Completion {
 public:
  explicit CallbackCompletion(std::function<void(const Status&)> done) : done_(std::move(done)) {}
  void Done(const Status& status) override { done_(status); }

 private:
  const std::function<void(const Status&)> done_;
};

struct RdmaJob {
  int processes;
  LinkKind kind;
  bool registers;  // buffers of calls, else copies them
};

class RdmaCollectivesTest : public testing::TestWithParam<RdmaJob> {
 protected:
  void SetUp() override {
    if (GetParam().kind == LinkKind::kFakeRdma) fake_.emplace(1);
    RdmaConfig config = TestRdmaConfig(GetParam().kind);
    if (GetParam().registers) config.register_bytes = 1;
    if (!fake_ && !WhyNoTestRdma().empty()) GTEST_SKIP() << WhyNoTestRdma();
    const int count = GetParam().processes;
    std::unordered_map<int64_t, int> process_of_device;
    for (int p = 0; p < count; ++p) process_of_device[p] = p;
    Reactor::Seams seams;
    seams.now = Reactor::Clock::now;
    seams.timeout_s = 60;
    seams.silence_s = 60;
    seams.complete = [](std::vector<std::unique_ptr<Completion>> completions,
                        std::shared_ptr<const Status> status, std::shared_ptr<ContinuationCost>) {
      for (auto& completion : completions) completion->Done(*status);
    };
    for (int p = 0; p < count; ++p) {
      reactors.push_back(Reactor::Create(
          p, process_of_device, [](int) {}, seams));
    }
    for (int a = 0; a < count; ++a) {
      for (int b = a + 1; b < count; ++b) {
        int sockets[2];
        ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets), 0);
        auto link_a = RdmaLink::Prepare(config, kWindowBytes, "");
        ASSERT_TRUE(link_a.ok()) << link_a.status().message();
        auto link_b = RdmaLink::Prepare(config, kWindowBytes, (*link_a)->Offer());
        ASSERT_TRUE(link_b.ok()) << link_b.status().message();
        ASSERT_TRUE((*link_a)->Join(b, sockets[0], (*link_b)->Offer(), {}, "test").ok());
        ASSERT_TRUE((*link_b)->Join(a, sockets[1], (*link_a)->Offer(), {}, "test").ok());
        links.insert(links.end(), {link_a->get(), link_b->get()});
        reactors[a]->AddLink(b, std::move(*link_a));
        reactors[b]->AddLink(a, std::move(*link_b));
      }
    }
  }

  // One call by all, a rank for each process. How it ended.
  Status Call(const std::string& what, const std::vector<std::shared_ptr<const RunPlan>>& plans,
              const std::vector<MemberBuffers>& buffers) {
    const auto ranks = static_cast<int>(plans.size());
    std::vector<int64_t> devices(ranks);
    std::iota(devices.begin(), devices.end(), 0);
    groups.clear();
    int done = 0;
    Status status;
    for (int rank = 0; rank < ranks; ++rank) {
      groups.push_back(reactors[rank]->interprocess().Open({devices, what, what, plans[rank]}));
      std::vector<std::unique_ptr<Completion>> completions;
      completions.push_back(std::make_unique<CallbackCompletion>([&, rank](const Status& end) {
        ++done;
        if (!end.ok()) status = end;
        if (on_done) on_done(rank);
      }));
      groups.back()->Start(0, buffers[rank], std::move(completions),
                           std::make_shared<ContinuationCost>());
    }
    while (done < ranks) {
      for (size_t i = 0; i < reactors.size(); ++i) {
        reactors[i]->Step();
        if (on_turn) on_turn();
      }
    }
    return status;
  }

  void CheckRaggedBlocks();

  // That the call computes what the engine of one process does.
  void Check(const ScheduleSpec& spec, int64_t block_elements, DType dtype) {
    const int ranks = spec.world_size;
    const std::string what = std::string(Name(spec.collective)) + " by " + spec.algorithm +
                             " over " + std::to_string(ranks) + " ranks, " +
                             std::to_string(block_elements) + " elements";
    std::vector<OpList> op_lists;
    int32_t largest_message = 1;
    for (int rank = 0; rank < ranks; ++rank) {
      StatusOr<OpList> op_list = BuildSchedule(spec, rank);
      if (!op_list.ok()) return;  // not for so many ranks
      for (const Op& op : op_list->ops) {
        if (op.kind != OpKind::kSend) continue;
        int32_t chunks = 0;
        for (const Interval& interval : op.sources[0].chunks) chunks += interval.count;
        largest_message = std::max(largest_message, chunks);
      }
      op_lists.push_back(std::move(*op_list));
    }
    const size_t input_bytes = block_elements * op_lists[0].input_blocks * ItemBytes(dtype);
    const size_t output_bytes = block_elements * op_lists[0].output_blocks * ItemBytes(dtype);
    Buffers inputs(ranks), outputs(ranks, std::vector<std::byte>(output_bytes, std::byte{0xEE}));
    for (auto& input : inputs) {
      input.resize(input_bytes);
      for (size_t at = 0; at < input_bytes; at += 4) {
        const float value = static_cast<float>(static_cast<int32_t>(random())) / 77777.f;
        std::memcpy(&input[at], &value, 4);
      }
    }
    const Buffers expected = InOneProcess(op_lists, spec.collective, block_elements, dtype, inputs);

    std::vector<std::shared_ptr<const RunPlan>> plans;
    std::vector<MemberBuffers> buffers;
    for (int rank = 0; rank < ranks; ++rank) {
      StatusOr<SliceOps> slice_ops = CompileSliceOps({op_lists[rank]}, ranks, largest_message);
      ASSERT_TRUE(slice_ops.ok()) << slice_ops.status().message();
      auto plan = SlicePlan::Create(std::make_shared<const SliceOps>(std::move(*slice_ops)),
                                    {block_elements}, dtype, ReduceOp::kSum, kSlotBytes);
      ASSERT_TRUE(plan.ok()) << plan.status().message();
      plans.push_back(*plan);
      buffers.push_back({{inputs[rank].data()}, {outputs[rank].data()}});
    }
    const Status status = Call(what, plans, buffers);
    ASSERT_TRUE(status.ok()) << what << ": " << status.message();
    for (int rank = 0; rank < ranks; ++rank) {
      ASSERT_EQ(outputs[rank].size(), expected[rank].size()) << what;
      ASSERT_EQ(std::memcmp(outputs[rank].data(), expected[rank].data(), output_bytes), 0)
          << what << ", rank " << rank;
    }
    ++checked;
  }

  static Buffers InOneProcess(const std::vector<OpList>& op_lists, Collective collective,
                              int64_t block_elements, DType dtype, const Buffers& inputs) {
    StatusOr<LocalActions> actions = Compile(op_lists, collective);
    EXPECT_TRUE(actions.ok()) << actions.status().message();
    const LocalPlan plan(std::make_shared<const LocalActions>(std::move(*actions)),
                         {block_elements}, dtype, ReduceOp::kSum);
    Buffers outputs(inputs.size());
    RunBuffers buffers;
    for (size_t i = 0; i < inputs.size(); ++i) {
      outputs[i].resize(plan.output_bytes(0), std::byte{0xEE});
      buffers.inputs.push_back(inputs[i].data());
      buffers.outputs.push_back(outputs[i].data());
    }
    struct alignas(64) Line {
      std::byte bytes[64];
    };
    std::vector<Line> scratch((plan.scratch_bytes() + 63) / 64);
    buffers.scratch = scratch.empty() ? nullptr : scratch[0].bytes;
    for (int level = 0; level < plan.LevelCount(); ++level) {
      for (int batch = 0; batch < plan.BatchCount(level); ++batch) {
        plan.RunBatch(level, batch, buffers);
      }
    }
    return outputs;
  }

  std::optional<FakeVerbs> fake_;
  std::vector<std::unique_ptr<Reactor>> reactors;
  std::mt19937_64 random{1};
  int checked = 0;
  std::vector<RdmaLink*> links;                      // the reactors'
  std::vector<std::unique_ptr<RemoteGroup>> groups;  // of the last call
  std::function<void()> on_turn;
  std::function<void(int rank)> on_done;
};

class RegisteredCollectivesTest : public RdmaCollectivesTest {};
class RailLossCollectivesTest : public RdmaCollectivesTest {};

void RdmaCollectivesTest::CheckRaggedBlocks() {
  const int ranks = GetParam().processes;
  RaggedShape shape;
  shape.operand_rows = 9000;
  shape.output_rows = 9000;
  shape.row_bytes = 24;
  ScheduleSpec exchange;
  exchange.collective = Collective::kAllToAll;
  exchange.world_size = ranks;
  std::vector<OpList> op_lists;
  for (int rank = 0; rank < ranks; ++rank) op_lists.push_back(*BuildSchedule(exchange, rank));
  StatusOr<LocalActions> actions = Compile(op_lists, exchange.collective);
  ASSERT_TRUE(actions.ok()) << actions.status().message();
  const LocalPlan one_process(std::make_shared<const LocalActions>(std::move(*actions)), shape);
  std::vector<int> process_of_rank(ranks);
  std::iota(process_of_rank.begin(), process_of_rank.end(), 0);
  for (int round = 0; round < 5; ++round) {
    // Rows from a rank to a rank, none from some; they lie one after the other.
    std::vector<std::vector<int32_t>> rows(ranks, std::vector<int32_t>(ranks));
    for (auto& row : rows) {
      for (int32_t& count : row) count = random() % 3 == 0 ? 0 : random() % (9000 / ranks);
    }
    std::vector<std::array<std::vector<int32_t>, 4>> tables(ranks);
    for (int from = 0; from < ranks; ++from) {
      int32_t at = 0;
      for (int to = 0; to < ranks; ++to) {
        int32_t before = 0;
        for (int earlier = 0; earlier < from; ++earlier) before += rows[earlier][to];
        tables[from][0].push_back(at);
        tables[from][1].push_back(rows[from][to]);
        tables[from][2].push_back(before);
        tables[from][3].push_back(rows[to][from]);
        at += rows[from][to];
      }
    }
    Buffers operands(ranks), bases(ranks), results(ranks), expected(ranks);
    std::vector<std::shared_ptr<const RunPlan>> plans;
    std::vector<MemberBuffers> buffers;
    RunBuffers reference;
    reference.inputs.resize(6 * ranks);
    for (int rank = 0; rank < ranks; ++rank) {
      operands[rank].resize(9000 * shape.row_bytes);
      for (std::byte& byte : operands[rank]) byte = static_cast<std::byte>(random());
      bases[rank].assign(9000 * shape.row_bytes, std::byte{0xBA});
      results[rank].resize(bases[rank].size());
      expected[rank].resize(bases[rank].size());
      auto plan = SlicePlan::CreateRagged(shape, process_of_rank, rank, kSlotBytes);
      ASSERT_TRUE(plan.ok()) << plan.status().message();
      plans.push_back(*plan);
      MemberBuffers own{{operands[rank].data(), bases[rank].data()}, {results[rank].data()}};
      for (const auto& table : tables[rank]) {
        own.inputs.push_back(reinterpret_cast<const std::byte*>(table.data()));
      }
      buffers.push_back(own);
      for (size_t v = 0; v < 6; ++v) reference.inputs[v * ranks + rank] = own.inputs[v];
      reference.outputs.push_back(expected[rank].data());
    }
    ASSERT_TRUE(one_process.Check(reference).ok());
    for (int batch = 0; batch < one_process.BatchCount(0); ++batch) {
      one_process.RunBatch(0, batch, reference);
    }
    const Status status = Call("ragged_all_to_all", plans, buffers);
    ASSERT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(results, expected) << "round " << round;
  }
}

TEST_P(RdmaCollectivesTest, EveryAlgorithmComputesWhatOneProcessDoes) {
  const int ranks = GetParam().processes;
  // A small slot, a large one, and more slices than are in flight at a time.
  std::vector<int64_t> sizes = {1, 1000, 20'000, 180'000};
  // Emulated processors and sanitizers take long; what is large is repeated where it differs.
  if (GetParam().registers) sizes = {20'000, 180'000};
  if (fake_ && !GetParam().registers) sizes = {1, 20'000};
  for (const Collective collective :
       {Collective::kAllReduce, Collective::kReduceScatter, Collective::kAllGather,
        Collective::kAllToAll, Collective::kBroadcast, Collective::kReduce, Collective::kPermute}) {
    for (const std::string& algorithm : Algorithms(collective)) {
      ScheduleSpec spec;
      spec.collective = collective;
      spec.algorithm = algorithm;
      spec.world_size = ranks;
      if (collective == Collective::kBroadcast || collective == Collective::kReduce) {
        spec.root = ranks - 1;
      }
      if (DimsKindOf(collective, algorithm) == DimsKind::kNodes) {
        spec.dims =
            ranks % 2 == 0 ? std::vector<int32_t>{ranks / 2, 2} : std::vector<int32_t>{ranks, 1};
      }
      if (collective == Collective::kPermute) {
        for (int r = 0; r < ranks; ++r) spec.permutation.emplace_back(r, (r + 1) % ranks);
      }
      for (const int64_t elements : sizes) {
        ASSERT_NO_FATAL_FAILURE(Check(spec, elements, DType::kFloat32));
      }
    }
  }
  EXPECT_GT(checked, static_cast<int>(7 * sizes.size()));
  // Here, for links take emulated processors long to make.
  CheckRaggedBlocks();
  std::printf("%d calls compared\n", checked);
}

// No NIC may read a call's buffers once the call has failed, even if NICs are stuck.
TEST_P(RegisteredCollectivesTest, ACallThatFailsLeavesNoBufferRegistered) {
  const int ranks = GetParam().processes;
  Buffers inputs(ranks, std::vector<std::byte>(1'000'000)), outputs = inputs;
  std::vector<std::shared_ptr<const RunPlan>> plans;
  std::vector<MemberBuffers> buffers;
  for (int rank = 0; rank < ranks; ++rank) {
    ScheduleSpec spec;
    spec.collective = Collective::kAllReduce;
    spec.algorithm = "ring";
    spec.world_size = ranks;
    StatusOr<SliceOps> slice_ops = CompileSliceOps({*BuildSchedule(spec, rank)}, ranks, 1);
    ASSERT_TRUE(slice_ops.ok()) << slice_ops.status().message();
    plans.push_back(*SlicePlan::Create(std::make_shared<const SliceOps>(*slice_ops), {250'000},
                                       DType::kFloat32, ReduceOp::kSum, kSlotBytes));
    buffers.push_back({{inputs[rank].data()}, {outputs[rank].data()}});
  }
  const auto registered = [&](int rank) {
    return fake_->regions_in(inputs[rank]) + fake_->regions_in(outputs[rank]);
  };
  bool lent = false;
  on_turn = [&] {
    if (lent || registered(0) == 0) return;
    lent = true;
    for (const int device : {0, 1}) fake_->SetPort(device, false, /*told=*/false);
    groups[0]->Fail(Status(StatusCode::kCancelled, "the test ends it"));
  };
  // Before anybody hears of the failure, and may free them.
  on_done = [&](int rank) { EXPECT_EQ(registered(rank), 0u); };
  const Status status = Call("all_reduce", plans, buffers);
  EXPECT_TRUE(lent);
  EXPECT_NE(status.message().find("the test ends it"), std::string::npos) << status.message();
}

// Every rail but the first fails while calls are under way: none of them is any the wiser.
TEST_P(RailLossCollectivesTest, CallsOutliveTheLossOfARail) {
  ScheduleSpec spec;
  spec.collective = Collective::kAllReduce;
  spec.algorithm = "ring";
  spec.world_size = GetParam().processes;
  ASSERT_NO_FATAL_FAILURE(Check(spec, 20'000, DType::kFloat32));
  if (links[0]->live_rails() < 2) GTEST_SKIP() << "this machine has one RDMA port";
  while (!links.empty()) {
    RdmaLink* const link = links.back();
    links.pop_back();
    int turns = static_cast<int>(random() % 40);
    on_turn = [&] {
      if (turns-- == 0 && link->live_rails() > 1) link->BreakRail(1);
    };
    ASSERT_NO_FATAL_FAILURE(Check(spec, 180'000, DType::kFloat32));
  }
}

std::string NameOfCase(const testing::TestParamInfo<RdmaJob>& info) {
  return std::to_string(info.param.processes) + (info.param.registers ? "_registered_" : "_") +
         NameOf(info.param.kind);
}

INSTANTIATE_TEST_SUITE_P(
    Processes, RdmaCollectivesTest,
    testing::Values(RdmaJob{2, LinkKind::kRdma, false}, RdmaJob{2, LinkKind::kRdma, true},
                    RdmaJob{3, LinkKind::kRdma, false}, RdmaJob{4, LinkKind::kRdma, false},
                    RdmaJob{2, LinkKind::kFakeRdma, false}, RdmaJob{2, LinkKind::kFakeRdma, true},
                    RdmaJob{3, LinkKind::kFakeRdma, true}, RdmaJob{4, LinkKind::kFakeRdma, false}),
    NameOfCase);
INSTANTIATE_TEST_SUITE_P(Processes, RailLossCollectivesTest,
                         testing::Values(RdmaJob{2, LinkKind::kRdma, true},
                                         RdmaJob{2, LinkKind::kFakeRdma, true},
                                         RdmaJob{3, LinkKind::kFakeRdma, true},
                                         RdmaJob{4, LinkKind::kFakeRdma, false}),
                         NameOfCase);
INSTANTIATE_TEST_SUITE_P(Processes, RegisteredCollectivesTest,
                         testing::Values(RdmaJob{2, LinkKind::kFakeRdma, true},
                                         RdmaJob{3, LinkKind::kFakeRdma, true}),
                         NameOfCase);

}  // namespace
}  // namespace jaxcoll
