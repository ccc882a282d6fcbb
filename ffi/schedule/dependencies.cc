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
  // Ranges live in `memory`, which outlives the log.
  explicit AccessLog(std::pmr::memory_resource* memory) : ranges_(memory) {}

  void Read(const Operand& operand, int32_t op, Dependencies& depends_on) {
    for (const Interval& chunks : operand.chunks) {
      ForEachRange(chunks, [&](Range& range) {
        if (range.writer != kNobody) depends_on.push_back(range.writer);
        if (range.readers.empty() || range.readers.back() != op) range.readers.push_back(op);
      });
    }
  }

  void Write(const Operand& operand, int32_t op, Dependencies& depends_on) {
    for (const Interval& chunks : operand.chunks) {
      ForEachRange(chunks, [&](Range& range) {
        // Readers already wait for the writer, so waiting for them is enough.
        if (range.readers.empty() && range.writer != kNobody) {
          depends_on.push_back(range.writer);
        }
        depends_on.Append(range.readers.begin(), range.readers.end());
        range.writer = op;
        range.readers.clear();
      });
    }
  }

 private:
  // Chunks [key, end) with equal histories.
  struct Range {
    int64_t end;
    int32_t writer = kNobody;
    SmallVector<int32_t, 2> readers;
  };
  using Ranges = std::pmr::map<int64_t, Range>;

  // Whether a range beside the last one visited begins at `chunk`; it then is the last one. Most
  // algorithms walk through a buffer, and need no search.
  bool Near(int64_t chunk) {
    if (last_ == ranges_.end()) return false;
    if (chunk > last_->first) {
      const auto next = std::next(last_);
      if (next == ranges_.end()) return false;
      last_ = next;
    } else if (chunk < last_->first && last_ != ranges_.begin()) {
      --last_;
    }
    return last_->first == chunk;
  }

  // Makes `chunk` a boundary between ranges.
  void SplitAt(int64_t chunk) {
    auto next = ranges_.upper_bound(chunk);
    if (next == ranges_.begin()) return;
    auto& [begin, range] = *std::prev(next);
    if (begin == chunk || range.end <= chunk) return;
    Range tail = range;
    range.end = chunk;
    ranges_.emplace_hint(next, chunk, std::move(tail));
  }

  // Calls `visit` on ranges that cover exactly `chunks`, making new ones for untouched chunks.
  template <typename Visit>
  void ForEachRange(const Interval& chunks, Visit visit) {
    int64_t begin = chunks.begin;
    const int64_t end = begin + chunks.count;
    if (Near(begin) && last_->second.end == end) return visit(last_->second);
    SplitAt(begin);
    SplitAt(end);
    for (auto next = ranges_.lower_bound(begin); begin < end; ++next) {
      if (next == ranges_.end() || next->first > begin) {
        const int64_t gap_end = next == ranges_.end() ? end : std::min(end, next->first);
        next = ranges_.emplace_hint(next, begin, Range{gap_end, kNobody, {}});
      }
      visit(next->second);
      begin = next->second.end;
      last_ = next;
    }
  }

  Ranges ranges_;
  Ranges::iterator last_ = ranges_.end();
};

}  // namespace

void InferDependencies(OpList& op_list) {
  std::pmr::monotonic_buffer_resource memory;
  AccessLog logs[] = {AccessLog(&memory), AccessLog(&memory), AccessLog(&memory)};  // by BufferKind
  auto log = [&](const Operand& operand) -> AccessLog& {
    return logs[static_cast<int>(operand.buffer)];
  };
  for (size_t i = 0; i < op_list.ops.size(); ++i) {
    Op& op = op_list.ops[i];
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
