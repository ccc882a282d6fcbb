// ragged_all_to_all: the schedule of a direct all_to_all, whose chunk extents are not cut from
// sizes but read from operands of the call, while it runs. Chunk d of a rank's input, what it sends
// to rank d, is `updates_per_peer` blocks of rows, and so is chunk s of its output, what rank s
// sends to it:
//
//   of rank s's input     from row input_offsets[i], send_sizes[i] rows      i = d * updates + u
//   of rank d's output    at row rank s's output_offsets[i], recv_sizes[j]   j = s * updates + u
//
// So the table of extents is spread over the ranks: a sender knows where its blocks land, their
// receiver only how long they must be. The output begins as the operand `output`, and blocks are
// written in the order of their senders: where they overlap, the last one's rows stand.
//
//   in one process (LocalPlan)     All tables are there when the last rank arrives. They are
//                                  checked once, before anything is written, and read where they
//                                  lie.
//   between processes              A call has two phases, each cut into slices. In the first,
//   (SlicePlan, ragged_table.h)    processes tell each other the extents of what they send. One
//                                  that holds all of them, and finds that they fit its own, fills
//                                  its table and begins the second phase, in which the blocks move
//                                  and each message waits for its receiver to be ready.
//
// Empty chunks signal, too: a receiver announces that it is ready for the first message of each
// chunk, whatever its length, and its sender waits for that. So a call completes only when every
// process has accepted every other's extents. Empty messages themselves are not sent.
//
// Extents that do not fit the operands or each other are a fault that names both ranks, and nothing
// is written. Between processes, the one that finds the fault sends it to all others in place of
// its readiness, so the call fails on everyone, and the next one may succeed. Every address comes
// from a checked table: a peer that lies writes inside the output or not at all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "base/status.h"

namespace jaxcoll {

// Equal for all ranks. Offsets and sizes count rows.
struct RaggedShape {
  int64_t updates_per_peer = 1;
  int64_t operand_rows = 0;
  int64_t output_rows = 0;
  size_t row_bytes = 0;
  DType index_dtype = DType::kInt32;  // int32 or int64
  size_t output_bytes() const { return output_rows * row_bytes; }
};

// One block, as its sender's tables have it.
struct RaggedBlock {
  int64_t input_offset = 0;
  int64_t output_offset = 0;
  int64_t rows = 0;
};

// The buffers of one rank.
struct RaggedRank {
  const std::byte* operand = nullptr;
  const std::byte* output = nullptr;  // what the result holds where nothing arrives
  const void* input_offsets = nullptr;
  const void* send_sizes = nullptr;
  const void* output_offsets = nullptr;
  const void* recv_sizes = nullptr;
  std::byte* result = nullptr;

  // Takes those of rank `r` out of all ranks' buffers, [vector * ranks + rank], whose vectors are
  // in the order of the custom call.
  static RaggedRank Of(std::span<const std::byte* const> inputs,
                       std::span<std::byte* const> outputs, size_t ranks, size_t r);
  RaggedBlock BlockAt(const RaggedShape& shape, int64_t i) const;
  int64_t ExpectedRows(const RaggedShape& shape, int64_t j) const;
};

// Plain numbers: processes tell each other.
struct RaggedFault {
  enum Kind : int64_t { kOperand, kOutput, kSizes };
  int64_t kind = kOperand;
  int64_t from = 0, to = 0;  // ranks
  int64_t rows = 0;          // that the sender sends
  int64_t other = 0;         // their offset; kSizes: what the receiver expects
};
// `of_rank`, if not empty, stands behind each rank: " (process 1)".
std::string Text(const RaggedFault& fault, const RaggedShape& shape,
                 const std::vector<std::string>& of_rank = {});
// [first, first + count) within [0, total), without overflow.
inline bool RowsWithin(int64_t first, int64_t count, int64_t total) {
  return first >= 0 && count >= 0 && first <= total && count <= total - first;
}

// The faults that the sender of a block can see, and those that its receiver can. Inline: every
// block of every call passes through both.
inline std::optional<RaggedFault> CheckSent(const RaggedShape& shape, int64_t from, int64_t to,
                                            const RaggedBlock& block) {
  if (!RowsWithin(block.input_offset, block.rows, shape.operand_rows)) {
    return RaggedFault{RaggedFault::kOperand, from, to, block.rows, block.input_offset};
  }
  if (!RowsWithin(block.output_offset, block.rows, shape.output_rows)) {
    return RaggedFault{RaggedFault::kOutput, from, to, block.rows, block.output_offset};
  }
  return std::nullopt;
}

inline std::optional<RaggedFault> CheckReceived(const RaggedShape& shape, int64_t from, int64_t to,
                                                int64_t output_offset, int64_t rows,
                                                int64_t expected) {
  if (!RowsWithin(output_offset, rows, shape.output_rows)) {
    return RaggedFault{RaggedFault::kOutput, from, to, rows, output_offset};
  }
  if (rows != expected) return RaggedFault{RaggedFault::kSizes, from, to, rows, expected};
  return std::nullopt;
}

}  // namespace jaxcoll
