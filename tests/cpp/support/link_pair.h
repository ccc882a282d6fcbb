// Two ends of a link for tests, and a reactor of a few lines.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "support/fake_verbs.h"
#include "support/socket_pair.h"
#include "transport/fd.h"
#include "transport/link.h"
#include "transport/rdma/rdma.h"

namespace jaxcoll {

// kTcp4: four sockets; Plain: not protected, else authenticated, or Encrypted; kFakeRdma: in this
// process only, by its FakeVerbs.
enum class LinkKind {
  kShm,
  kTcpPlain,
  kTcp4Plain,
  kTcp,
  kTcp4,
  kTcpEncrypted,
  kTcp4Encrypted,
  kRdma,
  kFakeRdma
};

inline bool IsRdma(LinkKind kind) { return kind == LinkKind::kRdma || kind == LinkKind::kFakeRdma; }

inline std::string NameOf(LinkKind kind) {
  switch (kind) {
    case LinkKind::kShm:
      return "shm";
    case LinkKind::kTcpPlain:
      return "tcp_plain";
    case LinkKind::kTcp4Plain:
      return "tcp4_plain";
    case LinkKind::kTcp:
      return "tcp";
    case LinkKind::kTcp4:
      return "tcp4";
    case LinkKind::kTcpEncrypted:
      return "tcp_encrypted";
    case LinkKind::kTcp4Encrypted:
      return "tcp4_encrypted";
    case LinkKind::kRdma:
      return "rdma";
    case LinkKind::kFakeRdma:
      return "fake_rdma";
  }
  return "";
}

inline bool IsTcp(LinkKind kind) { return kind != LinkKind::kShm && !IsRdma(kind); }

inline int SocketCount(LinkKind kind) {
  const bool four =
      kind == LinkKind::kTcp4Plain || kind == LinkKind::kTcp4 || kind == LinkKind::kTcp4Encrypted;
  return four ? 4 : 1;
}

inline TcpSecurity TestSecurity(LinkKind kind, bool client) {
  if (kind == LinkKind::kTcpPlain || kind == LinkKind::kTcp4Plain) return {};
  const bool encrypt = kind == LinkKind::kTcpEncrypted || kind == LinkKind::kTcp4Encrypted;
  return {"the 32 bytes of a link of tests.", client, encrypt};
}

inline RdmaConfig TestRdmaConfig(LinkKind kind) {
  if (kind == LinkKind::kFakeRdma) return FakeVerbs::Current().Config();
  RdmaConfig config;
  config.deadline_s = 20;
  return config;
}

// Why this machine has no rdma; found out once, for it takes emulated processors long.
inline const std::string& WhyNoTestRdma() {
  static const std::string& why =
      *new std::string(WhyNoRdma(TestRdmaConfig(LinkKind::kRdma), 4096));
  return why;
}

// What one end is made of, so that it can be made on the other side of a fork.
struct EndParts {
  std::vector<Fd> sockets;
  Fd own_segment, peer_segment, own_bell, peer_bell;
  // Of rdma, if both sides are made in this process; else they exchange offers over the socket.
  std::unique_ptr<RdmaLink> rdma;
  std::string peer_offer;
};

inline StatusOr<std::unique_ptr<Link>> MakeRdma(LinkKind kind, int peer, EndParts& parts,
                                                size_t window_bytes) {
  const int socket = parts.sockets[0].release();
  if (parts.rdma == nullptr) {  // the lower number is the client
    const auto send_offer = [&] {
      const std::string offer = parts.rdma->Offer();
      const uint64_t size = offer.size();
      EXPECT_EQ(send(socket, &size, sizeof(size), 0), ssize_t{sizeof(size)});
      EXPECT_EQ(send(socket, offer.data(), size, 0), static_cast<ssize_t>(size));
    };
    const auto receive_offer = [&] {
      uint64_t size = 0;
      EXPECT_EQ(recv(socket, &size, sizeof(size), MSG_WAITALL), ssize_t{sizeof(size)});
      parts.peer_offer.resize(size);
      EXPECT_EQ(recv(socket, parts.peer_offer.data(), size, MSG_WAITALL),
                static_cast<ssize_t>(size));
    };
    const bool client = peer == 7;  // LinkPair's a is the server
    if (!client) receive_offer();
    auto prepared = RdmaLink::Prepare(TestRdmaConfig(kind), window_bytes, parts.peer_offer);
    if (!prepared.ok()) return prepared.status();
    parts.rdma = std::move(*prepared);
    send_offer();
    if (client) receive_offer();
  }
  const Status status =
      parts.rdma->Join(peer, socket, parts.peer_offer, TestSecurity(kind, peer == 7), "test");
  if (!status.ok()) return status;
  return StatusOr<std::unique_ptr<Link>>(std::move(parts.rdma));
}

inline std::pair<EndParts, EndParts> MakeParts(LinkKind kind, size_t window_bytes) {
  std::pair<EndParts, EndParts> parts;
  auto& [a, b] = parts;
  a.own_bell = Fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  b.own_bell = Fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (kind == LinkKind::kShm) {
    auto [socket_a, socket_b] = SocketPair(SOCK_SEQPACKET);
    a.sockets.push_back(std::move(socket_a));
    b.sockets.push_back(std::move(socket_b));
    a.own_segment = Fd(*MakeShmSegment(window_bytes));
    b.own_segment = Fd(*MakeShmSegment(window_bytes));
    a.peer_segment = Fd(dup(b.own_segment.get()));
    b.peer_segment = Fd(dup(a.own_segment.get()));
    a.peer_bell = Fd(dup(b.own_bell.get()));
    b.peer_bell = Fd(dup(a.own_bell.get()));
  } else {
    for (int i = 0; i < SocketCount(kind); ++i) {
      auto [socket_a, socket_b] = TcpPair();
      a.sockets.push_back(std::move(socket_a));
      b.sockets.push_back(std::move(socket_b));
    }
  }
  return parts;
}

// One end: the link, and a sink that keeps what comes until somebody wants it otherwise.
class LinkEnd : public LinkSink {
 public:
  LinkEnd(LinkKind kind, EndParts parts, size_t window_bytes, int peer)
      : bell_(std::move(parts.own_bell)) {
    auto made = [&]() -> StatusOr<std::unique_ptr<Link>> {
      if (kind == LinkKind::kShm) {
        return MakeShmLink(peer, parts.sockets[0].release(), parts.own_segment.release(),
                           parts.peer_segment.release(), bell_.get(), parts.peer_bell.release(),
                           "test");
      }
      if (IsRdma(kind)) return MakeRdma(kind, peer, parts, window_bytes);
      std::vector<int> sockets;
      for (Fd& fd : parts.sockets) sockets.push_back(fd.release());
      return MakeTcpLink(peer, sockets, window_bytes, TestSecurity(kind, peer == 7), "test");
    }();
    EXPECT_TRUE(made.ok()) << made.status().message();
    link = std::move(*made);
  }

