// The proxy's part in what is lent to links: who takes it, and how long.
#include <chrono>
#include <thread>
#include <utility>

#include "gpu/proxy/proxy.h"

namespace jaxcoll::cuda {

using std::chrono::steady_clock;

void HostProxy::OnInvited(CarrierAccess* access) {
  std::lock_guard lock(mutex_);
  access_ = access;
}

std::set<int> HostProxy::TakersOf(uint64_t group, const std::set<int>& processes,
                                  double timeout_s) {
  CarrierAccess* access = nullptr;
  {
    std::lock_guard lock(mutex_);
    access = access_;
  }
  std::set<int> takers;
  if (access == nullptr) return takers;
  const auto give_up = steady_clock::now() + std::chrono::duration<double>(timeout_s);
  while (true) {
    const bool waits = steady_clock::now() < give_up && !Cause(group);
    bool all = true;
    takers.clear();
    access->Use([&](Carrier& carrier) {
      for (const int process : processes) {
        const std::optional<bool> takes = carrier.TakesDmabuf(process);
        all &= takes.has_value();
        if (takes.value_or(false)) takers.insert(process);
      }
    });
    if (all || !waits) return takers;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

Status HostProxy::Lend(uint64_t id, int process, int fd, std::span<const std::byte> memory) {
  CarrierAccess* access = nullptr;
  {
    std::lock_guard lock(mutex_);
    access = access_;
  }
  Status status(StatusCode::kUnavailable, "there are no links");
  if (access == nullptr) return status;
  access->Use([&](Carrier& carrier) {
    StatusOr<std::unique_ptr<Link::Loan>> loan = carrier.Lend(process, fd, memory);
    status = loan.status();
    if (!loan.ok()) return;
    std::lock_guard lock(mutex_);
    groups_.at(id).lent.push_back({process, memory, std::move(*loan)});
  });
  return status;
}

// All slots that a rank has for a process lie in one piece of lent memory.
Link::Loan* HostProxy::LoanOf(const HostGroup& group, const RegionSpec& spec, int32_t rank,
                              int process) {
  if (spec.slots.empty() || spec.slots[rank].empty()) return nullptr;
  for (size_t peer = 0; peer < spec.slots[rank].size(); ++peer) {
    const auto* const slots = reinterpret_cast<const std::byte*>(spec.slots[rank][peer]);
    if (slots == nullptr || group.spec.process_of_rank[peer] != process) continue;
    for (const Lent& lent : group.lent) {
      const bool inside =
          slots >= lent.memory.data() && slots < lent.memory.data() + lent.memory.size();
      if (lent.process == process && inside) return lent.loan.get();
    }
    JAXCOLL_CHECK(false, "slots for process %d lie in memory that it was not lent", process);
  }
  return nullptr;
}

void HostProxy::CloseGroup(uint64_t id) {
  std::vector<Lent> lent;
  CarrierAccess* access = nullptr;
  {
    std::lock_guard lock(mutex_);
    const auto group = groups_.find(id);
    if (group == groups_.end()) return;
    lent = std::move(group->second.lent);
    groups_.erase(group);
    std::erase_if(group_of_region_, [id](const auto& entry) { return entry.second == id; });
    access = access_;
  }
  if (access != nullptr && !lent.empty()) access->Use([&](Carrier&) { lent.clear(); });
}

}  // namespace jaxcoll::cuda
