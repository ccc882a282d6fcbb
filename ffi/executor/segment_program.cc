#include "executor/segment_program.h"

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <tuple>

namespace jaxcoll {
namespace {

std::string WhereIs(int32_t rank, size_t op) {
  return "rank " + std::to_string(rank) + ", op " + std::to_string(op);
}

class SegmentCompiler {
 public:
  SegmentCompiler(const std::vector<Program>& programs, int32_t world_size, int32_t largest_message)
      : programs_(programs), world_size_(world_size) {
    result_.largest_message = largest_message;
  }

  StatusOr<SegmentProgram> Run() {
    if (programs_.empty()) return InvalidArgument("a process without ranks takes no part");
    const Program& first = programs_[0];
    result_.world_size = world_size_;
    result_.chunks_per_block = first.chunks_per_block;
    result_.input_blocks = first.input_blocks;
    result_.output_blocks = first.output_blocks;
    for (const Program& program : programs_) {
      if (program.chunks_per_block != first.chunks_per_block ||
          program.input_blocks != first.input_blocks ||
          program.output_blocks != first.output_blocks) {
        return InvalidArgument("the ranks of a schedule disagree on chunks");
      }
      result_.scratch_blocks = std::max(result_.scratch_blocks, program.scratch_blocks);
      member_of_rank_[program.rank] = static_cast<int32_t>(result_.members.size());
      result_.members.push_back(program.rank);
      op_base_.push_back(static_cast<int32_t>(result_.ops.size()));
      result_.ops.resize(result_.ops.size() + program.ops.size());
    }
    for (size_t member = 0; member < programs_.size(); ++member) {
      if (Status status = AddOps(static_cast<int32_t>(member)); !status.ok()) return status;
    }
    if (Status status = PairMessages(); !status.ok()) return status;
    CountWrites();
    Forward();
    StayInPlace();
    FindZeros();
    FindReadAgain();
    ListMessages();
    return std::move(result_);
  }

 private:
  using Key = std::tuple<int32_t, int32_t, int32_t>;  // member, buffer, chunk
  static Key KeyOf(const LocalChunk& c) {
    return {c.member, static_cast<int32_t>(c.buffer), c.chunk};
  }

  static std::vector<LocalChunk> Chunks(int32_t member, const Operand& operand) {
    std::vector<LocalChunk> chunks;
    for (const Interval& interval : operand.chunks) {
      for (int32_t i = 0; i < interval.count; ++i) {
        chunks.push_back({member, operand.buffer, interval.begin + i});
      }
    }
    return chunks;
  }

  Status AddOps(int32_t member) {
    const Program& program = programs_[member];
    std::map<int32_t, int32_t> last_of_channel;
    for (size_t i = 0; i < program.ops.size(); ++i) {
      const Op& op = program.ops[i];
      const int32_t id = op_base_[member] + static_cast<int32_t>(i);
      SegmentOp& out = result_.ops[id];
      out.member = member;
      out.rank = program.rank;
      out.peer = op.peer;
      out.channel = op.channel;
      out.sequence = op.sequence;
      switch (op.kind) {
        case OpKind::kSend:
          out.kind = SegmentOp::Kind::kSend;
          out.sources = {Chunks(member, op.sources[0])};
          out.chunk_count = static_cast<int32_t>(out.sources[0].size());
          break;
        case OpKind::kRecv:
        case OpKind::kRecvReduce:
          out.kind = SegmentOp::Kind::kReceive;
          if (op.kind == OpKind::kRecvReduce) out.sources = {Chunks(member, op.sources[1])};
          out.destination = Chunks(member, op.destination);
          out.chunk_count = static_cast<int32_t>(out.destination.size());
          break;
        case OpKind::kCopy:
        case OpKind::kReduce:
          out.kind = SegmentOp::Kind::kMove;
          for (const Operand& source : op.sources) out.sources.push_back(Chunks(member, source));
          out.destination = Chunks(member, op.destination);
          out.chunk_count = static_cast<int32_t>(out.destination.size());
          break;
      }
      for (const std::vector<LocalChunk>& source : out.sources) {
        if (static_cast<int32_t>(source.size()) != out.chunk_count) {
          return InvalidArgument(WhereIs(program.rank, i) + ": operands differ in size");
        }
      }
      if (const auto last = last_of_channel.find(op.channel); last != last_of_channel.end()) {
        result_.ops[last->second].after_start.push_back(id);
        ++out.waits;
      }
      last_of_channel[op.channel] = id;
      for (const int32_t before : op.depends_on) {
        result_.ops[op_base_[member] + before].after_completion.push_back(id);
        ++out.waits;
      }
    }
    return Status();
  }

