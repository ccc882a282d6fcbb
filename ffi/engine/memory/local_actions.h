// The op lists of all ranks of one address space, compiled to memory actions.
//
// Where every rank's memory can be addressed, a matched send and recv are one copy, and waiting for
// a peer is an order between two actions. Compile() turns a world into actions sorted by
// level: actions of one level are independent of each other, a level starts when the one before has
// ended. Three passes, none of which changes what is added to what or where a value rounds:
//
//   forward   a source in scratch that is nothing but a copy of somebody's input is read from that
//             input; copies that nobody reads any more are dropped
//   merge     actions with equal sources become one with several destinations
//   zero      output that permute and reduce leave unwritten is cleared
//
// So `direct`, P-1 receives and one N-ary reduction per rank, becomes one action that reads every
// input once and writes every output once; a ring stays a ring.
#pragma once

#include <cstdint>
#include <vector>

#include "schedule/schedule.h"
#include "schedule/world.h"

namespace jaxcoll {

// `chunk_count` consecutive chunks of one rank's buffer; the count is the action's.
struct ChunkRange {
  int32_t rank = 0;
  BufferKind buffer = BufferKind::kInput;
  int32_t first_chunk = 0;
  friend auto operator<=>(const ChunkRange&, const ChunkRange&) = default;
};

// destinations[j] = ((sources[0] op sources[1]) op ...); one source: copy; none: zeros.
struct Action {
  std::vector<ChunkRange> sources;
  std::vector<ChunkRange> destinations;
  int32_t chunk_count = 0;
};

// Immutable once compiled; shared by all runs of a call site.
struct LocalActions {
  int32_t world_size = 0;
  int32_t chunks_per_block = 1;
  int32_t input_blocks = 1;
  int32_t output_blocks = 1;
  int32_t scratch_blocks = 0;
  std::vector<std::vector<Action>> levels;
};

// Fails on a world that lacks ranks, and on one that deadlocks, naming an op.
StatusOr<LocalActions> Compile(const World& world, Collective collective);

}  // namespace jaxcoll
