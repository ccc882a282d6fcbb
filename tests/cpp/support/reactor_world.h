// The engine between processes over links that delay, reorder and die: several reactors in one
// thread, everything drawn from one seed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "comm/reactor.h"
#include "engine/ragged.h"
#include "engine/slices/slice_plan.h"
#include "schedule/schedule.h"
#include "support/fake_link.h"

namespace jaxcoll {

// The faults of a world.
enum class Fault {
  kNone,
  kCutBoth,    // both sides of a link see it end
  kCutOne,     // one does, the other when that has closed its end
  kBlackHole,  // what is sent is lost, unnoticed
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
  bool exact = false;  // small integers: summed exactly whatever the order
  std::vector<int64_t> block_elements;
  std::vector<OpList> op_lists;
  int32_t largest_message = 1;
  // Set: a ragged_all_to_all, and what stands above from `collective` on does not count.
  std::optional<RaggedShape> ragged;
  std::set<size_t> refused;  // calls whose tables do not fit each other
  std::map<int, std::shared_ptr<const RunPlan>> plans;
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

// Some processes, their sites and calls, the network between them and what goes wrong.
class ReactorWorld {
 public:
  ReactorWorld(uint64_t seed, Fault fault);
  ~ReactorWorld();

  // Makes every call, and checks every result and what the reactors hold afterwards.
  void Run();

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

  class SimCompletion;

  // The parts of a world: reactor_world_draw.cc.
  void Build();
  bool DrawSite(Site& site);
  bool DrawSchedule(Site& site);
  void DrawRagged(Site& site);
  // Buffers and results of one more call.
  void Extend(Site& site);
  void ExtendRagged(Site& site, bool may_be_refused);
  void AddCall(Site& site, const std::vector<std::vector<std::byte>>& inputs,
               const std::vector<size_t>& output_bytes);
  // The postconditions of schedule.h.
  std::vector<std::vector<std::byte>> Exactly(const Site& site,
                                              const std::vector<std::vector<std::byte>>& inputs);
  // The engine of one process adds the same numbers in the same order: bitwise the same result.
  std::vector<std::vector<std::byte>> InOneProcess(
      const Site& site, const std::vector<std::vector<std::byte>>& inputs);

  // The faults.
  void ScheduleFault();
  bool IsLinkFault() const;
  // Whether the fault can reach the communicator.
  bool Exposed(const Site& site) const;
  std::shared_ptr<FakePipe> PipeOf(int from, int to);
  void StrikeIfDue();
  void SendGarbage();

  // Running.
  void MakeProcesses();
  void OpenNext(Process& process);
  // A link comes up on one side, and later on the other.
  void Connect(int from, int to);
  void SubmitNext(Process& process);
  bool Act();
  bool SomethingLeft() const;
  // Until nobody has done anything for longer than any deadline.
  void RunUntilQuiet();
  bool AllAtRest();
  void Sniff();
  void ResumeAll();

  // Checking.
  void CheckFirstRound();
  void CheckEverything();
  void CheckCall(const Site& site, int process, const std::vector<int32_t>& members, size_t c,
                 const ProcessCall& call);
  void CheckAccounts();

  [[maybe_unused]] const uint64_t seed_;
  Random random_;
  FakeNet net_;
  const Fault fault_;
  FakeNet::Copying copying_ = FakeNet::Copying::kDirect;
  uint32_t first_call_ = 0;
  int64_t ahead_bytes_ = Reactor::kAheadBytes;
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

}  // namespace jaxcoll
