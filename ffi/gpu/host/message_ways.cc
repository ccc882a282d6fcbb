#include "gpu/host/message_ways.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>

namespace jaxcoll::cuda {
namespace {

// The ops of all ranks that have ended before another one begins.
class Order {
 public:
  Order(const std::vector<OpList>& op_lists, const DeviceGraph& graph) {
    for (const OpList& op_list : op_lists) {
      first_.push_back(count_);
      count_ += op_list.ops.size();
    }
    words_ = (count_ + 63) / 64;
    before_.assign(count_ * words_, 0);
    std::vector<std::vector<std::pair<int32_t, int32_t>>> levels;
    for (const OpList& op_list : op_lists) {
      for (size_t i = 0; i < op_list.ops.size(); ++i) {
        const auto level = static_cast<size_t>(graph.level[op_list.rank][i]);
        if (levels.size() <= level) levels.resize(level + 1);
        levels[level].emplace_back(op_list.rank, static_cast<int32_t>(i));
      }
    }
    for (const auto& level : levels) {
      for (const auto& [rank, index] : level) {
        const Op& op = op_lists[rank].ops[index];
        for (const int32_t before : op.depends_on) Add(Id(rank, index), Id(rank, before));
        if (!IsReceive(op)) continue;
        const DeviceMessage& message = graph.messages[graph.message_of[rank][index]];
        // Nobody waits for what is pulled.
        if (message.way == DeviceMessage::kPulled) continue;
        Add(Id(rank, index), Id(message.source, message.sender));
      }
    }
  }

  bool Before(int32_t rank_a, int32_t op_a, int32_t rank_b, int32_t op_b) const {
    const size_t a = Id(rank_a, op_a);
    return before_[Id(rank_b, op_b) * words_ + a / 64] >> (a % 64) & 1;
  }

 private:
  size_t Id(int32_t rank, int32_t op) const { return first_[rank] + static_cast<size_t>(op); }
  void Add(size_t op, size_t before) {
    for (size_t w = 0; w < words_; ++w) {
      before_[op * words_ + w] |= before_[before * words_ + w];
    }
    before_[op * words_ + before / 64] |= uint64_t{1} << (before % 64);
  }

  std::vector<size_t> first_;
  size_t count_ = 0;
  size_t words_ = 0;
  std::vector<uint64_t> before_;  // [op]: bits of the ops before it
};

// The ops of a rank that read or write each chunk of its output.
std::map<int32_t, std::vector<int32_t>> UsersOfOutput(const OpList& op_list) {
  std::map<int32_t, std::vector<int32_t>> users;
  for (size_t i = 0; i < op_list.ops.size(); ++i) {
    const Op& op = op_list.ops[i];
    std::vector<const Operand*> operands;
    if (!IsSend(op)) operands.push_back(&op.destination);
    // The first source of a receipt, and the destination of a send, are the peer's.
    for (size_t s = IsReceive(op) ? 1 : 0; s < op.sources.size(); ++s) {
      operands.push_back(&op.sources[s]);
    }
    for (const Operand* operand : operands) {
      if (operand->buffer != BufferKind::kOutput) continue;
      for (const int32_t chunk : ListChunks(*operand)) {
        users[chunk].push_back(static_cast<int32_t>(i));
      }
    }
  }
  return users;
}

}  // namespace

void ChooseWays(const std::vector<OpList>& op_lists, DeviceGraph& graph) {
  const auto receipt = [&](const DeviceMessage& message) -> const Op& {
    return op_lists[message.destination].ops[message.receiver];
  };
  for (DeviceMessage& message : graph.messages) {
    const bool input = receipt(message).sources[0].buffer == BufferKind::kInput;
    message.way = input ? DeviceMessage::kPulled : DeviceMessage::kSlot;
  }
  const Order order(op_lists, graph);
  std::vector<std::map<int32_t, std::vector<int32_t>>> users;
  for (const OpList& op_list : op_lists) users.push_back(UsersOfOutput(op_list));
  for (DeviceMessage& message : graph.messages) {
    const Op& op = receipt(message);
    if (op.kind != OpKind::kRecv || op.destination.buffer != BufferKind::kOutput) continue;
    const int32_t to = message.destination;
    const auto free = [&](int32_t chunk) {
      const std::vector<int32_t>& ops = users[to][chunk];
      return std::all_of(ops.begin(), ops.end(), [&](int32_t other) {
        return other == message.receiver || order.Before(to, message.receiver, to, other) ||
               order.Before(to, other, message.source, message.sender);
      });
    };
    const std::vector<int32_t> chunks = ListChunks(op.destination);
    // Rather pushed than pulled: to write takes no round trip, and one read serves many.
    if (std::all_of(chunks.begin(), chunks.end(), free)) message.way = DeviceMessage::kPushed;
  }
}

}  // namespace jaxcoll::cuda
