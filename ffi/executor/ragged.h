// ragged_all_to_all: block sizes are known only at run time, from operands of the call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/dtype.h"
#include "base/status.h"

namespace jaxcoll {

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

// Entry i of the four tables belongs to peer i / updates_per_peer. Offsets and sizes count rows.
struct RaggedCall {
  std::vector<RaggedRank> ranks;
  int64_t updates_per_peer = 1;
  int64_t operand_rows = 0;
  int64_t output_rows = 0;
  size_t row_bytes = 0;
  DType index_dtype = DType::kInt32;  // int32 or int64
};

// Refuses, naming both ranks, rows outside the operand or the output, and a sender and a receiver
// that disagree on a size: after an error nothing has been written.
Status CheckRagged(const RaggedCall& call);

// Writes the result of one rank: its `output`, then the segments in the order of their senders.
void RunRagged(const RaggedCall& call, int64_t destination);

}  // namespace jaxcoll
