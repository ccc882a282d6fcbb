// The facts that `jaxcoll inspect` asks of the reactor, and the words that only Python can give it.
#include <unistd.h>

#include <string_view>
#include <utility>

#include "comm/reactor_internal.h"

namespace jaxcoll {

PendingCall Reactor::Describe(const Call& call) {
  PendingCall pending;
  pending.communicator = call.group->communicator;
  pending.key = call.id.key;
  pending.number = call.id.number;
  pending.description = *call.group->description;
  pending.facts = call.group->facts;
  pending.device_ids = call.group->device_ids;
  pending.process_of_rank = call.group->process_of_rank;
  if (call.run != nullptr) pending.waits_for = call.run->WaitingFor();
  pending.since_s = SecondsSince(call.begun);
  if (call.moves != 0) pending.moved_s = SecondsSince(call.moved_at);
  pending.mismatch = call.mismatch;
  return pending;
}

ReactorSnapshot Reactor::TakeSnapshot() {
  std::lock_guard lock(mutex_);
  ReactorSnapshot snapshot;
  snapshot.process = process_;
  snapshot.ended = recorder_.count();
  for (const auto& [id, call] : calls_) snapshot.pending.push_back(Describe(*call));
  snapshot.next_numbers.assign(next_number_.begin(), next_number_.end());
  snapshot.last = recorder_.Newest(kEndedCallsShown);
  snapshot.failed.assign(failed_.begin(), failed_.end());
  for (const auto& [process, peer] : peers_) {
    PeerState& state = snapshot.peers.emplace_back();
    state.process = process;
    const bool down = peer->state() == Peer::State::kDown;
    const bool up = peer->state() == Peer::State::kUp;
    state.state = up ? "up" : !down ? "new" : peer->left ? "left" : "down";
    state.description = down ? peer->down_reason() : peer->description();
    if (peer->silent_since != Clock::time_point()) {
      state.silent_s = SecondsSince(peer->silent_since);
    }
    state.told = peer->last_state;
    state.told_s = state.told.empty() ? 0 : SecondsSince(peer->last_state_at);
    if (peer->link() == nullptr) continue;
    state.transport = peer->link()->transport();
    state.queued = peer->in_transit.size() + peer->waiting(true).size() +
                   peer->waiting(false).size() + (peer->link()->writable_fds().empty() ? 0 : 1);
  }
  return snapshot;
}

std::vector<std::string> Reactor::LinesOf(const std::string& program) {
  std::lock_guard lock(mutex_);
  const Listing* const listing = listings_.Find(program);
  return listing == nullptr ? std::vector<std::string>() : listing->lines;
}

void Reactor::SetPlace(std::string place) {
  std::lock_guard lock(mutex_);
  place_ = Printable(place);
  placed_at_ = seams_.now();
  for (const auto& [process, peer] : peers_) {
    if (!std::exchange(peer->wants_place, false) || peer->state() != Peer::State::kUp) continue;
    // A call tells where the process is by itself.
    if (calls_.empty()) peer->Tell("state " + State() + CallsWaitingFor(process));
  }
  Ring();
}

void Reactor::RingWatcher() {
  const int fd = watcher_.load(std::memory_order_acquire);
  const uint64_t one = 1;
  if (fd >= 0) (void)!write(fd, &one, sizeof(one));
}

}  // namespace jaxcoll
