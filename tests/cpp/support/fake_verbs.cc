#include "support/fake_verbs.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <optional>

#include "transport/fd.h"

namespace jaxcoll {
namespace {

FakeVerbs* the_fake = nullptr;

// Counts what was not read yet, as a completion channel and a device do.
Fd MakeEventFd() { return Fd(eventfd(0, EFD_SEMAPHORE | EFD_NONBLOCK | EFD_CLOEXEC)); }
void Raise(const Fd& fd) {
  const uint64_t one = 1;
  JAXCOLL_CHECK(write(fd.get(), &one, sizeof(one)) == sizeof(one), "eventfd");
}
bool Lower(const Fd& fd) {
  uint64_t one;
  return read(fd.get(), &one, sizeof(one)) == sizeof(one);
}

}  // namespace

struct FakeVerbs::FakeDevice {
  std::string name;
  bool up = true;
  std::deque<std::pair<verbs::EventType, uint32_t>> events;  // and the queue pair's number
  Fd event_fd = MakeEventFd();
  std::optional<std::pair<int, uint32_t>> fails;  // after this many requests, with this status
};

struct FakeVerbs::FakeContext : verbs::Context {
  FakeDevice* own;
};

struct FakeVerbs::FakeChannel : verbs::CompChannel {
  Fd event_fd = MakeEventFd();
  FakeCq* cq = nullptr;
};

struct FakeVerbs::FakeCq : verbs::Cq {
  struct Entry {
    verbs::Wc completion;
    FakeQp* qp;        // of a send: whose requests up to `retired` have left its queue
    uint64_t retired;  //
  };
  FakeChannel* channel;
  size_t capacity;
  bool armed = false;
  std::deque<Entry> entries;
  unsigned unacknowledged = 0;
};

struct FakeVerbs::Posted {
  verbs::SendWr wr;
  uint64_t address = 0, bytes = 0;
  uint32_t lkey = 0;
  std::vector<std::byte> inlined;
  bool executed = false;
};

struct FakeVerbs::FakeQp : verbs::Qp {
  FakeDevice* device;
  verbs::QpCap cap;
  verbs::QpAttr attr{};  // all that was set
  uint32_t state = 0;
  std::deque<uint64_t> receives;
  std::deque<Posted> sends;  // not reported yet
  uint64_t posted = 0;       // to send, ever
  uint64_t retired = 0;      // of them, those whose place is free again
  uint64_t reported = 0;     // of them, those that left `sends`
};

struct FakeVerbs::FakeMr : verbs::Mr {
  uint64_t begin;
  int access;
};

// --- carrying out -------------------------------------------------------------------------------

void FakeVerbs::Push(FakeCq& cq, const verbs::Wc& completion, FakeQp* qp, uint64_t retired) {
  JAXCOLL_CHECK(cq.entries.size() < cq.capacity, "a completion queue of %zu overruns", cq.capacity);
  cq.entries.push_back({completion, qp, retired});
  ++(qp != nullptr ? counts_.send_completions : counts_.receive_completions);
  if (!cq.armed) return;
  cq.armed = false;
  --armed_;
  cq.channel->cq = &cq;
  Raise(cq.channel->event_fd);
}

FakeVerbs::FakeMr* FakeVerbs::Find(uint32_t key, const verbs::Pd* pd, uint64_t address,
                                   uint64_t bytes, int access) {
  const auto it = mrs_.find(key);
  if (it == mrs_.end()) return nullptr;
  FakeMr& mr = *it->second;
  const bool inside =
      address >= mr.begin && bytes <= mr.length && address - mr.begin <= mr.length - bytes;
  return mr.pd == pd && inside && (mr.access & access) == access ? &mr : nullptr;
}

// A request that was carried out and not reported is reported as good if `status` is of a request
// behind it, and else as flushed, as if its acknowledgement had been lost.
void FakeVerbs::Break(FakeQp& qp, uint32_t status) {
  qp.state = verbs::kQpsErr;
  bool first = true;
  for (; !qp.sends.empty(); qp.sends.pop_front()) {
    const Posted& request = qp.sends.front();
    verbs::Wc completion{};
    completion.wr_id = request.wr.wr_id;
    completion.qp_num = qp.qp_num;
    ++qp.reported;
    if (request.executed && status != verbs::kWcWrFlushErr) {
      if ((request.wr.send_flags & verbs::kSendSignaled) == 0) continue;
    } else {
      completion.status = std::exchange(first, false) ? status : uint32_t{verbs::kWcWrFlushErr};
      completion.vendor_err = 77;
    }
    Push(*static_cast<FakeCq*>(qp.send_cq), completion, &qp, qp.reported);
  }
  for (; !qp.receives.empty(); qp.receives.pop_front()) {
    verbs::Wc completion{};
    completion.wr_id = qp.receives.front();
    completion.status = verbs::kWcWrFlushErr;
    completion.qp_num = qp.qp_num;
    Push(*static_cast<FakeCq*>(qp.recv_cq), completion, nullptr, 0);
  }
}

void FakeVerbs::Execute(FakeQp& qp, Posted& request) {
  if (qp.device->fails && qp.device->fails->first-- == 0) {
    const uint32_t status = qp.device->fails->second;
    qp.device->fails.reset();
    return Break(qp, status);
  }
  const auto it = qps_.find(qp.attr.dest_qp_num);
  FakeQp* const peer = it == qps_.end() ? nullptr : it->second;
  if (peer == nullptr || (peer->state != verbs::kQpsRtr && peer->state != verbs::kQpsRts) ||
      peer->attr.dest_qp_num != qp.qp_num || peer->attr.rq_psn != qp.attr.sq_psn) {
    return Break(qp, verbs::kWcRetryExcErr);
  }
  if (request.bytes > 0) {
    const std::byte* source = request.inlined.data();
    if (request.inlined.empty()) {
      if (Find(request.lkey, qp.pd, request.address, request.bytes, 0) == nullptr) {
        return Break(qp, verbs::kWcLocProtErr);
      }
      source = reinterpret_cast<const std::byte*>(request.address);
    }
    const auto& to = request.wr.wr.rdma;
    if (Find(to.rkey, peer->pd, to.remote_addr, request.bytes, verbs::kAccessRemoteWrite) ==
            nullptr ||
        (peer->attr.qp_access_flags & verbs::kAccessRemoteWrite) == 0) {
      peer->device->events.emplace_back(verbs::kEventQpAccessErr, peer->qp_num);
      Raise(peer->device->event_fd);
      Break(*peer, verbs::kWcWrFlushErr);
      return Break(qp, verbs::kWcRemAccessErr);
    }
    std::memcpy(reinterpret_cast<std::byte*>(to.remote_addr), source, request.bytes);
  }
  if (request.wr.opcode == verbs::kWrRdmaWriteWithImm) {
    if (peer->receives.empty()) return Break(qp, verbs::kWcRnrRetryExcErr);
    verbs::Wc completion{};
    completion.wr_id = peer->receives.front();
    completion.opcode = verbs::kWcRecvRdmaWithImm;
    completion.byte_len = static_cast<uint32_t>(request.bytes);
    completion.imm_data = request.wr.imm_data;
    completion.qp_num = peer->qp_num;
    peer->receives.pop_front();
    Push(*static_cast<FakeCq*>(peer->recv_cq), completion, nullptr, 0);
  }
  request.executed = true;
}

// Carries out or reports one request. False if there is nothing to do.
bool FakeVerbs::Step() {
  const auto stuck = [&](const FakeQp& qp) {
    const auto peer = qps_.find(qp.attr.dest_qp_num);
    return !qp.device->up || (peer != qps_.end() && !peer->second->device->up);
  };
  std::vector<FakeQp*> busy;
  for (const auto& [number, qp] : qps_) {
    if (!qp->sends.empty() && (qp->sends.front().executed || !stuck(*qp))) busy.push_back(qp);
  }
  if (busy.empty()) return false;
  FakeQp& qp = *busy[random_() % busy.size()];
  const auto next = std::find_if(qp.sends.begin(), qp.sends.end(),
                                 [](const Posted& request) { return !request.executed; });
  // Reports lag behind.
  if (next != qp.sends.end() && !stuck(qp) && (next == qp.sends.begin() || random_() % 3 != 0)) {
    Execute(qp, *next);
    return true;
  }
  const Posted& done = qp.sends.front();
  ++qp.reported;
  if ((done.wr.send_flags & verbs::kSendSignaled) != 0) {
    verbs::Wc completion{};
    completion.wr_id = done.wr.wr_id;
    completion.opcode = 1;
    completion.qp_num = qp.qp_num;
    Push(*static_cast<FakeCq*>(qp.send_cq), completion, &qp, qp.reported);
  }
  qp.sends.pop_front();
  return true;
}

void FakeVerbs::Drain() {
  while (Step()) {
  }
}

// --- the library --------------------------------------------------------------------------------

struct FakeVerbs::Functions {
  static std::unique_lock<std::mutex> Lock() { return std::unique_lock(the_fake->mutex_); }
  static FakeDevice* Of(verbs::Context* context) { return static_cast<FakeContext*>(context)->own; }

