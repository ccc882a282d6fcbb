// A LocalProgram bound to sizes: which bytes each batch of each level moves.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/dtype.h"
#include "base/kernels.h"
#include "engine/memory/local_program.h"

namespace jaxcoll {

// The buffers of one run, by vector and rank. Every vector is a collective of its own with the same
// schedule, so that fusing the leaves of a tree into one call does not change the result.
struct RunBuffers {
  std::vector<const std::byte*> inputs;  // [vector * world_size + rank]
  std::vector<std::byte*> outputs;       // [vector * world_size + rank]
  std::byte* scratch = nullptr;          // LocalPlan::scratch_bytes(), 64-byte aligned
};

// Immutable after construction: shared by concurrent runs.
class LocalPlan {
 public:
  // block_elements[v]: elements of one block of vector v. `reduce_op` is ignored where nothing is
  // reduced; then dtype only gives the size of an element.
  LocalPlan(std::shared_ptr<const LocalProgram> program, std::vector<int64_t> block_elements,
            DType dtype, ReduceOp reduce_op);

  int LevelCount() const { return static_cast<int>(levels_.size()); }
  int BatchCount(int level) const {
    return static_cast<int>(levels_[level].batch_first.size()) - 1;
  }
  void RunBatch(int level, int batch, const RunBuffers& buffers) const;

  size_t scratch_bytes() const { return scratch_bytes_; }
  size_t moved_bytes() const { return moved_bytes_; }  // read and written, all levels
  int world_size() const { return program_->world_size; }
  // Bytes of the output of vector v on one rank.
  size_t output_bytes(size_t v) const {
    return block_elements_[v] * item_bytes_ * program_->output_blocks;
  }
  size_t vector_count() const { return block_elements_.size(); }

 private:
  // Elements [first, first + count) of an action on one vector, counted from the action's start.
  struct Task {
    int32_t action;
    int32_t vector;
    int64_t first;
    int64_t count;
  };
  struct Level {
    std::vector<Task> tasks;
    std::vector<int32_t> batch_first;  // batch b is tasks [batch_first[b], batch_first[b + 1])
  };

  int64_t ChunkOffset(int32_t chunk, int64_t block_elements) const;
  std::byte* Address(const ChunkRange& range, int32_t vector, const RunBuffers& buffers) const;

  std::shared_ptr<const LocalProgram> program_;
  std::vector<int64_t> block_elements_;
  std::vector<size_t> scratch_offset_;  // of each vector; ranks follow each other
  std::vector<size_t> scratch_stride_;  // per vector: bytes of one rank's scratch
  DType dtype_;
  ReduceOp reduce_op_;
  size_t item_bytes_;
  size_t scratch_bytes_ = 0;
  size_t moved_bytes_ = 0;
  Caching caching_ = Caching::kCached;
  std::vector<Level> levels_;
};

}  // namespace jaxcoll
