// The job's store, by which its processes tell each other where their workspaces are: JAX's
// key-value store, of which jaxcoll/_job/store_thread.py has the Python side. Blocking; used when a
// communicator or a call is set up, never by a call.
#pragma once

#include <string>

#include "base/status.h"

namespace jaxcoll::cuda {

class Store {
 public:
  virtual ~Store() = default;
  // A key is set once, for good.
  virtual Status Set(const std::string& key, const std::string& value) = 0;
  virtual StatusOr<std::string> Wait(const std::string& key, double timeout_s) = 0;
};

}  // namespace jaxcoll::cuda
