#include "gpu/abi/device_table.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <set>
#include <utility>

#include "gpu/host/device_graph.h"
#include "gpu/host/message_ways.h"
#include "gpu/host/worker_op.h"

namespace jaxcoll::cuda {
namespace {

using Memory = TableRef::Memory;

class Packer {
 public:
  Packer(const World& world, DeviceGraph graph, Reach reach)
      : world_(world),
        op_lists_(world.op_lists()),
        graph_(std::move(graph)),
        messages_(graph_.messages),
        scratch_(op_lists_.size()) {
    if (reach == Reach::kOperands) ChooseWays(op_lists_, graph_);
    for (const OpList& op_list : op_lists_) {
      std::set<int32_t>& awaited = awaited_elsewhere_.emplace_back();
      for (const Op& op : op_list.ops) {
        for (const int32_t before : op.depends_on) {
          if (WorkerOf(op_list.ops[before]) != WorkerOf(op)) awaited.insert(before);
        }
      }
    }
    const ScratchUse use(world_);
    for (int32_t rank = 0; rank < ranks(); ++rank) {
      StayInPlace(rank, use);
      CompactScratch(rank);
    }
    AssignSlots();
    for (const DeviceMessage& message : messages_) meets_ |= message.way != DeviceMessage::kSlot;
    for (const OpList& op_list : op_lists_) {
      for (const Op& op : op_list.ops) {
        reduces_ |= op.kind == OpKind::kRecvReduce || op.sources.size() > 1;
      }
    }
  }
  Packer(const Packer&) = delete;
  Packer& operator=(const Packer&) = delete;

  DeviceTable Table(int32_t rank) const;

 private:
  int32_t ranks() const { return static_cast<int32_t>(op_lists_.size()); }
  int32_t WorkerOf(const Op& op) const { return graph_.worker_of_channel.at(op.channel); }
  DeviceMessage& MessageOf(int32_t rank, size_t op) {
    return messages_[graph_.message_of[rank][op]];
  }
  const DeviceMessage& MessageOf(int32_t rank, size_t op) const {
    return messages_[graph_.message_of[rank][op]];
  }
  int64_t ChunksOf(BufferKind buffer) const {
    const OpList& p = op_lists_[0];
    const int32_t blocks = buffer == BufferKind::kInput    ? p.input_blocks
                           : buffer == BufferKind::kOutput ? p.output_blocks
                                                           : p.scratch_blocks;
    return int64_t{blocks} * p.chunks_per_block;
  }

  // A message that may stay where it landed does so, in its slot, if only its own worker reads it,
  // later.
  void StayInPlace(int32_t rank, const ScratchUse& use) {
    const OpList& op_list = op_lists_[rank];
    std::map<int32_t, std::vector<int32_t>> readers;  // scratch chunk -> ops
    for (size_t i = 0; i < op_list.ops.size(); ++i) {
      const Op& op = op_list.ops[i];
      for (size_t s = IsReceive(op) ? 1 : 0; s < op.sources.size(); ++s) {
        if (op.sources[s].buffer != BufferKind::kScratch) continue;
        for (const int32_t chunk : ListChunks(op.sources[s])) {
          readers[chunk].push_back(static_cast<int32_t>(i));
        }
      }
    }
    const std::vector<int32_t>& at = graph_.position_in_order[rank];
    for (size_t i = 0; i < op_list.ops.size(); ++i) {
      const Op& op = op_list.ops[i];
      if (!IsReceive(op)) continue;
      DeviceMessage& message = MessageOf(rank, i);
      message.last_reader = static_cast<int32_t>(i);
      if (!use.StaysInPlace(world_.Id(rank, i))) continue;
      bool stays = true;
      int32_t last = static_cast<int32_t>(i);
      for (const int32_t chunk : ListChunks(op.destination)) {
        for (const int32_t reader : readers[chunk]) {
          stays = stays && WorkerOf(op_list.ops[reader]) == WorkerOf(op) && at[reader] > at[i];
          if (stays && at[reader] > at[last]) last = reader;
        }
      }
      if (!stays) continue;
      message.in_place = true;
      message.last_reader = last;
    }
  }

  // Scratch is there only for the chunks that need it.
  void CompactScratch(int32_t rank) {
    const OpList& op_list = op_lists_[rank];
    for (size_t i = 0; i < op_list.ops.size(); ++i) {
      const Op& op = op_list.ops[i];
      if (IsSend(op) || op.destination.buffer != BufferKind::kScratch) continue;
      if (IsReceive(op) && MessageOf(rank, i).in_place) continue;
      for (const int32_t chunk : ListChunks(op.destination)) {
        scratch_[rank].emplace(chunk, static_cast<int32_t>(scratch_[rank].size()));
      }
    }
    scratch_chunks_ = std::max(scratch_chunks_, static_cast<int32_t>(scratch_[rank].size()));
  }

