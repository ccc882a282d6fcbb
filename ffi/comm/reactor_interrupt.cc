// The reactor's part in Ctrl-C, see base/interruption.h.
#include <map>
#include <string>

#include "comm/reactor_internal.h"

namespace jaxcoll {

// The others learn of it as of any failure; what they have sent and will send is dropped.
void Reactor::ForCallSites::FailBegunBefore(Clock::time_point time, bool moving,
                                            const std::string& reason) {
  Reactor& reactor = reactor_;
  {
    std::lock_guard lock(reactor.mutex_);
    std::map<uint64_t, std::string> causes;  // by communicator
    for (const auto& [id, call] : reactor.calls_) {
      if ((moving ? call->begun : call->moved_at) > time) continue;
      const uint64_t communicator = call->group->communicator;
      causes.try_emplace(communicator, *call->group->description + ": " +
                                           reactor.RanksOf(reactor.communicators_.at(communicator),
                                                           reactor.process_) +
                                           ", " + reason);
    }
    if (causes.empty()) return;
    for (const auto& [communicator, cause] : causes) reactor.Poison(communicator, cause);
  }
  reactor.Ring();
}

}  // namespace jaxcoll
