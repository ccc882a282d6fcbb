// Operands in place between the processes of a host: the allocation in which a process's operands
// are is mapped by the others, once, before anything is captured. XLA takes the memory of its
// arrays from one pool, so that is all of them.
//
// It is an attempt: what cannot be exported or mapped, or lies elsewhere, is staged. Whether there
// is something to try is known to all ranks alike (agreed); whether it does for a call, each rank
// tells the others in that call, and all do the same (memory.cuh).
//
// Thread rule: set up by one thread; then any.
#pragma once

#include <cstdint>
#include <vector>

#include "gpu/abi/runtime.h"

namespace jaxcoll::cuda {

class OperandMap {
 public:
  // What a process tells the others of its rank's allocation.
  struct Record {
    Runtime::IpcHandle handle = {};
    uint64_t bytes = 0;  // 0: it is not to be had
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

  // Whether all ranks have told of one. Equal on all.
  bool agreed() const;
  // Whether this rank reaches the allocations of all others.
  bool complete() const;
  // Whether `operand` is in the allocation that the others were told of, and that is still the same
  // one: another one may have taken its address.
  bool Knows(const void* operand) const;
  // The quick half of that.
  bool Holds(const void* operand) const {
    const auto* const at = static_cast<const unsigned char*>(operand);
    return at >= own_.base && at < own_.base + own_.bytes;
  }
  // Where the allocation of a rank is here.
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
