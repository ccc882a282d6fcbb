#include "sim/graph.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <limits>
#include <mutex>
#include <numeric>
#include <string>
#include <thread>
#include <utility>

#include "base/range.h"
#include "schedule/world.h"
#include "sim/limits.h"
#include "sim/network.h"

namespace jaxcoll::sim {
namespace {

constexpr int32_t kMaxWorldSize = 1 << 20;
constexpr int32_t kMaxStep = (1 << 29) - 1;

// Packing and running take this at their peak, measured for six algorithms of 1024 to 32768 ranks:
// an op with its message's ends, a dependency, a rank.
constexpr double kBytesPerOp = 90, kBytesPerEdge = 8, kBytesPerRank = 1500;
// The memory of all ranks is estimated by this many, which are drawn at random.
constexpr int32_t kSample = 16;

}  // namespace

// Packs ranks one by one, in any order and in parallel, and then joins them.
class GraphBuilder {
 public:
  explicit GraphBuilder(int32_t world_size) : ranks_(world_size), ends_(world_size) {}

  // May be called for different ranks at once.
  Status Pack(int32_t rank, const OpList& program);
  StatusOr<Graph> Join();
  // Whether those that have been packed fit, with the constant part of all.
  Status CheckPacked(uint64_t most_bytes) const;
  // Whether all ranks fit, to judge by those of `sample`, which have been packed.
  Status EstimateMemory(std::span<const int32_t> sample, uint64_t most_bytes) const;

 private:
  struct Size {
    double ops = 0, edges = 0;
  };
  struct Rank {
    std::vector<Graph::Node> nodes;  // chains, dependents and extents numbered within the rank
    std::vector<uint32_t> edges;
    std::vector<Graph::Chain> chains;
    ExtentTable extents;
    int32_t chunks_per_block = 0, input_blocks = 0, output_blocks = 0, scratch_blocks = 0;
    Size size() const {
      return {static_cast<double>(nodes.size()), static_cast<double>(edges.size())};
    }
  };

  static Status CheckLayout(int32_t rank, const OpList& program);
  static Status CheckChunks(int32_t rank, const OpList& program, const Operand& operand);
  // Fails if all ranks, which have `size` together, take more than `most_bytes`.
  Status CheckMemory(const char* about, const Size& size, uint64_t most_bytes) const;

  // Positions within a block, whole blocks first and together, since only lengths matter here.
  static void Canonical(std::span<const Interval> chunks, int32_t per_block,
                        std::vector<Interval>& result);
  Status Match(Graph& graph, const std::vector<uint32_t>& first_op);

