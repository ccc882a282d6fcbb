// One queue pair of an rdma link: puts out, notices in, and an exact account of both.
//
// A put is an RDMA write of its bytes, then an RDMA write with immediate of its notice into the
// next entry of the peer's ring. A reliable connection executes both in that order, so the bytes
// are visible when the notice's completion is. A notice alone is only the second write. The
// immediate is the entry's number: its 32 bits are too few for a notice.
//
// Credits. A notice takes an entry of the peer's ring and one of its posted receives; there are
// kEntries of each. The receiver reports the number that it has consumed in each notice in the
// other direction, and by a write without bytes when half of them are unreported. Receives are
// reposted before their credit is reported, with some more for the reports, so they never run out.
//
// A failed rail is first closed to the peer (its queue pair enters the error state); then the
// arrived notices are counted. Notices arrive in order, so this one number tells the peer exactly
// which of its puts have arrived: it sends the others again over other rails, and none arrives
// twice.
//
// Thread rule: that of the link.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "transport/link.h"
#include "transport/rdma/loan.h"
#include "transport/rdma/ports.h"
#include "transport/rdma/verbs.h"

namespace jaxcoll {

// The properties of a rail that both sides exchange to connect it.
struct RailAddress {
  char device[64];  // for people, and to join like with like
  char fabric[64];
  uint8_t port;
  uint8_t mtu;  // as verbs number them
  uint16_t lid;
  uint32_t qp_num;  // 0: there is no such rail
  uint32_t psn;
  uint32_t rkey;
  uint8_t gid[16];
};
static_assert(sizeof(RailAddress) == 160);

// An entry of a ring of notices.
struct RailEntry {
  Notice notice;
  uint64_t put;       // number of the put in its link
  uint32_t parts;     // that the put has, on any rails
  uint32_t consumed;  // of the other direction on this rail, modulo 2^32
};
static_assert(sizeof(RailEntry) == 64);

class RdmaRail {
 public:
  static constexpr uint32_t kEntries = 512;
  static constexpr size_t kRingBytes = kEntries * sizeof(RailEntry);

  // A put, or a part of one, and its notice.
  struct Part {
    uint64_t put;
    uint32_t parts;
    size_t offset;  // in the window, and in the staging memory
    size_t bytes;
    Notice notice;
    RdmaLoan* loan = nullptr;           // whose key the NIC was given, if any
    const std::byte* source = nullptr;  // in the loan; null: in the staging memory
    // The bytes that lay there when the buffer was taken back, should the part have to be sent
    // once more.
    std::shared_ptr<const std::vector<std::byte>> copy{};

    // The source is about to be freed. It is not copied into the staging memory: if the part has
    // arrived at the peer, its place may belong to another put by now.
    void Keep() {
      copy = std::make_shared<const std::vector<std::byte>>(source, source + bytes);
      source = nullptr;
    }
  };

  // Memory of the link, laid out as on the other side.
  struct Memory {
    std::byte* open;     // window and rings: what the peer may write
    size_t open_bytes;   //
    std::byte* ring;     // this rail's, in `open`
    std::byte* own;      // staging and the entries to send: what the NIC may read
    size_t own_bytes;    //
    std::byte* entries;  // this rail's, in `own`
  };
  // The peer's copies of the same.
  struct RemoteMemory {
    uint64_t window;
    uint64_t ring;
  };

  // Makes the queue pair and posts its receives.
  static StatusOr<std::unique_ptr<RdmaRail>> Make(const RdmaPort& port, const Memory& memory);
  RdmaRail(const RdmaRail&) = delete;
  RdmaRail& operator=(const RdmaRail&) = delete;
  ~RdmaRail();

  RailAddress address() const;
  Status Connect(const RailAddress& peer, const RemoteMemory& remote, const RdmaConfig& config);

