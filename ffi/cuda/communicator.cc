#include "cuda/communicator.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <set>
#include <thread>
#include <utility>

#include "base/environment.h"
#include "cuda/cause.h"
#include "cuda/runtime.h"

namespace jaxcoll::cuda {
namespace {

// Of a staged communicator's workspace; the rest is staging. Unstaged, all of it is lanes.
constexpr uint32_t kStagedLanes = 1024;
// A call takes no more than this part of the staging that is left, so that none is the last.
constexpr uint64_t kStagingShare = 16;

// What a process publishes of one of its ranks.
struct RankRecord {
  char magic[8] = {'j', 'a', 'x', 'c', 'u', 'd', 'a', '1'};
  char host[64] = {};  // boot id: CUDA IPC joins processes of one running kernel
  cudaIpcMemHandle_t handle = {};
  uint64_t workspace_bytes = 0;
  int32_t max_blocks = 0;
  int32_t ordinal = 0;
};

std::string HostId() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  std::getline(file, id);
  return id.substr(0, sizeof(RankRecord::host) - 1);
}

// Hex of a 64-bit FNV-1a hash: keys of the store are short.
std::string Digest(const std::string& text) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  char hex[17];
  std::snprintf(hex, sizeof(hex), "%016llx", static_cast<unsigned long long>(hash));
  return hex;
}

struct Registry {
  std::mutex mutex;
  std::set<const Communicator*> all;   // guarded by mutex
  std::set<const Communicator*> told;  // guarded by mutex
  std::condition_variable changed;
  std::thread monitor;
  bool stop = false;  // guarded by mutex
};
// Never destroyed: a thread may be about to look.
Registry& TheRegistry() {
  static Registry& registry = *new Registry;
  return registry;
}

}  // namespace

Communicator::Communicator(std::vector<Member> members, int process,
                           const CommunicatorOptions& options, Exchange* exchange)
    : members_(std::move(members)), process_(process), options_(options), exchange_(exchange) {}

StatusOr<std::unique_ptr<Communicator>> Communicator::Create(std::vector<Member> members,
                                                             int process,
                                                             const CommunicatorOptions& options,
                                                             Exchange* exchange) {
  std::unique_ptr<Communicator> communicator(
      new Communicator(std::move(members), process, options, exchange));
  if (Status status = communicator->Init(); !status.ok()) return status;
  Registry& registry = TheRegistry();
  std::lock_guard lock(registry.mutex);
  registry.all.insert(communicator.get());
  return communicator;
}

Communicator::~Communicator() {
  {
    Registry& registry = TheRegistry();
    std::lock_guard lock(registry.mutex);
    registry.all.erase(this);
    registry.told.erase(this);
  }
  for (int rank = 0; rank < static_cast<int>(workspaces_.size()); ++rank) {
    for (int local = 0; local < static_cast<int>(workspaces_.size()); ++local) {
      unsigned char* const workspace = workspaces_[rank][local];
      if (workspace == nullptr || (is_local(rank) && local != rank)) continue;
      // Errors have nobody to go to; after a trap everything fails.
      const SetupScope scope(members_[local].ordinal);
      (void)(is_local(rank) ? cudaFree(workspace) : cudaIpcCloseMemHandle(workspace));
    }
  }
  if (causes_ != nullptr) (void)cudaFreeHost(causes_);
}

Status Communicator::Init() {
  if (members_.empty() || world_size() > kMaxRanks) {
    return InvalidArgument("a group of " + std::to_string(members_.size()) +
                           " GPUs; the kernels serve 1 to " + std::to_string(kMaxRanks));
  }
  all_local_ = std::all_of(members_.begin(), members_.end(),
                           [&](const Member& m) { return m.process == process_; });
  staged_ = options_.staged || !all_local_;
  if (!all_local_ && exchange_ == nullptr) {
    return Status(StatusCode::kInternal, "other processes take part, but nothing links to them");
  }
  const uint64_t for_lanes =
      options_.workspace_bytes - std::min<uint64_t>(options_.workspace_bytes, sizeof(Header));
  lane_count_ = static_cast<uint32_t>(for_lanes / sizeof(Lane));
  if (staged_) lane_count_ = std::min<uint32_t>(kStagedLanes, lane_count_ / 2);
  if (lane_count_ == 0) {
    return InvalidArgument("JAXCOLL_CUDA_WORKSPACE_MIB is too small for a single call");
  }
  staging_begin_ = LaneOffset(lane_count_);
  for (uint32_t lane = 0; lane < lane_count_; ++lane) free_lanes_.push_back(lane);
  workspaces_.assign(members_.size(), std::vector<unsigned char*>(members_.size(), nullptr));
  for (auto step :
       {&Communicator::EnablePeerAccess, &Communicator::Allocate, &Communicator::MapPeers}) {
    if (Status status = (this->*step)(); !status.ok()) return status;
  }
  return Status();
}

