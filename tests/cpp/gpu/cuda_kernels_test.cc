// The GPU kernels, run on threads: every collective, however operands are reached, several calls in
// a row, against the CPU's kernels. ThreadSanitizer sees the barrier between ranks as the only
// order there is; AddressSanitizer sees every byte beyond an operand.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "support/cuda_on_host.h"
// The definitions above are what these are compiled with.
#include "base/kernels.h"
#include "gpu/abi/cause.h"
#include "gpu/device/move.cuh"
#include "gpu/device/ragged.cuh"
#include "gpu/device/reduce.cuh"
#include "gpu/host/call_plan.h"

namespace jaxcoll::cuda {
namespace {

using Bytes = std::vector<unsigned char>;

// Memory of an exact size, aligned as a GPU's allocations are.
class Buffer {
 public:
  explicit Buffer(size_t bytes)
      : size_(bytes), data_(static_cast<unsigned char*>(::operator new(bytes, kAlign))) {}
  Buffer(Buffer&& other) noexcept
      : size_(other.size_), data_(std::exchange(other.data_, nullptr)) {}
  ~Buffer() { ::operator delete(data_, kAlign); }
  Buffer& operator=(Buffer&&) = delete;
  unsigned char* data() const { return data_; }
  size_t size() const { return size_; }
  Bytes Copy() const { return Bytes(data_, data_ + size_); }

 private:
  static constexpr std::align_val_t kAlign{256};
  size_t size_;
  unsigned char* data_;
};

// How operands are reached.
enum class Reached {
  kDirect,
  kStaged,
  kMapped,  // in allocations of other processes
  kInTurn,  // mapped in every second call; in the others one rank's are not
};
constexpr Reached kReached[] = {Reached::kDirect, Reached::kStaged, Reached::kMapped,
                                Reached::kInTurn};

std::string Name(Reached reached) {
  constexpr const char* kNames[] = {"Direct", "Staged", "Mapped", "InTurn"};
  return kNames[static_cast<int>(reached)];
}

struct KernelCase {
  std::string collective;
  std::string algorithm = "direct";
  int ranks = 2;
  std::vector<int64_t> elements = {10};  // of a block, by vector
  DType dtype = DType::kFloat32;
  ReduceOp op = ReduceOp::kSum;
  Reached reached = Reached::kDirect;
  int root = 0;
  std::vector<int64_t> permutation = {};
  int blocks = 2;
  int64_t slot_bytes = 0;  // staged: 0 for the plan's own
  int calls = 3;
};

void PrintTo(const KernelCase& c, std::ostream* out) {
  *out << c.collective << ' ' << c.algorithm << ' ' << c.ranks << " ranks, " << c.elements[0]
       << " elements of " << Name(c.dtype) << ", " << Name(c.op) << ", " << Name(c.reached);
}

// The group's memory, and its threads.
class KernelGroup {
 public:
  explicit KernelGroup(const KernelCase& c) : case_(c) {
    CallSpec spec;
    spec.collective = c.collective;
    spec.algorithm = c.algorithm;
    spec.reduce_op = std::string(Name(c.op));
    spec.group_size = c.ranks;
    spec.root = c.root;
    spec.permutation = c.permutation;
    const bool splits = c.collective == "reduce_scatter" || c.collective == "all_to_all";
    const bool joins = c.collective == "all_gather" || c.collective == "all_to_all";
    for (const int64_t elements : c.elements) {
      shape_.inputs.push_back({c.dtype, {splits ? c.ranks : 1, elements}});
      shape_.outputs.push_back({c.dtype, {joins ? c.ranks : 1, elements}});
    }
    Init(spec);
  }
  KernelGroup(const KernelCase& c, CallShape shape) : case_(c), shape_(std::move(shape)) {
    CallSpec spec;
    spec.collective = c.collective;
    spec.algorithm = c.algorithm;
    spec.group_size = c.ranks;
    Init(spec);
  }

