// The part of device_table.h that knows sizes: how a call is cut.
#include <algorithm>
#include <limits>

#include "gpu/abi/device_table.h"

namespace jaxcoll::cuda {
namespace {

int64_t DivideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t RoundUp(int64_t a, int64_t unit) { return DivideUp(a, unit) * unit; }

}  // namespace

StatusOr<TableCall> PlanCall(const TableHeader& header, const std::vector<int64_t>& block_elements,
                             DType dtype, ReduceOp reduce_op, const RegionSize& region) {
  if (block_elements.size() > kMaxTableVectors) {
    return InvalidArgument("a launch takes " + std::to_string(kMaxTableVectors) + " vectors, not " +
                           std::to_string(block_elements.size()));
  }
  if (!Supports(dtype, reduce_op) && header.reduces) {
    return InvalidArgument(std::string(Name(dtype)) + " has no " + std::string(Name(reduce_op)));
  }
  TableCall call{};
  const int64_t item = static_cast<int64_t>(ItemBytes(dtype));
  call.dtype = static_cast<int32_t>(dtype);
  call.reduce_op = static_cast<int32_t>(reduce_op);
  call.item_bytes = static_cast<int32_t>(item);
  call.depth = std::max(region.depth, 1);
  call.vector_count = static_cast<int32_t>(block_elements.size());
  const int64_t max_strip = std::max<int64_t>(
      RoundUp(std::min<int64_t>(region.max_strip_bytes, 1 << 30), kSlotAlignment), kSlotAlignment);
  const int64_t min_strip = std::clamp<int64_t>(region.min_strip_bytes, kSlotAlignment, max_strip);

  // A strand for every strip that is worth one, as far as there are flags and slots.
  const int64_t flags_per_strand = int64_t{header.workers} * header.flags_per_worker;
  const int64_t slots_per_strand =
      int64_t{header.workers} * call.depth * header.slot_chunks + header.scratch_chunks;
  call.operand_offset = OperandOffset(header.world_size, region.flag_capacity);
  call.slot_offset = call.operand_offset;
  if (header.meets) {
    const int64_t operands = int64_t{header.world_size} * kMaxTableVectors;
    call.slot_offset += RoundUp(operands * int64_t{sizeof(OperandAddresses)}, kSlotAlignment);
  }
  const int64_t slot_bytes = region.bytes - call.slot_offset;
  const auto stride = [&](int64_t strands) {
    if (slots_per_strand == 0) return max_strip;
    const int64_t most =
        slot_bytes / (strands * slots_per_strand) / kSlotAlignment * kSlotAlignment;
    return std::min(most, max_strip);
  };
  if (flags_per_strand > region.flag_capacity || slot_bytes < 0 || stride(1) < kSlotAlignment) {
    return InvalidArgument(
        "this schedule needs a region of " +
        std::to_string(call.slot_offset + slots_per_strand * kSlotAlignment) + " bytes and " +
        std::to_string(flags_per_strand) + " flags at least, but the workspace gives it " +
        std::to_string(region.bytes) + " and " + std::to_string(region.flag_capacity) +
        "; use a larger workspace or an algorithm with fewer messages");
  }
  int64_t worth = 0;
  for (const int64_t elements : block_elements) {
    worth += DivideUp(DivideUp(elements, header.chunks_per_block) * item, min_strip);
  }
  int64_t strands = std::min<int64_t>({std::max(region.max_strands, 1), std::max<int64_t>(worth, 1),
                                       region.flag_capacity / flags_per_strand});
  while (strands > 1 && stride(strands) < min_strip) --strands;
  call.strands = static_cast<int32_t>(strands);
  call.stride_bytes = stride(strands);
  call.scratch_offset = call.slot_offset + strands * header.workers * call.depth *
                                               header.slot_chunks * call.stride_bytes;

  for (size_t v = 0; v < block_elements.size(); ++v) {
    TableVector& vector = call.vectors[v];
    vector.elements = block_elements[v];
    vector.first_slice = call.slice_count;
    const int64_t chunk = DivideUp(block_elements[v], header.chunks_per_block);
    if (chunk == 0) continue;
    // As many strips for every strand, each a whole number of aligned units.
    const int64_t needed = DivideUp(chunk * item, call.stride_bytes);
    const int64_t wanted = needed > strands ? RoundUp(needed, strands)
                                            : std::min(strands, DivideUp(chunk * item, min_strip));
    const int64_t unit = kSlotAlignment / item;
    const int64_t strip = RoundUp(DivideUp(chunk, std::max(wanted, needed)), unit);
    const int64_t slices = call.slice_count + DivideUp(chunk, strip);
    if (slices > std::numeric_limits<int32_t>::max() / 2) {
      return InvalidArgument("a call of " + std::to_string(slices) + " slices is too long");
    }
    vector.strip_elements = static_cast<int32_t>(strip);
    call.slice_count = static_cast<int32_t>(slices);
  }
  return call;
}

}  // namespace jaxcoll::cuda
