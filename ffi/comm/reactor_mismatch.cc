// Processes that wait for each other in different calls: they find out while they wait, and say how
// the calls differ.
//
// Nobody is sure at once. Another thread of a process may still launch the call that is missing, so
// that a difference is a warning, and an error at the deadline. It is an error right away where no
// thread can: the peers wait in one instruction that runs with other shapes, or in two programs
// which both have several devices of their process, so that JAX starts nothing else meanwhile.
#include <algorithm>
#include <utility>

#include "base/log.h"
#include "comm/reactor_internal.h"
#include "comm/words.h"

namespace jaxcoll {
namespace {

using std::chrono::duration;
using std::chrono::milliseconds;

constexpr double kAskListingEveryS = 0.5;
// Both have waited for so long that no message between them is just on its way. Instructions of one
// launch may start in another order on each process, and wait for what is computed.
constexpr double kSettledS = 0.3;
constexpr double kSettledInProgramS = 2;
constexpr double kCompareWithinS = 1;  // then the error lacks the line that differs
constexpr size_t kToldCalls = 8;

constexpr char kLaunchFromOneThread[] =
    ". JAX runs the programs of several local devices one after the other, whichever thread "
    "launches them, so neither can go on; all processes must launch the same programs in the same "
    "order: launch from one thread, or run one device per process";

}  // namespace

WaitingCall Reactor::Waiting(const Call& call) {
  WaitingCall waiting;
  waiting.id = call.id;
  waiting.communicator = call.group->communicator;
  waiting.instruction = call.group->instruction;
  waiting.since_s = SecondsSince(call.moved_at);
  waiting.serial = call.group->facts.serial;
  waiting.program = call.group->facts.program;
  waiting.description = *call.group->description;
  waiting.operands = call.group->facts.operands;
  waiting.parts = call.group->facts.parts;
  return waiting;
}

std::string Reactor::CallsWaitingFor(int process) {
  std::string text;
  size_t count = 0;
  for (const auto& [id, call] : calls_) {
    const std::vector<int>& members = call->group->process_of_rank;
    if (std::find(members.begin(), members.end(), process) == members.end()) continue;
    if (++count > kToldCalls) break;
    text += '\n' + Encode(Waiting(*call));
  }
  return text;
}

void Reactor::TakeWaitingCalls(Peer& peer, std::string_view lines) {
  peer.waiting_calls.clear();
  Words words(lines, '\n');
  while (!words.empty() && peer.waiting_calls.size() < kToldCalls) {
    std::optional<WaitingCall> call = DecodeWaitingCall(words.Next());
    if (call) peer.waiting_calls.push_back(std::move(*call));
  }
}

// The call in which `peer` waits for this process, instead of `call`; null if it waits in that,
// too, or not long enough, or if this process has made the peer's call.
const WaitingCall* Reactor::OtherCall(const Call& call, const Peer& peer) {
  if (peer.state() != Peer::State::kUp) return nullptr;
  const duration<double> settled(std::min(seams_.timeout_s / 4, kSettledS));
  if (peer.last_state_at - call.moved_at < settled) return nullptr;
  const WaitingCall* other = nullptr;
  for (const WaitingCall& theirs : peer.waiting_calls) {
    if (theirs.id == call.id) return nullptr;
    if (other != nullptr || theirs.since_s < settled.count()) continue;
    const auto next = next_number_.find(theirs.id.key);
    const bool made =
        next != next_number_.end() && static_cast<int32_t>(theirs.id.number - next->second) < 0;
    if (!made) other = &theirs;
  }
  return other;
}

bool Reactor::FindMismatch(Call& call, Clock::time_point now) {
  for (const int32_t rank : call.run->WaitingFor()) {
    const int process = call.group->process_of_rank[rank];
    if (process == process_) continue;
    Peer& peer = PeerOf(process);
    Ask(peer, now, duration<double>(std::min(kAskListingEveryS, seams_.timeout_s / 4)));
    const WaitingCall* const theirs = OtherCall(call, peer);
    if (theirs == nullptr) continue;
    const WaitingCall mine = Waiting(call);
    const bool one_instruction =
        theirs->instruction == mine.instruction && theirs->id.number == mine.id.number;
    const bool one_program = theirs->program == mine.program;
    if (one_program && !one_instruction &&
        std::min(mine.since_s, theirs->since_s) <
            std::min(kSettledInProgramS, seams_.timeout_s / 2)) {
      continue;
    }
    const Comparison* comparison = nullptr;
    if (!one_program && PartsThatDiffer(mine, *theirs).empty()) {
      comparison = CompareWith(peer, mine, *theirs, now);
      if (comparison != nullptr && !comparison->done() &&
          now - peer.compared_at < duration<double>(kCompareWithinS)) {
        continue;
      }
    }
    if (call.mismatch.empty()) {
      // One warning, however many calls of a program wait.
      const bool told = std::any_of(calls_.begin(), calls_.end(), [&](const auto& other) {
        return other.second->group->communicator == call.group->communicator &&
               !other.second->mismatch.empty();
      });
      call.mismatch = DescribeDifference(process_, mine, process, *theirs, comparison,
                                         listings_.Find(mine.program));
      if (!told) Log(LogLevel::kWarning, "%s", call.mismatch.c_str());
    }
    if (one_instruction) return true;
    if (!one_program && mine.serial && theirs->serial) {
      call.mismatch += kLaunchFromOneThread;
      return true;
    }
    return false;
  }
  return false;
}

const Comparison* Reactor::CompareWith(Peer& peer, const WaitingCall& mine,
                                       const WaitingCall& theirs, Clock::time_point now) {
  if (listings_.Find(mine.program) == nullptr) return nullptr;
  std::optional<Comparison>& comparison = peer.comparison;
  if (!comparison || comparison->own() != mine.program || comparison->theirs() != theirs.program) {
    comparison.emplace(mine.program, theirs.program);
    peer.compared_at = now;
    peer.Tell(comparison->Question());
  }
  return &*comparison;
}

void Reactor::OnAnswer(Peer& peer, std::string_view answer) {
  if (!peer.comparison) return;
  const Listing* const own = listings_.Find(peer.comparison->own());
  if (own == nullptr) return;
  const std::string question = peer.comparison->OnAnswer(Printable(answer), *own);
  if (!question.empty()) peer.Tell(question);
}

}  // namespace jaxcoll
