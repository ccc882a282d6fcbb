// Shared memory between two processes of one host: a segment (segment.h) for each direction.
//
// A put is a copy into the peer's window and a notice in its ring. Notices that find no room wait
// here, in order. The socket carries messages, and its end shows that the peer has ended: the
// kernel closes it for any cause of death. The bytes that the peer had put before are in our
// segment, so the ring is drained before the end is reported.
//
// Draining the own bell is the reactor's duty: it is shared by all links of the process.
#include "transport/link.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <deque>
#include <optional>

#include "transport/fd.h"
#include "transport/link_error.h"
#include "transport/shm/ring.h"
#include "transport/shm/segment.h"

namespace jaxcoll {
namespace {

// A look at the socket is a system call, a look at the ring is not. A reactor that does not sleep
// hears of the peer's end this many calls of Poll later.
constexpr uint64_t kPollsPerLookAtSocket = 1024;
constexpr int kMaxMessagesPerPoll = 16;

class ShmLink final : public Link {
 public:
  // Before Init the descriptors are owned, and nothing more.
  ShmLink(int peer, int socket, int own_bell, int peer_bell, std::string description)
      : peer_(peer),
        description_(std::move(description)),
        socket_(socket),
        peer_bell_(peer_bell),
        own_bell_(own_bell) {}

  // A process that was forked off holds the socket, too, and would hide our end from the peer.
  ~ShmLink() override {
    if (::getpid() == pid_) ::shutdown(socket_.get(), SHUT_RDWR);
  }

  Status Init(int own_segment, int peer_segment) {
    if (Status status = own_.Map(own_segment); !status.ok()) return status;
    if (Status status = theirs_.Map(peer_segment); !status.ok()) {
      return Status(status.code(), PeerName(peer_, description_) + ": " + status.message());
    }
    // The file description is the peer's, too, but a full counter is a rung bell: never wait.
    const int flags = ::fcntl(peer_bell_.get(), F_GETFL);
    if (flags < 0 || ::fcntl(peer_bell_.get(), F_SETFL, flags | O_NONBLOCK) != 0) {
      return SystemError("fcntl of a peer's eventfd", errno);
    }
    incoming_.emplace(own_.ring());
    outgoing_.emplace(theirs_.ring());
    return Status();
  }

  std::string_view transport() const override { return "shm"; }
  std::string Describe() const override { return description_; }
  std::span<std::byte> window() override { return own_.window(); }
  size_t remote_window_bytes() const override { return theirs_.window().size(); }
  std::byte* remote_window() override { return theirs_.window().data(); }

  bool Put(std::span<const std::byte> source, size_t offset, const Notice& notice,
           uint64_t /*token*/) override {
    if (!source.empty()) {
      const std::span<std::byte> window = theirs_.window();
      JAXCOLL_CHECK(offset <= window.size() && source.size() <= window.size() - offset,
                    "%zu bytes at %zu of a window of %zu", source.size(), offset, window.size());
      std::byte* target = window.data() + offset;
      if (source.data() != target) std::memmove(target, source.data(), source.size());
    }
    if (!notices_.empty() || !Push(notice)) notices_.push_back(notice);
    return true;
  }

  void Detach(uint64_t) override {}  // every source is copied at once

  void Tell(std::string_view message) override {
    JAXCOLL_CHECK(message.size() <= kMaxTellBytes, "%zu bytes", message.size());
    // One byte ahead: an empty message would read as the end of the socket.
    messages_.emplace_back(1, 'T').append(message);
    FlushMessages();
  }

  StatusOr<bool> Poll(LinkSink& sink, int budget) override {
    const bool was_gone = gone_;  // before the ring is found empty: nothing can follow
    bool did_something = FlushNotices();
    bool emptied = true;
    did_something |= Drain(sink, budget, emptied);
    if (look_at_socket_ || ++polls_ % kPollsPerLookAtSocket == 0) {
      did_something |= ServeSocket(sink);
    }
    if (!broken_.ok()) return broken_;
    if (was_gone && emptied) return PeerIsGone(peer_, description_, gone_errno_);
    return did_something || gone_;
  }

  bool PrepareToSleep() override {
    if (gone_ || !broken_.ok() || look_at_socket_) return false;
    // One after the other: a request that is left over only costs a wake-up.
    if (!incoming_->SleepUntilNotice()) return false;
    return notices_.empty() || outgoing_->SleepUntilRoom();
  }

  void Awake(bool woken) override {
    incoming_->Awake();
    outgoing_->Awake();
    look_at_socket_ |= woken;
  }

  std::vector<int> readable_fds() const override { return {own_bell_, socket_.get()}; }
  std::vector<int> writable_fds() const override {
    if (messages_.empty()) return {};
    return {socket_.get()};
  }

