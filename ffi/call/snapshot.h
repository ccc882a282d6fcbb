// The state of this process's engines, as facts for `jaxcoll inspect`. DumpEngine and
// Reactor::Dump tell people the same in words.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "call/call_facts.h"
#include "call/flight_recorder.h"

namespace jaxcoll {

inline constexpr size_t kEndedCallsShown = 16;

// A call that this process has made and that has not ended.
struct PendingCall {
  uint64_t communicator = 0;  // these three are equal on every process
  uint64_t key = 0;
  uint32_t number = 0;
  std::string description;
  CallFacts facts;
  std::vector<int64_t> device_ids;  // by rank
  std::vector<int> process_of_rank;
  std::vector<int32_t> waits_for;  // ranks
  double since_s = 0;
  std::optional<double> moved_s;  // since a message of it last came or went; unset: none has
  std::string mismatch;           // how it differs from what a peer waits in, once that is known
};

// A call that some devices of this process have made and others have not.
struct HalfMadeCall {
  std::string description;
  std::string program;
  double since_s = 0;
  std::vector<std::string> arrived, missing;  // "rank 1 (device 5)"
};

// The calls that were pending on a communicator when it failed.
struct FailedCalls {
  uint64_t communicator = 0;
  std::string cause;
  FlightRecorder::Clock::time_point at;
  std::vector<PendingCall> calls;
};

struct PeerState {
  int process = 0;
  std::string state;        // "new", "up", "left" or "down"
  std::string transport;    // "" without a link
  std::string description;  // the link, or why it is down
  double silent_s = 0;      // since it was asked and has not answered
  std::string told;         // its last answer
  double told_s = 0;        // since then
  size_t queued = 0;        // messages for it that have not left this process
};

struct ReactorSnapshot {
  int process = 0;
  uint64_t ended = 0;
  std::vector<PendingCall> pending;
  std::vector<std::pair<uint64_t, uint32_t>> next_numbers;  // by PendingCall::key
  std::vector<FlightRecorder::Record> last;
  std::vector<FailedCalls> failed;
  std::vector<PeerState> peers;
};

struct EngineSnapshot {
  uint64_t ended = 0;
  std::vector<HalfMadeCall> pending;
  std::vector<FlightRecorder::Record> last;
};

// The calls within this process.
EngineSnapshot TakeEngineSnapshot();

}  // namespace jaxcoll
