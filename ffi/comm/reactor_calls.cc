// The reactor's calls: from a handler's thread to their end.
#include <algorithm>
#include <thread>
#include <utility>

#include "comm/reactor_internal.h"

namespace jaxcoll {
namespace {

using std::chrono::microseconds;

// A handler lends its thread while messages come with no longer gaps than this, and not for longer
// than that in all.
constexpr microseconds kLendIdle{30};
constexpr microseconds kLendMost{400};
constexpr int kLendBackoffMost = 63;

}  // namespace

void Reactor::Submit(Submission submission) {
  Lender lender;
  {
    std::unique_lock lock(mutex_, std::try_to_lock);
    // Calls of one group keep their order: none overtakes one in the inbox.
    if (lock.owns_lock() && !inbox_full_.load(std::memory_order_acquire)) {
      const std::shared_ptr<Group> group = submission.group;
      if (MayLend(*group, submission.completions.size())) {
        submission.lender = &lender;
        lenders_.fetch_add(1, std::memory_order_seq_cst);
        const CallId id = Begin(std::move(submission));
        Lend(lock, *group, id, lender);
        lenders_.fetch_sub(1, std::memory_order_seq_cst);
      } else {
        Begin(std::move(submission));
      }
      const bool missed = inbox_full_.load(std::memory_order_seq_cst);
      if (asleep_.load(std::memory_order_seq_cst) && (SendsLater(*group) || missed)) Ring();
      lock.unlock();
      // The handler has not returned its future yet, so nothing continues from here.
      for (const std::unique_ptr<Completion>& completion : lender.completions) {
        completion->Done(*lender.status);
      }
      return;
    }
  }
  bool closed = false;
  {
    std::lock_guard lock(inbox_mutex_);
    closed = inbox_closed_;
    if (!closed) {
      inbox_.push_back(std::move(submission));
      inbox_full_.store(true, std::memory_order_seq_cst);
    }
  }
  if (closed) {
    std::lock_guard lock(mutex_);
    Begin(std::move(submission));  // which fails: the process is shutting down
  } else if (asleep_.load(std::memory_order_seq_cst) &&
             lenders_.load(std::memory_order_seq_cst) == 0) {
    Ring();
  }
}

bool Reactor::MayLend(Group& group, size_t completions) {
  // The completions of other devices run what these do next: that is for the worker pool.
  if (!seams_.lend || completions != 1) return false;
  if (group.lend_after > 0) {
    --group.lend_after;
    return false;
  }
  for (const int process : CommunicatorOf(group).processes) {
    Link* const link = PeerOf(process).link();
    // A look at others costs a system call.
    if (link == nullptr || link->remote_window() == nullptr) return false;
  }
  return true;
}

// The handler's thread does what the reactor's would do. Where all processes make a call at about
// the same time a small one is over before its handler returns, and no thread had to be woken, here
// or there. Where the others are late the handler goes on after kLendIdle.
void Reactor::Lend(std::unique_lock<std::mutex>& lock, Group& group, const CallId& id,
                   Lender& lender) {
  const std::set<int>& processes = CommunicatorOf(group).processes;
  const Clock::time_point begun = Clock::now();
  Clock::time_point active_at = begun;
  while (!lender.done) {
    bool active = DrainInbox();
    for (const int process : processes) {
      Peer& peer = PeerOf(process);
      if (peer.link() == nullptr) continue;
      if (armed_) peer.link()->Awake(false);
      active |= PollLink(peer);
      if (lender.done) break;
    }
    armed_ = false;
    if (lender.done) break;
    const Clock::time_point now = Clock::now();
    if (active) active_at = now;
    if (now - active_at > kLendIdle || now - begun > kLendMost) break;
    if (active) continue;
    lock.unlock();
    std::this_thread::yield();  // to a peer that shares the core
    lock.lock();
  }
  if (lender.done) {
    group.lend_backoff = 0;
    return;
  }
  calls_.at(id)->lender = nullptr;
  group.lend_backoff = std::min(2 * group.lend_backoff + 1, kLendBackoffMost);
  group.lend_after = group.lend_backoff;
}

// Whether a link has queued something that the sleeping thread does not know of.
bool Reactor::SendsLater(const Group& group) {
  armed_ = true;
  bool later = false;
  for (const int process : CommunicatorOf(group).processes) {
    Link* const link = PeerOf(process).link();
    if (link == nullptr) continue;
    later |= !link->writable_fds().empty() || !link->PrepareToSleep();
  }
  return later;
}

bool Reactor::DrainInbox() {
  if (!inbox_full_.load(std::memory_order_acquire)) return false;
  std::deque<Submission> taken;
  {
    std::lock_guard lock(inbox_mutex_);
    taken.swap(inbox_);
    inbox_full_.store(false, std::memory_order_release);
  }
  for (Submission& submission : taken) Begin(std::move(submission));
  return true;
}

CallId Reactor::Begin(Submission submission) {
  Group& group = *submission.group;
  const CallId id{group.key,
                  next_number_.try_emplace(group.key, seams_.first_call).first->second++};
  auto call = std::make_unique<Call>(*this);
  call->group = submission.group;
  call->id = id;
  call->completions = std::move(submission.completions);
  call->cost = std::move(submission.cost);
  call->lender = submission.lender;
  call->begun = call->moved_at = seams_.now();
  call->run_id = submission.run_id;
  const Communicator& communicator = CommunicatorOf(group);
  const auto it = calls_.emplace(id, std::move(call)).first;
  if (stopping_.load(std::memory_order_relaxed)) {
    EraseEarly(id);
    Finish(it,
           Status(StatusCode::kCancelled, *group.description + ": the process is shutting down"));
    return id;
  }
  if (!communicator.cause.empty()) {
    EraseEarly(id);
    Finish(it, Status(StatusCode::kFailedPrecondition,
                      *group.description +
                          ": this communicator failed earlier and cannot be used any more; the "
                          "first cause was: " +
                          communicator.cause));
    return id;
  }
  // One thread's launches, and those of several devices, come one after the other; so these are of
  // two threads, and their order is a matter of chance.
  for (auto other = calls_.lower_bound({id.key, 0}); other != it; ++other) {
    if (other->first.key != id.key || other->second->run_id == submission.run_id) continue;
    EraseEarly(id);
    Poison(group.communicator,
           *group.description + ": two threads of process " + std::to_string(process_) +
               " have launched equal programs at once, and the other processes cannot tell their "
               "calls apart. Launch equal programs (the same function, or functions of equal code, "
               "constants and shapes) from one thread");
    return id;
  }
  Call& begun = *it->second;
  begun.run = group.plan->MakeRun(std::move(submission.buffers), begun.wire);
  begun.in_run = true;
  begun.run->Begin();
  begun.in_run = false;
  if (TakeEarly(begun)) FinishIfDone(id);
  return id;
}

// Takes the messages that peers had sent before this process made the call. False if it has failed.
bool Reactor::TakeEarly(Call& call) {
  for (const Early& e : EraseEarly(call.id)) {
    const char* wrong = SpeaksForOther(call, e.process, e.fields);
    if (wrong == nullptr) {
      call.in_run = true;
      const bool known =
          e.fields.kind == NoticeKind::kReady ? call.run->OnReady(e.fields.message())
          : e.fields.kind == NoticeKind::kRequest
              ? call.run->OnRequest(e.fields.message())
              : call.run->OnData(e.fields.message(), e.message.data(), e.message.size(),
                                 std::nullopt) != Run::Taken::kUnknown;
      call.in_run = false;
      if (!known) wrong = kUnknownMessage;
      ++call.moves;
    }
    if (wrong == nullptr) continue;
    const CallId id = call.id;
    PeerDown(PeerOf(e.process), wrong);
    if (calls_.count(id) == 0) return false;
  }
  return true;
}

std::vector<Reactor::Early> Reactor::EraseEarly(const CallId& id) {
  const auto it = early_.find(id);
  if (it == early_.end()) return {};
  std::vector<Early> notices = std::move(it->second);
  early_.erase(it);
  std::map<int, uint32_t> taken;
  for (const Early& e : notices) {
    early_bytes_[e.process] -= e.bytes();
    if (e.fields.kind == NoticeKind::kData) taken[e.process] += static_cast<uint32_t>(e.bytes());
  }
  for (const auto& [process, bytes] : taken) {
    NoticeFields fields;
    fields.kind = NoticeKind::kTaken;
    fields.bytes = bytes;
    PeerOf(process).Send(fields);
  }
  return notices;
}

const char* Reactor::SpeaksForOther(const Call& call, int process, const NoticeFields& fields) {
  const std::vector<int>& processes = call.group->process_of_rank;
  const uint32_t from = fields.kind == NoticeKind::kReady ? fields.destination : fields.source;
  if (from < processes.size() && processes[from] == process) return nullptr;
  return "it sent a message for a rank it does not own";
}

void Reactor::FinishIfDone(const CallId& id) {
  const auto it = calls_.find(id);
  if (it == calls_.end() || !it->second->run->done()) return;
  const Status& status = it->second->run->status();
  Finish(it, status.ok() ? status
                         : Status(status.code(),
                                  *it->second->group->description + ": " + status.message()));
}

void Reactor::Finish(std::map<CallId, std::unique_ptr<Call>>::iterator it, const Status& status) {
  std::unique_ptr<Call> call = std::move(it->second);
  calls_.erase(it);
  Detach(*call);
  call->loans.clear();  // whatever came of it, nobody reads its buffers from here on
  call->run.reset();    // returns the slots it kept
  static const auto& ok = *new std::shared_ptr<const Status>(std::make_shared<const Status>());
  std::shared_ptr<const Status> shared = status.ok() ? ok : std::make_shared<const Status>(status);
  recorder_.Add({.description = call->group->description,
                 .begun = call->begun,
                 .ended = seams_.now(),
                 .status = shared,
                 .number = call->id.number});
  if (call->lender != nullptr) {
    *call->lender = {true, std::move(call->completions), std::move(shared)};
    return;
  }
  seams_.complete(std::move(call->completions), std::move(shared), std::move(call->cost));
}

}  // namespace jaxcoll