  Buffer& input(int rank, int operand) { return inputs_[rank][operand]; }
  Buffer& output(int rank, int result) { return outputs_[rank][result]; }
  const CallShape& shape() const { return shape_; }
  // Whether anything was put where operands are staged.
  bool Staged() const {
    for (const Buffer& workspace : workspaces_) {
      const Bytes bytes = workspace.Copy();
      if (std::any_of(bytes.begin() + SeatOffset(2), bytes.end(), [](auto b) { return b != 0; })) {
        return true;
      }
    }
    return false;
  }
  const Cause& cause(int rank) const { return causes_[rank].cause; }
  uint32_t& fingerprint(int rank) { return fingerprints_[rank]; }
  double timeout_s = 100;

  // All ranks make `calls` calls, but for `leave_out`, which makes none. False if there was a trap.
  bool Run(int calls, int leave_out = -1) {
    HostGrid world;
    const int threads = std::max(4, plan_.world_size);
    std::vector<std::vector<Call>> parameters(plan_.world_size);
    std::vector<std::unique_ptr<HostBarrier>> streams, blocks;
    std::vector<std::unique_ptr<Shared>> shared;
    for (int rank = 0; rank < plan_.world_size; ++rank) {
      for (int launch = 0; launch < plan_.launches(); ++launch) {
        parameters[rank].push_back(Parameters(rank, launch));
      }
      streams.push_back(std::make_unique<HostBarrier>(world, plan_.blocks * threads));
      for (int block = 0; block < plan_.blocks; ++block) {
        blocks.push_back(std::make_unique<HostBarrier>(world, threads));
        shared.push_back(std::make_unique<Shared>());
      }
    }
    std::vector<std::thread> running;
    for (int rank = 0; rank < plan_.world_size; ++rank) {
      if (rank == leave_out) continue;
      for (int block = 0; block < plan_.blocks; ++block) {
        for (int thread = 0; thread < threads; ++thread) {
          running.emplace_back([&, rank, block, thread] {
            const int at = rank * plan_.blocks + block;
            this_thread = {&world, blocks[at].get()};
            threadIdx = {thread, 0};
            blockIdx = {block, 0};
            blockDim = {threads, 1};
            gridDim = {plan_.blocks, 1};
            try {
              for (int call = 0; call < calls; ++call) {
                for (Call one : parameters[rank]) {
                  if (case_.reached == Reached::kInTurn && call % 2 == 0) {
                    one.reachable = rank != call % plan_.world_size;
                  }
                  Kernel(*shared[at], one);
                  streams[rank]->Wait();  // a launch begins when the last one has ended
                }
              }
            } catch (const Trapped&) {
            }
          });
        }
      }
    }
    for (std::thread& thread : running) thread.join();
    return !world.trapped.load();
  }

  CallPlan plan_;

 private:
  union Shared {
    Shared() {}
    ReduceShared reduce;
    MoveShared move;
    RaggedShared ragged;
  };

  void Init(const CallSpec& spec) {
    StatusOr<CallPlan> plan = CallPlan::Create(spec, shape_, case_.blocks);
    ASSERT_TRUE(plan.ok()) << plan.status().message();
    plan_ = std::move(*plan);
    plan_.blocks = case_.blocks;  // more than so few elements would get
    slot_bytes_ = case_.slot_bytes != 0 ? case_.slot_bytes : plan_.SlotBytes(64 << 20);
    const uint64_t bytes = SeatOffset(2) + plan_.StagingBytes(slot_bytes_);
    causes_.resize(case_.ranks);
    fingerprints_.assign(case_.ranks, plan_.fingerprint);
    for (int rank = 0; rank < case_.ranks; ++rank) {
      workspaces_.emplace_back(bytes);
      std::memset(workspaces_.back().data(), 0, bytes);
      inputs_.emplace_back();
      outputs_.emplace_back();
      for (const CallShape::Array& array : shape_.inputs) {
        inputs_.back().emplace_back(array.elements() * ItemBytes(array.dtype));
      }
      for (const CallShape::Array& array : shape_.outputs) {
        outputs_.back().emplace_back(array.elements() * ItemBytes(array.dtype));
        std::memset(outputs_.back().back().data(), 0xa5, outputs_.back().back().size());
      }
    }
  }

