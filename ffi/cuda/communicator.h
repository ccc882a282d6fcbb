// The GPUs of one group, and the workspace that each of them has.
//
// A communicator is made at the first call of its group and lives as long as the process: a group
// that comes back finds its workspace and its counters. It is known by its device ids, so all
// meshes that have the group share it.
//
// Reach. If all ranks are of this process, kernels reach each other's operands. Else they reach
// each other's workspaces, by CUDA IPC, and operands are staged there.
//
// Thread rule: Create, TakeLane and ReturnLane from any thread; they may block for other
// processes, and call Exchange, without a lock that a launch needs. Cause may be called at any time
// and is cheap.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "cuda/call_plan.h"
#include "cuda/exchange.h"
#include "cuda/layout.h"

namespace jaxcoll::cuda {

struct Member {
  int64_t device_id = 0;
  int process = 0;
  int ordinal = 0;  // of the device in its process
};

struct CommunicatorOptions {
  bool staged = false;                   // even where operands could be reached
  int max_blocks = 32;                   // of a launch; the smallest of all processes counts
  uint64_t workspace_bytes = 128 << 20;  // per rank; equal in all processes
  double timeout_s = 300;
};

// Where a call site's calls meet. Equal on all ranks.
struct LaneGrant {
  uint32_t lane = 0;
  uint64_t staging = 0;    // byte in the workspace
  int64_t slot_bytes = 0;  // 0 where nothing is staged
};

class Communicator {
 public:
  // `process` is this one. `exchange` may be null if it has all members.
  static StatusOr<std::unique_ptr<Communicator>> Create(std::vector<Member> members, int process,
                                                        const CommunicatorOptions& options,
                                                        Exchange* exchange);
  ~Communicator();
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  int world_size() const { return static_cast<int>(members_.size()); }
  const Member& member(int rank) const { return members_[rank]; }
  bool is_local(int rank) const { return members_[rank].process == process_; }
  bool staged() const { return staged_; }
  int max_blocks() const { return max_blocks_; }
  uint64_t workspace_bytes() const { return options_.workspace_bytes; }

  // A lane for a call site. Where other processes take part, `key` says which call site it is, and
  // is the same for all of them; the process of rank 0 decides. `description` is for people.
  StatusOr<LaneGrant> TakeLane(const CallPlan& plan, const std::string& key,
                               const std::string& description);
  // The call site is gone. (Where other processes take part it may come back: then it keeps it.)
  void ReturnLane(const LaneGrant& lane);

  // Adds to a call what belongs to this communicator and the lane.
  void Complete(const LaneGrant& lane, Call& call) const;

  // Why a kernel of this process has given up, for people; nothing while none has.
  std::optional<std::string> Cause() const;

  // Logs the causes of all communicators as they appear: XLA's own error does not name them.
  static void StartMonitor();
  static void StopMonitor();
  static std::vector<std::string> AllCauses();
  static std::vector<std::string> DescribeAll();  // a line for each, for `jaxcoll info`

 private:
  Communicator(std::vector<Member> members, int process, const CommunicatorOptions& options,
               Exchange* exchange);
  Status Init();
  Status EnablePeerAccess();
  Status Allocate();
  Status MapPeers();
  StatusOr<LaneGrant> Grant(const CallPlan& plan);  // mutex_ held
  std::string Key(const std::string& what) const;
  std::vector<std::string> Names() const;

  const std::vector<Member> members_;
  const int process_;
  const CommunicatorOptions options_;
  Exchange* const exchange_;
  bool all_local_ = true;
  bool staged_ = false;
  int max_blocks_ = 1;
  uint32_t lane_count_ = 0;
  uint64_t staging_begin_ = 0;
  // [of rank][as seen by the device of local rank]; null for ranks of other processes.
  std::vector<std::vector<unsigned char*>> workspaces_;
  CauseRecord* causes_ = nullptr;  // pinned host memory, by rank

  std::mutex mutex_;
  std::deque<uint32_t> free_lanes_;           // guarded by mutex_; returned ones go last
  uint64_t staging_used_ = 0;                 // guarded by mutex_
  std::map<std::string, LaneGrant> granted_;  // guarded by mutex_; with other processes: for good
  mutable std::mutex descriptions_mutex_;
  std::map<uint32_t, std::string> descriptions_;  // by lane; guarded by descriptions_mutex_
};

}  // namespace jaxcoll::cuda
