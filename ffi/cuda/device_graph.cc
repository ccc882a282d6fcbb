#include "cuda/device_graph.h"

#include <algorithm>
#include <set>
#include <tuple>
#include <utility>

#include "cuda/device_program.h"

namespace jaxcoll::cuda {
namespace {

std::string Where(int32_t rank, size_t op) {
  return "rank " + std::to_string(rank) + ", op " + std::to_string(op);
}

int32_t CountChunks(const Operand& operand) {
  int32_t count = 0;
  for (const Interval& interval : operand.chunks) count += interval.count;
  return count;
}

class GraphBuilder {
 public:
  GraphBuilder(const std::vector<Program>& programs, int32_t max_workers)
      : programs_(programs), max_workers_(std::max(max_workers, 1)) {}

  StatusOr<DeviceGraph> Run() {
    if (Status s = CheckLayout(); !s.ok()) return s;
    if (Status s = CheckOps(); !s.ok()) return s;
    if (Status s = MatchMessages(); !s.ok()) return s;
    AssignWorkers();
    if (Status s = Order(); !s.ok()) return s;
    return std::move(graph_);
  }

 private:
  int32_t ranks() const { return static_cast<int32_t>(programs_.size()); }
  int32_t WorkerOf(const Op& op) const { return graph_.worker_of_channel.at(op.channel); }
  int64_t ChunksOf(BufferKind buffer) const {
    const Program& p = programs_[0];
    const int32_t blocks = buffer == BufferKind::kInput    ? p.input_blocks
                           : buffer == BufferKind::kOutput ? p.output_blocks
                                                           : p.scratch_blocks;
    return int64_t{blocks} * p.chunks_per_block;
  }

  Status CheckLayout() const {
    if (programs_.empty() || programs_.size() > kMaxProgramRanks) {
      return InvalidArgument("a device program is for 1 to " + std::to_string(kMaxProgramRanks) +
                             " ranks, not for " + std::to_string(programs_.size()));
    }
    const Program& first = programs_[0];
    for (size_t rank = 0; rank < programs_.size(); ++rank) {
      const Program& p = programs_[rank];
      if (p.rank != static_cast<int32_t>(rank) || p.chunks_per_block != first.chunks_per_block ||
          p.input_blocks != first.input_blocks || p.output_blocks != first.output_blocks ||
          p.scratch_blocks != first.scratch_blocks || p.chunks_per_block < 1) {
        return InvalidArgument("rank " + std::to_string(rank) + " disagrees on blocks or chunks");
      }
    }
    return {};
  }

  Status CheckOperand(const Operand& operand, const Op& op, const std::string& where) const {
    if (CountChunks(operand) != CountChunks(op.destination)) {
      return InvalidArgument(where + ": operands differ in size");
    }
    for (const Interval& interval : operand.chunks) {
      if (interval.begin < 0 || interval.count < 1 ||
          interval.begin + int64_t{interval.count} > ChunksOf(operand.buffer)) {
        return InvalidArgument(where + ": a chunk lies outside of its buffer");
      }
    }
    const std::vector<int32_t> chunks = ListChunks(operand), to = ListChunks(op.destination);
    for (size_t i = 0; i < chunks.size(); ++i) {
      if ((chunks[i] - to[i]) % programs_[0].chunks_per_block != 0) {
        return InvalidArgument(where + ": operands differ in positions");
      }
    }
    return {};
  }

  Status CheckOps() const {
    for (const Program& program : programs_) {
      for (size_t i = 0; i < program.ops.size(); ++i) {
        const Op& op = program.ops[i];
        const std::string where = Where(program.rank, i);
        const size_t sources = op.kind == OpKind::kRecvReduce ? 2 : 1;
        if (op.kind == OpKind::kReduce ? op.sources.empty() : op.sources.size() != sources) {
          return InvalidArgument(where + ": wrong number of sources");
        }
        if (op.sources.size() > kMaxSources) {
          return InvalidArgument(where + ": a reduction of " + std::to_string(op.sources.size()) +
                                 " operands; at most " + std::to_string(kMaxSources));
        }
        if (op.destination.buffer == BufferKind::kInput) {
          return InvalidArgument(where + ": inputs are read-only");
        }
        if (Status s = CheckOperand(op.destination, op, where); !s.ok()) return s;
        for (const Operand& source : op.sources) {
          if (Status s = CheckOperand(source, op, where); !s.ok()) return s;
        }
        for (const int32_t before : op.depends_on) {
          if (before < 0 || before >= static_cast<int32_t>(program.ops.size())) {
            return InvalidArgument(where + ": waits for an op that is not there");
          }
        }
        if ((IsSend(op) || IsReceive(op)) &&
            (op.peer < 0 || op.peer >= ranks() || op.peer == program.rank)) {
          return InvalidArgument(where + ": its peer is rank " + std::to_string(op.peer));
        }
      }
    }
    return {};
  }

