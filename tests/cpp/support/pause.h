// How a thread waits in a loop where there are more threads than cores.
#pragma once

#include <chrono>
#include <thread>

namespace jaxcoll {

// In the loop, every time. A thread that only yields is runnable all the time: hundreds of them
// would leave nothing to the programs beside this one, nor, where those are many, to the one thread
// that all wait for. So a long wait is slept through.
inline void PauseAmongMany(int spins) {
  constexpr int kYields = 32;
  if (spins < kYields) {
    std::this_thread::yield();
  } else {
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
}

}  // namespace jaxcoll
