#include "schedule/world.h"

#include <algorithm>
#include <tuple>

#include "schedule/op_list_builder.h"

namespace jaxcoll {

MessageKey KeyOf(int32_t rank, const Op& op) {
  const bool sends = IsSend(op);
  return {sends ? rank : op.peer, sends ? op.peer : rank, op.channel, op.sequence};
}

int32_t CountChunks(const Operand& operand) {
  int32_t count = 0;
  for (const Interval& interval : operand.chunks) count += interval.count;
  return count;
}

std::vector<int32_t> ListChunks(const Operand& operand) {
  std::vector<int32_t> chunks;
  chunks.reserve(CountChunks(operand));
  for (const Interval& interval : operand.chunks) {
    for (int32_t i = 0; i < interval.count; ++i) chunks.push_back(interval.begin + i);
  }
  return chunks;
}

bool Correspond(const Operand& a, const Operand& b, int32_t chunks_per_block) {
  size_t i = 0, j = 0;
  int32_t done_a = 0, done_b = 0;
  while (i < a.chunks.size() && j < b.chunks.size()) {
    const Interval& x = a.chunks[i];
    const Interval& y = b.chunks[j];
    if ((x.begin + done_a - y.begin - done_b) % chunks_per_block != 0) return false;
    const int32_t run = std::min(x.count - done_a, y.count - done_b);
    done_a += run;
    done_b += run;
    if (done_a == x.count) ++i, done_a = 0;
    if (done_b == y.count) ++j, done_b = 0;
  }
  return i == a.chunks.size() && j == b.chunks.size();
}

std::string Where(int32_t rank, size_t op) {
  return "rank " + std::to_string(rank) + ", op " + std::to_string(op);
}

int32_t LargestMessage(const OpList& op_list) {
  int32_t largest = 1;
  for (const Op& op : op_list.ops) {
    if (IsTransfer(op)) largest = std::max(largest, CountChunks(op.destination));
  }
  return largest;
}

StatusOr<int32_t> LargestMessage(const ScheduleSpec& spec) {
  const StatusOr<OpList> op_list = BuildUnordered(spec, spec.root);
  if (!op_list.ok()) return op_list.status();
  return LargestMessage(*op_list);
}

// ---- Matching ----------------------------------------------------------------------------------

void MessageEnds::Add(const Op& op, uint32_t number) {
  (IsSend(op) ? sends_ : receipts_).push_back({op.peer, op.channel, op.sequence, number});
}

class Matcher {
 public:
  Matcher(std::span<const int32_t> ranks, std::span<const MessageEnds> ends)
      : ranks_(ranks), ends_(ends) {}

  std::optional<Unmatched> Run(const OnPair& pair) {
    std::vector<std::vector<bool>> received(ends_.size());
    for (size_t m = 0; m < ends_.size(); ++m) {
      const std::vector<End>& sends = ends_[m].sends_;
      received[m].resize(sends.size());
      const auto twice = std::adjacent_find(
          sends.begin(), sends.end(), [](const End& a, const End& b) { return Key(a) == Key(b); });
      if (twice != sends.end()) return Lost(Unmatched::Why::kSentTwice, m, *(twice + 1));
    }
    for (size_t m = 0; m < ends_.size(); ++m) {
      for (const End& receipt : ends_[m].receipts_) {
        const size_t source = Find(receipt.peer);
        if (source == ends_.size()) continue;
        const std::vector<End>& sends = ends_[source].sends_;
        const auto key = std::tuple(ranks_[m], receipt.channel, receipt.sequence);
        const auto send =
            std::lower_bound(sends.begin(), sends.end(), key,
                             [](const End& a, const auto& wanted) { return Key(a) < wanted; });
        const auto at = static_cast<size_t>(send - sends.begin());
        if (send == sends.end() || Key(*send) != key || received[source][at]) {
          return Lost(Unmatched::Why::kNeverSent, m, receipt);
        }
        received[source][at] = true;
        pair(source, send->number, m, receipt.number);
      }
    }
    for (size_t m = 0; m < ends_.size(); ++m) {
      const std::vector<End>& sends = ends_[m].sends_;
      const End* first = nullptr;
      for (size_t at = 0; at < sends.size(); ++at) {
        if (received[m][at] || Find(sends[at].peer) == ends_.size()) continue;
        if (first == nullptr || sends[at].number < first->number) first = &sends[at];
      }
      if (first != nullptr) return Lost(Unmatched::Why::kNeverReceived, m, *first);
    }
    return std::nullopt;
  }

