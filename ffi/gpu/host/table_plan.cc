#include "gpu/host/table_plan.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "gpu/abi/fingerprint.h"

namespace jaxcoll::cuda {

StatusOr<std::unique_ptr<MessagePlan>> TablePlan::Create(const CallSpec& spec,
                                                         const CallShape& shape, int max_blocks,
                                                         Reach reach, std::span<const int32_t> own,
                                                         std::span<const int> host_of_rank) {
  if (spec.group_size > kMaxTableRanks) {
    return InvalidArgument("a group of " + std::to_string(spec.group_size) +
                           " GPUs is more than the " + std::to_string(kMaxTableRanks) +
                           " that are served");
  }
  StatusOr<std::shared_ptr<const PackedSchedule>> packed =
      PackedFor(spec, std::max(max_blocks, 1), reach, own, host_of_rank);
  if (!packed.ok()) return packed.status();
  StatusOr<CallVectors> vectors =
      CheckVectors(spec, shape, (*packed)->input_blocks, (*packed)->output_blocks);
  if (!vectors.ok()) return vectors.status();
  std::unique_ptr<TablePlan> plan(new TablePlan);
  plan->packed_ = std::move(*packed);
  plan->own_.assign(own.begin(), own.end());
  plan->max_blocks_ = std::max(max_blocks, 1);
  plan->dtype_ = vectors->dtype;
  plan->reduce_op_ = vectors->reduce_op;
  plan->elements_ = std::move(vectors->block_elements);
  plan->table_bytes_ = RoundUpToSlots(plan->packed_->table_bytes) +
                       AreaAddresses::Bytes(static_cast<size_t>(plan->world_size()));
  Fingerprint fingerprint;
  fingerprint.Add(static_cast<int64_t>(plan->packed_->fingerprint));
  fingerprint.Add(static_cast<int64_t>(plan->dtype_));
  fingerprint.Add(static_cast<int64_t>(plan->reduce_op_));
  for (const int64_t count : plan->elements_) fingerprint.Add(count);
  plan->fingerprint_ = fingerprint.Value32();
  return std::unique_ptr<MessagePlan>(std::move(plan));
}

StatusOr<std::vector<TableCall>> TablePlan::Cut(uint64_t area_bytes) const {
  const TableHeader& header = packed_->header();
  RegionSize region;
  region.bytes = static_cast<int64_t>(area_bytes - std::min(area_bytes, table_bytes_));
  region.depth = kSlotDepth;
  const int64_t chunks = int64_t{kSlotDepth} * header.slot_chunks + header.scratch_chunks;
  region.max_strip_bytes =
      chunks == 0 ? kBlockBytes
                  : std::clamp(kBlockBytes / chunks, kLeastStripBytes, kMostStripBytes);
  region.min_strip_bytes = kLeastStripBytes;
  // Flags for as many strands as there will be: those of all launches stand at the same place.
  for (int32_t strands = std::max(max_blocks_ / header.workers, 1);;) {
    region.max_strands = strands;
    region.flag_capacity = strands * header.workers * header.flags_per_worker;
    std::vector<TableCall> calls;
    int32_t used = 0;
    for (size_t begin = 0; begin < elements_.size(); begin += kMaxTableVectors) {
      const size_t end = std::min(begin + kMaxTableVectors, elements_.size());
      StatusOr<TableCall> call =
          PlanCall(header, std::vector<int64_t>(elements_.begin() + begin, elements_.begin() + end),
                   dtype_, reduce_op_, region);
      if (!call.ok() && strands == 1) return call.status();
      if (!call.ok()) break;
      used = std::max(used, call->strands);
      calls.push_back(*call);
    }
    if (static_cast<int>(calls.size()) < launches()) {
      strands /= 2;
    } else if (used < strands) {
      strands = used;
    } else {
      return calls;
    }
  }
}

uint64_t TablePlan::AreaBytes(uint64_t available) const {
  const StatusOr<std::vector<TableCall>> calls = Cut(available);
  if (!calls.ok()) return 0;
  int64_t end = 0;
  for (const TableCall& call : *calls) {
    end = std::max(end, call.scratch_offset + int64_t{call.strands} *
                                                  packed_->header().scratch_chunks *
                                                  call.stride_bytes);
  }
  return static_cast<uint64_t>(end) + table_bytes_;
}

Status TablePlan::Divide(uint64_t area_bytes) {
  StatusOr<std::vector<TableCall>> calls = Cut(area_bytes);
  if (!calls.ok()) return calls.status();
  calls_ = std::move(*calls);
  area_bytes_ = area_bytes;
  return Status();
}

std::vector<unsigned char> TablePlan::Table(int rank, const AreaAddresses& addresses) const {
  std::vector<unsigned char> bytes(table_bytes_);
  const DeviceTable& table = packed_->TableOf(rank);
  std::memcpy(bytes.data(), table.words.data(), table.bytes());
  addresses.Write(bytes.data() + table_bytes_);
  return bytes;
}

TableCall& TablePlan::Bind(int launch, unsigned char* area, const void* const* inputs,
                           void* const* outputs, Launch& result) const {
  result.kernel = kernel();
  result.blocks = blocks(launch);
  TableCall& call = result.parameters.emplace<TableCall>(calls_[launch]);
  unsigned char* const table = area + TableOffset();
  call.table = reinterpret_cast<const TableHeader*>(table);
  AreaAddresses::Bind(call, table + table_bytes_, static_cast<size_t>(world_size()));
  call.fingerprint = fingerprint_;
  const size_t first = static_cast<size_t>(launch) * kMaxTableVectors;
  for (int32_t v = 0; v < call.vector_count; ++v) {
    call.vectors[v].input = inputs[first + v];
    call.vectors[v].output = outputs[first + v];
  }
  return call;
}

}  // namespace jaxcoll::cuda
