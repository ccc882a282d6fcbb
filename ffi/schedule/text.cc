// The text form of schedules.
//
//   jaxcoll-schedule 1 <ranks>
//   rank <r> <chunks per block> <input blocks> <output blocks> <scratch blocks> <ops>
//   <kind> <channel> <step> [<peer> <sequence>] <sources>><destination> [@<dependencies>]
//
// An operand is its buffer's letter (i, o, s) and its intervals, `3` or `4+2` (chunks 4 and 5),
// separated by commas; sources are separated by `|`, dependencies by commas. For example
//
//   recv_reduce 0 1 3 0 o2|i2>o2 @4
//
// is on channel 0 in step 1, the first message from rank 3: output chunk 2 there, reduced with
// input chunk 2 here, into output chunk 2 here, after op 4.
//
// Parse is given text that travelled through files and other processes. It either returns op lists
// that an engine can index with, or says which line is at fault: every number is bounded, every
// chunk inside its buffer, every operand of an op of the same size and positions, every input
// unwritten. Whether the ops add up to the collective is verification's business.
#include <algorithm>
#include <array>
#include <charconv>
#include <limits>
#include <string>

#include "schedule/schedule.h"
#include "schedule/world.h"

namespace jaxcoll {
namespace {

constexpr std::string_view kMagic = "jaxcoll-schedule 1 ";
constexpr size_t kMaxTextBytes = 1 << 20;
constexpr int32_t kMaxRanks = 1 << 16;
// Chunks of one buffer; bounds what an engine allocates per chunk.
constexpr int64_t kMaxChunks = 1 << 24;
constexpr int32_t kMaxChannelsOfText = 1 << 12;
constexpr int32_t kAny = std::numeric_limits<int32_t>::max();

constexpr std::array<std::string_view, 5> kKindNames = {"send", "recv", "recv_reduce", "copy",
                                                        "reduce"};  // by OpKind
constexpr std::string_view kBufferLetters = "ios";                  // by BufferKind

void AppendNumber(std::string& text, int32_t value) { text += std::to_string(value); }

void AppendOperand(std::string& text, const Operand& operand) {
  text += kBufferLetters[static_cast<size_t>(operand.buffer)];
  bool first = true;
  for (const Interval& interval : operand.chunks) {
    if (!first) text += ',';
    first = false;
    AppendNumber(text, interval.begin);
    if (interval.count != 1) {
      text += '+';
      AppendNumber(text, interval.count);
    }
  }
}

void AppendOp(std::string& text, const Op& op) {
  text += kKindNames[static_cast<size_t>(op.kind)];
  for (int32_t field : {op.channel, op.step}) {
    text += ' ';
    AppendNumber(text, field);
  }
  if (IsTransfer(op)) {
    for (int32_t field : {op.peer, op.sequence}) {
      text += ' ';
      AppendNumber(text, field);
    }
  }
  char separator = ' ';
  for (const Operand& source : op.sources) {
    text += separator;
    AppendOperand(text, source);
    separator = '|';
  }
  text += '>';
  AppendOperand(text, op.destination);
  separator = '@';
  if (!op.depends_on.empty()) text += ' ';
  for (int32_t dependency : op.depends_on) {
    text += separator;
    AppendNumber(text, dependency);
    separator = ',';
  }
  text += '\n';
}

// Reads the text from left to right. A failed read leaves the cursor where it was.
class Cursor {
 public:
  explicit Cursor(std::string_view text) : text_(text) {}

  bool AtEnd() const { return text_.empty(); }
  int64_t line() const { return line_; }

  bool Skip(std::string_view token) {
    if (!text_.starts_with(token)) return false;
    line_ += std::count(token.begin(), token.end(), '\n');
    text_.remove_prefix(token.size());
    return true;
  }

  // Canonical decimals only: Serialize(Parse(text)) == text.
  bool Number(int64_t low, int64_t high, int32_t& value) {
    int64_t parsed = 0;
    const char* begin = text_.data();
    const auto [end, error] = std::from_chars(begin, begin + text_.size(), parsed);
    if (error != std::errc() || parsed < low || parsed > high || *begin == '-') return false;
    if (*begin == '0' && end - begin > 1) return false;
    value = static_cast<int32_t>(parsed);
    text_.remove_prefix(static_cast<size_t>(end - begin));
    return true;
  }

