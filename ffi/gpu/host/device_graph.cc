#include "gpu/host/device_graph.h"

#include <algorithm>
#include <set>
#include <string>
#include <tuple>
#include <utility>

#include "gpu/abi/device_table.h"

namespace jaxcoll::cuda {
namespace {

class DeviceGraphBuilder {
 public:
  DeviceGraphBuilder(const World& world, int32_t max_workers)
      : world_(world), op_lists_(world.op_lists()), max_workers_(std::max(max_workers, 1)) {}

  StatusOr<DeviceGraph> Run() {
    if (Status s = CheckLimits(); !s.ok()) return s;
    ListMessages();
    AssignWorkers();
    if (Status s = Order(); !s.ok()) return s;
    return std::move(graph_);
  }

 private:
  int32_t WorkerOf(const Op& op) const { return graph_.worker_of_channel.at(op.channel); }

  Status CheckLimits() const {
    if (op_lists_.empty() || op_lists_.size() > kMaxTableRanks) {
      return InvalidArgument("an interpreter table is for 1 to " + std::to_string(kMaxTableRanks) +
                             " ranks, not for " + std::to_string(op_lists_.size()));
    }
    if (!world_.complete())
      return InvalidArgument("an interpreter table is made of all ranks' ops");
    for (const OpList& op_list : op_lists_) {
      for (size_t i = 0; i < op_list.ops.size(); ++i) {
        const size_t sources = op_list.ops[i].sources.size();
        if (sources <= kMaxSources) continue;
        return InvalidArgument(Where(op_list.rank, i) + ": a reduction of " +
                               std::to_string(sources) + " operands; at most " +
                               std::to_string(kMaxSources));
      }
    }
    return {};
  }

  void ListMessages() {
    graph_.message_of.resize(op_lists_.size());
    for (const OpList& op_list : op_lists_) {
      graph_.message_of[op_list.rank].assign(op_list.ops.size(), -1);
    }
    for (const OpList& op_list : op_lists_) {
      for (size_t i = 0; i < op_list.ops.size(); ++i) {
        const Op& op = op_list.ops[i];
        if (!IsReceive(op)) continue;
        const int32_t sender = world_.mate(world_.Id(op_list.rank, i)) - world_.Id(op.peer, 0);
        const auto message = static_cast<int32_t>(graph_.messages.size());
        graph_.message_of[op_list.rank][i] = graph_.message_of[op.peer][sender] = message;
        graph_.messages.push_back({.source = op.peer,
                                   .destination = op_list.rank,
                                   .sender = sender,
                                   .receiver = static_cast<int32_t>(i),
                                   .chunk_count = CountChunks(op.destination)});
      }
    }
  }

  // The same on all ranks, so that the two sides of a message are the same worker.
  void AssignWorkers() {
    std::set<int32_t> channels;
    for (const OpList& op_list : op_lists_) {
      for (const Op& op : op_list.ops) channels.insert(op.channel);
    }
    graph_.workers = std::clamp(static_cast<int32_t>(channels.size()), 1, max_workers_);
    int32_t next = 0;
    for (const int32_t channel : channels)
      graph_.worker_of_channel[channel] = next++ % graph_.workers;
  }

  // Sorted by level, no op comes before one that it waits for, on any rank; so workers that run
  // their ops in this order cannot wait for each other in a circle. Within a level what waits for
  // nobody comes first.
  Status Order() {
    const StatusOr<std::vector<int32_t>> levels = Levels(world_, Sending::kBuffered);
    if (!levels.ok()) return levels.status();
    const std::vector<int32_t>& level = *levels;
    graph_.order.assign(op_lists_.size(), std::vector<std::vector<int32_t>>(graph_.workers));
    graph_.position_in_order.resize(op_lists_.size());
    for (const OpList& op_list : op_lists_) {
      const int32_t first = world_.Id(op_list.rank, 0);
      std::vector<std::vector<int32_t>>& order = graph_.order[op_list.rank];
      for (size_t i = 0; i < op_list.ops.size(); ++i) {
        order[WorkerOf(op_list.ops[i])].push_back(static_cast<int32_t>(i));
      }
      graph_.position_in_order[op_list.rank].resize(op_list.ops.size());
      graph_.level.emplace_back(level.begin() + first, level.begin() + first + op_list.ops.size());
      for (std::vector<int32_t>& ops : order) {
        const auto key = [&](int32_t i) {
          return std::tuple(level[first + i], IsReceive(op_list.ops[i]), i);
        };
        std::sort(ops.begin(), ops.end(), [&](int32_t a, int32_t b) { return key(a) < key(b); });
        for (size_t at = 0; at < ops.size(); ++at) {
          graph_.position_in_order[op_list.rank][ops[at]] = static_cast<int32_t>(at);
        }
      }
    }
    return {};
  }

  const World& world_;
  const std::vector<OpList>& op_lists_;
  const int32_t max_workers_;
  DeviceGraph graph_;
};

}  // namespace

StatusOr<DeviceGraph> BuildGraph(const World& world, int32_t max_workers) {
  return DeviceGraphBuilder(world, max_workers).Run();
}

}  // namespace jaxcoll::cuda
