#include "transport/rdma.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "base/environment.h"
#include "transport/fd.h"
#include "transport/link_error.h"
#include "transport/pages.h"
#include "transport/rdma_loan.h"
#include "transport/rdma_offer.h"
#include "transport/rdma_rail.h"
#include "transport/tcp_socket.h"

namespace jaxcoll {
namespace {

// A part of a put is not smaller: each costs two work requests and a completion on either side.
constexpr size_t kMinPartBytes = size_t{64} << 10;
constexpr int kControlFramesPerPoll = 16;
constexpr int kCompletionsPerPoll = 64;
// A look at the socket and at the devices is a system call each, a look at a completion queue is
// not. A reactor that does not sleep hears of the peer's end this many calls of Poll later, or idle
// calls.
constexpr uint64_t kPollsPerLook = 1024;
constexpr uint64_t kIdlePollsPerLook = 32;
// Puts of which some parts have come. An honest peer has no more under way.
constexpr size_t kMaxPartialPuts = RdmaLink::kMaxRails * RdmaRail::kEntries;
constexpr size_t kMaxReasonBytes = 400;
// A smaller put is copied though its buffer is lent: in cache that costs less than waiting for it.
constexpr size_t kMinLentBytes = size_t{8} << 10;
// A call that ends too early waits so long for what its buffers still owe; a healthy NIC is through
// in a fraction of it.
constexpr auto kReturnTime = std::chrono::milliseconds(20);

// What the socket carries beside messages: frames of no bytes, whose notice is one of these.
enum Control : uint64_t {
  kReady = 1,    // its queue pairs take what comes
  kReason = 2,   // rail, then up to 32 characters of why it failed
  kRailDown = 3  // rail, notices that came by it; it is closed
};

class RdmaLinkImpl final : public RdmaLink, public RdmaLoan::Lender {
 public:
  RdmaLinkImpl(const RdmaConfig& config, size_t window_bytes)
      : config_(config), window_bytes_(window_bytes) {}

  // A process that was forked off holds the socket, too, and would hide our end from the peer.
  ~RdmaLinkImpl() override {
    RevokeLoans();
    if (control_ && ::getpid() == pid_) control_->Shutdown();
  }

  Status Init(const std::vector<std::optional<RdmaPort>>& ports) {
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

  std::string Offer() const override {
    RdmaOffer offer;
    offer.window_bytes = window_bytes_;
    offer.window = reinterpret_cast<uint64_t>(open_.bytes().data());
    offer.rings = offer.window + RoundUpToPage(window_bytes_);
    for (const Rail& rail : rails_) {
      offer.rails.push_back(rail.rail ? rail.rail->address() : RailAddress{});
    }
    return offer.Encode();
  }

  Status Join(int peer, int socket, std::string_view text, std::string description) override {
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
      status = rail.rail->Connect(
          offer->rails[i], {offer->window, offer->rings + i * RdmaRail::kRingBytes}, config_);
      if (!status.ok())
        return Status(status.code(), PeerName(peer_, description_) + ": " + status.message());
      rails_text_ += (rails_text_.empty() ? ", rails " : ", ") + rail.rail->Describe();
    }
    if (live_rails() == 0) {
      return Status(StatusCode::kUnavailable,
                    PeerName(peer_, description_) + " has no RDMA port of a fabric that is here");
    }
    FrameRules rules;
    rules.window_bytes = 0;
    rules.socket_index = 0;
    rules.socket_count = 1;
    control_.emplace(owned.release(), rules, std::span<std::byte>());
    SendControl({kReady});
    return Status();
  }

  std::string_view transport() const override { return "rdma"; }
  std::string Describe() const override { return description_ + rails_text_; }
  std::span<std::byte> window() override { return open_.bytes().first(window_bytes_); }
  size_t remote_window_bytes() const override { return window_bytes_; }
  std::byte* staging() override { return own_.bytes().data(); }

