// The plan of a call whose schedule the interpreter runs: any algorithm, and schedules written in
// Python.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/dtype.h"
#include "base/status.h"
#include "call/call_shape.h"
#include "gpu/abi/device_table.h"
#include "gpu/host/message_plan.h"
#include "gpu/host/packed_schedule.h"

namespace jaxcoll::cuda {

class TablePlan final : public MessagePlan {
 public:
  // `max_blocks` is the communicator's; `reach`: what its ranks reach of each other. `own` ranks
  // are this process's; `host_of_rank`: see PackedFor.
  static StatusOr<std::unique_ptr<MessagePlan>> Create(const CallSpec& spec, const CallShape& shape,
                                                       int max_blocks, Reach reach,
                                                       std::span<const int32_t> own,
                                                       std::span<const int> host_of_rank);

  Kernel kernel() const override { return {.family = Kernel::kInterpreter, .dtype = dtype_}; }
  int launches() const override {
    return static_cast<int>((elements_.size() + kMaxTableVectors - 1) / kMaxTableVectors);
  }
  int blocks(int launch) const override { return BlockCount(packed_->header(), calls_[launch]); }
  uint64_t AreaBytes(uint64_t available) const override;
  Status Divide(uint64_t area_bytes) override;
  std::vector<unsigned char> Table(int rank, const AreaAddresses& addresses) const override;
  StatusOr<HostRoutes> Routes(const std::vector<int>& host_of_rank) const override {
    return HostRoutes::Make(packed_->tables, own_, calls_, host_of_rank);
  }
  TableCall& Bind(int launch, unsigned char* area, const void* const* inputs, void* const* outputs,
                  Launch& result) const override;

 private:
  int world_size() const { return packed_->header().world_size; }
  uint64_t TableBytes() const override { return table_bytes_; }
  StatusOr<std::vector<TableCall>> Cut(uint64_t area_bytes) const;

  DType dtype_ = DType::kUint8;
  ReduceOp reduce_op_ = ReduceOp::kSum;
  int max_blocks_ = 1;
  std::vector<int64_t> elements_;  // by vector: of one block
  std::shared_ptr<const PackedSchedule> packed_;
  std::vector<int32_t> own_;
  uint64_t table_bytes_ = 0;      // with the addresses
  std::vector<TableCall> calls_;  // by launch
};

}  // namespace jaxcoll::cuda