  // Flags and slots, numbered within the worker at either side.
  void AssignSlots() {
    std::vector<std::vector<int32_t>> arrivals(op_lists_.size(),
                                               std::vector<int32_t>(graph_.workers));
    std::vector<std::vector<int32_t>> departures = arrivals, slots = arrivals;
    for (DeviceMessage& message : messages_) {
      const int32_t worker = WorkerOf(op_lists_[message.destination].ops[message.receiver]);
      if (message.way == DeviceMessage::kPulled) continue;
      message.arrival = arrivals[message.destination][worker]++;
      if (message.way == DeviceMessage::kPushed) continue;
      message.departure = departures[message.source][worker]++;
      message.first_slot = slots[message.destination][worker];
      slots[message.destination][worker] += message.chunk_count;
    }
    const auto most = [](const std::vector<std::vector<int32_t>>& of) {
      int32_t result = 0;
      for (const std::vector<int32_t>& rank : of) {
        result = std::max(result, *std::max_element(rank.begin(), rank.end()));
      }
      return result;
    };
    arrivals_ = most(arrivals);
    departures_ = most(departures);
    slot_chunks_ = most(slots);
  }

  // Where an op of `rank` finds a chunk of its own buffers.
  ChunkRef Local(int32_t rank, BufferKind buffer, int32_t chunk,
                 const std::map<int32_t, ChunkRef>& landed) const {
    if (buffer == BufferKind::kInput) return {Memory::kInput, 0, chunk};
    if (buffer == BufferKind::kOutput) return {Memory::kOutput, 0, chunk};
    if (const auto it = landed.find(chunk); it != landed.end()) return it->second;
    const auto it = scratch_[rank].find(chunk);
    // A chunk that nobody writes has no value; any memory will do.
    return {Memory::kScratch, 0, it == scratch_[rank].end() ? 0 : it->second};
  }

  Refs LocalRefs(int32_t rank, const Operand& operand,
                 const std::map<int32_t, ChunkRef>& landed) const {
    Refs refs;
    for (const int32_t chunk : ListChunks(operand)) {
      refs.push_back(Local(rank, operand.buffer, chunk, landed));
    }
    return refs;
  }

  static Refs PeerRefs(Memory memory, int32_t peer, const Operand& operand) {
    Refs refs;
    for (const int32_t chunk : ListChunks(operand)) refs.push_back({memory, peer, chunk});
    return refs;
  }

  static Refs SlotRefs(Memory memory, int32_t peer, const DeviceMessage& message) {
    Refs refs;
    for (int32_t i = 0; i < message.chunk_count; ++i) {
      refs.push_back({memory, peer, message.first_slot + i});
    }
    return refs;
  }

  // Whether another worker waits for it: then it must not wait for anything more.
  bool AwaitedElsewhere(int32_t rank, const WorkerOp& op) const {
    return std::any_of(op.of.begin(), op.of.end(),
                       [&](int32_t index) { return awaited_elsewhere_[rank].contains(index); });
  }

  std::vector<WorkerOp> WorkerOps(int32_t rank, int32_t worker) const;
  WorkerOp Translate(int32_t rank, int32_t index, const std::map<int32_t, ChunkRef>& landed) const;
  WorkerOp Clear(int32_t rank) const;

