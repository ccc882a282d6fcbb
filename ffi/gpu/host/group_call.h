// One group's part of a call site: what its ranks launch, and where their launches meet.
//
// Collectives that have a kernel of their own run it (call_plan.h); the interpreter runs all other
// algorithms, schedules written in Python, larger groups, and groups of several hosts
// (table_plan.h). These groups' ragged exchanges have a kernel of their own (ragged_plan.h), with
// regions, flags and proxies as the interpreter's: a MessagePlan is either.
//
// Thread rule: made by one thread; then Bind and Enqueue from any. Enqueue takes no lock and no
// memory and waits for nothing.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "base/status.h"
#include "call/call_shape.h"
#include "gpu/abi/runtime.h"
#include "gpu/host/call_plan.h"
#include "gpu/host/gpu_communicator.h"
#include "gpu/host/message_plan.h"

namespace jaxcoll::cuda {

// One rank's operands, in the order of the custom call.
struct Operands {
  const void* const* inputs = nullptr;
  void* const* outputs = nullptr;
  // The program's logical id, in device memory; may be null.
  const uint32_t* logical_id = nullptr;
  uint32_t expected_logical_id = 0;
};

class GroupCall {
 public:
  // `key`, where other processes take part: the call site, by the same name in all of them.
  // `description`: for people. `interpret`: by messages, even where there is a kernel.
  static StatusOr<std::unique_ptr<GroupCall>> Create(GpuCommunicator& communicator,
                                                     const CallSpec& spec, const CallShape& shape,
                                                     const std::string& key,
                                                     const std::string& description,
                                                     bool interpret = false,
                                                     const void* operand = nullptr);
  ~GroupCall();
  GroupCall(const GroupCall&) = delete;
  GroupCall& operator=(const GroupCall&) = delete;

  // A call is so many launches, one after the other.
  int launches() const;
  int blocks() const;  // of the largest launch

  StatusOr<Launch> Bind(int rank, int launch, const Operands& operands) const;
  // All launches of one local rank.
  Status Enqueue(int rank, void* stream, const Operands& operands) const;

 private:
  using Plan = std::variant<CallPlan, std::unique_ptr<MessagePlan>>;

  GroupCall(GpuCommunicator& communicator, Plan plan);
  Status Init(const std::string& key, const std::string& description);
  // Null where a kernel of its own runs.
  MessagePlan* messages() const {
    const auto* const plan = std::get_if<std::unique_ptr<MessagePlan>>(&plan_);
    return plan == nullptr ? nullptr : plan->get();
  }
  Status InitRegion(MessagePlan& plan, const std::string& description);
  Status UploadTables(const MessagePlan& plan) const;
  Status ReachHosts(const MessagePlan& plan, const std::string& description);
  unsigned char* Area(int rank, int seen_by) const;

  GpuCommunicator& communicator_;
  Plan plan_;
  SeatGrant grant_;
  const HostReach::Region* host_region_ = nullptr;  // where ranks of other hosts take part
  bool granted_ = false;
  bool known_ = false;  // the allocation of this process's operands is, to the others
};

}  // namespace jaxcoll::cuda
