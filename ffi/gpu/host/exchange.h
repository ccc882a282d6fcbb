// How the processes of a job tell each other where their workspaces are: by the job's key-value
// store. Blocking; used when a communicator or a call is set up, never by a call.
#pragma once

#include <string>

#include "base/status.h"

namespace jaxcoll::cuda {

class Exchange {
 public:
  virtual ~Exchange() = default;
  // A key is set once, for good.
  virtual Status Publish(const std::string& key, const std::string& value) = 0;
  virtual StatusOr<std::string> Fetch(const std::string& key, double timeout_s) = 0;
};

}  // namespace jaxcoll::cuda
