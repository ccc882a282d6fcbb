// The GPUs of one group, and the workspace that each of them has.
//
// It is made at the first call of its group and lives as long as the process: a group
// that comes back finds its workspace and its counters. It is known by its device ids, so all
// meshes that have the group share it.
//
// Hosts. Processes count as being on one host as they do for CPUs (JAXCOLL_HOST_ID). Ranks of other
// hosts are reached by kernels of messages alone, through host memory and a proxy:
// gpu/proxy/reach.h.
//
// Reach. If all ranks are of this process, kernels reach each other's operands. Else they reach
// each other's workspaces, by CUDA IPC, and operands are staged there, unless these could be
// mapped, too: operand_map.h.
//
// Thread rule: Create, TakeSeat and ReturnSeat from any thread; they may block for other
// processes, and wait for the store, without a lock that a launch needs. Cause may be called at any
// time and is cheap.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "gpu/abi/layout.h"
#include "gpu/abi/runtime.h"
#include "gpu/host/operand_map.h"
#include "gpu/host/store.h"
#include "gpu/proxy/reach.h"

namespace jaxcoll::cuda {

struct Member {
  int64_t device_id = 0;
  int process = 0;
  int ordinal = 0;  // of the device in its process
};

struct GpuCommunicatorOptions {
  bool staged = false;                   // even where operands could be reached
  int max_blocks = 32;                   // of a launch; the smallest of all processes counts
  uint64_t workspace_bytes = 128 << 20;  // per rank; equal in all processes
  double timeout_s = 300;
  bool lend = true;            // device memory, to the links to other hosts that take it
  std::string host;            // of this process, if there are several: equal ids are one host
  HostProxy* proxy = nullptr;  // null if this process is not linked to any other
  // Where programs have their arrays: the allocation that holds this address is offered to other
  // processes. Null: it is not.
  const void* operand = nullptr;
};

// A call site's part of the workspace: a seat, where its ranks meet, and an area. Equal on all
// ranks.
struct SeatGrant {
  uint32_t seat = 0;
  uint64_t area = 0;        // byte in the workspace
  uint64_t area_bytes = 0;  // all zero when it is granted
};

// The resources that a call site needs. Equal on all ranks.
struct SeatRequest {
  // If other processes take part: the call site, by the same name in all of them.
  std::string key;
  std::string description;   // for people
  uint64_t fingerprint = 0;  // part of the key
  // How large its area shall be if so many bytes may be taken; 0 if they do not suffice. Null: it
  // needs none.
  std::function<uint64_t(uint64_t available)> area_bytes;
};

class GpuCommunicator {
 public:
  // `process` is this one. `store` may be null if it has all members.
  static StatusOr<std::unique_ptr<GpuCommunicator>> Create(std::vector<Member> members, int process,
                                                           const GpuCommunicatorOptions& options,
                                                           Store* store, Runtime& runtime);
  ~GpuCommunicator();
  GpuCommunicator(const GpuCommunicator&) = delete;
  GpuCommunicator& operator=(const GpuCommunicator&) = delete;

  int world_size() const { return static_cast<int>(members_.size()); }
  const Member& member(int rank) const { return members_[rank]; }
  bool is_local(int rank) const { return members_[rank].process == process_; }
  bool staged() const { return staged_; }
  int max_blocks() const { return max_blocks_; }
  uint64_t workspace_bytes() const { return options_.workspace_bytes; }

  Runtime& runtime() const { return runtime_; }
  // Null if all ranks are on one host.
  HostReach* reach() const { return reach_.get(); }
  // Null where no operand of another process can be reached. So on all ranks, or on none.
  const OperandMap* operands() const { return operands_.get(); }
  // A rank's workspace as the device of a local rank maps it; null for a rank of another host.
  unsigned char* workspace(int rank, int seen_by) const { return workspaces_[rank][seen_by]; }
  CauseRecord* cause_record(int rank) const { return causes_ + rank; }
  uint64_t deadline_ns() const { return static_cast<uint64_t>(options_.timeout_s * 1e9); }

  // A seat for a call site. If other processes take part, the process of rank 0 decides.
  StatusOr<SeatGrant> TakeSeat(const SeatRequest& request);
  // The call site is destroyed. (Where other processes take part it may come back: then it keeps
  // it.)
  void ReturnSeat(const SeatGrant& seat);

  // Why a kernel of this process has given up, for people; nothing while none has.
  std::optional<std::string> Cause() const;

  // Logs the causes of all communicators as they appear: XLA's own error does not name them.
  static void StartMonitor();
  static void StopMonitor();
  static std::vector<std::string> AllCauses();
  static std::vector<std::string> DescribeAll();  // a line for each, for `jaxcoll info`

 private:
  GpuCommunicator(std::vector<Member> members, int process, const GpuCommunicatorOptions& options,
                  Store* store, Runtime& runtime);
  Status Init();
  Status EnablePeerAccess();
  Status Allocate();
  Status MapPeers();
  Status ReachHosts(const std::vector<std::string>& host_of_rank);
  StatusOr<SeatGrant> Agree(const SeatRequest& request, const std::string& key);  // mutex_ held
  StatusOr<SeatGrant> Grant(const SeatRequest& request);                          // mutex_ held
  Status GrantArea(const SeatRequest& request, SeatGrant& grant);                 // mutex_ held
  void ReturnArea(const SeatGrant& grant);                                        // mutex_ held
  std::string Key(const std::string& what) const;
  std::optional<std::string> KernelsCause() const;
  std::vector<std::string> Names() const;

  const std::vector<Member> members_;
  const int process_;
  const GpuCommunicatorOptions options_;
  Store* const store_;
  Runtime& runtime_;
  bool all_local_ = true;
  bool staged_ = false;
  int max_blocks_ = 1;
  uint32_t seat_count_ = 0;
  // [of rank][as seen by the device of local rank]; null for ranks of other processes.
  std::vector<std::vector<unsigned char*>> workspaces_;
  CauseRecord* causes_ = nullptr;  // pinned host memory, by rank
  std::unique_ptr<HostReach> reach_;
  std::unique_ptr<OperandMap> operands_;

  std::mutex mutex_;
  std::deque<uint32_t> free_seats_;    // guarded by mutex_; returned ones go last
  std::map<uint64_t, uint64_t> gaps_;  // between areas: begin, bytes; guarded by mutex_
  uint64_t areas_used_ = 0;            // guarded by mutex_; what lies behind has never been granted
  std::map<std::string, StatusOr<SeatGrant>> granted_;  // guarded by mutex_; with other processes
  mutable std::mutex descriptions_mutex_;
  std::map<uint32_t, std::string> descriptions_;  // by seat; guarded by descriptions_mutex_
};

}  // namespace jaxcoll::cuda
