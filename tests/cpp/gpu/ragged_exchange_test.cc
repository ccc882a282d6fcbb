// ragged_all_to_all by messages: between hosts, between processes and in one, by the code that sets
// calls up and enqueues them on GPUs, on devices made of threads, against the engine for CPUs.

#include "gpu/device/ragged_exchange.h"

#include <cstring>
#include <random>

#include "engine/memory/local_plan.h"
#include "gpu/host/group_call.h"
#include "support/device_case.h"
#include "support/host_job.h"
#include "support/op_lists.h"

namespace jaxcoll::cuda {
namespace {

struct Shape {
  int ranks = 4;
  int updates = 1;  // for each peer
  int64_t operand_rows = 200;
  int64_t output_rows = 300;
  int64_t row_elements = 3;
  DType dtype = DType::kUint16;
  DType index = DType::kInt32;

  int64_t entries() const { return int64_t{ranks} * updates; }
  size_t row_bytes() const { return static_cast<size_t>(row_elements) * ItemBytes(dtype); }
};

// One call site on all ranks, and its operands.
class RaggedSite {
 public:
  enum Operand { kOperand, kOutput, kInputOffsets, kSendSizes, kOutputOffsets, kRecvSizes };

  RaggedSite(HostJob& job, const Shape& shape, const std::string& key = "ragged")
      : job_(job), shape_(shape), calls_(job.processes()) {
    const CallShape::Array table{shape.index, {shape.entries()}};
    const CallShape::Array operand{shape.dtype, {shape.operand_rows, shape.row_elements}};
    const CallShape::Array output{shape.dtype, {shape.output_rows, shape.row_elements}};
    const CallShape shapes{{operand, output, table, table, table, table}, {output}};
    for (int rank = 0; rank < shape.ranks; ++rank) {
      operands_.emplace_back();
      for (const CallShape::Array& array : shapes.inputs) {
        operands_.back().push_back(
            std::make_unique<DeviceMemory>(array.elements() * ItemBytes(array.dtype)));
      }
      results_.push_back(
          std::make_unique<DeviceMemory>(output.elements() * ItemBytes(shape.dtype)));
      expected_.push_back(std::make_unique<DeviceMemory>(results_.back()->bytes()));
    }
    CallSpec spec;
    spec.collective = "ragged_all_to_all";
    spec.algorithm = "direct";
    spec.group_size = shape.ranks;
    std::vector<Status> statuses(job.processes());
    job.OnAllProcesses([&](int process) {
      auto call = GroupCall::Create(job_.communicator(process), spec, shapes, key, "the exchange",
                                    /*interpret=*/true);
      statuses[process] = call.status();
      if (call.ok()) calls_[process] = std::move(*call);
    });
    for (const Status& status : statuses) EXPECT_TRUE(status.ok()) << status.message();
  }

  GroupCall& call(int process) { return *calls_[process]; }

  void Set(int rank, Operand table, int64_t i, int64_t value) {
    unsigned char* const data = operands_[rank][table]->data();
    const auto narrow = static_cast<int32_t>(value);
    if (shape_.index == DType::kInt64) {
      std::memcpy(data + 8 * i, &value, 8);
    } else {
      std::memcpy(data + 4 * i, &narrow, 4);
    }
  }

  // Tables that fit each other, with `empty` of ten updates empty. `overlap`: updates are written
  // anywhere, else one behind the other with gaps.
  void Draw(uint32_t seed, int empty, bool overlap) {
    std::mt19937 random(seed);
    const auto below = [&](int64_t bound) {
      return bound <= 0 ? 0 : static_cast<int64_t>(random() % static_cast<uint64_t>(bound));
    };
    for (int rank = 0; rank < shape_.ranks; ++rank) {
      for (const Operand operand : {kOperand, kOutput}) {
        DeviceMemory& memory = *operands_[rank][operand];
        for (size_t i = 0; i < memory.bytes(); ++i) {
          memory.data()[i] = static_cast<unsigned char>(random());
        }
      }
    }
    for (int to = 0; to < shape_.ranks; ++to) {
      int64_t place = 0;
      for (int64_t i = 0; i < shape_.entries(); ++i) {
        const int from = static_cast<int>(i / shape_.updates);
        const int64_t mine = int64_t{to} * shape_.updates + i % shape_.updates;
        const int64_t left = shape_.output_rows - (overlap ? 0 : place);
        // Few updates have most of the rows.
        int64_t rows = below(10) < empty ? 0 : below(1 + left / (1 + below(4)));
        rows = std::min(rows, shape_.operand_rows);
        const int64_t gap = overlap ? below(left - rows + 1) : below(1 + (left - rows) / 8);
        Set(from, kInputOffsets, mine, below(shape_.operand_rows - rows + 1));
        Set(from, kSendSizes, mine, rows);
        Set(from, kOutputOffsets, mine, overlap ? gap : place + gap);
        Set(to, kRecvSizes, i, rows);
        place += gap + rows;
      }
    }
  }

