#include "call/call_spec.h"

#include <algorithm>
#include <numeric>
#include <sstream>

#include "call/shared.h"
#include "engine/memory/local_actions.h"

namespace jaxcoll {

StatusOr<GroupTable> GroupTable::Create(const CallSpec& spec) {
  GroupTable table;
  table.groups_ = spec.groups;
  table.group_size_ = spec.group_size;
  table.device_ids_ = spec.device_ids;
  if (spec.group_size < 1 || spec.groups.empty() || spec.groups.size() % spec.group_size != 0) {
    return InvalidArgument("groups must be full rows of group_size ranks");
  }
  for (size_t i = 0; i < spec.groups.size(); ++i) {
    const Place place{static_cast<int32_t>(i / spec.group_size),
                      static_cast<int32_t>(i % spec.group_size)};
    if (!spec.device_ids.empty() &&
        (spec.groups[i] < 0 || spec.groups[i] >= static_cast<int64_t>(spec.device_ids.size()))) {
      return InvalidArgument("logical id " + std::to_string(spec.groups[i]) + " has no device");
    }
    if (!table.place_of_logical_.emplace(spec.groups[i], place).second) {
      return InvalidArgument("logical id " + std::to_string(spec.groups[i]) +
                             " stands in two groups");
    }
  }
  for (size_t i = 0; i < spec.device_ids.size(); ++i) {
    table.logical_of_device_.emplace(spec.device_ids[i], static_cast<int64_t>(i));
  }
  return table;
}

const Place* GroupTable::FindLogical(int64_t logical_id) const {
  const auto it = place_of_logical_.find(logical_id);
  return it == place_of_logical_.end() ? nullptr : &it->second;
}

StatusOr<int64_t> GroupTable::LogicalOfDevice(int64_t device_id) const {
  const auto it = logical_of_device_.find(device_id);
  if (it != logical_of_device_.end()) return it->second;
  return InvalidArgument("device " + std::to_string(device_id) +
                         " is not in the mesh the program was lowered for; compile it for the "
                         "mesh it runs on, or export it with jax.export");
}

std::string GroupTable::Describe(int64_t logical_id) const {
  if (logical_id >= 0 && logical_id < static_cast<int64_t>(device_ids_.size())) {
    return "device " + std::to_string(device_ids_[logical_id]);
  }
  return "partition " + std::to_string(logical_id);
}

std::string ScheduleKey(const CallSpec& spec) {
  std::ostringstream key;
  key << spec.collective << ' ' << spec.algorithm << ' ' << spec.group_size << ' ' << spec.root
      << ' ' << spec.channels << " [";
  for (const int64_t extent : spec.dims) key << ' ' << extent;
  key << ']';
  for (const int64_t rank : spec.permutation) key << ' ' << rank;
  key << '\n' << spec.schedule;
  return key.str();
}

std::string SignatureOf(const CallSpec& spec) {
  std::string text =
      spec.program + ' ' + spec.collective + ' ' + spec.algorithm + ' ' + spec.reduce_op;
  for (const int64_t number : {spec.root, spec.channels, spec.group_size, spec.separate_blocks}) {
    text += ' ' + std::to_string(number);
  }
  text += " [";
  for (const int64_t extent : spec.dims) text += ' ' + std::to_string(extent);
  text += ']';
  for (const int64_t rank : spec.permutation) text += ' ' + std::to_string(rank);
  text += '\n' + spec.signature + '\n' + spec.schedule;
  for (const int64_t logical : spec.groups) text += ' ' + std::to_string(logical);
  for (const int64_t device : spec.device_ids) text += ' ' + std::to_string(device);
  return text;
}

namespace {

// All ranks' op lists of a schedule written in Python.
StatusOr<std::vector<OpList>> Written(const CallSpec& spec) {
  StatusOr<std::vector<OpList>> parsed = Parse(spec.schedule);
  if (parsed.ok() && static_cast<int64_t>(parsed->size()) != spec.group_size) {
    return InvalidArgument("the schedule is for " + std::to_string(parsed->size()) +
                           " ranks, the group has " + std::to_string(spec.group_size));
  }
  return parsed;
}

StatusOr<Collective> CollectiveOf(const CallSpec& spec) {
  const std::optional<Collective> collective = ParseCollective(spec.collective);
  if (!collective) return InvalidArgument("unknown collective '" + spec.collective + "'");
  return *collective;
}

StatusOr<ScheduleSpec> ScheduleOf(const CallSpec& spec) {
  const StatusOr<Collective> collective = CollectiveOf(spec);
  if (!collective.ok()) return collective.status();
  ScheduleSpec schedule;
  schedule.collective = *collective;
  schedule.algorithm = spec.algorithm;
  schedule.world_size = static_cast<int32_t>(spec.group_size);
  schedule.channels = static_cast<int32_t>(spec.channels);
  schedule.dims.assign(spec.dims.begin(), spec.dims.end());
  schedule.root = static_cast<int32_t>(spec.root);
  if (spec.permutation.size() % 2 != 0) {
    return InvalidArgument("a permutation is a list of (source, destination) pairs");
  }
  for (size_t i = 0; i < spec.permutation.size(); i += 2) {
    schedule.permutation.emplace_back(spec.permutation[i], spec.permutation[i + 1]);
  }
  return schedule;
}

StatusOr<LocalActions> BuildActions(const CallSpec& spec) {
  std::vector<int32_t> ranks(spec.group_size);
  std::iota(ranks.begin(), ranks.end(), 0);
  StatusOr<std::vector<OpList>> op_lists = OpListsOf(spec, ranks);
  if (!op_lists.ok()) return op_lists.status();
  const StatusOr<World> world =
      World::Create(std::move(*op_lists), static_cast<int32_t>(spec.group_size));
  if (!world.ok()) return world.status();
  return Compile(*world, *ParseCollective(spec.collective));
}

StatusOr<SliceOps> BuildSliceOps(const CallSpec& spec, const std::vector<int32_t>& ranks) {
  const auto size = static_cast<int32_t>(spec.group_size);
  StatusOr<std::vector<OpList>> op_lists = OpListsOf(spec, ranks);
  if (!op_lists.ok()) return op_lists.status();
  const StatusOr<World> mine = World::Create(std::move(*op_lists), size);
  if (!mine.ok()) return mine.status();
  if (spec.schedule.empty()) {
    const StatusOr<ScheduleSpec> schedule = ScheduleOf(spec);
    if (!schedule.ok()) return schedule.status();
    const int32_t root = mine->MemberOf(schedule->root);
    const StatusOr<int32_t> largest = root != World::kNone
                                          ? StatusOr(LargestMessage(mine->op_lists()[root]))
                                          : LargestMessage(*schedule);
    if (!largest.ok()) return largest.status();
    return CompileSliceOps(*mine, *largest);
  }
  // Nobody has matched these ranks yet: what would never end is refused.
  StatusOr<std::vector<OpList>> written = Written(spec);
  if (!written.ok()) return written.status();
  int32_t largest = 1;
  for (const OpList& op_list : *written) largest = std::max(largest, LargestMessage(op_list));
  const StatusOr<World> all = World::Create(std::move(*written), size);
  if (!all.ok()) return all.status();
  if (const auto levels = Levels(*all, Sending::kRendezvous); !levels.ok()) return levels.status();
  return CompileSliceOps(*mine, largest);
}

}  // namespace

Status CheckSchedule(const CallSpec& spec) {
  if (!spec.schedule.empty()) return CollectiveOf(spec).status();
  const StatusOr<ScheduleSpec> schedule = ScheduleOf(spec);
  return schedule.ok() ? CheckSchedule(*schedule) : schedule.status();
}

StatusOr<std::vector<OpList>> OpListsOf(const CallSpec& spec, const std::vector<int32_t>& ranks) {
  std::vector<OpList> op_lists;
  if (!spec.schedule.empty()) {
    if (const auto collective = CollectiveOf(spec); !collective.ok()) return collective.status();
    StatusOr<std::vector<OpList>> written = Written(spec);
    if (!written.ok()) return written.status();
    for (const int32_t rank : ranks) op_lists.push_back(std::move((*written)[rank]));
    return op_lists;
  }
  const StatusOr<ScheduleSpec> schedule = ScheduleOf(spec);
  if (!schedule.ok()) return schedule.status();
  for (const int32_t rank : ranks) {
    StatusOr<OpList> op_list = BuildSchedule(*schedule, rank);
    if (!op_list.ok()) return op_list.status();
    op_lists.push_back(std::move(*op_list));
  }
  return op_lists;
}

StatusOr<std::shared_ptr<const LocalActions>> ActionsFor(const CallSpec& spec) {
  return Shared<LocalActions>(ScheduleKey(spec), [&] { return BuildActions(spec); });
}

StatusOr<std::shared_ptr<const SliceOps>> SliceOpsFor(const CallSpec& spec,
                                                      const std::vector<int32_t>& ranks) {
  std::string key = ScheduleKey(spec);
  for (const int32_t rank : ranks) key += ' ' + std::to_string(rank);
  return Shared<SliceOps>(key, [&] { return BuildSliceOps(spec, ranks); });
}

}  // namespace jaxcoll
