// The launch of every rank of a group for a custom call with a dedicated kernel. It is computed
// from the HLO and the shapes, so it is equal on all ranks. Plain C++: making one needs no GPU.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/dtype.h"
#include "base/status.h"
#include "call/call_shape.h"
#include "gpu/abi/layout.h"
#include "gpu/abi/runtime.h"

namespace jaxcoll::cuda {

// The facts that the shapes of a ragged_all_to_all give; without pointers. Fails for operands that
// do not fit each other.
StatusOr<Ragged> RaggedOf(const CallShape& shape, int world_size);

struct CallPlan {
  Mode mode = Mode::kAllGather;
  DType dtype = DType::kUint8;
  ReduceOp reduce_op = ReduceOp::kSum;
  int world_size = 1;
  int root = 0;
  std::vector<std::pair<int, int>> permutation;  // (source, destination)
  std::vector<int64_t> elements;                 // by vector: of one block
  Ragged ragged = {};                            // without pointers
  int blocks = 1;                                // of a launch
  uint32_t fingerprint = 0;                      // never 0, which is what flags begin with

  // Whether the collective and algorithm have a kernel, for a group of this size.
  static bool Serves(const CallSpec& spec);
  // Fails for a collective, algorithm, dtype or shape that the kernels do not serve. `max_blocks`
  // is the communicator's.
  static StatusOr<CallPlan> Create(const CallSpec& spec, const CallShape& shape, int max_blocks);

  Kernel kernel() const;
  int launches() const {
    return static_cast<int>((elements.size() + kMaxVectors - 1) / kMaxVectors);
  }
  // Staged: bytes of a slot that are worth having, when `available` bytes may be taken; 0 if even
  // the smallest slots do not fit.
  int64_t SlotBytes(uint64_t available) const;
  uint64_t StagingBytes(int64_t slot_bytes) const {
    return cuda::StagingBytes(mode, world_size, blocks, slot_bytes) + TableBytes();
  }

  // The parameters of launch `launch` for one rank, but for what the communicator adds. The
  // operands are in the order of the custom call.
  StatusOr<Call> Bind(int rank, int launch, const void* const* inputs, void* const* outputs) const;

 private:
  uint64_t TableBytes() const;  // of a ragged exchange, behind the slots
};

}  // namespace jaxcoll::cuda
