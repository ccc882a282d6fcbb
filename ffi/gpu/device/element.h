// One element of every dtype: how it is held while it is combined, and how it is combined.
//
// Plain C++ for host and device, so that a test without a GPU compares every code of every type
// with base/kernels.h, whose rules these are: floats of 16 bits and less are widened to float32 and
// rounded once when stored, every NaN becomes the same one, -0 < +0 in min and max, subnormals are
// kept. A compiler must not contract a * b + c here: -fmad=false, -ffp-contract=off.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "base/dtype.h"
#include "gpu/abi/host_device.h"

namespace jaxcoll::cuda {

template <typename To, typename From>
JAXCOLL_HD To BitCast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

// ---- Floats as codes ---------------------------------------------------------------------------

// What the codes past the largest finite number mean.
enum class Specials {
  kIeee,      // all-ones exponent: infinity, then NaNs
  kFinite,    // "fn": no infinity; all ones is NaN
  kUnsigned,  // "fnuz": no infinity, no -0; the code of -0 is NaN
};

// A float of 1 sign, E exponent and M mantissa bits with exponent bias B, stored in a T.
template <typename T, int E, int M, int B, Specials kSpecials>
struct SmallFloat {
  using Stored = T;
  using Wide = float;
  static constexpr int kBits = 1 + E + M;
  static_assert(kBits == 8 * sizeof(T));
  static constexpr uint32_t kSign = 1u << (kBits - 1);
  static constexpr uint32_t kMagnitude = kSign - 1;
  static constexpr uint32_t kInfinity = ((1u << E) - 1) << M;  // kIeee only
  static constexpr uint32_t kLargest = kSpecials == Specials::kIeee     ? kInfinity - 1
                                       : kSpecials == Specials::kFinite ? kMagnitude - 1
                                                                        : kMagnitude;
  static constexpr uint32_t kNan = kSpecials == Specials::kIeee     ? kInfinity | 1u << (M - 1)
                                   : kSpecials == Specials::kFinite ? kMagnitude
                                                                    : kSign;
  static constexpr uint32_t kOverflow = kSpecials == Specials::kIeee ? kInfinity : kNan;
  static constexpr uint32_t kSmallestNormal32 = static_cast<uint32_t>(128 - B) << 23;

  static JAXCOLL_HD float Load(T stored) {
    const uint32_t code = stored;
    const uint32_t magnitude = code & kMagnitude;
    const uint32_t shifted = magnitude << (23 - M);
    const uint32_t normal = shifted + (static_cast<uint32_t>(127 - B) << 23);
    // mantissa * 2^(1-B-M), exactly: put the mantissa behind a leading one and take the one away.
    const uint32_t subnormal = BitCast<uint32_t>(BitCast<float>(shifted + kSmallestNormal32) -
                                                 BitCast<float>(kSmallestNormal32));
    uint32_t bits = magnitude < (1u << M) ? subnormal : normal;
    if constexpr (kSpecials == Specials::kIeee) {
      bits = magnitude >= kInfinity ? shifted | 0x7f800000u : bits;
    } else if constexpr (kSpecials == Specials::kFinite) {
      bits = magnitude == kNan ? 0x7fc00000u : bits;
    } else {
      bits = code == kNan ? 0x7fc00000u : bits;
    }
    return BitCast<float>(bits | (code & kSign) << (32 - kBits));
  }