  const World& world_;
  const std::vector<OpList>& op_lists_;
  DeviceGraph graph_;
  std::vector<DeviceMessage>& messages_;              // the graph's
  std::vector<std::set<int32_t>> awaited_elsewhere_;  // [rank]: ops that other workers wait for
  std::vector<std::map<int32_t, int32_t>> scratch_;   // [rank]: chunk -> chunk kept
  int32_t scratch_chunks_ = 0;
  int32_t slot_chunks_ = 0;
  int32_t arrivals_ = 0;
  int32_t departures_ = 0;
  bool meets_ = false, reduces_ = false;  // of all ranks, as TableHeader has them
};

// Output that no op writes: zeros.
WorkerOp Packer::Clear(int32_t rank) const {
  std::vector<bool> written(ChunksOf(BufferKind::kOutput), false);
  for (const Op& op : op_lists_[rank].ops) {
    if (IsSend(op) || op.destination.buffer != BufferKind::kOutput) continue;
    for (const int32_t chunk : ListChunks(op.destination)) written[chunk] = true;
  }
  WorkerOp result;
  Refs refs;
  for (size_t chunk = 0; chunk < written.size(); ++chunk) {
    if (written[chunk]) continue;
    refs.push_back({Memory::kOutput, 0, static_cast<int32_t>(chunk)});
    result.positions.push_back(static_cast<int32_t>(chunk) % op_lists_[rank].chunks_per_block);
  }
  if (!refs.empty()) result.destinations = {refs};
  return result;
}

WorkerOp Packer::Translate(int32_t rank, int32_t index,
                           const std::map<int32_t, ChunkRef>& landed) const {
  const Op& op = op_lists_[rank].ops[index];
  WorkerOp result;
  result.of = {index};
  result.level = graph_.level[rank][index];
  const DeviceMessage* const message =
      IsSend(op) || IsReceive(op) ? &MessageOf(rank, index) : nullptr;
  if (IsSend(op) && message->way == DeviceMessage::kPulled) return result;
  for (const int32_t chunk : ListChunks(op.destination)) {
    result.positions.push_back(chunk % op_lists_[rank].chunks_per_block);
  }
  const auto wait = [&](TableWait::Kind kind, int32_t flag) {
    result.waits.push_back({.kind = kind,
                            .peer = op.peer,
                            .flag = flag,
                            .amount = 0,
                            .channel = op.channel,
                            .sequence = op.sequence,
                            .op = index,
                            .padding = 0});
  };
  if (IsSend(op)) {
    result.sources = {LocalRefs(rank, op.sources[0], landed)};
    if (message->way == DeviceMessage::kPushed) {
      result.destinations = {PeerRefs(Memory::kPeerOutput, op.peer, op.destination)};
    } else {
      wait(TableWait::kFree, arrivals_ + message->departure);
      result.destinations = {SlotRefs(Memory::kPeerSlot, op.peer, *message)};
    }
    result.signals.push_back({TableSignal::kArrived, op.peer, message->arrival, 0});
    return result;
  }
  if (IsReceive(op)) {
    if (message->way != DeviceMessage::kPulled) wait(TableWait::kArrived, message->arrival);
    if (message->in_place || message->way == DeviceMessage::kPushed) return result;
    result.sources.push_back(message->way == DeviceMessage::kPulled
                                 ? PeerRefs(Memory::kPeerInput, op.peer, op.sources[0])
                                 : SlotRefs(Memory::kSlot, op.peer, *message));
    if (op.kind == OpKind::kRecvReduce) {
      result.sources.push_back(LocalRefs(rank, op.sources[1], landed));
    }
  } else {
    for (const Operand& source : op.sources) {
      result.sources.push_back(LocalRefs(rank, source, landed));
    }
  }
  result.destinations = {LocalRefs(rank, op.destination, landed)};
  return result;
}

// A worker's ops in order, joined where one pass over the data does for several, all but the waits
// between workers.
std::vector<WorkerOp> Packer::WorkerOps(int32_t rank, int32_t worker) const {
  const OpList& op_list = op_lists_[rank];
  std::map<int32_t, ChunkRef> landed;                   // scratch chunk -> slot
  std::map<int32_t, std::vector<int32_t>> freed_after;  // op -> messages
  for (size_t i = 0; i < op_list.ops.size(); ++i) {
    if (!IsReceive(op_list.ops[i])) continue;
    const DeviceMessage& message = MessageOf(rank, i);
    if (message.way == DeviceMessage::kSlot) {
      freed_after[message.last_reader].push_back(graph_.message_of[rank][i]);
    }
    if (!message.in_place) continue;
    const std::vector<int32_t> chunks = ListChunks(op_list.ops[i].destination);
    const Refs refs = message.way == DeviceMessage::kPulled
                          ? PeerRefs(Memory::kPeerInput, message.source, op_list.ops[i].sources[0])
                          : SlotRefs(Memory::kSlot, message.source, message);
    for (size_t c = 0; c < chunks.size(); ++c) landed[chunks[c]] = refs[c];
  }
  std::vector<WorkerOp> ops;
  if (WorkerOp clear = Clear(rank); worker == 0 && clear.Moves()) ops.push_back(std::move(clear));
  for (const int32_t index : graph_.order[rank][worker]) {
    WorkerOp op = Translate(rank, index, landed);
    for (const int32_t m : freed_after[index]) {
      const DeviceMessage& message = messages_[m];
      op.signals.push_back({TableSignal::kFreed, message.source, arrivals_ + message.departure, 0});
    }
    // An op that another worker must do first may depend on the op before this one.
    const bool alone =
        std::all_of(op_list.ops[index].depends_on.begin(), op_list.ops[index].depends_on.end(),
                    [&](int32_t before) { return WorkerOf(op_list.ops[before]) == worker; });
    const bool idle = !op.Moves() && op.waits.empty() && op.signals.empty();
    if (!ops.empty() && alone && idle) {
      Append(ops.back().of, op.of);
    } else if (!ops.empty() && alone && MayJoin(ops.back(), op)) {
      WorkerOp& last = ops.back();
      Append(last.waits, op.waits);
      Append(last.destinations, op.destinations);
      Append(last.signals, op.signals);
      Append(last.of, op.of);
    } else if (!ops.empty() && !ops.back().Moves() && ops.back().signals.empty() &&
               !AwaitedElsewhere(rank, ops.back())) {
      // An op that only waits is merged into the next op.
      WorkerOp last = std::exchange(ops.back(), std::move(op));
      ops.back().waits.insert(ops.back().waits.begin(), last.waits.begin(), last.waits.end());
      Append(ops.back().of, last.of);
    } else {
      ops.push_back(std::move(op));
    }
  }
  return ops;
}

class TableWriter {
 public:
  TableWriter(const TableHeader& header) : header_(header) {}

