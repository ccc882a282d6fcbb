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
// with the lock of CommunicatorOf.
HostProxy* TheProxy(int process) {
  static HostProxy* proxy = nullptr;  // never destroyed: the guest of who is not, either
  Interprocess* const processes = Interprocess::Get();
  if (proxy == nullptr && processes != nullptr) {
    proxy = new HostProxy(process);
    processes->Invite(proxy);
  }
  return proxy;
}

// The communicator of a group, made when it is asked for first. Asked for while a program is set
// up, in an order that is the same in all its processes.
StatusOr<Communicator*> CommunicatorOf(const std::vector<Member>& members, const void* operand) {
  static std::mutex& mutex = *new std::mutex;
  static auto& all = *new std::map<std::vector<int64_t>, std::unique_ptr<Communicator>>;
  std::vector<int64_t> key;
  for (const Member& member : members) key.push_back(member.device_id);
  std::lock_guard lock(mutex);
  std::unique_ptr<Communicator>& communicator = all[key];
  if (communicator == nullptr) {
    const Job& job = *the_job.load(std::memory_order_acquire);
    CommunicatorOptions options = job.options;
    options.proxy = TheProxy(job.process);
    if (job.maps_operands) options.operand = operand;
    StatusOr<std::unique_ptr<Communicator>> made =
        Communicator::Create(members, job.process, options, job.exchange.get(), *job.runtime);
    if (!made.ok()) return made.status();
    communicator = std::move(*made);
    Communicator::StartMonitor();
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

GpuCallSite::GpuCallSite(CallSpec spec, GroupTable groups)
    : spec_(std::move(spec)), table_(std::move(groups)) {}

StatusOr<std::unique_ptr<GpuCallSite>> GpuCallSite::Create(CallSpec spec) {
  StatusOr<GroupTable> groups = GroupTable::Create(spec);
  if (!groups.ok()) return groups.status();
  if (!groups->ranks_by_device()) {
    return InvalidArgument(
        "this program does not say which GPUs it runs on; lower it with a mesh of devices, or call "
        "an exported program in a jax.jit of a process that imports jaxcoll");
  }
  std::unique_ptr<GpuCallSite> site(new GpuCallSite(std::move(spec), std::move(*groups)));
  if (!JobStarted()) return site;  // compiled for later; Prepare will say it
  const Job& job = *the_job.load(std::memory_order_acquire);
  if (job.exchange == nullptr) return site;
  Interprocess* const processes = Interprocess::Get();
  if (processes == nullptr) {
    return Status(StatusCode::kFailedPrecondition, "this process is not linked to the others");
  }
  site->slot_signature_ = "cuda " + SignatureOf(site->spec_);
  site->slot_ = processes->TakeSlot(site->slot_signature_);
  return site;
}

GpuCallSite::~GpuCallSite() {
  groups_.clear();
  if (slot_) Interprocess::Get()->ReturnSlot(slot_signature_, *slot_);
}

std::string GpuCallSite::Describe(const CallShape& shape) const {
  std::string text = spec_.collective;
  if (!spec_.reduce_op.empty()) text += "(" + spec_.reduce_op + ")";
  if (!shape.inputs.empty()) {
    text += " of " + std::string(Name(shape.inputs[0].dtype)) + "[";
    for (size_t i = 0; i < shape.inputs[0].dimensions.size(); ++i) {
      text += (i == 0 ? "" : ",") + std::to_string(shape.inputs[0].dimensions[i]);
    }
    text += "]";
    if (spec_.collective != "ragged_all_to_all" && shape.inputs.size() > 1) {
      text += " and " + std::to_string(shape.inputs.size() - 1) + " more";
    }
  }
  if (!spec_.label.empty()) text += " over " + spec_.label;
  return text + ", algorithm " + spec_.algorithm;
}

Status GpuCallSite::Prepare(const CallShape& shape, const void* operand) {
  std::lock_guard lock(mutex_);
  if (prepared()) return Status();
  if (!JobStarted()) {
    return Status(StatusCode::kFailedPrecondition,
                  "jaxcoll does not know this job's GPUs yet: trace a program with one of its "
                  "collectives before running a compiled one");
  }
  description_ = Describe(shape);
  Status status = Unprefixed(shape, operand);
  if (status.ok()) {
    prepared_.store(true, std::memory_order_release);
    return status;
  }
  return Status(status.code(), description_ + ": " + status.message());
}

Status GpuCallSite::Unprefixed(const CallShape& shape, const void* operand) {
  groups_.resize(table_.group_count());
  // In the order of the groups, on all processes: so nobody waits for one who waits for him.
  for (int32_t group = 0; group < table_.group_count(); ++group) {
    if (groups_[group].call != nullptr) continue;  // an earlier attempt got this far
    if (Status status = PrepareGroup(group, shape, operand); !status.ok()) return status;
  }
  return Status();
}

Status GpuCallSite::PrepareGroup(int32_t group, const CallShape& shape, const void* operand) {
  const Job& job = *the_job.load(std::memory_order_acquire);
  std::vector<Member> members;
  bool here = false;
  for (int32_t rank = 0; rank < spec_.group_size; ++rank) {
    const int64_t device = table_.DeviceId({group, rank});
    const Member* const member = DeviceOfJob(device);
    if (member == nullptr) {
      return InvalidArgument("device " + std::to_string(device) + " is no GPU of this job");
    }
    members.push_back(*member);
    here |= member->process == job.process;
  }
  if (!here) return Status();
  StatusOr<Communicator*> communicator = CommunicatorOf(members, operand);
  if (!communicator.ok()) return communicator.status();
  std::string key;
  if (slot_) key = slot_signature_ + "\nslot " + std::to_string(slot_->number);
  StatusOr<std::unique_ptr<GroupCall>> call = GroupCall::Create(
      **communicator, spec_, shape, key, description_, /*interpret=*/false, operand);
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
    return InvalidArgument(description_ + ": GPU " + std::to_string(ordinal) +
                           " is in none of its groups; compile the program for the mesh it runs "
                           "on");
  }
  const Place place = *place_of_ordinal_[ordinal];
  const Group& group = groups_[place.group];
  if (const std::optional<std::string> cause = group.communicator->Cause()) {
    return Status(StatusCode::kFailedPrecondition,
                  "an earlier collective failed on these GPUs: " + *cause);
  }
  Status status = group.call->Enqueue(place.rank, stream,
                                      {inputs, outputs, logical_id, logical_of_ordinal_[ordinal]});
  if (status.ok()) return status;
  return Status(status.code(), description_ + ": " + status.message());
}

}  // namespace jaxcoll::cuda
