// The process's call sites and the thread that enforces their deadlines.
#pragma once

#include <atomic>
#include <chrono>
#include <mutex>
#include <string>
#include <unordered_set>
#include <vector>

#include "base/stopped_time.h"
#include "call/snapshot.h"

namespace jaxcoll {

class CallSite;

// Thread rule: any thread. Created once, never destroyed (see WorkerPool).
class Watchdog {
 public:
  static Watchdog& Get();

  void Add(CallSite* site);
  void Remove(CallSite* site);  // waits for a tick that looks at it
  int call_site_count();
  std::vector<std::string> DescribePending();
  std::vector<HalfMadeCall> HalfMadeCalls();

  // Fails all pending calls; from then on closing() is true and calls fail on arrival.
  void Close();
  static bool closing();

 private:
  Watchdog();
  void Tick();
  void CheckInterruption();
  // Calls that have waited since before that; also those whose messages still come, if `moving`.
  void FailInterrupted(std::chrono::steady_clock::time_point before, bool moving);

  std::mutex mutex_;
  std::unordered_set<CallSite*> sites_;  // guarded by mutex_
  StoppedTime stopped_time_;             // the thread's
  std::mutex interpreter_mutex_;         // held by a thread that waits for the interpreter's lock
  std::atomic<bool> interrupting_{false};
};

}  // namespace jaxcoll
