// Another process: the link to it, and who may write where in the windows.
//
// A window is cut into small slots for eager messages and large ones for the rest. The sender
// hands out the slots of the peer's window and gets them back as credits.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "call/interprocess.h"
#include "comm/difference.h"
#include "comm/listing.h"
#include "comm/notice.h"
#include "transport/link.h"

namespace jaxcoll {

inline constexpr size_t kSmallSlots = 64;
inline constexpr size_t kLargeSlots = 16;
inline constexpr size_t kWindowBytes = kSmallSlots * kEagerBytes + kLargeSlots * kSlotBytes;

class Peer {
 public:
  enum class State { kUnknown, kWanted, kUp, kDown };

  explicit Peer(int process) : process_(process) {}

  int process() const { return process_; }
  State state() const { return state_; }
  void SetWanted() { state_ = State::kWanted; }
  const std::string& down_reason() const { return down_reason_; }
  Link* link() { return link_.get(); }
  const std::string& description() const { return description_; }

  void Connect(std::unique_ptr<Link> link);
  void Disconnect(std::string reason);
  // The same for a peer that has left in good order: what it sent stays readable.
  void Retire(std::string reason);
  // For a process that was forked off: closes its copies of the descriptors, and nothing else.
  void ForgetLinks();
  bool left = false;  // it has said that it makes no more calls
  std::string end;    // why it will take part in nothing any more, if it has said so

  void Send(const NoticeFields& fields);
  void Tell(std::string_view message);

  // A message that needs a slot. The reactor writes it when there is one.
  struct Waiting {
    CallId call;
    int32_t slice;
    int32_t op;
  };
  // Puts whose source the link still reads, by token.
  std::map<uint64_t, Waiting> in_transit;
  std::deque<Waiting>& waiting(bool small) { return small ? waiting_small_ : waiting_large_; }
  bool HasSlot(bool small) const { return !(small ? free_small_ : free_large_).empty(); }
  uint32_t TakeSlot(bool small);
  // False if the peer returns what it does not hold.
  bool ReturnSlot(uint32_t offset);

  // The bytes of our messages that the peer has put aside for calls that it has not made yet.
  int64_t ahead_bytes = 0;

  // Messages of this peer that stay in our window for a while.
  bool MayKeep() const { return kept_ < kLargeSlots / 2; }
  void Kept() { ++kept_; }
  void Unkept() { --kept_; }
  size_t kept() const { return kept_; }
  size_t slots_taken() const { return taken_.size(); }

  // The memory in which a message is put together that cannot be written to the peer's memory
  // directly.
  std::byte* mirror();

  // The peer's last answer to "what are you doing?".
  std::string last_state;
  std::chrono::steady_clock::time_point last_state_at;
  std::chrono::steady_clock::time_point asked_at;
  // Those of its calls that wait for this process, as it said then.
  std::vector<WaitingCall> waiting_calls;
  // The last comparison of a program of its with one of ours.
  std::optional<Comparison> comparison;
  std::chrono::steady_clock::time_point compared_at;
  bool wants_place = false;  // it has asked; see Reactor::SetPlace
  // When it was asked first since it last said anything.
  std::chrono::steady_clock::time_point silent_since;
  std::chrono::steady_clock::time_point answered_at;

 private:
  const int process_;
  State state_ = State::kUnknown;
  std::unique_ptr<Link> link_;
  std::unique_ptr<Link> retired_link_;  // runs may still read its window
  std::string description_ = "not connected";
  std::string down_reason_;
  std::vector<NoticeFields> unsent_;
  std::vector<std::string> untold_;
  std::vector<uint32_t> free_small_, free_large_;  // last in, first out: what is in cache
  std::set<uint32_t> taken_;
  std::deque<Waiting> waiting_small_, waiting_large_;
  size_t kept_ = 0;
  std::unique_ptr<std::byte[]> mirror_;
};

}  // namespace jaxcoll
