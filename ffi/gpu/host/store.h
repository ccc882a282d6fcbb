// The job's store, through which its processes exchange the handles of their workspaces: JAX's
// key-value store, whose Python side is jaxcoll/_job/store_thread.py. Blocking; used when a
// communicator or a call is set up, never by a call.
#pragma once

#include <string>

#include "base/status.h"

namespace jaxcoll::cuda {

class Store {
 public:
  virtual ~Store() = default;
  // A key is set once and never changes.
  virtual Status Set(const std::string& key, const std::string& value) = 0;
  virtual StatusOr<std::string> Wait(const std::string& key, double timeout_s) = 0;
};

}  // namespace jaxcoll::cuda
