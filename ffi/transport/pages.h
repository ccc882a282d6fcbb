// Memory of a link's own.
#pragma once

#include <sys/mman.h>

#include <cerrno>
#include <cstddef>
#include <span>

#include "transport/link_error.h"

namespace jaxcoll {

inline constexpr size_t kPageBytes = 4096;

constexpr size_t RoundUpToPage(size_t bytes) {
  return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
}

// Page-aligned zeros, which take memory only where they were written.
class Pages {
 public:
  Pages() = default;
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  ~Pages() {
    if (!bytes_.empty()) ::munmap(bytes_.data(), bytes_.size());
  }

  Status Allocate(size_t bytes) {
    if (bytes == 0) return Status();
    void* address =
        ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (address == MAP_FAILED) return SystemError("mmap of a window", errno);
    bytes_ = {static_cast<std::byte*>(address), bytes};
    ::madvise(address, bytes, MADV_HUGEPAGE);  // only a wish
    return Status();
  }
  // For what a NIC reads or writes: before Linux 5.12 a write of this process would give it a new
  // page behind the NIC's back as soon as a child shared the old one.
  Status KeepFromChildren() {
    if (::madvise(bytes_.data(), bytes_.size(), MADV_DONTFORK) == 0) return Status();
    return SystemError("madvise of memory for rdma", errno);
  }
  std::span<std::byte> bytes() const { return bytes_; }

 private:
  std::span<std::byte> bytes_;
};

}  // namespace jaxcoll