  static void Sort(MessageEnds& ends) {
    const auto before = [](const End& a, const End& b) { return Key(a) < Key(b); };
    if (!std::is_sorted(ends.sends_.begin(), ends.sends_.end(), before)) {
      std::stable_sort(ends.sends_.begin(), ends.sends_.end(), before);
    }
  }

 private:
  using End = MessageEnds::End;
  static std::tuple<int32_t, int32_t, int32_t> Key(const End& end) {
    return {end.peer, end.channel, end.sequence};
  }

  // The index of a rank; ends_.size() if it is not here.
  size_t Find(int32_t rank) const {
    const auto guess = static_cast<size_t>(rank);  // all ranks up to it are here
    if (guess < ranks_.size() && ranks_[guess] == rank) return guess;
    const auto it = std::lower_bound(ranks_.begin(), ranks_.end(), rank);
    return it != ranks_.end() && *it == rank ? static_cast<size_t>(it - ranks_.begin())
                                             : ends_.size();
  }

  Unmatched Lost(Unmatched::Why why, size_t member, const End& end) const {
    const int32_t rank = ranks_[member];
    const bool receipt = why == Unmatched::Why::kNeverSent;
    return {why,
            {receipt ? end.peer : rank, receipt ? rank : end.peer, end.channel, end.sequence},
            end.number};
  }

