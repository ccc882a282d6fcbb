#include "gpu/proxy/routes.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <map>
#include <string>
#include <tuple>
#include <utility>

#include "gpu/abi/ragged_call.h"

namespace jaxcoll::cuda {
namespace {

// The arrays of a table.
class TableReader {
 public:
  explicit TableReader(const DeviceTable& table)
      : header(table.header()), bytes_(reinterpret_cast<const unsigned char*>(&header)) {}
  const TableHeader& header;
  const TableWorker* workers() const { return At<TableWorker>(header.worker_offset); }
  const TableOp* ops(int32_t worker) const {
    return At<TableOp>(header.op_offset) + workers()[worker].first_op;
  }
  const TableWait* waits(const TableOp& op) const {
    return At<TableWait>(header.wait_offset) + op.first_wait;
  }
  const TableSignal* signals(const TableOp& op) const {
    return At<TableSignal>(header.signal_offset) + op.first_signal;
  }
  const TablePiece* pieces(const TableOp& op) const {
    return At<TablePiece>(header.piece_offset) + op.first_piece;
  }
  // Where a piece's destination `d` lies.
  const TableRef& destination(const TableOp& op, const TablePiece& piece, int32_t d) const {
    return At<TableRef>(header.ref_offset)[piece.first_ref + op.source_count + d];
  }