  static verbs::Device** GetDeviceList(int* count) {
    const auto lock = Lock();
    const auto& devices = the_fake->devices_;
    auto** const list = new verbs::Device*[devices.size() + 1]();
    for (size_t i = 0; i < devices.size(); ++i) {
      list[i] = reinterpret_cast<verbs::Device*>(devices[i].get());
    }
    *count = static_cast<int>(devices.size());
    return list;
  }
  static void FreeDeviceList(verbs::Device** list) { delete[] list; }
  static const char* GetDeviceName(verbs::Device* device) {
    return reinterpret_cast<FakeDevice*>(device)->name.c_str();
  }

  static verbs::Context* OpenDevice(verbs::Device* device) {
    auto* const context = new FakeContext{};
    context->device = device;
    context->own = reinterpret_cast<FakeDevice*>(device);
    context->async_fd = context->own->event_fd.get();
    context->ops.poll_cq = PollCq;
    context->ops.req_notify_cq = RequestNotice;
    context->ops.post_send = PostSend;
    context->ops.post_recv = PostReceive;
    return context;
  }
  static int CloseDevice(verbs::Context* context) {
    delete static_cast<FakeContext*>(context);
    return 0;
  }
  static int QueryPort(verbs::Context*, uint8_t port, verbs::PortAttr* attr) {
    if (port != 1) return errno = EINVAL;
    *attr = {};
    attr->state = verbs::kPortActive;
    attr->active_mtu = attr->max_mtu = 3;
    attr->link_layer = verbs::kLinkLayerEthernet;
    return 0;
  }

