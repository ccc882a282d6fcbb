#include "gpu/host/device_graph.h"

#include <algorithm>
#include <set>
#include <string>
#include <tuple>
#include <utility>

#include "gpu/abi/device_program.h"

namespace jaxcoll::cuda {
namespace {

class GraphBuilder {
 public:
  GraphBuilder(const World& world, int32_t max_workers)
      : world_(world), programs_(world.programs()), max_workers_(std::max(max_workers, 1)) {}

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
    if (programs_.empty() || programs_.size() > kMaxProgramRanks) {
      return InvalidArgument("a device program is for 1 to " + std::to_string(kMaxProgramRanks) +
                             " ranks, not for " + std::to_string(programs_.size()));
    }
    if (!world_.complete()) return InvalidArgument("a device program is made of all ranks' ops");
    for (const Program& program : programs_) {
      for (size_t i = 0; i < program.ops.size(); ++i) {
        const size_t sources = program.ops[i].sources.size();
        if (sources <= kMaxSources) continue;
        return InvalidArgument(Where(program.rank, i) + ": a reduction of " +
                               std::to_string(sources) + " operands; at most " +
                               std::to_string(kMaxSources));
      }
    }
    return {};
  }

  void ListMessages() {
    graph_.message_of.resize(programs_.size());
    for (const Program& program : programs_) {
      graph_.message_of[program.rank].assign(program.ops.size(), -1);
    }
    for (const Program& program : programs_) {
      for (size_t i = 0; i < program.ops.size(); ++i) {
        const Op& op = program.ops[i];
        if (!IsReceive(op)) continue;
        const int32_t sender = world_.mate(world_.Id(program.rank, i)) - world_.Id(op.peer, 0);
        const auto message = static_cast<int32_t>(graph_.messages.size());
        graph_.message_of[program.rank][i] = graph_.message_of[op.peer][sender] = message;
        graph_.messages.push_back({.source = op.peer,
                                   .destination = program.rank,
                                   .sender = sender,
                                   .receiver = static_cast<int32_t>(i),
                                   .chunk_count = CountChunks(op.destination)});
      }
    }
  }

  // The same on all ranks, so that the two sides of a message are the same worker.
  void AssignWorkers() {
    std::set<int32_t> channels;
    for (const Program& program : programs_) {
      for (const Op& op : program.ops) channels.insert(op.channel);
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
    graph_.order.assign(programs_.size(), std::vector<std::vector<int32_t>>(graph_.workers));
    graph_.place_in_order.resize(programs_.size());
    for (const Program& program : programs_) {
      const int32_t first = world_.Id(program.rank, 0);
      std::vector<std::vector<int32_t>>& order = graph_.order[program.rank];
      for (size_t i = 0; i < program.ops.size(); ++i) {
        order[WorkerOf(program.ops[i])].push_back(static_cast<int32_t>(i));
      }
      graph_.place_in_order[program.rank].resize(program.ops.size());
      graph_.level.emplace_back(level.begin() + first, level.begin() + first + program.ops.size());
      for (std::vector<int32_t>& ops : order) {
        const auto key = [&](int32_t i) {
          return std::tuple(level[first + i], IsReceive(program.ops[i]), i);
        };
        std::sort(ops.begin(), ops.end(), [&](int32_t a, int32_t b) { return key(a) < key(b); });
        for (size_t at = 0; at < ops.size(); ++at) {
          graph_.place_in_order[program.rank][ops[at]] = static_cast<int32_t>(at);
        }
      }
    }
    return {};
  }

  const World& world_;
  const std::vector<Program>& programs_;
  const int32_t max_workers_;
  DeviceGraph graph_;
};

}  // namespace

StatusOr<DeviceGraph> BuildGraph(const World& world, int32_t max_workers) {
  return GraphBuilder(world, max_workers).Run();
}

}  // namespace jaxcoll::cuda