  std::vector<Rank> ranks_;
  std::atomic<uint64_t> packed_ops_ = 0, packed_edges_ = 0;
  std::vector<MessageEnds> ends_;  // by rank; their numbers are the rank's nodes
};

void GraphBuilder::Canonical(std::span<const Interval> chunks, int32_t per_block,
                             std::vector<Interval>& result) {
  result.assign({{0, 0}});
  Interval run{-1, 0};
  auto add = [&](const Interval& interval) {
    if (interval.begin % per_block == 0 && interval.count % per_block == 0) {
      result.front().count += interval.count;
    } else {
      result.push_back({interval.begin % per_block, interval.count});
    }
  };
  for (const Interval& interval : chunks) {
    if (run.begin + run.count == interval.begin) {
      run.count += interval.count;
    } else {
      if (run.count > 0) add(run);
      run = interval;
    }
  }
  if (run.count > 0) add(run);
  if (result.front().count == 0) result.erase(result.begin());
}

Status GraphBuilder::CheckLayout(int32_t rank, const OpList& program) {
  const std::string of = " of rank " + std::to_string(rank);
  const struct {
    const char* what;
    int32_t value, low;
  } numbers[] = {
      {"the number of chunks per block", program.chunks_per_block, 1},
      {"the number of input blocks", program.input_blocks, 0},
      {"the number of output blocks", program.output_blocks, 0},
      {"the number of scratch blocks", program.scratch_blocks, 0},
  };
  for (const auto& [what, value, low] : numbers) {
    if (Status s = CheckRange(what + of, value, low, INT32_MAX); !s.ok()) return s;
  }
  return {};
}

// That the chunks are in their buffer, and not more of them than it holds.
Status GraphBuilder::CheckChunks(int32_t rank, const OpList& program, const Operand& operand) {
  const int32_t blocks = operand.buffer == BufferKind::kInput    ? program.input_blocks
                         : operand.buffer == BufferKind::kOutput ? program.output_blocks
                                                                 : program.scratch_blocks;
  const int64_t most = std::min<int64_t>(int64_t{blocks} * program.chunks_per_block, INT32_MAX);
  int64_t all = 0;
  for (const Interval& chunks : operand.chunks) {
    const int64_t end = int64_t{chunks.begin} + chunks.count;
    all += chunks.count;
    if (chunks.begin >= 0 && chunks.count >= 0 && end <= most && all <= most) continue;
    return InvalidArgument("rank " + std::to_string(rank) + " has an op on chunks " +
                           std::to_string(chunks.begin) + " to " + std::to_string(end - 1) +
                           " of a buffer, which has " + std::to_string(most) + " chunks");
  }
  return {};
}

Status GraphBuilder::Pack(int32_t rank, const OpList& program) {
  if (Status s = CheckLayout(rank, program); !s.ok()) return s;
  Rank& out = ranks_[rank];
  out.scratch_blocks = program.scratch_blocks;
  out.chunks_per_block = program.chunks_per_block;
  out.input_blocks = program.input_blocks;
  out.output_blocks = program.output_blocks;
  const size_t count = program.ops.size();
  std::vector<uint32_t> order(count), place(count);  // op at a place; place of an op
  std::iota(order.begin(), order.end(), 0u);
  const auto by_channel = [&](uint32_t a, uint32_t b) {
    return program.ops[a].channel < program.ops[b].channel;
  };
  if (!std::is_sorted(order.begin(), order.end(), by_channel)) {
    std::stable_sort(order.begin(), order.end(), by_channel);
  }
  for (uint32_t i = 0; i < count; ++i) place[order[i]] = i;

  out.nodes.resize(count);
  std::vector<Interval> chunks;
  for (uint32_t i = 0; i < count; ++i) {
    const Op& op = program.ops[order[i]];
    Graph::Node& node = out.nodes[i];
    if (op.channel < 0 || op.channel >= kMostChannels || op.step < 0 || op.step > kMaxStep) {
      return InvalidArgument("rank " + std::to_string(rank) + " has an op on channel " +
                             std::to_string(op.channel) + " in step " + std::to_string(op.step) +
                             "; channels end at " + std::to_string(kMostChannels - 1) +
                             ", steps at " + std::to_string(kMaxStep));
    }
    node.kind = static_cast<uint32_t>(op.kind);
    node.step = static_cast<uint32_t>(op.step);
    if (out.chains.empty() || out.chains.back().channel != op.channel) {
      out.chains.push_back({rank, op.channel, i, i});
    }
    out.chains.back().end = i + 1;
    node.chain = static_cast<uint32_t>(out.chains.size() - 1);
    if (IsTransfer(op)) {
      if (op.peer < 0 || op.peer >= static_cast<int32_t>(ranks_.size()) || op.peer == rank) {
        return InvalidArgument("rank " + std::to_string(rank) + " exchanges a message with rank " +
                               std::to_string(op.peer));
      }
      ends_[rank].Add(op, i);
    }

    if (Status s = CheckChunks(rank, program, op.destination); !s.ok()) return s;
    Canonical(op.destination.chunks, program.chunks_per_block, chunks);
    node.extent = out.extents.Intern(
        op.kind == OpKind::kReduce ? static_cast<int32_t>(op.sources.size()) : 1, chunks);
  }
  ends_[rank].Sort();

  // Dependencies the other way round.
  std::vector<uint32_t> degree(count + 1, 0);
  for (uint32_t i = 0; i < count; ++i) {
    const auto& before = program.ops[order[i]].depends_on;
    out.nodes[i].dependencies = static_cast<uint32_t>(before.size());
    for (int32_t dependency : before) {
      if (dependency < 0 || static_cast<size_t>(dependency) >= count) {
        return InvalidArgument("rank " + std::to_string(rank) + " has an op that depends on op " +
                               std::to_string(dependency) + ", but " + std::to_string(count) +
                               " ops");
      }
      ++degree[place[dependency] + 1];
    }
  }
  for (uint32_t i = 0; i < count; ++i) {
    degree[i + 1] += degree[i];
    out.nodes[i].first_dependent = degree[i];
  }
  out.edges.resize(degree[count]);
  for (uint32_t i = 0; i < count; ++i) {
    for (int32_t dependency : program.ops[order[i]].depends_on) {
      out.edges[degree[place[dependency]]++] = i;
    }
  }
  packed_ops_ += count;
  packed_edges_ += out.edges.size();
  return {};
}

Status GraphBuilder::CheckMemory(const char* about, const Size& size, uint64_t most_bytes) const {
  const double bytes = size.ops * kBytesPerOp + size.edges * kBytesPerEdge +
                       static_cast<double>(ranks_.size()) * kBytesPerRank;
  if (bytes <= static_cast<double>(most_bytes)) return {};
  const auto gigabytes = [](double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.3g GB", value / 1e9);
    return std::string(text);
  };
  return InvalidArgument("the schedule has " + std::string(about) + " " +
                         std::to_string(std::llround(size.ops)) + " ops, which take " +
                         gigabytes(bytes) + " of memory; " +
                         gigabytes(static_cast<double>(most_bytes)) + " are available");
}

Status GraphBuilder::CheckPacked(uint64_t most_bytes) const {
  const Size size{static_cast<double>(packed_ops_), static_cast<double>(packed_edges_)};
  return CheckMemory("at least", size, most_bytes);
}

// The largest rank of the sample stands for itself only: a root has as many ops as all others.
Status GraphBuilder::EstimateMemory(std::span<const int32_t> sample, uint64_t most_bytes) const {
  Size all, largest;
  for (int32_t rank : sample) {
    const Size size = ranks_[rank].size();
    all.ops += size.ops;
    all.edges += size.edges;
    if (size.ops > largest.ops) largest = size;
  }
  if (sample.size() > 1) {
    const auto packed = static_cast<double>(sample.size());
    const double more = (static_cast<double>(ranks_.size()) - packed) / (packed - 1);
    all.ops += (all.ops - largest.ops) * more;
    all.edges += (all.edges - largest.edges) * more;
  }
  return CheckMemory("about", all, most_bytes);
}

StatusOr<Graph> GraphBuilder::Join() {
  Graph graph;
  graph.world_size_ = static_cast<int32_t>(ranks_.size());
  graph.chunks_per_block_ = ranks_.front().chunks_per_block;
  graph.input_blocks_ = ranks_.front().input_blocks;
  graph.output_blocks_ = ranks_.front().output_blocks;
  std::vector<uint32_t> first_op;
  uint64_t ops = 0, edges = 0;
  for (const Rank& rank : ranks_) {
    if (rank.chunks_per_block != graph.chunks_per_block_ ||
        rank.input_blocks != graph.input_blocks_ || rank.output_blocks != graph.output_blocks_) {
      return InvalidArgument("rank " + std::to_string(&rank - ranks_.data()) +
                             " differs from rank 0 in its layout");
    }
    graph.scratch_blocks_ = std::max(graph.scratch_blocks_, rank.scratch_blocks);
    first_op.push_back(static_cast<uint32_t>(ops));
    ops += rank.nodes.size();
    edges += rank.edges.size();
  }
  if (ops >= Graph::kNone || edges >= Graph::kNone) {
    return InvalidArgument("the schedule has " + std::to_string(ops) + " ops and " +
                           std::to_string(edges) + " dependencies; at most " +
                           std::to_string(Graph::kNone - 1) + " of each can be simulated");
  }
  graph.nodes_.reserve(ops);
  graph.edges_.reserve(edges);
  for (size_t r = 0; r < ranks_.size(); ++r) {
    Rank& rank = ranks_[r];
    // The same extents occur on many ranks.
    std::vector<uint32_t> extent_of(rank.extents.size());
    for (uint32_t e = 0; e < rank.extents.size(); ++e) {
      extent_of[e] = graph.extents_.Intern(rank.extents.arity(e), rank.extents.chunks(e));
    }
    const uint32_t first_chain = static_cast<uint32_t>(graph.chains_.size());
    const uint32_t first_edge = static_cast<uint32_t>(graph.edges_.size());
    for (Graph::Node node : rank.nodes) {
      node.chain += first_chain;
      node.first_dependent += first_edge;
      node.extent = extent_of[node.extent];
      graph.nodes_.push_back(node);
    }
    for (uint32_t edge : rank.edges) graph.edges_.push_back(edge + first_op[r]);
    for (Graph::Chain chain : rank.chains) {
      chain.begin += first_op[r];
      chain.end += first_op[r];
      graph.chains_.push_back(chain);
    }
    rank.nodes = {};
    rank.edges = {};
    rank.extents = {};
  }
  if (Status s = Match(graph, first_op); !s.ok()) return s;
  return graph;
}

Status GraphBuilder::Match(Graph& graph, const std::vector<uint32_t>& first_op) {
  std::vector<int32_t> ranks(ranks_.size());
  std::iota(ranks.begin(), ranks.end(), 0);
  constexpr uint32_t kNone = Graph::kNone;
  uint32_t differing = kNone;  // a send whose message has other chunks at its other end
  const auto unmatched =
      MatchMessages(ranks, ends_, [&](size_t source, uint32_t s, size_t destination, uint32_t r) {
        const uint32_t send = first_op[source] + s, receipt = first_op[destination] + r;
        graph.nodes_[send].mate = receipt;
        graph.nodes_[receipt].mate = send;
        if (graph.nodes_[send].extent != graph.nodes_[receipt].extent) {
          differing = std::min(differing, send);
        }
      });
  const auto message = [&](int32_t source, int32_t destination, uint32_t op) {
    return "a message from rank " + std::to_string(source) + " to rank " +
           std::to_string(destination) + " (step " + std::to_string(graph.nodes_[op].step) + ")";
  };
  if (unmatched) {
    const auto [source, destination] = std::pair(unmatched->key.source, unmatched->key.destination);
    const uint32_t op = first_op[unmatched->rank()] + unmatched->number;
    const std::string what = message(source, destination, op);
    switch (unmatched->why) {
      case Unmatched::Why::kSentTwice:
        return InvalidArgument(what + " is sent twice");
      case Unmatched::Why::kNeverSent:
        return InvalidArgument("rank " + std::to_string(destination) + " waits for " + what +
                               " that is never sent");
      case Unmatched::Why::kNeverReceived:
        return InvalidArgument(what + " is never received");
    }
  }
  if (differing == kNone) return {};
  return InvalidArgument(message(graph.chain_of(differing).rank,
                                 graph.chain_of(graph.nodes_[differing].mate).rank, differing) +
                         " names different chunks at its two ends");
}

StatusOr<Graph> Graph::Build(int32_t world_size,
                             const std::function<StatusOr<OpList>(int32_t)>& program_of,
                             uint64_t most_bytes) {
  if (world_size < 1 || world_size > kMaxWorldSize) {
    return InvalidArgument("world_size is " + std::to_string(world_size) +
                           ", but must be from 1 to " + std::to_string(kMaxWorldSize));
  }
  GraphBuilder builder(world_size);
  const auto pack = [&](int32_t rank) {
    const StatusOr<OpList> program = program_of(rank);
    return program.ok() ? builder.Pack(rank, *program) : program.status();
  };
  // Rank 0, which often is the root, and others at random.
  std::vector<int32_t> order(world_size);
  std::iota(order.begin(), order.end(), 0);
  const int32_t sample = std::min(world_size, kSample);
  for (int32_t i = 1; i < sample; ++i) {
    std::swap(order[i], order[i + Mix(0, i) % (world_size - i)]);
  }
  for (int32_t i = 0; i < sample; ++i) {
    if (Status s = pack(order[i]); !s.ok()) return s;
  }
  if (Status s = builder.EstimateMemory({order.data(), order.data() + sample}, most_bytes);
      !s.ok()) {
    return s;
  }
  std::atomic<int32_t> next = sample;
  std::mutex mutex;
  Status first_error;
  auto work = [&] {
    for (int32_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < world_size;) {
      Status status = pack(order[i]);
      if (status.ok()) status = builder.CheckPacked(most_bytes);
      if (status.ok()) continue;
      std::lock_guard lock(mutex);
      if (first_error.ok()) first_error = std::move(status);
      next.store(world_size, std::memory_order_relaxed);
    }
  };
  {
    const unsigned helpers =
        world_size < 64 ? 0 : std::max(1u, std::thread::hardware_concurrency()) - 1;
    std::vector<std::jthread> threads;
    for (unsigned i = 0; i < helpers; ++i) threads.emplace_back(work);
    work();
  }
  if (!first_error.ok()) return first_error;
  return builder.Join();
}

StatusOr<Graph> Graph::Build(const ScheduleSpec& spec, uint64_t most_bytes) {
  return Build(
      spec.world_size, [&](int32_t rank) { return BuildSchedule(spec, rank); }, most_bytes);
}

size_t Graph::bytes() const {
  return nodes_.size() * sizeof(Node) + edges_.size() * sizeof(uint32_t) +
         chains_.size() * sizeof(Chain) + extents_.bytes();
}

std::vector<int64_t> Graph::ExtentBytes(int64_t block_elements, int64_t element_bytes) const {
  const int64_t per_block = chunks_per_block_;
  // Elements before chunk `c`, counted over blocks: position j of a block starts at
  // floor(j * n / C), computed without overflow.
  auto before = [&](int64_t c) {
    const int64_t j = c % per_block, whole = block_elements / per_block,
                  rest = block_elements % per_block;
    return c / per_block * block_elements + j * whole + j * rest / per_block;
  };
  std::vector<int64_t> bytes;
  bytes.reserve(extents_.size());
  for (uint32_t extent = 0; extent < extents_.size(); ++extent) {
    int64_t elements = 0;
    for (const Interval& chunks : extents_.chunks(extent)) {
      elements += before(int64_t{chunks.begin} + chunks.count) - before(chunks.begin);
    }
    bytes.push_back(elements * element_bytes);
  }
  return bytes;
}

}  // namespace jaxcoll::sim