  void Enqueue() {
    for (int rank = 0; rank < shape_.ranks; ++rank) {
      std::memset(results_[rank]->data(), 0xa5, results_[rank]->bytes());
      std::vector<const void*> inputs;
      for (const auto& memory : operands_[rank]) inputs.push_back(memory->data());
      void* output = results_[rank]->data();
      const Status status = calls_[rank % job_.processes()]->Enqueue(
          rank, reinterpret_cast<void*>(uintptr_t{16} * (rank + 1)),
          {inputs.data(), &output, nullptr, 0});
      ASSERT_TRUE(status.ok()) << status.message();
    }
  }

  // The results that the engine for CPUs makes of the same operands.
  std::string Wrong() {
    ScheduleSpec exchange;
    exchange.collective = Collective::kAllToAll;
    exchange.world_size = shape_.ranks;
    std::vector<OpList> op_lists;
    for (int rank = 0; rank < shape_.ranks; ++rank) {
      op_lists.push_back(*BuildSchedule(exchange, rank));
    }
    const RaggedShape shape = {shape_.updates, shape_.operand_rows, shape_.output_rows,
                               shape_.row_bytes(), shape_.index};
    const LocalPlan plan(
        std::make_shared<const LocalActions>(*Compile(op_lists, exchange.collective)), shape);
    RunBuffers buffers;
    for (const int table :
         {kOperand, kOutput, kInputOffsets, kSendSizes, kOutputOffsets, kRecvSizes}) {
      for (const auto& memory : operands_) {
        buffers.inputs.push_back(reinterpret_cast<std::byte*>(memory[table]->data()));
      }
    }
    for (const auto& memory : expected_) {
      buffers.outputs.push_back(reinterpret_cast<std::byte*>(memory->data()));
    }
    if (const Status status = plan.Check(buffers); !status.ok()) return status.message();
    for (int batch = 0; batch < plan.BatchCount(0); ++batch) plan.RunBatch(0, batch, buffers);
    for (int rank = 0; rank < shape_.ranks; ++rank) {
      for (size_t i = 0; i < results_[rank]->bytes(); ++i) {
        if (results_[rank]->data()[i] != expected_[rank]->data()[i]) {
          return "rank " + std::to_string(rank) + ", byte " + std::to_string(i);
        }
      }
    }
    return "";
  }

  const Cause& cause(int rank) const {
    return job_.communicator(rank % job_.processes()).cause_record(rank)->cause;
  }
  std::string Causes() {
    std::string text;
    for (int process = 0; process < job_.processes(); ++process) {
      text += job_.communicator(process).Cause().value_or("-") + "; ";
    }
    return text;
  }

