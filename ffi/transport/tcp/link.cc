// Stream sockets to a process of another host.
//
// A put is one frame (frame.h) on the socket with the least to send, so that several sockets
// share large ones; its notice follows its bytes on the same socket. Both windows have one size,
// which the hello of every socket checks.
//
// All frames are authenticated, and encrypted on request (seal.h). An attacker between the hosts
// can alter nothing undetected: a link that finds something altered ends, and says why to the peer
// in a last frame. A peer's message says how many puts it had sent before, so that a connection
// that was cut is told from one that ended in order.
//
// The end. A process that dies closes all its sockets, but what it sent on one may arrive after the
// end of another. So the end is reported when all have ended, or kEndGrace after the first.
#include "transport/link.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <optional>
#include <utility>

#include "transport/link_error.h"
#include "transport/pages.h"
#include "transport/tcp/frame.h"
#include "transport/tcp/socket.h"

namespace jaxcoll {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kEndGrace = std::chrono::seconds(1);

// After an outage tcp is silent for as long again, since it doubles the pause before each attempt:
// measured, 2.9 s after one of 7 s, 28 s after a few short ones on a busy machine. A collective's
// deadline passes meanwhile. Linux 6.15 lets us say how long the pause may become, at least 1 s.
constexpr int kTcpRtoMaxMs = 44;  // TCP_RTO_MAX_MS, which older headers lack
constexpr int kResendAfterMsMax = 1000;

class TcpLink final : public Link {
 public:
  TcpLink(int peer, std::string description) : peer_(peer), description_(std::move(description)) {}

  // A process that was forked off holds the sockets, too, and would hide our end from the peer.
  ~TcpLink() override {
    if (::getpid() != pid_) return;
    for (auto& socket : sockets_) socket->Shutdown();
  }

  // Takes over the descriptors in any case.
  Status Init(const std::vector<int>& sockets, size_t window_bytes, const TcpSecurity& security) {
    std::vector<Fd> fds;
    for (int socket : sockets) fds.emplace_back(socket);
    if (Status status = window_.Allocate(window_bytes); !status.ok()) return status;
    FrameRules rules;
    rules.window_bytes = window_bytes;
    rules.socket_count = fds.size();
    for (Fd& owned : fds) {
      const int fd = owned.get();
      // A notice must not wait for the peer's acknowledgement. Fails where there is no tcp, as
      // between the ends of a socketpair; that is as good.
      const int on = 1;
      ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
      // Older kernels refuse this; there a link comes back later, that is all.
      ::setsockopt(fd, IPPROTO_TCP, kTcpRtoMaxMs, &kResendAfterMsMax, sizeof(kResendAfterMsMax));
      auto made = TcpSocket::Make(owned, rules, window_.bytes(), security);
      if (!made.ok()) {
        return Status(made.status().code(),
                      "tcp cannot be used, for it authenticates what it "
                      "sends: " +
                          made.status().message());
      }
      sockets_.push_back(std::move(*made));
      ++rules.socket_index;
    }
    if (sockets_.empty()) return InvalidArgument("a tcp link needs a socket");
    return Status();
  }

  std::string_view transport() const override { return "tcp"; }
  std::string Describe() const override { return description_; }
  std::span<std::byte> window() override { return window_.bytes(); }
  size_t remote_window_bytes() const override { return window_.bytes().size(); }

  bool Put(std::span<const std::byte> source, size_t offset, const Notice& notice,
           uint64_t token) override {
    if (source.empty()) offset = 0;
    JAXCOLL_CHECK(
        offset <= remote_window_bytes() && source.size() <= remote_window_bytes() - offset,
        "%zu bytes at %zu of a window of %zu", source.size(), offset, remote_window_bytes());
    const FrameHeader header = {kFrameMagic, FrameKind::kPut, source.size(), offset, notice};
    const auto least = std::min_element(
        sockets_.begin(), sockets_.end(),
        [](const auto& a, const auto& b) { return a->queued_bytes() < b->queued_bytes(); });
    return (*least)->Send(header, source, token);
  }

  void Detach(uint64_t token) override {
    std::erase(sent_tokens_, token);
    for (auto& socket : sockets_) socket->Detach(token);
  }

