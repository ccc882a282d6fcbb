#include "engine/slices/slice_plan.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <string>
#include <utility>

namespace jaxcoll {
namespace {

constexpr size_t kLine = 64;

size_t RoundUp(size_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

int64_t DivideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Results that exceed this are not read back from cache before they are evicted.
size_t OutputStreamingThresholdBytes() {
  const long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
  return cache > 0 ? static_cast<size_t>(cache) / 4 : size_t{4} << 20;
}

}  // namespace

StatusOr<std::shared_ptr<const SlicePlan>> SlicePlan::Create(
    std::shared_ptr<const SliceOps> slice_ops, std::vector<int64_t> block_elements, DType dtype,
    ReduceOp reduce_op, size_t message_bytes, bool separate_blocks) {
  std::shared_ptr<SlicePlan> plan(new SlicePlan);
  plan->item_bytes_ = ItemBytes(dtype);
  plan->dtype_ = dtype;
  plan->reduce_op_ = reduce_op;
  plan->separate_blocks_ = separate_blocks;
  plan->block_elements_ = std::move(block_elements);
  plan->slice_ops_ = std::move(slice_ops);
  const SliceOps& p = *plan->slice_ops_;
  const int64_t largest = std::max(p.largest_message, 1);
  if (largest * kLine > message_bytes) {
    return InvalidArgument("a message of " + std::to_string(largest) +
                           " chunks does not fit a slot; choose another algorithm");
  }
  size_t most_stride = 0, output_bytes = 0;
  Slice open;  // takes whole small vectors
  for (size_t v = 0; v < plan->block_elements_.size(); ++v) {
    const int64_t chunk = DivideUp(plan->block_elements_[v], p.chunks_per_block);
    const auto stride = [&](int64_t strips) {
      return RoundUp(DivideUp(chunk, strips) * plan->item_bytes_);
    };
    output_bytes += plan->output_bytes(v);
    int64_t strips = std::max<int64_t>(
        1, DivideUp(largest * static_cast<int64_t>(RoundUp(chunk * plan->item_bytes_)),
                    static_cast<int64_t>(message_bytes)));
    while (stride(strips) * largest > message_bytes) ++strips;
    const auto vector = static_cast<int32_t>(v);
    if (strips > 1) {
      for (int64_t s = 0; s < strips; ++s) {
        plan->slices_.push_back({{{vector, s, strips, stride(strips)}}, stride(strips)});
      }
      most_stride = std::max(most_stride, stride(strips));
      continue;
    }
    if ((open.stride_sum + stride(1)) * largest > message_bytes) {
      plan->slices_.push_back(std::exchange(open, Slice()));
    }
    open.parts.push_back({vector, 0, 1, stride(1)});
    open.stride_sum += stride(1);
    most_stride = std::max(most_stride, open.stride_sum);
  }
  if (!open.parts.empty()) plan->slices_.push_back(std::move(open));
  plan->scratch_bytes_ = static_cast<size_t>(p.scratch_cells) * most_stride;
  if (output_bytes >= OutputStreamingThresholdBytes()) plan->output_caching_ = Caching::kStreaming;
  plan->landings_.resize(p.scratch_cells);
  for (size_t op = 0; op < p.ops.size(); ++op) {
    if (p.ops[op].kind != SliceOp::Kind::kInPlace) continue;
    int32_t position = 0;
    for (const LocalChunk& c : p.ops[op].destination) {
      plan->landings_[c.cell] = {static_cast<int32_t>(op), position++};
    }
  }
  return std::shared_ptr<const SlicePlan>(std::move(plan));
}

StatusOr<std::shared_ptr<const SlicePlan>> SlicePlan::CreateRagged(
    const RaggedShape& shape, const std::vector<int>& process_of_rank, int process,
    size_t message_bytes) {
  std::shared_ptr<SlicePlan> plan(new SlicePlan);
  plan->ragged_ =
      std::make_unique<const RaggedProcesses>(shape, process_of_rank, process, message_bytes);
  StatusOr<SliceOps> ops = plan->ragged_->Ops();
  if (!ops.ok()) return ops.status();
  plan->slice_ops_ = std::make_shared<const SliceOps>(std::move(*ops));
  return std::shared_ptr<const SlicePlan>(std::move(plan));
}

SlicePlan::Strip SlicePlan::StripOf(int32_t chunk, const Part& part) const {
  const int64_t n = block_elements_[part.vector];
  const int64_t positions = slice_ops_->chunks_per_block;
  const int64_t position = chunk % positions;
  const int64_t first = position * n / positions;
  const int64_t length = (position + 1) * n / positions - first;
  // All but the last one are as long as their message, and so need not be gathered to be sent.
  const int64_t most = static_cast<int64_t>(part.stride / item_bytes_);
  const int64_t low = std::min(length, most * part.strip);
  return {chunk / positions * n + first + low, std::min(length - low, most)};
}

size_t SlicePlan::ArrayIndex(const LocalChunk& chunk, int32_t vector) const {
  size_t array = vector;
  if (separate_blocks_) {
    const bool in = chunk.buffer == BufferKind::kInput;
    array = array * (in ? slice_ops_->input_blocks : slice_ops_->output_blocks) +
            chunk.chunk / slice_ops_->chunks_per_block;
  }
  return array * slice_ops_->members.size() + chunk.member;
}

std::byte* SlicePlan::Address(const LocalChunk& chunk, size_t part_index,
                              const Memory& memory) const {
  const Slice& slice = slices_[memory.slice];
  const Part& part = slice.parts[part_index];
  if (chunk.buffer != BufferKind::kScratch) {
    const int32_t in_array =
        separate_blocks_ ? chunk.chunk % slice_ops_->chunks_per_block : chunk.chunk;
    const size_t offset = StripOf(in_array, part).first * item_bytes_;
    const size_t index = ArrayIndex(chunk, part.vector);
    // Inputs are only read: Parse and the verifier refuse what writes them.
    return chunk.buffer == BufferKind::kInput
               ? const_cast<std::byte*>(memory.buffers->inputs[index]) + offset
               : memory.buffers->outputs[index] + offset;
  }
  // Parts follow each other; within a part, chunks do.
  const auto in = [&](std::byte* base, size_t chunks, size_t position) {
    for (size_t i = 0; i < part_index; ++i) base += slice.parts[i].stride * chunks;
    return base + part.stride * position;
  };
  const Landing& landing = landings_[chunk.cell];
  if (landing.op >= 0) {
    if (const std::byte* message = memory.in_place->Message(landing.op)) {
      return in(const_cast<std::byte*>(message), slice_ops_->ops[landing.op].chunk_count,
                landing.position);
    }
  }
  return in(memory.scratch, slice_ops_->scratch_cells, chunk.cell);
}

void SlicePlan::Move(const SliceOp& op, const std::byte* incoming, const Memory& memory) const {
  const Slice& slice = slices_[memory.slice];
  std::array<const void*, 64> few;
  std::vector<const void*> many;
  const size_t count = op.sources.size() + (incoming != nullptr ? 1 : 0);
  if (count > few.size()) many.resize(count);
  const std::span<const void*> sources(many.empty() ? few.data() : many.data(), count);
  for (size_t p = 0; p < slice.parts.size(); ++p) {
    const Part& part = slice.parts[p];
    for (int32_t i = 0; i < op.chunk_count; ++i) {
      const LocalChunk& to = op.destination[i];
      const int64_t elements = StripOf(to.chunk, part).count;
      size_t n = 0;
      if (incoming != nullptr) {
        sources[n++] = incoming;
        incoming += part.stride;
      }
      if (elements == 0) continue;
      for (const std::vector<LocalChunk>& source : op.sources) {
        sources[n++] = Address(source[i], p, memory);
      }
      void* const destination = Address(to, p, memory);
      const Caching caching =
          to.buffer == BufferKind::kOutput && !op.read_again ? output_caching_ : Caching::kCached;
      if (count == 1) {
        if (destination != sources[0]) {
          Copy({&destination, 1}, sources[0], elements * item_bytes_, caching);
        }
      } else {
        Reduce({&destination, 1}, sources, elements, dtype_, reduce_op_, caching);
      }
    }
  }
}

void SlicePlan::Gather(const SliceOp& op, std::byte* message, const Memory& memory) const {
  const Slice& slice = slices_[memory.slice];
  for (size_t p = 0; p < slice.parts.size(); ++p) {
    for (int32_t i = 0; i < op.chunk_count; ++i) {
      const LocalChunk& from = op.sources[0][i];
      const size_t bytes = StripOf(from.chunk, slice.parts[p]).count * item_bytes_;
      if (bytes > 0) std::memcpy(message, Address(from, p, memory), bytes);
      message += slice.parts[p].stride;
    }
  }
}

const std::byte* SlicePlan::Contiguous(const SliceOp& op, const Memory& memory) const {
  const Slice& slice = slices_[memory.slice];
  if (op.chunk_count != 1 || slice.parts.size() != 1) return nullptr;
  const Part& part = slice.parts[0];
  // The message is as long as the longest strip, rounded up; it must not reach beyond the buffer.
  if (StripOf(op.sources[0][0].chunk, part).count * item_bytes_ != part.stride) return nullptr;
  return Address(op.sources[0][0], 0, memory);
}

std::span<const std::byte> SlicePlan::ArrayOf(const SliceOp& op, int32_t slice,
                                              const MemberBuffers& buffers) const {
  const LocalChunk& chunk = op.sources[0][0];
  if (chunk.buffer == BufferKind::kScratch) return {};
  const int32_t vector = slices_[slice].parts[0].vector;
  const size_t index = ArrayIndex(chunk, vector);
  const size_t block_bytes = block_elements_[vector] * item_bytes_;
  const auto bytes = [&](int32_t blocks) {
    return separate_blocks_ ? block_bytes : block_bytes * static_cast<size_t>(blocks);
  };
  if (chunk.buffer == BufferKind::kOutput) {
    return {buffers.outputs[index], bytes(slice_ops_->output_blocks)};
  }
  return {buffers.inputs[index], bytes(slice_ops_->input_blocks)};
}

void SlicePlan::ClearUnwritten(const MemberBuffers& buffers) const {
  for (const LocalChunk& c : slice_ops_->zeros) {
    for (size_t v = 0; v < block_elements_.size(); ++v) {
      const Part whole{static_cast<int32_t>(v), 0, 1, std::numeric_limits<size_t>::max() / 2};
      const Strip strip =
          StripOf(separate_blocks_ ? c.chunk % slice_ops_->chunks_per_block : c.chunk, whole);
      std::memset(buffers.outputs[ArrayIndex(c, whole.vector)] + strip.first * item_bytes_, 0,
                  strip.count * item_bytes_);
    }
  }
}

}  // namespace jaxcoll
