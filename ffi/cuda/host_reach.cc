#include "cuda/host_reach.h"

#include <algorithm>
#include <set>
#include <utility>

#include "cuda/fingerprint.h"

namespace jaxcoll::cuda {
namespace {

// Apart from each other: each is written by another rank.
constexpr uint64_t kDoorbellBytes = 64;

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
  for (unsigned char* const memory : memory_) runtime_.FreeHost(memory);
}

StatusOr<unsigned char*> HostReach::Allocate(uint64_t bytes) {
  StatusOr<unsigned char*> memory = runtime_.AllocateHost(ordinal_, bytes);
  if (!memory.ok()) {
    return Status(memory.status().code(),
                  std::to_string((bytes >> 20) + 1) +
                      " MiB of pinned host memory, by which GPUs of other hosts are reached, could "
                      "not be had; ask for less (JAXCOLL_CUDA_WORKSPACE_MIB): " +
                      memory.status().message());
  }
  memory_.push_back(*memory);
  bytes_ += bytes;
  return memory;
}

StatusOr<const HostReach::Region*> HostReach::Open(uint32_t lane, HostRoutes routes,
                                                   const std::string& description) {
  std::lock_guard lock(mutex_);
  if (const auto found = regions_.find(lane); found != regions_.end()) return &found->second;
  uint64_t each = 0;
  for (const ProgramCall& call : routes.calls()) {
    each = std::max<uint64_t>(each, RoundUp(HostRoutes::RegionBytes(call)));
  }
  const auto ranks = static_cast<int>(spec_.process_of_rank.size());
  const auto is_local = [&](int rank) { return spec_.process_of_rank[rank] == process_; };
  uint64_t total = 0;
  for (int rank = 0; rank < ranks; ++rank) {
    if (is_local(rank)) total += RoundUp(kDoorbellBytes);
    if (is_local(rank) || IsRemote(rank)) total += each;
  }
  StatusOr<unsigned char*> memory = Allocate(total);
  if (!memory.ok()) return memory.status();
  unsigned char* next = *memory;
  Region region;
  HostProxy::RegionSpec spec;
  for (int rank = 0; rank < ranks; ++rank) {
    region.memory.push_back(nullptr);
    region.doorbells.push_back(nullptr);
    if (is_local(rank) || IsRemote(rank)) {
      region.memory.back() = std::exchange(next, next + each);
    }
    if (is_local(rank)) {
      region.doorbells.back() =
          reinterpret_cast<uint64_t*>(std::exchange(next, next + RoundUp(kDoorbellBytes)));
    }
    spec.doorbells.push_back(region.doorbells.back());
  }
  Fingerprint key;
  key.Add(static_cast<int64_t>(spec_.id));
  key.Add(int64_t{lane});
  spec.group = spec_.id;
  spec.key = key.Value();
  spec.description = description;
  spec.routes = std::make_shared<const HostRoutes>(std::move(routes));
  spec.memory = region.memory;
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
