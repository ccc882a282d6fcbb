// Work: something that consists of levels of independent batches. The worker pool runs it.
#pragma once

#include <cstdint>

#include "base/status.h"

namespace jaxcoll {

class Work {
 public:
  virtual ~Work() = default;
  virtual int LevelCount() const = 0;
  virtual int BatchCount(int level) const = 0;
  // Called once per batch, from any thread, batches of one level concurrently.
  virtual void RunBatch(int level, int batch) = 0;
  // Called once, after the last batch of the last level, by the thread that ran it. Owns itself:
  // the object may be gone when this returns.
  virtual void Finish() = 0;
};

}  // namespace jaxcoll
