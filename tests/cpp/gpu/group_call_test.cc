// Calls of any schedule from their spec to their results, by the code that sets them up and
// enqueues them on GPUs, on devices made of threads: in one process, and between several.

#include "gpu/host/group_call.h"

#include <cstring>
#include <functional>
#include <numeric>
#include <string_view>

#include "call/call_site.h"
#include "engine/memory/local_plan.h"
#include "gpu/host/gpu_call_site.h"
#include "support/few.h"
#include "support/host_job.h"
#include "support/op_lists.h"

namespace jaxcoll::cuda {
namespace {

struct CallValues {
  std::vector<int64_t> elements = {700};  // of a block, by vector
  DType dtype = DType::kFloat32;
  uint32_t seed = 1;
};

// One call site's calls on all ranks.
class GpuSite {
 public:
  GpuSite(HostJob& job, const CallSpec& spec, const CallValues& values,
          const std::string& key = "site")
      : job_(job), ranks_(static_cast<int>(spec.group_size)), calls_(job.processes()) {
    const StatusOr<std::vector<OpList>> op_lists = OpListsOf(spec, AllRanks(ranks_));
    EXPECT_TRUE(op_lists.ok()) << op_lists.status().message();
    if (!op_lists.ok()) return;
    const OpList& first = op_lists->front();
    for (const int64_t elements : values.elements) {
      shape_.inputs.push_back({values.dtype, {first.input_blocks, elements}});
      shape_.outputs.push_back({values.dtype, {first.output_blocks, elements}});
    }
    Fill(values.seed);
    Expect(*op_lists, spec, values);
    statuses_.resize(job.processes());
    job.OnAllProcesses([&](int process) {
      auto call = GroupCall::Create(job_.communicator(process), spec, shape_, key, spec.algorithm,
                                    /*interpret=*/true);
      statuses_[process] = call.status();
      if (call.ok()) calls_[process] = std::move(*call);
    });
  }

  const Status& status(int process) const { return statuses_[process]; }
  GroupCall& call(int process) { return *calls_[process]; }

  void Enqueue(const uint32_t* logical_id = nullptr) {
    for (int rank = 0; rank < ranks_; ++rank) {
      GroupCall* const call = calls_[rank % job_.processes()].get();
      ASSERT_NE(call, nullptr) << statuses_[rank % job_.processes()].message();
      std::vector<const void*> inputs;
      std::vector<void*> outputs;
      for (const auto& memory : inputs_[rank]) inputs.push_back(memory->data());
      for (const auto& memory : outputs_[rank]) outputs.push_back(memory->data());
      const Status status =
          call->Enqueue(rank, Stream(rank), {inputs.data(), outputs.data(), logical_id, 0});
      ASSERT_TRUE(status.ok()) << status.message();
    }
  }

  void ExpectRight(const std::string& what) {
    for (int rank = 0; rank < ranks_; ++rank) {
      for (size_t v = 0; v < outputs_[rank].size(); ++v) {
        DeviceMemory& output = *outputs_[rank][v];
        EXPECT_EQ(std::memcmp(output.data(), expected_[rank][v]->data(), output.bytes()), 0)
            << what << ", rank " << rank << ", vector " << v;
        std::memset(output.data(), 0xa5, output.bytes());
      }
    }
  }

 private:
  using Memories = std::vector<std::vector<std::unique_ptr<DeviceMemory>>>;  // [rank][vector]

  static void* Stream(int rank) { return reinterpret_cast<void*>(uintptr_t{16} * (rank + 1)); }

  void Fill(uint32_t seed) {
    std::mt19937 random(seed);
    for (int rank = 0; rank < ranks_; ++rank) {
      inputs_.emplace_back(), outputs_.emplace_back(), expected_.emplace_back();
      for (size_t v = 0; v < shape_.inputs.size(); ++v) {
        const size_t item = ItemBytes(shape_.inputs[v].dtype);
        const size_t in = shape_.inputs[v].elements() * item;
        const size_t out = shape_.outputs[v].elements() * item;
        inputs_.back().push_back(std::make_unique<DeviceMemory>(in));
        for (size_t i = 0; i < in; ++i) {
          inputs_.back().back()->data()[i] = static_cast<unsigned char>(random() & 0x3f);
        }
        outputs_.back().push_back(std::make_unique<DeviceMemory>(out));
        expected_.back().push_back(std::make_unique<DeviceMemory>(out));
      }
    }
  }

