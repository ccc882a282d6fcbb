#include "executor/watchdog.h"

#include <atomic>
#include <thread>

#include "executor/call_site.h"
#include "executor/worker_pool.h"

namespace jaxcoll {
namespace {

// Often enough that a continuation stuck behind a blocked one moves soon (WorkerPool::Tick).
constexpr std::chrono::milliseconds kTick{20};

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

void Watchdog::Tick() {
  const CallSite::Clock::time_point now = CallSite::Clock::now();
  std::lock_guard lock(mutex_);
  const CallSite::Clock::duration stopped = stopped_time_.Since(now);
  if (stopped > CallSite::Clock::duration::zero()) {
    for (CallSite* site : sites_) site->PutOffDeadlines(now, stopped);
  }
  bool overdue = false;
  for (CallSite* site : sites_) overdue |= site->HasOverdue(now);
  if (!overdue) return;
  // What everybody waits for is collected before anything fails, so that two calls that wait for
  // each other name each other.
  WaitingTable waiting;
  for (CallSite* site : sites_) site->DescribeWaiting(waiting);
  for (CallSite* site : sites_) site->FailOverdue(now, waiting);
}

bool Watchdog::closing() { return is_closing.load(std::memory_order_acquire); }

void Watchdog::Close() {
  is_closing.store(true, std::memory_order_release);
  std::lock_guard lock(mutex_);
  for (CallSite* site : sites_) {
    site->FailAll(Status(StatusCode::kCancelled, "the process is shutting down"));
  }
}

}  // namespace jaxcoll
