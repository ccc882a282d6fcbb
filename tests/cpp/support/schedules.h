// Schedules that tests build.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "schedule/schedule.h"

namespace jaxcoll {

inline constexpr Collective kCollectives[] = {Collective::kAllReduce, Collective::kReduceScatter,
                                              Collective::kAllGather, Collective::kAllToAll,
                                              Collective::kBroadcast, Collective::kReduce,
                                              Collective::kPermute};

inline ScheduleSpec PlainSpec(Collective collective, std::string algorithm, int32_t world_size) {
  ScheduleSpec spec;
  spec.collective = collective;
  spec.algorithm = std::move(algorithm);
  spec.world_size = world_size;
  return spec;
}

// Empty where the algorithm does not serve so many ranks.
inline std::vector<OpList> BuildAll(const ScheduleSpec& spec) {
  std::vector<OpList> op_lists;
  for (int32_t rank = 0; rank < spec.world_size; ++rank) {
    StatusOr<OpList> op_list = BuildSchedule(spec, rank);
    if (!op_list.ok()) return {};
    op_lists.push_back(std::move(*op_list));
  }
  return op_lists;
}

}  // namespace jaxcoll
