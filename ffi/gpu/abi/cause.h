// Why a kernel has given up: as the kernel writes it, and for people.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace jaxcoll::cuda {

struct Cause {
  enum Kind : uint32_t {
    kNone,
    kDeadline,     // `peer` did not come in time
    kMismatch,     // `peer` is at another call
    kLaunch,       // `peer` is at another launch of this call
    kMoved,        // this rank runs as another logical id: `entry`
    kRaggedRows,   // rows outside of an operand or output
    kRaggedSizes,  // sender and receiver disagree
    kStopped,      // the host said so, and knows why
  };
  uint32_t kind;
  int32_t rank;
  int32_t peer;
  uint32_t seat;            // of the workspace: whose call it was
  uint32_t block;           // of the launch
  int32_t entry;            // of a ragged table; kMoved: the logical id that was met
  uint64_t expected, seen;  // what stands in the flag that was waited for
  uint64_t expected_fingerprint, seen_fingerprint;
  int64_t first, rows, total;  // ragged
  // The interpreter's: what was waited for (a TableWait::Kind; 0: a barrier), and where.
  int32_t wait;
  int32_t channel;
  int32_t sequence;
  int32_t op;
  int32_t slice;
  int32_t unused;
};

// In host memory that the device writes: it outlives the context that the trap destroys. One per
// rank.
struct CauseRecord {
  Cause cause;
  uint32_t written;  // 1, last of all
  uint32_t unused;
};

// members: by rank, such as "rank 2 (device 2, process 1)"; call: what the seat belongs to.
std::string Describe(const Cause& cause, const std::vector<std::string>& members,
                     const std::string& call, double timeout_s);

}  // namespace jaxcoll::cuda
