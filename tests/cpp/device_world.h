// GPUs made of threads: every thread of every block of every rank runs the interpreter kernel.
//
// A World has ranks with a region each. Run() puts launches one after the other on every rank, as
// a stream does: a rank's next launch begins when all its blocks have ended the last one, whatever
// the other ranks do. Several worlds may run at the same time.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cuda/device_program.h"
#include "cuda/interpreter.h"

namespace jaxcoll::cuda {

// The threads of a block, and what they share. Spins and yields: there may be many more threads than cores.
class BlockBarrier {
 public:
  explicit BlockBarrier(int threads) : threads_(threads) {}
  BlockBarrier(const BlockBarrier&) = delete;
  BlockBarrier& operator=(const BlockBarrier&) = delete;

  unsigned char* pointers[kPointers];

  bool All(bool mine) {
    if (!mine) bad_.store(true, std::memory_order_relaxed);
    const int round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
      result_ = !bad_.load(std::memory_order_relaxed);
      bad_.store(false, std::memory_order_relaxed);
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
    } else {
      while (round_.load(std::memory_order_acquire) == round) std::this_thread::yield();
    }
    return result_;
  }

 private:
  const int threads_;
  std::atomic<int> arrived_{0};
  std::atomic<int> round_{0};
  std::atomic<bool> bad_{false};
  bool result_ = true;  // of the last round; written before round_ is
};

// How threads are disturbed, and what is to go wrong.
struct Disturbance {
  uint32_t seed = 0;
  bool yields = false;  // at random, before and after flags
  int die_after = -1;   // Releases of one thread, then it is gone without a word
};

class HostPolicy {
 public:
  HostPolicy(int thread, int threads, BlockBarrier& barrier, const Disturbance& disturbance)
      : thread_(thread),
        threads_(threads),
        barrier_(barrier),
        disturbance_(disturbance),
        random_(disturbance.seed) {}

  int thread() const { return thread_; }
  int threads() const { return threads_; }
  bool All(bool mine) {
    if (dead()) mine = false;
    return barrier_.All(mine);
  }

  unsigned char** pointers() { return barrier_.pointers; }

  template <typename T>
  T Load(const void* from) const {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(from) % sizeof(T), 0u);
    T value;
    std::memcpy(&value, from, sizeof(value));
    return value;
  }
  template <typename T>
  void Store(void* to, const T& value) const {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(to) % sizeof(T), 0u);
    std::memcpy(to, &value, sizeof(value));
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
    Disturb();
  }
  uint32_t Increment(uint32_t* at) {
    if (dead()) return std::numeric_limits<uint32_t>::max() - 1;  // somebody else's turn
    return std::atomic_ref<uint32_t>(*at).fetch_add(1, std::memory_order_acq_rel);
  }
  uint64_t NowNs() const {
    return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1);
  }
  void Pause(int) const { std::this_thread::yield(); }
  void Trap() const {}

 private:
  bool dead() const { return disturbance_.die_after >= 0 && releases_ > disturbance_.die_after; }
  void Disturb() {
    while (disturbance_.yields && random_() % 4 == 0) std::this_thread::yield();
  }

  const int thread_, threads_;
  BlockBarrier& barrier_;
  const Disturbance disturbance_;
  std::minstd_rand random_;
  int releases_ = 0;
};

// RunBlock for a dtype that is known at run time.
template <int kDType = 0>
bool RunBlock(HostPolicy& policy, const ProgramCall& call, int32_t block) {
  if constexpr (kDType == kDTypeCount) {
    return false;
  } else {
    if (call.dtype != kDType) return RunBlock<kDType + 1>(policy, call, block);
    return Interpreter<HostPolicy, static_cast<DType>(kDType)>(policy, call, block).Run();
  }
}

