#include "engine/slices/ragged_table.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <utility>

namespace jaxcoll {
namespace {

int32_t Pieces(size_t bytes, size_t piece) {
  return static_cast<int32_t>((bytes + piece - 1) / piece);
}

// The length of piece `number` of so many bytes; 0 behind the last one.
size_t PieceBytes(size_t bytes, size_t piece, int32_t number) {
  const size_t first = std::min(bytes, number * piece);
  return std::min(piece, bytes - first);
}

}  // namespace

// ---- The group ---------------------------------------------------------------------------------

RaggedProcesses::RaggedProcesses(const RaggedShape& shape, const std::vector<int>& process_of_rank,
                                 int process, size_t message_bytes)
    : shape_(shape), message_bytes_(message_bytes) {
  std::map<int, std::vector<int32_t>> processes;
  for (size_t rank = 0; rank < process_of_rank.size(); ++rank) {
    of_rank_.push_back(" (process " + std::to_string(process_of_rank[rank]) + ")");
    processes[process_of_rank[rank]].push_back(static_cast<int32_t>(rank));
  }
  // The longest header of any pair.
  std::vector<size_t> sizes;
  for (const auto& [owner, ranks] : processes) {
    if (owner == process) index_ = static_cast<int32_t>(first_ranks_.size());
    first_ranks_.push_back(ranks[0]);
    sizes.push_back(ranks.size());
  }
  std::partial_sort(sizes.begin(), sizes.begin() + 2, sizes.end(), std::greater<>());
  const size_t header_bytes = sizes[0] * sizes[1] * shape.updates_per_peer * 2 * sizeof(int64_t);
  header_slices_ = std::max(1, Pieces(header_bytes, kEagerBytes));
  members_ = std::move(processes.extract(process).mapped());
  peer_of_rank_.resize(process_of_rank.size());
  for (auto& [owner, ranks] : processes) {
    for (const int32_t rank : ranks) peer_of_rank_[rank] = static_cast<int32_t>(peers_.size());
    peers_.push_back(std::move(ranks));
  }
}

StatusOr<SliceOps> RaggedProcesses::Ops() const {
  ScheduleSpec spec;
  spec.collective = Collective::kAllToAll;
  spec.world_size = static_cast<int32_t>(first_ranks_.size());
  StatusOr<OpList> op_list = BuildSchedule(spec, index_);
  if (!op_list.ok()) return op_list.status();
  const StatusOr<World> world = World::Create({std::move(*op_list)}, spec.world_size);
  if (!world.ok()) return world.status();
  StatusOr<SliceOps> result = CompileSliceOps(*world, 1);
  if (!result.ok()) return result.status();
  result->messages.clear();
  for (size_t i = 0; i < result->ops.size(); ++i) {
    SliceOp& op = result->ops[i];
    if (op.kind == SliceOp::Kind::kMove) {  // see RaggedTable::CopyOwn()
      op.kind = SliceOp::Kind::kNothing;
      continue;
    }
    op.peer = first_ranks_[op.peer];
    op.key.source = first_ranks_[op.key.source];
    op.key.destination = first_ranks_[op.key.destination];
    result->messages[op.key] = static_cast<int32_t>(i);
  }
  return result;
}

// ---- Filling the table -------------------------------------------------------------------------

RaggedTable::RaggedTable(const RaggedProcesses& group, const MemberBuffers& buffers)
    : group_(group), peers_(group.peers().size()), slice_count_(group.header_slices()) {
  const size_t members = group.members().size();
  for (size_t member = 0; member < members; ++member) {
    ranks_.push_back(RaggedRank::Of(buffers.inputs, buffers.outputs, members, member));
  }
  for (size_t p = 0; p < peers_.size(); ++p) {
    const size_t blocks = members * group.peers()[p].size() * updates();
    peers_[p].sent.entries.resize(blocks);
    peers_[p].received.entries.resize(blocks);
  }
}

std::optional<RaggedFault> RaggedTable::FillOwn() {
  const std::vector<int32_t>& members = group_.members();
  for (size_t m = 0; m < members.size(); ++m) {
    for (int64_t i = 0; i < group_.world_size() * updates(); ++i) {
      const RaggedBlock block = ranks_[m].BlockAt(shape(), i);
      if (auto fault = CheckSent(shape(), members[m], i / updates(), block)) return fault;
    }
  }
  for (size_t from = 0; from < members.size(); ++from) {
    for (size_t to = 0; to < members.size(); ++to) {
      for (int64_t u = 0; u < updates(); ++u) {
        const RaggedBlock block = ranks_[from].BlockAt(shape(), members[to] * updates() + u);
        const int64_t expected = ranks_[to].ExpectedRows(shape(), members[from] * updates() + u);
        auto fault = CheckReceived(shape(), members[from], members[to], block.output_offset,
                                   block.rows, expected);
        if (fault) return fault;
      }
    }
  }
  for (size_t p = 0; p < peers_.size(); ++p) {
    auto entry = peers_[p].sent.entries.begin();
    for (const RaggedRank& sender : ranks_) {
      for (const int32_t to : group_.peers()[p]) {
        for (int64_t u = 0; u < updates(); ++u) {
          const RaggedBlock block = sender.BlockAt(shape(), to * updates() + u);
          *entry++ = {block.output_offset, block.rows};
        }
      }
    }
    Measure(peers_[p].sent);
  }
  return std::nullopt;
}

std::optional<RaggedFault> RaggedTable::Complete() {
  for (size_t p = 0; p < peers_.size(); ++p) {
    auto entry = peers_[p].received.entries.begin();
    for (const int32_t from : group_.peers()[p]) {
      for (size_t m = 0; m < ranks_.size(); ++m) {
        for (int64_t u = 0; u < updates(); ++u, ++entry) {
          auto fault =
              CheckReceived(shape(), from, group_.members()[m], entry->output_offset, entry->rows,
                            ranks_[m].ExpectedRows(shape(), from * updates() + u));
          if (fault) return fault;
        }
      }
    }
  }
  for (size_t p = 0; p < peers_.size(); ++p) {
    Measure(peers_[p].received);
    slice_count_ = std::max({slice_count_, SlicesTo(static_cast<int32_t>(p)),
                             group_.header_slices() + RowSlices(peers_[p].received)});
  }
  FindVisible();
  return std::nullopt;
}

// Once its entries are known to be sound: no sum of them overflows then.
void RaggedTable::Measure(Stream& stream) const {
  for (const Entry& entry : stream.entries) {
    stream.begins.push_back(stream.begins.back() + entry.rows * shape().row_bytes);
  }
}

int32_t RaggedTable::RowSlices(const Stream& stream) const {
  return std::max(1, Pieces(stream.begins.back(), group_.message_bytes()));
}

namespace {

// Begin -> end and who owns what is between; disjoint.
using Owners = std::map<int64_t, std::pair<int64_t, int64_t>>;

// [begin, end) now belongs to `owner`, whosever it was.
void Paint(Owners& owners, int64_t begin, int64_t end, int64_t owner) {
  if (begin == end) return;
  const auto split = [&](int64_t at) {
    auto it = owners.lower_bound(at);
    if (it == owners.begin()) return;
    --it;
    const auto [old_end, old_owner] = it->second;
    if (old_end <= at) return;
    it->second.first = at;
    owners.emplace(at, std::pair(old_end, old_owner));
  };
  split(begin);
  split(end);
  owners.erase(owners.lower_bound(begin), owners.lower_bound(end));
  owners.emplace(begin, std::pair(end, owner));
}

}  // namespace

// Blocks come in any order, so what the last sender's overwrite must not be written behind them.
void RaggedTable::FindVisible() {
  const std::vector<int32_t>& members = group_.members();
  struct Landing {
    int64_t block, begin, end;
  };
  for (size_t to = 0; to < members.size(); ++to) {
    std::vector<Landing> landings;
    const auto add = [&](int32_t from, int64_t u, int64_t offset, int64_t rows) {
      landings.push_back({from * updates() + u, offset, offset + rows});
    };
    for (size_t from = 0; from < members.size(); ++from) {
      for (int64_t u = 0; u < updates(); ++u) {
        const RaggedBlock block = ranks_[from].BlockAt(shape(), members[to] * updates() + u);
        add(members[from], u, block.output_offset, block.rows);
      }
    }
    for (size_t p = 0; p < peers_.size(); ++p) {
      const std::vector<int32_t>& senders = group_.peers()[p];
      for (size_t s = 0; s < senders.size(); ++s) {
        for (int64_t u = 0; u < updates(); ++u) {
          const Entry& entry =
              peers_[p].received.entries[(s * members.size() + to) * updates() + u];
          add(senders[s], u, entry.output_offset, entry.rows);
        }
      }
    }
    std::sort(landings.begin(), landings.end(),
              [](const Landing& a, const Landing& b) { return a.block < b.block; });
    Owners owners;
    for (const Landing& landing : landings) {
      Paint(owners, landing.begin, landing.end, landing.block);
    }
    std::vector<Visible>& visible = visible_.emplace_back();
    for (const auto& [begin, owned] : owners) visible.push_back({begin, owned.first, owned.second});
  }
}

// ---- Messages ----------------------------------------------------------------------------------

int32_t RaggedTable::SlicesTo(int32_t peer) const {
  return group_.header_slices() + RowSlices(peers_[peer].sent);
}

size_t RaggedTable::MessageBytes(int32_t slice, int32_t peer, bool sent) const {
  const Stream& stream = sent ? peers_[peer].sent : peers_[peer].received;
  if (IsHeader(slice)) {
    return PieceBytes(stream.entries.size() * sizeof(Entry), kEagerBytes, slice);
  }
  return PieceBytes(stream.begins.back(), group_.message_bytes(), slice - group_.header_slices());
}

template <typename Visit>
void RaggedTable::ForBlocks(const Stream& stream, int32_t slice, const Visit& visit) const {
  const size_t piece = group_.message_bytes();
  size_t at = (slice - group_.header_slices()) * piece;
  const size_t end = std::min(at + piece, stream.begins.back());
  // The block that holds byte `at`: the last one that begins there or before.
  size_t block =
      std::upper_bound(stream.begins.begin(), stream.begins.end(), at) - stream.begins.begin() - 1;
  for (; at < end; ++block) {
    const size_t count = std::min(end, stream.begins[block + 1]) - at;
    if (count > 0) visit(block, at - stream.begins[block], count);
    at += count;
  }
}

void RaggedTable::Write(int32_t slice, int32_t peer, std::byte* message) const {
  const Stream& stream = peers_[peer].sent;
  if (IsHeader(slice)) {
    std::memcpy(message,
                reinterpret_cast<const std::byte*>(stream.entries.data()) + slice * kEagerBytes,
                MessageBytes(slice, peer, true));
    return;
  }
  const std::vector<int32_t>& receivers = group_.peers()[peer];
  ForBlocks(stream, slice, [&](size_t block, size_t first, size_t count) {
    const auto update = static_cast<int64_t>(block) % updates();
    const int32_t to = receivers[block / updates() % receivers.size()];
    const RaggedRank& sender = ranks_[block / updates() / receivers.size()];
    const int64_t row = sender.BlockAt(shape(), to * updates() + update).input_offset;
    std::memcpy(message, sender.operand + row * shape().row_bytes + first, count);
    message += count;
  });
}

void RaggedTable::Take(int32_t slice, int32_t peer, const std::byte* message) {
  Stream& stream = peers_[peer].received;
  if (IsHeader(slice)) {
    std::memcpy(reinterpret_cast<std::byte*>(stream.entries.data()) + slice * kEagerBytes, message,
                MessageBytes(slice, peer, false));
    return;
  }
  ForBlocks(stream, slice, [&](size_t block, size_t first, size_t count) {
    const auto update = static_cast<int64_t>(block) % updates();
    const size_t member = block / updates() % ranks_.size();
    const int32_t sender = group_.peers()[peer][block / updates() / ranks_.size()];
    Scatter(member, sender * updates() + update, stream.entries[block].output_offset, first,
            message, count);
    message += count;
  });
}

void RaggedTable::CopyOwn() const {
  const std::vector<int32_t>& members = group_.members();
  const size_t row_bytes = shape().row_bytes;
  for (size_t to = 0; to < members.size(); ++to) {
    int64_t begin = 0;  // of rows where nothing lands
    const auto keep = [&](int64_t end) {
      std::memcpy(ranks_[to].result + begin * row_bytes, ranks_[to].output + begin * row_bytes,
                  (end - begin) * row_bytes);
    };
    for (const Visible& visible : visible_[to]) {
      keep(visible.begin);
      begin = visible.end;
    }
    keep(shape().output_rows);
    for (size_t from = 0; from < members.size(); ++from) {
      for (int64_t u = 0; u < updates(); ++u) {
        const RaggedBlock block = ranks_[from].BlockAt(shape(), members[to] * updates() + u);
        Scatter(to, members[from] * updates() + u, block.output_offset, 0,
                ranks_[from].operand + block.input_offset * row_bytes, block.rows * row_bytes);
      }
    }
  }
}

void RaggedTable::Scatter(size_t member, int64_t block, int64_t output_offset, size_t first,
                          const std::byte* from, size_t bytes) const {
  const size_t row_bytes = shape().row_bytes;
  const size_t begin = output_offset * row_bytes + first;
  const size_t end = begin + bytes;
  const std::vector<Visible>& all = visible_[member];
  for (auto visible = std::partition_point(
           all.begin(), all.end(), [&](const Visible& v) { return v.end * row_bytes <= begin; });
       visible != all.end() && visible->begin * row_bytes < end; ++visible) {
    if (visible->block != block) continue;
    const size_t low = std::max(begin, visible->begin * row_bytes);
    const size_t high = std::min(end, visible->end * row_bytes);
    std::memcpy(ranks_[member].result + low, from + (low - begin), high - low);
  }
}

}  // namespace jaxcoll
