#include "gpu/host/call_plan.h"

#include <algorithm>
#include <optional>

#include "gpu/abi/fingerprint.h"
#include "schedule/op_list_builder.h"

namespace jaxcoll::cuda {
namespace {

// Bytes that make another block worth while: two 16-byte loads of each thread. Not measured yet.
constexpr int64_t kBytesPerBlock = 2 * 16 * kThreads;
// The bytes of a block's staging in one round: large enough that the copy takes longer than the
// barrier, and small enough that the areas of all ranks stay in L2. Not measured yet.
constexpr int64_t kHalfBytes = 64 << 10;

std::optional<Mode> ModeOf(const std::string& collective, const std::string& algorithm) {
  if (collective == "all_reduce" && algorithm == "direct2") return Mode::kAllReduceTwoShot;
  if (algorithm != "direct") return std::nullopt;
  if (collective == "all_reduce") return Mode::kAllReduceOneShot;
  if (collective == "reduce_scatter") return Mode::kReduceScatter;
  if (collective == "reduce") return Mode::kReduce;
  if (collective == "all_gather") return Mode::kAllGather;
  if (collective == "all_to_all") return Mode::kAllToAll;
  if (collective == "broadcast") return Mode::kBroadcast;
  if (collective == "permute") return Mode::kPermute;
  if (collective == "ragged_all_to_all") return Mode::kRaggedAllToAll;
  return std::nullopt;
}

}  // namespace

StatusOr<Ragged> RaggedOf(const CallShape& shape, int world_size) {
  if (Status status = CheckRaggedOperands(shape, world_size); !status.ok()) return status;
  const CallShape::Array& output = shape.outputs[0];
  Ragged ragged = {};
  ragged.operand_rows = shape.inputs[0].dimensions[0];
  ragged.output_rows = output.dimensions[0];
  ragged.updates_per_peer = static_cast<int32_t>(shape.inputs[2].elements() / world_size);
  ragged.wide_index = shape.inputs[2].dtype == DType::kInt64 ? 1 : 0;
  ragged.row_bytes = static_cast<int64_t>(ItemBytes(output.dtype));
  for (size_t i = 1; i < output.dimensions.size(); ++i) ragged.row_bytes *= output.dimensions[i];
  return ragged;
}

bool CallPlan::Serves(const CallSpec& spec) {
  return spec.schedule.empty() && spec.group_size <= kMaxRanks &&
         ModeOf(spec.collective, spec.algorithm).has_value();
}

Kernel CallPlan::kernel() const {
  if (mode == Mode::kRaggedAllToAll) return {.family = Kernel::kRagged};
  // One rank's sum is its input, to the last bit of a NaN.
  if (!Reduces(mode) || world_size == 1) return {.family = Kernel::kMove};
  return {.family = Kernel::kReduce, .dtype = dtype, .op = reduce_op};
}

StatusOr<CallPlan> CallPlan::Create(const CallSpec& spec, const CallShape& shape, int max_blocks) {
  CallPlan plan;
  const std::optional<Mode> mode = ModeOf(spec.collective, spec.algorithm);
  if (!mode) {
    return InvalidArgument("the GPU kernels have no algorithm '" + spec.algorithm + "' of " +
                           spec.collective +
                           "; use algorithm='auto', or 'direct', or 'direct2' for all_reduce");
  }
  if (spec.group_size > kMaxRanks) {
    return InvalidArgument("a group of " + std::to_string(spec.group_size) +
                           " GPUs is more than the " + std::to_string(kMaxRanks) +
                           " that the kernels serve");
  }
  plan.mode = *mode;
  plan.world_size = static_cast<int>(spec.group_size);
  plan.root = static_cast<int>(spec.root);
  if (plan.root < 0 || plan.root >= plan.world_size) {
    return InvalidArgument("root " + std::to_string(spec.root) + " is not in the group");
  }
  if (spec.permutation.size() % 2 != 0) {
    return InvalidArgument("a permutation is a list of (source, destination) pairs");
  }
  for (size_t i = 0; i < spec.permutation.size(); i += 2) {
    for (const int64_t rank : {spec.permutation[i], spec.permutation[i + 1]}) {
      if (rank < 0 || rank >= plan.world_size) {
        return InvalidArgument("a permutation of " + std::to_string(plan.world_size) +
                               " ranks names rank " + std::to_string(rank));
      }
    }
    plan.permutation.emplace_back(spec.permutation[i], spec.permutation[i + 1]);
  }
  if (plan.mode == Mode::kRaggedAllToAll) {
    StatusOr<Ragged> ragged = RaggedOf(shape, plan.world_size);
    if (!ragged.ok()) return ragged.status();
    plan.ragged = *ragged;
    const CallShape::Array& output = shape.outputs[0];
    plan.dtype = output.dtype;
    plan.elements = {output.elements(), 0, 0};  // three vectors carry the addresses
  } else {
    const Collective collective = *ParseCollective(spec.collective);
    StatusOr<CallVectors> vectors =
        CheckVectors(spec, shape, InputBlocks(collective, plan.world_size),
                     OutputBlocks(collective, plan.world_size));
    if (!vectors.ok()) return vectors.status();
    plan.dtype = vectors->dtype;
    plan.reduce_op = vectors->reduce_op;
    plan.elements = std::move(vectors->block_elements);
  }
  // Blocks for the largest vector: what one rank reads or writes of it.
  int64_t work = *std::max_element(plan.elements.begin(), plan.elements.end()) *
                 static_cast<int64_t>(ItemBytes(plan.dtype));
  if (plan.mode == Mode::kAllGather || plan.mode == Mode::kAllToAll) work *= plan.world_size;
  plan.blocks = static_cast<int>(std::clamp<int64_t>((work + kBytesPerBlock - 1) / kBytesPerBlock,
                                                     1, std::min(max_blocks, kMaxBlocks)));
  Fingerprint hash;
  for (const int64_t value :
       {static_cast<int64_t>(plan.mode), static_cast<int64_t>(plan.dtype),
        static_cast<int64_t>(plan.reduce_op), int64_t{plan.world_size}, int64_t{plan.root},
        plan.ragged.row_bytes, int64_t{plan.ragged.updates_per_peer}, int64_t{plan.blocks}}) {
    hash.Add(value);
  }
  for (const int64_t rank : spec.permutation) hash.Add(rank);
  for (const int64_t count : plan.elements) hash.Add(count);
  plan.fingerprint = hash.Value32();
  return plan;
}

uint64_t CallPlan::TableBytes() const {
  if (mode != Mode::kRaggedAllToAll) return 0;
  return sizeof(RaggedEntry) * world_size * ragged.updates_per_peer;
}

int64_t CallPlan::SlotBytes(uint64_t available) const {
  if (available < TableBytes()) return 0;
  available -= TableBytes();
  const int slots = StagingSlots(mode, world_size);
  const uint64_t fits = available / (uint64_t{2} * blocks * slots);
  // No more than a vector has for each block.
  int64_t parts = blocks;
  if (mode == Mode::kAllReduceTwoShot) parts *= world_size;
  const int64_t largest =
      *std::max_element(elements.begin(), elements.end()) * static_cast<int64_t>(ItemBytes(dtype));
  const int64_t useful = (largest + parts - 1) / parts + kAlignment - 1;
  const int64_t bytes = std::min({static_cast<int64_t>(fits), kHalfBytes / slots, useful});
  return bytes / kAlignment * kAlignment;
}

StatusOr<Call> CallPlan::Bind(int rank, int launch, const void* const* inputs,
                              void* const* outputs) const {
  Call call = {};
  call.mode = mode;
  call.reduce_op = static_cast<int32_t>(reduce_op);
  call.world_size = world_size;
  call.rank = rank;
  call.root = root;
  call.source = call.destination = -1;
  for (const auto& [source, destination] : permutation) {
    if (source == rank) call.destination = destination;
    if (destination == rank) call.source = source;
  }
  call.item_bytes = static_cast<int32_t>(ItemBytes(dtype));
  call.fingerprint = fingerprint;
  if (mode == Mode::kRaggedAllToAll) {
    call.vector_count = 3;
    call.vectors[0] = {inputs[0], outputs[0], 0};
    call.vectors[1] = {inputs[2], const_cast<void*>(inputs[3]), 0};  // both are only read
    call.vectors[2] = {inputs[4], const_cast<void*>(inputs[5]), 0};
    call.ragged = ragged;
    call.ragged.output = inputs[1];
    return call;
  }
  const size_t first = static_cast<size_t>(launch) * kMaxVectors;
  const size_t last = std::min(first + kMaxVectors, elements.size());
  call.vector_count = static_cast<int32_t>(last - first);
  for (size_t v = first; v < last; ++v) {
    call.vectors[v - first] = {inputs[v], outputs[v], elements[v]};
    const auto bits =
        reinterpret_cast<uintptr_t>(inputs[v]) | reinterpret_cast<uintptr_t>(outputs[v]);
    // XLA aligns buffers to more. Kernels rely on it for elements of 16 bytes and for zeros.
    if (bits % 16 != 0) return InvalidArgument("operands must be aligned to 16 bytes");
  }
  return call;
}

}  // namespace jaxcoll::cuda