  static verbs::Pd* AllocPd(verbs::Context*) {
    const auto lock = Lock();
    ++the_fake->domains_;
    return reinterpret_cast<verbs::Pd*>(new int);
  }
  static int DeallocPd(verbs::Pd* pd) {
    const auto lock = Lock();
    for (const auto& [key, mr] : the_fake->mrs_) {
      if (mr->pd == pd) return EBUSY;
    }
    --the_fake->domains_;
    delete reinterpret_cast<int*>(pd);
    return 0;
  }
  static verbs::Mr* Register(verbs::Pd* pd, uint64_t begin, size_t length, int access) {
    FakeVerbs& fake = *the_fake;
    if (length > fake.registration_limit_ - fake.registered_bytes_) {
      errno = ENOMEM;
      return nullptr;
    }
    auto* const mr = new FakeMr{};
    mr->pd = pd;
    mr->length = length;
    mr->begin = begin;
    mr->access = access;
    mr->lkey = mr->rkey = fake.next_number_ += 1 + fake.random_() % 1000;
    fake.mrs_[mr->lkey] = mr;
    fake.registered_bytes_ += length;
    ++fake.counts_.registrations;
    return mr;
  }
  static verbs::Mr* RegisterMr(verbs::Pd* pd, void* address, size_t length, int access) {
    const auto lock = Lock();
    return Register(pd, reinterpret_cast<uint64_t>(address), length, access);
  }
  static verbs::Mr* RegisterDmabuf(verbs::Pd* pd, uint64_t offset, size_t length, uint64_t iova,
                                   int fd, int access) {
    const auto lock = Lock();
    if (fd < 0) {
      errno = EBADF;
      return nullptr;
    }
    the_fake->dmabufs_.push_back(offset);
    return Register(pd, iova, length, access);
  }
  static int DeregisterMr(verbs::Mr* mr) {
    const auto lock = Lock();
    the_fake->registered_bytes_ -= mr->length;
    the_fake->mrs_.erase(mr->lkey);
    delete static_cast<FakeMr*>(mr);
    return 0;
  }