Status Communicator::EnablePeerAccess() {
  std::set<int> ordinals;
  for (int rank = 0; rank < world_size(); ++rank) {
    if (is_local(rank)) ordinals.insert(members_[rank].ordinal);
  }
  for (const int from : ordinals) {
    const SetupScope scope(from);
    for (const int to : ordinals) {
      if (from == to) continue;
      int can = 0;
      const cudaError_t asked = cudaDeviceCanAccessPeer(&can, from, to);
      if (asked != cudaSuccess) return ToStatus(asked, "asking for peer access");
      if (can == 0) {
        return InvalidArgument("GPU " + std::to_string(from) + " cannot reach the memory of GPU " +
                               std::to_string(to) +
                               ": neither NVLink nor PCIe peer access joins them; use lax's "
                               "collectives for this group, or a mesh without one of them");
      }
      const cudaError_t enabled = cudaDeviceEnablePeerAccess(to, 0);
      if (enabled == cudaErrorPeerAccessAlreadyEnabled) {
        (void)cudaGetLastError();  // XLA has done it
      } else if (enabled != cudaSuccess) {
        return ToStatus(enabled, "enabling peer access");
      }
    }
  }
  return Status();
}

Status Communicator::Allocate() {
  max_blocks_ = std::clamp(options_.max_blocks, 1, kMaxBlocks);
  const size_t record_bytes = sizeof(CauseRecord) * members_.size();
  void* records = nullptr;
  for (int rank = 0; rank < world_size(); ++rank) {
    if (!is_local(rank)) continue;
    const SetupScope scope(members_[rank].ordinal);
    if (records == nullptr) {
      const cudaError_t error =
          cudaHostAlloc(&records, record_bytes, cudaHostAllocPortable | cudaHostAllocMapped);
      if (error != cudaSuccess) return ToStatus(error, "allocating pinned memory");
      std::memset(records, 0, record_bytes);
      causes_ = static_cast<CauseRecord*>(records);
    }
    int sm_count = 0;
    cudaError_t error =
        cudaDeviceGetAttribute(&sm_count, cudaDevAttrMultiProcessorCount, members_[rank].ordinal);
    if (error != cudaSuccess) return ToStatus(error, "counting multiprocessors");
    max_blocks_ = std::min(max_blocks_, sm_count);
    void* workspace = nullptr;
    error = cudaMalloc(&workspace, options_.workspace_bytes);
    if (error != cudaSuccess) {
      (void)cudaGetLastError();
      return ToStatus(error, "allocating a workspace of " +
                                 std::to_string(options_.workspace_bytes >> 20) + " MiB on GPU " +
                                 std::to_string(members_[rank].ordinal));
    }
    for (int local = 0; local < world_size(); ++local) {
      // Unified addresses: one for all devices of a process.
      if (is_local(local)) workspaces_[rank][local] = static_cast<unsigned char*>(workspace);
    }
    // On a stream of its own: the device's other streams go on.
    cudaStream_t stream = nullptr;
    error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    if (error != cudaSuccess) return ToStatus(error, "creating a stream");
    error = cudaMemsetAsync(workspace, 0, options_.workspace_bytes, stream);
    if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
    (void)cudaStreamDestroy(stream);
    if (error != cudaSuccess) return ToStatus(error, "clearing a workspace");
  }
  return Status();
}

std::string Communicator::Key(const std::string& what) const {
  std::string devices;
  for (const Member& member : members_) devices += std::to_string(member.device_id) + ' ';
  return "cuda/" + Digest(devices) + "/" + what;
}

