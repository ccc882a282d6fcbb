// Derives the order that data forces on one rank's ops.
#pragma once

#include "schedule/schedule.h"

namespace jaxcoll {

// Adds to every op's `depends_on` what makes the op list behave as if its ops ran one after the
// other: a read waits for the last write of its chunks, a write for the reads since that write.
// Existing entries stay. Every access to a rank's buffers belongs to one of its own ops, so a
// op list treated this way has no race, whatever its peers do.
//
// It cannot mend an exchange that sends and receives the same chunks: there the receive
// would wait for the send on both sides, a deadlock, which verification reports.
// O(n log n) in the number of intervals. Inputs are read-only and need no order.
void InferDependencies(OpList& op_list);

}  // namespace jaxcoll