  // --- while it is up
  bool HasRoom() const;                       // for a part
  void Send(const Part& part, uint32_t key);  // of its source, if that is lent
  size_t unacknowledged_bytes() const { return unacknowledged_bytes_; }
  bool idle() const { return unacknowledged_.empty(); }  // all that was sent is at the peer
  // Puts, one for each part from a loan that has come through since the last call.
  std::vector<uint64_t> TakeReleased() { return std::exchange(released_, {}); }
  bool Reads(const RdmaLoan& loan) const;  // or may, for a part that is not through
  void ForEachUnacknowledged(const std::function<void(Part&)>& visit);

  // --- always
  // Takes at most `budget` completions; what has come is appended to `arrived`. Returns whether
  // there was anything.
  bool Poll(int budget, std::vector<RailEntry>& arrived);
  // Reads the device's events. True while the port is down, which may be temporary.
  bool LookForTrouble();
  // Asks for an event with the next completion. Poll once more before relying on it.
  void Arm();
  void Disarm();
  int event_fd() const { return channel_->fd; }
  int device_fd() const { return domain_->device()->event_fd(); }

  // --- the end of it
  // Nothing comes in from here on but what has come. The first reason stands.
  void Fail(const std::string& reason);
  bool failed() const { return !reason_.empty(); }
  const std::string& reason() const { return reason_; }
  bool drained() const { return receives_posted_ == 0; }  // received() is final
  bool overdue() const;                                   // it should have been drained for a while
  uint64_t received() const { return received_; }
  // The peer has `count` of what was sent. The rest, oldest first; nothing if the count is
  // impossible.
  StatusOr<std::vector<Part>> Unreceived(uint64_t count);
  // The peer broke the protocol; how.
  const std::string& violation() const { return violation_; }

  const RdmaPort& port() const { return port_; }
  const verbs::Domain& domain() const { return *domain_; }
  std::string Describe() const;  // "rxe0:1 (...) to rxe0:1 (...)"

 private:
  static constexpr uint32_t kReceives = kEntries + 8;  // some for reports of credits
  static constexpr uint32_t kSendRequests = 512;
  static constexpr uint32_t kSignalEvery = 32;
  static constexpr uint32_t kInlineBytes = 192;

  struct Sent {
    uint64_t end;  // requests posted up to and with its last
    Part part;
  };

  RdmaRail(const RdmaPort& port, const Memory& memory);
  Status Init();
  void PostReceives(uint32_t count);
  void Post(verbs::SendWr* first);
  void Report();  // of credits
  void Completed(uint64_t requests);
  void Arrived(uint32_t immediate, std::vector<RailEntry>& arrived);
  void TakeCredit(uint32_t consumed);
  void Broke(const std::string& how);

  const RdmaPort port_;
  const Memory memory_;
  const int pid_;
  const verbs::Library* library_ = nullptr;
  // Destroyed in the opposite order.
  std::unique_ptr<verbs::Domain> domain_;
  std::unique_ptr<verbs::Region> open_;
  std::unique_ptr<verbs::Region> own_;
  verbs::CompChannel* channel_ = nullptr;
  verbs::Cq* cq_ = nullptr;
  verbs::Qp* qp_ = nullptr;
  verbs::PortAttr attributes_{};
  uint32_t psn_ = 0;
  uint32_t max_inline_ = 0;
  unsigned events_ = 0;  // taken and not acknowledged

  RailAddress peer_{};
  RemoteMemory remote_{};

  // Sending. Counts of notices and of work requests, from 0, never reset.
  uint64_t sent_ = 0;
  uint64_t consumed_by_peer_ = 0;
  uint64_t requests_ = 0;
  uint64_t requests_completed_ = 0;
  uint64_t requests_signalled_ = 0;  // up to the last one that requests a completion
  std::deque<Sent> unacknowledged_;
  size_t unacknowledged_bytes_ = 0;
  std::vector<uint64_t> released_;

  // Receiving.
  uint32_t receives_posted_ = 0;
  uint64_t received_ = 0;
  uint64_t reported_ = 0;  // of received_

  std::string reason_;
  std::chrono::steady_clock::time_point failed_at_;
  std::string violation_;
};

}  // namespace jaxcoll
