#include "executor/local_program.h"

#include <algorithm>
#include <map>
#include <string>
#include <tuple>

namespace jaxcoll {
namespace {

std::string Where(int rank, size_t op) {
  return "rank " + std::to_string(rank) + ", op " + std::to_string(op);
}

int32_t ChunkTotal(const Operand& operand) {
  int32_t total = 0;
  for (const Interval& interval : operand.chunks) total += interval.count;
  return total;
}

int32_t BlockCount(const Program& program, BufferKind buffer) {
  switch (buffer) {
    case BufferKind::kInput:
      return program.input_blocks;
    case BufferKind::kOutput:
      return program.output_blocks;
    case BufferKind::kScratch:
      return program.scratch_blocks;
  }
  return 0;
}

// An op that moves data, with the operands of both sides: a local op, or a recv with its send.
struct Move {
  int32_t rank = 0;        // of the destination
  int32_t completion = 0;  // node of the order graph that stands for its execution
  std::vector<std::pair<int32_t, const Operand*>> sources;  // (rank, operand)
  const Operand* destination = nullptr;
};

class Compiler {
 public:
  Compiler(const std::vector<Program>& programs, Collective collective)
      : programs_(programs), collective_(collective) {}

  StatusOr<LocalProgram> Run() {
    if (Status status = CheckShape(); !status.ok()) return status;
    if (Status status = CollectMoves(); !status.ok()) return status;
    if (Status status = CutIntoActions(); !status.ok()) return status;
    Forward();
    if (Status status = AssignLevels(); !status.ok()) return status;
    return Assemble();
  }

 private:
  // A piece of a move whose operands are all contiguous.
  struct Piece {
    Action action;
    int32_t move = 0;
    bool dropped = false;
  };

  Status CheckShape() {
    if (programs_.empty()) return InvalidArgument("a schedule needs at least one rank");
    const Program& first = programs_[0];
    for (size_t rank = 0; rank < programs_.size(); ++rank) {
      const Program& program = programs_[rank];
      if (program.rank != static_cast<int32_t>(rank)) {
        return InvalidArgument("program " + std::to_string(rank) + " says it is rank " +
                               std::to_string(program.rank));
      }
      if (program.chunks_per_block < 1 || program.chunks_per_block != first.chunks_per_block ||
          program.input_blocks != first.input_blocks ||
          program.output_blocks != first.output_blocks) {
        return InvalidArgument("rank " + std::to_string(rank) + " and rank 0 disagree on chunks");
      }
      op_base_.push_back(op_count_);
      op_count_ += static_cast<int32_t>(program.ops.size());
    }
    return Status();
  }

  Status CheckOperand(int32_t rank, const Operand& operand, int32_t total, size_t op) {
    if (rank < 0 || rank >= static_cast<int32_t>(programs_.size())) {
      return InvalidArgument(Where(rank, op) + ": peer out of range");
    }
    const Program& program = programs_[rank];
    const int64_t limit = int64_t{BlockCount(program, operand.buffer)} * program.chunks_per_block;
    for (const Interval& interval : operand.chunks) {
      if (interval.begin < 0 || interval.count < 1 ||
          int64_t{interval.begin} + interval.count > limit) {
        return InvalidArgument(Where(rank, op) + ": chunks " + std::to_string(interval.begin) +
                               " to " + std::to_string(interval.begin + interval.count - 1) +
                               " of a buffer of " + std::to_string(limit));
      }
    }
    if (ChunkTotal(operand) != total) {
      return InvalidArgument(Where(rank, op) + ": operands cover different numbers of chunks");
    }
    return Status();
  }

  // Node ids of the order graph: start of op i is 2i, its completion 2i + 1. A matched pair
  // completes at once, so both sides share the receiver's completion node.
  static int32_t StartNode(int32_t op) { return 2 * op; }

