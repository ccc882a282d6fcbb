#include "engine/worker_pool.h"

#include <algorithm>
#include <thread>

#include "base/environment.h"

namespace jaxcoll {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::seconds;

// An idle worker looks for this long before it sleeps: waking a sleeper costs more than a small
// collective takes. Between looks it yields, for XLA's threads need the core more.
constexpr microseconds kSpin{50};
// This many light continuations wake a worker: waking it costs as much as running about ten.
constexpr int kLightPerWorker = 24;
// A continuation queued for longer than this while no thread is free is stuck behind a blocked one.
constexpr milliseconds kStuckAfter{15};
constexpr seconds kIdleThreadLeavesAfter{30};
constexpr int kMaxThreads = 4096;

thread_local bool on_worker = false;

}  // namespace

struct WorkerPool::Job {
  struct Level {
    std::atomic<int> next{0};
    std::atomic<int> remaining{0};
    int batches = 0;
  };

  explicit Job(std::unique_ptr<Work> w) : work(std::move(w)), levels(work->LevelCount()) {
    for (size_t i = 0; i < levels.size(); ++i) {
      levels[i].batches = work->BatchCount(static_cast<int>(i));
      levels[i].remaining.store(levels[i].batches, std::memory_order_relaxed);
    }
  }

  int NextNonEmpty(int from) const {
    while (from < static_cast<int>(levels.size()) && levels[from].batches == 0) ++from;
    return from;
  }

  bool HasUnclaimed() const {
    const int current = level.load(std::memory_order_acquire);
    return current < static_cast<int>(levels.size()) &&
           levels[current].next.load(std::memory_order_relaxed) < levels[current].batches;
  }

  std::unique_ptr<Work> work;
  std::vector<Level> levels;
  std::atomic<int> level{0};  // publishes that all earlier levels have ended
  bool queued = false;        // guarded by the pool's mutex
};

WorkerPool& WorkerPool::Get() {
  static WorkerPool* const pool = new WorkerPool;
  return *pool;
}

WorkerPool::WorkerPool() {
  std::lock_guard lock(mutex_);
  for (int i = 0; i < WorkerThreads(); ++i) AddThread(/*permanent=*/true);
}

void WorkerPool::AddThread(bool permanent) {
  ++thread_count_;
  std::thread([this, permanent] { Loop(permanent); }).detach();
}

int WorkerPool::thread_count() const {
  std::lock_guard lock(mutex_);
  return thread_count_;
}

void WorkerPool::Wake(int count) {
  for (int i = 0; i < count; ++i) work_available_.notify_one();
}

void WorkerPool::Run(std::unique_ptr<Work> work) {
  running_.fetch_add(1, std::memory_order_relaxed);
  int batches = 0;
  for (int level = 0; level < work->LevelCount(); ++level) {
    batches = std::max(batches, work->BatchCount(level));
  }
  if (batches <= 1) {
    for (int level = 0; level < work->LevelCount(); ++level) {
      if (work->BatchCount(level) == 1) work->RunBatch(level, 0);
    }
    work.release()->Finish();
    running_.fetch_sub(1, std::memory_order_release);
    return;
  }
  auto job = std::make_shared<Job>(std::move(work));
  job->level.store(job->NextNonEmpty(0), std::memory_order_relaxed);
  Publish(job);
  Participate(job);
}

// Lets workers find the batches of the job's current level.
void WorkerPool::Publish(const std::shared_ptr<Job>& job) {
  const Job::Level& level = job->levels[job->level.load(std::memory_order_relaxed)];
  int wake = 0;
  {
    std::lock_guard lock(mutex_);
    if (level.batches > 1) {
      wake = std::min(level.batches - 1, sleeping_);
      if (!job->queued) {
        job->queued = true;
        jobs_.push_back(job);
        queued_.fetch_add(1, std::memory_order_release);
      }
    }
  }
  Wake(wake);
}