 private:
  template <typename T>
  const T* At(int32_t offset) const {
    return reinterpret_cast<const T*>(bytes_ + offset);
  }
  const unsigned char* const bytes_;
};

// A message's id: its source, and its number among those that the source sends to other hosts.
constexpr uint32_t kMostSent = uint32_t{1} << 24;
static_assert(kMaxTableRanks <= 256);
uint32_t IdOf(int32_t source, uint32_t number) {
  return static_cast<uint32_t>(source) * kMostSent + number;
}

bool Contains(std::span<const int32_t> ranks, int32_t rank) {
  return std::find(ranks.begin(), ranks.end(), rank) != ranks.end();
}

Status Unmatched(int32_t rank) {
  return Status(StatusCode::kInternal, "the table of rank " + std::to_string(rank) +
                                           " has messages that its signals do not fit");
}

}  // namespace

StatusOr<HostRoutes> HostRoutes::Make(std::span<const DeviceTable> tables,
                                      std::span<const int32_t> own, std::vector<TableCall> calls,
                                      const std::vector<int>& host_of_rank) {
  if (tables.empty() || calls.empty() ||
      tables[0].header().world_size != static_cast<int32_t>(host_of_rank.size())) {
    return InvalidArgument("routes need tables, the hosts of all ranks, and a call");
  }
  HostRoutes routes;
  routes.header_ = tables[0].header();
  routes.calls_ = std::move(calls);
  routes.signals_.assign(host_of_rank.size(),
                         std::vector<std::vector<Signal>>(routes.header_.workers));
  for (const DeviceTable& table : tables) {
    if (Status status = routes.AddOps(table, own, host_of_rank); !status.ok()) return status;
  }
  for (const DeviceTable& table : tables) {
    if (!Contains(own, table.header().rank)) continue;
    if (Status status = routes.OrderSignals(table, host_of_rank); !status.ok()) return status;
  }
  return routes;
}

StatusOr<HostRoutes> HostRoutes::MakeRagged(const TableHeader& header, const TableCall& call,
                                            const std::vector<int>& host_of_rank) {
  if (header.world_size != static_cast<int32_t>(host_of_rank.size())) {
    return InvalidArgument("routes need the hosts of all ranks");
  }
  HostRoutes routes;
  routes.header_ = header;
  routes.calls_ = {call};
  routes.sized_by_flags_ = true;
  const int32_t ranks = header.world_size;
  routes.signals_.assign(ranks, std::vector<std::vector<Signal>>(1));
  for (int32_t from = 0; from < ranks; ++from) {
    uint32_t sent = 0;
    for (int32_t to = 0; to < ranks; ++to) {
      if (host_of_rank[from] == host_of_rank[to]) continue;
      routes.signals_[from][0].push_back({static_cast<int32_t>(routes.messages_.size()), -1});
      routes.messages_.push_back({IdOf(from, sent++),
                                  from,
                                  to,
                                  0,
                                  {RaggedArrived(from)},
                                  {RaggedFreed(to, ranks)},
                                  {{from, 0, 1}}});
    }
  }
  // A round's messages are sent before those that have come are freed.
  for (size_t m = 0; m < routes.messages_.size(); ++m) {
    routes.signals_[routes.messages_[m].destination][0].push_back({static_cast<int32_t>(m), 0});
  }
  return routes;
}

// The messages that a rank sends to other hosts, or those of them that go to one of `own`.
Status HostRoutes::AddOps(const DeviceTable& packed, std::span<const int32_t> own,
                          const std::vector<int>& host_of_rank) {
  const TableReader table(packed);
  const int32_t rank = table.header.rank;
  const bool is_own = Contains(own, rank);
  uint32_t count = 0;
  for (int32_t worker = 0; worker < workers(); ++worker) {
    for (int32_t i = 0; i < table.workers()[worker].op_count; ++i) {
      const TableOp& op = table.ops(worker)[i];
      std::map<int32_t, HostMessage> sent;  // by peer
      const auto to = [&](int32_t peer) -> HostMessage& {
        return sent.try_emplace(peer, HostMessage{0, rank, peer, worker, {}, {}, {}}).first->second;
      };
      const auto remote = [&](int32_t peer) { return host_of_rank[peer] != host_of_rank[rank]; };
      for (int32_t s = 0; s < op.signal_count; ++s) {
        const TableSignal& signal = table.signals(op)[s];
        if (signal.kind == TableSignal::kArrived && remote(signal.peer)) {
          to(signal.peer).arrivals.push_back(signal.flag);
        }
      }
      for (int32_t w = 0; w < op.wait_count; ++w) {
        const TableWait& wait = table.waits(op)[w];
        if (wait.kind == TableWait::kFree && remote(wait.peer)) {
          to(wait.peer).departures.push_back(wait.flag);
        }
      }
      for (int32_t p = 0; p < op.piece_count; ++p) {
        const TablePiece& piece = table.pieces(op)[p];
        for (int32_t d = 0; d < op.destination_count; ++d) {
          const TableRef& ref = table.destination(op, piece, d);
          if (ref.memory != TableRef::kPeerSlot || !remote(ref.peer)) continue;
          to(ref.peer).strips.push_back({ref.index, piece.position, piece.count});
        }
      }
      for (auto& [peer, message] : sent) {
        if (message.arrivals.empty() || message.arrivals.size() != message.departures.size()) {
          return Unmatched(rank);
        }
        message.id = IdOf(rank, count++);
        if (is_own || Contains(own, peer)) messages_.push_back(std::move(message));
      }
    }
  }
  return Status();
}

// The flags that a rank raises elsewhere, in order, now that all messages are known.
Status HostRoutes::OrderSignals(const DeviceTable& packed, const std::vector<int>& host_of_rank) {
  using FlagKey = std::tuple<int32_t, int32_t, int32_t>;  // rank, worker, flag
  std::map<FlagKey, Signal> arriving, departing;
  for (size_t m = 0; m < messages_.size(); ++m) {
    const HostMessage& message = messages_[m];
    for (size_t i = 0; i < message.arrivals.size(); ++i) {
      arriving[{message.destination, message.worker, message.arrivals[i]}] = {
          static_cast<int32_t>(m), -1};
      departing[{message.source, message.worker, message.departures[i]}] = {
          static_cast<int32_t>(m), static_cast<int32_t>(i)};
    }
  }
  const TableReader table(packed);
  const int32_t rank = table.header.rank;
  for (int32_t worker = 0; worker < workers(); ++worker) {
    for (int32_t i = 0; i < table.workers()[worker].op_count; ++i) {
      const TableOp& op = table.ops(worker)[i];
      for (int32_t s = 0; s < op.signal_count; ++s) {
        const TableSignal& signal = table.signals(op)[s];
        if (signal.kind == TableSignal::kWorker ||
            host_of_rank[signal.peer] == host_of_rank[rank]) {
          continue;
        }
        const auto& of = signal.kind == TableSignal::kArrived ? arriving : departing;
        const auto found = of.find({signal.peer, worker, signal.flag});
        if (found == of.end()) return Unmatched(rank);
        // A message arrives once, however many flags say so.
        const HostMessage& message = messages_[found->second.message];
        if (found->second.arrives() && message.arrivals[0] != signal.flag) continue;
        signals_[rank][worker].push_back(found->second);
      }
    }
  }
  return Status();
}

uint64_t HostRoutes::DigestBetween(const std::vector<int>& process_of_rank, int a, int b) const {
  uint64_t hash = 0xcbf29ce484222325;
  const auto add = [&hash](int64_t value) {
    for (int byte = 0; byte < 8; ++byte) {
      hash = (hash ^ (static_cast<uint64_t>(value) >> (8 * byte) & 0xff)) * 0x100000001b3;
    }
  };
  for (const int32_t value : {int32_t{sized_by_flags_}, header_.chunks_per_block, header_.workers,
                              header_.slot_chunks, header_.flags_per_worker}) {
    add(value);
  }
  for (const HostMessage& m : messages_) {
    const int from = process_of_rank[m.source], to = process_of_rank[m.destination];
    if (!(from == a && to == b) && !(from == b && to == a)) continue;
    add(m.id);
    for (const int32_t value : {m.source, m.destination, m.worker}) add(value);
    for (const std::vector<int32_t>* flags : {&m.arrivals, &m.departures}) {
      for (const int32_t flag : *flags) add(flag);
    }
    for (const Strips& strips : m.strips) {
      for (const int32_t value : {strips.slot, strips.position, strips.count}) add(value);
    }
  }
  for (const TableCall& call : calls_) {
    for (const int64_t value :
         {call.stride_bytes, call.slot_offset, int64_t{call.slice_count}, int64_t{call.strands},
          int64_t{call.depth}, int64_t{call.item_bytes}, int64_t{call.vector_count}}) {
      add(value);
    }
    for (int32_t v = 0; v < call.vector_count; ++v) {
      add(call.vectors[v].elements);
      add(call.vectors[v].strip_elements);
    }
  }
  return hash;
}

const HostRoutes::HostMessage* HostRoutes::Find(uint32_t id) const {
  const auto found =
      std::lower_bound(messages_.begin(), messages_.end(), id,
                       [](const HostMessage& m, uint32_t wanted) { return m.id < wanted; });
  return found != messages_.end() && found->id == id ? &*found : nullptr;
}

const TableVector& HostRoutes::VectorOf(const SlotUse& use) const {
  const TableCall& call = *use.call;
  int32_t v = 0;
  while (v + 1 < call.vector_count && use.slice >= call.vectors[v + 1].first_slice) ++v;
  return call.vectors[v];
}

template <typename Visit>
void HostRoutes::ForEach(const HostMessage& message, const SlotUse& use, int64_t first,
                         int64_t bytes, Visit visit) const {
  const TableCall& call = *use.call;
  const TableVector& vector = VectorOf(use);
  const int64_t block = int64_t{message.worker} * call.strands + use.strand();
  const int64_t slots = call.slot_offset + (block * call.depth + use.count() % call.depth) *
                                               header_.slot_chunks * call.stride_bytes;
  int64_t before = 0;  // of the message
  for (const Strips& strips : message.strips) {
    for (int32_t i = 0; i < strips.count; ++i) {
      if (before >= first + bytes) return;
      const int32_t position = strips.position + (header_.chunks_per_block == 1 ? 0 : i);
      const int64_t length =
          sized_by_flags_ ? call.stride_bytes
                          : StripAt(vector, header_.chunks_per_block, use.slice, position).count *
                                call.item_bytes;
      const int64_t begin = std::max(first - before, int64_t{0});
      const int64_t end = std::min(first + bytes - before, length);
      if (begin < end) {
        visit(slots + int64_t{strips.slot + i} * call.stride_bytes + begin, before + begin - first,
              end - begin);
      }
      before += length;
    }
  }
}

int64_t HostRoutes::Bytes(const HostMessage& message, const SlotUse& use) const {
  int64_t total = 0;
  ForEach(message, use, 0, std::numeric_limits<int64_t>::max() / 2,
          [&](int64_t, int64_t, int64_t bytes) { total += bytes; });
  return total;
}

HostRoutes::Stretch HostRoutes::StretchAt(const HostMessage& message, const SlotUse& use,
                                          int64_t first, int64_t most) const {
  Stretch stretch{0, 0};
  ForEach(message, use, first, most, [&](int64_t at, int64_t offset, int64_t bytes) {
    if (offset == 0) stretch.at = at;
    // Bytes behind a gap are not reached any more.
    if (offset == stretch.bytes && at == stretch.at + offset) stretch.bytes += bytes;
  });
  return stretch;
}

void HostRoutes::Gather(const HostMessage& message, const SlotUse& use, const unsigned char* region,
                        int64_t first, std::span<std::byte> to) const {
  ForEach(message, use, first, static_cast<int64_t>(to.size()),
          [&](int64_t at, int64_t offset, int64_t bytes) {
            std::memcpy(to.data() + offset, region + at, static_cast<size_t>(bytes));
          });
}

void HostRoutes::Scatter(const HostMessage& message, const SlotUse& use, unsigned char* region,
                         int64_t first, std::span<const std::byte> from) const {
  ForEach(message, use, first, static_cast<int64_t>(from.size()),
          [&](int64_t at, int64_t offset, int64_t bytes) {
            std::memcpy(region + at, from.data() + offset, static_cast<size_t>(bytes));
          });
}

}  // namespace jaxcoll::cuda
