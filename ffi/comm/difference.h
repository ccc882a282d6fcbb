// A description of how the calls in which two processes wait differ.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "call/call_facts.h"
#include "comm/listing.h"
#include "comm/notice.h"

namespace jaxcoll {

// A call in which a process waits, as it reports it to another member of the call's group.
struct WaitingCall {
  CallId id;
  uint64_t communicator = 0;
  uint64_t instruction = 0;
  double since_s = 0;
  bool serial = false;
  std::string program;
  std::string description;
  std::string operands;
  std::vector<CallFacts::Part> parts;
};

// One line of printable text.
std::string Encode(const WaitingCall& call);
std::optional<WaitingCall> DecodeWaitingCall(std::string_view line);

// The names of the parts in which they differ.
std::vector<std::string> PartsThatDiffer(const WaitingCall& a, const WaitingCall& b);

// "process 0 waits in all_reduce(sum) of float32[8] over ..., process 1 in the same of float32[9]:
// shapes differ"; equal words on both processes. `comparison`: of their programs, by process
// `here`, or null; `listing`: of the program here, or null.
std::string DescribeDifference(int here, const WaitingCall& mine, int there,
                               const WaitingCall& theirs, const Comparison* comparison,
                               const Listing* listing);

}  // namespace jaxcoll
