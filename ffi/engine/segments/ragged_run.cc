#include "engine/segments/ragged_run.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <utility>

namespace jaxcoll {

RaggedPlan::RaggedPlan(RaggedShape shape, const std::vector<int>& process_of_rank, int process,
                       size_t message_bytes)
    : shape_(shape), message_bytes_(message_bytes) {
  std::map<int, std::vector<int32_t>> others;
  for (size_t rank = 0; rank < process_of_rank.size(); ++rank) {
    const int owner = process_of_rank[rank];
    of_rank_.push_back(" (process " + std::to_string(owner) + ")");
    (owner == process ? members_ : others[owner]).push_back(static_cast<int32_t>(rank));
  }
  for (auto& [owner, ranks] : others) peers_.push_back(std::move(ranks));
}

std::unique_ptr<Run> RaggedPlan::MakeRun(MemberBuffers buffers, Wire& wire) const {
  return std::make_unique<RaggedRun>(shared_from_this(), buffers, wire);
}

RaggedRun::RaggedRun(std::shared_ptr<const RaggedPlan> plan, const MemberBuffers& buffers,
                     Wire& wire)
    : plan_(std::move(plan)), wire_(wire), peers_(plan_->peers().size()) {
  const size_t members = plan_->members().size();
  for (size_t member = 0; member < members; ++member) {
    const auto input = [&](size_t v) { return buffers.inputs[v * members + member]; };
    ranks_.push_back(
        {input(0), input(1), input(2), input(3), input(4), input(5), buffers.outputs[member]});
  }
  for (size_t p = 0; p < peers_.size(); ++p) {
    for (Stream* stream : {&peers_[p].out, &peers_[p].in}) {
      stream->entries.resize(members * plan_->peers()[p].size() * updates());
      stream->header_left = static_cast<int64_t>(Pieces(*stream, kHeader));
      stream->header_had.resize(stream->header_left);
    }
  }
}

size_t RaggedRun::Pieces(const Stream& stream, Part part) const {
  if (part == kRefusal) return 1;
  const size_t piece = part == kHeader ? kEagerBytes : plan_->message_bytes();
  const size_t bytes = part == kHeader ? stream.entries.size() * sizeof(Entry) : stream.bytes();
  return (bytes + piece - 1) / piece;
}

// Once its entries are known to be sound: no sum of them overflows then.
void RaggedRun::MeasureRows(Stream& stream) {
  stream.begins.assign(1, 0);
  for (const Entry& entry : stream.entries) {
    stream.begins.push_back(stream.begins.back() + entry.rows * shape().row_bytes);
  }
  stream.rows_left = static_cast<int64_t>(Pieces(stream, kRows));
  stream.rows_had.resize(stream.rows_left);
}

// ---- 1. Headers --------------------------------------------------------------------------------

std::optional<RaggedFault> RaggedRun::CheckOwn() const {
  const std::vector<int32_t>& members = plan_->members();
  for (size_t m = 0; m < members.size(); ++m) {
    for (int64_t i = 0; i < plan_->world_size() * updates(); ++i) {
      const RaggedBlock block = BlockAt(shape(), ranks_[m], i);
      if (auto fault = CheckSent(shape(), members[m], i / updates(), block)) return fault;
    }
  }
  for (size_t from = 0; from < members.size(); ++from) {
    for (size_t to = 0; to < members.size(); ++to) {
      for (int64_t u = 0; u < updates(); ++u) {
        const RaggedBlock block = BlockAt(shape(), ranks_[from], members[to] * updates() + u);
        const int64_t expected = ExpectedRows(shape(), ranks_[to], members[from] * updates() + u);
        auto fault = CheckReceived(shape(), members[from], members[to], block.output_offset,
                                   block.rows, expected);
        if (fault) return fault;
      }
    }
  }
  return std::nullopt;
}

void RaggedRun::Begin() {
  if (const auto fault = CheckOwn()) return Refuse(*fault);
  for (size_t p = 0; p < peers_.size(); ++p) {
    Stream& out = peers_[p].out;
    auto entry = out.entries.begin();
    for (const RaggedRank& sender : ranks_) {
      for (const int32_t to : plan_->peers()[p]) {
        for (int64_t u = 0; u < updates(); ++u) {
          const RaggedBlock block = BlockAt(shape(), sender, to * updates() + u);
          *entry++ = {block.output_offset, block.rows};
        }
      }
    }
    MeasureRows(out);
    const auto pieces = static_cast<int32_t>(out.header_left);
    for (int32_t piece = 0; piece < pieces; ++piece) {
      wire_.SendData(*this, plan_->peers()[p][0], piece,
                     static_cast<int32_t>(p) * kParts + kHeader);
    }
  }
}

// ---- 2. Ready, or refused ----------------------------------------------------------------------

std::optional<RaggedFault> RaggedRun::CheckHeaders() const {
  for (size_t p = 0; p < peers_.size(); ++p) {
    auto entry = peers_[p].in.entries.begin();
    for (const int32_t from : plan_->peers()[p]) {
      for (size_t m = 0; m < ranks_.size(); ++m) {
        for (int64_t u = 0; u < updates(); ++u, ++entry) {
          auto fault =
              CheckReceived(shape(), from, plan_->members()[m], entry->output_offset, entry->rows,
                            ExpectedRows(shape(), ranks_[m], from * updates() + u));
          if (fault) return fault;
        }
      }
    }
  }
  return std::nullopt;
}

void RaggedRun::Refuse(const RaggedFault& fault) {
  fault_ = fault;
  status_ = InvalidArgument(plan_->Describe(fault));
  for (Peer& peer : peers_) peer.refusal_left = true;
  for (size_t p = 0; p < peers_.size(); ++p) {
    wire_.SendData(*this, plan_->peers()[p][0], 0, static_cast<int32_t>(p) * kParts + kRefusal);
  }
}

void RaggedRun::JudgeIfComplete() {
  for (const Peer& peer : peers_) {
    if (peer.in.header_left > 0) return;
  }
  if (const auto fault = CheckHeaders()) return Refuse(*fault);
  FindVisible();
  for (Peer& peer : peers_) MeasureRows(peer.in);
  ready_ = true;
  for (const std::vector<int32_t>& ranks : plan_->peers()) {
    wire_.SendReady(*this, ranks[0], {0, {ranks[0], plan_->members()[0], kRows, 0}});
  }
  CopyLocal();  // while the peers send
}

bool RaggedRun::OnReady(const MessageId& id) {
  for (size_t p = 0; p < peers_.size(); ++p) {
    const int32_t rank = plan_->peers()[p][0];
    if (id != MessageId{0, {plan_->members()[0], rank, kRows, 0}}) continue;
    if (!status_.ok()) return true;
    Peer& peer = peers_[p];
    if (peer.ready || peer.out.header_left > 0) return false;
    peer.ready = true;
    const auto pieces = static_cast<int32_t>(peer.out.rows_left);
    for (int32_t piece = 0; piece < pieces; ++piece) {
      wire_.SendData(*this, rank, piece, static_cast<int32_t>(p) * kParts + kRows);
    }
    return true;
  }
  return false;
}

Run::Taken RaggedRun::OnData(const MessageId& id, const std::byte* message, size_t bytes,
                             std::optional<uint64_t>) {
  size_t p = 0;
  while (p < peers_.size() && plan_->peers()[p][0] != id.key.source) ++p;
  if (p == peers_.size() || id.key.destination != plan_->members()[0] || id.key.sequence != 0 ||
      id.segment < 0) {
    return Taken::kUnknown;
  }
  if (!status_.ok()) return Taken::kAtOnce;
  Stream& in = peers_[p].in;
  const auto piece = static_cast<size_t>(id.segment);
  switch (id.key.channel) {
    case kHeader: {
      if (piece >= in.header_had.size() || in.header_had[piece]) return Taken::kUnknown;
      const size_t first = piece * kEagerBytes;
      const size_t all = in.entries.size() * sizeof(Entry);
      if (bytes != std::min(kEagerBytes, all - first)) return Taken::kUnknown;
      std::memcpy(reinterpret_cast<std::byte*>(in.entries.data()) + first, message, bytes);
      in.header_had[piece] = true;
      --in.header_left;
      JudgeIfComplete();
      return Taken::kAtOnce;
    }
    case kRefusal: {
      RaggedFault fault;
      if (piece != 0 || bytes != sizeof(fault) || peers_[p].ready) return Taken::kUnknown;
      std::memcpy(&fault, message, bytes);
      const auto is_rank = [&](int64_t r) { return r >= 0 && r < plan_->world_size(); };
      if (!is_rank(fault.from) || !is_rank(fault.to)) return Taken::kUnknown;
      refused_ = true;
      status_ = InvalidArgument(plan_->Describe(fault));
      return Taken::kAtOnce;
    }
    case kRows: {
      // Before this process was ready it has asked for none, and rows_had is empty.
      if (piece >= in.rows_had.size() || in.rows_had[piece]) return Taken::kUnknown;
      const size_t first = piece * plan_->message_bytes();
      if (bytes != std::min(plan_->message_bytes(), in.bytes() - first)) return Taken::kUnknown;
      in.rows_had[piece] = true;
      --in.rows_left;
      ForBlocks(in, id.segment, [&](size_t block, size_t first_byte, size_t count) {
        const auto update = static_cast<int64_t>(block) % updates();
        const size_t member = block / updates() % ranks_.size();
        const int32_t sender = plan_->peers()[p][block / updates() / ranks_.size()];
        Scatter(member, sender * updates() + update, in.entries[block], first_byte, message, count);
        message += count;
      });
      return Taken::kAtOnce;
    }
    default:
      return Taken::kUnknown;
  }
}

// ---- 3. Blocks ---------------------------------------------------------------------------------

template <typename Visit>
void RaggedRun::ForBlocks(const Stream& stream, int32_t piece, const Visit& visit) const {
  size_t at = piece * plan_->message_bytes();
  const size_t end = std::min(at + plan_->message_bytes(), stream.bytes());
  // The block that holds byte `at`: the last one that begins there or before.
  size_t block =
      std::upper_bound(stream.begins.begin(), stream.begins.end(), at) - stream.begins.begin() - 1;
  for (; at < end; ++block) {
    const size_t count = std::min(end, stream.begins[block + 1]) - at;
    if (count > 0) visit(block, at - stream.begins[block], count);
    at += count;
  }
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

void RaggedRun::FindVisible() {
  const std::vector<int32_t>& members = plan_->members();
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
        const RaggedBlock block = BlockAt(shape(), ranks_[from], members[to] * updates() + u);
        add(members[from], u, block.output_offset, block.rows);
      }
    }
    for (size_t p = 0; p < peers_.size(); ++p) {
      const std::vector<int32_t>& senders = plan_->peers()[p];
      for (size_t s = 0; s < senders.size(); ++s) {
        for (int64_t u = 0; u < updates(); ++u) {
          const Entry& entry = peers_[p].in.entries[(s * members.size() + to) * updates() + u];
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

void RaggedRun::CopyLocal() {
  const std::vector<int32_t>& members = plan_->members();
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
        const RaggedBlock block = BlockAt(shape(), ranks_[from], members[to] * updates() + u);
        Scatter(to, members[from] * updates() + u, {block.output_offset, block.rows}, 0,
                ranks_[from].operand + block.input_offset * row_bytes, block.rows * row_bytes);
      }
    }
  }
}

void RaggedRun::Scatter(size_t member, int64_t block, const Entry& entry, size_t first,
                        const std::byte* from, size_t bytes) const {
  const size_t row_bytes = shape().row_bytes;
  const size_t begin = entry.output_offset * row_bytes + first;
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

// ---- Messages ----------------------------------------------------------------------------------

MessageKey RaggedRun::Key(int32_t op) const {
  return {plan_->members()[0], plan_->peers()[op / kParts][0], op % kParts, 0};
}

size_t RaggedRun::MessageBytes(int32_t segment, int32_t op) const {
  const Stream& out = peers_[op / kParts].out;
  const auto piece = static_cast<size_t>(segment);
  switch (op % kParts) {
    case kHeader:
      return std::min(kEagerBytes, out.entries.size() * sizeof(Entry) - piece * kEagerBytes);
    case kRefusal:
      return sizeof(RaggedFault);
    default:
      return std::min(plan_->message_bytes(), out.bytes() - piece * plan_->message_bytes());
  }
}

void RaggedRun::Write(int32_t segment, int32_t op, std::byte* message) const {
  const size_t p = op / kParts;
  const Stream& out = peers_[p].out;
  switch (op % kParts) {
    case kHeader:
      std::memcpy(message,
                  reinterpret_cast<const std::byte*>(out.entries.data()) + segment * kEagerBytes,
                  MessageBytes(segment, op));
      return;
    case kRefusal:
      std::memcpy(message, &*fault_, sizeof(*fault_));
      return;
    default:
      const std::vector<int32_t>& receivers = plan_->peers()[p];
      ForBlocks(out, segment, [&](size_t block, size_t first, size_t count) {
        const auto update = static_cast<int64_t>(block) % updates();
        const int32_t to = receivers[block / updates() % receivers.size()];
        const RaggedRank& sender = ranks_[block / updates() / receivers.size()];
        const int64_t row = BlockAt(shape(), sender, to * updates() + update).input_offset;
        std::memcpy(message, sender.operand + row * shape().row_bytes + first, count);
        message += count;
      });
  }
}

void RaggedRun::OnSent(int32_t, int32_t op) {
  Peer& peer = peers_[op / kParts];
  switch (op % kParts) {
    case kHeader:
      --peer.out.header_left;
      return;
    case kRefusal:
      peer.refusal_left = false;
      return;
    default:
      --peer.out.rows_left;
  }
}

bool RaggedRun::done() const {
  if (!status_.ok()) {
    return refused_ || std::none_of(peers_.begin(), peers_.end(),
                                    [](const Peer& peer) { return peer.refusal_left; });
  }
  return ready_ && std::all_of(peers_.begin(), peers_.end(), [](const Peer& peer) {
           return peer.ready && peer.in.rows_left == 0 && peer.out.rows_left == 0;
         });
}

std::vector<int32_t> RaggedRun::WaitingFor() const {
  std::vector<int32_t> ranks;
  for (size_t p = 0; p < peers_.size(); ++p) {
    const Peer& peer = peers_[p];
    if (peer.in.header_left == 0 && peer.ready && peer.in.rows_left == 0 &&
        peer.out.rows_left == 0) {
      continue;
    }
    ranks.insert(ranks.end(), plan_->peers()[p].begin(), plan_->peers()[p].end());
  }
  return ranks;
}

}  // namespace jaxcoll
