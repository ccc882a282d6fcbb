// The waits of all ranks' ops: messages, workers and an order that cannot deadlock.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "base/status.h"
#include "schedule/world.h"

namespace jaxcoll::cuda {

// A message, by its two sides. BuildGraph() fills in the first five.
struct DeviceMessage {
  int32_t source = 0, destination = 0;  // ranks
  int32_t sender = 0, receiver = 0;     // ops of those
  int32_t chunk_count = 0;
  int32_t arrival = 0;       // flag of the receiving worker
  int32_t departure = 0;     // flag of the sending worker
  int32_t first_slot = 0;    // chunk in the receiving worker's slots
  int32_t last_reader = -1;  // the op after which the slot is free
  bool in_place = false;     // stays in its slot, or in the sender's input
  // Through a slot; read by the receiver in the sender's input; written by the sender into the
  // receiver's output.
  enum Way { kSlot, kPulled, kPushed } way = kSlot;
};

struct DeviceGraph {
  int32_t workers = 1;
  std::map<int32_t, int32_t> worker_of_channel;
  std::vector<DeviceMessage> messages;
  std::vector<std::vector<int32_t>> message_of;          // [rank][op] -> message, -1: local
  std::vector<std::vector<std::vector<int32_t>>> order;  // [rank][worker] -> ops
  std::vector<std::vector<int32_t>> position_in_order;   // [rank][op]
  // [rank][op]: the longest way to it, through dependencies and messages of all ranks.
  std::vector<std::vector<int32_t>> level;
};

// Builds the graph of all ranks. Fails on more ranks or sources than a table can hold, and on a
// deadlock.
StatusOr<DeviceGraph> BuildGraph(const World& world, int32_t max_workers);

}  // namespace jaxcoll::cuda