  void Tell(std::string_view message) override {
    JAXCOLL_CHECK(message.size() <= kMaxTellBytes, "%zu bytes", message.size());
    const uint64_t puts = Sum(&TcpSocket::puts_queued);
    const FrameHeader header = {kFrameMagic, FrameKind::kTell, message.size(), puts, {}};
    sockets_[0]->SendCopy(header, std::as_bytes(std::span(message)));
  }

  StatusOr<bool> Poll(LinkSink& sink, int budget) override {
    if (!end_.ok()) return end_;
    bool did_something = false;
    for (auto& socket : sockets_) {
      did_something |= socket->Flush(sent_tokens_);
      if (socket->has_trouble()) return End(socket->Trouble(peer_, description_));
    }
    // The sink's code may detach others.
    for (const uint64_t token : std::exchange(sent_tokens_, {})) sink.OnSent(peer_, token);

    // A new first one each time: else the budget could be used up before the last one's turn.
    ++first_socket_;
    for (size_t i = 0; i < sockets_.size() && budget > 0; ++i) {
      TcpSocket& socket = *sockets_[(first_socket_ + i) % sockets_.size()];
      did_something |= socket.Receive(sink, peer_, budget);
      if (socket.has_trouble()) return End(socket.Trouble(peer_, description_));
    }
    return LookForEnd(did_something);
  }

  uint64_t missing_puts() const override {
    const uint64_t received = Sum(&TcpSocket::puts_received);
    return std::max(sockets_[0]->puts_told(), received) - received;
  }

  bool PrepareToSleep() override {
    if (!end_.ok() || first_end_) return false;
    return std::none_of(sockets_.begin(), sockets_.end(),
                        [](const auto& socket) { return socket->HasUnread(); });
  }
  void Awake(bool) override {}

  std::vector<int> readable_fds() const override {
    std::vector<int> fds;
    for (const auto& socket : sockets_) fds.push_back(socket->fd());
    return fds;
  }
  std::vector<int> writable_fds() const override {
    std::vector<int> fds;
    for (const auto& socket : sockets_) {
      if (socket->queued_bytes() > 0) fds.push_back(socket->fd());
    }
    return fds;
  }

 private:
  StatusOr<bool> LookForEnd(bool did_something) {
    bool all_ended = true;
    bool any_ended = false;
    int error = 0;
    std::string cut;
    for (const auto& socket : sockets_) {
      all_ended &= socket->ended() && !socket->HasUnread();
      any_ended |= socket->ended();
      if (error == 0) error = socket->end_errno();
      if (cut.empty()) cut = socket->cut();
    }
    if (any_ended && !first_end_) first_end_ = Clock::now();
    if (all_ended || (first_end_ && Clock::now() - *first_end_ > kEndGrace)) {
      if (cut.empty() && missing_puts() > 0) {
        cut = std::to_string(missing_puts()) + " of the messages that it had sent did not arrive";
      }
      return End(PeerIsGone(peer_, description_, error, cut));
    }
    return did_something;
  }

  // From here on no source is read any more. If it was this side that found something wrong, the
  // peer gets the reason, by a socket that is not within a frame.
  Status End(Status status) {
    bool say = status.code() == StatusCode::kInternal;
    for (auto& socket : sockets_) {
      if (say && socket->SayEnd(status.message())) say = false;
      socket->StopSending();
    }
    end_ = std::move(status);
    return end_;
  }

  uint64_t Sum(uint64_t (TcpSocket::*count)() const) const {
    uint64_t sum = 0;
    for (const auto& socket : sockets_) sum += ((*socket).*count)();
    return sum;
  }

  const int peer_;
  const std::string description_;
  const pid_t pid_ = ::getpid();
  Pages window_;
  std::vector<std::unique_ptr<TcpSocket>> sockets_;
  size_t first_socket_ = 0;
  std::vector<uint64_t> sent_tokens_;
  std::optional<Clock::time_point> first_end_;  // of a socket
  Status end_;
};

}  // namespace

StatusOr<std::unique_ptr<Link>> MakeTcpLink(int peer, const std::vector<int>& sockets,
                                            size_t window_bytes, const TcpSecurity& security,
                                            std::string description) {
  auto link = std::make_unique<TcpLink>(peer, std::move(description));
  if (Status status = link->Init(sockets, window_bytes, security); !status.ok()) return status;
  return StatusOr<std::unique_ptr<Link>>(std::move(link));
}

}  // namespace jaxcoll
