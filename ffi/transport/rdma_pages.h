// The memory of an rdma link.
#pragma once

#include <sys/mman.h>

#include <cerrno>
#include <cstddef>
#include <span>

#include "transport/link_error.h"

namespace jaxcoll {

constexpr size_t kPageBytes = 4096;

inline size_t RoundUpToPage(size_t bytes) {
  return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
}

// Memory that a NIC reads or writes. Not inherited by children: before Linux 5.12 a write of the
// parent would give it a new page behind the NIC's back.
class RegisteredPages {
 public:
  RegisteredPages() = default;
  RegisteredPages(const RegisteredPages&) = delete;
  RegisteredPages& operator=(const RegisteredPages&) = delete;
  ~RegisteredPages() {
    if (!bytes_.empty()) ::munmap(bytes_.data(), bytes_.size());
  }

  Status Allocate(size_t bytes) {
    void* address =
        ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (address == MAP_FAILED) return SystemError("mmap of memory for rdma", errno);
    bytes_ = {static_cast<std::byte*>(address), bytes};
    ::madvise(address, bytes, MADV_HUGEPAGE);  // only a wish
    if (::madvise(address, bytes, MADV_DONTFORK) != 0) return SystemError("madvise", errno);
    return Status();
  }
  std::span<std::byte> bytes() const { return bytes_; }

 private:
  std::span<std::byte> bytes_;
};

}  // namespace jaxcoll
