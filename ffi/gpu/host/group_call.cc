#include "gpu/host/group_call.h"

#include <algorithm>
#include <utility>

#include "gpu/host/ragged_plan.h"
#include "gpu/host/table_plan.h"

namespace jaxcoll::cuda {

GroupCall::GroupCall(GpuCommunicator& communicator, Plan plan)
    : communicator_(communicator), plan_(std::move(plan)) {}

StatusOr<std::unique_ptr<GroupCall>> GroupCall::Create(GpuCommunicator& communicator,
                                                       const CallSpec& spec, const CallShape& shape,
                                                       const std::string& key,
                                                       const std::string& description,
                                                       bool interpret, const void* operand) {
  std::unique_ptr<GroupCall> call;
  const auto made = [&](auto plan) {
    if (plan.ok()) call.reset(new GroupCall(communicator, std::move(*plan)));
    return plan.status();
  };
  const int blocks = communicator.max_blocks();
  Status planned;
  if (!interpret && communicator.reach() == nullptr && CallPlan::Serves(spec)) {
    planned = made(CallPlan::Create(spec, shape, blocks));
  } else if (RaggedPlan::Serves(spec)) {
    planned = made(RaggedPlan::Create(spec, shape, blocks));
  } else {
    const bool operands = !communicator.staged() && communicator.world_size() <= kMaxMeeting;
    std::vector<int32_t> own;
    for (int rank = 0; rank < communicator.world_size(); ++rank) {
      if (communicator.is_local(rank)) own.push_back(rank);
    }
    const HostReach* const reach = communicator.reach();
    planned = made(TablePlan::Create(
        spec, shape, blocks, operands ? Reach::kOperands : Reach::kRegions, own,
        reach != nullptr ? std::span<const int>(reach->host_of_rank()) : std::span<const int>()));
  }
  if (!planned.ok()) return planned;
  const OperandMap* const operands = communicator.operands();
  call->known_ = operands != nullptr && operands->complete() && operands->Knows(operand);
  if (Status status = call->Init(key, description); !status.ok()) return status;
  return call;
}

GroupCall::~GroupCall() {
  if (granted_) communicator_.ReturnSeat(grant_);
}

Status GroupCall::Init(const std::string& key, const std::string& description) {
  SeatRequest request;
  request.key = key;
  request.description = description;
  if (const auto* const direct = std::get_if<CallPlan>(&plan_)) {
    if (communicator_.staged()) {
      request.area_bytes = [direct](uint64_t available) {
        const int64_t slot_bytes = direct->SlotBytes(available);
        return slot_bytes == 0 ? 0 : direct->StagingBytes(slot_bytes);
      };
    }
    request.fingerprint = direct->fingerprint;
  }
  MessagePlan* const plan = messages();
  if (plan != nullptr) {
    request.area_bytes = [plan](uint64_t available) { return plan->AreaBytes(available); };
    request.fingerprint = plan->fingerprint();
  }
  StatusOr<SeatGrant> grant = communicator_.TakeSeat(request);
  if (!grant.ok()) return grant.status();
  grant_ = *grant;
  granted_ = true;
  if (plan != nullptr) {
    if (Status status = InitRegion(*plan, description); !status.ok()) return status;
  }
  for (int rank = 0; rank < communicator_.world_size(); ++rank) {
    if (!communicator_.is_local(rank)) continue;
    const int ordinal = communicator_.member(rank).ordinal;
    Status status = communicator_.runtime().Preload(
        ordinal, plan != nullptr ? plan->kernel() : std::get<CallPlan>(plan_).kernel());
    if (!status.ok()) return status;
  }
  return Status();
}

Status GroupCall::InitRegion(MessagePlan& plan, const std::string& description) {
  if (Status status = plan.Divide(grant_.area_bytes); !status.ok()) return status;
  if (Status status = ReachHosts(plan, description); !status.ok()) return status;
  return UploadTables(plan);
}

unsigned char* GroupCall::Area(int rank, int seen_by) const {
  return communicator_.workspace(rank, seen_by) + grant_.area;
}

Status GroupCall::UploadTables(const MessagePlan& plan) const {
  for (int rank = 0; rank < communicator_.world_size(); ++rank) {
    if (!communicator_.is_local(rank)) continue;
    AreaAddresses addresses;
    for (int peer = 0; peer < communicator_.world_size(); ++peer) {
      const bool remote = host_region_ != nullptr && communicator_.reach()->IsRemote(peer);
      addresses.regions.push_back(remote ? host_region_->memory[peer] : Area(peer, rank));
      addresses.inboxes.push_back(remote ? host_region_->memory[rank] : Area(rank, rank));
      addresses.slots.push_back(remote ? host_region_->SlotsOf(rank, peer)
                                       : addresses.regions.back());
    }
    const std::vector<unsigned char> table = plan.Table(rank, addresses);
    Status status = communicator_.runtime().Upload(communicator_.member(rank).ordinal,
                                                   Area(rank, rank) + plan.TableOffset(),
                                                   table.data(), table.size());
    if (!status.ok()) return status;
  }
  return Status();
}

Status GroupCall::ReachHosts(const MessagePlan& plan, const std::string& description) {
  HostReach* const reach = communicator_.reach();
  if (reach == nullptr) return Status();
  StatusOr<HostRoutes> routes = plan.Routes(reach->host_of_rank());
  if (!routes.ok()) return routes.status();
  StatusOr<const HostReach::Region*> region =
      reach->Open(grant_.seat, std::move(*routes), description);
  if (!region.ok()) return region.status();
  host_region_ = *region;
  return Status();
}

int GroupCall::launches() const {
  const MessagePlan* const plan = messages();
  return plan != nullptr ? plan->launches() : std::get<CallPlan>(plan_).launches();
}

int GroupCall::blocks() const {
  const MessagePlan* const plan = messages();
  if (plan == nullptr) return std::get<CallPlan>(plan_).blocks;
  int most = 0;
  for (int launch = 0; launch < plan->launches(); ++launch) {
    most = std::max(most, plan->blocks(launch));
  }
  return most;
}

StatusOr<Launch> GroupCall::Bind(int rank, int launch, const Operands& operands) const {
  Launch result;
  const auto complete = [&](auto& call) {
    call.seat = grant_.seat;
    call.deadline_ns = communicator_.deadline_ns();
    call.cause = communicator_.cause_record(rank);
    call.logical_id = operands.logical_id;
    call.expected_logical_id = operands.expected_logical_id;
  };
  if (const MessagePlan* const plan = messages()) {
    TableCall& call =
        plan->Bind(launch, Area(rank, rank), operands.inputs, operands.outputs, result);
    complete(call);
    if (host_region_ != nullptr) {
      call.doorbell = host_region_->doorbells[rank];
      call.abort = communicator_.reach()->abort();
    }
    call.failing = &reinterpret_cast<Header*>(communicator_.workspace(rank, rank))->failing;
    return result;
  }
  const CallPlan& direct = std::get<CallPlan>(plan_);
  StatusOr<Call> call = direct.Bind(rank, launch, operands.inputs, operands.outputs);
  if (!call.ok()) return call.status();
  complete(*call);
  call->staged = communicator_.staged() ? 1 : 0;
  call->staging = grant_.area;
  call->slot_bytes = communicator_.staged() ? direct.SlotBytes(grant_.area_bytes) : 0;
  for (int peer = 0; peer < communicator_.world_size(); ++peer) {
    call->workspaces[peer] = communicator_.workspace(peer, rank);
  }
  if (const OperandMap* const operands = communicator_.operands()) {
    call->mapped = 1;
    call->reachable = known_ ? 1 : 0;
    for (int32_t v = 0; v < call->vector_count; ++v) {
      const Vector& vector = call->vectors[v];
      if (!operands->Holds(vector.input) || !operands->Holds(vector.output)) call->reachable = 0;
    }
    for (int peer = 0; peer < communicator_.world_size(); ++peer) {
      call->bases[peer] = operands->base(peer);
    }
  }
  result.kernel = direct.kernel();
  result.blocks = direct.blocks;
  result.parameters = *call;
  return result;
}

Status GroupCall::Enqueue(int rank, void* stream, const Operands& operands) const {
  for (int launch = 0; launch < launches(); ++launch) {
    StatusOr<Launch> bound = Bind(rank, launch, operands);
    if (!bound.ok()) return bound.status();
    Status status =
        communicator_.runtime().Start(communicator_.member(rank).ordinal, stream, *bound);
    if (!status.ok()) return status;
  }
  return Status();
}

}  // namespace jaxcoll::cuda
