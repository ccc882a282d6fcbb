#include "gpu/host/program_plan.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <string>
#include <utility>

#include "gpu/abi/fingerprint.h"

namespace jaxcoll::cuda {

StatusOr<std::unique_ptr<MessagePlan>> ProgramPlan::Create(const CallSpec& spec,
                                                           const CallShape& shape, int max_blocks,
                                                           Reach reach) {
  if (spec.group_size > kMaxProgramRanks) {
    return InvalidArgument("a group of " + std::to_string(spec.group_size) +
                           " GPUs is more than the " + std::to_string(kMaxProgramRanks) +
                           " that are served");
  }
  std::unique_ptr<ProgramPlan> plan(new ProgramPlan);
  std::vector<int32_t> ranks(spec.group_size);
  std::iota(ranks.begin(), ranks.end(), 0);
  StatusOr<std::vector<Program>> programs = ProgramsOf(spec, ranks);
  if (!programs.ok()) return programs.status();
  if (shape.inputs.empty() || shape.inputs.size() != shape.outputs.size()) {
    return InvalidArgument(spec.collective + " returns as many vectors as it takes");
  }
  plan->max_blocks_ = std::max(max_blocks, 1);
  plan->dtype_ = shape.inputs[0].dtype;
  if (!spec.reduce_op.empty()) {
    const std::optional<ReduceOp> op = ParseReduceOp(spec.reduce_op);
    if (!op) return InvalidArgument("unknown reduce op '" + spec.reduce_op + "'");
    if (!Supports(plan->dtype_, *op)) {
      return InvalidArgument(spec.reduce_op + " is not defined for " +
                             std::string(Name(plan->dtype_)));
    }
    plan->reduce_op_ = *op;
  }
  const Program& first = programs->front();
  for (size_t v = 0; v < shape.inputs.size(); ++v) {
    const CallShape::Array& input = shape.inputs[v];
    const CallShape::Array& output = shape.outputs[v];
    const int64_t block = input.elements() / first.input_blocks;
    if (input.dtype != plan->dtype_ || output.dtype != plan->dtype_ ||
        block * first.input_blocks != input.elements() ||
        block * first.output_blocks != output.elements()) {
      return InvalidArgument(spec.collective + " over " + std::to_string(spec.group_size) +
                             " ranks cannot turn " + std::to_string(input.elements()) +
                             " elements into " + std::to_string(output.elements()));
    }
    plan->elements_.push_back(block);
  }
  const StatusOr<World> world =
      World::Create(std::move(*programs), static_cast<int32_t>(spec.group_size));
  if (!world.ok()) return world.status();
  StatusOr<std::vector<DeviceProgram>> tables = Pack(*world, ranks, plan->max_blocks_, reach);
  if (!tables.ok()) return tables.status();
  plan->tables_ = std::move(*tables);
  Fingerprint fingerprint;
  for (const DeviceProgram& table : plan->tables_) {
    plan->table_bytes_ = std::max<uint64_t>(plan->table_bytes_, table.bytes());
    for (const uint64_t word : table.words) fingerprint.Add(static_cast<int64_t>(word));
  }
  plan->table_bytes_ = RoundUpToSlots(plan->table_bytes_) + AreaAddresses::Bytes(ranks.size());
  fingerprint.Add(spec.collective);
  for (const int64_t value :
       {static_cast<int64_t>(plan->dtype_), static_cast<int64_t>(plan->reduce_op_),
        static_cast<int64_t>(plan->max_blocks_)}) {
    fingerprint.Add(value);
  }
  for (const int64_t count : plan->elements_) fingerprint.Add(count);
  plan->fingerprint_ = fingerprint.Value32();
  return std::unique_ptr<MessagePlan>(std::move(plan));
}

StatusOr<std::vector<ProgramCall>> ProgramPlan::Cut(uint64_t area_bytes) const {
  const ProgramHeader& header = tables_[0].header();
  RegionSize region;
  region.bytes = static_cast<int64_t>(area_bytes - std::min(area_bytes, table_bytes_));
  region.depth = kSlotDepth;
  const int64_t chunks = int64_t{kSlotDepth} * header.slot_chunks + header.scratch_chunks;
  region.max_slice_bytes =
      chunks == 0 ? kBlockBytes
                  : std::clamp(kBlockBytes / chunks, kLeastSliceBytes, kMostSliceBytes);
  region.min_slice_bytes = kLeastSliceBytes;
  // Flags for as many lanes as there will be: those of all launches stand at the same place.
  for (int32_t lanes = std::max(max_blocks_ / header.workers, 1);;) {
    region.max_lanes = lanes;
    region.flag_capacity = lanes * header.workers * header.flags_per_worker;
    std::vector<ProgramCall> calls;
    int32_t used = 0;
    for (size_t begin = 0; begin < elements_.size(); begin += kMaxProgramVectors) {
      const size_t end = std::min(begin + kMaxProgramVectors, elements_.size());
      StatusOr<ProgramCall> call =
          PlanCall(header, std::vector<int64_t>(elements_.begin() + begin, elements_.begin() + end),
                   dtype_, reduce_op_, region);
      if (!call.ok() && lanes == 1) return call.status();
      if (!call.ok()) break;
      used = std::max(used, call->lanes);
      calls.push_back(*call);
    }
    if (static_cast<int>(calls.size()) < launches()) {
      lanes /= 2;
    } else if (used < lanes) {
      lanes = used;
    } else {
      return calls;
    }
  }
}

uint64_t ProgramPlan::AreaBytes(uint64_t available) const {
  const StatusOr<std::vector<ProgramCall>> calls = Cut(available);
  if (!calls.ok()) return 0;
  int64_t end = 0;
  for (const ProgramCall& call : *calls) {
    end = std::max(end, call.scratch_offset + int64_t{call.lanes} *
                                                  tables_[0].header().scratch_chunks *
                                                  call.stride_bytes);
  }
  return static_cast<uint64_t>(end) + table_bytes_;
}

Status ProgramPlan::Divide(uint64_t area_bytes) {
  StatusOr<std::vector<ProgramCall>> calls = Cut(area_bytes);
  if (!calls.ok()) return calls.status();
  calls_ = std::move(*calls);
  area_bytes_ = area_bytes;
  return Status();
}

std::vector<unsigned char> ProgramPlan::Table(int rank, const AreaAddresses& addresses) const {
  std::vector<unsigned char> bytes(table_bytes_);
  std::memcpy(bytes.data(), tables_[rank].words.data(), tables_[rank].bytes());
  addresses.Write(bytes.data() + table_bytes_);
  return bytes;
}

ProgramCall& ProgramPlan::Bind(int launch, unsigned char* area, const void* const* inputs,
                               void* const* outputs, Launch& result) const {
  result.kernel = kernel();
  result.blocks = blocks(launch);
  ProgramCall& call = result.parameters.emplace<ProgramCall>(calls_[launch]);
  unsigned char* const table = area + TableOffset();
  call.program = reinterpret_cast<const ProgramHeader*>(table);
  AreaAddresses::Bind(call, table + table_bytes_, tables_.size());
  call.fingerprint = fingerprint_;
  const size_t first = static_cast<size_t>(launch) * kMaxProgramVectors;
  for (int32_t v = 0; v < call.vector_count; ++v) {
    call.vectors[v].input = inputs[first + v];
    call.vectors[v].output = outputs[first + v];
  }
  return call;
}

}  // namespace jaxcoll::cuda
