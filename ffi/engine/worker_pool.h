// Worker threads, which run the batches of large works and the continuations of completed calls.
//
// Continuations. Completing an XLA future runs the device's next thunks on the completing thread.
// They never run inside a handler: a handler's frame belongs to one device, and a continuation may
// block until that very device moves on (XLA's own collectives block). Here they run one after the
// other from the bottom of a worker's stack, so a chain of small collectives costs no wake-up after
// the first and no stack depth. If continuations are long (by an EWMA per call site), more workers
// are woken. If they block, threads are added until the queue moves: at most one per queued
// continuation, as many as XLA itself would have blocked. Added threads end when idle.
//
// Thread rule: every method may be called from any thread. The pool is created once and never
// destroyed: a static object with waiting threads hangs a process at exit.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "engine/completion.h"
#include "engine/work.h"

namespace jaxcoll {

// How long the continuations of a call site take. Written racily: a lost update does no harm.
struct ContinuationCost {
  std::atomic<float> mean_us{0};
  bool heavy() const { return mean_us.load(std::memory_order_relaxed) > 30; }
};

class WorkerPool {
 public:
  static WorkerPool& Get();

  // Runs `work` on this thread and, if there is enough of it, on workers. Returns when no batch is
  // left to claim; others may still be running theirs. Work::Finish is called when all is done.
  void Run(std::unique_ptr<Work> work);

  // Completes calls from a worker's stack. `cost` is that of their call site.
  void Complete(std::vector<std::unique_ptr<Completion>> completions,
                std::shared_ptr<const Status> status, std::shared_ptr<ContinuationCost> cost);

  // Called by the watchdog every few milliseconds: adds threads if continuations are stuck.
  void Tick();

  // Waits until nothing runs and nothing is queued, but no longer than `limit`. Returns whether
  // this is so.
  bool WaitIdle(std::chrono::milliseconds limit);

  int thread_count() const;

 private:
  using Clock = std::chrono::steady_clock;

  struct Continuation {
    std::unique_ptr<Completion> completion;
    std::shared_ptr<const Status> status;
    std::shared_ptr<ContinuationCost> cost;
    Clock::time_point queued;
  };
  struct Job;

  WorkerPool();
  void AddThread(bool permanent);  // mutex_ held
  void Loop(bool permanent);
  void Participate(const std::shared_ptr<Job>& job);
  void Publish(const std::shared_ptr<Job>& job);
  void RunContinuation(Continuation continuation);
  void Wake(int count);

  mutable std::mutex mutex_;
  std::condition_variable work_available_;
  std::deque<Continuation> continuations_;  // guarded by mutex_
  std::deque<std::shared_ptr<Job>> jobs_;   // guarded by mutex_; those with batches to claim
  int thread_count_ = 0;                    // guarded by mutex_
  int sleeping_ = 0;                        // guarded by mutex_
  std::atomic<int> queued_{0};   // continuations and jobs; lets idle workers look without the lock
  std::atomic<int> running_{0};  // works and continuations not finished
};

}  // namespace jaxcoll
