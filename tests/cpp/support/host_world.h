// Simulated GPUs (device_world.h) whose ranks live in several processes on several hosts.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "support/device_case.h"
#include "support/hosts.h"

namespace jaxcoll::cuda {

// A communicator with one region: the calls of one instruction, launched one after the other and
// then all over again.
class HostedWorld {
 public:
  struct Layout {
    std::vector<int> process_of_rank;
    uint64_t id = 1;  // of the group and its region
    RegionSize region = kRegion;
    uint32_t epoch = 0;  // launches that have ended
    bool lends = false;  // device memory to the links that take it
  };

  HostedWorld(Hosts& hosts, Layout layout, const std::vector<std::unique_ptr<Case>>& cases)
      : hosts_(hosts),
        layout_(std::move(layout)),
        world_(ranks(), layout_.region),
        aborts_(hosts.count()),
        doorbells_(ranks()),
        outboxes_(hosts.count()) {
    std::vector<TableCall> calls;
    for (const auto& one : cases) {
      calls.push_back(one->launch.calls[0]);
      launches_.push_back(&one->launch);
    }
    std::vector<int> host_of_rank;
    for (const int process : layout_.process_of_rank) host_of_rank.push_back(hosts.host(process));
    auto routes = HostRoutes::Make(cases[0]->launch.tables, AllRanks(ranks()), std::move(calls),
                                   host_of_rank);
    EXPECT_TRUE(routes.ok()) << routes.status().message();
    routes_ = std::make_shared<const HostRoutes>(std::move(*routes));
    for (int rank = 0; rank < ranks(); ++rank) {
      inboxes_.push_back(std::make_unique<DeviceMemory>(layout_.region.bytes));
      doorbells_[rank] = layout_.epoch;
      world_.header(rank).epoch = layout_.epoch;
      for (unsigned char* region : {world_.addresses()[rank], inboxes_[rank]->data()}) Age(region);
    }
    HostProxy::HostGroupSpec group;
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
    }
    slots_.resize(ranks());
    for (int p = 0; p < hosts.count(); ++p) {
      if (!Takes(p)) continue;
      if (layout_.lends) Lend(p);
      OpenRegion(p, routes_);
    }
  }
  ~HostedWorld() {
    for (int p = 0; p < hosts_.count(); ++p) hosts_.proxy(p).CloseGroup(layout_.id);
  }
  HostedWorld(const HostedWorld&) = delete;
  HostedWorld& operator=(const HostedWorld&) = delete;

  int ranks() const { return static_cast<int>(layout_.process_of_rank.size()); }
  DeviceWorld& world() { return world_; }
  const HostRoutes& routes() const { return *routes_; }
  static std::string NameOf(int rank) { return "rank " + std::to_string(rank); }
  // Why process `p` says that the group has failed; empty if it has not.
  std::string Cause(int p) { return hosts_.proxy(p).Cause(layout_.id).value_or(""); }

  bool HasBegun(int rank) {
    return std::atomic_ref<uint64_t>(doorbells_[rank]).load(std::memory_order_acquire) !=
           layout_.epoch;
  }

  // `rounds` times all cases.
  std::vector<bool> Run(DeviceWorld::Options options, int rounds = 1) {
    std::vector<Launches*> launches;
    for (int round = 0; round < rounds; ++round) {
      launches.insert(launches.end(), launches_.begin(), launches_.end());
    }
    options.carry = hosts_.Carrier();
    // Nobody can tell whether bytes are on their way over real links.
    if (!options.carry) options.deadline_ns = ~uint64_t{0} / 2;
    options.bind = [this](int rank, TableCall& call) { Bind(rank, call); };
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

  // Memory for all that the ranks of a process send to processes whose links take it.
  void Lend(int p) {
    hosts_.Connect();
    std::set<int> peers;
    for (int rank = 0; rank < ranks(); ++rank) {
      if (Remote(p, rank)) peers.insert(layout_.process_of_rank[rank]);
    }
    const std::set<int> takers = hosts_.proxy(p).TakersOf(layout_.id, peers, 60);
    const size_t bytes = layout_.region.bytes;
    for (int rank = 0; rank < ranks(); ++rank) {
      if (layout_.process_of_rank[rank] != p) continue;
      slots_[rank].assign(ranks(), nullptr);
      device_.push_back(std::make_unique<DeviceMemory>(bytes * ranks()));
      const Fd dmabuf(memfd_create("device", MFD_CLOEXEC));
      const std::span memory(device_.back()->data(), device_.back()->bytes());
      for (const int peer : takers) {
        const Status lent =
            hosts_.proxy(p).Lend(layout_.id, peer, dmabuf.get(), std::as_bytes(memory));
        for (int to = 0; to < ranks() && lent.ok(); ++to) {
          if (layout_.process_of_rank[to] == peer) slots_[rank][to] = memory.data() + bytes * to;
        }
      }
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
    region.slots = slots_;
    hosts_.proxy(p).OpenRegion(std::move(region));
  }

  void Bind(int rank, TableCall& call) {
    const int process = layout_.process_of_rank[rank];
    std::vector<unsigned char*> to, from, slots;
    for (int peer = 0; peer < ranks(); ++peer) {
      const bool remote = Remote(process, peer);
      to.push_back(remote ? outboxes_[process][peer]->data() : world_.addresses()[peer]);
      from.push_back(remote ? inboxes_[rank]->data() : world_.addresses()[rank]);
      const bool lent = !slots_[rank].empty() && slots_[rank][peer] != nullptr;
      slots.push_back(lent ? slots_[rank][peer] : to.back());
    }
    call.regions = addresses_.emplace_back(std::move(to)).data();
    call.inboxes = addresses_.emplace_back(std::move(from)).data();
    call.slots = addresses_.emplace_back(std::move(slots)).data();
    call.doorbell = &doorbells_[rank];
    call.abort = &aborts_[process];
  }

  Hosts& hosts_;
  const Layout layout_;
  DeviceWorld world_;
  std::vector<uint32_t> aborts_;                                      // by process
  std::vector<uint64_t> doorbells_;                                   // by rank
  std::vector<std::unique_ptr<DeviceMemory>> inboxes_;                // by rank
  std::vector<std::vector<std::unique_ptr<DeviceMemory>>> outboxes_;  // by process and rank
  std::vector<std::unique_ptr<DeviceMemory>> device_;                 // that is lent
  std::vector<std::vector<unsigned char*>> slots_;                    // in it; by rank and peer
  std::deque<std::vector<unsigned char*>> addresses_;                 // of calls
  std::shared_ptr<const HostRoutes> routes_;
  std::vector<Launches*> launches_;
};

}  // namespace jaxcoll::cuda
