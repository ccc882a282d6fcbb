#include "transport/rdma/rail.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <random>
#include <utility>

#include "transport/link_error.h"

namespace jaxcoll {
namespace {

using Clock = std::chrono::steady_clock;

// This bit of an immediate marks a report of credits, not a notice. The other bits count.
constexpr uint32_t kReportBit = uint32_t{1} << 31;
constexpr uint64_t kReceiveId = uint64_t{1} << 63;  // of a work request
constexpr auto kDrainTime = std::chrono::seconds(2);

// Hints on what to check, for the errors that people can do something about.
const char* Advice(uint32_t status) {
  switch (status) {
    case verbs::kWcRetryExcErr:
      return "the peer's NIC did not answer: look at both ports (`rdma link`, `ibstat`), cables "
             "and "
             "switches, whether both GIDs are of one network, and for RoCE whether UDP port 4791 "
             "passes and the MTU is the same everywhere";
    case verbs::kWcRnrRetryExcErr:
      return "the peer has posted no receives";
    case verbs::kWcRemAccessErr:
      return "the peer's NIC refuses access to its memory: the key or the address is not one that "
             "it has given out";
    case verbs::kWcRemInvReqErr:
    case verbs::kWcRemOpErr:
      return "the peer's NIC could not carry it out; its own log may say why";
    case verbs::kWcLocProtErr:
      return "memory of this process is no longer registered";
    default:
      return "";
  }
}

}  // namespace

RdmaRail::RdmaRail(const RdmaPort& port, const Memory& memory)
    : port_(port), memory_(memory), pid_(::getpid()) {}

RdmaRail::~RdmaRail() {
  if (::getpid() != pid_) {  // a fork: all of it is the parent's
    own_.release();
    open_.release();
    domain_.release();
    return;
  }
  if (qp_ != nullptr) {
    const uint32_t number = qp_->qp_num;
    library_->destroy_qp(qp_);
    domain_->device()->Forget(number);
  }
  if (cq_ != nullptr) {
    if (events_ > 0) library_->ack_cq_events(cq_, events_);
    library_->destroy_cq(cq_);
  }
  if (channel_ != nullptr) library_->destroy_comp_channel(channel_);
}

StatusOr<std::unique_ptr<RdmaRail>> RdmaRail::Make(const RdmaPort& port, const Memory& memory) {
  std::unique_ptr<RdmaRail> rail(new RdmaRail(port, memory));
  if (Status status = rail->Init(); !status.ok()) return status;
  return StatusOr<std::unique_ptr<RdmaRail>>(std::move(rail));
}

Status RdmaRail::Init() {
  StatusOr<std::shared_ptr<verbs::OpenDevice>> device = verbs::OpenDevice::Open(port_.device);
  if (!device.ok()) return device.status();
  library_ = &(*device)->library();
  verbs::Context* const context = (*device)->context();
  const auto refused = [&](const char* what) {
    return SystemError(std::string(what) + " on RDMA device " + port_.device, errno);
  };

  if (library_->query_port(context, static_cast<uint8_t>(port_.port), &attributes_) != 0) {
    return refused("ibv_query_port");
  }
  StatusOr<std::unique_ptr<verbs::Domain>> domain = verbs::Domain::Make(*device);
  if (!domain.ok()) return domain.status();
  domain_ = std::move(*domain);
  auto open = verbs::Region::Register(*domain_, memory_.open, memory_.open_bytes,
                                      verbs::kAccessLocalWrite | verbs::kAccessRemoteWrite);
  if (!open.ok()) return open.status();
  open_ = std::move(*open);
  auto own = verbs::Region::Register(*domain_, memory_.own, memory_.own_bytes, 0);
  if (!own.ok()) return own.status();
  own_ = std::move(*own);

  channel_ = library_->create_comp_channel(context);
  if (channel_ == nullptr) return refused("ibv_create_comp_channel");
  const int flags = ::fcntl(channel_->fd, F_GETFL);
  if (flags < 0 || ::fcntl(channel_->fd, F_SETFL, flags | O_NONBLOCK) != 0) return refused("fcntl");
  cq_ = library_->create_cq(context, kReceives + kSendRequests + 8, nullptr, channel_, 0);
  if (cq_ == nullptr) return refused("ibv_create_cq");

  // Devices differ in how much they take inline; none is needed.
  for (const uint32_t inline_bytes : {kInlineBytes, uint32_t{sizeof(RailEntry)}, uint32_t{0}}) {
    verbs::QpInitAttr init{};
    init.send_cq = cq_;
    init.recv_cq = cq_;
    init.cap = {kSendRequests, kReceives, 1, 1, inline_bytes};
    init.qp_type = verbs::kQptRc;
    qp_ = library_->create_qp(domain_->pd(), &init);
    if (qp_ == nullptr) continue;
    max_inline_ = init.cap.max_inline_data;
    break;
  }
  if (qp_ == nullptr) return refused("ibv_create_qp");
  psn_ = std::random_device()() & 0xffffff;

  verbs::QpAttr attr{};
  attr.qp_state = verbs::kQpsInit;
  attr.port_num = static_cast<uint8_t>(port_.port);
  attr.qp_access_flags = verbs::kAccessRemoteWrite;
  const int error = library_->modify_qp(
      qp_, &attr, verbs::kQpState | verbs::kQpPkeyIndex | verbs::kQpPort | verbs::kQpAccessFlags);
  if (error != 0) return SystemError("ibv_modify_qp (INIT) of " + port_.Name(), error);
  PostReceives(kReceives);
  if (failed()) return Status(StatusCode::kUnavailable, port_.Name() + ": " + reason_);
  return Status();
}

RailAddress RdmaRail::address() const {
  RailAddress address{};
  std::strncpy(address.device, port_.Name().c_str(), sizeof(address.device) - 1);
  std::strncpy(address.fabric, port_.Fabric().c_str(), sizeof(address.fabric) - 1);
  address.port = static_cast<uint8_t>(port_.port);
  address.mtu = static_cast<uint8_t>(attributes_.active_mtu);
  address.lid = attributes_.lid;
  address.qp_num = qp_->qp_num;
  address.psn = psn_;
  address.rkey = open_->rkey();
  std::copy(port_.gid.begin(), port_.gid.end(), address.gid);
  return address;
}

std::string RdmaRail::Describe() const {
  std::array<uint8_t, 16> gid;
  std::copy(std::begin(peer_.gid), std::end(peer_.gid), gid.begin());
  return port_.Name() + " (" + GidText(port_.gid) + ") to " + peer_.device + " (" + GidText(gid) +
         ")";
}

Status RdmaRail::Connect(const RailAddress& peer, const RemoteMemory& remote,
                         const RdmaConfig& config) {
  peer_ = peer;
  peer_.device[sizeof(peer_.device) - 1] = '\0';
  remote_ = remote;
  const RdmaRetries retries = RetriesFor(config.deadline_s);

  verbs::QpAttr attr{};
  attr.qp_state = verbs::kQpsRtr;
  attr.path_mtu = std::min<uint32_t>(attributes_.active_mtu, peer.mtu);
  attr.dest_qp_num = peer.qp_num;
  attr.rq_psn = peer.psn;
  attr.max_dest_rd_atomic = 1;
  attr.min_rnr_timer = retries.rnr_timer;
  attr.ah_attr.is_global = port_.ethernet;
  std::memcpy(attr.ah_attr.grh.dgid.raw, peer.gid, sizeof(peer.gid));
  attr.ah_attr.grh.sgid_index = static_cast<uint8_t>(port_.gid_index);
  attr.ah_attr.grh.hop_limit = 64;
  attr.ah_attr.grh.traffic_class = static_cast<uint8_t>(config.traffic_class);
  attr.ah_attr.dlid = peer.lid;
  attr.ah_attr.sl = static_cast<uint8_t>(config.service_level);
  attr.ah_attr.port_num = static_cast<uint8_t>(port_.port);
  int error =
      library_->modify_qp(qp_, &attr,
                          verbs::kQpState | verbs::kQpAv | verbs::kQpPathMtu | verbs::kQpDestQpn |
                              verbs::kQpRqPsn | verbs::kQpMaxDestRdAtomic | verbs::kQpMinRnrTimer);
  if (error != 0) {
    return SystemError("connecting " + Describe() + " (ibv_modify_qp RTR; GID index " +
                           std::to_string(port_.gid_index) + ")",
                       error);
  }
  attr = {};
  attr.qp_state = verbs::kQpsRts;
  attr.timeout = retries.ack_timeout;
  attr.retry_cnt = retries.retry_count;
  attr.rnr_retry = retries.rnr_retry_count;
  attr.sq_psn = psn_;
  attr.max_rd_atomic = 1;
  error = library_->modify_qp(qp_, &attr,
                              verbs::kQpState | verbs::kQpTimeout | verbs::kQpRetryCnt |
                                  verbs::kQpRnrRetry | verbs::kQpSqPsn | verbs::kQpMaxQpRdAtomic);
  if (error != 0) return SystemError("connecting " + Describe() + " (ibv_modify_qp RTS)", error);
  return Status();
}

// --- sending ------------------------------------------------------------------------------------

bool RdmaRail::HasRoom() const {
  // Two for a part; one each is left for a report and for a request that only asks for a
  // completion.
  return !failed() && sent_ - consumed_by_peer_ < kEntries &&
         requests_ - requests_completed_ + 4 <= kSendRequests;
}

void RdmaRail::Send(const Part& part, uint32_t key) {
  const size_t place = sent_ % kEntries * sizeof(RailEntry);
  RailEntry entry{part.notice, part.put, part.parts, static_cast<uint32_t>(received_)};
  std::memcpy(memory_.entries + place, &entry, sizeof(entry));
  reported_ = received_;

  const bool lent = part.source != nullptr;
  const std::byte* const source = lent ? part.source : memory_.own + part.offset;
  verbs::Sge bytes_sge{reinterpret_cast<uint64_t>(source), static_cast<uint32_t>(part.bytes),
                       lent ? key : own_->lkey()};
  verbs::Sge entry_sge{reinterpret_cast<uint64_t>(memory_.entries + place), sizeof(entry),
                       own_->lkey()};
  verbs::SendWr requests[2] = {};
  verbs::SendWr& last = requests[1];
  last.sg_list = &entry_sge;
  last.num_sge = 1;
  last.opcode = verbs::kWrRdmaWriteWithImm;
  last.imm_data = htonl(static_cast<uint32_t>(sent_) & ~kReportBit);
  last.wr.rdma = {remote_.ring + place, peer_.rkey};
  last.send_flags =
      verbs::kSendSolicited | (max_inline_ >= sizeof(entry) ? verbs::kSendInline : 0u);
  ++sent_;
  const bool with_bytes = part.bytes > 0;
  unacknowledged_.push_back({requests_ + 1 + with_bytes, part});
  unacknowledged_bytes_ += part.bytes + sizeof(entry);
  if (with_bytes) {
    verbs::SendWr& first = requests[0];
    first.next = &last;
    first.sg_list = &bytes_sge;
    first.num_sge = 1;
    first.opcode = verbs::kWrRdmaWrite;
    first.wr.rdma = {remote_.window + part.offset, peer_.rkey};
    // A lent buffer may be a device's memory, which processors cannot put into a request.
    if (!lent && part.bytes <= max_inline_) first.send_flags = verbs::kSendInline;
    Post(requests);
  } else {
    Post(&last);
  }
}

// While requests are in flight, at least one of them asks for a completion. In bursts only some do,
// since a completion costs a write of the NIC to memory.
void RdmaRail::Post(verbs::SendWr* first) {
  for (verbs::SendWr* request = first; request != nullptr; request = request->next) {
    request->wr_id = ++requests_;
    if (request->next != nullptr) continue;
    if (requests_signalled_ == requests_completed_ ||
        requests_ - requests_signalled_ >= kSignalEvery) {
      request->send_flags |= verbs::kSendSignaled;
      requests_signalled_ = requests_;
    }
  }
  verbs::SendWr* bad = nullptr;
  const int error = qp_->context->ops.post_send(qp_, first, &bad);
  if (error != 0) Fail(SystemError("ibv_post_send", error).message());
}

// A write of no bytes.
void RdmaRail::Report() {
  if (failed() || requests_ - requests_completed_ + 2 > kSendRequests) return;
  verbs::SendWr request{};
  request.opcode = verbs::kWrRdmaWriteWithImm;
  request.imm_data = htonl(static_cast<uint32_t>(received_) | kReportBit);
  request.wr.rdma = {remote_.ring, peer_.rkey};
  request.send_flags = verbs::kSendSolicited;
  reported_ = received_;
  Post(&request);
}

void RdmaRail::Completed(uint64_t requests) {
  requests_completed_ = std::max(requests_completed_, requests);
  while (!unacknowledged_.empty() && unacknowledged_.front().end <= requests_completed_) {
    const Part& part = unacknowledged_.front().part;
    unacknowledged_bytes_ -= part.bytes + sizeof(RailEntry);
    if (part.source != nullptr) released_.push_back(part.put);
    unacknowledged_.pop_front();
  }
  if (requests_ > requests_completed_ && requests_signalled_ == requests_completed_ && !failed()) {
    // Requests posted behind it report nothing by themselves: ask.
    verbs::SendWr request{};
    request.opcode = verbs::kWrRdmaWrite;
    request.wr.rdma = {remote_.ring, peer_.rkey};
    Post(&request);
  }
}

// --- receiving ----------------------------------------------------------------------------------

void RdmaRail::PostReceives(uint32_t count) {
  // Without memory of their own: all that comes is written to where the sender says.
  std::array<verbs::RecvWr, 64> requests;
  while (count > 0 && !failed()) {
    const uint32_t batch = std::min<uint32_t>(count, requests.size());
    for (uint32_t i = 0; i < batch; ++i) {
      requests[i] = {kReceiveId, i + 1 < batch ? &requests[i + 1] : nullptr, nullptr, 0};
    }
    verbs::RecvWr* bad = nullptr;
    const int error = qp_->context->ops.post_recv(qp_, requests.data(), &bad);
    const uint32_t posted =
        error == 0 ? batch : static_cast<uint32_t>(bad == nullptr ? 0 : bad - requests.data());
    receives_posted_ += posted;
    count -= batch;
    if (error != 0) Fail(SystemError("ibv_post_recv", error).message());
  }
}

bool RdmaRail::Poll(int budget, std::vector<RailEntry>& arrived) {
  bool any = false;
  uint32_t taken = 0;
  while (budget > 0 && violation_.empty()) {
    std::array<verbs::Wc, 16> completions;
    const int wanted = std::min<int>(budget, completions.size());
    const int count = cq_->context->ops.poll_cq(cq_, wanted, completions.data());
    if (count < 0) Fail("its completion queue cannot be read");
    for (int i = 0; i < count; ++i) {
      const verbs::Wc& completion = completions[i];
      const bool receive = (completion.wr_id & kReceiveId) != 0;
      if (receive) --receives_posted_;
      if (completion.status == verbs::kWcSuccess) {
        if (receive) {
          ++taken;
          Arrived(ntohl(completion.imm_data), arrived);
        } else {
          Completed(completion.wr_id);
        }
      } else if (!failed()) {
        std::string reason = std::string("a work request failed: ") +
                             library_->wc_status_str(completion.status) + " (status " +
                             std::to_string(completion.status) + ", vendor's code " +
                             std::to_string(completion.vendor_err) + ")";
        const auto trouble = domain_->device()->Look(qp_->qp_num, port_.port);
        if (completion.status == verbs::kWcWrFlushErr && !trouble.fatal.empty()) {
          reason = trouble.fatal;
        }
        if (trouble.port_down) reason += "; its port is down";
        if (const std::string advice = Advice(completion.status); !advice.empty()) {
          reason += "; " + advice;
        }
        Fail(reason);
      }
    }
    any |= count > 0;
    budget -= std::max(count, 0);
    if (count < wanted) break;
  }
  // Before the credit for them is given, lest the peer find none.
  if (taken > 0 && !failed()) PostReceives(taken);
  if (received_ - reported_ >= kEntries / 2) Report();
  return any;
}

void RdmaRail::Arrived(uint32_t immediate, std::vector<RailEntry>& arrived) {
  if ((immediate & kReportBit) != 0) {
    // The immediate has 31 bits of the count; the known count gives the others.
    const uint32_t known = static_cast<uint32_t>(consumed_by_peer_);
    TakeCredit(known + ((immediate - known) & ~kReportBit));
    return;
  }
  if (immediate != (static_cast<uint32_t>(received_) & ~kReportBit)) {
    return Broke("its notice " + std::to_string(immediate) + " came as number " +
                 std::to_string(received_));
  }
  RailEntry entry;  // copied first: the peer could write to it while it is looked at
  std::memcpy(&entry, memory_.ring + received_ % kEntries * sizeof(entry), sizeof(entry));
  ++received_;
  TakeCredit(entry.consumed);
  arrived.push_back(entry);
}

void RdmaRail::TakeCredit(uint32_t consumed) {
  // As distances: it moves forwards, and not beyond what was sent.
  const uint32_t more = consumed - static_cast<uint32_t>(consumed_by_peer_);
  if (more > sent_ - consumed_by_peer_) {
    return Broke("it says that it has consumed notices that were not sent");
  }
  consumed_by_peer_ += more;
}

void RdmaRail::Broke(const std::string& how) {
  if (violation_.empty()) violation_ = how;
}

// --- events -------------------------------------------------------------------------------------

void RdmaRail::Arm() {
  if (cq_->context->ops.req_notify_cq(cq_, 0) != 0) Fail("its completion queue delivers no events");
}

void RdmaRail::Disarm() {
  verbs::Cq* cq = nullptr;
  void* context = nullptr;
  while (library_->get_cq_event(channel_, &cq, &context) == 0) ++events_;
  // Acknowledging takes a lock: now and then is enough, and when the queue is destroyed.
  if (events_ >= 1024) library_->ack_cq_events(cq_, std::exchange(events_, 0));
}

bool RdmaRail::LookForTrouble() {
  const auto trouble = domain_->device()->Look(qp_->qp_num, port_.port);
  if (!trouble.fatal.empty()) Fail(trouble.fatal);
  return trouble.port_down;
}

// --- the end ------------------------------------------------------------------------------------

void RdmaRail::Fail(const std::string& reason) {
  if (failed()) return;
  reason_ = reason;
  failed_at_ = Clock::now();
  verbs::QpAttr attr{};
  attr.qp_state = verbs::kQpsErr;
  library_->modify_qp(qp_, &attr, verbs::kQpState);  // as good if it is there already
}

bool RdmaRail::Reads(const RdmaLoan& loan) const {
  return std::any_of(unacknowledged_.begin(), unacknowledged_.end(),
                     [&](const Sent& sent) { return sent.part.loan == &loan; });
}

void RdmaRail::ForEachUnacknowledged(const std::function<void(Part&)>& visit) {
  for (Sent& sent : unacknowledged_) visit(sent.part);
}

bool RdmaRail::overdue() const {
  return failed() && !drained() && Clock::now() - failed_at_ > kDrainTime;
}

StatusOr<std::vector<RdmaRail::Part>> RdmaRail::Unreceived(uint64_t count) {
  const uint64_t acknowledged = sent_ - unacknowledged_.size();
  if (count < acknowledged || count > sent_) {
    return InvalidArgument("it counts " + std::to_string(count) +
                           " notices of a rail that has sent " + std::to_string(sent_) + ", " +
                           std::to_string(acknowledged) + " of them acknowledged");
  }
  std::vector<Part> parts;
  for (size_t i = 0; i < unacknowledged_.size(); ++i) {
    Part part = unacknowledged_[i].part;
    if (acknowledged + i >= count) {
      if (part.source == nullptr) part.loan = nullptr;
      parts.push_back(part);
    } else if (part.source != nullptr) {
      released_.push_back(part.put);
    }
  }
  unacknowledged_.clear();
  unacknowledged_bytes_ = 0;
  return parts;
}

}  // namespace jaxcoll
