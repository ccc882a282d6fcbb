// Copies and reductions of a range of bytes by a set of threads, 16 bytes at a time where the
// addresses permit it.
#pragma once

#include <cstdint>
#include <type_traits>

#include "gpu/abi/layout.h"
#include "gpu/device/element.h"

namespace jaxcoll::cuda {

// Thread `index` of `count` that share a range.
struct Team {
  int64_t index;
  int64_t count;
};
__device__ inline Team Grid() {
  return {static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x,
          static_cast<int64_t>(gridDim.x) * blockDim.x};
}
__device__ inline Team Block() { return {threadIdx.x, blockDim.x}; }

// Calls f(part, team) for each of `parts`, at least one. The parts are distributed over the block's
// warps, so that loads of several parts are in flight together.
template <typename F>
__device__ __forceinline__ void ForEachPart(int parts, F f) {
  constexpr int kWarp = 32;
  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  const int unit = threads % kWarp == 0 ? kWarp : 1;  // a test's blocks are smaller than a warp
  const int units = threads / unit;
  const int together = parts < units ? units / parts * unit : unit;
  const Team team = {thread % together, together};
  for (int part = thread / together; part < parts; part += threads / together) f(part, team);
}

// The destinations of a copy: one place, or several, whose list is in shared memory.
struct One {
  unsigned char* to;
  __device__ __forceinline__ int count() const { return 1; }
  __device__ __forceinline__ unsigned char* operator[](int) const { return to; }
};
struct Many {
  unsigned char* const* to;
  int places;
  __device__ __forceinline__ int count() const { return places; }
  __device__ __forceinline__ unsigned char* operator[](int d) const { return to[d]; }
};

// All loads of a round are in flight before the first is used, those of the last, shorter one, too:
// most copies of a piece have no other.
template <typename W, typename To>
__device__ __forceinline__ void CopyItems(To to, const unsigned char* source, int64_t skip,
                                          int64_t items, Team team) {
  constexpr int kUnroll = 8;
  const W* const from = reinterpret_cast<const W*>(source + skip);
  for (int64_t i = team.index; i < items; i += kUnroll * team.count) {
    W values[kUnroll] = {};
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (i + u * team.count < items) values[u] = __ldcg(from + i + u * team.count);
    }
    for (int d = 0; d < to.count(); ++d) {
      W* const out = reinterpret_cast<W*>(to[d] + skip);
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        if (i + u * team.count < items) out[i + u * team.count] = values[u];
      }
    }
  }
}

// Every destination = source. Nothing overlaps.
template <typename To>
__device__ __forceinline__ void CopyHere(To to, const unsigned char* source, int64_t bytes,
                                         Team team) {
  if (bytes <= 0) return;
  uint64_t apart = 0;  // bits in which the addresses differ
  for (int d = 0; d < to.count(); ++d) apart |= AddressOf(to[d]) ^ AddressOf(source);
  if ((apart & 3) != 0) {
    // The two sides have different alignments: wider words would straddle a boundary.
    if (((apart | AddressOf(source) | bytes) & 1) == 0) {
      CopyItems<unsigned short>(to, source, 0, bytes / 2, team);
    } else {
      CopyItems<unsigned char>(to, source, 0, bytes, team);
    }
    return;
  }
  // Single bytes up to the first boundary and from the last.
  const int width = (apart & 15) == 0 ? 16 : (apart & 7) == 0 ? 8 : 4;
  int64_t head = (width - (AddressOf(source) & (width - 1))) & (width - 1);
  if (head > bytes) head = bytes;
  const int64_t items = (bytes - head) / width;
  const int64_t body_end = head + items * width;
  for (int64_t i = team.index; i < head + bytes - body_end; i += team.count) {
    const int64_t at = i < head ? i : body_end + i - head;
    const unsigned char value = __ldcg(source + at);
    for (int d = 0; d < to.count(); ++d) to[d][at] = value;
  }
  if (width == 16) {
    CopyItems<uint4>(to, source, head, items, team);
  } else if (width == 8) {
    CopyItems<uint2>(to, source, head, items, team);
  } else {
    CopyItems<unsigned int>(to, source, head, items, team);
  }
}

// The same, not inlined: a kernel has many copies, and a copy of one piece is thousands of loads.
template <typename To>
__device__ __noinline__ void Copy(To to, const unsigned char* source, int64_t bytes, Team team) {
  CopyHere(to, source, bytes, team);
}

// destination = zeros; aligned to 16 bytes.
__device__ inline void Zero(unsigned char* destination, int64_t bytes, Team team) {
  const int64_t packs = bytes / 16;
  for (int64_t i = team.index; i < packs; i += team.count) {
    reinterpret_cast<uint4*>(destination)[i] = uint4{};
  }
  for (int64_t i = packs * 16 + team.index; i < bytes; i += team.count) destination[i] = 0;
}

// ---- Reduction ---------------------------------------------------------------------------------

template <int kBytes>
struct WordOf;
template <>
struct WordOf<1> {
  using Type = unsigned char;
};
template <>
struct WordOf<2> {
  using Type = unsigned short;
};
template <>
struct WordOf<4> {
  using Type = unsigned int;
};
template <>
struct WordOf<8> {
  using Type = uint2;
};
template <>
struct WordOf<16> {
  using Type = uint4;
};

// kOp: an op, or kAnyOp for the one in the call.
inline constexpr int kAnyOp = -1;

