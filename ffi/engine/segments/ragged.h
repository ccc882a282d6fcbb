// ragged_all_to_all: block sizes are known only at run time, from operands of the call. What its
// tables say, what is wrong with them, and the exchange itself within a process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "base/status.h"

namespace jaxcoll {

// Equal for all ranks. Entry i of the four tables belongs to peer i / updates_per_peer; offsets and
// sizes count rows.
struct RaggedShape {
  int64_t updates_per_peer = 1;
  int64_t operand_rows = 0;
  int64_t output_rows = 0;
  size_t row_bytes = 0;
  DType index_dtype = DType::kInt32;  // int32 or int64
};

// The operands of one rank, in the order of the custom call.
struct RaggedRank {
  const std::byte* operand = nullptr;
  const std::byte* output = nullptr;  // what the result holds where nothing arrives
  const void* input_offsets = nullptr;
  const void* send_sizes = nullptr;
  const void* output_offsets = nullptr;
  const void* recv_sizes = nullptr;
  std::byte* result = nullptr;
};

// What a sender's tables say of one of its blocks.
struct RaggedBlock {
  int64_t input_offset = 0;
  int64_t output_offset = 0;
  int64_t rows = 0;
};
RaggedBlock BlockAt(const RaggedShape& shape, const RaggedRank& sender, int64_t i);
// What the receiver's recv_sizes says of it; entry i belongs to sender i / updates_per_peer.
int64_t ExpectedRows(const RaggedShape& shape, const RaggedRank& receiver, int64_t i);

// Tables that do not fit the operands or each other. Plain numbers: processes tell each other.
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
// What the sender of a block can see, and what its receiver can.
std::optional<RaggedFault> CheckSent(const RaggedShape& shape, int64_t from, int64_t to,
                                     const RaggedBlock& block);
std::optional<RaggedFault> CheckReceived(const RaggedShape& shape, int64_t from, int64_t to,
                                         int64_t output_offset, int64_t rows, int64_t expected);

struct RaggedCall {
  std::vector<RaggedRank> ranks;
  RaggedShape shape;
};

// Refuses, naming both ranks, rows outside the operand or the output, and a sender and a receiver
// that disagree on a size: after an error nothing has been written.
Status CheckRagged(const RaggedCall& call);

// Writes the result of one rank: its `output`, then the blocks in the order of their senders.
void RunRagged(const RaggedCall& call, int64_t destination);

}  // namespace jaxcoll
