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
inline std::vector<Program> BuildAll(const ScheduleSpec& spec) {
  std::vector<Program> programs;
  for (int32_t rank = 0; rank < spec.world_size; ++rank) {
    StatusOr<Program> program = BuildSchedule(spec, rank);
    if (!program.ok()) return {};
    programs.push_back(std::move(*program));
  }
  return programs;
}

}  // namespace jaxcoll
