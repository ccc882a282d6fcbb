// The interface between the engine and the transports that carry bytes to another process.
//
// A link joins this process to one peer. It is one-sided, as RDMA is: each side owns a window, a
// fixed piece of memory into which only the other writes. The engine knows which parts of a window
// are free and what a notice means; a transport moves bytes and delivers notices.
//
//   Put     bytes into the peer's window, then a notice. Delivered exactly once, after its own
//           bytes are visible. No order between two puts may be assumed, so two in flight must not
//           overlap in the window: the bytes of one would fail the check of the other.
//   Tell    a message of up to 64 KiB, in order among themselves; rare: errors, states.
//
// Thread rule: all calls on a link, and all calls of its sink, come under the reactor's lock.
// Nothing blocks: what cannot go now is queued, and Poll sends it on. A sink may call Put and Tell,
// but neither Poll nor the destructor.
//
// The end. Data that the peer had passed to the kernel (shm: had put; rdma: knows to have arrived)
// are delivered first, then each Poll returns the error. From then on the link reads no source,
// pending puts get no OnSent, and Put and Tell do nothing. Closing drops queued data: wait until
// writable_fds() is empty.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace jaxcoll {

// Opaque to transports.
using Notice = std::array<uint64_t, 6>;

class LinkSink {
 public:
  virtual ~LinkSink() = default;
  virtual void OnNotice(int peer, const Notice& notice) = 0;
  virtual void OnTold(int peer, std::string_view message) = 0;
  // The source of the put with this token may be reused.
  virtual void OnSent(int peer, uint64_t token) = 0;
};

class Link {
 public:
  virtual ~Link() = default;  // closes; the peer's Poll then fails

  virtual std::string_view transport() const = 0;  // "shm", "tcp", "rdma"
  virtual std::string Describe() const = 0;        // for people: addresses, pids
  virtual std::span<std::byte> window() = 0;       // what the peer puts into
  virtual size_t remote_window_bytes() const = 0;
  // The peer's window if this process can address it: bytes written there need no copy by Put.
  virtual std::byte* remote_window() { return nullptr; }
  // Memory of the size of the peer's window. Put sends bytes at their offset in it without a copy;
  // null if Put never copies. These bytes must not change until their place in the window is free
  // again.
  virtual std::byte* staging() { return nullptr; }

  // Copies `source` to the peer's window at `offset` (inside it: the caller's duty), then delivers
  // `notice`. A source in remote_window() or staging() at `offset` saves a copy. Returns true if
  // the source may be reused at once, else OnSent(token) will say so. An empty source is a notice
  // alone.
  virtual bool Put(std::span<const std::byte> source, size_t offset, const Notice& notice,
                   uint64_t token) = 0;
  // The source of an incomplete put is about to be freed: the link copies the part that it still
  // needs. No OnSent is called for that token.
  virtual void Detach(uint64_t token) = 0;

  // A buffer from which puts are sent without a copy during the lifetime of this object, which may
  // outlive the link. Its destructor revokes the buffer: nothing reads it any more, even for puts
  // in flight. For an incomplete put this may cost a rail or, if CPUs cannot read the buffer, the
  // link.
  class Loan {
   public:
    virtual ~Loan() = default;
  };
  // Null if copying is better, or if the transport can only copy.
  virtual std::unique_ptr<Loan> Borrow(std::span<const std::byte> /*buffer*/) { return nullptr; }
  // The same for a device's memory, `buffer.size()` bytes from `offset` on of the dma-buf `fd`,
  // which may be closed afterwards. `buffer.data()` is only a name for it, as far into its page as
  // `offset` is. An error says why the memory must be copied to the host instead.
  virtual bool TakesDmabuf() const { return false; }
  virtual StatusOr<std::unique_ptr<Loan>> BorrowDmabuf(int fd, uint64_t offset,
                                                       std::span<const std::byte> buffer);
  // Put of a source in the buffer of a loan. As with staging, the source is not read again once the
  // put has been delivered, even if other parts are repeated: after the peer has confirmed
  // delivery, the caller need not wait for OnSent.
  virtual bool PutFrom(Loan& /*loan*/, std::span<const std::byte> source, size_t offset,
                       const Notice& notice, uint64_t token) {
    return Put(source, offset, notice, token);
  }

  virtual void Tell(std::string_view message) = 0;

  // Receives available data and sends queued data; at most `budget` notices. Returns whether it did
  // anything, or the error that ended the link: the peer has ended, or broke the protocol.
  virtual StatusOr<bool> Poll(LinkSink& sink, int budget) = 0;
  // After the end: the number of puts that the peer is known to have sent and that did not arrive.
  virtual uint64_t missing_puts() const { return 0; }

  // Called before the reactor sleeps. Announces to the peer that this side must be woken, and
  // returns false if something has arrived in the meantime. `Awake` takes that back; `woken`: by a
  // descriptor, which may have been one of this link.
  virtual bool PrepareToSleep() = 0;
  virtual void Awake(bool woken) = 0;
  // Descriptors whose readability means that Poll has something to do, and those for which it
  // waits to write. A bell among them is the reactor's to drain: all links share it.
  virtual std::vector<int> readable_fds() const = 0;
  virtual std::vector<int> writable_fds() const { return {}; }
};

// Shared memory between two processes of one host. Takes over all descriptors.
//   socket       SOCK_SEQPACKET, connected to the peer: Tell, and its end tells that the peer died
//   own_segment  memfd that this process made (MakeShmSegment) and the peer has mapped
//   peer_segment the peer's
//   own_bell     eventfd that wakes this process's reactor; shared by all its links, not closed
//   peer_bell    the peer's
StatusOr<std::unique_ptr<Link>> MakeShmLink(int peer, int socket, int own_segment, int peer_segment,
                                            int own_bell, int peer_bell, std::string description);
// A sealed memfd (no shrinking) of the right size, its rings initialised; the descriptor.
StatusOr<int> MakeShmSegment(size_t window_bytes);

// The protection of the frames of a tcp link, or of the socket of an rdma link (tcp/seal.h). An
// attacker between the hosts can only cut the link, which both sides detect.
struct TcpSecurity {
  std::string link_key;  // 32 bytes; empty: nothing is protected, as only tests and benchmarks may
  bool client = false;   // this side has connected
  bool encrypt = false;  // both sides agree
};

// Connected, authenticated stream sockets to one peer; both sides list them in the same order. The
// first also carries Tell. Takes over the descriptors. Both windows have the same size. Fails where
// there is no libcrypto.
StatusOr<std::unique_ptr<Link>> MakeTcpLink(int peer, const std::vector<int>& sockets,
                                            size_t window_bytes, const TcpSecurity& security,
                                            std::string description);

inline StatusOr<std::unique_ptr<Link::Loan>> Link::BorrowDmabuf(int, uint64_t,
                                                                std::span<const std::byte>) {
  return Status(StatusCode::kUnavailable,
                std::string(transport()) + " cannot send from a device's memory");
}

}  // namespace jaxcoll