  // The longest run of lower-case letters and underscores.
  std::string_view Word() {
    const size_t end =
        std::min(text_.find_first_not_of("abcdefghijklmnopqrstuvwxyz_"), text_.size());
    const std::string_view word = text_.substr(0, end);
    text_.remove_prefix(end);
    return word;
  }

 private:
  std::string_view text_;
  int64_t line_ = 1;
};

class Parser {
 public:
  explicit Parser(std::string_view text) : cursor_(text) {}

  StatusOr<std::vector<OpList>> Run() {
    if (Status s = OpLists(); !s.ok()) return s;
    return std::move(op_lists_);
  }

 private:
  Status Error(const std::string& what) const {
    return InvalidArgument("schedule text, line " + std::to_string(cursor_.line()) + ": " + what);
  }

  bool Field(int64_t low, int64_t high, int32_t& value) {
    return cursor_.Skip(" ") && cursor_.Number(low, high, value);
  }

  Status OpLists() {
    int32_t ranks = 0;
    if (!cursor_.Skip(kMagic) || !cursor_.Number(1, kMaxRanks, ranks) || !cursor_.Skip("\n")) {
      return Error("expected 'jaxcoll-schedule 1 <number of ranks, at most " +
                   std::to_string(kMaxRanks) + ">'");
    }
    for (int32_t rank = 0; rank < ranks; ++rank) {
      if (Status s = ParseOpList(rank, ranks); !s.ok()) return s;
    }
    if (!cursor_.AtEnd()) return Error("text after the last rank");
    return {};
  }

  Status ParseOpList(int32_t rank, int32_t ranks) {
    OpList op_list;
    int32_t op_count = 0;
    if (!cursor_.Skip("rank") || !Field(rank, rank, op_list.rank) ||
        !Field(1, kMaxChunks, op_list.chunks_per_block) ||
        !Field(1, kMaxChunks, op_list.input_blocks) ||
        !Field(1, kMaxChunks, op_list.output_blocks) ||
        !Field(0, kMaxChunks, op_list.scratch_blocks) || !Field(0, kAny, op_count) ||
        !cursor_.Skip("\n")) {
      return Error("expected 'rank " + std::to_string(rank) +
                   " <chunks per block> <input blocks> <output blocks> <scratch blocks> <ops>'");
    }
    const int64_t blocks =
        std::max({op_list.input_blocks, op_list.output_blocks, op_list.scratch_blocks});
    if (blocks * op_list.chunks_per_block > kMaxChunks) {
      return Error("a buffer has more than " + std::to_string(kMaxChunks) + " chunks");
    }
    // One layout for all ranks makes every remote operand checkable where it is read.
    if (rank > 0 && !SameLayout(op_list, op_lists_.front())) {
      return Error("rank " + std::to_string(rank) + " differs from rank 0 in blocks or chunks");
    }
    for (int32_t i = 0; i < op_count; ++i) {
      if (cursor_.AtEnd()) return Error("the text ends before the last op");
      Op op;
      if (Status s = ParseOp(op_list, ranks, op_count, i, op); !s.ok()) return s;
      op_list.ops.push_back(std::move(op));
    }
    op_lists_.push_back(std::move(op_list));
    return {};
  }

  static bool SameLayout(const OpList& a, const OpList& b) {
    return a.chunks_per_block == b.chunks_per_block && a.input_blocks == b.input_blocks &&
           a.output_blocks == b.output_blocks && a.scratch_blocks == b.scratch_blocks;
  }