Status Communicator::MapPeers() {
  if (all_local_) return Status();
  const std::string host = HostId();
  for (int rank = 0; rank < world_size(); ++rank) {
    if (!is_local(rank)) continue;
    const SetupScope scope(members_[rank].ordinal);
    RankRecord record;
    std::memcpy(record.host, host.data(), host.size());
    record.workspace_bytes = options_.workspace_bytes;
    record.max_blocks = max_blocks_;
    record.ordinal = members_[rank].ordinal;
    const cudaError_t error = cudaIpcGetMemHandle(&record.handle, workspaces_[rank][rank]);
    if (error != cudaSuccess) return ToStatus(error, "exporting a workspace by CUDA IPC");
    Status status = exchange_->Publish(
        Key(std::to_string(rank)), std::string(reinterpret_cast<char*>(&record), sizeof(record)));
    if (!status.ok()) return status;
  }
  for (int rank = 0; rank < world_size(); ++rank) {
    if (is_local(rank)) continue;
    const std::string who = Names()[rank];
    StatusOr<std::string> bytes = exchange_->Fetch(Key(std::to_string(rank)), options_.timeout_s);
    if (!bytes.ok()) {
      return Status(bytes.status().code(),
                    who + " has not set up its workspace: " + bytes.status().message());
    }
    RankRecord record;
    const RankRecord expected;
    if (bytes->size() != sizeof(record)) {
      return InvalidArgument(who + " runs another version of jaxcoll");
    }
    std::memcpy(&record, bytes->data(), sizeof(record));
    if (std::memcmp(record.magic, expected.magic, sizeof(record.magic)) != 0) {
      return InvalidArgument(who + " runs another version of jaxcoll");
    }
    if (host != record.host) {
      return InvalidArgument(who +
                             " is on another host: groups of GPUs across hosts are not served; "
                             "use lax's collectives for this axis");
    }
    if (record.workspace_bytes != options_.workspace_bytes) {
      return InvalidArgument("JAXCOLL_CUDA_WORKSPACE_MIB is " +
                             std::to_string(options_.workspace_bytes >> 20) + " here and " +
                             std::to_string(record.workspace_bytes >> 20) + " at " + who);
    }
    max_blocks_ = std::min(max_blocks_, record.max_blocks);
    for (int local = 0; local < world_size(); ++local) {
      if (!is_local(local)) continue;
      const SetupScope scope(members_[local].ordinal);
      void* mapped = nullptr;
      const cudaError_t error =
          cudaIpcOpenMemHandle(&mapped, record.handle, cudaIpcMemLazyEnablePeerAccess);
      if (error != cudaSuccess) {
        (void)cudaGetLastError();
        return ToStatus(error, "mapping the workspace of " + who + " on GPU " +
                                   std::to_string(members_[local].ordinal) +
                                   " (processes must share a PID and IPC namespace, and the GPUs "
                                   "must have peer access)");
      }
      workspaces_[rank][local] = static_cast<unsigned char*>(mapped);
    }
  }
  return Status();
}

StatusOr<LaneGrant> Communicator::Grant(const CallPlan& plan) {
  LaneGrant grant;
  if (free_lanes_.empty()) {
    return Status(StatusCode::kFailedPrecondition,
                  "all " + std::to_string(lane_count_) +
                      " places for collectives of the workspace are taken; raise "
                      "JAXCOLL_CUDA_WORKSPACE_MIB (" +
                      std::to_string(options_.workspace_bytes >> 20) + " now)");
  }
  if (staged_) {
    const uint64_t left = options_.workspace_bytes - staging_begin_ - staging_used_;
    grant.slot_bytes = plan.SlotBytes(left / kStagingShare);
    if (grant.slot_bytes == 0) {
      return Status(StatusCode::kFailedPrecondition,
                    "the workspace has no room for another call's staging; raise "
                    "JAXCOLL_CUDA_WORKSPACE_MIB (" +
                        std::to_string(options_.workspace_bytes >> 20) + " now)");
    }
    grant.staging = staging_begin_ + staging_used_;
    staging_used_ += plan.StagingBytes(grant.slot_bytes);
  }
  grant.lane = free_lanes_.front();
  free_lanes_.pop_front();
  return grant;
}

StatusOr<LaneGrant> Communicator::TakeLane(const CallPlan& plan, const std::string& key,
                                           const std::string& description) {
  LaneGrant grant;
  std::lock_guard lock(mutex_);
  const auto found = granted_.find(key);
  if (!key.empty() && found != granted_.end()) {
    grant = found->second;
  } else if (all_local_ || is_local(0)) {
    StatusOr<LaneGrant> granted = Grant(plan);
    if (!granted.ok()) return granted.status();
    grant = *granted;
  }
  if (!all_local_ && found == granted_.end()) {
    const std::string name = Key("lane/" + Digest(key));
    if (is_local(0)) {
      const std::string value(reinterpret_cast<const char*>(&grant), sizeof(grant));
      if (Status status = exchange_->Publish(name, value); !status.ok()) return status;
    } else {
      StatusOr<std::string> value = exchange_->Fetch(name, options_.timeout_s);
      if (!value.ok()) {
        return Status(value.status().code(),
                      Names()[0] + " has not come to this call: " + value.status().message());
      }
      if (value->size() != sizeof(grant)) {
        return InvalidArgument(Names()[0] + " runs another version of jaxcoll");
      }
      std::memcpy(&grant, value->data(), sizeof(grant));
    }
    granted_.emplace(key, grant);
  }
  std::lock_guard descriptions_lock(descriptions_mutex_);
  descriptions_[grant.lane] = description;
  return grant;
}