  // The results that the engine for CPUs makes of the same op lists.
  void Expect(const std::vector<OpList>& op_lists, const CallSpec& spec, const CallValues& values) {
    auto local = Compile(op_lists, *ParseCollective(spec.collective));
    ASSERT_TRUE(local.ok()) << local.status().message();
    const LocalPlan plan(std::make_shared<LocalActions>(std::move(*local)), values.elements,
                         values.dtype, ReduceOp::kSum);
    RunBuffers buffers;
    for (size_t v = 0; v < values.elements.size(); ++v) {
      for (int rank = 0; rank < ranks_; ++rank) {
        buffers.inputs.push_back(reinterpret_cast<std::byte*>(inputs_[rank][v]->data()));
        buffers.outputs.push_back(reinterpret_cast<std::byte*>(expected_[rank][v]->data()));
      }
    }
    const DeviceMemory scratch(std::max<size_t>(plan.scratch_bytes(), 1));
    buffers.scratch = reinterpret_cast<std::byte*>(scratch.data());
    for (int level = 0; level < plan.LevelCount(); ++level) {
      for (int batch = 0; batch < plan.BatchCount(level); ++batch) {
        plan.RunBatch(level, batch, buffers);
      }
    }
  }

  HostJob& job_;
  const int ranks_;
  CallShape shape_;
  Memories inputs_, outputs_, expected_;
  std::vector<Status> statuses_;                   // by process
  std::vector<std::unique_ptr<GroupCall>> calls_;  // by process
};

CallSpec SpecOf(Collective collective, const std::string& algorithm, int ranks) {
  const ScheduleSpec schedule = Spec(collective, algorithm, ranks);
  CallSpec spec;
  spec.collective = std::string(Name(collective));
  spec.algorithm = algorithm;
  const bool reduces = collective == Collective::kAllReduce || collective == Collective::kReduce ||
                       collective == Collective::kReduceScatter;
  if (reduces) spec.reduce_op = "sum";
  spec.group_size = ranks;
  spec.root = schedule.root;
  for (const auto& [from, to] : schedule.permutation) {
    spec.permutation.insert(spec.permutation.end(), {from, to});
  }
  for (int rank = 0; rank < ranks; ++rank) {
    spec.groups.push_back(rank);
    spec.device_ids.push_back(rank);
  }
  return spec;
}

bool ServesRanks(Collective collective, const std::string& algorithm, int ranks) {
  return !BuildAll(Spec(collective, algorithm, ranks)).empty();
}

// Every algorithm, for every number of ranks that it serves, in one process and in several, called
// and replayed.
void RunEveryAlgorithm(
    int processes, Hosts* hosts = nullptr,
    const std::function<void(HostRuntime&, GpuCommunicatorOptions&)>& change = {}) {
  constexpr Collective kCollectives[] = {Collective::kAllReduce, Collective::kReduceScatter,
                                         Collective::kAllGather, Collective::kAllToAll,
                                         Collective::kBroadcast, Collective::kReduce,
                                         Collective::kPermute};
  for (const int ranks : Few({1, 2, 3, 4, 5, 6, 7, 8}, {3, 4})) {
    if (ranks < processes || (hosts != nullptr && ranks % processes == 2)) continue;
    HostJob job(ranks, processes, 4 << 20, hosts, change);
    for (const Collective collective : kCollectives) {
      for (const std::string& algorithm : Algorithms(collective)) {
        if (!ServesRanks(collective, algorithm, ranks)) continue;
        const std::string what = std::string(Name(collective)) + " " + algorithm + ", " +
                                 std::to_string(ranks) + " ranks, " + std::to_string(processes) +
                                 " processes";
        GpuSite site(job, SpecOf(collective, algorithm, ranks), {.elements = {333, 5}}, what);
        site.Enqueue();
        ASSERT_TRUE(job.Run(/*replays=*/3))
            << what << ": " << job.communicator(0).Cause().value_or("");
        site.ExpectRight(what);
      }
    }
  }
}

TEST(GroupCall, RunsEveryAlgorithmInOneProcess) { RunEveryAlgorithm(1); }
TEST(GroupCall, RunsEveryAlgorithmBetweenProcesses) { RunEveryAlgorithm(2); }

// Two processes of one host and one of another.
TEST(GroupCall, RunsEveryAlgorithmBetweenHosts) {
  Hosts hosts({0, 1, 0}, Net::kFake, 1);
  RunEveryAlgorithm(3, &hosts);
}

void WithDmabufs(HostRuntime& runtime, GpuCommunicatorOptions&) { runtime.why_no_dmabuf = ""; }

// To process 1 from device memory; between 0 and 2, and back, by copies.
TEST(GroupCall, RunsEveryAlgorithmBetweenHostsFromDeviceMemory) {
  Hosts hosts({0, 1, 2}, Net::kFake, 1);
  hosts.takes_dmabuf = [](int, int to) { return to == 1; };
  RunEveryAlgorithm(3, &hosts, WithDmabufs);
  EXPECT_GT(hosts.net().lent_puts, 0u);
  EXPECT_GT(hosts.net().own_puts, 0u);
  EXPECT_EQ(hosts.net().lent_buffers, 0);
}

// The text of `jaxcoll info` on the path from process 0 to process 1.
std::string WayOf(bool takes, bool refuses,
                  const std::function<void(HostRuntime&, GpuCommunicatorOptions&)>& change) {
  Hosts hosts({0, 1}, Net::kFake, 6);
  hosts.takes_dmabuf = [=](int, int) { return takes; };
  hosts.refuses_dmabuf = [=](int from, int) { return refuses && from == 0; };
  HostJob job(4, 2, 1 << 20, &hosts, change);
  GpuSite site(job, SpecOf(Collective::kAllReduce, "ring", 4), {});
  site.Enqueue();
  EXPECT_TRUE(job.Run(2)) << job.communicator(0).Cause().value_or("");
  site.ExpectRight("whichever way");
  for (const std::string& line : GpuCommunicator::DescribeAll()) {
    const size_t way = line.find(" what goes to process 1");
    if (way != line.npos) return line.substr(line.rfind(';', way) + 2);
  }
  return "";
}

TEST(GroupCall, SaysWhichWayItSendsToOtherHostsAndWhy) {
  using Options = GpuCommunicatorOptions;
  EXPECT_EQ(WayOf(true, false, WithDmabufs), "NICs read GPU memory for what goes to process 1");
  const std::string copied = "the host copies what goes to process 1, because ";
  EXPECT_EQ(WayOf(false, false, WithDmabufs), copied + "the link to it takes no device memory");
  EXPECT_EQ(WayOf(true, false, {}), copied + "the test has no dma-bufs");
  EXPECT_EQ(WayOf(true, false,
                  [](HostRuntime& runtime, Options& options) {
                    WithDmabufs(runtime, options);
                    options.lend = false;
                  }),
            copied + "JAXCOLL_CUDA_DMABUF is 0");
  testing::internal::CaptureStderr();
  EXPECT_EQ(WayOf(true, true, WithDmabufs), copied + "the test refuses to register it");
  const auto no_exports = [](HostRuntime& runtime, Options&) {
    runtime.why_no_dmabuf = "";
    runtime.exports = 0;
  };
  EXPECT_EQ(WayOf(true, false, no_exports), copied + "the test exports no more");
  const std::string log = testing::internal::GetCapturedStderr();
  const std::string line = "what goes from this process's GPUs to process 1 is copied by the host";
  const size_t first = log.find(line + ", because the test refuses");
  const size_t second = log.find(line + ", because the test exports no more");
  ASSERT_NE(first, log.npos) << log;
  ASSERT_NE(second, log.npos) << log;
  EXPECT_EQ(log.find(line, second + 1), log.npos) << log;
  EXPECT_EQ(log.find(line, first + 1), second) << log;
}

// The call site is destroyed and comes back, on one host alone: its region goes on counting.
TEST(GroupCall, GoesOnBetweenHostsWhereItStopped) {
  Hosts hosts({0, 1}, Net::kFake, 2);
  HostJob job(4, 2, 1 << 20, &hosts);
  const CallSpec spec = SpecOf(Collective::kAllReduce, "ring", 4);
  for (int i = 0; i < 3; ++i) {
    GpuSite site(job, spec, {.seed = static_cast<uint32_t>(i)});
    site.Enqueue();
    ASSERT_TRUE(job.Run(2)) << i << ": " << job.communicator(0).Cause().value_or("");
    site.ExpectRight("the same call site");
  }
}

TEST(GroupCall, NamesTheFirstCauseOnAllHosts) {
  Hosts hosts({0, 1}, Net::kFake, 3);
  HostJob job(4, 2, 1 << 20, &hosts);
  const std::vector<std::string> lines = GpuCommunicator::DescribeAll();
  EXPECT_TRUE(std::any_of(lines.begin(), lines.end(), [](const std::string& line) {
    return line.find("2 hosts, joined by a proxy with 32 MiB of pinned host memory") != line.npos;
  }));
  GpuSite site(job, SpecOf(Collective::kAllReduce, "ring", 4), {});
  site.Enqueue();
  hosts.At(30, [&] { hosts.Cut(0, 1); });
  EXPECT_FALSE(job.Run(100));
  hosts.Settle();
  for (const int process : {0, 1}) {
    const std::string cause = job.communicator(process).Cause().value_or("");
    EXPECT_NE(cause.find("process " + std::to_string(1 - process) + ")"), cause.npos) << cause;
    EXPECT_NE(cause.find("is lost"), cause.npos) << cause;
  }
}

// The error that a kernel raised here is the one that the other host reports.
TEST(GroupCall, TellsOtherHostsWhyAKernelGaveUp) {
  Hosts hosts({0, 1}, Net::kFake, 4);
  HostJob job(2, 2, 1 << 20, &hosts);
  GpuSite site(job, SpecOf(Collective::kAllReduce, "ring", 2), {});
  const uint32_t elsewhere = 1;
  site.Enqueue(&elsewhere);
  EXPECT_FALSE(job.Run(1));
  const std::string cause = job.communicator(0).Cause().value_or("");
  EXPECT_NE(cause.find("runs as partition 1"), cause.npos) << cause;
  hosts.Settle();
  EXPECT_EQ(job.communicator(1).Cause().value_or(""), cause);
}

// More vectors than a launch takes.
TEST(GroupCall, IsSeveralLaunches) {
  HostJob job(3, 1);
  CallValues values{.elements = {}, .dtype = DType::kBFloat16};
  for (int v = 0; v < kMaxTableVectors + 9; ++v) values.elements.push_back(1 + v * 37 % 400);
  GpuSite site(job, SpecOf(Collective::kAllReduce, "ring", 3), values);
  EXPECT_EQ(site.call(0).launches(), 2);
  site.Enqueue();
  ASSERT_TRUE(job.runtime().Run(3));
  site.ExpectRight("41 vectors");
}

// Call sites come and go: their regions are used again, with the flags as the last one left them.
TEST(GroupCall, GoesOnInTheRegionOfOneThatIsGone) {
  constexpr int kRanks = 4;
  HostJob job(kRanks, 1, 256 << 10);
  std::mt19937 random(3);
  const std::vector<std::string> algorithms = Algorithms(Collective::kAllReduce);
  for (int i = 0; i < 80; ++i) {
    const std::string& algorithm = algorithms[random() % algorithms.size()];
    if (!ServesRanks(Collective::kAllReduce, algorithm, kRanks)) continue;
    const auto elements = static_cast<int64_t>(random() % 3000);
    GpuSite site(job, SpecOf(Collective::kAllReduce, algorithm, kRanks), {.elements = {elements}});
    site.Enqueue();
    const std::string what = algorithm + ", site " + std::to_string(i);
    ASSERT_TRUE(job.runtime().Run(1 + static_cast<int>(random() % 3))) << what;
    site.ExpectRight(what);
  }
}

// Calls of different call sites, in another order on each device.
TEST(GroupCall, SharesNothingWithOtherCallSites) {
  HostJob job(4, 2);
  std::vector<std::unique_ptr<GpuSite>> sites;
  for (const char* algorithm : {"ring", "double_tree", "recursive_doubling", "direct2"}) {
    sites.push_back(std::make_unique<GpuSite>(job, SpecOf(Collective::kAllReduce, algorithm, 4),
                                              CallValues{}, algorithm));
  }
  StreamOptions options;
  for (uint32_t seed = 0; seed < 6; ++seed) {
    options.disturb = [seed](int, int) { return Disturbance{.seed = seed, .yields = true}; };
    for (const auto& site : sites) site->Enqueue();
    ASSERT_TRUE(job.runtime().Run(2, options)) << "seed " << seed;
    for (const auto& site : sites) site->ExpectRight("seed " + std::to_string(seed));
  }
}

// More ranks than the kernels of single collectives serve.
TEST(GroupCall, ServesGroupsOfMoreThanSixteen) {
  HostJob job(kMaxRanks + 4, 4, 4 << 20);
  for (const char* algorithm : {"direct", "ring", "recursive_doubling"}) {
    GpuSite site(job, SpecOf(Collective::kAllReduce, algorithm, kMaxRanks + 4), {.elements = {90}},
                 algorithm);
    site.Enqueue();
    ASSERT_TRUE(job.runtime().Run(2)) << algorithm;
    site.ExpectRight(algorithm);
  }
}

TEST(GroupCall, RefusesAProgramThatRunsElsewhere) {
  HostJob job(2, 1);
  GpuSite site(job, SpecOf(Collective::kAllReduce, "ring", 2), {});
  const uint32_t elsewhere = 1;
  site.Enqueue(&elsewhere);
  EXPECT_FALSE(job.runtime().Run());
  const std::string cause = job.communicator(0).Cause().value_or("");
  EXPECT_NE(cause.find("runs as partition 1"), std::string::npos) << cause;
}

// ---- Call sites ------------------------------------------------------------------------------

constexpr int kDevices = 4;
constexpr int64_t kFirstDevice = 10;  // of their ids

// The job of this process; there is one.
HostRuntime& TheJob() {
  static HostRuntime& runtime = *[] {
    auto* const made = new HostRuntime;
    cuda::Job job;
    for (int i = 0; i < kDevices; ++i) job.devices.push_back({kFirstDevice + i, 0, i});
    job.options.workspace_bytes = 1 << 20;
    job.runtime = made;
    StartJob(std::move(job));
    return made;
  }();
  return runtime;
}

// The sum over two groups, whose devices are not in the order of their ids.
struct TwoGroups {
  static constexpr int kElements = 900;

