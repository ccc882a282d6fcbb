#include "executor/ragged.h"

#include <cstring>
#include <string>

namespace jaxcoll {
namespace {

int64_t At(const void* table, int64_t i, DType dtype) {
  return dtype == DType::kInt64 ? static_cast<const int64_t*>(table)[i]
                                : static_cast<const int32_t*>(table)[i];
}

std::string Rows(int64_t first, int64_t count) {
  return "rows [" + std::to_string(first) + ", " + std::to_string(first + count) + ")";
}

// [first, first + count) within [0, total), without overflow.
bool Within(int64_t first, int64_t count, int64_t total) {
  return first >= 0 && count >= 0 && first <= total && count <= total - first;
}

}  // namespace

Status CheckRagged(const RaggedCall& call) {
  const auto world_size = static_cast<int64_t>(call.ranks.size());
  for (int64_t from = 0; from < world_size; ++from) {
    const RaggedRank& sender = call.ranks[from];
    for (int64_t i = 0; i < world_size * call.updates_per_peer; ++i) {
      const int64_t to = i / call.updates_per_peer;
      const int64_t size = At(sender.send_sizes, i, call.index_dtype);
      const int64_t input_offset = At(sender.input_offsets, i, call.index_dtype);
      const int64_t output_offset = At(sender.output_offsets, i, call.index_dtype);
      const std::string pair =
          "rank " + std::to_string(from) + " to rank " + std::to_string(to) + ": ";
      if (!Within(input_offset, size, call.operand_rows)) {
        return InvalidArgument(pair + "sends " + Rows(input_offset, size) + " of an operand of " +
                               std::to_string(call.operand_rows) + " rows");
      }
      if (!Within(output_offset, size, call.output_rows)) {
        return InvalidArgument(pair + "writes " + Rows(output_offset, size) + " of an output of " +
                               std::to_string(call.output_rows) + " rows");
      }
      const int64_t slot = from * call.updates_per_peer + i % call.updates_per_peer;
      const int64_t expected = At(call.ranks[to].recv_sizes, slot, call.index_dtype);
      if (expected != size) {
        return InvalidArgument(pair + "sends " + std::to_string(size) +
                               " rows where the receiver's recv_sizes expects " +
                               std::to_string(expected));
      }
    }
  }
  return Status();
}

void RunRagged(const RaggedCall& call, int64_t destination) {
  const RaggedRank& receiver = call.ranks[destination];
  std::memcpy(receiver.result, receiver.output, call.output_rows * call.row_bytes);
  for (const RaggedRank& sender : call.ranks) {
    for (int64_t u = 0; u < call.updates_per_peer; ++u) {
      const int64_t i = destination * call.updates_per_peer + u;
      const int64_t input_offset = At(sender.input_offsets, i, call.index_dtype);
      const int64_t output_offset = At(sender.output_offsets, i, call.index_dtype);
      std::memcpy(receiver.result + output_offset * call.row_bytes,
                  sender.operand + input_offset * call.row_bytes,
                  At(sender.send_sizes, i, call.index_dtype) * call.row_bytes);
    }
  }
}

}  // namespace jaxcoll