  Status MatchMessages() {
    graph_.message_of.resize(programs_.size());
    std::map<std::tuple<int32_t, int32_t, int32_t, int32_t>, int32_t> sends;
    for (const Program& program : programs_) {
      graph_.message_of[program.rank].assign(program.ops.size(), -1);
      for (size_t i = 0; i < program.ops.size(); ++i) {
        const Op& op = program.ops[i];
        if (!IsSend(op)) continue;
        if (!sends.emplace(std::tuple(program.rank, op.peer, op.channel, op.sequence), i).second) {
          return InvalidArgument(Where(program.rank, i) + ": sends a message twice");
        }
      }
    }
    for (const Program& program : programs_) {
      for (size_t i = 0; i < program.ops.size(); ++i) {
        const Op& op = program.ops[i];
        if (!IsReceive(op)) continue;
        const auto it = sends.find({op.peer, program.rank, op.channel, op.sequence});
        if (it == sends.end()) {
          return InvalidArgument(Where(program.rank, i) + ": nobody sends what it receives");
        }
        const Op& send = programs_[op.peer].ops[it->second];
        if (send.sources[0] != op.sources[0] || send.destination != op.destination) {
          return InvalidArgument(Where(program.rank, i) + " and " + Where(op.peer, it->second) +
                                 " disagree on a message");
        }
        graph_.message_of[program.rank][i] = static_cast<int32_t>(graph_.messages.size());
        graph_.message_of[op.peer][it->second] = static_cast<int32_t>(graph_.messages.size());
        graph_.messages.push_back({.source = op.peer,
                                   .destination = program.rank,
                                   .sender = it->second,
                                   .receiver = static_cast<int32_t>(i),
                                   .chunk_count = CountChunks(op.destination)});
        sends.erase(it);
      }
    }
    if (sends.empty()) return {};
    const auto& [key, op] = *sends.begin();
    return InvalidArgument(Where(std::get<0>(key), op) + ": nobody receives what it sends");
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

  // Levels: the longest way to an op through dependencies and messages. Sorted by level, no op
  // comes before one that it waits for, on any rank; so workers that run their ops in this order
  // cannot wait for each other in a circle. Within a level what waits for nobody comes first.
  Status Order() {
    std::vector<int32_t> base(programs_.size() + 1, 0);
    for (size_t rank = 0; rank < programs_.size(); ++rank) {
      base[rank + 1] = base[rank] + static_cast<int32_t>(programs_[rank].ops.size());
    }
    std::vector<std::vector<int32_t>> after(base.back());
    std::vector<int32_t> waits(base.back(), 0), level(base.back(), 0);
    for (const Program& program : programs_) {
      for (size_t i = 0; i < program.ops.size(); ++i) {
        const int32_t id = base[program.rank] + static_cast<int32_t>(i);
        for (const int32_t before : program.ops[i].depends_on) {
          after[base[program.rank] + before].push_back(id);
          ++waits[id];
        }
        if (!IsReceive(program.ops[i])) continue;
        const Message& message = graph_.messages[graph_.message_of[program.rank][i]];
        after[base[message.source] + message.sender].push_back(id);
        ++waits[id];
      }
    }
    std::vector<int32_t> ready;
    for (int32_t id = 0; id < base.back(); ++id) {
      if (waits[id] == 0) ready.push_back(id);
    }
    for (size_t next = 0; next < ready.size(); ++next) {
      for (const int32_t id : after[ready[next]]) {
        level[id] = std::max(level[id], level[ready[next]] + 1);
        if (--waits[id] == 0) ready.push_back(id);
      }
    }
    if (ready.size() < after.size()) {
      const auto stuck = static_cast<int32_t>(
          std::find_if(waits.begin(), waits.end(), [](int32_t w) { return w > 0; }) -
          waits.begin());
      const auto rank = std::upper_bound(base.begin(), base.end(), stuck) - base.begin() - 1;
      return InvalidArgument(
          "the schedule deadlocks: " + Where(static_cast<int32_t>(rank), stuck - base[rank]) +
          " waits for itself");
    }
    graph_.order.assign(programs_.size(), std::vector<std::vector<int32_t>>(graph_.workers));
    graph_.place_in_order.resize(programs_.size());
    for (const Program& program : programs_) {
      const int32_t first = base[program.rank];
      std::vector<std::vector<int32_t>>& order = graph_.order[program.rank];
      for (size_t i = 0; i < program.ops.size(); ++i) {
        order[WorkerOf(program.ops[i])].push_back(static_cast<int32_t>(i));
      }
      graph_.place_in_order[program.rank].resize(program.ops.size());
      graph_.level.emplace_back(level.begin() + first, level.begin() + base[program.rank + 1]);
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

  const std::vector<Program>& programs_;
  const int32_t max_workers_;
  DeviceGraph graph_;
};

}  // namespace

std::vector<int32_t> ListChunks(const Operand& operand) {
  std::vector<int32_t> chunks;
  for (const Interval& interval : operand.chunks) {
    for (int32_t i = 0; i < interval.count; ++i) chunks.push_back(interval.begin + i);
  }
  return chunks;
}

StatusOr<DeviceGraph> BuildGraph(const std::vector<Program>& programs, int32_t max_workers) {
  return GraphBuilder(programs, max_workers).Run();
}

}  // namespace jaxcoll::cuda
