// A segment: a memfd in which its owner receives and to which its peer writes. Both map it.
//
//   SegmentHeader   sizes, and the ring of notices; the window, from the next page on
//
// It is sealed: its size cannot change while it is mapped, so no access of ours can raise SIGBUS,
// whatever the peer does.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/status.h"
#include "transport/shm/ring.h"

namespace jaxcoll {

struct SegmentHeader {
  uint64_t magic;
  uint64_t window_bytes;
  RingMemory ring;
};

class ShmSegment {
 public:
  ShmSegment() = default;
  ShmSegment(const ShmSegment&) = delete;
  ShmSegment& operator=(const ShmSegment&) = delete;
  ~ShmSegment();

  // Maps `fd` after checking that it has the properties of MakeShmSegment's result.
  Status Map(int fd);

  RingMemory* ring() const { return &header_->ring; }
  std::span<std::byte> window() const;

 private:
  SegmentHeader* header_ = nullptr;
  size_t window_bytes_ = 0;  // ours: the one in the header can change at any time
};

}  // namespace jaxcoll
