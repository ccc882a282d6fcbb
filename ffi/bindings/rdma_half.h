// What Python holds between the two steps of making an rdma link.
#pragma once

#include <memory>

#include "transport/rdma/rdma.h"

namespace jaxcoll {

struct RdmaHalf {
  std::unique_ptr<RdmaLink> link;  // null once it has become a link
};

}  // namespace jaxcoll