  void Add(const std::vector<WorkerOp>& ops) {
    workers_.push_back({Count(ops_), Count(ops)});
    for (const WorkerOp& op : ops) {
      const int32_t first_piece = Count(pieces_);
      for (size_t i = 0; i < op.positions.size() && op.Moves();) i = AddPiece(op, i);
      ops_.push_back({Count(waits_), Count(op.waits), first_piece, Count(pieces_) - first_piece,
                      op.Moves() ? Count(op.positions) : 0, Count(op.sources),
                      Count(op.destinations), Count(signals_), Count(op.signals)});
      Append(waits_, op.waits);
      Append(signals_, op.signals);
    }
  }

  DeviceTable Finish() {
    DeviceTable table;
    size_t at = sizeof(TableHeader);
    const auto lay = [&at](const auto& array, int32_t& offset) {
      offset = static_cast<int32_t>(at);
      at += array.size() * sizeof(array[0]);
    };
    lay(workers_, header_.worker_offset);
    lay(ops_, header_.op_offset);
    lay(waits_, header_.wait_offset);
    lay(signals_, header_.signal_offset);
    lay(refs_, header_.ref_offset);
    lay(pieces_, header_.piece_offset);
    // Whole units of 16 bytes: the kernel may copy it so.
    table.words.resize((at + 15) / 16 * 2);
    header_.total_bytes = static_cast<int32_t>(table.bytes());
    auto* bytes = reinterpret_cast<unsigned char*>(table.words.data());
    std::memcpy(bytes, &header_, sizeof(header_));
    const auto write = [bytes](const auto& array, int32_t offset) {
      if (!array.empty())
        std::memcpy(bytes + offset, array.data(), array.size() * sizeof(array[0]));
    };
    write(workers_, header_.worker_offset);
    write(ops_, header_.op_offset);
    write(waits_, header_.wait_offset);
    write(signals_, header_.signal_offset);
    write(refs_, header_.ref_offset);
    write(pieces_, header_.piece_offset);
    return table;
  }

 private:
  template <typename T>
  static int32_t Count(const std::vector<T>& array) {
    return static_cast<int32_t>(array.size());
  }

  bool Buffer(const ChunkRef& ref) const {
    return ref.memory == Memory::kInput || ref.memory == Memory::kOutput ||
           ref.memory == Memory::kPeerInput || ref.memory == Memory::kPeerOutput;
  }

  TableRef Ref(const ChunkRef& ref) const {
    return {ref.memory, static_cast<int16_t>(ref.peer),
            Buffer(ref) ? ref.chunk / header_.chunks_per_block : ref.chunk};
  }

  // As many chunks from `first` on as follow each other in all operands. Returns the next one.
  size_t AddPiece(const WorkerOp& op, size_t first) {
    const bool whole_blocks = header_.chunks_per_block == 1;
    const auto follows = [&](const Refs& refs, size_t i) {
      return refs[i].memory == refs[i - 1].memory && refs[i].peer == refs[i - 1].peer &&
             refs[i].chunk == refs[i - 1].chunk + 1;
    };
    size_t end = first + 1;
    const auto all_follow = [&] {
      if (!whole_blocks && op.positions[end] != op.positions[end - 1] + 1) return false;
      for (const Refs& refs : op.sources) {
        if (!follows(refs, end)) return false;
      }
      for (const Refs& refs : op.destinations) {
        if (!follows(refs, end)) return false;
      }
      return true;
    };
    while (end < op.positions.size() && all_follow()) ++end;
    pieces_.push_back({static_cast<int32_t>(end - first), op.positions[first], Count(refs_)});
    for (const Refs& refs : op.sources) refs_.push_back(Ref(refs[first]));
    for (const Refs& refs : op.destinations) refs_.push_back(Ref(refs[first]));
    return end;
  }