  explicit TwoGroups(CallSpec with) : spec(std::move(with)) {
    spec.group_size = 2;
    spec.groups = {0, 3, 2, 1};
    spec.device_ids = {kFirstDevice + 2, kFirstDevice, kFirstDevice + 3, kFirstDevice + 1};
    spec.label = "axis 'x' (2 ranks)";
    for (int device = 0; device < kDevices; ++device) {
      inputs.emplace_back(kElements, 1 << device);
      outputs.emplace_back(kElements, -1);
    }
    StatusOr<std::unique_ptr<GpuCallSite>> made = GpuCallSite::Create(spec);
    EXPECT_TRUE(made.ok()) << made.status().message();
    site = std::move(*made);
  }

  Status Prepare() {
    return site->Prepare({{{DType::kInt32, {kElements}}}, {{DType::kInt32, {kElements}}}});
  }
  Status Enqueue(int device, const uint32_t* logical_id = nullptr) {
    const void* input = inputs[device].data();
    void* output = outputs[device].data();
    return site->Enqueue(device, reinterpret_cast<void*>(uintptr_t{16} * (device + 1)), &input,
                         &output, logical_id);
  }
  bool Right() const {
    // Logical ids 0 and 3 are devices 2 and 1.
    const int sums[kDevices] = {1 | 8, 2 | 4, 2 | 4, 1 | 8};
    for (int device = 0; device < kDevices; ++device) {
      if (outputs[device] != std::vector<int32_t>(kElements, sums[device])) return false;
    }
    return true;
  }