  void OnNotice(int, const Notice& notice) override {
    if (on_notice) return on_notice(notice);
    notices.push_back(notice);
  }
  void OnTold(int, std::string_view message) override {
    if (on_told) return on_told(message);
    told.emplace_back(message);
  }
  void OnSent(int, uint64_t token) override {
    if (on_sent) return on_sent(token);
    sent.push_back(token);
  }

  // One turn of a reactor that never sleeps. Whether anything happened; false after the end, too.
  bool Poll(int budget = 64) {
    if (!end.ok()) return false;
    StatusOr<bool> result = link->Poll(*this, budget);
    if (result.ok()) return *result;
    end = result.status();
    return false;
  }

  // One turn of a reactor that sleeps when there is nothing to do. False after 10 s without being
  // woken. A link that does not wake us is reported as such.
  bool PollOrSleep() {
    if (Poll() || !end.ok() || !link->PrepareToSleep()) return true;
    std::vector<pollfd> fds;
    for (int fd : link->readable_fds()) fds.push_back({fd, POLLIN, 0});
    for (int fd : link->writable_fds()) fds.push_back({fd, POLLOUT, 0});
    const int ready = poll(fds.data(), fds.size(), 10'000);
    ++sleeps;
    uint64_t rung;
    if (read(bell_.get(), &rung, sizeof(rung)) == sizeof(rung)) ++bells;
    link->Awake(true);
    return ready > 0;
  }

  void CloseLink() { link.reset(); }

  std::unique_ptr<Link> link;
  std::vector<Notice> notices;
  std::vector<std::string> told;
  std::vector<uint64_t> sent;
  Status end;
  int sleeps = 0, bells = 0;
  std::function<void(const Notice&)> on_notice;
  std::function<void(std::string_view)> on_told;
  std::function<void(uint64_t)> on_sent;

 private:
  Fd bell_;
};

// Both ends are for this process.
inline std::pair<EndParts, EndParts> MakePairParts(LinkKind kind, size_t window_bytes,
                                                   uint64_t register_bytes = 0) {
  std::pair<EndParts, EndParts> parts = MakeParts(kind, window_bytes);
  if (!IsRdma(kind)) return parts;
  auto& [a, b] = parts;
  RdmaConfig config = TestRdmaConfig(kind);
  config.register_bytes = register_bytes;
  const auto prepare = [&](const std::string& offer) {
    auto link = RdmaLink::Prepare(config, window_bytes, offer);
    EXPECT_TRUE(link.ok()) << link.status().message();
    return std::move(*link);
  };
  a.rdma = prepare("");
  b.peer_offer = a.rdma->Offer();
  b.rdma = prepare(b.peer_offer);
  a.peer_offer = b.rdma->Offer();
  return parts;
}

// Gives the second end to a child, which plays its part and never comes back.
inline pid_t ForkPeer(LinkKind kind, std::pair<EndParts, EndParts>& parts, size_t window_bytes,
                      const std::function<void(LinkEnd&)>& play) {
  const pid_t child = fork();
  EXPECT_GE(child, 0);
  if (child != 0) {
    parts.second = EndParts();
    return child;
  }
  parts.first = EndParts();
  LinkEnd end(kind, std::move(parts.second), window_bytes, 8);
  play(end);
  _exit(1);
}

struct LinkPair {
  LinkPair(LinkKind kind, size_t window_bytes)
      : LinkPair(kind, MakePairParts(kind, window_bytes), window_bytes) {}
  LinkPair(LinkKind kind, std::pair<EndParts, EndParts> parts, size_t window_bytes)
      : a(kind, std::move(parts.first), window_bytes, 7),
        b(kind, std::move(parts.second), window_bytes, 8) {}

  // Polls both until `done`; false if neither did anything for a long time.
  bool PollUntil(const std::function<bool()>& done) {
    for (int idle = 0; !done(); ++idle) {
      if (a.Poll() | b.Poll()) idle = 0;
      if (idle > 1000) usleep(100);  // loopback may deliver from another thread
      if (idle > 50'000) return false;
    }
    return true;
  }

  LinkEnd a, b;
};

}  // namespace jaxcoll
