// Definitions that the reactor's source files share.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "comm/reactor.h"

namespace jaxcoll {

// A call site's group. The reactor's calls keep it alive.
class Reactor::Group {
 public:
  uint64_t communicator = 0;
  uint64_t key = 0;
  std::vector<int> process_of_rank;
  std::vector<int64_t> device_ids;
  std::shared_ptr<const std::string> description;
  std::shared_ptr<const RunPlan> plan;
  CallFacts facts;
  uint64_t instruction = 0;  // hash of what `facts` says of it
  // Guarded by the reactor's mutex. The number of calls before a handler lends its thread again; it
  // grows each time that lending did not help.
  int lend_backoff = 0;
  int lend_after = 0;
};

inline constexpr std::chrono::milliseconds kTick{20};
inline constexpr size_t kMaxTextBytes = 8 << 10;         // of a peer's words
inline constexpr std::string_view kForGuest = "guest ";  // before words that are the guest's
inline constexpr char kUnknownMessage[] = "it sent a message that is not part of its call";

// A peer's text goes into exceptions and logs, so it is sanitised.
std::string Printable(std::string_view text);

}  // namespace jaxcoll
