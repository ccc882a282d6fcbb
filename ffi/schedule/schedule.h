// The intermediate representation: what each rank does in one collective, free of sizes.
//
// An algorithm is a pure function from a ScheduleSpec to one OpList per rank. The same op lists
// are verified (jaxcoll/schedule/verifier.py), executed (engine/) and simulated.
//
// Chunks. A buffer (input, output, scratch) is a row of blocks, each cut into the same
// `chunks_per_block` chunks; a chunk is named by its index, block * chunks_per_block + position.
// Chunk lengths belong to the plan: position j of a block of n elements covers
// [j*n/C, (j+1)*n/C), so two chunks have the same length exactly if their positions agree. Data may
// only move between chunks of equal position.
//
//   collective      input blocks   output blocks   postcondition on rank r
//   all_reduce      1              1               out[0] = reduce over q of in_q[0]
//   reduce          1              1               the same, on the root only
//   broadcast       1              1               out[0] = in_root[0]
//   reduce_scatter  P              1               out[0] = reduce over q of in_q[r]
//   all_gather      1              P               out[q] = in_q[0]
//   all_to_all      P              P               out[q] = in_q[r]
//   permute         1              1               out[0] = in_source(r)[0]; zeros without a source
//
// (reduce leaves the output of the other ranks unspecified; engines fill it with zeros.)
//
// Order. Ops of one channel start in program order. `send` completes when its source may be reused,
// `recv` and `recv_reduce` when their data is visible. A recv that has started tells the sender
// that its destination may be overwritten; data moves once both sides have started. Every other
// order is an explicit dependency: an op starts after all ops in `depends_on` have completed, and
// between operands of the same interval shape an engine may apply that strip by strip.
// The n-th send from a to b on a channel meets the n-th recv from a on b on that channel;
// `sequence` says so explicitly. Inputs are read-only.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/dtype.h"
#include "base/small_vector.h"
#include "base/status.h"

namespace jaxcoll {

enum class Collective : uint8_t {
  kAllReduce,
  kReduceScatter,
  kAllGather,
  kAllToAll,
  kBroadcast,
  kReduce,
  kPermute,
};

enum class OpKind : uint8_t { kSend, kRecv, kRecvReduce, kCopy, kReduce };
enum class BufferKind : uint8_t { kInput, kOutput, kScratch };

// Chunks begin, begin + 1, ..., begin + count - 1.
struct Interval {
  int32_t begin = 0;
  int32_t count = 0;
  friend bool operator==(const Interval&, const Interval&) = default;
};

struct Operand {
  BufferKind buffer = BufferKind::kInput;
  SmallVector<Interval, 1> chunks;
  friend bool operator==(const Operand&, const Operand&) = default;
};

//   kind         sources              destination           peer
//   send         {local}              on the peer           receiver
//   recv         {on the peer}        local                 sender
//   recv_reduce  {on the peer, local} local                 sender; destination = incoming op local
//   copy         {local}              local                 -1
//   reduce       {s0, s1, ...} local  local       -1; ((s0 op s1) op s2) ..., rounded once
// The interval lists of an op's operands cover equally many chunks, in corresponding positions.
struct Op {
  OpKind kind = OpKind::kCopy;
  int32_t channel = 0;  // an algorithm may use several for one of ScheduleSpec's channels
  int32_t peer = -1;
  int32_t sequence = -1;  // per (source rank, destination rank, channel); -1 for local ops
  int32_t step = 0;  // the algorithm's round, for printing and for counting steps; no semantics
  std::vector<Operand> sources;
  Operand destination;
  SmallVector<int32_t, 2> depends_on;  // indices of earlier or later ops of this rank
};

// The layout, all but `ops`, is equal on all ranks.
struct OpList {
  int32_t rank = 0;
  int32_t chunks_per_block = 1;
  int32_t input_blocks = 1;
  int32_t output_blocks = 1;
  int32_t scratch_blocks = 0;
  std::vector<Op> ops;
};

struct ScheduleSpec {
  Collective collective = Collective::kAllReduce;
  std::string algorithm = "direct";
  int32_t world_size = 1;
  int32_t channels = 1;  // independent copies of the pattern, each on its share of the chunks
  int32_t root = 0;      // broadcast, reduce
  std::vector<std::pair<int32_t, int32_t>> permutation;  // permute: (source, destination)
  std::vector<int32_t> dims;                             // see DimsKind; empty: the default
};

// The meaning of `dims` to an algorithm.
enum class DimsKind : uint8_t {
  kNone,       // nothing; must be empty
  kNodes,      // {nodes, ranks per node}, consecutive ranks; default: nearest to a square
  kTorus,      // extents of a torus, the last one varies fastest; default: one ring
  kAggregate,  // {most blocks in one message}, a power of two; default: as many as there are
};

// One rank's op list; O(this rank's ops). Fails, naming the choices, for an unknown algorithm, and
// with the sizes it takes for a world size that the algorithm cannot serve.
StatusOr<OpList> BuildSchedule(const ScheduleSpec& spec, int32_t rank);

// The error that BuildSchedule would return for any rank; builds nothing.
Status CheckSchedule(const ScheduleSpec& spec);

// Ops that BuildSchedule has made in this process so far: tests and benchmarks of what a call costs
// count them. Nothing else reads it.
int64_t OpsBuilt();

// The kind of an algorithm that the collective has.
DimsKind DimsKindOf(Collective collective, std::string_view algorithm);

// The algorithms of a collective, in the order `jaxcoll info` prints them.
std::vector<std::string> Algorithms(Collective collective);

std::string_view Name(Collective collective);  // "all_reduce", ...
std::optional<Collective> ParseCollective(std::string_view name);

// Text form (text.cc): stable, human readable, and what carries Python-written schedules in FFI
// attributes. It holds all ranks' op lists in rank order, of one layout.
std::string Serialize(const std::vector<OpList>& op_lists);

// Accepts what Serialize writes, 1 MiB at most, and from any other text returns an error that names
// the line. A schedule that it accepts is safe to index with: chunks lie inside their buffers,
// peers and dependencies exist, an op's operands correspond, inputs are not written. Whether
// messages match and the result is right, only verification knows.
StatusOr<std::vector<OpList>> Parse(std::string_view text);

}  // namespace jaxcoll
