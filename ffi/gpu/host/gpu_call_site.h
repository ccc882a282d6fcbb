// One custom-call instruction of one executable on GPUs, shared by the process's devices.
//
// Work that is done once, at the first call: the communicators of the instruction's groups, its
// seats, the loading of its kernel. It may block for other processes and takes device memory, so
// XLA's initialize stage does it, before any kernel of the program waits for another. A call after
// that fills in the kernel's parameters and enqueues it: no lock, no allocation, nothing that a
// graph's capture forbids. A replayed graph comes without a call: whatever changes from one call to
// the next is counted in device memory (layout.h).
//
// Thread rule: Prepare and Enqueue from any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "base/status.h"
#include "call/call_core.h"
#include "gpu/abi/runtime.h"
#include "gpu/host/gpu_communicator.h"
#include "gpu/host/group_call.h"
#include "gpu/host/store.h"

namespace jaxcoll::cuda {

// The GPUs of the job. Set once, before the first call.
struct Job {
  int process = 0;
  std::vector<Member> devices;
  GpuCommunicatorOptions options;  // without `operand`
  bool maps_operands = true;       // whether processes offer each other their arrays' memory
  std::unique_ptr<Store> store;    // null in a job of one process
  Runtime* runtime = nullptr;
};
void StartJob(Job job);
bool JobStarted();

class GpuCallSite {
 public:
  static StatusOr<std::unique_ptr<GpuCallSite>> Create(CallSpec spec);
  ~GpuCallSite();
  GpuCallSite(const GpuCallSite&) = delete;
  GpuCallSite& operator=(const GpuCallSite&) = delete;

  const CallCore& core() const { return core_; }

  bool prepared() const { return prepared_.load(std::memory_order_acquire); }
  // `operand`: of the first call, in the memory that XLA takes arrays from; may be null.
  Status Prepare(const CallShape& shape, const void* operand = nullptr);

  // `ordinal`: of the calling device in this process. `logical_id`: device memory, or null.
  Status Enqueue(int ordinal, void* stream, const void* const* inputs, void* const* outputs,
                 const uint32_t* logical_id) const;

 private:
  struct GpuGroup {
    GpuCommunicator* communicator = nullptr;
    std::unique_ptr<GroupCall> call;  // null: no rank of it is here
  };

  explicit GpuCallSite(CallCore core) : core_(std::move(core)) {}
  Status PrepareGroups(const void* operand);
  Status PrepareGroup(int32_t group, const void* operand);

  CallCore core_;  // its shape is set before prepared_ is
  const CallSpec& spec_ = core_.spec();
  const GroupTable& table_ = core_.groups();

  std::mutex mutex_;
  std::atomic<bool> prepared_{false};  // publishes what follows, constant from then on
  std::vector<GpuGroup> groups_;
  std::vector<std::optional<Place>> place_of_ordinal_;
  std::vector<uint32_t> logical_of_ordinal_;
};

}  // namespace jaxcoll::cuda
