// How a team of threads moves a chunk: its sources, combined, to its destinations. The interpreter
// spends most of its time here.
//
// `Memory` is how a thread accesses memory: static Load<T>(address) and Store<T>(address, value),
// plain accesses of 1 to 16 bytes, aligned to their size.
//
// Numbers are combined as element.h says, in the order of the sources, and rounded once.
#pragma once

#include <cstdint>
#include <type_traits>

#include "gpu/abi/host_device.h"
#include "gpu/device/element.h"

// Unrolls loops in kernels, which keeps arrays in registers.
#if defined(__CUDACC__)
#define JAXCOLL_UNROLL _Pragma("unroll")
#define JAXCOLL_NO_UNROLL _Pragma("unroll 1")
#else
#define JAXCOLL_UNROLL
#define JAXCOLL_NO_UNROLL
#endif

namespace jaxcoll::cuda {

// How a thread accesses memory where everything is aligned.
struct alignas(16) Bytes16 {
  uint8_t byte[16];
};

// A chunk, and the threads that move it. Every thread of the team has one.
struct ChunkMove {
  unsigned char* const* at;  // of sources, then destinations
  int32_t sources;           // 0: zeros
  int32_t destinations;
  int32_t count;            // of elements
  int32_t thread, threads;  // of the team
};

template <typename Memory, DType kDType>
class ChunkMover {
 public:
  using Element = ElementOf<kDType>;
  using Stored = typename Element::Stored;
  using Wide = typename Element::Wide;
  static constexpr int32_t kItemBytes = sizeof(Stored);
  static constexpr int32_t kPerAccess = 16 / static_cast<int>(sizeof(Stored));

  // Accesses of one thread in flight for each of two sources, or for the one that is copied: as
  // many as leave ptxas without spills for sm_80, sm_90 and sm_100 at kInterpreterThreads.
  static constexpr int kHeldBytes = (sizeof(Wide) < 4 ? 4 : sizeof(Wide)) * kPerAccess;
  static constexpr int kUnroll = kHeldBytes > 32 ? (sizeof(Wide) < 4 ? 2 : 1)
                                                 : (kHeldBytes > 16 ? 3 : 4);
  static constexpr int kCopyUnroll = 8;

  static JAXCOLL_HD void Move(ReduceOp op, const ChunkMove& move) {
    if (move.sources <= 1) return MoveBy<Copy>(move);
    switch (op) {
      case ReduceOp::kSum:
        return Reduce<ReduceOp::kSum>(move);
      case ReduceOp::kProd:
        return Reduce<ReduceOp::kProd>(move);
      case ReduceOp::kMin:
        return Reduce<ReduceOp::kMin>(move);
      case ReduceOp::kMax:
        return Reduce<ReduceOp::kMax>(move);
      case ReduceOp::kAnd:
        return Reduce<ReduceOp::kAnd>(move);
      case ReduceOp::kOr:
        return Reduce<ReduceOp::kOr>(move);
      case ReduceOp::kXor:
        return Reduce<ReduceOp::kXor>(move);
    }
  }

 private:
  // An op that the type lacks is refused by PlanCall(); here it would only be code.
  template <ReduceOp kOp>
  static JAXCOLL_HD void Reduce(const ChunkMove& move) {
    constexpr bool kWhole = std::is_integral_v<Wide>;
    constexpr bool kReal = kWhole || std::is_floating_point_v<Wide>;
    constexpr bool kBits = kOp == ReduceOp::kAnd || kOp == ReduceOp::kOr || kOp == ReduceOp::kXor;
    constexpr bool kOrders = kOp == ReduceOp::kMin || kOp == ReduceOp::kMax;
    if constexpr ((kWhole || !kBits) && (kReal || !kOrders)) MoveBy<Combination<kOp>>(move);
  }

  // Accesses u = 0, 1, ... of a thread, those of which u * stride < left: from byte `offset` on,
  // `stride` accesses apart. All are read before any is written: a destination may be a source.
  struct Accesses {
    int32_t offset, left, stride;
  };

  template <int kCount>
  static JAXCOLL_HD void LoadAll(const unsigned char* from, Accesses some,
                                 Bytes16 (&into)[kCount]) {
    JAXCOLL_UNROLL
    for (int u = 0; u < kCount; ++u) {
      if (u * some.stride >= some.left) continue;
      into[u] = Memory::template Load<Bytes16>(from + some.offset + u * some.stride * 16);
    }
  }
  template <int kCount>
  static JAXCOLL_HD void StoreAll(const ChunkMove& move, Accesses some,
                                  const Bytes16 (&from)[kCount]) {
    JAXCOLL_NO_UNROLL
    for (int32_t d = 0; d < move.destinations; ++d) {
      unsigned char* const to = move.at[move.sources + d] + some.offset;
      JAXCOLL_UNROLL
      for (int u = 0; u < kCount; ++u) {
        if (u * some.stride < some.left) Memory::Store(to + u * some.stride * 16, from[u]);
      }
    }
  }

