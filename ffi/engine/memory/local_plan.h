// LocalActions bound to sizes: which bytes each batch of each level moves.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "base/dtype.h"
#include "base/kernels.h"
#include "engine/memory/local_actions.h"
#include "engine/ragged.h"

namespace jaxcoll {

// The buffers of one run, by vector and rank. Every vector is a collective of its own with the same
// schedule, so that fusing the leaves of a tree into one call does not change the result.
//
// Where blocks are separate, each block of a vector is an array of its own, and `array` below is
// vector * blocks + block; else it is the vector.
struct RunBuffers {
  std::vector<const std::byte*> inputs;  // [array * world_size + rank]
  std::vector<std::byte*> outputs;       // [array * world_size + rank]
  std::byte* scratch = nullptr;          // LocalPlan::scratch_bytes(), 64-byte aligned
};

// Immutable after construction: shared by concurrent runs.
class LocalPlan {
 public:
  // block_elements[v]: elements of one block of vector v. `reduce_op` is ignored where nothing is
  // reduced; then dtype only gives the size of an element.
  // `separate_blocks`: MayBeSeparate(*actions).
  LocalPlan(std::shared_ptr<const LocalActions> actions, std::vector<int64_t> block_elements,
            DType dtype, ReduceOp reduce_op, bool separate_blocks = false);
  // Whether no action reaches over two blocks of an input or an output.
  static bool MayBeSeparate(const LocalActions& actions);
  // A ragged_all_to_all: `actions` are those of the direct all_to_all.
  LocalPlan(std::shared_ptr<const LocalActions> actions, const RaggedShape& shape);

  // Whether a run may begin. Ragged: refuses, naming both ranks, rows outside the operand or the
  // output, and a sender and a receiver that disagree on a size. Nothing has been written then.
  Status Check(const RunBuffers& buffers) const;

  int LevelCount() const { return static_cast<int>(levels_.size()); }
  int BatchCount(int level) const {
    return static_cast<int>(levels_[level].batch_first.size()) - 1;
  }
  void RunBatch(int level, int batch, const RunBuffers& buffers) const;

  size_t scratch_bytes() const { return scratch_bytes_; }
  size_t moved_bytes() const { return moved_bytes_; }  // read and written, all levels
  int world_size() const { return actions_->world_size; }
  // Bytes of the output of vector v on one rank.
  size_t output_bytes(size_t v) const {
    return ragged_ ? ragged_->output_bytes()
                   : block_elements_[v] * item_bytes_ * actions_->output_blocks;
  }
  size_t vector_count() const { return ragged_ ? 1 : block_elements_.size(); }

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
  RaggedRank RankOf(int32_t rank, const RunBuffers& buffers) const;
  void MoveBlocks(const Action& action, const RunBuffers& buffers) const;

  std::shared_ptr<const LocalActions> actions_;
  std::vector<int64_t> block_elements_;
  std::vector<size_t> scratch_offset_;  // of each vector; ranks follow each other
  std::vector<size_t> scratch_stride_;  // per vector: bytes of one rank's scratch
  DType dtype_;
  ReduceOp reduce_op_;
  bool separate_blocks_ = false;
  size_t item_bytes_;
  size_t scratch_bytes_ = 0;
  size_t moved_bytes_ = 0;
  Caching caching_ = Caching::kCached;
  std::vector<Level> levels_;
  std::optional<RaggedShape> ragged_;
};

}  // namespace jaxcoll