  static verbs::CompChannel* CreateChannel(verbs::Context* context) {
    auto* const channel = new FakeChannel;
    channel->context = context;
    channel->fd = channel->event_fd.get();
    return channel;
  }
  static int DestroyChannel(verbs::CompChannel* channel) {
    delete static_cast<FakeChannel*>(channel);
    return 0;
  }
  static verbs::Cq* CreateCq(verbs::Context* context, int entries, void*,
                             verbs::CompChannel* channel, int) {
    auto* const cq = new FakeCq;
    cq->context = context;
    cq->channel = static_cast<FakeChannel*>(channel);
    cq->capacity = static_cast<size_t>(entries);
    return cq;
  }
  static int DestroyCq(verbs::Cq* cq) {
    const auto lock = Lock();
    auto* const own = static_cast<FakeCq*>(cq);
    // libibverbs would wait forever.
    JAXCOLL_CHECK(own->unacknowledged == 0, "%u events not acknowledged", own->unacknowledged);
    if (own->armed) --the_fake->armed_;
    delete own;
    return 0;
  }
  static int GetCqEvent(verbs::CompChannel* channel, verbs::Cq** cq, void** context) {
    const auto lock = Lock();
    auto* const own = static_cast<FakeChannel*>(channel);
    if (!Lower(own->event_fd)) return -1;
    ++own->cq->unacknowledged;
    *cq = own->cq;
    *context = nullptr;
    return 0;
  }
  static void AckCqEvents(verbs::Cq* cq, unsigned count) {
    const auto lock = Lock();
    static_cast<FakeCq*>(cq)->unacknowledged -= count;
  }
  static int RequestNotice(verbs::Cq* cq, int) {
    const auto lock = Lock();
    auto* const own = static_cast<FakeCq*>(cq);
    if (!std::exchange(own->armed, true)) ++the_fake->armed_;
    the_fake->Drain();
    return 0;
  }
  static int PollCq(verbs::Cq* cq, int count, verbs::Wc* completions) {
    const auto lock = Lock();
    for (uint64_t steps = the_fake->random_() % 12; steps > 0 && the_fake->Step(); --steps) {
    }
    auto& entries = static_cast<FakeCq*>(cq)->entries;
    int taken = 0;
    for (; taken < count && !entries.empty(); entries.pop_front()) {
      completions[taken++] = entries.front().completion;
      if (FakeQp* const qp = entries.front().qp) qp->retired = entries.front().retired;
    }
    return taken;
  }

