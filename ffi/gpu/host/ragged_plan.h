// The plan of a ragged_all_to_all by messages (ragged_call.h): between hosts, and in groups for
// which the kernel of ragged.cuh is too small.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/status.h"
#include "call/call_shape.h"
#include "gpu/abi/ragged_call.h"
#include "gpu/host/message_plan.h"

namespace jaxcoll::cuda {

class RaggedPlan final : public MessagePlan {
 public:
  static bool Serves(const CallSpec& spec) { return spec.collective == "ragged_all_to_all"; }
  // `max_blocks` is the communicator's.
  static StatusOr<std::unique_ptr<MessagePlan>> Create(const CallSpec& spec, const CallShape& shape,
                                                       int max_blocks);

  Kernel kernel() const override { return {.family = Kernel::kRaggedExchange}; }
  int launches() const override { return 1; }
  int blocks(int /*launch*/) const override { return call_.strands; }
  uint64_t AreaBytes(uint64_t available) const override;
  Status Divide(uint64_t area_bytes) override;
  std::vector<unsigned char> Table(int rank, const AreaAddresses& addresses) const override;
  StatusOr<HostRoutes> Routes(const std::vector<int>& host_of_rank) const override {
    return HostRoutes::MakeRagged(header_, call_, host_of_rank);
  }
  TableCall& Bind(int launch, unsigned char* area, const void* const* inputs, void* const* outputs,
                  Launch& result) const override;

 private:
  uint64_t TableBytes() const override;
  uint64_t ScratchBytes(int strands) const;
  StatusOr<TableCall> Cut(uint64_t area_bytes) const;

  TableHeader header_ = {};
  Ragged ragged_ = {};  // without pointers
  int64_t result_bytes_ = 0;
  int max_blocks_ = 1;
  TableCall call_ = {};
};

}  // namespace jaxcoll::cuda
