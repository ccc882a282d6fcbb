// How a communicator's GPUs reach those of other hosts: the host memory of its regions, and its
// group at the proxy (host_proxy.h).
//
// A region's memory lasts as long as the communicator: a lane that has been granted to an
// instruction of several processes stays that instruction's, and its launches go on counting.
//
// Thread rule: any thread.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "cuda/host_proxy.h"
#include "cuda/runtime.h"

namespace jaxcoll::cuda {

class HostReach {
 public:
  struct Region {
    // By rank: the inbox of a local one, the outbox for one on another host; else null. No more of
    // it than the call's messages need.
    std::vector<unsigned char*> memory;
    std::vector<uint64_t*> doorbells;  // by rank; of local ones
  };

  // `ordinal`: a device of this process. `spec`: without `abort`.
  static StatusOr<std::unique_ptr<HostReach>> Create(HostProxy& proxy, Runtime& runtime,
                                                     int ordinal, int process,
                                                     HostProxy::GroupSpec spec);
  ~HostReach();
  HostReach(const HostReach&) = delete;
  HostReach& operator=(const HostReach&) = delete;

  // Whether the rank is on another host than this process.
  bool IsRemote(int rank) const { return spec_.host_of_rank[rank] != host_; }
  // The region of a lane, made when it is asked for first; then `routes` are what they were.
  StatusOr<const Region*> Open(uint32_t lane, HostRoutes routes, const std::string& description);

  const std::vector<int>& host_of_rank() const { return spec_.host_of_rank; }
  const uint32_t* abort() const { return spec_.abort; }
  // Why the group has failed. Takes a lock only if it has.
  std::optional<std::string> Cause() const;
  void Fail(const std::string& cause) { proxy_.Fail(spec_.id, cause); }

  int hosts() const;
  uint64_t bytes() const;  // of pinned host memory

 private:
  HostReach(HostProxy& proxy, Runtime& runtime, int ordinal, int process,
            HostProxy::GroupSpec spec);
  bool IsLocal(int rank) const { return spec_.process_of_rank[rank] == process_; }
  StatusOr<unsigned char*> Allocate(uint64_t bytes);  // mutex_ held
  std::vector<uint64_t> Needed(const HostRoutes& routes) const;

  HostProxy& proxy_;
  Runtime& runtime_;
  const int ordinal_;
  const int process_;
  HostProxy::GroupSpec spec_;
  int host_ = 0;

  mutable std::mutex mutex_;
  std::map<uint32_t, Region> regions_;  // by lane; guarded by mutex_
  std::vector<unsigned char*> slabs_;   // guarded by mutex_
  unsigned char* next_ = nullptr;       // of the last slab; guarded by mutex_
  uint64_t left_ = 0;                   // of it; guarded by mutex_
  uint64_t bytes_ = 0;                  // of all slabs; guarded by mutex_
};

}  // namespace jaxcoll::cuda