  Status CollectMoves() {
    using MessageKey = std::tuple<int32_t, int32_t, int32_t, int32_t>;  // from, to, channel, seq
    std::map<MessageKey, int32_t> sends;
    completion_.resize(op_count_);
    for (const Program& program : programs_) {
      for (size_t i = 0; i < program.ops.size(); ++i) {
        const Op& op = program.ops[i];
        const int32_t id = op_base_[program.rank] + static_cast<int32_t>(i);
        completion_[id] = 2 * id + 1;
        if (op.kind != OpKind::kSend) continue;
        if (op.sources.size() != 1) {
          return InvalidArgument(Where(program.rank, i) + ": send takes one source");
        }
        if (!sends.emplace(MessageKey{program.rank, op.peer, op.channel, op.sequence}, id).second) {
          return InvalidArgument(Where(program.rank, i) + ": sequence number used twice");
        }
      }
    }
    for (const Program& program : programs_) {
      for (size_t i = 0; i < program.ops.size(); ++i) {
        const Op& op = program.ops[i];
        if (op.kind == OpKind::kSend) continue;
        const int32_t id = op_base_[program.rank] + static_cast<int32_t>(i);
        Move move;
        move.rank = program.rank;
        move.completion = 2 * id + 1;
        move.destination = &op.destination;
        const bool from_peer = op.kind == OpKind::kRecv || op.kind == OpKind::kRecvReduce;
        const size_t expected = op.kind == OpKind::kRecvReduce ? 2 : 1;
        if (op.kind == OpKind::kReduce ? op.sources.empty() : op.sources.size() != expected) {
          return InvalidArgument(Where(program.rank, i) + ": wrong number of sources");
        }
        for (size_t s = 0; s < op.sources.size(); ++s) {
          move.sources.emplace_back(from_peer && s == 0 ? op.peer : program.rank, &op.sources[s]);
        }
        if (from_peer) {
          const auto sent = sends.find({op.peer, program.rank, op.channel, op.sequence});
          if (sent == sends.end()) {
            return InvalidArgument(Where(program.rank, i) + ": nothing is sent by rank " +
                                   std::to_string(op.peer) + " with sequence " +
                                   std::to_string(op.sequence));
          }
          const int32_t send = sent->second;
          const Op& other = programs_[op.peer].ops[send - op_base_[op.peer]];
          if (!(other.sources[0] == op.sources[0]) || !(other.destination == op.destination)) {
            return InvalidArgument(Where(program.rank, i) + ": send and recv name other chunks");
          }
          completion_[send] = move.completion;
          sends.erase(sent);
        }
        const int32_t total = ChunkTotal(op.destination);
        if (Status s = CheckOperand(program.rank, op.destination, total, i); !s.ok()) return s;
        if (op.destination.buffer == BufferKind::kInput) {
          return InvalidArgument(Where(program.rank, i) + ": inputs are read-only");
        }
        for (const auto& [rank, operand] : move.sources) {
          if (Status s = CheckOperand(rank, *operand, total, i); !s.ok()) return s;
        }
        moves_.push_back(std::move(move));
      }
    }
    if (!sends.empty()) {
      const auto& [from, to, channel, sequence] = sends.begin()->first;
      return InvalidArgument("rank " + std::to_string(from) + " sends to rank " +
                             std::to_string(to) + " what nobody receives (sequence " +
                             std::to_string(sequence) + ")");
    }
    return Status();
  }

  // Walks the interval lists of all operands together and cuts where any of them jumps.
  Status CutIntoActions() {
    const int32_t positions = programs_[0].chunks_per_block;
    for (size_t m = 0; m < moves_.size(); ++m) {
      const Move& move = moves_[m];
      std::vector<std::pair<int32_t, const Operand*>> operands = move.sources;
      operands.emplace_back(move.rank, move.destination);
      std::vector<size_t> interval(operands.size(), 0);
      std::vector<int32_t> used(operands.size(), 0);
      while (interval[0] < operands[0].second->chunks.size()) {
        int32_t run = INT32_MAX;
        for (size_t k = 0; k < operands.size(); ++k) {
          run = std::min(run, operands[k].second->chunks[interval[k]].count - used[k]);
        }
        Piece piece;
        piece.move = static_cast<int32_t>(m);
        piece.action.chunk_count = run;
        for (size_t k = 0; k < operands.size(); ++k) {
          const Interval& current = operands[k].second->chunks[interval[k]];
          const ChunkRange range{operands[k].first, operands[k].second->buffer,
                                 current.begin + used[k]};
          (k + 1 < operands.size() ? piece.action.sources : piece.action.destinations)
              .push_back(range);
          used[k] += run;
          if (used[k] == current.count) {
            ++interval[k];
            used[k] = 0;
          }
        }
        const int32_t position = piece.action.destinations[0].first_chunk % positions;
        for (const ChunkRange& source : piece.action.sources) {
          if (source.first_chunk % positions != position) {
            return InvalidArgument("rank " + std::to_string(move.rank) +
                                   ": data moves between chunks of different length");
          }
        }
        pieces_.push_back(std::move(piece));
      }
    }
    return Status();
  }

