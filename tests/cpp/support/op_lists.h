// Engines take a world; this makes one of the bare op lists that tests have.
#pragma once

#include <vector>

#include "engine/memory/local_program.h"
#include "engine/slices/slice_ops.h"
#include "gpu/abi/device_program.h"
#include "schedule/world.h"

namespace jaxcoll {

// The world of all ranks.
inline StatusOr<World> WorldOf(const std::vector<Program>& programs) {
  return World::Create(programs, static_cast<int32_t>(programs.size()));
}

inline StatusOr<LocalProgram> Compile(const std::vector<Program>& programs, Collective collective) {
  const StatusOr<World> world = WorldOf(programs);
  if (!world.ok()) return world.status();
  return Compile(*world, collective);
}

inline StatusOr<SliceOps> CompileSliceOps(const std::vector<Program>& programs, int32_t world_size,
                                          int32_t largest_message) {
  const StatusOr<World> world = World::Create(programs, world_size);
  if (!world.ok()) return world.status();
  return CompileSliceOps(*world, largest_message);
}

namespace cuda {

inline StatusOr<std::vector<DeviceProgram>> Pack(const std::vector<Program>& programs,
                                                 const std::vector<int32_t>& ranks,
                                                 int32_t max_workers,
                                                 Reach reach = Reach::kRegions) {
  const StatusOr<World> world = WorldOf(programs);
  if (!world.ok()) return world.status();
  return Pack(*world, ranks, max_workers, reach);
}

}  // namespace cuda
}  // namespace jaxcoll
