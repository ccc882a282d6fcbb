// Hosts made of threads: simulated GPUs (device_world.h) whose ranks live in several processes on
// several hosts, each process with a reactor and a proxy of its own, all in one process.
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
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "comm/reactor.h"
#include "cuda/host_proxy.h"
#include "device_case.h"
#include "fake_link.h"
#include "socket_pair.h"

namespace jaxcoll::cuda {

enum class Net { kFake, kShm, kTcp };

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
      processes_[p]->reactor->Invite(&processes_[p]->proxy);
    }
  }
  ~Hosts() {
    for (const auto& process : processes_) {
      if (real() && process->reactor) process->reactor->Stop();
    }
  }

  int count() const { return static_cast<int>(host_of_process_.size()); }
  int host(int process) const { return host_of_process_[process]; }
  HostProxy& proxy(int process) { return processes_[process]->proxy; }
  Reactor& reactor(int process) { return *processes_[process]->reactor; }

  // What goes wrong, over fake links; `now` on the thread that carries.
  void At(int pass, std::function<void()> happens) { events_.emplace(pass, std::move(happens)); }
  void Cut(int a, int b) {
    for (const auto& pipe : {PipeOf(a, b), PipeOf(b, a)}) pipe->broken = true;
  }
  // Everything on its way to `b` from `a` and back is lost, and nobody is told.
  void Swallow(int a, int b) {
    for (const auto& pipe : {PipeOf(a, b), PipeOf(b, a)}) {
      pipe->puts.clear();
      pipe->told.clear();
      pipe->black_hole = true;
    }
  }
  void SetRunning(int process, bool runs) { processes_[process]->runs = runs; }

  // One look at everything. Whether anything was done, or is still under way.
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

  // For World::Options.
  std::function<void(StuckClock&, const std::atomic<int>&)> Carrier() {
    if (real()) return {};
    return [this](StuckClock& clock, const std::atomic<int>& running) {
      StuckClock::Looks looks;
      while (running.load(std::memory_order_acquire) > 0) {
        if (Pass()) {
          clock.Progress();
        } else {
          clock.NowNs(looks);
        }
        std::this_thread::yield();
      }
    };
  }
  // Until nothing moves any more; over fake links.
  void Settle() {
    while (Pass()) {
    }
  }
  void Kill(int process) { processes_[process]->reactor.reset(); }

 private:
  bool real() const { return kind_ != Net::kFake; }
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
        reactor(a).AddLink(
            b, std::make_unique<FakeLink>(net_, b, PipeOf(a, b), PipeOf(b, a), copying));
      }
      return;
    }
    const bool shm = kind_ == Net::kShm;
    auto [a, b] = shm ? SocketPair(SOCK_SEQPACKET) : TcpPair();
    if (shm) {
      const Fd segment_a(*MakeShmSegment(kWindowBytes)), segment_b(*MakeShmSegment(kWindowBytes));
      Add(from, to, ShmLink(from, to, a.release(), segment_a.get(), segment_b.get()));
      Add(to, from, ShmLink(to, from, b.release(), segment_b.get(), segment_a.get()));
    } else {
      Add(from, to, MakeTcpLink(to, {a.release()}, kWindowBytes, "test"));
      Add(to, from, MakeTcpLink(from, {b.release()}, kWindowBytes, "test"));
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

// A communicator with one region: the calls of one instruction, launched one after the other and
// then all over again.
class HostedWorld {
 public:
  struct Layout {
    std::vector<int> process_of_rank;
    uint64_t id = 1;  // of the group and its region
    RegionSize region = kRegion;
    uint32_t epoch = 0;  // launches that have ended
  };

  HostedWorld(Hosts& hosts, Layout layout, const std::vector<std::unique_ptr<Case>>& cases)
      : hosts_(hosts),
        layout_(std::move(layout)),
        world_(ranks(), layout_.region),
        aborts_(hosts.count()),
        doorbells_(ranks()),
        outboxes_(hosts.count()) {
    std::vector<ProgramCall> calls;
    for (const auto& one : cases) {
      calls.push_back(one->launch.calls[0]);
      launches_.push_back(&one->launch);
    }
    std::vector<int> host_of_rank;
    for (const int process : layout_.process_of_rank) host_of_rank.push_back(hosts.host(process));
    auto routes = HostRoutes::Make(cases[0]->launch.programs, std::move(calls), host_of_rank);
    EXPECT_TRUE(routes.ok()) << routes.status().message();
    routes_ = std::make_shared<const HostRoutes>(std::move(*routes));
    for (int rank = 0; rank < ranks(); ++rank) {
      inboxes_.push_back(std::make_unique<DeviceMemory>(layout_.region.bytes));
      doorbells_[rank] = layout_.epoch;
      world_.header(rank).epoch = layout_.epoch;
      for (unsigned char* region : {world_.addresses()[rank], inboxes_[rank]->data()}) Age(region);
    }
    HostProxy::GroupSpec group;
    group.id = layout_.id;
    group.process_of_rank = layout_.process_of_rank;
    group.host_of_rank = std::move(host_of_rank);
    for (int rank = 0; rank < ranks(); ++rank) group.names.push_back(NameOf(rank));
    for (int p = 0; p < hosts.count(); ++p) {
      outboxes_[p].resize(ranks());
      if (!Takes(p)) continue;
      for (int rank = 0; rank < ranks(); ++rank) {
        if (Remote(p, rank)) {
          outboxes_[p][rank] = std::make_unique<DeviceMemory>(layout_.region.bytes);
          Age(outboxes_[p][rank]->data());
        }
      }
      group.abort = &aborts_[p];
      hosts.proxy(p).OpenGroup(group);
      OpenRegion(p, routes_);
    }
  }
  ~HostedWorld() {
    for (int p = 0; p < hosts_.count(); ++p) hosts_.proxy(p).CloseGroup(layout_.id);
  }
  HostedWorld(const HostedWorld&) = delete;
  HostedWorld& operator=(const HostedWorld&) = delete;

  int ranks() const { return static_cast<int>(layout_.process_of_rank.size()); }
  World& world() { return world_; }
  const HostRoutes& routes() const { return *routes_; }
  static std::string NameOf(int rank) { return "rank " + std::to_string(rank); }
  // Why process `p` says that the group has failed; empty if it has not.
  std::string Cause(int p) { return hosts_.proxy(p).Cause(layout_.id).value_or(""); }

  bool HasBegun(int rank) {
    return std::atomic_ref<uint64_t>(doorbells_[rank]).load(std::memory_order_acquire) !=
           layout_.epoch;
  }

  // `rounds` times all cases.
  std::vector<bool> Run(World::Options options, int rounds = 1) {
    std::vector<Launches*> launches;
    for (int round = 0; round < rounds; ++round) {
      launches.insert(launches.end(), launches_.begin(), launches_.end());
    }
    options.carry = hosts_.Carrier();
    // Nobody can tell whether bytes are on their way over real links.
    if (!options.carry) options.deadline_ns = ~uint64_t{0} / 2;
    options.bind = [this](int rank, ProgramCall& call) { Bind(rank, call); };
    return world_.Run(launches, options);
  }

 private:
  bool Takes(int process) const {
    const std::vector<int>& all = layout_.process_of_rank;
    return std::find(all.begin(), all.end(), process) != all.end();
  }
  bool Remote(int process, int rank) const {
    return hosts_.host(layout_.process_of_rank[rank]) != hosts_.host(process);
  }

  // As if all flags had been raised in the launches that have ended.
  void Age(unsigned char* region) const {
    const uint64_t tag = TagOf(layout_.epoch, 0);
    const int64_t end = routes_->calls()[0].slot_offset;
    for (size_t at = HostRoutes::DoneAt(0); at + sizeof(Flag) <= static_cast<size_t>(end);
         at += sizeof(Flag)) {
      std::memcpy(region + at, &tag, sizeof(tag));
    }
  }

  void OpenRegion(int p, std::shared_ptr<const HostRoutes> routes) {
    HostProxy::RegionSpec region;
    region.group = region.key = layout_.id;
    region.description = "the call";
    region.routes = std::move(routes);
    region.epoch = layout_.epoch;
    for (int rank = 0; rank < ranks(); ++rank) {
      const bool local = layout_.process_of_rank[rank] == p;
      region.doorbells.push_back(local ? &doorbells_[rank] : nullptr);
      region.memory.push_back(local             ? inboxes_[rank]->data()
                              : Remote(p, rank) ? outboxes_[p][rank]->data()
                                                : nullptr);
    }
    hosts_.proxy(p).OpenRegion(std::move(region));
  }

  void Bind(int rank, ProgramCall& call) {
    const int process = layout_.process_of_rank[rank];
    std::vector<unsigned char*> to, from;
    for (int peer = 0; peer < ranks(); ++peer) {
      const bool remote = Remote(process, peer);
      to.push_back(remote ? outboxes_[process][peer]->data() : world_.addresses()[peer]);
      from.push_back(remote ? inboxes_[rank]->data() : world_.addresses()[rank]);
    }
    call.regions = addresses_.emplace_back(std::move(to)).data();
    call.inboxes = addresses_.emplace_back(std::move(from)).data();
    call.doorbell = &doorbells_[rank];
    call.abort = &aborts_[process];
  }

  Hosts& hosts_;
  const Layout layout_;
  World world_;
  std::vector<uint32_t> aborts_;                                      // by process
  std::vector<uint64_t> doorbells_;                                   // by rank
  std::vector<std::unique_ptr<DeviceMemory>> inboxes_;                // by rank
  std::vector<std::vector<std::unique_ptr<DeviceMemory>>> outboxes_;  // by process and rank
  std::deque<std::vector<unsigned char*>> addresses_;                 // of calls
  std::shared_ptr<const HostRoutes> routes_;
  std::vector<Launches*> launches_;
};

}  // namespace jaxcoll::cuda