void Communicator::ReturnLane(const LaneGrant& lane) {
  if (!all_local_) return;
  std::lock_guard lock(mutex_);
  // Staging is not returned: harnesses only stage where all is local, and end soon.
  free_lanes_.push_back(lane.lane);
}

void Communicator::Complete(const LaneGrant& lane, Call& call) const {
  call.lane = lane.lane;
  call.staged = staged_ ? 1 : 0;
  call.staging = lane.staging;
  call.slot_bytes = lane.slot_bytes;
  call.deadline_ns = static_cast<uint64_t>(options_.timeout_s * 1e9);
  for (int rank = 0; rank < world_size(); ++rank) {
    call.workspaces[rank] = workspaces_[rank][call.rank];
  }
  call.cause = causes_ + call.rank;
}

std::vector<std::string> Communicator::Names() const {
  std::vector<std::string> names;
  for (int rank = 0; rank < world_size(); ++rank) {
    names.push_back("rank " + std::to_string(rank) + " (device " +
                    std::to_string(members_[rank].device_id) + ", process " +
                    std::to_string(members_[rank].process) + ")");
  }
  return names;
}

std::optional<std::string> Communicator::Cause() const {
  for (int rank = 0; rank < world_size(); ++rank) {
    // Written by the device: the kind last, after a system-wide fence.
    if (!is_local(rank) || __atomic_load_n(&causes_[rank].kind, __ATOMIC_ACQUIRE) == 0) continue;
    const CauseRecord& cause = causes_[rank];
    std::string call = "a collective";
    {
      std::lock_guard lock(descriptions_mutex_);
      const auto it = descriptions_.find(cause.lane);
      if (it != descriptions_.end()) call = it->second;
    }
    return Describe(cause, Names(), call, options_.timeout_s);
  }
  return std::nullopt;
}

std::vector<std::string> Communicator::AllCauses() {
  Registry& registry = TheRegistry();
  std::lock_guard lock(registry.mutex);
  std::vector<std::string> causes;
  for (const Communicator* communicator : registry.all) {
    if (std::optional<std::string> cause = communicator->Cause()) causes.push_back(*cause);
  }
  return causes;
}

std::vector<std::string> Communicator::DescribeAll() {
  Registry& registry = TheRegistry();
  std::lock_guard lock(registry.mutex);
  std::vector<std::string> lines;
  for (const Communicator* c : registry.all) {
    std::string devices;
    for (const Member& member : c->members_) {
      devices += (devices.empty() ? "" : ",") + std::to_string(member.device_id);
    }
    lines.push_back("devices " + devices + ": " + std::to_string(c->workspace_bytes() >> 20) +
                    " MiB each, " + std::to_string(c->max_blocks_) + " blocks, operands " +
                    (c->staged_ ? "staged" : "reached directly"));
  }
  return lines;
}

void Communicator::StartMonitor() {
  Registry& registry = TheRegistry();
  std::lock_guard lock(registry.mutex);
  if (registry.monitor.joinable() || registry.stop) return;
  registry.monitor = std::thread([&registry] {
    std::unique_lock lock(registry.mutex);
    while (!registry.stop) {
      for (const Communicator* communicator : registry.all) {
        if (registry.told.count(communicator) != 0) continue;
        if (const std::optional<std::string> cause = communicator->Cause()) {
          Log(LogLevel::kWarning, "%s", cause->c_str());
          registry.told.insert(communicator);
        }
      }
      registry.changed.wait_for(lock, std::chrono::milliseconds(50));
    }
  });
}

void Communicator::StopMonitor() {
  Registry& registry = TheRegistry();
  std::thread monitor;
  {
    std::lock_guard lock(registry.mutex);
    registry.stop = true;
    monitor = std::move(registry.monitor);
  }
  registry.changed.notify_all();
  if (monitor.joinable()) monitor.join();
}

}  // namespace jaxcoll::cuda
