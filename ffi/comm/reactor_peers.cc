// Peers that are late, lost or lying.
#include <algorithm>
#include <cstdio>
#include <utility>

#include "base/environment.h"
#include "base/log.h"
#include "comm/reactor.h"
#include "comm/reactor_internal.h"

namespace jaxcoll {
namespace {

using std::chrono::duration;

constexpr double kProbeEveryS = 5;
// A call that waits this long looks whether the peers that it waits for wait in another one.
constexpr double kCompareAfterS = 0.3;
constexpr char kSameOrder[] = ". All processes must launch the same programs in the same order";
constexpr size_t kFailuresKept = 16;
constexpr double kAnswerWithinS = 1;  // who takes longer is said not to answer

// Distinguishes calls with equal descriptions, identically in every process.
std::string NameOf(const CallId& id) {
  char text[40];
  std::snprintf(text, sizeof(text), "call %u of site %08x", id.number,
                static_cast<unsigned>(id.key & 0xffffffff));
  return text;
}

}  // namespace

std::string Printable(std::string_view text) {
  std::string result(text.substr(0, kMaxTextBytes));
  for (char& c : result) {
    if (c < ' ' || c > '~') c = c == '\n' ? ' ' : '?';
  }
  return result;
}

std::string Reactor::RankName(const Group& group, int32_t rank) {
  const int process = group.process_of_rank[rank];
  std::string name = "rank " + std::to_string(rank) + " (device " +
                     std::to_string(group.device_ids[rank]) + ", process " +
                     std::to_string(process);
  if (process != process_) name += ", " + PeerOf(process).description();
  return name + ")";
}

// A process that learns of it passes it on, for the first one may not reach everybody.
void Reactor::Poison(uint64_t id, const std::string& cause, int told_by) {
  const auto it = communicators_.find(id);
  if (it == communicators_.end() || !it->second.cause.empty()) return;
  it->second.cause = cause;
  Log(LogLevel::kInfo, "a communicator failed: %s", cause.c_str());
  char text[32];
  std::snprintf(text, sizeof(text), "poison %llx ", static_cast<unsigned long long>(id));
  for (const int process : it->second.processes) {
    Peer& peer = PeerOf(process);
    if (process == told_by || (told_by >= 0 && peer.state() != Peer::State::kUp)) continue;
    peer.Tell((text + cause).substr(0, kMaxTextBytes));
  }
  std::vector<CallId> failed;
  FailedCalls record{id, cause, seams_.now(), {}};
  for (const auto& [call_id, call] : calls_) {
    if (call->group->communicator != id) continue;
    failed.push_back(call_id);
    record.calls.push_back(Describe(*call));
  }
  failed_.push_back(std::move(record));
  if (failed_.size() > kFailuresKept) failed_.pop_front();
  RingWatcher();
  for (const CallId& call_id : failed) {
    const auto call = calls_.find(call_id);
    const std::string& description = *call->second->group->description;
    Finish(call, Status(StatusCode::kFailedPrecondition,
                        cause.starts_with(description) ? cause : description + ": " + cause));
  }
}

void Reactor::PeerDown(Peer& peer, const std::string& reason) {
  const std::string who = "process " + std::to_string(peer.process()) + " (" + peer.description() +
                          ") is lost: " + reason;
  peer.Disconnect(who);
  Log(LogLevel::kInfo, "%s", who.c_str());
  std::vector<uint64_t> poisoned;
  for (const auto& [id, communicator] : communicators_) {
    if (communicator.processes.count(peer.process()) != 0) poisoned.push_back(id);
  }
  for (const uint64_t id : poisoned) {
    Poison(id, RanksOf(communicators_.at(id), peer.process()) + " is lost: " + who);
  }
  for (auto it = early_.begin(); it != early_.end();) {
    std::erase_if(it->second, [&](const Early& e) { return e.process == peer.process(); });
    it = it->second.empty() ? early_.erase(it) : std::next(it);
  }
  early_bytes_.erase(peer.process());
  if (guest_ != nullptr) guest_->OnLost(peer.process(), who);
}

// A process that has made all its calls and ends does no harm to those that others have yet to
// finish: its messages have come. Only a call that waits for it fails, see CheckDeadlines.
void Reactor::PeerLeft(Peer& peer) {
  std::string reason = "process " + std::to_string(peer.process()) + " (" + peer.description() +
                       ") " + (peer.end.empty() ? "has ended, or has shut down jaxcoll" : peer.end);
  if (const uint64_t missing = peer.link()->missing_puts(); missing > 0) {
    reason += "; " + std::to_string(missing) + " of the messages that it had sent did not arrive";
  }
  peer.Retire(std::move(reason));
  Log(LogLevel::kInfo, "%s", peer.down_reason().c_str());
  some_left_ = true;
  if (guest_ != nullptr) guest_->OnLeft(peer.process(), peer.down_reason());
}

std::string Reactor::RanksOf(const Communicator& communicator, int process) const {
  std::string ranks;
  for (size_t rank = 0; rank < communicator.process_of_rank.size(); ++rank) {
    if (communicator.process_of_rank[rank] != process) continue;
    ranks += (ranks.empty() ? "rank " : ", rank ") + std::to_string(rank);
  }
  return ranks;
}

std::string Reactor::State() {
  std::string text;
  int count = 0;
  for (const auto& [id, call] : calls_) {
    if (++count > 8) continue;
    text += (text.empty() ? "waits in " : "; and in ") + *call->group->description + " (" +
            NameOf(id) + ", since " + Seconds(SecondsSince(call->begun)) + ")";
  }
  if (count > 8) text += "; and in " + std::to_string(count - 8) + " more";
  if (text.empty()) {
    text = "is in no collective";
    const std::optional<FlightRecorder::Record> last = recorder_.last();
    if (last) {
      text += "; its last one, " + *last->description + ", ended " +
              Seconds(SecondsSince(last->ended)) + " ago";
    }
    // It is there still, for all that is known, unless it has made a call since.
    if (!place_.empty() && (!last || last->ended < placed_at_)) text += "; " + place_;
  }
  return text;
}

std::string Reactor::DeadlineMessage(const Call& call) {
  std::string text = *call.group->description + ": waited " + Seconds(SecondsSince(call.begun)) +
                     " (" + NameOf(call.id) + ", process " + std::to_string(process_) + ")";
  if (call.moves != 0) {
    text += "; its last message was " + Seconds(SecondsSince(call.moved_at)) + " ago";
  }
  text += "; missing: ";
  std::set<int> processes;
  bool first = true;
  for (const int32_t rank : call.run->WaitingFor()) {
    text += (first ? "" : ", ") + RankName(*call.group, rank);
    first = false;
    processes.insert(call.group->process_of_rank[rank]);
  }
  const std::string same = NameOf(call.id);
  for (const int process : communicators_.at(call.group->communicator).processes) {
    const Peer& peer = PeerOf(process);
    const double silent_s =
        peer.silent_since == Clock::time_point() ? 0 : SecondsSince(peer.silent_since);
    const bool answers = peer.state() == Peer::State::kUp && peer.last_state_at > call.begun &&
                         silent_s < kAnswerWithinS;
    if (processes.count(process) == 0 && answers &&
        peer.last_state.find(same) != peer.last_state.npos)
      continue;
    text += "; " + RanksOf(communicators_.at(call.group->communicator), process) + " (process " +
            std::to_string(process);
    // The late peers have been described already; the one at fault may be another one.
    if (processes.count(process) == 0 && !peer.description().empty()) {
      text += ", " + peer.description();
    }
    text += ") ";
    if (peer.state() != Peer::State::kUp) {
      text += "has not connected";
    } else if (answers) {
      text += peer.last_state;
    } else if (silent_s >= kAnswerWithinS) {
      text += "has not answered for " + Seconds(silent_s) + ": it is stopped, or cut off";
    } else {
      text += "has not answered yet";
    }
  }
  return text;
}

void Reactor::DiscountStoppedTime(Clock::time_point now) {
  const Clock::duration stopped = stopped_time_.Since(now);
  if (stopped <= Clock::duration::zero()) return;
  Log(LogLevel::kInfo, "this process did not run for %s; its deadlines are extended",
      Seconds(duration<double>(stopped).count()).c_str());
  const auto put_off = [&](Clock::time_point& from) {
    if (from != Clock::time_point()) from = std::min(from + stopped, now);
  };
  for (const auto& [id, call] : calls_) {
    put_off(call->begun);
    put_off(call->moved_at);
  }
  for (const auto& [process, peer] : peers_) put_off(peer->silent_since);
}

// All members: whom one waits for may itself wait for the one that is at fault.
void Reactor::AskAll(const Call& call, Clock::time_point now) {
  const duration<double> every(std::min(seams_.silence_s / 4, kProbeEveryS));
  for (const int process : communicators_.at(call.group->communicator).processes) {
    Ask(PeerOf(process), now, every);
  }
}

void Reactor::Ask(Peer& peer, Clock::time_point now, duration<double> every) {
  if (now - peer.asked_at < every) return;
  peer.asked_at = now;
  if (peer.silent_since == Clock::time_point()) peer.silent_since = now;
  peer.Tell("ask");
}

const Peer* Reactor::SilentMember(const Call& call, Clock::time_point now) {
  for (const int process : communicators_.at(call.group->communicator).processes) {
    const Peer& peer = PeerOf(process);
    if (peer.state() == Peer::State::kUp && peer.silent_since != Clock::time_point() &&
        duration<double>(now - peer.silent_since).count() > seams_.silence_s) {
      return &peer;
    }
  }
  return nullptr;
}

// A call waits since its last message: a large one over a slow network may take as long as it
// needs. The number of its messages is finite, so the loop ends.
void Reactor::CheckDeadlines() {
  const Clock::time_point now = seams_.now();
  if (now - checked_at_ < kTick) return;
  checked_at_ = now;
  DiscountStoppedTime(now);
  const double ask_after_s = std::min(seams_.timeout_s / 2, kWarnAfterS / 2);
  const double compare_after_s = std::min(seams_.timeout_s / 4, kCompareAfterS);
  std::vector<std::pair<uint64_t, std::string>> failures;  // communicator, cause
  for (const auto& [id, call] : calls_) {
    const uint64_t communicator = call->group->communicator;
    const std::string& description = *call->group->description;
    if (some_left_) {
      for (const int32_t rank : call->run->WaitingFor()) {
        const Peer& peer = PeerOf(call->group->process_of_rank[rank]);
        if (peer.state() != Peer::State::kDown || !peer.left) continue;
        failures.emplace_back(communicator, description + ": waits for rank " +
                                                std::to_string(rank) + ", but " +
                                                peer.down_reason());
      }
    }
    if (std::exchange(call->moves_seen, call->moves) != call->moves) call->moved_at = now;
    const double waited_s = duration<double>(now - call->moved_at).count();
    if (waited_s > compare_after_s) {
      if (FindMismatch(*call, now)) failures.emplace_back(communicator, call->mismatch);
    }
    if (waited_s < ask_after_s) continue;
    AskAll(*call, now);
    if (waited_s > kWarnAfterS && !call->warned && call->mismatch.empty() &&
        waited_s < seams_.timeout_s) {
      call->warned = true;
      Log(LogLevel::kWarning, "%s", DeadlineMessage(*call).c_str());
    }
    if (waited_s > seams_.timeout_s) {
      failures.emplace_back(
          communicator,
          call->mismatch.empty()
              ? DeadlineMessage(*call) + kSameOrder + "; or raise JAXCOLL_TIMEOUT_S"
              : description + ": waited " + Seconds(waited_s) + "; " + call->mismatch + kSameOrder);
    } else if (SilentMember(*call, now) != nullptr) {
      failures.emplace_back(communicator, DeadlineMessage(*call));
    }
  }
  for (const auto& [communicator, cause] : failures) Poison(communicator, cause);
}

}  // namespace jaxcoll
