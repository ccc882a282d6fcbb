// The interface that a call site needs from the layer above to serve groups that reach into other
// processes.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "call/call_facts.h"
#include "call/call_spec.h"
#include "engine/completion.h"
#include "engine/slices/run.h"
#include "engine/worker_pool.h"

namespace jaxcoll {

// One call site's group of ranks in several processes. Destroyed after its last call.
class RemoteGroup {
 public:
  virtual ~RemoteGroup() = default;
  // The next call: all local ranks have arrived. Never blocks. `completions` are done, on the
  // worker pool, when the outputs are written or the call has failed. `run_id` names the launch of
  // the program, in this process only.
  virtual void Start(int64_t run_id, MemberBuffers buffers,
                     std::vector<std::unique_ptr<Completion>> completions,
                     std::shared_ptr<ContinuationCost> cost) = 0;
  // This process will not make the call that it has begun to make: the others must know.
  virtual void Fail(const Status& status) = 0;
};

class Guest;

class Interprocess {
 public:
  virtual ~Interprocess() = default;
  virtual int process() const = 0;
  // Nullopt for a device that no process has.
  virtual std::optional<int> ProcessOfDevice(int64_t device_id) const = 0;

  // Tells equal instructions of one executable apart: the lowest number that no other instruction
  // of the executable has. Neither other executables of the program count, nor when they die: both
  // differ between processes. (XLA may instantiate an instruction, drop it and instantiate it
  // again.) An executable is what the calling thread builds until EndBuild, or until a call of it
  // is opened.
  struct InstructionNumber {
    int value = 0;
    uint64_t build = 0;  // which executable, in this process
  };
  virtual InstructionNumber TakeNumber(const std::string& signature) = 0;
  virtual void ReturnNumber(const std::string& signature, const InstructionNumber& number) = 0;

  struct GroupSpec {
    std::vector<int64_t> device_ids;  // by rank
    std::string operation;    // equal on every process: what the call computes, and its number
    std::string description;  // for people
    std::shared_ptr<const RunPlan> plan;  // of this process's ranks
    CallFacts facts = {};
    uint64_t build = 0;  // InstructionNumber::build
  };
  virtual std::unique_ptr<RemoteGroup> Open(GroupSpec spec) = 0;
  // Fails the calls that have waited for others since before `time`, here and there; all that have
  // begun before, if `moving`.
  virtual void FailBegunBefore(std::chrono::steady_clock::time_point time, bool moving,
                               const std::string& reason) = 0;
  // See call/guest.h. Once; it lives as long as this.
  virtual void Invite(Guest* guest) = 0;

  // Null until comm has been started: then every device is one of this process.
  static Interprocess* Get();
  static void Set(Interprocess* instance);  // once
};

// Bytes of the largest message; the slots of every transport's window have this size.
inline constexpr size_t kSlotBytes = 128 << 10;

}  // namespace jaxcoll
