// The builder that an algorithm writes its ops with.
//
// A builder is born with a spec, a rank and a layout; the algorithm's function then runs once per
// channel, naming chunks of that channel's share only. The builder numbers messages and records
// rounds, so that a ring is a dozen lines; BuildSchedule derives what the ops wait for.
#pragma once

#include <map>
#include <utility>
#include <vector>

#include "schedule/schedule.h"

namespace jaxcoll {

// Short, since algorithms name them in every line.
inline constexpr BufferKind kIn = BufferKind::kInput;
inline constexpr BufferKind kOut = BufferKind::kOutput;
inline constexpr BufferKind kTmp = BufferKind::kScratch;

// The arguments that an algorithm needs, equal on all ranks. 64 bits, because it is computed before
// it is known whether chunk indices fit in 32.
struct Layout {
  int64_t chunks = 1;  // per block and channel
  int64_t scratch_blocks = 0;
  int64_t subchannels = 1;  // channels of ops that one copy of the pattern uses
};

int32_t InputBlocks(Collective collective, int32_t world_size);
int32_t OutputBlocks(Collective collective, int32_t world_size);

// The ops of BuildSchedule() without what they wait for, at half the cost: to ask what messages
// there are.
StatusOr<OpList> BuildUnordered(const ScheduleSpec& spec, int32_t rank);

class OpListBuilder {
 public:
  // `layout` has been checked: all chunk indices fit in 32 bits.
  OpListBuilder(const ScheduleSpec& spec, int32_t rank, const Layout& layout);

  int32_t rank() const { return op_list_.rank; }
  int32_t size() const { return spec_.world_size; }
  const ScheduleSpec& spec() const { return spec_; }
  // `rank` + `offset` around the ring of all ranks.
  int32_t Neighbour(int32_t offset) const;

  // Chunks of block 0; for collectives whose input and output are one block.
  Operand Chunks(BufferKind buffer, int32_t begin, int32_t count = 1) const;
  // The same for any chunks of block 0.
  Operand Chunks(BufferKind buffer, const std::vector<Interval>& chunks) const;
  // Whole blocks, first to first + count - 1, wrapping around at the buffer's end.
  Operand Blocks(BufferKind buffer, int32_t first, int32_t count = 1) const;
  // The same for blocks in any order, each taken modulo the buffer's block count.
  Operand Blocks(BufferKind buffer, const std::vector<int32_t>& blocks) const;
  // Chunk `part`, of the layout's `chunks`, of each of those blocks.
  Operand Parts(BufferKind buffer, const std::vector<int32_t>& blocks, int32_t part) const;

  // Ops belong to the current step; the operands of a transfer are those of both sides.
  void Send(int32_t peer, Operand source, Operand destination_on_peer);
  void Recv(int32_t peer, Operand source_on_peer, Operand destination);
  void RecvReduce(int32_t peer, Operand source_on_peer, Operand local, Operand destination);
  void Copy(Operand source, Operand destination);
  void Reduce(std::vector<Operand> sources, Operand destination);

  // Ops are named by their index. The last one also waits for an earlier one to complete, beyond
  // what data demands: what is sent first then has the ports to itself.
  int32_t LastOp() const { return static_cast<int32_t>(op_list_.ops.size()) - 1; }
  void LastOpWaitsFor(int32_t op) { op_list_.ops.back().depends_on.push_back(op); }

  void SetStep(int32_t step) { step_ = step; }
  void NextStep() { ++step_; }
  int32_t Step() const { return step_; }
  // Ops of different subchannels do not wait for each other to start. Back to 0 with every channel.
  void SetSubchannel(int32_t subchannel) { subchannel_ = subchannel; }

  // The copy of the pattern that is being written; starts at step 0, subchannel 0.
  void SetChannel(int32_t channel);

  OpList Finish() &&;  // the ops wait for no more than the algorithm has said

 private:
  void Add(OpKind kind, int32_t peer, std::vector<Operand> sources, Operand destination);
  int32_t BlockCount(BufferKind buffer) const;

  const ScheduleSpec& spec_;
  const Layout layout_;
  OpList op_list_;
  int32_t channel_ = 0;
  int32_t subchannel_ = 0;
  int32_t step_ = 0;
  // Messages so far, by (peer, channel of ops).
  std::map<std::pair<int32_t, int32_t>, int32_t> sent_, received_;
};

}  // namespace jaxcoll
