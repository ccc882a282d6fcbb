// The part of a call site that serves groups which reach into other processes.
#include <algorithm>
#include <map>
#include <mutex>
#include <utility>

#include "call/call_site_internal.h"
#include "engine/slices/slice_plan.h"

namespace jaxcoll {

// Two instructions of one run must not have one number: calls would be taken for each other's.
// It cannot happen unless one program is compiled by two threads at once.
struct CallSite::NumberUse {
  std::mutex mutex;
  int64_t last_run = 0;
  const CallSite* last_site = nullptr;

  // One for all call sites that have taken this number.
  static std::shared_ptr<NumberUse> Of(const std::string& instruction) {
    static std::mutex& mutex = *new std::mutex;
    static auto& uses = *new std::map<std::string, std::weak_ptr<NumberUse>>;
    std::lock_guard lock(mutex);
    std::erase_if(uses, [](const auto& use) { return use.second.expired(); });
    std::shared_ptr<NumberUse> use = uses[instruction].lock();
    if (use == nullptr) uses[instruction] = use = std::make_shared<NumberUse>();
    return use;
  }
};

bool CallSite::SharesNumber(int64_t run_id) {
  std::lock_guard lock(number_use_->mutex);
  const bool shares = number_use_->last_run == run_id && number_use_->last_site != nullptr &&
                      number_use_->last_site != this;
  number_use_->last_run = run_id;
  number_use_->last_site = this;
  return shares;
}

Status CallSite::FindMembers() {
  members_.resize(groups_.group_count());
  for (int32_t group = 0; group < groups_.group_count(); ++group) {
    Members& members = members_[group];
    for (int32_t rank = 0; rank < spec_.group_size; ++rank) {
      if (processes_ != nullptr && groups_.ranks_by_device()) {
        const int64_t device = groups_.DeviceId({group, rank});
        if (!processes_->ProcessOfDevice(device)) {
          return InvalidArgument("device " + std::to_string(device) + " is unknown to this job");
        }
        if (ProcessOfRank({group, rank}) != processes_->process()) {
          members.here = false;
          continue;
        }
      }
      members.ranks.push_back(rank);
    }
  }
  if (processes_ == nullptr ||
      std::all_of(members_.begin(), members_.end(), [](const Members& m) { return m.here; })) {
    return Status();
  }
  core_.TakeNumber(*processes_, "");
  number_use_ = NumberUse::Of(core_.instruction());
  return Status();
}

int CallSite::ProcessOfRank(Place place) const {
  return *processes_->ProcessOfDevice(groups_.DeviceId(place));
}

StatusOr<std::shared_ptr<const RunPlan>> CallSite::PlanSlices(const Members& members,
                                                              const CallVectors& vectors) const {
  StatusOr<std::shared_ptr<const SlicePlan>> plan =
      SlicePlan::Create(members.slice_ops, vectors.block_elements, vectors.dtype, vectors.reduce_op,
                        kSlotBytes, spec_.separate_blocks != 0);
  if (!plan.ok()) return plan.status();
  return std::shared_ptr<const RunPlan>(std::move(*plan));
}

StatusOr<std::shared_ptr<const RunPlan>> CallSite::PlanRagged(int32_t group) const {
  std::vector<int> process_of_rank;
  for (int32_t rank = 0; rank < spec_.group_size; ++rank) {
    process_of_rank.push_back(ProcessOfRank({group, rank}));
  }
  StatusOr<std::shared_ptr<const SlicePlan>> plan =
      SlicePlan::CreateRagged(ShapeOfRagged(), process_of_rank, processes_->process(), kSlotBytes);
  if (!plan.ok()) return plan.status();
  return std::shared_ptr<const RunPlan>(std::move(*plan));
}

void CallSite::OpenRemote(int32_t group, const std::string& shapes,
                          std::shared_ptr<const RunPlan> plan) {
  Interprocess::GroupSpec spec;
  for (int32_t rank = 0; rank < spec_.group_size; ++rank) {
    spec.device_ids.push_back(groups_.DeviceId({group, rank}));
  }
  // The shapes stand in the signature as they were lowered; what runs may be a shard of that.
  spec.operation = core_.instruction() + ' ' + shapes;
  spec.description = core_.Describe();
  spec.plan = std::move(plan);
  spec.facts = FactsOf(group);
  spec.build = core_.build();
  members_[group].remote = processes_->Open(std::move(spec));
}

CallFacts CallSite::FactsOf(int32_t group) const {
  const auto list = [](const std::vector<int64_t>& numbers) {
    std::string text;
    for (const int64_t number : numbers) text += (text.empty() ? "" : ",") + std::to_string(number);
    return text;
  };
  CallFacts facts;
  std::string dtypes, shapes;
  std::vector<int64_t> devices;
  for (const CallShape::Array& array : core_.shape().inputs) {
    if (dtypes.empty()) dtypes = Name(array.dtype);
    facts.bytes += array.elements() * ItemBytes(array.dtype);
    shapes += (shapes.empty() ? "[" : " [") + list(array.dimensions) + ']';
  }
  for (int32_t rank = 0; rank < spec_.group_size; ++rank) {
    devices.push_back(groups_.DeviceId({group, rank}));
  }
  facts.parts = {{"collectives", spec_.collective},
                 {"reduce ops", spec_.reduce_op},
                 {"dtypes", dtypes},
                 {"shapes", shapes},
                 {"axes", spec_.label},
                 {"groups", list(devices)},
                 {"roots", std::to_string(spec_.root)},
                 {"permutations", list(spec_.permutation)},
                 {"algorithms", spec_.algorithm},
                 {"places of ranks", list(spec_.dims)},
                 {"schedules", spec_.schedule}};
  facts.operands = core_.OperandsText();
  facts.program = spec_.program;
  facts.instruction = core_.instruction();
  facts.serial = std::count_if(spec_.device_ids.begin(), spec_.device_ids.end(), [&](int64_t id) {
                   return processes_->ProcessOfDevice(id) == processes_->process();
                 }) > 1;
  return facts;
}

RaggedShape CallSite::ShapeOfRagged() const {
  const CallShape::Array& output = core_.shape().outputs[0];
  RaggedShape shape;
  shape.updates_per_peer = core_.shape().inputs[2].elements() / spec_.group_size;
  shape.operand_rows = core_.shape().inputs[0].dimensions[0];
  shape.output_rows = output.dimensions[0];
  shape.index_dtype = core_.shape().inputs[2].dtype;
  shape.row_bytes = ItemBytes(output.dtype);
  for (size_t i = 1; i < output.dimensions.size(); ++i) shape.row_bytes *= output.dimensions[i];
  return shape;
}

CallSite::Entry CallSite::StartRemote(std::unique_ptr<Meeting> meeting, Members& members,
                                      int64_t run_id) {
  if (SharesNumber(run_id)) {
    members.remote->Fail(
        Status(StatusCode::kInternal,
               core_.Describe() +
                   ": two threads have compiled this program at once, and its calls cannot be "
                   "told apart; compile it on one thread first"));
  }
  MemberBuffers buffers;
  std::vector<std::unique_ptr<Completion>> completions;
  for (size_t v = 0; v < core_.shape().inputs.size(); ++v) {
    for (const int32_t rank : members.ranks) {
      buffers.inputs.push_back(meeting->buffers.inputs[v * spec_.group_size + rank]);
    }
  }
  for (size_t v = 0; v < core_.shape().outputs.size(); ++v) {
    const CallShape::Array& output = core_.shape().outputs[v];
    for (const int32_t rank : members.ranks) {
      buffers.outputs.push_back(meeting->buffers.outputs[v * spec_.group_size + rank]);
      AskForHugePages(buffers.outputs.back(), output.elements() * ItemBytes(output.dtype));
    }
  }
  for (const int32_t rank : members.ranks) {
    completions.push_back(std::move(meeting->completions[rank]));
  }
  Recycle(std::move(meeting));
  members.remote->Start(run_id, std::move(buffers), std::move(completions), cost_);
  return Entry::kPending;
}

}  // namespace jaxcoll
