#include "gpu/host/operand_map.h"

#include <algorithm>
#include <cstddef>

namespace jaxcoll::cuda {
OperandMap::~OperandMap() {
  for (size_t rank = 0; rank < bases_.size(); ++rank) {
    if (bases_[rank] != nullptr && static_cast<int>(rank) != rank_) {
      runtime_.CloseImport(ordinal_, bases_[rank]);
    }
  }
}

OperandMap::Record OperandMap::Tell(const void* operand) {
  Record record;
  if (operand == nullptr) return record;
  const StatusOr<Runtime::Allocation> allocation = runtime_.AllocationOf(ordinal_, operand);
  if (!allocation.ok()) return record;
  const StatusOr<Runtime::IpcHandle> handle = runtime_.Export(ordinal_, allocation->base);
  if (!handle.ok()) return record;  // of an allocator whose memory has no handles
  own_ = *allocation;
  record.handle = *handle;
  record.bytes = own_.bytes;
  told_[rank_] = record;
  bases_[rank_] = own_.base;
  return record;
}

void OperandMap::Map(int rank, const Record& record) {
  told_[rank] = record;
  if (record.bytes == 0) return;
  const StatusOr<unsigned char*> base = runtime_.Import(ordinal_, record.handle);
  if (base.ok()) bases_[rank] = *base;
}

bool OperandMap::agreed() const {
  return std::all_of(told_.begin(), told_.end(), [](const Record& r) { return r.bytes > 0; });
}

bool OperandMap::complete() const {
  return std::all_of(bases_.begin(), bases_.end(),
                     [](const auto* base) { return base != nullptr; });
}

bool OperandMap::Knows(const void* operand) const {
  if (operand == nullptr || !Holds(operand)) return false;
  const StatusOr<Runtime::Allocation> allocation = runtime_.AllocationOf(ordinal_, operand);
  return allocation.ok() && allocation->id == own_.id;
}

}  // namespace jaxcoll::cuda
