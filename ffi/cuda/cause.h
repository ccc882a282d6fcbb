// What a cause record means, for people.
#pragma once

#include <string>
#include <vector>

#include "cuda/layout.h"

namespace jaxcoll::cuda {

// members: by rank, such as "rank 2 (device 2, process 1)"; call: what the lane belongs to.
std::string Describe(const CauseRecord& cause, const std::vector<std::string>& members,
                     const std::string& call, double timeout_s);

}  // namespace jaxcoll::cuda
