// A job of several processes, which are threads, and of devices made of threads (host_runtime.h).
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gpu/host/gpu_communicator.h"
#include "support/host_runtime.h"
#include "support/host_store.h"
#include "support/hosts.h"

namespace jaxcoll::cuda {

// `ranks` devices, dealt to `processes` in turn; all of a process's are its communicator's.
class HostJob {
 public:
  // `hosts`: those of the processes; null if they are on one.
  HostJob(int ranks, int processes, uint64_t workspace_bytes = 1 << 20, Hosts* hosts = nullptr,
          const std::function<void(HostRuntime&, GpuCommunicatorOptions&)>& change = {})
      : hosts_(hosts) {
    std::vector<Member> members;
    for (int rank = 0; rank < ranks; ++rank) {
      members.push_back({rank, rank % processes, rank / processes});
    }
    GpuCommunicatorOptions options;
    options.max_blocks = 3;
    options.workspace_bytes = workspace_bytes;
    // Data on their way in a socket are not seen: then a thread that looks stuck may not be.
    if (hosts != nullptr && hosts->real()) runtime_.deadline_ns = ~uint64_t{0} / 2;
    if (change) change(runtime_, options);
    communicators_.resize(processes);
    OnAllProcesses([&, options](int process) mutable {
      if (hosts != nullptr) {
        options.host = "host " + std::to_string(hosts->host(process));
        options.proxy = &hosts->proxy(process);
      }
      StatusOr<std::unique_ptr<GpuCommunicator>> made =
          GpuCommunicator::Create(members, process, options, &store_, runtime_);
      EXPECT_TRUE(made.ok()) << made.status().message();
      communicators_[process] = std::move(*made);
    });
  }

  template <typename F>
  void OnAllProcesses(F f) {
    std::vector<std::thread> threads;
    std::atomic<int> running = processes();
    for (int process = 0; process < processes(); ++process) {
      threads.emplace_back([&running, process, mine = f]() mutable {
        mine(process);
        --running;
      });
    }
    // Where memory is lent, they wait for links.
    while (hosts_ != nullptr && hosts_->takes_dmabuf && running > 0) {
      hosts_->Pass();
      std::this_thread::yield();
    }
    for (std::thread& thread : threads) thread.join();
  }

  int processes() const { return static_cast<int>(communicators_.size()); }
  GpuCommunicator& communicator(int process) { return *communicators_[process]; }
  HostRuntime& runtime() { return runtime_; }
  bool Run(int replays, StreamOptions options = {}) {
    if (hosts_ != nullptr) options.carry = hosts_->Carrier();
    return runtime_.Run(replays, options);
  }

 private:
  Hosts* const hosts_;
  HostRuntime runtime_;
  HostStore store_;
  std::vector<std::unique_ptr<GpuCommunicator>> communicators_;
};

inline void ExpectSays(const Status& status, std::initializer_list<const char*> words) {
  EXPECT_FALSE(status.ok());
  for (const char* word : words) {
    EXPECT_NE(status.message().find(word), std::string::npos)
        << "no '" << word << "' in: " << status.message();
  }
}

}  // namespace jaxcoll::cuda
