// How a communicator's GPUs reach those of other hosts: the memory of its regions, and its group at
// the proxy (proxy.h).
//
// Two ways. Where the devices export dma-bufs and the link to a process takes them, what is sent to
// its ranks lies in device memory and is read by the NIC; else it lies in pinned host memory and is
// copied by the proxy. A process picks for each other one that it sends to, when the communicator
// is made: the kernels' tables name addresses, and they are for good. So the links are waited for,
// which a call would wait for, too. Both memories are this object's: when a link ends it reads them
// no more, and kernels may still write to them.
//
// A region's memory lasts as long as the communicator: a seat that has been granted to an
// instruction of several processes stays that instruction's, and its launches go on counting.
//
// Thread rule: any thread.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/log.h"
#include "base/status.h"
#include "gpu/abi/runtime.h"
#include "gpu/proxy/proxy.h"

namespace jaxcoll::cuda {

class HostReach {
 public:
  struct Region {
    // By rank: the inbox of a local one, the outbox for one on another host; else null. No more of
    // it than the call's messages need.
    std::vector<unsigned char*> memory;
    std::vector<uint64_t*> doorbells;  // by rank; of local ones
    // By local rank and rank on another host: the outbox for the second in the first's device,
    // whose slots are used and nothing else; null where `memory` has them.
    std::vector<std::vector<unsigned char*>> slots;

    // The place where kernels of `rank` put messages for `peer`.
    unsigned char* SlotsOf(int rank, int peer) const {
      unsigned char* const lent = slots[rank].empty() ? nullptr : slots[rank][peer];
      return lent != nullptr ? lent : memory[peer];
    }
  };

  struct Options {
    bool lend = true;  // device memory, where that is possible
    double timeout_s = 300;
  };

  // `ordinals`: by rank, the device in its process. `spec`: without `abort`.
  static StatusOr<std::unique_ptr<HostReach>> Create(HostProxy& proxy, Runtime& runtime,
                                                     std::vector<int> ordinals, int process,
                                                     HostProxy::HostGroupSpec spec,
                                                     const Options& options);
  ~HostReach();
  HostReach(const HostReach&) = delete;
  HostReach& operator=(const HostReach&) = delete;

  // Whether the rank is on another host than this process.
  bool IsRemote(int rank) const { return spec_.host_of_rank[rank] != host_; }
  // The region of a seat, made when it is asked for first; then `routes` are what they were.
  StatusOr<const Region*> Open(uint32_t seat, HostRoutes routes, const std::string& description);

  const std::vector<int>& host_of_rank() const { return spec_.host_of_rank; }
  const uint32_t* abort() const { return spec_.abort; }
  // Why the group has failed. Takes a lock only if it has.
  std::optional<std::string> Cause() const;
  void Fail(const std::string& cause) { proxy_.Fail(spec_.id, cause); }

  // For people: how many hosts, which memory, and which way to which process.
  std::string Describe() const;

 private:
  // Memory is given out for good.
  struct Slab {
    unsigned char* next = nullptr;
    uint64_t left = 0;
  };

  HostReach(HostProxy& proxy, Runtime& runtime, std::vector<int> ordinals, int process,
            HostProxy::HostGroupSpec spec);
  bool IsLocal(int rank) const { return spec_.process_of_rank[rank] == process_; }
  std::vector<uint64_t> Needed(const HostRoutes& routes, const Region& region) const;
  // All below: mutex_ held.
  void Pick(const Options& options);
  void Copy(int process, const std::string& why, LogLevel level);
  bool LendsTo(int rank) const { return takers_.count(spec_.process_of_rank[rank]) != 0; }
  StatusOr<unsigned char*> Allocate(uint64_t bytes);
  void NewDeviceSlab(int rank, uint64_t bytes);
  std::vector<unsigned char*> AllocateSlots(int rank, const HostRoutes& routes);

  HostProxy& proxy_;
  Runtime& runtime_;
  const std::vector<int> ordinals_;
  const int process_;
  HostProxy::HostGroupSpec spec_;
  int host_ = 0;

  mutable std::mutex mutex_;                                  // guards what follows
  std::map<uint32_t, Region> regions_;                        // by seat
  std::vector<unsigned char*> slabs_;                         // of host memory
  std::vector<std::pair<int, unsigned char*>> device_slabs_;  // by rank
  Slab host_slab_;                                            // the last one
  std::map<int, Slab> device_slab_;                           // of each local rank
  uint64_t bytes_ = 0, device_bytes_ = 0;                     // of all slabs
  std::set<int> takers_;                                      // processes that are lent to
  std::map<int, std::string> copied_;                         // others, and why they are not
};

}  // namespace jaxcoll::cuda
