// How call sites whose messages go through slots use their area of a workspace: a region
// (device_table.h), and behind it a table that ends with where the rank finds, by rank, the
// regions, what is written for it, and the slots that it writes itself.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "gpu/abi/device_table.h"

namespace jaxcoll::cuda {

// The bytes of one block's slots and scratch: large enough that moving a strip takes longer than
// telling of it, and small enough that those of all blocks stay in L2. Without any, a strip may be
// as large. Not measured yet.
inline constexpr int64_t kBlockBytes = 256 << 10;
inline constexpr int64_t kLeastStripBytes = 4 << 10;
inline constexpr int64_t kMostStripBytes = 64 << 10;
inline constexpr int kSlotDepth = 2;

inline uint64_t RoundUpToSlots(uint64_t bytes) {
  return (bytes + kSlotAlignment - 1) / kSlotAlignment * kSlotAlignment;
}

// By rank, as one rank maps them; see TableCall.
struct AreaAddresses {
  std::vector<unsigned char*> regions, inboxes, slots;

  // The bytes of the lists of so many ranks.
  static uint64_t Bytes(size_t ranks) { return 3 * ListBytes(ranks); }
  // `end`: of the table, on the host; in the device, where `call` will read it.
  void Write(unsigned char* end) const {
    const uint64_t list = ListBytes(regions.size());
    std::memcpy(end - 3 * list, regions.data(), regions.size() * sizeof(void*));
    std::memcpy(end - 2 * list, inboxes.data(), inboxes.size() * sizeof(void*));
    std::memcpy(end - list, slots.data(), slots.size() * sizeof(void*));
  }
  static void Bind(TableCall& call, unsigned char* end, size_t ranks) {
    const uint64_t list = ListBytes(ranks);
    call.regions = reinterpret_cast<unsigned char* const*>(end - 3 * list);
    call.inboxes = reinterpret_cast<unsigned char* const*>(end - 2 * list);
    call.slots = reinterpret_cast<unsigned char* const*>(end - list);
  }

 private:
  static uint64_t ListBytes(size_t ranks) { return RoundUpToSlots(ranks * sizeof(void*)); }
};

}  // namespace jaxcoll::cuda