  Call Parameters(int rank, int launch) {
    std::vector<const void*> inputs;
    std::vector<void*> outputs;
    for (Buffer& buffer : inputs_[rank]) inputs.push_back(buffer.data());
    for (Buffer& buffer : outputs_[rank]) outputs.push_back(buffer.data());
    StatusOr<Call> call = plan_.Bind(rank, launch, inputs.data(), outputs.data());
    EXPECT_TRUE(call.ok());
    call->seat = 1;
    call->staged = case_.reached != Reached::kDirect;
    call->mapped = call->reachable =
        case_.reached == Reached::kMapped || case_.reached == Reached::kInTurn;
    call->staging = SeatOffset(2);
    call->slot_bytes = slot_bytes_;
    call->deadline_ns = static_cast<uint64_t>(timeout_s * 1e9);
    call->fingerprint = fingerprints_[rank];
    for (int peer = 0; peer < case_.ranks; ++peer) {
      call->workspaces[peer] = workspaces_[peer].data();
      if (call->mapped) call->bases[peer] = inputs_[peer].back().data();  // any, if known to all
    }
    call->cause = &causes_[rank];
    return *call;
  }

  template <DType kDType>
  void Reduces(Shared& shared, const Call& call) {
    if (kDType == DType::kFloat32 && case_.op == ReduceOp::kSum) {  // as the hot kernels
      RunReduce<ElementOf<kDType>, static_cast<int>(ReduceOp::kSum), true>(shared.reduce, call,
                                                                           nullptr);
    } else {
      RunReduce<ElementOf<kDType>, kAnyOp, false>(shared.reduce, call, nullptr);
    }
  }

  void Kernel(Shared& shared, const Call& call) {
    if (call.mode == Mode::kRaggedAllToAll) return RunRagged(shared.ragged, call, nullptr);
    if (!cuda::Reduces(call.mode) || call.world_size == 1) {
      return RunMove(shared.move, call, nullptr);
    }
    switch (case_.dtype) {
      case DType::kFloat32:
        return Reduces<DType::kFloat32>(shared, call);
      case DType::kBFloat16:
        return Reduces<DType::kBFloat16>(shared, call);
      case DType::kInt8:
        return Reduces<DType::kInt8>(shared, call);
      case DType::kComplex128:
        return Reduces<DType::kComplex128>(shared, call);
      default:
        FAIL() << "no kernel of " << Name(case_.dtype) << " here";
    }
  }

