// The engine without XLA: ranks are threads that call CallSite::Arrive as handlers do.

#include "call/call_site.h"

#include <gtest/gtest.h>

#include <atomic>
#include <bit>
#include <functional>
#include <latch>
#include <numeric>
#include <random>
#include <thread>

#include "base/environment.h"
#include "call/process_per_rank.h"
#include "call/watchdog.h"

namespace jaxcoll {
namespace {

// Short enough for tests of deadlines, long for everything else.
[[maybe_unused]] const bool timeout_is_set = [] {
  Configure({.timeout_s = 2});
  return true;
}();

// One rank's wait for one call.
class CallOutcome {
 public:
  void Set(Status status) {
    std::lock_guard lock(mutex_);
    status_ = std::move(status);
    set_ = true;
    changed_.notify_all();
  }
  Status Wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return set_; });
    return status_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool set_ = false;
  Status status_;
};

class OutcomeCompletion final : public Completion {
 public:
  explicit OutcomeCompletion(std::shared_ptr<CallOutcome> outcome) : outcome_(std::move(outcome)) {}
  void Done(const Status& status) override { outcome_->Set(status); }

 private:
  std::shared_ptr<CallOutcome> outcome_;
};

CallSpec AllReduceSpec(int64_t ranks, std::string algorithm = "direct") {
  CallSpec spec;
  spec.collective = "all_reduce";
  spec.algorithm = std::move(algorithm);
  spec.reduce_op = "sum";
  spec.group_size = ranks;
  spec.groups.resize(ranks);
  std::iota(spec.groups.begin(), spec.groups.end(), 0);
  spec.device_ids = spec.groups;
  spec.label = "axis 'i'";
  return spec;
}

std::unique_ptr<CallSite> MakeSite(CallSpec spec, int64_t elements) {
  StatusOr<std::unique_ptr<CallSite>> site = CallSite::Create(std::move(spec));
  EXPECT_TRUE(site.ok()) << site.status().message();
  CallShape shape;
  shape.inputs = {{DType::kFloat32, {elements}}};
  shape.outputs = shape.inputs;
  const Status prepared = (*site)->Prepare(shape);
  EXPECT_TRUE(prepared.ok()) << prepared.message();
  return std::move(*site);
}

std::shared_ptr<CallOutcome> Arrive(CallSite& site, int64_t run, int64_t rank, const float* input,
                                    float* output) {
  const void* inputs[] = {input};
  void* outputs[] = {output};
  auto outcome = std::make_shared<CallOutcome>();
  StatusOr<CallSite::Entry> entry =
      site.Arrive({run, rank, inputs, outputs}, std::make_unique<OutcomeCompletion>(outcome));
  if (!entry.ok()) {
    outcome->Set(entry.status());
  } else if (*entry == CallSite::Entry::kDone) {
    outcome->Set(Status());
  }
  return outcome;
}

