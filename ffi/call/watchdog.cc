#include "call/watchdog.h"

#include <unistd.h>

#include <atomic>
#include <thread>

#include "base/environment.h"
#include "base/interruption.h"
#include "call/call_site.h"
#include "call/interprocess.h"
#include "engine/worker_pool.h"

namespace jaxcoll {
namespace {

// Often enough that a continuation stuck behind a blocked one moves soon (WorkerPool::Tick).
constexpr std::chrono::milliseconds kTick{20};
// How long a call that pends at Ctrl-C may take to end by itself: half a second. One that moves
// takes milliseconds, and a main thread that does not wait in C++ notices by itself.
constexpr int kInterruptionTicks = 25;

std::atomic<bool> is_closing{false};

}  // namespace

Watchdog& Watchdog::Get() {
  static Watchdog* const watchdog = new Watchdog;
  return *watchdog;
}

Watchdog::Watchdog() {
  std::thread([this] {
    while (!closing()) {
      std::this_thread::sleep_for(kTick);
      WorkerPool::Get().Tick();
      Tick();
      CheckInterruption();
    }
  }).detach();
}

void Watchdog::Add(CallSite* site) {
  std::lock_guard lock(mutex_);
  sites_.insert(site);
}

void Watchdog::Remove(CallSite* site) {
  std::lock_guard lock(mutex_);
  sites_.erase(site);
}

int Watchdog::call_site_count() {
  std::lock_guard lock(mutex_);
  return static_cast<int>(sites_.size());
}

std::vector<std::string> Watchdog::DescribePending() {
  std::lock_guard lock(mutex_);
  std::vector<std::string> lines;
  for (CallSite* site : sites_) {
    for (std::string& line : site->DescribePending()) lines.push_back(std::move(line));
  }
  return lines;
}

std::vector<HalfMadeCall> Watchdog::HalfMadeCalls() {
  std::lock_guard lock(mutex_);
  std::vector<HalfMadeCall> calls;
  for (CallSite* site : sites_) site->AddHalfMade(calls);
  return calls;
}

void Watchdog::Tick() {
  const CallSite::Clock::time_point now = CallSite::Clock::now();
  std::lock_guard lock(mutex_);
  const CallSite::Clock::duration stopped = stopped_time_.Since(now);
  if (stopped > CallSite::Clock::duration::zero()) {
    for (CallSite* site : sites_) site->PutOffDeadlines(now, stopped);
  }
  bool overdue = false, look = false;
  for (CallSite* site : sites_) {
    look |= site->WantsLook(now);
    overdue |= site->HasOverdue(now);
  }
  if (!overdue && !look) return;
  // All waits are collected before anything fails, so that two calls that wait for
  // each other name each other.
  WaitingTable waiting;
  for (CallSite* site : sites_) site->DescribeWaiting(waiting);
  bool told = false;  // calls that wait for each other name each other: one of them is enough
  for (CallSite* site : sites_) told |= site->WarnOfMismatch(now, waiting, told);
  if (!overdue) return;
  for (CallSite* site : sites_) site->FailOverdue(now, waiting);
}

// A thread of its own, for it waits for the interpreter's lock, whose holder may wait for ours.
void Watchdog::CheckInterruption() {
  Interruption& interruption = Interruption::Get();
  if (!interruption.Check(kInterruptionTicks) || interrupting_.exchange(true)) return;
  interruption.Take();
  const CallSite::Clock::time_point came = interruption.came();
  std::thread([this, &interruption, came] {
    bool raises = false;
    {
      std::lock_guard lock(interpreter_mutex_);
      raises = !closing() && interruption.interpreter().raises_on_interrupt();
    }
    // A program that handles SIGINT by itself, to stop gracefully, keeps its collectives.
    if (raises && !closing()) FailInterrupted(came, interruption.unheard());
    // Behind a call that fails the next of a queue may begin to wait, and the main thread for it.
    while (raises && !closing() && interruption.unheard()) {
      FailInterrupted(CallSite::Clock::now() - kInterruptionTicks * kTick, true);
      std::this_thread::sleep_for(kTick);
    }
    interrupting_.store(false);
  }).detach();
}

void Watchdog::FailInterrupted(CallSite::Clock::time_point before, bool moving) {
  Interprocess* const processes = Interprocess::Get();
  const std::string who =
      processes == nullptr ? "the process" : "process " + std::to_string(processes->process());
  char host[256] = "";
  (void)gethostname(host, sizeof(host) - 1);
  const std::string reason =
      who + " (pid " + std::to_string(getpid()) + " on " + host + ") was interrupted (Ctrl-C)";
  {
    std::lock_guard lock(mutex_);
    for (CallSite* site : sites_) site->FailBegunBefore(before, reason);
  }
  if (processes != nullptr) processes->FailBegunBefore(before, moving, reason);
}

bool Watchdog::closing() { return is_closing.load(std::memory_order_acquire); }

void Watchdog::Close() {
  is_closing.store(true, std::memory_order_release);
  // Nobody asks the interpreter anything after this.
  { std::lock_guard lock(interpreter_mutex_); }
  std::lock_guard lock(mutex_);
  for (CallSite* site : sites_) {
    site->FailAll(Status(StatusCode::kCancelled, "the process is shutting down"));
  }
}

}  // namespace jaxcoll