  // See the header. Only chunks written once, by a plain copy from an input, are seen through:
  // inputs never change, so the time of the read does not matter.
  void Forward() {
    struct Writer {
      int32_t piece = -1;
      int32_t count = 0;
      int32_t readers = 0;
    };
    const int32_t positions = programs_[0].chunks_per_block;
    std::vector<std::vector<Writer>> writers;
    for (const Program& program : programs_) {
      writers.emplace_back(static_cast<size_t>(program.scratch_blocks) * positions);
    }
    const auto is_scratch = [](const ChunkRange& r) { return r.buffer == BufferKind::kScratch; };
    for (size_t p = 0; p < pieces_.size(); ++p) {
      const Action& action = pieces_[p].action;
      const ChunkRange& to = action.destinations[0];
      if (!is_scratch(to)) continue;
      for (int32_t c = 0; c < action.chunk_count; ++c) {
        Writer& writer = writers[to.rank][to.first_chunk + c];
        writer.piece = static_cast<int32_t>(p);
        ++writer.count;
      }
    }
    for (Piece& piece : pieces_) {
      for (ChunkRange& source : piece.action.sources) {
        if (!is_scratch(source)) continue;
        std::vector<Writer>& row = writers[source.rank];
        const Writer first = row[source.first_chunk];
        bool through = first.piece >= 0;
        for (int32_t c = 0; c < piece.action.chunk_count && through; ++c) {
          const Writer& writer = row[source.first_chunk + c];
          through = writer.count == 1 && writer.piece == first.piece;
        }
        if (through) {
          const Action& copy = pieces_[first.piece].action;
          through = copy.sources.size() == 1 && copy.sources[0].buffer == BufferKind::kInput;
          if (through) {
            const int32_t offset = source.first_chunk - copy.destinations[0].first_chunk;
            source = copy.sources[0];
            source.first_chunk += offset;
            continue;
          }
        }
        for (int32_t c = 0; c < piece.action.chunk_count; ++c) {
          ++row[source.first_chunk + c].readers;
        }
      }
    }
    for (Piece& piece : pieces_) {
      const ChunkRange& to = piece.action.destinations[0];
      if (!is_scratch(to)) continue;
      bool read = false;
      for (int32_t c = 0; c < piece.action.chunk_count; ++c) {
        read |= writers[to.rank][to.first_chunk + c].readers > 0;
      }
      piece.dropped = !read && piece.action.sources.size() == 1 &&
                      piece.action.sources[0].buffer == BufferKind::kInput;
    }
  }

  // Longest path over the order graph. An edge of weight 1 leads from a completion to the starts
  // that depend on it, of weight 0 from a start to the next start of its channel and to its own
  // completion. A move of which nothing is left takes no level.
  Status AssignLevels() {
    std::vector<bool> takes_time(moves_.size(), false);
    for (const Piece& piece : pieces_) {
      if (!piece.dropped) takes_time[piece.move] = true;
    }
    const int32_t nodes = 2 * op_count_;
    std::vector<int32_t> weight(nodes, 0);
    for (size_t m = 0; m < moves_.size(); ++m) {
      weight[moves_[m].completion] = takes_time[m] ? 1 : 0;
    }
    std::vector<std::vector<int32_t>> next(nodes);
    std::vector<int32_t> waiting(nodes, 0);
    const auto order = [&](int32_t before, int32_t after) {
      next[before].push_back(after);
      ++waiting[after];
    };
    for (const Program& program : programs_) {
      std::map<int32_t, int32_t> last_of_channel;
      for (size_t i = 0; i < program.ops.size(); ++i) {
        const Op& op = program.ops[i];
        const int32_t id = op_base_[program.rank] + static_cast<int32_t>(i);
        order(StartNode(id), completion_[id]);
        if (const auto last = last_of_channel.find(op.channel); last != last_of_channel.end()) {
          order(StartNode(last->second), StartNode(id));
        }
        last_of_channel[op.channel] = id;
        for (const int32_t dependency : op.depends_on) {
          if (dependency < 0 || dependency >= static_cast<int32_t>(program.ops.size())) {
            return InvalidArgument(Where(program.rank, i) + ": depends on op " +
                                   std::to_string(dependency) + ", which does not exist");
          }
          order(completion_[op_base_[program.rank] + dependency], StartNode(id));
        }
      }
    }
    level_.assign(nodes, 0);
    std::vector<int32_t> ready;
    int32_t done = 0;
    for (int32_t node = 0; node < nodes; ++node) {
      if (waiting[node] == 0) ready.push_back(node);
    }
    while (!ready.empty()) {
      const int32_t node = ready.back();
      ready.pop_back();
      ++done;
      for (const int32_t after : next[node]) {
        level_[after] = std::max(level_[after], level_[node] + weight[node]);
        if (--waiting[after] == 0) ready.push_back(after);
      }
    }
    if (done != nodes) {
      for (const Program& program : programs_) {
        for (size_t i = 0; i < program.ops.size(); ++i) {
          if (waiting[StartNode(op_base_[program.rank] + static_cast<int32_t>(i))] > 0) {
            return InvalidArgument("the schedule deadlocks; " + Where(program.rank, i) +
                                   " can never start");
          }
        }
      }
    }
    return Status();
  }