  bool Put(std::span<const std::byte> source, size_t offset, const Notice& notice,
           uint64_t /*token*/) override {
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

  std::unique_ptr<Loan> Borrow(std::span<const std::byte> buffer) override {
    const uint64_t least = config_.register_bytes;
    const bool wanted = end_.ok() && least > 0 && buffer.size() >= least && !refused_;
    return wanted ? MakeLoan(buffer) : nullptr;
  }

  bool TakesDmabuf() const override {
    return verbs::Load().ok() && (*verbs::Load())->reg_dmabuf_mr != nullptr;
  }
  StatusOr<std::unique_ptr<Loan>> BorrowDmabuf(int fd, uint64_t offset,
                                               std::span<const std::byte> buffer) override {
    if (!end_.ok()) return end_;
    std::unique_ptr<RdmaLoan> loan = MakeLoan(buffer);
    for (size_t i = 0; i < rails_.size(); ++i) {
      if (!rails_[i].rail || rails_[i].rail->failed()) continue;
      const Status status = loan->RegisterDmabuf(i, rails_[i].rail->domain(), fd, offset);
      if (!status.ok()) return status;
    }
    return StatusOr<std::unique_ptr<Loan>>(std::move(loan));
  }

  bool PutFrom(Loan& base, std::span<const std::byte> source, size_t offset, const Notice& notice,
               uint64_t token) override {
    auto& loan = static_cast<RdmaLoan&>(base);
    if (!loan.of_device() && (source.size() < kMinLentBytes || refused_)) {
      return Put(source, offset, notice, token);
    }
    if (!end_.ok()) return true;
    JAXCOLL_CHECK(!source.empty() && loan.Contains(source), "a put of what was not lent");
    const size_t parts = Cut(source, offset, notice, &loan);
    lent_puts_.Add(puts_, token, parts);
    SendBacklog();
    return false;
  }

  void Detach(uint64_t token) override {
    const uint64_t put = lent_puts_.Forget(token);
    ForEachPart([&](RdmaRail::Part& part) {
      // A device's memory cannot be copied here: its loan's end decides.
      if (part.put == put && part.source != nullptr && !part.loan->of_device()) part.Keep();
    });
  }

  void Tell(std::string_view message) override {
    JAXCOLL_CHECK(message.size() <= kMaxTellBytes, "%zu bytes", message.size());
    if (!end_.ok()) return;
    const FrameHeader header = {kFrameMagic, FrameKind::kTell, message.size(), 0, {}};
    control_->SendCopy(header, std::as_bytes(std::span(message)));
  }

  StatusOr<bool> Poll(LinkSink& sink, int budget) override {
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
    if (was_gone && emptied) {
      return End(PeerIsGone(peer_, description_, control_->end_errno()));
    }
    if (!end_.ok()) return end_;
    return any || gone_;
  }

  bool PrepareToSleep() override {
    if (!end_.ok() || gone_ || look_ || !broken_.empty()) return false;
    if (!arrived_.empty() || lent_puts_.HasSent()) return false;
    if (control_->HasUnread()) return false;
    bool quiet = true;
    for (const Rail& rail : rails_) {
      if (rail.closed || !rail.rail) continue;
      rail.rail->Arm();
      // What came before that gives no event any more.
      quiet &= !rail.rail->Poll(kCompletionsPerPoll, arrived_) && !rail.rail->failed();
    }
    return quiet;
  }

  void Awake(bool woken) override {
    for (const Rail& rail : rails_) {
      if (rail.rail) rail.rail->Disarm();
    }
    look_ |= woken;
  }

  std::vector<int> readable_fds() const override {
    std::set<int> fds = {control_->fd()};
    for (const Rail& rail : rails_) {
      if (rail.rail && !rail.closed) fds.insert({rail.rail->event_fd(), rail.rail->device_fd()});
    }
    return {fds.begin(), fds.end()};
  }

  // The socket as usual. Of a rail, the descriptor of its events: it is never ready for writing,
  // but says that something has not reached the peer yet; its readability tells when it has.
  std::vector<int> writable_fds() const override {
    std::vector<int> fds;
    if (!end_.ok()) return fds;
    if (control_->queued_bytes() > 0) fds.push_back(control_->fd());
    for (const Rail& rail : rails_) {
      if (!rail.rail) continue;
      if (!rail.rail->idle() || !backlog_.empty()) fds.push_back(rail.rail->event_fd());
    }
    return fds;
  }

  size_t live_rails() const override {
    return std::count_if(rails_.begin(), rails_.end(),
                         [](const Rail& rail) { return rail.rail && !rail.rail->failed(); });
  }
  void BreakRail(size_t rail) override { rails_.at(rail).rail->Fail("a test broke it"); }

 private:
  struct Rail {
    std::unique_ptr<RdmaRail> rail;
    bool told = false;    // the peer: what came by it
    bool closed = false;  // all has been settled
    std::optional<uint64_t> peer_received;
    std::string peer_reason;
  };

  // --- rails

  bool PollRails(int budget) {
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

  bool Deliver(LinkSink& sink, int budget) {
    const size_t count = std::min<size_t>(arrived_.size(), budget);
    for (size_t i = 0; i < count && broken_.empty(); ++i) {
      const RailEntry entry = arrived_[i];
      if (IsWhole(entry)) sink.OnNotice(peer_, entry.notice);
    }
    arrived_.erase(arrived_.begin(), arrived_.begin() + static_cast<ptrdiff_t>(count));
    return count > 0;
  }

  // Whether this is the last part of its put.
  bool IsWhole(const RailEntry& entry) {
    if (entry.parts == 1) return true;
    if (entry.parts == 0 || entry.parts > kMaxRails) {
      broken_ = "a put of " + std::to_string(entry.parts) + " parts";
      return false;
    }
    const auto it = missing_parts_.try_emplace(entry.put, entry.parts).first;
    if (--it->second > 0) {
      if (missing_parts_.size() > kMaxPartialPuts) broken_ = "it completes no put";
      return false;
    }
    missing_parts_.erase(it);
    return true;
  }

  // Parts of a put, to be sent; how many.
  size_t Cut(std::span<const std::byte> source, size_t offset, const Notice& notice,
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

  bool SendBacklog() {
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

  // --- what calls have lent

  std::unique_ptr<RdmaLoan> MakeLoan(std::span<const std::byte> buffer) {
    auto loan = std::make_unique<RdmaLoan>(this, buffer, rails_.size());
    loans_.insert(loan.get());
    return loan;
  }

  void ForEachPart(const std::function<void(RdmaRail::Part&)>& visit) {
    for (RdmaRail::Part& part : backlog_) visit(part);
    for (const Rail& rail : rails_) {
      if (rail.rail) rail.rail->ForEachUnacknowledged(visit);
    }
  }

  // A part that is about to be sent, and so has its place.
  void Stage(RdmaRail::Part& part, const std::byte* bytes) {
    std::memcpy(own_.bytes().data() + part.offset, bytes, part.bytes);
    part.source = nullptr;
    part.copy = nullptr;
  }

  uint32_t KeyOrStage(size_t rail, RdmaRail::Part& part) {
    const StatusOr<uint32_t> key =
        part.loan->KeyFor(rail, rails_[rail].rail->domain(), {part.source, part.bytes});
    if (key.ok()) return *key;
    JAXCOLL_CHECK(!part.loan->of_device(), "a dma-buf that was registered is not");
    if (!std::exchange(refused_, true)) {
      Log(LogLevel::kWarning, "%s: buffers of calls are copied, for %s",
          PeerName(peer_, description_).c_str(), key.status().message().c_str());
    }
    Stage(part, part.source);
    part.loan = nullptr;
    lent_puts_.Released(part.put);
    return 0;
  }

  bool ReportSent(LinkSink& sink) {
    for (const Rail& rail : rails_) {
      if (!rail.rail) continue;
      for (const uint64_t put : rail.rail->TakeReleased()) lent_puts_.Released(put);
    }
    bool any = false;
    for (; lent_puts_.HasSent(); any = true) sink.OnSent(peer_, lent_puts_.TakeSent());
    return any;
  }

  // What the call had sent is through, or the call has failed. Then most is through, too, only not
  // reported yet; what is not is taken from the NIC.
  void OnReturn(RdmaLoan& loan) override {
    loans_.erase(&loan);
    ForEachPart([&](RdmaRail::Part& part) {
      if (part.loan == &loan && part.source != nullptr && !loan.of_device()) part.Keep();
    });
    const auto reads = [&](const Rail& rail) {
      return rail.rail && !rail.rail->failed() && rail.rail->Reads(loan);
    };
    const auto give_up = std::chrono::steady_clock::now() + kReturnTime;
    while (std::any_of(rails_.begin(), rails_.end(), reads) &&
           std::chrono::steady_clock::now() < give_up) {
      for (const Rail& rail : rails_) {
        if (reads(rail)) rail.rail->Poll(kCompletionsPerPoll, arrived_);
      }
    }
    for (const Rail& rail : rails_) {
      if (reads(rail)) rail.rail->Fail("a call ended before what it had sent was through");
    }
    bool lost = false;
    ForEachPart([&](RdmaRail::Part& part) {
      if (part.loan != &loan) return;
      lost |= part.source != nullptr;
      part.loan = nullptr;
    });
    if (lost) {
      (void)End(Status(StatusCode::kUnavailable,
                       PeerName(peer_, description_) +
                           ": device memory was taken back before what was put from it was "
                           "through"));
    }
  }

  // The regions go before the rails whose domains they are of.
  void RevokeLoans() {
    for (RdmaLoan* const loan : loans_) loan->Revoke(::getpid() != pid_);
    loans_.clear();
  }

  // --- the socket and the devices

  void SendControl(const Notice& notice) {
    control_->SendCopy({kFrameMagic, FrameKind::kPut, 0, 0, notice}, {});
  }

  // Passes messages on, and keeps what is the link's own.
  class ControlSink final : public LinkSink {
   public:
    ControlSink(RdmaLinkImpl& link, LinkSink& sink) : link_(link), sink_(sink) {}
    void OnNotice(int, const Notice& notice) override { link_.OnControl(notice); }
    void OnTold(int peer, std::string_view message) override { sink_.OnTold(peer, message); }
    void OnSent(int, uint64_t) override {}

   private:
    RdmaLinkImpl& link_;
    LinkSink& sink_;
  };

  bool Look(LinkSink& sink) {
    look_ = false;
    std::vector<uint64_t> tokens;  // none: all it sends are copies
    bool any = control_->Flush(tokens);
    ControlSink control_sink(*this, sink);
    int budget = kControlFramesPerPoll;
    if (control_->Receive(control_sink, peer_, budget)) {
      any = true;
      look_ = true;  // there may be more
    }
    if (!control_->violation().empty()) broken_ = control_->violation();
    gone_ = control_->ended() && !control_->HasUnread();
    LookAtPorts();
    return any;
  }

  // A port that is down may come up again: its rail is given up only if there is another one.
  void LookAtPorts() {
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

  void OnControl(const Notice& notice) {
    if (notice[0] == kReady) {
      peer_ready_ = true;
      return;
    }
    if ((notice[0] != kReason && notice[0] != kRailDown) || notice[1] >= rails_.size() ||
        !rails_[notice[1]].rail || rails_[notice[1]].peer_received) {
      broken_ = "it said something unknown of a rail";
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

  // --- failures

  bool ServeFailures() {
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
                                                       ": the NIC does not say what came before " +
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

  void TellRailDown(size_t index) {
    const Rail& rail = rails_[index];
    std::string reason = rail.peer_received ? "" : rail.rail->reason().substr(0, kMaxReasonBytes);
    for (size_t begin = 0; begin < reason.size(); begin += 32) {
      Notice notice = {kReason, index};
      std::memcpy(&notice[2], reason.data() + begin, std::min<size_t>(32, reason.size() - begin));
      SendControl(notice);
    }
    SendControl({kRailDown, index, rail.rail->received()});
  }

  void Resend(size_t index) {
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
  Status End(Status status) {
    if (!end_.ok()) return end_;
    for (const Rail& rail : rails_) {
      if (rail.rail) rail.rail->Fail("the link has ended");
    }
    std::vector<uint64_t> tokens;
    control_->Flush(tokens);
    control_->StopSending();
    backlog_.clear();
    lent_puts_ = {};
    RevokeLoans();
    end_ = std::move(status);
    return end_;
  }

  const RdmaConfig config_;
  const size_t window_bytes_;
  const pid_t pid_ = ::getpid();
  int peer_ = -1;
  std::string description_;
  std::string rails_text_;
  Pages open_;  // window and rings: the peer may write them
  Pages own_;   // staging and entries: the NIC may read them
  std::vector<Rail> rails_;
  std::optional<TcpSocket> control_;

  uint64_t puts_ = 0;
  std::deque<RdmaRail::Part> backlog_;
  LentPuts lent_puts_;
  std::set<RdmaLoan*> loans_;
  bool refused_ = false;                        // memory cannot be registered any more
  std::vector<RailEntry> arrived_;              // and not delivered yet
  std::map<uint64_t, uint32_t> missing_parts_;  // of puts that have come in part
  uint64_t polls_ = 0;
  uint64_t idle_polls_ = 0;
  bool look_ = true;
  bool peer_ready_ = false;
  bool gone_ = false;  // the socket has ended
  std::string first_reason_;
  std::string broken_;
  Status end_;
};

}  // namespace

StatusOr<std::unique_ptr<RdmaLink>> RdmaLink::Make(
    const RdmaConfig& config, size_t window_bytes,
    const std::vector<std::optional<RdmaPort>>& ports) {
  auto link = std::make_unique<RdmaLinkImpl>(config, window_bytes);
  if (Status status = link->Init(ports); !status.ok()) return status;
  return StatusOr<std::unique_ptr<RdmaLink>>(std::move(link));
}

}  // namespace jaxcoll