  static verbs::Qp* CreateQp(verbs::Pd* pd, verbs::QpInitAttr* attr) {
    const auto lock = Lock();
    if (attr->cap.max_inline_data > the_fake->inline_limit_) {
      errno = EINVAL;
      return nullptr;
    }
    auto* const qp = new FakeQp{};
    qp->context = attr->send_cq->context;
    qp->device = Of(qp->context);
    qp->pd = pd;
    qp->send_cq = attr->send_cq;
    qp->recv_cq = attr->recv_cq;
    qp->cap = attr->cap;
    qp->qp_num = the_fake->next_number_ += 1 + the_fake->random_() % 1000;
    the_fake->qps_[qp->qp_num] = qp;
    return qp;
  }
  static int ModifyQp(verbs::Qp* base, verbs::QpAttr* attr, int mask) {
    const auto lock = Lock();
    auto& qp = *static_cast<FakeQp*>(base);
    // The attributes that the InfiniBand specification asks for.
    constexpr int kInit = verbs::kQpPkeyIndex | verbs::kQpPort | verbs::kQpAccessFlags;
    constexpr int kReceive = verbs::kQpAv | verbs::kQpPathMtu | verbs::kQpDestQpn |
                             verbs::kQpRqPsn | verbs::kQpMaxDestRdAtomic | verbs::kQpMinRnrTimer;
    constexpr int kSend = verbs::kQpTimeout | verbs::kQpRetryCnt | verbs::kQpRnrRetry |
                          verbs::kQpSqPsn | verbs::kQpMaxQpRdAtomic;
    const int needed = attr->qp_state == verbs::kQpsInit  ? kInit
                       : attr->qp_state == verbs::kQpsRtr ? kReceive
                       : attr->qp_state == verbs::kQpsRts ? kSend
                                                          : 0;
    const bool next = attr->qp_state == verbs::kQpsErr || attr->qp_state == qp.state + 1;
    if (!next || mask != (needed | verbs::kQpState)) return EINVAL;
    if (attr->qp_state == verbs::kQpsErr) {
      if (qp.state != verbs::kQpsErr) the_fake->Break(qp, verbs::kWcWrFlushErr);
      return 0;
    }
    qp.state = attr->qp_state;
    if (qp.state == verbs::kQpsInit) {
      qp.attr.qp_access_flags = attr->qp_access_flags;
      qp.attr.port_num = attr->port_num;
    } else if (qp.state == verbs::kQpsRtr) {
      qp.attr.dest_qp_num = attr->dest_qp_num;
      qp.attr.rq_psn = attr->rq_psn;
      qp.attr.path_mtu = attr->path_mtu;
      qp.attr.ah_attr = attr->ah_attr;
      qp.attr.min_rnr_timer = attr->min_rnr_timer;
    } else {
      qp.attr.sq_psn = attr->sq_psn;
      qp.attr.timeout = attr->timeout;
      qp.attr.retry_cnt = attr->retry_cnt;
      qp.attr.rnr_retry = attr->rnr_retry;
      the_fake->last_connected_ = qp.attr;
    }
    return 0;
  }
  static int DestroyQp(verbs::Qp* base) {
    const auto lock = Lock();
    auto* const qp = static_cast<FakeQp*>(base);
    the_fake->qps_.erase(qp->qp_num);
    auto& entries = static_cast<FakeCq*>(qp->send_cq)->entries;
    std::erase_if(entries, [&](const auto& entry) { return entry.qp == qp; });
    delete qp;
    return 0;
  }

