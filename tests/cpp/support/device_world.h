// GPUs made of threads: every thread of every block of every rank runs the interpreter kernel, or
// that of ragged exchanges.
//
// A DeviceWorld has ranks with a region each. Run() puts launches one after the other on every
// rank, as a stream does: a rank's next launch begins when all its blocks have ended the last one,
// whatever the other ranks do. Several worlds may run at the same time.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <new>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "gpu/abi/device_table.h"
#include "gpu/abi/ragged_call.h"
#include "gpu/device/interpreter.h"
#include "schedule/schedule.h"
#include "support/pause.h"
#include "support/schedules.h"

namespace jaxcoll::cuda {

// A deadline passes when all threads wait and nothing can happen any more, and never before: no
// test hangs, and none depends on how busy the machine is.
class StuckClock {
 public:
  explicit StuckClock(int threads) : threads_(threads) {}

  // After a change that others may wait for.
  void Progress() { progress_.fetch_add(1, std::memory_order_acq_rel); }
  // A thread has ended.
  void Leave() {
    threads_.fetch_sub(1, std::memory_order_acq_rel);
    Progress();
  }

  // The looks of one thread, wherever it waits: it must not be counted twice.
  struct Looks {
    uint64_t progress = ~uint64_t{0};
    uint64_t count = 0;
  };
  // A waiting thread looks again and again, at its condition in between. At its second look at the
  // same progress it has seen all there is.
  uint64_t NowNs(Looks& looks) {
    const uint64_t progress = progress_.load(std::memory_order_acquire);
    if (looks.progress != progress) looks = {progress, 0};
    if (++looks.count == 2) {
      uint64_t seen = stuck_.load(std::memory_order_acquire);
      while (seen >> 16 <= progress &&
             !stuck_.compare_exchange_weak(
                 seen, seen >> 16 == progress ? seen + 1 : (progress << 16 | 1))) {
      }
    }
    const uint64_t all = progress << 16 | threads_.load(std::memory_order_acquire);
    // Later at every look: a thread that is late with one thing may then be late with the next.
    return stuck_.load(std::memory_order_acquire) == all ? 1 + looks.count * kDeadlineNs : 1;
  }

  static constexpr uint64_t kDeadlineNs = 1000;

 private:
  std::atomic<uint64_t> progress_{1};
  std::atomic<uint64_t> stuck_{0};  // progress and how many threads are stuck at it
  std::atomic<uint64_t> threads_;
};

// The threads of a block, and what they share.
class BlockBarrier {
 public:
  BlockBarrier(int threads, StuckClock& clock) : threads_(threads), clock_(clock) {}
  BlockBarrier(const BlockBarrier&) = delete;
  BlockBarrier& operator=(const BlockBarrier&) = delete;

  unsigned char* pointers[kPointers];
  OperandAddresses operands[kMaxMeeting];

  bool All(bool mine, StuckClock::Looks& looks) {
    if (!mine) bad_.store(true, std::memory_order_relaxed);
    const int round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
      result_ = !bad_.load(std::memory_order_relaxed);
      bad_.store(false, std::memory_order_relaxed);
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      clock_.Progress();
    } else {
      for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins) {
        PauseAmongMany(spins);
        if (spins % 64 == 0) clock_.NowNs(looks);
      }
    }
    return result_;
  }

 private:
  const int threads_;
  StuckClock& clock_;
  std::atomic<int> arrived_{0};
  std::atomic<int> round_{0};
  std::atomic<bool> bad_{false};
  bool result_ = true;  // of the last round; written before round_ is
};

// How threads are disturbed, and what is to go wrong.
struct Disturbance {
  uint32_t seed = 0;
  bool yields = false;  // at random, before and after flags
  int die_after = -1;   // Releases of one thread, then it dies without a word
};

class HostPolicy {
 public:
  HostPolicy(int thread, int threads, BlockBarrier& barrier, StuckClock& clock,
             const Disturbance& disturbance)
      : thread_(thread),
        threads_(threads),
        barrier_(barrier),
        clock_(clock),
        disturbance_(disturbance),
        random_(disturbance.seed) {}

  int thread() const { return thread_; }
  int threads() const { return threads_; }
  bool All(bool mine) {
    if (dead()) mine = false;
    return barrier_.All(mine, looks_);
  }

  unsigned char** pointers() { return barrier_.pointers; }
  OperandAddresses* operands() const { return barrier_.operands; }

