// Processes on several hosts, each with a reactor and a proxy of its own, all in one process.
//
// Over fake links one thread steps all reactors, and everything but the order of threads is drawn
// from a seed; over real links each reactor has its own thread.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "comm/reactor.h"
#include "gpu/proxy/proxy.h"
#include "support/device_world.h"
#include "support/fake_link.h"
#include "support/fake_verbs.h"
#include "support/socket_pair.h"
#include "transport/crypto.h"
#include "transport/rdma/rdma.h"

namespace jaxcoll::cuda {

// kFakeRdma: by the FakeVerbs that there is.
enum class Net { kFake, kShm, kTcp, kFakeRdma };

// Processes and what joins them. Outlives what is run in it.
class Hosts {
 public:
  Hosts(std::vector<int> host_of_process, Net net, uint64_t seed)
      : host_of_process_(std::move(host_of_process)),
        kind_(net),
        random_(seed),
        net_(random_, static_cast<int>(jaxcoll::Draw(random_, 0, 200))) {
    std::unordered_map<int64_t, int> devices;
    for (int p = 0; p < count(); ++p) devices[p] = p;
    for (int p = 0; p < count(); ++p) {
      Reactor::Seams seams;
      if (!real()) seams.now = [this] { return net_.now(); };
      seams.thread = real();
      if (real()) seams.timeout_s = 0.2;  // how long Stop waits for kernels; no call is made
      processes_.push_back(std::make_unique<Process>(p));
      processes_[p]->reactor = Reactor::Create(
          p, devices, [this, p](int peer) { Connect(p, peer); }, std::move(seams));
      processes_[p]->reactor->interprocess().Invite(&processes_[p]->proxy);
    }
  }
  ~Hosts() {
    for (const auto& process : processes_) {
      if (real() && process->reactor) process->reactor->Stop();
    }
  }

  // Over fake links, before they are made: whether that of the first process to the second takes
  // dma-bufs, and whether it refuses them nevertheless.
  std::function<bool(int, int)> takes_dmabuf, refuses_dmabuf;
  const FakeNet& net() const { return net_; }

  int count() const { return static_cast<int>(host_of_process_.size()); }
  int host(int process) const { return host_of_process_[process]; }
  HostProxy& proxy(int process) { return processes_[process]->proxy; }
  Reactor& reactor(int process) { return *processes_[process]->reactor; }

  // The faults over fake links; `now` on the thread that carries.
  int passes() const { return pass_; }
  void At(int pass, std::function<void()> happens) { events_.emplace(pass, std::move(happens)); }
  void Cut(int a, int b) {
    for (const auto& pipe : {PipeOf(a, b), PipeOf(b, a)}) pipe->broken = true;
  }
  // Everything on its way to `b` from `a` and back is lost, unnoticed.
  void Swallow(int a, int b) {
    for (const auto& pipe : {PipeOf(a, b), PipeOf(b, a)}) {
      pipe->puts.clear();
      pipe->told.clear();
      pipe->black_hole = true;
    }
  }
  // Bytes that have been sent, over fake links.
  size_t Carried() const {
    size_t bytes = 0;
    for (const auto& [ends, pipe] : pipes_) bytes += pipe->carried;
    return bytes;
  }
  void SetRunning(int process, bool runs) { processes_[process]->runs = runs; }

  // Polls everything once. Returns whether anything was done or is still in flight.
  bool Pass() {
    for (auto [next, end] = events_.equal_range(pass_); next != end; ++next) next->second();
    ++pass_;
    bool active = pass_ <= (events_.empty() ? 0 : events_.rbegin()->first);
    for (const auto& process : processes_) {
      if (process->runs && process->reactor) active |= process->reactor->Step();
    }
    for (const auto& [ends, pipe] : pipes_) {
      const Process& reader = *processes_[ends.second];
      if (pipe->reader_gone || !reader.runs || pipe->black_hole) continue;
      active |= !pipe->puts.empty() || !pipe->told.empty();
    }
    net_.Advance(std::chrono::microseconds(20));
    return active;
  }

