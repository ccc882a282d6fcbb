#include "call/call_site.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "base/environment.h"
#include "base/log.h"
#include "call/call_site_internal.h"
#include "call/flight_recorder.h"
#include "call/watchdog.h"

namespace jaxcoll {
namespace {

using std::chrono::duration;

// Ranks may start independent calls of a run in another order, and compute before; then, and not
// before, it is looked whether the missing ones wait in another call.
constexpr std::chrono::seconds kLookAfter{2};
constexpr std::chrono::milliseconds kLookAgainAfter{500};
// A failed call is remembered this long for ranks that arrive late; after that they wait anew.
constexpr double kForgetFailureAfterS = 120;
// Fresh pages of an output this large are asked for as huge pages: a page fault costs as much as
// copying the 4 KiB it brings.
constexpr size_t kHugePagesFromBytes = 4 << 20;
// Scratch up to this size is kept with the call site between calls.
constexpr size_t kKeepScratchBytes = 1 << 20;
// Ranks named one by one in a message; more are counted.
constexpr size_t kNamedRanks = 16;

double SecondsBetween(CallSite::Clock::time_point from, CallSite::Clock::time_point to) {
  return duration<double>(to - from).count();
}

}  // namespace

void AskForHugePages(std::byte* data, size_t bytes) {
  if (bytes < kHugePagesFromBytes) return;
  constexpr uintptr_t page = 2 << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / page * page;
  // A hint: on failure pages are small, and nothing else changes.
  if (begin < end) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}

StatusOr<std::unique_ptr<CallSite>> CallSite::Create(CallSpec spec, Interprocess* processes) {
  StatusOr<CallCore> core = CallCore::Create(std::move(spec));
  if (!core.ok()) return core.status();
  std::unique_ptr<CallSite> site(new CallSite(std::move(*core), processes));
  if (Status status = site->FindMembers(); !status.ok()) return status;
  if (Status status = site->BuildOps(); !status.ok()) return status;
  return site;
}

CallSite::CallSite(CallCore core, Interprocess* processes)
    : core_(std::move(core)), processes_(processes) {
  Watchdog::Get().Add(this);
}

Status CallSite::BuildOps() {
  CallSpec exchange;  // see engine/ragged.h
  exchange.collective = Name(Collective::kAllToAll);
  exchange.algorithm = "direct";
  exchange.group_size = spec_.group_size;
  const CallSpec& spec = core_.ragged() ? exchange : spec_;
  const auto take_layout = [this](const auto& made) {
    input_blocks_ = made.input_blocks;
    output_blocks_ = made.output_blocks;
  };
  bool built = false;
  for (Members& members : members_) {
    if (members.ranks.empty()) continue;
    if (members.here && actions_ == nullptr) {
      StatusOr<std::shared_ptr<const LocalActions>> actions = ActionsFor(spec);
      if (!actions.ok()) return actions.status();
      actions_ = std::move(*actions);
      take_layout(*actions_);
    } else if (!members.here && !core_.ragged()) {
      StatusOr<std::shared_ptr<const SliceOps>> slice_ops = SliceOpsFor(spec, members.ranks);
      if (!slice_ops.ok()) return slice_ops.status();
      members.slice_ops = std::move(*slice_ops);
      take_layout(*members.slice_ops);
    }
    built = true;
  }
  if (built) return Status();
  // A device in no group: nothing runs, but what could not run anywhere is refused here, too.
  const StatusOr<std::vector<OpList>> first = OpListsOf(spec, {0});
  if (!first.ok()) return first.status();
  take_layout(first->front());
  return Status();
}

CallSite::~CallSite() {
  Watchdog::Get().Remove(this);
  FailAll(Status(StatusCode::kCancelled, "the executable was destroyed"));
}

Status CallSite::Prepare(const CallShape& shape) {
  std::lock_guard lock(mutex_);
  if (prepared()) return Status();
  core_.SetShape(shape);
  if (Status status = Plan(); !status.ok()) return core_.Describe(status);
  Log(LogLevel::kDebug, "%s: prepared", core_.Describe().c_str());
  description_ = std::make_shared<const std::string>(core_.Describe());
  prepared_.store(true, std::memory_order_release);
  return Status();
}

Status CallSite::Plan() {
  if (!core_.ragged()) return PlanVectors();
  const CallShape& shape = core_.shape();
  if (Status status = CheckRaggedOperands(shape, spec_.group_size); !status.ok()) return status;
  std::string shapes;
  for (const CallShape::Array& array : shape.inputs) shapes += array.Text() + ' ';
  for (int32_t group = 0; group < groups_.group_count(); ++group) {
    if (!members_[group].reaches_out()) continue;
    auto plan = PlanRagged(group);
    if (!plan.ok()) return plan.status();
    OpenRemote(group, shapes, std::move(*plan));
  }
  if (actions_ != nullptr) plan_ = std::make_shared<const LocalPlan>(actions_, ShapeOfRagged());
  return Status();
}

Status CallSite::PlanVectors() {
  StatusOr<CallVectors> vectors = CheckVectors(spec_, core_.shape(), input_blocks_, output_blocks_);
  if (!vectors.ok()) return vectors.status();
  for (int32_t group = 0; group < groups_.group_count(); ++group) {
    if (!members_[group].reaches_out()) continue;
    auto plan = PlanSlices(members_[group], *vectors);
    if (!plan.ok()) return plan.status();
    std::string shapes(Name(vectors->dtype));
    for (const int64_t elements : vectors->block_elements) shapes += ' ' + std::to_string(elements);
    OpenRemote(group, shapes, std::move(*plan));
  }
  if (actions_ != nullptr) {
    if (spec_.separate_blocks != 0 && !LocalPlan::MayBeSeparate(*actions_)) {
      return InvalidArgument("algorithm " + spec_.algorithm + " takes its blocks in one array");
    }
    plan_ = std::make_shared<const LocalPlan>(actions_, std::move(vectors->block_elements),
                                              vectors->dtype, vectors->reduce_op,
                                              spec_.separate_blocks != 0);
  }
  return Status();
}

std::unique_ptr<CallSite::Meeting> CallSite::NewMeeting() {
  std::unique_ptr<Meeting> meeting;
  if (!unused_.empty()) {
    meeting = std::move(unused_.back());
    unused_.pop_back();
  } else {
    meeting = std::make_unique<Meeting>();
    meeting->buffers.inputs.resize(core_.shape().inputs.size() * spec_.group_size);
    meeting->buffers.outputs.resize(core_.shape().outputs.size() * spec_.group_size);
    meeting->completions.resize(spec_.group_size);
  }
  meeting->arrived.assign(spec_.group_size, false);
  meeting->arrived_count = 0;
  meeting->warned = false;
  meeting->first_arrival = Clock::now();
  meeting->look_at = meeting->first_arrival + kLookAfter;
  return meeting;
}

void CallSite::Recycle(std::unique_ptr<Meeting> meeting) {
  if (plan_ != nullptr && plan_->scratch_bytes() > kKeepScratchBytes) meeting->scratch.reset();
  std::lock_guard lock(mutex_);
  if (unused_.size() < 4) unused_.push_back(std::move(meeting));
}

StatusOr<CallSite::Entry> CallSite::Arrive(const Arrival& arrival,
                                           std::unique_ptr<Completion> completion) {
  const Place* place = groups_.FindLogical(arrival.logical_id);
  if (place == nullptr) {
    return InvalidArgument(core_.Describe() + ": " + groups_.Describe(arrival.logical_id) +
                           " is in none of its groups");
  }
  if (Watchdog::closing()) {
    return Status(StatusCode::kCancelled, core_.Describe() + ": the process is shutting down");
  }
  const int32_t rank = place->rank;
  const LineKey key{arrival.run_id, place->group};
  std::unique_ptr<Meeting> complete;
  {
    std::lock_guard lock(mutex_);
    Line& line = lines_[key];
    if (line.calls.empty()) line.calls.resize(spec_.group_size);
    const int64_t index = line.calls[rank]++ - line.first;
    if (index == static_cast<int64_t>(line.meetings.size())) line.meetings.push_back(NewMeeting());
    Meeting& meeting = *line.meetings[index];
    meeting.arrived[rank] = true;
    ++meeting.arrived_count;
    for (size_t v = 0; v < arrival.inputs.size(); ++v) {
      meeting.buffers.inputs[v * spec_.group_size + rank] =
          static_cast<const std::byte*>(arrival.inputs[v]);
    }
    for (size_t v = 0; v < arrival.outputs.size(); ++v) {
      meeting.buffers.outputs[v * spec_.group_size + rank] =
          static_cast<std::byte*>(arrival.outputs[v]);
    }
    const std::shared_ptr<const Status> failure = meeting.failure;
    if (failure == nullptr) meeting.completions[rank] = std::move(completion);
    if (meeting.arrived_count == static_cast<int32_t>(members_[place->group].ranks.size())) {
      // Ranks make their calls in order, so the front meeting is always the first to be full.
      complete = std::move(line.meetings.front());
      line.meetings.pop_front();
      ++line.first;
      if (line.meetings.empty()) lines_.erase(key);
    }
    if (failure != nullptr) return *failure;
  }
  if (complete == nullptr) return Entry::kPending;
  Members& members = members_[place->group];
  if (members.remote != nullptr) {
    return StartRemote(std::move(complete), members, arrival.run_id);
  }
  return Start(std::move(complete), rank);
}

namespace {

// The job that a meeting becomes when it is full and too large to run on the spot.
template <typename RunBatchFn, typename FinishFn>
class CallWork final : public Work {
 public:
  CallWork(std::vector<int> batches, RunBatchFn run, FinishFn finish)
      : batches_(std::move(batches)), run_(std::move(run)), finish_(std::move(finish)) {}
  int LevelCount() const override { return static_cast<int>(batches_.size()); }
  int BatchCount(int level) const override { return batches_[level]; }
  void RunBatch(int level, int batch) override { run_(level, batch); }
  void Finish() override {
    finish_();
    delete this;
  }