 private:
  HostJob& job_;
  const Shape shape_;
  std::vector<std::vector<std::unique_ptr<DeviceMemory>>> operands_;  // [rank][operand]
  std::vector<std::unique_ptr<DeviceMemory>> results_, expected_;     // by rank
  std::vector<std::unique_ptr<GroupCall>> calls_;                     // by process
};

// Small: one strand, and a slot is some hundred bytes. Large: three strands.
constexpr uint64_t kSmall = 256 << 10, kLarge = 6 << 20;

void ExpectRight(HostJob& job, RaggedSite& site, const std::string& what,
                 const StreamOptions& options = {}, int replays = 2) {
  site.Enqueue();
  ASSERT_TRUE(job.Run(replays, options)) << what << ": " << site.Causes();
  ASSERT_EQ(site.Wrong(), "") << what;
}

// The same call site, replayed and then called again with other sizes, which only the device knows.
void ExpectRightWhateverTheSizes(HostJob& job, const Shape& shape, const std::string& what) {
  RaggedSite site(job, shape, what);
  uint32_t seed = 0;
  for (const int empty : {3, 0, 10, 5}) {
    site.Draw(++seed, empty, /*overlap=*/empty == 5);
    ExpectRight(job, site, what + ", " + std::to_string(empty) + " of ten empty",
                {.threads_per_block = 1 + static_cast<int>(seed % 2)});
  }
}

TEST(RaggedExchange, RunsInOneProcessAndBetweenProcesses) {
  for (const int processes : {1, 2}) {
    for (const int ranks : {2, 5}) {
      HostJob job(ranks, processes, kSmall);
      ExpectRightWhateverTheSizes(job, {.ranks = ranks}, std::to_string(ranks) + " ranks");
    }
  }
  HostJob alone(1, 1, kSmall);
  ExpectRightWhateverTheSizes(alone, {.ranks = 1}, "one rank");
}

// More ranks than reach each other's memory directly.
TEST(RaggedExchange, ServesGroupsOfMoreThanSixteen) {
  HostJob job(kMaxRanks + 2, 2, 2 << 20);
  const Shape shape{.ranks = kMaxRanks + 2, .operand_rows = 40, .output_rows = 200};
  RaggedSite site(job, shape);
  site.Draw(1, 5, false);
  ExpectRight(job, site, "18 ranks", {}, 2);
}

// Two processes of one host and one of another; rows of any size, tables of both types.
TEST(RaggedExchange, RunsBetweenHosts) {
  Hosts hosts({0, 1, 0}, Net::kFake, 1);
  HostJob job(4, 3, kSmall, &hosts);
  ExpectRightWhateverTheSizes(job, {}, "one update");
  ExpectRightWhateverTheSizes(
      job, {.updates = 3, .row_elements = 8, .dtype = DType::kFloat32, .index = DType::kInt64},
      "three updates");
}

// A rank's tables for one other are longer than a slot, and come before any row.
TEST(RaggedExchange, TakesTablesOfSeveralSlots) {
  Hosts hosts({0, 1}, Net::kFake, 2);
  HostJob job(3, 2, kSmall, &hosts);
  const Shape shape{.ranks = 3, .updates = 100, .row_elements = 5, .dtype = DType::kUint8};
  ExpectRightWhateverTheSizes(job, shape, "150 updates");
}

TEST(RaggedExchange, DealsRowsToSeveralStrands) {
  Hosts hosts({0, 1}, Net::kFake, 3);
  HostJob job(4, 2, kLarge, &hosts);
  const Shape shape{
      .operand_rows = 9000, .output_rows = 12000, .row_elements = 7, .dtype = DType::kUint8};
  RaggedSite site(job, shape);
  ASSERT_EQ(site.call(0).blocks(), 3);
  for (uint32_t seed = 1; seed < 4; ++seed) {
    site.Draw(seed, 2, seed == 3);
    ExpectRight(job, site, "three strands, seed " + std::to_string(seed), {}, 2);
  }
}

// Rows that the tables name, and the tables; nothing up to what they might name.
TEST(RaggedExchange, SendsNoMoreThanTheTablesSay) {
  Hosts hosts({0, 1}, Net::kFake, 9);
  HostJob job(2, 2, kSmall, &hosts);
  const Shape shape{.ranks = 2, .updates = 2};
  RaggedSite site(job, shape);
  ASSERT_EQ(site.call(0).blocks(), 1);
  size_t before = 0;
  for (const int64_t rows : {0, 3, 150}) {
    for (const int rank : {0, 1}) {
      for (int i = 0; i < 4; ++i) {
        const bool sends = rank == 0 && i == 3;  // to rank 1
        const bool receives = rank == 1 && i == 1;
        site.Set(rank, RaggedSite::kSendSizes, i, sends ? rows : 0);
        site.Set(rank, RaggedSite::kRecvSizes, i, receives ? rows : 0);
      }
    }
    ExpectRight(job, site, std::to_string(rows) + " rows", {}, 1);
    const size_t tables = 2 * 2 * sizeof(RaggedEntry);
    EXPECT_EQ(hosts.Carried() - before, tables + static_cast<size_t>(rows) * shape.row_bytes());
    before = hosts.Carried();
  }
}

TEST(RaggedExchange, GivesTheSameInEveryInterleaving) {
  for (int i = 0; i < Seeds(10); ++i) {
    const auto seed = static_cast<uint32_t>(500 + i);
    std::mt19937 random(seed);
    std::vector<int> host_of_process = {0, 1};
    while (random() % 2 && host_of_process.size() < 4) {
      host_of_process.push_back(static_cast<int>(random() % 3));
    }
    const int processes = static_cast<int>(host_of_process.size());
    Hosts hosts(host_of_process, Net::kFake, seed);
    Shape shape;
    shape.ranks = processes + static_cast<int>(random() % 4);
    shape.updates = 1 + static_cast<int>(random() % 4);
    shape.row_elements = 1 + static_cast<int64_t>(random() % 20);
    shape.index = random() % 2 ? DType::kInt64 : DType::kInt32;
    HostJob job(shape.ranks, processes, random() % 2 ? kSmall : kLarge, &hosts);
    RaggedSite site(job, shape);
    StreamOptions options;
    options.threads_per_block = 1 + static_cast<int>(random() % 3);
    options.disturb = [seed](int, int) { return Disturbance{.seed = seed, .yields = true}; };
    for (int call = 0; call < 2; ++call) {
      site.Draw(seed + 1000 * call, static_cast<int>(random() % 9), random() % 4 == 0);
      ExpectRight(job, site, "seed " + std::to_string(seed), options);
    }
  }
}

// To process 1 from device memory; between 0 and 2, and back, by copies.
TEST(RaggedExchange, SendsFromDeviceMemoryWhereLinksTakeIt) {
  Hosts hosts({0, 1, 2}, Net::kFake, 1);
  hosts.takes_dmabuf = [](int, int to) { return to == 1; };
  HostJob job(6, 3, kLarge, &hosts,
              [](HostRuntime& runtime, GpuCommunicatorOptions&) { runtime.why_no_dmabuf = ""; });
  RaggedSite site(job, {.ranks = 6, .updates = 2});
  for (uint32_t seed = 1; seed < 4; ++seed) {
    site.Draw(seed, 5, seed == 3);
    ExpectRight(job, site, "lent memory, seed " + std::to_string(seed), {}, 3);
  }
  EXPECT_GT(hosts.net().lent_puts, 0u);
  EXPECT_GT(hosts.net().own_puts, 0u);
}

// Reactors with threads of their own, which sleep and are woken.
TEST(RaggedExchange, UsesRealLinks) {
  for (const Net net : {Net::kShm, Net::kTcp}) {
    Hosts hosts({0, 1}, net, 1);
    HostJob job(4, 2, kSmall, &hosts);
    RaggedSite site(job, {.updates = 2});
    site.Draw(7, 3, false);
    ExpectRight(job, site, "real links", {}, 5);
  }
}

// ---- Failure -----------------------------------------------------------------------------------

// The receiver finds it as the sender does, and no row is written.
TEST(RaggedExchangeFailure, BothSidesSayThatSizesDisagree) {
  for (const int updates : {1, 100}) {
    Hosts hosts({0, 1}, Net::kFake, 4);
    HostJob job(2, 2, kSmall, &hosts);
    RaggedSite site(job, {.ranks = 2, .updates = updates});
    site.Draw(3, 3, false);
    site.Set(1, RaggedSite::kRecvSizes, updates - 1, 77);  // of rank 0
    site.Set(0, RaggedSite::kSendSizes, 2 * updates - 1, 5);
    site.Enqueue();
    EXPECT_FALSE(job.Run(1));
    for (const int rank : {0, 1}) {
      const Cause& cause = site.cause(rank);
      EXPECT_EQ(cause.kind, Cause::kRaggedSizes) << site.Causes();
      EXPECT_EQ(cause.rank, 1);
      EXPECT_EQ(cause.peer, 0);
      EXPECT_EQ(cause.entry, 2 * updates - 1);
      EXPECT_EQ(cause.rows, 5);
      EXPECT_EQ(cause.total, 77);
    }
    ExpectSays(InvalidArgument(job.communicator(1).Cause().value_or("")),
               {"rank 1", "expects 77 rows in recv_sizes where rank 0", "sends 5"});
  }
}

TEST(RaggedExchangeFailure, BothSidesSayThatRowsLieOutside) {
  for (const RaggedSite::Operand table :
       {RaggedSite::kInputOffsets, RaggedSite::kOutputOffsets, RaggedSite::kSendSizes}) {
    Hosts hosts({0, 1}, Net::kFake, 4);
    HostJob job(2, 2, kSmall, &hosts);
    RaggedSite site(job, {.ranks = 2, .index = DType::kInt64});
    site.Draw(3, 0, false);
    const int64_t bad = table == RaggedSite::kSendSizes ? -3 : int64_t{1} << 62;
    site.Set(0, table, 1, bad);
    if (table == RaggedSite::kSendSizes) site.Set(1, RaggedSite::kRecvSizes, 0, bad);
    site.Enqueue();
    EXPECT_FALSE(job.Run(1));
    for (const int rank : {0, 1}) {
      EXPECT_EQ(site.cause(rank).kind, Cause::kRaggedRows) << site.Causes();
      EXPECT_EQ(site.cause(rank).rank, 1);
      EXPECT_EQ(site.cause(rank).peer, 0);
      EXPECT_EQ(site.cause(rank).entry, 1);
    }
  }
}

// A third host, which has no part in it, hears it.
TEST(RaggedExchangeFailure, EveryHostHearsOfIt) {
  Hosts hosts({0, 1, 2}, Net::kFake, 5);
  HostJob job(3, 3, kSmall, &hosts);
  RaggedSite site(job, {.ranks = 3});
  site.Draw(3, 0, false);
  site.Set(1, RaggedSite::kRecvSizes, 0, 401);
  site.Enqueue();
  EXPECT_FALSE(job.Run(1));
  const std::string first = job.communicator(1).Cause().value_or("");
  hosts.Settle();
  EXPECT_NE(first.find("expects 401 rows"), std::string::npos) << first;
  EXPECT_EQ(job.communicator(2).Cause().value_or(""), first);
}

TEST(RaggedExchangeFailure, ALinkThatEndsStopsTheKernelsOfBothHosts) {
  Hosts hosts({0, 1}, Net::kFake, 6);
  HostJob job(4, 2, kSmall, &hosts);
  RaggedSite site(job, {});
  site.Draw(1, 0, false);
  site.Enqueue();
  hosts.At(40, [&] { hosts.Cut(0, 1); });
  EXPECT_FALSE(job.Run(100));
  hosts.Settle();
  for (const int process : {0, 1}) {
    EXPECT_NE(job.communicator(process).Cause().value_or("").find("is lost"), std::string::npos);
  }
}

// A link ends or goes silent anywhere, or a rank dies: nobody hangs, and who ends is right.
TEST(RaggedExchangeFailure, AnEndAnywhereHangsNobody) {
  int failed = 0;
  for (int i = 0; i < Seeds(10); ++i) {
    const auto seed = static_cast<uint32_t>(7000 + i);
    std::mt19937 random(seed);
    Hosts hosts({0, 1, static_cast<int>(random() % 3)}, Net::kFake, seed);
    HostJob job(4, 3, kSmall, &hosts);
    RaggedSite site(job, {.updates = 1 + static_cast<int>(random() % 3)});
    site.Draw(seed, 2, false);
    site.Enqueue();
    StreamOptions options;
    const int what = static_cast<int>(random() % 3), after = static_cast<int>(random() % 40);
    if (what == 0) hosts.At(after, [&] { hosts.Cut(0, 1); });
    if (what == 1) hosts.At(after, [&] { hosts.Swallow(0, 1); });
    if (what == 2) {
      options.disturb = [after](int rank, int) {
        return Disturbance{.die_after = rank == 1 ? after : -1};
      };
    }
    if (job.Run(8, options)) {
      EXPECT_EQ(site.Wrong(), "") << "seed " << seed;
    } else {
      ++failed;
      EXPECT_NE(site.Causes(), "-; -; -; ") << "seed " << seed;
    }
    hosts.Settle();
  }
  EXPECT_GT(failed, 0);
}

// Hosts tell each other the digest first.
TEST(RaggedExchangeFailure, CallsThatAreCutOtherwiseHaveAnotherDigest) {
  std::vector<HostRoutes> routes;
  for (const int64_t stride : {256, 512}) {
    TableHeader header = {};
    header.world_size = header.slot_chunks = 2;
    header.flags_per_worker = 4;
    header.workers = header.chunks_per_block = 1;
    TableCall call = {};
    call.strands = call.slice_count = call.vector_count = 1;
    call.depth = 2;
    call.stride_bytes = stride;
    StatusOr<HostRoutes> made = HostRoutes::MakeRagged(header, call, {0, 1});
    ASSERT_TRUE(made.ok());
    routes.push_back(std::move(*made));
  }
  EXPECT_NE(routes[0].DigestBetween({0, 1}, 0, 1), routes[1].DigestBetween({0, 1}, 0, 1));
}

}  // namespace
}  // namespace jaxcoll::cuda