// The elements in one word of W: loaded, combined, stored back.
template <typename E, typename W>
struct Accumulator {
  using Stored = typename E::Stored;
  using Wide = typename E::Wide;
  static constexpr int kElements = sizeof(W) / sizeof(Stored);
  Wide value[kElements];

  struct Elements {
    Stored stored[kElements];
  };
  __device__ __forceinline__ void Load(W word) {
    const Elements elements = BitCast<Elements>(word);
#pragma unroll
    for (int e = 0; e < kElements; ++e) value[e] = E::Load(elements.stored[e]);
  }
  __device__ __forceinline__ void Add(ReduceOp op, W word) {
    const Elements elements = BitCast<Elements>(word);
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      value[e] = Combine(op, value[e], E::Load(elements.stored[e]));
    }
  }
  __device__ __forceinline__ W Store() const {
    Elements elements;
#pragma unroll
    for (int e = 0; e < kElements; ++e) elements.stored[e] = E::Store(value[e]);
    return BitCast<W>(elements);
  }
};

// Sources and destinations of one reduction, in shared memory.
struct Streams {
  const unsigned char* sources[kMaxRanks];
  unsigned char* destinations[kMaxRanks];
  int source_count;
  int destination_count;
};

// Combines items of type W; kSources > 0 when their number is known: then all loads are in flight
// before the first is used.
template <typename E, int kOp, typename W, int kSources, int kUnroll>
__device__ __forceinline__ void ReduceItems(const Streams& streams, ReduceOp any_op, int64_t items,
                                            Team team) {
  const ReduceOp op = kOp == kAnyOp ? any_op : static_cast<ReduceOp>(kOp);
  const auto source = [&](int n) { return reinterpret_cast<const W*>(streams.sources[n]); };
  const auto step = [&](int64_t at, auto unroll) {
    constexpr int U = decltype(unroll)::value;
    Accumulator<E, W> sums[U];
    if constexpr (kSources > 0) {
      W words[kSources][U];
#pragma unroll
      for (int n = 0; n < kSources; ++n) {
#pragma unroll
        for (int u = 0; u < U; ++u) words[n][u] = __ldcg(source(n) + at + u * team.count);
      }
#pragma unroll
      for (int n = 0; n < kSources; ++n) {
#pragma unroll
        for (int u = 0; u < U; ++u) {
          if (n == 0) {
            sums[u].Load(words[n][u]);
          } else {
            sums[u].Add(op, words[n][u]);
          }
        }
      }
    } else {
#pragma unroll
      for (int u = 0; u < U; ++u) sums[u].Load(__ldcg(source(0) + at + u * team.count));
      for (int n = 1; n < streams.source_count; ++n) {
        W words[U];
#pragma unroll
        for (int u = 0; u < U; ++u) words[u] = __ldcg(source(n) + at + u * team.count);
#pragma unroll
        for (int u = 0; u < U; ++u) sums[u].Add(op, words[u]);
      }
    }
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const W word = sums[u].Store();
      for (int d = 0; d < streams.destination_count; ++d) {
        reinterpret_cast<W*>(streams.destinations[d])[at + u * team.count] = word;
      }
    }
  };
  int64_t i = team.index;
  for (; i + (kUnroll - 1) * team.count < items; i += kUnroll * team.count) {
    step(i, std::integral_constant<int, kUnroll>());
  }
  if constexpr (kUnroll > 1) {
    for (; i < items; i += team.count) step(i, std::integral_constant<int, 1>());
  }
}

// Every destination = source 0 op source 1 op ..., `elements` of them. kHot: worth code of its own
// for the usual numbers of ranks.
template <typename E, int kOp, bool kHot>
__device__ __forceinline__ void Reduce(const Streams& streams, ReduceOp any_op, int64_t elements,
                                       Team team) {
  using Stored = typename E::Stored;
  using Word = typename WordOf<sizeof(Stored)>::Type;
  constexpr int kPerPack = 16 / sizeof(Stored);
  uint64_t addresses = 0;
  for (int n = 0; n < streams.source_count; ++n) addresses |= AddressOf(streams.sources[n]);
  for (int d = 0; d < streams.destination_count; ++d) {
    addresses |= AddressOf(streams.destinations[d]);
  }
  int64_t packs = 0;
  if (addresses % 16 == 0) {
    packs = elements / kPerPack;
    if constexpr (kHot) {
      switch (streams.source_count) {
        case 2:
          ReduceItems<E, kOp, uint4, 2, kPerPack <= 4 ? 4 : 2>(streams, any_op, packs, team);
          break;
        case 4:
          ReduceItems<E, kOp, uint4, 4, kPerPack <= 4 ? 2 : 1>(streams, any_op, packs, team);
          break;
        case 8:
          ReduceItems<E, kOp, uint4, 8, 1>(streams, any_op, packs, team);
          break;
        default:
          ReduceItems<E, kOp, uint4, 0, 2>(streams, any_op, packs, team);
      }
    } else {
      ReduceItems<E, kOp, uint4, 0, 1>(streams, any_op, packs, team);
    }
  }
  // The tail, or all of it where addresses are not aligned: single elements.
  if constexpr (kPerPack > 1) {
    const int64_t done = packs * kPerPack;
    if (done == elements) return;
    Team rest = team;
    rest.index += done;
    ReduceItems<E, kOp, Word, 0, 1>(streams, any_op, elements, rest);
  }
}

}  // namespace jaxcoll::cuda
