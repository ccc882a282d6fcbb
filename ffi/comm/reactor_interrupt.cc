// The reactor's part in Ctrl-C, see base/interruption.h.
#include <map>
#include <string>

#include "comm/reactor_internal.h"

namespace jaxcoll {

// The others learn of it as of any failure; what they have sent and will send is dropped.
void Reactor::FailBegunBefore(Clock::time_point time, bool moving, const std::string& reason) {
  {
    std::lock_guard lock(mutex_);
    std::map<uint64_t, std::string> causes;  // by communicator
    for (const auto& [id, call] : calls_) {
      if ((moving ? call->begun : call->moved_at) > time) continue;
      const uint64_t communicator = call->group->communicator;
      causes.try_emplace(communicator, *call->group->description + ": " +
                                           RanksOf(communicators_.at(communicator), process_) +
                                           ", " + reason);
    }
    if (causes.empty()) return;
    for (const auto& [communicator, cause] : causes) Poison(communicator, cause);
  }
  Ring();
}

}  // namespace jaxcoll