// Memory of a device: aligned and cleared.
class DeviceMemory {
 public:
  explicit DeviceMemory(size_t bytes)
      : bytes_(bytes),
        data_(
            static_cast<unsigned char*>(::operator new (bytes, std::align_val_t{kSlotAlignment}))) {
    std::memset(data_, 0, bytes);
  }
  ~DeviceMemory() { ::operator delete (data_, std::align_val_t{kSlotAlignment}); }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  unsigned char* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  const size_t bytes_;
  unsigned char* const data_;
};

// One call of a schedule on all ranks; the calls' pointers are set by World::Run.
struct Launch {
  std::vector<DeviceProgram> programs;  // by rank
  std::vector<ProgramCall> calls;       // by rank, with input and output
};

class World {
 public:
  World(int ranks, const RegionSize& size) : size_(size), causes_(ranks) {
    for (int rank = 0; rank < ranks; ++rank) {
      regions_.push_back(std::make_unique<DeviceMemory>(size.bytes));
    }
  }

  RegionHeader& header(int rank) {
    return *reinterpret_cast<RegionHeader*>(regions_[rank]->data());
  }
  const ProgramCause& cause(int rank) const { return causes_[rank]; }

  struct Options {
    int threads_per_block = 1;
    uint64_t deadline_ns = 120'000'000'000;
    std::vector<uint64_t> fingerprints = {};                       // by rank; else all equal
    std::function<Disturbance(int rank, int block)> disturb = {};  // else none
    int absent_rank = -1;                                          // never launches
  };

  // Whether each rank ended all launches.
  std::vector<bool> Run(const std::vector<Launch*>& launches, const Options& options) {
    const int ranks = static_cast<int>(regions_.size());
    std::vector<std::unique_ptr<Rank>> state;
    std::vector<std::thread> threads;
    for (int rank = 0; rank < ranks; ++rank) {
      int most = 0;
      for (Launch* launch : launches) {
        ProgramCall& call = launch->calls[rank];
        call.program = &launch->programs[rank].header();
        for (int peer = 0; peer < ranks; ++peer) call.regions[peer] = regions_[peer]->data();
        call.cause = &causes_[rank];
        call.deadline_ns = options.deadline_ns;
        call.fingerprint = options.fingerprints.empty() ? 7 : options.fingerprints[rank];
        most = std::max(most, BlockCount(*call.program, call));
      }
      const int per_block = options.threads_per_block;
      state.push_back(std::make_unique<Rank>(most * per_block));
      for (int block = 0; block < most; ++block) {
        state.back()->blocks.push_back(std::make_unique<BlockBarrier>(per_block));
      }
    }
    for (int rank = 0; rank < ranks; ++rank) {
      if (rank == options.absent_rank) {
        state[rank]->ok = false;
        continue;
      }
      const int blocks = static_cast<int>(state[rank]->blocks.size());
      for (int block = 0; block < blocks; ++block) {
        for (int thread = 0; thread < options.threads_per_block; ++thread) {
          threads.emplace_back([&, rank, block, thread] {
            Rank& mine = *state[rank];
            Disturbance disturbance =
                options.disturb ? options.disturb(rank, block) : Disturbance{};
            disturbance.seed += 97 * rank + 31 * block + thread;
            HostPolicy policy(thread, options.threads_per_block, *mine.blocks[block], disturbance);
            for (Launch* launch : launches) {
              const ProgramCall& call = launch->calls[rank];
              if (block < BlockCount(*call.program, call) && !RunBlock(policy, call, block)) {
                mine.ok = false;
              }
              if (!mine.stream.All(mine.ok)) return;
            }
          });
        }
      }
    }
    for (std::thread& thread : threads) thread.join();
    std::vector<bool> ok;
    for (const auto& rank : state) ok.push_back(rank->ok);
    return ok;
  }

 private:
  struct Rank {
    explicit Rank(int threads) : stream(threads) {}
    std::vector<std::unique_ptr<BlockBarrier>> blocks;
    BlockBarrier stream;
    std::atomic<bool> ok{true};
  };

  const RegionSize size_;
  std::vector<std::unique_ptr<DeviceMemory>> regions_;
  std::vector<ProgramCause> causes_;
};

}  // namespace jaxcoll::cuda
