#include "cuda/host_reach.h"

#include <algorithm>
#include <set>
#include <utility>

#include "cuda/fingerprint.h"

namespace jaxcoll::cuda {
namespace {

constexpr uint64_t kSlabBytes = 32 << 20;

uint64_t RoundUp(uint64_t bytes) {
  return (bytes + kSlotAlignment - 1) / kSlotAlignment * kSlotAlignment;
}

}  // namespace

HostReach::HostReach(HostProxy& proxy, Runtime& runtime, int ordinal, int process,
                     HostProxy::GroupSpec spec)
    : proxy_(proxy),
      runtime_(runtime),
      ordinal_(ordinal),
      process_(process),
      spec_(std::move(spec)) {
  for (size_t rank = 0; rank < spec_.process_of_rank.size(); ++rank) {
    if (spec_.process_of_rank[rank] == process_) host_ = spec_.host_of_rank[rank];
  }
}

StatusOr<std::unique_ptr<HostReach>> HostReach::Create(HostProxy& proxy, Runtime& runtime,
                                                       int ordinal, int process,
                                                       HostProxy::GroupSpec spec) {
  std::unique_ptr<HostReach> reach(
      new HostReach(proxy, runtime, ordinal, process, std::move(spec)));
  std::lock_guard lock(reach->mutex_);
  StatusOr<unsigned char*> abort = reach->Allocate(sizeof(uint32_t));
  if (!abort.ok()) return abort.status();
  reach->spec_.abort = reinterpret_cast<uint32_t*>(*abort);
  proxy.OpenGroup(reach->spec_);
  return StatusOr<std::unique_ptr<HostReach>>(std::move(reach));
}

HostReach::~HostReach() {
  if (spec_.abort != nullptr) proxy_.CloseGroup(spec_.id);
  for (unsigned char* const slab : slabs_) runtime_.FreeHost(slab);
}

// Taken in slabs, the first one with the communicator: who takes page-locked memory waits for
// kernels, which may wait for this process.
StatusOr<unsigned char*> HostReach::Allocate(uint64_t bytes) {
  bytes = RoundUp(bytes);
  if (bytes > left_) {
    const uint64_t slab = std::max(bytes, kSlabBytes);
    StatusOr<unsigned char*> memory = runtime_.AllocateHost(ordinal_, slab);
    if (!memory.ok()) {
      return Status(memory.status().code(),
                    std::to_string(slab >> 20) +
                        " MiB of pinned host memory, by which GPUs of other hosts are reached, "
                        "could not be had; ask for less (JAXCOLL_CUDA_WORKSPACE_MIB): " +
                        memory.status().message());
    }
    slabs_.push_back(*memory);
    bytes_ += slab;
    next_ = *memory;
    left_ = slab;
  }
  left_ -= bytes;
  return std::exchange(next_, next_ + bytes);
}

// What is needed of each rank's layout, in bytes from its start: 0 of ranks of this host's other
// processes. Ranks that send each other nothing still say when they are done.
std::vector<uint64_t> HostReach::Needed(const HostRoutes& routes) const {
  uint64_t flags = 0, all = 0;
  for (const ProgramCall& call : routes.calls()) {
    flags = std::max<uint64_t>(flags, call.slot_offset);
    all = std::max<uint64_t>(all, HostRoutes::RegionBytes(call));
  }
  std::vector<uint64_t> bytes;
  for (int rank = 0; rank < routes.world_size(); ++rank) {
    bytes.push_back(IsLocal(rank) || IsRemote(rank) ? HostRoutes::DoneAt(routes.world_size()) : 0);
  }
  for (const HostRoutes::Message& message : routes.messages()) {
    const int from = message.source, to = message.destination;
    if (!IsLocal(from) && !IsLocal(to)) continue;
    bytes[from] = std::max(bytes[from], flags);
    bytes[to] = all;
  }
  return bytes;
}

StatusOr<const HostReach::Region*> HostReach::Open(uint32_t lane, HostRoutes routes,
                                                   const std::string& description) {
  std::lock_guard lock(mutex_);
  if (const auto found = regions_.find(lane); found != regions_.end()) return &found->second;
  Region region;
  for (const uint64_t bytes : Needed(routes)) {
    const bool local = IsLocal(static_cast<int>(region.memory.size()));
    StatusOr<unsigned char*> memory = Allocate(bytes);
    StatusOr<unsigned char*> doorbell = Allocate(local ? sizeof(uint64_t) : 0);
    for (const auto* allocated : {&memory, &doorbell}) {
      if (!allocated->ok()) return allocated->status();
    }
    region.memory.push_back(bytes > 0 ? *memory : nullptr);
    region.doorbells.push_back(local ? reinterpret_cast<uint64_t*>(*doorbell) : nullptr);
  }
  Fingerprint key;
  key.Add(static_cast<int64_t>(spec_.id));
  key.Add(int64_t{lane});
  HostProxy::RegionSpec spec;
  spec.group = spec_.id;
  spec.key = key.Value();
  spec.description = description;
  spec.routes = std::make_shared<const HostRoutes>(std::move(routes));
  spec.memory = region.memory;
  spec.doorbells.assign(region.doorbells.begin(), region.doorbells.end());
  proxy_.OpenRegion(std::move(spec));
  return &regions_.emplace(lane, std::move(region)).first->second;
}

std::optional<std::string> HostReach::Cause() const {
  if (__atomic_load_n(spec_.abort, __ATOMIC_ACQUIRE) == 0) return std::nullopt;
  return proxy_.Cause(spec_.id);
}

int HostReach::hosts() const {
  return static_cast<int>(
      std::set<int>(spec_.host_of_rank.begin(), spec_.host_of_rank.end()).size());
}

uint64_t HostReach::bytes() const {
  std::lock_guard lock(mutex_);
  return bytes_;
}

}  // namespace jaxcoll::cuda