  const KernelCase case_;
  CallShape shape_;
  int64_t slot_bytes_ = 0;
  std::vector<Buffer> workspaces_;
  std::vector<std::vector<Buffer>> inputs_, outputs_;
  std::vector<CauseRecord> causes_;
  std::vector<uint32_t> fingerprints_;
};

void Fill(KernelGroup& group, const KernelCase& c) {
  std::mt19937 random(7);
  for (int rank = 0; rank < c.ranks; ++rank) {
    for (size_t v = 0; v < c.elements.size(); ++v) {
      Buffer& buffer = group.input(rank, static_cast<int>(v));
      for (size_t i = 0; i < buffer.size(); ++i) buffer.data()[i] = random() & 0xff;
      if (c.dtype == DType::kFloat32) {  // values whose sum rounds
        for (size_t i = 0; i < buffer.size() / 4; ++i) {
          const float value = static_cast<float>(random()) / 3e5f - 7000;
          std::memcpy(buffer.data() + 4 * i, &value, 4);
        }
      }
    }
  }
}

// The result that rank `rank` should have, by the rules of schedule.h and the kernels of the CPU
// engine.
Bytes Expected(KernelGroup& group, const KernelCase& c, int rank, int v) {
  const size_t block = c.elements[v] * ItemBytes(c.dtype);
  Bytes result(group.output(rank, v).size(), 0);
  const auto reduce = [&](size_t skip) {
    std::vector<const void*> sources;
    for (int q = 0; q < c.ranks; ++q) sources.push_back(group.input(q, v).data() + skip);
    void* to = result.data();
    jaxcoll::Reduce({&to, 1}, sources, c.elements[v], c.dtype, c.op, Caching::kCached);
  };
  const auto copy = [&](size_t to, int from, size_t skip) {
    std::memcpy(result.data() + to, group.input(from, v).data() + skip, block);
  };
  if (c.collective == "all_reduce") reduce(0);
  if (c.collective == "reduce" && rank == c.root) reduce(0);
  if (c.collective == "reduce_scatter") reduce(rank * block);
  if (c.collective == "broadcast") copy(0, c.root, 0);
  for (int q = 0; q < c.ranks; ++q) {
    if (c.collective == "all_gather") copy(q * block, q, 0);
    if (c.collective == "all_to_all") copy(q * block, q, rank * block);
  }
  for (size_t i = 0; i < c.permutation.size(); i += 2) {
    if (c.permutation[i + 1] == rank) copy(0, static_cast<int>(c.permutation[i]), 0);
  }
  return result;
}

void Check(const KernelCase& c) {
  SCOPED_TRACE(testing::PrintToString(c));
  KernelGroup group(c);
  Fill(group, c);
  ASSERT_TRUE(group.Run(c.calls));
  if (c.reached == Reached::kDirect || c.reached == Reached::kMapped) {
    EXPECT_FALSE(group.Staged());
  }
  for (int rank = 0; rank < c.ranks; ++rank) {
    for (size_t v = 0; v < c.elements.size(); ++v) {
      EXPECT_EQ(group.output(rank, v).Copy(), Expected(group, c, rank, v))
          << "rank " << rank << ", vector " << v;
    }
  }
}

std::vector<KernelCase> CollectivesOf(int ranks) {
  std::vector<int64_t> rotation, chain;
  for (int64_t rank = 0; rank < ranks; ++rank) {
    rotation.insert(rotation.end(), {rank, (rank + 1) % ranks});
    if (rank > 0) chain.insert(chain.end(), {rank, rank - 1});
  }
  return {{.collective = "all_reduce", .ranks = ranks},
          {.collective = "all_reduce", .algorithm = "direct2", .ranks = ranks},
          {.collective = "reduce_scatter", .ranks = ranks},
          {.collective = "reduce", .ranks = ranks, .root = ranks - 1},
          {.collective = "all_gather", .ranks = ranks},
          {.collective = "all_to_all", .ranks = ranks},
          {.collective = "broadcast", .ranks = ranks, .root = ranks - 1},
          {.collective = "permute", .ranks = ranks, .permutation = rotation},
          {.collective = "permute", .ranks = ranks, .permutation = chain}};
}

class CudaKernels : public testing::TestWithParam<Reached> {};
INSTANTIATE_TEST_SUITE_P(Reach, CudaKernels, testing::ValuesIn(kReached),
                         [](const auto& info) { return Name(info.param); });

TEST_P(CudaKernels, EveryCollectiveForOneToEightRanks) {
  for (const int ranks : {1, 2, 3, 4, 5, 8}) {
    for (KernelCase c : CollectivesOf(ranks)) {
      c.reached = GetParam();
      c.elements = {37};
      Check(c);
    }
  }
}

TEST_P(CudaKernels, EverySizeAroundPacksAndPieces) {
  for (KernelCase c : CollectivesOf(3)) {
    c.reached = GetParam();
    c.slot_bytes = 256;
    c.calls = 2;
    for (const int64_t elements : {1, 3, 4, 5, 63, 64, 65, 127, 129, 191, 193, 500, 1001}) {
      c.elements = {elements};
      Check(c);
    }
  }
}

TEST_P(CudaKernels, ElementsOfEverySize) {
  for (KernelCase c : CollectivesOf(4)) {
    c.reached = GetParam();
    c.slot_bytes = 256;
    for (const auto& [dtype, op] :
         {std::pair(DType::kInt8, ReduceOp::kMax), std::pair(DType::kBFloat16, ReduceOp::kSum),
          std::pair(DType::kComplex128, ReduceOp::kProd)}) {
      c.dtype = dtype;
      c.op = op;
      c.elements = {77};
      Check(c);
    }
  }
}

TEST_P(CudaKernels, ManyVectorsInOneCall) {
  KernelCase c{
      .collective = "all_reduce", .algorithm = "direct2", .ranks = 3, .reached = GetParam()};
  c.elements.clear();
  for (int v = 0; v < 2 * kMaxVectors + 3; ++v) c.elements.push_back(1 + v * 7 % 40);
  Check(c);
  c.collective = "all_gather";
  c.algorithm = "direct";
  Check(c);
}

TEST_P(CudaKernels, ARankThatNeverComesIsNamed) {
  KernelCase c{.collective = "all_reduce", .ranks = 3, .reached = GetParam()};
  KernelGroup group(c);
  Fill(group, c);
  group.timeout_s = 0.2;
  EXPECT_FALSE(group.Run(1, /*leave_out=*/1));
  int told = 0;
  for (const int rank : {0, 2}) {
    if (group.cause(rank).kind == Cause::kNone) continue;  // a trap ended it before
    ++told;
    EXPECT_EQ(group.cause(rank).kind, Cause::kDeadline);
    EXPECT_EQ(group.cause(rank).rank, rank);
    EXPECT_EQ(group.cause(rank).peer, 1);
    EXPECT_EQ(group.cause(rank).seen, 0u);
    EXPECT_NE(Describe(group.cause(rank), {"a", "b", "c"}, "all_reduce", 0.2).find("waited for b"),
              std::string::npos);
  }
  EXPECT_GE(told, 1);
}

TEST_P(CudaKernels, AnotherCallOnOneRankIsAMismatch) {
  KernelCase c{.collective = "all_gather", .ranks = 4, .reached = GetParam()};
  KernelGroup group(c);
  Fill(group, c);
  ASSERT_TRUE(group.Run(2));
  group.fingerprint(2) ^= 0x1000;
  EXPECT_FALSE(group.Run(1));
  bool told = false;
  for (int rank = 0; rank < 4; ++rank) {
    if (group.cause(rank).kind == Cause::kNone) continue;
    told = true;
    EXPECT_EQ(group.cause(rank).kind, Cause::kMismatch);
    EXPECT_TRUE((group.cause(rank).peer == 2) != (rank == 2));
  }
  EXPECT_TRUE(told);
}

// ---- ragged_all_to_all -------------------------------------------------------------------------

// Every rank sends (from + 2 to + u) mod 4 rows in update u, one after the other on both sides.
struct RaggedKernelGroup {
  static constexpr int kRanks = 3, kUpdates = 2, kRows = 24, kRowElements = 5;

