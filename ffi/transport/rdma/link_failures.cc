// The socket of an rdma link, and what becomes of rails that fail.
#include <algorithm>
#include <cstring>
#include <utility>

#include "base/log.h"
#include "transport/link_error.h"
#include "transport/rdma/link.h"

namespace jaxcoll {
namespace {

constexpr int kControlFramesPerPoll = 16;
constexpr size_t kMaxReasonBytes = 400;

}  // namespace

void RdmaLinkImpl::SendControl(const Notice& notice) {
  control_->SendCopy({kFrameMagic, FrameKind::kPut, 0, 0, notice}, {});
}

bool RdmaLinkImpl::Look(LinkSink& sink) {
  look_ = false;
  std::vector<uint64_t> tokens;  // none: all it sends are copies
  bool any = control_->Flush(tokens);
  ControlSink control_sink(*this, sink);
  int budget = kControlFramesPerPoll;
  if (control_->Receive(control_sink, peer_, budget)) {
    any = true;
    look_ = true;  // there may be more
  }
  gone_ = control_->ended() && !control_->HasUnread();
  LookAtPorts();
  return any;
}

// A port that is down may come up again: its rail is given up only if there is another one.
void RdmaLinkImpl::LookAtPorts() {
  std::vector<RdmaRail*> down;
  size_t up = 0;
  for (const Rail& rail : rails_) {
    if (!rail.rail || rail.rail->failed()) continue;
    const bool port_down = rail.rail->LookForTrouble();
    if (rail.rail->failed()) continue;
    if (port_down) {
      down.push_back(rail.rail.get());
    } else {
      ++up;
    }
  }
  for (RdmaRail* rail : down) {
    if (up > 0) rail->Fail("its port went down");
  }
}

void RdmaLinkImpl::OnControl(const Notice& notice) {
  if (notice[0] == kReady) {
    peer_ready_ = true;
    return;
  }
  if ((notice[0] != kReason && notice[0] != kRailDown) || notice[1] >= rails_.size() ||
      !rails_[notice[1]].rail || rails_[notice[1]].peer_received) {
    broken_ = "it sent an unknown message about a rail";
    return;
  }
  Rail& rail = rails_[notice[1]];
  if (notice[0] == kReason) {
    for (size_t i = 0; i < 32 && rail.peer_reason.size() < kMaxReasonBytes; ++i) {
      const char c = static_cast<char>(notice[2 + i / 8] >> (i % 8 * 8));
      if (c == '\0') break;
      rail.peer_reason += c < ' ' || c > '~' ? '?' : c;
    }
    return;
  }
  rail.peer_received = notice[2];
  rail.rail->Fail("the peer has closed it: " + rail.peer_reason);
}

bool RdmaLinkImpl::ServeFailures() {
  bool any = false;
  bool settled = true;  // nothing can come any more by the rails that have failed
  for (size_t i = 0; i < rails_.size(); ++i) {
    Rail& rail = rails_[i];
    if (!rail.rail || rail.closed || !rail.rail->failed()) continue;
    if (first_reason_.empty()) first_reason_ = rail.rail->Describe() + ": " + rail.rail->reason();
    if (!rail.rail->drained()) {
      settled = rail.rail->overdue();
      if (!settled) continue;
      (void)End(Status(StatusCode::kUnavailable, PeerName(peer_, description_) +
                                                     ": the NIC does not report the first error " +
                                                     first_reason_));
      return true;
    }
    if (!rail.told) {
      rail.told = any = true;
      TellRailDown(i);
    }
    if (rail.peer_received) {
      rail.closed = any = true;
      Resend(i);
    }
  }
  if (settled && live_rails() == 0 && arrived_.empty() && end_.ok() && broken_.empty()) {
    // If the peer has died, that is the reason.
    (void)End(gone_ ? PeerIsGone(peer_, description_, control_->end_errno())
                    : Status(StatusCode::kUnavailable, PeerName(peer_, description_) +
                                                           ": the last RDMA rail failed, " +
                                                           first_reason_));
  }
  return any;
}

void RdmaLinkImpl::TellRailDown(size_t index) {
  const Rail& rail = rails_[index];
  std::string reason = rail.peer_received ? "" : rail.rail->reason().substr(0, kMaxReasonBytes);
  for (size_t begin = 0; begin < reason.size(); begin += 32) {
    Notice notice = {kReason, index};
    std::memcpy(&notice[2], reason.data() + begin, std::min<size_t>(32, reason.size() - begin));
    SendControl(notice);
  }
  SendControl({kRailDown, index, rail.rail->received()});
}

void RdmaLinkImpl::Resend(size_t index) {
  Rail& rail = rails_[index];
  StatusOr<std::vector<RdmaRail::Part>> parts = rail.rail->Unreceived(*rail.peer_received);
  if (!parts.ok()) {
    broken_ = parts.status().message();
    return;
  }
  backlog_.insert(backlog_.begin(), parts->begin(), parts->end());
  if (live_rails() == 0) return;
  Log(LogLevel::kWarning,
      "%s: an RDMA rail has failed, %s: %s; rails left: %zu, repeated puts: %zu",
      PeerName(peer_, description_).c_str(), rail.rail->Describe().c_str(),
      rail.rail->reason().c_str(), live_rails(), parts->size());
}

// From here on no source is read any more.
Status RdmaLinkImpl::End(Status status) {
  if (!end_.ok()) return end_;
  for (const Rail& rail : rails_) {
    if (rail.rail) rail.rail->Fail("the link has ended");
  }
  std::vector<uint64_t> tokens;
  control_->Flush(tokens);
  if (status.code() == StatusCode::kInternal) control_->SayEnd(status.message());
  control_->StopSending();
  backlog_.clear();
  lent_puts_ = {};
  RevokeLoans();
  end_ = std::move(status);
  return end_;
}

}  // namespace jaxcoll