  static int PostSend(verbs::Qp* base, verbs::SendWr* wr, verbs::SendWr** bad) {
    const auto lock = Lock();
    FakeVerbs& fake = *the_fake;
    auto& qp = *static_cast<FakeQp*>(base);
    ++fake.counts_.doorbells;
    for (; wr != nullptr; wr = wr->next) {
      *bad = wr;
      if (qp.state != verbs::kQpsRts && qp.state != verbs::kQpsErr) return EINVAL;
      if (qp.posted - qp.retired >= qp.cap.max_send_wr) return ENOMEM;
      Posted request{*wr, 0, 0, 0, {}, false};
      if (wr->num_sge > 0) {
        request.address = wr->sg_list[0].addr;
        request.bytes = wr->sg_list[0].length;
        request.lkey = wr->sg_list[0].lkey;
      }
      if ((wr->send_flags & verbs::kSendInline) != 0) {
        if (request.bytes > qp.cap.max_inline_data) return EINVAL;
        const auto* const from = reinterpret_cast<const std::byte*>(request.address);
        request.inlined.assign(from, from + request.bytes);
        ++fake.counts_.inlined;
      }
      qp.sends.push_back(std::move(request));
      ++qp.posted;
      ++fake.counts_.requests;
    }
    if (qp.state == verbs::kQpsErr) fake.Break(qp, verbs::kWcWrFlushErr);
    if (fake.armed_ > 0) fake.Drain();
    return 0;
  }
  static int PostReceive(verbs::Qp* base, verbs::RecvWr* wr, verbs::RecvWr** bad) {
    const auto lock = Lock();
    auto& qp = *static_cast<FakeQp*>(base);
    for (; wr != nullptr; wr = wr->next) {
      *bad = wr;
      if (qp.state == 0) return EINVAL;
      if (qp.receives.size() >= qp.cap.max_recv_wr) return ENOMEM;
      qp.receives.push_back(wr->wr_id);
    }
    if (qp.state == verbs::kQpsErr) the_fake->Break(qp, verbs::kWcWrFlushErr);
    return 0;
  }

