#include "engine/memory/local_actions.h"

#include <algorithm>
#include <map>
#include <tuple>
#include <utility>

namespace jaxcoll {
namespace {

// An op that moves data, with the operands of both sides: a local op, or a recv with its send.
struct Move {
  int32_t id = 0;                                           // in the world
  int32_t rank = 0;                                         // of the destination
  std::vector<std::pair<int32_t, const Operand*>> sources;  // (rank, operand)
  const Operand* destination = nullptr;
};

class Compiler {
 public:
  Compiler(const World& world, Collective collective) : world_(world), collective_(collective) {}

  StatusOr<LocalActions> Run() {
    if (world_.member_count() == 0 || !world_.complete()) {
      return InvalidArgument("memory actions are made of all ranks' op lists, of at least one");
    }
    CollectMoves();
    CutIntoActions();
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

  size_t positions() const { return world_.layout().chunks_per_block; }

  void CollectMoves() {
    for (const OpList& op_list : world_.op_lists()) {
      for (size_t i = 0; i < op_list.ops.size(); ++i) {
        const Op& op = op_list.ops[i];
        if (IsSend(op)) continue;
        Move move;
        move.id = world_.Id(op_list.rank, i);
        move.rank = op_list.rank;
        move.destination = &op.destination;
        for (size_t s = 0; s < op.sources.size(); ++s) {
          move.sources.emplace_back(IsReceive(op) && s == 0 ? op.peer : op_list.rank,
                                    &op.sources[s]);
        }
        moves_.push_back(std::move(move));
      }
    }
  }

  // Walks the interval lists of all operands together and cuts where any of them jumps.
  void CutIntoActions() {
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
        pieces_.push_back(std::move(piece));
      }
    }
  }

  // See the header. A piece is read from the inputs that it comes from if they are one contiguous
  // piece as well; else it is read from scratch, whose copy then stays.
  void Forward() {
    const ScratchUse use(world_);
    // By rank and chunk of scratch: whether it is. Rows of ranks that read none stay empty.
    std::vector<std::vector<bool>> read(world_.world_size());
    const size_t chunks = world_.layout().scratch_blocks * positions();
    const auto is_scratch = [](const ChunkRange& r) { return r.buffer == BufferKind::kScratch; };
    for (Piece& piece : pieces_) {
      for (ChunkRange& source : piece.action.sources) {
        if (!is_scratch(source)) continue;
        const ScratchUse::Origin first = use.OriginOf(source.rank, source.first_chunk);
        bool through = first.member != World::kNone;
        for (int32_t c = 1; c < piece.action.chunk_count && through; ++c) {
          const ScratchUse::Origin next = use.OriginOf(source.rank, source.first_chunk + c);
          through = next.member == first.member && next.chunk == first.chunk + c;
        }
        if (through) {
          source = {first.member, BufferKind::kInput, first.chunk};
          continue;
        }
        std::vector<bool>& row = read[source.rank];
        row.resize(chunks);
        std::fill_n(row.begin() + source.first_chunk, piece.action.chunk_count, true);
      }
    }
    for (Piece& piece : pieces_) {
      const ChunkRange& to = piece.action.destinations[0];
      if (!is_scratch(to) || piece.action.sources.size() != 1 ||
          piece.action.sources[0].buffer != BufferKind::kInput) {
        continue;
      }
      const std::vector<bool>& row = read[to.rank];
      const auto first = row.begin() + (row.empty() ? 0 : to.first_chunk);
      const auto end = first + (row.empty() ? 0 : piece.action.chunk_count);
      piece.dropped = std::find(first, end, true) == end;
    }
  }

  // A move of which nothing is left takes no level.
  Status AssignLevels() {
    std::vector<bool> takes_time(world_.op_count(), false);
    for (const Piece& piece : pieces_) {
      if (!piece.dropped) takes_time[moves_[piece.move].id] = true;
    }
    StatusOr<std::vector<int32_t>> levels = Levels(world_, Sending::kRendezvous, takes_time);
    if (!levels.ok()) return levels.status();
    level_ = std::move(*levels);
    return Status();
  }

  LocalActions Assemble() {
    LocalActions out;
    out.world_size = world_.world_size();
    out.chunks_per_block = world_.layout().chunks_per_block;
    out.input_blocks = world_.layout().input_blocks;
    out.output_blocks = world_.layout().output_blocks;
    using MergeKey = std::tuple<int32_t, std::vector<ChunkRange>, int32_t>;
    std::map<MergeKey, size_t> seen;
    for (Piece& piece : pieces_) {
      if (piece.dropped) continue;
      Action& action = piece.action;
      for (const ChunkRange& range : action.sources) NoteScratch(range, action, out);
      for (const ChunkRange& range : action.destinations) NoteScratch(range, action, out);
      const size_t level = level_[moves_[piece.move].id];
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

  static void NoteScratch(const ChunkRange& range, const Action& action, LocalActions& out) {
    if (range.buffer != BufferKind::kScratch) return;
    const int32_t end = range.first_chunk + action.chunk_count;
    out.scratch_blocks =
        std::max(out.scratch_blocks, (end + out.chunks_per_block - 1) / out.chunks_per_block);
  }

  void ClearUnwrittenOutput(LocalActions& out) {
    const int32_t chunks = out.output_blocks * out.chunks_per_block;
    std::vector<std::vector<bool>> written(out.world_size, std::vector<bool>(chunks, false));
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

  const World& world_;
  const Collective collective_;
  std::vector<Move> moves_;
  std::vector<Piece> pieces_;
  std::vector<int32_t> level_;  // by op id
};

}  // namespace

StatusOr<LocalActions> Compile(const World& world, Collective collective) {
  return Compiler(world, collective).Run();
}

}  // namespace jaxcoll