  bool real() const { return kind_ != Net::kFake; }
  // For DeviceWorld::Options.
  std::function<void(StuckClock&, const std::atomic<int>&)> Carrier() {
    if (real()) return {};
    return [this](StuckClock& clock, const std::atomic<int>& running) {
      StuckClock::Looks looks;
      for (int idle = 0; running.load(std::memory_order_acquire) > 0;) {
        if (Pass()) {
          clock.Progress();
          idle = 0;
        } else {
          clock.NowNs(looks);
        }
        PauseAmongMany(idle++);
      }
    };
  }
  // Until the links that were asked for are there; those of other threads come by themselves.
  void Connect() {
    if (!real()) Settle();
  }
  // Until nothing moves any more; over fake links.
  void Settle() {
    while (Pass()) {
    }
  }
  void Kill(int process) { processes_[process]->reactor.reset(); }

 private:
  struct Process {
    explicit Process(int p) : proxy(p) {}
    HostProxy proxy;
    std::unique_ptr<Reactor> reactor;
    bool runs = true;
  };

  std::shared_ptr<FakePipe> PipeOf(int from, int to) {
    std::shared_ptr<FakePipe>& pipe = pipes_[{from, to}];
    if (pipe == nullptr) pipe = std::make_shared<FakePipe>();
    return pipe;
  }

  // Makes both ends at once.
  void Connect(int from, int to) {
    std::lock_guard lock(connecting_);
    if (!connected_.insert(std::minmax(from, to)).second) return;
    if (!real()) {
      const auto copying = static_cast<FakeNet::Copying>(jaxcoll::Draw(random_, 0, 2));
      for (const auto& [a, b] : {std::pair(from, to), std::pair(to, from)}) {
        auto link = std::make_unique<FakeLink>(net_, b, PipeOf(a, b), PipeOf(b, a), copying);
        link->takes_dmabuf = takes_dmabuf && takes_dmabuf(a, b);
        link->refuses_dmabuf = refuses_dmabuf && refuses_dmabuf(a, b);
        reactor(a).AddLink(b, std::move(link));
      }
      return;
    }
    if (kind_ == Net::kFakeRdma) {
      auto [client, server] = TcpPair();
      auto a = RdmaLink::Prepare(FakeVerbs::Current().Config(), kWindowBytes, "");
      ASSERT_TRUE(a.ok()) << a.status().message();
      auto b = RdmaLink::Prepare(FakeVerbs::Current().Config(), kWindowBytes, (*a)->Offer());
      ASSERT_TRUE(b.ok()) << b.status().message();
      ASSERT_TRUE((*a)->Join(to, client.release(), (*b)->Offer(), {}, "test").ok());
      ASSERT_TRUE((*b)->Join(from, server.release(), (*a)->Offer(), {}, "test").ok());
      reactor(from).AddLink(to, std::move(*a));
      reactor(to).AddLink(from, std::move(*b));
      return;
    }
    const bool shm = kind_ == Net::kShm;
    auto [a, b] = shm ? SocketPair(SOCK_SEQPACKET) : TcpPair();
    if (shm) {
      const Fd segment_a(*MakeShmSegment(kWindowBytes)), segment_b(*MakeShmSegment(kWindowBytes));
      Add(from, to, ShmLink(from, to, a.release(), segment_a.get(), segment_b.get()));
      Add(to, from, ShmLink(to, from, b.release(), segment_b.get(), segment_a.get()));
    } else {
      const std::string key(crypto::kSecretBytes, 'k');
      Add(from, to, MakeTcpLink(to, {a.release()}, kWindowBytes, {key, true, false}, "test"));
      Add(to, from, MakeTcpLink(from, {b.release()}, kWindowBytes, {key, false, false}, "test"));
    }
  }

  StatusOr<std::unique_ptr<Link>> ShmLink(int own, int peer, int socket, int own_segment,
                                          int peer_segment) {
    return MakeShmLink(peer, socket, dup(own_segment), dup(peer_segment), reactor(own).bell(),
                       dup(reactor(peer).bell()), "test");
  }
  void Add(int own, int peer, StatusOr<std::unique_ptr<Link>> link) {
    ASSERT_TRUE(link.ok()) << link.status().message();
    reactor(own).AddLink(peer, std::move(*link));
  }

  const std::vector<int> host_of_process_;
  const Net kind_;
  Random random_;
  FakeNet net_;
  std::vector<std::unique_ptr<Process>> processes_;
  std::mutex connecting_;
  std::set<std::pair<int, int>> connected_;                         // guarded by connecting_
  std::map<std::pair<int, int>, std::shared_ptr<FakePipe>> pipes_;  // from, to
  std::multimap<int, std::function<void()>> events_;
  int pass_ = 0;
};

}  // namespace jaxcoll::cuda