  static JAXCOLL_HD T Store(float value) {
    const uint32_t bits = BitCast<uint32_t>(value);
    const uint32_t magnitude = bits & 0x7fffffffu;
    // Round to nearest even by carrying into the bits that stay, then rebias.
    const uint32_t rounded = magnitude + ((1u << (22 - M)) - 1) + (magnitude >> (23 - M) & 1u);
    const uint32_t normal = (rounded >> (23 - M)) - (static_cast<uint32_t>(127 - B) << M);
    // Below the smallest normal number the adder rounds: beside this one, the last place of a
    // float32 is our smallest subnormal.
    constexpr uint32_t kMagic = static_cast<uint32_t>(151 - B - M) << 23;
    const uint32_t subnormal =
        BitCast<uint32_t>(BitCast<float>(magnitude) + BitCast<float>(kMagic)) - kMagic;
    uint32_t code = magnitude < kSmallestNormal32 ? subnormal : normal;
    uint32_t sign = (bits >> 31) << (kBits - 1);
    if constexpr (kSpecials != Specials::kIeee) sign = code > kLargest ? 0 : sign;
    if constexpr (kSpecials == Specials::kUnsigned) sign = code == 0 ? 0 : sign;
    code = code > kLargest ? kOverflow : code;
    return static_cast<T>(magnitude > 0x7f800000u ? kNan : code | sign);
  }
};

// Powers of two from 2^-127 to 2^127 and one NaN; halfway goes up.
struct Float8E8M0 {
  using Stored = uint8_t;
  using Wide = float;
  static JAXCOLL_HD float Load(uint8_t code) {
    uint32_t bits = static_cast<uint32_t>(code) << 23;
    bits = code == 0 ? 0x00400000u : bits;
    bits = code == 255 ? 0x7fc00000u : bits;
    return BitCast<float>(bits);
  }
  static JAXCOLL_HD uint8_t Store(float value) {
    const uint32_t bits = BitCast<uint32_t>(value);
    uint32_t code = (bits + 0x00400000u) >> 23;
    code = bits <= 0x00400000u ? 0 : code;
    return static_cast<uint8_t>(bits - 1u >= 0x7f800000u - 1u ? 255u : code);
  }
};

struct BFloat16 {
  using Stored = uint16_t;
  using Wide = float;
  static JAXCOLL_HD float Load(uint16_t code) {
    return BitCast<float>(static_cast<uint32_t>(code) << 16);
  }
  static JAXCOLL_HD uint16_t Store(float value) {
    const uint32_t bits = BitCast<uint32_t>(value);
    const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    return static_cast<uint16_t>(value != value ? 0x7fc0u : rounded);
  }
};

// Numbers that are combined as they are stored.
template <typename T>
struct Plain {
  using Stored = T;
  using Wide = T;
  static JAXCOLL_HD T Load(T value) { return value; }
  static JAXCOLL_HD T Store(T value) {
    if constexpr (std::is_same_v<T, float>) {
      return value != value ? BitCast<float>(0x7fc00000u) : value;
    } else if constexpr (std::is_same_v<T, double>) {
      return value != value ? BitCast<double>(uint64_t{0x7ff8} << 48) : value;
    } else {
      return value;
    }
  }
};

template <typename T>
struct Complex {
  T real, imaginary;
};
template <typename T>
struct ComplexElement {
  using Stored = Complex<T>;
  using Wide = Complex<T>;
  static JAXCOLL_HD Stored Load(Stored value) { return value; }
  static JAXCOLL_HD Stored Store(Stored value) {
    return {Plain<T>::Store(value.real), Plain<T>::Store(value.imaginary)};
  }
};

// clang-format off
template <DType kDType> struct ElementOf;
template <> struct ElementOf<DType::kBool> : Plain<uint8_t> {};
template <> struct ElementOf<DType::kInt8> : Plain<int8_t> {};
template <> struct ElementOf<DType::kInt16> : Plain<int16_t> {};
template <> struct ElementOf<DType::kInt32> : Plain<int32_t> {};
template <> struct ElementOf<DType::kInt64> : Plain<int64_t> {};
template <> struct ElementOf<DType::kUint8> : Plain<uint8_t> {};
template <> struct ElementOf<DType::kUint16> : Plain<uint16_t> {};
template <> struct ElementOf<DType::kUint32> : Plain<uint32_t> {};
template <> struct ElementOf<DType::kUint64> : Plain<uint64_t> {};
template <> struct ElementOf<DType::kFloat8E3M4>
    : SmallFloat<uint8_t, 3, 4, 3, Specials::kIeee> {};
template <> struct ElementOf<DType::kFloat8E4M3>
    : SmallFloat<uint8_t, 4, 3, 7, Specials::kIeee> {};
template <> struct ElementOf<DType::kFloat8E4M3B11Fnuz>
    : SmallFloat<uint8_t, 4, 3, 11, Specials::kUnsigned> {};
template <> struct ElementOf<DType::kFloat8E4M3Fn>
    : SmallFloat<uint8_t, 4, 3, 7, Specials::kFinite> {};
template <> struct ElementOf<DType::kFloat8E4M3Fnuz>
    : SmallFloat<uint8_t, 4, 3, 8, Specials::kUnsigned> {};
template <> struct ElementOf<DType::kFloat8E5M2>
    : SmallFloat<uint8_t, 5, 2, 15, Specials::kIeee> {};
template <> struct ElementOf<DType::kFloat8E5M2Fnuz>
    : SmallFloat<uint8_t, 5, 2, 16, Specials::kUnsigned> {};
template <> struct ElementOf<DType::kFloat8E8M0Fnu> : Float8E8M0 {};
template <> struct ElementOf<DType::kFloat16>
    : SmallFloat<uint16_t, 5, 10, 15, Specials::kIeee> {};
template <> struct ElementOf<DType::kBFloat16> : BFloat16 {};
template <> struct ElementOf<DType::kFloat32> : Plain<float> {};
template <> struct ElementOf<DType::kFloat64> : Plain<double> {};
template <> struct ElementOf<DType::kComplex64> : ComplexElement<float> {};
template <> struct ElementOf<DType::kComplex128> : ComplexElement<double> {};
// clang-format on

// ---- Reduce ops --------------------------------------------------------------------------------

// Integers in the order of the floats, -0 before +0.
JAXCOLL_HD int32_t Ordered(float value) {
  const int32_t bits = BitCast<int32_t>(value);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}
JAXCOLL_HD int64_t Ordered(double value) {
  const int64_t bits = BitCast<int64_t>(value);
  return bits ^ ((bits >> 63) & 0x7fffffffffffffff);
}

template <typename T>
JAXCOLL_HD T Extremum(T a, T b, bool smaller) {
  if constexpr (std::is_floating_point_v<T>) {
    if (a != a) return a;
    if (b != b) return b;
    return (Ordered(a) < Ordered(b)) == smaller ? a : b;
  } else {
    return (a < b) == smaller ? a : b;
  }
}

// a op b. An op that the type does not have (see Supports) returns a.
template <typename T>
JAXCOLL_HD T Combine(ReduceOp op, T a, T b) {
  if constexpr (std::is_same_v<T, Complex<float>> || std::is_same_v<T, Complex<double>>) {
    if (op == ReduceOp::kSum) return {a.real + b.real, a.imaginary + b.imaginary};
    return {a.real * b.real - a.imaginary * b.imaginary,
            a.imaginary * b.real + a.real * b.imaginary};
  } else if constexpr (std::is_floating_point_v<T>) {
    switch (op) {
      case ReduceOp::kSum:
        return a + b;
      case ReduceOp::kProd:
        return a * b;
      case ReduceOp::kMin:
        return Extremum(a, b, true);
      case ReduceOp::kMax:
        return Extremum(a, b, false);
      default:
        return a;
    }
  } else {
    using Wraps = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;  // no signed overflow
    switch (op) {
      case ReduceOp::kSum:
        return static_cast<T>(static_cast<Wraps>(a) + static_cast<Wraps>(b));
      case ReduceOp::kProd:
        return static_cast<T>(static_cast<Wraps>(a) * static_cast<Wraps>(b));
      case ReduceOp::kMin:
        return Extremum(a, b, true);
      case ReduceOp::kMax:
        return Extremum(a, b, false);
      case ReduceOp::kAnd:
        return a & b;
      case ReduceOp::kOr:
        return a | b;
      case ReduceOp::kXor:
        return a ^ b;
    }
    return a;
  }
}

}  // namespace jaxcoll::cuda
