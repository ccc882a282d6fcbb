// What the source files of CallSite share.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <vector>

#include "call/call_site.h"

namespace jaxcoll {

struct FreeDeleter {
  void operator()(void* pointer) const { std::free(pointer); }
};

// The ranks of one group that have come to one call.
struct CallSite::Meeting {
  RunBuffers buffers;
  std::vector<std::unique_ptr<Completion>> completions;  // by rank
  std::vector<bool> arrived;                             // by rank
  int32_t arrived_count = 0;
  Clock::time_point first_arrival;
  bool warned = false;
  Clock::time_point look_at;              // when to look next for where its missing ranks are
  std::shared_ptr<const Status> failure;  // set: the call has failed
  Clock::time_point failed_at;
  std::unique_ptr<std::byte, FreeDeleter> scratch;
};

void AskForHugePages(std::byte* data, size_t bytes);

}  // namespace jaxcoll