  explicit RaggedKernelGroup(Reached reached) : group(MakeCase(reached), MakeShape()) {
    for (int rank = 0; rank < kRanks; ++rank) {
      int64_t sent = 0;
      for (int i = 0; i < kRanks * kUpdates; ++i) {
        Set(rank, 2, i, sent);
        Set(rank, 3, i, Rows(rank, i / kUpdates, i % kUpdates));
        sent += Rows(rank, i / kUpdates, i % kUpdates);
        // The offset it goes to: behind what the ranks before send there.
        int64_t place = 0;
        for (int j = 0; j < rank * kUpdates + i % kUpdates; ++j) {
          place += Rows(j / kUpdates, i / kUpdates, j % kUpdates);
        }
        Set(rank, 4, i, place);
        Set(rank, 5, i, Rows(i / kUpdates, rank, i % kUpdates));
      }
      for (int operand = 0; operand < 2; ++operand) {
        Buffer& buffer = group.input(rank, operand);
        for (size_t i = 0; i < buffer.size(); ++i) {
          buffer.data()[i] = static_cast<unsigned char>(i * 7 + rank * 31 + operand * 100);
        }
      }
    }
  }
  static int64_t Rows(int from, int to, int update) { return (from + 2 * to + update) % 4; }
  void Set(int rank, int table, int i, int64_t value) {
    const auto narrow = static_cast<int32_t>(value);
    std::memcpy(group.input(rank, table).data() + 4 * i, &narrow, 4);
  }
  static KernelCase MakeCase(Reached reached) {
    return {
        .collective = "ragged_all_to_all",
        .ranks = kRanks,
        .dtype = DType::kUint16,
        .reached = reached,
        .slot_bytes = reached != Reached::kDirect ? 256 : 0};  // a row is cut by the end of a tile
  }
  static CallShape MakeShape() {
    const CallShape::Array rows{DType::kUint16, {kRows, kRowElements}};
    const CallShape::Array table{DType::kInt32, {kRanks * kUpdates}};
    return {{rows, rows, table, table, table, table}, {rows}};
  }
  // `at`: where the rows of every update are written; -1: one behind the other.
  Bytes ExpectedOf(int rank, int at = -1) {
    constexpr size_t kRowBytes = 2 * kRowElements;
    Bytes result = group.input(rank, 1).Copy();
    size_t place = 0;
    for (int from = 0; from < kRanks; ++from) {
      for (int u = 0; u < kUpdates; ++u) {
        size_t first = 0;
        for (int i = 0; i < rank * kUpdates + u; ++i) {
          first += Rows(from, i / kUpdates, i % kUpdates);
        }
        const size_t rows = Rows(from, rank, u);
        std::memcpy(result.data() + (at < 0 ? place : at) * kRowBytes,
                    group.input(from, 0).data() + first * kRowBytes, rows * kRowBytes);
        place += rows;
      }
    }
    return result;
  }