  const std::span<const int32_t> ranks_;
  const std::span<const MessageEnds> ends_;
};

void MessageEnds::Sort() { Matcher::Sort(*this); }

std::optional<Unmatched> MatchMessages(std::span<const int32_t> ranks,
                                       std::span<const MessageEnds> ends, const OnPair& pair) {
  return Matcher(ranks, ends).Run(pair);
}

// ---- The world ---------------------------------------------------------------------------------

StatusOr<World> World::Create(std::vector<OpList> op_lists, int32_t world_size) {
  World world;
  world.world_size_ = world_size;
  world.op_lists_ = std::move(op_lists);
  int64_t ops = 0;
  for (const OpList& op_list : world.op_lists_) {
    world.ranks_.push_back(op_list.rank);
    world.first_op_.push_back(static_cast<int32_t>(ops));
    ops += static_cast<int64_t>(op_list.ops.size());
    if (ops > INT32_MAX) return InvalidArgument("a schedule has more than 2^31 ops");
  }
  world.first_op_.push_back(static_cast<int32_t>(ops));
  if (Status s = world.CheckLayout(); !s.ok()) return s;
  if (Status s = world.CheckOps(); !s.ok()) return s;
  if (Status s = world.Match(); !s.ok()) return s;
  return world;
}

Status World::CheckLayout() const {
  for (size_t member = 0; member < op_lists_.size(); ++member) {
    const OpList& p = op_lists_[member];
    const OpList& first = op_lists_.front();
    if (p.rank < 0 || p.rank >= world_size_ || (member > 0 && p.rank <= ranks_[member - 1])) {
      return InvalidArgument("the op list in place " + std::to_string(member) +
                             " claims to be that of rank " + std::to_string(p.rank) + " of " +
                             std::to_string(world_size_));
    }
    if (p.chunks_per_block < 1 || p.chunks_per_block != first.chunks_per_block ||
        p.input_blocks != first.input_blocks || p.output_blocks != first.output_blocks ||
        p.scratch_blocks != first.scratch_blocks) {
      return InvalidArgument("rank " + std::to_string(p.rank) + " disagrees on blocks or chunks");
    }
  }
  return {};
}

Status World::CheckOps() const {
  if (op_lists_.empty()) return {};
  const int32_t per_block = layout().chunks_per_block;
  const int64_t limits[] = {int64_t{layout().input_blocks} * per_block,  // by BufferKind
                            int64_t{layout().output_blocks} * per_block,
                            int64_t{layout().scratch_blocks} * per_block};
  const auto fault = [&](const Operand& operand, const Op& op) -> const char* {
    for (const Interval& interval : operand.chunks) {
      if (interval.begin < 0 || interval.count < 1 ||
          interval.begin + int64_t{interval.count} > limits[static_cast<int>(operand.buffer)]) {
        return ": a chunk lies outside of its buffer";
      }
    }
    if (CountChunks(operand) != CountChunks(op.destination)) return ": operands differ in size";
    return Correspond(operand, op.destination, per_block) ? nullptr
                                                          : ": operands differ in positions";
  };
  for (const OpList& op_list : op_lists_) {
    const auto refuse = [&](const Op& op, const std::string& why) {
      return InvalidArgument(Where(op_list.rank, static_cast<size_t>(&op - op_list.ops.data())) +
                             why);
    };
    for (const Op& op : op_list.ops) {
      const size_t sources = op.kind == OpKind::kRecvReduce ? 2 : 1;
      if (op.kind == OpKind::kReduce ? op.sources.empty() : op.sources.size() != sources) {
        return refuse(op, ": wrong number of sources");
      }
      if (op.destination.buffer == BufferKind::kInput) {
        return refuse(op, ": inputs are read-only");
      }
      if (const char* why = fault(op.destination, op)) return refuse(op, why);
      for (const Operand& source : op.sources) {
        if (const char* why = fault(source, op)) return refuse(op, why);
      }
      for (const int32_t before : op.depends_on) {
        if (before < 0 || before >= static_cast<int32_t>(op_list.ops.size())) {
          return refuse(op, ": depends on an op that does not exist");
        }
      }
      if (IsTransfer(op) && (op.peer < 0 || op.peer >= world_size_ || op.peer == op_list.rank)) {
        return refuse(op, ": its peer is rank " + std::to_string(op.peer));
      }
    }
  }
  return {};
}

Status World::Match() {
  std::vector<MessageEnds> ends(op_lists_.size());
  for (size_t member = 0; member < op_lists_.size(); ++member) {
    const std::vector<Op>& ops = op_lists_[member].ops;
    for (size_t i = 0; i < ops.size(); ++i) {
      if (IsTransfer(ops[i])) ends[member].Add(ops[i], static_cast<uint32_t>(i));
    }
    ends[member].Sort();
  }
  mates_.assign(op_count(), kNone);
  Status disagreement;
  const auto unmatched =
      MatchMessages(ranks_, ends, [&](size_t source, uint32_t s, size_t destination, uint32_t r) {
        const Op& send = op_lists_[source].ops[s];
        const Op& receipt = op_lists_[destination].ops[r];
        mates_[Id(static_cast<int32_t>(source), s)] = Id(static_cast<int32_t>(destination), r);
        mates_[Id(static_cast<int32_t>(destination), r)] = Id(static_cast<int32_t>(source), s);
        if (send.sources[0] == receipt.sources[0] && send.destination == receipt.destination) {
          return;
        }
        if (!disagreement.ok()) return;
        disagreement = InvalidArgument(Where(ranks_[destination], r) + " and " +
                                       Where(ranks_[source], s) + " disagree on a message");
      });
  if (!unmatched) return disagreement;
  const std::string where = Where(unmatched->rank(), unmatched->number);
  switch (unmatched->why) {
    case Unmatched::Why::kSentTwice:
      return InvalidArgument(where + ": sends a message twice");
    case Unmatched::Why::kNeverSent:
      return InvalidArgument(where + ": no rank sends what it receives");
    case Unmatched::Why::kNeverReceived:
      break;
  }
  return InvalidArgument(where + ": no rank receives what it sends");
}

int32_t World::MemberOf(int32_t rank) const {
  if (complete()) return rank;
  const auto it = std::lower_bound(ranks_.begin(), ranks_.end(), rank);
  return it != ranks_.end() && *it == rank ? static_cast<int32_t>(it - ranks_.begin()) : kNone;
}

int32_t World::MemberOfOp(int32_t id) const {
  return static_cast<int32_t>(std::upper_bound(first_op_.begin(), first_op_.end(), id) -
                              first_op_.begin()) -
         1;
}

const Op& World::op(int32_t id) const {
  const int32_t member = MemberOfOp(id);
  return op_lists_[member].ops[id - first_op_[member]];
}

std::string World::WhereIs(int32_t id) const {
  const int32_t member = MemberOfOp(id);
  return Where(ranks_[member], static_cast<size_t>(id - first_op_[member]));
}

// ---- What engines may leave out ----------------------------------------------------------------

ScratchUse::ScratchUse(const World& world) : world_(world), written_(world.op_lists().size()) {
  for (int32_t member = 0; member < world.member_count(); ++member) {
    std::vector<Written>& written = written_[member];
    for (const Op& op : world.op_lists()[member].ops) ListWrites(member, op, written);
    const auto before = [](const Written& a, const Written& b) { return a.chunk < b.chunk; };
    if (!std::is_sorted(written.begin(), written.end(), before)) {
      std::sort(written.begin(), written.end(), before);
    }
    size_t kept = 0;
    for (size_t i = 0; i < written.size(); ++i) {
      if (kept > 0 && written[kept - 1].chunk == written[i].chunk) {
        written[kept - 1].from = Written::kElse;
        written[kept - 1].once = false;
      } else {
        written[kept++] = written[i];
      }
    }
    written.resize(kept);
  }
  for (std::vector<Written>& written : written_) {
    for (Written& chunk : written) Resolve(chunk);
  }
}

void ScratchUse::ListWrites(int32_t member, const Op& op, std::vector<Written>& written) const {
  if (IsSend(op) || op.destination.buffer != BufferKind::kScratch) return;
  const Operand& source = op.sources[0];
  const int32_t source_member = IsReceive(op) ? world_.MemberOf(op.peer) : member;
  Written::From from = Written::kElse;
  if (op.sources.size() == 1 && source_member != World::kNone) {
    if (source.buffer == BufferKind::kInput) from = Written::kInput;
    if (source.buffer == BufferKind::kScratch) from = Written::kScratch;
  }
  // Walks the interval lists of both sides together.
  size_t interval = 0;
  int32_t used = 0;
  for (const Interval& to : op.destination.chunks) {
    for (int32_t c = 0; c < to.count; ++c) {
      const Interval& chunks = source.chunks[interval];
      written.push_back({to.begin + c, from, true, {source_member, chunks.begin + used}});
      if (++used == chunks.count) ++interval, used = 0;
    }
  }
}

// Follows copies of scratch to the input that they begin with.
void ScratchUse::Resolve(Written& chunk) {
  std::vector<Written*> way;
  Written* at = &chunk;
  while (at != nullptr && at->from == Written::kScratch) {
    way.push_back(at);
    at->from = Written::kElse;  // a cycle of copies has no origin
    at = const_cast<Written*>(Find(at->origin.member, at->origin.chunk));
  }
  if (at == nullptr || at->from != Written::kInput) return;
  for (Written* const passed : way) {
    passed->from = Written::kInput;
    passed->origin = at->origin;
  }
}

const ScratchUse::Written* ScratchUse::Find(int32_t member, int32_t chunk) const {
  const std::vector<Written>& written = written_[member];
  const auto it =
      std::lower_bound(written.begin(), written.end(), chunk,
                       [](const Written& a, int32_t wanted) { return a.chunk < wanted; });
  return it != written.end() && it->chunk == chunk ? &*it : nullptr;
}

ScratchUse::Origin ScratchUse::OriginOf(int32_t member, int32_t chunk) const {
  const Written* const written = Find(member, chunk);
  return written != nullptr && written->from == Written::kInput ? written->origin : Origin();
}

bool ScratchUse::Forwarded(int32_t id) const {
  const Op& op = world_.op(id);
  if (IsSend(op) || op.destination.buffer != BufferKind::kScratch) return false;
  const int32_t member = world_.MemberOfOp(id);
  for (const Interval& interval : op.destination.chunks) {
    for (int32_t c = 0; c < interval.count; ++c) {
      if (OriginOf(member, interval.begin + c).member == World::kNone) return false;
    }
  }
  return true;
}

bool ScratchUse::StaysInPlace(int32_t id) const {
  const Op& op = world_.op(id);
  if (op.kind != OpKind::kRecv || op.destination.buffer != BufferKind::kScratch) return false;
  const int32_t member = world_.MemberOfOp(id);
  for (const Interval& interval : op.destination.chunks) {
    for (int32_t c = 0; c < interval.count; ++c) {
      if (!Find(member, interval.begin + c)->once) return false;
    }
  }
  return true;
}

// ---- Order -------------------------------------------------------------------------------------

StatusOr<std::vector<int32_t>> Levels(const World& world, Sending sending,
                                      const std::vector<bool>& takes_time) {
  // Nodes: op i starts at 2i and completes at 2i + 1, or when its receiver does.
  const int32_t ops = world.op_count();
  std::vector<int32_t> completion(ops);
  struct Edge {
    int32_t before, after, length;
  };
  std::vector<Edge> edges;
  for (int32_t member = 0; member < world.member_count(); ++member) {
    const OpList& op_list = world.op_lists()[member];
    for (size_t i = 0; i < op_list.ops.size(); ++i) {
      const int32_t id = world.Id(member, i);
      const bool together = sending == Sending::kRendezvous && IsSend(op_list.ops[i]) &&
                            world.mate(id) != World::kNone;
      completion[id] = 2 * (together ? world.mate(id) : id) + 1;
    }
  }
  for (int32_t member = 0; member < world.member_count(); ++member) {
    const OpList& op_list = world.op_lists()[member];
    std::vector<std::pair<int32_t, int32_t>> last_of_channel;  // a handful
    for (size_t i = 0; i < op_list.ops.size(); ++i) {
      const Op& op = op_list.ops[i];
      const int32_t id = world.Id(member, i);
      edges.push_back({2 * id, completion[id], 0});
      for (const int32_t before : op.depends_on) {
        const int32_t other = world.Id(member, before);
        const int32_t mover = completion[other] / 2;
        edges.push_back({completion[other], 2 * id, takes_time.empty() || takes_time[mover]});
      }
      if (sending == Sending::kBuffered) {
        if (IsReceive(op) && world.mate(id) != World::kNone) {
          edges.push_back({completion[world.mate(id)], completion[id], 1});
        }
        continue;
      }
      auto last = std::find_if(last_of_channel.begin(), last_of_channel.end(),
                               [&](const auto& entry) { return entry.first == op.channel; });
      if (last == last_of_channel.end()) {
        last_of_channel.emplace_back(op.channel, id);
      } else {
        edges.push_back({2 * std::exchange(last->second, id), 2 * id, 0});
      }
    }
  }
  std::vector<int32_t> first(2 * ops + 1, 0), waits(2 * ops, 0), level(2 * ops, 0);
  for (const Edge& edge : edges) {
    ++first[edge.before + 1];
    ++waits[edge.after];
  }
  for (int32_t node = 0; node < 2 * ops; ++node) first[node + 1] += first[node];
  std::vector<std::pair<int32_t, int32_t>> next(edges.size());  // (node, length)
  std::vector<int32_t> filled(first.begin(), first.end() - 1);
  for (const Edge& edge : edges) next[filled[edge.before]++] = {edge.after, edge.length};
  std::vector<int32_t> ready;
  for (int32_t node = 0; node < 2 * ops; ++node) {
    if (waits[node] == 0) ready.push_back(node);
  }
  while (!ready.empty()) {
    const int32_t node = ready.back();
    ready.pop_back();
    for (int32_t e = first[node]; e < first[node + 1]; ++e) {
      const auto [after, length] = next[e];
      level[after] = std::max(level[after], level[node] + length);
      if (--waits[after] == 0) ready.push_back(after);
    }
  }
  std::vector<int32_t> result(ops);
  for (int32_t id = 0; id < ops; ++id) {
    if (waits[completion[id]] > 0) {
      return InvalidArgument("the schedule deadlocks: " + world.WhereIs(id) +
                             " can never complete");
    }
    result[id] = level[completion[id]];
  }
  return result;
}

}  // namespace jaxcoll
