#include "engine/segments/ragged.h"

#include <cstring>

namespace jaxcoll {
namespace {

int64_t At(const void* table, int64_t i, DType dtype) {
  return dtype == DType::kInt64 ? static_cast<const int64_t*>(table)[i]
                                : static_cast<const int32_t*>(table)[i];
}

// [first, first + count) within [0, total), without overflow.
bool Within(int64_t first, int64_t count, int64_t total) {
  return first >= 0 && count >= 0 && first <= total && count <= total - first;
}

}  // namespace

RaggedBlock BlockAt(const RaggedShape& shape, const RaggedRank& sender, int64_t i) {
  return {At(sender.input_offsets, i, shape.index_dtype),
          At(sender.output_offsets, i, shape.index_dtype),
          At(sender.send_sizes, i, shape.index_dtype)};
}

int64_t ExpectedRows(const RaggedShape& shape, const RaggedRank& receiver, int64_t i) {
  return At(receiver.recv_sizes, i, shape.index_dtype);
}

std::string Text(const RaggedFault& fault, const RaggedShape& shape,
                 const std::vector<std::string>& of_rank) {
  const auto rank = [&](int64_t number) {
    return "rank " + std::to_string(number) + (of_rank.empty() ? "" : of_rank[number]);
  };
  // Any number can stand in a table: nothing is added up here.
  const std::string rows = std::to_string(fault.rows) + " rows";
  const std::string other = std::to_string(fault.other);
  const std::string pair = rank(fault.from) + " to " + rank(fault.to) + ": ";
  switch (fault.kind) {
    case RaggedFault::kOperand:
      return pair + "sends " + rows + " from row " + other + " of an operand of " +
             std::to_string(shape.operand_rows) + " rows";
    case RaggedFault::kOutput:
      return pair + "writes " + rows + " at row " + other + " of an output of " +
             std::to_string(shape.output_rows) + " rows";
    default:
      return pair + "sends " + rows + " where the receiver's recv_sizes expects " + other;
  }
}

std::optional<RaggedFault> CheckSent(const RaggedShape& shape, int64_t from, int64_t to,
                                     const RaggedBlock& block) {
  if (!Within(block.input_offset, block.rows, shape.operand_rows)) {
    return RaggedFault{RaggedFault::kOperand, from, to, block.rows, block.input_offset};
  }
  if (!Within(block.output_offset, block.rows, shape.output_rows)) {
    return RaggedFault{RaggedFault::kOutput, from, to, block.rows, block.output_offset};
  }
  return std::nullopt;
}

std::optional<RaggedFault> CheckReceived(const RaggedShape& shape, int64_t from, int64_t to,
                                         int64_t output_offset, int64_t rows, int64_t expected) {
  if (!Within(output_offset, rows, shape.output_rows)) {
    return RaggedFault{RaggedFault::kOutput, from, to, rows, output_offset};
  }
  if (rows != expected) return RaggedFault{RaggedFault::kSizes, from, to, rows, expected};
  return std::nullopt;
}

Status CheckRagged(const RaggedCall& call) {
  const auto world_size = static_cast<int64_t>(call.ranks.size());
  const int64_t updates = call.shape.updates_per_peer;
  for (int64_t from = 0; from < world_size; ++from) {
    for (int64_t i = 0; i < world_size * updates; ++i) {
      const int64_t to = i / updates;
      const RaggedBlock block = BlockAt(call.shape, call.ranks[from], i);
      std::optional<RaggedFault> fault = CheckSent(call.shape, from, to, block);
      if (!fault) {
        const int64_t expected =
            ExpectedRows(call.shape, call.ranks[to], from * updates + i % updates);
        fault = CheckReceived(call.shape, from, to, block.output_offset, block.rows, expected);
      }
      if (fault) return InvalidArgument(Text(*fault, call.shape));
    }
  }
  return Status();
}

void RunRagged(const RaggedCall& call, int64_t destination) {
  const RaggedRank& receiver = call.ranks[destination];
  const RaggedShape& shape = call.shape;
  std::memcpy(receiver.result, receiver.output, shape.output_rows * shape.row_bytes);
  for (const RaggedRank& sender : call.ranks) {
    for (int64_t u = 0; u < shape.updates_per_peer; ++u) {
      const RaggedBlock block = BlockAt(shape, sender, destination * shape.updates_per_peer + u);
      std::memcpy(receiver.result + block.output_offset * shape.row_bytes,
                  sender.operand + block.input_offset * shape.row_bytes,
                  block.rows * shape.row_bytes);
    }
  }
}

}  // namespace jaxcoll
