// The op lists of this process's ranks, compiled for a group that other processes share.
//
// Every collective treats the elements of a chunk alike, so a schedule can be run on a strip of
// every chunk as well as on all of it. A call is cut into slices, each a strip of every chunk
// (or, of small vectors, several whole ones) whose largest message fits one slot of a window; a
// slice runs the whole schedule, and a few of them run at once. That is what pipelines a ring and
// what bounds the memory: scratch exists for the slices in flight only.
//
// CompileSliceOps() also
//   - turns a message between two ranks of this process into one move, and drops the move where it
//     only brings somebody's input to scratch: its readers read that input
//   - lets a message from another process that lands in scratch stay in its slot (kInPlace)
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "base/dtype.h"
#include "engine/slices/run.h"
#include "schedule/schedule.h"
#include "schedule/world.h"

namespace jaxcoll {

// One chunk of one local rank's buffer. `member` counts this process's ranks of the group.
struct LocalChunk {
  int32_t member = 0;
  BufferKind buffer = BufferKind::kInput;
  int32_t chunk = 0;
  int32_t cell = -1;  // of scratch: where the process keeps it, see SliceOps
};

struct SliceOp {
  enum class Kind : uint8_t {
    kNothing,  // only orders others
    kMove,     // destination = sources[0] op sources[1] ...
    kSend,     // sources[0] to `peer`
    kReceive,  // from `peer`; destination = incoming [op sources[0]]
    kInPlace,  // from `peer`; destination is where it landed
  };
  Kind kind = Kind::kNothing;
  int32_t member = 0;
  int32_t peer = 0;  // rank in the group
  MessageKey key;    // of the message that it sends or receives
  int32_t chunk_count = 0;
  std::vector<std::vector<LocalChunk>> sources;  // [operand][chunk]
  std::vector<LocalChunk> destination;           // [chunk]
  // An op starts when everything it waits for has happened; see Schedule.
  int32_t waits = 0;
  std::vector<int32_t> after_start;       // ops that wait for this one to start
  std::vector<int32_t> after_completion;  // ops that wait for this one to complete
  bool read_again = true;                 // whether some op reads the destination, if output
  int32_t partner = -1;  // the other side of a message within the process; the receiver moves
};

struct SliceOps {
  int32_t world_size = 0;
  int32_t chunks_per_block = 1;
  int32_t input_blocks = 1;
  int32_t output_blocks = 1;
  // Cells of scratch: one for each chunk that an op of `members` touches, however many blocks the
  // schedule lays out (direct2 lays out P^2 chunks, of which a rank touches P).
  int32_t scratch_cells = 0;
  std::vector<int32_t> members;  // rank in the group of each local rank
  std::vector<SliceOp> ops;
  std::vector<LocalChunk> zeros;           // output that nobody writes
  std::map<MessageKey, int32_t> messages;  // between processes -> the op of this side
  int32_t largest_message = 0;             // chunks; equal on every process, as the cuts must be
};

// `world`: this process's ranks. `largest_message`: chunks in the largest message of any rank.
// Fails for a world of no ranks.
StatusOr<SliceOps> CompileSliceOps(const World& world, int32_t largest_message);

}  // namespace jaxcoll
