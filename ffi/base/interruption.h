// Ends waits in C++ at Ctrl-C. The interpreter only records the signal, and raises
// KeyboardInterrupt once its main thread returns to Python. So the call that the main thread waits
// for must end. (Some waits in JAX check for signals and return, but the call would still occupy
// the devices.)
//
// Our C handler of SIGINT counts the signal and then calls the interpreter's. The interpreter
// reinstalls its own whenever a program sets a handler (IPython does for each cell), so Check
// installs ours again. If a program handles SIGINT itself, waits do not end.
#pragma once

#include <chrono>
#include <cstdint>

namespace jaxcoll {

// Questions that only the interpreter can answer. Both are asked without its lock.
struct PythonInterpreter {
  // Has the main thread call Interruption::Heard when it runs Python again; false: not now.
  bool (*ask_main_thread)() = nullptr;
  // Whether Ctrl-C raises KeyboardInterrupt. Waits for the interpreter's lock.
  bool (*raises_on_interrupt)() = nullptr;
};

// Thread rule: Watch and Heard from any thread, Check from the watchdog's.
class Interruption {
 public:
  static Interruption& Get();

  // From now on; once.
  void Watch(PythonInterpreter interpreter);
  // The main thread runs Python: it has seen every SIGINT so far.
  void Heard();
  // Called every few milliseconds. Whether a SIGINT has come `ticks` calls ago, until Take.
  bool Check(int ticks);
  void Take();
  // When Check saw the first of those that have not been taken.
  std::chrono::steady_clock::time_point came() const { return came_; }
  // Whether the main thread is still in C++.
  bool unheard() const;
  // How many have come so far.
  uint32_t count() const;
  const PythonInterpreter& interpreter() const { return interpreter_; }

 private:
  void Arm();

  PythonInterpreter interpreter_;
  // The watchdog's:
  uint32_t seen_ = 0;
  bool fresh_ = false;  // one has come, and has not been taken
  std::chrono::steady_clock::time_point came_;
  bool asked_ = true;  // the main thread, since the last one
  int ticks_ = 0;      // since the first one that is fresh
  int arm_ticks_ = 0;  // since the last look at the handler
};

}  // namespace jaxcoll
