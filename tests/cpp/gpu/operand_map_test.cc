// The operands of other processes that calls may reach: those in the allocation that was mapped.

#include "gpu/host/operand_map.h"

#include <memory>
#include <thread>
#include <vector>

#include "gpu/host/gpu_communicator.h"
#include "gpu/host/group_call.h"
#include "support/host_runtime.h"
#include "support/host_store.h"

namespace jaxcoll::cuda {
namespace {

constexpr uint64_t kPoolBytes = 64 << 10;
constexpr int64_t kElements = 1000;

// A rank's programs, and the pool they take memory from.
struct Process {
  unsigned char* pool = nullptr;
  std::unique_ptr<GpuCommunicator> communicator;
  std::unique_ptr<GroupCall> call;

  // With an input and an output at these places.
  Call Bind(int rank, const void* input, void* output) const {
    StatusOr<Launch> launch = call->Bind(rank, 0, {&input, &output, nullptr, 0});
    EXPECT_TRUE(launch.ok()) << launch.status().message();
    return std::get<Call>(launch->parameters);
  }
};

class OperandMapTest : public testing::Test {
 protected:
  // Each process has one of the ranks, but the last one, which has what is left.
  void Create(int processes, int ranks) {
    processes_.resize(processes);
    std::vector<Member> members;
    for (int rank = 0; rank < ranks; ++rank) {
      const int process = std::min(rank, processes - 1);
      members.push_back({rank, process, rank - process});
    }
    OnAll([&](int process) {
      Process& mine = processes_[process];
      GpuCommunicatorOptions options;
      options.workspace_bytes = 1 << 20;
      options.operand = mine.pool == nullptr ? nullptr : mine.pool + 256;
      auto made = GpuCommunicator::Create(members, process, options, &store_, runtime_);
      ASSERT_TRUE(made.ok()) << made.status().message();
      mine.communicator = std::move(*made);
      CallSpec spec;
      spec.collective = "all_reduce";
      spec.algorithm = "direct";
      spec.reduce_op = "sum";
      spec.group_size = ranks;
      const CallShape::Array array{DType::kFloat32, {kElements}};
      auto call = GroupCall::Create(*mine.communicator, spec, {{array}, {array}}, "site", "a call",
                                    /*interpret=*/false, options.operand);
      ASSERT_TRUE(call.ok()) << call.status().message();
      mine.call = std::move(*call);
    });
  }
  unsigned char* NewPool() { return *runtime_.Allocate(0, kPoolBytes); }

  template <typename F>
  void OnAll(F f) {
    std::vector<std::thread> threads;
    for (size_t i = 0; i < processes_.size(); ++i) threads.emplace_back(f, static_cast<int>(i));
    for (std::thread& thread : threads) thread.join();
  }

  HostRuntime runtime_;
  HostStore store_;
  std::vector<Process> processes_;
};

TEST_F(OperandMapTest, CallsReachWhatIsInThePools) {
  processes_.resize(2);
  for (Process& process : processes_) process.pool = NewPool();
  Create(2, 2);
  for (int rank = 0; rank < 2; ++rank) {
    unsigned char* const pool = processes_[rank].pool;
    const Call call = processes_[rank].Bind(rank, pool + 512, pool + 8192);
    EXPECT_EQ(call.staged, 1);  // if another rank cannot
    EXPECT_EQ(call.mapped, 1);
    EXPECT_EQ(call.reachable, 1);
    for (int peer = 0; peer < 2; ++peer) EXPECT_EQ(call.bases[peer], processes_[peer].pool);
  }
  int told = 0;
  for (const std::string& line : GpuCommunicator::DescribeAll()) {
    told += line.find("operands mapped") != std::string::npos;
  }
  EXPECT_EQ(told, 2);

  unsigned char* const elsewhere = NewPool();
  unsigned char* const pool = processes_[1].pool;
  for (const Call& call :
       {processes_[1].Bind(1, elsewhere, pool + 8192), processes_[1].Bind(1, pool + 512, elsewhere),
        processes_[1].Bind(1, pool + kPoolBytes, pool + 8192)}) {
    EXPECT_EQ(call.mapped, 1);  // the others count on being told
    EXPECT_EQ(call.reachable, 0);
  }
}

TEST_F(OperandMapTest, AnotherAllocationAtItsAddressIsAnotherOne) {
  processes_.resize(2);
  for (Process& process : processes_) process.pool = NewPool();
  Create(2, 2);
  const OperandMap& map = *processes_[0].communicator->operands();
  unsigned char* const pool = processes_[0].pool;
  EXPECT_TRUE(map.Knows(pool));
  EXPECT_TRUE(map.Knows(pool + kPoolBytes - 1));
  EXPECT_FALSE(map.Knows(nullptr));
  runtime_.Free(0, pool);
  EXPECT_FALSE(map.Knows(pool));
  runtime_.Renew(pool, kPoolBytes);
  EXPECT_TRUE(map.Holds(pool));
  EXPECT_FALSE(map.Knows(pool));
}

TEST_F(OperandMapTest, AllStageIfOneHasNothingToOffer) {
  processes_.resize(3);
  processes_[0].pool = NewPool();
  processes_[2].pool = NewPool();
  Create(3, 3);
  for (int rank = 0; rank < 3; ++rank) {
    EXPECT_EQ(processes_[rank].communicator->operands(), nullptr);
    unsigned char* const some = processes_[0].pool;
    const Call call = processes_[rank].Bind(rank, some, some + 8192);
    EXPECT_EQ(call.staged, 1);
    EXPECT_EQ(call.mapped, 0);
  }
}

TEST_F(OperandMapTest, AllStageIfAProcessHasSeveralRanks) {
  processes_.resize(2);
  for (Process& process : processes_) process.pool = NewPool();
  Create(2, 3);
  for (const Process& process : processes_) EXPECT_EQ(process.communicator->operands(), nullptr);
}

}  // namespace
}  // namespace jaxcoll::cuda
