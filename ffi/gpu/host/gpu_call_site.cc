#include "gpu/host/gpu_call_site.h"

#include <algorithm>
#include <map>
#include <utility>

namespace jaxcoll::cuda {
namespace {

// Set before the first call, never destroyed: calls may come until the process ends.
std::atomic<Job*> the_job{nullptr};

const Member* DeviceOfJob(int64_t device_id) {
  const Job& job = *the_job.load(std::memory_order_acquire);
  for (const Member& member : job.devices) {
    if (member.device_id == device_id) return &member;
  }
  return nullptr;
}

// Carries what goes to GPUs of other hosts. Null if this process is not linked to others. Called
// with the lock of GpuCommunicatorOf.
HostProxy* TheProxy(int process) {
  static HostProxy* proxy = nullptr;  // lives as long as the reactor, which is never destroyed
  Interprocess* const processes = Interprocess::Get();
  if (proxy == nullptr && processes != nullptr) {
    proxy = new HostProxy(process);
    processes->Invite(proxy);
  }
  return proxy;
}

// The communicator of a group, made when it is asked for first. Asked for while a program is set
// up, in an order that is the same in all its processes.
StatusOr<GpuCommunicator*> GpuCommunicatorOf(const std::vector<Member>& members,
                                             const void* operand) {
  static std::mutex& mutex = *new std::mutex;
  static auto& all = *new std::map<std::vector<int64_t>, std::unique_ptr<GpuCommunicator>>;
  std::vector<int64_t> key;
  for (const Member& member : members) key.push_back(member.device_id);
  std::lock_guard lock(mutex);
  std::unique_ptr<GpuCommunicator>& communicator = all[key];
  if (communicator == nullptr) {
    const Job& job = *the_job.load(std::memory_order_acquire);
    GpuCommunicatorOptions options = job.options;
    options.proxy = TheProxy(job.process);
    if (job.maps_operands) options.operand = operand;
    StatusOr<std::unique_ptr<GpuCommunicator>> made =
        GpuCommunicator::Create(members, job.process, options, job.store.get(), *job.runtime);
    if (!made.ok()) return made.status();
    communicator = std::move(*made);
    GpuCommunicator::StartMonitor();
  }
  return communicator.get();
}

}  // namespace

void StartJob(Job job) {
  Job* expected = nullptr;
  auto* const started = new Job(std::move(job));
  JAXCOLL_CHECK(the_job.compare_exchange_strong(expected, started), "the job was started before");
}

bool JobStarted() { return the_job.load(std::memory_order_acquire) != nullptr; }

StatusOr<std::unique_ptr<GpuCallSite>> GpuCallSite::Create(CallSpec spec) {
  StatusOr<CallCore> core = CallCore::Create(std::move(spec));
  if (!core.ok()) return core.status();
  if (!core->spec().schedule.empty()) {
    // Refused now, as on CPUs; the ops are read again when they are packed.
    const StatusOr<std::vector<OpList>> none = OpListsOf(core->spec(), {});
    if (!none.ok()) return none.status();
  }
  if (core->spec().separate_blocks != 0) {
    return InvalidArgument("GPUs take the blocks of a vector in one array");
  }
  if (!core->groups().ranks_by_device()) {
    return InvalidArgument(
        "this program does not say which GPUs it runs on; lower it with a mesh of devices, or call "
        "an exported program in a jax.jit of a process that imports jaxcoll");
  }
  std::unique_ptr<GpuCallSite> site(new GpuCallSite(std::move(*core)));
  if (!JobStarted()) return site;  // compiled for later; Prepare will say it
  const Job& job = *the_job.load(std::memory_order_acquire);
  if (job.store == nullptr) return site;
  Interprocess* const processes = Interprocess::Get();
  if (processes == nullptr) {
    return Status(StatusCode::kFailedPrecondition, "this process is not linked to the others");
  }
  site->core_.TakeNumber(*processes, "cuda ");
  return site;
}

// The number is returned after the groups that use it.
GpuCallSite::~GpuCallSite() { groups_.clear(); }

Status GpuCallSite::Prepare(const CallShape& shape, const void* operand) {
  std::lock_guard lock(mutex_);
  if (prepared()) return Status();
  if (!JobStarted()) {
    return Status(StatusCode::kFailedPrecondition,
                  "jaxcoll does not know this job's GPUs yet: trace a program with one of its "
                  "collectives before running a compiled one");
  }
  core_.SetShape(shape);
  if (Status status = PrepareGroups(operand); !status.ok()) return core_.Describe(status);
  prepared_.store(true, std::memory_order_release);
  return Status();
}

Status GpuCallSite::PrepareGroups(const void* operand) {
  groups_.resize(table_.group_count());
  // In the order of the groups, on all processes: so no wait cycle can form.
  for (int32_t group = 0; group < table_.group_count(); ++group) {
    if (groups_[group].call != nullptr) continue;  // an earlier attempt got this far
    if (Status status = PrepareGroup(group, operand); !status.ok()) return status;
  }
  return Status();
}

Status GpuCallSite::PrepareGroup(int32_t group, const void* operand) {
  const Job& job = *the_job.load(std::memory_order_acquire);
  std::vector<Member> members;
  bool here = false;
  for (int32_t rank = 0; rank < spec_.group_size; ++rank) {
    const int64_t device = table_.DeviceId({group, rank});
    const Member* const member = DeviceOfJob(device);
    if (member == nullptr) {
      return InvalidArgument("device " + std::to_string(device) + " is not a GPU of this job");
    }
    members.push_back(*member);
    here |= member->process == job.process;
  }
  if (!here) return Status();
  StatusOr<GpuCommunicator*> communicator = GpuCommunicatorOf(members, operand);
  if (!communicator.ok()) return communicator.status();
  StatusOr<std::unique_ptr<GroupCall>> call =
      GroupCall::Create(**communicator, spec_, core_.shape(), core_.instruction(), core_.Describe(),
                        /*interpret=*/false, operand);
  if (!call.ok()) return call.status();
  groups_[group] = {*communicator, std::move(*call)};
  for (int32_t rank = 0; rank < spec_.group_size; ++rank) {
    const Member& member = members[rank];
    if (member.process != job.process) continue;
    const auto ordinal = static_cast<size_t>(member.ordinal);
    if (place_of_ordinal_.size() <= ordinal) {
      place_of_ordinal_.resize(ordinal + 1);
      logical_of_ordinal_.resize(ordinal + 1);
    }
    place_of_ordinal_[ordinal] = Place{group, rank};
    logical_of_ordinal_[ordinal] = static_cast<uint32_t>(table_.LogicalId({group, rank}));
  }
  return Status();
}

Status GpuCallSite::Enqueue(int ordinal, void* stream, const void* const* inputs,
                            void* const* outputs, const uint32_t* logical_id) const {
  if (ordinal < 0 || ordinal >= static_cast<int>(place_of_ordinal_.size()) ||
      !place_of_ordinal_[ordinal]) {
    return core_.Describe(
        InvalidArgument("GPU " + std::to_string(ordinal) +
                        " is in none of its groups; compile the program for the mesh it runs on"));
  }
  const Place place = *place_of_ordinal_[ordinal];
  const GpuGroup& group = groups_[place.group];
  if (const std::optional<std::string> cause = group.communicator->Cause()) {
    return Status(StatusCode::kFailedPrecondition,
                  "an earlier collective failed on these GPUs: " + *cause);
  }
  return core_.Describe(group.call->Enqueue(
      place.rank, stream, {inputs, outputs, logical_id, logical_of_ordinal_[ordinal]}));
}

}  // namespace jaxcoll::cuda