  template <typename T>
  static T Load(const void* from) {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(from) % sizeof(T), 0u);
    T value;
    std::memcpy(&value, from, sizeof(value));
    return value;
  }
  template <typename T>
  static void Store(void* to, const T& value) {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(to) % sizeof(T), 0u);
    std::memcpy(to, &value, sizeof(value));
  }

  void Copy(unsigned char* to, const unsigned char* from, int64_t bytes) const {
    for (int64_t i = thread_; i < bytes; i += threads_) to[i] = from[i];
  }

  template <typename T>
  T Acquire(const T* from) {
    return std::atomic_ref<T>(*const_cast<T*>(from)).load(std::memory_order_acquire);
  }
  template <typename T>
  void Release(T* to, T value) {
    Disturb();
    if (disturbance_.die_after >= 0 && releases_++ >= disturbance_.die_after) return;
    std::atomic_ref<T>(*to).store(value, std::memory_order_release);
    clock_.Progress();
    Disturb();
  }
  uint64_t LoadRelaxed(const uint64_t* from) const {
    return std::atomic_ref<uint64_t>(*const_cast<uint64_t*>(from)).load(std::memory_order_relaxed);
  }
  void StoreRelaxed(uint64_t* to, uint64_t value) const {
    std::atomic_ref<uint64_t>(*to).store(value, std::memory_order_relaxed);
  }
  uint32_t Increment(uint32_t* at) {
    if (dead()) return std::numeric_limits<uint32_t>::max() - 1;  // somebody else's turn
    return std::atomic_ref<uint32_t>(*at).fetch_add(1, std::memory_order_acq_rel);
  }
  uint64_t NowNs() { return clock_.NowNs(looks_); }
  StuckClock::Looks& looks() { return looks_; }
  void Pause(int spins) const { PauseAmongMany(spins); }
  void Trap() const {}

 private:
  bool dead() const { return disturbance_.die_after >= 0 && releases_ > disturbance_.die_after; }
  void Disturb() {
    while (disturbance_.yields && random_() % 4 == 0) std::this_thread::yield();
  }

  const int thread_, threads_;
  BlockBarrier& barrier_;
  StuckClock& clock_;
  StuckClock::Looks looks_;
  const Disturbance disturbance_;
  std::minstd_rand random_;
  int releases_ = 0;
};

// A launch.
using DeviceCall = std::variant<TableCall, RaggedTableCall>;
inline const TableCall& TableCallOf(const DeviceCall& call) {
  const auto* const ragged = std::get_if<RaggedTableCall>(&call);
  return ragged != nullptr ? ragged->table_call : std::get<TableCall>(call);
}
inline int BlocksOf(const DeviceCall& call) {
  return BlockCount(*TableCallOf(call).table, TableCallOf(call));
}
// One thread of a block. In a file of its own: there is an interpreter for each dtype.
bool RunBlock(HostPolicy& policy, const DeviceCall& call, int32_t block);

// Memory of a device: aligned and cleared.
class DeviceMemory {
 public:
  static constexpr size_t kPageBytes = 4096;

  explicit DeviceMemory(size_t bytes)
      : bytes_(bytes),
        data_(static_cast<unsigned char*>(::operator new (bytes, std::align_val_t{kPageBytes}))) {
    std::memset(data_, 0, bytes);
  }
  ~DeviceMemory() { ::operator delete (data_, std::align_val_t{kPageBytes}); }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  unsigned char* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  const size_t bytes_;
  unsigned char* const data_;
};

// How streams of launches run.
struct StreamOptions {
  int threads_per_block = 1;
  std::function<Disturbance(int rank, int block)> disturb = {};  // else none
  // On a thread of its own, until no rank runs any more: carries what ranks send to each other.
  std::function<void(StuckClock&, const std::atomic<int>& running)> carry = {};
};

// Puts complete launches one after the other on a stream for each rank, all at the same time.
// Returns whether each rank ended all of its own.
inline std::vector<bool> RunStreams(const std::vector<std::vector<DeviceCall>>& streams,
                                    const StreamOptions& options) {
  struct Rank {
    Rank(int threads, StuckClock& clock) : stream(threads, clock) {}
    std::vector<std::unique_ptr<BlockBarrier>> blocks;
    BlockBarrier stream;
    std::atomic<bool> ok{true};
  };
  const int ranks = static_cast<int>(streams.size());
  const int per_block = options.threads_per_block;
  std::vector<int> blocks(ranks);
  int present = 0;
  for (int rank = 0; rank < ranks; ++rank) {
    for (const DeviceCall& call : streams[rank]) {
      blocks[rank] = std::max(blocks[rank], BlocksOf(call));
    }
    present += blocks[rank] * per_block;
  }
  std::atomic<int> running{present};
  StuckClock clock(present + (options.carry ? 1 : 0));
  std::vector<std::unique_ptr<Rank>> state;
  for (int rank = 0; rank < ranks; ++rank) {
    state.push_back(std::make_unique<Rank>(blocks[rank] * per_block, clock));
    for (int block = 0; block < blocks[rank]; ++block) {
      state.back()->blocks.push_back(std::make_unique<BlockBarrier>(per_block, clock));
    }
  }
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    for (int block = 0; block < blocks[rank]; ++block) {
      for (int thread = 0; thread < per_block; ++thread) {
        threads.emplace_back([&, rank, block, thread] {
          Rank& mine = *state[rank];
          Disturbance disturbance = options.disturb ? options.disturb(rank, block) : Disturbance{};
          disturbance.seed += 97 * rank + 31 * block + thread;
          HostPolicy policy(thread, per_block, *mine.blocks[block], clock, disturbance);
          for (const DeviceCall& call : streams[rank]) {
            if (block < BlocksOf(call) && !RunBlock(policy, call, block)) {
              mine.ok = false;
            }
            if (!mine.stream.All(mine.ok, policy.looks())) break;
          }
          clock.Leave();
          running.fetch_sub(1, std::memory_order_acq_rel);
        });
      }
    }
  }
  if (options.carry) threads.emplace_back([&] { options.carry(clock, running); });
  for (std::thread& thread : threads) thread.join();
  std::vector<bool> ok;
  for (const auto& rank : state) ok.push_back(rank->ok);
  return ok;
}

