#include "gpu/host/worker_op.h"

#include <algorithm>
#include <optional>
#include <set>
#include <utility>

namespace jaxcoll::cuda {
namespace {

// Destinations that one op may have after fusion.
constexpr size_t kMaxDestinations = 64;

bool Overlap(const Refs& a, const Refs& b) {
  const std::set<ChunkRef> chunks(a.begin(), a.end());
  return std::any_of(b.begin(), b.end(), [&](const ChunkRef& ref) { return chunks.contains(ref); });
}

// An op that takes others at its side, with the chunks that it reads and writes.
class WideOp {
 public:
  explicit WideOp(WorkerOp op) : op_(std::move(op)) { Note(op_); }

  // Whether the next op may be one with it, which waits for all that either waits for and moves all
  // chunks side by side. On one level neither waits for what the other makes possible.
  bool MayTake(const WorkerOp& next) const {
    if (!op_.Moves() || !next.Moves() || op_.level != next.level) return false;
    if (op_.sources.size() != next.sources.size()) return false;
    if (op_.destinations.size() != next.destinations.size()) return false;
    return !AnyIn(written_, next.sources) && !AnyIn(read_, next.destinations) &&
           !AnyIn(written_, next.destinations);
  }

  void Take(const WorkerOp& next) {
    Note(next);
    Append(op_.waits, next.waits);
    Append(op_.positions, next.positions);
    for (size_t s = 0; s < next.sources.size(); ++s) Append(op_.sources[s], next.sources[s]);
    for (size_t d = 0; d < next.destinations.size(); ++d) {
      Append(op_.destinations[d], next.destinations[d]);
    }
    Append(op_.signals, next.signals);
    Append(op_.of, next.of);
  }

  WorkerOp Release() && { return std::move(op_); }

 private:
  static bool AnyIn(const std::set<ChunkRef>& chunks, const std::vector<Refs>& operands) {
    return std::any_of(operands.begin(), operands.end(), [&](const Refs& refs) {
      return std::any_of(refs.begin(), refs.end(),
                         [&](const ChunkRef& ref) { return chunks.contains(ref); });
    });
  }
  void Note(const WorkerOp& op) {
    for (const Refs& refs : op.sources) read_.insert(refs.begin(), refs.end());
    for (const Refs& refs : op.destinations) written_.insert(refs.begin(), refs.end());
  }

  WorkerOp op_;
  std::set<ChunkRef> read_, written_;
};

}  // namespace

bool MayJoin(const WorkerOp& op, const WorkerOp& next) {
  if (!op.Moves() || !next.Moves() || next.sources.size() != 1 || op.sources.empty()) return false;
  if (op.destinations.size() + next.destinations.size() > kMaxDestinations) return false;
  if (op.positions != next.positions) return false;
  if (std::any_of(next.waits.begin(), next.waits.end(),
                  [](const TableWait& w) { return w.kind != TableWait::kFree; })) {
    return false;
  }
  const bool same = op.sources.size() == 1 && op.sources[0] == next.sources[0];
  const bool made = std::find(op.destinations.begin(), op.destinations.end(), next.sources[0]) !=
                    op.destinations.end();
  if (!same && !made) return false;
  // Two passes would have read everything before the second one wrote.
  for (const Refs& destination : next.destinations) {
    for (const Refs& source : op.sources) {
      if (Overlap(source, destination)) return false;
    }
    for (const Refs& other : op.destinations) {
      if (Overlap(other, destination)) return false;
    }
  }
  for (const Refs& destination : op.destinations) {
    if (same && Overlap(destination, next.sources[0])) return false;
  }
  return true;
}

void PutSideBySide(std::vector<WorkerOp>& ops) {
  std::vector<WorkerOp> fewer;
  std::optional<WideOp> last;
  for (WorkerOp& op : ops) {
    if (last && last->MayTake(op)) {
      last->Take(op);
      continue;
    }
    if (last) fewer.push_back(std::move(*last).Release());
    last.emplace(std::move(op));
  }
  if (last) fewer.push_back(std::move(*last).Release());
  ops = std::move(fewer);
}

void DropDeadStores(std::vector<std::vector<WorkerOp>>& workers) {
  std::set<ChunkRef> read;
  for (const std::vector<WorkerOp>& ops : workers) {
    for (const WorkerOp& op : ops) {
      for (const Refs& refs : op.sources) read.insert(refs.begin(), refs.end());
    }
  }
  for (std::vector<WorkerOp>& ops : workers) {
    for (WorkerOp& op : ops) {
      std::erase_if(op.destinations, [&](const Refs& refs) {
        return std::all_of(refs.begin(), refs.end(), [&](const ChunkRef& ref) {
          return ref.memory == TableRef::kScratch && !read.contains(ref);
        });
      });
      if (op.destinations.empty()) op.sources.clear();
    }
  }
}

}  // namespace jaxcoll::cuda
