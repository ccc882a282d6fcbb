#include "schedule/dependencies.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <vector>

namespace jaxcoll {
namespace {

constexpr int32_t kNone = -1;

// The accesses since, and with, the last write of each chunk of one buffer.
class AccessLog {
 public:
  void Read(const Operand& operand, int32_t op, std::vector<int32_t>& depends_on) {
    for (const Interval& chunks : operand.chunks) {
      ForEachSegment(chunks, [&](Segment& segment) {
        if (segment.writer != kNone) depends_on.push_back(segment.writer);
        if (segment.readers.empty() || segment.readers.back() != op) segment.readers.push_back(op);
      });
    }
  }

  void Write(const Operand& operand, int32_t op, std::vector<int32_t>& depends_on) {
    for (const Interval& chunks : operand.chunks) {
      ForEachSegment(chunks, [&](Segment& segment) {
        // Readers already wait for the writer, so waiting for them is enough.
        if (segment.readers.empty() && segment.writer != kNone) {
          depends_on.push_back(segment.writer);
        }
        depends_on.insert(depends_on.end(), segment.readers.begin(), segment.readers.end());
        segment.writer = op;
        segment.readers.clear();
      });
    }
  }

 private:
  // Chunks [key, end) with equal histories.
  struct Segment {
    int64_t end;
    int32_t writer = kNone;
    std::vector<int32_t> readers;
  };
  using Segments = std::map<int64_t, Segment>;

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
    SplitAt(begin);
    SplitAt(end);
    for (auto next = segments_.lower_bound(begin); begin < end; ++next) {
      if (next == segments_.end() || next->first > begin) {
        const int64_t gap_end = next == segments_.end() ? end : std::min(end, next->first);
        next = segments_.emplace_hint(next, begin, Segment{gap_end, kNone, {}});
      }
      visit(next->second);
      begin = next->second.end;
    }
  }

  Segments segments_;
};

}  // namespace

void InferDependencies(Program& program) {
  AccessLog logs[3];  // by BufferKind
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
    std::sort(op.depends_on.begin(), op.depends_on.end());
    op.depends_on.erase(std::unique(op.depends_on.begin(), op.depends_on.end()),
                        op.depends_on.end());
    std::erase(op.depends_on, index);  // an op that reads what it writes
  }
}

}  // namespace jaxcoll
