#include "engine/memory/local_plan.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <span>

namespace jaxcoll {
namespace {

// Bytes of one operand that a task covers: small enough that the slices of a handful of sources
// stay in the first two cache levels, large enough that a task's overhead (0.1 us) vanishes.
constexpr int64_t kSliceBytes = 64 << 10;
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

LocalPlan::LocalPlan(std::shared_ptr<const LocalProgram> program,
                     std::vector<int64_t> block_elements, DType dtype, ReduceOp reduce_op)
    : program_(std::move(program)),
      block_elements_(std::move(block_elements)),
      dtype_(dtype),
      reduce_op_(reduce_op),
      item_bytes_(ItemBytes(dtype)) {
  for (const int64_t elements : block_elements_) {
    scratch_offset_.push_back(scratch_bytes_);
    scratch_stride_.push_back(RoundUp(elements * item_bytes_ * program_->scratch_blocks, 64));
    scratch_bytes_ += scratch_stride_.back() * program_->world_size;
  }
  size_t largest_level_written = 0;
  const int64_t slice_elements = kSliceBytes / static_cast<int64_t>(item_bytes_);
  for (const std::vector<Action>& actions : program_->levels) {
    Level level;
    size_t level_written = 0;
    size_t batch_bytes = kBatchBytes;  // the first task opens a batch
    for (size_t v = 0; v < block_elements_.size(); ++v) {
      for (size_t a = 0; a < actions.size(); ++a) {
        const Action& action = actions[a];
        const int32_t first_chunk = action.destinations[0].first_chunk;
        const int64_t elements = ChunkOffset(first_chunk + action.chunk_count, block_elements_[v]) -
                                 ChunkOffset(first_chunk, block_elements_[v]);
        const size_t operands = action.sources.size() + action.destinations.size();
        level_written += elements * item_bytes_ * action.destinations.size();
        for (int64_t first = 0; first < elements; first += slice_elements) {
          const int64_t count = std::min(slice_elements, elements - first);
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

int64_t LocalPlan::ChunkOffset(int32_t chunk, int64_t block_elements) const {
  const int64_t positions = program_->chunks_per_block;
  return chunk / positions * block_elements + chunk % positions * block_elements / positions;
}

std::byte* LocalPlan::Address(const ChunkRange& range, int32_t vector,
                              const RunBuffers& buffers) const {
  const int64_t offset =
      ChunkOffset(range.first_chunk, block_elements_[vector]) * static_cast<int64_t>(item_bytes_);
  const size_t array = static_cast<size_t>(vector) * program_->world_size + range.rank;
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
    const Action& action = program_->levels[level][task.action];
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
