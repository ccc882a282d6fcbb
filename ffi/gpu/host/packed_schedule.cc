#include "gpu/host/packed_schedule.h"

#include <algorithm>
#include <atomic>
#include <numeric>
#include <set>
#include <string>
#include <utility>

#include "call/shared.h"
#include "gpu/abi/fingerprint.h"
#include "schedule/world.h"

namespace jaxcoll::cuda {
namespace {

std::atomic<int64_t> tables_packed{0};

// The bytes of a rank's table if no two ops of its list were joined and no two chunks were one
// piece.
uint64_t MostTableBytes(const OpList& op_list, int32_t workers) {
  uint64_t ops = 1, waits = 0, signals = 0, pieces = 0, refs = 0;
  for (const Op& op : op_list.ops) {
    const auto chunks = static_cast<uint64_t>(CountChunks(op.destination));
    ++ops;
    // A message's flag, and where a worker waits for another, one of that.
    waits += 1 + op.depends_on.size();
    signals += 2;
    pieces += chunks;
    refs += chunks * (op.sources.size() + 1);
  }
  // Output that no op writes is cleared.
  const uint64_t output = uint64_t(op_list.output_blocks) * op_list.chunks_per_block;
  pieces += output;
  refs += output;
  waits += uint64_t(workers) * workers;
  signals += 1;
  return sizeof(TableHeader) + workers * sizeof(TableWorker) + ops * sizeof(TableOp) +
         waits * sizeof(TableWait) + signals * sizeof(TableSignal) + pieces * sizeof(TablePiece) +
         refs * sizeof(TableRef) + 16;
}

// `own`, and ranks of other hosts to which they send, or from which they receive.
std::vector<int32_t> RanksToPack(const World& world, std::span<const int32_t> own,
                                 std::span<const int> host_of_rank) {
  std::set<int32_t> ranks(own.begin(), own.end());
  if (host_of_rank.empty()) return {ranks.begin(), ranks.end()};
  for (const int32_t rank : own) {
    for (const Op& op : world.op_lists()[rank].ops) {
      if (IsTransfer(op) && host_of_rank[op.peer] != host_of_rank[rank]) ranks.insert(op.peer);
    }
  }
  return {ranks.begin(), ranks.end()};
}

StatusOr<PackedSchedule> PackSchedule(const CallSpec& spec, int32_t max_workers, Reach reach,
                                      std::span<const int32_t> own,
                                      std::span<const int> host_of_rank) {
  std::vector<int32_t> all(spec.group_size);
  std::iota(all.begin(), all.end(), 0);
  StatusOr<std::vector<OpList>> op_lists = OpListsOf(spec, all);
  if (!op_lists.ok()) return op_lists.status();
  const StatusOr<World> world =
      World::Create(std::move(*op_lists), static_cast<int32_t>(spec.group_size));
  if (!world.ok()) return world.status();
  StatusOr<std::vector<DeviceTable>> tables =
      Pack(*world, RanksToPack(*world, own, host_of_rank), max_workers, reach);
  if (!tables.ok()) return tables.status();
  tables_packed.fetch_add(static_cast<int64_t>(tables->size()), std::memory_order_relaxed);
  PackedSchedule packed;
  packed.tables = std::move(*tables);
  packed.input_blocks = world->layout().input_blocks;
  packed.output_blocks = world->layout().output_blocks;
  const TableHeader& header = packed.header();
  for (const OpList& op_list : world->op_lists()) {
    packed.table_bytes = std::max(packed.table_bytes, MostTableBytes(op_list, header.workers));
  }
  for (const DeviceTable& table : packed.tables) {
    JAXCOLL_CHECK(table.bytes() <= packed.table_bytes, "a table of %zu bytes", table.bytes());
  }
  // The op lists follow from the spec, and the tables from them.
  Fingerprint fingerprint;
  fingerprint.Add(ScheduleKey(spec));
  for (const int64_t value :
       {int64_t{max_workers}, static_cast<int64_t>(reach), int64_t{header.workers},
        int64_t{header.slot_chunks}, int64_t{header.scratch_chunks}, int64_t{header.arrivals},
        int64_t{header.departures}, static_cast<int64_t>(packed.table_bytes)}) {
    fingerprint.Add(value);
  }
  packed.fingerprint = fingerprint.Value();
  return packed;
}

}  // namespace

const DeviceTable& PackedSchedule::TableOf(int32_t rank) const {
  const auto found = std::find_if(tables.begin(), tables.end(), [&](const DeviceTable& table) {
    return table.header().rank == rank;
  });
  JAXCOLL_CHECK(found != tables.end(), "rank %d is not of this process", rank);
  return *found;
}

StatusOr<std::shared_ptr<const PackedSchedule>> PackedFor(const CallSpec& spec, int32_t max_workers,
                                                          Reach reach, std::span<const int32_t> own,
                                                          std::span<const int> host_of_rank) {
  std::string key = std::to_string(max_workers) + (reach == Reach::kOperands ? " operands" : "");
  for (const int32_t rank : own) key += ' ' + std::to_string(rank);
  key += '\n';
  for (const int host : host_of_rank) key += ' ' + std::to_string(host);
  return Shared<PackedSchedule>(key + '\n' + ScheduleKey(spec), [&] {
    return PackSchedule(spec, max_workers, reach, own, host_of_rank);
  });
}

int64_t TablesPacked() { return tables_packed.load(std::memory_order_relaxed); }

}  // namespace jaxcoll::cuda
