// ragged_all_to_all by messages, for groups whose ranks do not all reach each other's memory: what
// host and kernel (ragged_exchange.h) agree on. It uses a region, flags and slots as schedules do
// (device_table.h), but no schedule: each rank has a message for each other one, and how long it
// is stands in device memory.
//
// A strand is one thread block. From each rank to each other one it carries a stream: what the
// tables of the sender say of the receiver, a RaggedEntry for each update, and behind it the
// strand's share of the rows. The stream is cut into uses of the message's slot, `stride_bytes`
// each, of which the last one may be shorter. Nothing is padded, and no rank needs the tables of
// all.
#pragma once

#include <cstdint>

#include "gpu/abi/device_table.h"
#include "gpu/abi/layout.h"

namespace jaxcoll::cuda {

// A message's two flags: the one that its sender raises at the receiver, and the one that tells the
// sender that the slot may be overwritten. Its slot is the sender's.
JAXCOLL_HD constexpr int32_t RaggedArrived(int32_t from) { return from; }
JAXCOLL_HD constexpr int32_t RaggedFreed(int32_t to, int32_t ranks) { return ranks + to; }

// Parameters of the launch for one rank.
struct RaggedTableCall {
  // Its table is a header without ops. vectors[0]: the operand and the result, in bytes of the
  // latter. Behind scratch_offset the kernel keeps, for each strand, the extents of the
  // rows that come.
  TableCall table_call;
  Ragged ragged;
  const void* input_offsets;
  const void* send_sizes;
  const void* output_offsets;
  const void* recv_sizes;
};
static_assert(sizeof(RaggedTableCall) <= 2048, "kernel parameters");

// Bytes of the result that an update writes.
struct RaggedExtent {
  int64_t first;
  int64_t bytes;
};

// The records that a strand keeps of them: of each rank's updates, in order.
JAXCOLL_HD constexpr int64_t RaggedScratchBytes(int64_t ranks, int64_t updates) {
  const int64_t bytes = ranks * updates * static_cast<int64_t>(sizeof(RaggedExtent));
  return (bytes + kSlotAlignment - 1) / kSlotAlignment * kSlotAlignment;
}

// A strand's share of so many bytes, whole units but for the last one. Units are counted in 32
// bits, which is enough for a TiB: divisions of 64 bits cost registers.
struct RaggedShare {
  int64_t first, bytes;
};
JAXCOLL_HD constexpr RaggedShare ShareOf(int64_t bytes, int32_t strand, int32_t strands) {
  const auto units = static_cast<uint32_t>((bytes + kSlotAlignment - 1) / kSlotAlignment);
  const auto count = static_cast<uint32_t>(strands);
  const int64_t most = int64_t{(units + count - 1) / count} * kSlotAlignment;
  const int64_t first = most * strand < bytes ? most * strand : bytes;
  return {first, most < bytes - first ? most : bytes - first};
}

}  // namespace jaxcoll::cuda
