// The waiter of a call: the XLA future of one device.
#pragma once

#include <memory>

#include "base/status.h"

namespace jaxcoll {

class Completion {
 public:
  virtual ~Completion() = default;
  // Runs the device's next thunks on this thread, and returns when they have ended or wait again.
  // May take long and may block (XLA's own collectives do). Call it without locks.
  virtual void Done(const Status& status) = 0;
};

}  // namespace jaxcoll
