// RDMA between two processes: InfiniBand or RoCE, one or several rails (rail.h), and a tcp
// socket for messages and for reports on failed rails.
//
// Both sides own memory that is registered once, when the link is made: a window and rings that the
// peer may write, staging memory and entries that the NIC may read. So no key can outlive the
// memory that it names. A put's bytes are in the staging memory at its offset in the window:
// assembling a message there saves Put's copy. In addition, NICs may read buffers that calls lend
// (loan.h) until the loan ends.
//
// Rails. A put goes to the least loaded rail; a large one is cut into parts, one per rail, and its
// notice is delivered when all have arrived. So no order between rails is needed. When a rail
// fails, both sides close it, count the notices that arrived on it and exchange the counts; missing
// parts are sent again over the other rails, and the loss is logged. Only parts of undelivered puts
// are sent again, so a source may change as soon as the peer has confirmed delivery. When the last
// rail fails, the link ends with the first rail's reason.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "transport/link.h"
#include "transport/rdma/ports.h"

namespace jaxcoll {

// A link in two steps, since each side must know the other's queue pairs:
//
//   client: Prepare(config, bytes, "")      ->  Offer() over an authenticated connection
//   server: Prepare(config, bytes, offer)   ->  Offer() back, Join(..., the client's offer)
//   client: Join(..., the server's offer)
class RdmaLink : public Link {
 public:
  static constexpr size_t kMaxRails = 16;

  // Memory, and queue pairs on all ports that `config` allows or, for the server, that have a
  // counterpart in `client_offer`. Fails if there is none, or none can be used.
  static StatusOr<std::unique_ptr<RdmaLink>> Prepare(const RdmaConfig& config, size_t window_bytes,
                                                     std::string_view client_offer);
  // A rail for each port; none where there is null. Ports that cannot be used are left out, with a
  // warning, as long as one can.
  static StatusOr<std::unique_ptr<RdmaLink>> Make(
      const RdmaConfig& config, size_t window_bytes,
      const std::vector<std::optional<RdmaPort>>& ports);
  // The offer for the peer. Its keys let it write to this side's window: keep it secret from all
  // others.
  virtual std::string Offer() const = 0;
  // `socket`: a connected, authenticated stream, taken over in any case. Its traffic is protected
  // as `security` says; data that NICs carry are not.
  virtual Status Join(int peer, int socket, std::string_view offer, const TcpSecurity& security,
                      std::string description) = 0;

  virtual size_t live_rails() const = 0;
  // For tests: what a fault of that rail does.
  virtual void BreakRail(size_t rail) = 0;
};

// Why this process cannot use rdma; empty if it can. Opens the devices and registers as much memory
// as a link of `window_bytes` does.
std::string WhyNoRdma(const RdmaConfig& config, size_t window_bytes);

}  // namespace jaxcoll
