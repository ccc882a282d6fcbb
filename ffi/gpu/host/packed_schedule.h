// A schedule packed for this process: the tables of its ranks, and of those ranks of other hosts
// with which they exchange messages, since the proxies on both sides must know them.
//
// All ranks' op lists are built and matched for it: the order of a worker's ops, and the numbers of
// flags, slots and chunks of scratch that a region has, follow from all of them. No table of
// another rank is made for that, and nothing but the tables is kept. Instructions with the same
// schedule share it.
//
// Thread rule: immutable.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/status.h"
#include "call/call_spec.h"
#include "gpu/abi/device_table.h"

namespace jaxcoll::cuda {

struct PackedSchedule {
  std::vector<DeviceTable> tables;  // ranks ascend
  int32_t input_blocks = 1, output_blocks = 1;
  // No rank's table is longer. Equal in all processes, as all that follows.
  uint64_t table_bytes = 0;
  uint64_t fingerprint = 0;

  const DeviceTable& TableOf(int32_t rank) const;  // one of `tables`
  // Holds for any rank, but for its rank and its size.
  const TableHeader& header() const { return tables.front().header(); }
};

// `own`: this process's ranks, which ascend; there is one. `host_of_rank`: of all ranks; empty if
// all are on one host.
StatusOr<std::shared_ptr<const PackedSchedule>> PackedFor(const CallSpec& spec, int32_t max_workers,
                                                          Reach reach, std::span<const int32_t> own,
                                                          std::span<const int> host_of_rank);

// Tables that have been packed in this process so far: tests of what a call costs count them.
int64_t TablesPacked();

}  // namespace jaxcoll::cuda
