// The launches that every rank of a group makes for one custom call whose messages go through
// slots, as its GroupCall sees them. A schedule's chunks have extents that the host knows
// (table_plan.h), those of a ragged_all_to_all stand in device memory (ragged_plan.h).
//
// Computed from what the HLO says and the shapes, so equal on all ranks; plain C++.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "gpu/abi/area.h"
#include "gpu/abi/runtime.h"
#include "gpu/proxy/routes.h"

namespace jaxcoll::cuda {

class MessagePlan {
 public:
  MessagePlan() = default;
  virtual ~MessagePlan() = default;
  MessagePlan(const MessagePlan&) = delete;
  MessagePlan& operator=(const MessagePlan&) = delete;

  virtual Kernel kernel() const = 0;
  virtual int launches() const = 0;  // one after the other
  virtual int blocks(int launch) const = 0;
  uint64_t fingerprint() const { return fingerprint_; }

  // An area of a workspace: a region, and behind it the rank's table and where it finds all
  // ranks' regions, what they write for it, and their slots.
  //
  // Bytes that are worth having when `available` may be taken; 0 if they do not suffice.
  virtual uint64_t AreaBytes(uint64_t available) const = 0;
  // Cuts the call for an area; once, before what follows. Fails, saying what would do, if it is too
  // small.
  virtual Status Divide(uint64_t area_bytes) = 0;

  // The tables that the area of one of this process's ranks holds from TableOffset() on.
  uint64_t TableOffset() const { return area_bytes_ - TableBytes(); }
  virtual std::vector<unsigned char> Table(int rank, const AreaAddresses& addresses) const = 0;

  // The messages from host to host: at least those that this process's ranks send and receive.
  virtual StatusOr<HostRoutes> Routes(const std::vector<int>& host_of_rank) const = 0;

  // Puts the parameters of launch `launch` for one rank, whose area is at `area`, into `result`.
  // Operands are in the order of the custom call. Returns the parameters that all of these kernels
  // have, of which the communicator's, the cause, the deadline and the logical id are missing.
  virtual TableCall& Bind(int launch, unsigned char* area, const void* const* inputs,
                          void* const* outputs, Launch& result) const = 0;

 protected:
  virtual uint64_t TableBytes() const = 0;

  uint64_t fingerprint_ = 0;
  uint64_t area_bytes_ = 0;
};

}  // namespace jaxcoll::cuda
