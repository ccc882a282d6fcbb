// Engines take a world; this makes one of the bare op lists that tests have.
#pragma once

#include <vector>

#include "engine/memory/local_actions.h"
#include "engine/slices/slice_ops.h"
#include "gpu/abi/device_table.h"
#include "schedule/world.h"

namespace jaxcoll {

// The world of all ranks.
inline StatusOr<World> WorldOf(const std::vector<OpList>& op_lists) {
  return World::Create(op_lists, static_cast<int32_t>(op_lists.size()));
}

inline StatusOr<LocalActions> Compile(const std::vector<OpList>& op_lists, Collective collective) {
  const StatusOr<World> world = WorldOf(op_lists);
  if (!world.ok()) return world.status();
  return Compile(*world, collective);
}

inline StatusOr<SliceOps> CompileSliceOps(const std::vector<OpList>& op_lists, int32_t world_size,
                                          int32_t largest_message) {
  const StatusOr<World> world = World::Create(op_lists, world_size);
  if (!world.ok()) return world.status();
  return CompileSliceOps(*world, largest_message);
}

namespace cuda {

inline StatusOr<std::vector<DeviceTable>> Pack(const std::vector<OpList>& op_lists,
                                               const std::vector<int32_t>& ranks,
                                               int32_t max_workers, Reach reach = Reach::kRegions) {
  const StatusOr<World> world = WorldOf(op_lists);
  if (!world.ok()) return world.status();
  return Pack(*world, ranks, max_workers, reach);
}

}  // namespace cuda
}  // namespace jaxcoll
