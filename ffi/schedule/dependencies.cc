#include "schedule/dependencies.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <memory_resource>

namespace jaxcoll {
namespace {

constexpr int32_t kNobody = -1;
using Dependencies = decltype(Op::depends_on);

// The accesses since, and with, the last write of each chunk of one buffer.
class AccessLog {
 public:
  // Segments live in `memory`, which outlives the log.
  explicit AccessLog(std::pmr::memory_resource* memory) : segments_(memory) {}

  void Read(const Operand& operand, int32_t op, Dependencies& depends_on) {
    for (const Interval& chunks : operand.chunks) {
      ForEachSegment(chunks, [&](Segment& segment) {
        if (segment.writer != kNobody) depends_on.push_back(segment.writer);
        if (segment.readers.empty() || segment.readers.back() != op) segment.readers.push_back(op);
      });
    }
  }

  void Write(const Operand& operand, int32_t op, Dependencies& depends_on) {
    for (const Interval& chunks : operand.chunks) {
      ForEachSegment(chunks, [&](Segment& segment) {
        // Readers already wait for the writer, so waiting for them is enough.
        if (segment.readers.empty() && segment.writer != kNobody) {
          depends_on.push_back(segment.writer);
        }
        depends_on.Append(segment.readers.begin(), segment.readers.end());
        segment.writer = op;
        segment.readers.clear();
      });
    }
  }

 private:
  // Chunks [key, end) with equal histories.
  struct Segment {
    int64_t end;
    int32_t writer = kNobody;
    SmallVector<int32_t, 2> readers;
  };
  using Segments = std::pmr::map<int64_t, Segment>;

  // Whether a segment beside the last one visited begins at `chunk`; it then is the last one. Most
  // algorithms walk through a buffer, and need no search.
  bool Near(int64_t chunk) {
    if (last_ == segments_.end()) return false;
    if (chunk > last_->first) {
      const auto next = std::next(last_);
      if (next == segments_.end()) return false;
      last_ = next;
    } else if (chunk < last_->first && last_ != segments_.begin()) {
      --last_;
    }
    return last_->first == chunk;
  }

  // Makes `chunk` a boundary between segments.
  void SplitAt(int64_t chunk) {
    auto next = segments_.upper_bound(chunk);
    if (next == segments_.begin()) return;
    auto& [begin, segment] = *std::prev(next);
    if (begin == chunk || segment.end <= chunk) return;
    Segment tail = segment;
    segment.end = chunk;
    segments_.emplace_hint(next, chunk, std::move(tail));
  }

  // Calls `visit` on segments that cover exactly `chunks`, making new ones for untouched chunks.
  template <typename Visit>
  void ForEachSegment(const Interval& chunks, Visit visit) {
    int64_t begin = chunks.begin;
    const int64_t end = begin + chunks.count;
    if (Near(begin) && last_->second.end == end) return visit(last_->second);
    SplitAt(begin);
    SplitAt(end);
    for (auto next = segments_.lower_bound(begin); begin < end; ++next) {
      if (next == segments_.end() || next->first > begin) {
        const int64_t gap_end = next == segments_.end() ? end : std::min(end, next->first);
        next = segments_.emplace_hint(next, begin, Segment{gap_end, kNobody, {}});
      }
      visit(next->second);
      begin = next->second.end;
      last_ = next;
    }
  }

  Segments segments_;
  Segments::iterator last_ = segments_.end();
};

}  // namespace

void InferDependencies(Program& program) {
  std::pmr::monotonic_buffer_resource memory;
  AccessLog logs[] = {AccessLog(&memory), AccessLog(&memory), AccessLog(&memory)};  // by BufferKind
  auto log = [&](const Operand& operand) -> AccessLog& {
    return logs[static_cast<int>(operand.buffer)];
  };
  for (size_t i = 0; i < program.ops.size(); ++i) {
    Op& op = program.ops[i];
    const int32_t index = static_cast<int32_t>(i);
    const bool receives = op.kind == OpKind::kRecv || op.kind == OpKind::kRecvReduce;
    for (size_t s = receives ? 1 : 0; s < op.sources.size(); ++s) {  // a recv's first is remote
      if (op.sources[s].buffer == BufferKind::kInput) continue;
      log(op.sources[s]).Read(op.sources[s], index, op.depends_on);
    }
    if (op.kind != OpKind::kSend) log(op.destination).Write(op.destination, index, op.depends_on);
    auto& before = op.depends_on;
    before.Truncate(std::remove(before.begin(), before.end(), index));  // it reads what it writes
    std::sort(before.begin(), before.end());
    before.Truncate(std::unique(before.begin(), before.end()));
  }
}

}  // namespace jaxcoll