  Status ParseOp(const OpList& op_list, int32_t ranks, int32_t op_count, int32_t index, Op& op) {
    const std::string_view word = cursor_.Word();
    const auto kind = std::find(kKindNames.begin(), kKindNames.end(), word);
    if (kind == kKindNames.end()) {
      return Error("expected send, recv, recv_reduce, copy or reduce");
    }
    op.kind = static_cast<OpKind>(kind - kKindNames.begin());
    if (!Field(0, kMaxChannelsOfText - 1, op.channel) || !Field(0, kAny, op.step)) {
      return Error("expected '<channel> <step>' after " + std::string(word));
    }
    if (IsTransfer(op)) {
      if (!Field(0, ranks - 1, op.peer) || !Field(0, kAny, op.sequence)) {
        return Error("expected '<peer> <sequence>' after channel and step, with a peer below " +
                     std::to_string(ranks));
      }
      if (op.peer == op_list.rank) return Error("a rank cannot send to itself; use copy");
    }

    if (!cursor_.Skip(" ")) return Error("expected ' ' before the sources");
    do {
      op.sources.emplace_back();
      if (Status s = ParseOperand(op_list, op.sources.back()); !s.ok()) return s;
    } while (cursor_.Skip("|"));
    if (!cursor_.Skip(">")) return Error("expected '>' and the destination after the sources");
    if (Status s = ParseOperand(op_list, op.destination); !s.ok()) return s;
    if (Status s = CheckOperands(op_list, op); !s.ok()) return s;

    if (cursor_.Skip(" @")) {
      do {
        int32_t dependency = 0;
        if (!cursor_.Number(0, op_count - 1, dependency) || dependency == index) {
          return Error("a dependency is the index of another op of this rank, below " +
                       std::to_string(op_count));
        }
        op.depends_on.push_back(dependency);
      } while (cursor_.Skip(","));
    }
    if (!cursor_.Skip("\n")) return Error("expected the end of the line after the op");
    return {};
  }

  Status ParseOperand(const OpList& op_list, Operand& operand) {
    size_t buffer = 0;
    while (buffer < kBufferLetters.size() && !cursor_.Skip(kBufferLetters.substr(buffer, 1))) {
      ++buffer;
    }
    if (buffer == kBufferLetters.size()) return Error("expected an operand: i, o or s and chunks");
    operand.buffer = static_cast<BufferKind>(buffer);
    const std::array<int32_t, 3> blocks = {op_list.input_blocks, op_list.output_blocks,
                                           op_list.scratch_blocks};
    const int64_t chunks = int64_t{blocks[buffer]} * op_list.chunks_per_block;
    do {
      Interval interval{0, 1};
      if (!cursor_.Number(0, chunks - 1, interval.begin) ||
          (cursor_.Skip("+") &&
           (!cursor_.Number(0, chunks - interval.begin, interval.count) || interval.count < 2))) {
        return Error("expected '<first chunk>' or '<first chunk>+<count, at least 2>' within the " +
                     std::to_string(chunks) + " chunks of the buffer");
      }
      operand.chunks.push_back(interval);
    } while (cursor_.Skip(","));
    return {};
  }

  Status CheckOperands(const OpList& op_list, const Op& op) {
    const size_t sources = op.sources.size();
    const bool right_count = op.kind == OpKind::kReduce       ? sources >= 1
                             : op.kind == OpKind::kRecvReduce ? sources == 2
                                                              : sources == 1;
    if (!right_count) {
      return Error(std::string(kKindNames[static_cast<size_t>(op.kind)]) + " with " +
                   std::to_string(sources) + " sources");
    }
    if (op.destination.buffer == BufferKind::kInput) return Error("inputs are read-only");
    for (const Operand& source : op.sources) {
      if (!Correspond(source, op.destination, op_list.chunks_per_block)) {
        return Error("source and destination differ in number or positions of their chunks");
      }
    }
    return {};
  }

  Cursor cursor_;
  std::vector<OpList> op_lists_;
};

}  // namespace

std::string Serialize(const std::vector<OpList>& op_lists) {
  std::string text(kMagic);
  text += std::to_string(op_lists.size()) + "\n";
  for (const OpList& op_list : op_lists) {
    text += "rank";
    for (int32_t field :
         {op_list.rank, op_list.chunks_per_block, op_list.input_blocks, op_list.output_blocks,
          op_list.scratch_blocks, static_cast<int32_t>(op_list.ops.size())}) {
      text += ' ';
      AppendNumber(text, field);
    }
    text += '\n';
    for (const Op& op : op_list.ops) AppendOp(text, op);
  }
  return text;
}

StatusOr<std::vector<OpList>> Parse(std::string_view text) {
  if (text.size() > kMaxTextBytes) {
    return InvalidArgument("schedule text has " + std::to_string(text.size()) + " bytes; at most " +
                           std::to_string(kMaxTextBytes) + " are accepted");
  }
  return Parser(text).Run();
}

}  // namespace jaxcoll
