// How messages travel where ranks reach each other's operands: through slots only if they must.
#pragma once

#include <vector>

#include "gpu/host/device_graph.h"
#include "schedule/schedule.h"

namespace jaxcoll::cuda {

// Sets `way` of all messages. The bytes that arrive are those of a schedule all of whose messages
// go through slots:
//
//   pulled  comes from the sender's input, which does not change.
//   pushed  goes to chunks of the receiver's output. All else that the receiver does with these
//           has ended before the sender sends, by what ops wait for, or comes after the receipt.
void ChooseWays(const std::vector<OpList>& op_lists, DeviceGraph& graph);

}  // namespace jaxcoll::cuda
