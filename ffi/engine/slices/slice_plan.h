// A SliceOps bound to sizes: how a call is cut, and where each piece lies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/dtype.h"
#include "base/kernels.h"
#include "engine/slices/ragged_table.h"
#include "engine/slices/run.h"
#include "engine/slices/slice_ops.h"

namespace jaxcoll {

class SlicePlan final : public RunPlan, public std::enable_shared_from_this<SlicePlan> {
 public:
  // `message_bytes`: what fits one slot of a window. `separate_blocks`: each block of a vector is
  // an array of its own, array vector * blocks + block of MemberBuffers.
  static StatusOr<std::shared_ptr<const SlicePlan>> Create(
      std::shared_ptr<const SliceOps> slice_ops, std::vector<int64_t> block_elements, DType dtype,
      ReduceOp reduce_op, size_t message_bytes, bool separate_blocks = false);
  // A ragged_all_to_all: each run fills a table of its own that says how it is cut.
  // `process_of_rank` is the group's; `process` must have some of the ranks, but not all.
  static StatusOr<std::shared_ptr<const SlicePlan>> CreateRagged(
      const RaggedShape& shape, const std::vector<int>& process_of_rank, int process,
      size_t message_bytes);

  std::unique_ptr<Run> MakeRun(MemberBuffers buffers, Wire& wire) const override;
  const SliceOps& slice_ops() const { return *slice_ops_; }
  const RaggedProcesses* ragged() const { return ragged_.get(); }  // null: uniform
  int32_t slice_count() const { return static_cast<int32_t>(slices_.size()); }
  int32_t in_flight() const;  // slices that a run works at together
  // Bytes of an op's message. In it, and in scratch, every chunk of a part has `stride` bytes.
  size_t MessageBytes(int32_t slice, const SliceOp& op) const {
    return slices_[slice].stride_sum * op.chunk_count;
  }
  size_t scratch_bytes() const { return scratch_bytes_; }  // of one slice in flight
  size_t vector_count() const { return block_elements_.size(); }
  size_t output_bytes(size_t v) const {
    return block_elements_[v] * item_bytes_ * slice_ops_->output_blocks;
  }

  // Finds where the message of an op that stays in place landed; null: it was copied to scratch.
  class InPlace {
   public:
    virtual ~InPlace() = default;
    virtual const std::byte* Message(int32_t op) const = 0;
  };
  struct Memory {
    const MemberBuffers* buffers;
    std::byte* scratch;
    const InPlace* in_place;
    int32_t slice;
  };

  // destination = sources[0] op ...; for a receive `incoming` is the first source.
  void Move(const SliceOp& op, const std::byte* incoming, const Memory& memory) const;
  // Collects an op's source as a message.
  void Gather(const SliceOp& op, std::byte* message, const Memory& memory) const;
  // The source of a send if it is one contiguous piece, else null.
  const std::byte* Contiguous(const SliceOp& op, const Memory& memory) const;
  // The input or output that it lies in; empty: in scratch.
  std::span<const std::byte> ArrayOf(const SliceOp& op, int32_t slice,
                                     const MemberBuffers& buffers) const;
  void ClearUnwritten(const MemberBuffers& buffers) const;

 private:
  // A strip of every chunk of one vector: number `strip` of `strips`.
  struct Part {
    int32_t vector;
    int64_t strip, strips;
    size_t stride;
  };
  struct Slice {
    std::vector<Part> parts;
    size_t stride_sum = 0;
  };
  struct Strip {
    int64_t first;  // element in the vector
    int64_t count;
  };

  SlicePlan() = default;
  Strip StripOf(int32_t chunk, const Part& part) const;
  std::byte* Address(const LocalChunk& chunk, size_t part, const Memory& memory) const;
  // The index in MemberBuffers of the array that a chunk of an input or an output lies in.
  size_t ArrayIndex(const LocalChunk& chunk, int32_t vector) const;

  std::shared_ptr<const SliceOps> slice_ops_;
  std::unique_ptr<const RaggedProcesses> ragged_;
  std::vector<int64_t> block_elements_;
  DType dtype_ = DType::kUint8;
  ReduceOp reduce_op_ = ReduceOp::kSum;
  bool separate_blocks_ = false;
  size_t item_bytes_ = 1;
  Caching output_caching_ = Caching::kCached;
  std::vector<Slice> slices_;
  size_t scratch_bytes_ = 0;
  // For each cell of scratch the op that stays in place there, and its position; -1: none.
  struct Landing {
    int32_t op = -1;
    int32_t position = 0;
  };
  std::vector<Landing> landings_;  // by cell
};

}  // namespace jaxcoll