// Two call sites in a scan, several runs in flight, every rank in an order and at a pace of its
// own.
TEST(CallSite, MatchesByKeyWhateverTheOrder) {
  constexpr int kRanks = 4, kSites = 2, kCalls = 6, kRuns = 3;
  for (int seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::vector<std::unique_ptr<CallSite>> sites;
    for (int s = 0; s < kSites; ++s) sites.push_back(MakeSite(AllReduceSpec(kRanks), 3));
    std::vector<std::thread> threads;
    for (int rank = 0; rank < kRanks; ++rank) {
      threads.emplace_back([&, rank] {
        std::mt19937 random(seed * 100 + rank);
        // Calls of one (site, run) keep their order; everything else is shuffled.
        std::vector<std::pair<int, int>> lines;
        for (int s = 0; s < kSites; ++s) {
          for (int run = 0; run < kRuns; ++run) {
            for (int call = 0; call < kCalls; ++call) lines.emplace_back(s, run);
          }
        }
        std::shuffle(lines.begin(), lines.end(), random);
        std::map<std::pair<int, int>, int> count;
        std::vector<std::array<float, 3>> in(lines.size()), out(lines.size());
        std::vector<float> expected;
        std::vector<std::shared_ptr<CallOutcome>> outcomes;
        for (size_t i = 0; i < lines.size(); ++i) {
          const int call = count[lines[i]]++;
          const float value =
              static_cast<float>(lines[i].first * 1000 + lines[i].second * 100 + call * 10 + rank);
          in[i] = {value, value, value};
          expected.push_back((value - rank) * kRanks + kRanks * (kRanks - 1) / 2);
          outcomes.push_back(
              Arrive(*sites[lines[i].first], lines[i].second, rank, in[i].data(), out[i].data()));
          if (random() % 4 == 0) std::this_thread::yield();
        }
        for (size_t i = 0; i < lines.size(); ++i) {
          EXPECT_TRUE(outcomes[i]->Wait().ok());
          EXPECT_EQ(out[i][0], expected[i]);
          EXPECT_EQ(out[i][2], expected[i]);
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
}

// An all_to_all whose blocks are arrays of their own.
TEST(CallSite, MovesSeparateBlocks) {
  constexpr int64_t kRanks = 3, kElements = 5;
  CallSpec spec = AllReduceSpec(kRanks);
  spec.collective = "all_to_all";
  spec.reduce_op = "";
  spec.separate_blocks = 1;
  CallShape shape;
  shape.inputs.assign(kRanks, {DType::kFloat32, {kElements}});
  shape.outputs = shape.inputs;
  const auto site = CallSite::Create(spec);
  ASSERT_TRUE(site.ok()) << site.status().message();
  ASSERT_TRUE((*site)->Prepare(shape).ok());
  std::vector<float> sent(kRanks * kRanks * kElements), got(sent.size());
  std::iota(sent.begin(), sent.end(), 0);
  std::vector<std::shared_ptr<CallOutcome>> outcomes;
  for (int64_t rank = 0; rank < kRanks; ++rank) {
    std::vector<const void*> inputs;
    std::vector<void*> outputs;
    for (int64_t block = 0; block < kRanks; ++block) {
      // Backwards, so that no two blocks follow each other.
      inputs.push_back(&sent[(rank * kRanks + kRanks - 1 - block) * kElements]);
      outputs.push_back(&got[(rank * kRanks + kRanks - 1 - block) * kElements]);
    }
    outcomes.push_back(std::make_shared<CallOutcome>());
    const auto entry = (*site)->Arrive({0, rank, inputs, outputs},
                                       std::make_unique<OutcomeCompletion>(outcomes.back()));
    ASSERT_TRUE(entry.ok());
    if (*entry == CallSite::Entry::kDone) outcomes.back()->Set(Status());
  }
  for (const auto& outcome : outcomes) EXPECT_TRUE(outcome->Wait().ok());
  for (int64_t to = 0; to < kRanks; ++to) {
    for (int64_t from = 0; from < kRanks; ++from) {
      for (int64_t i = 0; i < kElements; ++i) {
        EXPECT_EQ(got[(to * kRanks + kRanks - 1 - from) * kElements + i],
                  sent[(from * kRanks + kRanks - 1 - to) * kElements + i]);
      }
    }
  }
}

TEST(CallSite, RefusesBlocksThatDoNotFit) {
  CallSpec spec = AllReduceSpec(3);
  spec.collective = "all_to_all";
  spec.reduce_op = "";
  spec.separate_blocks = 1;
  for (const std::vector<int64_t>& elements :
       {std::vector<int64_t>{4, 4}, std::vector<int64_t>{4, 4, 5}}) {
    const auto site = CallSite::Create(spec);
    ASSERT_TRUE(site.ok());
    CallShape shape;
    for (const int64_t count : elements) shape.inputs.push_back({DType::kFloat32, {count}});
    shape.outputs = shape.inputs;
    EXPECT_FALSE((*site)->Prepare(shape).ok());
  }
  spec.collective = "all_gather";
  const auto site = CallSite::Create(spec);
  ASSERT_TRUE(site.ok());
  CallShape shape;
  shape.inputs.assign(3, {DType::kFloat32, {4}});
  shape.outputs = shape.inputs;
  const Status status = (*site)->Prepare(shape);
  EXPECT_NE(status.message().find("takes its blocks in one array"), std::string::npos);
}

class Algorithms : public testing::TestWithParam<std::string> {};

// Large enough for several batches per level, so that workers share the levels.
TEST_P(Algorithms, ReducesExactlyOnManyThreads) {
  constexpr int64_t kElements = 300001;
  for (const int ranks : {1, 2, 3, 8}) {
    auto site = MakeSite(AllReduceSpec(ranks, GetParam()), kElements);
    std::vector<std::vector<float>> in(ranks), out(ranks);
    for (int repeat = 0; repeat < 3; ++repeat) {
      std::vector<std::shared_ptr<CallOutcome>> outcomes;
      for (int rank = 0; rank < ranks; ++rank) {
        in[rank].resize(kElements);
        for (int64_t i = 0; i < kElements; ++i) in[rank][i] = static_cast<float>(i % 97 + rank);
        out[rank].assign(kElements, -1);
        outcomes.push_back(Arrive(*site, repeat, rank, in[rank].data(), out[rank].data()));
      }
      for (int rank = 0; rank < ranks; ++rank) {
        ASSERT_TRUE(outcomes[rank]->Wait().ok());
        for (int64_t i = 0; i < kElements; ++i) {
          ASSERT_EQ(out[rank][i], i % 97 * ranks + ranks * (ranks - 1) / 2)
              << "ranks " << ranks << " rank " << rank << " element " << i;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(AllReduce, Algorithms,
                         testing::ValuesIn(jaxcoll::Algorithms(Collective::kAllReduce)));

TEST(CallSite, MissingRankFailsEveryRankLateOnesIncludedAndTheNextCallWorks) {
  auto site = MakeSite(AllReduceSpec(3), 1);
  float in = 1, out = 0;
  auto first = Arrive(*site, 7, 0, &in, &out);
  auto second = Arrive(*site, 7, 2, &in, &out);
  const Status failure = first->Wait();
  EXPECT_EQ(failure.code(), StatusCode::kDeadlineExceeded);
  EXPECT_EQ(second->Wait().code(), StatusCode::kDeadlineExceeded);
  EXPECT_NE(failure.message().find("arrived: rank 0 (device 0), rank 2 (device 2)"),
            std::string::npos)
      << failure.message();
  EXPECT_NE(failure.message().find("missing: rank 1 (device 1)"), std::string::npos);
  EXPECT_NE(failure.message().find("all_reduce(sum) of float32[1] over axis 'i'"),
            std::string::npos);
  EXPECT_EQ(Arrive(*site, 7, 1, &in, &out)->Wait().code(), StatusCode::kDeadlineExceeded);

  std::array<float, 3> outputs{};
  std::vector<std::shared_ptr<CallOutcome>> outcomes;
  for (int rank = 0; rank < 3; ++rank) {
    outcomes.push_back(Arrive(*site, 8, rank, &in, &outputs[rank]));
  }
  for (int rank = 0; rank < 3; ++rank) {
    EXPECT_TRUE(outcomes[rank]->Wait().ok());
    EXPECT_EQ(outputs[rank], 3);
  }
}

TEST(CallSite, RanksInDifferentCallsNameEachOther) {
  auto here = MakeSite(AllReduceSpec(2), 4);
  auto there = MakeSite(AllReduceSpec(2), 8);
  std::array<float, 8> in{}, out{};
  auto first = Arrive(*here, 1, 0, in.data(), out.data());
  auto second = Arrive(*there, 1, 1, in.data(), out.data());
  EXPECT_NE(first->Wait().message().find(
                "missing: rank 1 (device 1), which waits in all_reduce(sum) of float32[8]"),
            std::string::npos);
  EXPECT_FALSE(second->Wait().ok());
}

TEST(CallSite, RanksInDifferentCallsAreToldOnceBeforeTheDeadline) {
  auto here = MakeSite(AllReduceSpec(2), 4);
  auto there = MakeSite(AllReduceSpec(2), 8);
  std::array<float, 8> in{}, out{};
  auto first = Arrive(*here, 1, 0, in.data(), out.data());
  auto second = Arrive(*there, 1, 1, in.data(), out.data());
  WaitingTable waiting;
  here->DescribeWaiting(waiting);
  there->DescribeWaiting(waiting);
  const auto now = CallSite::Clock::now(), later = now + std::chrono::seconds(3);
  testing::internal::CaptureStderr();
  EXPECT_FALSE(here->WarnOfMismatch(now, waiting, false));  // it may be on its way
  EXPECT_FALSE(here->WarnOfMismatch(later, WaitingTable(), false));
  EXPECT_TRUE(here->WarnOfMismatch(later, waiting, false));
  EXPECT_TRUE(there->WarnOfMismatch(later, waiting, true));
  EXPECT_FALSE(here->WarnOfMismatch(later, waiting, false));
  const std::string logged = testing::internal::GetCapturedStderr();
  const size_t at = logged.find("which waits in all_reduce(sum) of float32[8]");
  EXPECT_NE(at, logged.npos) << logged;
  EXPECT_EQ(logged.find("which waits in", at + 1), logged.npos) << logged;
  EXPECT_FALSE(first->Wait().ok());
  EXPECT_FALSE(second->Wait().ok());
}

// Destroying an executable, or exit, completes what is pending.
TEST(CallSite, DestructionFailsPendingCalls) {
  auto site = MakeSite(AllReduceSpec(2), 1);
  float in = 1, out = 0;
  auto outcome = Arrive(*site, 1, 0, &in, &out);
  site.reset();
  EXPECT_EQ(outcome->Wait().code(), StatusCode::kCancelled);
}

TEST(CallSite, RefusesBadSpecs) {
  CallSpec spec = AllReduceSpec(4);
  spec.groups = {0, 1, 1, 2};
  EXPECT_FALSE(CallSite::Create(spec).ok());
  spec = AllReduceSpec(4);
  spec.groups.pop_back();
  EXPECT_FALSE(CallSite::Create(spec).ok());
  spec = AllReduceSpec(4, "no such algorithm");
  EXPECT_FALSE(CallSite::Create(spec).ok());
  spec = AllReduceSpec(4);
  spec.collective = "all_shuffle";
  EXPECT_FALSE(CallSite::Create(spec).ok());
  spec = AllReduceSpec(4);
  spec.schedule = "garbage";
  EXPECT_FALSE(CallSite::Create(spec).ok());
}

// An instruction of a job costs a process the op lists of its own rank, and of the root for the
// largest message; what is built for others would grow with the square of the job.
TEST(CallSite, BuildsItsOwnRanksOpsOnly) {
  struct Case {
    const char* collective;
    const char* algorithm;
    std::function<int64_t(int64_t)> own_ops;  // of this many ranks
  };
  const Case cases[] = {
      {"all_reduce", "ring", [](int64_t p) { return 4 * (p - 1); }},
      {"all_reduce", "direct", [](int64_t p) { return 2 * (p - 1) + 1; }},
      {"all_reduce", "direct2", [](int64_t p) { return 4 * (p - 1) + 1; }},
      {"all_to_all", "direct", [](int64_t p) { return 2 * (p - 1) + 1; }},
      {"all_reduce", "halving_doubling",
       [](int64_t p) { return 4 * std::countr_zero(static_cast<uint64_t>(p)); }},
      {"reduce_scatter", "recursive_halving",
       [](int64_t p) { return 2 * std::countr_zero(static_cast<uint64_t>(p)); }},
      // Nodes of 8 ranks.
      {"all_reduce", "hierarchical", [](int64_t p) { return 4 * (8 - 1) + 4 * (p / 8 - 1); }},
  };
  for (const Case& c : cases) {
    for (int64_t ranks = 64; ranks <= 4096; ranks *= 8) {
      CallSpec spec = AllReduceSpec(ranks, c.algorithm);
      spec.collective = c.collective;
      if (spec.algorithm == "hierarchical") spec.dims = {ranks / 8, 8};
      if (spec.collective == "all_to_all") spec.reduce_op = "";
      const int64_t in = spec.collective == "all_reduce" ? 1 : ranks;
      const int64_t out = spec.collective == "all_to_all" ? ranks : 1;
      ProcessPerRank job(static_cast<int>(ranks), static_cast<int>(ranks / 2 + 1));
      const int64_t before = OpsBuilt();
      const auto site = CallSite::Create(spec, &job);
      ASSERT_TRUE(site.ok()) << c.algorithm << ": " << site.status().message();
      const Status prepared =
          (*site)->Prepare({{{DType::kFloat32, {in * 1024}}}, {{DType::kFloat32, {out * 1024}}}});
      EXPECT_TRUE(prepared.ok()) << c.algorithm << ": " << prepared.message();
      EXPECT_LE(OpsBuilt() - before, 2 * c.own_ops(ranks)) << c.algorithm << ", " << ranks;
      EXPECT_GE(OpsBuilt() - before, c.own_ops(ranks)) << c.algorithm << ", " << ranks;
      // Another instruction with the same schedule builds nothing.
      const int64_t built = OpsBuilt();
      EXPECT_TRUE(CallSite::Create(spec, &job).ok());
      EXPECT_EQ(OpsBuilt(), built);
    }
  }
}

// Groups that are all of this process run here; of the others it takes its own ranks' part.
TEST(CallSite, GroupsHereAndGroupsThatReachOutAreBuiltApart) {
  class TwoProcesses final : public Interprocess {
   public:
    int process() const override { return 0; }
    std::optional<int> ProcessOfDevice(int64_t id) const override { return id < 3 ? 0 : 1; }
    InstructionNumber TakeNumber(const std::string&) override { return {}; }
    void ReturnNumber(const std::string&, const InstructionNumber&) override {}
    std::unique_ptr<RemoteGroup> Open(GroupSpec spec) override {
      opened.push_back(spec.device_ids);
      return nullptr;
    }
    void FailBegunBefore(std::chrono::steady_clock::time_point, bool, const std::string&) override {
    }
    void Invite(Guest*) override {}
    std::vector<std::vector<int64_t>> opened;
  } job;
  CallSpec spec = AllReduceSpec(6, "ring");  // groups {0, 1} here, {2, 3} apart, {4, 5} elsewhere
  spec.group_size = 2;
  const auto site = CallSite::Create(spec, &job);
  ASSERT_TRUE(site.ok()) << site.status().message();
  ASSERT_TRUE((*site)->Prepare({{{DType::kFloat32, {8}}}, {{DType::kFloat32, {8}}}}).ok());
  EXPECT_EQ(job.opened, (std::vector<std::vector<int64_t>>{{2, 3}}));
  float in[2][8], out[2][8];
  std::fill_n(&in[0][0], 16, 1.5f);
  const auto first = Arrive(**site, 1, 0, in[0], out[0]);
  const auto second = Arrive(**site, 1, 1, in[1], out[1]);
  EXPECT_TRUE(first->Wait().ok());
  EXPECT_TRUE(second->Wait().ok());
  EXPECT_EQ(out[0][7], 3.0f);
  EXPECT_EQ(out[1][0], 3.0f);
}

// A schedule written in Python comes with all ranks' ops: what would never end is refused at once.
TEST(CallSite, RefusesWrittenSchedulesThatDoNotFitTogetherInAJob) {
  const auto refusal = [](const std::string& ops_of_0, const std::string& ops_of_1) {
    CallSpec spec = AllReduceSpec(2, "mine");
    spec.schedule =
        "jaxcoll-schedule 1 2\nrank 0 1 1 1 0 1\n" + ops_of_0 + "rank 1 1 1 1 0 1\n" + ops_of_1;
    ProcessPerRank job(2, 0);
    const auto site = CallSite::Create(spec, &job);
    return site.ok() ? std::string() : site.status().message();
  };
  EXPECT_EQ(refusal("send 0 0 1 0 i0>o0\n", "recv 0 0 0 0 i0>o0\n"), "");
  EXPECT_EQ(refusal("copy 0 0 i0>o0\n", "recv 0 0 0 0 i0>o0\n"),
            "rank 1, op 0: no rank sends what it receives");
}

// A completion that blocks, as XLA's own collectives do, until another one of the same call runs.
TEST(CallSite, BlockingContinuationsGetThreadsOfTheirOwn) {
  constexpr int kRanks = 40;
  static std::latch everybody(kRanks);
  class Blocking final : public Completion {
   public:
    explicit Blocking(std::shared_ptr<CallOutcome> outcome) : outcome_(std::move(outcome)) {}
    void Done(const Status& status) override {
      everybody.arrive_and_wait();
      outcome_->Set(status);
    }

   private:
    std::shared_ptr<CallOutcome> outcome_;
  };
  auto site = MakeSite(AllReduceSpec(kRanks), 1);
  float in = 1;
  std::array<float, kRanks> out{};
  std::vector<std::shared_ptr<CallOutcome>> outcomes;
  for (int rank = 0; rank < kRanks; ++rank) {
    const void* inputs[] = {&in};
    void* outputs[] = {&out[rank]};
    outcomes.push_back(std::make_shared<CallOutcome>());
    auto entry =
        site->Arrive({1, rank, inputs, outputs}, std::make_unique<Blocking>(outcomes.back()));
    ASSERT_TRUE(entry.ok());
    if (*entry == CallSite::Entry::kDone) {
      everybody.count_down();
      outcomes.back()->Set(Status());
    }
  }
  for (const auto& outcome : outcomes) EXPECT_TRUE(outcome->Wait().ok());
}

TEST(Ragged, MovesRowsAndRefusesDisagreement) {
  CallSpec spec = AllReduceSpec(2);
  spec.collective = "ragged_all_to_all";
  spec.reduce_op = "";
  auto created = CallSite::Create(spec);
  ASSERT_TRUE(created.ok());
  CallSite& site = **created;
  CallShape shape;
  shape.inputs = {{DType::kFloat32, {3}}, {DType::kFloat32, {4}}, {DType::kInt32, {2}},
                  {DType::kInt32, {2}},   {DType::kInt32, {2}},   {DType::kInt32, {2}}};
  shape.outputs = {{DType::kFloat32, {4}}};
  ASSERT_TRUE(site.Prepare(shape).ok());
  // Rank 0 keeps one row and sends two; rank 1 sends one and keeps none.
  const float operand[2][3] = {{1, 2, 3}, {4, 5, 6}};
  const float base[4] = {-1, -1, -1, -1};
  const int32_t input_offsets[2][2] = {{0, 1}, {0, 0}};
  const int32_t send_sizes[2][2] = {{1, 2}, {1, 0}};
  const int32_t output_offsets[2][2] = {{0, 1}, {3, 0}};
  int32_t recv_sizes[2][2] = {{1, 1}, {2, 0}};
  float out[2][4];
  const auto call = [&](int64_t run) {
    std::vector<std::shared_ptr<CallOutcome>> outcomes;
    for (int rank = 0; rank < 2; ++rank) {
      const void* inputs[] = {operand[rank],        base,
                              input_offsets[rank],  send_sizes[rank],
                              output_offsets[rank], recv_sizes[rank]};
      void* outputs[] = {out[rank]};
      outcomes.push_back(std::make_shared<CallOutcome>());
      auto entry = site.Arrive({run, rank, inputs, outputs},
                               std::make_unique<OutcomeCompletion>(outcomes.back()));
      EXPECT_TRUE(entry.ok());
      if (entry.ok() && *entry == CallSite::Entry::kDone) outcomes.back()->Set(Status());
    }
    const Status first = outcomes[0]->Wait();
    EXPECT_EQ(first.ok(), outcomes[1]->Wait().ok());
    return first;
  };
  ASSERT_TRUE(call(1).ok());
  EXPECT_EQ((std::vector<float>(out[0], out[0] + 4)), (std::vector<float>{1, -1, -1, 4}));
  EXPECT_EQ((std::vector<float>(out[1], out[1] + 4)), (std::vector<float>{-1, 2, 3, -1}));
  recv_sizes[1][0] = 3;
  const Status disagreement = call(2);
  EXPECT_NE(disagreement.message().find("rank 0 to rank 1: sends 2 rows"), std::string::npos)
      << disagreement.message();
}

}  // namespace
}  // namespace jaxcoll
