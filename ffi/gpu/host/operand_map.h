// Operands in place between the processes of a host: the allocation in which a process's operands
// are is mapped by the others, once, before anything is captured. XLA allocates its arrays from one
// pool, so this covers all of them.
//
// Mapping may fail: memory that cannot be exported or mapped, or that is elsewhere, is staged. All
// ranks agree on whether to try (agreed). In each call every rank publishes whether its operands
// are mapped, and all take the same path (memory.cuh).
//
// Thread rule: set up by one thread; then any.
#pragma once

#include <cstdint>
#include <vector>

#include "gpu/abi/runtime.h"

namespace jaxcoll::cuda {

class OperandMap {
 public:
  // The description of its rank's allocation that a process publishes.
  struct Record {
    Runtime::IpcHandle handle = {};
    uint64_t bytes = 0;  // 0: it is not available
  };

  // The only rank of this process, on device `ordinal`.
  OperandMap(Runtime& runtime, int ordinal, int rank, int ranks)
      : runtime_(runtime), ordinal_(ordinal), rank_(rank), told_(ranks), bases_(ranks, nullptr) {}

  ~OperandMap();
  OperandMap(const OperandMap&) = delete;
  OperandMap& operator=(const OperandMap&) = delete;

  // That of the allocation that holds `operand`, which may be null.
  Record Tell(const void* operand);
  void Map(int rank, const Record& record);

  // Whether all ranks have published one. Equal on all.
  bool agreed() const;
  // Whether this rank can access the allocations of all others.
  bool complete() const;
  // Whether `operand` is in the allocation that the others know, and that is still the same
  // one: another one may have taken its address.
  bool Knows(const void* operand) const;
  // The quick half of that.
  bool Holds(const void* operand) const {
    const auto* const at = static_cast<const unsigned char*>(operand);
    return at >= own_.base && at < own_.base + own_.bytes;
  }
  // The address of a rank's allocation here.
  unsigned char* base(int rank) const { return bases_[rank]; }

 private:
  Runtime& runtime_;
  const int ordinal_;
  const int rank_;
  Runtime::Allocation own_;
  std::vector<Record> told_;  // by rank
  std::vector<unsigned char*> bases_;
};

}  // namespace jaxcoll::cuda
