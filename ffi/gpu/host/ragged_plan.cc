#include "gpu/host/ragged_plan.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "gpu/abi/fingerprint.h"
#include "gpu/host/call_plan.h"

namespace jaxcoll::cuda {
namespace {

constexpr int64_t kMostPairBytes = int64_t{1} << 40;

}  // namespace

StatusOr<std::unique_ptr<MessagePlan>> RaggedPlan::Create(const CallSpec& spec,
                                                          const CallShape& shape, int max_blocks) {
  if (spec.group_size > kMaxTableRanks) {
    return InvalidArgument("a group of " + std::to_string(spec.group_size) +
                           " GPUs is more than the " + std::to_string(kMaxTableRanks) +
                           " that are served");
  }
  std::unique_ptr<RaggedPlan> plan(new RaggedPlan);
  const auto ranks = static_cast<int32_t>(spec.group_size);
  StatusOr<Ragged> ragged = RaggedOf(shape, ranks);
  if (!ragged.ok()) return ragged.status();
  plan->ragged_ = *ragged;
  plan->result_bytes_ = plan->ragged_.output_rows * plan->ragged_.row_bytes;
  // The most that one rank may send to another; see ShareOf().
  const int64_t rows = std::min(plan->ragged_.operand_rows, plan->ragged_.output_rows);
  if (plan->ragged_.updates_per_peer >
      kMostPairBytes / std::max<int64_t>(rows * plan->ragged_.row_bytes, 1)) {
    return InvalidArgument(
        "ragged_all_to_all of " + std::to_string(plan->ragged_.updates_per_peer) +
        " updates for each peer, each of up to " + std::to_string(rows * plan->ragged_.row_bytes) +
        " bytes, may be more than a TiB from one GPU to another; use fewer "
        "updates, or several calls");
  }
  plan->max_blocks_ = std::max(max_blocks, 1);
  TableHeader& header = plan->header_;
  header.magic = kTableMagic;
  header.total_bytes = sizeof(TableHeader);
  header.world_size = ranks;
  header.chunks_per_block = 1;
  header.workers = 1;
  header.slot_chunks = ranks;
  header.arrivals = ranks;
  header.departures = ranks;
  header.flags_per_worker = 2 * ranks;
  Fingerprint fingerprint;
  fingerprint.Add(spec.collective);
  for (const int64_t value :
       {int64_t{ranks}, plan->ragged_.operand_rows, plan->ragged_.output_rows,
        plan->ragged_.row_bytes, int64_t{plan->ragged_.updates_per_peer},
        static_cast<int64_t>(shape.outputs[0].dtype), int64_t{plan->max_blocks_}}) {
    fingerprint.Add(value);
  }
  plan->fingerprint_ = fingerprint.Value32();
  return std::unique_ptr<MessagePlan>(std::move(plan));
}

uint64_t RaggedPlan::TableBytes() const {
  return RoundUpToSlots(sizeof(header_)) + AreaAddresses::Bytes(header_.world_size);
}

uint64_t RaggedPlan::ScratchBytes(int strands) const {
  return static_cast<uint64_t>(strands) *
         static_cast<uint64_t>(RaggedScratchBytes(header_.world_size, ragged_.updates_per_peer));
}

// Slots as for rows that are dealt out evenly; any other number of them is served, too.
StatusOr<TableCall> RaggedPlan::Cut(uint64_t area_bytes) const {
  const int64_t slots = int64_t{kSlotDepth} * header_.slot_chunks;
  const int64_t rows = (result_bytes_ + header_.world_size - 1) / header_.world_size;
  for (int32_t strands = max_blocks_;;) {
    const uint64_t taken = TableBytes() + ScratchBytes(strands);
    RegionSize region;
    region.bytes = static_cast<int64_t>(area_bytes - std::min(area_bytes, taken));
    region.depth = kSlotDepth;
    region.max_strip_bytes = std::clamp(kBlockBytes / slots, kLeastStripBytes, kMostStripBytes);
    region.min_strip_bytes = kLeastStripBytes;
    region.max_strands = strands;
    region.flag_capacity = strands * header_.flags_per_worker;
    StatusOr<TableCall> call = PlanCall(header_, {rows}, DType::kUint8, ReduceOp::kSum, region);
    if (!call.ok() && strands == 1) return call.status();
    if (call.ok() && call->strands == strands) {
      call->slice_count = strands;  // how many more there are, tables say
      call->vectors[0].elements = result_bytes_;
      return call;
    }
    strands = call.ok() ? call->strands : strands / 2;
  }
}

uint64_t RaggedPlan::AreaBytes(uint64_t available) const {
  const StatusOr<TableCall> call = Cut(available);
  if (!call.ok()) return 0;
  return static_cast<uint64_t>(call->scratch_offset) + ScratchBytes(call->strands) + TableBytes();
}

Status RaggedPlan::Divide(uint64_t area_bytes) {
  StatusOr<TableCall> call = Cut(area_bytes);
  if (!call.ok()) return call.status();
  call_ = *call;
  area_bytes_ = area_bytes;
  return Status();
}

std::vector<unsigned char> RaggedPlan::Table(int rank, const AreaAddresses& addresses) const {
  std::vector<unsigned char> bytes(TableBytes());
  TableHeader header = header_;
  header.rank = rank;
  std::memcpy(bytes.data(), &header, sizeof(header));
  addresses.Write(bytes.data() + bytes.size());
  return bytes;
}

TableCall& RaggedPlan::Bind(int launch, unsigned char* area, const void* const* inputs,
                            void* const* outputs, Launch& result) const {
  result.kernel = kernel();
  result.blocks = blocks(launch);
  RaggedTableCall& call = result.parameters.emplace<RaggedTableCall>();
  call.table_call = call_;
  unsigned char* const table = area + TableOffset();
  call.table_call.table = reinterpret_cast<const TableHeader*>(table);
  AreaAddresses::Bind(call.table_call, table + TableBytes(), header_.world_size);
  call.table_call.fingerprint = fingerprint_;
  call.table_call.vectors[0].input = inputs[0];
  call.table_call.vectors[0].output = outputs[0];
  call.ragged = ragged_;
  call.ragged.output = inputs[1];
  call.input_offsets = inputs[2];
  call.send_sizes = inputs[3];
  call.output_offsets = inputs[4];
  call.recv_sizes = inputs[5];
  return call.table_call;
}

}  // namespace jaxcoll::cuda
