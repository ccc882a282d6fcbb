// The engine between processes over links that delay, reorder and die: several reactors in one
// thread, everything drawn from one seed.
//
//   JAXCOLL_TEST_SEED=n    runs that seed of every test, and no other
//   JAXCOLL_TEST_SEEDS=n   runs n seeds in all instead of 10 000 (fewer under a sanitizer)
#include "comm/reactor.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <set>
#include <thread>

#include "executor/local_plan.h"
#include "executor/local_program.h"
#include "fake_link.h"
#include "schedule/schedule.h"

namespace jaxcoll {
namespace {

using std::chrono::microseconds;

#if defined(__SANITIZE_THREAD__)
constexpr int kSeeds = 500;
#elif defined(__SANITIZE_ADDRESS__)
constexpr int kSeeds = 2000;
#else
constexpr int kSeeds = 10000;
#endif
constexpr double kTimeoutS = 1;

constexpr Collective kCollectives[] = {Collective::kAllReduce, Collective::kReduceScatter,
                                       Collective::kAllGather, Collective::kAllToAll,
                                       Collective::kBroadcast, Collective::kReduce,
                                       Collective::kPermute};

// What goes wrong in a world.
enum class Fault {
  kNone,
  kCutBoth,    // both sides of a link see it end
  kCutOne,     // one does, the other when that has closed its end
  kBlackHole,  // what is sent is lost, and nobody is told
  kStop,       // a process is not run for a while
  kKill,       // a process is never run again, its links end
  kNeverUp,    // a link never comes
  kFailed,     // a link cannot be made, says one side
  kPoison,     // a process gives up on a communicator before the others have opened it
  kHostile,    // a process also sends garbage
};

struct Outcome {
  int done = 0;
  Status status;
};

// One call of one site on one process.
struct ProcessCall {
  std::vector<std::vector<std::byte>> inputs, outputs;  // [vector * members + member]
  std::vector<std::vector<std::byte>> at_completion;
  std::vector<Outcome> outcomes;  // by member
};

// One group and what it computes, on all processes.
struct Site {
  std::vector<int64_t> devices;
  std::vector<int> process_of_rank;
  std::set<int> processes;
  std::string operation, description;
  Collective collective;
  ScheduleSpec spec;
  DType dtype;
  bool exact;  // small integers: summed exactly whatever the order
  std::vector<int64_t> block_elements;
  std::vector<Program> programs;
  int32_t largest_message = 1;
  std::map<int, std::shared_ptr<const SegmentPlan>> plans;
  std::map<int, std::unique_ptr<RemoteGroup>> groups;
  std::map<int, std::vector<std::unique_ptr<ProcessCall>>> calls;
  std::vector<std::vector<std::vector<std::byte>>> expected;  // [call][vector * ranks + rank]

  std::vector<int32_t> Members(int process) const {
    std::vector<int32_t> members;
    for (size_t rank = 0; rank < process_of_rank.size(); ++rank) {
      if (process_of_rank[rank] == process) members.push_back(static_cast<int32_t>(rank));
    }
    return members;
  }
};

// Faster than ==, which compares bytes one by one.
bool Equal(const std::vector<std::byte>& a, const std::vector<std::byte>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size()) == 0;
}

void StoreElement(DType dtype, float value, std::byte* to) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (dtype == DType::kFloat32) {
    std::memcpy(to, &bits, 4);
  } else {
    const auto high = static_cast<uint16_t>(bits >> 16);
    std::memcpy(to, &high, 2);
  }
}

