#include "engine/ragged.h"

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

RaggedRank RaggedRank::Of(std::span<const std::byte* const> inputs,
                          std::span<std::byte* const> outputs, size_t ranks, size_t r) {
  const auto input = [&](size_t v) { return inputs[v * ranks + r]; };
  return {input(0), input(1), input(2), input(3), input(4), input(5), outputs[r]};
}

RaggedBlock RaggedRank::BlockAt(const RaggedShape& shape, int64_t i) const {
  return {At(input_offsets, i, shape.index_dtype), At(output_offsets, i, shape.index_dtype),
          At(send_sizes, i, shape.index_dtype)};
}

int64_t RaggedRank::ExpectedRows(const RaggedShape& shape, int64_t j) const {
  return At(recv_sizes, j, shape.index_dtype);
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

}  // namespace jaxcoll