  // A send and its receive, both in this process.
  Status PairMessages() {
    std::map<std::tuple<int32_t, int32_t, int32_t, int32_t>, int32_t> sends;
    for (size_t id = 0; id < result_.ops.size(); ++id) {
      const SegmentOp& op = result_.ops[id];
      if (op.kind == SegmentOp::Kind::kSend && member_of_rank_.count(op.peer) != 0) {
        sends[{op.rank, op.peer, op.channel, op.sequence}] = static_cast<int32_t>(id);
      }
    }
    for (size_t id = 0; id < result_.ops.size(); ++id) {
      SegmentOp& op = result_.ops[id];
      if (op.kind != SegmentOp::Kind::kReceive || member_of_rank_.count(op.peer) == 0) continue;
      const auto it = sends.find({op.peer, op.rank, op.channel, op.sequence});
      if (it == sends.end() || result_.ops[it->second].chunk_count != op.chunk_count) {
        return InvalidArgument("rank " + std::to_string(op.rank) + " receives from rank " +
                               std::to_string(op.peer) + " what that does not send");
      }
      SegmentOp& send = result_.ops[it->second];
      op.sources.insert(op.sources.begin(), send.sources[0]);
      op.kind = SegmentOp::Kind::kMove;
      op.partner = it->second;
      send.kind = SegmentOp::Kind::kNothing;
      send.partner = static_cast<int32_t>(id);
      send.sources.clear();
      sends.erase(it);
    }
    if (!sends.empty()) return InvalidArgument("a rank sends what its peer does not receive");
    return Status();
  }

  void CountWrites() {
    for (const SegmentOp& op : result_.ops) {
      for (const LocalChunk& chunk : op.destination) ++writes_[KeyOf(chunk)];
    }
  }

  bool WrittenOnceInScratch(const SegmentOp& op) const {
    return std::all_of(op.destination.begin(), op.destination.end(), [&](const LocalChunk& c) {
      return c.buffer == BufferKind::kScratch && writes_.at(KeyOf(c)) == 1;
    });
  }

  // Inputs do not change during a call, so a copy of one in scratch is as good as the input.
  void Forward() {
    std::map<Key, LocalChunk> origin;
    for (SegmentOp& op : result_.ops) {
      if (op.kind != SegmentOp::Kind::kMove || op.sources.size() != 1 || !WrittenOnceInScratch(op))
        continue;
      const auto& from = op.sources[0];
      if (!std::all_of(from.begin(), from.end(),
                       [](const LocalChunk& c) { return c.buffer == BufferKind::kInput; })) {
        continue;
      }
      for (int32_t i = 0; i < op.chunk_count; ++i) origin[KeyOf(op.destination[i])] = from[i];
      op.kind = SegmentOp::Kind::kNothing;
      op.sources.clear();
      op.destination.clear();
    }
    for (SegmentOp& op : result_.ops) {
      for (std::vector<LocalChunk>& source : op.sources) {
        for (LocalChunk& chunk : source) {
          if (const auto it = origin.find(KeyOf(chunk)); it != origin.end()) chunk = it->second;
        }
      }
    }
  }

  void StayInPlace() {
    for (SegmentOp& op : result_.ops) {
      if (op.kind == SegmentOp::Kind::kReceive && op.sources.empty() && WrittenOnceInScratch(op)) {
        op.kind = SegmentOp::Kind::kInPlace;
      }
    }
  }

  void FindZeros() {
    const int32_t chunks = result_.output_blocks * result_.chunks_per_block;
    for (size_t member = 0; member < result_.members.size(); ++member) {
      for (int32_t chunk = 0; chunk < chunks; ++chunk) {
        const LocalChunk c{static_cast<int32_t>(member), BufferKind::kOutput, chunk};
        if (writes_.count(KeyOf(c)) == 0) result_.zeros.push_back(c);
      }
    }
  }

  void FindReadAgain() {
    std::set<Key> read;
    for (const SegmentOp& op : result_.ops) {
      for (const std::vector<LocalChunk>& source : op.sources) {
        for (const LocalChunk& chunk : source) read.insert(KeyOf(chunk));
      }
    }
    for (SegmentOp& op : result_.ops) {
      op.read_again = std::any_of(op.destination.begin(), op.destination.end(),
                                  [&](const LocalChunk& c) { return read.count(KeyOf(c)) != 0; });
    }
  }

  void ListMessages() {
    for (size_t id = 0; id < result_.ops.size(); ++id) {
      const SegmentOp& op = result_.ops[id];
      if (op.kind == SegmentOp::Kind::kNothing || op.kind == SegmentOp::Kind::kMove) continue;
      result_.messages[jaxcoll::KeyOf(op)] = static_cast<int32_t>(id);
    }
  }

  const std::vector<Program>& programs_;
  const int32_t world_size_;
  SegmentProgram result_;
  std::map<int32_t, int32_t> member_of_rank_;
  std::vector<int32_t> op_base_;
  std::map<Key, int32_t> writes_;
};

}  // namespace

MessageKey KeyOf(const SegmentOp& op) {
  const bool sends = op.kind == SegmentOp::Kind::kSend;
  return {sends ? op.rank : op.peer, sends ? op.peer : op.rank, op.channel, op.sequence};
}

StatusOr<SegmentProgram> CompileSegments(const std::vector<Program>& programs, int32_t world_size,
                                         int32_t largest_message) {
  return SegmentCompiler(programs, world_size, largest_message).Run();
}

}  // namespace jaxcoll