  static int GetAsyncEvent(verbs::Context* context, verbs::AsyncEvent* event) {
    const auto lock = Lock();
    FakeDevice& device = *Of(context);
    if (!Lower(device.event_fd)) return -1;
    const auto [type, number] = device.events.front();
    device.events.pop_front();
    *event = {};
    event->event_type = type;
    if (type == verbs::kEventPortErr || type == verbs::kEventPortActive) {
      event->element.port_num = 1;
    } else if (type != verbs::kEventDeviceFatal) {
      // libibverbs keeps a queue pair until its events are acknowledged.
      static thread_local verbs::Qp gone;
      gone.qp_num = number;
      event->element.qp = &gone;
    }
    return 0;
  }
};

// --- a test's side ------------------------------------------------------------------------------

FakeVerbs::FakeVerbs(uint64_t seed, int device_count) : random_(seed) {
  std::string name = (std::filesystem::temp_directory_path() / "jaxcoll_fake_XXXXXX").string();
  folder_ = ::mkdtemp(name.data());
  const auto write = [](const std::filesystem::path& path, const std::string& text) {
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text << '\n';
  };
  for (int i = 0; i < device_count; ++i) {
    auto device = std::make_unique<FakeDevice>();
    device->name = "fake" + std::to_string(i);
    const std::filesystem::path port = folder_ / device->name / "ports" / "1";
    write(port / "state", "4: ACTIVE");
    write(port / "link_layer", "Ethernet");
    write(port / "gids" / "0", "0000:0000:0000:0000:0000:ffff:0a4d:000" + std::to_string(i));
    write(port / "gid_attrs" / "types" / "0", "RoCE v2");
    devices_.push_back(std::move(device));
  }
  using F = Functions;
  library_.get_device_list = F::GetDeviceList;
  library_.free_device_list = F::FreeDeviceList;
  library_.get_device_name = F::GetDeviceName;
  library_.open_device = F::OpenDevice;
  library_.close_device = F::CloseDevice;
  library_.query_port = F::QueryPort;
  library_.alloc_pd = F::AllocPd;
  library_.dealloc_pd = F::DeallocPd;
  library_.reg_mr = F::RegisterMr;
  library_.dereg_mr = F::DeregisterMr;
  library_.create_comp_channel = F::CreateChannel;
  library_.destroy_comp_channel = F::DestroyChannel;
  library_.create_cq = F::CreateCq;
  library_.destroy_cq = F::DestroyCq;
  library_.get_cq_event = F::GetCqEvent;
  library_.ack_cq_events = F::AckCqEvents;
  library_.create_qp = F::CreateQp;
  library_.modify_qp = F::ModifyQp;
  library_.destroy_qp = F::DestroyQp;
  library_.get_async_event = F::GetAsyncEvent;
  library_.ack_async_event = [](verbs::AsyncEvent*) {};
  library_.fork_init = [] { return 0; };
  library_.wc_status_str = [](uint32_t) { return "fake failure"; };
  library_.event_type_str = [](uint32_t) { return "fake event"; };
  library_.reg_dmabuf_mr = F::RegisterDmabuf;
  JAXCOLL_CHECK(the_fake == nullptr, "two fake libraries at a time");
  the_fake = this;
  verbs::UseForTests(&library_);
}

FakeVerbs::~FakeVerbs() {
  verbs::UseForTests(nullptr);
  JAXCOLL_CHECK(qps_.empty() && mrs_.empty() && domains_ == 0, "%zu queue pairs, %zu regions left",
                qps_.size(), mrs_.size());
  the_fake = nullptr;
  std::filesystem::remove_all(folder_);
}

FakeVerbs& FakeVerbs::Current() { return *the_fake; }

RdmaConfig FakeVerbs::Config() const {
  RdmaConfig config;
  config.deadline_s = 20;
  config.sysfs = folder_;
  return config;
}

FakeVerbs::Counts FakeVerbs::counts() {
  std::lock_guard lock(mutex_);
  return counts_;
}

size_t FakeVerbs::regions() {
  std::lock_guard lock(mutex_);
  return mrs_.size();
}

size_t FakeVerbs::regions_with_access(int access) {
  std::lock_guard lock(mutex_);
  return std::count_if(mrs_.begin(), mrs_.end(),
                       [&](const auto& mr) { return mr.second->access == access; });
}

size_t FakeVerbs::regions_in(std::span<const std::byte> memory) {
  std::lock_guard lock(mutex_);
  const auto begin = reinterpret_cast<uint64_t>(memory.data());
  return std::count_if(mrs_.begin(), mrs_.end(), [&](const auto& mr) {
    return mr.second->begin < begin + memory.size() && begin < mr.second->begin + mr.second->length;
  });
}

verbs::QpAttr FakeVerbs::last_connected() {
  std::lock_guard lock(mutex_);
  return last_connected_;
}

std::vector<uint64_t> FakeVerbs::dmabufs() {
  std::lock_guard lock(mutex_);
  return dmabufs_;
}

void FakeVerbs::FailRequest(int device, int n, uint32_t status) {
  std::lock_guard lock(mutex_);
  devices_.at(device)->fails = {n, status};
}

void FakeVerbs::SetPort(int device, bool up, bool told) {
  {
    std::lock_guard lock(mutex_);
    devices_.at(device)->up = up;
  }
  if (told) RaiseEvent(device, up ? verbs::kEventPortActive : verbs::kEventPortErr);
}

void FakeVerbs::RaiseEvent(int device, verbs::EventType event) {
  std::lock_guard lock(mutex_);
  uint32_t number = 0;
  for (const auto& [qp_num, qp] : qps_) {
    if (qp->device == devices_.at(device).get()) number = qp_num;
  }
  devices_.at(device)->events.emplace_back(event, number);
  Raise(devices_.at(device)->event_fd);
}

void FakeVerbs::LimitRegistration(size_t bytes) {
  std::lock_guard lock(mutex_);
  registration_limit_ = registered_bytes_ + bytes;
}

void FakeVerbs::LimitInline(uint32_t bytes) {
  std::lock_guard lock(mutex_);
  inline_limit_ = bytes;
}

void FakeVerbs::WithoutDmabuf() { library_.reg_dmabuf_mr = nullptr; }

}  // namespace jaxcoll
