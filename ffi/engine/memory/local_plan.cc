#include "engine/memory/local_plan.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <span>
#include <utility>

namespace jaxcoll {
namespace {

// Bytes of one operand that a task covers: small enough that the parts of a handful of sources
// stay in the first two cache levels, large enough that a task's overhead (0.1 us) vanishes.
constexpr int64_t kTaskBytes = 64 << 10;
// A batch is what a worker claims at once: tasks of this many bytes moved, at least one.
constexpr size_t kBatchBytes = 256 << 10;

// Outputs that exceed this together are not read back from cache before they are evicted, so that
// streaming stores, which save the read for ownership, win.
size_t StreamingThresholdBytes() {
  static const size_t threshold = [] {
    const long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
    return cache > 0 ? static_cast<size_t>(cache) / 2 : size_t{8} << 20;
  }();
  return threshold;
}

size_t RoundUp(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

// The pointers of one task, on the stack for up to 64 of them.
template <typename T>
class Pointers {
 public:
  explicit Pointers(size_t count) : count_(count) {
    if (count > inline_.size()) heap_.resize(count);
  }
  T& operator[](size_t i) { return data()[i]; }
  std::span<T const> span() { return {data(), count_}; }

 private:
  T* data() { return heap_.empty() ? inline_.data() : heap_.data(); }
  size_t count_;
  std::array<T, 64> inline_;
  std::vector<T> heap_;
};

}  // namespace

LocalPlan::LocalPlan(std::shared_ptr<const LocalActions> actions,
                     std::vector<int64_t> block_elements, DType dtype, ReduceOp reduce_op,
                     bool separate_blocks)
    : actions_(std::move(actions)),
      block_elements_(std::move(block_elements)),
      dtype_(dtype),
      reduce_op_(reduce_op),
      separate_blocks_(separate_blocks),
      item_bytes_(ItemBytes(dtype)) {
  for (const int64_t elements : block_elements_) {
    scratch_offset_.push_back(scratch_bytes_);
    scratch_stride_.push_back(RoundUp(elements * item_bytes_ * actions_->scratch_blocks, 64));
    scratch_bytes_ += scratch_stride_.back() * actions_->world_size;
  }
  size_t largest_level_written = 0;
  const int64_t task_elements = kTaskBytes / static_cast<int64_t>(item_bytes_);
  for (const std::vector<Action>& of_level : actions_->levels) {
    Level level;
    size_t level_written = 0;
    size_t batch_bytes = kBatchBytes;  // the first task opens a batch
    for (size_t v = 0; v < block_elements_.size(); ++v) {
      for (size_t a = 0; a < of_level.size(); ++a) {
        const Action& action = of_level[a];
        const int32_t first_chunk = action.destinations[0].first_chunk;
        const int64_t elements = ChunkOffset(first_chunk + action.chunk_count, block_elements_[v]) -
                                 ChunkOffset(first_chunk, block_elements_[v]);
        const size_t operands = action.sources.size() + action.destinations.size();
        level_written += elements * item_bytes_ * action.destinations.size();
        for (int64_t first = 0; first < elements; first += task_elements) {
          const int64_t count = std::min(task_elements, elements - first);
          const size_t bytes = count * item_bytes_ * operands;
          if (batch_bytes >= kBatchBytes) {
            level.batch_first.push_back(static_cast<int32_t>(level.tasks.size()));
            batch_bytes = 0;
          }
          level.tasks.push_back({static_cast<int32_t>(a), static_cast<int32_t>(v), first, count});
          batch_bytes += bytes;
          moved_bytes_ += bytes;
        }
      }
    }
    level.batch_first.push_back(static_cast<int32_t>(level.tasks.size()));
    largest_level_written = std::max(largest_level_written, level_written);
    levels_.push_back(std::move(level));
  }
  if (largest_level_written >= StreamingThresholdBytes()) caching_ = Caching::kStreaming;
}

// Blocks of one receiver may overlap, so its actions are one batch, in the order of their senders.
LocalPlan::LocalPlan(std::shared_ptr<const LocalActions> actions, const RaggedShape& shape)
    : actions_(std::move(actions)), dtype_(DType::kUint8), item_bytes_(1), ragged_(shape) {
  JAXCOLL_CHECK(actions_->levels.size() == 1 && actions_->chunks_per_block == 1,
                "a ragged_all_to_all runs the direct schedule");
  const std::vector<Action>& of_level = actions_->levels[0];
  Level level;
  for (size_t a = 0; a < of_level.size(); ++a) {
    level.tasks.push_back({static_cast<int32_t>(a), 0, 0, 0});
  }
  std::sort(level.tasks.begin(), level.tasks.end(), [&](const Task& a, const Task& b) {
    const auto order = [&](const Task& task) {
      const Action& action = of_level[task.action];
      return std::pair(action.destinations[0].rank, action.sources[0].rank);
    };
    return order(a) < order(b);
  });
  const auto ranks = static_cast<size_t>(actions_->world_size);
  moved_bytes_ = 2 * ranks * shape.output_bytes();
  // Only what is small is as fast on one thread.
  const size_t batch_ranks = moved_bytes_ < kBatchBytes ? ranks : 1;
  for (size_t first = 0; first <= ranks; first += batch_ranks) {
    level.batch_first.push_back(static_cast<int32_t>(first * ranks));
  }
  levels_.push_back(std::move(level));
}

Status LocalPlan::Check(const RunBuffers& buffers) const {
  if (!ragged_) return Status();
  const int64_t updates = ragged_->updates_per_peer;
  for (int32_t from = 0; from < world_size(); ++from) {
    const RaggedRank sender = RankOf(from, buffers);
    for (int32_t to = 0; to < world_size(); ++to) {
      const RaggedRank receiver = RankOf(to, buffers);
      for (int64_t u = 0; u < updates; ++u) {
        const RaggedBlock block = sender.BlockAt(*ragged_, to * updates + u);
        const int64_t expected = receiver.ExpectedRows(*ragged_, from * updates + u);
        std::optional<RaggedFault> fault = CheckSent(*ragged_, from, to, block);
        if (!fault) {
          fault = CheckReceived(*ragged_, from, to, block.output_offset, block.rows, expected);
        }
        if (fault) return InvalidArgument(Text(*fault, *ragged_));
      }
    }
  }
  return Status();
}

RaggedRank LocalPlan::RankOf(int32_t rank, const RunBuffers& buffers) const {
  return RaggedRank::Of(buffers.inputs, buffers.outputs, actions_->world_size, rank);
}

// Moves one rank's blocks for another; the first one's come on top of the operand `output`.
void LocalPlan::MoveBlocks(const Action& action, const RunBuffers& buffers) const {
  const ChunkRange& from = action.sources[0];
  const RaggedRank sender = RankOf(from.rank, buffers);
  const RaggedRank receiver = RankOf(action.destinations[0].rank, buffers);
  if (from.rank == 0) std::memcpy(receiver.result, receiver.output, ragged_->output_bytes());
  const int64_t updates = ragged_->updates_per_peer;
  for (int64_t i = from.first_chunk * updates; i < (from.first_chunk + 1) * updates; ++i) {
    const RaggedBlock block = sender.BlockAt(*ragged_, i);
    std::memcpy(receiver.result + block.output_offset * ragged_->row_bytes,
                sender.operand + block.input_offset * ragged_->row_bytes,
                block.rows * ragged_->row_bytes);
  }
}

bool LocalPlan::MayBeSeparate(const LocalActions& actions) {
  const auto within_one = [&](const ChunkRange& range, int32_t chunk_count) {
    return range.buffer == BufferKind::kScratch ||
           range.first_chunk % actions.chunks_per_block + chunk_count <= actions.chunks_per_block;
  };
  for (const std::vector<Action>& level : actions.levels) {
    for (const Action& action : level) {
      for (const ChunkRange& range : action.sources) {
        if (!within_one(range, action.chunk_count)) return false;
      }
      for (const ChunkRange& range : action.destinations) {
        if (!within_one(range, action.chunk_count)) return false;
      }
    }
  }
  return true;
}

int64_t LocalPlan::ChunkOffset(int32_t chunk, int64_t block_elements) const {
  const int64_t positions = actions_->chunks_per_block;
  return chunk / positions * block_elements + chunk % positions * block_elements / positions;
}

std::byte* LocalPlan::Address(const ChunkRange& range, int32_t vector,
                              const RunBuffers& buffers) const {
  size_t first = vector;
  int32_t chunk = range.first_chunk;
  if (separate_blocks_ && range.buffer != BufferKind::kScratch) {
    const bool in = range.buffer == BufferKind::kInput;
    first = first * (in ? actions_->input_blocks : actions_->output_blocks) +
            chunk / actions_->chunks_per_block;
    chunk %= actions_->chunks_per_block;
  }
  const int64_t offset =
      ChunkOffset(chunk, block_elements_[vector]) * static_cast<int64_t>(item_bytes_);
  const size_t array = first * actions_->world_size + range.rank;
  switch (range.buffer) {
    case BufferKind::kInput:
      // Only ever read: Compile() refuses a schedule that writes an input.
      return const_cast<std::byte*>(buffers.inputs[array]) + offset;
    case BufferKind::kOutput:
      return buffers.outputs[array] + offset;
    case BufferKind::kScratch:
      return buffers.scratch + scratch_offset_[vector] + range.rank * scratch_stride_[vector] +
             offset;
  }
  return nullptr;
}

void LocalPlan::RunBatch(int level, int batch, const RunBuffers& buffers) const {
  const Level& row = levels_[level];
  for (int32_t t = row.batch_first[batch]; t < row.batch_first[batch + 1]; ++t) {
    const Task& task = row.tasks[t];
    const Action& action = actions_->levels[level][task.action];
    if (ragged_) {
      MoveBlocks(action, buffers);
      continue;
    }
    const size_t skip = task.first * item_bytes_;
    Pointers<void*> destinations(action.destinations.size());
    for (size_t i = 0; i < action.destinations.size(); ++i) {
      destinations[i] = Address(action.destinations[i], task.vector, buffers) + skip;
    }
    if (action.sources.empty()) {
      for (void* destination : destinations.span()) {
        std::memset(destination, 0, task.count * item_bytes_);
      }
    } else if (action.sources.size() == 1) {
      Copy(destinations.span(), Address(action.sources[0], task.vector, buffers) + skip,
           task.count * item_bytes_, caching_);
    } else {
      Pointers<const void*> sources(action.sources.size());
      for (size_t i = 0; i < action.sources.size(); ++i) {
        sources[i] = Address(action.sources[i], task.vector, buffers) + skip;
      }
      Reduce(destinations.span(), sources.span(), task.count, dtype_, reduce_op_, caching_);
    }
  }
}

}  // namespace jaxcoll