float LoadElement(DType dtype, const std::byte* from) {
  uint32_t bits = 0;
  if (dtype == DType::kFloat32) {
    std::memcpy(&bits, from, 4);
  } else {
    uint16_t high;
    std::memcpy(&high, from, 2);
    bits = static_cast<uint32_t>(high) << 16;
  }
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

class World {
 public:
  World(uint64_t seed, Fault fault)
      : seed_(seed),
        random_(seed),
        net_(random_, static_cast<int>(Draw(random_, 0, 3) * Draw(random_, 0, 700))),
        fault_(fault) {}

  void Run() {
    Build();
    ScheduleFault();
    MakeProcesses();
    RunUntilQuiet();
    ResumeAll();
    RunUntilQuiet();
    CheckFirstRound();
    fault_at_step_ = 0;
    // Once more on every site, to see who knows what, and once more when all know.
    for (int round = 0; fault_ != Fault::kNone && round < 2 && !::testing::Test::HasFailure();
         ++round) {
      for (Process& process : processes_) {
        if (!process.alive) continue;
        for (size_t site = 0; site < sites_.size(); ++site) {
          if (sites_[site].processes.count(process.index) != 0) {
            process.order.push_back(static_cast<int>(site));
          }
        }
      }
      for (Site& site : sites_) Extend(site);
      RunUntilQuiet();
      ResumeAll();
      RunUntilQuiet();
    }
    CheckEverything();
    CheckAccounts();
  }

  ~World() {
    // Groups before their reactors.
    for (Site& site : sites_) site.groups.clear();
    for (Process& process : processes_) process.reactor.reset();
  }

 private:
  struct Process {
    int index = 0;
    std::unique_ptr<Reactor> reactor;
    bool alive = true;
    bool running = true;  // is stepped
    bool chains = false;  // completions make the next call
    std::vector<int> sites_to_open;
    std::vector<int> order;  // sites, in the order of this process's calls
    size_t next = 0;
    std::map<int, int> made;  // site -> calls
    std::deque<std::pair<std::unique_ptr<Completion>, std::shared_ptr<const Status>>> completions;
  };

  class SimCompletion final : public Completion {
   public:
    SimCompletion(World* world, int process, int site, ProcessCall* call, size_t member)
        : world_(world), process_(process), site_(site), call_(call), member_(member) {}
    void Done(const Status& status) override {
      Outcome& outcome = call_->outcomes[member_];
      ++outcome.done;
      outcome.status = status;
      // All members of a call end together, so what is there now must stay.
      if (call_->at_completion.empty()) call_->at_completion = call_->outputs;
      Process& process = world_->processes_[process_];
      if (process.chains && Chance(world_->random_, 50)) world_->SubmitNext(process);
    }

   private:
    World* const world_;
    const int process_;
    [[maybe_unused]] const int site_;
    ProcessCall* const call_;
    const size_t member_;
  };

  // ---- What there is ----

  void Build() {
    const auto process_count = static_cast<int>(Draw(random_, 2, 5));
    std::vector<int> owners;
    for (int p = 0; p < process_count; ++p) {
      for (int64_t i = Draw(random_, 1, 3); i > 0; --i) owners.push_back(p);
      processes_.emplace_back();
      processes_.back().index = p;
    }
    if (Chance(random_, 50)) std::shuffle(owners.begin(), owners.end(), random_);
    for (size_t d = 0; d < owners.size(); ++d) process_of_device_[100 + d] = owners[d];
    copying_ = static_cast<FakeNet::Copying>(Draw(random_, 0, 2));
    // Numbers of calls wrap around.
    if (Chance(random_, 30)) first_call_ = static_cast<uint32_t>(Draw(random_, -3, -1));

    const int64_t site_count = Draw(random_, 1, 4);
    while (static_cast<int64_t>(sites_.size()) < site_count) {
      Site site;
      if (!sites_.empty() && Chance(random_, 25)) {
        // The same operation again, from another instruction: its slot is part of the operation.
        const Site& same = sites_.back();
        site.devices = same.devices;
        site.process_of_rank = same.process_of_rank;
        site.processes = same.processes;
        site.operation = same.operation + "'";
        site.description = same.description;
        site.collective = same.collective;
        site.spec = same.spec;
        site.dtype = same.dtype;
        site.exact = same.exact;
        site.block_elements = same.block_elements;
        site.programs = same.programs;
        site.largest_message = same.largest_message;
        site.plans = same.plans;
      } else if (!DrawSite(site)) {
        continue;
      }
      sites_.push_back(std::move(site));
    }
    // Every process makes the calls of a site in order, and mixes sites as it likes.
    std::vector<int> calls;
    for (size_t s = 0; s < sites_.size(); ++s) {
      for (int64_t i = Draw(random_, 1, 5); i > 0; --i) {
        calls.push_back(static_cast<int>(s));
        Extend(sites_[s]);
      }
    }
    const bool shuffled = Chance(random_, 80);
    for (Process& process : processes_) {
      if (shuffled) std::shuffle(calls.begin(), calls.end(), random_);
      for (const int s : calls) {
        if (sites_[s].processes.count(process.index) != 0) process.order.push_back(s);
      }
      process.chains = Chance(random_, 30);
      // Equal operations are opened in the same order everywhere, others are not.
      std::map<std::string, std::vector<int>> equal;
      for (size_t s = 0; s < sites_.size(); ++s) {
        if (sites_[s].processes.count(process.index) == 0) continue;
        process.sites_to_open.push_back(static_cast<int>(s));
        equal[sites_[s].operation].push_back(static_cast<int>(s));
      }
      std::shuffle(process.sites_to_open.begin(), process.sites_to_open.end(), random_);
      std::map<std::string, size_t> used;
      for (int& s : process.sites_to_open) {
        const std::string& operation = sites_[s].operation;
        s = equal[operation][used[operation]++];
      }
    }
  }

  bool DrawSite(Site& site) {
    for (const auto& [device, process] : process_of_device_) site.devices.push_back(device);
    std::sort(site.devices.begin(), site.devices.end());
    if (!sites_.empty() && Chance(random_, 50)) {
      std::shuffle(site.devices.begin(), site.devices.end(), random_);
      site.devices.resize(Draw(random_, 2, static_cast<int64_t>(site.devices.size())));
    }
    const auto ranks = static_cast<int32_t>(site.devices.size());
    for (const int64_t device : site.devices) {
      site.process_of_rank.push_back(process_of_device_.at(device));
      site.processes.insert(site.process_of_rank.back());
    }
    if (site.processes.size() < 2) return false;
    site.collective = kCollectives[Draw(random_, 0, std::size(kCollectives) - 1)];
    const std::vector<std::string> algorithms = Algorithms(site.collective);
    ScheduleSpec& spec = site.spec;
    spec.collective = site.collective;
    spec.algorithm = algorithms[Draw(random_, 0, static_cast<int64_t>(algorithms.size()) - 1)];
    spec.world_size = ranks;
    spec.channels = Chance(random_, 25) ? static_cast<int32_t>(Draw(random_, 2, 3)) : 1;
    if (site.collective == Collective::kBroadcast || site.collective == Collective::kReduce) {
      spec.root = static_cast<int32_t>(Draw(random_, 0, ranks - 1));
    }
    if (spec.algorithm == "hierarchical") {
      spec.node_size = static_cast<int32_t>(Draw(random_, 1, ranks));
      while (ranks % spec.node_size != 0) --spec.node_size;
    }
    if (site.collective == Collective::kPermute) {
      std::vector<int32_t> to(ranks);
      std::iota(to.begin(), to.end(), 0);
      std::shuffle(to.begin(), to.end(), random_);
      for (int32_t rank = 0; rank < ranks; ++rank) {
        if (!Chance(random_, 20)) spec.permutation.emplace_back(rank, to[rank]);
      }
    }
    for (int32_t rank = 0; rank < ranks; ++rank) {
      StatusOr<Program> program = BuildSchedule(spec, rank);
      if (!program.ok()) return false;  // not for so many ranks
      for (const Op& op : program->ops) {
        if (op.kind != OpKind::kSend) continue;
        int32_t chunks = 0;
        for (const Interval& interval : op.sources[0].chunks) chunks += interval.count;
        site.largest_message = std::max(site.largest_message, chunks);
      }
      site.programs.push_back(std::move(*program));
    }
    site.dtype = Chance(random_, 70) ? DType::kFloat32 : DType::kBFloat16;
    site.exact = Chance(random_, 70);
    const int64_t vectors = Chance(random_, 25) ? Draw(random_, 2, 12) : 1;
    const auto elements = [&]() -> int64_t {
      const int64_t kind = Draw(random_, 0, 99);
      if (kind < 25) return 1;
      if (kind < 55) return Draw(random_, 2, 40);
      if (kind < 85) return Draw(random_, 41, 1000);
      if (kind < 97 || vectors > 2) return Draw(random_, 1001, 5000);
      return Draw(random_, 5001, 40000);
    };
    for (int64_t v = vectors; v > 0; --v) {
      site.block_elements.push_back(elements());
    }
    // Small slots make many segments.
    size_t message_bytes = kSlotBytes;
    if (Chance(random_, 60)) {
      message_bytes = std::max<size_t>(size_t{1} << Draw(random_, 9, 16),
                                       static_cast<size_t>(site.largest_message) * 64);
    }
    if (message_bytes > kSlotBytes) return false;
    for (const int process : site.processes) {
      std::vector<Program> mine;
      for (const int32_t rank : site.Members(process)) mine.push_back(site.programs[rank]);
      StatusOr<SegmentProgram> program = CompileSegments(mine, ranks, site.largest_message);
      EXPECT_TRUE(program.ok()) << program.status().message();
      StatusOr<std::shared_ptr<const SegmentPlan>> plan =
          SegmentPlan::Create(std::make_shared<const SegmentProgram>(std::move(*program)),
                              site.block_elements, site.dtype, ReduceOp::kSum, message_bytes);
      EXPECT_TRUE(plan.ok()) << plan.status().message();
      if (plan.ok() && (*plan)->segment_count() > 60) return false;  // slow, and nothing new
      site.plans[process] = *plan;
    }
    site.operation = std::string(Name(site.collective)) + ' ' + spec.algorithm + ' ' +
                     std::to_string(sites_.size());
    site.description = std::string(Name(site.collective)) + " by " + spec.algorithm + " over " +
                       std::to_string(ranks) + " ranks, site " + std::to_string(sites_.size());
    return true;
  }

  // Buffers and results of one more call.
  void Extend(Site& site) {
    const auto ranks = static_cast<int32_t>(site.devices.size());
    const size_t vectors = site.block_elements.size();
    const size_t item = ItemBytes(site.dtype);
    const Program& layout = site.programs[0];
    std::vector<std::vector<std::byte>> inputs(vectors * ranks);
    for (size_t v = 0; v < vectors; ++v) {
      for (int32_t rank = 0; rank < ranks; ++rank) {
        std::vector<std::byte>& input = inputs[v * ranks + rank];
        input.resize(site.block_elements[v] * layout.input_blocks * item);
        uint64_t state = random_();
        for (size_t at = 0; at < input.size(); at += item) {
          state = state * 6364136223846793005u + 1442695040888963407u;
          const auto value = static_cast<int32_t>(state >> 61);  // 0 to 7
          StoreElement(site.dtype,
                       site.exact ? static_cast<float>(value)
                                  : static_cast<float>(static_cast<int32_t>(state >> 33)) / 77777.f,
                       &input[at]);
        }
      }
    }
    site.expected.push_back(site.exact ? Exactly(site, inputs) : InOneProcess(site, inputs));
    for (const int process : site.processes) {
      const std::vector<int32_t> members = site.Members(process);
      auto call = std::make_unique<ProcessCall>();
      call->outcomes.resize(members.size());
      for (size_t v = 0; v < vectors; ++v) {
        for (const int32_t rank : members) {
          call->inputs.push_back(inputs[v * ranks + rank]);
          call->outputs.emplace_back(site.block_elements[v] * layout.output_blocks * item,
                                     std::byte{0xEE});
        }
      }
      site.calls[process].push_back(std::move(call));
    }
  }

  // The postconditions of schedule.h.
  std::vector<std::vector<std::byte>> Exactly(const Site& site,
                                              const std::vector<std::vector<std::byte>>& inputs) {
    const auto ranks = static_cast<int32_t>(site.devices.size());
    const size_t item = ItemBytes(site.dtype);
    std::vector<std::vector<std::byte>> outputs;
    for (size_t v = 0; v < site.block_elements.size(); ++v) {
      const size_t block = site.block_elements[v] * item;
      const auto input = [&](int32_t rank) -> const std::vector<std::byte>& {
        return inputs[v * ranks + rank];
      };
      const auto sum = [&](size_t offset) {
        std::vector<std::byte> result(block);
        for (size_t at = 0; at < block; at += item) {
          float total = 0;
          for (int32_t q = 0; q < ranks; ++q) {
            total += LoadElement(site.dtype, &input(q)[offset + at]);
          }
          StoreElement(site.dtype, total, &result[at]);
        }
        return result;
      };
      const bool reduces =
          site.collective == Collective::kAllReduce || site.collective == Collective::kReduce;
      const std::vector<std::byte> total = reduces ? sum(0) : std::vector<std::byte>();
      for (int32_t rank = 0; rank < ranks; ++rank) {
        std::vector<std::byte> output;
        const auto append = [&](const std::vector<std::byte>& from, size_t offset) {
          output.insert(output.end(), from.begin() + static_cast<std::ptrdiff_t>(offset),
                        from.begin() + static_cast<std::ptrdiff_t>(offset + block));
        };
        switch (site.collective) {
          case Collective::kAllReduce:
            output = total;
            break;
          case Collective::kReduce:
            output = rank == site.spec.root ? total : std::vector<std::byte>(block);
            break;
          case Collective::kReduceScatter:
            output = sum(rank * block);
            break;
          case Collective::kBroadcast:
            output = input(site.spec.root);
            break;
          case Collective::kAllGather:
            for (int32_t q = 0; q < ranks; ++q) append(input(q), 0);
            break;
          case Collective::kAllToAll:
            for (int32_t q = 0; q < ranks; ++q) append(input(q), rank * block);
            break;
          case Collective::kPermute:
            output.resize(block);
            for (const auto& [from, to] : site.spec.permutation) {
              if (to == rank) output = input(from);
            }
            break;
        }
        outputs.push_back(std::move(output));
      }
    }
    return outputs;
  }

  // The engine of one process adds the same numbers in the same order: bitwise the same result.
  std::vector<std::vector<std::byte>> InOneProcess(
      const Site& site, const std::vector<std::vector<std::byte>>& inputs) {
    StatusOr<LocalProgram> program = Compile(site.programs, site.collective);
    EXPECT_TRUE(program.ok()) << program.status().message();
    const LocalPlan plan(std::make_shared<const LocalProgram>(std::move(*program)),
                         site.block_elements, site.dtype, ReduceOp::kSum);
    std::vector<std::vector<std::byte>> outputs(inputs.size());
    RunBuffers buffers;
    for (size_t i = 0; i < inputs.size(); ++i) {
      outputs[i].resize(plan.output_bytes(i / site.devices.size()), std::byte{0xEE});
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

  // ---- What goes wrong ----

  void ScheduleFault() {
    const auto count = static_cast<int64_t>(processes_.size());
    culprit_ = static_cast<int>(Draw(random_, 0, count - 1));
    victim_ = static_cast<int>((culprit_ + Draw(random_, 1, count - 1)) % count);
    fault_at_step_ = Draw(random_, 0, Chance(random_, 20) ? 20 : 400);
  }

  bool IsLinkFault() const {
    return fault_ == Fault::kCutBoth || fault_ == Fault::kCutOne || fault_ == Fault::kBlackHole ||
           fault_ == Fault::kNeverUp || fault_ == Fault::kFailed;
  }

  // Whether the fault can reach the communicator.
  bool Exposed(const Site& site) const {
    if (fault_ == Fault::kNone) return false;
    if (site.processes.count(culprit_) == 0) return false;
    if (fault_ == Fault::kPoison) return site.devices == sites_[poisoned_site_].devices;
    return !IsLinkFault() || site.processes.count(victim_) != 0;
  }

  std::shared_ptr<FakePipe> PipeOf(int from, int to) {
    std::shared_ptr<FakePipe>& pipe = pipes_[{from, to}];
    if (pipe == nullptr) pipe = std::make_shared<FakePipe>();
    return pipe;
  }

  void StrikeIfDue() {
    if (fault_ == Fault::kHostile && step_ >= fault_at_step_) {
      if (Chance(random_, 10)) SendGarbage();
      return;
    }
    if (struck_ || step_ < fault_at_step_) return;
    struck_ = true;
    Process& culprit = processes_[culprit_];
    switch (fault_) {
      case Fault::kCutBoth:
        PipeOf(culprit_, victim_)->broken = true;
        PipeOf(victim_, culprit_)->broken = true;
        break;
      case Fault::kCutOne:
        PipeOf(culprit_, victim_)->broken = true;
        break;
      case Fault::kBlackHole:
        for (const auto& pipe : {PipeOf(culprit_, victim_), PipeOf(victim_, culprit_)}) {
          pipe->black_hole = true;
          pipe->puts.clear();
          pipe->told.clear();
        }
        break;
      case Fault::kStop:
        culprit.running = false;
        resume_at_ = net_.now() + std::chrono::milliseconds(Draw(random_, 1, 4000));
        break;
      case Fault::kKill:
        culprit.running = culprit.alive = false;
        for (Process& other : processes_) {
          if (other.index == culprit_) continue;
          PipeOf(culprit_, other.index)->writer_gone = true;
          PipeOf(other.index, culprit_)->reader_gone = true;
          if (Chance(random_, 50)) PipeOf(culprit_, other.index)->puts.clear();
        }
        break;
      default:
        break;
    }
  }

  void SendGarbage() {
    const std::shared_ptr<FakePipe> pipe = PipeOf(culprit_, victim_);
    if (pipe->reader_gone) return;
    if (Chance(random_, 15)) {
      static constexpr const char* kWords[] = {
          "",       "ask",         "state",        "state x",          "poison",
          "poison", "poison zz",   "poison 1234 ", "poison 1234 lies", "poison \x01 \xff\xfe",
          "hello",  "state \xff%s"};
      pipe->told.push_back({kWords[Draw(random_, 0, std::size(kWords) - 1)], net_.now()});
      return;
    }
    FakePipe::Put put;
    put.due = net_.Due();
    NoticeFields fields;
    if (!seen_.empty() && Chance(random_, 70)) {
      fields = seen_[Draw(random_, 0, static_cast<int64_t>(seen_.size()) - 1)];
      auto* const words = reinterpret_cast<uint32_t*>(&fields);
      for (int64_t i = Draw(random_, 0, 2); i > 0; --i) {
        uint32_t& word = words[Draw(random_, 0, sizeof(fields) / 4 - 1)];
        word = Chance(random_, 50) ? word ^ (1u << Draw(random_, 0, 31))
                                   : static_cast<uint32_t>(random_());
      }
    } else {
      for (uint64_t& word : put.notice) word = random_();
      fields = Decode(put.notice);
      fields.kind = static_cast<NoticeKind>(Draw(random_, 0, 4));
      if (Chance(random_, 50)) fields.bytes %= 20000;
      if (Chance(random_, 50)) fields.offset %= kWindowBytes;
    }
    put.notice = Encode(fields);
    pipe->puts.push_back(std::move(put));
  }

  // ---- Running ----

  void MakeProcesses() {
    poisoned_site_ = 0;
    for (Process& process : processes_) {
      Reactor::Seams seams;
      seams.now = [this] { return net_.now(); };
      seams.timeout_s = kTimeoutS;
      seams.first_call = first_call_;
      seams.complete = [&process](std::vector<std::unique_ptr<Completion>> completions,
                                  std::shared_ptr<const Status> status,
                                  std::shared_ptr<ContinuationCost>) {
        for (auto& completion : completions) {
          process.completions.emplace_back(std::move(completion), status);
        }
      };
      process.reactor = Reactor::Create(
          process.index, process_of_device_,
          [this, &process](int peer) {
            process.reactor->Account();  // hangs if the engine's lock is held
            wanted_.push_back({process.index, peer});
          },
          seams);
    }
    if (fault_ == Fault::kPoison) {
      for (size_t s = 0; s < sites_.size(); ++s) {
        if (sites_[s].processes.count(culprit_) != 0) poisoned_site_ = static_cast<int>(s);
      }
      Process& culprit = processes_[culprit_];
      if (culprit.sites_to_open.empty()) return;
      while (!culprit.sites_to_open.empty()) OpenNext(culprit);
      const int s = poisoned_site_;
      sites_[s].groups[culprit_]->Fail(Status(
          StatusCode::kDeadlineExceeded,
          sites_[s].description + ": rank 0 of process " + std::to_string(culprit_) + " gave up"));
    }
  }

  void OpenNext(Process& process) {
    const int s = process.sites_to_open.front();
    process.sites_to_open.erase(process.sites_to_open.begin());
    Site& site = sites_[s];
    site.groups[process.index] = process.reactor->Open(
        {site.devices, site.operation, site.description, site.plans.at(process.index)});
  }

  // A link comes up on one side, and later on the other.
  void Connect(int from, int to) {
    if (!connected_.insert({from, to}).second) return;
    const bool struck = (from == culprit_ && to == victim_) || (from == victim_ && to == culprit_);
    if (struck && fault_ == Fault::kNeverUp) return;
    if (struck && fault_ == Fault::kFailed) {
      if (from == culprit_) processes_[from].reactor->LinkFailed(to, "connection refused");
      return;
    }
    processes_[from].reactor->AddLink(
        to, std::make_unique<FakeLink>(net_, to, PipeOf(from, to), PipeOf(to, from), copying_));
  }

  void SubmitNext(Process& process) {
    if (process.next == process.order.size() || !process.sites_to_open.empty()) return;
    const int s = process.order[process.next++];
    Site& site = sites_[s];
    ProcessCall& call = *site.calls.at(process.index)[process.made[s]++];
    MemberBuffers buffers;
    for (auto& input : call.inputs) buffers.inputs.push_back(input.data());
    for (auto& output : call.outputs) buffers.outputs.push_back(output.data());
    std::vector<std::unique_ptr<Completion>> completions;
    for (size_t member = 0; member < call.outcomes.size(); ++member) {
      completions.push_back(std::make_unique<SimCompletion>(this, process.index, s, &call, member));
    }
    site.groups.at(process.index)
        ->Start(std::move(buffers), std::move(completions), std::make_shared<ContinuationCost>());
  }

  bool Act() {
    Process& process = processes_[Draw(random_, 0, static_cast<int64_t>(processes_.size()) - 1)];
    if (!process.running) return false;
    const int64_t what = Draw(random_, 0, 9);
    if (what == 0 && !process.sites_to_open.empty()) {
      OpenNext(process);
      return true;
    }
    if (what == 1 && process.next < process.order.size() && process.sites_to_open.empty()) {
      SubmitNext(process);
      return true;
    }
    if (what == 2 && !wanted_.empty()) {
      const size_t chosen = Draw(random_, 0, static_cast<int64_t>(wanted_.size()) - 1);
      const auto [from, to] = wanted_[chosen];
      wanted_.erase(wanted_.begin() + static_cast<std::ptrdiff_t>(chosen));
      Connect(from, to);
      wanted_.push_back({to, from});
      if (connected_.count({to, from}) != 0) wanted_.pop_back();
      return true;
    }
    if (what <= 4 && !process.completions.empty()) {
      auto [completion, status] = std::move(process.completions.front());
      process.completions.pop_front();
      completion->Done(*status);
      return true;
    }
    return process.reactor->Step();
  }

  bool SomethingLeft() const {
    if (!wanted_.empty()) return true;
    for (const Process& process : processes_) {
      if (!process.running) continue;
      if (!process.sites_to_open.empty() || process.next < process.order.size() ||
          !process.completions.empty()) {
        return true;
      }
    }
    return false;
  }

  // Until nobody has done anything for longer than any deadline.
  void RunUntilQuiet() {
    auto last_active = net_.now();
    const auto limit = step_ + 2000000;
    int idle = 0;
    while (net_.now() - last_active < std::chrono::milliseconds(2500)) {
      ++step_;
      ASSERT_LT(step_, limit) << "it never comes to rest";
      StrikeIfDue();
      if (fault_ == Fault::kStop && struck_ && net_.now() >= resume_at_) ResumeAll();
      if (fault_ == Fault::kHostile && Chance(random_, 5)) Sniff();
      net_.Advance(microseconds(Draw(random_, 0, 30)));
      if (Act() || SomethingLeft()) {
        last_active = net_.now();
        idle = 0;
      } else if (++idle > 40) {
        net_.Advance(std::chrono::milliseconds(40));
        // Nothing pends and nothing flies: no need to wait for deadlines.
        if (idle > 120 && AllAtRest()) return;
      }
    }
  }

  bool AllAtRest() {
    for (Process& process : processes_) {
      if (!process.running && process.alive) return false;
      if (process.alive && process.reactor->Account().calls != 0) return false;
    }
    for (const auto& [ends, pipe] : pipes_) {
      if (pipe->reader_gone || !processes_[ends.second].alive) continue;
      if (!pipe->puts.empty() || !pipe->told.empty() || pipe->broken) return false;
    }
    return struck_ || fault_ == Fault::kNone || fault_ == Fault::kHostile;
  }

  void Sniff() {
    for (const auto& [ends, pipe] : pipes_) {
      if (ends.first != culprit_ && ends.second != culprit_) continue;
      for (const FakePipe::Put& put : pipe->puts) {
        if (seen_.size() < 200) seen_.push_back(Decode(put.notice));
      }
    }
  }

  void ResumeAll() {
    for (Process& process : processes_) process.running = process.alive;
  }

  // ---- Checking ----

  void CheckFirstRound() {
    for (const Site& site : sites_) {
      for (const auto& [process, calls] : site.calls) {
        if (!processes_[process].alive) continue;
        for (const auto& call : calls) {
          for (const Outcome& outcome : call->outcomes) {
            EXPECT_EQ(outcome.done, 1) << site.description << ", process " << process;
          }
        }
      }
    }
  }

  void CheckEverything() {
    for (const Site& site : sites_) {
      bool any_failed = false;
      for (const auto& [process, calls] : site.calls) {
        if (!processes_[process].alive) continue;
        const std::vector<int32_t> members = site.Members(process);
        for (size_t c = 0; c < calls.size(); ++c) {
          CheckCall(site, process, members, c, *calls[c]);
          any_failed |= calls[c]->outcomes[0].done > 0 && !calls[c]->outcomes[0].status.ok();
        }
      }
      if (!any_failed) continue;
      EXPECT_TRUE(Exposed(site)) << site.description << " failed for no reason";
      // By now everybody knows.
      for (const auto& [process, calls] : site.calls) {
        if (!processes_[process].alive) continue;
        const Status& last = calls.back()->outcomes[0].status;
        // A process that only sends, or only has zeros to write, waits for nobody. Over a link that
        // says nothing it may succeed for ever.
        const bool may_not_know =
            fault_ == Fault::kBlackHole || fault_ == Fault::kFailed || fault_ == Fault::kNeverUp;
        if (may_not_know && calls[calls.size() - 2]->outcomes[0].status.ok()) continue;
        EXPECT_EQ(last.code(), StatusCode::kFailedPrecondition) << site.description;
        EXPECT_NE(last.message().find("failed earlier"), std::string::npos) << last.message();
      }
    }
  }

  void CheckCall(const Site& site, int process, const std::vector<int32_t>& members, size_t c,
                 const ProcessCall& call) {
    const std::string where =
        site.description + ", call " + std::to_string(c) + ", process " + std::to_string(process);
    for (const Outcome& outcome : call.outcomes) {
      EXPECT_EQ(outcome.done, 1) << where;
      EXPECT_EQ(outcome.status.code(), call.outcomes[0].status.code()) << where;
    }
    for (size_t i = 0; i < call.at_completion.size(); ++i) {
      EXPECT_TRUE(Equal(call.outputs[i], call.at_completion[i]))
          << where << " was written after its completion";
    }
    const Status& status = call.outcomes[0].status;
    if (!status.ok()) {
      const std::string& text = status.message();
      EXPECT_TRUE(Exposed(site)) << where << ": " << text;
      EXPECT_NE(text.find(site.description), std::string::npos) << where << ": " << text;
      EXPECT_NE(text.find("rank "), std::string::npos) << where << ": " << text;
      EXPECT_NE(text.find("process "), std::string::npos) << where << ": " << text;
      return;
    }
    // A liar's numbers are what they are.
    if (fault_ == Fault::kHostile && Exposed(site)) return;
    const size_t ranks = site.devices.size();
    for (size_t v = 0; v < site.block_elements.size(); ++v) {
      for (size_t m = 0; m < members.size(); ++m) {
        EXPECT_TRUE(
            Equal(call.outputs[v * members.size() + m], site.expected[c][v * ranks + members[m]]))
            << where << ", vector " << v << " of " << site.block_elements[v] << " elements, rank "
            << members[m] << ": wrong result";
      }
    }
  }

  void CheckAccounts() {
    for (Process& process : processes_) {
      if (!process.alive) continue;
      Reactor::Accounts accounts = process.reactor->Account();
      EXPECT_EQ(accounts.calls, 0u);
      EXPECT_EQ(accounts.slots_kept, 0u);
      if (fault_ == Fault::kHostile) continue;
      EXPECT_EQ(accounts.early_calls, 0u);
      EXPECT_EQ(accounts.early_bytes, 0u);
      // What was sent into nowhere does not come back.
      if (fault_ == Fault::kBlackHole || fault_ == Fault::kNeverUp || fault_ == Fault::kFailed) {
        continue;
      }
      EXPECT_EQ(accounts.slots_taken, 0u);
      EXPECT_EQ(accounts.waiting, 0u);
    }
  }

  [[maybe_unused]] const uint64_t seed_;
  Random random_;
  FakeNet net_;
  const Fault fault_;
  FakeNet::Copying copying_ = FakeNet::Copying::kDirect;
  uint32_t first_call_ = 0;
  std::unordered_map<int64_t, int> process_of_device_;
  std::deque<Process> processes_;
  std::vector<Site> sites_;
  std::map<std::pair<int, int>, std::shared_ptr<FakePipe>> pipes_;
  std::vector<std::pair<int, int>> wanted_;
  std::set<std::pair<int, int>> connected_;
  std::vector<NoticeFields> seen_;
  int64_t step_ = 0;
  int culprit_ = 0, victim_ = 0, poisoned_site_ = 0;
  int64_t fault_at_step_ = 0;
  bool struck_ = false;
  FakeNet::Clock::time_point resume_at_;
};

int64_t EnvironmentNumber(const char* name, int64_t fallback) {
  const char* const text = std::getenv(name);
  return text == nullptr || *text == '\0' ? fallback : std::atoll(text);
}

// `share`: percent of all seeds.
void RunSeeds(Fault fault, int share) {
  const int64_t only = EnvironmentNumber("JAXCOLL_TEST_SEED", -1);
  const int64_t all = EnvironmentNumber("JAXCOLL_TEST_SEEDS", kSeeds);
  const int64_t first = only >= 0 ? only : 0;
  const int64_t count = only >= 0 ? 1 : std::max<int64_t>(1, all * share / 100);
  for (int64_t seed = first; seed < first + count; ++seed) {
    World(static_cast<uint64_t>(seed), fault).Run();
    if (::testing::Test::HasFailure()) {
      ADD_FAILURE() << "seed " << seed << ": run it alone with JAXCOLL_TEST_SEED=" << seed
                    << " --gtest_filter="
                    << ::testing::UnitTest::GetInstance()->current_test_info()->name();
      return;
    }
  }
}

TEST(Reactor, EveryCollectiveIsExactWhateverTheNetworkDoes) { RunSeeds(Fault::kNone, 50); }
TEST(Reactor, ALinkThatEndsFailsItsCommunicators) { RunSeeds(Fault::kCutBoth, 7); }
TEST(Reactor, ALinkThatEndsOnOneSideFailsItsCommunicators) { RunSeeds(Fault::kCutOne, 7); }
TEST(Reactor, ALinkThatLosesEverythingIsFoundByTheDeadline) { RunSeeds(Fault::kBlackHole, 5); }
TEST(Reactor, AStoppedProcessFindsItselfExcluded) { RunSeeds(Fault::kStop, 7); }
TEST(Reactor, AKilledProcessFailsItsCommunicators) { RunSeeds(Fault::kKill, 7); }
TEST(Reactor, ALinkThatNeverComesIsFoundByTheDeadline) { RunSeeds(Fault::kNeverUp, 3); }
TEST(Reactor, ALinkThatCannotBeMadeFailsItsCommunicators) { RunSeeds(Fault::kFailed, 3); }
TEST(Reactor, APoisonThatComesFirstIsRemembered) { RunSeeds(Fault::kPoison, 4); }
TEST(Reactor, AHostilePeerOnlyHurtsItsCommunicators) { RunSeeds(Fault::kHostile, 7); }

// ---- By hand -----------------------------------------------------------------------------------

// A reactor with one device per process, whose peers are played by the test.
class Alone : public LinkSink {
 public:
  explicit Alone(int processes) : net_(random_, 0) {
    std::unordered_map<int64_t, int> devices;
    for (int p = 0; p < processes; ++p) devices[p] = p;
    Reactor::Seams seams;
    seams.now = [this] { return net_.now(); };
    seams.timeout_s = kTimeoutS;
    seams.complete = [this](std::vector<std::unique_ptr<Completion>> completions,
                            std::shared_ptr<const Status> status,
                            std::shared_ptr<ContinuationCost>) {
      for (size_t i = 0; i < completions.size(); ++i) ended.push_back(*status);
    };
    reactor = Reactor::Create(
        0, devices, [](int) {}, seams);
  }

  // The test's end of a link.
  FakeLink& Connect(int peer) {
    auto out = std::make_shared<FakePipe>(), in = std::make_shared<FakePipe>();
    peers_[peer] = std::make_unique<FakeLink>(net_, 0, in, out, FakeNet::Copying::kAtOnce);
    reactor->AddLink(peer,
                     std::make_unique<FakeLink>(net_, peer, out, in, FakeNet::Copying::kAtOnce));
    return *peers_[peer];
  }

  std::unique_ptr<RemoteGroup> Open(int ranks, const std::string& operation, int64_t elements = 4) {
    ScheduleSpec spec;
    spec.world_size = ranks;
    StatusOr<Program> program = BuildSchedule(spec, 0);
    StatusOr<SegmentProgram> segments = CompileSegments({*program}, ranks, 1);
    auto plan = SegmentPlan::Create(std::make_shared<const SegmentProgram>(std::move(*segments)),
                                    {elements}, DType::kFloat32, ReduceOp::kSum, kSlotBytes);
    std::vector<int64_t> devices(ranks);
    std::iota(devices.begin(), devices.end(), 0);
    return reactor->Open({devices, operation, operation, *plan});
  }

  void Start(RemoteGroup& group) {
    class Silent final : public Completion {
      void Done(const Status&) override {}
    };
    std::vector<std::unique_ptr<Completion>> completions;
    completions.push_back(std::make_unique<Silent>());
    group.Start(
        {{reinterpret_cast<const std::byte*>(input)}, {reinterpret_cast<std::byte*>(output)}},
        std::move(completions), std::make_shared<ContinuationCost>());
  }

  void Settle() {
    for (int i = 0; i < 20; ++i) {
      net_.Advance(microseconds(1));
      reactor->Step();
      for (auto& [process, link] : peers_) (void)link->Poll(*this, 1000);
    }
  }

  void OnNotice(int, const Notice& notice) override { notices.push_back(Decode(notice)); }
  void OnTold(int, std::string_view message) override { told.emplace_back(message); }
  void OnSent(int, uint64_t) override {}

  float input[4] = {1, 2, 3, 4}, output[4] = {};
  std::vector<Status> ended;
  std::vector<NoticeFields> notices;
  std::vector<std::string> told;
  std::unique_ptr<Reactor> reactor;

 private:
  Random random_{1};
  FakeNet net_;
  std::map<int, std::unique_ptr<FakeLink>> peers_;
};

bool Contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// "poison <communicator> <cause>" as process 0 says it of the devices 0 to ranks - 1.
std::string PoisonOf(int ranks, const std::string& cause) {
  Alone other(ranks);
  other.Connect(1);
  other.Open(ranks, "x")->Fail(Status(StatusCode::kInternal, cause));
  other.Settle();
  return other.told.at(0);
}

TEST(Reactor, WhatIsToldOfACommunicatorThatIsNotOpenYetCountsWhenItIs) {
  Alone process(2);
  FakeLink& peer = process.Connect(1);
  peer.Tell(PoisonOf(2, "rank 1 of process 1 gave up\xff"));
  process.Settle();
  const auto group = process.Open(2, "late");
  process.Start(*group);
  ASSERT_EQ(process.ended.size(), 1u);  // without a deadline
  EXPECT_TRUE(Contains(process.ended[0].message(), "rank 1 of process 1 gave up?"))
      << process.ended[0].message();
}

TEST(Reactor, WhoIsNoMemberOfACommunicatorCannotPoisonIt) {
  Alone process(3);
  process.Connect(1);
  FakeLink& stranger = process.Connect(2);
  const std::string poison = PoisonOf(2, "lies");
  stranger.Tell(poison);  // before it is open
  process.Settle();
  const auto group = process.Open(2, "all_reduce");
  process.Start(*group);
  process.Settle();
  EXPECT_TRUE(process.ended.empty());
  stranger.Tell(poison);  // after
  process.Settle();
  EXPECT_TRUE(process.ended.empty());
  EXPECT_TRUE(Contains(process.reactor->Dump(), "process 2 (fake 2) is lost: it spoke of"))
      << process.reactor->Dump();
}

TEST(Reactor, WhoOpensACommunicatorWithALostProcessTellsTheOthers) {
  Alone process(3);
  process.Connect(1);
  process.reactor->LinkFailed(2, "no route to host");
  const auto group = process.Open(3, "all_reduce");
  process.Settle();
  ASSERT_EQ(process.told.size(), 1u);
  EXPECT_TRUE(Contains(process.told[0], "rank 2 is lost: process 2")) << process.told[0];
}

TEST(Reactor, WhoIsToldOfAFailurePassesItOn) {
  Alone process(3);
  FakeLink& teller = process.Connect(1);
  process.Connect(2);
  const auto group = process.Open(3, "all_reduce");
  teller.Tell(PoisonOf(3, "rank 0 is late"));
  process.Settle();
  ASSERT_EQ(process.told.size(), 1u);  // to process 2, not back to 1
  EXPECT_TRUE(Contains(process.told[0], "rank 0 is late"));
}

// Opens a call of two ranks and returns the data notice that its peer should send for it.
NoticeFields DataFor(Alone& process, RemoteGroup& group) {
  process.Start(group);
  process.Settle();
  for (NoticeFields fields : process.notices) {
    if (fields.kind != NoticeKind::kData) continue;
    fields.source = 1;
    fields.destination = 0;
    return fields;
  }
  ADD_FAILURE() << "nothing was sent";
  return {};
}

TEST(Reactor, AnEarlyMessageIsCheckedLikeALateOne) {
  for (const char* what : {"good", "impostor", "long", "unknown"}) {
    Alone process(3);
    FakeLink& peer = process.Connect(1);
    FakeLink& stranger = process.Connect(2);
    const auto group = process.Open(2, "all_reduce");
    NoticeFields fields = DataFor(process, *group);
    const std::vector<std::byte> bytes(128);
    ++fields.number;  // a call that is not made yet
    if (*what == 'l') fields.bytes = 128;
    if (*what == 'u') fields.sequence = 7;
    (*what == 'i' ? stranger : peer)
        .Put({bytes.data(), fields.bytes}, fields.offset, Encode(fields), 0);
    process.Settle();
    EXPECT_EQ(process.reactor->Account().early_calls, 1u) << what;
    process.Start(*group);
    process.Settle();
    const std::string dump = process.reactor->Dump();
    EXPECT_EQ(Contains(dump, "process 1 (fake 1) is lost"), *what == 'l' || *what == 'u') << dump;
    EXPECT_EQ(Contains(dump, "process 2 (fake 2) is lost"), *what == 'i') << dump;
    EXPECT_EQ(process.ended.size(), *what == 'l' || *what == 'u' ? 2u : *what == 'g' ? 1u : 0u);
    EXPECT_EQ(process.reactor->Account().early_bytes, 0u);
  }
}

TEST(Reactor, APeerThatRunsAwayIsStopped) {
  Alone process(2);
  FakeLink& peer = process.Connect(1);
  const auto group = process.Open(2, "all_reduce");
  NoticeFields fields = DataFor(process, *group);
  fields.bytes = kEagerBytes;
  const std::vector<std::byte> bytes(kEagerBytes);
  size_t most = 0;
  for (int i = 0; i < 8192; ++i) {
    ++fields.number;
    peer.Put(bytes, fields.offset, Encode(fields), 0);
    if (i % 64 == 0) process.Settle();
    most = std::max(most, process.reactor->Account().early_bytes);
  }
  EXPECT_LE(most, size_t{65} << 20);
  EXPECT_TRUE(Contains(process.reactor->Dump(), "further ahead")) << process.reactor->Dump();
  EXPECT_EQ(process.reactor->Account().early_bytes, 0u);
}

TEST(Reactor, QuestionsAreNotAnsweredAsFastAsTheyCome) {
  Alone process(2);
  FakeLink& peer = process.Connect(1);
  for (int i = 0; i < 1000; ++i) peer.Tell("ask");
  process.Settle();
  EXPECT_EQ(process.told.size(), 1u);
}

TEST(Reactor, SlotsCountTheInstructionsOfOneLowering) {
  Alone process(2);
  Reactor& reactor = *process.reactor;
  const auto first = reactor.TakeSlot("f", "psum");
  EXPECT_EQ(first.number, 0);
  const auto dropped = reactor.TakeSlot("f", "psum");
  EXPECT_EQ(dropped.number, 1);
  reactor.ReturnSlot("psum", dropped);
  EXPECT_EQ(reactor.TakeSlot("f", "psum").number, 1);  // instantiated again
  EXPECT_EQ(reactor.TakeSlot("f", "pmax").number, 0);
  // Recompiled, whether the old executable still lives or not.
  reactor.NextProgram("f");
  EXPECT_EQ(reactor.TakeSlot("f", "psum").number, 0);
  reactor.ReturnSlot("psum", first);
  EXPECT_EQ(reactor.TakeSlot("f", "psum").number, 1);
}

TEST(Reactor, ARecompiledInstructionGoesOnCounting) {
  Alone process(2);
  process.Connect(1);
  auto first = process.Open(2, "all_reduce");
  const NoticeFields a = DataFor(process, *first);
  first.reset();
  first = process.Open(2, "all_reduce");
  process.notices.clear();
  const NoticeFields again = DataFor(process, *first);
  EXPECT_EQ(again.key, a.key);
  EXPECT_EQ(again.number, a.number + 1);
}

TEST(Notice, CarriesEveryField) {
  const MessageId id{123456, {70000, 80000, 90000, 100000}};
  const NoticeFields fields = Decode(Encode(About(NoticeKind::kData, {~uint64_t{5}, 7}, id)));
  EXPECT_EQ(fields.message(), id);
  EXPECT_EQ(fields.call(), (CallId{~uint64_t{5}, 7}));
}

// ---- With threads ------------------------------------------------------------------------------

// Real links, real reactor threads, completions on the worker pool, two threads that make calls.
TEST(Reactor, ThreadsOverSharedMemory) {
  constexpr int kProcesses = 3, kGroups = 2, kCalls = 40;
  std::unordered_map<int64_t, int> devices;
  for (int p = 0; p < kProcesses; ++p) devices[p] = p;
  std::vector<std::unique_ptr<Reactor>> reactors;
  for (int p = 0; p < kProcesses; ++p) {
    Reactor::Seams seams;
    seams.thread = true;
    seams.timeout_s = 60;
    reactors.push_back(Reactor::Create(
        p, devices, [](int) {}, seams));
  }
  for (int a = 0; a < kProcesses; ++a) {
    for (int b = a + 1; b < kProcesses; ++b) {
      int sockets[2];
      ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets), 0);
      const StatusOr<int> of_a = MakeShmSegment(kWindowBytes), of_b = MakeShmSegment(kWindowBytes);
      ASSERT_TRUE(of_a.ok() && of_b.ok());
      auto link_a = MakeShmLink(b, sockets[0], dup(*of_a), dup(*of_b), reactors[a]->bell(),
                                dup(reactors[b]->bell()), "shm");
      auto link_b = MakeShmLink(a, sockets[1], *of_b, *of_a, reactors[b]->bell(),
                                dup(reactors[a]->bell()), "shm");
      ASSERT_TRUE(link_a.ok() && link_b.ok());
      reactors[a]->AddLink(b, std::move(*link_a));
      reactors[b]->AddLink(a, std::move(*link_b));
    }
  }
  class Count final : public Completion {
   public:
    Count(std::atomic<int>& done, std::atomic<int>& failed) : done_(done), failed_(failed) {}
    void Done(const Status& status) override {
      if (!status.ok()) ++failed_;
      ++done_;
    }

   private:
    std::atomic<int>&done_, &failed_;
  };
  std::atomic<int> done{0}, failed{0};
  std::vector<std::unique_ptr<RemoteGroup>> groups;
  std::vector<std::thread> threads;
  struct Buffers {
    std::vector<float> in, out;
  };
  std::deque<Buffers> buffers;
  for (int p = 0; p < kProcesses; ++p) {
    for (int g = 0; g < kGroups; ++g) {
      ScheduleSpec spec;
      spec.algorithm = g == 0 ? "ring" : "direct";
      spec.world_size = kProcesses;
      auto segments = CompileSegments({*BuildSchedule(spec, p)}, kProcesses, kProcesses);
      const int64_t elements = g == 0 ? 100000 : 100;
      auto plan = SegmentPlan::Create(std::make_shared<const SegmentProgram>(std::move(*segments)),
                                      {elements}, DType::kFloat32, ReduceOp::kSum, kSlotBytes);
      groups.push_back(reactors[p]->Open({{0, 1, 2}, spec.algorithm, spec.algorithm, *plan}));
      std::vector<Buffers*> mine;
      for (int c = 0; c < kCalls; ++c) {
        buffers.push_back({std::vector<float>(elements, static_cast<float>(p + c)),
                           std::vector<float>(elements)});
        mine.push_back(&buffers.back());
      }
      threads.emplace_back([&done, &failed, mine, group = groups.back().get()] {
        for (Buffers* b : mine) {
          std::vector<std::unique_ptr<Completion>> completions;
          completions.push_back(std::make_unique<Count>(done, failed));
          group->Start({{reinterpret_cast<const std::byte*>(b->in.data())},
                        {reinterpret_cast<std::byte*>(b->out.data())}},
                       std::move(completions), std::make_shared<ContinuationCost>());
        }
      });
    }
  }
  for (std::thread& thread : threads) thread.join();
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (done < kProcesses * kGroups * kCalls && std::chrono::steady_clock::now() < end) {
    std::this_thread::yield();
  }
  EXPECT_EQ(done, kProcesses * kGroups * kCalls);
  EXPECT_EQ(failed, 0);
  size_t index = 0;
  for (const Buffers& b : buffers) {
    const auto c = static_cast<float>(index++ % kCalls);
    EXPECT_EQ(b.out, std::vector<float>(b.out.size(), 3 * c + 3));
  }
  for (auto& reactor : reactors) reactor->Stop();
  // A call that comes after the end is failed, not lost.
  std::vector<std::unique_ptr<Completion>> completions;
  completions.push_back(std::make_unique<Count>(done, failed));
  Buffers& b = buffers.front();
  groups[0]->Start({{reinterpret_cast<const std::byte*>(b.in.data())},
                    {reinterpret_cast<std::byte*>(b.out.data())}},
                   std::move(completions), std::make_shared<ContinuationCost>());
  while (failed == 0 && std::chrono::steady_clock::now() < end) std::this_thread::yield();
  EXPECT_EQ(failed, 1);
  groups.clear();
}

}  // namespace
}  // namespace jaxcoll
