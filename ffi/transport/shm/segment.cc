#include "transport/shm/segment.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <string>

#include "transport/fd.h"
#include "transport/link.h"
#include "transport/link_error.h"
#include "transport/pages.h"

namespace jaxcoll {
namespace {

constexpr uint64_t kSegmentMagic = 0x31304d48534c434a;  // "JCLSHM01"
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW;
constexpr size_t kMaxWindowBytes = size_t{1} << 46;
constexpr unsigned kNoExecSeal = 0x0008;  // MFD_NOEXEC_SEAL of newer headers than ours

constexpr size_t kHeaderBytes = RoundUpToPage(sizeof(SegmentHeader));

size_t SegmentBytes(size_t window_bytes) { return kHeaderBytes + RoundUpToPage(window_bytes); }

}  // namespace

ShmSegment::~ShmSegment() {
  if (header_ != nullptr) ::munmap(header_, SegmentBytes(window_bytes_));
}

Status ShmSegment::Map(int fd) {
  struct stat file;
  struct statfs file_system;
  if (::fstat(fd, &file) != 0) return SystemError("fstat of a shared memory segment", errno);
  if (::fstatfs(fd, &file_system) != 0) return SystemError("fstatfs of a segment", errno);
  const int seals = ::fcntl(fd, F_GET_SEALS);
  // Not on hugetlbfs: there a page can be missing, which is a SIGBUS, too.
  if (seals < 0 || (seals & kSeals) != kSeals || file_system.f_type != TMPFS_MAGIC) {
    return InvalidArgument("a shared memory segment is not a memfd sealed against resizing");
  }
  const auto bytes = static_cast<size_t>(file.st_size);
  uint64_t start[2];  // magic, window_bytes
  if (::pread(fd, start, sizeof(start), 0) != sizeof(start) || start[0] != kSegmentMagic ||
      start[1] > kMaxWindowBytes || SegmentBytes(start[1]) != bytes) {
    return InvalidArgument("a shared memory segment of " + std::to_string(bytes) +
                           " bytes is malformed, or of another version of jaxcoll");
  }
  void* address = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (address == MAP_FAILED) return SystemError("mmap of a shared memory segment", errno);
  window_bytes_ = start[1];
  header_ = static_cast<SegmentHeader*>(address);
  // Only a wish: a window is used from one end to the other, again and again.
  if (window_bytes_ > 0) ::madvise(window().data(), window_bytes_, MADV_HUGEPAGE);
  return Status();
}

std::span<std::byte> ShmSegment::window() const {
  return {reinterpret_cast<std::byte*>(header_) + kHeaderBytes, window_bytes_};
}

StatusOr<int> MakeShmSegment(size_t window_bytes) {
  if (window_bytes > kMaxWindowBytes) {
    return InvalidArgument("a window of " + std::to_string(window_bytes) + " bytes is too large");
  }
  // Kernels older than 6.3 do not know kNoExecSeal; some newer ones are set up to insist on it.
  Fd fd(::memfd_create("jaxcoll", MFD_CLOEXEC | MFD_ALLOW_SEALING | kNoExecSeal));
  if (fd.get() < 0 && errno == EINVAL) {
    fd = Fd(::memfd_create("jaxcoll", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  }
  if (fd.get() < 0) return SystemError("memfd_create", errno);
  // The rest is zeros: an empty ring.
  const uint64_t start[2] = {kSegmentMagic, window_bytes};
  if (::ftruncate(fd.get(), static_cast<off_t>(SegmentBytes(window_bytes))) != 0 ||
      ::pwrite(fd.get(), start, sizeof(start), 0) != sizeof(start) ||
      ::fcntl(fd.get(), F_ADD_SEALS, kSeals | F_SEAL_SEAL) != 0) {
    return SystemError("making a shared memory segment of " +
                           std::to_string(SegmentBytes(window_bytes)) + " bytes",
                       errno);
  }
  return fd.release();
}

}  // namespace jaxcoll
