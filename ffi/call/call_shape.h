// The static shape of a call, and the checks that every engine makes before it plans the call.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "base/status.h"
#include "call/call_spec.h"

namespace jaxcoll {

// Equal for all ranks, because they run one executable.
struct CallShape {
  struct Array {
    DType dtype = DType::kUint8;
    std::vector<int64_t> dimensions;
    int64_t elements() const;
    std::string Text() const;  // "float32[2,3]"
  };
  std::vector<Array> inputs;
  std::vector<Array> outputs;
};

// The vectors of a call that is not ragged: input v has `input_blocks` blocks of block_elements[v]
// elements, output v has `output_blocks`.
struct CallVectors {
  DType dtype = DType::kUint8;
  ReduceOp reduce_op = ReduceOp::kSum;
  std::vector<int64_t> block_elements;
};

// Fails for inputs and outputs whose shapes do not fit the collective, and for a reduce op that the
// dtype does not have.
StatusOr<CallVectors> CheckVectors(const CallSpec& spec, const CallShape& shape,
                                   int64_t input_blocks, int64_t output_blocks);

// Fails for operands of a ragged_all_to_all that do not fit each other.
Status CheckRaggedOperands(const CallShape& shape, int64_t world_size);

}  // namespace jaxcoll
