#include "transport/rdma/link.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/log.h"
#include "transport/fd.h"
#include "transport/link_error.h"
#include "transport/rdma/offer.h"

namespace jaxcoll {
namespace {

// A part of a put is not smaller: each costs two work requests and a completion on either side.
constexpr size_t kMinPartBytes = size_t{64} << 10;
// A look at the socket and at the devices is a system call each, a look at a completion queue is
// not. A reactor that does not sleep hears of the peer's end this many calls of Poll later, or idle
// calls.
constexpr uint64_t kPollsPerLook = 1024;
constexpr uint64_t kIdlePollsPerLook = 32;
// Puts of which some parts have arrived. A correct peer has no more in flight.
constexpr size_t kMaxPartialPuts = RdmaLink::kMaxRails * RdmaRail::kEntries;

}  // namespace

// A process that was forked off holds the socket, too, and would hide our end from the peer.
RdmaLinkImpl::~RdmaLinkImpl() {
  RevokeLoans();
  if (control_ && ::getpid() == pid_) control_->Shutdown();
}

Status RdmaLinkImpl::Init(const std::vector<std::optional<RdmaPort>>& ports) {
  const size_t window = RoundUpToPage(window_bytes_);
  const size_t rings = ports.size() * RdmaRail::kRingBytes;
  for (Pages* const pages : {&open_, &own_}) {
    if (Status status = pages->Allocate(window + rings); !status.ok()) return status;
    if (Status status = pages->KeepFromChildren(); !status.ok()) return status;
  }
  std::vector<std::string> left_out;
  Status first;
  for (size_t i = 0; i < ports.size(); ++i) {
    rails_.emplace_back();
    if (!ports[i]) continue;
    const size_t at = window + i * RdmaRail::kRingBytes;
    auto rail = RdmaRail::Make(
        *ports[i], {open_.bytes().data(), open_.bytes().size(), open_.bytes().data() + at,
                    own_.bytes().data(), own_.bytes().size(), own_.bytes().data() + at});
    if (rail.ok()) {
      rails_.back().rail = std::move(*rail);
    } else {
      if (first.ok()) first = rail.status();
      left_out.push_back(ports[i]->Name() + ": " + rail.status().message());
    }
  }
  if (live_rails() == 0) return first;
  for (const std::string& why : left_out) {
    Log(LogLevel::kWarning, "an RDMA port is left out, %s", why.c_str());
  }
  return Status();
}

std::string RdmaLinkImpl::Offer() const {
  RdmaOffer offer;
  offer.window_bytes = window_bytes_;
  offer.window = reinterpret_cast<uint64_t>(open_.bytes().data());
  offer.rings = offer.window + RoundUpToPage(window_bytes_);
  for (const Rail& rail : rails_) {
    offer.rails.push_back(rail.rail ? rail.rail->address() : RailAddress{});
  }
  return offer.Encode();
}

Status RdmaLinkImpl::Join(int peer, int socket, std::string_view text, const TcpSecurity& security,
                          std::string description) {
  Fd owned(socket);
  peer_ = peer;
  description_ = std::move(description);
  const StatusOr<RdmaOffer> offer = RdmaOffer::Decode(text, kMaxRails);
  if (!offer.ok()) return PeerBrokeProtocol(peer_, description_, offer.status().message());
  if (offer->window_bytes != window_bytes_ || offer->rails.size() != rails_.size()) {
    return PeerBrokeProtocol(peer_, description_,
                             "it offers " + std::to_string(offer->rails.size()) +
                                 " rails and a window of " + std::to_string(offer->window_bytes) +
                                 " bytes; here: " + std::to_string(rails_.size()) + " and " +
                                 std::to_string(window_bytes_));
  }
  Status status;
  for (size_t i = 0; i < rails_.size(); ++i) {
    Rail& rail = rails_[i];
    if (offer->rails[i].qp_num == 0) rail.rail.reset();
    if (!rail.rail) continue;
    status = rail.rail->Connect(offer->rails[i],
                                {offer->window, offer->rings + i * RdmaRail::kRingBytes}, config_);
    if (!status.ok())
      return Status(status.code(), PeerName(peer_, description_) + ": " + status.message());
    rails_text_ += (rails_text_.empty() ? ", rails " : ", ") + rail.rail->Describe();
  }
  if (live_rails() == 0) {
    return Status(
        StatusCode::kUnavailable,
        PeerName(peer_, description_) + " has no RDMA port on a fabric that this host reaches");
  }
  FrameRules rules;
  rules.window_bytes = 0;
  rules.socket_index = 0;
  rules.socket_count = 1;
  auto control = TcpSocket::Make(owned, rules, std::span<std::byte>(), security);
  if (!control.ok()) return control.status();
  control_ = std::move(*control);
  SendControl({kReady});
  return Status();
}

bool RdmaLinkImpl::Put(std::span<const std::byte> source, size_t offset, const Notice& notice,
                       uint64_t /*token*/) {
  if (!end_.ok()) return true;
  if (source.empty()) offset = 0;
  std::byte* const staged = own_.bytes().data() + offset;
  Cut(source, offset, notice, nullptr);
  if (!source.empty() && source.data() != staged) {
    std::memmove(staged, source.data(), source.size());
  }
  SendBacklog();
  return true;
}

void RdmaLinkImpl::Tell(std::string_view message) {
  JAXCOLL_CHECK(message.size() <= kMaxTellBytes, "%zu bytes", message.size());
  if (!end_.ok()) return;
  const FrameHeader header = {kFrameMagic, FrameKind::kTell, message.size(), 0, {}};
  control_->SendCopy(header, std::as_bytes(std::span(message)));
}

StatusOr<bool> RdmaLinkImpl::Poll(LinkSink& sink, int budget) {
  if (!end_.ok()) return end_;
  const bool was_gone = gone_;  // before the rails are found empty: nothing can follow
  bool any = PollRails(budget);
  any |= ReportSent(sink);
  const bool emptied = !any && arrived_.empty();
  any |= Deliver(sink, budget);
  if (any) idle_polls_ = 0;
  if (look_ || !peer_ready_ || control_->queued_bytes() > 0 || ++polls_ % kPollsPerLook == 0 ||
      ++idle_polls_ % kIdlePollsPerLook == 0) {
    any |= Look(sink);
  }
  any |= ServeFailures();
  any |= SendBacklog();
  if (!broken_.empty()) return End(PeerBrokeProtocol(peer_, description_, broken_));
  if (control_->has_trouble()) return End(control_->Trouble(peer_, description_));
  if (was_gone && emptied) {
    return End(PeerIsGone(peer_, description_, control_->end_errno(), control_->cut()));
  }
  if (!end_.ok()) return end_;
  return any || gone_;
}

bool RdmaLinkImpl::PrepareToSleep() {
  if (!end_.ok() || gone_ || look_ || !broken_.empty()) return false;
  if (!arrived_.empty() || lent_puts_.HasSent()) return false;
  if (control_->HasUnread()) return false;
  bool quiet = true;
  for (const Rail& rail : rails_) {
    if (rail.closed || !rail.rail) continue;
    rail.rail->Arm();
    // A completion that came before Arm() raises no event.
    quiet &= !rail.rail->Poll(kCompletionsPerPoll, arrived_) && !rail.rail->failed();
  }
  return quiet;
}

void RdmaLinkImpl::Awake(bool woken) {
  for (const Rail& rail : rails_) {
    if (rail.rail) rail.rail->Disarm();
  }
  look_ |= woken;
}

std::vector<int> RdmaLinkImpl::readable_fds() const {
  std::set<int> fds = {control_->fd()};
  for (const Rail& rail : rails_) {
    if (rail.rail && !rail.closed) fds.insert({rail.rail->event_fd(), rail.rail->device_fd()});
  }
  return {fds.begin(), fds.end()};
}

// The socket as usual. For a rail, the descriptor of its events: it is never ready for writing,
// but means that data has not reached the peer yet; it becomes readable when the data has.
std::vector<int> RdmaLinkImpl::writable_fds() const {
  std::vector<int> fds;
  if (!end_.ok()) return fds;
  if (control_->queued_bytes() > 0) fds.push_back(control_->fd());
  for (const Rail& rail : rails_) {
    if (!rail.rail) continue;
    if (!rail.rail->idle() || !backlog_.empty()) fds.push_back(rail.rail->event_fd());
  }
  return fds;
}

size_t RdmaLinkImpl::live_rails() const {
  return std::count_if(rails_.begin(), rails_.end(),
                       [](const Rail& rail) { return rail.rail && !rail.rail->failed(); });
}

bool RdmaLinkImpl::PollRails(int budget) {
  bool any = false;
  for (const Rail& rail : rails_) {
    if (!rail.rail || rail.closed) continue;
    // The memory of what has not been delivered yet is bounded by the budget.
    if (arrived_.size() >= static_cast<size_t>(budget)) return true;
    any |= rail.rail->Poll(std::min(budget, kCompletionsPerPoll), arrived_);
    if (!rail.rail->violation().empty()) broken_ = rail.rail->violation();
  }
  return any;
}

bool RdmaLinkImpl::Deliver(LinkSink& sink, int budget) {
  const size_t count = std::min<size_t>(arrived_.size(), budget);
  for (size_t i = 0; i < count && broken_.empty(); ++i) {
    const RailEntry entry = arrived_[i];
    if (IsWhole(entry)) sink.OnNotice(peer_, entry.notice);
  }
  arrived_.erase(arrived_.begin(), arrived_.begin() + static_cast<ptrdiff_t>(count));
  return count > 0;
}

// Whether this is the last part of its put.
bool RdmaLinkImpl::IsWhole(const RailEntry& entry) {
  if (entry.parts == 1) return true;
  if (entry.parts == 0 || entry.parts > kMaxRails) {
    broken_ = "a put of " + std::to_string(entry.parts) + " parts";
    return false;
  }
  const auto it = missing_parts_.try_emplace(entry.put, entry.parts).first;
  if (--it->second > 0) {
    if (missing_parts_.size() > kMaxPartialPuts) broken_ = "it does not complete puts";
    return false;
  }
  missing_parts_.erase(it);
  return true;
}

// Parts of a put, to be sent; how many.
size_t RdmaLinkImpl::Cut(std::span<const std::byte> source, size_t offset, const Notice& notice,
                         RdmaLoan* loan) {
  JAXCOLL_CHECK(offset <= window_bytes_ && source.size() <= window_bytes_ - offset,
                "%zu bytes at %zu of a window of %zu", source.size(), offset, window_bytes_);
  const size_t parts =
      std::clamp<size_t>(source.size() / kMinPartBytes, 1, std::max<size_t>(live_rails(), 1));
  const size_t part_bytes = parts == 1 ? source.size() : RoundUpToPage(source.size() / parts);
  ++puts_;
  for (size_t begin = 0, i = 0; i < parts; ++i, begin += part_bytes) {
    const size_t bytes = i + 1 == parts ? source.size() - begin : part_bytes;
    backlog_.push_back({puts_, static_cast<uint32_t>(parts), offset + begin, bytes, notice, loan,
                        loan == nullptr ? nullptr : source.data() + begin});
  }
  return parts;
}

bool RdmaLinkImpl::SendBacklog() {
  bool any = false;
  while (!backlog_.empty() && peer_ready_ && end_.ok()) {
    size_t best = rails_.size();
    for (size_t i = 0; i < rails_.size(); ++i) {
      const RdmaRail* const rail = rails_[i].rail.get();
      if (rail == nullptr || !rail->HasRoom()) continue;
      if (best == rails_.size() ||
          rail->unacknowledged_bytes() < rails_[best].rail->unacknowledged_bytes()) {
        best = i;
      }
    }
    if (best == rails_.size()) break;
    RdmaRail::Part& part = backlog_.front();
    if (part.copy != nullptr) Stage(part, part.copy->data());
    const uint32_t key = part.source == nullptr ? 0 : KeyOrStage(best, part);
    rails_[best].rail->Send(part, key);
    backlog_.pop_front();
    any = true;
  }
  return any;
}

StatusOr<std::unique_ptr<RdmaLink>> RdmaLink::Make(
    const RdmaConfig& config, size_t window_bytes,
    const std::vector<std::optional<RdmaPort>>& ports) {
  auto link = std::make_unique<RdmaLinkImpl>(config, window_bytes);
  if (Status status = link->Init(ports); !status.ok()) return status;
  return StatusOr<std::unique_ptr<RdmaLink>>(std::move(link));
}

}  // namespace jaxcoll
