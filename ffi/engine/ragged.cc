#include "engine/ragged.h"

namespace jaxcoll {
namespace {

int64_t At(const void* table, int64_t i, DType dtype) {
  return dtype == DType::kInt64 ? static_cast<const int64_t*>(table)[i]
                                : static_cast<const int32_t*>(table)[i];
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
  // A table can contain any number, so sums could overflow: nothing is added here.
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

}  // namespace jaxcoll
