// The HLO's description of one custom call. See docs/explanation/custom-call.md.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/status.h"
#include "engine/memory/local_actions.h"
#include "engine/slices/slice_ops.h"
#include "schedule/schedule.h"

namespace jaxcoll {

struct CallSpec {
  std::string collective;
  std::string algorithm;
  std::string reduce_op;
  std::vector<int64_t> groups;  // logical ids, group after group
  int64_t group_size = 0;
  std::vector<int64_t>
      device_ids;  // global device id by logical id; empty: logical id is an operand
  int64_t root = 0;
  std::vector<int64_t> permutation;
  std::vector<int64_t> dims;  // of the algorithm
  int64_t channels = 1;
  int64_t separate_blocks = 0;  // 1: each block of a vector is an array of its own
  std::string schedule;         // serialised; empty: BuildSchedule
  std::string program;          // fingerprint of the program, where other processes take part
  std::string signature;        // types of the operands as lowered, to tell call sites apart
  std::string label;
};

// The place of a logical id: its group, and its rank there.
struct Place {
  int32_t group = 0;
  int32_t rank = 0;
};

// The groups as tables. Immutable.
class GroupTable {
 public:
  static StatusOr<GroupTable> Create(const CallSpec& spec);

  // Null if the device takes no part.
  const Place* FindLogical(int64_t logical_id) const;
  StatusOr<int64_t> LogicalOfDevice(int64_t device_id) const;
  bool ranks_by_device() const { return !logical_of_device_.empty(); }
  int32_t group_count() const { return static_cast<int32_t>(groups_.size() / group_size_); }
  // -1 where device ids are not known.
  int64_t DeviceId(Place place) const {
    return device_ids_.empty() ? -1 : device_ids_[LogicalId(place)];
  }
  int64_t LogicalId(Place place) const { return groups_[place.group * group_size_ + place.rank]; }
  // "device 5", or "partition 5" where device ids are not known.
  std::string Describe(int64_t logical_id) const;

 private:
  std::vector<int64_t> groups_;
  int64_t group_size_ = 0;
  std::vector<int64_t> device_ids_;
  std::unordered_map<int64_t, Place> place_of_logical_;
  std::unordered_map<int64_t, int64_t> logical_of_device_;
};

// All that processes must agree on about an instruction, as text: its program and its attributes.
std::string SignatureOf(const CallSpec& spec);

// Fails for a collective that does not exist, and for an algorithm that cannot serve the spec.
// Builds no op list; a schedule written in Python is read when OpListsOf is asked for it.
Status CheckSchedule(const CallSpec& spec);

// Everything that the op lists depend on.
std::string ScheduleKey(const CallSpec& spec);

// The op lists of some ranks of a group.
StatusOr<std::vector<OpList>> OpListsOf(const CallSpec& spec, const std::vector<int32_t>& ranks);

// The memory actions of a spec's groups, where all ranks are of this process: made of all ranks' op
// lists. Shared by all call sites with the same schedule.
StatusOr<std::shared_ptr<const LocalActions>> ActionsFor(const CallSpec& spec);

// The slice ops of `ranks`, which ascend and are those of this process in a group that spans
// processes: made of their op lists, whatever the size of the group. (A schedule written in Python
// comes as a whole, and is matched as a whole.) Shared likewise.
StatusOr<std::shared_ptr<const SliceOps>> SliceOpsFor(const CallSpec& spec,
                                                      const std::vector<int32_t>& ranks);

}  // namespace jaxcoll
