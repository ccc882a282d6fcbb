// The groups that call sites open, the numbers that tell instructions apart, and the communicators
// that groups share.
#include <algorithm>
#include <functional>
#include <set>
#include <thread>
#include <utility>

#include "comm/reactor.h"
#include "comm/reactor_internal.h"
#include "comm/words.h"

namespace jaxcoll {
namespace {

class GroupHandle final : public RemoteGroup {
 public:
  using StartFn =
      std::function<void(int64_t, MemberBuffers, std::vector<std::unique_ptr<Completion>>,
                         std::shared_ptr<ContinuationCost>)>;
  GroupHandle(StartFn start, std::function<void(const Status&)> fail, std::function<void()> close)
      : start_(std::move(start)), fail_(std::move(fail)), close_(std::move(close)) {}
  ~GroupHandle() override { close_(); }
  void Start(int64_t run_id, MemberBuffers buffers,
             std::vector<std::unique_ptr<Completion>> completions,
             std::shared_ptr<ContinuationCost> cost) override {
    start_(run_id, std::move(buffers), std::move(completions), std::move(cost));
  }
  void Fail(const Status& status) override { fail_(status); }

 private:
  StartFn start_;
  std::function<void(const Status&)> fail_;
  std::function<void()> close_;
};

}  // namespace

std::optional<int> Reactor::ForCallSites::ProcessOfDevice(int64_t device_id) const {
  const auto it = reactor_.process_of_device_.find(device_id);
  if (it == reactor_.process_of_device_.end()) return std::nullopt;
  return it->second;
}

void Reactor::EndBuild() {
  std::lock_guard lock(mutex_);
  builds_.erase(std::this_thread::get_id());
}

bool Reactor::WantsListing(const std::string& program) {
  std::lock_guard lock(mutex_);
  return listings_.Find(program) == nullptr;
}

void Reactor::AddListing(const std::string& program, Listing listing) {
  std::lock_guard lock(mutex_);
  listings_.Add(program, std::move(listing));
}

Interprocess::InstructionNumber Reactor::ForCallSites::TakeNumber(const std::string& signature) {
  std::lock_guard lock(reactor_.mutex_);
  const auto [build, fresh] =
      reactor_.builds_.try_emplace(std::this_thread::get_id(), reactor_.next_build_);
  if (fresh) ++reactor_.next_build_;
  InstructionNumber number;
  number.build = build->second;
  std::set<int>& used = reactor_.numbers_in_use_[{signature, number.build}];
  while (used.count(number.value) != 0) ++number.value;
  used.insert(number.value);
  return number;
}

void Reactor::ForCallSites::ReturnNumber(const std::string& signature,
                                         const InstructionNumber& number) {
  std::lock_guard lock(reactor_.mutex_);
  const auto it = reactor_.numbers_in_use_.find({signature, number.build});
  it->second.erase(number.value);
  if (it->second.empty()) reactor_.numbers_in_use_.erase(it);
}

std::unique_ptr<RemoteGroup> Reactor::ForCallSites::Open(GroupSpec spec) {
  Reactor& reactor = reactor_;
  auto group = std::make_shared<Group>();
  std::string members;
  for (const int64_t device : spec.device_ids) {
    members += std::to_string(device) + ',';
    group->process_of_rank.push_back(reactor.process_of_device_.at(device));
  }
  group->communicator = Hash(members);
  group->key = Hash(spec.operation, group->communicator);
  group->device_ids = std::move(spec.device_ids);
  group->description = std::make_shared<const std::string>(std::move(spec.description));
  group->plan = std::move(spec.plan);
  group->facts = std::move(spec.facts);
  group->instruction = Hash(group->facts.instruction, group->communicator);
  {
    std::lock_guard lock(reactor.mutex_);
    // An executable that runs is complete.
    std::erase_if(reactor.builds_, [&](const auto& build) { return build.second == spec.build; });
    ++reactor.CommunicatorOf(*group).groups;
  }
  // The thread asks for links: `want_` may wait for a lock whose holder waits for ours.
  reactor.Ring();
  return std::make_unique<GroupHandle>(
      [&reactor, group](int64_t run_id, MemberBuffers buffers,
                        std::vector<std::unique_ptr<Completion>> completions,
                        std::shared_ptr<ContinuationCost> cost) {
        reactor.Submit(
            {group, run_id, std::move(buffers), std::move(completions), std::move(cost)});
      },
      [&reactor, group](const Status& status) { reactor.Fail(*group, status); },
      [&reactor, group] { reactor.Close(*group); });
}

// Messages that others may still send for it are kept like those for one that is not open yet.
void Reactor::Close(const Group& group) {
  std::lock_guard lock(mutex_);
  const auto it = communicators_.find(group.communicator);
  if (--it->second.groups > 0 || !it->second.cause.empty()) return;
  const bool pending = std::any_of(calls_.begin(), calls_.end(), [&](const auto& call) {
    return call.second->group->communicator == group.communicator;
  });
  if (!pending) communicators_.erase(it);
}

Reactor::Communicator& Reactor::CommunicatorOf(const Group& group) {
  const uint64_t id = group.communicator;
  const auto [found, fresh] = communicators_.try_emplace(id);
  Communicator& communicator = found->second;
  if (!fresh) return communicator;
  communicator.process_of_rank = group.process_of_rank;
  communicator.processes.insert(group.process_of_rank.begin(), group.process_of_rank.end());
  communicator.processes.erase(process_);
  std::string lost;
  for (const int process : communicator.processes) {
    Peer& peer = PeerOf(process);
    if (peer.state() == Peer::State::kUnknown) {
      AskForLink(peer);
    } else if (peer.state() == Peer::State::kDown && !peer.left && lost.empty()) {
      lost = RanksOf(communicator, process) + " is lost: " + peer.down_reason();
    }
  }
  // The others may know nothing of it: they may still be linked to the one that is lost here.
  if (!lost.empty()) Poison(id, lost);
  for (auto it = early_poisons_.begin(); it != early_poisons_.end();) {
    if (it->communicator != id) {
      ++it;
      continue;
    }
    if (communicator.processes.count(it->process) != 0) Poison(id, it->cause, it->process);
    it = early_poisons_.erase(it);
  }
  return communicator;
}

void Reactor::AskForLink(Peer& peer) {
  peer.SetWanted();
  std::lock_guard lock(inbox_mutex_);
  wanted_.push_back(peer.process());
}

void Reactor::Fail(const Group& group, const Status& status) {
  {
    std::lock_guard lock(mutex_);
    Poison(group.communicator, status.message());
  }
  Ring();
}

}  // namespace jaxcoll
