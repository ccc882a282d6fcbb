// The guest of the reactor's links, which sends parcels between the messages of calls.
#include <utility>

#include "comm/reactor.h"
#include "comm/reactor_internal.h"

namespace jaxcoll {

void Reactor::ForCallSites::Invite(Guest* guest) {
  {
    std::lock_guard lock(reactor_.mutex_);
    JAXCOLL_CHECK(reactor_.guest_ == nullptr, "a guest is registered already");
    reactor_.guest_ = guest;
  }
  guest->OnInvited(&reactor_.guest_carrier_);
  reactor_.Ring();  // the thread may have gone to sleep for longer than the guest wants
}

void Reactor::GuestCarrier::Use(const std::function<void(Carrier&)>& use) {
  std::lock_guard lock(reactor_.mutex_);
  use(*this);
}

bool Reactor::StepGuest() { return guest_ != nullptr && guest_->Step(guest_carrier_); }

bool Reactor::GuestBusy() {
  std::lock_guard lock(mutex_);
  return guest_ != nullptr && !stopping_.load(std::memory_order_relaxed) && guest_->Busy();
}

std::string Reactor::GuestCarrier::Want(int process) {
  Peer& peer = reactor_.PeerOf(process);
  if (peer.state() == Peer::State::kUnknown) reactor_.AskForLink(peer);
  return peer.state() == Peer::State::kDown ? peer.down_reason() : "";
}

void Reactor::GuestCarrier::Send(int process, const ParcelLabel& label) {
  reactor_.PeerOf(process).Send(Labelled(label));
}

// The calls' own messages go first: theirs has been waiting if there is no slot.
bool Reactor::GuestCarrier::Send(int process, const ParcelLabel& label, size_t bytes,
                                 const std::function<void(std::byte*)>& write) {
  Peer& peer = reactor_.PeerOf(process);
  const std::optional<NoticeFields> fields = SlotFor(peer, label, bytes);
  if (!fields) return false;
  std::byte* const remote = peer.link()->remote_window();
  std::byte* const slot = (remote != nullptr ? remote : peer.mirror()) + fields->offset;
  write(slot);
  // The slot stays ours until the peer returns it, so a mirror needs no OnSent.
  peer.link()->Put({slot, bytes}, fields->offset, Encode(*fields), 0);
  return true;
}

bool Reactor::GuestCarrier::Send(int process, const ParcelLabel& label, Link::Loan& loan,
                                 std::span<const std::byte> bytes) {
  Peer& peer = reactor_.PeerOf(process);
  const std::optional<NoticeFields> fields = SlotFor(peer, label, bytes.size());
  if (!fields) return false;
  // The guest hears from its peer when the bytes may change; no token is 0.
  peer.link()->PutFrom(loan, bytes, fields->offset, Encode(*fields), 0);
  return true;
}

std::optional<NoticeFields> Reactor::GuestCarrier::SlotFor(Peer& peer, const ParcelLabel& label,
                                                           size_t bytes) {
  const bool small = bytes <= kEagerBytes;
  if (peer.link() == nullptr || !peer.waiting(small).empty() || !peer.HasSlot(small)) {
    return std::nullopt;
  }
  NoticeFields fields = Labelled(label);
  fields.offset = peer.TakeSlot(small);
  fields.bytes = static_cast<uint32_t>(bytes);
  return fields;
}

std::optional<bool> Reactor::GuestCarrier::TakesDmabuf(int process) {
  Peer& peer = reactor_.PeerOf(process);
  if (peer.link() != nullptr) return peer.link()->TakesDmabuf();
  return peer.state() == Peer::State::kDown ? std::optional(false) : std::nullopt;
}

StatusOr<std::unique_ptr<Link::Loan>> Reactor::GuestCarrier::Lend(
    int process, int fd, std::span<const std::byte> memory) {
  Peer& peer = reactor_.PeerOf(process);
  if (peer.link() == nullptr) return Status(StatusCode::kUnavailable, peer.down_reason());
  return peer.link()->BorrowDmabuf(fd, 0, memory);
}

void Reactor::GuestCarrier::Tell(int process, std::string_view message) {
  reactor_.PeerOf(process).Tell(
      (std::string(kForGuest) + std::string(message)).substr(0, kMaxTextBytes));
}

}  // namespace jaxcoll
