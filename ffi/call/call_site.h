// One custom-call instruction of one executable, shared by the process's devices; the place where
// the ranks of its groups meet.
//
// Matching. A call is known by (call site, run id, group, n-th call of that run on that rank),
// never by its time of arrival: XLA runs independent calls in a different order on every device,
// and a scan repeats one instruction within a run. The counts of a run live exactly as long as they
// differ between ranks: when all ranks of a group have made equally many calls they start again
// from zero, so nothing is left to clean up when a run ends.
//
// In a group that other processes share, only this process's ranks meet here; what they do then
// with the others is the RemoteGroup's business.
//
// The last rank to arrive starts the work. A rank that does not arrive within JAXCOLL_TIMEOUT_S
// fails the call on every rank of the group, those that come later included; the next call is a
// call of its own.
//
// Thread rule: Arrive from any thread, concurrently. Completions run on the worker pool.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "call/call_core.h"
#include "call/interprocess.h"
#include "call/snapshot.h"
#include "engine/completion.h"
#include "engine/memory/local_plan.h"
#include "engine/worker_pool.h"

namespace jaxcoll {

// One device's side of a call. The buffers stay valid until its completion is done.
struct Arrival {
  int64_t run_id = 0;
  int64_t logical_id = 0;
  std::span<const void* const> inputs;
  std::span<void* const> outputs;
};

// The call that a rank is in, for the error messages of others: (run id, logical id) -> call.
using WaitingTable = std::map<std::pair<int64_t, int64_t>, std::string>;

class CallSite {
 public:
  using Clock = std::chrono::steady_clock;

  // Builds the op lists of this process's ranks; of other processes, at most that of one rank.
  // `processes`: the job's, null if every device is of this process.
  static StatusOr<std::unique_ptr<CallSite>> Create(CallSpec spec,
                                                    Interprocess* processes = Interprocess::Get());
  ~CallSite();
  CallSite(const CallSite&) = delete;
  CallSite& operator=(const CallSite&) = delete;

  const CallCore& core() const { return core_; }

  // Must have succeeded once, in any thread, before the first Arrive.
  bool prepared() const { return prepared_.load(std::memory_order_acquire); }
  Status Prepare(const CallShape& shape);

  // Enters the call. kPending: `completion` will be called, exactly once. kDone: the outputs are
  // written, `completion` is dropped. An error: nothing was entered, `completion` is dropped.
  enum class Entry { kPending, kDone };
  StatusOr<Entry> Arrive(const Arrival& arrival, std::unique_ptr<Completion> completion);

  // For the watchdog. Lock order: the registry's mutex, then one call site's.
  bool HasOverdue(Clock::time_point now);
  // Whether a call waits so long that it should be looked where the missing ranks are.
  bool WantsLook(Clock::time_point now);
  // Logs, once per call, that missing ranks wait in other calls of the run; with `quiet` it only
  // remembers that. Returns whether there is such a call.
  bool WarnOfMismatch(Clock::time_point now, const WaitingTable& waiting, bool quiet);
  void DescribeWaiting(WaitingTable& table);
  // A line for each call that some of this process's ranks have not made, for the flight recorder.
  std::vector<std::string> DescribePending();
  // The same as facts.
  void AddHalfMade(std::vector<HalfMadeCall>& calls);
  // The process did not run for so long: nobody waited for it.
  void PutOffDeadlines(Clock::time_point now, Clock::duration stopped);
  void FailOverdue(Clock::time_point now, const WaitingTable& waiting);
  void FailAll(const Status& status);
  // Those that have waited for others since before `time`.
  void FailBegunBefore(Clock::time_point time, const std::string& reason);

  struct Meeting;  // one call of one group

 private:
  // The calls of one run on one group that are not complete.
  struct Line {
    std::vector<int64_t> calls;  // per rank, since the line began
    int64_t first = 0;           // number of the front meeting
    std::deque<std::unique_ptr<Meeting>> meetings;
  };
  using LineKey = std::pair<int64_t, int32_t>;  // (run id, group)

  CallSite(CallCore core, Interprocess* processes);
  // This process's ranks of a group, and the rest of the group.
  struct Members {
    std::vector<int32_t> ranks;
    bool here = true;                           // all of them
    std::shared_ptr<const SliceOps> slice_ops;  // if it reaches out; null if ragged
    std::unique_ptr<RemoteGroup> remote;
    // Whether some are here and some elsewhere.
    bool reaches_out() const { return !here && !ranks.empty(); }
  };
  Status FindMembers();
  Status BuildOps();
  Status Plan();         // mutex_ held
  Status PlanVectors();  // mutex_ held
  // The part of one call that the processes of a group do with each other.
  StatusOr<std::shared_ptr<const RunPlan>> PlanSlices(const Members& members,
                                                      const CallVectors& vectors) const;
  StatusOr<std::shared_ptr<const RunPlan>> PlanRagged(int32_t group) const;
  // `shapes` are those of the call, as far as the plan depends on them.
  void OpenRemote(int32_t group, const std::string& shapes, std::shared_ptr<const RunPlan> plan);
  CallFacts FactsOf(int32_t group) const;
  RaggedShape ShapeOfRagged() const;
  int ProcessOfRank(Place place) const;
  Entry Start(std::unique_ptr<Meeting> meeting, int32_t last_rank);  // mutex_ not held
  Entry StartRemote(std::unique_ptr<Meeting> meeting, Members& members, int64_t run_id);
  bool SharesNumber(int64_t run_id);
  std::string OverdueMessage(const Meeting& meeting, int64_t run_id, int32_t group,
                             const WaitingTable& waiting) const;
  void Fail(Meeting& meeting, Status status);  // mutex_ held
  std::unique_ptr<Meeting> NewMeeting();       // mutex_ held
  void Recycle(std::unique_ptr<Meeting> meeting);

  CallCore core_;  // its shape is set before prepared_ is
  const CallSpec& spec_ = core_.spec();
  const GroupTable& groups_ = core_.groups();
  Interprocess* const processes_;
  std::shared_ptr<const LocalActions> actions_;  // of groups all of whose ranks are here
  int32_t input_blocks_ = 1, output_blocks_ = 1;
  const std::shared_ptr<ContinuationCost> cost_ = std::make_shared<ContinuationCost>();

  // Publishes the next three and the core's shape, constant from then on.
  std::atomic<bool> prepared_{false};
  std::shared_ptr<const LocalPlan> plan_;           // of actions_
  std::shared_ptr<const std::string> description_;  // for the flight recorder
  std::vector<Members> members_;                    // by group
  struct NumberUse;
  std::shared_ptr<NumberUse> number_use_;  // null unless some group reaches into other processes

  std::mutex mutex_;
  std::map<LineKey, Line> lines_;                 // guarded by mutex_
  std::vector<std::unique_ptr<Meeting>> unused_;  // guarded by mutex_
};

// Fails every pending call and all later ones; waits a little for work in progress. For exit.
void ShutdownEngine();

struct EngineInfo {
  int threads = 0;
  int call_sites = 0;
  double timeout_s = 0;
};
EngineInfo GetEngineInfo();
// The flight recorder: what pends within this process, and the last calls.
std::string DumpEngine();

}  // namespace jaxcoll