 private:
  std::vector<int> batches_;
  RunBatchFn run_;
  FinishFn finish_;
};

template <typename RunBatchFn, typename FinishFn>
std::unique_ptr<Work> MakeWork(std::vector<int> batches, RunBatchFn run, FinishFn finish) {
  return std::make_unique<CallWork<RunBatchFn, FinishFn>>(std::move(batches), std::move(run),
                                                          std::move(finish));
}

const std::shared_ptr<const Status>& OkStatus() {
  static const auto& ok = *new std::shared_ptr<const Status>(std::make_shared<const Status>());
  return ok;
}

}  // namespace

CallSite::Entry CallSite::Start(std::unique_ptr<Meeting> meeting, int32_t last_rank) {
  WorkerPool& pool = WorkerPool::Get();
  // The completions leave the meeting before the meeting is recycled. A call site lives as long as
  // its executable, and that at least until the completions are done.
  const auto finish = [this, &pool](std::unique_ptr<Meeting> done,
                                    std::shared_ptr<const Status> status) {
    std::vector<std::unique_ptr<Completion>> completions;
    completions.reserve(done->completions.size());
    for (std::unique_ptr<Completion>& completion : done->completions) {
      if (completion != nullptr) completions.push_back(std::move(completion));
    }
    const std::shared_ptr<ContinuationCost> cost = cost_;
    FlightRecorder::Get().Add({description_, done->first_arrival, Clock::now(), status});
    Recycle(std::move(done));
    pool.Complete(std::move(completions), std::move(status), cost);
  };

  RunBuffers& buffers = meeting->buffers;
  if (const Status status = plan_->Check(buffers); !status.ok()) {
    finish(std::move(meeting), std::make_shared<const Status>(core_.Describe(status)));
    return Entry::kPending;
  }
  if (plan_->scratch_bytes() > 0 && meeting->scratch == nullptr) {
    const size_t bytes = (plan_->scratch_bytes() + 63) / 64 * 64;
    meeting->scratch.reset(static_cast<std::byte*>(std::aligned_alloc(64, bytes)));
    if (meeting->scratch == nullptr) {
      finish(std::move(meeting),
             std::make_shared<const Status>(StatusCode::kInternal,
                                            core_.Describe() + ": out of memory for " +
                                                std::to_string(bytes) + " bytes of scratch"));
      return Entry::kPending;
    }
    AskForHugePages(meeting->scratch.get(), bytes);
  }
  buffers.scratch = meeting->scratch.get();

  std::vector<int> batches(plan_->LevelCount());
  int most = 0;
  for (int level = 0; level < plan_->LevelCount(); ++level) {
    batches[level] = plan_->BatchCount(level);
    most = std::max(most, batches[level]);
  }
  if (most <= 1) {
    for (int level = 0; level < plan_->LevelCount(); ++level) {
      if (batches[level] == 1) plan_->RunBatch(level, 0, buffers);
    }
    // This rank is done before its handler returns; nobody needs to be told.
    meeting->completions[last_rank].reset();
    finish(std::move(meeting), OkStatus());
    return Entry::kDone;
  }
  for (size_t v = 0; v < plan_->vector_count(); ++v) {
    for (int32_t rank = 0; rank < plan_->world_size(); ++rank) {
      AskForHugePages(buffers.outputs[v * plan_->world_size() + rank], plan_->output_bytes(v));
    }
  }
  auto shared = std::make_shared<std::unique_ptr<Meeting>>(std::move(meeting));
  pool.Run(MakeWork(
      std::move(batches),
      [plan = plan_, &buffers](int level, int batch) { plan->RunBatch(level, batch, buffers); },
      [finish, shared] { finish(std::move(*shared), OkStatus()); }));
  return Entry::kPending;
}

void CallSite::Fail(Meeting& meeting, Status status) {
  meeting.failure = std::make_shared<const Status>(std::move(status));
  meeting.failed_at = Clock::now();
  FlightRecorder::Get().Add({description_, meeting.first_arrival, Clock::now(), meeting.failure});
  std::vector<std::unique_ptr<Completion>> completions;
  for (std::unique_ptr<Completion>& completion : meeting.completions) {
    if (completion != nullptr) completions.push_back(std::move(completion));
  }
  // Complete only queues: nothing runs under mutex_.
  WorkerPool::Get().Complete(std::move(completions), meeting.failure, cost_);
}

bool CallSite::HasOverdue(Clock::time_point now) {
  std::lock_guard lock(mutex_);
  bool overdue = false;
  for (auto& [key, line] : lines_) {
    for (std::unique_ptr<Meeting>& meeting : line.meetings) {
      if (meeting->failure != nullptr) {
        overdue |= SecondsBetween(meeting->failed_at, now) > kForgetFailureAfterS;
        continue;
      }
      const double waited_s = SecondsBetween(meeting->first_arrival, now);
      overdue |= waited_s > TimeoutS();
      if (waited_s > kWarnAfterS && !meeting->warned) {
        meeting->warned = true;
        Log(LogLevel::kWarning, "%s",
            OverdueMessage(*meeting, key.first, key.second, WaitingTable()).c_str());
      }
    }
  }
  return overdue;
}

bool CallSite::WantsLook(Clock::time_point now) {
  std::lock_guard lock(mutex_);
  bool wants = false;
  for (auto& [key, line] : lines_) {
    for (std::unique_ptr<Meeting>& meeting : line.meetings) {
      if (meeting->failure != nullptr || meeting->warned || now < meeting->look_at) continue;
      meeting->look_at = now + kLookAgainAfter;
      wants = true;
    }
  }
  return wants;
}

bool CallSite::WarnOfMismatch(Clock::time_point now, const WaitingTable& waiting, bool quiet) {
  std::lock_guard lock(mutex_);
  bool found = false;
  for (auto& [key, line] : lines_) {
    for (std::unique_ptr<Meeting>& meeting : line.meetings) {
      if (meeting->failure != nullptr || meeting->warned) continue;
      if (now - meeting->first_arrival < kLookAfter) continue;
      const std::vector<int32_t>& ranks = members_[key.second].ranks;
      const bool elsewhere = std::any_of(ranks.begin(), ranks.end(), [&](int32_t rank) {
        return !meeting->arrived[rank] &&
               waiting.count({key.first, groups_.LogicalId({key.second, rank})}) != 0;
      });
      if (!elsewhere) continue;
      found = meeting->warned = true;
      if (quiet) continue;
      Log(LogLevel::kWarning, "%s",
          OverdueMessage(*meeting, key.first, key.second, waiting).c_str());
      quiet = true;
    }
  }
  return found;
}

std::vector<std::string> CallSite::DescribePending() {
  std::lock_guard lock(mutex_);
  std::vector<std::string> lines;
  for (const auto& [key, line] : lines_) {
    for (const std::unique_ptr<Meeting>& meeting : line.meetings) {
      if (meeting->failure != nullptr) continue;
      lines.push_back(OverdueMessage(*meeting, key.first, key.second, WaitingTable()));
    }
  }
  return lines;
}

void CallSite::AddHalfMade(std::vector<HalfMadeCall>& calls) {
  std::lock_guard lock(mutex_);
  for (const auto& [key, line] : lines_) {
    for (const std::unique_ptr<Meeting>& meeting : line.meetings) {
      if (meeting->failure != nullptr) continue;
      HalfMadeCall& call = calls.emplace_back();
      call.description = core_.Describe();
      call.program = spec_.program;
      call.since_s = SecondsBetween(meeting->first_arrival, Clock::now());
      for (const int32_t rank : members_[key.second].ranks) {
        (meeting->arrived[rank] ? call.arrived : call.missing)
            .push_back("rank " + std::to_string(rank) + " (" +
                       groups_.Describe(groups_.LogicalId({key.second, rank})) + ")");
      }
    }
  }
}

void CallSite::PutOffDeadlines(Clock::time_point now, Clock::duration stopped) {
  std::lock_guard lock(mutex_);
  for (auto& [key, line] : lines_) {
    for (std::unique_ptr<Meeting>& meeting : line.meetings) {
      meeting->first_arrival = std::min(meeting->first_arrival + stopped, now);
      meeting->failed_at = std::min(meeting->failed_at + stopped, now);
    }
  }
}

void CallSite::DescribeWaiting(WaitingTable& table) {
  std::lock_guard lock(mutex_);
  for (auto& [key, line] : lines_) {
    for (const std::unique_ptr<Meeting>& meeting : line.meetings) {
      if (meeting->failure != nullptr) continue;
      for (int32_t rank = 0; rank < spec_.group_size; ++rank) {
        if (!meeting->arrived[rank]) continue;
        std::string& text = table[{key.first, groups_.LogicalId({key.second, rank})}];
        text += (text.empty() ? "" : "; ") + core_.Describe();
      }
    }
  }
}

std::string CallSite::OverdueMessage(const Meeting& meeting, int64_t run_id, int32_t group,
                                     const WaitingTable& waiting) const {
  std::string here, missing;
  size_t here_count = 0, missing_count = 0;
  for (const int32_t rank : members_[group].ranks) {
    const int64_t logical = groups_.LogicalId({group, rank});
    const std::string name =
        "rank " + std::to_string(rank) + " (" + groups_.Describe(logical) + ")";
    if (meeting.arrived[rank]) {
      if (++here_count <= kNamedRanks) here += (here.empty() ? "" : ", ") + name;
      continue;
    }
    if (++missing_count > kNamedRanks) continue;
    missing += (missing.empty() ? "" : ", ") + name;
    const auto elsewhere = waiting.find({run_id, logical});
    if (elsewhere != waiting.end()) missing += ", which waits in " + elsewhere->second;
  }
  if (here_count > kNamedRanks)
    here += " and " + std::to_string(here_count - kNamedRanks) + " more";
  if (missing_count > kNamedRanks) {
    missing += " and " + std::to_string(missing_count - kNamedRanks) + " more";
  }
  return core_.Describe() + ": waited " +
         Seconds(SecondsBetween(meeting.first_arrival, Clock::now())) + "; arrived: " + here +
         "; missing: " + missing;
}

void CallSite::FailOverdue(Clock::time_point now, const WaitingTable& waiting) {
  std::lock_guard lock(mutex_);
  for (auto it = lines_.begin(); it != lines_.end();) {
    Line& line = it->second;
    bool forget = true;
    for (std::unique_ptr<Meeting>& meeting : line.meetings) {
      if (meeting->failure == nullptr && SecondsBetween(meeting->first_arrival, now) > TimeoutS()) {
        const std::string message =
            OverdueMessage(*meeting, it->first.first, it->first.second, waiting) +
            ". Every device of a group must make the same calls; look for a collective inside a "
            "lax.cond or while_loop that not every device takes, or raise JAXCOLL_TIMEOUT_S";
        Log(LogLevel::kInfo, "%s", message.c_str());
        const Status status(StatusCode::kDeadlineExceeded, message);
        Fail(*meeting, status);
        Members& members = members_[it->first.second];
        if (members.remote != nullptr) members.remote->Fail(status);
      }
      forget &= meeting->failure != nullptr &&
                SecondsBetween(meeting->failed_at, now) > kForgetFailureAfterS;
    }
    it = forget ? lines_.erase(it) : std::next(it);
  }
}

void CallSite::FailAll(const Status& status) {
  std::lock_guard lock(mutex_);
  for (auto& [key, line] : lines_) {
    for (std::unique_ptr<Meeting>& meeting : line.meetings) {
      if (meeting->failure == nullptr) {
        Fail(*meeting, Status(status.code(), core_.Describe() + ": " + status.message()));
      }
    }
  }
}

void CallSite::FailBegunBefore(Clock::time_point time, const std::string& reason) {
  std::lock_guard lock(mutex_);
  for (auto& [key, line] : lines_) {
    for (std::unique_ptr<Meeting>& meeting : line.meetings) {
      if (meeting->failure != nullptr || meeting->first_arrival > time) continue;
      const Status status(
          StatusCode::kCancelled,
          OverdueMessage(*meeting, key.first, key.second, WaitingTable()) + "; " + reason);
      Fail(*meeting, status);
      if (RemoteGroup* const remote = members_[key.second].remote.get()) remote->Fail(status);
    }
  }
}

void ShutdownEngine() {
  Watchdog::Get().Close();
  if (!WorkerPool::Get().WaitIdle(std::chrono::seconds(5))) {
    Log(LogLevel::kInfo, "work was still in progress at exit");
  }
}

std::string DumpEngine() {
  const std::vector<std::string> pending = Watchdog::Get().DescribePending();
  std::string text =
      "jaxcoll, within this process: " + std::to_string(FlightRecorder::Get().count()) +
      " calls have ended, " + std::to_string(pending.size()) + " wait for devices\n";
  for (const std::string& line : pending) text += "  pending: " + line + '\n';
  return text + FlightRecorder::Get().Lines(FlightRecorder::Clock::now());
}

EngineSnapshot TakeEngineSnapshot() {
  return {FlightRecorder::Get().count(), Watchdog::Get().HalfMadeCalls(),
          FlightRecorder::Get().Newest(kEndedCallsShown)};
}

EngineInfo GetEngineInfo() {
  return {WorkerPool::Get().thread_count(), Watchdog::Get().call_site_count(), TimeoutS()};
}

}  // namespace jaxcoll
