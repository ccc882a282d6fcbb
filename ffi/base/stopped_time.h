// The time that this process did not run: somebody stopped it (^Z, SIGSTOP, a debugger), or closed
// the lid. Deadlines leave it out, so that a job that is stopped as a whole and resumed goes on.
#pragma once

#include <algorithm>
#include <chrono>
#include <utility>

namespace jaxcoll {

class StoppedTime {
 public:
  using Clock = std::chrono::steady_clock;

  // To be called much more often than once a second while anything is waited for. The time since
  // the last call counts for a second at most; returns the rest. So deadlines come, however rarely
  // this is called.
  Clock::duration Since(Clock::time_point now) {
    const Clock::time_point last = std::exchange(last_, now);
    if (last == Clock::time_point()) return {};
    return std::max<Clock::duration>(now - last - std::chrono::seconds(1), {});
  }

 private:
  Clock::time_point last_;
};

}  // namespace jaxcoll