void WorkerPool::Participate(const std::shared_ptr<Job>& job) {
  while (true) {
    const int current = job->level.load(std::memory_order_acquire);
    if (current >= static_cast<int>(job->levels.size())) break;
    Job::Level& level = job->levels[current];
    const int batch = level.next.fetch_add(1, std::memory_order_relaxed);
    if (batch >= level.batches) break;
    job->work->RunBatch(current, batch);
    // acq_rel: the last one sees what all others have written, and publishes it to the next level.
    if (level.remaining.fetch_sub(1, std::memory_order_acq_rel) > 1) continue;
    const int next = job->NextNonEmpty(current + 1);
    job->level.store(next, std::memory_order_release);
    if (next == static_cast<int>(job->levels.size())) {
      job->work.release()->Finish();
      running_.fetch_sub(1, std::memory_order_release);
      break;
    }
    Publish(job);
  }
  std::lock_guard lock(mutex_);
  if (job->queued && !job->HasUnclaimed()) {
    job->queued = false;
    jobs_.erase(std::find(jobs_.begin(), jobs_.end(), job));
    queued_.fetch_sub(1, std::memory_order_relaxed);
  }
}

void WorkerPool::Complete(std::vector<std::unique_ptr<Completion>> completions,
                          std::shared_ptr<const Status> status,
                          std::shared_ptr<ContinuationCost> cost) {
  if (completions.empty()) return;
  const int count = static_cast<int>(completions.size());
  running_.fetch_add(count, std::memory_order_relaxed);
  // A worker comes back to the queue by itself, so a few light ones need nobody else.
  int wanted =
      cost->heavy() ? count : (count + kLightPerWorker - 1) / kLightPerWorker - (on_worker ? 1 : 0);
  const Clock::time_point now = Clock::now();
  {
    std::lock_guard lock(mutex_);
    for (std::unique_ptr<Completion>& completion : completions) {
      continuations_.push_back({std::move(completion), status, cost, now});
    }
    queued_.fetch_add(count, std::memory_order_release);
    wanted = std::min(wanted, sleeping_);
  }
  Wake(wanted);
}

void WorkerPool::RunContinuation(Continuation continuation) {
  const Clock::time_point start = Clock::now();
  continuation.completion->Done(*continuation.status);
  const float us = std::chrono::duration<float, std::micro>(Clock::now() - start).count();
  std::atomic<float>& mean = continuation.cost->mean_us;
  const float old = mean.load(std::memory_order_relaxed);
  mean.store(old + (us - old) / 8, std::memory_order_relaxed);
  continuation = {};
  running_.fetch_sub(1, std::memory_order_release);
}

void WorkerPool::Loop(bool permanent) {
  on_worker = true;
  std::unique_lock lock(mutex_);
  while (true) {
    if (!continuations_.empty()) {
      Continuation continuation = std::move(continuations_.front());
      continuations_.pop_front();
      queued_.fetch_sub(1, std::memory_order_relaxed);
      lock.unlock();
      RunContinuation(std::move(continuation));
      lock.lock();
      continue;
    }
    if (!jobs_.empty()) {
      const std::shared_ptr<Job> job = jobs_.front();
      lock.unlock();
      Participate(job);
      lock.lock();
      continue;
    }
    lock.unlock();
    const Clock::time_point spin_until = Clock::now() + kSpin;
    bool found = false;
    while (!found && Clock::now() < spin_until) {
      found = queued_.load(std::memory_order_acquire) > 0;
      if (!found) std::this_thread::yield();
    }
    lock.lock();
    if (found || !continuations_.empty() || !jobs_.empty()) continue;
    ++sleeping_;
    bool woken = true;
    const auto ready = [this] { return !continuations_.empty() || !jobs_.empty(); };
    if (permanent) {
      work_available_.wait(lock, ready);
    } else {
      woken = work_available_.wait_for(lock, kIdleThreadLeavesAfter, ready);
    }
    --sleeping_;
    if (!woken) {
      --thread_count_;
      return;
    }
  }
}

void WorkerPool::Tick() {
  if (queued_.load(std::memory_order_relaxed) == 0) return;
  std::lock_guard lock(mutex_);
  if (continuations_.empty()) return;
  if (Clock::now() - continuations_.front().queued < kStuckAfter) return;
  const int wanted =
      std::min<int>(static_cast<int>(continuations_.size()), kMaxThreads - thread_count_);
  // Sleepers first: a notification may have been saved too much.
  for (int i = 0; i < sleeping_; ++i) work_available_.notify_one();
  for (int i = sleeping_; i < wanted; ++i) AddThread(/*permanent=*/false);
}

bool WorkerPool::WaitIdle(milliseconds limit) {
  const Clock::time_point end = Clock::now() + limit;
  while (running_.load(std::memory_order_acquire) != 0) {
    if (Clock::now() >= end) return false;
    std::this_thread::sleep_for(milliseconds(1));
  }
  return true;
}

}  // namespace jaxcoll