  TableHeader header_;
  std::vector<TableWorker> workers_;
  std::vector<TableOp> ops_;
  std::vector<TableWait> waits_;
  std::vector<TableSignal> signals_;
  std::vector<TablePiece> pieces_;
  std::vector<TableRef> refs_;
};

DeviceTable Packer::Table(int32_t rank) const {
  const OpList& op_list = op_lists_[rank];
  std::vector<std::vector<WorkerOp>> workers;
  for (int32_t worker = 0; worker < graph_.workers; ++worker)
    workers.push_back(WorkerOps(rank, worker));
  DropDeadStores(workers);
  for (std::vector<WorkerOp>& ops : workers) PutSideBySide(ops);

  // When each op has ended: its worker, and how many ops of that must have ended for it to have.
  std::vector<std::pair<int32_t, int32_t>> ended(op_list.ops.size());
  for (int32_t worker = 0; worker < graph_.workers; ++worker) {
    for (size_t at = 0; at < workers[worker].size(); ++at) {
      for (const int32_t index : workers[worker][at].of) {
        ended[index] = {worker, static_cast<int32_t>(at) + 1};
      }
    }
  }
  // Workers of one rank wait for each other through a counter each. Scratch is used again by the
  // next slice, which is another reason to wait where workers share anything.
  const int32_t progress = arrivals_ + departures_;
  bool shared = false;
  for (int32_t worker = 0; worker < graph_.workers; ++worker) {
    for (WorkerOp& op : workers[worker]) {
      std::map<int32_t, int32_t> amounts;  // by worker
      for (const int32_t index : op.of) {
        for (const int32_t before : op_list.ops[index].depends_on) {
          const auto [other, amount] = ended[before];
          if (other != worker) amounts[other] = std::max(amounts[other], amount);
        }
      }
      for (const auto& [other, amount] : amounts) {
        shared = true;
        op.waits.push_back({TableWait::kWorker, other, progress, amount, -1, -1, op.of[0], 0});
      }
    }
  }
  for (int32_t worker = 0; shared && worker < graph_.workers; ++worker) {
    std::vector<WorkerOp>& ops = workers[worker];
    for (size_t at = 0; at < ops.size(); ++at) {
      ops[at].signals.push_back({TableSignal::kWorker, 0, progress, static_cast<int32_t>(at) + 1});
    }
    for (int32_t other = 0; other < graph_.workers && !ops.empty(); ++other) {
      if (other == worker || workers[other].empty()) continue;
      ops[0].waits.push_back({TableWait::kWorkerSlice, other, progress,
                              static_cast<int32_t>(workers[other].size()), -1, -1,
                              ops[0].of.empty() ? -1 : ops[0].of[0], 0});
    }
  }

  TableHeader header{};
  header.magic = kTableMagic;
  header.rank = rank;
  header.world_size = ranks();
  header.chunks_per_block = op_list.chunks_per_block;
  header.workers = graph_.workers;
  header.slot_chunks = slot_chunks_;
  header.scratch_chunks = scratch_chunks_;
  header.arrivals = arrivals_;
  header.departures = departures_;
  header.flags_per_worker = progress + 1;
  header.meets = meets_;
  header.reduces = reduces_;
  TableWriter writer(header);
  for (const std::vector<WorkerOp>& ops : workers) writer.Add(ops);
  return writer.Finish();
}

}  // namespace

StatusOr<std::vector<DeviceTable>> Pack(const World& world, const std::vector<int32_t>& ranks,
                                        int32_t max_workers, Reach reach) {
  StatusOr<DeviceGraph> graph = BuildGraph(world, max_workers);
  if (!graph.ok()) return graph.status();
  JAXCOLL_CHECK(reach == Reach::kRegions || world.world_size() <= kMaxMeeting,
                "operands are reached in groups of at most kMaxMeeting ranks");
  const Packer packer(world, std::move(*graph), reach);
  std::vector<DeviceTable> tables;
  for (const int32_t rank : ranks) {
    if (rank < 0 || rank >= world.world_size()) {
      return InvalidArgument("rank " + std::to_string(rank) + " has no op list");
    }
    tables.push_back(packer.Table(rank));
  }
  return tables;
}

}  // namespace jaxcoll::cuda
