// The messages of calls, the words, and the sources that may be reused, as links bring them.
#include <cstdlib>
#include <utility>

#include "comm/reactor.h"
#include "comm/reactor_internal.h"

namespace jaxcoll {
namespace {

// The newest failures that others report of communicators not open here are remembered.
constexpr size_t kEarlyPoisons = 1024;
constexpr std::chrono::milliseconds kAnswerEvery{100};
// The bytes that one peer may send for calls that this process has not made. Honest ones stop at a
// quarter of it, see Reactor::kAheadBytes.
constexpr size_t kMaxEarlyBytes = size_t{64} << 20;
constexpr std::string_view kEnd = "end ";

// Whether call `a` was made before `b`; the count of a busy call site wraps around.
bool Before(uint32_t a, uint32_t b) { return static_cast<int32_t>(a - b) < 0; }

}  // namespace

void Reactor::Incoming::OnNotice(int process, const Notice& notice) {
  peer_.silent_since = {};
  if (!violation_.empty()) return;
  const NoticeFields fields = Decode(notice);
  const auto violation = [&](const char* what) { violation_ = what; };
  if (fields.kind == NoticeKind::kCredit) {
    if (!peer_.ReturnSlot(fields.offset)) return violation("it freed a slot it did not hold");
    peer_.ahead_bytes += fields.bytes;
    reactor_.Pump(peer_, fields.offset < kSmallSlots * kEagerBytes);
    return;
  }
  if (fields.kind == NoticeKind::kTaken) {
    peer_.ahead_bytes -= fields.bytes;
    return;
  }
  const bool data = fields.kind == NoticeKind::kData;
  const bool parcel = fields.kind == NoticeKind::kParcel;
  if (!data && !parcel && fields.kind != NoticeKind::kReady &&
      fields.kind != NoticeKind::kRequest) {
    return violation("it sent an unknown notice");
  }
  const std::byte* message = nullptr;
  if (data || parcel) {
    const std::span<std::byte> window = peer_.link()->window();
    if (fields.offset > window.size() || fields.bytes > window.size() - fields.offset) {
      return violation("it sent a message that lies outside its window");
    }
    message = window.data() + fields.offset;
  }
  const auto credit = [&](uint32_t put_aside = 0) {
    NoticeFields back;
    back.kind = NoticeKind::kCredit;
    back.offset = fields.offset;
    back.bytes = put_aside;
    peer_.Send(back);
  };
  if (parcel) {
    Guest* const guest = reactor_.guest_;
    if (guest == nullptr) return violation("it sent a parcel, but no guest is registered here");
    const char* wrong = guest->OnParcel(process, LabelOf(fields), {message, fields.bytes});
    if (wrong != nullptr) return violation(wrong);
    if (fields.bytes > 0) credit();
    return;
  }
  const CallId id = fields.call();
  const auto it = reactor_.calls_.find(id);
  if (it == reactor_.calls_.end()) {
    const auto next = reactor_.next_number_.find(id.key);
    const bool over = next != reactor_.next_number_.end() && Before(id.number, next->second);
    if (over) {  // it failed here
      if (data) credit();
      return;
    }
    if (data && fields.bytes > kEagerBytes)
      return violation("it sent data that no call here expects");
    Early early{process, fields, {}};
    size_t& held = reactor_.early_bytes_[process];
    held += sizeof(Early) + (data ? fields.bytes : 0);
    if (held > kMaxEarlyBytes) {
      return violation(
          "it is so many calls ahead that this process has no memory left for its messages");
    }
    if (data) {
      early.message.assign(message, message + fields.bytes);
      credit(static_cast<uint32_t>(early.bytes()));
    }
    reactor_.early_[id].push_back(std::move(early));
    return;
  }
  Call& call = *it->second;
  if (const char* wrong = SpeaksForOther(call, process, fields)) return violation(wrong);
  call.in_run = true;
  bool known = true;
  if (data) {
    const Run::Taken taken =
        call.run->OnData(fields.message(), message, fields.bytes, fields.offset);
    known = taken != Run::Taken::kUnknown;
    if (taken == Run::Taken::kAtOnce) credit();
  } else if (fields.kind == NoticeKind::kRequest) {
    known = call.run->OnRequest(fields.message());
  } else {
    known = call.run->OnReady(fields.message());
  }
  call.in_run = false;
  if (!known) return violation(kUnknownMessage);
  ++call.moves;
  reactor_.FinishIfDone(id);
}

// Messages: "ask", "state <text>\n<calls that wait for the asking process>", "poison <communicator>
// <cause>", "bye", "end <why>", "guest <the guest's>", and the questions and answers of
// comm/listing.h.
void Reactor::Incoming::OnTold(int process, std::string_view message) {
  peer_.silent_since = {};
  if (!violation_.empty()) return;
  if (message == "ask") {
    // Honest peers do not ask often; answers to others must not pile up.
    const Clock::time_point now = reactor_.seams_.now();
    if (now - peer_.answered_at < kAnswerEvery) return;
    peer_.answered_at = now;
    peer_.Tell("state " + reactor_.State() + reactor_.CallsWaitingFor(process));
    peer_.wants_place = true;
    reactor_.RingWatcher();
  } else if (message.starts_with("state ")) {
    const size_t end = message.find('\n');
    peer_.last_state = Printable(message.substr(6, end == message.npos ? end : end - 6));
    peer_.last_state_at = reactor_.seams_.now();
    reactor_.TakeWaitingCalls(peer_, end == message.npos ? "" : message.substr(end + 1));
  } else if (message.starts_with("digests? ") || message.starts_with("line? ")) {
    peer_.Tell(reactor_.listings_.Answer(message));
  } else if (message.starts_with("digests ") || message.starts_with("line ")) {
    reactor_.OnAnswer(peer_, message);
  } else if (message == "bye") {
    peer_.left = true;
  } else if (message.starts_with(kEnd)) {
    peer_.end = Printable(message.substr(kEnd.size()));
  } else if (message.starts_with(kForGuest) && reactor_.guest_ != nullptr) {
    const std::string words = Printable(message.substr(kForGuest.size()));
    const char* wrong = reactor_.guest_->OnTold(process, words);
    if (wrong != nullptr) violation_ = wrong;
  } else if (message.starts_with("poison ")) {
    OnPoison(message.substr(std::string_view("poison ").size()));
  } else {
    violation_ = "it sent a message of an unknown type";
  }
}

void Reactor::Incoming::OnPoison(std::string_view words) {
  const size_t space = words.find(' ');
  if (space == std::string_view::npos || space + 1 == words.size()) {
    violation_ = "it sent a message of an unknown type";
    return;
  }
  const uint64_t id = std::strtoull(std::string(words.substr(0, space)).c_str(), nullptr, 16);
  const std::string cause = Printable(words.substr(space + 1));
  const auto it = reactor_.communicators_.find(id);
  if (it == reactor_.communicators_.end()) {
    reactor_.early_poisons_.push_back({peer_.process(), id, cause});
    if (reactor_.early_poisons_.size() > kEarlyPoisons) reactor_.early_poisons_.pop_front();
  } else if (it->second.processes.count(peer_.process()) == 0) {
    violation_ = "it sent a message for a communicator it does not belong to";
  } else {
    reactor_.Poison(id, cause, peer_.process());
  }
}

void Reactor::Incoming::OnSent(int, uint64_t token) {
  const auto sent = peer_.in_transit.extract(token);
  if (sent.empty()) return;
  const auto it = reactor_.calls_.find(sent.mapped().call);
  JAXCOLL_CHECK(it != reactor_.calls_.end(), "a call completed before its puts did");
  --it->second->unsent;
  reactor_.Sent(it, sent.mapped().slice, sent.mapped().op);
}

}  // namespace jaxcoll
