// Derives the dependencies between one rank's ops from the chunks that they access.
#pragma once

#include "schedule/schedule.h"

namespace jaxcoll {

// Adds to every op's `depends_on` the ops that it must wait for, so that the op list behaves as if
// its ops ran one after the other: a read waits for the last write of its chunks, a write for the
// reads since that write. Existing entries stay. Every access to a rank's buffers belongs to one of
// its own ops, so the resulting op list has no race, whatever its peers do.
//
// It cannot order an exchange that sends and receives the same chunks: the receive would wait for
// the send on both sides, a deadlock, which verification reports. O(n log n) in the number of
// intervals. Inputs are read-only and need no order.
void InferDependencies(OpList& op_list);

}  // namespace jaxcoll