  LocalProgram Assemble() {
    LocalProgram out;
    out.world_size = static_cast<int32_t>(programs_.size());
    out.chunks_per_block = programs_[0].chunks_per_block;
    out.input_blocks = programs_[0].input_blocks;
    out.output_blocks = programs_[0].output_blocks;
    using MergeKey = std::tuple<int32_t, std::vector<ChunkRange>, int32_t>;
    std::map<MergeKey, size_t> seen;
    for (Piece& piece : pieces_) {
      if (piece.dropped) continue;
      Action& action = piece.action;
      for (const ChunkRange& range : action.sources) NoteScratch(range, action, out);
      for (const ChunkRange& range : action.destinations) NoteScratch(range, action, out);
      const size_t level = level_[moves_[piece.move].completion];
      if (out.levels.size() <= level) out.levels.resize(level + 1);
      std::vector<Action>& row = out.levels[level];
      // In place (recv_reduce into its own source) stays alone.
      const bool in_place = std::find(action.sources.begin(), action.sources.end(),
                                      action.destinations[0]) != action.sources.end();
      if (!in_place) {
        const MergeKey key{static_cast<int32_t>(level), action.sources, action.chunk_count};
        const auto [it, fresh] = seen.emplace(key, row.size());
        if (!fresh) {
          row[it->second].destinations.push_back(action.destinations[0]);
          continue;
        }
      }
      row.push_back(std::move(action));
    }
    if (collective_ == Collective::kPermute || collective_ == Collective::kReduce) {
      ClearUnwrittenOutput(out);
    }
    return out;
  }

  static void NoteScratch(const ChunkRange& range, const Action& action, LocalProgram& out) {
    if (range.buffer != BufferKind::kScratch) return;
    const int32_t end = range.first_chunk + action.chunk_count;
    out.scratch_blocks =
        std::max(out.scratch_blocks, (end + out.chunks_per_block - 1) / out.chunks_per_block);
  }

  void ClearUnwrittenOutput(LocalProgram& out) {
    const int32_t chunks = out.output_blocks * out.chunks_per_block;
    std::vector<std::vector<bool>> written(programs_.size(), std::vector<bool>(chunks, false));
    for (const std::vector<Action>& row : out.levels) {
      for (const Action& action : row) {
        for (const ChunkRange& to : action.destinations) {
          if (to.buffer != BufferKind::kOutput) continue;
          for (int32_t c = 0; c < action.chunk_count; ++c)
            written[to.rank][to.first_chunk + c] = true;
        }
      }
    }
    for (size_t rank = 0; rank < written.size(); ++rank) {
      for (int32_t c = 0; c < chunks; ++c) {
        if (written[rank][c]) continue;
        if (out.levels.empty()) out.levels.resize(1);
        Action zero;
        zero.destinations = {{static_cast<int32_t>(rank), BufferKind::kOutput, c}};
        for (; c < chunks && !written[rank][c]; ++c) ++zero.chunk_count;
        out.levels[0].push_back(std::move(zero));
      }
    }
  }

  const std::vector<Program>& programs_;
  const Collective collective_;
  std::vector<int32_t> op_base_;  // first op id of each rank
  int32_t op_count_ = 0;
  std::vector<int32_t> completion_;  // op id -> completion node
  std::vector<Move> moves_;
  std::vector<Piece> pieces_;
  std::vector<int32_t> level_;  // per node
};

}  // namespace

StatusOr<LocalProgram> Compile(const std::vector<Program>& programs, Collective collective) {
  return Compiler(programs, collective).Run();
}

}  // namespace jaxcoll
