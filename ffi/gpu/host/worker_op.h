// The ops of the interpreter's workers while a table is made of them (device_table.cc), and how
// several become one.
#pragma once

#include <compare>
#include <cstdint>
#include <vector>

#include "gpu/abi/device_table.h"

namespace jaxcoll::cuda {

// One chunk of an operand, before chunks are put together into pieces.
struct ChunkRef {
  TableRef::Memory memory;
  int32_t peer;
  int32_t chunk;
  friend auto operator<=>(const ChunkRef&, const ChunkRef&) = default;
};
using Refs = std::vector<ChunkRef>;

// An op of a worker while it is made.
struct WorkerOp {
  std::vector<TableWait> waits;
  std::vector<int32_t> positions;  // of each chunk in its block
  std::vector<Refs> sources;
  std::vector<Refs> destinations;
  std::vector<TableSignal> signals;
  std::vector<int32_t> of;  // the ops of the op list that it does
  // It waits for messages of lower levels only, and what it sends is received at higher ones.
  int32_t level = 0;
  bool Moves() const { return !destinations.empty(); }
};

template <typename T>
void Append(std::vector<T>& to, const std::vector<T>& from) {
  to.insert(to.end(), from.begin(), from.end());
}

// Whether `next` may be done in the same pass as `op`, which comes right before it: it copies what
// `op` copies or makes, and waits for nothing but free slots. (Those are freed by earlier slices
// or launches, so to wait for them earlier closes no circle.)
bool MayJoin(const WorkerOp& op, const WorkerOp& next);

// Drops stores to scratch that no op reads any more, since its reader was joined to the writer.
void DropDeadStores(std::vector<std::vector<WorkerOp>>& workers);

// Puts ops side by side where that may be: each costs a round of flags.
void PutSideBySide(std::vector<WorkerOp>& ops);

}  // namespace jaxcoll::cuda
