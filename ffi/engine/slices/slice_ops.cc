#include "engine/slices/slice_ops.h"

#include <algorithm>
#include <map>
#include <utility>

namespace jaxcoll {
namespace {

class SliceCompiler {
 public:
  SliceCompiler(const World& world, int32_t largest_message) : world_(world) {
    result_.largest_message = largest_message;
  }

  StatusOr<SliceOps> Run() {
    if (world_.member_count() == 0) return InvalidArgument("a process without ranks takes no part");
    const OpList& layout = world_.layout();
    result_.world_size = world_.world_size();
    result_.chunks_per_block = layout.chunks_per_block;
    result_.input_blocks = layout.input_blocks;
    result_.output_blocks = layout.output_blocks;
    result_.members = world_.ranks();
    result_.ops.resize(world_.op_count());
    for (int32_t member = 0; member < world_.member_count(); ++member) AddOps(member);
    JoinMessages();
    Forward();
    AssignCells();
    FindZeros();
    FindReadAgain();
    ListMessages();
    return std::move(result_);
  }

 private:
  static std::vector<LocalChunk> Chunks(int32_t member, const Operand& operand) {
    std::vector<LocalChunk> chunks;
    chunks.reserve(CountChunks(operand));
    for (const Interval& interval : operand.chunks) {
      for (int32_t i = 0; i < interval.count; ++i) {
        chunks.push_back({member, operand.buffer, interval.begin + i});
      }
    }
    return chunks;
  }

  void AddOps(int32_t member) {
    const OpList& op_list = world_.op_lists()[member];
    std::map<int32_t, int32_t> last_of_channel;
    for (size_t i = 0; i < op_list.ops.size(); ++i) {
      const Op& op = op_list.ops[i];
      const int32_t id = world_.Id(member, i);
      SliceOp& out = result_.ops[id];
      out.member = member;
      out.peer = op.peer;
      if (IsTransfer(op)) out.key = KeyOf(op_list.rank, op);
      out.chunk_count = CountChunks(op.destination);
      out.kind = IsSend(op)      ? SliceOp::Kind::kSend
                 : IsReceive(op) ? SliceOp::Kind::kReceive
                                 : SliceOp::Kind::kMove;
      for (size_t s = IsReceive(op) ? 1 : 0; s < op.sources.size(); ++s) {
        out.sources.push_back(Chunks(member, op.sources[s]));
      }
      if (!IsSend(op)) out.destination = Chunks(member, op.destination);
      if (const auto last = last_of_channel.find(op.channel); last != last_of_channel.end()) {
        result_.ops[last->second].after_start.push_back(id);
        ++out.waits;
      }
      last_of_channel[op.channel] = id;
      for (const int32_t before : op.depends_on) {
        result_.ops[world_.Id(member, before)].after_completion.push_back(id);
        ++out.waits;
      }
    }
  }

  // A send and its receive, both in this process, are one move.
  void JoinMessages() {
    for (int32_t id = 0; id < world_.op_count(); ++id) {
      SliceOp& op = result_.ops[id];
      if (op.kind != SliceOp::Kind::kReceive || world_.mate(id) == World::kNone) continue;
      SliceOp& send = result_.ops[world_.mate(id)];
      op.sources.insert(op.sources.begin(), std::move(send.sources[0]));
      op.kind = SliceOp::Kind::kMove;
      op.partner = world_.mate(id);
      send.kind = SliceOp::Kind::kNothing;
      send.partner = id;
      send.sources.clear();
    }
  }

  // Chunks that ScratchUse says need not be copied are read where they are.
  void Forward() {
    const ScratchUse use(world_);
    for (int32_t id = 0; id < world_.op_count(); ++id) {
      SliceOp& op = result_.ops[id];
      if (op.kind == SliceOp::Kind::kMove && use.Forwarded(id)) {
        op.kind = SliceOp::Kind::kNothing;
        op.sources.clear();
        op.destination.clear();
      } else if (op.kind == SliceOp::Kind::kReceive && use.StaysInPlace(id)) {
        op.kind = SliceOp::Kind::kInPlace;
      }
      for (std::vector<LocalChunk>& source : op.sources) {
        for (LocalChunk& chunk : source) {
          if (chunk.buffer != BufferKind::kScratch) continue;
          const ScratchUse::Origin origin = use.OriginOf(chunk.member, chunk.chunk);
          if (origin.member == World::kNone) continue;
          chunk = {origin.member, BufferKind::kInput, origin.chunk};
        }
      }
    }
  }

  void AssignCells() {
    std::vector<LocalChunk*> touched;
    for (SliceOp& op : result_.ops) {
      const auto touch = [&](std::vector<LocalChunk>& chunks) {
        for (LocalChunk& chunk : chunks) {
          if (chunk.buffer == BufferKind::kScratch) touched.push_back(&chunk);
        }
      };
      for (std::vector<LocalChunk>& source : op.sources) touch(source);
      touch(op.destination);
    }
    const auto key = [](const LocalChunk* c) { return std::pair(c->member, c->chunk); };
    std::sort(touched.begin(), touched.end(),
              [&](const LocalChunk* a, const LocalChunk* b) { return key(a) < key(b); });
    for (size_t i = 0; i < touched.size(); ++i) {
      if (i == 0 || key(touched[i]) != key(touched[i - 1])) ++result_.scratch_cells;
      touched[i]->cell = result_.scratch_cells - 1;
    }
  }

  // By member: whether each chunk of its output is among those that `mark` is called with.
  template <typename Visit>
  std::vector<std::vector<bool>> OutputChunks(Visit visit) const {
    const int32_t chunks = result_.output_blocks * result_.chunks_per_block;
    std::vector<std::vector<bool>> marked(result_.members.size(), std::vector<bool>(chunks, false));
    const auto mark = [&](const std::vector<LocalChunk>& list) {
      for (const LocalChunk& c : list) {
        if (c.buffer == BufferKind::kOutput) marked[c.member][c.chunk] = true;
      }
    };
    for (const SliceOp& op : result_.ops) visit(op, mark);
    return marked;
  }

  void FindZeros() {
    const auto written = OutputChunks([](const SliceOp& op, auto mark) { mark(op.destination); });
    for (size_t member = 0; member < written.size(); ++member) {
      for (size_t chunk = 0; chunk < written[member].size(); ++chunk) {
        if (written[member][chunk]) continue;
        result_.zeros.push_back(
            {static_cast<int32_t>(member), BufferKind::kOutput, static_cast<int32_t>(chunk)});
      }
    }
  }

  void FindReadAgain() {
    const auto read = OutputChunks([](const SliceOp& op, auto mark) {
      for (const std::vector<LocalChunk>& source : op.sources) mark(source);
    });
    for (SliceOp& op : result_.ops) {
      op.read_again =
          std::any_of(op.destination.begin(), op.destination.end(), [&](const LocalChunk& c) {
            return c.buffer != BufferKind::kOutput || read[c.member][c.chunk];
          });
    }
  }

  void ListMessages() {
    for (size_t id = 0; id < result_.ops.size(); ++id) {
      const SliceOp& op = result_.ops[id];
      if (op.kind == SliceOp::Kind::kNothing || op.kind == SliceOp::Kind::kMove) continue;
      result_.messages[op.key] = static_cast<int32_t>(id);
    }
  }

  const World& world_;
  SliceOps result_;
};

}  // namespace

StatusOr<SliceOps> CompileSliceOps(const World& world, int32_t largest_message) {
  return SliceCompiler(world, largest_message).Run();
}

}  // namespace jaxcoll