  KernelGroup group;
};

class CudaRagged : public testing::TestWithParam<Reached> {};
INSTANTIATE_TEST_SUITE_P(Reach, CudaRagged, testing::ValuesIn(kReached),
                         [](const auto& info) { return Name(info.param); });

TEST_P(CudaRagged, EveryRankGetsItsRows) {
  RaggedKernelGroup ragged(GetParam());
  ASSERT_TRUE(ragged.group.Run(3));
  for (int rank = 0; rank < RaggedKernelGroup::kRanks; ++rank) {
    EXPECT_EQ(ragged.group.output(rank, 0).Copy(), ragged.ExpectedOf(rank)) << "rank " << rank;
  }
}

// Where rows overlap, the rank and update that come last win.
TEST_P(CudaRagged, OverlappingRowsAreWrittenInOrder) {
  RaggedKernelGroup ragged(GetParam());
  for (int rank = 0; rank < RaggedKernelGroup::kRanks; ++rank) {
    for (int i = 0; i < RaggedKernelGroup::kRanks * RaggedKernelGroup::kUpdates; ++i)
      ragged.Set(rank, 4, i, 2);
  }
  ASSERT_TRUE(ragged.group.Run(2));
  for (int rank = 0; rank < RaggedKernelGroup::kRanks; ++rank) {
    EXPECT_EQ(ragged.group.output(rank, 0).Copy(), ragged.ExpectedOf(rank, 2)) << "rank " << rank;
  }
}

// Every rank finds it; a trap ends all but the first.
Cause AnyCause(const KernelGroup& group) {
  for (int rank = 0; rank < RaggedKernelGroup::kRanks; ++rank) {
    if (group.cause(rank).kind != Cause::kNone) return group.cause(rank);
  }
  return {};
}

TEST_P(CudaRagged, SizesThatDisagreeAreRefused) {
  RaggedKernelGroup ragged(GetParam());
  ragged.Set(1, 5, 0, 9);
  EXPECT_FALSE(ragged.group.Run(1));
  const Cause cause = AnyCause(ragged.group);
  EXPECT_EQ(cause.kind, Cause::kRaggedSizes);
  EXPECT_EQ(cause.rank, 1);
  EXPECT_EQ(cause.peer, 0);
  EXPECT_EQ(cause.total, 9);
}

TEST_P(CudaRagged, RowsOutsideOfTheOperandAreRefused) {
  RaggedKernelGroup ragged(GetParam());
  ragged.Set(2, 2, 0, 1 << 30);
  EXPECT_FALSE(ragged.group.Run(1));
  const Cause cause = AnyCause(ragged.group);
  EXPECT_EQ(cause.kind, Cause::kRaggedRows);
  EXPECT_EQ(cause.rank, 0);
  EXPECT_EQ(cause.peer, 2);
}

}  // namespace
}  // namespace jaxcoll::cuda