  // The operations on accesses, and on single elements.
  struct Copy {
    static constexpr int kAtOnce = kCopyUnroll;
    static JAXCOLL_HD void Do(const ChunkMove& move, Accesses some) {
      Bytes16 result[kCopyUnroll] = {};
      if (move.sources > 0) LoadAll(move.at[0], some, result);
      StoreAll(move, some, result);
    }
    static JAXCOLL_HD Stored Do(const ChunkMove& move, int32_t offset) {
      return move.sources > 0 ? Memory::template Load<Stored>(move.at[0] + offset) : Stored{};
    }
  };

  template <ReduceOp kOp>
  struct Combination {
    static constexpr int kAtOnce = kUnroll;
    // The next source is loaded while one is combined.
    static JAXCOLL_HD void Do(const ChunkMove& move, Accesses some) {
      Bytes16 one[kUnroll] = {}, other[kUnroll] = {};
      Wide sums[kUnroll][kPerAccess];
      LoadAll(move.at[0], some, one);
      LoadAll(move.at[1], some, other);
      JAXCOLL_UNROLL
      for (int u = 0; u < kUnroll; ++u) Widen(one[u], sums[u]);
      JAXCOLL_NO_UNROLL
      for (int32_t s = 1; s < move.sources; s += 2) {
        if (s + 1 < move.sources) LoadAll(move.at[s + 1], some, one);
        Add(sums, other);
        if (s + 1 == move.sources) break;
        if (s + 2 < move.sources) LoadAll(move.at[s + 2], some, other);
        Add(sums, one);
      }
      JAXCOLL_UNROLL
      for (int u = 0; u < kUnroll; ++u) one[u] = Narrow(sums[u]);
      StoreAll(move, some, one);
    }
    static JAXCOLL_HD Stored Do(const ChunkMove& move, int32_t offset) {
      Wide sum = Element::Load(Memory::template Load<Stored>(move.at[0] + offset));
      JAXCOLL_NO_UNROLL
      for (int32_t s = 1; s < move.sources; ++s) {
        sum = Combine(kOp, sum, Element::Load(Memory::template Load<Stored>(move.at[s] + offset)));
      }
      return Element::Store(sum);
    }

   private:
    static JAXCOLL_HD void Add(Wide (&sums)[kUnroll][kPerAccess], const Bytes16 (&next)[kUnroll]) {
      JAXCOLL_UNROLL
      for (int u = 0; u < kUnroll; ++u) {
        Wide wide[kPerAccess];
        Widen(next[u], wide);
        JAXCOLL_UNROLL
        for (int i = 0; i < kPerAccess; ++i) sums[u][i] = Combine(kOp, sums[u][i], wide[i]);
      }
    }
  };

  template <typename How>
  static JAXCOLL_HD void MoveBy(const ChunkMove& move) {
    const auto offset = reinterpret_cast<uintptr_t>(move.at[0]) % 16;
    bool alike = true;  // all operands reach a multiple of 16 together
    for (int32_t i = 1; i < move.sources + move.destinations; ++i) {
      alike &= reinterpret_cast<uintptr_t>(move.at[i]) % 16 == offset;
    }
    int32_t head = move.count, accesses = 0;
    if (alike) {
      const auto to_multiple = static_cast<int32_t>((16 - offset) % 16 / sizeof(Stored));
      head = to_multiple < move.count ? to_multiple : move.count;
      accesses = (move.count - head) / kPerAccess;
    }
    for (int32_t i = move.thread; i < accesses; i += How::kAtOnce * move.threads) {
      How::Do(move, Accesses{head * kItemBytes + i * 16, accesses - i, move.threads});
    }
    // The elements before and behind the accesses.
    for (int32_t i = move.thread; i < move.count - accesses * kPerAccess; i += move.threads) {
      const int32_t at = (i < head ? i : i + accesses * kPerAccess) * kItemBytes;
      const Stored result = How::Do(move, at);
      JAXCOLL_NO_UNROLL
      for (int32_t d = 0; d < move.destinations; ++d) {
        Memory::Store(move.at[move.sources + d] + at, result);
      }
    }
  }

  struct Pack16 {
    Stored element[kPerAccess];
  };

  static JAXCOLL_HD void Widen(const Bytes16& bytes, Wide (&wide)[kPerAccess]) {
    const Pack16 pack = BitCast<Pack16>(bytes);
    JAXCOLL_UNROLL
    for (int i = 0; i < kPerAccess; ++i) wide[i] = Element::Load(pack.element[i]);
  }

  static JAXCOLL_HD Bytes16 Narrow(const Wide (&wide)[kPerAccess]) {
    Pack16 pack;
    JAXCOLL_UNROLL
    for (int i = 0; i < kPerAccess; ++i) pack.element[i] = Element::Store(wide[i]);
    return BitCast<Bytes16>(pack);
  }
};

}  // namespace jaxcoll::cuda
