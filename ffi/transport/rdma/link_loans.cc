// The buffers that calls lend to an rdma link.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#include "base/log.h"
#include "transport/link_error.h"
#include "transport/rdma/link.h"
#include "transport/rdma/verbs.h"

namespace jaxcoll {
namespace {

// A smaller put is copied though its buffer is lent: in cache that costs less than waiting for it.
constexpr size_t kMinLentBytes = size_t{8} << 10;
// A call that ends too early waits this long for the writes from its buffers; a healthy NIC
// completes them in a fraction of it.
constexpr auto kReturnTime = std::chrono::milliseconds(20);

}  // namespace

std::unique_ptr<Link::Loan> RdmaLinkImpl::Borrow(std::span<const std::byte> buffer) {
  const uint64_t least = config_.register_bytes;
  const bool wanted = end_.ok() && least > 0 && buffer.size() >= least && !refused_;
  return wanted ? MakeLoan(buffer) : nullptr;
}

bool RdmaLinkImpl::TakesDmabuf() const {
  return verbs::Load().ok() && (*verbs::Load())->reg_dmabuf_mr != nullptr;
}

StatusOr<std::unique_ptr<Link::Loan>> RdmaLinkImpl::BorrowDmabuf(
    int fd, uint64_t offset, std::span<const std::byte> buffer) {
  if (!end_.ok()) return end_;
  std::unique_ptr<RdmaLoan> loan = MakeLoan(buffer);
  for (size_t i = 0; i < rails_.size(); ++i) {
    if (!rails_[i].rail || rails_[i].rail->failed()) continue;
    const Status status = loan->RegisterDmabuf(i, rails_[i].rail->domain(), fd, offset);
    if (!status.ok()) return status;
  }
  return StatusOr<std::unique_ptr<Loan>>(std::move(loan));
}

bool RdmaLinkImpl::PutFrom(Loan& base, std::span<const std::byte> source, size_t offset,
                           const Notice& notice, uint64_t token) {
  auto& loan = static_cast<RdmaLoan&>(base);
  if (!loan.of_device() && (source.size() < kMinLentBytes || refused_)) {
    return Put(source, offset, notice, token);
  }
  if (!end_.ok()) return true;
  JAXCOLL_CHECK(!source.empty() && loan.Contains(source), "a put of memory that was not lent");
  const size_t parts = Cut(source, offset, notice, &loan);
  lent_puts_.Add(puts_, token, parts);
  SendBacklog();
  return false;
}

void RdmaLinkImpl::Detach(uint64_t token) {
  const uint64_t put = lent_puts_.Forget(token);
  ForEachPart([&](RdmaRail::Part& part) {
    // A device's memory cannot be copied here: its loan's end decides.
    if (part.put == put && part.source != nullptr && !part.loan->of_device()) part.Keep();
  });
}

std::unique_ptr<RdmaLoan> RdmaLinkImpl::MakeLoan(std::span<const std::byte> buffer) {
  auto loan = std::make_unique<RdmaLoan>(this, buffer, rails_.size());
  loans_.insert(loan.get());
  return loan;
}

void RdmaLinkImpl::ForEachPart(const std::function<void(RdmaRail::Part&)>& visit) {
  for (RdmaRail::Part& part : backlog_) visit(part);
  for (const Rail& rail : rails_) {
    if (rail.rail) rail.rail->ForEachUnacknowledged(visit);
  }
}

// A part that is about to be sent, and so has its place.
void RdmaLinkImpl::Stage(RdmaRail::Part& part, const std::byte* bytes) {
  std::memcpy(own_.bytes().data() + part.offset, bytes, part.bytes);
  part.source = nullptr;
  part.copy = nullptr;
}

uint32_t RdmaLinkImpl::KeyOrStage(size_t rail, RdmaRail::Part& part) {
  const StatusOr<uint32_t> key =
      part.loan->KeyFor(rail, rails_[rail].rail->domain(), {part.source, part.bytes});
  if (key.ok()) return *key;
  JAXCOLL_CHECK(!part.loan->of_device(), "a dma-buf is not registered");
  if (!std::exchange(refused_, true)) {
    Log(LogLevel::kWarning, "%s: buffers of calls are copied, because %s",
        PeerName(peer_, description_).c_str(), key.status().message().c_str());
  }
  Stage(part, part.source);
  part.loan = nullptr;
  lent_puts_.Released(part.put);
  return 0;
}

bool RdmaLinkImpl::ReportSent(LinkSink& sink) {
  for (const Rail& rail : rails_) {
    if (!rail.rail) continue;
    for (const uint64_t put : rail.rail->TakeReleased()) lent_puts_.Released(put);
  }
  bool any = false;
  for (; lent_puts_.HasSent(); any = true) sink.OnSent(peer_, lent_puts_.TakeSent());
  return any;
}

// The call's writes have completed, or the call has failed. Then most writes have completed but are
// unreported; the others are taken from the NIC.
void RdmaLinkImpl::OnReturn(RdmaLoan& loan) {
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
    if (reads(rail)) rail.rail->Fail("a call ended before its writes had completed");
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
                         ": device memory was taken back before the writes from it had completed"));
  }
}

// The regions go before the rails whose domains they are of.
void RdmaLinkImpl::RevokeLoans() {
  for (RdmaLoan* const loan : loans_) loan->Revoke(::getpid() != pid_);
  loans_.clear();
}

}  // namespace jaxcoll
