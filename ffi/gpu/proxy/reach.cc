#include "gpu/proxy/reach.h"

#include <algorithm>
#include <span>

#include "gpu/abi/fingerprint.h"
#include "transport/fd.h"

namespace jaxcoll::cuda {
namespace {

constexpr uint64_t kSlabBytes = 32 << 20;
constexpr uint64_t kPageBytes = 64 << 10;  // of GPUs, and at least one of the host

uint64_t RoundUp(uint64_t bytes, uint64_t to = kSlotAlignment) {
  return (bytes + to - 1) / to * to;
}

std::string Listed(const std::set<int>& processes) {
  std::string text = processes.size() == 1 ? "process" : "processes";
  for (const int process : processes) {
    text += (process == *processes.begin() ? " " : ", ") + std::to_string(process);
  }
  return text;
}

}  // namespace

HostReach::HostReach(HostProxy& proxy, Runtime& runtime, std::vector<int> ordinals, int process,
                     HostProxy::HostGroupSpec spec)
    : proxy_(proxy),
      runtime_(runtime),
      ordinals_(std::move(ordinals)),
      process_(process),
      spec_(std::move(spec)) {
  for (size_t rank = 0; rank < spec_.process_of_rank.size(); ++rank) {
    if (spec_.process_of_rank[rank] == process_) host_ = spec_.host_of_rank[rank];
  }
}

StatusOr<std::unique_ptr<HostReach>> HostReach::Create(HostProxy& proxy, Runtime& runtime,
                                                       std::vector<int> ordinals, int process,
                                                       HostProxy::HostGroupSpec spec,
                                                       const Options& options) {
  std::unique_ptr<HostReach> reach(
      new HostReach(proxy, runtime, std::move(ordinals), process, std::move(spec)));
  std::lock_guard lock(reach->mutex_);
  StatusOr<unsigned char*> abort = reach->Allocate(sizeof(uint32_t));
  if (!abort.ok()) return abort.status();
  reach->spec_.abort = reinterpret_cast<uint32_t*>(*abort);
  proxy.OpenGroup(reach->spec_);
  reach->Pick(options);
  return StatusOr<std::unique_ptr<HostReach>>(std::move(reach));
}

HostReach::~HostReach() {
  if (spec_.abort != nullptr) proxy_.CloseGroup(spec_.id);  // from here on no NIC reads slabs
  for (unsigned char* const slab : slabs_) runtime_.FreeHost(slab);
  for (const auto& [rank, slab] : device_slabs_) runtime_.Free(ordinals_[rank], slab);
}

// ---- The way to each process -------------------------------------------------------------------

void HostReach::Pick(const Options& options) {
  std::set<int> processes;
  std::string why = options.lend ? "" : "JAXCOLL_CUDA_DMABUF is 0";
  for (int rank = 0; rank < static_cast<int>(ordinals_.size()); ++rank) {
    if (IsRemote(rank)) processes.insert(spec_.process_of_rank[rank]);
    if (IsLocal(rank) && why.empty()) why = runtime_.WhyNoDmabuf(ordinals_[rank]);
  }
  if (why.empty()) {
    takers_ = proxy_.TakersOf(spec_.id, processes, options.timeout_s);
    why = "the link to it takes no device memory";
  }
  for (const int process : processes) {
    if (takers_.count(process) == 0) Copy(process, why, LogLevel::kInfo);
  }
  // The first ones with the communicator; see Allocate.
  for (int rank = 0; rank < static_cast<int>(ordinals_.size()) && !takers_.empty(); ++rank) {
    if (IsLocal(rank)) NewDeviceSlab(rank, kSlabBytes);
  }
  for (const int process : takers_) {
    Log(LogLevel::kInfo, "NICs read GPU memory for what goes to process %d", process);
  }
}

// From here on, slots that are already in device memory stay there.
void HostReach::Copy(int process, const std::string& why, LogLevel level) {
  takers_.erase(process);
  copied_[process] = why;
  Log(level, "what goes from this process's GPUs to process %d is copied by the host, because %s",
      process, why.c_str());
}

// If any step fails, the way through host memory is left.
void HostReach::NewDeviceSlab(int rank, uint64_t bytes) {
  const int ordinal = ordinals_[rank];
  device_slab_[rank] = {};
  StatusOr<unsigned char*> memory = runtime_.Allocate(ordinal, bytes);
  Status status = memory.status();
  if (memory.ok()) {
    device_slabs_.emplace_back(rank, *memory);
    StatusOr<int> fd = runtime_.ExportDmabuf(ordinal, *memory, bytes);
    status = fd.status();
    if (fd.ok()) {
      const Fd dmabuf(*fd);
      device_bytes_ += bytes;
      device_slab_[rank] = {*memory, bytes};
      for (const int process : std::set<int>(takers_)) {
        const Status lent =
            proxy_.Lend(spec_.id, process, dmabuf.get(), std::as_bytes(std::span(*memory, bytes)));
        if (!lent.ok()) Copy(process, lent.message(), LogLevel::kWarning);
      }
    }
  }
  if (status.ok()) return;
  for (const int process : std::set<int>(takers_)) {
    Copy(process, status.message(), LogLevel::kWarning);
  }
}

// Outboxes for all ranks that are sent to in this way, in one slab.
std::vector<unsigned char*> HostReach::AllocateSlots(int rank, const HostRoutes& routes) {
  std::set<int> peers;
  for (const HostRoutes::HostMessage& message : routes.messages()) {
    if (message.source == rank && IsRemote(message.destination)) peers.insert(message.destination);
  }
  uint64_t outbox = 0;
  for (const TableCall& call : routes.calls()) {
    outbox = std::max(outbox, RoundUp(HostRoutes::RegionBytes(call)));
  }
  std::erase_if(peers, [&](int peer) { return !LendsTo(peer); });
  if (outbox * peers.size() > device_slab_[rank].left) {
    NewDeviceSlab(rank, std::max(kSlabBytes, RoundUp(outbox * peers.size(), kPageBytes)));
    std::erase_if(peers, [&](int peer) { return !LendsTo(peer); });
  }
  Slab& slab = device_slab_[rank];
  std::vector<unsigned char*> slots(spec_.process_of_rank.size(), nullptr);
  for (const int peer : peers) {
    slots[peer] = std::exchange(slab.next, slab.next + outbox);
    slab.left -= outbox;
  }
  return slots;
}

// ---- Regions -----------------------------------------------------------------------------------

// Taken in slabs, the first one with the communicator: who takes page-locked memory, or a device's,
// waits for kernels, which may wait for this process.
StatusOr<unsigned char*> HostReach::Allocate(uint64_t bytes) {
  bytes = RoundUp(bytes);
  if (bytes > host_slab_.left) {
    const uint64_t slab = std::max(bytes, kSlabBytes);
    const auto local =
        std::find(spec_.process_of_rank.begin(), spec_.process_of_rank.end(), process_) -
        spec_.process_of_rank.begin();
    StatusOr<unsigned char*> memory = runtime_.AllocateHost(ordinals_[local], slab);
    if (!memory.ok()) {
      return Status(memory.status().code(),
                    std::to_string(slab >> 20) +
                        " MiB of pinned host memory, by which GPUs of other hosts are reached, "
                        "could not be allocated; ask for less (JAXCOLL_CUDA_WORKSPACE_MIB): " +
                        memory.status().message());
    }
    slabs_.push_back(*memory);
    bytes_ += slab;
    host_slab_ = {*memory, slab};
  }
  host_slab_.left -= bytes;
  return std::exchange(host_slab_.next, host_slab_.next + bytes);
}

// The host memory needed for each rank's layout, in bytes from its start: 0 of ranks of this
// host's other processes. Ranks that send each other nothing still say when they are done.
std::vector<uint64_t> HostReach::Needed(const HostRoutes& routes, const Region& region) const {
  uint64_t flags = 0, all = 0;
  for (const TableCall& call : routes.calls()) {
    flags = std::max<uint64_t>(flags, call.slot_offset);
    all = std::max<uint64_t>(all, HostRoutes::RegionBytes(call));
  }
  std::vector<uint64_t> bytes;
  for (int rank = 0; rank < routes.world_size(); ++rank) {
    bytes.push_back(IsLocal(rank) || IsRemote(rank) ? HostRoutes::DoneAt(routes.world_size()) : 0);
  }
  for (const HostRoutes::HostMessage& message : routes.messages()) {
    const int from = message.source, to = message.destination;
    if (!IsLocal(from) && !IsLocal(to)) continue;
    bytes[from] = std::max(bytes[from], flags);
    const bool lent = IsLocal(from) && region.slots[from][to] != nullptr;
    bytes[to] = std::max(bytes[to], lent ? flags : all);
  }
  return bytes;
}

StatusOr<const HostReach::Region*> HostReach::Open(uint32_t seat, HostRoutes routes,
                                                   const std::string& description) {
  std::lock_guard lock(mutex_);
  if (const auto found = regions_.find(seat); found != regions_.end()) return &found->second;
  Region region;
  for (int rank = 0; rank < routes.world_size(); ++rank) {
    region.slots.push_back(IsLocal(rank) ? AllocateSlots(rank, routes)
                                         : std::vector<unsigned char*>());
  }
  for (const uint64_t bytes : Needed(routes, region)) {
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
  key.Add(int64_t{seat});
  HostProxy::RegionSpec spec;
  spec.group = spec_.id;
  spec.key = key.Value();
  spec.description = description;
  spec.routes = std::make_shared<const HostRoutes>(std::move(routes));
  spec.memory = region.memory;
  spec.doorbells.assign(region.doorbells.begin(), region.doorbells.end());
  spec.slots = region.slots;
  proxy_.OpenRegion(std::move(spec));
  return &regions_.emplace(seat, std::move(region)).first->second;
}

std::optional<std::string> HostReach::Cause() const {
  if (__atomic_load_n(spec_.abort, __ATOMIC_ACQUIRE) == 0) return std::nullopt;
  return proxy_.Cause(spec_.id);
}

std::string HostReach::Describe() const {
  std::lock_guard lock(mutex_);
  const std::set<int> hosts(spec_.host_of_rank.begin(), spec_.host_of_rank.end());
  const auto mib = [](uint64_t bytes) {
    return std::to_string((bytes + (1 << 20) - 1) >> 20) + " MiB of ";
  };
  std::string text = std::to_string(hosts.size()) + " hosts, joined by a proxy with " +
                     mib(bytes_) + "pinned host memory";
  if (device_bytes_ > 0) text += " and " + mib(device_bytes_) + "GPU memory";
  if (!takers_.empty()) text += "; NICs read GPU memory for what goes to " + Listed(takers_);
  std::map<std::string, std::set<int>> reasons;
  for (const auto& [process, why] : copied_) reasons[why].insert(process);
  for (const auto& [why, processes] : reasons) {
    text += "; the host copies what goes to " + Listed(processes) + ", because " + why;
  }
  return text;
}

}  // namespace jaxcoll::cuda
