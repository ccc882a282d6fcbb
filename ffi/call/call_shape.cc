#include "call/call_shape.h"

#include <optional>

namespace jaxcoll {

int64_t CallShape::Array::elements() const {
  int64_t count = 1;
  for (const int64_t dimension : dimensions) count *= dimension;
  return count;
}

std::string CallShape::Array::Text() const {
  std::string text(Name(dtype));
  text += '[';
  for (size_t i = 0; i < dimensions.size(); ++i) {
    text += (i == 0 ? "" : ",") + std::to_string(dimensions[i]);
  }
  return text + ']';
}

namespace {

bool Reduces(const CallSpec& spec) {
  const std::optional<Collective> collective = ParseCollective(spec.collective);
  return collective == Collective::kAllReduce || collective == Collective::kReduceScatter ||
         collective == Collective::kReduce;
}

}  // namespace

StatusOr<CallVectors> CheckVectors(const CallSpec& spec, const CallShape& shape,
                                   int64_t input_blocks, int64_t output_blocks) {
  if (shape.inputs.empty() || shape.inputs.size() != shape.outputs.size()) {
    return InvalidArgument(spec.collective + " returns as many vectors as it takes");
  }
  CallVectors vectors;
  vectors.dtype = shape.inputs[0].dtype;
  if (!spec.reduce_op.empty() || Reduces(spec)) {
    const std::optional<ReduceOp> op = ParseReduceOp(spec.reduce_op);
    if (!op) return InvalidArgument("unknown reduce op '" + spec.reduce_op + "'");
    if (!Supports(vectors.dtype, *op)) {
      return InvalidArgument(spec.reduce_op + " is not defined for " +
                             std::string(Name(vectors.dtype)));
    }
    vectors.reduce_op = *op;
  }
  for (size_t v = 0; v < shape.inputs.size(); ++v) {
    const CallShape::Array& input = shape.inputs[v];
    const CallShape::Array& output = shape.outputs[v];
    const int64_t block = input.elements() / input_blocks;
    if (input.dtype != vectors.dtype || output.dtype != vectors.dtype ||
        block * input_blocks != input.elements() || block * output_blocks != output.elements()) {
      return InvalidArgument(spec.collective + " over " + std::to_string(spec.group_size) +
                             " ranks cannot turn " + input.Text() + " into " + output.Text());
    }
    vectors.block_elements.push_back(block);
  }
  return vectors;
}

Status CheckRaggedOperands(const CallShape& shape, int64_t world_size) {
  if (shape.inputs.size() != 6 || shape.outputs.size() != 1) {
    return InvalidArgument("ragged_all_to_all takes six operands and returns one");
  }
  const DType index = shape.inputs[2].dtype;
  for (size_t i = 2; i < 6; ++i) {
    if (shape.inputs[i].dtype != index || (index != DType::kInt32 && index != DType::kInt64)) {
      return InvalidArgument("ragged_all_to_all takes offsets and sizes of int32 or int64");
    }
    if (shape.inputs[i].elements() != shape.inputs[2].elements() ||
        shape.inputs[i].elements() % world_size != 0) {
      return InvalidArgument("ragged_all_to_all takes tables of a multiple of " +
                             std::to_string(world_size) + " entries");
    }
  }
  if (shape.inputs[0].dimensions.empty() || shape.inputs[1].dimensions.empty()) {
    return InvalidArgument("ragged_all_to_all takes operands of one dimension or more");
  }
  return Status();
}

}  // namespace jaxcoll
