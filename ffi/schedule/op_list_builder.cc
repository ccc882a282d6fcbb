#include "schedule/op_list_builder.h"

#include <atomic>

namespace jaxcoll {
namespace {

std::atomic<int64_t> ops_built{0};  // publishes nothing but itself

void Append(Operand& operand, int32_t begin, int32_t count) {
  if (!operand.chunks.empty()) {
    Interval& last = operand.chunks.back();
    if (last.begin + last.count == begin) {
      last.count += count;
      return;
    }
  }
  operand.chunks.push_back({begin, count});
}

}  // namespace

int64_t OpsBuilt() { return ops_built.load(std::memory_order_relaxed); }

int32_t InputBlocks(Collective collective, int32_t world_size) {
  return collective == Collective::kReduceScatter || collective == Collective::kAllToAll
             ? world_size
             : 1;
}

int32_t OutputBlocks(Collective collective, int32_t world_size) {
  return collective == Collective::kAllGather || collective == Collective::kAllToAll ? world_size
                                                                                     : 1;
}

OpListBuilder::OpListBuilder(const ScheduleSpec& spec, int32_t rank, const Layout& layout)
    : spec_(spec), layout_(layout) {
  op_list_.rank = rank;
  op_list_.chunks_per_block = static_cast<int32_t>(layout.chunks) * spec.channels;
  op_list_.input_blocks = InputBlocks(spec.collective, spec.world_size);
  op_list_.output_blocks = OutputBlocks(spec.collective, spec.world_size);
  op_list_.scratch_blocks = static_cast<int32_t>(layout.scratch_blocks);
}

int32_t OpListBuilder::Neighbour(int32_t offset) const {
  const int32_t peer = (rank() + offset) % size();
  return peer < 0 ? peer + size() : peer;
}

Operand OpListBuilder::Chunks(BufferKind buffer, int32_t begin, int32_t count) const {
  const int32_t share = channel_ * static_cast<int32_t>(layout_.chunks);
  return {buffer, {{share + begin, count}}};
}

Operand OpListBuilder::Chunks(BufferKind buffer, const std::vector<Interval>& chunks) const {
  const int32_t share = channel_ * static_cast<int32_t>(layout_.chunks);
  Operand operand{buffer, {}};
  for (const Interval& interval : chunks) Append(operand, share + interval.begin, interval.count);
  return operand;
}

Operand OpListBuilder::Blocks(BufferKind buffer, int32_t first, int32_t count) const {
  Operand operand{buffer, {}};
  const int32_t share = static_cast<int32_t>(layout_.chunks);
  for (int32_t i = 0; i < count; ++i) {
    const int32_t block = (first + i) % BlockCount(buffer);
    Append(operand, block * op_list_.chunks_per_block + channel_ * share, share);
  }
  return operand;
}

Operand OpListBuilder::Blocks(BufferKind buffer, const std::vector<int32_t>& blocks) const {
  Operand operand{buffer, {}};
  for (int32_t block : blocks) {
    const Interval chunks = Blocks(buffer, block).chunks.front();
    Append(operand, chunks.begin, chunks.count);
  }
  return operand;
}

Operand OpListBuilder::Parts(BufferKind buffer, const std::vector<int32_t>& blocks,
                             int32_t part) const {
  Operand operand{buffer, {}};
  const int32_t share = channel_ * static_cast<int32_t>(layout_.chunks);
  for (int32_t block : blocks) {
    Append(operand, block * op_list_.chunks_per_block + share + part, 1);
  }
  return operand;
}

void OpListBuilder::Send(int32_t peer, Operand source, Operand destination_on_peer) {
  Add(OpKind::kSend, peer, {std::move(source)}, std::move(destination_on_peer));
}

void OpListBuilder::Recv(int32_t peer, Operand source_on_peer, Operand destination) {
  Add(OpKind::kRecv, peer, {std::move(source_on_peer)}, std::move(destination));
}

void OpListBuilder::RecvReduce(int32_t peer, Operand source_on_peer, Operand local,
                               Operand destination) {
  Add(OpKind::kRecvReduce, peer, {std::move(source_on_peer), std::move(local)},
      std::move(destination));
}

void OpListBuilder::Copy(Operand source, Operand destination) {
  Add(OpKind::kCopy, -1, {std::move(source)}, std::move(destination));
}

void OpListBuilder::Reduce(std::vector<Operand> sources, Operand destination) {
  Add(OpKind::kReduce, -1, std::move(sources), std::move(destination));
}

void OpListBuilder::SetChannel(int32_t channel) {
  channel_ = channel;
  subchannel_ = 0;
  step_ = 0;
}

OpList OpListBuilder::Finish() && {
  ops_built.fetch_add(static_cast<int64_t>(op_list_.ops.size()), std::memory_order_relaxed);
  return std::move(op_list_);
}

void OpListBuilder::Add(OpKind kind, int32_t peer, std::vector<Operand> sources,
                        Operand destination) {
  Op op;
  op.kind = kind;
  op.channel = channel_ * static_cast<int32_t>(layout_.subchannels) + subchannel_;
  op.peer = peer;
  if (peer >= 0) {
    auto& messages = kind == OpKind::kSend ? sent_ : received_;
    op.sequence = messages[{peer, op.channel}]++;
  }
  op.step = step_;
  op.sources = std::move(sources);
  op.destination = std::move(destination);
  op_list_.ops.push_back(std::move(op));
}

int32_t OpListBuilder::BlockCount(BufferKind buffer) const {
  switch (buffer) {
    case BufferKind::kInput:
      return op_list_.input_blocks;
    case BufferKind::kOutput:
      return op_list_.output_blocks;
    case BufferKind::kScratch:
      return op_list_.scratch_blocks;
  }
  return 0;
}

}  // namespace jaxcoll