 private:
  // False if there is no room.
  bool Push(const Notice& notice) {
    switch (outgoing_->Push(notice)) {
      case RingResult::kDone:
        if (outgoing_->ConsumerMustBeWoken()) RingBell();
        return true;
      case RingResult::kWait:
        return false;
      case RingResult::kBroken:
        Break("the count of consumed notices in its shared memory is impossible");
        return false;
    }
    return false;
  }

  bool FlushNotices() {
    const size_t before = notices_.size();
    while (!notices_.empty() && broken_.ok() && Push(notices_.front())) notices_.pop_front();
    return notices_.size() != before;
  }

  // The sink may call Put and Tell.
  bool Drain(LinkSink& sink, int budget, bool& emptied) {
    int count = 0;
    for (Notice notice; broken_.ok(); ++count) {
      emptied = false;
      if (count == budget) break;
      const RingResult result = incoming_->Pop(notice);
      if (result == RingResult::kBroken) Break("the number of a notice it wrote is impossible");
      if (result == RingResult::kWait) emptied = true;
      if (result != RingResult::kDone) break;
      sink.OnNotice(peer_, notice);
    }
    if (count > 0 && incoming_->Release()) RingBell();
    return count > 0;
  }

  bool ServeSocket(LinkSink& sink) {
    look_at_socket_ = false;
    if (gone_) return false;
    bool did_something = FlushMessages();
    for (int count = 0; count < kMaxMessagesPerPoll && broken_.ok(); ++count) {
      inbox_.resize(1 + kMaxTellBytes);
      const ssize_t bytes =
          ::recv(socket_.get(), inbox_.data(), inbox_.size(), MSG_DONTWAIT | MSG_TRUNC);
      if (bytes < 0 && errno == EINTR) continue;
      if (bytes < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return did_something;
      did_something = true;
      if (bytes < 0 && gone_errno_ == 0) {
        // The peer closed without having read all. Messages that it had sent are delivered now,
        // then the end.
        gone_errno_ = errno;
        continue;
      }
      if (bytes <= 0) {
        gone_ = true;
        messages_.clear();
        return true;
      }
      if (static_cast<size_t>(bytes) > inbox_.size()) {
        Break("it sent a message of " + std::to_string(bytes) + " bytes");
        return true;
      }
      inbox_.resize(bytes);
      sink.OnTold(peer_, std::string_view(inbox_).substr(1));
    }
    look_at_socket_ = true;  // there may be more
    return did_something;
  }

  bool FlushMessages() {
    const size_t before = messages_.size();
    while (!messages_.empty()) {
      const std::string& message = messages_.front();
      const ssize_t sent =
          ::send(socket_.get(), message.data(), message.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
      if (sent < 0 && errno == EINTR) continue;
      if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) break;
      if (sent < 0) {
        // Reading returns the error, after the remaining data.
        messages_.clear();
        look_at_socket_ = true;
        break;
      }
      messages_.pop_front();
    }
    return messages_.size() != before;
  }

  void RingBell() {
    const uint64_t one = 1;
    // Nothing to do if it fails: a full counter has rung, and a peer without a bell has died.
    [[maybe_unused]] const ssize_t written = ::write(peer_bell_.get(), &one, sizeof(one));
  }

  void Break(const std::string& how) {
    if (broken_.ok()) broken_ = PeerBrokeProtocol(peer_, description_, how);
    notices_.clear();
  }

  const int peer_;
  const std::string description_;
  const pid_t pid_ = ::getpid();
  const Fd socket_;
  const Fd peer_bell_;
  const int own_bell_;
  ShmSegment own_;
  ShmSegment theirs_;
  std::optional<RingConsumer> incoming_;
  std::optional<RingProducer> outgoing_;
  std::deque<Notice> notices_;        // that found no room in the peer's ring
  std::deque<std::string> messages_;  // that the socket did not take yet
  std::string inbox_;
  uint64_t polls_ = 0;
  bool look_at_socket_ = true;
  bool gone_ = false;  // the socket has ended
  int gone_errno_ = 0;
  Status broken_;
};

}  // namespace

StatusOr<std::unique_ptr<Link>> MakeShmLink(int peer, int socket, int own_segment, int peer_segment,
                                            int own_bell, int peer_bell, std::string description) {
  auto link = std::make_unique<ShmLink>(peer, socket, own_bell, peer_bell, std::move(description));
  const Fd own(own_segment);  // a mapping outlives its descriptor
  const Fd theirs(peer_segment);
  if (Status status = link->Init(own_segment, peer_segment); !status.ok()) return status;
  return StatusOr<std::unique_ptr<Link>>(std::move(link));
}

}  // namespace jaxcoll
