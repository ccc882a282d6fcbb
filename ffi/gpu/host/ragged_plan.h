// The launch that every rank of a group makes for a ragged_all_to_all by messages (ragged_call.h):
// between hosts, and in groups for which the kernel of ragged.cuh is too small. As ProgramPlan, it
// is computed from what the HLO says and the shapes, so it is equal on all ranks; plain C++.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "call/call_shape.h"
#include "gpu/abi/area.h"
#include "gpu/abi/ragged_call.h"
#include "gpu/proxy/routes.h"

namespace jaxcoll::cuda {

class RaggedPlan {
 public:
  static bool Serves(const CallSpec& spec) { return spec.collective == "ragged_all_to_all"; }
  // `max_blocks` is the communicator's.
  static StatusOr<RaggedPlan> Create(const CallSpec& spec, const CallShape& shape, int max_blocks);

  uint64_t fingerprint() const { return fingerprint_; }
  int launches() const { return 1; }
  int blocks(int /*launch*/) const { return call_.lanes; }

  // An area of a workspace, as ProgramPlan has it: a region, and behind it the header and where the
  // rank finds all ranks' regions, and what they write for it.
  uint64_t AreaBytes(uint64_t available) const;
  Status Divide(uint64_t area_bytes);
  uint64_t TableOffset() const { return area_bytes_ - TableBytes(); }
  std::vector<unsigned char> Table(int rank, const AreaAddresses& addresses) const;

  // The messages that the ranks send from host to host.
  StatusOr<HostRoutes> Routes(const std::vector<int>& host_of_rank) const {
    return HostRoutes::MakeRagged(header_, call_, host_of_rank);
  }

  // The parameters for one rank whose area is at `area`, but for the cause, the deadline and the
  // logical id. The operands are in the order of the custom call.
  RaggedProgramCall Bind(unsigned char* area, const void* const* inputs,
                         void* const* outputs) const;

 private:
  uint64_t TableBytes() const;
  uint64_t ScratchBytes(int lanes) const;
  StatusOr<ProgramCall> Cut(uint64_t area_bytes) const;

  ProgramHeader header_ = {};
  Ragged ragged_ = {};  // without pointers
  int64_t result_bytes_ = 0;
  int max_blocks_ = 1;
  uint64_t fingerprint_ = 0;
  uint64_t area_bytes_ = 0;
  ProgramCall call_ = {};
};

}  // namespace jaxcoll::cuda