// One call of a schedule on all ranks; the calls' pointers are set by DeviceWorld::Run.
struct Launches {
  std::vector<DeviceTable> tables;  // by rank
  std::vector<TableCall> calls;     // by rank, with input and output
};

class DeviceWorld {
 public:
  DeviceWorld(int ranks, const RegionSize& size) : causes_(ranks), failing_(ranks) {
    for (int rank = 0; rank < ranks; ++rank) {
      regions_.push_back(std::make_unique<DeviceMemory>(size.bytes));
      addresses_.push_back(regions_.back()->data());
    }
  }

  RegionHeader& header(int rank) {
    return *reinterpret_cast<RegionHeader*>(regions_[rank]->data());
  }
  // All flags of a region, those of launches first: two for each rank.
  Flag* flags(int rank) {
    return reinterpret_cast<Flag*>(regions_[rank]->data() + sizeof(RegionHeader));
  }
  const std::vector<unsigned char*>& addresses() const { return addresses_; }
  void Clear(int rank) { std::memset(regions_[rank]->data(), 0, regions_[rank]->bytes()); }
  const Cause& cause(int rank) const { return causes_[rank].cause; }

  struct Options {
    int threads_per_block = 1;
    std::vector<uint64_t> fingerprints = {};                       // by rank; else all equal
    std::function<Disturbance(int rank, int block)> disturb = {};  // else none
    int absent_rank = -1;                                          // never launches
    std::function<void(int rank, TableCall&)> bind = {};           // replaces pointers of a call
    // As in StreamOptions.
    std::function<void(StuckClock&, const std::atomic<int>& running)> carry = {};
    uint64_t deadline_ns = StuckClock::kDeadlineNs;
  };

  // Whether each rank ended all launches.
  std::vector<bool> Run(const std::vector<Launches*>& launches, const Options& options) {
    const int ranks = static_cast<int>(regions_.size());
    std::vector<std::vector<DeviceCall>> streams(ranks);
    for (int rank = 0; rank < ranks; ++rank) {
      if (rank == options.absent_rank) continue;
      for (Launches* launch : launches) {
        TableCall call = launch->calls[rank];
        call.table = &launch->tables[rank].header();
        call.regions = addresses_.data();
        call.cause = &causes_[rank];
        call.failing = &failing_[rank];
        call.deadline_ns = options.deadline_ns;
        call.fingerprint = options.fingerprints.empty() ? 7 : options.fingerprints[rank];
        if (options.bind) options.bind(rank, call);
        streams[rank].push_back(call);
      }
    }
    std::vector<bool> ok =
        RunStreams(streams, {options.threads_per_block, options.disturb, options.carry});
    if (options.absent_rank >= 0) ok[options.absent_rank] = false;
    return ok;
  }

 private:
  std::vector<std::unique_ptr<DeviceMemory>> regions_;
  std::vector<unsigned char*> addresses_;  // of the regions
  std::vector<CauseRecord> causes_;
  std::vector<uint32_t> failing_;
};

// ---- Schedules to run

// Small enough that a few thousand elements are many slices.
inline constexpr RegionSize kRegion = {.bytes = 256 << 10,
                                       .flag_capacity = 2048,
                                       .max_strands = 2,
                                       .depth = 2,
                                       .max_strip_bytes = 512,
                                       .min_strip_bytes = 256};

inline ScheduleSpec Spec(Collective collective, std::string algorithm, int32_t ranks) {
  ScheduleSpec spec;
  spec.collective = collective;
  spec.algorithm = std::move(algorithm);
  spec.world_size = ranks;
  spec.root = ranks - 1;
  if (collective == Collective::kPermute) {
    // A shift without its last pair: one rank receives nothing.
    for (int32_t r = 0; r + 1 < ranks; ++r) spec.permutation.push_back({r, (r + 2) % ranks});
  }
  return spec;
}

inline std::vector<int32_t> AllRanks(size_t count) {
  std::vector<int32_t> ranks(count);
  std::iota(ranks.begin(), ranks.end(), 0);
  return ranks;
}

}  // namespace jaxcoll::cuda
