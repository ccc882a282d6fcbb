#include "gpu/host/gpu_communicator.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <set>
#include <thread>
#include <utility>

#include "base/log.h"
#include "gpu/abi/cause.h"
#include "gpu/abi/fingerprint.h"

namespace jaxcoll::cuda {
namespace {

// A call takes no more than this part of the room for areas that is left, so that none is the last.
constexpr uint64_t kAreaShare = 16;
// Begins what rank 0's process publishes instead of a grant.
const std::string kRefusal = "refused: ";

// The record that a process publishes for one of its ranks.
struct RankRecord {
  char magic[8] = {'j', 'a', 'x', 'c', 'u', 'd', 'a', '2'};
  char host[17] = {};  // digest
  Runtime::IpcHandle handle = {};
  uint64_t workspace_bytes = 0;
  int32_t max_blocks = 0;
  int32_t ordinal = 0;
  OperandMap::Record operands;
};

uint64_t RoundUp(uint64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// Hex of a hash: keys of the store are short.
std::string Digest(const std::string& text) {
  Fingerprint hash;
  hash.Add(text);
  char hex[17];
  std::snprintf(hex, sizeof(hex), "%016llx", static_cast<unsigned long long>(hash.Value()));
  return hex;
}

struct Registry {
  std::mutex mutex;
  std::set<const GpuCommunicator*> all;   // guarded by mutex
  std::set<const GpuCommunicator*> told;  // guarded by mutex
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

GpuCommunicator::GpuCommunicator(std::vector<Member> members, int process,
                                 const GpuCommunicatorOptions& options, Store* store,
                                 Runtime& runtime)
    : members_(std::move(members)),
      process_(process),
      options_(options),
      store_(store),
      runtime_(runtime) {}

StatusOr<std::unique_ptr<GpuCommunicator>> GpuCommunicator::Create(
    std::vector<Member> members, int process, const GpuCommunicatorOptions& options, Store* store,
    Runtime& runtime) {
  std::unique_ptr<GpuCommunicator> communicator(
      new GpuCommunicator(std::move(members), process, options, store, runtime));
  if (Status status = communicator->Init(); !status.ok()) return status;
  Registry& registry = TheRegistry();
  std::lock_guard lock(registry.mutex);
  registry.all.insert(communicator.get());
  return communicator;
}

GpuCommunicator::~GpuCommunicator() {
  {
    Registry& registry = TheRegistry();
    std::lock_guard lock(registry.mutex);
    registry.all.erase(this);
    registry.told.erase(this);
  }
  reach_.reset();
  for (int rank = 0; rank < static_cast<int>(workspaces_.size()); ++rank) {
    for (int local = 0; local < static_cast<int>(workspaces_.size()); ++local) {
      unsigned char* const workspace = workspaces_[rank][local];
      if (workspace == nullptr || (is_local(rank) && local != rank)) continue;
      if (is_local(rank)) {
        runtime_.Free(members_[local].ordinal, workspace);
      } else {
        runtime_.CloseImport(members_[local].ordinal, workspace);
      }
    }
  }
  if (causes_ != nullptr) runtime_.FreeHost(reinterpret_cast<unsigned char*>(causes_));
}

Status GpuCommunicator::Init() {
  all_local_ = std::all_of(members_.begin(), members_.end(),
                           [&](const Member& m) { return m.process == process_; });
  staged_ = options_.staged || !all_local_;
  if (!all_local_ && store_ == nullptr) {
    return Status(StatusCode::kInternal, "other processes take part, but nothing links to them");
  }
  // Half of the workspace is seats.
  seat_count_ = static_cast<uint32_t>(options_.workspace_bytes / 2 / sizeof(Seat));
  if (seat_count_ == 0) {
    return InvalidArgument("JAXCOLL_CUDA_WORKSPACE_MIB is too small for a single call");
  }
  areas_used_ = SeatOffset(seat_count_);
  gaps_[areas_used_] = (options_.workspace_bytes - areas_used_) / kAlignment * kAlignment;
  for (uint32_t seat = 0; seat < seat_count_; ++seat) free_seats_.push_back(seat);
  workspaces_.assign(members_.size(), std::vector<unsigned char*>(members_.size(), nullptr));
  for (auto step : {&GpuCommunicator::EnablePeerAccess, &GpuCommunicator::Allocate,
                    &GpuCommunicator::MapPeers}) {
    if (Status status = (this->*step)(); !status.ok()) return status;
  }
  return Status();
}

Status GpuCommunicator::EnablePeerAccess() {
  std::set<int> ordinals;
  for (int rank = 0; rank < world_size(); ++rank) {
    if (is_local(rank)) ordinals.insert(members_[rank].ordinal);
  }
  for (const int from : ordinals) {
    for (const int to : ordinals) {
      if (from == to) continue;
      const StatusOr<bool> reaches = runtime_.CanReach(from, to);
      if (!reaches.ok()) return reaches.status();
      if (!*reaches) {
        return InvalidArgument("GPU " + std::to_string(from) + " cannot reach the memory of GPU " +
                               std::to_string(to) +
                               ": neither NVLink nor PCIe peer access joins them; use lax's "
                               "collectives for this group, or a mesh without one of them");
      }
      if (Status status = runtime_.EnableReach(from, to); !status.ok()) return status;
    }
  }
  return Status();
}

Status GpuCommunicator::Allocate() {
  max_blocks_ = std::clamp(options_.max_blocks, 1, kMaxBlocks);
  for (int rank = 0; rank < world_size(); ++rank) {
    if (!is_local(rank)) continue;
    const int ordinal = members_[rank].ordinal;
    if (causes_ == nullptr) {
      StatusOr<unsigned char*> records =
          runtime_.AllocateHost(ordinal, sizeof(CauseRecord) * members_.size());
      if (!records.ok()) return records.status();
      causes_ = reinterpret_cast<CauseRecord*>(*records);
    }
    const StatusOr<int> count = runtime_.MultiprocessorCount(ordinal);
    if (!count.ok()) return count.status();
    max_blocks_ = std::min(max_blocks_, *count);
    StatusOr<unsigned char*> workspace = runtime_.Allocate(ordinal, options_.workspace_bytes);
    if (!workspace.ok()) {
      return Status(workspace.status().code(),
                    "a workspace of " + std::to_string(options_.workspace_bytes >> 20) +
                        " MiB for a group of " + std::to_string(world_size()) +
                        " GPUs does not fit: " + workspace.status().message());
    }
    for (int local = 0; local < world_size(); ++local) {
      if (is_local(local)) workspaces_[rank][local] = *workspace;
    }
  }
  return Status();
}

std::string GpuCommunicator::Key(const std::string& what) const {
  std::string devices;
  for (const Member& member : members_) devices += std::to_string(member.device_id) + ' ';
  return "cuda/" + Digest(devices) + "/" + what;
}

Status GpuCommunicator::MapPeers() {
  if (all_local_) return Status();
  const std::string host = Digest(options_.host);
  std::vector<std::string> host_of_rank(members_.size(), host);
  // Several ranks of one process would have operands in several pools, of which one is known.
  const auto mine = std::count_if(members_.begin(), members_.end(),
                                  [&](const Member& m) { return m.process == process_; });
  for (int rank = 0; rank < world_size(); ++rank) {
    if (!is_local(rank)) continue;
    RankRecord record;
    operands_ = std::make_unique<OperandMap>(runtime_, members_[rank].ordinal, rank, world_size());
    record.operands = operands_->Tell(mine == 1 ? options_.operand : nullptr);
    host.copy(record.host, sizeof(record.host) - 1);
    record.workspace_bytes = options_.workspace_bytes;
    record.max_blocks = max_blocks_;
    record.ordinal = members_[rank].ordinal;
    StatusOr<Runtime::IpcHandle> handle =
        runtime_.Export(members_[rank].ordinal, workspaces_[rank][rank]);
    if (!handle.ok()) return handle.status();
    record.handle = *handle;
    Status status = store_->Set(Key(std::to_string(rank)),
                                std::string(reinterpret_cast<char*>(&record), sizeof(record)));
    if (!status.ok()) return status;
  }
  for (int rank = 0; rank < world_size(); ++rank) {
    if (is_local(rank)) continue;
    const std::string who = Names()[rank];
    StatusOr<std::string> bytes = store_->Wait(Key(std::to_string(rank)), options_.timeout_s);
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
    if (record.workspace_bytes != options_.workspace_bytes) {
      return InvalidArgument("JAXCOLL_CUDA_WORKSPACE_MIB is " +
                             std::to_string(options_.workspace_bytes >> 20) + " here and " +
                             std::to_string(record.workspace_bytes >> 20) + " at " + who);
    }
    max_blocks_ = std::min(max_blocks_, record.max_blocks);
    host_of_rank[rank].assign(record.host, sizeof(record.host) - 1);
    if (host_of_rank[rank] != host) continue;
    for (int local = 0; local < world_size(); ++local) {
      if (!is_local(local)) continue;
      StatusOr<unsigned char*> mapped = runtime_.Import(members_[local].ordinal, record.handle);
      if (!mapped.ok()) {
        return Status(mapped.status().code(),
                      "GPU " + std::to_string(members_[local].ordinal) +
                          " cannot map the workspace of " + who +
                          " (processes must share a PID and IPC namespace, and the GPUs must have "
                          "peer access; else use lax's collectives for this group): " +
                          mapped.status().message());
      }
      workspaces_[rank][local] = *mapped;
    }
    operands_->Map(rank, record.operands);
  }
  const bool one_host = std::all_of(host_of_rank.begin(), host_of_rank.end(),
                                    [&](const std::string& other) { return other == host; });
  if (!one_host || !operands_->agreed()) operands_.reset();
  return ReachHosts(host_of_rank);
}

Status GpuCommunicator::ReachHosts(const std::vector<std::string>& host_of_rank) {
  HostProxy::HostGroupSpec group;
  std::map<std::string, int> numbers;
  for (int rank = 0; rank < world_size(); ++rank) {
    const auto number = static_cast<int>(numbers.size());
    group.host_of_rank.push_back(numbers.try_emplace(host_of_rank[rank], number).first->second);
    group.process_of_rank.push_back(members_[rank].process);
  }
  if (numbers.size() == 1) return Status();
  if (options_.proxy == nullptr) {
    return Status(StatusCode::kFailedPrecondition,
                  "GPUs of several hosts take part, but this process is not linked to the others");
  }
  Fingerprint id;
  id.Add(Key("group"));
  group.id = id.Value();
  group.names = Names();
  std::vector<int> ordinals;
  for (const Member& member : members_) ordinals.push_back(member.ordinal);
  StatusOr<std::unique_ptr<HostReach>> reach =
      HostReach::Create(*options_.proxy, runtime_, std::move(ordinals), process_, std::move(group),
                        {.lend = options_.lend, .timeout_s = options_.timeout_s});
  if (!reach.ok()) return reach.status();
  reach_ = std::move(*reach);
  return Status();
}

// The smallest gap that holds the area.
Status GpuCommunicator::GrantArea(const SeatRequest& request, SeatGrant& grant) {
  if (request.area_bytes == nullptr) return Status();
  uint64_t left = 0, largest = 0;
  for (const auto& [begin, bytes] : gaps_) {
    left += bytes;
    largest = std::max(largest, bytes);
  }
  // More than its share, if it must be, and no more than that.
  for (uint64_t allowed = left / kAreaShare; grant.area_bytes == 0; allowed = 2 * allowed + 1) {
    grant.area_bytes = RoundUp(request.area_bytes(std::min(allowed, largest)));
    if (allowed >= largest) break;
  }
  if (grant.area_bytes == 0) {
    uint64_t least = largest + 1;
    while (least < uint64_t{1} << 40 && request.area_bytes(least) == 0) least *= 2;
    return Status(StatusCode::kFailedPrecondition,
                  "the workspace has no room for this call: it needs up to " +
                      std::to_string((least >> 10) + 1) + " KiB and " +
                      std::to_string(largest >> 10) +
                      " are left; raise JAXCOLL_CUDA_WORKSPACE_MIB (" +
                      std::to_string(options_.workspace_bytes >> 20) +
                      " now) in all processes, or use an algorithm with fewer messages");
  }
  auto best = gaps_.end();
  for (auto gap = gaps_.begin(); gap != gaps_.end(); ++gap) {
    if (gap->second < grant.area_bytes) continue;
    if (best == gaps_.end() || gap->second < best->second) best = gap;
  }
  grant.area = best->first;
  const uint64_t rest = best->second - grant.area_bytes;
  gaps_.erase(best);
  if (rest != 0) gaps_[grant.area + grant.area_bytes] = rest;
  // An area that another call has used holds that call's counters.
  if (grant.area < areas_used_) {
    for (int rank = 0; rank < world_size(); ++rank) {
      if (!is_local(rank)) continue;
      Status status = runtime_.Clear(members_[rank].ordinal, workspaces_[rank][rank] + grant.area,
                                     grant.area_bytes);
      if (!status.ok()) return status;
    }
  }
  areas_used_ = std::max(areas_used_, grant.area + grant.area_bytes);
  return Status();
}

void GpuCommunicator::ReturnArea(const SeatGrant& grant) {
  if (grant.area_bytes == 0) return;
  auto gap = gaps_.emplace(grant.area, grant.area_bytes).first;
  if (const auto next = std::next(gap);
      next != gaps_.end() && gap->first + gap->second == next->first) {
    gap->second += next->second;
    gaps_.erase(next);
  }
  if (gap == gaps_.begin()) return;
  if (const auto before = std::prev(gap); before->first + before->second == gap->first) {
    before->second += gap->second;
    gaps_.erase(gap);
  }
}

StatusOr<SeatGrant> GpuCommunicator::Grant(const SeatRequest& request) {
  if (free_seats_.empty()) {
    return Status(StatusCode::kFailedPrecondition,
                  "all " + std::to_string(seat_count_) +
                      " seats for collectives in the workspace are taken; raise "
                      "JAXCOLL_CUDA_WORKSPACE_MIB (" +
                      std::to_string(options_.workspace_bytes >> 20) + " now) in all processes");
  }
  SeatGrant grant;
  if (Status status = GrantArea(request, grant); !status.ok()) return status;
  grant.seat = free_seats_.front();
  free_seats_.pop_front();
  return grant;
}

// The decision of the process of rank 0, made once and for good: a grant, or why there is none.
StatusOr<SeatGrant> GpuCommunicator::Agree(const SeatRequest& request, const std::string& key) {
  const std::string name = Key("seat/" + Digest(key));
  if (is_local(0)) {
    StatusOr<SeatGrant> grant = Grant(request);
    const std::string value =
        grant.ok() ? std::string(reinterpret_cast<const char*>(&*grant), sizeof(SeatGrant))
                   : kRefusal + grant.status().message();
    if (Status status = store_->Set(name, value); !status.ok()) return status;
    return grant;
  }
  StatusOr<std::string> value = store_->Wait(name, options_.timeout_s);
  if (!value.ok()) {
    return Status(value.status().code(),
                  Names()[0] + " has not reached this call: " + value.status().message());
  }
  if (value->starts_with(kRefusal)) {
    return Status(StatusCode::kFailedPrecondition,
                  Names()[0] + ": " + value->substr(kRefusal.size()));
  }
  SeatGrant grant;
  if (value->size() != sizeof(grant)) {
    return InvalidArgument(Names()[0] + " runs another version of jaxcoll");
  }
  std::memcpy(&grant, value->data(), sizeof(grant));
  return grant;
}

StatusOr<SeatGrant> GpuCommunicator::TakeSeat(const SeatRequest& request) {
  std::lock_guard lock(mutex_);
  StatusOr<SeatGrant> grant = SeatGrant();
  if (all_local_) {
    grant = Grant(request);
  } else {
    const std::string key = request.key + ' ' + std::to_string(request.fingerprint);
    auto found = granted_.find(key);
    if (found == granted_.end()) found = granted_.emplace(key, Agree(request, key)).first;
    grant = found->second;
  }
  if (!grant.ok()) return grant;
  std::lock_guard descriptions_lock(descriptions_mutex_);
  descriptions_[grant->seat] = request.description;
  return grant;
}

void GpuCommunicator::ReturnSeat(const SeatGrant& grant) {
  if (!all_local_) return;
  std::lock_guard lock(mutex_);
  free_seats_.push_back(grant.seat);
  ReturnArea(grant);
}

std::vector<std::string> GpuCommunicator::Names() const {
  std::vector<std::string> names;
  for (int rank = 0; rank < world_size(); ++rank) {
    names.push_back("rank " + std::to_string(rank) + " (device " +
                    std::to_string(members_[rank].device_id) + ", process " +
                    std::to_string(members_[rank].process) + ")");
  }
  return names;
}

// The first one of all hosts, if there are several.
std::optional<std::string> GpuCommunicator::Cause() const {
  if (reach_ == nullptr) return KernelsCause();
  if (std::optional<std::string> cause = reach_->Cause()) return cause;
  const std::optional<std::string> cause = KernelsCause();
  if (cause) reach_->Fail(*cause);
  return cause;
}

std::optional<std::string> GpuCommunicator::KernelsCause() const {
  for (int rank = 0; rank < world_size(); ++rank) {
    if (!is_local(rank)) continue;
    if (__atomic_load_n(&causes_[rank].written, __ATOMIC_ACQUIRE) == 0) continue;
    const cuda::Cause& cause = causes_[rank].cause;
    std::string call = "a collective";
    {
      std::lock_guard lock(descriptions_mutex_);
      const auto it = descriptions_.find(cause.seat);
      if (it != descriptions_.end()) call = it->second;
    }
    return Describe(cause, Names(), call, options_.timeout_s);
  }
  return std::nullopt;
}

std::vector<std::string> GpuCommunicator::AllCauses() {
  Registry& registry = TheRegistry();
  std::lock_guard lock(registry.mutex);
  std::vector<std::string> causes;
  for (const GpuCommunicator* communicator : registry.all) {
    if (std::optional<std::string> cause = communicator->Cause()) causes.push_back(*cause);
  }
  return causes;
}

std::vector<std::string> GpuCommunicator::DescribeAll() {
  Registry& registry = TheRegistry();
  std::lock_guard lock(registry.mutex);
  std::vector<std::string> lines;
  for (const GpuCommunicator* c : registry.all) {
    std::string devices;
    for (const Member& member : c->members_) {
      devices += (devices.empty() ? "" : ",") + std::to_string(member.device_id);
    }
    lines.push_back("devices " + devices + ": " + std::to_string(c->workspace_bytes() >> 20) +
                    " MiB each, " + std::to_string(c->max_blocks_) + " blocks, operands " +
                    (!c->staged_               ? "reached directly"
                     : c->operands_ == nullptr ? "staged"
                     : c->operands_->complete()
                         ? "mapped"
                         : "staged: those of another process could not be mapped"));
    if (c->reach_ != nullptr) lines.back() += "; " + c->reach_->Describe();
  }
  return lines;
}

void GpuCommunicator::StartMonitor() {
  Registry& registry = TheRegistry();
  std::lock_guard lock(registry.mutex);
  if (registry.monitor.joinable() || registry.stop) return;
  registry.monitor = std::thread([&registry] {
    std::unique_lock lock(registry.mutex);
    while (!registry.stop) {
      for (const GpuCommunicator* communicator : registry.all) {
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

void GpuCommunicator::StopMonitor() {
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
