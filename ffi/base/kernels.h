// Memory kernels: N-ary reduction and copy, from N sources to M destinations in one pass.
//
// One source file is compiled per instruction set (portable, AVX2, AVX-512) and picked once at run
// time; JAXCOLL_ISA=portable|avx2|avx512 lowers the choice for tests. All of them give bitwise
// equal results on every thread:
//  - Sources are combined in the order given, ((s0 + s1) + s2) ....
//  - Floats of 16 bits and less are widened to float32, combined there, and rounded once when
//    stored, as XLA and ml_dtypes convert from float32: to nearest even, past the largest number to
//    infinity or, where there is none, NaN. (float8_e8m0fnu rounds halves up and has no zero.)
//  - A NaN in any source gives NaN, in min and max too, as in lax, and always the same one.
//  - In min and max, -0 < +0.
//  - Subnormals are kept, whatever the calling thread's floating-point control says.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string_view>

#include "base/dtype.h"

namespace jaxcoll {

enum class Caching : bool {
  kCached,     // the destinations are about to be read, or fit in cache
  kStreaming,  // bypass the cache: saves the read-for-ownership of large destinations
};

// destinations[j][i] = sources[0][i] op sources[1][i] op ... for every j and 0 <= i < count
// elements. A destination may be identical to a source (in place); they must not overlap otherwise.
// Any alignment is accepted. kStreaming takes effect where all destinations are equally far from a
// 64-byte boundary, by whole elements.
// One source is a copy. Requires Supports(dtype, op) when there are two sources or more.
// Thread rule: pure, callable from any thread.
void Reduce(std::span<void* const> destinations, std::span<const void* const> sources, size_t count,
            DType dtype, ReduceOp op, Caching caching);

// destinations[j] = source, byte_count bytes.
void Copy(std::span<void* const> destinations, const void* source, size_t byte_count,
          Caching caching);

enum class Isa : uint8_t { kPortable, kAvx2, kAvx512 };  // each runs where a later one runs
inline constexpr int kIsaCount = static_cast<int>(Isa::kAvx512) + 1;

std::string_view Name(Isa isa);  // "portable", "avx2", "avx512"
Isa BestIsa();                   // what this machine could run
Isa KernelIsa();  // what Reduce and Copy run: BestIsa, or less if JAXCOLL_ISA says so
// The choice on a machine that could run `best` where `wanted` is asked for. Asking for more than
// there is gets `best`; jaxcoll/_jax/startup.py says so to the user.
Isa Allowed(std::optional<Isa> wanted, Isa best);

// Reduce by a chosen instruction set, not above BestIsa(). For tests.
void ReduceWith(Isa isa, std::span<void* const> destinations, std::span<const void* const> sources,
                size_t count, DType dtype, ReduceOp op, Caching caching);

}  // namespace jaxcoll
