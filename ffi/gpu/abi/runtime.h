// The functions that this folder needs of CUDA to set calls up and to start kernels.
// runtime_cuda.cc is CUDA's; a test without a GPU brings one whose devices are memory and threads
// of the host.
//
// An ordinal is a device of this process. Thread rule: any thread, concurrently. Start() is what a
// call does: it enqueues, and may run while a graph is captured. All others may block, and none of
// them becomes a part of what is captured.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <variant>

#include "base/dtype.h"
#include "base/status.h"
#include "gpu/abi/device_table.h"
#include "gpu/abi/layout.h"
#include "gpu/abi/ragged_call.h"

namespace jaxcoll::cuda {

// One of the kernels.
struct Kernel {
  enum Family { kMove, kRagged, kReduce, kInterpreter, kRaggedExchange };
  Family family = kMove;
  DType dtype = DType::kUint8;   // kReduce, kInterpreter
  ReduceOp op = ReduceOp::kSum;  // kReduce
  friend bool operator==(const Kernel&, const Kernel&) = default;
};

// One launch of one rank.
struct Launch {
  Kernel kernel;
  int blocks = 1;
  std::variant<Call, TableCall, RaggedTableCall> parameters;

  const void* data() const {
    return std::visit([](const auto& call) -> const void* { return &call; }, parameters);
  }
  size_t bytes() const {
    return std::visit([](const auto& call) { return sizeof(call); }, parameters);
  }
};

class Runtime {
 public:
  using IpcHandle = std::array<unsigned char, 64>;

  virtual ~Runtime() = default;

  virtual StatusOr<int> MultiprocessorCount(int ordinal) = 0;
  // Whether kernels on `from` can reach the memory of `to`.
  virtual StatusOr<bool> CanReach(int from, int to) = 0;
  virtual Status EnableReach(int from, int to) = 0;

  // Device memory, all zero, at one address for all devices of the process.
  virtual StatusOr<unsigned char*> Allocate(int ordinal, uint64_t bytes) = 0;
  virtual void Free(int ordinal, unsigned char* memory) = 0;
  // Pinned host memory, all zero, that every device writes to and that outlives their contexts.
  virtual StatusOr<unsigned char*> AllocateHost(int ordinal, uint64_t bytes) = 0;
  virtual void FreeHost(unsigned char* memory) = 0;
  virtual Status Clear(int ordinal, unsigned char* memory, uint64_t bytes) = 0;
  virtual Status Upload(int ordinal, unsigned char* to, const void* from, uint64_t bytes) = 0;

  // Device memory of another process on this host. A handle may be imported several times, and is
  // closed as often.
  virtual StatusOr<IpcHandle> Export(int ordinal, unsigned char* memory) = 0;
  virtual StatusOr<unsigned char*> Import(int ordinal, const IpcHandle& handle) = 0;
  virtual void CloseImport(int ordinal, unsigned char* memory) = 0;

  // Memory as it was allocated; no other allocation of the process ever has the same id.
  struct Allocation {
    unsigned char* base = nullptr;
    uint64_t bytes = 0;
    uint64_t id = 0;
  };
  // The one that holds an address.
  virtual StatusOr<Allocation> AllocationOf(int ordinal, const void* memory) = 0;

  // Why a NIC cannot read the device's memory by a dma-buf; empty if it may be possible.
  virtual std::string WhyNoDmabuf(int ordinal) = 0;
  // The dma-buf of whole pages of device memory; a descriptor that the caller closes.
  virtual StatusOr<int> ExportDmabuf(int ordinal, unsigned char* memory, uint64_t bytes) = 0;

  // Loads a kernel's code now: loading it at the first launch could wait for kernels that wait for
  // this one.
  virtual Status Preload(int ordinal, const Kernel& kernel) = 0;
  virtual Status Start(int ordinal, void* stream, const Launch& launch) = 0;
};

// CUDA's, in a build that has it; lives as long as the process.
Runtime& CudaRuntime();

}  // namespace jaxcoll::cuda
