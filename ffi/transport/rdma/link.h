// The link of rdma.h. Its rails and what goes over them: rdma_link.cc; what calls lend:
// rdma_link_loans.cc; the socket, and rails that fail: rdma_link_failures.cc.
#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "transport/link.h"
#include "transport/pages.h"
#include "transport/rdma/loan.h"
#include "transport/rdma/rail.h"
#include "transport/rdma/rdma.h"
#include "transport/tcp/socket.h"

namespace jaxcoll {

class RdmaLinkImpl final : public RdmaLink, public RdmaLoan::Lender {
 public:
  RdmaLinkImpl(const RdmaConfig& config, size_t window_bytes)
      : config_(config), window_bytes_(window_bytes) {}

  ~RdmaLinkImpl() override;
  Status Init(const std::vector<std::optional<RdmaPort>>& ports);
  std::string Offer() const override;
  Status Join(int peer, int socket, std::string_view text, const TcpSecurity& security,
              std::string description) override;
  std::string_view transport() const override { return "rdma"; }
  std::string Describe() const override { return description_ + rails_text_; }
  std::span<std::byte> window() override { return open_.bytes().first(window_bytes_); }
  size_t remote_window_bytes() const override { return window_bytes_; }
  std::byte* staging() override { return own_.bytes().data(); }

  bool Put(std::span<const std::byte> source, size_t offset, const Notice& notice,
           uint64_t /*token*/) override;
  std::unique_ptr<Loan> Borrow(std::span<const std::byte> buffer) override;
  bool TakesDmabuf() const override;
  StatusOr<std::unique_ptr<Loan>> BorrowDmabuf(int fd, uint64_t offset,
                                               std::span<const std::byte> buffer) override;
  bool PutFrom(Loan& base, std::span<const std::byte> source, size_t offset, const Notice& notice,
               uint64_t token) override;
  void Detach(uint64_t token) override;
  void Tell(std::string_view message) override;
  StatusOr<bool> Poll(LinkSink& sink, int budget) override;
  bool PrepareToSleep() override;
  void Awake(bool woken) override;
  std::vector<int> readable_fds() const override;
  std::vector<int> writable_fds() const override;
  size_t live_rails() const override;
  void BreakRail(size_t rail) override { rails_.at(rail).rail->Fail("a test broke it"); }

 private:
  static constexpr int kCompletionsPerPoll = 64;

  // What the socket carries beside messages: frames of no bytes, whose notice is one of these.
  enum Control : uint64_t {
    kReady = 1,    // its queue pairs take what comes
    kReason = 2,   // rail, then up to 32 characters of why it failed
    kRailDown = 3  // rail, notices that came by it; it is closed
  };

  struct Rail {
    std::unique_ptr<RdmaRail> rail;
    bool told = false;    // the peer: what came by it
    bool closed = false;  // all has been settled
    std::optional<uint64_t> peer_received;
    std::string peer_reason;
  };

  // --- rails

  bool PollRails(int budget);
  bool Deliver(LinkSink& sink, int budget);
  bool IsWhole(const RailEntry& entry);
  size_t Cut(std::span<const std::byte> source, size_t offset, const Notice& notice,
             RdmaLoan* loan);
  bool SendBacklog();

  // --- what calls have lent

  std::unique_ptr<RdmaLoan> MakeLoan(std::span<const std::byte> buffer);
  void ForEachPart(const std::function<void(RdmaRail::Part&)>& visit);
  void Stage(RdmaRail::Part& part, const std::byte* bytes);
  uint32_t KeyOrStage(size_t rail, RdmaRail::Part& part);
  bool ReportSent(LinkSink& sink);
  void OnReturn(RdmaLoan& loan) override;
  void RevokeLoans();

  // --- the socket and the devices

  void SendControl(const Notice& notice);

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

  bool Look(LinkSink& sink);
  void LookAtPorts();
  void OnControl(const Notice& notice);

  // --- failures

  bool ServeFailures();
  void TellRailDown(size_t index);
  void Resend(size_t index);
  Status End(Status status);

  const RdmaConfig config_;
  const size_t window_bytes_;
  const pid_t pid_ = ::getpid();
  int peer_ = -1;
  std::string description_;
  std::string rails_text_;
  Pages open_;  // window and rings: the peer may write them
  Pages own_;   // staging and entries: the NIC may read them
  std::vector<Rail> rails_;
  std::unique_ptr<TcpSocket> control_;

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

}  // namespace jaxcoll
