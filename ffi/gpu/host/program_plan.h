// The launch that every rank of a group makes for one custom call whose schedule the interpreter
// runs: any algorithm, and schedules written in Python. As CallPlan, it is computed from what the
// HLO says and the shapes, so it is equal on all ranks; plain C++.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/dtype.h"
#include "base/status.h"
#include "call/call_shape.h"
#include "gpu/abi/area.h"
#include "gpu/abi/device_program.h"
#include "gpu/host/packed_schedule.h"
#include "gpu/proxy/routes.h"

namespace jaxcoll::cuda {

class ProgramPlan {
 public:
  // `max_blocks` is the communicator's; `reach`: what its ranks reach of each other. `own` ranks
  // are this process's; `host_of_rank`: see PackedFor.
  static StatusOr<ProgramPlan> Create(const CallSpec& spec, const CallShape& shape, int max_blocks,
                                      Reach reach, std::span<const int32_t> own,
                                      std::span<const int> host_of_rank);

  int world_size() const { return packed_->header().world_size; }
  DType dtype() const { return dtype_; }
  uint64_t fingerprint() const { return fingerprint_; }
  int launches() const {
    return static_cast<int>((elements_.size() + kMaxProgramVectors - 1) / kMaxProgramVectors);
  }
  int blocks(int launch) const { return BlockCount(packed_->header(), calls_[launch]); }

  // An area of a workspace: a region, and behind it the rank's table and where it finds all
  // ranks' regions, what they write for it, and their slots.
  //
  // Bytes that are worth having when `available` may be taken; 0 if they do not suffice.
  uint64_t AreaBytes(uint64_t available) const;
  // Cuts the call for an area; once, before what follows. Fails, saying what would do, if it is too
  // small.
  Status Divide(uint64_t area_bytes);

  // The table that the area of one of `own` ranks holds from TableOffset() on.
  uint64_t TableOffset() const { return area_bytes_ - table_bytes_; }
  std::vector<unsigned char> Table(int rank, const AreaAddresses& addresses) const;

  // The messages that `own` ranks exchange with other hosts.
  StatusOr<HostRoutes> Routes(const std::vector<int>& host_of_rank) const {
    return HostRoutes::Make(packed_->tables, own_, calls_, host_of_rank);
  }

  // The parameters of launch `launch` for one rank whose area is at `area`, but for the cause, the
  // deadline and the logical id.
  StatusOr<ProgramCall> Bind(int launch, unsigned char* area, const void* const* inputs,
                             void* const* outputs) const;

 private:
  StatusOr<std::vector<ProgramCall>> Cut(uint64_t area_bytes) const;

  DType dtype_ = DType::kUint8;
  ReduceOp reduce_op_ = ReduceOp::kSum;
  int max_blocks_ = 1;
  std::vector<int64_t> elements_;  // by vector: of one block
  std::shared_ptr<const PackedSchedule> packed_;
  std::vector<int32_t> own_;
  uint64_t table_bytes_ = 0;  // with the addresses
  uint64_t fingerprint_ = 0;
  uint64_t area_bytes_ = 0;
  std::vector<ProgramCall> calls_;  // by launch
};

}  // namespace jaxcoll::cuda
