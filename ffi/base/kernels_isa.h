// Private to base/kernels*: what each instruction set's translation unit gives to the dispatcher.
//
// Those units must emit no inline function that another unit also emits: the linker would keep one
// copy, perhaps the AVX-512 one, for the whole program, and a lesser machine would die of an
// illegal instruction. So this header declares plain structs only, and kernels_impl.inc keeps
// everything in an unnamed namespace and calls nothing from the standard library but memcpy.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/dtype.h"

namespace jaxcoll {

struct ReduceArguments {
  void* const* destinations;
  size_t destination_count;
  const void* const* sources;
  size_t source_count;
  size_t count;  // elements of item_bytes each
  size_t item_bytes;
  DType dtype;
  ReduceOp op;
  bool streaming;
};

// Expects at least one destination and one source, an op that the dtype supports, and default
// floating-point control (no flushing of subnormals); does not fence streaming stores.
// One function per instruction set, defined by kernels_impl.inc.
void ReducePortable(const ReduceArguments& arguments);
#if defined(__x86_64__)
void ReduceAvx2(const ReduceArguments& arguments);
void ReduceAvx512(const ReduceArguments& arguments);
#endif

}  // namespace jaxcoll