  CallSpec spec;
  std::vector<std::vector<int32_t>> inputs, outputs;
  std::unique_ptr<GpuCallSite> site;
};

TEST(GpuCallSite, SumsOverItsGroups) {
  HostRuntime& runtime = TheJob();
  CallSpec written = SpecOf(Collective::kAllReduce, "custom", 2);
  written.schedule = Serialize(BuildAll(Spec(Collective::kAllReduce, "recursive_doubling", 2)));
  for (const CallSpec& spec : {SpecOf(Collective::kAllReduce, "ring", 2), written}) {
    TwoGroups call(spec);
    ASSERT_TRUE(call.Prepare().ok());
    const uint32_t logical[kDevices] = {1, 3, 0, 2};  // as the program says, by device
    for (int replay = 0; replay < 2; ++replay) {
      for (int device = 0; device < kDevices; ++device) {
        ASSERT_TRUE(call.Enqueue(device, &logical[device]).ok());
      }
    }
    ASSERT_TRUE(runtime.Run(2));
    EXPECT_TRUE(call.Right()) << spec.algorithm;
  }
}

TEST(GpuCallSite, SaysWhichCallCannotBeServed) {
  TheJob();
  CallSpec spec = SpecOf(Collective::kAllReduce, "ring", 2);
  spec.reduce_op = "nonsense";
  EXPECT_EQ(TwoGroups(spec).Prepare().message(),
            "all_reduce(nonsense) of int32[900] over axis 'x' (2 ranks), algorithm ring: "
            "unknown reduce op 'nonsense'");
  TwoGroups call(SpecOf(Collective::kAllReduce, "ring", 2));
  ASSERT_TRUE(call.Prepare().ok());
  const Status status = call.site->Enqueue(kDevices, nullptr, nullptr, nullptr, nullptr);
  EXPECT_NE(status.message().find("GPU 4 is in none of its groups"), std::string::npos);
}

// The words with which a platform's call site refuses a call, when it is made or prepared.
template <typename Site>
std::string Refusal(const CallSpec& spec, const CallShape& shape) {
  const StatusOr<std::unique_ptr<Site>> site = Site::Create(spec);
  return site.ok() ? (*site)->Prepare(shape).message() : site.status().message();
}

TEST(GpuCallSite, RefusesWhatCpusRefuseInTheSameWords) {
  TheJob();
  using Arrays = std::vector<CallShape::Array>;
  const auto vectors = [](int64_t in, int64_t out) {
    return CallShape{{{DType::kFloat32, {in}}}, {{DType::kFloat32, {out}}}};
  };
  const auto ragged = [&](const Arrays& four) {
    CallShape shape{{{DType::kFloat32, {8}}, {DType::kFloat32, {8}}}, {{DType::kFloat32, {8}}}};
    shape.inputs.insert(shape.inputs.end(), four.begin(), four.end());
    return shape;
  };
  struct Case {
    const char* words;
    Collective collective = Collective::kAllReduce;
    std::function<void(CallSpec&)> spoil = [](CallSpec&) {};
    CallShape shape;
  };
  const auto ragged_spec = [](CallSpec& spec) {
    spec.collective = "ragged_all_to_all";
    spec.reduce_op = "";
  };
  const std::vector<Case> cases = {
      {"full rows", Collective::kAllReduce, [](CallSpec& s) { s.groups.pop_back(); },
       vectors(8, 8)},
      {"stands in two groups", Collective::kAllReduce, [](CallSpec& s) { s.groups[1] = 0; },
       vectors(8, 8)},
      {"has no device", Collective::kAllReduce, [](CallSpec& s) { s.groups[1] = 9; },
       vectors(8, 8)},
      {"unknown collective", Collective::kAllReduce, [](CallSpec& s) { s.collective = "shuffle"; },
       vectors(8, 8)},
      {"has no algorithm", Collective::kAllReduce, [](CallSpec& s) { s.algorithm = "magic"; },
       vectors(8, 8)},
      {"takes no dims", Collective::kAllReduce,
       [](CallSpec& s) {
         s.dims = {2, 2};
       },
       vectors(8, 8)},
      {"root", Collective::kBroadcast, [](CallSpec& s) { s.root = 7; }, vectors(8, 8)},
      {"permutation", Collective::kPermute,
       [](CallSpec& s) {
         s.permutation = {0, 1, 2};
       },
       vectors(8, 8)},
      {"permutation", Collective::kPermute,
       [](CallSpec& s) {
         s.permutation = {0, 5};
       },
       vectors(8, 8)},
      {"jaxcoll-schedule", Collective::kAllReduce, [](CallSpec& s) { s.schedule = "garbage"; },
       vectors(8, 8)},
      {"is for 2 ranks", Collective::kAllReduce,
       [](CallSpec& s) {
         s.schedule = Serialize(BuildAll(Spec(Collective::kAllReduce, "direct", 2)));
       },
       vectors(8, 8)},
      {"unknown reduce op", Collective::kAllReduce, [](CallSpec& s) { s.reduce_op = "mean"; },
       vectors(8, 8)},
      {"unknown reduce op", Collective::kReduceScatter, [](CallSpec& s) { s.reduce_op = ""; },
       vectors(8, 2)},
      {"xor is not defined for float32", Collective::kAllReduce,
       [](CallSpec& s) { s.reduce_op = "xor"; }, vectors(8, 8)},
      {"as many vectors as it takes", Collective::kAllReduce, [](CallSpec&) {}, {}},
      {"as many vectors as it takes",
       Collective::kAllReduce,
       [](CallSpec&) {},
       {{{DType::kFloat32, {8}}}, {}}},
      {"cannot turn float32[8] into float32[9]", Collective::kAllReduce, [](CallSpec&) {},
       vectors(8, 9)},
      {"cannot turn float32[9] into float32[2]", Collective::kReduceScatter, [](CallSpec&) {},
       vectors(9, 2)},
      {"cannot turn float32[8] into int32[8]",
       Collective::kBroadcast,
       [](CallSpec&) {},
       {{{DType::kFloat32, {8}}}, {{DType::kInt32, {8}}}}},
      {"six operands", Collective::kAllToAll, ragged_spec, vectors(8, 8)},
      {"offsets and sizes of int32", Collective::kAllToAll, ragged_spec,
       ragged(Arrays(4, {DType::kFloat32, {kDevices}}))},
      {"tables of a multiple of 4", Collective::kAllToAll, ragged_spec,
       ragged(Arrays(4, {DType::kInt32, {kDevices + 1}}))},
  };
  for (const Case& c : cases) {
    // Kernels of single collectives serve "direct", the interpreter serves "ring".
    for (const char* algorithm : {"direct", "ring"}) {
      const bool has_ring =
          c.collective == Collective::kAllReduce || c.collective == Collective::kReduceScatter;
      if (!has_ring && std::string_view(algorithm) == "ring") continue;
      CallSpec spec = SpecOf(c.collective, algorithm, kDevices);
      spec.label = "axis 'x' (4 ranks)";
      spec.device_ids.resize(kDevices);
      std::iota(spec.device_ids.begin(), spec.device_ids.end(), kFirstDevice);
      c.spoil(spec);
      const std::string words = Refusal<GpuCallSite>(spec, c.shape);
      EXPECT_EQ(words, Refusal<CallSite>(spec, c.shape));
      EXPECT_NE(words.find(c.words), std::string::npos) << words;
    }
  }
}

// ---- Failure: what is said, and what to do --------------------------------------------------

// Members of one process, as options and devices say.
Status CreateWith(HostRuntime& runtime, uint64_t workspace_bytes = 1 << 20) {
  GpuCommunicatorOptions options;
  options.workspace_bytes = workspace_bytes;
  return GpuCommunicator::Create({{0, 0, 0}, {1, 0, 1}, {2, 0, 2}}, 0, options, nullptr, runtime)
      .status();
}

TEST(GpuCommunicator, SaysWhatToDoWithoutPeerAccess) {
  HostRuntime runtime;
  runtime.apart = {1, 2};
  ExpectSays(CreateWith(runtime), {"GPU 1 cannot reach the memory of GPU 2", "use lax's"});
}

TEST(GpuCommunicator, SaysWhatToDoIfTheWorkspaceDoesNotFit) {
  HostRuntime runtime;
  runtime.device_bytes = 1 << 20;
  ExpectSays(CreateWith(runtime, 2 << 20), {"workspace of 2 MiB", "does not fit", "out of memory"});
  ExpectSays(CreateWith(runtime, 4096), {"JAXCOLL_CUDA_WORKSPACE_MIB is too small"});
}

// The error of the first of two processes, which are on one host or on two.
Status CreateOnTwoProcesses(HostRuntime& runtime, bool one_host) {
  HostStore store;
  Status statuses[2];
  std::vector<std::thread> processes;
  for (int process = 0; process < 2; ++process) {
    processes.emplace_back([&, process] {
      GpuCommunicatorOptions options;
      options.workspace_bytes = 1 << 20;
      options.host = one_host ? "one" : std::to_string(process);
      statuses[process] =
          GpuCommunicator::Create({{0, 0, 0}, {1, 1, 0}}, process, options, &store, runtime)
              .status();
    });
  }
  for (std::thread& process : processes) process.join();
  return statuses[0];
}

TEST(GpuCommunicator, SaysThatItIsNotLinkedToOtherHosts) {
  HostRuntime runtime;
  ExpectSays(CreateOnTwoProcesses(runtime, false), {"several hosts", "not linked"});
}

TEST(GpuCommunicator, SaysWhichPeerCannotBeMapped) {
  HostRuntime runtime;
  runtime.imports = false;
  ExpectSays(CreateOnTwoProcesses(runtime, true),
             {"rank 1 (device 1, process 1)", "peer access", "use lax's"});
}

// One gets it from its own process, the other by that of rank 0.
TEST(GpuCommunicator, SaysOnAllProcessesThatACallHasNoRoom) {
  HostJob job(64, 2, 64 << 10);
  GpuSite site(job, SpecOf(Collective::kAllToAll, "direct", 64), {});
  for (int process = 0; process < 2; ++process) {
    ExpectSays(site.status(process),
               {"has no room for this call", "JAXCOLL_CUDA_WORKSPACE_MIB", "in all processes"});
  }
  // It is for good: the same call site gets the same answer again.
  GpuSite again(job, SpecOf(Collective::kAllToAll, "direct", 64), {});
  ExpectSays(again.status(0), {"has no room"});
}

TEST(GpuCommunicator, HasSeatsForAsManyCallSitesAsTheWorkspaceHolds) {
  HostJob job(2, 1, 256 << 10);
  std::vector<std::unique_ptr<GpuSite>> sites;
  const CallSpec spec = SpecOf(Collective::kAllReduce, "ring", 2);
  while (sites.size() < 100) {
    sites.push_back(std::make_unique<GpuSite>(job, spec, CallValues{.elements = {8}}));
    if (!sites.back()->status(0).ok()) break;
  }
  ExpectSays(sites.back()->status(0), {"JAXCOLL_CUDA_WORKSPACE_MIB"});
  EXPECT_GT(sites.size(), 3u);
}

}  // namespace
}  // namespace jaxcoll::cuda
